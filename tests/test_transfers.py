"""Programs that know nothing of a proxy transfer much through one; and where nothing is proxied, nothing is changed."""

from __future__ import annotations

import gc
import hashlib
import http.client
import json
import os
import smtplib
import socket
import ssl
import urllib.request
from types import BuiltinMethodType
from typing import TYPE_CHECKING, Any

import pytest
import requests

import gsssocks
from tests.peers.host import PATIENCE_SECONDS, Host
from tests.peers.routes import tunnelled
from tests.peers.smtp import smtp_script
from tests.peers.targets import octets

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import trustme

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer, HTTPSServer

SIZE = 256 << 20
PIECE = 1 << 20


@pytest.fixture(autouse=True)
def _no_other_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def authority(trust: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the certificate that the servers' are signed with."""
    path: Path = tmp_path_factory.mktemp("trust") / "authority.pem"
    trust.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(scope="module")
def context(authority: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority)


@pytest.fixture(scope="module")
def expected() -> str:
    """The digest of what is transferred."""
    return digest_of(pieces())


def pieces() -> Iterator[bytes]:
    return (octets(PIECE, start) for start in range(0, SIZE, PIECE))


def digest_of(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@pytest.mark.default_python_only
class TestHTTPS:
    """256 MiB each, at both protection levels."""

    @pytest.fixture(autouse=True)
    def _through_dante(self, realm: Realm, dante: Dante) -> Iterator[None]:
        with tunnelled(realm, dante):
            yield

    def test_download_by_requests(self, https_server: HTTPSServer, authority: str, expected: str) -> None:
        url = https_server.url(f"/bytes/{SIZE}")
        with requests.get(url, verify=authority, stream=True, timeout=PATIENCE_SECONDS) as answer:
            assert digest_of(answer.iter_content(PIECE)) == expected

    def test_upload_by_requests(self, https_server: HTTPSServer, authority: str, expected: str) -> None:
        url = https_server.url("/digest")
        with requests.put(url, data=pieces(), verify=authority, timeout=PATIENCE_SECONDS) as answer:
            assert answer.text == expected

    def test_download_by_urllib(self, https_server: HTTPSServer, context: ssl.SSLContext, expected: str) -> None:
        url = https_server.url(f"/bytes/{SIZE}")
        with urllib.request.urlopen(url, context=context, timeout=None) as answer:
            assert digest_of(iter(lambda: answer.read(PIECE), b"")) == expected

    def test_upload_by_urllib(self, https_server: HTTPSServer, context: ssl.SSLContext, expected: str) -> None:
        upload = urllib.request.Request(
            https_server.url("/digest"), pieces(), {"Content-Length": str(SIZE)}, method="PUT"
        )
        with urllib.request.urlopen(upload, context=context, timeout=PATIENCE_SECONDS) as answer:
            assert answer.read().decode() == expected


@pytest.mark.usefixtures("through_dante")
class TestClients:
    @pytest.mark.parametrize("timeout", [None, PATIENCE_SECONDS], ids=["blocking", "timeout"])
    def test_http_client_keeps_its_connection(
        self, https_server: HTTPSServer, context: ssl.SSLContext, timeout: float | None
    ) -> None:
        connection = http.client.HTTPSConnection(*https_server.address, context=context, timeout=timeout)
        for number in range(5):
            connection.request("GET", "/headers", headers={"X-Number": str(number)})
            assert json.load(connection.getresponse())["X-Number"] == str(number)
        connection.close()

    @pytest.mark.parametrize("timeout", [{}, {"timeout": PATIENCE_SECONDS}], ids=["blocking", "timeout"])
    def test_smtplib_leaves_a_message_after_starttls(
        self, trust: trustme.CA, context: ssl.SSLContext, timeout: dict[str, Any]
    ) -> None:
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trust.issue_cert("127.0.0.1").configure_cert(server_context)
        body = "Subject: octets\r\n\r\n" + "0123456789abcdef" * 4 * 5000 + "\r\n"
        with Host(smtp_script(server_context)) as host:
            with smtplib.SMTP(*host.address, **timeout) as client:
                client.starttls(context=context)
                client.sendmail("alice@example.com", ["bob@example.com"], body)
            assert host.result().decode() == body

    @pytest.mark.parametrize("timeout", [None, PATIENCE_SECONDS], ids=["blocking", "timeout"])
    def test_bare_socket_knows_no_difference(self, echo: EchoServer, timeout: float | None) -> None:
        with socket.create_connection(echo.address, timeout) as connection:
            connection.sendall(octets(100_000))
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as file:
                assert file.read() == octets(100_000)


class TestNothingProxied:
    """What the patch costs those whom it does not concern."""

    def test_new_sockets_have_the_very_functions_of_c(self) -> None:
        names = ("recv", "recv_into", "send", "sendall", "sendmsg", "recvmsg", "close", "getpeername", "fileno")
        before = {name: getattr(socket.socket, name) for name in names}
        with gsssocks.installed("socks5h://proxy.example"), socket.socket() as plain:
            assert {name: getattr(type(plain), name) for name in names} == before
            assert plain.recv.__qualname__ == "socket.recv"
            assert isinstance(plain.recv, BuiltinMethodType)
            assert isinstance(plain.send, BuiltinMethodType)

    def test_connected_directly_they_still_have_them(self, echo: EchoServer) -> None:
        recv, send = socket.socket.recv, socket.socket.send
        with gsssocks.installed("socks5h://proxy.example"), socket.create_connection(echo.address) as plain:
            assert type(plain) is socket.socket
            assert type(plain).recv is recv
            assert type(plain).send is send

    def test_tls_of_a_direct_connection_is_openssls(self, https_server: HTTPSServer, context: ssl.SSLContext) -> None:
        with gsssocks.installed("socks5h://proxy.example"):
            plain = socket.create_connection(https_server.address)
            with context.wrap_socket(plain, server_hostname="localhost") as encrypted:
                assert type(encrypted) is ssl.SSLSocket
                assert type(encrypted._sslobj).__module__ == "_ssl"  # type: ignore[attr-defined]


def state() -> dict[str, Any]:
    """What `install()` might have changed, and what guards tunnels."""
    gc.collect()  # tunnels that nobody refers to any more
    places: dict[str, Any] = {
        "socket": socket,
        "socket.socket": socket.socket,
        "ssl": ssl,
        "ssl.SSLContext": ssl.SSLContext,
        "ssl.SSLSocket": ssl.SSLSocket,
        "os": os,
    }
    return {place: dict(vars(owner)) for place, owner in places.items()}


class TestUninstall:
    def test_leaves_no_trace(self) -> None:
        before = state()
        gsssocks.install("socks5h://proxy.example")
        assert state() != before
        gsssocks.uninstall()
        assert state() == before

    def test_leaves_no_trace_after_use(
        self, realm: Realm, dante_confidentiality: Dante, https_server: HTTPSServer, context: ssl.SSLContext
    ) -> None:
        before = state()
        with tunnelled(realm, dante_confidentiality):
            urllib.request.urlopen(https_server.url("/headers"), context=context).close()
            assert state() != before
        assert state() == before

    def test_may_be_repeated(self) -> None:
        before = state()
        for _ in range(2):
            gsssocks.install("socks5h://proxy.example")
            gsssocks.install("socks5h://other.example")
            gsssocks.uninstall()
            gsssocks.uninstall()
            assert state() == before

    def test_of_an_inner_installed_leaves_the_outer(self) -> None:
        before = state()
        with gsssocks.installed("socks5h://outer.example"):
            outer = state()
            with gsssocks.installed("socks5h://inner.example"):
                assert state() == outer
            assert state() == outer
        assert state() == before

    def test_follows_a_failure_in_the_with_statement(self) -> None:
        before = state()
        with pytest.raises(RuntimeError), gsssocks.installed("socks5h://proxy.example"):
            raise RuntimeError
        assert state() == before

    def test_leaves_tunnels_that_exist(self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer) -> None:
        with tunnelled(realm, dante_confidentiality):
            tunnel = socket.create_connection(echo.address, PATIENCE_SECONDS)
        with tunnel:
            tunnel.sendall(b"hello")
            assert tunnel.recv(5) == b"hello"
