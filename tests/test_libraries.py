"""Libraries that pass by a subclass of `socket.socket`: by unbound calls, or with the bare descriptor."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from gsssocks._resolver import Placeholders
from tests.peers.datagrams import UDPEcho
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.targets import octets

if TYPE_CHECKING:
    import trustme
    from OpenSSL import SSL

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer, HTTPSServer

SIZE = 1 << 20
REQUEST = b"GET /bytes/%d HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % SIZE


def is_answer(received: bytes) -> bool:
    return received.startswith(b"HTTP/1.1 200") and received.endswith(octets(SIZE))


@pytest.fixture
def context(trust: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    trust.configure_trust(context)
    return context


@pytest.mark.usefixtures("through_dante")
class TestTrio:
    def test_stream(self, echo: EchoServer) -> None:
        import trio

        async def talk() -> bytes:
            async with await trio.open_tcp_stream(*echo.address) as stream:
                received = bytearray()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send_all, octets(SIZE))
                    while len(received) < SIZE:
                        received += await stream.receive_some(65536)
                return bytes(received)

        assert trio.run(talk) == octets(SIZE)

    def test_half_close(self, echo: EchoServer) -> None:
        import trio

        async def talk() -> bytes:
            async with await trio.open_tcp_stream(*echo.address) as stream:
                await stream.send_all(b"hello")
                await stream.send_eof()
                return b"".join([bytes(piece) async for piece in stream])

        assert trio.run(talk) == b"hello"

    def test_tls(self, https_server: HTTPSServer, context: ssl.SSLContext) -> None:
        import trio

        async def talk() -> bytes:
            stream = await trio.open_ssl_over_tcp_stream(
                "localhost", https_server.address[1], ssl_context=context, https_compatible=True
            )
            async with stream:
                await stream.send_all(REQUEST)
                return b"".join([bytes(piece) async for piece in stream])

        assert is_answer(trio.run(talk))

    def test_socket_connected_before(self, echo: EchoServer) -> None:
        import trio

        async def talk() -> bytes:
            with trio.socket.from_stdlib_socket(socket.create_connection(echo.address)) as connection:
                await connection.send(b"hello")
                return await connection.recv(5)

        assert trio.run(talk) == b"hello"

    def test_duplicate(self, echo: EchoServer) -> None:
        import trio

        async def talk() -> bytes:
            with trio.socket.socket() as first:
                await first.connect(echo.address)
                await first.send(b"hello")
                assert await first.recv(5) == b"hello"
                with first.dup() as second:
                    await second.send(b"again")
                    return await second.recv(5)

        assert trio.run(talk) == b"again"

    def test_tls_socket_is_refused_as_ever(self, https_server: HTTPSServer, context: ssl.SSLContext) -> None:
        import trio

        async def wrap(connection: socket.socket) -> None:
            trio.socket.from_stdlib_socket(connection)

        plain = socket.create_connection(https_server.address)
        with context.wrap_socket(plain, server_hostname="localhost") as tls, pytest.raises(TypeError, match="expected"):
            trio.run(wrap, tls)


curio_runs = pytest.mark.skipif(sys.version_info >= (3, 12), reason="curio 1.6 does not run there")


@curio_runs
@pytest.mark.usefixtures("through_dante")
class TestCurio:
    def test_connection(self, echo: EchoServer) -> None:
        import curio

        async def receive(sock: curio.io.Socket) -> bytes:
            received = bytearray()
            while len(received) < SIZE:
                received += await sock.recv(65536)
            return bytes(received)

        async def talk() -> bytes:
            async with await curio.open_connection(*echo.address) as sock:
                receiving = await curio.spawn(receive, sock)
                await sock.sendall(octets(SIZE))
                received: bytes = await receiving.join()
                return received

        assert curio.run(talk) == octets(SIZE)

    def test_tls(self, https_server: HTTPSServer, context: ssl.SSLContext) -> None:
        import curio

        async def talk() -> bytes:
            port = https_server.address[1]
            async with await curio.open_connection("localhost", port, ssl=context, server_hostname="localhost") as sock:
                await sock.sendall(REQUEST)
                received = bytearray()
                while piece := await sock.recv(65536):
                    received += piece
                return bytes(received)

        assert is_answer(curio.run(talk))

    def test_socket_whose_first_connect_failed(self, echo: EchoServer) -> None:
        import curio

        async def talk() -> bytes:
            async with curio.socket.socket() as sock:
                with pytest.raises(ConnectionRefusedError):
                    await sock.connect(("127.0.0.1", 1))
                await sock.connect(echo.address)
                await sock.send(b"hello")
                received: bytes = await sock.recv(5)
                return received

        assert curio.run(talk) == b"hello"


@curio_runs
def test_curio_datagrams(realm: Realm, dante_confidentiality: Dante) -> None:
    import curio

    async def talk(address: tuple[str, int]) -> bytes:
        async with curio.socket.socket(type=socket.SOCK_DGRAM) as sock:
            await sock.sendto(b"hello", address)
            received: bytes = await sock.recv(100)
            return received

    url = dante_confidentiality.url()
    with UDPEcho() as echo, realm.activate(), gsssocks.installed(url, no_proxy=[]):
        assert curio.run(talk, echo.address) == b"hello"


@pytest.mark.usefixtures("through_dante")
class TestPyOpenSSL:
    @pytest.fixture
    def openssl_context(self, trust: trustme.CA) -> SSL.Context:
        from OpenSSL import SSL

        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        trust.configure_trust(context)
        context.set_verify(SSL.VERIFY_PEER)
        return context

    def talk(self, connection: SSL.Connection) -> bytes:
        from OpenSSL import SSL

        connection.set_tlsext_host_name(b"localhost")
        connection.do_handshake()
        connection.sendall(REQUEST)
        received = bytearray()
        try:
            while True:
                received += connection.recv(65536)
        except (SSL.ZeroReturnError, SSL.SysCallError):
            return bytes(received)

    def test_connection_made_from_a_connected_socket(
        self, https_server: HTTPSServer, openssl_context: SSL.Context
    ) -> None:
        from OpenSSL import SSL

        with socket.create_connection(https_server.address) as plain:
            connection = SSL.Connection(openssl_context, plain)
            connection.set_connect_state()
            assert is_answer(self.talk(connection))

    def test_connection_made_before_connecting(self, https_server: HTTPSServer, openssl_context: SSL.Context) -> None:
        from OpenSSL import SSL

        with socket.socket() as plain:
            connection = SSL.Connection(openssl_context, plain)
            connection.connect(https_server.address)
            assert is_answer(self.talk(connection))

    def test_peer_stays_the_target(self, https_server: HTTPSServer, openssl_context: SSL.Context) -> None:
        from OpenSSL import SSL

        with socket.create_connection(https_server.address) as plain:
            SSL.Connection(openssl_context, plain)
            assert plain.getpeername() == https_server.address


def asyncio_runner() -> Callable[[Any], Any]:
    import asyncio

    return asyncio.run


def uvloop_runner() -> Callable[[Any], Any]:
    import uvloop

    run: Callable[[Any], Any] = uvloop.run
    return run


@pytest.mark.usefixtures("through_dante")
@pytest.mark.parametrize("runner", [asyncio_runner, uvloop_runner], ids=["asyncio", "uvloop"])
class TestAsyncio:
    """Python's own event loop, and uvloop."""

    def test_streams(self, runner: Callable[[], Callable[[Any], Any]], echo: EchoServer) -> None:
        import asyncio

        async def talk() -> bytes:
            reader, writer = await asyncio.open_connection(*echo.address)
            writer.write(octets(SIZE))
            writer.write_eof()
            received = await reader.read()
            writer.close()
            await writer.wait_closed()
            return received

        assert runner()(talk()) == octets(SIZE)

    def test_tls(
        self, runner: Callable[[], Callable[[Any], Any]], https_server: HTTPSServer, context: ssl.SSLContext
    ) -> None:
        import asyncio

        async def talk() -> bytes:
            reader, writer = await asyncio.open_connection("localhost", https_server.address[1], ssl=context)
            # Not up to the end of the stream, where uvloop forgets what it has not handed out yet, also without a
            # proxy; nor by way of TLS's own end, which it does not always survive.
            writer.write(REQUEST.replace(b"Connection: close\r\n", b""))
            received = await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(SIZE)
            writer.transport.abort()
            return received

        assert is_answer(runner()(talk()))

    def test_connected_socket_is_handed_over(
        self, runner: Callable[[], Callable[[Any], Any]], echo: EchoServer
    ) -> None:
        import asyncio

        async def talk() -> bytes:
            connected = socket.create_connection(echo.address, PATIENCE_SECONDS)
            connected.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=connected)
            writer.write(b"hello")
            received = await reader.readexactly(5)
            writer.close()
            await writer.wait_closed()
            return received

        assert runner()(talk()) == b"hello"

    def test_socket_operations(self, runner: Callable[[], Callable[[Any], Any]], echo: EchoServer) -> None:
        import asyncio

        async def talk() -> bytes:
            loop = asyncio.get_running_loop()
            with socket.socket() as tunnel:
                tunnel.setblocking(False)
                await loop.sock_connect(tunnel, echo.address)
                await loop.sock_sendall(tunnel, b"hello")
                return await loop.sock_recv(tunnel, 100)

        assert runner()(talk()) == b"hello"


@pytest.mark.parametrize("runner", [asyncio_runner, uvloop_runner], ids=["asyncio", "uvloop"])
def test_names_that_go_to_the_proxy_are_not_looked_up(runner: Callable[[], Callable[[Any], Any]]) -> None:
    import asyncio

    async def look_up() -> tuple[str, str]:
        loop = asyncio.get_running_loop()
        ((_, _, _, _, address),) = await loop.getaddrinfo("target.invalid", 80, type=socket.SOCK_STREAM)
        name, _ = await loop.getnameinfo((str(address[0]), 80))
        return str(address[0]), name

    with gsssocks.installed("socks5h://proxy.example"):
        address, name = runner()(look_up())
    assert Placeholders().covers(address)
    assert name == "target.invalid"


@pytest.mark.usefixtures("through_dante")
def test_peer_of_an_asyncio_transport_is_the_target(echo: EchoServer) -> None:
    import asyncio

    async def peer() -> object:
        _, writer = await asyncio.open_connection(*echo.address)
        address = writer.get_extra_info("peername")
        writer.close()
        await writer.wait_closed()
        return address

    assert asyncio.run(peer()) == echo.address


PROGRAMS = {
    "trio": """
import trio
async def talk():
    async with await trio.open_tcp_stream(host, port) as stream:
        await stream.send_all(b"hello")
        return bytes(await stream.receive_some(100))
run = lambda: trio.run(talk)
covered = lambda: trio._socket._SocketType.__init__
""",
    "OpenSSL.SSL": """
from OpenSSL import SSL
def talk():
    plain = socket.create_connection((host, port))
    SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), plain)
    # What OpenSSL would do.
    os.write(plain.fileno(), b"hello")
    return os.read(plain.fileno(), 100)
run = talk
covered = lambda: SSL.Connection.__init__
""",
    "uvloop": """
import asyncio, uvloop
async def talk():
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"hello")
    return await reader.read(100)
run = lambda: uvloop.run(talk())
covered = lambda: uvloop.Loop.create_connection
""",
    "asyncio": """
import asyncio
async def talk():
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"hello")
    return await reader.read(100)
run = lambda: asyncio.run(talk())
covered = lambda: asyncio.BaseEventLoop.create_connection
""",
}
BEGINNING = """
import gsssocks, os, socket, sys
host, port, url = "127.0.0.1", int(sys.argv[1]), sys.argv[2]
install = lambda: gsssocks.install(url, no_proxy=[])
"""


@pytest.mark.parametrize("library", PROGRAMS)
class TestOrder:
    """Whichever comes first, the library or `install()`; then `uninstall()`."""

    def run(self, realm: Realm, proxy: Dante, echo: EchoServer, program: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", BEGINNING + program, str(echo.address[1]), proxy.url()],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=PATIENCE_SECONDS,
            env={**os.environ, **realm.env},
            cwd=Path(__file__).parents[1],
        )
        return done.stdout.strip()

    def test_imported_before(self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer, library: str) -> None:
        granted = dante_confidentiality.connections()
        program = f"{PROGRAMS[library]}\ninstall(); print(run().decode())"
        assert self.run(realm, dante_confidentiality, echo, program) == "hello"
        assert dante_confidentiality.connections() == granted + 1

    def test_imported_after(self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer, library: str) -> None:
        granted = dante_confidentiality.connections()
        program = f"install()\n{PROGRAMS[library]}\nprint(run().decode())"
        assert self.run(realm, dante_confidentiality, echo, program) == "hello"
        assert dante_confidentiality.connections() == granted + 1

    def test_restored_by_uninstall(
        self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer, library: str
    ) -> None:
        granted = dante_confidentiality.connections()
        program = f"{PROGRAMS[library]}\nbefore = covered(); install(); gsssocks.uninstall()\n"
        program += "print(covered() is before, run().decode())"
        assert self.run(realm, dante_confidentiality, echo, program) == "True hello"
        assert dante_confidentiality.connections() == granted

    def test_imported_between_install_and_uninstall(
        self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer, library: str
    ) -> None:
        program = f"install()\n{PROGRAMS[library]}\nwrapped = covered(); gsssocks.uninstall()\n"
        program += "print(hasattr(covered(), '__wrapped__'), run().decode())"
        assert self.run(realm, dante_confidentiality, echo, program) == "False hello"


def test_direct_connection_of_trio_has_the_functions_of_c(echo: EchoServer) -> None:
    import trio

    async def functions() -> object:
        async with await trio.open_tcp_stream(*echo.address) as stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some(5) == b"hello"
            return type(stream.socket._sock)  # type: ignore[attr-defined]

    with gsssocks.installed("socks5h://proxy.example"):
        assert trio.run(functions) is socket.socket
