"""One call per message: the framing cuts the stream, and what the function returns is the reply."""

from longshore import Lines, serve


def shout(message, connection):
    return message.upper()


if __name__ == "__main__":
    serve(shout, "tcp://127.0.0.1:5000", framing=Lines(max_size=65536))
