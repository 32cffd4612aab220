"""The stream conformance check: random schedules over a connected pair, held against what a TCP socket owes its user.

What is owed, and nothing beyond it, so that a plain socket passes too:

- Each octet sent arrives once, in order, and nothing else does; `send` says exactly how many octets it has taken. A
  program that was told of a part goes on with the rest; one that was told of nothing may send something else.
- What has arrived can be received, at once and in pieces of any size, by any method; a look (MSG_PEEK) takes nothing.
- The descriptor is readable when there is something to receive, data or the end, and not when a receive has just found
  nothing: neither would a program that waits be woken, nor one that does not wait ever rest. Edge-triggered waiting is
  woken by what arrives after a receive has found nothing.
- The end comes after the last octet, and stays; where the connection ends in the middle of a message, an error comes
  instead.
- A descriptor that goes on being writable takes octets.
- Whatever has been taken still arrives when the socket is shut down or closed.
"""

from __future__ import annotations

import random
import select
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable

from gsssocks.testing._pair import PATIENCE_SECONDS

if TYPE_CHECKING:
    from gsssocks.testing._pair import Peer

    Pair = Callable[[random.Random], "tuple[socket.socket, Peer]"]

__all__ = ["check_stream"]

MAX_STEPS = 60
VAIN_TRIES = 1000
"""Calls in a row that find nothing although the descriptor was ready: more of them is a program that spins."""
SHORT_TIMEOUT_SECONDS = 0.001
_EDGE = getattr(select, "EPOLLET", 0)


def check_stream(pair: Pair, *, seed: int = 0, schedules: int = 100, first: int = 0) -> None:
    """Plays random schedules over pairs, each over one of its own.

    Args:
        pair: makes a connected socket, and the peer at its far end. It may draw choices of its own, such as sizes of
            buffers, from the generator it is given.
        seed: of all choices.
        schedules: how many.
        first: number of the first one.

    Raises:
        AssertionError: a schedule failed. The message lists its steps, and says how to play it again.
    """
    for number in range(first, first + schedules):
        schedule = _Schedule(pair, random.Random(f"{seed}/{number}"))
        try:
            schedule.play()
        except Exception as error:
            raise AssertionError(
                f"{type(error).__name__}: {error}\n"
                f"To play it again: check_stream(..., seed={seed}, first={number}, schedules=1)\n"
                f"{schedule}"
            ) from error
        finally:
            schedule.clear()


class _Schedule:
    """One random schedule: a pair, and what a TCP socket would have to do next."""

    def __init__(self, pair: Pair, choices: random.Random) -> None:
        self._choices = choices
        self._notes: list[tuple[object, ...]] = []
        self._sock, self._peer = pair(choices)
        # Towards the socket: what the peer has written, and how much of it has been received.
        self._said = bytearray()
        self._heard = 0
        self._peer_finished = False
        self._drained = False
        self._broken = False
        # From the socket: what it was given, how much of that it has taken, and how much the peer has read.
        self._given = bytearray()
        self._taken = 0
        self._read = 0
        self._owing = False
        self._unsure = False
        self._finished = False
        self._edges = _Edges(self._sock)

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, note)) for note in self._notes)

    def play(self) -> None:
        """Some random steps, and then whatever is left, to the end."""
        for step in self._choices.choices(_STEPS, cum_weights=_WEIGHTS, k=self._choices.randint(1, MAX_STEPS)):
            step(self)
        if not self._hear_to_the_end():
            return
        if self._choices.random() < 0.7:
            self._send_what_is_left()
        self._hang_up()

    def clear(self) -> None:
        """Closes everything, without a trace in the kernel."""
        self._edges.close()
        with suppress(OSError):
            self._peer.reset()
        self._sock.close()

    def _note(self, *note: object) -> None:
        self._notes.append(note)

    # What the peer does

    def _peer_writes(self) -> None:
        data = self._some_data()
        if not self._peer_finished:
            self._said += data
            self._peer.write(data)
            self._note("peer writes", len(data))

    def _peer_releases(self) -> None:
        held = self._peer.held
        count = self._choices.choice((1, 2, 5, held // 2, held - 1, held, held, self._choices.randint(0, held)))
        self._release(count)

    def _release(self, count: int) -> None:
        if self._peer_finished or count < 1:
            return
        released = self._peer.release(count)
        if released:
            self._drained = False
        self._note("peer releases", released)

    def _peer_finishes(self) -> None:
        if self._peer_finished:
            return
        if self._choices.random() < 0.7:
            self._release(self._peer.held)
        self._note("peer finishes")
        self._peer_finished = True
        self._drained = False
        self._peer.finish()

    def _peer_reads(self) -> None:
        data = self._peer.read()
        self._note("peer reads", len(data))
        self._check_read(data)

    def _check_read(self, data: bytes) -> None:
        # The first octet that was not taken may be on its way with the others.
        ahead = 1 if len(self._given) > self._taken else 0
        assert self._read + len(data) <= self._taken + ahead, f"the peer got more than the {self._taken} octets taken"
        assert self._given.startswith(data, self._read), "the peer got other data than was sent"
        self._read += len(data)

    # Receiving

    def _receives(self) -> None:
        size = self._choices.choice((1, 1, 2, 3, 7, 100, 5000, 70_000, self._choices.randint(1, 300)))
        receive = self._choices.choice(_RECEIVERS)
        flags = socket.MSG_PEEK if self._choices.random() < 0.15 else 0
        certain, expected = self._peer.arrived(self._sock), self._expected()
        if certain and len(expected) >= size and self._choices.random() < 0.1:
            flags = socket.MSG_WAITALL
        flags |= self._limit_waiting(certain=bool(certain and expected))
        try:
            data = receive(self._sock, size, flags)
        except (BlockingIOError, socket.timeout):
            self._note(receive.__name__, size, flags, "-> nothing")
            assert not (certain and expected), f"nothing was received although {len(expected)} octets had arrived"
            self._found_nothing(certain=certain)
        except OSError as error:
            self._note(receive.__name__, size, flags, "->", error)
            self._accept_break(error)
        else:
            self._note(receive.__name__, size, flags, "->", len(data), "octets")
            self._take_in(data, size, expected, flags)

    def _expected(self) -> bytes:
        """What the next receive may return, no matter how much of it has arrived."""
        return bytes(self._said[self._heard : self._peer.delivered])

    def _take_in(self, data: bytes, size: int, expected: bytes, flags: int) -> None:
        assert len(data) <= size, "more was received than asked for"
        assert expected.startswith(data), "other data was received than was sent"
        if flags & socket.MSG_WAITALL:
            assert len(data) == size, "MSG_WAITALL stopped short of what had arrived"
        assert not self._broken, "a receive succeeded behind an error"
        if not data:
            assert self._peer_finished, "the end was received, and the peer has not finished"
            assert not expected, f"the end was received, and {len(expected)} octets had not been"
            assert not self._peer.inside_message, "a cut in the middle of a message passed for an end"
        if not flags & socket.MSG_PEEK:
            self._heard += len(data)
            self._edges.disarm()

    def _accept_break(self, error: OSError) -> None:
        cut = self._peer_finished and self._peer.inside_message and not self._expected()
        assert cut, f"a receive failed, although the connection was not cut in the middle of a message: {error!r}"
        self._broken = True

    def _found_nothing(self, *, certain: bool) -> None:
        if not certain or self._peer_finished:
            self._edges.disarm()
            return
        self._drained = True
        self._edges.arm()
        assert not self._ready(select.POLLIN), "readable, and a receive has just found nothing"

    def _limit_waiting(self, *, certain: bool) -> int:
        """Sees to it that the next call ends: the flag to call it with."""
        chance = self._choices.random()
        if certain and chance < 0.3:
            self._sock.settimeout(PATIENCE_SECONDS)
        elif chance < 0.4:
            self._sock.settimeout(PATIENCE_SECONDS)
            return socket.MSG_DONTWAIT
        elif chance < 0.43:
            self._sock.settimeout(SHORT_TIMEOUT_SECONDS)
        else:
            self._sock.settimeout(0)
        return 0

    # Readiness

    def _looks(self) -> None:
        readable = self._ready(select.POLLIN)
        self._note("readable" if readable else "not readable")
        if self._expected() and self._peer.arrived(self._sock):
            assert readable, "data has arrived, and the descriptor is not readable"
            assert self._edges.seen(), "data has arrived since a receive found nothing, and there was no edge"
        if self._drained:
            assert not readable, "readable, and nothing has arrived since a receive found nothing"

    def _ready(self, event: int, patience: float = 0) -> bool:
        poll = select.poll()
        poll.register(self._sock, event)
        return bool(poll.poll(patience * 1000))

    # Sending

    def _sends(self) -> None:
        if self._given_up_sending():
            return
        send = self._choices.choice(_SENDERS)
        offer = self._offer(self._some_data())
        if not self._finished:
            self._send(send, offer, self._limit_waiting(certain=False))
            return
        self._note(send.__name__, len(offer), "after shutdown")
        self._sock.settimeout(0)
        try:
            send(self._sock, b"more", 0)
        except BrokenPipeError:
            return
        raise AssertionError("data was taken after shutdown(SHUT_WR)")

    def _sends_all(self) -> None:
        if self._given_up_sending() or self._finished:
            return
        offer = self._offer(self._some_data())
        flags = self._limit_waiting(certain=False)
        try:
            self._sock.sendall(offer, flags)
        except (BlockingIOError, socket.timeout):
            # There is no telling how much of it has been taken, and no way to go on.
            self._unsure = True
        else:
            self._taken = len(self._given)
            self._owing = False
        self._note("sendall", len(offer), flags, "-> unknown" if self._unsure else "")

    def _given_up_sending(self) -> bool:
        return self._unsure or self._broken

    def _offer(self, more: bytes) -> bytes:
        """What to send next: it begins with what was to be sent before and has not been taken."""
        if not self._finished:
            self._given += more
        return bytes(self._given[self._taken :])

    def _send(self, send: Callable[[socket.socket, bytes, int], int], offer: bytes, flags: int) -> int:
        """Returns how many octets were taken."""
        try:
            count = send(self._sock, offer, flags)
        except (BlockingIOError, socket.timeout):
            self._note(send.__name__, len(offer), flags, "-> nothing")
            if not self._owing and self._choices.random() < 0.5:
                # Nothing of it has been taken, and a program is free to send something else then.
                del self._given[self._taken :]
            return 0
        self._note(send.__name__, len(offer), flags, "->", count)
        assert 0 <= count <= len(offer), f"{count} of {len(offer)} octets sent"
        assert count or not offer, "no octet was taken, and there was no error"
        self._taken += count
        self._owing = self._taken < len(self._given)
        return count

    def _sends_until_full(self) -> None:
        """Sends for as long as there is room: it must not go on being said that there is, and nothing be taken."""
        if self._given_up_sending() or self._finished:
            return
        self._sock.settimeout(0)
        vain = 0
        for _ in range(VAIN_TRIES):
            if not self._ready(select.POLLOUT) or vain > VAIN_TRIES:
                break
            offer = self._offer(b"" if self._taken < len(self._given) else self._some_data() or b"x")
            vain = 0 if self._send(socket.socket.send, offer, 0) else vain + 1
        assert vain <= VAIN_TRIES, "writable, and nothing is taken"

    def _shuts_down(self) -> None:
        if self._finished or self._given_up_sending():
            return
        self._note("shutdown(SHUT_WR)")
        self._sock.shutdown(socket.SHUT_WR)
        self._finished = True

    # Other

    def _duplicates(self) -> None:
        duplicate = self._sock.dup()
        if self._choices.random() < 0.5:
            self._sock, duplicate = duplicate, self._sock
            self._edges.close()
            self._edges = _Edges(self._sock)
            self._note("goes on with a duplicate")
        duplicate.close()

    def _some_data(self) -> bytes:
        limit = self._choices.choice((0, 1, 1, 2, 50, 50, 50, 5000, 5000, 150_000))
        return self._choices.randbytes(self._choices.randint(min(limit, 1), limit))

    # To the end

    def _hear_to_the_end(self) -> bool:
        """Receives all that the peer has to say; False if that was cut short."""
        self._sock.settimeout(0)
        vain = 0
        while not self._broken:
            if not self._peer_finished:
                self._release(self._peer.held)
                if not self._peer.held:
                    self._peer_finishes()
            assert self._ready(select.POLLIN, PATIENCE_SECONDS), "something is to come, and it never became readable"
            before = self._heard
            self._receives_piece()
            vain = 0 if self._heard > before else vain + 1
            if vain and self._peer_finished and not self._expected()
        return not self._broken
