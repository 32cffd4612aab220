"""The proxy's side: a SOCKS 5 server with GSS-API (RFC 1928, RFC 1961), to be embedded in tests and demonstrations.

    with ProxyServer(keytab="/etc/socks.keytab") as proxy:
        gsssocks.create_connection(("example.com", 80), proxy=proxy.url())

One thread accepts, and each client has one of its own: it negotiates, connects to the target and then carries data
both ways, never waiting for one direction while the other could move. Every wait also looks at one pipe, by which
`stop` ends all of them at once.

What one side did is what the other side sees: the end of its data as the end of the data, a reset as a reset. A
connection cut short must not look complete.

The kernel is reached by the C type below `socket.socket` only, so the server goes on as ever in a process whose
sockets `gsssocks.install()` sends through it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Protocol, cast

from . import _originals
from ._config import Proxy
from ._config.proxy import PROTECTION_LEVELS
from ._negotiation import NO_ADDRESS, ServerNegotiation
from ._protocol import Address, Command, ProtectionLevel, Reply
from ._record import ProtectedRecords
from ._stream import ProtectedStream
from ._transport import Deadline, Transport, call_within
from .exceptions import ProxyError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from types import TracebackType

    from ._protocol import Request
    from ._record import Records
    from ._security import SecurityContext

__all__ = ["ProxyServer", "Session"]

BACKLOG = 512
"""Connections that the kernel keeps for us while we do not accept."""
REMEMBERED = 1000
"""Sessions that `ProxyServer.sessions` goes back."""
RETRY_SECONDS = 0.5
"""How long not to accept after the system had no descriptor or memory left for a new connection."""
FAREWELL_SECONDS = 2.0
"""How long to wait for a client to close after it has been refused something (RFC 1928, section 6: at most ten)."""
FAREWELL_READS = 16
READ_SIZE = 64 * 1024

_NOW = Deadline(0)
_NEVER = Deadline(None)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

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


def _reply_code(error: OSError) -> int:
    if isinstance(error, socket.gaierror):
        return _HOST_UNREACHABLE
    if isinstance(error, socket.timeout):
        return _TTL_EXPIRED
    return _REPLY_CODES.get(error.errno or 0, _GENERAL_FAILURE)


@dataclass(eq=False)
class Session:
    """One client's connection, as far as it has come. The figures grow as long as it lasts.

    Attributes:
        client: address and port it came from.
        principal: who the client is; None before the security context stands.
        service: whom the client asked for, the proxy's own principal.
        mechanism: "krb5" and so on, or an OID.
        protection: the level agreed on: "integrity", "confidentiality", "selective" (RFC 1961, section 4.1).
        destination: what the client asked to be connected to.
        reply: the REP field of our answer (RFC 1928, section 6); 0 is success.
        round_trips: how often the client spoke, and waited for us, up to that answer.
        setup_seconds: from accepting the connection to that answer.
        octets_received, octets_sent: user data from and to the client.
        tokens_received, tokens_sent: messages in which it travelled, SOCKS request and reply among them.
        wire_received, wire_sent: octets of the connection itself, the negotiation included.
        error: why the session ended otherwise than by the end of both sides' data.
        ended: set when nothing of the session is left, and its observer has been told.
    """

    client: Address
    principal: str | None = None
    service: str | None = None
    mechanism: str | None = None
    protection: str | None = None
    destination: Address | None = None
    reply: int | None = None
    round_trips: int = 0
    setup_seconds: float | None = None
    octets_received: int = 0
    octets_sent: int = 0
    tokens_received: int = 0
    tokens_sent: int = 0
    wire_received: int = 0
    wire_sent: int = 0
    error: Exception | None = None
    ended: threading.Event = field(default_factory=threading.Event, repr=False)


class _Stopped(Exception):  # noqa: N818  # not a mistake of anybody's
    """The server is being stopped."""


class _StopSign:
    """Ends every wait of every thread: the reading end of a pipe, readable for good once the other is closed."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()

    def show(self) -> None:
        os.close(self._writing)

    def remove(self) -> None:
        os.close(self._reading)

    def wait(self, wanted: Mapping[int, int], deadline: Deadline) -> Mapping[int, int]:
        """Waits for any of the events wanted, `selectors.EVENT_READ` or `EVENT_WRITE` or both, of each descriptor.

        Returns:
            the events there are, for each descriptor; none if the time ran out.

        Raises:
            _Stopped: the server is to stop.
        """
        with _Selector() as selector:
            selector.register(self._reading, selectors.EVENT_READ)
            for fd, events in wanted.items():
                selector.register(fd, events)
            ready = {key.fd: events for key, events in selector.select(deadline.remaining())}
        if self._reading in ready:
            raise _Stopped
        return ready


# Unlike epoll and kqueue, poll costs no descriptor.
_Selector: type[selectors.BaseSelector] = getattr(selectors, "PollSelector", selectors.SelectSelector)


class _StoppableTransport(Transport):
    """A transport whose waits end when the server stops."""

    __slots__ = ("_stop",)

    def __init__(self, fd: int, family: int, stop: _StopSign) -> None:
        super().__init__(fd, family)
        self._stop = stop

    def wait_readable(self, deadline: Deadline) -> bool:
        return bool(self._stop.wait({self.fd: selectors.EVENT_READ}, deadline))

    def wait_writable(self, deadline: Deadline) -> bool:
        return bool(self._stop.wait({self.fd: selectors.EVENT_WRITE}, deadline))


class _CountingTransport(_StoppableTransport):
    """A client's transport: counts octets, and how often the client began to speak."""

    __slots__ = ("_listening", "flights", "received", "sent")

    def __init__(self, fd: int, family: int, stop: _StopSign) -> None:
        super().__init__(fd, family, stop)
        self.received = self.sent = self.flights = 0
        self._listening = False

    def take(self, view: memoryview) -> int:
        taken = super().take(view)
        if taken and not self._listening:
            self._listening = True
            self.flights += 1
        self.received += taken
        return taken

    def send(self, octets: Any) -> int:
        sent = super().send(octets)
        if sent:
            self._listening = False
        self.sent += sent
        return sent


class _End(Protocol):
    """One end of the relay. Nothing here waits: BlockingIOError says that there is nothing to be had, or no room."""

    @property
    def fd(self) -> int: ...

    def read(self) -> bytes:
        """Some octets; none at the end of the data."""

    def write(self, data: memoryview) -> int:
        """Accepts octets from the front of `data`; returns how many."""

    def finish(self) -> None:
        """No more octets will be written."""


class _ClientEnd:
    """The tunnel, in which every octet travels protected."""

    def __init__(self, stream: ProtectedStream, transport: Transport) -> None:
        self.fd = transport.fd
        self._stream = stream
        self._transport = transport

    def read(self) -> bytes:
        return self._stream.receive(self._transport, READ_SIZE, _NOW)

    def write(self, data: memoryview) -> int:
        return self._stream.send(self._transport, data, _NOW)

    def finish(self) -> None:
        self._stream.shut_down(self._transport, socket.SHUT_WR)


class _TargetEnd:
    """The plain connection to the target."""

    def __init__(self, sock: _originals.SocketType, read_size: int) -> None:
        self.fd = sock.fileno()
        self._socket = sock
        self._read_size = read_size

    def read(self) -> bytes:
        return self._socket.recv(self._read_size)

    def write(self, data: memoryview) -> int:
        return self._socket.send(data)

    def finish(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)


class _Flow:
    """One direction of the relay: reads no more before what has been read has been written.

    Attributes:
        octets: how many have been written.
        ended: whether there will be no more: the end of the data has been passed on, or `failure` says what came
            between.
        failure: why the sink takes no more. It is gone then, so the other direction, which reads from it, will end
            as well; but only after what had arrived from it before.
    """

    def __init__(self, source: _End, sink: _End) -> None:
        self.octets = 0
        self.ended = False
        self.failure: OSError | None = None
        self._source = source
        self._sink = sink
        self._pending = memoryview(b"")

    @property
    def wanted(self) -> tuple[int, int]:
        """The descriptor and the event without which nothing moves."""
        if self._pending:
            return self._sink.fd, selectors.EVENT_WRITE
        return self._source.fd, selectors.EVENT_READ

    def move(self) -> None:
        """Moves what can be moved at once.

        Raises:
            OSError: the source is broken, or its data are.
        """
        with suppress(BlockingIOError):
            if not self._pending:
                self._pending = memoryview(self._source.read())
            self._deliver()

    def _deliver(self) -> None:
        try:
            if not self._pending:
                self._sink.finish()
                self.ended = True
                return
            written = self._sink.write(self._pending)
        except (BlockingIOError, ProxyError):
            raise
        except OSError as error:
            self.failure = error
            self.ended = True
            return
        self._pending = self._pending[written:]
        self.octets += written


@dataclass(frozen=True)
class _Terms:
    """What the server does for its clients, and how long."""

    keytab: str | None
    levels: Collection[ProtectionLevel]
    authorize: Callable[[str], bool]
    negotiation_timeout: float
    connect_timeout: float


class _Client:
    """One client's connection, from the greeting to the end.

    Args:
        sock: the connection. It is closed in the end.
        session: where to write down what happens.
    """

    def __init__(self, sock: _originals.SocketType, session: Session, terms: _Terms, stop: _StopSign) -> None:
        self._socket = sock
        self._session = session
        self._terms = terms
        self._stop = stop
        self._accepted = time.monotonic()
        self._transport = _CountingTransport(sock.fileno(), sock.family, stop)
        self._stream = ProtectedStream()
        self._records: Records | None = None

    def serve(self) -> None:
        """Does everything. What goes wrong between client, proxy and target is in `session.error` afterwards."""
        try:
            self._connect_through()
        except _Stopped:
            self._session.error = OSError(errno.ECANCELED, "the proxy was stopped")
        except OSError as error:
            self._session.error = error
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
        from ._gss import Acceptor

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
            target = self._reach(request.address, Deadline(self._terms.connect_timeout))
        except OSError as error:
            self._answer(_reply_code(error), NO_ADDRESS)
            self._take_leave()
            raise
        _make_prompt(target)
        return target

    def _reach(self, destination: Address, deadline: Deadline) -> _originals.SocketType:
        failure: OSError = OSError(errno.EHOSTUNREACH, f"{destination.host} has no address")
        for family, address in call_within(deadline, lambda: _addresses(destination)):
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
            _StoppableTransport(sock.fileno(), family, self._stop).connect(address, deadline)
        except BaseException:
            sock.close()
            raise
        return sock

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
        client_end = _ClientEnd(self._stream, self._transport)
        # What is read from the target at once fits one message.
        target_end = _TargetEnd(target, min(READ_SIZE, self._stream.records.max_plaintext))
        upward, downward = _Flow(client_end, target_end), _Flow(target_end, client_end)
        while flows := [flow for flow in (upward, downward) if not flow.ended]:
            for flow in self._ready(flows):
                flow.move()
            self._session.octets_received, self._session.octets_sent = upward.octets, downward.octets
            self._note_figures()
        failure = upward.failure or downward.failure
        if failure:
            raise failure

    def _ready(self, flows: Sequence[_Flow]) -> Sequence[_Flow]:
        wanted: dict[int, int] = {}
        for flow in flows:
            fd, event = flow.wanted
            wanted[fd] = wanted.get(fd, 0) | event
        ready = self._stop.wait(wanted, _NEVER)
        return [flow for flow in flows if ready.get(flow.wanted[0], 0) & flow.wanted[1]]

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


def _addresses(destination: Address) -> list[tuple[int, tuple[Any, ...]]]:
    # As octets: a name arrives the way it is looked up, and must not be encoded again.
    found = _originals.getaddrinfo(destination.host.encode("ascii"), destination.port, 0, socket.SOCK_STREAM)
    return [(info[0], cast("tuple[Any, ...]", info[4])) for info in found]


def _bound_address(sock: _originals.SocketType) -> Address:
    host, port = sock.getsockname()[:2]
    return Address(host.partition("%")[0], port)  # a zone means nothing to the client


class ProxyServer:
    """A SOCKS 5 proxy that authenticates its clients by GSS-API and protects what it relays (RFC 1928, RFC 1961).

    It serves CONNECT, to IPv4 and IPv6 addresses and to names, which it looks up itself. A context manager: starts on
    entry, stops on exit.

    Args:
        host: address or name to listen on.
        port: TCP port; 0 is any free one.
        keytab: the service's keytab; None is the default one (KRB5_KTNAME). Clients may ask for any service in it.
        levels: the protection levels granted: "integrity", "confidentiality", "selective"; and "none", not in the
            RFC, which leaves everything after the authentication bare.
        authorize: told the client's principal, says whether it may go on; None admits whoever has a ticket.
        negotiation_timeout: seconds a client has from its connection to its request.
        connect_timeout: seconds to look a target up and reach it; after that the answer is 6.
        max_clients: how many are served at once; further ones wait in the kernel's queue.
        on_session: called with each session that has ended, in a thread of the server, which `stop` waits for.

    Raises:
        ValueError: a level is unknown, or none is given.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        keytab: str | None = None,
        levels: Collection[str] = ("integrity", "confidentiality", "selective"),
        authorize: Callable[[str], bool] | None = None,
        negotiation_timeout: float = 30.0,
        connect_timeout: float = 30.0,
        max_clients: int = 256,
        on_session: Callable[[Session], None] | None = None,
    ) -> None:
        self._host = host
        self._wanted_port = port
        self._terms = _Terms(
            keytab, _protection_levels(levels), authorize or _anybody, negotiation_timeout, connect_timeout
        )
        self._max_clients = max_clients
        self._on_session = on_session
        self._lock = threading.Lock()
        self._sessions: deque[Session] = deque(maxlen=REMEMBERED)
        self._running: _Running | None = None

    def __enter__(self) -> ProxyServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> tuple[str, int]:
        """Address and port it listens on.

        Raises:
            RuntimeError: it is not running.
        """
        host, port = self._listening().listener.getsockname()[:2]
        return host, port

    @property
    def port(self) -> int:
        """TCP port it listens on."""
        return self.address[1]

    @property
    def sessions(self) -> list[Session]:
        """What clients did, in the order in which they came, also after `stop`; the last thousand of them."""
        with self._lock:
            return list(self._sessions)

    def url(self, **options: Any) -> str:
        """The URL by which a client on this machine uses it.

        Its host is the one given to the class. But service principals bear names: an address that is this machine's
        own, or every one, shows as "localhost", or leads to a `target_name` for that.

        Args:
            options: further arguments of `Proxy`, such as `protection` or `service`.
        """
        host = _name_for_clients(self._host)
        if ":" in host:
            # There are machines where "localhost" has no IPv6 address.
            options.setdefault("target_name", f"{options.get('service', 'socks')}@localhost")
        return Proxy(host, self.port, **options).url

    def start(self) -> None:
        """Begins to listen.

        Raises:
            OSError: it cannot, there.
            RuntimeError: it is running already.
        """
        if self._running is not None:
            raise RuntimeError("the proxy is running already")
        running = _Running(_listen(self._host, self._wanted_port), threading.Semaphore(self._max_clients))
        running.acceptor = _originals.Thread(
            target=self._accept_clients, args=(running,), name="gsssocks-server", daemon=True
        )
        running.acceptor.start()
        self._running = running

    def stop(self) -> None:
        """Ends every session and returns when nothing is left of any. Without effect if it is not running.

        Clients and targets see a reset, unless their session was over.
        """
        if self._running is None:
            return
        running, self._running = self._running, None
        running.stop.show()
        running.acceptor.join()
        # Only the acceptor adds to them.
        for thread in list(running.threads):
            thread.join()
        running.listener.close()
        running.stop.remove()

    def _listening(self) -> _Running:
        if self._running is None:
            raise RuntimeError("the proxy is not running")
        return self._running

    # In the accepting thread

    def _accept_clients(self, running: _Running) -> None:
        with suppress(_Stopped):
            while True:
                running.places.acquire()
                self._begin(running, *_next_client(running))

    def _begin(self, running: _Running, sock: _originals.SocketType, client: Address) -> None:
        session = Session(client)
        with self._lock:
            self._sessions.append(session)
        thread = _originals.Thread(
            target=self._serve, args=(running, sock, session), name=f"gsssocks-server {client}", daemon=True
        )
        running.threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            sock.close()
            session.error = error
            self._end(running, thread, session)
            running.stop.wait({}, Deadline(RETRY_SECONDS))

    # In each client's thread

    def _serve(self, running: _Running, sock: _originals.SocketType, session: Session) -> None:
        try:
            _Client(sock, session, self._terms, running.stop).serve()
        finally:
            self._end(running, threading.current_thread(), session)

    def _end(self, running: _Running, thread: threading.Thread, session: Session) -> None:
        try:
            if self._on_session is not None:
                self._on_session(session)
        finally:
            session.ended.set()
            running.threads.discard(thread)
            running.places.release()


@dataclass
class _Running:
    """What exists between start and stop."""

    listener: _originals.SocketType
    places: threading.Semaphore
    acceptor: threading.Thread = field(init=False)
    stop: _StopSign = field(default_factory=_StopSign)
    threads: set[threading.Thread] = field(default_factory=set)


def _next_client(running: _Running) -> tuple[_originals.SocketType, Address]:
    listener = running.listener
    while True:
        running.stop.wait({listener.fileno(): selectors.EVENT_READ}, _NEVER)
        try:
            # Not accept(): it makes a socket.socket, which may be patched.
            fd, address = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
        except OSError as error:
            # Anything else was the client's doing, who has gone already (accept(2)).
            if error.errno in _EXHAUSTED:
                running.stop.wait({}, Deadline(RETRY_SECONDS))
            continue
        return _originals.SocketType(listener.family, socket.SOCK_STREAM, 0, fileno=fd), Address(*address[:2])


def _listen(host: str, port: int) -> _originals.SocketType:
    family, _, _, _, address = _originals.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)[0]
    listener = _originals.SocketType(family, socket.SOCK_STREAM, 0)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _anybody(_principal: str) -> bool:
    return True


def _protection_levels(names: Collection[str]) -> Collection[ProtectionLevel]:
    if not names:
        raise ValueError("levels must not be empty: no client could be served")
    for name in names:
        if name not in PROTECTION_LEVELS:
            raise ValueError(f"unknown protection level {name!r}: use {', '.join(PROTECTION_LEVELS)}")
    return frozenset(PROTECTION_LEVELS[name] for name in names)


def _name_for_clients(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not (address.is_loopback or address.is_unspecified):
        return host
    return "localhost" if address.version == 4 else "::1"
