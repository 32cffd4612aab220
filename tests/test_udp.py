"""UDP sockets of one's own through a real Dante: what is sent arrives, and nothing leaves past the proxy."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import gsssocks
from gsssocks import GSSSocket, Proxy, _endpoint
from gsssocks._datagram_socket import DatagramSocket
from gsssocks._endpoint import share_of
from gsssocks.server import ProxyServer
from tests.peers.binding import SOON
from tests.peers.dante import Dante
from tests.peers.datagrams import UDPEcho, udp_socket
from tests.peers.host import PATIENCE_SECONDS, Host
from tests.peers.targets import octets
from tests.test_fork import Child

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from gsssocks._udp import Dropped
    from gsssocks.testing import Realm

pytestmark = pytest.mark.usefixtures("in_the_realm")

# What Kerberos adds to a message (AES-256), by level, and the header in front of it (RFC 1961, section 3.4).
_OVERHEAD = {"integrity": 28 + 4, "confidentiality": 60 + 4}
_UDP_MAXIMUM = 65507
_IPV4_HEADER = 10  # RSV, FRAG, ATYP, address and port (RFC 1928, section 7)


@pytest.fixture(scope="module")
def echo() -> Iterator[UDPEcho]:
    with UDPEcho() as started:
        yield started


def through(dante: Dante, **options: Any) -> Proxy:
    return Proxy.from_url(dante.url(), **{"protection": dante.enctype, **options})


def udp(proxy: Proxy, family: int = socket.AF_INET) -> GSSSocket:
    sock = GSSSocket(family, socket.SOCK_DGRAM, proxy=proxy)
    sock.settimeout(PATIENCE_SECONDS)
    return sock


def dropped(sock: GSSSocket) -> Dropped:
    counted = sock.dropped
    assert counted is not None
    return counted


@pytest.fixture
def proxy(dante_confidentiality: Dante) -> Proxy:
    return through(dante_confidentiality)


@pytest.fixture
def sock(proxy: Proxy) -> Iterator[GSSSocket]:
    with udp(proxy) as made:
        yield made


def test_everything_that_moves_data_is_decided_anew() -> None:
    of_streams = {name for name in vars(GSSSocket) if name.startswith(("send", "recv"))}
    assert of_streams
    assert of_streams <= set(vars(DatagramSocket))


def test_datagrams_of_every_size_come_back(dante: Dante, echo: UDPEcho) -> None:
    largest = _UDP_MAXIMUM - _OVERHEAD[str(dante.enctype)] - _IPV4_HEADER
    with udp(through(dante)) as sock:
        for size in (0, 1, 100, 1400, 1500, 9000, 65000, largest):
            assert sock.sendto(octets(size), echo.address) == size
            assert sock.recvfrom(65535) == (octets(size), echo.address)


def test_larger_than_the_largest_is_refused_with_its_size(dante: Dante, echo: UDPEcho) -> None:
    largest = _UDP_MAXIMUM - _OVERHEAD[str(dante.enctype)] - _IPV4_HEADER
    with udp(through(dante)) as sock:
        with pytest.raises(OSError, match=rf"{largest + 1} octets is too long: {largest} at most") as raised:
            sock.sendto(bytes(largest + 1), echo.address)
        assert raised.value.errno == errno.EMSGSIZE
        sock.sendto(b"still usable", echo.address)
        assert sock.recv(100) == b"still usable"


def test_datagrams_come_from_the_proxy(sock: GSSSocket, echo: UDPEcho) -> None:
    sock.sendto(b"from whom?", echo.address)
    sock.recv(100)
    assert echo.received[-1][0] == b"from whom?"
    assert sock.getsockname()[1] not in echo.senders()


def test_nothing_leaves_without_a_proxy(echo: UDPEcho) -> None:
    before = len(echo.received)
    nobody = udp_socket()
    refusing = Proxy("127.0.0.1", nobody.getsockname()[1])
    with udp(refusing) as sock:
        for call in (
            lambda: sock.sendto(b"leaked", echo.address),
            lambda: sock.sendmsg([b"leaked"], [], 0, echo.address),
            lambda: sock.connect_ex(echo.address) or sock.send(b"leaked"),
            lambda: sock.sendall(b"leaked"),
            lambda: sock.recv(10),
        ):
            with pytest.raises(gsssocks.ProxyConnectionError) as raised:
                call()
            assert isinstance(raised.value, ConnectionRefusedError)
        # It is not connected for the kernel, either.
        with pytest.raises(OSError) as raised_by_kernel:
            os.write(sock.fileno(), b"leaked")
        assert raised_by_kernel.value.errno == errno.EDESTADDRREQ
    nobody.close()
    assert len(echo.received) == before


def test_no_proxy_named_is_an_error(monkeypatch: pytest.MonkeyPatch, echo: UDPEcho) -> None:
    for variable in ("GSSSOCKS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    before = len(echo.received)
    with GSSSocket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises(ValueError, match="no proxy given"):
        sock.sendto(b"leaked", echo.address)
    assert len(echo.received) == before


def test_one_association_serves_all_destinations(sock: GSSSocket, dante_confidentiality: Dante, echo: UDPEcho) -> None:
    before = dante_confidentiality.associations()
    with UDPEcho() as other:
        for _ in range(3):
            for target in (echo, other):
                sock.sendto(b"to both", target.address)
                assert sock.recvfrom(100) == (b"to both", target.address)
    assert dante_confidentiality.associations() == before + 1


class TestConnected:
    def test_sends_and_receives(self, sock: GSSSocket, echo: UDPEcho) -> None:
        sock.connect(echo.address)
        assert sock.getpeername() == echo.address
        for call in (sock.send, sock.sendall, lambda data: sock.sendmsg([data[:2], data[2:]])):
            call(b"hello")
            assert sock.recvfrom(100) == (b"hello", echo.address)

    def test_asks_no_proxy_until_it_sends(self, sock: GSSSocket, dante_confidentiality: Dante, echo: UDPEcho) -> None:
        before = dante_confidentiality.associations()
        sock.connect(echo.address)
        host, port = sock.getsockname()
        assert host == "127.0.0.1"
        assert port
        assert dante_confidentiality.associations() == before

    def test_keeps_its_port_when_it_sends(self, sock: GSSSocket, echo: UDPEcho) -> None:
        sock.connect(echo.address)
        name = sock.getsockname()
        sock.send(b"x")
        sock.recv(1)
        assert sock.getsockname() == name

    def test_hears_its_peer_alone(self, sock: GSSSocket, echo: UDPEcho) -> None:
        with UDPEcho() as other:
            sock.connect(echo.address)
            sock.sendto(b"answered by another", other.address)
            assert select.select([sock], [], [], PATIENCE_SECONDS)[0]
            sock.send(b"answered by the peer")
            assert sock.recv(100) == b"answered by the peer"
        assert dropped(sock).foreign == 1

    def test_can_be_connected_anew(self, sock: GSSSocket, echo: UDPEcho) -> None:
        with UDPEcho() as other:
            for target in (echo, other, echo):
                sock.connect(target.address)
                assert sock.getpeername() == target.address
                sock.send(b"who is it?")
                assert sock.recvfrom(100) == (b"who is it?", target.address)

    def test_to_a_name(self, sock: GSSSocket, echo: UDPEcho) -> None:
        sock.connect(("localhost", echo.port))
        sock.send(b"resolved there")
        assert sock.recvfrom(100) == (b"resolved there", echo.address)

    def test_connect_ex(self, sock: GSSSocket, echo: UDPEcho) -> None:
        assert sock.connect_ex(echo.address) == 0
        sock.send(b"hello")
        assert sock.recv(100) == b"hello"


def test_name_is_resolved_by_the_proxy(sock: GSSSocket, echo: UDPEcho) -> None:
    sock.sendto(b"resolved there", ("localhost", echo.port))
    assert sock.recvfrom(100) == (b"resolved there", echo.address)


class TestFamilies:
    def test_ipv6_destination(self, proxy: Proxy, echo: UDPEcho) -> None:
        with udp(proxy, socket.AF_INET6) as sock:
            sock.sendto(b"six", echo.address6)
            assert sock.recvfrom(100) == (b"six", echo.address6)

    def test_mapped_destination(self, proxy: Proxy, echo: UDPEcho) -> None:
        with udp(proxy, socket.AF_INET6) as sock:
            sock.sendto(b"four", ("::ffff:127.0.0.1", echo.port))
            assert sock.recvfrom(100) == (b"four", ("::ffff:127.0.0.1", echo.port, 0, 0))

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    @pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
    def test_socket_and_relay_of_any_family(self, proxy: Proxy, echo: UDPEcho, host: str, family: int) -> None:
        address = echo.address if family == socket.AF_INET else echo.address6
        with udp(replace(proxy, host=host, target_name="socks@localhost"), family) as sock:
            fd = sock.fileno()
            for _ in range(2):
                sock.sendto(b"across", address)
                assert sock.recvfrom(100) == (b"across", address)
            assert sock.fileno() == fd
            assert sock.family == family
            assert len(sock.getsockname()) == len(address)

    def test_explicit_port_survives_a_relay_of_another_family(self, proxy: Proxy, echo: UDPEcho) -> None:
        with udp(replace(proxy, host="::1", target_name="socks@localhost")) as sock:
            sock.bind(("", 0))
            name = sock.getsockname()
            sock.sendto(b"across", echo.address)
            assert sock.recv(100) == b"across"
            assert sock.getsockname() == name

    def test_duplicates_follow_to_a_relay_of_another_family(self, proxy: Proxy, echo: UDPEcho) -> None:
        with udp(replace(proxy, host="::1", target_name="socks@localhost")) as sock:
            sock.connect(echo.address)
            with sock.dup() as duplicate:
                duplicate.settimeout(PATIENCE_SECONDS)
                for sender, receiver in ((sock, duplicate), (duplicate, sock)):
                    sender.send(b"across")
                    assert receiver.recvfrom(100) == (b"across", echo.address)

    def test_address_of_its_own_cannot_be_kept_then(self, proxy: Proxy, echo: UDPEcho) -> None:
        with udp(replace(proxy, host="::1", target_name="socks@localhost")) as sock:
            sock.bind(("127.0.0.1", 0))
            with pytest.raises(OSError, match="another address family") as raised:
                sock.sendto(b"across", echo.address)
            assert raised.value.errno == errno.EADDRNOTAVAIL


def test_bare_association(dante_clear: Dante, echo: UDPEcho) -> None:
    with udp(through(dante_clear, protection="none")) as sock:
        sock.sendto(b"open to all", echo.address)
        assert sock.recvfrom(100) == (b"open to all", echo.address)
        assert sock.protection == "none"


@pytest.mark.parametrize("mechanism", ["krb5", "spnego"])
@pytest.mark.parametrize("protection", ["integrity", "confidentiality", "selective"])
def test_through_our_own_proxy(realm: Realm, echo: UDPEcho, protection: str, mechanism: str) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(ProxyServer("localhost", keytab=realm.keytab))
        sock = stack.enter_context(udp(Proxy("localhost", server.port, protection=protection, mechanism=mechanism)))
        for size in (0, 1, 1400, 60000):
            sock.sendto(octets(size), echo.address)
            assert sock.recvfrom(65535) == (octets(size), echo.address)
        assert sock.protection == protection


@pytest.mark.parametrize(("kind", "protocol"), [(socket.SOCK_DGRAM, socket.IPPROTO_ICMP), (socket.SOCK_RAW, 1)])
def test_what_is_neither_tcp_nor_udp_is_refused(kind: int, protocol: int) -> None:
    with pytest.raises(OSError) as raised:
        GSSSocket(socket.AF_INET, kind, protocol)
    # What a plain socket says to whom the system does not allow it.
    assert raised.value.errno in (errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EPROTONOSUPPORT)


class TestForgeries:
    """What anybody can send to a UDP port does not come out of it, unless it is the proxy's."""

    def test_plain_datagram_is_dropped(self, sock: GSSSocket, echo: UDPEcho) -> None:
        sock.sendto(b"first", echo.address)
        sock.recv(100)
        stranger = udp_socket()
        stranger.sendto(b"forged", ("127.0.0.1", sock.getsockname()[1]))
        stranger.close()
        sock.sendto(b"second", echo.address)
        assert sock.recv(100) == b"second"
        assert dropped(sock).foreign == 1

    def test_socket_that_does_not_wait_sees_nothing_of_it(self, sock: GSSSocket, echo: UDPEcho) -> None:
        sock.sendto(b"first", echo.address)
        sock.recv(100)
        stranger = udp_socket()
        stranger.sendto(b"forged", ("127.0.0.1", sock.getsockname()[1]))
        stranger.close()
        assert select.select([sock], [], [], PATIENCE_SECONDS)[0]
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)
        assert not select.select([sock], [], [], 0)[0]

    def test_flood_of_it_does_not_hold_up_who_does_not_wait(
        self, sock: GSSSocket, echo: UDPEcho, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_endpoint, "MAX_LOOKS", 3)
        sock.sendto(b"first", echo.address)
        sock.recv(100)
        sock.setblocking(False)
        stranger = udp_socket()
        for _ in range(10):
            stranger.sendto(b"forged", ("127.0.0.1", sock.getsockname()[1]))
        stranger.close()
        with pytest.raises(BlockingIOError):
            sock.recv(100)
        assert dropped(sock).foreign == 4
        assert select.select([sock], [], [], 0)[0]

    @pytest.mark.parametrize("timeout", [None, PATIENCE_SECONDS])
    def test_flood_of_it_ends_no_call_that_may_wait(
        self, sock: GSSSocket, echo: UDPEcho, monkeypatch: pytest.MonkeyPatch, timeout: float | None
    ) -> None:
        monkeypatch.setattr(_endpoint, "MAX_LOOKS", 3)
        sock.sendto(b"first", echo.address)
        sock.recv(100)
        sock.settimeout(timeout)
        stranger = udp_socket()
        for _ in range(10):
            stranger.sendto(b"forged", ("127.0.0.1", sock.getsockname()[1]))
        stranger.close()
        sock.sendto(b"second", echo.address)
        assert sock.recv(100) == b"second"

    def test_timeout_ends_in_the_middle_of_a_flood(self, sock: GSSSocket, echo: UDPEcho) -> None:
        sock.sendto(b"first", echo.address)
        sock.recv(100)
        sock.settimeout(SOON)
        here, done = ("127.0.0.1", sock.getsockname()[1]), threading.Event()
        stranger = udp_socket()

        def flood() -> None:
            while not done.is_set():
                stranger.sendto(b"forged", here)

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            with pytest.raises(socket.timeout):
                sock.recv(100)
        finally:
            done.set()
            flooding.join()
            stranger.close()


class TestControlConnection:
    """The association lives as long as the TCP connection over which it was asked for."""

    @pytest.fixture
    def own_dante(self, realm: Realm) -> Iterator[Dante]:
        with Dante(realm, enctype="integrity") as started:
            yield started

    def test_its_end_is_told_to_who_sends(self, own_dante: Dante, echo: UDPEcho) -> None:
        with udp(through(own_dante)) as sock:
            sock.sendto(b"x", echo.address)
            sock.recv(1)
            own_dante.stop()
            await_end(sock)
            with pytest.raises(ConnectionResetError, match="has ended the association"):
                sock.sendto(b"x", echo.address)
            with pytest.raises(ConnectionRefusedError):
                sock.sendto(b"x", echo.address)

    def test_its_end_is_told_to_who_receives(self, own_dante: Dante, echo: UDPEcho) -> None:
        with udp(through(own_dante)) as sock:
            sock.sendto(b"x", echo.address)
            sock.recv(1)
            own_dante.stop()
            with pytest.raises(ConnectionResetError, match="has ended the association"):
                sock.recv(1)

    @pytest.mark.parametrize("timeout", [None, PATIENCE_SECONDS])
    def test_its_end_wakes_who_waits(self, own_dante: Dante, echo: UDPEcho, timeout: float | None) -> None:
        outcome: list[OSError] = []

        def wait(sock: GSSSocket) -> None:
            try:
                sock.recv(1)
            except OSError as error:
                outcome.append(error)

        with udp(through(own_dante)) as sock:
            sock.settimeout(timeout)
            sock.sendto(b"x", echo.address)
            sock.recv(1)
            waiter = threading.Thread(target=wait, args=(sock,))
            waiter.start()
            own_dante.stop()
            waiter.join(PATIENCE_SECONDS)
            assert not waiter.is_alive()
        assert isinstance(outcome[0], ConnectionResetError)

    def test_another_is_asked_for_afterwards(self, dante_integrity: Dante, echo: UDPEcho) -> None:
        with Cutter(dante_integrity) as cutter, udp(replace(through(dante_integrity), port=cutter.port)) as sock:
            for _ in range(3):
                sock.sendto(b"x", echo.address)
                assert sock.recvfrom(10) == (b"x", echo.address)
                cutter.cut()
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
            sock.close()

    def test_ends_with_the_socket(self, dante_integrity: Dante, echo: UDPEcho) -> None:
        with Cutter(dante_integrity) as cutter:
            with udp(replace(through(dante_integrity), port=cutter.port)) as sock:
                sock.sendto(b"x", echo.address)
                sock.recv(1)
                duplicate = sock.dup()
            duplicate.sendto(b"y", echo.address)
            assert duplicate.recv(1) == b"y"
            duplicate.close()
            assert cutter.ended_by_client()

    def test_last_datagram_of_a_socket_that_is_closed_arrives(self, proxy: Proxy) -> None:
        target = udp_socket()
        target.settimeout(PATIENCE_SECONDS)
        for number in range(5):
            with udp(proxy) as sock:
                sock.sendto(b"%d" % number, target.getsockname())
            assert target.recv(10) == b"%d" % number
        target.close()

    @pytest.mark.parametrize("ending", ["", "sock.close()", "del sock", "sys.exit()"])
    def test_last_datagram_of_a_program_arrives(self, realm: Realm, proxy: Proxy, ending: str) -> None:
        target = udp_socket()
        target.settimeout(PATIENCE_SECONDS)
        program = f"""
import socket, sys, gsssocks
sock = gsssocks.GSSSocket(socket.AF_INET, socket.SOCK_DGRAM, proxy={proxy.url!r})
sock.sendto(b"last words", {target.getsockname()!r})
{ending}
"""
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            timeout=PATIENCE_SECONDS,
            env={**os.environ, **realm.env},
            cwd=Path(__file__).parents[1],
        )
        assert target.recv(100) == b"last words"
        target.close()

    def test_ends_with_a_forgotten_socket(self, dante_integrity: Dante, echo: UDPEcho) -> None:
        with Cutter(dante_integrity) as cutter:
            sock = udp(replace(through(dante_integrity), port=cutter.port))
            sock.sendto(b"x", echo.address)
            sock.recv(1)
            with pytest.warns(ResourceWarning, match="unclosed <gsssocks._socket.GSSSocket"):
                del sock
            assert cutter.ended_by_client()


def await_end(sock: socket.socket) -> None:
    """Waits until the end of the control connection has arrived."""
    share = share_of(sock)
    assert share is not None
    (association,) = share.endpoint.associations
    assert select.select([association.control], [], [], PATIENCE_SECONDS)[0]


class Cutter:
    """Passes control connections on to Dante, until they are cut or end."""

    def __init__(self, dante: Dante) -> None:
        self._dante = dante
        self._cut, self._cutting = os.pipe()
        self._host = Host(self._pass_on)

    def __enter__(self) -> Cutter:
        self._host.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._host.__exit__(kind, error, traceback)
        os.close(self._cut)
        os.close(self._cutting)

    @property
    def port(self) -> int:
        return self._host.address[1]

    def cut(self) -> None:
        """Closes the connection that there is, and waits until that has happened."""
        os.write(self._cutting, b"x")
        assert self._host.result() == "cut"

    def ended_by_client(self) -> bool:
        """Waits until the connection that there is ends; whether the client ended it."""
        return self._host.result() == "ended"

    def _pass_on(self, client: socket.socket) -> str:
        with socket.create_connection(("127.0.0.1", self._dante.port)) as server:
            while True:
                ready, _, _ = select.select([self._cut, client.fileno(), server.fileno()], [], [])
                if self._cut in ready:
                    os.read(self._cut, 1)
                    return "cut"
                for source, sink in ((client, server), (server, client)):
                    if source.fileno() in ready:
                        piece = source.recv(65536)
                        if not piece:
                            return "ended"
                        sink.sendall(piece)


class TestSharing:
    def test_duplicate_goes_through_the_same_association(
        self, sock: GSSSocket, dante_confidentiality: Dante, echo: UDPEcho
    ) -> None:
        sock.sendto(b"one", echo.address)
        sock.recv(100)
        before = dante_confidentiality.associations()
        with sock.dup() as duplicate:
            duplicate.settimeout(PATIENCE_SECONDS)
            duplicate.sendto(b"two", echo.address)
            assert sock.recv(100) == b"two"
        assert dante_confidentiality.associations() == before

    def test_descriptor_that_comes_back_finds_its_association(
        self, sock: GSSSocket, dante_confidentiality: Dante, echo: UDPEcho
    ) -> None:
        sock.sendto(b"one", echo.address)
        sock.recv(100)
        before = dante_confidentiality.associations()
        with GSSSocket(fileno=os.dup(sock.fileno())) as again:
            again.settimeout(PATIENCE_SECONDS)
            again.sendto(b"two", echo.address)
            assert again.recvfrom(100) == (b"two", echo.address)
        assert dante_confidentiality.associations() == before

    def test_bare_descriptor_is_not_handed_out(self, sock: GSSSocket) -> None:
        with pytest.raises(OSError, match="cannot be detached") as raised:
            sock.detach()
        assert raised.value.errno == errno.EOPNOTSUPP

    def test_one_thread_sends_and_another_receives(self, sock: GSSSocket, echo: UDPEcho) -> None:
        count, window = 2000, threading.Semaphore(32)
        received: list[bytes] = []

        def receive() -> None:
            while len(received) < count:
                received.append(sock.recv(2000))
                window.release()

        sock.sendto(b"", echo.address)
        sock.recv(1)
        receiver = threading.Thread(target=receive)
        receiver.start()
        for number in range(count):
            window.acquire()
            sock.sendto(octets(number % 1500, number), echo.address)
        receiver.join(PATIENCE_SECONDS)
        assert received == [octets(number % 1500, number) for number in range(count)]

    def test_first_datagrams_of_several_threads_share_an_association(
        self, sock: GSSSocket, dante_confidentiality: Dante, echo: UDPEcho
    ) -> None:
        before = dante_confidentiality.associations()
        threads = [threading.Thread(target=sock.sendto, args=(b"x", echo.address)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [sock.recv(1) for _ in threads] == [b"x"] * 8
        assert dante_confidentiality.associations() == before + 1

    def test_child_goes_on_alone(self, sock: GSSSocket, echo: UDPEcho) -> None:
        sock.sendto(b"parent", echo.address)
        sock.recv(100)

        def exchange() -> bytes:
            sock.sendto(b"child", echo.address)
            return sock.recv(100)

        assert Child(exchange).result() == b"child"

    def test_parent_goes_on_when_the_child_has_ended(self, sock: GSSSocket, echo: UDPEcho) -> None:
        sock.sendto(b"parent", echo.address)
        sock.recv(100)
        assert Child(sock.close).result() is None
        sock.sendto(b"parent", echo.address)
        assert sock.recv(100) == b"parent"


class TestWithoutWaiting:
    """A socket that does not wait asks for its association all the same: nothing outside the call could go on."""

    def test_select_tells_of_an_answer(self, sock: GSSSocket, echo: UDPEcho) -> None:
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)
        sock.sendto(b"hello", echo.address)
        assert select.select([sock], [], [], PATIENCE_SECONDS)[0]
        assert sock.recv(100) == b"hello"
        assert not select.select([sock], [], [], 0)[0]

    def test_edges_of_epoll(self, sock: GSSSocket, echo: UDPEcho) -> None:
        sock.setblocking(False)
        with select.epoll() as epoll:
            epoll.register(sock, select.EPOLLIN | select.EPOLLET)
            for number in range(5):
                sock.sendto(b"%d" % number, echo.address)
                assert epoll.poll(PATIENCE_SECONDS)
                assert sock.recv(100) == b"%d" % number
                with pytest.raises(BlockingIOError):
                    sock.recv(100)


@pytest.mark.parametrize("host", ["224.0.0.251", "255.255.255.255", "<broadcast>"])
def test_datagrams_to_many_are_refused(sock: GSSSocket, host: str) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    with pytest.raises(gsssocks.ProxyError, match="cannot be sent through the proxy") as raised:
        sock.sendto(b"everybody", (host, 5353))
    assert raised.value.errno == errno.EOPNOTSUPP


def test_address_with_a_zone_cannot_be_asked_for(proxy: Proxy) -> None:
    with udp(proxy, socket.AF_INET6) as sock:
        with pytest.raises(gsssocks.ProxyConnectionError, match="has a zone") as raised:
            sock.sendto(b"near", ("fe80::1%lo", 9))
        assert raised.value.errno == errno.EADDRNOTAVAIL


def test_tunnel_is_told_about(proxy: Proxy, echo: UDPEcho) -> None:
    with udp(proxy) as sock:
        assert (sock.tunnel, sock.protection, sock.get_proxy_sockname()) == (None, None, None)
    with udp(proxy) as sock:
        sock.sendto(b"hello", echo.address)
        sock.recv(100)
        assert sock.protection == "confidentiality"
        info = sock.tunnel
        assert info is not None
        assert (info.octets_sent, info.octets_received) == (5, 5)
        assert info.granted is not None
        assert not info.granted.sequence
