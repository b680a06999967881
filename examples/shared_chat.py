"""A chat over many processes: what anybody says is published, and each process tells its own connections."""

from contextlib import contextmanager
from threading import Thread

from longshore import Lines, MessageHandler, serve, shared


class Chat(MessageHandler):
    framing = Lines(max_size=4096)

    def message(self, message):
        shared.Topic("chat").publish(message)


def tell(server, chat):
    for message in chat:
        server.broadcast(message)


@contextmanager
def telling(server):
    with shared.Topic("chat").subscribe() as chat:
        Thread(target=tell, args=(server, chat), daemon=True).start()
        yield


if __name__ == "__main__":
    serve(Chat, "tcp://127.0.0.1:5000?reuse_port=1", lifespan=telling)
