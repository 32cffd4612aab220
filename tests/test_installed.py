"""Blocks of `installed()`, one in another and across each other, and what is called inside them."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks import Proxy
from tests.peers.host import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.targets import EchoServer

FIRST, SECOND, THIRD = (f"socks5h://{name}.example" for name in ("first", "second", "third"))


def block(proxy: str) -> AbstractContextManager[None]:
    return gsssocks.installed(proxy, no_proxy=[])


def in_force() -> str | None:
    """The host of the proxy by which connections are made now."""
    settings = gsssocks.status().settings
    return None if settings is None else f"socks5h://{settings.proxies[0].host}"


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    gc.collect()  # tunnels of other tests that nobody refers to any more
    before = dict(vars(socket.socket))
    yield
    assert in_force() is None
    assert gsssocks.status().patched == ()
    assert dict(vars(socket.socket)) == before


class TestNested:
    def test_inner_holds_and_then_the_outer(self) -> None:
        with block(FIRST):
            with block(SECOND):
                assert in_force() == SECOND
            assert in_force() == FIRST

    def test_what_was_installed_before_holds_again(self) -> None:
        gsssocks.install(FIRST)
        with block(SECOND):
            assert in_force() == SECOND
        assert in_force() == FIRST
        gsssocks.uninstall()

    def test_a_wrong_proxy_leaves_the_outer(self) -> None:
        with block(FIRST):
            with pytest.raises(ValueError, match="ftp"), block("ftp://second.example"):
                pass
            assert in_force() == FIRST

    def test_the_same_settings_twice(self) -> None:
        proxy = Proxy("first.example")
        with gsssocks.installed(proxy):
            with gsssocks.installed(proxy):
                assert in_force() == FIRST
            assert in_force() == FIRST


class TestOverlapping:
    def test_the_end_of_the_first_leaves_the_second(self) -> None:
        with ExitStack() as first, ExitStack() as second:
            first.enter_context(block(FIRST))
            second.enter_context(block(SECOND))
            first.close()
            assert in_force() == SECOND
            second.close()
            assert in_force() is None

    def test_of_three_the_last_that_has_not_ended_holds(self) -> None:
        with ExitStack() as first, ExitStack() as second, ExitStack() as third:
            first.enter_context(block(FIRST))
            second.enter_context(block(SECOND))
            third.enter_context(block(THIRD))
            second.close()
            assert in_force() == THIRD
            third.close()
            assert in_force() == FIRST

    def test_tasks_never_connect_directly_inside_theirs(self, echo: EchoServer) -> None:
        """To a proxy that is not there: whatever connects is direct."""

        async def connect_inside(begin: asyncio.Event, begun: asyncio.Event, go_on: asyncio.Event) -> None:
            await begin.wait()
            with block("socks5h://127.0.0.1:1"):
                begun.set()
                await go_on.wait()
                with pytest.raises(gsssocks.ProxyError):
                    socket.create_connection(echo.address, PATIENCE_SECONDS)

        async def both() -> None:
            start, first_begun, second_begun, first_ended = (asyncio.Event() for _ in range(4))
            start.set()
            first = asyncio.ensure_future(connect_inside(start, first_begun, second_begun))
            second = asyncio.ensure_future(connect_inside(first_begun, second_begun, first_ended))
            await first
            first_ended.set()
            await second

        asyncio.run(both())

    def test_threads_never_connect_directly_inside_theirs(self, echo: EchoServer) -> None:
        outcomes: list[BaseException] = []

        def connect_inside(begin: threading.Event, begun: threading.Event, go_on: threading.Event) -> None:
            begin.wait(PATIENCE_SECONDS)
            with block("socks5h://127.0.0.1:1"):
                begun.set()
                go_on.wait(PATIENCE_SECONDS)
                try:
                    socket.create_connection(echo.address, PATIENCE_SECONDS).close()
                except gsssocks.ProxyError as error:
                    outcomes.append(error)

        start, first_begun, second_begun, first_ended = (threading.Event() for _ in range(4))
        start.set()
        first = threading.Thread(target=connect_inside, args=(start, first_begun, second_begun))
        second = threading.Thread(target=connect_inside, args=(first_begun, second_begun, first_ended))
        first.start()
        second.start()
        first.join()
        first_ended.set()
        second.join()
        assert len(outcomes) == 2


class TestCallsInside:
    def test_install_holds_until_the_end_of_the_block(self) -> None:
        with block(FIRST):
            with block(SECOND):
                gsssocks.install(THIRD)
                assert in_force() == THIRD
            assert in_force() == FIRST

    def test_install_leaves_no_trace_of_it_after_the_block(self) -> None:
        with block(FIRST):
            gsssocks.install(SECOND)

    def test_uninstall_holds_until_the_end_of_the_block(self, echo: EchoServer) -> None:
        with block(FIRST):
            with block(SECOND):
                gsssocks.uninstall()
                assert in_force() is None
                assert gsssocks.status().patched == ()
                socket.create_connection(echo.address, PATIENCE_SECONDS).close()
            assert in_force() == FIRST

    def test_uninstall_of_what_a_block_has_replaced_is_undone_by_its_end(self) -> None:
        gsssocks.install(FIRST)
        with block(SECOND):
            gsssocks.uninstall()
        assert in_force() == FIRST
        gsssocks.uninstall()

    def test_uninstall_in_one_that_has_been_overlapped_is_of_the_last(self) -> None:
        with ExitStack() as first, ExitStack() as second:
            first.enter_context(block(FIRST))
            second.enter_context(block(SECOND))
            gsssocks.uninstall()
            first.close()
            assert in_force() is None
            second.close()
            assert in_force() is None
