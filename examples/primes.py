"""CPU-heavy requests on a pool: the server goes on while processes of their own, or a Dask cluster, count primes."""

import sys

from longshore import Lines, serve


def primes_below(number):
    return sum(all(each % divisor for divisor in range(2, int(each**0.5) + 1)) for each in range(2, number))


def count(connection):
    for line in connection:
        future = connection.server.pool.submit(primes_below, int(line), timeout=10)
        connection.send(b"%d" % future.result())


if __name__ == "__main__":
    # python primes.py            on two processes of this machine
    # python primes.py dask://127.0.0.1:8786     on the cluster that cluster.py starts
    place = sys.argv[1] if sys.argv[1:] else 2
    serve(count, "tcp://127.0.0.1:5000", framing=Lines(), strategy="green", pool=place)
