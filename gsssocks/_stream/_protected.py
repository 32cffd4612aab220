"""One tunnelled connection from its negotiation to its end."""

from __future__ import annotations

import errno
import logging
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gsssocks._lingering import Patience, finish_later
from gsssocks._log import log
from gsssocks._transport import Deadline, Transport, call_within
from gsssocks.exceptions import ProxyError, proxy_connection_error, proxy_timeout

from ._receiving import MIN_READ_SIZE, Receiving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks._negotiation import Negotiation
    from gsssocks._record import Records

__all__ = ["ProtectedStream"]


class ProtectedStream(Receiving):
    """One tunnelled connection: what is sent and received through it is user data; what the kernel sees is messages.

    It has no descriptor of its own. Each call is given the transport of the socket it is made on, since several
    sockets may share a connection (`dup`).

    Args:
        records: the record layer; None if a negotiation is to bring it.

    Attributes:
        octets_sent: of user data, that have left or are in line.
    """

    def __init__(self, records: Records | None = None) -> None:
        super().__init__(records)

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
        except ProxyError:
            raise
        except socket.timeout:
            raise proxy_timeout(negotiation.phase, peer) from None
        except ConnectionError as error:
            # A peer that closes with octets of ours unread resets the connection: it means the same.
            raise negotiation.ended() from error
        except OSError as error:
            raise proxy_connection_error(error, peer) from error

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

    # Ending

    def shut_down(self, transport: Transport, how: int) -> None:
        """shutdown(2). What is in line still leaves, if need be after this call, as it would from the kernel's
        buffer."""
        self._no_more_reading |= how != socket.SHUT_WR
        self._no_more_sending |= how != socket.SHUT_RD
        if how == socket.SHUT_RD:
            transport.shutdown(how)
            return
        self._left_to_parent = False  # it cannot send it any more, either
        if self.flush_in_passing(transport):
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
            if self._failure or self.flush_in_passing(transport) or transport.resets_on_close:
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
