"""The pump: moves octets between the kernel and the record layer of one tunnelled TCP connection. All waiting is done
here.

Two things make it more than a pair of loops.

*Readability must stay true.* The application may ask select(), poll() or epoll about its file descriptor at any
moment, and they only know the kernel's buffer. So the pump looks at what has arrived with MSG_PEEK, unprotects no
more messages than the caller's request needs, and takes from the kernel just what it has used up; while plaintext is
waiting, at least one octet stays there, if need be the last one of a message already unprotected (`_used_up` counts
such octets). The beginning of an incomplete message is taken out, or the descriptor would be readable without any
progress possible.

*A message, once protected, must leave whole.* Its sequence number is spent: leaving out, repeating or changing a part
of it ends the connection. On a socket that does not wait, the kernel may take a part only. The rest is kept in
`_unsent`, and the application is told that one octet fewer was accepted than really was: so it will come back when
the descriptor is writable, bringing that octet (`_owed`) again, which is then swallowed. Nothing is lost whenever a
wait ends early, by timeout or by signal.

Locks: `_receiving` belongs to whoever reads, also while waiting; `_turn` to whoever sends a whole call's data, also
while waiting; `_sending` guards protecting and handing to the kernel, and is never held while waiting. So a reader
and a writer never wait for each other, and writers' data stays whole. During the negotiation its driver holds
`_receiving` and `_turn`.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Callable, ClassVar

from . import _originals
from ._log import log
from ._transport import Deadline, Transport, call_within
from .exceptions import ProtocolError, ProxyError, proxy_connection_error, proxy_timeout, truncated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._negotiation import Negotiation
    from ._protocol import Octets
    from ._record import Records

__all__ = ["LINGER", "ProtectedStream"]

READ_SIZE = 66 * 1024
"""Octets looked at in one go, at most: a full message (65,539 octets), the octet that may lie before it, and no second
full one. Of two, an application that asks for 64 KiB would get nearly all of the first and a little of the second, for
which both have to be copied; one alone is handed out as it is. What is looked at beyond it would be copied in vain."""
MIN_READ_SIZE = 16 * 1024
SHORT = 4096
"""Octets, at most, of a last message that leaves by the same system call as the full one before it."""
LINGER = 60.0
"""Seconds for which the rest of a message is still sent after close() or shutdown()."""


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
        self._unsent = bytearray()
        self._owed: int | None = None
        self._used_up = 0
        self._ended = False
        self._no_more_reading = False
        self._no_more_sending = False
        self._handing_over = False
        self._more = False
        self._failure: Exception | None = None
        self.octets_sent = 0
        self._octets_before_data = 0

    def _make_locks(self) -> None:
        self._receiving = threading.Lock()
        self._turn = threading.Lock()
        self._sending = threading.Lock()

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
            yield

    def negotiate(self, transport: Transport, negotiation: Negotiation, deadline: Deadline, peer: str) -> None:
        """Drives a negotiation, of either role, to its end over a connected transport.

        Raises:
            ProxyError: it failed; the connection is of no use any more.
        """
        # An earlier one, on another connection, may have left something.
        self._unsent.clear()
        self._used_up = 0
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
        self._used_up = step.taken
        if negotiation.complete and negotiation.records is not None:
            self._records = negotiation.records
            self._octets_before_data = self._records.octets_received - len(self._records.plaintext)
        self._settle(transport)
        return step.to_send

    def _send_plainly(self, transport: Transport, octets: bytes, deadline: Deadline) -> None:
        self._unsent += octets
        try:
            sent = self.flush(transport, deadline)
        except ConnectionError:
            # The peer has gone. What it said before explains more than this, and is heard next.
            self._unsent.clear()
            return
        if not sent:
            raise socket.timeout("timed out")

    # Receiving

    def receive(self, transport: Transport, size: int, deadline: Deadline, *, peek: bool = False) -> bytes:
        """At most `size` octets of user data, at least one unless the stream has ended.

        Args:
            peek: leave the octets to be received again.

        Raises:
            BlockingIOError, socket.timeout: nothing arrived in the time allowed.
            ProxyError: what arrived is damaged, unprotected or cut short; the connection is of no use any more.
        """
        if not size:
            return b""
        deadline.acquire(self._receiving)
        try:
            self._fill(transport, size, deadline, more=peek)
            plaintext = self.records.plaintext
            octets = plaintext.look(size) if peek else plaintext.take(size)
            self._settle(transport)
            return octets
        finally:
            self._receiving.release()

    def receive_into(self, transport: Transport, view: memoryview, deadline: Deadline, *, peek: bool = False) -> int:
        """As `receive`, into `view`; returns the number of octets."""
        if not view:
            return 0
        deadline.acquire(self._receiving)
        try:
            self._fill(transport, len(view), deadline, more=peek)
            plaintext = self.records.plaintext
            count = plaintext.peek_into(view)
            if not peek:
                plaintext.drop(count)
            self._settle(transport)
            return count
        finally:
            self._receiving.release()

    def _fill(self, transport: Transport, size: int, deadline: Deadline, *, more: bool) -> None:
        """Returns when there is plaintext, or there will be none. `_settle` must follow.

        Args:
            size: octets the caller could use.
            more: whether to look for up to `size` octets although some are there (for a peek, which may see several
                messages).
        """
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
            elif deadline.timeout == 0 or not self._wait_for_octets(transport, deadline):
                raise deadline.passed()

    def _wait_for_octets(self, transport: Transport, deadline: Deadline) -> bool:
        """Waits until it is worth looking again. What is in line is sent meanwhile: the peer may answer nothing before
        it has that, and there may be no other thread to do it."""
        if not self._unsent:
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
        if not records.plaintext:
            self._settle(transport)
        with _Buffer() as buffer:
            look = max(MIN_READ_SIZE, records.hint, 2 * size)
            view = buffer[: min(look + self._used_up, READ_SIZE)]
            count = transport.peek(view)
            if count is None or (count and count == self._used_up):
                return False
            if not count:
                self._end()
                return True
            try:
                self._used_up += records.receive(view[self._used_up : count], size)
            except ProxyError as error:
                # Kept for later: what was unprotected before it comes first.
                self._fail(transport, error)
            return True

    def _settle(self, transport: Transport) -> None:
        """Takes used-up octets out of the kernel, all but one while there is plaintext: the descriptor stays
        readable."""
        keep = 1 if self._records is not None and self._records.plaintext else 0
        if self._used_up <= keep:
            return
        with _Buffer() as buffer:
            while self._used_up > keep:
                taken = self._taken(transport, buffer[: self._used_up - keep])
                self._used_up = self._used_up - taken if taken else 0

    def _taken(self, transport: Transport, view: memoryview) -> int:
        """How many octets were taken; 0 after a failure, which is kept: the plaintext that is there comes first."""
        try:
            taken = transport.take(view)
        except OSError as error:
            self._failure = error
            return 0
        if not taken:
            self._fail(transport, ProtocolError(errno.EPROTO, "somebody else has read from this connection"))
        return taken

    def _end(self) -> None:
        # After shutdown(SHUT_RD) the end is one of the moment: Linux still delivers what arrives later.
        self._ended = True
        if self.records.partial and not self._no_more_reading:
            self._failure = self._explained(
                truncated("the connection to the proxy ended inside a message: data is missing")
            )

    def _fail(self, transport: Transport, error: Exception) -> None:
        """Ends the connection in both directions for good. The descriptor becomes readable, so that the error is
        noticed."""
        self._failure = self._explained(error)
        self._used_up = 0
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
        with deadline.holding(self._turn):
            self._check_turn(transport)
            self._more = more
            if not data and deadline.timeout == 0:
                return transport.send(data)  # an error that is waiting to be told is told
            if not self.flush(transport, deadline):
                raise deadline.passed()
            if not data:
                return transport.send(data)
            self._await_room(transport, data, deadline)
            accepted = self._swallow_owed(data)
            while accepted < len(data):
                if accepted and deadline.timeout is not None and not transport.wait_writable(Deadline(0)):
                    break
                first = not accepted
                # Released in any case: an error's traceback must not keep the caller's buffer from being resized.
                with data[accepted : accepted + self.records.max_plaintext] as chunk:
                    self.enqueue(chunk)
                    accepted += len(chunk)
                if not self.flush(transport, deadline if first else _at_once(deadline)):
                    accepted -= 1
                    self._owed = data[accepted]
                    break
            if not accepted:
                raise deadline.passed()
            return accepted

    def send_all(self, transport: Transport, data: memoryview, deadline: Deadline, *, more: bool = False) -> None:
        """Sends all of `data`.

        Args:
            more: MSG_MORE, handed on to the kernel.

        Raises:
            BlockingIOError, socket.timeout: the time did not suffice. What is left of a message begun will go out
                with the next call; as with a plain socket, there is no telling how much of `data` was accepted.
        """
        with deadline.holding(self._turn):
            self._check_turn(transport)
            self._more = more
            if self._unsent and not self.flush(transport, deadline):
                raise deadline.passed()
            if not data:
                transport.send(data)  # an error that is waiting to be told is told
            accepted = self._swallow_owed(data)
            while accepted < len(data):
                self._await_room(transport, data, deadline)
                with data[accepted : accepted + self.records.max_plaintext] as chunk:
                    self.enqueue(chunk)
                    accepted += len(chunk)
                if 0 < len(data) - accepted <= min(SHORT, self.records.max_plaintext):
                    with data[accepted:] as rest:
                        self.enqueue(rest)  # leaves by the same system call
                    accepted = len(data)
                if not self.flush(transport, deadline):
                    raise deadline.passed()

    def _await_room(self, transport: Transport, data: memoryview, deadline: Deadline) -> None:
        """Waits for room in the kernel before a message is made: one that cannot leave at all would be owed for
        nothing.

        Where a call may wait without end, it will leave in any case.
        """
        if data and deadline.timeout is not None and not transport.wait_writable(deadline):
            raise deadline.passed()

    def _swallow_owed(self, data: memoryview) -> int:
        """1 if the first octet has left already, by a call that was told otherwise; else 0."""
        if self._owed is None or not len(data):
            return 0
        if data[0] != self._owed:
            raise OSError(
                errno.EPROTO,
                "the data not accepted by the last send() must be sent next: a part of it is on its way already",
            )
        self._owed = None
        return 1

    def enqueue(self, data: Octets) -> None:
        """Protects up to `max_plaintext` octets and puts the message in line; `flush` moves it on. Never waits."""
        with self._sending:
            self._check_sendable()
            self._unsent += self.records.protect(data)
            self.octets_sent += len(data)

    def flush(self, transport: Transport, deadline: Deadline) -> bool:
        """Hands what is in line to the kernel; False if the time ran out before all was."""
        while True:
            with self._sending:
                self._hand_over(transport)
                if not self._unsent:
                    return True
            if deadline.timeout == 0 or not transport.wait_writable(deadline):
                return False

    def _hand_over(self, transport: Transport) -> None:
        if not self._unsent:
            return
        if self._handing_over:
            # A signal handler raised between the kernel's answer and our taking note of it.
            self._fail(
                transport, ProtocolError(errno.EPROTO, "interrupted while sending: it is not known how much has left")
            )
            self._check_sendable()
        self._handing_over = True
        try:
            sent = transport.send(self._unsent, more=self._more)
        except OSError:
            self._handing_over = False
            raise
        del self._unsent[:sent]
        self._handing_over = False

    # Ending

    def shut_down(self, transport: Transport, how: int) -> None:
        """shutdown(2). What is in line still leaves, if need be after this call, as it would from the kernel's
        buffer."""
        if how in (socket.SHUT_RD, socket.SHUT_RDWR):
            self._no_more_reading = True
        if how == socket.SHUT_RD or self._flushed(transport):
            transport.shutdown(how)
        else:
            self._finish_later(transport, lambda late: self._shut_down_late(late, how))
        self._no_more_sending |= how != socket.SHUT_RD

    def let_go(self, transport: Transport) -> None:
        """To be called before the last descriptor is closed: what is in line still leaves."""
        if not self._failure and not self._flushed(transport):
            self._finish_later(transport, self._linger)
        transport.release()

    def _flushed(self, transport: Transport) -> bool:
        try:
            return self.flush(transport, Deadline(0))
        except OSError:
            return True  # the connection is gone, and with it whoever was to receive this

    def _shut_down_late(self, late: Transport, how: int) -> None:
        if self.flush(late, Deadline(LINGER)):
            late.shutdown(how)

    def _linger(self, late: Transport) -> None:
        """Sends what is in line, unless data arrives that nobody will read: the kernel answers that with a reset on
        close, as for any socket, and a peer that waits for its reader is not kept waiting."""
        deadline = Deadline(LINGER)
        one = memoryview(bytearray(1))
        while not self.flush(late, Deadline(0)):
            seen = late.peek(one)
            if seen or not (late.wait_either(deadline) if seen is None else late.wait_writable(deadline)):
                return

    def _finish_later(self, transport: Transport, finishing: Callable[[Transport], None]) -> None:
        fd = os.dup(transport.fd)
        late = Transport(fd, transport.family)

        def finish() -> None:
            with suppress(OSError):
                finishing(late)
            late.release()
            os.close(fd)

        # Not a daemon: the interpreter's end must not cut off what the application has handed over.
        try:
            _originals.Thread(target=finish, name="gsssocks-linger").start()
        except RuntimeError:
            finish()  # the interpreter is ending already, and starts no more threads


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
