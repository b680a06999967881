"""Per-connection state: each connection has its own instance of a MessageHandler."""

from longshore import Lines, MessageHandler, serve


class Counter(MessageHandler):
    framing = Lines()

    def connected(self):
        self.count = 0

    def message(self, message):
        self.count += 1
        return b"%d %s" % (self.count, message)


if __name__ == "__main__":
    serve(Counter, "tcp://127.0.0.1:5000")
