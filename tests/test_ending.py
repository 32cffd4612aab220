"""close() and shutdown() while a part of a message is in line: it still leaves, and nobody has to wait for that."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Callable

import pytest

from gsssocks.testing import plain_pair, tunnelled_pair
from tests.peers.beside import PATIENCE_SECONDS, Outcome, outcome, poll

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import PlainPeer

Make = Callable[..., Any]
MUCH = bytes(3_000_000)
RESET = struct.pack("ii", 1, 0)  # struct linger: on, no time
both = pytest.mark.parametrize("make", [plain_pair, tunnelled_pair], ids=["plain", "tunnelled"])


class Call(threading.Thread):
    """A call in a thread of its own."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._outcome: Outcome | None = None
        self.start()

    def run(self) -> None:
        self._outcome = outcome(self._function)

    def outcome(self) -> Outcome:
        """What became of it."""
        self.join(PATIENCE_SECONDS)
        assert self._outcome is not None, "the call has never returned"
        return self._outcome


@contextmanager
def full(make: Make) -> Iterator[tuple[socket.socket, PlainPeer]]:
    """A pair whose peer does not read, and a socket that has sent what can be sent; it waits for ever from now on."""
    sock, peer = make(buffers=8192)
    with closing(sock), closing(peer):
        sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                sock.send(MUCH)
        sock.settimeout(None)
        yield sock, peer


def await_no_room(sock: socket.socket) -> None:
    assert not poll(sock, select.POLLOUT)


class TestShutdown:
    @both
    @pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
    def test_wakes_who_waits_to_send(self, make: Make, how: int) -> None:
        with full(make) as (sock, _):
            writer = Call(lambda: sock.sendall(MUCH))
            await_no_room(sock)
            sock.shutdown(how)
            assert writer.outcome().error is BrokenPipeError

    @both
    @pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
    def test_wakes_who_waits_to_receive(self, make: Make, how: int) -> None:
        with full(make) as (sock, _):
            reader = Call(lambda: sock.recv(1))
            sock.shutdown(how)
            assert reader.outcome().value == b""
            assert poll(sock, select.POLLIN)

    @both
    def test_nothing_can_be_sent_after_it(self, make: Make) -> None:
        with full(make) as (sock, _):
            sock.shutdown(socket.SHUT_WR)
            with pytest.raises(BrokenPipeError):
                sock.send(b"x")

    @pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR])
    def test_what_was_accepted_leaves_whole(self, how: int) -> None:
        data = os.urandom(200_000)
        sock, peer = tunnelled_pair(buffers=8192)
        with closing(sock), closing(peer):
            sock.setblocking(False)
            taken = sock.send(data)
            sock.settimeout(None)
            writer = Call(lambda: sock.sendall(data[taken:]))
            await_no_room(sock)
            sock.shutdown(how)
            writer.outcome()
            arrived = peer.read_to_end()
            assert data.startswith(arrived)
            assert len(arrived) > taken

    def test_without_a_descriptor_to_spare(self) -> None:
        data = os.urandom(200_000)
        sock, peer = tunnelled_pair(buffers=8192)
        with closing(sock), closing(peer):
            sock.setblocking(False)
            taken = sock.send(data)
            reading = Call(peer.read_to_end)
            with no_more_descriptors():
                sock.shutdown(socket.SHUT_WR)
            assert reading.outcome().value == data[: taken + 1]


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestClose:
    def test_without_a_descriptor_to_spare(self) -> None:
        data = os.urandom(200_000)
        sock, peer = tunnelled_pair(buffers=8192)
        with closing(peer):
            sock.setblocking(False)
            taken = sock.send(data)
            with no_more_descriptors():
                sock.close()
            assert sock.fileno() == -1
            with pytest.raises(OSError) as caught:
                sock.send(b"bare")
            assert caught.value.errno == errno.EBADF
            assert peer.read_to_end() == data[: taken + 1]

    @both
    def test_resets_where_the_program_asks_for_that(self, make: Make) -> None:
        with full(make) as (sock, peer):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
            assert poll(peer, 0, PATIENCE_SECONDS) & select.POLLERR  # type: ignore[arg-type]


END = """
import os, sys, threading
from gsssocks.testing import tunnelled_pair

sock, peer = tunnelled_pair(buffers=8192)
if os.fork() == 0:
    os.close(sock.fileno())
    if sys.argv[1] == "reads":
        sys.stdin.read(1)  # once the other process has closed its end
        print(len(peer.read_to_end()), flush=True)
    else:
        sys.stdin.read()
    os._exit(0)

def end():
    sock.setblocking(False)
    taken = sock.send(bytes(200_000))
    sock.close()
    print(taken, flush=True)

thread = threading.Thread(target=end, daemon=True)
thread.start()
thread.join()
"""


class TestEndOfTheProcess:
    """A program whose last act is to close a connection, in a thread that is a daemon."""

    @contextmanager
    def program(self, peer: str) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [sys.executable, "-c", END, peer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            yield process

    def test_what_was_accepted_still_leaves(self) -> None:
        with self.program("reads") as process:
            assert process.stdout is not None
            taken = int(process.stdout.readline())
            output, _ = process.communicate("x", timeout=PATIENCE_SECONDS)
            assert int(output) == taken + 1
            assert process.returncode == 0

    def test_peer_that_does_not_read_does_not_hold_it_up_for_long(self) -> None:
        with self.program("does not read") as process:
            assert process.wait(PATIENCE_SECONDS) == 0
            process.communicate()
