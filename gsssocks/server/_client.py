"""One client's connection, from the greeting to the end."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import termios
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, cast

from gsssocks import _originals
from gsssocks._negotiation import NO_ADDRESS, ServerNegotiation
from gsssocks._protocol import Address, Command, ProtectionLevel, Reply
from gsssocks._record import ProtectedRecords
from gsssocks._stream import ProtectedStream
from gsssocks._transport import Deadline, call_within

from ._flows import READ_SIZE, ClientEnd, Flow, TargetEnd
from ._waiting import NEVER, CountingTransport, StoppableTransport, Stopped

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from gsssocks._protocol import Request
    from gsssocks._record import Records
    from gsssocks._security import SecurityContext

    from ._session import Session
    from ._waiting import StopSign

__all__ = ["Client", "Terms", "reply_code"]

FAREWELL_SECONDS = 2.0
"""How long to wait for a client to close after it has been refused something (RFC 1928, section 6: at most ten)."""
FAREWELL_READS = 16
LINGER_SECONDS = 10.0
"""How long what one side sent before its connection broke may take to reach the other."""
LOOK_AGAIN_SECONDS = 0.02

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger

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


@dataclass(frozen=True)
class Terms:
    """What the server does for its clients, and how long."""

    keytab: str | None
    levels: Collection[ProtectionLevel]
    authorize: Callable[[str], bool]
    negotiation_timeout: float
    connect_timeout: float
    hosts: Mapping[str, str]


class Client:
    """One client's connection, from the greeting to the end.

    Args:
        sock: the connection. It is closed in the end.
        session: where to write down what happens.
    """

    def __init__(self, sock: _originals.SocketType, session: Session, terms: Terms, stop: StopSign) -> None:
        self._socket = sock
        self._session = session
        self._terms = terms
        self._stop = stop
        self._accepted = time.monotonic()
        self._transport = CountingTransport(sock.fileno(), sock.family, stop)
        self._stream = ProtectedStream()
        self._records: Records | None = None

    def serve(self) -> None:
        """Does everything. What goes wrong between client, proxy and target is in `session.error` afterwards."""
        try:
            self._connect_through()
        except Stopped:
            self._session.error = OSError(errno.ECANCELED, "the proxy was stopped")
        except OSError as error:
            # A new instance: the frames of this one's traceback would keep the connection's objects alive for as long
            # as the session is remembered.
            self._session.error = type(error)(*error.args)
        except Exception as error:
            self._session.error = error
            raise
        finally:
            self._note_figures()
            self._transport.release()
            self._socket.close()

    def _connect_through(self) -> None:
        _make_prompt(self._socket)
        request = self._negotiate()
        target = self._open_target(request)
        try:
            self._answer(_SUCCEEDED, _bound_address(target))
            self._relay(target)
        except BaseException:
            # Closing alone would tell the other side that the data are complete.
            _reset_on_close(self._socket)
            _reset_on_close(target)
            raise
        finally:
            target.close()

    # Up to the answer

    def _negotiate(self) -> Request:
        # Imported here: a program that only mentions the server owes nobody the price of gssapi.
        from gsssocks._gss import Acceptor

        context = Acceptor(keytab=self._terms.keytab)
        negotiation = ServerNegotiation(context, levels=self._terms.levels, authorize=self._terms.authorize)
        deadline = Deadline(self._terms.negotiation_timeout)
        try:
            self._stream.negotiate(self._transport, negotiation, deadline, f"client {self._session.client}")
        except Exception:
            self._refuse(negotiation.farewell())
            raise
        finally:
            self._note_context(context)
            self._records = negotiation.records
        assert negotiation.request is not None
        self._session.destination = negotiation.request.address
        return negotiation.request

    def _open_target(self, request: Request) -> _originals.SocketType:
        try:
            if request.command != Command.CONNECT:
                raise OSError(errno.EOPNOTSUPP, f"command {request.command} is not supported")
            return self._reach(request.address, Deadline(self._terms.connect_timeout))
        except OSError as error:
            self._answer(reply_code(error), NO_ADDRESS)
            self._take_leave()
            raise

    def _reach(self, destination: Address, deadline: Deadline) -> _originals.SocketType:
        failure: OSError = OSError(errno.EHOSTUNREACH, f"{destination.host} has no address")
        for family, address in call_within(deadline, lambda: self._addresses(destination)):
            try:
                return self._connected(family, address, deadline)
            except socket.timeout:
                raise
            except OSError as error:
                failure = error
        raise failure

    def _connected(self, family: int, address: tuple[Any, ...], deadline: Deadline) -> _originals.SocketType:
        sock = _originals.SocketType(family, socket.SOCK_STREAM, 0)
        try:
            StoppableTransport(sock.fileno(), family, self._stop).connect(address, deadline)
            _make_prompt(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def _addresses(self, destination: Address) -> list[tuple[int, tuple[Any, ...]]]:
        host = self._terms.hosts.get(destination.host.lower().rstrip("."), destination.host)
        # As octets: a name arrives the way it is looked up, and must not be encoded again.
        found = _originals.getaddrinfo(host.encode("ascii"), destination.port, 0, socket.SOCK_STREAM)
        return [(info[0], cast("tuple[Any, ...]", info[4])) for info in found]

    def _answer(self, code: int, bound: Address) -> None:
        self._session.reply = code
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

    # The relay

    def _relay(self, target: _originals.SocketType) -> None:
        client_end = ClientEnd(self._stream, self._transport)
        # What is read from the target at once fits one message.
        target_end = TargetEnd(target, min(READ_SIZE, self._stream.records.max_plaintext))
        try:
            self._carry(Flow(client_end, target_end), Flow(target_end, client_end))
            broken = client_end.broken or target_end.broken
            if broken:
                raise broken
        except OSError:
            for end in (client_end, target_end):
                if not end.broken:
                    self._wait_delivered(end.fd)
            raise

    def _carry(self, upward: Flow, downward: Flow) -> None:
        while flows := [flow for flow in (upward, downward) if not flow.ended]:
            for flow in self._ready(flows):
                flow.move()
            self._session.octets_received, self._session.octets_sent = upward.octets, downward.octets
            self._note_figures()

    def _ready(self, flows: Sequence[Flow]) -> Sequence[Flow]:
        wanted: dict[int, int] = {}
        for flow in flows:
            fd, event = flow.wanted
            wanted[fd] = wanted.get(fd, 0) | event
        ready = self._stop.wait(wanted, NEVER)
        return [flow for flow in flows if ready.get(flow.wanted[0], 0) & flow.wanted[1]]

    def _wait_delivered(self, fd: int) -> None:
        """Waits until the peer's kernel has all that was sent, since a reset throws the rest away."""
        deadline = Deadline(LINGER_SECONDS)
        while deadline.remaining() and _undelivered(fd):
            # There is no event for it.
            self._stop.wait({}, Deadline(LOOK_AGAIN_SECONDS))

    # What is written down

    def _note_context(self, context: SecurityContext) -> None:
        if not context.complete:
            return
        self._session.principal = context.initiator_name
        self._session.service = context.target_name
        self._session.mechanism = context.mechanism

    def _note_figures(self) -> None:
        session = self._session
        session.wire_received, session.wire_sent = self._transport.received, self._transport.sent
        if self._records is not None:
            session.protection = self._records.level.name.lower()
        if isinstance(self._records, ProtectedRecords):
            session.tokens_received = self._records.tokens_received
            session.tokens_sent = self._records.tokens_sent


def _make_prompt(sock: _originals.SocketType) -> None:
    """Nothing waits to be sent with more, and a peer that has vanished is noticed some day."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _reset_on_close(sock: _originals.SocketType) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)


def _undelivered(fd: int) -> int:
    try:
        (octets,) = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return 0  # not every system says it of a socket
    return int(octets)


def _bound_address(sock: _originals.SocketType) -> Address:
    host, port = sock.getsockname()[:2]
    return Address(host.partition("%")[0], port)  # a zone means nothing to the client
