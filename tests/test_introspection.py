"""What a socket says of its tunnel, and what it says when the tunnel outlives its ticket."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks import AuthenticationError, GSSSocket, Proxy
from gsssocks.server import ProxyServer
from gsssocks.testing import Realm
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly

if TYPE_CHECKING:
    from pathlib import Path

    import trustme

    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer, HTTPSServer


@pytest.mark.usefixtures("in_the_realm")
class TestTunnel:
    def test_who_with_whom_by_what(self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer) -> None:
        proxy = Proxy("localhost", dante_confidentiality.port)
        with gsssocks.create_connection(("localhost", echo.address[1]), PATIENCE_SECONDS, proxy=proxy) as sock:
            info = sock.tunnel
        assert info is not None
        assert info.proxy == proxy
        assert info.destination == ("localhost", echo.address[1])
        assert (info.method, info.mechanism, info.protection) == ("gssapi", "krb5", "confidentiality")
        assert info.initiator == realm.principal
        assert info.target is not None
        assert info.target.startswith("socks/localhost@")
        assert info.lifetime is not None
        assert 0 < info.lifetime <= 3600
        assert info.granted is not None
        assert info.granted.mutual
        assert info.granted.sequence
        assert info.granted.confidentiality
        assert not info.delegated

    def test_octets_and_messages(self, dante_integrity: Dante, echo: EchoServer) -> None:
        proxy = Proxy("localhost", dante_integrity.port, protection="integrity")
        with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy) as sock:
            begun = sock.tunnel
            sock.sendall(bytes(100))
            receive_exactly(sock, 100)
            sock.sendall(bytes(200_000))
            receive_exactly(sock, 200_000)
            info = sock.tunnel
        assert begun is not None
        assert info is not None
        assert (begun.octets_sent, begun.octets_received) == (0, 0)
        assert (begun.tokens_sent, begun.tokens_received) == (1, 1)  # request and reply
        assert (info.octets_sent, info.octets_received) == (200_100, 200_100)
        assert info.tokens_sent >= 1 + 1 + 4
        assert info.tokens_received >= 1 + 1 + 4

    def test_snapshot_does_not_change(self, dante_integrity: Dante, echo: EchoServer) -> None:
        proxy = Proxy("localhost", dante_integrity.port, protection="integrity")
        with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy) as sock:
            info = sock.tunnel
            sock.sendall(bytes(100))
            assert info is not None
            assert info.octets_sent == 0

    def test_of_a_socket_under_tls(
        self, dante_confidentiality: Dante, https_server: HTTPSServer, trust: trustme.CA
    ) -> None:
        context = ssl.create_default_context()
        trust.configure_trust(context)
        with gsssocks.installed(dante_confidentiality.url(), no_proxy=[]):
            plain = socket.create_connection(https_server.address, PATIENCE_SECONDS)
            with context.wrap_socket(plain, server_hostname="localhost") as encrypted:
                assert encrypted.protection == "confidentiality"  # type: ignore[attr-defined]  # a GSSSocket, too
                assert encrypted.tunnel.octets_sent > 0  # type: ignore[attr-defined]

    def test_none_before_and_after(self, dante_integrity: Dante, echo: EchoServer) -> None:
        def said(sock: GSSSocket) -> tuple[str | None, bool]:
            return sock.protection, sock.tunnel is not None

        sock = GSSSocket(proxy=Proxy("localhost", dante_integrity.port, protection="integrity"))
        assert said(sock) == (None, False)
        sock.connect(echo.address)
        assert said(sock) == ("integrity", True)
        sock.close()
        assert said(sock) == (None, False)

    def test_password_is_not_in_it(self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer) -> None:
        proxy = Proxy("localhost", dante_confidentiality.port, principal=realm.principal, password=realm.password)
        with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy) as sock:
            assert realm.password not in repr(sock.tunnel)

    @pytest.mark.parametrize(("delegation", "delegated"), [("always", True), ("policy", False), ("never", False)])
    def test_delegation_is_told(
        self, realm: Realm, echo: EchoServer, tmp_path: Path, delegation: str, *, delegated: bool
    ) -> None:
        """The KDC does not mark the proxy as fit for it, which "policy" goes by."""
        cache = f"FILE:{tmp_path / 'forwardable'}"
        command = ["kinit", "-f", "-c", cache, realm.principal]
        subprocess.run(command, input=realm.password, text=True, stdout=subprocess.DEVNULL, check=True)
        with ProxyServer("localhost") as server:
            proxy = Proxy("localhost", server.port, delegation=delegation, ccache=cache)
            with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy) as sock:
                assert sock.tunnel is not None
                assert sock.tunnel.delegated == delegated


class TestExpiry:
    """RFC 1961 does not say what becomes of a connection whose context expires. MIT Kerberos goes on, so a tunnel that
    exists lives as long as it is used; a new one takes a ticket that is valid."""

    def test_tunnel_outlives_its_ticket_and_a_new_one_is_refused(self, echo: EchoServer) -> None:
        realm = Realm(name="BRIEF.TEST", ticket_lifetime="3s", clock_skew_seconds=1)
        with realm, realm.activate(), ProxyServer("localhost", keytab=realm.keytab) as server:
            proxy = Proxy("localhost", server.port)
            with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy) as sock:
                assert sock.tunnel is not None
                deadline = time.monotonic() + PATIENCE_SECONDS
                while sock.tunnel.lifetime != 0:
                    assert time.monotonic() < deadline
                    assert echoes(sock, 1000)
                    threading.Event().wait(0.2)
                with pytest.raises(AuthenticationError, match="expired: run kinit again"):
                    gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy)
                assert echoes(sock, 200_000)
                realm.kinit()
                gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy).close()
                assert echoes(sock, 1000)


def echoes(sock: socket.socket, size: int) -> bool:
    sock.sendall(bytes(size))
    return receive_exactly(sock, size) == bytes(size)
