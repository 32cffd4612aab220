"""One client's connection, from the greeting to the end."""

from __future__ import annotations

import errno
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Callable, TypeVar

from gsssocks._negotiation import NO_ADDRESS, ServerNegotiation
from gsssocks._protocol import Address, Command, Reply
from gsssocks._record import ProtectedRecords
from gsssocks._stream import ProtectedStream
from gsssocks._transport import Deadline

from ._bind import Rendezvous
from ._flows import READ_SIZE, ClientEnd, TargetEnd, relay
from ._rules import COMMANDS
from ._sockets import local_address, make_prompt, reset_on_close
from ._udp import Association, Envelopes
from ._waiting import CountingTransport, Stopped
from ._ways import Ways

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gsssocks import _originals
    from gsssocks._protocol import Request
    from gsssocks._record import Records
    from gsssocks._security import SecurityContext

    from ._rules import Permission
    from ._session import Session
    from ._terms import Terms
    from ._waiting import StopSign

__all__ = ["Client", "reply_code"]

T = TypeVar("T")

FAREWELL_SECONDS = 2.0
"""How long to wait for a client to close after it has been refused something (RFC 1928, section 6: at most ten)."""
FAREWELL_READS = 16

_COMMAND_NAMES: Mapping[int, str] = {command: name for name, command in COMMANDS.items()}

# RFC 1928, section 6.
_SUCCEEDED = 0
_GENERAL_FAILURE = 1
_HOST_UNREACHABLE = 4
_TTL_EXPIRED = 6
_REPLY_CODES: Mapping[int, int] = {
    errno.EACCES: 2,
    errno.EPERM: 2,
    errno.ENETUNREACH: 3,
    errno.ENETDOWN: 3,
    errno.EHOSTUNREACH: _HOST_UNREACHABLE,
    errno.EHOSTDOWN: _HOST_UNREACHABLE,
    errno.ECONNREFUSED: 5,
    errno.ETIMEDOUT: _TTL_EXPIRED,
    errno.EOPNOTSUPP: 7,
    errno.EAFNOSUPPORT: 8,
}


def reply_code(error: OSError) -> int:
    """REP for a target that could not be reached (RFC 1928, section 6)."""
    if isinstance(error, socket.gaierror):
        return _HOST_UNREACHABLE
    if isinstance(error, socket.timeout):
        return _TTL_EXPIRED
    return _REPLY_CODES.get(error.errno or 0, _GENERAL_FAILURE)


class Client:
    """One client's connection, from the greeting to the end.

    Args:
        sock: the connection. It is closed in the end.
        session: where to write down what happens.
        keep_place: called when the client is authenticated, and before its connection is closed.
    """

    def __init__(
        self,
        sock: _originals.SocketType,
        session: Session,
        terms: Terms,
        stop: StopSign,
        keep_place: Callable[[], None],
    ) -> None:
        self._socket = sock
        self._session = session
        self._terms = terms
        self._stop = stop
        self._keep_place = keep_place
        self._accepted = time.monotonic()
        self._transport = CountingTransport(sock.fileno(), sock.family, stop)
        self._stream = ProtectedStream()
        self._records: Records | None = None

    def serve(self) -> None:
        """Does everything. What goes wrong between client, proxy and target is in `session.error` afterwards."""
        try:
            self._converse()
        except Stopped:
            self._session.error = OSError(errno.ECANCELED, "the proxy was stopped")
        except OSError as error:
            # A new instance: the frames of this one's traceback would keep the connection's objects alive for as long
            # as the session is remembered. There is an error already where we have ended the connection.
            self._session.error = self._session.error or type(error)(*error.args)
        except Exception as error:
            self._session.error = error
            raise
        finally:
            self._note_figures()
            self._transport.release()
            self._keep_place()
            self._socket.close()

    def _converse(self) -> None:
        make_prompt(self._socket)
        context = self._context()
        request = self._negotiate(context)
        permission = self._terms.rules.concerning(self._session.principal or "", request.command)
        ways = Ways(permission, self._terms.hosts, self._stop)
        if request.command == Command.CONNECT:
            self._serve_connect(request.address, ways)
        elif request.command == Command.BIND:
            self._serve_bind(request.address, permission, ways)
        elif request.command == Command.UDP_ASSOCIATE:
            self._serve_udp(Envelopes(context, self._stream.records), permission, ways)
        else:
            self._obtain(lambda: self._unsupported(request.command))

    # Up to the answer

    def _context(self) -> SecurityContext:
        # Imported here: a program that only mentions the server owes nobody the price of gssapi.
        from gsssocks._gss import Acceptor

        return Acceptor(keytab=self._terms.keytab)

    def _negotiate(self, context: SecurityContext) -> Request:
        terms = self._terms
        negotiation = ServerNegotiation(
            context,
            levels=terms.levels,
            authorize=self._authorized,
            nec=terms.nec,
            counter_offer=terms.counter_offer,
            confidential=terms.confidential,
        )
        deadline = Deadline(terms.negotiation_timeout)
        try:
            self._stream.negotiate(self._transport, negotiation, deadline, f"client {self._session.client}")
        except Exception:
            self._refuse(negotiation.farewell())
            raise
        finally:
            self._note_context(context)
            self._records = negotiation.records
        request = negotiation.request
        assert request is not None
        self._session.command = _COMMAND_NAMES.get(request.command, str(request.command))
        self._session.destination = request.address
        return request

    def _authorized(self, principal: str) -> bool:
        authorized = self._terms.authorize(principal)
        if authorized:
            self._keep_place()
        return authorized

    def _obtain(self, function: Callable[[], T]) -> T:
        """What the client asks for. Where it cannot be had, that is the answer."""
        try:
            return function()
        except OSError as error:
            self._answer(reply_code(error), NO_ADDRESS)
            self._take_leave()
            raise

    def _answer(self, code: int, bound: Address) -> None:
        self._session.reply = code
        self._session.bound = self._session.bound or (bound if not code else None)
        self._session.round_trips = self._transport.flights
        reply = memoryview(Reply(code, bound).encode())
        self._stream.send_all(self._transport, reply, Deadline(self._terms.negotiation_timeout))
        self._session.setup_seconds = time.monotonic() - self._accepted

    def _refuse(self, farewell: bytes) -> None:
        if farewell:
            with suppress(OSError):
                self._transport.send(farewell)
            self._take_leave()

    def _take_leave(self) -> None:
        """Ends our side, and gives the client the time to end its own: octets of the client's that nobody has read
        would turn our close into a reset, which destroys the answer before the client has read it."""
        deadline = Deadline(FAREWELL_SECONDS)
        view = memoryview(bytearray(READ_SIZE))
        with suppress(OSError):
            self._transport.shutdown(socket.SHUT_WR)
            for _ in range(FAREWELL_READS):
                if not self._transport.wait_readable(deadline) or not self._transport.take(view):
                    return

    # The three commands

    @staticmethod
    def _unsupported(command: int) -> None:
        raise OSError(errno.EOPNOTSUPP, f"command {command} is not supported")

    def _serve_connect(self, destination: Address, ways: Ways) -> None:
        target = self._obtain(lambda: ways.connect(destination, Deadline(self._terms.connect_timeout)))
        self._join(target, local_address(target))

    def _serve_bind(self, expected: Address, permission: Permission, ways: Ways) -> None:
        deadline = Deadline(self._terms.connect_timeout)
        rendezvous = self._obtain(lambda: Rendezvous(expected, permission, ways, self._socket, deadline))
        try:
            self._answer(_SUCCEEDED, rendezvous.address)
            waiting = Deadline(self._terms.bind_timeout)
            target, peer = self._obtain(lambda: rendezvous.wait(self._transport, self._stop, waiting))
        finally:
            rendezvous.close()
        self._join(target, peer)

    def _serve_udp(self, envelopes: Envelopes, permission: Permission, ways: Ways) -> None:
        association = self._obtain(
            lambda: Association(self._socket, self._transport, envelopes, permission, ways, self._session)
        )
        try:
            self._answer(_SUCCEEDED, association.address)
            association.run(self._stop)
        except BaseException:
            reset_on_close(self._socket)
            raise
        finally:
            association.close()

    def _join(self, target: _originals.SocketType, bound: Address) -> None:
        try:
            self._answer(_SUCCEEDED, bound)
            client_end = ClientEnd(self._stream, self._transport)
            # What is read from the target at once fits one message.
            target_end = TargetEnd(target, min(READ_SIZE, self._stream.records.max_plaintext))
            relay(client_end, target_end, self._stop, self._note_progress)
        except BaseException:
            # Closing alone would tell the other side that the data are complete.
            reset_on_close(self._socket)
            reset_on_close(target)
            raise
        finally:
            target.close()

    # What is written down

    def _note_context(self, context: SecurityContext) -> None:
        if not context.complete:
            return
        self._session.principal = context.initiator_name
        self._session.service = context.target_name
        self._session.mechanism = context.mechanism

    def _note_progress(self, received: int, sent: int) -> None:
        self._session.octets_received, self._session.octets_sent = received, sent
        self._note_figures()

    def _note_figures(self) -> None:
        session = self._session
        session.wire_received, session.wire_sent = self._transport.received, self._transport.sent
        if self._records is not None:
            session.protection = self._records.level.name.lower()
        if isinstance(self._records, ProtectedRecords):
            session.tokens_received = self._records.tokens_received
            session.tokens_sent = self._records.tokens_sent
