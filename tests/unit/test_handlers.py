import functools
import socketserver

import pytest

from longshore import ConfigError, Lines, MessageHandler, Server, messages, stream
from longshore.handlers import RUNS, understand


class Class(socketserver.StreamRequestHandler):
    pass


class Session(MessageHandler):
    def message(self, message):
        return message


class AsyncSession(MessageHandler):
    async def message(self, message):
        return message


class Batches(MessageHandler):
    def messages(self, batch):
        return batch


def function(connection):
    pass


def optional(connection, extra=None, *, more=None):
    pass


def message(message, connection):
    pass


async def coroutine(connection):
    pass


async def message_coroutine(message, connection):
    pass


class Callable:
    def __call__(self, connection):
        pass


class AsyncCallable:
    async def __call__(self, message, connection):
        pass


SHAPES = [
    (Class, "class"),
    (Session, "message"),
    (Batches, "message"),
    (AsyncSession, "async message"),
    (function, "stream"),
    (optional, "stream"),
    (message, "message"),
    (coroutine, "async stream"),
    (message_coroutine, "async message"),
    (Callable(), "stream"),
    (AsyncCallable(), "async message"),
    (functools.partial(message, b"bound"), "stream"),
    (functools.partial(coroutine), "async stream"),
    (functools.partial(Class, extra="bound"), "class"),
    (lambda connection: None, "stream"),
]


@pytest.mark.parametrize(("handler", "shape"), SHAPES)
def test_a_handlers_shape_is_seen_from_what_it_takes(handler, shape):
    assert understand(handler).shape == shape


def test_what_stays_ambiguous_is_refused_and_can_be_said():
    def anything(*arguments):
        pass

    with pytest.raises(ConfigError, match="neither just one argument nor just two") as refused:
        understand(anything)
    assert "stream(f)" in refused.value.hint
    assert understand(stream(anything)).shape == "stream"
    assert understand(messages(anything)).shape == "message"


@pytest.mark.parametrize("handler", [None, 5, "echo", lambda: None, Session(), functools.partial(Session)])
def test_what_is_no_handler_is_refused(handler):
    with pytest.raises(ConfigError):
        understand(handler)


def test_a_message_handler_needs_a_message_method():
    class Empty(MessageHandler):
        pass

    with pytest.raises(ConfigError, match=r"Empty has no message\(\) method"):
        understand(Empty)


@pytest.mark.parametrize(("handler", "shape"), SHAPES)
@pytest.mark.parametrize("strategy", ["reactor", "threads", "green", "async", "inline"])
def test_every_shape_runs_under_the_strategies_of_the_table_and_the_rest_name_a_cure(handler, shape, strategy):
    understood = understand(handler)
    assert understood.strategy(None) == RUNS[shape][0]
    if strategy in RUNS[shape]:
        assert understood.strategy(strategy) == strategy
    else:
        with pytest.raises(ConfigError, match=f'strategy="{strategy}" cannot run') as refused:
            understood.strategy(strategy)
        assert RUNS[shape][0] in refused.value.hint


def test_an_unknown_strategy_lists_the_known():
    with pytest.raises(ConfigError, match="there is no such strategy") as refused:
        Server(function, "tcp://127.0.0.1:0", strategy="fibers")
    assert "green" in refused.value.hint


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((message, "tcp://127.0.0.1:0"), {}, "nothing says how"),
        ((function, "udp://127.0.0.1:0"), {}, "datagrams, not connections"),
        ((function,), {}, "needs an address"),
        ((function, "tls://127.0.0.1:0"), {}, "needs a certificate"),
        ((function, "tcp://127.0.0.1:0"), {"workers": 2}, "one process"),
        ((function, "tcp://127.0.0.1:0"), {"pool": 2}, "a server takes a pool"),
    ],
)
def test_a_server_that_cannot_work_is_refused_before_anything_is_started(arguments, options, words):
    with pytest.raises(ConfigError, match=words) as refused:
        Server(*arguments, **options)
    assert refused.value.hint


def test_a_message_handler_may_name_its_framing():
    class Named(Session):
        framing = Lines()

    assert Server(Named, "tcp://127.0.0.1:0").framing == Lines()
