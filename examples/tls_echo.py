"""TLS: the handler stays as it was; the address and tls= say the rest. Run: tls_echo.py CERTFILE KEYFILE"""

import sys

from longshore import TLS, serve


def echo(connection):
    while data := connection.recv(65536):
        connection.sendall(data)


if __name__ == "__main__":
    certfile, keyfile = sys.argv[1:]
    serve(echo, "tls://127.0.0.1:5000", tls=TLS(certfile, keyfile))
