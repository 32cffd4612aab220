"""Remote DNS for programs that look names up before they connect.

A name that goes to the proxy is not looked up here: the answer is a placeholder, an address of a range in which nobody
lives, and by it `connect` finds the name again. So the name leaves this process in one place only, the request to the
proxy. Everything else about the answer (its form, ports, socket types, the errors for bad arguments) is what the
original function makes of that address, which it needs no lookup for.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
from binascii import crc32
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from ._config import IPV4_RANGE, IPV6_RANGE
from ._config.addresses import IPAddress, IPNetwork, ip

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Placeholders", "Resolver"]

MAX_NAME = 255
"""Octets of the longest name that SOCKS 5 can carry (RFC 1928, section 5)."""
_MOST_NAMES = 65_535

_Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]

# Reentrant, for a signal handler that looks a name up. A fork waits for it, so that no child inherits a lock which
# nobody there will ever release, nor a table that was being changed.
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Placeholders:
    """Addresses that stand for names: the same one for a name, in whatever case and with or without the final dot, as
    long as it is remembered.

    An address follows from the name alone, so that another process finds the same; only where two names would have
    the same one, the later gets the next that is free. All methods may be called from any thread.

    Args:
        ipv4, ipv6: the ranges, in CIDR notation.
        limit: how many names to remember in each; the one that has not been used for longest is then forgotten. None is
            half of the range, but not more than 65,535, half of the default IPv4 range, for at most some 25 MB: a free
            address is never far then, and none means another name before so many others have come after its own.

    Raises:
        ValueError: a range is none, or has no room for `limit` names.
    """

    def __init__(self, ipv4: str = IPV4_RANGE, ipv6: str = IPV6_RANGE, limit: int | None = None) -> None:
        self._limit = limit
        self._ipv4 = _Range(ipaddress.IPv4Network(ipv4), limit)
        self._ipv6 = _Range(ipaddress.IPv6Network(ipv6), limit)
        self._ranges = [self._ipv4, self._ipv6]

    def move(self, ipv4: str, ipv6: str) -> None:
        """From now on, takes addresses from these ranges. Those given out before go on standing for their names.

        Raises:
            ValueError: a range has some addresses, but not all, in common with an earlier one, so that one address
                might stand for two names. Nothing has been changed then.
        """
        with _lock:
            self._ipv4, self._ipv6 = self._range(ipaddress.IPv4Network(ipv4)), self._range(ipaddress.IPv6Network(ipv6))
            self._ranges += [new for new in (self._ipv4, self._ipv6) if new not in self._ranges]

    def _range(self, network: IPNetwork) -> _Range:
        for known in self._ranges:
            if known.network == network:
                return known
            if known.network.version == network.version and known.network.overlaps(network):
                raise ValueError(
                    f"bad placeholders {str(network)!r}: they overlap {known.network}, where earlier settings of this "
                    f"process have them"
                )
        return _Range(network, self._limit)

    def address(self, name: str, family: int = socket.AF_INET) -> str:
        """The placeholder for a name.

        Args:
            family: `AF_INET6` for an IPv6 address; anything else is IPv4.
        """
        return (self._ipv6 if family == socket.AF_INET6 else self._ipv4).address(name)

    def name(self, address: str) -> str | None:
        """The name that an address stands for, as it was first asked for; None for what is no placeholder, or for a
        name that was forgotten, or given out by another process."""
        found = ip(address)
        if found is None:
            return None
        return next((known.name(found) for known in self._ranges if found in known.network), None)

    def covers(self, address: str) -> bool:
        """Whether `address` is in the ranges that placeholders come from now, be its name known or not."""
        found = ip(address)
        return found is not None and (found in self._ipv4.network or found in self._ipv6.network)


class _Range:
    """The placeholders of one network."""

    def __init__(self, network: IPNetwork, limit: int | None) -> None:
        self.network = network
        # The first and the last address of a network are nobody's.
        self._size = network.num_addresses - 2
        self._limit = max(1, min(self._size // 2, _MOST_NAMES)) if limit is None else limit
        if not 1 <= self._limit <= self._size:
            raise ValueError(f"{network} has no room for {self._limit} placeholders")
        self._numbers: OrderedDict[str, int] = OrderedDict()
        self._names: dict[int, str] = {}

    def address(self, name: str) -> str:
        return str(self.network[self._number(name)])

    def name(self, address: IPAddress) -> str | None:
        with _lock:
            name = self._names.get(int(address) - int(self.network.network_address))
            if name is not None:
                self._note_use(_normal(name))
        return name

    def _number(self, name: str) -> int:
        normal = _normal(name)
        with _lock:
            number = self._numbers.get(normal)
            if number is not None:
                self._note_use(normal)
                return number
            if len(self._numbers) >= self._limit:
                _, forgotten = self._numbers.popitem(last=False)
                del self._names[forgotten]
            number = self._numbers[normal] = self._claim(name, crc32(normal.encode()) % self._size)
            return number

    def _note_use(self, normal: str) -> None:
        with suppress(KeyError):  # a signal handler's lookup may have made us forget it, just now
            self._numbers.move_to_end(normal)

    def _claim(self, name: str, place: int) -> int:
        while self._names.setdefault(1 + place, name) is not name:
            place = (place + 1) % self._size
        return 1 + place


class _Query(NamedTuple):
    """The arguments of getaddrinfo()."""

    host: Any
    port: Any
    family: Any = 0
    type: Any = 0
    proto: Any = 0
    flags: Any = 0

    def wants_peer(self) -> bool:
        """Whether a name is to be looked up, and the answer may serve to reach somebody by TCP or UDP and no other
        purpose.

        An address to listen on (AI_PASSIVE) is one of this machine; AI_NUMERICHOST forbids lookups itself.
        """
        return (
            isinstance(self.host, (str, bytes))
            and isinstance(self.flags, int)
            and not self.flags & (socket.AI_PASSIVE | socket.AI_NUMERICHOST)
            and self.type in (0, socket.SOCK_STREAM, socket.SOCK_DGRAM)
            and self.proto in (0, socket.IPPROTO_TCP, socket.IPPROTO_UDP)
        )


class Resolver:
    """The lookups of the `socket` module, where names that go to the proxy are answered by placeholders.

    Args:
        placeholders: where they come from.
        is_proxied: asked with a name, as the program gave it, and a port, or None where the program named none, says
            whether the lookup is to be kept from the local resolver. It is not asked about addresses, except about a
            placeholder whose name is not known, nor about this machine's own name: programs look that up to learn their
            own address, to bind to it or to introduce themselves (`smtplib` does).
        note: told of each name that was looked up here, and the addresses that were answered.
    """

    def __init__(
        self,
        placeholders: Placeholders,
        is_proxied: Callable[[str, int | None], bool],
        note: Callable[[str, list[str]], None],
    ) -> None:
        self._placeholders = placeholders
        self._is_proxied = is_proxied
        self._note = note

    def wrappers(self) -> Mapping[str, _Wrapper]:
        """By its name in the `socket` module, what to call instead of each function: with the original, None, and the
        arguments, as wrapt does.

        `getfqdn` is not among them: it calls `gethostbyaddr`; nor are asyncio's lookups, which call these.
        """
        return {
            "getaddrinfo": self._getaddrinfo,
            "gethostbyaddr": self._gethostbyaddr,
            "gethostbyname": self._gethostbyname,
            "gethostbyname_ex": self._gethostbyname_ex,
            "getnameinfo": self._getnameinfo,
        }

    def asked_name(self, host: str) -> str | None:
        """The name that a connect to `host` is meant for; None if `host` is no placeholder.

        Raises:
            OSError: EHOSTUNREACH: `host` is a placeholder whose name is not known here.
        """
        if not self._stands_for_a_name(host):
            return None
        name = self._placeholders.name(host)
        if name is None:
            raise OSError(
                errno.EHOSTUNREACH,
                f"{host} stands for a name that this process does not know: it was looked up in another process, or "
                f"too long ago; look the name up again",
            )
        return name

    def _getaddrinfo(
        self, wrapped: Callable[..., Any], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            query = _Query(*args, **kwargs)
        except TypeError:
            return wrapped(*args, **kwargs)  # which says so in its own words
        name = self._proxied(query.host, query.port) if query.wants_peer() else None
        if name is None:
            answer = wrapped(*args, **kwargs)
            self._note_answer(query.host, lambda: [info[4][0] for info in answer])
            return answer
        # Whether this machine has an address of that family does not matter to the proxy.
        flags = (query.flags | socket.AI_NUMERICHOST) & ~socket.AI_ADDRCONFIG
        found = wrapped(self._placeholders.address(name, query.family), *query[1:5], flags)
        # Only the first entry has a canonical name, if there is any.
        return [(*info[:3], _ascii(name) if info[3] else info[3], info[4]) for info in found]

    def _gethostbyname(
        self, wrapped: Callable[..., Any], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        host = _only(args, kwargs)
        name = self._proxied(host)
        if name is not None:
            return self._placeholders.address(name)
        answer = wrapped(*args, **kwargs)
        self._note_answer(host, lambda: [answer])
        return answer

    def _gethostbyname_ex(
        self, wrapped: Callable[..., Any], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        host = _only(args, kwargs)
        name = self._proxied(host)
        if name is not None:
            return _ascii(name), [], [self._placeholders.address(name)]
        answer = wrapped(*args, **kwargs)
        self._note_answer(host, lambda: answer[2])
        return answer

    def _gethostbyaddr(
        self, wrapped: Callable[..., Any], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        host = _only(args, kwargs)
        name = self._proxied(host)
        if name is not None:
            return _ascii(name), [], [self._placeholders.address(name)]
        address = _text(host)
        if not self._stands_for_a_name(address):
            answer = wrapped(*args, **kwargs)
            self._note_answer(host, lambda: answer[2])
            return answer
        name = self._placeholders.name(address)
        if name is None:
            raise socket.herror(1, "Unknown host")
        return _ascii(name), [], [address]

    def _getnameinfo(
        self, wrapped: Callable[..., Any], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        address = _address_in(args)
        if not self._stands_for_a_name(address):
            try:
                return wrapped(*args, **kwargs)
            finally:
                del args, kwargs  # a traceback of ours would keep them alive longer than the original's does
        sockaddr, flags = args
        host, service = wrapped(sockaddr, (flags | socket.NI_NUMERICHOST) & ~socket.NI_NAMEREQD)
        name = self._placeholders.name(address)
        if name is None and flags & socket.NI_NAMEREQD:
            raise _unknown_name()
        return _ascii(name) if name is not None else host, service

    def _note_answer(self, host: object, addresses: Callable[[], list[str]]) -> None:
        if not isinstance(host, (str, bytes, bytearray)):
            return
        # Somebody else's lookup, in place of the system's, takes and answers what it will.
        with suppress(LookupError, TypeError, UnicodeError):
            if _is_name(_encoded(host)):
                self._note(_text(host), [address for address in addresses() if isinstance(address, str)])

    def _proxied(self, host: object, port: object = None) -> str | None:
        """The host to look up, if it is a name that goes to the proxy.

        Raises:
            UnicodeError: as the original function.
            gaierror: the proxy cannot be asked for such a name.
        """
        if not isinstance(host, (str, bytes, bytearray)):
            return None
        encoded = _encoded(host)
        name = _text(host)
        if not _is_name(encoded) or _normal(name) == _own_name():
            return None
        if not self._is_proxied(name, _port_number(port)):
            return None
        if len(encoded) > MAX_NAME or not encoded.isascii() or b"\0" in encoded:
            raise _unknown_name()
        return name

    def _stands_for_a_name(self, address: str) -> bool:
        if self._placeholders.name(address) is not None:
            return True
        return self._placeholders.covers(address) and self._is_proxied(address, None)


def _unknown_name() -> socket.gaierror:
    return socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def _normal(name: str) -> str:
    return name.lower().rstrip(".")


def _own_name() -> str:
    return _normal(socket.gethostname())


def _encoded(host: str | bytes | bytearray) -> bytes:
    return host.encode("idna") if isinstance(host, str) else bytes(host)


def _is_name(encoded: bytes) -> bool:
    return encoded not in (b"", b"<broadcast>") and not _is_address(_text(encoded))


def _ascii(name: str) -> str:
    """A name as lookups answer it."""
    return (name if name.isascii() else name.encode("idna").decode("ascii")).rstrip(".")


def _text(host: object) -> str:
    if isinstance(host, (bytes, bytearray)):
        return bytes(host).decode("ascii", "replace")
    return host if isinstance(host, str) else ""


def _is_address(host: str) -> bool:
    """Whether the C library reads it as an address, with whatever zone (`fe80::1%eth0`)."""
    address, zone, _ = host.partition("%")
    return ip(address) is not None and (not zone or ":" in address)


def _port_number(port: object) -> int | None:
    """The number of a port or service; None for no port, and for what is none."""
    if isinstance(port, int):
        return port
    text = _text(port)
    with suppress(ValueError):
        return int(text)
    with suppress(OSError, ValueError):
        return socket.getservbyname(text)
    return None


def _only(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """The argument of a function that takes one: gevent's take it by keyword, too."""
    values = (*args, *kwargs.values())
    return values[0] if len(values) == 1 else None


def _address_in(args: tuple[Any, ...]) -> str:
    """The address for which getnameinfo() is to find a name; "" where there is none."""
    if len(args) != 2 or not isinstance(args[0], tuple) or not isinstance(args[1], int):
        return ""
    wants_name = args[0] and not args[1] & socket.NI_NUMERICHOST
    return args[0][0] if wants_name and isinstance(args[0][0], str) else ""
