"""What each URL means, what it resolves to, and how addresses read as text."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longshore.addresses import (
    SCHEMES,
    Address,
    AddressOptions,
    Endpoint,
    format_peer,
    format_url,
    inherited_descriptors,
    parse,
    resolve,
)
from longshore.errors import AddressError, AddressUnavailable, ConfigError


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "path"),
    [
        ("tcp://127.0.0.1:5000", "tcp", "127.0.0.1", 5000, None),
        ("tcp://:5000", "tcp", None, 5000, None),
        ("tcp://*:5000", "tcp", None, 5000, None),
        ("TCP://example.org:5000/", "tcp", "example.org", 5000, None),
        ("tcp://localhost:http", "tcp", "localhost", "http", None),
        ("tcp://[::1]:0", "tcp", "::1", 0, None),
        ("tls://[fe80::1%25eth0]:443", "tls", "fe80::1%eth0", 443, None),
        ("udp://:53", "udp", None, 53, None),
        ("unix:///run/app.sock", "unix", None, None, "/run/app.sock"),
        ("unix:///run/a%20b%3F.sock", "unix", None, None, "/run/a b?.sock"),
        ("unix://@app", "unix", None, None, "@app"),
        ("unixgram:///run/app.sock", "unixgram", None, None, "/run/app.sock"),
        ("seqpacket:///run/app.sock", "seqpacket", None, None, "/run/app.sock"),
        ("raw://127.0.0.1?protocol=icmp", "raw", "127.0.0.1", None, None),
        ("raw://[::1]?protocol=icmpv6", "raw", "::1", None, None),
        ("raw://?protocol=1", "raw", None, None, None),
        ("rdm://1000:7", "rdm", "1000", 7, None),
        ("rdm://1000:1-9", "rdm", "1000", "1-9", None),
        ("vsock://2:5000", "vsock", "2", 5000, None),
        ("vsock://:5000", "vsock", None, 5000, None),
        ("fd://3", "fd", None, 3, None),
        ("systemd://web", "systemd", None, None, "web"),
    ],
)
def test_every_form_of_url_is_understood(
    url: str, scheme: str, host: str | None, port: int | str | None, path: str | None
) -> None:
    address = parse(url)
    assert (address.scheme, address.host, address.port, address.path) == (scheme, host, port, path)
    assert address.text == str(address) == url


def test_an_address_says_whether_it_is_a_stream_or_carries_messages() -> None:
    shapes = {
        "tcp://:1": (True, False, False),
        "tls://:1": (True, False, True),
        "unix://@a": (True, False, False),
        "vsock://:1": (True, False, False),
        "tcp://:1?tls=1": (True, False, True),
        "tcp://:1?tls=0": (True, False, False),
        "unix:///a?tls=1": (True, False, True),
        "unix://@a?tls=yes": (True, False, True),
        "vsock://:1?tls=1": (True, False, True),
        "udp://:1": (False, True, False),
        "unixgram://@a": (False, True, False),
        "seqpacket://@a": (False, True, False),
        "raw://?protocol=icmp": (False, True, False),
        "rdm://1000:1": (False, True, False),
        "fd://3": (False, False, False),
        "systemd://a": (False, False, False),
    }
    assert {parse(url).scheme for url in shapes} == set(SCHEMES)
    for url, shape in shapes.items():
        address = parse(url)
        assert (address.is_stream, address.is_datagram, address.is_tls) == shape, url


def test_options_are_read_and_have_defaults() -> None:
    assert parse("tcp://:1").options == AddressOptions()
    assert AddressOptions().nodelay
    assert parse("tcp://:1?backlog=16&reuse_port=1&nodelay=0&defer=true").options == AddressOptions(
        backlog=16, reuse_port=True, nodelay=False, defer=True
    )
    assert parse("unix:///a?mode=0660").options.mode == 0o660
    assert parse("unix:///a?mode=0o600&backlog=4096").options == AddressOptions(mode=0o600, backlog=4096)
    assert parse("raw://?protocol=icmp").options.protocol == "icmp"


def test_an_address_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        parse("tcp://:1").port = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    "url",
    ["tcp://:1?colour=1", "unix:///a?nodelay=1", "udp://:1?backlog=5", "udp://:1?tls=1", "rdm://1000:1?mode=0600"],
)
def test_an_option_that_is_unknown_or_meaningless_is_refused_with_the_known_ones(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(url)
    scheme = url.partition(":")[0]
    assert url in str(caught.value)
    assert f"{scheme}:// takes" in str(caught.value)
    assert all(name in str(caught.value) for name in SCHEMES[scheme])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("tcp://:1?backlog=0", "backlog='0'"),
        ("tcp://:1?backlog=-5", "backlog='-5'"),
        ("tcp://:1?backlog=1_0", "backlog='1_0'"),
        ("tcp://:1?nodelay=maybe", "nodelay='maybe'"),
        ("tcp://:1?nodelay", "nodelay=''"),
        ("tcp://:1?nodelay=1&nodelay=0", "given twice"),
        ("unix:///a?mode=0980", "mode='0980'"),
        ("unix:///a?mode=7777", "mode='7777'"),
        ("unix:///a?mode=", "mode=''"),
        ("raw://?protocol=nosuch", "protocol='nosuch'"),
        ("raw://?protocol=256", "protocol='256'"),
        ("unix://@a?mode=0660", "no mode"),
    ],
)
def test_a_bad_option_value_is_named(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(url)
    assert said in str(caught.value)
    assert url in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("localhost:5000", "tcp://localhost:5000"),
        ("127.0.0.1:5000", "tcp://127.0.0.1:5000"),
        ("::1:5000", "tcp://[::1]:5000"),
        ("[::1]:5000", "tcp://[::1]:5000"),
        (":5000", "tcp://:5000"),
        ("5000", "tcp://:5000"),
        ("/run/app.sock", "unix:///run/app.sock"),
        ("unix:/run/app.sock", "unix:///run/app.sock"),
        ("@app", "unix://@app"),
    ],
)
def test_what_has_no_scheme_is_refused_with_the_url_that_was_meant(text: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert caught.value.hint == f"Did you mean {meant}?"
    assert parse(meant)


@pytest.mark.parametrize("text", ["http://localhost:80", "://x", "", "nonsense"])
def test_an_unknown_scheme_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert all(f"{scheme}://" in str(caught.value) for scheme in SCHEMES)


@pytest.mark.parametrize(
    "url", ["tcp://localhost", "tcp://localhost:", "tcp://", "udp://[::1]", "tls://[::1]:", "vsock://2"]
)
def test_a_missing_port_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="port is missing") as caught:
        parse(url)
    assert caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        "tcp://localhost:65536",
        "tcp://localhost:-1",
        "tcp://localhost:+1",
        "tcp://localhost:٣",
        "tcp://localhost:5000x!",
        "tcp://local host:1",
        "tcp://user@localhost:1",
        "tcp://localhost:1/path",
        "tcp://::1:5000",
        "tcp://[nonsense]:1",
        "tcp://[::1:1",
        "tcp://[::1]x:1",
        "tcp://a\0b:1",
        "unix://",
        "unix://@",
        "unix://run/app.sock",
        "unix:///run/",
        "unix:///run/a%00b",
        "raw://127.0.0.1",
        "raw://127.0.0.1:7?protocol=icmp",
        "vsock://here:1",
        "vsock://2:http",
        "rdm://1:1",
        "rdm://1000:9-1",
        "rdm://1000:x",
        "fd://",
        "fd://three",
        "systemd://",
    ],
)
def test_a_malformed_address_is_refused_and_named(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(url)
    assert url in str(caught.value)


def test_something_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="no address"):
        parse(("127.0.0.1", 5000))  # type: ignore[arg-type]


@given(st.one_of(st.text(), st.tuples(st.sampled_from(sorted(SCHEMES)), st.text()).map("://".join)))
def test_any_text_is_an_address_or_a_configuration_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse(text), Address)


def test_a_numeric_host_resolves_to_itself() -> None:
    (endpoint,) = resolve(parse("tcp://127.0.0.1:5000"), True)
    assert endpoint == Endpoint(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, ("127.0.0.1", 5000))
    (endpoint,) = resolve(parse("udp://[::1]:5000"), False)
    assert (endpoint.family, endpoint.type) == (socket.AF_INET6, socket.SOCK_DGRAM)
    assert endpoint.sockaddr[:2] == ("::1", 5000)


def test_no_host_means_every_interface_to_a_server_and_this_machine_to_a_client() -> None:
    assert {each.sockaddr[0] for each in resolve(parse("tcp://:5000"), True)} >= {"0.0.0.0"}
    assert {each.sockaddr[0] for each in resolve(parse("tcp://:5000"), False)} <= {"127.0.0.1", "::1"}


def test_names_of_hosts_and_services_resolve() -> None:
    try:
        port = socket.getservbyname("http", "tcp")
    except OSError:
        pytest.skip("this system has no /etc/services")
    assert ("127.0.0.1", port) in [each.sockaddr[:2] for each in resolve(parse("tcp://localhost:http"), False)]


def test_an_unknown_host_is_named_with_what_to_check() -> None:
    with pytest.raises(AddressUnavailable, match=r"no\.such\.host\.invalid") as caught:
        resolve(parse("tcp://no.such.host.invalid:5000"), False)
    assert "spelling" in caught.value.hint or "network" in caught.value.hint


def test_a_host_name_that_no_resolver_takes_is_unknown_too() -> None:
    with pytest.raises(AddressUnavailable, match="unknown host"):
        resolve(parse("tcp://" + "ü" * 70 + ":5000"), False)


def test_a_name_service_that_does_not_answer_is_told_from_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(AddressUnavailable, match=r"does not answer for host 'example\.org'"):
        resolve(parse("tcp://example.org:1"), False)


def test_an_unknown_service_is_named() -> None:
    with pytest.raises(AddressUnavailable, match="'nosuchservice'") as caught:
        resolve(parse("tcp://127.0.0.1:nosuchservice"), True)
    assert "number" in caught.value.hint


def test_unix_addresses_resolve_to_their_socket_types() -> None:
    assert resolve(parse("unix:///a/b"), True) == [Endpoint(socket.AF_UNIX, socket.SOCK_STREAM, 0, "/a/b")]
    assert resolve(parse("unix://@ab"), False) == [Endpoint(socket.AF_UNIX, socket.SOCK_STREAM, 0, "\0ab")]
    assert resolve(parse("unixgram:///a"), True)[0].type == socket.SOCK_DGRAM
    assert resolve(parse("seqpacket:///a"), True)[0].type == socket.SOCK_SEQPACKET


def test_a_unix_path_over_the_limit_is_refused_with_the_limit() -> None:
    assert resolve(parse("unix:///" + "x" * 106), True)
    with pytest.raises(AddressError, match=r"108 bytes.*limit for a Unix socket is 107"):
        resolve(parse("unix:///" + "x" * 107), True)


def test_raw_addresses_resolve_to_the_family_of_their_protocol() -> None:
    assert [each.sockaddr for each in resolve(parse("raw://?protocol=icmp"), True)] == [("0.0.0.0", 0)]
    (endpoint,) = resolve(parse("raw://127.0.0.1?protocol=icmp"), False)
    assert (endpoint.type, endpoint.proto) == (socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with pytest.raises(AddressUnavailable, match="no address for icmpv6"):
        resolve(parse("raw://127.0.0.1?protocol=icmpv6"), True)


def test_vsock_names_and_port_zero_become_the_kernels_numbers() -> None:
    assert resolve(parse("vsock://:0"), True)[0].sockaddr == (0xFFFFFFFF, 0xFFFFFFFF)
    assert resolve(parse("vsock://local:7"), False)[0].sockaddr == (1, 7)
    assert resolve(parse("vsock://HOST:7"), False)[0].sockaddr == (2, 7)


def test_tipc_binds_a_range_and_sends_to_one_instance() -> None:
    assert resolve(parse("rdm://1000:1-9"), True)[0].sockaddr == (1, 1000, 1, 9, 2)
    assert resolve(parse("rdm://1000:4"), True)[0].sockaddr == (1, 1000, 4, 4, 2)
    assert resolve(parse("rdm://1000:4"), False)[0].sockaddr == (2, 1000, 4, 0)


def test_a_family_that_this_python_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_TIPC")
    with pytest.raises(AddressUnavailable, match="no AF_TIPC sockets"):
        resolve(parse("rdm://1000:1"), True)


@pytest.mark.parametrize("url", ["fd://3", "systemd://web", "tcp://127.0.0.1:0"])
def test_what_only_a_server_can_use_cannot_be_connected_to(url: str) -> None:
    with pytest.raises(ConfigError, match=url):
        resolve(parse(url), False)


def test_socket_activation_finds_descriptors_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "3")
    monkeypatch.setenv("LISTEN_FDNAMES", "web:admin:web")
    assert inherited_descriptors(parse("systemd://web")) == [3, 5]
    assert inherited_descriptors(parse("systemd://admin")) == [4]
    with pytest.raises(AddressUnavailable, match="'web', 'admin', 'web'"):
        inherited_descriptors(parse("systemd://other"))


def test_sockets_that_were_passed_without_names_are_called_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    monkeypatch.delenv("LISTEN_FDNAMES", raising=False)
    assert inherited_descriptors(parse("systemd://unknown")) == [3, 4]


def test_sockets_that_were_passed_to_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    with pytest.raises(AddressUnavailable, match="passed to process 1"):
        inherited_descriptors(parse("systemd://unknown"))


@pytest.mark.parametrize("missing", ["LISTEN_PID", "LISTEN_FDS"])
def test_a_process_without_socket_activation_says_so(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.delenv(missing)
    with pytest.raises(AddressUnavailable, match="not started by socket activation"):
        inherited_descriptors(parse("systemd://web"))


def test_fd_names_its_descriptor() -> None:
    assert inherited_descriptors(parse("fd://7")) == [7]


@pytest.mark.parametrize(
    ("family", "sockaddr", "text"),
    [
        (socket.AF_INET, ("127.0.0.1", 5000), "127.0.0.1:5000"),
        (socket.AF_INET, ("127.0.0.1", 0), "127.0.0.1"),
        (socket.AF_INET6, ("::1", 5000, 0, 0), "[::1]:5000"),
        (socket.AF_INET6, ("::1", 0, 0, 0), "::1"),
        (socket.AF_INET6, ("fe80::1", 5000, 0, 2), "[fe80::1%2]:5000"),
        (socket.AF_INET6, ("fe80::1%eth0", 5000, 0, 2), "[fe80::1%eth0]:5000"),
        (socket.AF_INET6, ("::ffff:10.1.2.3", 5000, 0, 0), "10.1.2.3:5000"),
        (socket.AF_UNIX, "/run/app.sock", "/run/app.sock"),
        (socket.AF_UNIX, b"/run/app.sock", "/run/app.sock"),
        (socket.AF_UNIX, b"\0app", "@app"),
        (socket.AF_UNIX, "\0app", "@app"),
        (socket.AF_UNIX, "", "unix peer"),
        (socket.AF_UNIX, b"", "unix peer"),
        (socket.AF_UNIX, None, "unix peer"),
        (socket.AF_UNIX, b"/a\n\xff", "/a\\x0a\\xff"),
        (socket.AF_VSOCK, (2, 5000), "2:5000"),
    ],
)
def test_a_peer_reads_as_plain_text(family: int, sockaddr: object, text: str) -> None:
    assert format_peer(family, sockaddr) == text


def test_a_bound_socket_reads_as_the_url_that_reaches_it() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = format_url("tls", sock)
        assert url == f"tls://127.0.0.1:{sock.getsockname()[1]}"
        assert parse(url).port == sock.getsockname()[1]
    name = f"longshore test?{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("\0" + name)
        assert parse(format_url("unix", sock)).path == "@" + name


def test_a_socket_on_ipv6_reads_with_brackets() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        assert format_url("tcp", sock) == f"tcp://[::1]:{sock.getsockname()[1]}"
