"""`ProxyServer`: who may come in, and how everybody leaves."""

from __future__ import annotations

import errno
import ipaddress
import logging
import selectors
import socket
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Union

from gsssocks import _originals
from gsssocks._config import Proxy
from gsssocks._config.proxy import PROTECTION_LEVELS
from gsssocks._transport import Deadline

from ._client import Client
from ._log import line, log
from ._places import Places
from ._rules import EVERYTHING, Ruleset
from ._session import Session
from ._sockets import accept, adopt, listen
from ._terms import Terms
from ._waiting import NEVER, Stopped, StopSign

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from types import TracebackType

    from gsssocks._protocol import Address, Octets, ProtectionLevel

__all__ = ["ListenerChoice", "ProxyServer"]

ListenerChoice = Union["tuple[str, int]", int]
"""Address and port, or the descriptor of a socket that listens already."""
REMEMBERED = 1000
"""Sessions that `ProxyServer.sessions` goes back."""
RETRY_SECONDS = 0.5
"""How long not to accept after the system had no descriptor, thread or memory left for a new connection."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ProxyServer:
    """A SOCKS 5 proxy that authenticates its clients by GSS-API and protects what it relays (RFC 1928, RFC 1961).

    It serves CONNECT, BIND and UDP ASSOCIATE, to IPv4 and IPv6 addresses and to names, which it looks up itself. A
    context manager: starts on entry, stops on exit.

    Args:
        host: address or name to listen on.
        port: TCP port; 0 is any free one.
        listeners: where to listen instead, if not at one place: addresses and ports, or descriptors of sockets that
            listen already, which become the server's with its first start.
        keytab: the service's keytab; None is the default one (KRB5_KTNAME). Clients may ask for any service in it.
        levels: the protection levels granted: "integrity", "confidentiality", "selective"; and "none", not in the
            RFC, which leaves everything after the authentication bare.
        nec: whether the level may be agreed on in the clear, as NEC's clients do. Whoever can change octets on the way
            can then change the level, though to none that is not in `levels`.
        counter_offer: whether a client that asks for a level not granted is offered the strongest one, if it is not
            weaker, instead of being refused (RFC 1961, section 4.2).
        confidential: at the level "selective", told what is to be sent, in the client's own thread, says whether to
            encrypt it; None encrypts all. The client chooses for itself.
        authorize: told the client's principal, in the client's own thread, says whether it may go on; None admits
            whoever has a ticket.
        rules: who may do what with which destination; the first one that fits decides, and what none fits is refused:
            "deny to=10.0.0.0/8", "allow principal=*@EXAMPLE.COM command=connect,udp to=.example.com,*:443". For BIND,
            the destination is the peer, both as the request names it and as it comes. A denied address is denied under
            every name. The default allows everything.
        negotiation_timeout: seconds a client has from its connection to its request.
        connect_timeout: seconds to look a target up and reach it; after that the answer is 6.
        bind_timeout: seconds that a BIND waits for its peer; after that the second answer is 6.
        max_clients: how many are served at once; further ones wait in the kernel's queue. As long as one waits, those
            that are still not authenticated after two seconds have to make room, the oldest first.
        on_session: called with each session that has ended, in the client's own thread. `stop` waits for it, so it
            must not call `stop`.
        hosts: addresses of names, in lower case, that this proxy knows before it asks the resolver, as /etc/hosts does.

    Each session that has ended is a line at level INFO of the logger "gsssocks.server".

    Raises:
        ValueError: a level is unknown, or none is given; a rule is wrong.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        listeners: Sequence[ListenerChoice] | None = None,
        keytab: str | None = None,
        levels: Collection[str] = ("integrity", "confidentiality", "selective"),
        nec: bool = False,
        counter_offer: bool = False,
        confidential: Callable[[Octets], bool] | None = None,
        authorize: Callable[[str], bool] | None = None,
        rules: Iterable[str] = EVERYTHING,
        negotiation_timeout: float = 30.0,
        connect_timeout: float = 30.0,
        bind_timeout: float = 120.0,
        max_clients: int = 256,
        on_session: Callable[[Session], None] | None = None,
        hosts: Mapping[str, str] | None = None,
    ) -> None:
        self._choices: Sequence[ListenerChoice] = [(host, port)] if listeners is None else listeners
        if not self._choices:
            raise ValueError("listeners must not be empty: no client could come in")
        self._terms = Terms(
            keytab=keytab,
            levels=_protection_levels(levels),
            nec=nec,
            counter_offer=counter_offer,
            confidential=confidential,
            authorize=authorize or _anybody,
            rules=Ruleset(rules),
            negotiation_timeout=negotiation_timeout,
            connect_timeout=connect_timeout,
            bind_timeout=bind_timeout,
            hosts={} if hosts is None else hosts,
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
        """Address and port it listens on, the first if there are several.

        Raises:
            RuntimeError: it is not running.
        """
        return self.addresses[0]

    @property
    def addresses(self) -> Sequence[tuple[str, int]]:
        """Addresses and ports it listens on.

        Raises:
            RuntimeError: it is not running.
        """
        if self._running is None:
            raise RuntimeError("the proxy is not running")
        return self._running.addresses

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
        """The URL by which a client on this machine uses it, at the first of its addresses.

        Its host is the one given to the class. But service principals bear names: an address that is this machine's
        own, or every one, shows as "localhost", or leads to a `target_name` for that.

        Args:
            options: further arguments of `Proxy`, such as `protection` or `service`.
        """
        first = self._choices[0]
        host = _name_for_clients(self.address[0] if isinstance(first, int) else first[0])
        if ":" in host:
            # There are machines where "localhost" has no IPv6 address.
            options.setdefault("target_name", f"{options.get('service', 'socks')}@localhost")
        return Proxy(host, self.port, **options).url

    def start(self) -> None:
        """Begins to listen.

        Raises:
            OSError: it cannot, there; `AuthenticationError`, a subclass: the keytab that is named holds no key, or
                python-gssapi cannot be loaded.
            RuntimeError: it is running already.
        """
        if self._running is not None:
            raise RuntimeError("the proxy is running already")
        _check_able_to_accept(self._terms.keytab)
        running = _Running(_listeners(self._choices), Places(self._max_clients))
        running.acceptor = _originals.Thread(
            target=self._accept_clients, args=(running,), name="gsssocks-server", daemon=True
        )
        running.acceptor.start()
        self._running = running

    def stop(self, grace: float = 0.0) -> None:
        """Listens no more, ends every session and returns when nothing is left of any. Without effect if it is not
        running.

        Clients and targets see a reset, unless their session was over.

        Args:
            grace: seconds that sessions have to end by themselves. A second call, from another thread, may shorten
                them.
        """
        running = self._running
        if running is None:
            return
        running.end_listening()
        running.await_sessions(Deadline(grace))
        running.stop.show()
        running.await_sessions(NEVER)
        with self._lock:
            if self._running is running:
                self._running = None
                running.remove()

    # In the accepting thread

    def _accept_clients(self, running: _Running) -> None:
        with suppress(Stopped):
            while True:
                running.await_client()
                running.places.take()
                self._begin(running, *running.next_client())

    def _begin(self, running: _Running, sock: _originals.SocketType, client: Address) -> None:
        session = Session(client)
        with self._lock:
            self._sessions.append(session)
        thread = _originals.Thread(
            target=self._serve, args=(running, sock, session), name=f"gsssocks-server {client}", daemon=True
        )
        running.threads.add(thread)
        running.places.give(session, sock)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no thread left
            sock.close()
            session.error = error
            self._end(running, thread, session)
            running.closing.wait({}, Deadline(RETRY_SECONDS))

    # In each client's thread

    def _serve(self, running: _Running, sock: _originals.SocketType, session: Session) -> None:
        try:
            Client(sock, session, self._terms, running.stop, lambda: running.places.keep(session)).serve()
        finally:
            self._end(running, threading.current_thread(), session)

    def _end(self, running: _Running, thread: threading.Thread, session: Session) -> None:
        try:
            if log.isEnabledFor(logging.INFO):
                log.info("%s", line(session))
            if self._on_session is not None:
                self._on_session(session)
        finally:
            session.ended.set()
            running.threads.discard(thread)
            running.places.leave(session)


@dataclass
class _Running:
    """What exists between start and stop.

    Attributes:
        closing: ends the acceptor's waiting.
        stop: ends the sessions' waiting.
    """

    listeners: Sequence[_originals.SocketType]
    places: Places
    acceptor: threading.Thread = field(init=False)
    addresses: Sequence[tuple[str, int]] = field(init=False)
    closing: StopSign = field(default_factory=StopSign)
    stop: StopSign = field(default_factory=StopSign)
    threads: set[threading.Thread] = field(default_factory=set)
    _waiting: deque[_originals.SocketType] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.addresses = [listener.getsockname()[:2] for listener in self.listeners]

    def await_client(self) -> None:
        """Waits for a client; each listener has its turn.

        Raises:
            Stopped: nobody is to be served any more.
        """
        if not self._waiting:
            wanted = {listener.fileno(): selectors.EVENT_READ for listener in self.listeners}
            ready = self.closing.wait(wanted, NEVER)
            self._waiting.extend(listener for listener in self.listeners if listener.fileno() in ready)

    def next_client(self) -> tuple[_originals.SocketType, Address]:
        """The client that has been waited for; the next one if it has gone.

        Raises:
            Stopped: nobody is to be served any more.
        """
        self.closing.check()
        while True:
            self.await_client()
            try:
                return accept(self._waiting.popleft())
            except OSError as error:
                # Anything else was the client's doing, who has gone already (accept(2)).
                if error.errno in _EXHAUSTED:
                    self.closing.wait({}, Deadline(RETRY_SECONDS))

    def end_listening(self) -> None:
        self.closing.show()
        self.places.release()  # the acceptor may be waiting for one
        self.acceptor.join()
        for listener in self.listeners:
            listener.close()

    def await_sessions(self, deadline: Deadline) -> None:
        # Only the acceptor adds to them, and it has ended.
        for thread in list(self.threads):
            thread.join(deadline.remaining())

    def remove(self) -> None:
        self.closing.remove()
        self.stop.remove()


def _listeners(choices: Sequence[ListenerChoice]) -> Sequence[_originals.SocketType]:
    made: list[_originals.SocketType] = []
    try:
        for choice in choices:
            made.append(adopt(choice) if isinstance(choice, int) else _listen(*choice))  # noqa: PERF401  # if one fails, the others are closed
    except BaseException:
        for listener in made:
            listener.close()
        raise
    return made


def _listen(host: str, port: int) -> _originals.SocketType:
    try:
        family, _, _, _, address = _originals.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)[0]
        return listen(family, address)
    except OSError as error:
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise type(error)(error.errno, f"{where}: {error.strerror}") from error


def _check_able_to_accept(keytab: str | None) -> None:
    # Imported here: a program that only mentions the server owes nobody the price of gssapi.
    from gsssocks._gss import check_keytab

    # Without a keytab that is named there are other mechanisms than Kerberos, whose clients need none.
    if keytab is not None:
        check_keytab(keytab)


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
