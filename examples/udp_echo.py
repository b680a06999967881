"""Datagrams: each one is a message, so no framing is needed, and the reply goes to who sent it."""

from longshore import serve


def echo(message, connection):
    return message


if __name__ == "__main__":
    serve(echo, "udp://127.0.0.1:5000")
