"""Which destinations go through the proxy, and on what terms."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .addresses import IPAddress, IPNetwork, ip, network
from .proxy import PROTECTION_LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NAMELESS", "UNPROXIED_BY_DEFAULT", "Bypass", "Decision", "Destinations", "Naming", "Rules"]

UNPROXIED_BY_DEFAULT = ("localhost", "127.0.0.0/8", "::1", "0.0.0.0", "::")
"""Loopback means this machine; a proxy's loopback is another one. To connect to the unspecified address means
loopback too."""
ACTIONS = ("direct", "proxy", "refuse", *PROTECTION_LEVELS)


class _Host(NamedTuple):
    """A host as the application gave it."""

    name: str
    """In lower case, without a final dot; empty for an address."""
    address: IPAddress | None
    literal: bool
    """Whether connect(2) goes to `address` without a lookup. It looks up what only looks like one: `[::1]`,
    `127.0.0.1.`."""


@dataclass(frozen=True)
class _Pattern:
    """A set of destinations, as one entry of a no_proxy list writes it."""

    port: int | None = None
    name: str | None = None
    subdomains: bool = False
    network: IPNetwork | None = None

    def matches(self, host: _Host, port: int, naming: Naming) -> bool:
        return (self.port is None or port == self.port) and (self in naming or self.has(host))

    def has(self, host: _Host) -> bool:
        """Whether it holds the host, at one port or at all."""
        if self.network is not None:
            address = host.address
            return address is not None and address.version == self.network.version and address in self.network
        if self.name is None:
            return True
        return host.name == self.name or (self.subdomains and host.name.endswith(f".{self.name}"))


Naming = frozenset[_Pattern]
"""All that rules know of a name: which entries have it. Names of one naming have one fate at every port."""
NAMELESS: Naming = frozenset()


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

    def covers(self, host: str, port: int, naming: Naming = NAMELESS) -> bool:
        """Whether `host` (a name or an address, as it was given, or of a name of that naming) and `port` are among
        them."""
        parsed = _host(host)
        return any(pattern.matches(parsed, port, naming) for pattern in self._patterns)

    def naming(self, name: str) -> Naming:
        """The entries that have `name` by its name, at one port or at all."""
        host = _host(name)
        return frozenset(pattern for pattern in self._patterns if pattern.name is not None and pattern.has(host))

    @property
    def by_name(self) -> bool:
        """Whether an entry is a name."""
        return any(pattern.name is not None for pattern in self._patterns)

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
        host = _host(address)
        return any(pattern.network is not None and pattern.matches(host, port, NAMELESS) for pattern in self._patterns)


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

    def actions(self, host: str) -> set[str]:
        """What becomes of connections to `host`, by the port: "direct", "proxy" or both."""
        parsed = _host(host)
        fitting = [pattern for pattern in self._patterns if pattern.has(parsed)]
        if any(pattern.port is None for pattern in fitting):
            return {"direct"}
        return {"direct", "proxy"} if fitting else {"proxy"}


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

    def decide(self, host: str, port: int, naming: Naming = NAMELESS) -> Decision:
        """What becomes of a connection to `host` (a name or an address, as the application gave it) and `port`.

        Args:
            naming: of the name that `host`, an address, was looked up for: the connection is to both, and what fits
                either of them fits.
        """
        return self._decided(host, port, naming)

    def _decide(self, host: str, port: int, naming: Naming) -> Decision:
        parsed = _host(host)
        for pattern, decision in self._rules:
            if pattern.matches(parsed, port, naming):
                return decision if decision.action != "direct" or _may_be_direct(parsed) else Decision("proxy")
        direct = self.bypass.covers(host, port, naming) and _may_be_direct(parsed)
        return Decision("direct", None, "no_proxy") if direct else Decision("proxy")

    def action(self, host: str, port: int | None) -> str | None:
        """What becomes of every connection to `host`: at `port`, or where that is None, at any port; None where it
        depends on the port."""
        if port is not None:
            return self.decide(host, port).action
        parsed = _host(host)
        actions = set()
        for pattern, decision in self._rules:
            if pattern.has(parsed):
                actions.add(decision.action)
                if pattern.port is None:
                    break
        else:
            actions |= self.bypass.actions(host)
        action = actions.pop()
        if actions:
            return None
        return action if action != "direct" or _may_be_direct(parsed) else "proxy"

    def naming(self, name: str) -> Naming:
        """The entries that have `name` by its name: of the rules, and of what else is reached directly."""
        host = _host(name)
        by_rule = (pattern for pattern, _ in self._rules if pattern.name is not None and pattern.has(host))
        return self.bypass.naming(name).union(by_rule)

    @property
    def by_name(self) -> bool:
        """Whether a name was given, by a rule or among what else is reached directly."""
        return any(pattern.name is not None for pattern, _ in self._rules) or (
            bool(self.bypass.given) and self.bypass.by_name
        )

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


@functools.lru_cache(maxsize=1024)
def _host(host: str) -> _Host:
    host = _encoded(host)
    name = host.strip("[]").lower().rstrip(".")
    address = ip(host)
    if address is not None:
        return _Host("", address, literal=True)
    address = ip(name)
    return _Host(name if address is None else "", address, literal=False)


def _may_be_direct(host: _Host) -> bool:
    # Whoever resolves the name may find the address that it looks like, or another.
    return host.address is None or host.literal


def _encoded(host: str) -> str:
    """As the resolver and connect() have it: "bücher.example" and its encoded form are one name, "１２７.0.0.1" is an
    address."""
    if not host.isascii():
        with suppress(UnicodeError):
            return host.encode("idna").decode("ascii")
    return host


def _pattern(entry: str) -> _Pattern:
    if not isinstance(entry, str):
        raise TypeError(f"a destination is a string, not {entry!r}")
    text = entry.strip().lower()
    host, port = _split_port(entry, text)
    if not host.isascii():
        host = ("." if host.startswith(".") else "") + _encoded(host.lstrip(".")).lower()
    if host == "*":
        return _Pattern(port=port)
    if "/" in host:
        try:
            return _Pattern(port=port, network=network(host))
        except ValueError as error:
            raise ValueError(f"bad destination {entry!r}: {error}") from error
    address = ip(host.rstrip("."))
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
