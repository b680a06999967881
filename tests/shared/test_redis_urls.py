"""How a Redis place is reached: its URL, passwords, TLS; and which servers are refused."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import textwrap

import pytest
import trustme

from longshore import shared
from longshore.errors import AddressError, ConfigError, PermissionNeeded
from longshore.shared.places import Status, Verb
from longshore.shared.redis import RedisPlace


def test_nobody_listening_is_an_address_error():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(AddressError, match="nobody answers there"):
            RedisPlace(f"redis://127.0.0.1:{unused.getsockname()[1]}/0")


@pytest.mark.slow
def test_a_place_may_be_reached_over_tls(own_redis, tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca, pem = tmp_path / "ca.pem", tmp_path / "server.pem"
    authority.cert_pem.write_to_path(ca)
    certificate.private_key_and_cert_chain_pem.write_to_path(pem)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    files = ["--tls-cert-file", str(pem), "--tls-key-file", str(pem), "--tls-ca-cert-file", str(ca)]
    own_redis("--tls-port", str(port), "--tls-auth-clients", "no", *files)
    place = RedisPlace(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={ca}&lease=1")
    try:
        place.ask(Verb.DECLARE, b"Qjobs", fields=(b"maxsize=0",))
        replies = queue.SimpleQueue()
        place.start(replies.put, Verb.GET, b"Qjobs", 1, 0, None)
        # Longer than one renewal, and larger than one record of TLS.
        assert place.ask(Verb.GET, b"Qjobs", 2, 0, 0.7).status == Status.LATE
        place.ask(Verb.PUT, b"Qjobs", fields=(b"x" * 100_000,))
        assert replies.get(timeout=10).fields[0] == b"x" * 100_000
    finally:
        place.close()
    with pytest.raises(AddressError, match="certificate"):
        RedisPlace(f"rediss://127.0.0.1:{port}/0")


@pytest.mark.slow
@pytest.mark.parametrize("secret", ["", ":wrong@"])
def test_a_missing_or_wrong_password_is_refused_and_not_shown(own_redis, secret):
    server = own_redis("--requirepass", "right")
    url = server.url.replace("//", f"//{secret}")
    with pytest.raises(PermissionNeeded, match="password") as caught:
        RedisPlace(url)
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")


@pytest.mark.slow
def test_a_password_may_lie_in_a_file_whose_path_others_may_know(own_redis, tmp_path):
    server = own_redis("--requirepass", "right")
    file = tmp_path / "password"
    file.write_text("right\n")
    place = RedisPlace(f"{server.url}?password_file={file}")
    try:
        assert str(file) in place.url
        assert "right" not in place.url
    finally:
        place.close()


def test_the_url_of_a_place_has_no_password(own_redis):
    server = own_redis("--requirepass", "right")
    place = RedisPlace(server.url.replace("//", "//:right@"))
    place.close()
    assert place.url == server.url


@pytest.mark.slow
def test_joining_puts_no_password_into_the_environment_but_leaves_the_one_that_lies_there(own_redis, monkeypatch):
    server = own_redis("--requirepass", "right")
    url = server.url.replace("//", "//:right@")
    monkeypatch.delenv("LONGSHORE_SHARED", raising=False)
    shared.leave()
    shared.join(url)
    assert os.environ["LONGSHORE_SHARED"] == server.url
    shared.leave()
    monkeypatch.setenv("LONGSHORE_SHARED", url)
    assert shared.join().url == server.url
    assert os.environ["LONGSHORE_SHARED"] == url
    shared.leave()


@pytest.mark.parametrize("rest", ["0?lease=never", "0?lease=0", "many"])
def test_a_url_that_is_none_is_a_config_error(redis_server, rest):
    with pytest.raises(ConfigError):
        RedisPlace(f"redis://127.0.0.1:{redis_server.port}/{rest}")


def test_a_database_that_the_server_has_not_is_refused(redis_server):
    with pytest.raises(AddressError, match="DB index"):
        RedisPlace(f"redis://127.0.0.1:{redis_server.port}/99")


@pytest.mark.slow
def test_a_server_that_may_throw_away_keys_is_refused(own_redis):
    server = own_redis("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigError, match="allkeys-lru"):
        RedisPlace(server.url)


@pytest.mark.slow
def test_a_missing_redis_py_is_a_config_error_that_says_what_to_install():
    code = """
        import sys
        sys.modules["redis"] = None
        from longshore.errors import ConfigError
        from longshore.shared.redis import RedisPlace
        try:
            RedisPlace("redis://:secret@127.0.0.1/0")
        except ConfigError as error:
            print(error, error.hint)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert "pip install 'longshore[redis]'" in run.stdout
    assert "secret" not in run.stdout
