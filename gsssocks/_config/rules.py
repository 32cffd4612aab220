"""Which destinations go through the proxy, and on what terms."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Union

from .proxy import PROTECTION_LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["UNPROXIED_BY_DEFAULT", "Bypass", "Decision", "Destinations", "Rules"]

UNPROXIED_BY_DEFAULT = ("localhost", "127.0.0.0/8", "::1", "0.0.0.0", "::")
"""Loopback means this machine; a proxy's loopback is another one. To connect to the unspecified address means
loopback too."""
ACTIONS = ("direct", "proxy", "refuse", *PROTECTION_LEVELS)


_Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


@dataclass(frozen=True)
class _Pattern:
    """A set of destinations, as one entry of a no_proxy list writes it."""

    port: int | None = None
    name: str | None = None
    subdomains: bool = False
    network: _Network | None = None

    def matches(self, host: str, port: int) -> bool:
        return (self.port is None or port == self.port) and self.has(host)

    def has(self, host: str) -> bool:
        """Whether it holds the host, at one port or at all."""
        if self.network is not None:
            address = _ip(host)
            return address is not None and address.version == self.network.version and address in self.network
        if self.name is None:
            return True
        return host == self.name or (self.subdomains and host.endswith(f".{self.name}"))


class Destinations:
    """A set of hosts and ports.

    Args:
        entries: a comma-separated string or an iterable of entries. `name` is that host; `.suffix` every host below
            it and itself; an address or a CIDR block is what it says; `host:port` (`[address]:port` for IPv6) is that
            port only; `*` is everything.

    Raises:
        ValueError: an entry is none of these; the message quotes it.
    """

    def __init__(self, entries: str | Iterable[str]) -> None:
        if isinstance(entries, str):
            entries = [entry for entry in entries.split(",") if entry.strip()]
        self.entries: tuple[str, ...] = tuple(entries)
        self._patterns = [_pattern(entry) for entry in self.entries]

    def covers(self, host: str, port: int) -> bool:
        """Whether `host` (a name or an address, as it was given) and `port` are among them."""
        host = _normal(host)
        return any(pattern.matches(host, port) for pattern in self._patterns)

    @property
    def everything(self) -> bool:
        """Whether it is everything."""
        return _Pattern() in self._patterns

    @property
    def by_address(self) -> bool:
        """Whether an entry is an address or a CIDR block."""
        return any(pattern.network is not None for pattern in self._patterns)

    def covers_address(self, address: str, port: int) -> bool:
        """Whether an entry that is an address or a CIDR block has `address` and `port`."""
        return any(pattern.network is not None and pattern.matches(address, port) for pattern in self._patterns)


class Bypass(Destinations):
    """The destinations that are reached directly.

    Args:
        entries: as of `Destinations`. None is loopback alone; an empty iterable is nothing.

    Raises:
        ValueError: an entry is wrong; the message quotes it.
    """

    def __init__(self, entries: str | Iterable[str] | None = None) -> None:
        super().__init__(UNPROXIED_BY_DEFAULT if entries is None else entries)
        self.given = () if entries is None else self.entries

    def covers_every_port(self, host: str) -> bool:
        """Whether `host` is reached directly whatever the port."""
        host = _normal(host)
        return any(pattern.port is None and pattern.has(host) for pattern in self._patterns)


class Decision(NamedTuple):
    """What is to become of a connection."""

    action: str
    """"direct", "proxy" or "refuse"."""
    protection: str | None = None
    """The protection level to demand instead of the proxy's own; None for that."""
    rule: str = ""
    """The rule that says so, as it was written; empty where none does."""


class Rules:
    """What becomes of a connection, by its destination. The first rule that fits decides; then `bypass`; then the
    proxy.

    Args:
        rules: pairs of a destination, written as in `Bypass`, and an action: "direct", "proxy", "refuse", or a
            protection level ("integrity", …), which is "proxy" with that level. A string has them as
            `destination=action`, separated by commas.
        bypass: what else is reached directly.

    Raises:
        ValueError: a rule is wrong, or contradicts another; the message quotes it.
    """

    def __init__(
        self,
        rules: str | Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        bypass: Bypass | None = None,
    ) -> None:
        self.bypass = bypass if bypass is not None else Bypass()
        self.written: tuple[tuple[str, str], ...] = tuple(_pairs(rules))
        self._rules = [(_pattern(entry), _decision(entry, action)) for entry, action in self.written]
        self._check_consistent()
        self._decided = functools.lru_cache(maxsize=1024)(self._decide)

    def decide(self, host: str, port: int) -> Decision:
        """What becomes of a connection to `host` (a name or an address, as the application gave it) and `port`."""
        return self._decided(host, port)

    def _decide(self, host: str, port: int) -> Decision:
        normal = _normal(host)
        for pattern, decision in self._rules:
            if pattern.matches(normal, port):
                return decision
        return Decision("direct", None, "no_proxy") if self.bypass.covers(host, port) else Decision("proxy")

    def is_direct(self, host: str, port: int | None) -> bool:
        """Whether every connection to `host` is direct: at `port`, or where that is None, at any port."""
        if port is not None:
            return self.decide(host, port).action == "direct"
        normal = _normal(host)
        for pattern, decision in self._rules:
            if pattern.has(normal) and (decision.action != "direct" or pattern.port is None):
                return decision.action == "direct"
        return self.bypass.covers_every_port(host)

    def _check_consistent(self) -> None:
        said: dict[_Pattern, Decision] = {
            _pattern(entry): Decision("direct", None, entry) for entry in self.bypass.given
        }
        for pattern, decision in self._rules:
            other = said.setdefault(pattern, decision)
            if other[:2] != decision[:2]:
                raise ValueError(f"two rules contradict each other: {other.rule!r} and {decision.rule!r}")


def _pairs(rules: str | Mapping[str, str] | Iterable[tuple[str, str]] | None) -> list[tuple[str, str]]:
    if rules is None:
        return []
    if isinstance(rules, str):
        return [_pair(text) for text in rules.split(",") if text.strip()]
    return list(rules.items()) if isinstance(rules, Mapping) else list(rules)


def _pair(text: str) -> tuple[str, str]:
    entry, equals, action = text.partition("=")
    if not equals:
        raise ValueError(f"bad rule {text.strip()!r}: write destination=action, such as *:443=integrity")
    return entry.strip(), action.strip()


def _decision(entry: str, action: str) -> Decision:
    written = f"{entry}={action}"
    if action not in ACTIONS:
        raise ValueError(f"bad rule {written!r}: the action must be one of {', '.join(ACTIONS)}")
    if action in PROTECTION_LEVELS:
        return Decision("proxy", action, written)
    return Decision(action, None, written)


def _normal(host: str) -> str:
    if not host.isascii():
        # As the resolver and connect() do: "bücher.example" and its encoded form are one name, "１２７.0.0.1" is an
        # address.
        with suppress(UnicodeError):
            host = host.encode("idna").decode("ascii")
    return host.strip("[]").lower().rstrip(".")


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def _pattern(entry: str) -> _Pattern:
    if not isinstance(entry, str):
        raise TypeError(f"a destination is a string, not {entry!r}")
    text = entry.strip().lower()
    host, port = _split_port(entry, text)
    if not host.isascii():
        host = ("." if host.startswith(".") else "") + _normal(host.lstrip("."))
    if host == "*":
        return _Pattern(port=port)
    if "/" in host:
        try:
            return _Pattern(port=port, network=ipaddress.ip_network(host, strict=False))
        except ValueError as error:
            raise ValueError(f"bad destination {entry!r}: {error}") from error
    address = _ip(host)
    if address is not None:
        return _Pattern(port=port, network=ipaddress.ip_network(address))
    subdomains = host.startswith((".", "*."))
    name = (host.removeprefix("*") if subdomains else host).strip(".")
    if not name or any(character.isspace() or character in "*:[]@?#" for character in name):
        raise ValueError(f"bad destination {entry!r}: give a name, .suffix, address, CIDR block, host:port or *")
    return _Pattern(port=port, name=name, subdomains=subdomains)


def _split_port(entry: str, text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"bad destination {entry!r}: an IPv6 address with a port is written [address]:port")
        digits = rest[1:]
    elif text.count(":") == 1:
        host, _, digits = text.partition(":")
    else:
        return text, None
    if not digits:
        return host, None
    if not digits.isdigit() or not 0 < int(digits) < 65536:
        raise ValueError(f"bad destination {entry!r}: {digits!r} is no port")
    return host, int(digits)
