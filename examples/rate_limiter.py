"""A limit that all processes count for together: so many requests a minute for each host, wherever they arrive."""

import time

from longshore import Lines, serve, shared

LIMIT = 5
rates = shared.Dict("rates")


def is_allowed(host):
    minute = int(time.time() // 60)
    while True:
        seen = rates.get(host)
        count = seen[1] + 1 if seen and seen[0] == minute else 1
        if count > LIMIT:
            return False
        # Only if nobody else has counted in between; else look again.
        if rates.compare_and_set(host, seen, (minute, count)):
            return True


def answer(message, connection):
    host = connection.peer.rpartition(":")[0]
    return message.upper() if is_allowed(host) else b"too many requests, come back in a minute"


if __name__ == "__main__":
    serve(answer, "tcp://127.0.0.1:5000?reuse_port=1", framing=Lines())
