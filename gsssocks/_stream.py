"""The pump: moves octets between the kernel and the record layer of one tunnelled TCP connection. All waiting is done
here.

Two things make it more than a pair of loops.

*Readability must stay true.* The application may ask select(), poll() or epoll about its file descriptor at any
moment, and they only know the kernel's buffer. So the pump looks at what has arrived with MSG_PEEK, unprotects no
more messages than the caller's request needs, and takes from the kernel just what it has used up; while plaintext is
waiting, at least one octet stays there, if need be the last one of a message already unprotected. The beginning of an
incomplete message is taken out, or the descriptor would be readable without any progress possible.

*A message, once protected, must leave whole.* Its sequence number is spent: leaving out, repeating or changing a part
of it ends the connection. On a socket that does not wait, the kernel may take a part only. The rest stays in
`_line`, and the application is told that one octet fewer was accepted than really was: so it will come back when
the descriptor is writable, bringing that octet (`_owed`) again, which is then swallowed. Nothing is lost whenever a
wait ends early, by timeout or by signal.

Locks: `_receiving` belongs to whoever reads, also while waiting; `_turn` to whoever sends a whole call's data, also
while waiting; `_sending` guards protecting and handing to the kernel, and is never held while waiting. So a reader
and a writer never wait for each other, and writers' data stays whole. During the negotiation its driver holds
`_receiving` and `_turn`.

*A call may interrupt another of its own thread*: a signal handler's, or a finalizer's. It cannot wait for that one to
let go of a lock. What it sends is kept in `_interjected`, whole, and put in line by the call that it has interrupted,
behind the message begun. It receives where that one is only waiting; where it is just taking what has arrived, the
error is EDEADLK: the program can come back later.

*A handler may also raise*, wherever it likes. A lock is taken inside of the `try` that lets go of it, by one call into
C, and each change of the state is one step (see `_line`, `_record`). So a call that ends like that leaves the stream
fit for the next, and loses at most what it was to receive, or to send.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
import threading
import weakref
from collections import deque
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Callable, ClassVar

from ._line import Line
from ._lingering import LOOK_UP, Patience, finish_later
from ._log import log
from ._transport import HUNG_UP, Deadline, Transport, call_within
from .exceptions import ProtocolError, ProxyError, proxy_connection_error, proxy_timeout, truncated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType, FrameType

    from ._negotiation import Negotiation
    from ._protocol import Octets
    from ._record import Records

__all__ = ["ProtectedStream"]

READ_SIZE = 66 * 1024
"""Octets looked at in one go, at most: a full message (65,539 octets), the octet that may lie before it, and no second
full one. Of two, an application that asks for 64 KiB would get nearly all of the first and a little of the second, for
which both have to be copied; one alone is handed out as it is. What is looked at beyond it would be copied in vain."""
MIN_READ_SIZE = 16 * 1024
SHORT = 4096
"""Octets, at most, of a last message that leaves by the same system call as the full one before it."""
MAX_ANSWERS = 64
"""How many of the kernel's answers are kept apart before they are added up."""


class _Buffer:
    """Room for the moment between looking and unprotecting, never across a wait: a few serve any number of
    connections."""

    __slots__ = ("_view",)
    _spare: ClassVar[list[memoryview]] = []

    def __enter__(self) -> memoryview:
        try:
            self._view = self._spare.pop()
        except IndexError:
            self._view = memoryview(bytearray(READ_SIZE))
        return self._view

    def __exit__(self, *_: object) -> None:
        if len(self._spare) < _SPARE_BUFFERS:
            self._spare.append(self._view)


_SPARE_BUFFERS = 4


class ProtectedStream:
    """One tunnelled connection: what is sent and received through it is user data; what the kernel sees is messages.

    It has no descriptor of its own. Each call is given the transport of the socket it is made on, since several
    sockets may share a connection (`dup`).

    Args:
        records: the record layer; None if a negotiation is to bring it.

    Attributes:
        octets_sent: of user data, that have left or are in line.
    """

    def __init__(self, records: Records | None = None) -> None:
        self._records = records
        self._forks = _forks
        _streams.add(self)
        self._make_locks()
        self._connecting = False
        self._line = Line()
        self._interjected: deque[bytes] = deque()
        self._owed: tuple[int] | None = None
        self._used_up = 0
        self._opening = 0 if records is None else -records.position
        self._taken: list[int] = []
        self._unsettled = False
        self._ended = False
        self._no_more_reading = False
        self._no_more_sending = False
        self._more = False
        self._failure: Exception | None = None
        self.octets_sent = 0
        self._octets_before_data = 0

    def _make_locks(self) -> None:
        # They know which thread has them. Nothing but that is made of their being re-entrant.
        self._receiving = threading.RLock()
        self._turn = threading.RLock()
        self._sending = threading.RLock()
        self._receiving_here, self._turn_here, self._sending_here = map(
            _owned, (self._receiving, self._turn, self._sending)
        )

    def after_fork_in_child(self) -> None:
        """Only the thread that called fork() lives on here: whatever lock another one holds is never released."""
        self._make_locks()

    @property
    def records(self) -> Records:
        """The record layer.

        Raises:
            OSError: ENOTCONN: there is no connection (yet, or it could not be made).
        """
        if self._records is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return self._records

    @property
    def octets_received(self) -> int:
        """Octets of user data that have been unprotected."""
        return self.records.octets_received - self._octets_before_data

    # Negotiation

    @contextmanager
    def negotiating(self) -> Iterator[None]:
        """Keeps readers and writers waiting while the connection is made."""
        with self._receiving, self._turn:
            self._connecting = True
            try:
                yield
            finally:
                self._connecting = False

    def negotiate(self, transport: Transport, negotiation: Negotiation, deadline: Deadline, peer: str) -> None:
        """Drives a negotiation, of either role, to its end over a connected transport.

        Raises:
            ProxyError: it failed; the connection is of no use any more.
        """
        # An earlier one, on another connection, may have left something.
        self._line.clear()
        self._used_up, self._opening, self._taken = 0, 0, []
        try:
            self._converse(transport, negotiation, deadline, peer)
        except socket.timeout as error:
            raise error if isinstance(error, ProxyError) else proxy_timeout(negotiation.phase, peer) from None
        except ConnectionError as error:
            # A peer that closes with octets of ours unread resets the connection: it means the same.
            raise error if isinstance(error, ProxyError) else negotiation.ended() from error
        except OSError as error:
            raise error if isinstance(error, ProxyError) else proxy_connection_error(error, peer) from error

    def _converse(self, transport: Transport, negotiation: Negotiation, deadline: Deadline, peer: str) -> None:
        start = negotiation.start
        self._send_plainly(transport, call_within(deadline, start) if negotiation.may_block else start(), deadline)
        looks = 0
        while not negotiation.complete:
            looks += 1
            if deadline.is_past(looks):
                raise socket.timeout("timed out")
            log(logging.DEBUG, "%s: %s", peer, negotiation.phase)
            self._send_plainly(transport, self._hear(transport, negotiation, deadline), deadline)

    def _hear(self, transport: Transport, negotiation: Negotiation, deadline: Deadline) -> bytes:
        view = memoryview(bytearray(MIN_READ_SIZE))
        count = transport.peek(view)
        while count is None:
            if not transport.wait_readable(deadline):
                raise socket.timeout("timed out")
            count = transport.peek(view)
        if not count:
            raise negotiation.ended()
        octets = bytes(view[:count])
        if negotiation.may_block:
            step = call_within(deadline, lambda: negotiation.receive(octets))
        else:
            step = negotiation.receive(octets)
        self._opening += step.taken
        self._used_up = step.taken
        if negotiation.complete and negotiation.records is not None:
            records = negotiation.records
            self._octets_before_data = records.octets_received - len(records.plaintext)
            self._opening -= records.position
            self._records = records
        self._settle(transport)
        return step.to_send

    def _send_plainly(self, transport: Transport, octets: bytes, deadline: Deadline) -> None:
        self._line.put(octets)
        try:
            sent = self.flush(transport, deadline)
        except ConnectionError:
            # The peer has gone. What it said before explains more than this, and is heard next.
            self._line.clear()
            return
        if not sent:
            raise socket.timeout("timed out")

    # Receiving

    def receive(
        self, transport: Transport, size: int, deadline: Deadline, *, peek: bool = False, whole: bool = False
    ) -> bytes:
        """At most `size` octets of user data, at least one unless the stream has ended.

        Args:
            peek: leave the octets to be received again.
            whole: wait for all of them, where the platform can wait for more while some are there.

        Raises:
            BlockingIOError, socket.timeout: nothing arrived in the time allowed.
            ProxyError: what arrived is damaged, unprotected or cut short; the connection is of no use any more.
        """
        if not size:
            return b""
        if self._receiving_here():
            self._check_only_waiting()
        try:
            deadline.acquire(self._receiving)
            self._fill(transport, size, deadline, more=peek)
            if whole and not self._ended:
                self._fill_whole(transport, size, deadline)
            plaintext = self.records.plaintext
            self._unsettled = True
            octets = plaintext.look(size) if peek else plaintext.take(size)
            self._settle(transport)
            self._unsettled = False
            return octets
        finally:
            try:  # noqa: SIM105 - on the way into suppress() a signal handler may raise
                self._receiving.release()
            except RuntimeError:
                pass  # it was not to be had

    def receive_into(self, transport: Transport, view: memoryview, deadline: Deadline, *, peek: bool = False) -> int:
        """As `receive`, into `view`; returns the number of octets."""
        if not view:
            return 0
        if self._receiving_here():
            self._check_only_waiting()
        try:
            deadline.acquire(self._receiving)
            self._fill(transport, len(view), deadline, more=peek)
            plaintext = self.records.plaintext
            self._unsettled = True
            count = plaintext.peek_into(view)
            if not peek:
                plaintext.drop(count)
            self._settle(transport)
            self._unsettled = False
            return count
        finally:
            try:  # noqa: SIM105 - as above
                self._receiving.release()
            except RuntimeError:
                pass

    def _check_only_waiting(self) -> None:
        """For a call by the thread that has `_receiving` already."""
        place = self._interrupted(_RECEIVING)
        if place is None:
            _let_go_of(self._receiving)
        elif place is not _WAITING:
            raise OSError(
                errno.EDEADLK,
                "the call interrupted by this one (in a signal handler or a finalizer) is just taking what has arrived "
                "on the same connection: receive after it",
            )

    def _fill(self, transport: Transport, size: int, deadline: Deadline, *, more: bool) -> None:
        """Returns when there is plaintext, or there will be none. `_settle` must follow.

        Args:
            size: octets the caller could use.
            more: whether to look for up to `size` octets although some are there (for a peek, which may see several
                messages).
        """
        if self._unsettled:
            self._recover()
        plaintext = self.records.plaintext
        if more and plaintext and len(plaintext) < size and not self._failure:
            self._unprotect_arrived(transport, size)
        looks = 0
        while not plaintext:
            self._check_not_failed()
            if self._ended:
                self._ended = not self._no_more_reading
                return
            if self._unprotect_arrived(transport, size):
                # A peer may send without end what is no data (empty messages): that must not outlast the deadline
                # either.
                looks += 1
                if not plaintext and not self._ended and deadline.is_past(looks):
                    raise deadline.passed()
            elif not deadline.allows_waiting() or not self._wait_for_octets(transport, deadline):
                raise deadline.passed()

    def _fill_whole(self, transport: Transport, size: int, deadline: Deadline) -> None:
        """Waits for the rest of `size` octets, beside those that are there."""
        plaintext = self.records.plaintext
        watch = transport.watch() if len(plaintext) < size else None
        if watch is None:
            return
        with watch:
            last, before = False, 0
            while plaintext and not self._failure and not self._ended:
                self._settle(transport)
                self._unprotect_arrived(transport, size)
                if len(plaintext) >= size or (last and len(plaintext) == before) or not deadline.allows_waiting():
                    return
                before = len(plaintext)
                if not last:
                    events = watch.poll(deadline.remaining())
                    if not events:
                        return
                    last = any(event & HUNG_UP for _, event in events)

    def _wait_for_octets(self, transport: Transport, deadline: Deadline) -> bool:
        """Waits until it is worth looking again. What is in line is sent meanwhile: the peer may answer nothing before
        it has that, and there may be no other thread to do it."""
        # What an interrupted call is just handing over leaves when that goes on.
        if not (self._line or self._interjected) or self._sending_here():
            return transport.wait_readable(deadline)
        if not transport.wait_either(deadline):
            return False
        # An error is for the reader: to send would take it away.
        if not transport.wait_readable(Deadline(0)):
            self._flushed(transport)
        return True

    def _unprotect_arrived(self, transport: Transport, size: int) -> bool:
        """Looks into the kernel once. False if nothing was there."""
        records = self.records
        self._unsettled = True
        if self._used_up and not records.plaintext:
            self._settle(transport)
        with _Buffer() as buffer:
            look = max(MIN_READ_SIZE, records.hint, 2 * size)
            view = buffer[: min(look + self._used_up, READ_SIZE)]
            count = transport.peek(view)
            if count is None or (count and count == self._used_up):
                self._unsettled = False
                return False
            if not count:
                self._end()
            else:
                try:
                    self._used_up += records.receive(view[self._used_up : count], size)
                except ProxyError as error:
                    # Kept for later: what was unprotected before it comes first.
                    self._fail(transport, error)
        self._unsettled = False
        return True

    def _settle(self, transport: Transport) -> None:
        """Takes used-up octets out of the kernel, all but one while there is plaintext: the descriptor stays
        readable."""
        keep = 1 if self._records is not None and self._records.plaintext else 0
        while self._used_up > keep:
            taken = self._taken
            answers = len(taken)
            try:
                transport.take_noting(self._used_up - keep, taken)
            except OSError as error:
                self._failure = error  # the plaintext that is there comes first
                self._take_for_taken()
                return
            if len(taken) == answers or not taken[-1]:
                self._fail(transport, ProtocolError(errno.EPROTO, "somebody else has read from this connection"))
                return
            self._used_up -= taken[-1]
            if answers > MAX_ANSWERS:
                self._taken = [sum(taken)]

    def _take_for_taken(self) -> None:
        """Nothing more is to be taken out of the kernel: the connection has failed."""
        position = 0 if self._records is None else self._records.position
        self._taken = [self._opening + position]
        self._used_up = 0

    def _recover(self) -> None:
        """Makes the state whole again after a call was broken off by an exception out of a signal handler, from what
        has been noted at each step that cannot be repeated."""
        records = self.records
        records.recover()
        self._used_up = self._opening + records.position - sum(self._taken)
        self._unsettled = False

    def _end(self) -> None:
        if self.records.partial and not self._no_more_reading:
            self._failure = self._explained(
                truncated("the connection to the proxy ended inside a message: data is missing")
            )
        # After shutdown(SHUT_RD) the end is one of the moment: Linux still delivers what arrives later.
        self._ended = True

    def _fail(self, transport: Transport, error: Exception) -> None:
        """Ends the connection in both directions for good. The descriptor becomes readable, so that the error is
        noticed."""
        self._failure = self._explained(error)
        self._take_for_taken()
        with suppress(OSError):
            transport.shutdown(socket.SHUT_RDWR)

    def _explained(self, error: Exception) -> Exception:
        """The error, with what is most likely behind it where this process has forked."""
        if self._forks == _forks:
            return error
        number, message = error.args
        return type(error)(
            number,
            f"{message} (the process has forked since it was made, and parent and child have both used it: "
            "only one of them may, since messages are numbered)",
        )

    # Sending

    def _check_turn(self, transport: Transport) -> None:
        self._check_sendable()
        if self._no_more_sending:
            transport.send(b"")  # the kernel may have an error to tell first
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def _check_sendable(self) -> None:
        if self._records is None:
            _ = self.records
        self._check_not_failed()

    def _check_not_failed(self) -> None:
        if self._failure:
            # A new instance each time: one that is raised again and again would collect tracebacks.
            raise type(self._failure)(*self._failure.args) from self._failure

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
                try:  # noqa: SIM105 - as in `receive`
                    self._turn.release()
                except RuntimeError:
                    pass
                if self._interjected:
                    self._flushed(transport, _at_once(deadline))
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
            try:  # noqa: SIM105 - as in `receive`
                self._turn.release()
            except RuntimeError:
                pass
            if self._interjected:
                self._flushed(transport, _at_once(deadline))

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

    def _move_on(self, transport: Transport) -> bool:
        """Hands over what the kernel takes now; returns whether nothing is left."""
        with self._sending:
            left = self._hand_over(transport)
        return left and not self._interjected

    # What interrupts another call of the same thread

    def _interrupted(self, places: frozenset[CodeType]) -> CodeType | None:
        """Where the call is that has been interrupted: the innermost of `places` in this stream. None if it has ended:
        in CPython 3.9, an exception out of a signal handler may come between that and its letting go of a lock.

        Raises:
            OSError: ENOTCONN: it is connecting.
        """
        if self._connecting:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        frame: FrameType | None = sys._getframe(3)  # noqa: SLF001 - without whoever asks, and whoever wants to know
        while frame is not None:
            if frame.f_code in places and frame.f_locals.get("self") is self:
                return frame.f_code
            frame = frame.f_back
        return None

    def _interrupts_sending(self) -> bool:
        """Whether a call by the thread that has `_turn` or `_sending` has interrupted the one that took it."""
        if self._interrupted(_SENDING) is not None:
            return True
        _let_go_of(self._turn)
        _let_go_of(self._sending)
        return False

    def _interject(self, transport: Transport, data: memoryview, deadline: Deadline) -> int:
        """Leaves all of `data` to the call that has been interrupted; returns its length. To wait for room would be of
        no use: that call cannot make any before this one has returned."""
        self._check_turn(transport)
        if not data:
            return 0
        if self._line and not deadline.allows_waiting():
            raise deadline.passed()
        self._interjected.append(bytes(data))
        return len(data)

    def _put_interjected_in_line(self) -> None:
        size = self.records.max_plaintext
        while self._interjected:
            self._check_not_failed()
            data = self._interjected.popleft()
            for start in range(0, len(data), size):
                self._put_in_line(data[start : start + size])

    # Ending

    def shut_down(self, transport: Transport, how: int) -> None:
        """shutdown(2). What is in line still leaves, if need be after this call, as it would from the kernel's
        buffer."""
        self._no_more_reading |= how != socket.SHUT_WR
        self._no_more_sending |= how != socket.SHUT_RD
        if how == socket.SHUT_RD or self._flushed(transport):
            transport.shutdown(how)
            return
        if how == socket.SHUT_RDWR:
            transport.shutdown(socket.SHUT_RD)  # whoever reads need not wait for that
        try:
            fd = os.dup(transport.fd)
        except OSError:
            # There is none to be had for a thread, and the application's may be closed, and mean another socket.
            self._shut_down_late(transport)
        else:
            finish_later(fd, transport.family, self._shut_down_late)

    def let_go(self, transport: Transport) -> bool:
        """To be called before the last descriptor is closed: what is in line still leaves.

        Returns:
            whether the descriptor is still the caller's, to be closed. It is not where no other was to be had for what
            is in line.
        """
        fd = transport.fd
        try:
            if self._failure or self._flushed(transport) or transport.resets_on_close:
                return True
            try:
                fd = os.dup(transport.fd)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    return True
            finish_later(fd, transport.family, self._linger)
            return fd != transport.fd
        finally:
            transport.release()

    def _flushed(self, transport: Transport, deadline: Deadline | None = None) -> bool:
        if self._sending_here() and self._interrupts_sending():
            return False
        try:
            return self.flush(transport, deadline or Deadline(0))
        except OSError:
            return True  # the connection is gone, and with it whoever was to receive this

    def _shut_down_late(self, late: Transport) -> None:
        patience = Patience(lambda: self._line.octets_left)
        try:
            while not self.flush(late, Deadline(0)):
                deadline = patience.next()
                if deadline is None:
                    return
                late.wait_writable(deadline)
        finally:
            late.shutdown(socket.SHUT_WR)

    def _linger(self, late: Transport) -> None:
        """Sends what is in line, unless data arrives that nobody will read: the kernel answers that with a reset on
        close, as for any socket, and a peer that waits for its reader is not kept waiting."""
        patience = Patience(lambda: self._line.octets_left)
        one = memoryview(bytearray(1))
        while not self.flush(late, Deadline(0)):
            seen = late.peek(one)
            deadline = patience.next()
            if seen or deadline is None:
                return
            _ = late.wait_either(deadline) if seen is None else late.wait_writable(deadline)


def _owned(lock: threading.RLock) -> Callable[[], bool]:
    """What says whether this thread has the lock. `threading.Condition` asks the same."""
    owned: Callable[[], bool] = lock._is_owned  # type: ignore[attr-defined]  # noqa: SLF001
    return owned


def _let_go_of(lock: threading.RLock) -> None:
    """Releases a lock that a call of this thread has left behind."""
    with suppress(RuntimeError):
        while True:
            lock.release()


_WAITING = ProtectedStream._wait_for_octets.__code__  # noqa: SLF001
_RECEIVING = frozenset({ProtectedStream.receive.__code__, ProtectedStream.receive_into.__code__, _WAITING})
_SENDING = frozenset(
    method.__code__
    for method in (
        ProtectedStream.send,
        ProtectedStream.send_all,
        ProtectedStream.enqueue,
        ProtectedStream.flush,
    )
)

_forks = 0
"""How many times this process, or the one it was forked from, has forked."""
_streams: weakref.WeakSet[ProtectedStream] = weakref.WeakSet()


def _after_fork_in_parent() -> None:
    global _forks
    _forks += 1


def _after_fork_in_child() -> None:
    _after_fork_in_parent()
    for stream in list(_streams):
        stream.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _at_once(deadline: Deadline) -> Deadline:
    return deadline if deadline.timeout is None else Deadline(0)
