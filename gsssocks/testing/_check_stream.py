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
    """One random schedule: the pair, and what a TCP socket would have to do next."""

    def __init__(self, pair: Pair, choices: random.Random) -> None:
        self._choices = choices
        self._steps: list[tuple[Any, ...]] = []
        self._sock, self._peer = pair(choices)
        self._sock.settimeout(0)
        # Towards the socket.
        self._said = bytearray()
        self._heard = 0
        self._peer_finished = False
        self._exhausted = False
        # From the socket: all that was offered last, of which a part has been taken.
        self._offered = bytearray()
        self._taken = 0
        self._read = 0
        self._watch()

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, step)) for step in self._steps)

    def play(self) -> None:
        """Some random steps, and then whatever is left, to the end."""
        for step in self._choices.choices(_STEPS, cum_weights=_WEIGHTS, k=self._choices.randint(1, MAX_STEPS)):
            step(self)
        if not self._hear_to_the_end():
            return
        if self._choices.random() < 0.7:
            self._send_the_rest()
        self._end()

    def clear(self) -> None:
        """Closes everything, without a trace in the kernel."""
        if self._edges is not None:
            self._edges.close()
        with suppress(OSError):
            self._peer.reset()
        self._sock.close()

    def _note(self, *step: object) -> None:
        self._steps.append(step)

    # The peer's steps

    def _write(self) -> None:
        data = self._some_data()
        self._note("peer writes", len(data))
        if not self._peer_finished:
            self._said += data
            self._peer.write(data)

    def _release(self) -> None:
        if self._peer_finished:
            return
        held = self._peer.held
        wanted = self._choices.choice((1, 2, 5, held // 2, held - 1, held, held, self._choices.randint(0, held)))
        count = self._peer.release(max(0, wanted))
        if count:
            self._exhausted = False
        self._note("peer releases", count, "of", held)

    def _finish(self) -> None:
        if self._peer_finished:
            return
        if self._choices.random() < 0.7:
            self._release_all()
        self._note("peer finishes")
        self._peer_finished = True
        self._peer.finish()

    def _release_all(self) -> None:
        if self._peer.release():
            self._exhausted = False

    def _peer_reads(self) -> None:
        data = self._peer.read()
        self._note("peer reads", len(data))
        # A part of a message may be on its way already although its last octet counts as not taken.
        ahead = 1 if len(self._offered) > self._taken else 0
        assert self._read + len(data) <= self._taken + ahead, f"the peer got more than the {self._taken} taken"
        assert self._offered.startswith(data, self._read), "the peer got other data than was sent"
        self._read += len(data)

    # Receiving

    def _expected(self) -> bytes:
        return bytes(self._said[self._heard : self._peer.delivered])

    def _all_is_there(self) -> bool:
        return self._peer.arrived(self._sock)

    def _receive(self) -> None:
        size = self._choices.choice((1, 1, 2, 3, 7, 100, 5000, 70_000, self._choices.randint(1, 300)))
        receive = self._choices.choice(_RECEIVERS)
        peek = socket.MSG_PEEK if self._choices.random() < 0.15 else 0
        certain, expected = self._all_is_there(), self._expected()
        self._choose_timeout(at_once=bool(expected and certain))
        if self._choices.random() < 0.1 and certain and len(expected) >= size:
            data = receive(self._sock, size, socket.MSG_WAITALL)
            self._note(receive.__name__, size, "MSG_WAITALL ->", len(data))
            assert len(data) == size, "MSG_WAITALL stopped short of what had arrived"
            self._take_in(data, size, expected, peek=0)
            return
        try:
            data = receive(self._sock, size, peek)
        except (BlockingIOError, socket.timeout):
            self._note(receive.__name__, size, peek, "-> nothing")
            assert not (certain and expected), f"nothing was received although {len(expected)} octets had arrived"
            self._found_nothing(certain=certain)
            return
        self._note(receive.__name__, size, peek, "->", len(data))
        self._take_in(data, size, expected, peek=peek)

    def _take_in(self, data: bytes, size: int, expected: bytes, *, peek: int) -> None:
        assert len(data) <= size, "more was received than asked for"
        assert expected.startswith(data), "other data was received than was sent"
        if not data:
            assert self._peer_finished, "the end was received, and the peer has not finished"
            assert not expected, f"the end was received, and {len(expected)} octets had arrived"
            assert not self._peer.inside_message, "a cut in the middle of a message passed for an end"
        if not peek:
            self._heard += len(data)
        self._exhausted = False

    def _found_nothing(self, *, certain: bool) -> None:
        self._exhausted = certain and not self._peer_finished
        if self._exhausted:
            assert not self._ready(select.POLLIN), "readable, and nothing can be received"
            self._see_edge()
        self._edge_seen = False

    # Readiness

    def _look(self) -> None:
        readable = self._ready(select.POLLIN)
        self._note("readable" if readable else "not readable")
        if self._expected() and self._all_is_there():
            assert readable, "data has arrived, and the descriptor is not readable"
            if self._exhausted_once and not self._edge_seen:
                self._see_edge()
                assert self._edge_seen, "data has arrived since nothing was found, and there was no edge"
        elif self._exhausted:
            assert not readable, "readable, and nothing has arrived since nothing was found"
