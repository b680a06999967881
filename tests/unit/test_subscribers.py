import errno
import logging
import sys

from longshore.events import ConnectionClosed, ConnectionRejected, HandlerFailed
from longshore.subscribers import Subscribers

FAILED = HandlerFailed(handler="Echo", peer="127.0.0.1:5", error=ValueError("no such thing"))
REJECTED = ConnectionRejected(peer="127.0.0.1:5", local="tcp://127.0.0.1:1", limit="max_connections")
CLOSED = ConnectionClosed(id=1, peer="127.0.0.1:5", local="tcp://127.0.0.1:1", cause="reset", error=OSError("reset"))


def test_without_a_subscriber_a_failure_is_logged_once_with_its_traceback(caplog):
    subscribers = Subscribers()
    subscribers.emit(FAILED)
    (record,) = caplog.records
    assert record.name == "longshore"
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "Echo failed for 127.0.0.1:5"
    assert record.exc_info[1] is FAILED.error


def test_without_a_subscriber_a_warning_is_one_line_that_names_the_limit(caplog):
    Subscribers().emit(REJECTED)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "limit=max_connections" in record.getMessage()
    assert record.exc_info is None


def test_without_a_subscriber_a_peers_reset_is_not_logged(caplog):
    Subscribers().emit(CLOSED)
    assert not caplog.records


def test_with_a_subscriber_nothing_is_logged_until_it_leaves(caplog):
    subscribers = Subscribers()
    seen = []
    leave = subscribers.add(seen.append)
    subscribers.emit(FAILED)
    assert seen == [FAILED]
    assert not caplog.records
    leave()
    subscribers.emit(FAILED)
    assert seen == [FAILED]
    assert len(caplog.records) == 1


def test_an_observer_that_fails_is_logged_and_harms_no_other(caplog):
    subscribers = Subscribers()
    seen = []

    def broken(event):
        raise RuntimeError("broken observer")

    subscribers.add(broken)
    subscribers.add(seen.append)
    subscribers.emit(CLOSED)
    assert seen == [CLOSED]
    (record,) = caplog.records
    assert "observer" in record.getMessage()
    assert "broken observer" in str(record.exc_info[1])


def test_who_wants_some_kinds_of_events_hears_of_those_and_the_others_are_nobodys(caplog):
    subscribers = Subscribers()
    seen = []
    leave = subscribers.add(seen.append, ConnectionRejected)
    assert subscribers.wants(ConnectionRejected)
    assert not subscribers.wants(ConnectionClosed)
    subscribers.emit(REJECTED)
    subscribers.emit(CLOSED)
    assert seen == [REJECTED]
    subscribers.emit(FAILED)
    assert [record.getMessage() for record in caplog.records] == ["Echo failed for 127.0.0.1:5"]
    leave()
    assert not subscribers.wants(ConnectionRejected)


def test_a_failure_that_cannot_be_logged_for_want_of_a_descriptor_ends_nobody(monkeypatch):
    class Refusing:
        @staticmethod
        def find_spec(name, path, target=None):
            raise OSError(errno.EMFILE, "Too many open files")

    def ends(event):
        raise OSError(errno.EMFILE, "Too many open files")

    subscribers = Subscribers()
    subscribers.add(ends)
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "logging")
        patch.setattr(sys, "meta_path", [Refusing])
        subscribers.emit(FAILED)
        Subscribers().emit(REJECTED)
