"""Inwards: what has arrived in the kernel into plaintext, and plaintext to whoever asks for it.

*Readability must stay true.* The application may ask select(), poll() or epoll about its file descriptor at any
moment, and they only know the kernel's buffer. So what has arrived is looked at with MSG_PEEK, no more messages are
unprotected than the caller's request needs, and just what has been used up is taken from the kernel; while plaintext is
waiting, at least one octet stays there, if need be the last one of a message already unprotected. The beginning of an
incomplete message is taken out, or the descriptor would be readable without any progress possible.
"""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar

from gsssocks._transport import HUNG_UP, Deadline, Transport
from gsssocks.exceptions import ProtocolError, ProxyError, truncated

from ._sending import Sending
from ._state import let_go_of

if TYPE_CHECKING:
    from gsssocks._record import Records

__all__ = ["MIN_READ_SIZE", "Receiving"]

READ_SIZE = 66 * 1024
"""Octets looked at in one go, at most: a full message (65,539 octets), the octet that may lie before it, and no second
full one. Of two, an application that asks for 64 KiB would get nearly all of the first and a little of the second, for
which both have to be copied; one alone is handed out as it is. What is looked at beyond it would be copied in vain."""
MIN_READ_SIZE = 16 * 1024
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


class Receiving(Sending):
    """See `ProtectedStream`. It builds on `Sending`, since what is in line leaves while a reader waits."""

    def __init__(self, records: Records | None) -> None:
        super().__init__(records)
        self._used_up = 0
        self._opening = 0 if records is None else -records.position
        self._taken: list[int] = []
        self._unsettled = False
        self._ended = False
        self._octets_before_data = 0

    @property
    def octets_received(self) -> int:
        """Octets of user data that have been unprotected."""
        return self.records.octets_received - self._octets_before_data

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
            try:  # noqa: SIM105 - as in `send`
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
            let_go_of(self._receiving)
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
        if not self._has_to_send() or self._sending_here():
            return transport.wait_readable(deadline)
        if not transport.wait_either(deadline):
            return False
        # An error is for the reader: to send would take it away.
        if not transport.wait_readable(Deadline(0)):
            self.flush_in_passing(transport)
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


_WAITING = Receiving._wait_for_octets.__code__  # noqa: SLF001
_RECEIVING = frozenset({Receiving.receive.__code__, Receiving.receive_into.__code__, _WAITING})
