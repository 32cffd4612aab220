"""The stream conformance check: random schedules over a connected pair, held against what a TCP socket owes its user.

What it owes, and nothing beyond, so that a plain socket passes too:

- Each octet sent arrives once, in order, and nothing else does. `send` says how many octets it has taken: a program
  goes on with the rest, and one that was told of none may send something else. (The first octet not taken may be on its
  way already with those that were: protection by the message cannot do better.)
- What has arrived can be received, at once and in pieces of any size, by any method. A look (MSG_PEEK) takes nothing.
- The descriptor is readable when there is something to receive, data or the end, and is not when a receive has just
  found nothing: else one program would sleep for ever, and another never rest. Edge-triggered waiting is woken by what
  arrives after a receive has found nothing.
- The end comes after the last octet, and stays. A connection that ends inside a message gives an error instead.
- A descriptor that goes on being writable takes octets.
- Whatever has been taken still arrives when the socket is shut down or closed.
"""

from __future__ import annotations

import random
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Callable

from gsssocks.testing._pair import PATIENCE_SECONDS

if TYPE_CHECKING:
    from gsssocks.testing._pair import Peer

    Pair = Callable[[random.Random], "tuple[socket.socket, Peer]"]
    Receiver = Callable[[socket.socket, int, int], bytes]
    Sender = Callable[[socket.socket, bytes, int], int]

__all__ = ["check_stream"]

MAX_STEPS = 60
VAIN_TRIES = 1000
"""Calls in a row that do nothing although the descriptor is ready: with more, a program spins."""
SENDS_IN_A_ROW = 20
SHORT_TIMEOUT_SECONDS = 0.001


def check_stream(pair: Pair, *, seed: int = 0, schedules: int = 100, first: int = 0, max_data: int = 70_000) -> None:
    """Plays random schedules, each over a pair of its own.

    Args:
        pair: makes a connected socket, and the peer at its far end. It may draw choices of its own, such as sizes of
            buffers, from the generator it is given.
        seed: of all choices.
        schedules: how many.
        first: number of the first one.
        max_data: octets given to one call, at most.

    Raises:
        AssertionError: a schedule failed. The message lists its steps, and says how to play it again.
    """
    for number in range(first, first + schedules):
        schedule = _Schedule(pair, random.Random(f"{seed}/{number}"), max_data)
        try:
            schedule.play()
        except Exception as error:
            raise AssertionError(
                f"{type(error).__name__}: {error}\n"
                f"To play it again: check_stream(..., seed={seed}, first={number}, schedules=1, max_data={max_data})\n"
                f"{schedule}"
            ) from error
        finally:
            schedule.clear()


class _Scene:
    """The pair on which a schedule is played, and what has been done to it.

    Attributes:
        broken: whether a receive has told of a connection cut inside a message.
    """

    def __init__(self, pair: Pair, choices: random.Random, max_data: int) -> None:
        self.choices = choices
        self.sock, self.peer = pair(choices)
        self.edges = _Edges(self.sock)
        self.broken = False
        self._max_data = max_data
        self._notes: list[tuple[object, ...]] = []

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, note)) for note in self._notes)

    def note(self, *note: object) -> None:
        self._notes.append(note)

    def some_data(self, least: int = 0, most: int | None = None) -> bytes:
        if most is None:
            most = self.choices.choice((0, 1, 1, 2, 50, 50, 50, 5000, 5000, self._max_data))
        return self.choices.randbytes(self.choices.randint(least, max(least, min(most, self._max_data))))

    def limit_waiting(self, *, sure: bool = False) -> int:
        """Makes the next call end in time: returns the flag to call it with.

        Args:
            sure: whether the call has no reason to wait.
        """
        chance = self.choices.random()
        if chance < 0.02:
            self.sock.settimeout(SHORT_TIMEOUT_SECONDS)
        elif sure and chance < 0.3:
            self.sock.settimeout(PATIENCE_SECONDS)
        elif chance < 0.5:
            self.sock.settimeout(None)
            return socket.MSG_DONTWAIT
        else:
            self.sock.settimeout(0)
        return 0

    def ready(self, event: int, patience: float = 0) -> bool:
        return _ready(self.sock.fileno(), event, patience)

    def duplicates(self) -> None:
        """The socket is duplicated; one of the two goes on, the other is closed."""
        duplicate = self.sock.dup()
        if self.choices.random() < 0.5:
            self.note("goes on with a duplicate")
            self.sock, duplicate = duplicate, self.sock
            self.edges.close()
            self.edges = _Edges(self.sock)
        duplicate.close()

    def clear(self) -> None:
        """Closes everything, without a trace in the kernel."""
        self.edges.close()
        with suppress(OSError):
            self.peer.reset()
        self.sock.close()


def _ready(fd: int, event: int, patience: float) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(patience * 1000))


class _Edges:
    """Edge-triggered waiting, by a program that receives until nothing is found, and then waits."""

    def __init__(self, sock: socket.socket) -> None:
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._waiting = self._seen = False
        if self._epoll is not None:
            self._epoll.register(sock, select.EPOLLIN | select.EPOLLET)

    def wait(self) -> None:
        """From now on, the program waits."""
        self._look()
        self._waiting, self._seen = True, False

    def wait_no_more(self) -> None:
        """The program has been woken, in whatever way."""
        self._waiting = False

    def due_and_missing(self) -> bool:
        """Whether the program would sleep although it should have been woken by now."""
        self._look()
        return self._epoll is not None and self._waiting and not self._seen

    def _look(self) -> None:
        if self._epoll is not None and self._epoll.poll(0):
            self._seen = True

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()


class _Inward:
    """From the peer to the socket: what the peer has said, and how much of it has been received."""

    def __init__(self, scene: _Scene) -> None:
        self._scene = scene
        self._said = bytearray()
        self._received = 0
        self._finished = False
        self._end_received = False
        self._found_nothing = False

    # The peer

    def writes(self) -> None:
        if self._finished:
            return
        data = self._scene.some_data()
        self._scene.note("peer writes", len(data))
        self._said += data
        self._scene.peer.write(data)

    def releases(self) -> None:
        held = self._scene.peer.held
        choices = self._scene.choices
        self._release(choices.choice((1, 2, 5, held // 2, held - 1, held, held, choices.randint(0, held))))

    def _release(self, count: int) -> None:
        if self._finished or count < 1:
            return
        released = self._scene.peer.release(count)
        self._scene.note("peer releases", released)
        if released:
            self._found_nothing = False

    def finishes(self) -> None:
        if self._finished:
            return
        if self._scene.choices.random() < 0.7:
            self._release(self._scene.peer.held)
        self._finish()

    def _finish(self) -> None:
        self._scene.note("peer finishes")
        self._finished = True
        self._found_nothing = False
        self._scene.peer.finish()

    # The socket

    def receives(self) -> None:
        choices = self._scene.choices
        size = choices.choice((1, 1, 2, 3, 7, 100, 5000, 70_000, choices.randint(1, 300)))
        self._receive(choices.choice(_RECEIVERS), size, choices.choice(_RECEIVE_FLAGS))

    def _receive(self, receive: Receiver, size: int, flags: int) -> None:
        scene = self._scene
        arrived, expected = self._arrived(), self._expected()
        if flags & socket.MSG_WAITALL and not (arrived and len(expected) >= size):
            flags = 0
        flags |= scene.limit_waiting(sure=bool(arrived and expected))
        call = f"{receive.__name__}({size}, {flags:#x}) ->"
        try:
            data = receive(scene.sock, size, flags)
        except (BlockingIOError, socket.timeout):
            scene.note(call, "nothing")
            self._take_note_of_nothing(arrived=arrived, expected=expected)
        except OSError as error:
            scene.note(call, repr(error))
            self._take_note_of_break(error)
        else:
            scene.note(call, len(data))
            self._take_note_of_data(data, size, flags, expected)

    def _arrived(self) -> bool:
        """Whether it is certain that all that has left the peer has arrived."""
        return self._scene.peer.arrived(self._scene.sock)

    def _expected(self) -> bytes:
        """What is to be received next: all of it, if it has arrived."""
        return bytes(self._said[self._received : self._scene.peer.delivered])

    def _take_note_of_data(self, data: bytes, size: int, flags: int, expected: bytes) -> None:
        assert len(data) <= size, "more was received than asked for"
        assert expected.startswith(data), "other data was received than was sent"
        assert not self._scene.broken, "something was received behind an error"
        if flags & socket.MSG_WAITALL:
            assert len(data) == size, "MSG_WAITALL stopped short of what had arrived"
        if not data:
            assert self._finished, "the end was received, and the peer has not finished"
            assert not expected, f"the end was received, with {len(expected)} octets still to come"
            assert not self._scene.peer.inside_message, "a cut inside a message passed for the end"
            self._end_received = True
        if not flags & socket.MSG_PEEK:
            self._received += len(data)
        self._scene.edges.wait_no_more()

    def _take_note_of_nothing(self, *, arrived: bool, expected: bytes) -> None:
        if not arrived or self._finished:
            self._scene.edges.wait_no_more()
            return
        assert not expected, f"nothing was received although {len(expected)} octets had arrived"
        assert not self._scene.ready(select.POLLIN), "readable, and a receive has just found nothing"
        self._found_nothing = True
        self._scene.edges.wait()

    def _take_note_of_break(self, error: OSError) -> None:
        cut = self._finished and self._scene.peer.inside_message and not self._expected()
        assert cut, f"a receive failed although the connection was not cut inside a message: {error!r}"
        self._scene.broken = True

    def looks(self) -> None:
        scene = self._scene
        readable = scene.ready(select.POLLIN)
        scene.note("readable" if readable else "not readable")
        if self._expected() and self._arrived():
            assert readable, "data has arrived, and the descriptor is not readable"
            assert not scene.edges.due_and_missing(), "data has arrived since a receive found nothing, without an edge"
        if self._found_nothing:
            assert not readable, "readable, and nothing has arrived since a receive found nothing"

    def goes_to_the_end(self) -> None:
        """All that the peer has to say is received, and the end, if it comes."""
        scene, vain = self._scene, 0
        # Not always: the port of a connection that its peer finishes first stays taken for a minute.
        finishes = scene.choices.random() < 0.2
        while not scene.broken and not self._end_received:
            self._release(scene.peer.held)
            if not self._finished and not scene.peer.held:
                if finishes:
                    self._finish()
                elif not self._expected():
                    # An empty message would be left unread, and its connection reset by the close.
                    self._receive(recv, 1, 0)
                    return
            assert scene.ready(select.POLLIN, PATIENCE_SECONDS), "there is more to come, and no readability"
            before = self._received
            self._receive(recv, 65536, 0)
            vain = 0 if self._received > before else vain + 1
            assert vain < VAIN_TRIES, "readable, and nothing is received"


class _Outward:
    """From the socket to the peer: what the socket was given, how much of it was taken, and how much has arrived."""

    def __init__(self, scene: _Scene) -> None:
        self._scene = scene
        self._given = bytearray()
        self._taken = 0
        self._read = 0
        self._partly_taken = False
        self._unsure = False
        self._finished = False

    # The peer

    def peer_reads(self) -> None:
        data = self._scene.peer.read()
        self._scene.note("peer reads", len(data))
        ahead = 1 if self._partly_taken else 0
        most = len(self._given) if self._unsure else self._taken + ahead
        assert self._read + len(data) <= most, f"the peer got {self._read + len(data)} octets, {self._taken} were sent"
        assert self._given.startswith(data, self._read), "the peer got other data than was sent"
        self._read += len(data)

    # The socket

    def sends(self) -> None:
        if not self._may_send():
            return
        if self._finished:
            self._fail_to_send()
        else:
            self._send(self._scene.choices.choice(_SENDERS), self._more())

    def _may_send(self) -> bool:
        return not self._unsure and not self._scene.broken

    def _more(self, *, least: int = 0, most: int | None = None) -> bytes:
        """What to send next: it begins with what has not been taken."""
        self._given += self._scene.some_data(least, most)
        return bytes(self._given[self._taken :])

    def _send(self, send: Sender, data: bytes, flags: int | None = None) -> int:
        """Returns how many octets were taken."""
        if flags is None:
            flags = self._scene.limit_waiting()
        call = f"{send.__name__}({len(data)} octets, {flags:#x}) ->"
        try:
            count = send(self._scene.sock, data, flags)
        except (BlockingIOError, socket.timeout):
            self._scene.note(call, "nothing")
            if not self._partly_taken and self._scene.choices.random() < 0.5:
                del self._given[self._taken :]
            return 0
        self._scene.note(call, count)
        assert 0 <= count <= len(data), f"{count} of {len(data)} octets were taken"
        assert count or not data, "nothing was taken, and there was no error"
        self._taken += count
        self._partly_taken = self._taken < len(self._given)
        return count

    def _fail_to_send(self) -> None:
        self._scene.note("send after shutdown")
        self._scene.sock.settimeout(0)
        try:
            self._scene.sock.send(b"more")
        except BrokenPipeError:
            return
        raise AssertionError("data was taken after shutdown(SHUT_WR)")

    def sends_until_full(self) -> None:
        """It must not go on being said that there is room, and nothing be taken."""
        vain = 0
        most = self._scene.choices.choice((1, 2, 100, 3000))
        self._scene.sock.settimeout(0)
        for _ in range(SENDS_IN_A_ROW):
            data = self._more(least=1, most=most) if self._may_send() and not self._finished else b""
            while data and self._scene.ready(select.POLLOUT):
                if self._send(send, data, 0):
                    break
                vain += 1
                assert vain < VAIN_TRIES, "writable, and nothing is taken"
                data = bytes(self._given[self._taken :])

    def sends_all(self) -> None:
        if self._finished or not self._may_send():
            return
        data, flags = self._more(), self._scene.limit_waiting()
        call = f"sendall({len(data)} octets, {flags:#x}) ->"
        try:
            self._scene.sock.sendall(data, flags)
        except (BlockingIOError, socket.timeout):
            # There is no telling how much has been taken, and so no going on.
            self._scene.note(call, "a part")
            self._unsure = True
        else:
            self._scene.note(call, "all")
            self._taken = len(self._given)
            self._partly_taken = False

    def shuts_down(self) -> None:
        if self._finished or self._scene.broken:
            return
        self._scene.note("shutdown(SHUT_WR)")
        self._finished = True
        self._scene.sock.shutdown(socket.SHUT_WR)

    def goes_to_the_end(self) -> None:
        """What was taken arrives, and the end; what was not is sent before, or given up."""
        if self._scene.choices.random() < 0.7:
            self._send_the_rest()
        if self._scene.choices.random() < 0.5:
            self.shuts_down()
        else:
            self._scene.note("close")
            self._scene.edges.close()
            self._scene.sock.close()
        if not self._scene.broken:
            self._read_to_the_end()

    def _send_the_rest(self) -> None:
        vain = 0
        self._scene.sock.settimeout(0)
        while self._taken < len(self._given) and not self._finished and self._may_send():
            self._make_room()
            sent = self._send(send, bytes(self._given[self._taken :]), 0)
            vain = 0 if sent else vain + 1
            assert vain < VAIN_TRIES, "writable, and nothing is taken"

    def _make_room(self) -> None:
        """The peer reads until there is room to send. What it has read makes room for more to arrive, and so on."""
        self.peer_reads()
        while not self._scene.ready(select.POLLOUT):
            poll = select.poll()
            poll.register(self._scene.sock, select.POLLOUT)
            poll.register(self._scene.peer, select.POLLIN)
            assert poll.poll(PATIENCE_SECONDS * 1000), "the peer has read everything, and there is no room"
            self.peer_reads()

    def _read_to_the_end(self) -> None:
        while not self._scene.peer.ended:
            assert _ready(self._scene.peer.fileno(), select.POLLIN, PATIENCE_SECONDS), "no more arrives at the peer"
            self.peer_reads()
        assert self._read >= self._taken, f"{self._taken} octets were sent, and {self._read} arrived"


def recv(sock: socket.socket, size: int, flags: int) -> bytes:
    return sock.recv(size, flags)


def recv_into(sock: socket.socket, size: int, flags: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: sock.recv_into(buffer, 0, flags)])


def recv_into_part(sock: socket.socket, size: int, flags: int) -> bytes:
    buffer = bytearray(size + 10)
    count = sock.recv_into(buffer, size, flags)
    assert not any(buffer[count:]), "the buffer was written to behind what was received"
    return bytes(buffer[:count])


def recvfrom(sock: socket.socket, size: int, flags: int) -> bytes:
    return sock.recvfrom(size, flags)[0]


def recvfrom_into(sock: socket.socket, size: int, flags: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: sock.recvfrom_into(buffer, 0, flags)[0]])


def recvmsg(sock: socket.socket, size: int, flags: int) -> bytes:
    return sock.recvmsg(size, 0, flags)[0]


def recvmsg_into(sock: socket.socket, size: int, flags: int) -> bytes:
    buffers = [bytearray(size // 3), bytearray(size - size // 3)]
    count = sock.recvmsg_into(buffers, 0, flags)[0]
    return b"".join(buffers)[:count]


def send(sock: socket.socket, data: bytes, flags: int) -> int:
    return sock.send(data, flags)


def sendto(sock: socket.socket, data: bytes, flags: int) -> int:
    return sock.sendto(data, flags, sock.getpeername())


def sendmsg(sock: socket.socket, data: bytes, flags: int) -> int:
    middle = len(data) // 3
    return sock.sendmsg([data[:middle], b"", data[middle:]], [], flags)


_RECEIVERS: list[Receiver] = [recv, recv, recv_into, recv_into_part, recvfrom, recvfrom_into, recvmsg, recvmsg_into]
_RECEIVE_FLAGS = (0, 0, 0, 0, 0, 0, 0, socket.MSG_PEEK, socket.MSG_PEEK, socket.MSG_WAITALL)
_SENDERS: list[Sender] = [send, send, sendto, sendmsg]


class _Schedule:
    """Random steps, and then whatever is left, to the end of both directions."""

    def __init__(self, pair: Pair, choices: random.Random, max_data: int) -> None:
        self._scene = _Scene(pair, choices, max_data)
        self._inward = _Inward(self._scene)
        self._outward = _Outward(self._scene)

    def __str__(self) -> str:
        return str(self._scene)

    def play(self) -> None:
        weighted: list[tuple[Callable[[], None], int]] = [
            (self._inward.writes, 40),
            (self._inward.releases, 60),
            (self._inward.receives, 80),
            (self._inward.looks, 40),
            (self._inward.finishes, 2),
            (self._outward.sends, 40),
            (self._outward.sends_until_full, 5),
            (self._outward.sends_all, 5),
            (self._outward.peer_reads, 30),
            (self._outward.shuts_down, 2),
            (self._scene.duplicates, 4),
        ]
        steps, weights = zip(*weighted)
        for step in self._scene.choices.choices(steps, weights, k=self._scene.choices.randint(1, MAX_STEPS)):
            step()
        self._inward.goes_to_the_end()
        self._outward.goes_to_the_end()

    def clear(self) -> None:
        self._scene.clear()
