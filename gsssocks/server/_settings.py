"""What `gsssocks serve` is to do, gathered from its command line and a file, in that order of strength."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from gsssocks._config import PROTECTION_LEVELS
from gsssocks._config.file import read_sections

from ._rules import Ruleset

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["DEFAULT_RULES", "OPTIONS", "Option", "ServiceSettings"]

DEFAULT_PORT = 1080
DEFAULT_RULES = ("deny to=@self,0.0.0.0/8,127.0.0.0/8,169.254.0.0/16,::,::1,fe80::/10", "allow")
"""Not what only this machine can reach, nor, behind link-local addresses, what a cloud tells its machines in
confidence."""
LOG_LEVELS = ("debug", "info", "warning", "error")


class Option(NamedTuple):
    """One option, as text gives it.

    Attributes:
        parse: its value; a ValueError says what it must be.
        metavar: what stands for its value in the help; empty for one that is or is not.
        help: what it does, and its default.
    """

    parse: Callable[[str], object]
    metavar: str
    help: str


@dataclass(frozen=True)
class ServiceSettings:
    """Everything `gsssocks serve` needs to know.

    Attributes:
        listen: addresses and ports.
        grace: seconds that sessions have to end by themselves after a signal.
        log_level: "info" and so on.
        server: other arguments of `ProxyServer`.
    """

    listen: Sequence[tuple[str, int]] = (("127.0.0.1", DEFAULT_PORT),)
    grace: float = 10.0
    log_level: str = "info"
    server: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | None, given: Mapping[str, str], rules: Sequence[str] = ()) -> ServiceSettings:
        """The settings from both sources.

        Args:
            path: the file; None is none.
            given: options of the command line, as text, by their names in the file.
            rules: those of the command line, instead of the file's.

        Raises:
            ValueError: something is wrong; the message quotes it and names its source.
        """
        known = {"server": tuple(OPTIONS), "rules": None}
        found = read_sections(path, known, "the configuration") if path is not None else {}
        values = dict(_values(path, found.get("server", {}), given))
        own = {name: values.pop(name) for name in ("listen", "grace", "log_level") if name in values}
        values["rules"] = _rules(path, found.get("rules"), rules)
        return cls(**own, server=values)


def _values(path: str | None, written: Mapping[str, str], given: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for name, option in OPTIONS.items():
        if name in given:
            source, text = f"--{name.replace('_', '-')}", given[name]
        elif name in written:
            source, text = f"{path} [server] {name}", written[name]
        else:
            continue
        try:
            yield name, option.parse(text.strip())
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None


def _rules(path: str | None, written: Mapping[str, str] | None, given: Sequence[str]) -> Sequence[str]:
    if given:
        _check_rules([("--rule", rule) for rule in given])
        return given
    if written is None:
        return DEFAULT_RULES
    _check_rules([(f"{path} [rules] {label}", rule) for label, rule in written.items()])
    return list(written.values())


def _check_rules(rules: Sequence[tuple[str, str]]) -> None:
    for source, rule in rules:
        try:
            Ruleset([rule])
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None


def _addresses(text: str) -> Sequence[tuple[str, int]]:
    addresses = [_address(part.strip()) for part in text.split(",") if part.strip()]
    if not addresses:
        raise ValueError(f"listen must be one or more of address:port, divided by commas, not {text!r}")
    return addresses


def _address(text: str) -> tuple[str, int]:
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if bracket and rest.startswith(":"):
            port = rest[1:]
        elif not bracket or rest:
            raise ValueError(f"bad address {text!r}: an IPv6 address with a port is written [address]:port")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host:
        raise ValueError(f"bad address {text!r}: it has no host; every address is 0.0.0.0 or [::]")
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"bad address {text!r}: {port!r} is no port")
    return host, int(port)


def _keytab(text: str) -> str:
    path = text.removeprefix("FILE:")
    # Other types than FILE (MEMORY, …) are the Kerberos library's to know.
    if ":" not in path and (not os.access(path, os.R_OK) or os.path.isdir(path)):
        raise ValueError(f"the keytab {text!r} is not there or cannot be read")
    return text


def _levels(text: str) -> Sequence[str]:
    levels = [level.strip() for level in text.split(",") if level.strip()]
    for level in levels:
        if level not in PROTECTION_LEVELS:
            raise ValueError(f"unknown protection level {level!r}: use {', '.join(PROTECTION_LEVELS)}")
    if not levels:
        raise ValueError(f"levels must be one or more of {', '.join(PROTECTION_LEVELS)}, not {text!r}")
    return levels


def _flag(name: str) -> Callable[[str], bool]:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

    def parse(text: str) -> bool:
        if text.lower() not in words:
            raise ValueError(f"{name} must be true or false, not {text!r}")
        return words[text.lower()]

    return parse


def _seconds(name: str, *, zero: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds < float("inf") or (not seconds and not zero):
            raise ValueError(f"{name} must be a number of seconds, not {text!r}")
        return seconds

    return parse


def _clients(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError(f"max_clients must be a number from 1, not {text!r}")
    return int(text)


def _log_level(text: str) -> str:
    if text not in LOG_LEVELS:
        raise ValueError(f"log_level must be one of {', '.join(LOG_LEVELS)}, not {text!r}")
    return text


OPTIONS: Mapping[str, Option] = {
    "listen": Option(_addresses, "LIST", f"address:port, divided by commas (127.0.0.1:{DEFAULT_PORT})"),
    "keytab": Option(_keytab, "FILE", "the service's keytab (KRB5_KTNAME, or Kerberos' default)"),
    "levels": Option(_levels, "LIST", "protection levels granted (integrity,confidentiality,selective)"),
    "nec": Option(_flag("nec"), "", "let the level be agreed on in the clear, as NEC's clients do"),
    "counter_offer": Option(
        _flag("counter_offer"), "", "offer a stronger level where the one asked for is not granted"
    ),
    "negotiation_timeout": Option(
        _seconds("negotiation_timeout"), "SECONDS", "how long a client may take up to its request (30)"
    ),
    "connect_timeout": Option(_seconds("connect_timeout"), "SECONDS", "how long reaching a target may take (30)"),
    "bind_timeout": Option(_seconds("bind_timeout"), "SECONDS", "how long BIND waits for its peer (120)"),
    "max_clients": Option(_clients, "NUMBER", "how many are served at once (256)"),
    "grace": Option(_seconds("grace", zero=True), "SECONDS", "how long sessions may go on after the first signal (10)"),
    "log_level": Option(_log_level, "LEVEL", f"{', '.join(LOG_LEVELS)} (info: a line for each session)"),
}
"""By their names in the file."""
