"""Certificates that change under a running server: connections to come get the new one, the others keep theirs."""

from __future__ import annotations

import datetime
import os
import shutil
import ssl
import subprocess

import pytest
import trustme

from longshore import TLS, ConfigError, Lines
from longshore.certificates import expiry_of
from longshore.events import CertificateExpires, CertificateRefused, CertificateRenewed
from longshore.testing import Client


def echoed(message, connection):
    return message


def shown(client):
    return client.socket.getpeercert(binary_form=True)


@pytest.fixture
def files(tmp_path, certificates):
    """A certificate that may be replaced: its path, and how to put another one there."""
    path = tmp_path / "server.pem"
    shutil.copy(certificates.server, path)

    def put(text):
        # As certbot and kubelets do it: never a moment with half a file.
        fresh = tmp_path / "fresh.pem"
        fresh.write_bytes(text if isinstance(text, bytes) else text.encode())
        os.replace(fresh, path)

    return path, put


@pytest.fixture(scope="module")
def another():
    return trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.bytes()


def test_files_that_have_changed_are_loaded_for_connections_to_come(together, serve, files, another, longshore_clock):
    path, put = files
    server = serve(together, echoed, "tls://127.0.0.1:0", tls=TLS(certfile=str(path)))
    with Client(server.url) as before:
        assert before.request(b"1") == b"1"
        put(another)
        longshore_clock.advance(10.5)
        renewed = server.events.wait_for(CertificateRenewed)
        assert renewed.certfile == str(path)
        assert renewed.expires == server.statistics().certificate_expires == expiry_of(another.decode())
        with Client(server.url) as after:
            assert after.request(b"2") == b"2"
            assert shown(after) != shown(before)
        assert before.request(b"3") == b"3"


def test_a_certificate_that_cannot_be_used_leaves_the_one_before(together, serve, files, another, longshore_clock):
    path, put = files
    good = path.read_bytes()
    server = serve(together, echoed, "tls://127.0.0.1:0", tls=TLS(certfile=str(path)))
    with Client(server.url) as before:
        # The key of one with the certificate of the other.
        put(another[another.index(b"-----BEGIN CERT") :] + good[: good.index(b"-----BEGIN CERT")])
        longshore_clock.advance(10.5)
        refused = server.events.wait_for(CertificateRefused)
        assert isinstance(refused.error, ConfigError)
        longshore_clock.advance(10.5)
        with pytest.raises(ConfigError, match="TLS cannot use"):
            server.reconfigure(tls=server.tls)
        # Told once for each change, and once for each call.
        assert len(server.events.of(CertificateRefused)) == 2
        with Client(server.url) as after:
            assert after.request(b"still") == b"still"
            assert shown(after) == shown(before)
    put(another)
    longshore_clock.advance(10.5)
    server.events.wait_for(CertificateRenewed)


def test_a_call_loads_the_files_again_or_others(shape, serve, files, another, certificates, tmp_path):
    path, put = files
    server = serve(shape, echoed, "tls://127.0.0.1:0", tls=TLS(certfile=str(path), certificate_check=None))
    with Client(server.url) as client:
        first = shown(client)
    put(another)
    server.reconfigure(tls=server.tls)
    with Client(server.url) as client:
        assert client.request(b"1") == b"1"
        assert shown(client) != first
    server.reconfigure(tls=TLS(certfile=certificates.server))
    with Client(server.url) as client:
        assert client.request(b"2") == b"2"
        assert shown(client) == first


def test_a_certificate_that_ends_soon_is_warned_of(longshore_server, tmp_path):
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    pem = trustme.CA().issue_cert("localhost", not_after=soon).private_key_and_cert_chain_pem
    pem.write_to_path(tmp_path / "soon.pem")
    server = longshore_server(
        echoed, "tls://127.0.0.1:0", framing=Lines(), tls=TLS(certfile=str(tmp_path / "soon.pem"))
    )
    warned = server.events.wait_for(CertificateExpires)
    assert 2.9 * 86400 < warned.seconds < 3.1 * 86400


def test_a_server_without_tls_has_no_certificate_to_change(longshore_server, certificates):
    server = longshore_server(echoed, framing=Lines())
    with pytest.raises(ConfigError, match="no address of this server speaks TLS"):
        server.reconfigure(tls=certificates.server_tls())
    assert server.statistics().certificate_expires is None


def test_the_end_of_a_certificate_is_read_as_openssl_reads_it(certificates, needs):
    with open(certificates.server) as file:
        pem = file.read()
    told = subprocess.run(
        [needs("openssl"), "x509", "-noout", "-enddate", "-in", certificates.server],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert expiry_of(pem) == ssl.cert_time_to_seconds(told.strip().removeprefix("notAfter="))
    assert expiry_of("nothing") is None
    assert expiry_of(pem.replace("MII", "AAA")) is None
