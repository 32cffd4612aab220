"""uvloop's connections are made as uvloop makes them: where they go, what holds up whom, and what is refused."""

from __future__ import annotations

import asyncio
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

import gsssocks
from tests.peers.host import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trustme

    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer, HTTPSServer

Address = tuple[str, int]


@pytest.fixture
def deaf() -> Iterator[Address]:
    """Where a connect is not answered: as many wait there as may."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as waiting:
        for _ in range(3):
            visitor = waiting.enter_context(socket.socket())
            visitor.setblocking(False)
            visitor.connect_ex(listener.getsockname())
        yield listener.getsockname()


@pytest.fixture
def silent_proxy() -> Iterator[str]:
    """The URL of a proxy that takes connections, and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield f"socks5h://localhost:{listener.getsockname()[1]}"


def free_after_giving_up(address: Address) -> bool:
    """Whether the loop's executor, of one thread, does other work after a connect to `address` has been given up."""

    async def give_up() -> bool:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as executor:
            loop.set_default_executor(executor)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.open_connection(*address), 0.2)
            return await asyncio.wait_for(loop.run_in_executor(None, lambda: True), PATIENCE_SECONDS)

    free: bool = uvloop.run(give_up())
    return free


@pytest.mark.usefixtures("in_the_realm")
class TestGivenUp:
    def test_at_a_proxy(self, silent_proxy: str) -> None:
        with gsssocks.installed(silent_proxy):
            assert free_after_giving_up(("192.0.2.1", 80))

    def test_directly(self, deaf: Address) -> None:
        with gsssocks.installed("socks5h://proxy.example", no_proxy=["127.0.0.1"]):
            assert free_after_giving_up(deaf)

    def test_a_connection_that_comes_too_late_is_closed(
        self, dante_confidentiality: Dante, echo: EchoServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connected: list[socket.socket] = []
        connect = socket.socket.connect

        async def give_up() -> None:
            loop = asyncio.get_running_loop()
            given_up = asyncio.Event()

            def connect_late(sock: socket.socket, address: Any) -> None:
                connected.append(sock)
                asyncio.run_coroutine_threadsafe(given_up.wait(), loop).result(PATIENCE_SECONDS)
                connect(sock, address)

            monkeypatch.setattr(socket.socket, "connect", connect_late)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.open_connection(*echo.address), 0.2)
            given_up.set()
            while not connected or connected[0].fileno() != -1:
                await asyncio.sleep(0.01)

        with gsssocks.installed(dante_confidentiality.url(), no_proxy=[]):
            connect = socket.socket.connect
            uvloop.run(asyncio.wait_for(give_up(), PATIENCE_SECONDS))
        assert [sock.fileno() for sock in connected] == [-1]


class TestDirectly:
    def test_tls_by_name(self, https_server: HTTPSServer, trust: trustme.CA) -> None:
        context = ssl.create_default_context()
        trust.configure_trust(context)

        async def connect() -> Any:
            _, writer = await asyncio.open_connection("localhost", https_server.address[1], ssl=context)
            subject = writer.get_extra_info("peercert")["subjectAltName"]
            writer.transport.abort()
            return subject

        with gsssocks.installed("socks5h://proxy.example", no_proxy=["localhost"]):
            assert uvloop.run(connect())

    def test_placeholder_of_a_name_that_is_direct_by_now(self, echo: EchoServer) -> None:
        async def connect(host: str) -> Any:
            _, writer = await asyncio.open_connection(host, echo.address[1])
            name = writer.get_extra_info("peername")
            writer.transport.abort()
            return name

        with gsssocks.installed("socks5h://proxy.example", no_proxy=[]):
            placeholder = socket.gethostbyname("localhost")
        with gsssocks.installed("socks5h://proxy.example", no_proxy=["localhost"]):
            assert uvloop.run(connect(placeholder)) == echo.address

    def test_from_an_address(self, echo: EchoServer) -> None:
        async def connect() -> Any:
            _, writer = await asyncio.open_connection(*echo.address, local_addr=("127.0.0.2", 0))
            name = writer.get_extra_info("sockname")
            writer.transport.abort()
            return name[0]

        with gsssocks.installed("socks5h://proxy.example"):
            assert uvloop.run(connect()) == "127.0.0.2"


@pytest.mark.usefixtures("in_the_realm")
class TestThroughTheProxy:
    @pytest.fixture(autouse=True)
    def _installed(self, dante_confidentiality: Dante) -> Iterator[None]:
        with gsssocks.installed(dante_confidentiality.url(), no_proxy=[]):
            yield

    def test_tls_that_fails_is_not_tried_at_another_address(self, https_server: HTTPSServer) -> None:
        async def connect() -> None:
            await asyncio.open_connection("localhost", https_server.address[1], ssl=ssl.create_default_context())

        with pytest.raises(ssl.SSLCertVerificationError):
            uvloop.run(connect())

    @pytest.mark.parametrize(
        ("options", "error"),
        [({"family": socket.AF_INET6}, socket.gaierror), ({"happy_eyeballs_delay": 0.1}, TypeError)],
        ids=["family", "an option of asyncio's"],
    )
    def test_what_uvloop_refuses(self, echo: EchoServer, options: dict[str, Any], error: type[Exception]) -> None:
        async def connect() -> None:
            await asyncio.get_running_loop().create_connection(asyncio.Protocol, *echo.address, **options)

        with pytest.raises(error):
            uvloop.run(connect())

    def test_refused_everywhere(self, nobody: Address) -> None:
        async def connect() -> None:
            await asyncio.open_connection("localhost", nobody[1])

        with pytest.raises(ConnectionRefusedError):
            uvloop.run(connect())
