"""Outwards: user data into messages, messages into the line, and the line to the kernel.

*A message, once protected, must leave whole.* Its sequence number is spent: leaving out, repeating or changing a part
of it ends the connection. On a socket that does not wait, the kernel may take a part only. The rest stays in
`_line`, and the application is told that one octet fewer was accepted than really was: so it will come back when
the descriptor is writable, bringing that octet (`_owed`) again, which is then swallowed. Nothing is lost whenever a
wait ends early, by timeout or by signal.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from typing import TYPE_CHECKING

from gsssocks._line import Line
from gsssocks._lingering import LOOK_UP
from gsssocks._transport import Deadline, Transport

from ._state import State, let_go_of

if TYPE_CHECKING:
    from gsssocks._protocol import Octets
    from gsssocks._record import Records

__all__ = ["Sending"]

SHORT = 4096
"""Octets, at most, of a last message that leaves by the same system call as the full one before it."""
MAX_INTERJECTED = 1 << 20
"""Octets kept for an interrupted call, from which on no more are taken: a plain socket's handler would wait here, and
every signal would add to them while the peer reads nothing."""


class Sending(State):
    """See `ProtectedStream`.

    Attributes:
        octets_sent: of user data, that have left or are in line.
    """

    def __init__(self, records: Records | None) -> None:
        super().__init__(records)
        self._line = Line()
        self._interjected: deque[bytes] = deque()
        self._owed: tuple[int] | None = None
        self._more = False
        self._left_to_parent = False
        self.octets_sent = 0

    def after_fork_in_child(self) -> None:
        """What is in line is in the parent's line, too, and may leave only once: from here if this process sends,
        too, or shuts the connection down; not if it only reads, or closes its copy."""
        super().after_fork_in_child()
        self._left_to_parent = bool(self._line or self._interjected)

    def send(self, transport: Transport, data: memoryview, deadline: Deadline, *, more: bool = False) -> int:
        """Sends from the front of `data` what can be sent in the time allowed; returns the number of octets accepted.

        Args:
            more: MSG_MORE, handed on to the kernel.

        Raises:
            BlockingIOError, socket.timeout: none could be.
        """
        if (self._turn_here() or self._sending_here()) and self._interrupts_sending():
            return self._interject(transport, data, deadline)
        owed = None
        try:
            try:
                deadline.acquire(self._turn)
                self._more = more
                if not data:
                    return self._send_nothing(transport, deadline)
                if self._records is None or self._failure or self._no_more_sending or self._line or self._interjected:
                    self._check_turn(transport)
                    self._flush_others(transport, deadline)
                if deadline.timeout is not None:
                    self._await_room(transport, deadline)
                swallowed = 0 if self._owed is None else self._swallow_owed(data)
                accepted, owed = self._send_some(transport, data, swallowed, deadline)
                if owed is not None:
                    self._owed = owed
                return accepted
            finally:
                try:  # noqa: SIM105 - on the way into suppress() a signal handler may raise
                    self._turn.release()
                except RuntimeError:
                    pass
                if self._interjected:
                    self.flush_in_passing(transport, _at_once(deadline))
        except BaseException:
            # Who has not been told how much was accepted does not come back with the rest.
            if owed is not None and self._owed is owed:
                self._owed = None
            raise

    def _send_some(
        self, transport: Transport, data: memoryview, accepted: int, deadline: Deadline
    ) -> tuple[int, tuple[int] | None]:
        """Goes on behind the octets `accepted` already; returns how many are now, and what octet will be owed."""
        while accepted < len(data):
            if accepted and deadline.timeout is not None and not transport.wait_writable(Deadline(0)):
                break
            first = not accepted
            # Released in any case: an error's traceback must not keep the caller's buffer from being resized.
            with data[accepted : accepted + self.records.max_plaintext] as chunk:
                left_already = self._send_message(transport, chunk)
                accepted += len(chunk)
            if not left_already and not self._flush_own(transport, deadline if first else _at_once(deadline)):
                if self._no_more_sending:
                    break  # all of it is accepted, and leaves
                if accepted == 1:
                    self._owed = (data[0],)
                    raise deadline.passed()
                return accepted - 1, (data[accepted - 1],)
        return accepted, None

    def send_all(self, transport: Transport, data: memoryview, deadline: Deadline, *, more: bool = False) -> None:
        """Sends all of `data`.

        Args:
            more: MSG_MORE, handed on to the kernel.

        Raises:
            BlockingIOError, socket.timeout: the time did not suffice. What is left of a message begun will go out
                with the next call; as with a plain socket, there is no telling how much of `data` was accepted.
        """
        if (self._turn_here() or self._sending_here()) and self._interrupts_sending():
            self._interject(transport, data, deadline)
            return
        try:
            deadline.acquire(self._turn)
            self._more = more
            if not data:
                self._send_nothing(transport, deadline)
            elif self._records is None or self._failure or self._no_more_sending or self._line or self._interjected:
                self._check_turn(transport)
                self._flush_others(transport, deadline)
            accepted = 0 if self._owed is None else self._swallow_owed(data)
            most = self.records.max_plaintext
            while accepted < len(data):
                if deadline.timeout is not None:
                    self._await_room(transport, deadline)
                with data[accepted : accepted + most] as chunk:
                    accepted += len(chunk)
                    if 0 < len(data) - accepted <= min(SHORT, most):
                        with data[accepted:] as rest:
                            left_already = self._send_message(transport, chunk, rest)
                        accepted = len(data)
                    else:
                        left_already = self._send_message(transport, chunk)
                if not left_already and not self._flush_own(transport, deadline):
                    self._check_turn(transport)
                    raise deadline.passed()
                deadline.begin_again()
        finally:
            try:  # noqa: SIM105 - as above
                self._turn.release()
            except RuntimeError:
                pass
            if self._interjected:
                self.flush_in_passing(transport, _at_once(deadline))

    def _check_turn(self, transport: Transport) -> None:
        self._check_sendable()
        if self._no_more_sending:
            transport.send(b"")  # the kernel may have an error to tell first
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def _check_sendable(self) -> None:
        if self._records is None:
            _ = self.records
        self._check_not_failed()

    def _send_nothing(self, transport: Transport, deadline: Deadline) -> int:
        self._check_turn(transport)
        if deadline.timeout != 0:
            self._flush_others(transport, deadline)
        return transport.send(b"")  # an error that is waiting to be told is told

    def _flush_others(self, transport: Transport, deadline: Deadline) -> None:
        """Hands over what was in line before a call's own data."""
        if not self._flush_own(transport, deadline):
            self._check_turn(transport)
            raise deadline.passed()

    def _await_room(self, transport: Transport, deadline: Deadline) -> None:
        """Waits for room in the kernel before a message is made: one that cannot leave at all would be owed for
        nothing. Where a call may wait without end, it will leave in any case."""
        if not self._wait_for_room(transport, deadline):
            self._check_turn(transport)
            raise deadline.passed()

    def _swallow_owed(self, data: memoryview) -> int:
        """1 if the first octet has left already, by a call that was told otherwise; else 0."""
        if not len(data):
            return 0
        if (data[0],) != self._owed:
            if self._interrupted(_SENDING) is not None:
                return 0  # not to be had from this one: who owes it has not been told yet
            raise OSError(
                errno.EPROTO,
                "the data not accepted by the last send() must be sent next: a part of it is on its way already",
            )
        self._owed = None
        return 1

    def _send_message(self, transport: Transport, data: Octets, rest: Octets = b"") -> bool:
        """Puts a message in line, or two, and hands over what the kernel takes now; returns whether nothing is left."""
        with self._sending:
            if self._no_more_sending or self._failure:
                self._check_turn(transport)
            self._put_in_line(data)
            if rest:
                self._put_in_line(rest)
            return self._hand_over(transport)

    def _hand_over(self, transport: Transport) -> bool:
        if self._interjected:
            self._put_interjected_in_line()
        return self._line.hand_over(transport, self._records, more=self._more)

    def _put_in_line(self, data: Octets) -> None:
        assert self._records is not None  # or there would be nothing to send
        self._records.protect_onto(self._line.tokens, data)
        self.octets_sent += len(data)

    def _flush_own(self, transport: Transport, deadline: Deadline) -> bool:
        """As `flush`, for the call whose turn it is: False, too, if there is nothing more to be sent by it."""
        while not self._move_on(transport):
            if not deadline.allows_waiting() or not self._wait_for_room(transport, deadline):
                return False
        return True

    def _wait_for_room(self, transport: Transport, deadline: Deadline) -> bool:
        """Waits for room in the kernel; False if the time ran out first, or another thread has shut the connection down
        meanwhile. The kernel is not told of that before what is in line has left: so it cannot wake who waits here."""
        while not self._no_more_sending:
            remaining = deadline.remaining()
            last = remaining is not None and remaining <= LOOK_UP
            if transport.wait_writable(deadline if last else Deadline(LOOK_UP)):
                return True
            if last:
                return False
        return False

    def enqueue(self, data: Octets) -> None:
        """Protects up to `max_plaintext` octets and puts the message in line; `flush` moves it on. Never waits."""
        if self._sending_here() and self._interrupts_sending():
            self._interjected.append(bytes(data))
            return
        with self._sending:
            self._check_sendable()
            self._put_in_line(data)

    def flush(self, transport: Transport, deadline: Deadline) -> bool:
        """Hands what is in line to the kernel; False if the time ran out before all was."""
        if self._sending_here() and self._interrupts_sending():
            return True  # the call that has been interrupted sees to it
        while not self._move_on(transport):
            if not deadline.allows_waiting() or not transport.wait_writable(deadline):
                return False
        return True

    def flush_in_passing(self, transport: Transport, deadline: Deadline | None = None) -> bool:
        """As `flush`, for a call that is not there to send; without a deadline it does not wait. True, too, if what is
        in line is none of its business."""
        if self._left_to_parent:
            return True
        if self._sending_here() and self._interrupts_sending():
            return False
        try:
            return self.flush(transport, deadline or Deadline(0))
        except OSError:
            return True  # the connection is gone, and with it whoever was to receive this

    def _has_to_send(self) -> bool:
        return not self._left_to_parent and bool(self._line or self._interjected)

    def _move_on(self, transport: Transport) -> bool:
        """Hands over what the kernel takes now; returns whether nothing is left."""
        self._left_to_parent = False
        with self._sending:
            left = self._hand_over(transport)
        return left and not self._interjected

    # What interrupts another call of the same thread

    def _interrupts_sending(self) -> bool:
        """Whether a call by the thread that has `_turn` or `_sending` has interrupted the one that took it."""
        if self._interrupted(_SENDING) is not None:
            return True
        let_go_of(self._turn)
        let_go_of(self._sending)
        return False

    def _interject(self, transport: Transport, data: memoryview, deadline: Deadline) -> int:
        """Leaves all of `data` to the call that has been interrupted; returns its length. To wait for room would be of
        no use: that call cannot make any before this one has returned."""
        self._check_turn(transport)
        if not data:
            return 0
        if self._line and not deadline.allows_waiting():
            raise deadline.passed()
        if sum(map(len, self._interjected)) >= MAX_INTERJECTED:
            raise OSError(
                errno.ENOBUFS,
                "the call interrupted by this one (in a signal handler or a finalizer) has no room to send on the same "
                "connection, and much has been left to it already: send after it",
            )
        self._interjected.append(bytes(data))
        return len(data)

    def _put_interjected_in_line(self) -> None:
        size = self.records.max_plaintext
        while self._interjected:
            self._check_not_failed()
            data = self._interjected.popleft()
            for start in range(0, len(data), size):
                self._put_in_line(data[start : start + size])


_SENDING = frozenset(
    method.__code__
    for method in (
        Sending.send,
        Sending.send_all,
        Sending.enqueue,
        Sending.flush,
    )
)


def _at_once(deadline: Deadline) -> Deadline:
    return deadline if deadline.timeout is None else Deadline(0)
