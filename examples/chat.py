"""One message to many: broadcast sends to every connection, and a receiver that does not keep up misses it."""

from longshore import Lines, MessageHandler, serve


class Chat(MessageHandler):
    framing = Lines(max_size=4096)

    def connected(self):
        self.name = None
        self.connection.send(b"Who are you?")

    def message(self, message):
        if self.name is None:
            self.name = message
            self.server.broadcast(b"* %s is here" % self.name)
        else:
            self.server.broadcast(b"%s: %s" % (self.name, message))

    def disconnected(self, error):
        if self.name is not None:
            self.server.broadcast(b"* %s has left" % self.name)


if __name__ == "__main__":
    serve(Chat, "tcp://127.0.0.1:5000")
