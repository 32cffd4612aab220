"""BIND: sockets that listen at Dante."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import selectors
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest

from gsssocks import GSSSocket, ProtectionError, Proxy, ProxyError
from tests.peers.binding import SOON, accepted, await_refusal, exchange, handshake, listening, peer_of, readable
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly
from tests.peers.targets import octets

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trustme

    from tests.peers.dante import Dante

pytestmark = pytest.mark.usefixtures("in_the_realm")


@pytest.fixture
def proxy(dante: Dante) -> Proxy:
    """Dante at one level, and then at the other; the client asks for that one."""
    return Proxy.from_url(dante.url(protection=dante.enctype))


@pytest.fixture
def listener(dante_confidentiality: Dante) -> Iterator[GSSSocket]:
    """Listens at Dante."""
    with listening(Proxy.from_url(dante_confidentiality.url())) as sock:
        yield sock


class TestConnection:
    def test_data_goes_both_ways(self, proxy: Proxy) -> None:
        with listening(proxy) as listener, accepted(listener) as (sock, peer):
            exchange(sock, peer)

    def test_without_protection(self, dante_clear: Dante) -> None:
        with listening(dante_clear.url(protection="none")) as listener, accepted(listener) as (sock, peer):
            exchange(sock, peer)

    def test_megabytes(self, proxy: Proxy) -> None:
        size = 3 << 20
        with listening(proxy) as listener, accepted(listener) as (sock, peer), ThreadPoolExecutor() as threads:
            sock.settimeout(PATIENCE_SECONDS)
            sending = [threads.submit(end.sendall, octets(size)) for end in (sock, peer)]
            for end in (sock, peer):
                assert hashlib.sha256(receive_exactly(end, size)).digest() == hashlib.sha256(octets(size)).digest()
            for done in sending:
                done.result()

    def test_what_the_peer_sends_before_it_is_accepted_is_kept(self, listener: GSSSocket) -> None:
        with peer_of(listener) as peer:
            peer.sendall(b"early")
            peer.shutdown(socket.SHUT_WR)
            assert readable(listener, PATIENCE_SECONDS)
            sock, _ = listener.accept()
            with sock:
                assert receive_exactly(sock, 100) == b"early"

    def test_names_are_those_of_the_proxys_side(self, listener: GSSSocket) -> None:
        with accepted(listener) as (sock, peer):
            assert listener.getsockname()[0] == "127.0.0.1"  # Dante's external address
            assert sock.getsockname() == listener.getsockname() == peer.getpeername()
            assert sock.getpeername() == peer.getsockname()
            assert isinstance(sock, GSSSocket)
            assert (sock.get_proxy_sockname(), sock.get_proxy_peername()) == (sock.getsockname(), sock.getpeername())

    def test_the_connection_tells_of_its_tunnel_the_listening_socket_has_none(self, proxy: Proxy) -> None:
        with listening(proxy) as listener, accepted(listener) as (sock, peer):
            assert (listener.tunnel, listener.protection, listener.get_proxy_peername()) == (None, None, None)
            assert isinstance(sock, GSSSocket)
            assert sock.protection == proxy.protection
            assert sock.tunnel is not None
            assert sock.tunnel.destination == peer.getsockname()

    def test_ipv6(self, dante_same_same: Dante) -> None:
        proxy = Proxy("::1", dante_same_same.port, target_name="socks@localhost")
        with GSSSocket(socket.AF_INET6, proxy=proxy) as listener:
            listener.settimeout(PATIENCE_SECONDS)
            listener.bind(("::", 0))
            listener.listen()
            assert listener.getsockname()[0] == "::1"
            assert len(listener.getsockname()) == 4
            with accepted(listener) as (sock, peer):
                exchange(sock, peer)
                assert sock.getpeername() == peer.getsockname()

    def test_without_bind(self, dante_confidentiality: Dante) -> None:
        with GSSSocket(proxy=dante_confidentiality.url()) as listener:
            listener.listen(1)
            with accepted(listener) as (sock, peer):
                exchange(sock, peer)

    def test_tls(self, listener: GSSSocket, trust: trustme.CA) -> None:
        with accepted(listener) as (sock, peer):
            handshake(lambda context: context.wrap_socket(sock, server_side=True), peer, trust)

    def test_end_of_the_peer(self, listener: GSSSocket) -> None:
        with accepted(listener) as (sock, peer):
            peer.close()
            assert sock.recv(1) == b""

    def test_it_is_as_blocking_and_as_inheritable_as_a_plain_one(self, listener: GSSSocket) -> None:
        with socket.create_server(("127.0.0.1", 0)) as plain:
            for timeout in (PATIENCE_SECONDS, None, 0):
                states = []
                for sock in (plain, listener):
                    sock.settimeout(PATIENCE_SECONDS)
                    sock.listen()
                    with peer_of(sock):
                        assert readable(sock, PATIENCE_SECONDS)
                        sock.settimeout(timeout)
                        connection, _ = sock.accept()
                        with connection:
                            blocking = os.get_blocking(connection.fileno())
                            states.append((connection.gettimeout(), blocking, connection.get_inheritable()))
                assert states[0] == states[1]

    def test_it_has_the_default_timeout(self, listener: GSSSocket) -> None:
        with peer_of(listener):
            socket.setdefaulttimeout(17.0)
            try:
                sock, _ = listener.accept()
            finally:
                socket.setdefaulttimeout(None)
            with sock:
                assert sock.gettimeout() == 17.0


def port_that_nobody_is_given() -> int:
    """A free port that the kernel does not choose by itself, so that it stays free until somebody asks for it."""
    first_chosen = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(first_chosen - 1, 1023, -1):
        with suppress(OSError), socket.socket() as sock:
            sock.bind(("", port))
            return port
    raise AssertionError("this machine has no port to spare")


class TestPort:
    def test_the_port_bound_is_asked_for(self, dante_confidentiality: Dante) -> None:
        port = port_that_nobody_is_given()
        with listening(dante_confidentiality.url(), port) as listener:
            assert listener.getsockname() == ("127.0.0.1", port)
            with accepted(listener) as (sock, peer):
                exchange(sock, peer)

    def test_port_that_somebody_else_has_at_the_proxy(self, dante_confidentiality: Dante) -> None:
        with GSSSocket(proxy=dante_confidentiality.url()) as sock, socket.create_server(("127.0.0.1", 0)) as other:
            wanted = other.getsockname()[1]
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.2", wanted))
            with pytest.raises(ProxyError, match="instead of") as caught:
                sock.listen()
            assert caught.value.errno == errno.EADDRINUSE
            assert sock.getsockname() == ("127.0.0.2", wanted)
            assert type(sock) is GSSSocket


class TestFailure:
    def test_dead_proxy(self, nobody: tuple[str, int]) -> None:
        with GSSSocket(proxy=Proxy(*nobody)) as sock:
            sock.bind(("127.0.0.1", 0))
            name = sock.getsockname()
            for _ in range(2):
                with pytest.raises(ConnectionRefusedError, match="cannot reach the proxy"):
                    sock.listen()
                assert sock.getsockname() == name
            with pytest.raises(OSError, match="Invalid argument"):
                sock.accept()

    def test_level_below_the_one_demanded(self, dante_integrity: Dante) -> None:
        with GSSSocket(proxy=dante_integrity.url(protection="confidentiality")) as sock:
            with pytest.raises(ProtectionError):
                sock.listen()
            assert type(sock) is GSSSocket


class TestWaiting:
    def test_timeout_and_then_a_connection(self, listener: GSSSocket) -> None:
        listener.settimeout(SOON)
        with pytest.raises(socket.timeout, match="timed out"):
            listener.accept()
        listener.settimeout(PATIENCE_SECONDS)
        with accepted(listener) as (sock, peer):
            exchange(sock, peer)

    def test_accept_that_does_not_wait(self, listener: GSSSocket) -> None:
        listener.setblocking(False)
        with pytest.raises(BlockingIOError) as caught:
            listener.accept()
        assert caught.value.errno == errno.EAGAIN
        with peer_of(listener) as peer:
            assert readable(listener, PATIENCE_SECONDS)
            sock, _ = listener.accept()
            with sock:
                exchange(sock, peer)

    def test_listen_of_a_socket_that_does_not_wait(self, dante_confidentiality: Dante) -> None:
        with GSSSocket(proxy=dante_confidentiality.url()) as listener:
            listener.setblocking(False)
            listener.listen()
            assert listener.getblocking() is os.get_blocking(listener.fileno()) is False
            assert listener.getsockname()[1]

    @pytest.mark.parametrize(
        "make",
        [selectors.SelectSelector, selectors.PollSelector, selectors.EpollSelector],
        ids=["select", "poll", "epoll"],
    )
    def test_it_is_readable_when_a_peer_has_connected(
        self, make: Callable[[], selectors.BaseSelector], listener: GSSSocket
    ) -> None:
        with make() as selector:
            selector.register(listener, selectors.EVENT_READ)
            assert not selector.select(SOON)
            with peer_of(listener) as peer:
                assert [key.fileobj for key, _ in selector.select(PATIENCE_SECONDS)] == [listener]
                sock, _ = listener.accept()
                with sock:
                    assert not selector.select(SOON)
                    exchange(sock, peer)

    def test_asyncio(self, listener: GSSSocket) -> None:
        async def serve() -> bytes:
            loop = asyncio.get_running_loop()
            accepting = loop.create_task(loop.sock_accept(listener))
            with await loop.run_in_executor(None, peer_of, listener) as peer:
                sock, _ = await accepting
                with sock:
                    peer.sendall(b"ping")
                    return await loop.sock_recv(sock, 4)

        listener.setblocking(False)
        assert asyncio.run(serve()) == b"ping"

    def test_two_threads_accept_one_connection(self, listener: GSSSocket) -> None:
        with ThreadPoolExecutor() as threads:
            waiting = [threads.submit(listener.accept) for _ in range(2)]
            with peer_of(listener):
                outcomes = sorted(str(type(one.exception())) for one in waiting)
            assert outcomes == ["<class 'NoneType'>", "<class 'OSError'>"]
            for one in waiting:
                if one.exception() is None:
                    one.result()[0].close()


class TestOneConnection:
    """RFC 1928: one request brings one connection."""

    def test_second_accept(self, listener: GSSSocket) -> None:
        with accepted(listener) as (sock, peer):
            with pytest.raises(OSError, match=r"one connection for each BIND .*: call listen\(\)") as caught:
                listener.accept()
            assert caught.value.errno == errno.EINVAL
            exchange(sock, peer)

    def test_a_program_that_goes_by_readiness_waits(self, listener: GSSSocket) -> None:
        listener.setblocking(False)
        with peer_of(listener):
            assert readable(listener, PATIENCE_SECONDS)
            sock, _ = listener.accept()
            with sock:
                assert not readable(listener, SOON)
                with pytest.raises(BlockingIOError):
                    listener.accept()

    def test_it_still_looks_like_a_listening_socket(self, listener: GSSSocket) -> None:
        name = listener.getsockname()
        with accepted(listener):
            assert listener.getsockname() == name
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            with pytest.raises(OSError, match="not connected"):
                listener.getpeername()
            with pytest.raises(OSError) as caught:
                listener.connect(name)
            assert caught.value.errno == errno.EISCONN

    def test_listening_again(self, listener: GSSSocket) -> None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with accepted(listener) as (first, first_peer):
            name = listener.getsockname()
            listener.listen()
            assert listener.getsockname() != name  # Dante does not listen at the same port meanwhile
            with accepted(listener) as (second, second_peer):
                exchange(second, second_peer)
                exchange(first, first_peer)
                assert second.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1

    def test_listen_while_nobody_has_come_changes_nothing(self, listener: GSSSocket) -> None:
        name = listener.getsockname()
        listener.listen(5)
        assert listener.getsockname() == name
        with accepted(listener) as (sock, peer):
            exchange(sock, peer)


class TestEnd:
    def test_closing_ends_the_request(self, listener: GSSSocket) -> None:
        address = listener.getsockname()
        listener.close()
        await_refusal(address)

    def test_connection_outlives_the_listener(self, listener: GSSSocket) -> None:
        with accepted(listener) as (sock, peer):
            listener.close()
            exchange(sock, peer)

    def test_listener_outlives_the_connection(self, listener: GSSSocket) -> None:
        with accepted(listener):
            pass
        listener.listen()
        with accepted(listener) as (sock, peer):
            exchange(sock, peer)

    def test_shutdown_wakes_who_waits(self, listener: GSSSocket) -> None:
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(listener.accept)
            while not waiting.running():
                time.sleep(0.001)
            listener.shutdown(socket.SHUT_RDWR)
            failure = waiting.exception(PATIENCE_SECONDS)
        assert isinstance(failure, OSError)
        assert failure.errno == errno.EINVAL

    def test_listening_after_shutdown(self, listener: GSSSocket) -> None:
        listener.shutdown(socket.SHUT_RD)
        with pytest.raises(OSError, match="Invalid argument"):
            listener.accept()
        listener.listen()
        with accepted(listener) as (sock, peer):
            exchange(sock, peer)

    def test_duplicate_accepts(self, listener: GSSSocket) -> None:
        with listener.dup() as duplicate:
            with accepted(duplicate) as (sock, peer):
                exchange(sock, peer)
                assert not readable(listener, SOON)
            listener.listen()
            with accepted(duplicate) as (sock, peer):
                exchange(sock, peer)

    def test_duplicate_outlives_the_listener(self, listener: GSSSocket) -> None:
        with listener.dup() as duplicate:
            listener.close()
            with accepted(duplicate) as (sock, peer):
                exchange(sock, peer)

    def test_descriptor_is_not_given_away(self, listener: GSSSocket) -> None:
        address = listener.getsockname()
        fd = listener.fileno()
        with pytest.raises(ProxyError, match="bare descriptor") as caught:
            listener.detach()
        assert caught.value.errno == errno.EOPNOTSUPP
        assert listener.fileno() == -1
        os.close(fd)
        await_refusal(address)

    def test_bare_accept_gives_a_plain_connection(self, listener: GSSSocket) -> None:
        with peer_of(listener) as peer:
            fd, address = listener._accept()
            with socket.socket(fileno=fd) as sock:
                assert address == peer.getsockname()
                exchange(sock, peer)


class TestParity:
    """What a plain listening socket refuses, this one refuses too."""

    @pytest.fixture
    def plain(self) -> Iterator[socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            yield sock

    @pytest.mark.parametrize(
        "call",
        [
            lambda sock: sock.recv(1),
            lambda sock: sock.recv_into(bytearray(1)),
            lambda sock: sock.send(b"x"),
            lambda sock: sock.sendall(b"x"),
            lambda sock: sock.getpeername(),
            lambda sock: sock.connect(("127.0.0.1", 9)),
            lambda sock: sock.connect_ex(("127.0.0.1", 9)),
            lambda sock: sock.bind(("127.0.0.1", 0)),
            lambda sock: sock.shutdown(socket.SHUT_WR),
            lambda sock: sock.listen("1"),
            lambda sock: sock.listen(1, 2),
            lambda sock: sock.listen(1 << 40),
            lambda sock: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN),
        ],
    )
    def test_calls(self, call: Callable[[socket.socket], object], plain: socket.socket, listener: GSSSocket) -> None:
        for sock in (plain, listener):
            sock.settimeout(None)
        assert failure(call, listener) == failure(call, plain)

    @pytest.mark.parametrize(
        "prepare",
        [
            lambda sock: os.set_blocking(sock.fileno(), False),
            lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000)),
        ],
        ids=["O_NONBLOCK", "SO_RCVTIMEO"],
    )
    def test_nobody_to_accept_in_the_kernels_time(
        self, prepare: Callable[[socket.socket], None], plain: socket.socket, listener: GSSSocket
    ) -> None:
        for sock in (plain, listener):
            sock.settimeout(None)
            prepare(sock)
            with pytest.raises(BlockingIOError):
                sock.accept()
        with peer_of(listener) as peer:
            assert readable(listener, PATIENCE_SECONDS)
            accepted_here, _ = listener.accept()
            with accepted_here:
                exchange(accepted_here, peer)

    @pytest.mark.parametrize(
        "address", [("127.0.0.1",), ("127.0.0.1", "1"), ("127.0.0.1", 70000), "x", ("192.0.2.1", 0)]
    )
    def test_bind(self, address: Any, dante_confidentiality: Dante) -> None:
        with socket.socket() as plain, GSSSocket(proxy=dante_confidentiality.url()) as sock:
            assert failure(lambda one: one.bind(address), sock) == failure(lambda one: one.bind(address), plain)

    def test_closed(self, listener: GSSSocket) -> None:
        listener.close()
        for call in (listener.accept, listener.listen):
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.EBADF


def failure(call: Callable[[socket.socket], object], sock: socket.socket) -> tuple[object, ...]:
    """What a program can tell of a call's outcome."""
    try:
        return ("value", call(sock))
    except (OSError, TypeError, OverflowError) as error:
        return (type(error), getattr(error, "errno", None), str(error))
