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
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from tests.peers.binding import SOON, listening, peer_of
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly
from tests.peers.targets import octets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer


@pytest.fixture
def tunnel(realm: Realm, dante_confidentiality: Dante, echo: EchoServer) -> Iterator[gsssocks.GSSSocket]:
    """Connected to an echo."""
    with realm.activate():
        connected = gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=dante_confidentiality.url())
        with connected:
            yield connected


class Child:
    """A fork of this process that calls one function, and ends."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._answer, answer = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12 and later warn of threads, of which this process has some: the child needs none of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
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
    wait, go = os.pipe()
    child = Child(lambda: os.read(wait, 1))
    assert talk(tunnel, b"after") == b"after"
    os.write(go, b"x")
    assert child.result() == b"x"
    os.close(wait)
    os.close(go)


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
