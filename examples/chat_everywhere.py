"""The chat of chat.py over any number of processes and machines: a topic carries what is said in one to all others.

    redis-server --port 6379
    LONGSHORE_SHARED=redis://127.0.0.1:6379/0 python examples/chat_everywhere.py

The second command may be given again and again, with another address at its end.  Without LONGSHORE_SHARED the place
is a broker of this machine, which the first use starts.
"""

import contextlib
import sys
import threading

from longshore import Lines, MessageHandler, serve, shared

room = shared.Topic("room")


class Chat(MessageHandler):
    framing = Lines(max_size=4096)

    def connected(self):
        self.name = None
        self.connection.send(b"Who are you?")

    def message(self, message):
        if self.name is None:
            self.name = message
            room.publish(b"* %s is here" % self.name)
        else:
            room.publish(b"%s: %s" % (self.name, message))

    def disconnected(self, error):
        if self.name is not None:
            room.publish(b"* %s has left" % self.name)


@contextlib.contextmanager
def listening(server):
    """Tell the connections of this process what is said in any."""
    heard = room.subscribe()

    def tell():
        for words in heard:
            server.broadcast(words)

    thread = threading.Thread(target=tell)
    thread.start()
    yield
    heard.close()
    thread.join()


if __name__ == "__main__":
    serve(Chat, sys.argv[1] if len(sys.argv) > 1 else "tcp://127.0.0.1:5000", lifespan=listening)
