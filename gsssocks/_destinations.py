"""Where datagrams go, each in its way, and from whom they seem to come."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, TypeVar

from ._protocol import Address

if TYPE_CHECKING:
    from ._config import Proxy

__all__ = ["MAX_CONTACTS", "Contacts", "Destination", "Route", "Router", "in_family", "remember"]

K = TypeVar("K")
V = TypeVar("V")

MAX_CONTACTS = 1024
"""Addresses, and names, that an endpoint remembers to have sent to."""


class Route(NamedTuple):
    """How a destination is to be reached."""

    proxies: tuple[Proxy, ...]
    """Empty for directly, at what the name stands for."""
    name: str | None
    """What the address stands for, where it is a placeholder."""


Router = Callable[[str, int], Route]
"""Says of a host (a name or an address, as the application gave it) and a port how they are to be reached; raises
`ProxyError` where a rule refuses them."""


class Destination(NamedTuple):
    """Where a datagram is to go through a proxy."""

    route: Route
    address: Address
    """What to ask the proxy for."""
    shown: tuple[Any, ...]
    """The same as the application knows it."""

    def sends(self, sender: Address) -> bool:
        """Whether a datagram from `sender` comes from here. Which addresses a name has, the proxy alone knows: for a
        name, the port decides."""
        return self.address.port == sender.port and (self.address.host == sender.host or not _is_address(self.address))


class Contacts:
    """Whom the application has sent to: for placeholders, to recognise the names' datagrams.

    The proxy says from which address a datagram comes, not for which name it had looked that up. It is taken for the
    one name at that port that was sent to and has not been heard of; where there are several, for nobody's.
    """

    def __init__(self) -> None:
        self._addresses: dict[Address, None] = {}
        self._names: dict[Address, tuple[Any, ...]] = {}
        self._known: dict[Address, Address] = {}

    def note(self, destination: Destination) -> None:
        if destination.route.name is None:
            remember(self._addresses, destination.address, None)
        else:
            remember(self._names, destination.address, destination.shown)

    def shown(self, sender: Address) -> tuple[Any, ...] | None:
        """The address that the application sent to, for a datagram from `sender`; None if it is the same."""
        if not self._names or sender in self._addresses:
            return None
        name = self._known.get(sender) or self._guess(sender)
        return None if name is None else self._names.get(name)

    def _guess(self, sender: Address) -> Address | None:
        at_port = [name for name in list(self._names) if name.port == sender.port]
        heard = set(self._known.values())
        candidates = [name for name in at_port if name not in heard] or at_port
        if len(candidates) != 1:
            return None
        remember(self._known, sender, candidates[0])
        return candidates[0]


def remember(known: dict[K, V], address: K, value: V) -> None:
    """Notes a value for an address; the oldest of too many is forgotten."""
    known[address] = value
    if len(known) > MAX_CONTACTS:
        del known[next(iter(known))]


def _is_address(address: Address) -> bool:
    try:
        ipaddress.ip_address(address.host)
    except ValueError:
        return False
    return True


_MAPPED = "::ffff:"


def in_family(address: tuple[Any, ...], family: int) -> tuple[Any, ...]:
    """An address as a socket of `family` has it: for IPv6, IPv4 addresses are mapped ones. An IPv6 address stays one
    also where `family` has none."""
    host, port, *rest = address
    if family == socket.AF_INET6:
        host = host if ":" in host or not _is_address(Address(host, port)) else _MAPPED + host
        return (host, port, *(rest or (0, 0)))
    return (host[len(_MAPPED) :], port) if host.startswith(_MAPPED) and "." in host else (host, port)
