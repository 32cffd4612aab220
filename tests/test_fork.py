"""A tunnel after fork(): whoever uses it alone goes on with it; both at once is found out, and nothing gets through."""

from __future__ import annotations

import os
import pickle
import select
import socket
import subprocess
import sys
import threading
import warnings
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from gsssocks import _relay
from gsssocks.testing import tunnelled_pair
from tests.peers.beside import fill, poll, read_until_writable
from tests.peers.binding import SOON, listening, peer_of
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly
from tests.peers.targets import octets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Realm, TunnelPeer
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer


@pytest.fixture
def tunnel(realm: Realm, dante_confidentiality: Dante, echo: EchoServer) -> Iterator[gsssocks.GSSSocket]:
    """Connected to an echo."""
    with realm.activate():
        connected = gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=dante_confidentiality.url())
        with connected:
            yield connected


def fork() -> int:
    with warnings.catch_warnings():
        # Python 3.12 and later warn of threads, of which this process has some: the child needs none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


class Child:
    """A fork of this process that calls one function, and ends."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._answer, answer = os.pipe()
        self._pid = fork()
        if not self._pid:
            self._run(function, answer)
        os.close(answer)

    @staticmethod
    def _run(function: Callable[[], Any], answer: int) -> None:
        try:
            try:
                outcome = (True, function())
            except BaseException as error:  # noqa: BLE001 - whatever it is, the parent has to know
                outcome = (False, repr(error))
            with open(answer, "wb") as pipe:
                pickle.dump(outcome, pipe)
        finally:
            os._exit(0)

    def result(self) -> Any:
        """What the function returned.

        Raises:
            AssertionError: it failed; the message is the exception.
        """
        with open(self._answer, "rb") as pipe:
            if not select.select([pipe], [], [], PATIENCE_SECONDS)[0]:
                os.kill(self._pid, 9)
            said = pipe.read()
        os.waitpid(self._pid, 0)
        assert said, "the child never answered"
        succeeded, value = pickle.loads(said)
        assert succeeded, value
        return value


def test_child_accepts_though_a_thread_of_its_parent_was_waiting(realm: Realm, dante_confidentiality: Dante) -> None:
    with realm.activate(), listening(dante_confidentiality.url()) as listener:
        waiting = threading.Event()

        def wait_in_vain() -> None:
            listener.settimeout(SOON)
            waiting.set()
            with suppress(TimeoutError, socket.timeout):
                listener.accept()

        def accept_and_echo() -> None:
            listener.settimeout(PATIENCE_SECONDS)
            sock, _ = listener.accept()
            with sock:
                sock.sendall(receive_exactly(sock, 4))

        thread = threading.Thread(target=wait_in_vain)
        thread.start()
        assert waiting.wait(PATIENCE_SECONDS)
        child = Child(accept_and_echo)
        thread.join()
        with peer_of(listener) as peer:
            peer.sendall(b"ping")
            assert receive_exactly(peer, 4) == b"ping"
        child.result()


def talk(tunnel: socket.socket, data: bytes) -> bytes:
    tunnel.sendall(data)
    return received(tunnel, len(data))


def received(tunnel: socket.socket, size: int) -> bytes:
    octets = b""
    while len(octets) < size:
        piece = tunnel.recv(size - len(octets))
        assert piece, "the stream has ended"
        octets += piece
    return octets


def test_child_goes_on_alone(tunnel: gsssocks.GSSSocket) -> None:
    assert talk(tunnel, b"before") == b"before"
    child = Child(lambda: talk(tunnel, octets(200_000)) == octets(200_000))
    assert child.result()


def test_child_may_close_its_copy_and_the_parent_goes_on(tunnel: gsssocks.GSSSocket) -> None:
    assert talk(tunnel, b"before") == b"before"
    Child(tunnel.close).result()
    assert talk(tunnel, octets(200_000)) == octets(200_000)


def test_parent_goes_on_while_the_child_only_exists(tunnel: gsssocks.GSSSocket) -> None:
    with lasting_child():
        assert talk(tunnel, b"after") == b"after"


def test_child_has_what_had_been_received_before(tunnel: gsssocks.GSSSocket) -> None:
    tunnel.sendall(b"hello")
    assert tunnel.recv(1) == b"h"
    assert Child(lambda: received(tunnel, 4)).result() == b"ello"


def test_both_at_once_fail_closed_and_are_told_why(tunnel: gsssocks.GSSSocket) -> None:
    assert talk(tunnel, b"before") == b"before"
    assert Child(lambda: talk(tunnel, b"child")).result() == b"child"

    # Its next message has the number that the child's had: the proxy ends the connection, at the latest with this.
    with pytest.raises(gsssocks.ProxyError, match="fork"):
        talk(tunnel, b"parent")


def test_messages_read_by_the_other_are_missed(tunnel: gsssocks.GSSSocket) -> None:
    assert talk(tunnel, b"before") == b"before"
    tunnel.sendall(b"first")
    assert Child(lambda: received(tunnel, 5)).result() == b"first"
    tunnel.sendall(b"second")
    with pytest.raises(gsssocks.ProxyError, match="fork"):
        tunnel.recv(100)


def test_child_of_a_process_whose_other_thread_waits_in_recv(tunnel: gsssocks.GSSSocket) -> None:
    heard: list[bytes] = []
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        heard.append(tunnel.recv(5))

    reader = threading.Thread(target=wait)
    reader.start()
    assert waiting.wait(PATIENCE_SECONDS)
    # The child must not wait for the lock that a thread of its parent holds, and which no thread of its own releases.
    child = Child(lambda: tunnel.send(b"child") + len(tunnel.getpeername()))
    assert child.result() == 7
    reader.join(PATIENCE_SECONDS)
    assert heard == [b"child"]


def test_subprocess_leaves_the_tunnel_alone(tunnel: gsssocks.GSSSocket) -> None:
    fd = tunnel.fileno()
    program = f"import os\ntry: os.fstat({fd})\nexcept OSError: print('closed')"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "closed\n"
    assert talk(tunnel, b"after") == b"after"


MUCH = octets(200_000)  # more than the buffers of `tight` hold


@pytest.fixture
def descriptor() -> Iterator[int]:
    """The plain end of a tunnel whose peer does not read."""
    sock, peer = tunnelled_pair(buffers=1)
    fd = sock.detach()
    with closing(peer):
        yield fd
    os.close(fd)


def receive_in_vain(sock: socket.socket) -> None:
    sock.settimeout(SOON)
    with pytest.raises(socket.timeout):
        sock.recv(1)


def send_the_rest(sock: socket.socket, data: bytes) -> None:
    sock.settimeout(PATIENCE_SECONDS)
    sock.sendall(data)


@contextmanager
def lasting_child() -> Iterator[None]:
    """A child that does nothing, meanwhile."""
    wait, go = os.pipe()
    child = Child(lambda: os.read(wait, 1))
    try:
        yield
    finally:
        os.write(go, b"x")
        child.result()
        os.close(wait)
        os.close(go)


class TestMessageInLine:
    """A part of a message had left at the fork: the rest is in the line of both processes, and may leave once."""

    @pytest.mark.parametrize(
        "leave_alone",
        [
            lambda sock: sock.close(),
            receive_in_vain,
            lambda sock: Child(sock.close).result(),
        ],
        ids=["closed", "read", "closed by a child of its own"],
    )
    def test_child_that_does_not_send_leaves_it_to_the_parent(
        self, tight: tuple[socket.socket, TunnelPeer], leave_alone: Callable[[socket.socket], None]
    ) -> None:
        sock, peer = tight
        taken = fill(sock, MUCH)
        arrived = read_until_writable(sock, peer)
        Child(lambda: leave_alone(sock)).result()
        sender = threading.Thread(target=send_the_rest, args=(sock, MUCH[taken:]))
        sender.start()
        assert arrived + peer.read_exactly(len(MUCH) - len(arrived)) == MUCH
        sender.join()

    def test_child_that_sends_goes_on_with_it(self, tight: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = tight
        taken = fill(sock, MUCH)
        child = Child(lambda: send_the_rest(sock, MUCH[taken:]))
        assert peer.read_exactly(len(MUCH)) == MUCH
        child.result()

    def test_child_that_shuts_down_goes_on_with_it(self, tight: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = tight
        taken = fill(sock, MUCH)

        def shut_down() -> None:
            sock.shutdown(socket.SHUT_WR)
            while threading.active_count() > 1:
                poll(sock, select.POLLHUP, SOON)

        child = Child(shut_down)
        assert peer.read_to_end() == MUCH[: taken + 1]
        child.result()

    def test_end_is_not_kept_from_the_peer_by_a_child(self, tight: tuple[socket.socket, TunnelPeer]) -> None:
        sock, peer = tight
        taken = fill(sock, MUCH)
        sock.close()
        with lasting_child():
            assert peer.read_to_end() == MUCH[: taken + 1]


class TestPlainEnd:
    """A descriptor that bare octets are written to and read from; threads of the parent carry them."""

    def test_childs_exit_does_not_wait_for_what_the_parent_carries(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        with suppress(BlockingIOError):
            while True:
                os.write(descriptor, MUCH)
        # What the interpreter calls at its end; the rest of that would end this test's peers.
        assert Child(_relay._drain_all).result() is None

    def test_childs_ends_with_the_parent(self) -> None:
        answer, answering = os.pipe()
        parent = fork()
        if not parent:
            sock, _peer = tunnelled_pair()
            fd = sock.detach()
            if not fork() and select.select([fd], [], [], PATIENCE_SECONDS)[0]:
                os.write(answering, b"ended")
            os._exit(0)
        os.waitpid(parent, 0)
        os.close(answering)
        assert os.read(answer, 100) == b"ended"
        os.close(answer)
