"""Messages that arrive, and leave, in parts: on a socket that does not wait, and on one whose wait ends too early."""

from __future__ import annotations

import errno
import hashlib
import random
import select
import socket
import threading
from contextlib import closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

import pytest

from gsssocks.testing import tunnelled_pair
from tests.peers.beside import PATIENCE_SECONDS, await_arrival, fill, read_until_writable

if TYPE_CHECKING:
    from gsssocks.testing import TunnelPeer

    Pair = tuple[socket.socket, TunnelPeer]

MESSAGE = b"a whole message"
MUCH = random.Random(1961).randbytes(200_000)  # more than the buffers of `tight` hold
SOON = 0.001


def while_peer_reads(sock: socket.socket, peer: TunnelPeer, send: Callable[[], int]) -> tuple[int, bytes]:
    """Calls `send`, again and again, until it takes something; returns how much, and what the peer has read."""
    read = b""
    while True:
        read += read_until_writable(sock, peer)
        with suppress(BlockingIOError, socket.timeout):
            return send(), read


def send_the_rest(sock: socket.socket, peer: TunnelPeer, data: bytes) -> bytes:
    """Sends all of `data` while the peer reads; returns what it has read."""
    read = b""
    while data:
        taken, piece = while_peer_reads(sock, peer, partial(sock.send, data))
        data = data[taken:]
        read += piece
    return read


class Reading(threading.Thread):
    """The peer reads, in a thread, until it has as much data."""

    def __init__(self, peer: TunnelPeer, size: int) -> None:
        super().__init__()
        self.data = b""
        self._peer = peer
        self._size = size

    def run(self) -> None:
        self.data = self._peer.read_exactly(self._size)


class TestArriving:
    @pytest.mark.parametrize("timeout", [0, SOON], ids=["not waiting", "timeout"])
    def test_nothing_is_lost_by_giving_up_after_each_octet(self, pair: Pair, timeout: float) -> None:
        sock, peer = pair
        sock.settimeout(timeout)
        peer.write(MESSAGE)
        for _ in range(peer.held - 1):
            peer.release(1)
            await_arrival(sock, peer)
            with pytest.raises((BlockingIOError, socket.timeout)):
                sock.recv(100)
        peer.release(1)
        await_arrival(sock, peer)
        assert sock.recv(100) == MESSAGE

    def test_nothing_is_lost_by_waiting_for_all_in_vain(self, pair: Pair) -> None:
        sock, peer = pair
        peer.write(MESSAGE)
        peer.write(MESSAGE)
        peer.release(peer.held - 1)
        await_arrival(sock, peer)
        assert sock.recv(2 * len(MESSAGE), socket.MSG_WAITALL) == MESSAGE
        peer.release(1)
        await_arrival(sock, peer)
        assert sock.recv(2 * len(MESSAGE), socket.MSG_WAITALL) == MESSAGE

    def test_messages_may_be_glued_at_any_octet(self, pair: Pair) -> None:
        sock, peer = pair
        peer.write(MESSAGE)
        length = peer.held
        for cut in range(length):
            peer.write(MESSAGE)
            peer.release(length + cut)
            await_arrival(sock, peer)
            assert sock.recv(100) == MESSAGE
            peer.release(length - cut)
            await_arrival(sock, peer)
            assert sock.recv(100) == MESSAGE
            peer.write(MESSAGE)

    def test_longest_message_arrives_through_small_buffers(self, tight: Pair) -> None:
        sock, peer = tight
        sock.settimeout(PATIENCE_SECONDS)
        received = b""
        peer.write(MUCH)
        while len(received) < len(MUCH):
            peer.release()
            if select.select([sock], [], [], 0)[0]:
                sock.setblocking(False)
                try:
                    received += sock.recv(100_000)
                except BlockingIOError:
                    continue
        assert received == MUCH


class TestLeaving:
    def test_report_is_one_octet_short(self, tight: Pair) -> None:
        sock, peer = tight
        taken = sock.send(MUCH)
        assert 0 < taken < len(MUCH)
        sock.close()
        assert peer.read_to_end() == MUCH[: taken + 1]

    def test_octet_that_was_not_reported_is_not_sent_twice(self, tight: Pair) -> None:
        sock, peer = tight
        taken = sock.send(MUCH)
        read = send_the_rest(sock, peer, MUCH[taken : taken + 1])
        messages = peer.messages
        sock.close()
        assert read + peer.read_to_end() == MUCH[: taken + 1]
        assert peer.messages == max(messages, 1)

    @pytest.mark.parametrize(
        "send",
        [
            lambda sock, data: sock.send(bytearray(data)),
            lambda sock, data: sock.send(memoryview(data)),
            lambda sock, data: sock.sendto(data, ("127.0.0.1", 9)),
            lambda sock, data: sock.sendmsg([data[:1], data[1:]]),
            lambda sock, data: sock.sendmsg([b"", data]),
        ],
        ids=["bytearray", "view", "sendto", "two buffers", "second buffer"],
    )
    def test_program_may_come_back_in_any_way(self, tight: Pair, send: Callable[[socket.socket, Any], int]) -> None:
        sock, peer = tight
        taken = sock.send(MUCH)
        more, read = while_peer_reads(sock, peer, lambda: send(sock, MUCH[taken : taken + 100]))
        sock.close()
        assert (read + peer.read_to_end())[: taken + more] == MUCH[: taken + more]

    def test_program_may_come_back_and_wait(self, tight: Pair) -> None:
        sock, peer = tight
        taken = sock.send(MUCH)
        reading = Reading(peer, len(MUCH))
        reading.start()
        sock.settimeout(PATIENCE_SECONDS)
        sock.sendall(MUCH[taken:])
        reading.join()
        assert reading.data == MUCH

    def test_program_may_come_back_with_nothing_first(self, tight: Pair) -> None:
        sock, peer = tight
        taken = sock.send(MUCH)
        sock.setblocking(False)
        assert sock.send(b"") == 0
        read = send_the_rest(sock, peer, MUCH[taken:])
        sock.close()
        assert read + peer.read_to_end() == MUCH

    def test_other_data_is_refused_while_an_octet_is_owed(self, tight: Pair) -> None:
        sock, peer = tight
        taken = sock.send(MUCH)
        other = bytes([MUCH[taken] ^ 1])
        with pytest.raises(OSError) as caught:
            while_peer_reads(sock, peer, lambda: sock.send(other))
        assert caught.value.errno == errno.EPROTO
        read = send_the_rest(sock, peer, MUCH[taken:])
        sock.close()
        assert (read + peer.read_to_end())[-1000:] == MUCH[-1000:]

    def test_other_data_is_taken_where_none_was(self, tight: Pair) -> None:
        sock, peer = tight
        sent = 0
        while select.select([], [sock], [], 0)[1]:
            sent += sock.send(b"a")
        with pytest.raises(BlockingIOError):
            sock.send(b"a")
        read = send_the_rest(sock, peer, b"other")
        sock.close()
        assert read + peer.read_to_end() == b"a" * sent + b"other"

    def test_peer_that_takes_octet_by_octet_gets_all(self, tight: Pair) -> None:
        sock, peer = tight
        taken, read = 0, b""
        while len(read) < 5000:
            taken += fill(sock, MUCH[taken : taken + 3000])
            read += peer.read(1)
        assert MUCH.startswith(read)
        assert len(read) <= taken + 1

    @pytest.mark.parametrize("finish", [socket.socket.close, lambda sock: sock.shutdown(socket.SHUT_WR)])
    def test_what_is_in_line_leaves_after_the_end(self, tight: Pair, finish: Callable[[socket.socket], None]) -> None:
        sock, peer = tight
        taken = sock.send(MUCH)
        finish(sock)
        assert peer.read_to_end() == MUCH[: taken + 1]

    def test_timeout_in_a_message_leaves_it_whole(self, tight: Pair) -> None:
        sock, peer = tight
        sock.settimeout(SOON)
        with pytest.raises(socket.timeout):
            sock.sendall(MUCH)
        sock.close()
        read = peer.read_to_end()
        assert MUCH.startswith(read)
        assert len(read) in range(1, len(MUCH))

    def test_stream_goes_on_after_a_timeout(self, tight: Pair) -> None:
        sock, peer = tight
        sock.settimeout(SOON)
        with pytest.raises(socket.timeout):
            sock.sendall(MUCH)
        read = send_the_rest(sock, peer, b"the next")
        sock.close()
        read += peer.read_to_end()
        assert read.endswith(b"the next")
        assert MUCH.startswith(read[: -len(b"the next")])


class TestMegabytes:
    """Both directions at once, through buffers of random sizes."""

    SIZE = 3 << 20

    @pytest.mark.parametrize("seed", range(6))
    def test_without_waiting(self, seed: int) -> None:
        choices = random.Random(seed)
        sock, peer = tunnelled_pair(buffers=choices.choice((1, choices.randint(1, 50_000))))
        data = choices.randbytes(self.SIZE)
        answer = choices.randbytes(self.SIZE)
        sock.setblocking(False)
        read, received = hashlib.sha256(), hashlib.sha256()
        taken = written = got = heard = 0
        with closing(sock), closing(peer):
            while got < self.SIZE or heard < self.SIZE:
                if written < self.SIZE and peer.held < 100_000:
                    piece = answer[written : written + choices.randint(1, 100_000)]
                    peer.write(piece)
                    written += len(piece)
                peer.release(choices.randint(1, 200_000))
                piece = peer.read(choices.randint(1, 200_000))
                read.update(piece)
                got += len(piece)
                readable, writable, _ = select.select([sock], [sock] if taken < self.SIZE else [], [], 0)
                if readable:
                    heard += self.receive(sock, choices, received)
                if writable:
                    taken += fill(sock, data[taken : taken + choices.randint(1, 150_000)])
        assert (read.digest(), received.digest()) == (hashlib.sha256(data).digest(), hashlib.sha256(answer).digest())

    def receive(self, sock: socket.socket, choices: random.Random, digest: hashlib._Hash) -> int:
        try:
            piece = sock.recv(choices.randint(1, 100_000))
        except BlockingIOError:
            return 0
        assert piece
        digest.update(piece)
        return len(piece)

    @pytest.mark.parametrize("timeout", [None, PATIENCE_SECONDS], ids=["for ever", "timeout"])
    @pytest.mark.parametrize("buffers", [None, 1, 20_000])
    def test_waiting(self, timeout: float | None, buffers: int | None) -> None:
        sock, peer = tunnelled_pair(buffers=buffers)
        sock.settimeout(timeout)
        data = random.Random(buffers).randbytes(self.SIZE)
        with closing(sock), closing(peer):
            sending = threading.Thread(target=sock.sendall, args=(data,))
            answering = threading.Thread(target=peer.send, args=(data,))
            reading = Reading(peer, self.SIZE)
            for thread in (sending, answering, reading):
                thread.start()
            assert hashlib.sha256(self.received(sock)).digest() == hashlib.sha256(data).digest()
            for thread in (sending, answering, reading):
                thread.join()
            assert hashlib.sha256(reading.data).digest() == hashlib.sha256(data).digest()

    def received(self, sock: socket.socket) -> bytes:
        received = bytearray()
        while len(received) < self.SIZE:
            received += sock.recv(50_000)
        return bytes(received)
