"""`ProxyServer`: who may come in, and how everybody leaves."""

from __future__ import annotations

import errno
import ipaddress
import selectors
import socket
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable

from gsssocks import _originals
from gsssocks._config import Proxy
from gsssocks._config.proxy import PROTECTION_LEVELS
from gsssocks._protocol import Address, ProtectionLevel
from gsssocks._transport import Deadline

from ._client import Client, Terms
from ._session import Session
from ._waiting import NEVER, Stopped, StopSign

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from types import TracebackType

__all__ = ["ProxyServer"]

BACKLOG = 512
"""Connections that the kernel keeps for us while we do not accept."""
REMEMBERED = 1000
"""Sessions that `ProxyServer.sessions` goes back."""
RETRY_SECONDS = 0.5
"""How long not to accept after the system had no descriptor, thread or memory left for a new connection."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


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
        authorize: told the client's principal, in the client's own thread, says whether it may go on; None admits
            whoever has a ticket.
        negotiation_timeout: seconds a client has from its connection to its request.
        connect_timeout: seconds to look a target up and reach it; after that the answer is 6.
        max_clients: how many are served at once; further ones wait in the kernel's queue.
        on_session: called with each session that has ended, in the client's own thread. `stop` waits for it, so it
            must not call `stop`.
        hosts: addresses of names, in lower case, that this proxy knows before it asks the resolver, as /etc/hosts does.

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
        hosts: Mapping[str, str] | None = None,
    ) -> None:
        self._host = host
        self._wanted_port = port
        self._terms = Terms(
            keytab, _protection_levels(levels), authorize or _anybody, negotiation_timeout, connect_timeout, hosts or {}
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
        with suppress(Stopped):
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
            Client(sock, session, self._terms, running.stop).serve()
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
    stop: StopSign = field(default_factory=StopSign)
    threads: set[threading.Thread] = field(default_factory=set)


def _next_client(running: _Running) -> tuple[_originals.SocketType, Address]:
    listener = running.listener
    while True:
        running.stop.wait({listener.fileno(): selectors.EVENT_READ}, NEVER)
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
