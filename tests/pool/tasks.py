"""What the tests have a pool do.  A module of its own: a pool's processes import it by its name."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time

#: Set by `remember`.
remembered = None


def square(number):
    return number * number


def add(first, second=0):
    return first + second


def divide(pair):
    return pair[0] / pair[1]


def pid(*_):
    return os.getpid()


def environment(name):
    return os.environ.get(name)


def fail(message="no"):
    raise LookupError(message)


def sleep(seconds):
    time.sleep(seconds)


def forever():
    while True:
        pass


def touch_and_sleep(path):
    """Say that it runs, as which process, and never come back."""
    with open(f"{path}.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{path}.new", path)
    time.sleep(600)


def ignore_signals_and_sleep(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    touch_and_sleep(path)


def wait_for(path):
    """Return once there is such a file."""
    while not os.path.exists(path):
        time.sleep(0.001)
    return os.getpid()


def die(how=signal.SIGKILL):
    os.kill(os.getpid(), how)
    time.sleep(600)


def exit_hard(status):
    os._exit(status)


def exit_softly(status):
    sys.exit(status)


def interrupt():
    raise KeyboardInterrupt


class KilledWhileItIsWritten:
    """The process is killed while this is on its way: from a second thread, once the socket is full."""

    def __init__(self, size):
        self.size = size

    def __reduce__(self):
        def kill():
            # Only a thread that writes lets the others go on for so long without using the processor.
            began = time.process_time()
            while True:
                time.sleep(0.005)
                now = time.process_time()
                if now - began < 0.001:
                    os.kill(os.getpid(), signal.SIGKILL)
                began = now

        threading.Thread(target=kill, daemon=True).start()
        return bytes, (b"x" * self.size,)


def die_in_the_middle_of_a_result(size):
    return KilledWhileItIsWritten(size)


def die_with_every_lock():
    """Take whatever locks the library has in this process, and die with them."""
    import gc
    from multiprocessing.synchronize import SemLock

    for each in gc.get_objects():
        if isinstance(each, (SemLock, type(threading.Lock()), type(threading.RLock()))):
            each.acquire(blocking=False) if not isinstance(each, SemLock) else each.acquire(False)
    os.kill(os.getpid(), signal.SIGKILL)


def maybe_die(number, part):
    if random.Random(number).random() < part:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def deaths_among(numbers, part):
    return {number for number in numbers if random.Random(number).random() < part}


def fork_and_return():
    """Both the process and its child come back from here."""
    child = os.fork()
    return os.getpid(), child


def fork_and_stay(path):
    """The child stays, with whatever it has of its parent."""
    child = os.fork()
    if child == 0:
        wait_for(path)
        os._exit(0)
    return child


def close_everything():
    os.closerange(0, 1 << 16)
    return "unheard"


def take_every_descriptor():
    """Close everything, and put files where the sockets were."""
    os.closerange(3, 1 << 10)
    for _ in range(64):
        os.open(os.devnull, os.O_RDWR)
    return "unheard"


def grow(size):
    """Use so many bytes of memory, and say how many."""
    return len(bytearray(size))


def keep(size, _kept=[]):  # noqa: B006
    """Use so many bytes of memory, and never give them back."""
    _kept.append(b"x" * size)
    return os.getpid()


def result_of(size):
    return b"x" * size


def result_of_when(size, path):
    wait_for(path)
    return b"x" * size


def print_lots(count):
    for number in range(count):
        print("x" * 1000, number)
        print("x" * 1000, number, file=sys.stderr)
    return count


def a_lock():
    return threading.Lock()


class Stubborn(Exception):
    """It cannot be made again from its pickle."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def fail_stubbornly():
    raise Stubborn("one", "two")


class Unloadable:
    """It can be pickled, and not be made again."""

    def __reduce__(self):
        return fail, ("not here",)


def unloadable():
    return Unloadable()


def remember(value):
    global remembered
    remembered = value


def what_is_remembered():
    return remembered


def identity_of_main():
    return sys.modules["__main__"].__name__


def add_file(path):
    wait_for(path)
    return path


def sleep_and_tell(seconds):
    time.sleep(seconds)
    return os.getpid()


def say_and_wait(began, go):
    open(began, "w").close()
    return wait_for(go)
