"""UDP ASSOCIATE: datagrams by way of a proxy's relay (RFC 1928, sections 4 and 7; RFC 1961, section 5).

An association is asked for over a TCP connection of its own, the control connection, and lives as long as that does.
Each datagram is one message: a token, in which stand the UDP request header and the data. On the way datagrams may be
lost, repeated and overtaken, so the context is one without sequence detection (RFC 1961, section 3.2).

What arrives is dropped, and counted, where it is not what the proxy sent on the terms agreed on: anybody can send
datagrams to anybody, and one that is forged must not do more harm than one that is lost.
"""

from __future__ import annotations

import copy
import errno
import ipaddress
import logging
import os
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _originals
from ._connecting import establish
from ._protocol import Address, Command, Datagram, MessageType, ProtectionLevel, TokenMessage
from ._transport import Deadline, Transport, call_within
from ._tunnel import Tunnel, attach, attachments, detach
from .exceptions import (
    ProtectionError,
    ProtocolError,
    ProxyConnectionError,
    ProxyError,
    association_ended,
    proxy_connection_error,
    proxy_timeout,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._config import Proxy

__all__ = ["MAX_DATAGRAM", "Association", "Dropped", "associate"]

_log = logging.getLogger("gsssocks")

MAX_DATAGRAM: Mapping[int, int] = {socket.AF_INET: 65_507, socket.AF_INET6: 65_527}
"""Octets that fit one datagram: the header of UDP has sixteen bits for a length, and that of IPv4, too."""
_HEADER = 4  # ver, mtyp, len (RFC 1961, section 3.4)
KEEPALIVE: Mapping[str, int] = {"TCP_KEEPIDLE": 15, "TCP_KEEPALIVE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Options of the control connection, in seconds but for the last; a platform has the first or the second. Nothing is
ever sent there: without them nobody would notice that the proxy's host has gone."""
REMEMBERED = 5.0
"""Seconds, at least, for which sockets that do not wait are told of a failure without asking the proxy again. An
attempt that took longer is remembered for as long as it took: an event loop is not held up for more than half of the
time."""
LINGER = 1.0
"""Seconds for which an association outlives its last datagram, if nothing has been received since: a proxy that notices
the end of the control connection first, as Dante does, would not pass that datagram on any more."""


@dataclass
class Dropped:
    """How many datagrams have arrived and not been handed over, by the reason."""

    repeated: int = 0
    """Had been here before, or came so late that this cannot be told any more."""
    damaged: int = 0
    """Changed on the way, or not made by the proxy."""
    unprotected: int = 0
    """Not encrypted, although confidentiality had been agreed on."""
    fragments: int = 0
    """Parts of datagrams, which nobody need put together (RFC 1928, section 7)."""
    foreign: int = 0
    """Neither from the proxy nor from where datagrams may come from directly."""


class Association:
    """One association: what protects its datagrams, and where they go.

    Attributes:
        tunnel: the control connection's.
        relay: where the proxy takes datagrams, as getaddrinfo() gives addresses.
        family: the address family of `relay`.
    """

    def __init__(
        self, control: socket.socket, tunnel: Tunnel, relay: tuple[Any, ...], family: int, dropped: Dropped
    ) -> None:
        self.tunnel = tunnel
        self.relay = relay
        self.family = family
        self._control = control
        self._dropped = dropped
        self._sent_at: float | None = None
        records = tunnel.stream.records
        self._bare = records.level == ProtectionLevel.NONE
        self._room = MAX_DATAGRAM[family]
        if tunnel.context is not None and not self._bare:
            self._room = tunnel.context.max_plaintext(
                confidential=records.level != ProtectionLevel.INTEGRITY, max_token=self._room - _HEADER
            )

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Ends it: the proxy notices that the control connection is closed."""
        detach(self._control)
        self._control.close()

    def after_fork_in_child(self) -> None:
        """What has been sent last is the parent's to see off."""
        self._sent_at = None

    def let_go(self) -> None:
        """Ends it as soon as what has been sent last has been passed on."""
        left = 0.0 if self._sent_at is None else self._sent_at + LINGER - time.monotonic()
        if left <= 0:
            return self.close()

        def finish() -> None:
            time.sleep(left)
            _lingering.discard(self)
            self.close()

        _lingering.add(self)

        try:
            if sys.is_finalizing():
                return finish()
            # Not a daemon, whatever thread this is: the interpreter's end must not cut off what the application has
            # handed over.
            _originals.Thread(target=finish, name="gsssocks-linger", daemon=False).start()
        except RuntimeError:
            finish()  # the interpreter is ending already, and starts no more threads

    @property
    def control(self) -> int:
        """The descriptor of the control connection, which becomes readable at its end; negative when closed."""
        return _originals.SocketType.fileno(self._control)

    @property
    def ended(self) -> bool:
        """Whether the proxy has closed the control connection, or says there what nobody asked for."""
        attachment = attachments.get(id(self._control))
        try:
            return attachment is None or attachment.transport.wait_readable(Deadline(0))
        except OSError:
            return True  # another thread has closed it, just now

    def ending(self) -> ProxyConnectionError:
        """The error that tells of its end."""
        return association_ended(str(self.tunnel.proxy))

    def largest(self, destination: Address) -> int:
        """Octets of data that fit one datagram to `destination`."""
        return self._room - len(Datagram(destination, b"").encode())

    def protect(self, data: bytes, destination: Address) -> bytes:
        """What to send to the relay, for `data` to reach `destination`.

        Raises:
            OSError: EMSGSIZE: there is too much of it; EADDRNOTAVAIL: a proxy cannot be asked for such a destination.
            ProtectionError: the mechanism could not.
        """
        try:
            octets = Datagram(destination, data).encode()
        except ValueError as error:
            raise ProxyConnectionError(errno.EADDRNOTAVAIL, f"cannot ask a proxy for {destination}: {error}") from error
        if len(octets) > self._room:
            raise too_long(len(data), self.largest(destination))
        message = self.tunnel.stream.records.protect(octets)
        self.tunnel.stream.octets_sent += len(data)
        self._sent_at = time.monotonic()
        return message

    def unprotect(self, message: bytes) -> Datagram | None:
        """What the relay has sent; None for what is to be dropped, which has been counted."""
        try:
            datagram = self._unprotected(message)
        except (ProtocolError, ProtectionError) as error:
            self._dropped.damaged += 1
            _log.debug("%s: dropped a datagram: %s", self.tunnel.proxy, error)
            return None
        if datagram is not None and datagram.fragment:
            self._dropped.fragments += 1
            return None
        return datagram

    def _unprotected(self, message: bytes) -> Datagram | None:
        context, records = self.tunnel.context, self.tunnel.stream.records
        if self._bare or context is None:
            self._sent_at = None
            return Datagram.decode(message)
        if message[:2] != _ENCAPSULATED or len(message) < _HEADER or TokenMessage.length(message) != len(message):
            raise ProtocolError(errno.EPROTO, "it is not one message of RFC 1961, section 5")
        unwrapped = context.unwrap_datagram(message[_HEADER:])
        if unwrapped is None:
            self._dropped.repeated += 1
            return None
        if not unwrapped.confidential and records.level == ProtectionLevel.CONFIDENTIALITY:
            self._dropped.unprotected += 1
            return None
        datagram = Datagram.decode(unwrapped.data)
        self._sent_at = None
        records.tokens_received += 1
        records.octets_received += len(datagram.data)
        return datagram


_lingering: set[Association] = set()
"""Those that the application has let go of, and threads here will end."""


def _after_fork_in_child() -> None:
    """The threads go on in the parent: what is open here as well would keep the proxy from hearing of the end."""
    while _lingering:
        _lingering.pop().close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

_ENCAPSULATED = TokenMessage(MessageType.ENCAPSULATED).encode()[:2]


def too_long(length: int, largest: int) -> OSError:
    """The error for a datagram that is longer than can be sent."""
    return OSError(
        errno.EMSGSIZE, f"a datagram of {length} octets is too long: {largest} at most can be sent through the proxy"
    )


def associate(proxies: Sequence[Proxy], family: int, timeout: float | None, dropped: Dropped) -> Association:
    """Asks the first of `proxies` that answers for an association.

    Args:
        family: by which address family to reach it, if it can be reached by several.
        timeout: seconds, as a socket's; 0 waits all the same, as long as the proxy's own timeout allows.
        dropped: where to count.

    Raises:
        ProxyError: there is none to be had; for a socket that does not wait, perhaps none was, just now.
    """
    key = (tuple(proxies), family)
    begun = time.monotonic()
    until, failure = _failures.get(key, (begun, None))
    if failure is not None and timeout == 0 and begun < until:
        raise copy.copy(failure)  # one that is raised again and again would collect tracebacks
    try:
        association = _associate(proxies, family, timeout, dropped)
    except ProxyError as error:
        if timeout == 0:
            ended = time.monotonic()
            _failures[key] = (ended + max(REMEMBERED, ended - begun), _to_be_told_again(error))
        raise
    _failures.pop(key, None)
    return association


_failures: dict[tuple[tuple[Proxy, ...], int], tuple[float, ProxyError]] = {}
"""By the proxies and the address family: until when, by time.monotonic(), and what."""


def _to_be_told_again(error: ProxyError) -> ProxyError:
    failure = copy.copy(error)  # which leaves the traceback, and whatever that holds
    failure.socket_err = None
    return failure


def _associate(proxies: Sequence[Proxy], family: int, timeout: float | None, dropped: Dropped) -> Association:
    control = _originals.socket(family, socket.SOCK_STREAM)
    try:
        control.settimeout(timeout)
        _keep_alive(control)
        if family == socket.AF_INET6:
            # The relay is wanted in the family by which the proxy is reached: IPv4, for one that has IPv4 alone.
            control.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        tunnel = Tunnel(proxies, Address("0.0.0.0", 0), ("0.0.0.0", 0), command=Command.UDP_ASSOCIATE)
        attach(control, tunnel, Transport(control.fileno(), family))
        establish(control, tunnel)
        tunnel.settle()
        relay_family, relay = _relay(control, tunnel, Deadline(timeout or tunnel.proxy.timeout))
        return Association(control, tunnel, relay, relay_family, dropped)
    except BaseException:
        detach(control)
        control.close()
        raise


def _keep_alive(control: socket.socket) -> None:
    control.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            control.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _relay(control: socket.socket, tunnel: Tunnel, deadline: Deadline) -> tuple[int, tuple[Any, ...]]:
    """Where the reply says that the proxy takes datagrams."""
    assert tunnel.bound is not None  # the request was granted
    host, port = tunnel.bound.host, tunnel.bound.port
    if not port:
        raise ProtocolError(errno.EPROTO, f"the proxy {tunnel.proxy} granted an association and named no relay for it")
    transport = attachments[id(control)].transport
    try:
        if _is_unspecified(host):
            host = transport.peer[0]  # the proxy's own, by which it has been reached
        found = call_within(deadline, lambda: _originals.getaddrinfo(host, port, 0, socket.SOCK_DGRAM))
    except socket.timeout:
        raise proxy_timeout(f"looking up its relay {host}", str(tunnel.proxy)) from None
    except OSError as error:
        raise proxy_connection_error(error, f"{tunnel.proxy}, whose relay is {tunnel.bound}") from error
    family, *_, address = min(found, key=lambda info: info[0] != transport.family)
    return family, address


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
