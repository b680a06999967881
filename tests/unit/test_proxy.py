"""The PROXY protocol, as bytes: what was written is read, cut anywhere, and garbage is an error and nothing else."""

import socket

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from longshore.proxy import SIGNATURE, Header, ProxyError, Suspicion, crc32c, header, parse

PORTS = st.integers(0, 65535)
V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).map(lambda address: socket.inet_ntop(socket.AF_INET6, address.packed))
PAIRS = st.one_of(
    st.tuples(st.tuples(V4, PORTS), st.tuples(V4, PORTS)),
    st.tuples(st.tuples(V6, PORTS), st.tuples(V6, PORTS)),
)
FIELDS = st.dictionaries(st.sampled_from(["alpn", "authority", "unique_id", "0xe0"]), st.binary(max_size=300))


@given(PAIRS, FIELDS, st.booleans(), st.binary(max_size=50))
def test_what_version_2_says_is_read_as_it_was_meant(pair, fields, checksum, rest):
    octets = header(*pair, 2, fields=fields, checksum=checksum)
    found, size = parse(octets + rest)
    assert size == len(octets)
    assert (found.source, found.destination, found.fields, found.is_local) == (*pair, fields, False)
    assert all(parse(octets[:cut]) is None for cut in range(len(octets)))


@given(PAIRS, st.binary(max_size=50))
def test_what_version_1_says_is_read_as_it_was_meant(pair, rest):
    octets = header(*pair, 1)
    found, size = parse(octets + rest)
    assert size == len(octets) <= 107
    assert (found.version, found.source, found.destination) == (1, *pair)
    assert all(parse(octets[:cut]) is None for cut in range(len(octets)))


@given(st.binary(max_size=300), st.sampled_from([b"", SIGNATURE, SIGNATURE + b"\x21\x11", b"PROXY ", b"PROXY TCP4 "]))
def test_garbage_is_an_error_or_the_beginning_of_a_header_and_nothing_else(data, start):
    try:
        found = parse(start + data)
    except ProxyError:
        return
    if found is not None:
        assert isinstance(found[0], Header)
        assert 0 < found[1] <= len(start + data)


@given(PAIRS, FIELDS, st.integers(16, 40), st.integers(0, 255))
@example((("0.0.0.0", 0), ("0.0.0.0", 0)), {}, 29, 255)
def test_a_header_with_a_checksum_and_one_other_byte_is_an_error(pair, fields, at, value):
    octets = bytearray(header(*pair, 2, fields=fields, checksum=True))
    at = min(at, len(octets) - 1)
    # Without the byte that says that there is a checksum, there is none.
    assume(octets[at] != value and at != len(octets) - 7)
    octets[at] = value
    with pytest.raises(ProxyError):
        assert parse(bytes(octets)) is not None


def test_examples_of_the_specification():
    assert parse(b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nGET /") == (
        Header(1, socket.AF_INET, ("192.168.0.1", 56324), ("192.168.0.11", 443)),
        47,
    )
    assert parse(b"PROXY UNKNOWN\r\n") == (Header(1), 15)
    assert parse(b"PROXY UNKNOWN ffff::1 whatever\r\n") == (Header(1), 32)
    assert header(None, None, 1) == b"PROXY UNKNOWN\r\n"
    assert header(("1.2.3.4", 5), ("6.7.8.9", 10), 1) == b"PROXY TCP4 1.2.3.4 6.7.8.9 5 10\r\n"


def test_a_proxys_own_connection_says_nothing_else():
    assert header(None, None) == SIGNATURE + b"\x20\x00\x00\x00"
    assert parse(SIGNATURE + b"\x20\x11\x00\x0c" + bytes(12)) == (Header(2, is_local=True), 28)
    # Whatever else it says is to be skipped.
    assert parse(SIGNATURE + b"\x20\x00\x00\x02\xff\xff") == (Header(2, is_local=True), 18)


def test_unix_sockets_have_paths_and_abstract_names():
    found, _ = parse(header("/run/a", "\0abstract"))
    assert (found.family, found.source, found.destination) == (socket.AF_UNIX, "/run/a", "\0abstract")


def test_what_a_proxy_says_of_tls_is_read():
    tls = b"\x07\x00\x00\x00\x00" + b"\x21\x00\x07TLSv1.3" + b"\x22\x00\x05alice" + b"\x23\x00\x03AES"
    octets = header(("1.2.3.4", 5), ("6.7.8.9", 10), fields={"0x20": tls})
    found, _ = parse(octets)
    assert found.tls == {"verified": True, "version": "TLSv1.3", "common_name": "alice", "cipher": "AES"}
    assert found.fields == {}
    failed = b"\x07\x00\x00\x00\x01"
    assert parse(header(("1.2.3.4", 5), ("6.7.8.9", 10), fields={"0x20": failed}))[0].tls == {"verified": False}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"GET / HTTP/1.1\r\n", "no PROXY header"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", "malformed"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n", "malformed"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n", "malformed"),
        (b"PROXY TCP4 ::1 ::2 1 2\r\n", "malformed"),
        (b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n", "malformed"),
        (b"PROXY TCP4  1.2.3.4 5.6.7.8 1 2\r\n", "malformed"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", "no end"),
        (b"PROXY TCP4 " + b"9" * 100, "no end within 107"),
        (SIGNATURE + b"\x31\x11\x00\x0c", "version and command 0x31"),
        (SIGNATURE + b"\x22\x11\x00\x0c", "version and command 0x22"),
        (SIGNATURE + b"\x21\x41\x00\x0c" + bytes(12), "family and transport 0x41"),
        (SIGNATURE + b"\x21\x11\xff\xff", "over Proxy.max_header=4096"),
        (SIGNATURE + b"\x21\x11\x00\x04" + bytes(4), "4 bytes where addresses of 12 belong"),
        (SIGNATURE + b"\x21\x11\x00\x0e" + bytes(12) + b"\x01\x00", "in the middle of a field"),
        (SIGNATURE + b"\x21\x11\x00\x0f" + bytes(12) + b"\x01\x00\x09", "a field 0x01 of 9 bytes"),
    ],
)
def test_a_header_that_breaks_the_rules_is_an_error_that_says_which(data, words):
    with pytest.raises(ProxyError, match=words):
        parse(data)


def test_the_checksum_is_the_one_of_iscsi():
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize(
    "bad",
    [
        lambda: header(("1.2.3.4", 1), ("::1", 2)),
        lambda: header(("1.2.3.4", 1), None),
        lambda: header("/a", "/b", 1),
        lambda: header(("1.2.3.4", 1), ("1.2.3.5", 99999)),
        lambda: header(None, None, 3),
        lambda: header(None, None, 1, checksum=True),
    ],
)
def test_what_no_header_can_say_is_refused(bad):
    with pytest.raises(ValueError):
        bad()


@given(st.lists(st.integers(1, 15), max_size=40), st.sampled_from([1, 2]))
def test_a_forged_header_is_noticed_however_it_is_cut(sizes, version):
    octets = header(("1.2.3.4", 5), ("6.7.8.9", 10), version)
    suspicion = Suspicion("192.0.2.1:7")
    with pytest.raises(ProxyError, match="192.0.2.1:7"):
        for size in [*sizes, 1000]:
            suspicion.look(octets[:size])
            octets = octets[size:]


@given(st.binary(max_size=40), st.integers(1, 20))
def test_anything_else_is_no_suspicion(data, size):
    if SIGNATURE.startswith(data[:12]) or data.startswith((b"PROXY TCP", b"PROXY UNKNOWN", SIGNATURE)):
        return
    suspicion = Suspicion("somebody")
    for start in range(0, len(data), size):
        suspicion.look(data[start : start + size])
