"""A client: connect, then request() sends a message and waits for the reply. Run: client.py URL WORD..."""

import sys

from longshore import Lines, connect

if __name__ == "__main__":
    url, *words = sys.argv[1:]
    with connect(url, framing=Lines(), timeout=5) as connection:
        for word in words:
            print(connection.request(word.encode()).decode())
