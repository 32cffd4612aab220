"""Connecting in place: what threads, families, options and onlookers see of it."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import gsssocks
from gsssocks import GSSSocket, Proxy, _originals
from gsssocks.testing import ScriptedProxy
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.off import name_of_two_hosts
from tests.test_threads import Call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Conversation
    from tests.peers.dante import Dante
    from tests.peers.routes import SameAsPlain
    from tests.peers.targets import EchoServer

TARGET = ("192.0.2.77", 4711)


class SlowLookup:
    """A lookup of the proxy's name that ends when it is told to.

    Attributes:
        begun, go: events.
    """

    name = "slow.proxy.example"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self._getaddrinfo = _originals.getaddrinfo
        monkeypatch.setattr(_originals, "getaddrinfo", self)

    def __call__(self, host: str, *arguments: Any) -> Any:
        if host == self.name:
            self.begun.set()
            assert self.go.wait(PATIENCE_SECONDS)
            host = "127.0.0.1"
        return self._getaddrinfo(host, *arguments)


@pytest.mark.usefixtures("in_the_realm")
class TestConnectOfASecondThread:
    """It comes to what it does on a plain socket, and never past the proxy: the kernel's socket is not connected yet
    while the proxy's name is being looked up."""

    @pytest.fixture
    def lookup(self, monkeypatch: pytest.MonkeyPatch) -> SlowLookup:
        return SlowLookup(monkeypatch)

    @contextmanager
    def connecting(
        self, lookup: SlowLookup, timeout: float | None, *, refused: bool = False
    ) -> Iterator[tuple[socket.socket, Call]]:
        """A socket, and the first thread's connect."""

        def serve(client: Conversation) -> None:
            if refused:
                client.choose_method(0xFF)
            else:
                client.open_tunnel()
                client.echo()

        with ScriptedProxy(serve) as proxy, socket.socket() as sock:
            there = Proxy(lookup.name, proxy.port, target_name="socks@localhost")
            with gsssocks.installed(there, no_proxy=[]):
                sock.settimeout(timeout)
                first = Call(lambda: sock.connect(TARGET))
                assert lookup.begun.wait(PATIENCE_SECONDS)
                try:
                    yield sock, first
                finally:
                    lookup.go.set()
                    first.join()

    def test_does_not_wait_on_a_socket_with_a_timeout(self, lookup: SlowLookup, echo: EchoServer) -> None:
        with self.connecting(lookup, PATIENCE_SECONDS) as (sock, first):
            with pytest.raises(BlockingIOError, match="already in progress"):
                sock.connect(echo.address)
            lookup.go.set()
            assert first.outcome().failure is None
            assert sock.getpeername() == TARGET

    def test_does_not_connect_past_the_proxy_by_the_method_of_the_class(
        self, lookup: SlowLookup, echo: EchoServer
    ) -> None:
        with self.connecting(lookup, PATIENCE_SECONDS) as (sock, first):
            with pytest.raises(BlockingIOError, match="already in progress"):
                socket.socket.connect(sock, echo.address)
            lookup.go.set()
            assert first.outcome().failure is None

    def test_waits_on_a_socket_that_waits_for_ever_and_succeeds(self, lookup: SlowLookup) -> None:
        with self.connecting(lookup, None) as (sock, first):
            second = Call(lambda: sock.connect_ex(TARGET))
            lookup.go.set()
            assert first.outcome().failure is None
            assert second.outcome().value in (0, errno.EISCONN)  # the latter if it comes too late to wait

    def test_is_told_when_what_it_waited_for_has_failed(self, lookup: SlowLookup) -> None:
        with self.connecting(lookup, None, refused=True) as (sock, first):
            second = Call(lambda: sock.connect(TARGET))
            lookup.go.set()
            assert first.outcome().failure.kind is gsssocks.AuthenticationError
            assert issubclass(second.outcome().failure.kind, OSError)

    def test_afterwards_is_one_on_a_connected_socket(self, lookup: SlowLookup, echo: EchoServer) -> None:
        with self.connecting(lookup, PATIENCE_SECONDS) as (sock, first):
            lookup.go.set()
            assert first.outcome().failure is None
            with pytest.raises(OSError, match="already connected"):
                sock.connect(echo.address)
            with pytest.raises(OSError, match="already connected"):
                socket.socket.connect(sock, echo.address)

    @pytest.mark.usefixtures("through_dante")
    def test_of_many_threads_one_connects(self, echo: EchoServer) -> None:
        for _ in range(10):
            with socket.socket() as sock:
                sock.settimeout(PATIENCE_SECONDS)
                together = threading.Barrier(4)

                def connect(sock: socket.socket = sock, together: threading.Barrier = together) -> int:
                    together.wait()
                    return sock.connect_ex(echo.address)

                codes = sorted(call.outcome().value for call in [Call(connect) for _ in range(4)])
                assert codes[0] == 0
                assert set(codes[1:]) <= {errno.EALREADY, errno.EISCONN}
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"

    def test_of_many_threads_that_all_fail_each_is_told_and_the_socket_is_plain(
        self, dante_confidentiality: Dante, nobody: tuple[str, int]
    ) -> None:
        for _ in range(10):
            with gsssocks.installed(dante_confidentiality.url(), no_proxy=[]), socket.socket() as sock:
                sock.settimeout(PATIENCE_SECONDS)
                together = threading.Barrier(4)

                def connect(sock: socket.socket = sock, together: threading.Barrier = together) -> int:
                    together.wait()
                    return sock.connect_ex(nobody)

                codes = {call.outcome().value for call in [Call(connect) for _ in range(4)]}
                assert errno.ECONNREFUSED in codes <= {errno.ECONNREFUSED, errno.EALREADY, errno.EISCONN}
                assert type(sock) is socket.socket


class TestMappedAddress:
    """An IPv6 socket connects to an IPv4 address, as a plain one does: to ::ffff:a.b.c.d."""

    def test_names(self, same_as_plain: SameAsPlain, echo: EchoServer) -> None:
        def names() -> object:
            with socket.socket(socket.AF_INET6) as sock:
                sock.connect(("::ffff:127.0.0.1", echo.address[1]))
                own = sock.getsockname()
                return sock.getpeername(), own[0], len(own)

        assert same_as_plain(names).value == (("::ffff:127.0.0.1", echo.address[1], 0, 0), "::ffff:127.0.0.1", 4)

    def test_options_of_ipv6_afterwards(self, same_as_plain: SameAsPlain, echo: EchoServer) -> None:
        def option() -> int:
            with socket.socket(socket.AF_INET6) as sock:
                sock.connect(("::ffff:127.0.0.1", echo.address[1]))
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 8)
                return sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS)

        assert same_as_plain(option).value == 8

    def test_epoll_that_has_known_it_before(self, same_as_plain: SameAsPlain, echo: EchoServer) -> None:
        def events() -> object:
            with socket.socket(socket.AF_INET6) as sock, select.epoll() as waiting:
                sock.setblocking(False)
                waiting.register(sock, select.EPOLLOUT)
                with pytest.raises(BlockingIOError):
                    sock.connect(("::ffff:127.0.0.1", echo.address[1]))
                return [event for _, event in waiting.poll(PATIENCE_SECONDS)]

        assert same_as_plain(events).value == [select.EPOLLOUT]


@pytest.mark.usefixtures("in_the_realm")
def test_host_that_is_off_leaves_time_for_the_others_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedProxy(grant) as there, name_of_two_hosts(monkeypatch, there.port) as name:
        proxy = Proxy(name, there.port, target_name="socks@localhost", timeout=4.0)
        gsssocks.create_connection(TARGET, proxy=proxy).close()


def grant(client: Conversation) -> None:
    client.open_tunnel()


@pytest.mark.usefixtures("in_the_realm")
class TestFamily:
    """Of the kernel's socket under an IPv6 one, where the proxy has an IPv4 address."""

    @pytest.mark.parametrize(
        ("v6_only", "local", "family"),
        [
            (False, None, socket.AF_INET6),
            (False, "::", socket.AF_INET6),
            (False, "::ffff:127.0.0.1", socket.AF_INET6),
            (False, "::1", socket.AF_INET),
            (True, None, socket.AF_INET),
        ],
    )
    def test_stays_where_it_can_be_connected_to_ipv4(
        self, dante_confidentiality: Dante, echo: EchoServer, v6_only: bool, local: str | None, family: int
    ) -> None:
        there = Proxy("127.0.0.1", dante_confidentiality.port, target_name="socks@localhost")
        with GSSSocket(socket.AF_INET6, proxy=there) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6_only)
            if local is not None:
                sock.bind((local, 0))
            sock.connect(("::ffff:127.0.0.1", echo.address[1]))
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == family
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"


IP_MTU_DISCOVER, IP_FREEBIND = 10, 15
OPTIONS: list[tuple[int, int, bytes]] = [
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 3, 0)),
    (socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 4, 0)),
    (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0"),
    (socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno\0"),
    (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, struct.pack("i", 4096)),
    (socket.IPPROTO_IP, IP_MTU_DISCOVER, struct.pack("i", 2)),
    (socket.IPPROTO_IP, IP_FREEBIND, struct.pack("i", 1)),
]


@pytest.mark.usefixtures("in_the_realm")
class TestOptions:
    """What the application has set before holds afterwards."""

    @pytest.fixture
    def proxy(self, dante_confidentiality: Dante) -> Proxy:
        return Proxy("127.0.0.1", dante_confidentiality.port, target_name="socks@localhost")

    def values(self, sock: socket.socket) -> list[bytes]:
        return [sock.getsockopt(level, name, 16) for level, name, _ in OPTIONS]

    def set_all(self, sock: socket.socket) -> list[bytes]:
        before = self.values(sock)
        for level, name, value in OPTIONS:
            sock.setsockopt(level, name, value)
        changed = self.values(sock)
        assert all(old != new for old, new in zip(before, changed))
        return changed

    def test_after_a_failed_connect(self, proxy: Proxy, nobody: tuple[str, int]) -> None:
        with GSSSocket(proxy=proxy) as sock:
            values = self.set_all(sock)
            assert sock.connect_ex(nobody) == errno.ECONNREFUSED
            assert self.values(sock) == values

    def test_where_another_kernel_socket_is_needed(self, proxy: Proxy, echo: EchoServer) -> None:
        with GSSSocket(socket.AF_INET6, proxy=proxy) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            values = self.set_all(sock)
            sock.connect(("::ffff:127.0.0.1", echo.address[1]))
            assert self.values(sock) == values

    def test_not_to_wait_is_kept_whatever_the_default_timeout_is(self, proxy: Proxy, echo: EchoServer) -> None:
        with GSSSocket(socket.AF_INET6, proxy=proxy) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.settimeout(None)
            socket.setdefaulttimeout(0)
            try:
                sock.connect(("::ffff:127.0.0.1", echo.address[1]))
            finally:
                socket.setdefaulttimeout(None)
            assert os.get_blocking(sock.fileno())

    def test_epoll_goes_on_after_a_failed_connect(
        self, proxy: Proxy, echo: EchoServer, nobody: tuple[str, int]
    ) -> None:
        with GSSSocket(proxy=proxy) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            with select.epoll() as waiting:
                waiting.register(sock, select.EPOLLIN)
                assert sock.connect_ex(nobody) == errno.ECONNREFUSED
                sock.connect(echo.address)
                sock.sendall(b"hello")
                assert waiting.poll(PATIENCE_SECONDS) == [(sock.fileno(), select.EPOLLIN)]

    def test_own_name_is_the_proxys_after_a_failed_connect(
        self, proxy: Proxy, echo: EchoServer, nobody: tuple[str, int]
    ) -> None:
        with GSSSocket(proxy=proxy) as sock:
            assert sock.connect_ex(nobody) == errno.ECONNREFUSED
            sock.connect(echo.address)
            assert sock.getsockname() == sock.get_proxy_sockname()

    def test_bound_address_is_kept_after_a_failed_connect(
        self, proxy: Proxy, echo: EchoServer, nobody: tuple[str, int]
    ) -> None:
        with GSSSocket(proxy=proxy) as sock:
            sock.bind(("127.0.0.1", 0))
            bound = sock.getsockname()
            assert sock.connect_ex(nobody) == errno.ECONNREFUSED
            assert sock.getsockname() == bound
            sock.connect(echo.address)
            assert sock.getsockname() == bound

    def test_bound_address_is_kept_for_the_next_proxy(
        self, dante_confidentiality: Dante, echo: EchoServer, nobody: tuple[str, int]
    ) -> None:
        urls = [f"socks5h://localhost:{nobody[1]}", dante_confidentiality.url()]
        with gsssocks.installed(",".join(urls), no_proxy=[]), socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            bound = sock.getsockname()
            sock.connect(echo.address)
            assert sock.getsockname() == bound
            assert _originals.SocketType.getsockname(sock) == bound


class Auditor:
    """Notes who connects, and where to, by `sys.audit`, while there is anybody to be told. It stays for good: no
    hook can be taken away."""

    def __init__(self) -> None:
        self.noted: list[tuple[object, object]] | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and self.noted is not None:
            self.noted.append((arguments[0], arguments[1]))


@pytest.fixture(scope="module")
def auditor() -> Auditor:
    return Auditor()


class TestAuditing:
    """`sys.audit` tells of the application's socket and of the address that it asked for."""

    @pytest.fixture
    def noted(self, auditor: Auditor) -> Iterator[list[tuple[object, object]]]:
        auditor.noted = []
        yield auditor.noted
        auditor.noted = None

    @pytest.mark.usefixtures("through_dante")
    @pytest.mark.parametrize("method", ["connect", "connect_ex"])
    def test_of_a_connect(self, noted: list[tuple[object, object]], echo: EchoServer, method: str) -> None:
        with socket.socket() as sock:
            getattr(sock, method)(echo.address)
            assert [address for who, address in noted if who is sock] == [echo.address]

    @pytest.mark.usefixtures("through_dante")
    def test_of_a_connect_on_a_connected_socket(self, noted: list[tuple[object, object]], echo: EchoServer) -> None:
        with socket.create_connection(echo.address) as sock:
            noted.clear()
            with pytest.raises(OSError, match="already connected"):
                sock.connect(echo.address)
            assert [address for who, address in noted if who is sock] == [echo.address]

    def test_of_a_udp_socket(self, noted: list[tuple[object, object]]) -> None:
        installed = gsssocks.installed("socks5h://proxy.example")
        with installed, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect(TARGET)
            assert [address for who, address in noted if who is sock] == [TARGET]
