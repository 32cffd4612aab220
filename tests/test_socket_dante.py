"""Sockets through Dante, a SOCKS server that is not ours, at both of the RFC's protection levels."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import pytest
import socks

import gsssocks
from gsssocks import GSSSocket, Proxy, ReplyError
from tests.peers.dante import Dante
from tests.peers.host import PATIENCE_SECONDS, Host, received_until_end
from tests.peers.receiving import receive_exactly
from tests.peers.relay import CountingRelay
from tests.peers.targets import octets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gsssocks.testing import Realm
    from tests.peers.targets import EchoServer

pytestmark = pytest.mark.usefixtures("in_the_realm")


@pytest.fixture
def proxy(dante: Dante) -> Proxy:
    """Dante at one level, and then at the other; the client asks for that one."""
    return Proxy.from_url(dante.url(protection=dante.enctype))


@pytest.fixture
def sock(proxy: Proxy, echo: EchoServer) -> Iterator[GSSSocket]:
    """A connection to an echo server."""
    with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy) as connected:
        yield connected


def echoes(sock: socket.socket, data: bytes = b"ping") -> bool:
    sock.sendall(data)
    return receive_exactly(sock, len(data)) == data


class TestData:
    def test_echo(self, sock: GSSSocket) -> None:
        assert echoes(sock, b"hello")

    @pytest.mark.parametrize("size", [1, 65475, 65476, 65507, 65508, 300_000])
    def test_echo_around_the_limits_of_a_message(self, sock: GSSSocket, size: int) -> None:
        with ThreadPoolExecutor() as threads:
            sending = threads.submit(sock.sendall, octets(size))
            assert receive_exactly(sock, size) == octets(size)
            sending.result()

    def test_megabytes_in_both_directions_at_once(self, sock: GSSSocket) -> None:
        size = 4 << 20
        with ThreadPoolExecutor() as threads:
            sending = threads.submit(sock.sendall, octets(size))
            received = hashlib.sha256()
            remaining = size
            while remaining:
                piece = sock.recv(min(remaining, 1 << 16))
                assert piece
                received.update(piece)
                remaining -= len(piece)
            sending.result()
        assert received.digest() == hashlib.sha256(octets(size)).digest()

    def test_recv_takes_no_more_than_it_was_asked_for(self, sock: GSSSocket) -> None:
        sock.sendall(b"abcdef")
        assert [sock.recv(1), sock.recv(2), sock.recv(3)] == [b"a", b"bc", b"def"]

    def test_recv_into(self, sock: GSSSocket) -> None:
        sock.sendall(b"abcdef")
        buffer = bytearray(10)
        assert sock.recv_into(buffer, 4) == 4
        assert sock.recv_into(memoryview(buffer)[4:]) == 2
        assert buffer == b"abcdef\0\0\0\0"

    def test_peek_leaves_the_octets(self, sock: GSSSocket) -> None:
        sock.sendall(b"abc")
        assert sock.recv(1, socket.MSG_PEEK) == b"a"
        assert sock.recv(10, socket.MSG_WAITALL | socket.MSG_PEEK)[:1] == b"a"
        assert receive_exactly(sock, 3) == b"abc"

    def test_file_over_the_socket(self, sock: GSSSocket) -> None:
        with sock.makefile("rwb") as file:
            file.write(b"first line\nsecond line\nrest")
            file.flush()
            assert file.readline() == b"first line\n"
            assert file.readline() == b"second line\n"
            assert file.read(4) == b"rest"

    def test_text_file_over_the_socket(self, sock: GSSSocket) -> None:
        with sock.makefile("rw", encoding="utf-8", newline="\n") as file:
            file.write("größer\n")
            file.flush()
            assert file.readline() == "größer\n"

    def test_sendfile(self, sock: GSSSocket, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(octets(100_000))
        with open(tmp_path / "file", "rb") as file, ThreadPoolExecutor() as threads:
            sending = threads.submit(sock.sendfile, file)
            assert receive_exactly(sock, 100_000) == octets(100_000)
            assert sending.result() == 100_000

    def test_sendmsg_and_recvmsg(self, sock: GSSSocket) -> None:
        assert sock.sendmsg([b"one ", b"", bytearray(b"two")]) == 7
        assert sock.recv(1) == b"o"
        first, second = bytearray(3), bytearray(10)
        received, ancillary, flags, _ = sock.recvmsg_into([first, second])
        assert (first + second)[:received] == b"ne two"[:received]
        assert (ancillary, flags) == ([], 0)


class TestEnd:
    def test_end_of_sending_reaches_the_target_and_its_data_us(self, sock: GSSSocket) -> None:
        sock.sendall(b"the last words")
        sock.shutdown(socket.SHUT_WR)
        assert received_until_end(sock) == b"the last words"
        with pytest.raises(BrokenPipeError):
            sock.send(b"more")

    def test_end_of_the_target_is_the_end_of_the_data(self, proxy: Proxy) -> None:
        with (
            Host(lambda connection: connection.sendall(b"bye")) as target,
            gsssocks.create_connection(target.address, PATIENCE_SECONDS, proxy=proxy) as sock,
        ):
            assert received_until_end(sock) == b"bye"
            assert sock.recv(100) == b""

    def test_the_warning_of_one_that_was_not_closed_names_the_target(self, proxy: Proxy, echo: EchoServer) -> None:
        connected = [gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy)]
        with pytest.warns(ResourceWarning, match=re.escape(f"raddr={echo.address}")):
            connected.clear()

    def test_close_ends_the_targets_stream(self, proxy: Proxy) -> None:
        with Host(received_until_end) as target:
            with gsssocks.create_connection(target.address, PATIENCE_SECONDS, proxy=proxy) as sock:
                sock.sendall(b"all there is")
            assert target.result() == b"all there is"

    def test_closed_socket_is_closed(self, sock: GSSSocket) -> None:
        sock.close()
        assert sock.fileno() == -1
        with pytest.raises(OSError, match="file descriptor"):
            sock.recv(1)


class TestTimeout:
    def test_recv_times_out_and_the_data_is_not_lost(self, proxy: Proxy) -> None:
        said_nothing = threading.Event()

        def late(connection: socket.socket) -> None:
            assert said_nothing.wait(PATIENCE_SECONDS)
            connection.sendall(b"late")

        with (
            Host(late) as target,
            gsssocks.create_connection(target.address, PATIENCE_SECONDS, proxy=proxy) as sock,
        ):
            sock.settimeout(0.05)
            with pytest.raises(socket.timeout):
                sock.recv(4)
            said_nothing.set()
            sock.settimeout(PATIENCE_SECONDS)
            assert receive_exactly(sock, 4) == b"late"

    def test_non_blocking_recv(self, sock: GSSSocket) -> None:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        sock.send(b"x")
        assert select.select([sock], [], [], PATIENCE_SECONDS)[0] == [sock]
        assert sock.recv(1) == b"x"

    def test_non_blocking_connect(self, proxy: Proxy, echo: EchoServer) -> None:
        with GSSSocket(proxy=proxy) as sock:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError) as caught:
                sock.connect(echo.address)
            assert caught.value.errno == errno.EINPROGRESS
            assert select.select([], [sock], [], PATIENCE_SECONDS)[1] == [sock]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            assert sock.connect_ex(echo.address) == errno.EISCONN
            sock.settimeout(PATIENCE_SECONDS)
            assert echoes(sock)

    def test_default_timeout(self, proxy: Proxy, echo: EchoServer) -> None:
        socket.setdefaulttimeout(PATIENCE_SECONDS)
        try:
            with gsssocks.create_connection(echo.address, proxy=proxy) as sock:
                assert sock.gettimeout() == PATIENCE_SECONDS
        finally:
            socket.setdefaulttimeout(None)


class TestNames:
    def test_peer_is_the_target(self, sock: GSSSocket, echo: EchoServer) -> None:
        assert sock.getpeername() == echo.address
        assert sock.get_proxy_peername() == echo.address

    def test_own_name_is_what_the_target_sees(self, proxy: Proxy) -> None:
        with (
            Host(lambda connection: connection.getpeername()) as target,
            gsssocks.create_connection(target.address, PATIENCE_SECONDS, proxy=proxy) as sock,
        ):
            assert target.result() == sock.getsockname() == sock.get_proxy_sockname()

    def test_own_name_is_the_address_that_was_bound(self, proxy: Proxy, echo: EchoServer) -> None:
        with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, ("127.0.0.1", 0), proxy=proxy) as sock:
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(sock.getsockname())
            assert sock.getsockname() != sock.get_proxy_sockname()

    def test_name_of_the_target_is_resolved_by_the_proxy(self, proxy: Proxy, echo: EchoServer) -> None:
        port = echo.address[1]
        with gsssocks.create_connection(("localhost", port), PATIENCE_SECONDS, proxy=proxy) as sock:
            assert sock.getpeername() == ("localhost", port)
            assert echoes(sock)

    def test_before_there_is_a_connection(self, proxy: Proxy) -> None:
        with GSSSocket(proxy=proxy) as sock:
            assert sock.get_proxy_sockname() is None
            assert sock.get_proxy_peername() is None
            with pytest.raises(OSError, match="not connected"):
                sock.getpeername()

    def test_pysocks_way(self, proxy: Proxy, echo: EchoServer) -> None:
        with GSSSocket() as sock:
            sock.settimeout(PATIENCE_SECONDS)
            sock.set_proxy(socks.SOCKS5, proxy.host, proxy.port, protection=proxy.protection)
            sock.connect(echo.address)
            assert echoes(sock)
            assert sock.get_proxy_peername() == echo.address


class TestFamilies:
    """A proxy of either address family is reached under the same descriptor, whatever kernel socket that takes."""

    @pytest.mark.parametrize(
        ("family", "proxy_host"), [(socket.AF_INET6, "127.0.0.1"), (socket.AF_INET, "::1"), (socket.AF_INET6, "::1")]
    )
    def test_socket_and_proxy_of_any_two(
        self, proxy: Proxy, echo: EchoServer, echo_ipv6: EchoServer, family: int, proxy_host: str
    ) -> None:
        there = Proxy(proxy_host, proxy.port, target_name="socks@localhost", protection=proxy.protection)
        target = echo if family == socket.AF_INET else echo_ipv6
        with GSSSocket(family, proxy=there) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            fd = sock.fileno()
            sock.connect(target.address)
            assert sock.fileno() == fd
            assert sock.family == family
            assert sock.getpeername()[:2] == target.address
            assert echoes(sock)

    def test_ipv4_socket_reaches_an_ipv6_target(self, proxy: Proxy, echo_ipv6: EchoServer) -> None:
        with gsssocks.create_connection(echo_ipv6.address, PATIENCE_SECONDS, proxy=proxy) as sock:
            assert echoes(sock)

    def test_options_are_kept(self, proxy: Proxy, echo_ipv6: EchoServer) -> None:
        there = Proxy("127.0.0.1", proxy.port, target_name="socks@localhost", protection=proxy.protection)
        with GSSSocket(socket.AF_INET6, proxy=there) as sock:
            set_options(sock)
            sock.settimeout(PATIENCE_SECONDS)
            os.set_inheritable(sock.fileno(), True)
            before = options(sock)
            sock.connect(echo_ipv6.address)
            assert options(sock) == before
            assert os.get_inheritable(sock.fileno())
            assert sock.gettimeout() == PATIENCE_SECONDS


class Option(NamedTuple):
    level: int
    name: int
    value: int


OPTIONS = [
    Option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    Option(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
    Option(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000),
    Option(socket.SOL_SOCKET, socket.SO_RCVBUF, 60_000),
    Option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    Option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
    Option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 7),
    Option(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    Option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 12_345),
]
LINGER = b"\x01\0\0\0\x07\0\0\0"


def set_options(sock: socket.socket) -> None:
    for level, name, value in OPTIONS:
        sock.setsockopt(level, name, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)


def options(sock: socket.socket) -> list[object]:
    values: list[object] = [sock.getsockopt(level, name) for level, name, _ in OPTIONS]
    return [*values, sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(LINGER))]


class TestFailedConnect:
    def test_refused_target(self, proxy: Proxy, nobody: tuple[str, int]) -> None:
        with pytest.raises(ReplyError, match="refused by the target") as caught:
            gsssocks.create_connection(nobody, PATIENCE_SECONDS, proxy=proxy)
        assert isinstance(caught.value, ConnectionRefusedError)
        assert caught.value.code == 5

    def test_connect_ex_to_a_refused_target(self, proxy: Proxy, nobody: tuple[str, int]) -> None:
        with GSSSocket(proxy=proxy) as sock:
            assert sock.connect_ex(nobody) == errno.ECONNREFUSED

    def test_same_socket_connects_again(self, proxy: Proxy, nobody: tuple[str, int], echo: EchoServer) -> None:
        with GSSSocket(proxy=proxy) as sock:
            sock.settimeout(PATIENCE_SECONDS)
            fd = sock.fileno()
            for _ in range(3):
                assert sock.connect_ex(nobody) == errno.ECONNREFUSED
            assert sock.connect_ex(echo.address) == 0
            assert sock.fileno() == fd
            assert echoes(sock)

    def test_options_are_kept(self, proxy: Proxy, nobody: tuple[str, int]) -> None:
        with GSSSocket(proxy=proxy) as sock:
            set_options(sock)
            before = options(sock)
            assert sock.connect_ex(nobody) == errno.ECONNREFUSED
            assert options(sock) == before

    def test_patched_socket_is_plain_again(self, proxy: Proxy, nobody: tuple[str, int], echo: EchoServer) -> None:
        with gsssocks.installed(proxy, no_proxy=[]), socket.socket() as sock:
            assert sock.connect_ex(nobody) == errno.ECONNREFUSED
            assert type(sock) is socket.socket
            sock.connect(echo.address)
            assert isinstance(sock, GSSSocket)
            assert echoes(sock)

    def test_connected_socket_does_not_connect_again(self, sock: GSSSocket, echo: EchoServer) -> None:
        assert sock.connect_ex(echo.address) == errno.EISCONN
        assert echoes(sock)


class TestDuplicates:
    def test_both_are_the_same_connection(self, sock: GSSSocket) -> None:
        with sock.dup() as duplicate:
            assert duplicate.fileno() != sock.fileno()
            assert duplicate.getpeername() == sock.getpeername()
            sock.sendall(b"by one ")
            duplicate.sendall(b"by the other")
            assert receive_exactly(duplicate, 7) == b"by one "
            assert receive_exactly(sock, 12) == b"by the other"

    def test_one_outlives_the_other(self, sock: GSSSocket) -> None:
        duplicate = sock.dup()
        sock.close()
        with duplicate:
            duplicate.settimeout(PATIENCE_SECONDS)
            assert echoes(duplicate)

    @pytest.mark.parametrize("kind", [GSSSocket, socket.socket])
    def test_descriptor_in_a_new_object(self, proxy: Proxy, sock: GSSSocket, kind: type[socket.socket]) -> None:
        with gsssocks.installed(proxy), kind(fileno=os.dup(sock.fileno())) as other:
            assert isinstance(other, GSSSocket)
            other.settimeout(PATIENCE_SECONDS)  # the descriptor, of a socket with a timeout, does not wait by itself
            assert echoes(other)


class TestOtherForms:
    def test_in_turn(self, proxy: Proxy, echo: EchoServer) -> None:
        slow = Proxy(proxy.host, proxy.port, protection=proxy.protection, pipelined=False)
        with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=slow) as sock:
            assert echoes(sock)

    def test_nec(self, realm: Realm, echo: EchoServer) -> None:
        with (
            Dante(realm, enctype="confidentiality", nec=True) as dante,
            gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=dante.url(nec="true")) as sock,
        ):
            assert echoes(sock)

    def test_level_none(self, dante_clear: Dante, echo: EchoServer) -> None:
        url = dante_clear.url(protection="none")
        with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=url) as sock:
            assert echoes(sock, octets(100_000))

    def test_level_that_dante_does_not_allow(self, dante_integrity: Dante, echo: EchoServer) -> None:
        with pytest.raises(gsssocks.ProtectionError, match=r"level 'confidentiality'.*try another protection="):
            gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=dante_integrity.url())

    def test_dante_without_gssapi(self, dante_none: Dante, echo: EchoServer) -> None:
        with pytest.raises(gsssocks.AuthenticationError, match="does not offer GSS-API"):
            gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=dante_none.url())

    def test_patched(self, proxy: Proxy, echo: EchoServer) -> None:
        with gsssocks.installed(proxy, no_proxy=[]):
            sock = socket.create_connection(echo.address, PATIENCE_SECONDS)
        with sock:
            assert isinstance(sock, GSSSocket)
            assert echoes(sock)


class TestMany:
    def test_one_after_another(self, proxy: Proxy, echo: EchoServer) -> None:
        before = open_descriptors()
        for number in range(200):
            with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy) as sock:
                assert echoes(sock, b"%d" % number)
        until_descriptors_are(before)

    def test_failures_one_after_another(self, proxy: Proxy, nobody: tuple[str, int]) -> None:
        before = open_descriptors()
        for _ in range(50):
            with pytest.raises(ReplyError):
                gsssocks.create_connection(nobody, PATIENCE_SECONDS, proxy=proxy)
        until_descriptors_are(before)

    def test_fifty_at_once(self, proxy: Proxy, echo: EchoServer) -> None:
        all_connected = threading.Barrier(50)

        def one(number: int) -> bool:
            data = octets(100_000, number)
            with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy) as sock:
                all_connected.wait(PATIENCE_SECONDS)
                sending = threading.Thread(target=sock.sendall, args=(data,))
                sending.start()
                received = receive_exactly(sock, len(data))
                sending.join()
                return received == data

        before = open_descriptors()
        with ThreadPoolExecutor(50) as threads:
            assert all(threads.map(one, range(50)))
        until_descriptors_are(before)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def until_descriptors_are(before: set[str]) -> None:
    """The targets are threads of this process, which close their ends a moment after us."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(open_descriptors()) > len(before):
        assert time.monotonic() < deadline, "descriptors are left open"
        time.sleep(0.01)


class TestRoundTrips:
    """One to connect to the proxy, which a relay does not see, and one for each two flights."""

    def flights(self, dante: Dante, echo: EchoServer, *, pipelined: bool = True) -> list[str]:
        with CountingRelay(("127.0.0.1", dante.port)) as relay:
            proxy = Proxy("localhost", relay.port, protection=dante.enctype or "", pipelined=pipelined)
            with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy):
                pass
        (flights,) = relay.flights
        return flights

    def test_two_for_the_negotiation(self, dante: Dante, echo: EchoServer) -> None:
        assert self.flights(dante, echo) == ["client", "server"] * 2

    def test_four_where_the_proxy_needs_each_message_in_turn(self, dante: Dante, echo: EchoServer) -> None:
        assert self.flights(dante, echo, pipelined=False) == ["client", "server"] * 4

    def test_first_data_takes_one_more(self, dante: Dante, echo: EchoServer) -> None:
        with CountingRelay(("127.0.0.1", dante.port)) as relay:
            proxy = Proxy("localhost", relay.port, protection=dante.enctype or "")
            with gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy) as sock:
                assert echoes(sock)
        assert relay.flights == [["client", "server"] * 3]
