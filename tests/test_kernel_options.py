"""What the kernel would go by on a plain socket: O_NONBLOCK, SO_RCVTIMEO and SO_SNDTIMEO where the socket object has no
timeout, SO_RCVLOWAT, MSG_WAITALL."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from gsssocks.testing import plain_pair, tunnelled_pair
from tests.peers.beside import PATIENCE_SECONDS, await_arrival, poll

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import PlainPeer, Realm
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer

    Pair = tuple[socket.socket, PlainPeer]

SOON = struct.pack("ll", 0, 50_000)  # struct timeval


@pytest.fixture(params=[plain_pair, tunnelled_pair], ids=["plain", "tunnelled"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A socket without a timeout."""
    sock, peer = request.param(buffers=8192)
    sock.settimeout(None)
    with closing(sock), closing(peer):
        yield sock, peer


def duplicate_does_not_wait(sock: socket.socket) -> None:
    with closing(sock.dup()) as duplicate:
        duplicate.setblocking(False)


def receive_into(sock: socket.socket) -> object:
    return sock.recv_into(bytearray(1))


class TestDescriptorThatDoesNotWait:
    @pytest.fixture(
        autouse=True,
        params=[lambda sock: os.set_blocking(sock.fileno(), False), duplicate_does_not_wait],
        ids=["O_NONBLOCK", "a duplicate"],
    )
    def _not_waiting(self, request: pytest.FixtureRequest, pair: Pair) -> None:
        request.param(pair[0])

    @pytest.mark.parametrize(
        "receive",
        [lambda sock: sock.recv(1), receive_into, lambda sock: sock.recv(1, socket.MSG_PEEK)],
        ids=["recv", "recv_into", "peek"],
    )
    def test_nothing_to_receive(self, pair: Pair, receive: Callable[[socket.socket], object]) -> None:
        with pytest.raises(BlockingIOError):
            receive(pair[0])

    def test_no_room_to_send_all(self, pair: Pair) -> None:
        with pytest.raises(BlockingIOError):
            pair[0].sendall(bytes(3_000_000))

    def test_room_to_send_a_part(self, pair: Pair) -> None:
        assert 0 < pair[0].send(bytes(3_000_000)) < 3_000_000


class TestTimeOfTheKernels:
    def test_to_receive(self, pair: Pair) -> None:
        sock, peer = pair
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, SOON)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        peer.send(b"x")
        await_arrival(sock, peer)
        assert sock.recv(1) == b"x"

    def test_to_send(self, pair: Pair) -> None:
        sock, _ = pair
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, SOON)
        with pytest.raises(BlockingIOError):
            sock.sendall(bytes(3_000_000))

    def test_is_no_concern_of_a_socket_with_a_timeout(self, pair: Pair) -> None:
        sock, _ = pair
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, SOON)
        sock.settimeout(0.2)
        with pytest.raises(socket.timeout):
            sock.recv(1)


def test_longer_timeout_than_poll_can_be_told() -> None:
    # A plain socket of CPython 3.13.0 cannot wait as long.
    sock, peer = tunnelled_pair()
    with closing(sock), closing(peer):
        sock.settimeout(2147483648)
        sending = threading.Thread(target=peer.send, args=(b"x",))
        sending.start()
        assert sock.recv(1) == b"x"
        sending.join()


class TestAllThatIsAskedFor:
    def test_is_waited_for_when_looking(self, pair: Pair) -> None:
        sock, peer = pair
        peer.send(b"abc")
        await_arrival(sock, peer)
        sending = threading.Thread(target=lambda: (peer.write(b"d"), peer.send(b"efgh")))  # type: ignore[func-returns-value]
        sending.start()
        assert sock.recv(6, socket.MSG_PEEK | socket.MSG_WAITALL) == b"abcdef"
        sending.join()
        assert sock.recv(8, socket.MSG_WAITALL) == b"abcdefgh"

    def test_end_of_the_stream_comes_first(self, pair: Pair) -> None:
        sock, peer = pair
        peer.send(b"abc")
        peer.finish()
        assert sock.recv(6, socket.MSG_PEEK | socket.MSG_WAITALL) == b"abc"
        assert sock.recv(6) == b"abc"
        assert sock.recv(6) == b""


class TestLowWaterMark:
    def test_does_not_hide_what_is_left(self, pair: Pair) -> None:
        sock, peer = pair
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
        peer.send(bytes(30))
        await_arrival(sock, peer)
        assert sock.recv(5) == bytes(5)
        assert poll(sock, select.POLLIN, PATIENCE_SECONDS)

    def test_is_as_it_was_set(self, pair: Pair) -> None:
        sock, _ = pair
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 10
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 4) == struct.pack("i", 10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 0)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1

    def test_set_before_connecting(self, through_dante: Dante, echo: EchoServer) -> None:  # noqa: ARG002
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
            sock.settimeout(PATIENCE_SECONDS)
            sock.connect(echo.address)
            sock.sendall(bytes(30))
            assert sock.recv(30, socket.MSG_WAITALL) == bytes(30)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 10


@pytest.mark.parametrize("option", ["TCP_MAXSEG", "TCP_KEEPIDLE", "TCP_USER_TIMEOUT", "TCP_SYNCNT", "TCP_NODELAY"])
def test_what_an_option_is_can_be_set(
    realm: Realm, dante_confidentiality: Dante, echo: EchoServer, option: str
) -> None:
    number = getattr(socket, option)
    with (
        realm.activate(),
        gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=dante_confidentiality.url()) as sock,
    ):
        sock.setsockopt(socket.IPPROTO_TCP, number, sock.getsockopt(socket.IPPROTO_TCP, number))


class TestDatagrams:
    @pytest.fixture
    def tunnelled(self, realm: Realm, dante_confidentiality: Dante) -> Iterator[socket.socket]:
        with (
            realm.activate(),
            gsssocks.GSSSocket(socket.AF_INET, socket.SOCK_DGRAM, proxy=dante_confidentiality.url()) as sock,
        ):
            yield sock

    @pytest.mark.parametrize(
        "prepare",
        [
            lambda sock: os.set_blocking(sock.fileno(), False),
            lambda sock: sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, SOON),
        ],
        ids=["O_NONBLOCK", "SO_RCVTIMEO"],
    )
    def test_nothing_to_receive(self, tunnelled: socket.socket, prepare: Callable[[socket.socket], Any]) -> None:
        prepare(tunnelled)
        with pytest.raises(OSError) as caught:
            tunnelled.recvfrom(1)
        assert caught.value.errno == errno.EAGAIN


CONNECT_AT_EXIT = """
import atexit, sys
import gsssocks

def connect():
    with gsssocks.create_connection(("127.0.0.1", int(sys.argv[1])), 20, proxy=sys.argv[2]) as sock:
        sock.sendall(b"x")
        print(sock.recv(1))

atexit.register(connect)
"""


def test_connecting_when_the_interpreter_ends(realm: Realm, dante_confidentiality: Dante, echo: EchoServer) -> None:
    with realm.activate():
        done = subprocess.run(
            [sys.executable, "-c", CONNECT_AT_EXIT, str(echo.address[1]), dante_confidentiality.url()],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
    assert (done.stdout.strip(), done.stderr) == ("b'x'", "")
