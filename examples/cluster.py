"""A Dask cluster on this machine, for primes.py: a scheduler, and two workers that are processes of their own."""

import signal
import sys

from distributed import LocalCluster

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    port = int(sys.argv[1]) if sys.argv[1:] else 8786
    with LocalCluster(n_workers=2, threads_per_worker=1, scheduler_port=port, dashboard_address=None) as cluster:
        print(cluster.scheduler_address.replace("tcp://", "dask://"), flush=True)
        signal.pause()
