"""What is read from /proc, on texts as the kernel writes them, and once on the real thing."""

import os
import subprocess
import sys

from bench.machine import parse_steal
from bench.memory import family, memory_of, parse_children, parse_rollup

ROLLUP = """\
55d0c0a00000-7ffd0a1fe000 ---p 00000000 00:00 0                          [rollup]
Rss:               12340 kB
Pss:                9876 kB
Pss_Dirty:          4000 kB
Swap:                  0 kB
"""


def test_a_rollup_is_read_in_bytes():
    fields = parse_rollup(ROLLUP)
    assert (fields["Rss"], fields["Pss"], fields["Swap"]) == (12340 * 1024, 9876 * 1024, 0)


def test_the_children_of_all_threads_are_read():
    assert parse_children(["12 13 ", "", "14 "]) == [12, 13, 14]


def test_steal_is_the_eighth_of_the_processor_s_times_and_guests_are_not_counted_twice():
    assert parse_steal("cpu  10 0 10 70 0 0 0 10 5 0\ncpu0 1 2 3\n") == 0.1
    assert parse_steal("cpu  10 0 10\n") == 0.0


def test_memory_and_family_of_a_process_hold_its_child():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert len(family(process.pid)) == 2
        both = memory_of(process.pid)
        assert both["rss"] >= both["pss"] > 1_000_000
        process.stdin.close()


def test_memory_of_this_process_is_more_than_a_python_needs_at_least():
    assert memory_of(os.getpid())["rss"] > 5_000_000
