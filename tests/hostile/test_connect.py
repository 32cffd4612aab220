"""A proxy that misbehaves before it has granted the request, met in each of the ways to connect."""

from __future__ import annotations

import gc
import os
import re
import resource
import socket
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks import GSSSocket, ProxyError
from gsssocks.testing import ScriptedProxy
from tests.hostile.misdeeds import MISDEEDS, Misdeed
from tests.peers.host import Host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Conversation
    from tests.peers.targets import EchoServer

TARGET = ("secret.target.example", 4711)
SECRET = b"secret.target"
ADDRESS = ("192.0.2.77", 4711)
SECRET_ADDRESS = socket.inet_aton(ADDRESS[0])

every_misdeed = pytest.mark.parametrize("misdeed", MISDEEDS, ids=lambda misdeed: misdeed.name.replace(" ", "-"))


def assert_told(error: ProxyError, misdeed: Misdeed) -> None:
    assert isinstance(error, misdeed.error)
    assert isinstance(error, misdeed.plain)
    assert error.errno == misdeed.errno
    assert re.search(misdeed.says, str(error)), str(error)


def assert_fresh(sock: socket.socket, fd: int, echo: EchoServer) -> None:
    """The socket is one that has never been connected, and can be."""
    assert type(sock) is socket.socket
    assert sock.fileno() == fd
    with pytest.raises(OSError, match="not connected"):
        sock.getpeername()
    sock.connect(echo.address)
    sock.sendall(b"in the clear")
    assert sock.recv(100) == b"in the clear"


@every_misdeed
def test_create_connection_says_what_went_wrong(misdeed: Misdeed) -> None:
    with ScriptedProxy(misdeed.script) as proxy, pytest.raises(ProxyError) as caught:
        gsssocks.create_connection(TARGET, 20, proxy=proxy.url())
    assert_told(caught.value, misdeed)
    assert SECRET not in proxy.received


@every_misdeed
def test_patched_create_connection_says_what_went_wrong(misdeed: Misdeed) -> None:
    with ScriptedProxy(misdeed.script) as proxy, gsssocks.installed(proxy.url()), pytest.raises(ProxyError) as caught:
        socket.create_connection(ADDRESS, 20)
    assert_told(caught.value, misdeed)
    assert SECRET_ADDRESS not in proxy.received


@every_misdeed
def test_connect_leaves_a_fresh_socket(misdeed: Misdeed, echo: EchoServer) -> None:
    with ScriptedProxy(misdeed.script) as proxy, gsssocks.installed(proxy.url()), socket.socket() as sock:
        sock.settimeout(20)
        fd = sock.fileno()
        with pytest.raises(ProxyError) as caught:
            sock.connect(TARGET)
        assert_told(caught.value, misdeed)
        assert_fresh(sock, fd, echo)
        assert sock.gettimeout() == 20
    assert SECRET not in proxy.received


@every_misdeed
def test_connect_ex_returns_the_errno(misdeed: Misdeed, echo: EchoServer) -> None:
    with ScriptedProxy(misdeed.script) as proxy, gsssocks.installed(proxy.url()), socket.socket() as sock:
        sock.settimeout(20)
        fd = sock.fileno()
        assert sock.connect_ex(TARGET) == misdeed.errno
        assert_fresh(sock, fd, echo)
    assert SECRET not in proxy.received


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@every_misdeed
def test_failure_leaves_nothing_to_the_garbage_collector(misdeed: Misdeed) -> None:
    """An error that comes to refer to itself keeps the socket, and its descriptor, until the collector comes by."""

    def attempt() -> weakref.ref[socket.socket]:
        with socket.socket() as sock:
            sock.settimeout(20)
            with suppress(ProxyError):
                sock.connect(TARGET)
            return weakref.ref(sock)

    with ScriptedProxy(misdeed.script) as proxy, gsssocks.installed(proxy.url()), no_collector():
        assert attempt()() is None


@every_misdeed
def test_gsssocket_can_try_another_proxy(misdeed: Misdeed) -> None:
    def serve(client: Conversation) -> None:
        client.open_tunnel()
        client.echo()

    with ScriptedProxy(misdeed.script) as bad, ScriptedProxy(serve) as good, GSSSocket(proxy=bad.url()) as sock:
        sock.settimeout(20)
        fd = sock.fileno()
        assert sock.connect_ex(TARGET) == misdeed.errno
        sock.set_proxy(2, good.host, good.port)
        sock.connect(TARGET)
        assert sock.fileno() == fd
        sock.sendall(b"in the tunnel")
        assert sock.recv(100) == b"in the tunnel"
    assert SECRET not in bad.received + good.received


class Hoarder:
    """A proxy that opens all the descriptors that this process may have, before it refuses; its result is what it was
    sent afterwards."""

    def __init__(self) -> None:
        self._taken: list[int] = []

    def __call__(self, client: socket.socket) -> bytes:
        client.recv(1)
        with suppress(OSError):
            while True:
                self._taken.append(os.open(os.devnull, os.O_RDONLY))
        client.sendall(b"\x05\xff")
        received = bytearray()
        with suppress(ConnectionResetError):
            while piece := client.recv(65536):
                received += piece
        return bytes(received)

    @contextmanager
    def limited(self) -> Iterator[None]:
        """There are no more than a few, but enough for a connect."""
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 100, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in self._taken:
                os.close(fd)


def proxy_at(host: Host[bytes]) -> str:
    return f"socks5h://localhost:{host.address[1]}"


class TestWithoutADescriptorLeft:
    def test_failed_connect_leaves_a_fresh_socket(self, echo: EchoServer) -> None:
        hoarder = Hoarder()
        with Host(hoarder) as host, gsssocks.installed(proxy_at(host)), socket.socket() as sock:
            with hoarder.limited(), pytest.raises(gsssocks.AuthenticationError):
                sock.connect(TARGET)
            assert_fresh(sock, sock.fileno(), echo)

    def test_failed_connect_leaves_nothing_to_send_over_where_another_kernel_socket_was_needed(self) -> None:
        hoarder = Hoarder()
        with Host(hoarder) as host, gsssocks.installed(proxy_at(host)), socket.socket(socket.AF_INET6) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # so it cannot reach an IPv4 proxy itself
            with hoarder.limited(), pytest.raises(gsssocks.AuthenticationError):
                sock.connect(TARGET)
            with pytest.raises(OSError, match="not connected"):
                sock.getpeername()
            with pytest.raises(BrokenPipeError):
                sock.sendall(SECRET)
            assert SECRET not in host.result()
