"""Other mechanisms than bare Kerberos: SPNEGO around it, and NTLM, which takes more tokens and knows no KDC.

NTLM is Debian's gss-ntlmssp: it takes the server's users from a file.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks import AuthenticationError, Proxy
from gsssocks._security import MECHANISMS
from gsssocks.server import ProxyServer
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly
from tests.peers.relay import CountingRelay
from tests.peers.targets import octets

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer

pytestmark = pytest.mark.usefixtures("in_the_realm")

NTLM = {"mechanism": "ntlmssp", "principal": "DOMAIN\\alice", "password": "s3cret"}


@pytest.fixture
def server() -> Iterator[ProxyServer]:
    with ProxyServer("localhost") as started:
        yield started


@pytest.fixture
def _ntlm_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = tmp_path / "users"
    users.write_text("DOMAIN:alice:s3cret\n")
    monkeypatch.setenv("NTLM_USER_FILE", str(users))


def connected(port: int, target: tuple[str, int], **options: object) -> gsssocks.GSSSocket:
    proxy = Proxy("localhost", port, **options)  # type: ignore[arg-type]  # each test names what it sets
    return gsssocks.create_connection(target, PATIENCE_SECONDS, proxy=proxy)


def echoes(sock: socket.socket, size: int) -> bool:
    with ThreadPoolExecutor() as threads:
        sending = threads.submit(sock.sendall, octets(size))
        echoed = receive_exactly(sock, size)
        sending.result()
    return hashlib.sha256(echoed).digest() == hashlib.sha256(octets(size)).digest()


def info(sock: gsssocks.GSSSocket) -> gsssocks.TunnelInfo:
    assert sock.tunnel is not None
    return sock.tunnel


class TestSPNEGO:
    @pytest.mark.parametrize("name", ["spnego", "SPNEGO", MECHANISMS["spnego"]])
    def test_by_name_or_oid(self, server: ProxyServer, echo: EchoServer, name: str) -> None:
        with connected(server.port, echo.address, mechanism=name) as sock:
            assert echoes(sock, 300_000)
            # What was negotiated is Kerberos, and that is what the context says it is.
            assert info(sock).mechanism == "krb5"
            assert info(sock).protection == "confidentiality"

    @pytest.mark.parametrize("level", ["integrity", "confidentiality", "selective"])
    def test_at_every_level(self, server: ProxyServer, echo: EchoServer, level: str) -> None:
        with connected(server.port, echo.address, mechanism="spnego", protection=level) as sock:
            assert info(sock).protection == level
            assert echoes(sock, 200_000)

    def test_through_dante(self, dante_confidentiality: Dante, echo: EchoServer) -> None:
        with connected(dante_confidentiality.port, echo.address, mechanism="spnego") as sock:
            assert echoes(sock, 300_000)

    def test_with_a_keytab(self, realm: Realm, server: ProxyServer, echo: EchoServer) -> None:
        with connected(server.port, echo.address, mechanism="spnego", keytab=realm.client_keytab) as sock:
            assert echoes(sock, 1000)

    def test_first_octets_are_spnegos(self, server: ProxyServer, echo: EchoServer) -> None:
        """RFC 2743, section 3.1: the token begins with the mechanism's OID."""
        with CountingRelay(("127.0.0.1", server.port)) as relay:
            connected(relay.port, echo.address, mechanism="spnego").close()
        assert bytes.fromhex("06062b0601050502") in bytes(relay.said[0]["client"][:64])


@pytest.mark.usefixtures("_ntlm_users")
class TestNTLM:
    @pytest.mark.parametrize("level", ["integrity", "confidentiality", "selective"])
    def test_at_every_level(self, server: ProxyServer, echo: EchoServer, level: str) -> None:
        with connected(server.port, echo.address, protection=level, **NTLM) as sock:
            assert (info(sock).mechanism, info(sock).protection) == ("ntlmssp", level)
            assert echoes(sock, 300_000)
        assert server.sessions[-1].principal == "DOMAIN\\alice"

    def test_by_oid(self, server: ProxyServer, echo: EchoServer) -> None:
        with connected(server.port, echo.address, **{**NTLM, "mechanism": MECHANISMS["ntlmssp"]}) as sock:
            assert info(sock).mechanism == "ntlmssp"
            assert echoes(sock, 1000)

    @pytest.mark.parametrize("pipelined", [True, False])
    def test_takes_more_tokens_each_way(self, server: ProxyServer, echo: EchoServer, *, pipelined: bool) -> None:
        relay = CountingRelay(("127.0.0.1", server.port))
        with relay, connected(relay.port, echo.address, pipelined=pipelined, **NTLM) as sock:
            assert echoes(sock, 1000)
        messages = bytes(relay.said[0]["client"]).count(b"NTLMSSP\0")
        assert messages == 2

    def test_wrong_password(self, server: ProxyServer, echo: EchoServer) -> None:
        with pytest.raises(AuthenticationError) as caught:
            connected(server.port, echo.address, **{**NTLM, "password": "wrong"})
        assert "wrong" not in str(caught.value)
        assert server.sessions[-1].destination is None

    def test_unknown_user(self, server: ProxyServer, echo: EchoServer) -> None:
        with pytest.raises(AuthenticationError):
            connected(server.port, echo.address, **{**NTLM, "principal": "DOMAIN\\mallory"})

    def test_no_ticket_is_needed(self, realm: Realm, server: ProxyServer, echo: EchoServer) -> None:
        realm.kdestroy()
        try:
            with connected(server.port, echo.address, **NTLM) as sock:
                assert echoes(sock, 1000)
        finally:
            realm.kinit()

    def test_proxy_that_knows_kerberos_alone(self, dante_confidentiality: Dante, echo: EchoServer) -> None:
        """Dante's own environment names no NTLM users."""
        with pytest.raises(AuthenticationError, match="localhost"):
            connected(dante_confidentiality.port, echo.address, **NTLM)


def test_mechanism_that_is_not_there(server: ProxyServer, echo: EchoServer) -> None:
    with pytest.raises(AuthenticationError, match="mechanism"):
        connected(server.port, echo.address, mechanism="1.3.6.1.5.5.99")


def test_kerberos_stays_the_default_beside_others(server: ProxyServer, echo: EchoServer) -> None:
    with connected(server.port, echo.address) as sock:
        assert info(sock).mechanism == "krb5"
