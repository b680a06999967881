"""A handler class of the standard library's kind, served unchanged."""

import socketserver

from longshore import serve


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line)


if __name__ == "__main__":
    serve(Echo, "tcp://127.0.0.1:5000")
