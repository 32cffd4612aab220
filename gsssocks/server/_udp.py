"""UDP ASSOCIATE: datagrams between a client and any number of targets (RFC 1928, section 7; RFC 1961, section 5)."""

from __future__ import annotations

import selectors
import socket
import time
from typing import TYPE_CHECKING, Callable, NamedTuple, TypeVar

from gsssocks import _originals
from gsssocks._protocol import Address, Datagram, MessageType, ProtectionLevel, TokenMessage
from gsssocks._record import ProtectedRecords
from gsssocks._transport import Deadline
from gsssocks.exceptions import ProtectionError, ProtocolError

from ._sockets import SocketAddress, beside, local_address, shown
from ._waiting import NEVER, Left, check_is_there

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gsssocks._record import Records
    from gsssocks._security import SecurityContext, Unwrapped
    from gsssocks._transport import Transport

    from ._rules import Permission
    from ._session import Session
    from ._waiting import StopSign
    from ._ways import Ways

__all__ = ["Association", "Envelopes"]

Key = TypeVar("Key")
Value = TypeVar("Value")

LARGEST = 65536
"""Room for any datagram."""
BATCH = 64
"""Datagrams taken from one socket before it is the others' turn."""
REMEMBERED = 1024
"""Destinations, and correspondents, that an association keeps in mind."""
LOOKED_UP_SECONDS = 60.0
"""How long what came of looking for a destination is taken for true."""
LOOKUP_SECONDS = 5.0
"""How long a name may take; the association's other datagrams wait meanwhile."""


class _Dropped(Exception):  # noqa: N818  # datagrams may get lost
    """A datagram is not passed on.

    Attributes:
        reason: the word that `Session.dropped` has for it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Envelopes:
    """The messages in which datagrams travel: each of them whole, and in a datagram of its own."""

    def __init__(self, context: SecurityContext, records: Records) -> None:
        self._context = context
        self._records = records

    def seal(self, datagram: Datagram) -> bytes:
        octets = datagram.encode()
        if len(octets) > self._records.max_plaintext:
            raise _Dropped("too large")
        return self._records.protect(octets)

    def open(self, message: bytes) -> Datagram:
        records = self._records
        octets = self._unprotected(records, message) if isinstance(records, ProtectedRecords) else message
        try:
            return Datagram.decode(octets)
        except ProtocolError:
            raise _Dropped("malformed") from None

    def _unprotected(self, records: ProtectedRecords, message: bytes) -> bytes:
        unwrapped = self._unwrapped(_token(message))
        if unwrapped is None:
            raise _Dropped("replayed")
        if not unwrapped.confidential and records.level == ProtectionLevel.CONFIDENTIALITY:
            raise _Dropped("not encrypted")
        records.tokens_received += 1
        return unwrapped.data

    def _unwrapped(self, token: bytes) -> Unwrapped | None:
        try:
            return self._context.unwrap_datagram(token)
        except ProtectionError:
            raise _Dropped("forged") from None


def _token(message: bytes) -> bytes:
    try:
        whole = len(message) >= 4 and TokenMessage.length(message) == len(message)
    except ProtocolError:
        whole = False
    if not whole or message[1] != MessageType.ENCAPSULATED:
        raise _Dropped("malformed")
    return TokenMessage.decode(message).token


class _Way(NamedTuple):
    """What came of looking for a destination."""

    until: float
    addresses: Sequence[tuple[int, SocketAddress]]
    reason: str


class Association:
    """A relay of datagrams, which lasts as long as the client's connection.

    Only the client's host may use it, and of that host the port from which the first datagram came that the client
    has protected. A target may answer if the client has written to its host, or the rules allow it.

    Args:
        sock: the client's connection.
        transport: the same, to be watched.

    Raises:
        OSError: it cannot be had, or is not allowed.
    """

    def __init__(
        self,
        sock: _originals.SocketType,
        transport: Transport,
        envelopes: Envelopes,
        permission: Permission,
        ways: Ways,
        session: Session,
    ) -> None:
        permission.check_any()
        self._transport = transport
        self._envelopes = envelopes
        self._permission = permission
        self._ways = ways
        self._session = session
        self._client: SocketAddress | None = None
        self._known: dict[Address, _Way] = {}
        self._correspondents: dict[str, None] = {}
        self._outward: dict[int, _originals.SocketType] = {}
        self._inward = _opened(*beside(sock))
        self.address = local_address(self._inward)

    def close(self) -> None:
        for sock in (self._inward, *self._outward.values()):
            sock.close()

    def run(self, stop: StopSign) -> None:
        """Passes datagrams on until the client ends its connection.

        Raises:
            OSError: the connection broke.
        """
        try:
            while True:
                self._pass_on_what_comes(stop)
        except Left as left:
            if left.error is not None:
                raise left.error from None

    def _pass_on_what_comes(self, stop: StopSign) -> None:
        client = self._transport
        sockets = {sock.fileno(): sock for sock in (self._inward, *self._outward.values())}
        wanted = dict.fromkeys((client.fd, *sockets), selectors.EVENT_READ)
        ready = stop.wait(wanted, NEVER)
        if client.fd in ready:
            check_is_there(client)
        for fd, sock in sockets.items():
            if fd in ready:
                self._pass_on(sock, self._to_target if sock is self._inward else self._to_client)

    def _pass_on(self, sock: _originals.SocketType, onward: Callable[[bytes, SocketAddress], None]) -> None:
        for _ in range(BATCH):
            try:
                octets, sender = sock.recvfrom(LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # what came of a datagram sent before
            try:
                onward(octets, sender)
            except _Dropped as dropped:
                self._session.dropped[dropped.reason] += 1

    # From the client

    def _to_target(self, octets: bytes, sender: SocketAddress) -> None:
        if not self._is_client(sender):
            raise _Dropped("stranger")
        datagram = self._envelopes.open(octets)
        self._client = sender
        if datagram.fragment:
            # RFC 1928, section 7: who does not support fragmentation must drop them.
            raise _Dropped("fragment")
        self._send(datagram)
        self._session.datagrams_received += 1
        self._session.octets_received += len(datagram.data)

    def _is_client(self, sender: SocketAddress) -> bool:
        if self._client is not None:
            return sender == self._client
        return shown(sender).host == self._session.client.host

    def _send(self, datagram: Datagram) -> None:
        way = self._way(datagram.address)
        reason = way.reason
        for family, address in way.addresses:
            try:
                self._outward_socket(family).sendto(datagram.data, address)
            except OSError:
                reason = "unreachable"
            else:
                _remember(self._correspondents, shown(address).host, None)
                return
        raise _Dropped(reason)

    def _way(self, destination: Address) -> _Way:
        known = self._known.get(destination)
        if known is None or known.until < time.monotonic():
            known = self._looked_up(destination)
            _remember(self._known, destination, known)
        return known

    def _looked_up(self, destination: Address) -> _Way:
        addresses: Sequence[tuple[int, SocketAddress]] = ()
        reason = "unknown name"
        try:
            addresses = self._ways.to(destination, socket.SOCK_DGRAM, Deadline(LOOKUP_SECONDS), self._transport)
        except PermissionError:
            reason = "not allowed"
        except OSError:
            pass
        return _Way(time.monotonic() + LOOKED_UP_SECONDS, addresses, reason)

    def _outward_socket(self, family: int) -> _originals.SocketType:
        if family not in self._outward:
            self._outward[family] = _opened(family, ("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
        return self._outward[family]

    # From a target

    def _to_client(self, octets: bytes, sender: SocketAddress) -> None:
        source = shown(sender)
        if self._client is None or not self._may_answer(source):
            raise _Dropped("not allowed")
        message = self._envelopes.seal(Datagram(source, octets))
        try:
            self._inward.sendto(message, self._client)
        except OSError:
            raise _Dropped("too large") from None
        self._session.datagrams_sent += 1
        self._session.octets_sent += len(octets)

    def _may_answer(self, source: Address) -> bool:
        if source.host in self._correspondents:
            return True
        try:
            self._permission.check(source, source.host)
        except PermissionError:
            return False
        return True


def _remember(memory: dict[Key, Value], key: Key, value: Value) -> None:
    memory[key] = value
    if len(memory) > REMEMBERED:
        del memory[next(iter(memory))]


def _opened(family: int, address: SocketAddress) -> _originals.SocketType:
    sock = _originals.SocketType(family, socket.SOCK_DGRAM, 0)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
