"""`install(bind=True)`: the sockets of a program that knows nothing of it listen at Dante, if they are to."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import socketserver
from typing import TYPE_CHECKING, Any

import pytest
import trio

import gsssocks
from gsssocks import GSSSocket, Proxy
from gsssocks.server import ProxyServer
from tests.peers.binding import accepted, exchange, handshake, peer_of, server_context
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import trustme

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante

pytestmark = pytest.mark.usefixtures("in_the_realm")


class TestPatched:
    @pytest.fixture(autouse=True)
    def _installed(self, dante_confidentiality: Dante) -> Iterator[None]:
        """Connections within this machine are direct, as by default."""
        with gsssocks.installed(dante_confidentiality.url(), bind=True):
            yield

    def test_create_server(self) -> None:
        with socket.create_server(("", 0)) as listener, accepted(listener) as (sock, peer):
            assert isinstance(listener, GSSSocket)
            assert type(listener).__name__ == type(sock).__name__ == "socket"
            exchange(sock, peer)

    def test_accepted_socket_is_found_again_by_its_descriptor(self) -> None:
        with (
            socket.create_server(("", 0)) as listener,
            accepted(listener) as (sock, peer),
            socket.socket(fileno=os.dup(sock.fileno())) as again,
        ):
            exchange(again, peer)

    def test_subclass(self) -> None:
        class Own(socket.socket):
            def accept(self) -> tuple[socket.socket, Any]:
                sock, address = super().accept()
                accepts.append(address)
                return sock, address

        accepts: list[Any] = []
        with Own() as listener:
            listener.listen()
            assert isinstance(listener, Own)
            with accepted(listener) as (sock, peer):
                exchange(sock, peer)
                assert accepts == [peer.getsockname()]

    def test_tls_over_an_accepted_connection(self, trust: trustme.CA) -> None:
        with socket.create_server(("", 0)) as listener, accepted(listener) as (sock, peer):
            handshake(lambda context: context.wrap_socket(sock, server_side=True), peer, trust)

    def test_tls_listener(self, trust: trustme.CA) -> None:
        context = server_context(trust)
        with (
            context.wrap_socket(socket.create_server(("", 0)), server_side=True) as listener,
            peer_of(listener) as peer,
        ):
            assert GSSSocket in type(listener).mro()
            handshake(lambda _: listener.accept()[0], peer, trust)

    def test_tls_listener_that_was_wrapped_before(self, trust: trustme.CA) -> None:
        context = server_context(trust)
        with context.wrap_socket(socket.socket(), server_side=True) as listener:
            listener.bind(("", 0))
            listener.listen()
            with peer_of(listener) as peer:
                handshake(lambda _: listener.accept()[0], peer, trust)

    def test_socketserver(self) -> None:
        class Echo(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.sendall(receive_exactly(self.request, 4))

        with socketserver.TCPServer(("", 0), Echo) as server, peer_of(server.socket) as peer:
            server.timeout = PATIENCE_SECONDS
            peer.sendall(b"ping")
            server.handle_request()
            assert receive_exactly(peer, 5) == b"ping"

    def test_asyncio_server(self) -> None:
        async def serve() -> bytes:
            async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(await reader.readexactly(4))
                await writer.drain()
                writer.close()

            server = await asyncio.start_server(echo, "0.0.0.0", 0)
            async with server:
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(b"ping")
                answer = await reader.read()
                writer.close()
                return answer

        assert asyncio.run(serve()) == b"ping"

    def test_trio(self) -> None:
        async def serve() -> bytes:
            (listener,) = await trio.open_tcp_listeners(0, host="0.0.0.0")
            async with (
                listener,
                await trio.open_tcp_stream(*listener.socket.getsockname()) as peer,
                await listener.accept() as stream,
            ):
                await peer.send_all(b"ping")
                await stream.send_all(await stream.receive_some(4))
                return await peer.receive_some(4)

        assert trio.run(serve) == b"ping"

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.9"])
    def test_loopback_listens_here(self, host: str) -> None:
        with socket.create_server((host, 0)) as listener:
            assert type(listener) is socket.socket
            with accepted(listener) as (sock, peer):
                assert type(sock) is socket.socket
                exchange(sock, peer)

    def test_other_families_listen_here(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "socket"))
            listener.listen()
            assert type(listener) is socket.socket

    @pytest.mark.parametrize(
        "options",
        [{"rules": "0.0.0.0=direct"}, {"no_proxy": "0.0.0.0"}, {"no_proxy": "*"}, {"bind": False}, {"bind": None}],
    )
    def test_what_is_to_listen_here(self, options: dict[str, Any], dante_confidentiality: Dante) -> None:
        with (
            gsssocks.installed(dante_confidentiality.url(), **{"bind": True, **options}),
            socket.create_server(("", 0)) as listener,
        ):
            assert type(listener) is socket.socket

    def test_rule_for_a_port(self, dante_confidentiality: Dante, nobody: tuple[str, int]) -> None:
        with (
            gsssocks.installed(dante_confidentiality.url(), bind=True, rules=f"0.0.0.0:{nobody[1]}=direct"),
            socket.create_server(("", nobody[1])) as here,
            socket.create_server(("", 0)) as there,
        ):
            assert not isinstance(here, GSSSocket)
            assert isinstance(there, GSSSocket)

    def test_rule_that_refuses(self, dante_confidentiality: Dante) -> None:
        with (
            gsssocks.installed(dante_confidentiality.url(), bind=True, rules="0.0.0.0=refuse"),
            pytest.raises(PermissionError, match=r"0\.0\.0\.0=refuse"),
        ):
            socket.create_server(("", 0))

    def test_rule_with_a_level(self, dante_integrity: Dante) -> None:
        with (
            gsssocks.installed(dante_integrity.url(), bind=True, rules="0.0.0.0=integrity"),
            socket.create_server(("", 0)) as listener,
            accepted(listener) as (sock, peer),
        ):
            exchange(sock, peer)

    def test_the_embedded_proxy_listens_here(self, realm: Realm) -> None:
        with ProxyServer(host="0.0.0.0", port=0, keytab=realm.keytab) as server:
            socket.create_connection(("127.0.0.1", server.port), PATIENCE_SECONDS).close()

    def test_next_proxy_where_the_first_is_dead(self, dante_confidentiality: Dante, nobody: tuple[str, int]) -> None:
        with (
            gsssocks.installed(f"socks5h://127.0.0.1:{nobody[1]},{dante_confidentiality.url()}", bind=True),
            socket.create_server(("", 0)) as listener,
            accepted(listener) as (sock, peer),
        ):
            exchange(sock, peer)

    def test_failure_leaves_the_socket_as_it_was(self, nobody: tuple[str, int]) -> None:
        with gsssocks.installed(Proxy(*nobody), bind=True), socket.socket() as sock:
            sock.bind(("", 0))
            name = sock.getsockname()
            with pytest.raises(ConnectionRefusedError, match="proxy"):
                sock.listen()
            assert (type(sock), sock.getsockname()) == (socket.socket, name)


class TestInstall:
    def test_nothing_of_it_is_patched_unless_asked_for(self, dante_confidentiality: Dante) -> None:
        with gsssocks.installed(dante_confidentiality.url()):
            assert not {"bind", "listen", "accept", "_accept"} & (set(vars(socket.socket)) - {"accept"})
            assert not [name for name in gsssocks.status().patched if name.endswith(("bind", "listen"))]

    def test_uninstall_leaves_no_trace(self, dante_confidentiality: Dante) -> None:
        gc.collect()  # tunnels of other tests that nobody refers to any more
        before = dict(vars(socket.socket))
        with gsssocks.installed(dante_confidentiality.url(), bind=True):
            assert {"socket.bind", "socket.listen"} <= set(gsssocks.status().patched)
            listener = socket.create_server(("", 0))
        assert not {"bind", "connect", "listen"} & set(vars(socket.socket))
        with listener, accepted(listener) as (sock, peer):
            exchange(sock, peer)
        del listener, sock, peer
        gc.collect()
        assert dict(vars(socket.socket)) == before
