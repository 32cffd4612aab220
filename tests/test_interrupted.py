"""Calls on a tunnelled socket that a signal handler or a finalizer interrupts: at every step of the interpreter, by
raising, or by using the same socket.

What an operating system's signal hits by chance is done here at each step in turn.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import select
import signal
import socket
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from gsssocks.testing import tunnelled_pair
from tests.peers.beside import PATIENCE_SECONDS, await_arrival, poll, read_until_writable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from gsssocks.testing import TunnelPeer

pytestmark = pytest.mark.default_python_only

PACKAGE = Path(gsssocks.__file__).parent
MODULES = {
    str(path)
    for name in ("_stream/*.py", "_line.py", "_record.py", "_transport.py", "_flags.py")
    for path in PACKAGE.glob(name)
}
"""Where what a connection's state is made of changes."""
TIGHT = {"buffers": 1, "max_plaintext": 4000}
MUCH = random.Random(1928).randbytes(20_000)
"""More than the buffers of a tight pair hold."""


class StopError(Exception):
    """Raised by a handler."""


def stop() -> None:
    raise StopError


@pytest.fixture(autouse=True, scope="module")
def _let_go_of_what_was_interrupted() -> Iterator[None]:
    """CPython 3.11 leaks an exception where a trace function raises another one on its way out. What its traceback
    holds, sockets among it, would live to the end."""
    yield
    for found in gc.get_objects():
        if isinstance(found, OSError):
            found.__traceback__ = None


class Interruption:
    """Has `handler` called once, before the given step of the interpreter."""

    def __init__(self, step: int, handler: Callable[[], object]) -> None:
        self.happened = False
        self._step = step
        self._handler = handler

    @contextmanager
    def expected(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in MODULES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not self.happened:
            self._step -= 1
            if self._step < 0:
                self.happened = True
                self._handler()
        return self._trace


@contextmanager
def pair(**options: Any) -> Iterator[tuple[socket.socket, TunnelPeer]]:
    sock, peer = tunnelled_pair(**options)
    sock.settimeout(PATIENCE_SECONDS)
    with closing(sock), closing(peer):
        yield sock, peer


def at_each_step(handler: Callable[[socket.socket], object], **options: Any) -> Iterator[tuple[Any, Any, Interruption]]:
    """A new pair for each step, until a call has fewer."""
    for step in count():
        with pair(**options) as (sock, peer):
            interruption = Interruption(step, lambda sock=sock: handler(sock))  # type: ignore[misc]
            yield sock, peer, interruption
            if not interruption.happened:
                return


def received(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "the stream has ended"
        data += piece
    return data


def by_recv(sock: socket.socket, size: int) -> bytes:
    return sock.recv(size)


def by_recv_into(sock: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: sock.recv_into(buffer)])


def what_is_there(sock: socket.socket) -> bytes:
    """All there is to be received, as far as poll() tells."""
    data = b""
    while poll(sock, select.POLLIN):
        data += sock.recv(2)
    return data


def left_after(sock: socket.socket, peer: TunnelPeer, data: bytes) -> bytes:
    """What the peer has read when `data`, sent now, has arrived at the end."""
    read = b""
    while data:
        read += read_until_writable(sock, peer)
        with suppress(BlockingIOError):
            data = data[sock.send(data) :]
    sock.close()
    return read + peer.read_to_end()


class ReadingToEnd(threading.Thread):
    """The peer reads, in a thread."""

    def __init__(self, peer: TunnelPeer) -> None:
        super().__init__()
        self.data = b""
        self._peer = peer

    def run(self) -> None:
        self.data = self._peer.read_to_end()


by_either = pytest.mark.parametrize(
    "call", [lambda sock, data: sock.sendall(data), lambda sock, data: sock.send(data)], ids=["sendall", "send"]
)


class TestHandlerThatRaises:
    @pytest.mark.parametrize("receive", [by_recv, by_recv_into])
    @pytest.mark.parametrize("size", [1, 2, 100])
    def test_receiving_loses_no_more_than_the_call_would_return(
        self, receive: Callable[[socket.socket, int], bytes], size: int
    ) -> None:
        data = b"onetwothree"
        for sock, peer, interruption in at_each_step(lambda _: stop()):
            for message in (b"one", b"two", b"", b"three"):
                peer.send(message)
            await_arrival(sock, peer)
            got = sock.recv(1)
            with suppress(StopError), interruption.expected():
                got += receive(sock, size)
            rest = what_is_there(sock)
            assert data.startswith(got)
            assert data.endswith(rest)
            assert len(data) - len(got) - len(rest) in range(size + 1)
            peer.send(b"more")
            assert received(sock, 4) == b"more"

    def test_looking_loses_nothing(self) -> None:
        for sock, peer, interruption in at_each_step(lambda _: stop()):
            peer.send(b"one")
            peer.send(b"two")
            await_arrival(sock, peer)
            with suppress(StopError), interruption.expected():
                assert sock.recv(6, socket.MSG_PEEK) == b"onetwo"
            assert what_is_there(sock) == b"onetwo"

    @pytest.mark.parametrize("part", [1, 10])
    def test_message_that_arrives_in_parts_is_not_lost(self, part: int) -> None:
        for sock, peer, interruption in at_each_step(lambda _: stop()):
            sock.setblocking(False)
            peer.write(b"a message")
            peer.release(part)
            await_arrival(sock, peer)
            with pytest.raises(BlockingIOError):
                sock.recv(100)
            peer.release(part)
            await_arrival(sock, peer)
            with suppress(StopError, BlockingIOError), interruption.expected():
                sock.recv(100)
            peer.release()
            sock.settimeout(PATIENCE_SECONDS)
            assert received(sock, 9) == b"a message"

    @by_either
    def test_sending_leaves_whole_messages(self, call: Callable[[socket.socket, bytes], object]) -> None:
        data = b"a message, and another"
        for sock, peer, interruption in at_each_step(lambda _: stop(), max_plaintext=10):
            with suppress(StopError), interruption.expected():
                call(sock, data)
            arrived = left_after(sock, peer, b"the end")
            assert arrived.endswith(b"the end")
            assert data.startswith(arrived[: -len(b"the end")])

    def test_sending_goes_on_where_the_kernel_has_taken_a_part(self) -> None:
        refused = 0
        for sock, peer, interruption in at_each_step(lambda _: stop(), **TIGHT):
            sock.setblocking(False)
            with suppress(StopError), interruption.expected():
                sock.send(MUCH)
            if not interruption.happened:
                break
            arrived = b""
            with suppress(OSError):
                arrived = left_after(sock, peer, b"the end")
            refused += not arrived
            if not arrived:
                continue
            assert arrived.endswith(b"the end")
            assert MUCH.startswith(arrived[: -len(b"the end")])
        # The last steps are the return: there the number of octets is lost that were accepted.
        assert refused <= 3

    def test_other_threads_do_not_wait_for_ever(self) -> None:
        def use(sock: socket.socket) -> None:
            sock.sendall(b"z")
            sock.recv(1)

        for sock, peer, interruption in at_each_step(lambda _: stop()):
            peer.send(b"onetwo")
            await_arrival(sock, peer)
            with suppress(StopError), interruption.expected():
                sock.recv(3)
                sock.sendall(b"x")
            # The next call of the same thread puts in order what the interpreter itself leaves behind at some steps.
            sock.sendall(b"y")
            peer.send(b"more")
            assert sock.recv(1)
            other = threading.Thread(target=use, args=(sock,))
            other.start()
            other.join(PATIENCE_SECONDS)
            assert not other.is_alive()


class TestHandlerThatUsesTheSocket:
    @by_either
    def test_what_it_sends_goes_between_two_messages(self, call: Callable[[socket.socket, bytes], object]) -> None:
        data, note = b"a message, and another", b"a note of several messages"
        places = [data[:at] + note + data[at:] for at in (0, 10, 20, len(data))]
        for sock, peer, interruption in at_each_step(lambda sock: sock.sendall(note), max_plaintext=10):
            with interruption.expected():
                call(sock, data)
            if interruption.happened:
                assert peer.read_exactly(len(data) + len(note)) in places

    def test_what_it_sends_leaves_although_there_was_no_room(self) -> None:
        def send(sock: socket.socket) -> None:
            sock.settimeout(PATIENCE_SECONDS)
            sock.sendall(b"note")

        for sock, peer, interruption in at_each_step(send, **TIGHT):
            reading = ReadingToEnd(peer)
            reading.start()
            sock.setblocking(False)
            taken = 0
            with suppress(BlockingIOError), interruption.expected():
                taken = sock.send(MUCH)
            sock.settimeout(PATIENCE_SECONDS)
            sock.sendall(MUCH[taken:])
            sock.close()
            reading.join()
            assert reading.data == MUCH or reading.data.replace(b"note", b"", 1) == MUCH

    def test_it_cannot_send_without_end_while_the_call_waits_for_room(self) -> None:
        sent = 0
        refused: list[int | None] = []

        def send_without_end(*_: object) -> None:
            nonlocal sent
            try:
                while True:
                    sock.sendall(bytes(100_000))
                    sent += 100_000
            except OSError as error:
                refused.append(error.errno)
            finally:
                reading.start()

        with pair(**TIGHT) as (sock, peer):
            reading = ReadingToEnd(peer)
            before = signal.signal(signal.SIGALRM, send_without_end)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                sock.sendall(10 * MUCH)
            finally:
                signal.signal(signal.SIGALRM, before)
            sock.sendall(b"the end")
            sock.close()
            reading.join()
        assert refused == [errno.ENOBUFS]
        assert 1_000_000 < sent < 1_300_000
        assert len(reading.data) == 10 * len(MUCH) + sent + len(b"the end")

    def test_it_can_send_while_the_call_receives(self) -> None:
        for sock, peer, interruption in at_each_step(lambda sock: sock.sendall(b"note")):
            peer.send(b"data")
            await_arrival(sock, peer)
            with interruption.expected():
                assert sock.recv(4) == b"data"
            if interruption.happened:
                assert peer.read_exactly(4) == b"note"

    def test_it_receives_or_is_told_that_it_cannot_now(self) -> None:
        by_handler: list[bytes] = []
        refused: list[int | None] = []

        def receive(sock: socket.socket) -> None:
            try:
                by_handler.append(sock.recv(3))
            except OSError as error:
                refused.append(error.errno)

        for sock, peer, interruption in at_each_step(receive):
            by_handler.clear()
            peer.send(b"one")
            peer.send(b"two")
            await_arrival(sock, peer)
            with interruption.expected():
                by_call = sock.recv(3)
            pieces = [by_call, *by_handler, what_is_there(sock)]
            assert sorted(filter(None, pieces)) == [b"one", b"two"]
        assert by_handler == []
        assert set(refused) == {errno.EDEADLK}

    @pytest.mark.parametrize(
        "end", [socket.socket.close, lambda sock: sock.shutdown(socket.SHUT_RDWR)], ids=["close", "shutdown"]
    )
    @pytest.mark.parametrize(
        "call", [lambda sock: sock.recv(3), lambda sock: sock.sendall(b"data")], ids=["recv", "sendall"]
    )
    def test_it_may_end_the_connection(
        self, end: Callable[[socket.socket], object], call: Callable[[socket.socket], object]
    ) -> None:
        for sock, peer, interruption in at_each_step(end):
            peer.send(b"one")
            await_arrival(sock, peer)
            with suppress(OSError), interruption.expected():
                call(sock)
            if interruption.happened:
                with suppress(ConnectionResetError):  # where what had arrived was not received
                    assert peer.read_to_end() in (b"", b"data")


@contextmanager
def handling(handler: Callable[[], object]) -> Iterator[None]:
    """Has a signal handled, which the caller has to send."""
    before = signal.signal(signal.SIGUSR1, lambda *_: handler())
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def signal_main_thread_in(name: str, stopped: Callable[[], bool] = lambda: True) -> None:
    """Sends the signal once the main thread is inside of the function, and `stopped` says so."""
    main = threading.main_thread().ident
    assert main is not None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        frame: FrameType | None = sys._current_frames()[main]
        if frame is not None and frame.f_code.co_name == name and stopped():
            break
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGUSR1)


class TestSignals:
    def test_handler_sends_while_the_call_waits_for_room(self) -> None:
        with pair(**TIGHT) as (sock, peer):
            sock.settimeout(None)
            reading = ReadingToEnd(peer)

            def handle() -> None:
                sock.sendall(b"note")
                reading.start()

            with handling(handle):
                signalling = threading.Thread(
                    target=signal_main_thread_in, args=("_wait", lambda: not poll(sock, select.POLLOUT))
                )
                signalling.start()
                sock.sendall(MUCH)
            signalling.join()
            sock.close()
            reading.join()
            assert reading.data.replace(b"note", b"", 1) == MUCH

    @pytest.mark.parametrize("timeout", [None, PATIENCE_SECONDS])
    def test_handler_receives_while_the_call_waits_for_octets(self, timeout: float | None) -> None:
        with pair() as (sock, peer):
            sock.settimeout(timeout)
            by_handler = []

            def handle() -> None:
                peer.send(b"onetwo")
                by_handler.append(sock.recv(3))

            with handling(handle):
                signalling = threading.Thread(target=signal_main_thread_in, args=("_wait",))
                signalling.start()
                assert sock.recv(3) == b"two"
            signalling.join()
            assert by_handler == [b"one"]
