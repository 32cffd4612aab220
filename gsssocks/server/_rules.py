"""Who may do what with which destination."""

from __future__ import annotations

import difflib
import errno
import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gsssocks._config import Destinations
from gsssocks._protocol import Command

from ._sockets import is_own

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from gsssocks._protocol import Address

__all__ = ["COMMANDS", "EVERYTHING", "Permission", "Ruleset"]

COMMANDS = {"connect": Command.CONNECT, "bind": Command.BIND, "udp": Command.UDP_ASSOCIATE}
EVERYTHING = ("allow",)

_OWN = "@self"
_CONDITIONS = ("principal", "command", "to")


@dataclass(frozen=True)
class _Rule:
    written: str
    allow: bool
    principals: Sequence[str]
    commands: Collection[int]
    destinations: Destinations
    own: bool
    """Whether the addresses of this machine are among the destinations."""

    def concerns(self, principal: str, command: int) -> bool:
        return command in self.commands and any(fnmatch.fnmatchcase(principal, pattern) for pattern in self.principals)

    def covers(self, host: str, address: str, port: int, *, own: bool) -> bool:
        """Whether a host at this address, which is one of this machine's own or not, is among the destinations."""
        covers = self.destinations.covers
        return covers(host, port) or covers(address, port) or (self.own and own)

    def covers_address(self, address: str, port: int, *, own: bool) -> bool:
        """Whether the address itself is, and not only as one of any."""
        return self.destinations.covers_address(address, port) or (self.own and own)


class Ruleset:
    """Who may do what with which destination. The first rule that fits decides; what none fits is denied.

    A rule that denies an address denies it under every name, also one that an earlier rule allows: whoever answers for
    the name must not open what is closed. Only an earlier rule that allows the address itself does.

    Args:
        rules: each "allow" or "deny", then its conditions, divided by spaces: "principal=" one of these, where "*"
            stands for any characters; "command=" connect, bind or udp; "to=" one of these destinations, written as in a
            `no_proxy` list: names, ".suffix", addresses, CIDR blocks, each with a port or without, or "*"; or "@self",
            every address that this machine has when it is asked for, and multicast, which reaches it, too. Several of a
            kind are divided by commas. What is left out is any.

    Raises:
        ValueError: a rule is none; the message quotes it.
    """

    def __init__(self, rules: Iterable[str] = EVERYTHING) -> None:
        self._rules = [_rule(written) for written in rules]

    def concerning(self, principal: str, command: int) -> Permission:
        """What these rules are to this client's command."""
        return Permission([rule for rule in self._rules if rule.concerns(principal, command)])


class Permission:
    """The rules that concern one client's command."""

    def __init__(self, rules: Sequence[_Rule]) -> None:
        self._rules = rules

    def check_any(self) -> None:
        """Refuses where no destination at all is allowed.

        Raises:
            PermissionError: it is refused.
        """
        for rule in self._rules:
            if rule.allow:
                return
            if rule.destinations.everything:
                raise PermissionError(errno.EACCES, f"the command is not allowed: the rule {rule.written!r} denies it")
        raise PermissionError(errno.EACCES, "the command is not allowed: no rule allows it")

    def check_name(self, destination: Address) -> None:
        """Refuses what no address could make allowed: such a name must not be looked up, either.

        Raises:
            PermissionError: it is refused.
        """
        host, port = destination.host, destination.port
        for rule in self._rules:
            if rule.destinations.covers(host, port):
                if rule.allow:
                    return
                raise _refusal(destination, rule)
            if rule.allow and (rule.destinations.by_address or rule.own):
                return
        raise _refusal(destination, None)

    def check(self, destination: Address, address: str) -> None:
        """Refuses a destination that is to be reached at this address.

        Raises:
            PermissionError: it is refused.
        """
        port = destination.port
        own = any(rule.own for rule in self._rules) and is_own(address)
        first = next((rule for rule in self._rules if rule.covers(destination.host, address, port, own=own)), None)
        if first is None or not first.allow:
            raise _refusal(destination, first)
        of_address = next((rule for rule in self._rules if rule.covers_address(address, port, own=own)), first)
        if not of_address.allow:
            raise _refusal(destination, of_address)


def _refusal(destination: Address, rule: _Rule | None) -> PermissionError:
    why = f"the rule {rule.written!r} denies it" if rule else "no rule allows it"
    return PermissionError(errno.EACCES, f"{destination} is not allowed: {why}")


def _rule(written: str) -> _Rule:
    try:
        action, *conditions = written.split()
    except ValueError:
        raise ValueError("a rule is empty: write allow or deny") from None
    if action not in ("allow", "deny"):
        raise _bad(written, f"it begins with allow or deny, not {action!r}")
    said = {}
    for condition in conditions:
        name, equals, values = condition.partition("=")
        if name not in _CONDITIONS:
            near = difflib.get_close_matches(name, _CONDITIONS, 1)
            hint = f"; did you mean {near[0]}=?" if near else f"; known are {', '.join(_CONDITIONS)}"
            raise _bad(written, f"unknown condition {condition!r}{hint}")
        if not equals or not values.strip(",") or name in said:
            raise _bad(written, f"give {name}= once, its values divided by commas, without spaces")
        said[name] = [value for value in values.split(",") if value]
    to = said.get("to", ["*"])
    try:
        destinations = Destinations(entry for entry in to if entry != _OWN)
    except ValueError as error:
        raise _bad(written, str(error)) from None
    return _Rule(
        written,
        action == "allow",
        said.get("principal", ["*"]),
        _commands(written, said.get("command", COMMANDS)),
        destinations,
        _OWN in to,
    )


def _commands(written: str, names: Iterable[str]) -> Collection[int]:
    for name in names:
        if name not in COMMANDS:
            raise _bad(written, f"unknown command {name!r}: use {', '.join(COMMANDS)}")
    return frozenset(COMMANDS[name] for name in names)


def _bad(written: str, why: str) -> ValueError:
    return ValueError(f"bad rule {written!r}: {why}")
