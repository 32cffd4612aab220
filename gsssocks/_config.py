"""Which proxy, on what terms, and what goes past it. No sockets, no lookups."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Union
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from ._protocol import ProtectionLevel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["UNPROXIED_BY_DEFAULT", "Bypass", "Proxy"]

PROTECTION_LEVELS: Mapping[str, ProtectionLevel] = {level.name.lower(): level for level in ProtectionLevel}
DELEGATIONS = ("policy", "always", "never")
SCHEMES = ("socks5h", "socks5")
UNPROXIED_BY_DEFAULT = ("localhost", "127.0.0.0/8", "::1", "0.0.0.0", "::")
"""Loopback means this machine; a proxy's loopback is another one. To connect to the unspecified address means
loopback too."""

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Proxy:
    """A SOCKS 5 proxy that authenticates by GSS-API, and the terms on which to use it.

    Args:
        host: the proxy's name, as its service principal has it, or its address.
        port: its TCP port.
        service: the service part of its host-based name, `service@host` (RFC 1961, section 3.1).
        target_name: the proxy's whole name, `service@name` or a principal `service/name@REALM`, where it does not
            follow from `service` and `host`: behind an alias or a balancer.
        protection: "confidentiality", "integrity" or "selective" (RFC 1961, section 4.1); a minimum, never gone
            below. "none" (not in the RFC) leaves everything after the authentication bare.
        mechanism: "krb5", "spnego", "ntlmssp" or an OID; None is the GSS-API library's default.
        delegation: "policy": delegate the ticket only if the KDC marks the proxy as fit for it; "always"; "never".
        ccache: credential cache to use, such as "FILE:/tmp/krb5cc_0"; None is the default one.
        keytab: client keytab to get tickets with when the cache has none.
        principal: whose credential to use; None is the cache's default.
        nec: send the protection level unwrapped, as the NEC reference implementation does.
        timeout: seconds for everything up to the proxy's reply, whatever the socket's own timeout; None for no limit.
        pipelined: send ahead what depends on no answer (two round trips instead of four); False for proxies that
        cannot take it. remote_dns: whether names go to the proxy unresolved; in a URL, the scheme says so (socks5h).

    Raises:
        ValueError, TypeError: an option is wrong; the message quotes it.
    """

    host: str
    port: int = 1080
    service: str = field(default="socks", metadata={"url": True})
    target_name: str | None = field(default=None, metadata={"url": True})
    protection: str = field(default="confidentiality", metadata={"url": True})
    mechanism: str | None = field(default=None, metadata={"url": True})
    delegation: str = field(default="policy", metadata={"url": True})
    ccache: str | None = field(default=None, metadata={"url": True})
    keytab: str | None = field(default=None, metadata={"url": True})
    principal: str | None = None
    nec: bool = field(default=False, metadata={"url": True})
    timeout: float | None = field(default=30.0, metadata={"url": True})
    pipelined: bool = field(default=True, metadata={"url": True})
    remote_dns: bool = True

    def __post_init__(self) -> None:
        _check_text("host", self.host)
        if not isinstance(self.port, int) or isinstance(self.port, bool):
            raise TypeError(f"proxy port must be an integer, not {self.port!r}")
        if not 1 <= self.port <= 65535:
            raise ValueError(f"proxy port must be 1 to 65535, not {self.port}")
        _check_text("service", self.service)
        for name in ("target_name", "mechanism", "ccache", "keytab", "principal"):
            if getattr(self, name) is not None:
                _check_text(name, getattr(self, name))
        _check_choice("protection", self.protection, PROTECTION_LEVELS)
        _check_choice("delegation", self.delegation, DELEGATIONS)
        for name in ("nec", "pipelined", "remote_dns"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"proxy {name} must be True or False, not {getattr(self, name)!r}")
        self._check_timeout()

    def _check_timeout(self) -> None:
        if self.timeout is None:
            return
        if not isinstance(self.timeout, (int, float)) or isinstance(self.timeout, bool):
            raise TypeError(f"proxy timeout must be seconds or None, not {self.timeout!r}")
        if not 0 < self.timeout < float("inf"):
            raise ValueError(f"proxy timeout must be a positive number of seconds, not {self.timeout!r}")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def level(self) -> ProtectionLevel:
        """`protection` as RFC 1961 numbers it."""
        return PROTECTION_LEVELS[self.protection]

    @property
    def gss_target(self) -> str:
        """The name to import for GSS-API: `target_name`, or `service@host` with the host in lower case (RFC 1961,
        section 3.1)."""
        return self.target_name or f"{self.service}@{self.host.lower().rstrip('.')}"

    @property
    def url(self) -> str:
        """The URL that `from_url` turns into this proxy again."""
        user = f"{quote(self.principal, safe='')}@" if self.principal else ""
        changed = {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if option.metadata.get("url") and getattr(self, option.name) != option.default
        }
        query = f"?{urlencode(changed)}" if changed else ""
        return f"{'socks5h' if self.remote_dns else 'socks5'}://{user}{self}{query}"

    @classmethod
    def from_url(cls, url: str, **options: object) -> Proxy:
        """A proxy from `socks5h://[principal@]host[:port][?option=value&…]`.

        Args:
            url: scheme socks5h (the proxy resolves names) or socks5 (they are resolved here); the options are the
                arguments of the class by name.
            options: arguments of the class that take precedence over the URL.

        Raises:
            ValueError: the URL or an option is wrong; the message quotes it.
        """
        if not isinstance(url, str):
            raise TypeError(f"a proxy URL is a string, not {type(url).__name__}")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ValueError(f"bad proxy URL {url!r}: {error}") from error
        if parts.scheme not in SCHEMES:
            raise ValueError(
                f"bad proxy URL {url!r}: the scheme must be one of {', '.join(SCHEMES)}, as in socks5h://proxy:1080"
            )
        if not parts.hostname:
            raise ValueError(f"bad proxy URL {url!r}: it names no host")
        if parts.path not in ("", "/") or parts.fragment:
            raise ValueError(f"bad proxy URL {url!r}: nothing may follow host and port but ?options")
        if parts.password is not None:
            # Not quoted: the URL holds a secret.
            raise ValueError(
                f"bad proxy URL for {parts.hostname}: GSS-API takes no password; use a ticket cache or keytab="
            )
        arguments: dict[str, object] = {"host": parts.hostname, "remote_dns": parts.scheme == "socks5h"}
        if port is not None:
            arguments["port"] = port
        if parts.username:
            arguments["principal"] = unquote(parts.username)
        arguments.update(_query_options(url, parts.query))
        arguments.update(options)
        try:
            return cls(**arguments)  # type: ignore[arg-type]  # __post_init__ checks what came as text
        except (TypeError, ValueError) as error:
            raise type(error)(f"bad proxy URL {url!r}: {error}") from error

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None, **options: object) -> Proxy:
        """The proxy that the environment names.

        Args:
            environ: the environment; None is `os.environ`. `GSSSOCKS_PROXY` is a URL; where it is absent, `ALL_PROXY`
                or `all_proxy`, if its scheme is socks5h or socks5. `GSSSOCKS_SERVICE`, `GSSSOCKS_PROTECTION` and so
                on, one for each option, take precedence over the URL.
            options: arguments of the class that take precedence over the environment.

        Raises:
            ValueError: no proxy is named, or something is wrong; the message quotes value and variable.
        """
        environ = os.environ if environ is None else environ
        variable, url = _environ_url(environ)
        found: dict[str, object] = {}
        for option in fields(cls):
            name = f"GSSSOCKS_{option.name.upper()}"
            if (option.metadata.get("url") or option.name == "principal") and environ.get(name):
                found[option.name] = _parsed(option.name, environ[name], f"environment variable {name}")
        found.update(options)
        try:
            return cls.from_url(url, **found)
        except (TypeError, ValueError) as error:
            raise type(error)(f"environment variable {variable}: {error}") from error


def _environ_url(environ: Mapping[str, str]) -> tuple[str, str]:
    if environ.get("GSSSOCKS_PROXY"):
        return "GSSSOCKS_PROXY", environ["GSSSOCKS_PROXY"]
    for variable in ("ALL_PROXY", "all_proxy"):
        url = environ.get(variable, "")
        if url.partition("://")[0] in SCHEMES:
            return variable, url
    raise ValueError("no proxy given: pass one, or set GSSSOCKS_PROXY=socks5h://host:port (or ALL_PROXY)")


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"proxy {name} must be a string, not {value!r}")
    if not value or any(character.isspace() or character == "\0" for character in value):
        raise ValueError(f"proxy {name} must not be empty or hold spaces: {value!r}")


def _check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"proxy {name} must be one of {', '.join(choices)}, not {value!r}")


def _query_options(url: str, query: str) -> dict[str, object]:
    known = [option.name for option in fields(Proxy) if option.metadata.get("url")]
    found: dict[str, object] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise ValueError(f"bad proxy URL {url!r}: unknown option {name!r}; the options are {', '.join(known)}")
        if name in found:
            raise ValueError(f"bad proxy URL {url!r}: option {name!r} is given twice")
        found[name] = _parsed(name, text, f"bad proxy URL {url!r}")
    return found


def _parsed(name: str, text: str, source: str) -> object:
    if name in ("nec", "pipelined"):
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError(f"{source}: {name} must be true or false, not {text!r}")
        return text.lower() in _TRUE
    if name == "timeout":
        if text.lower() == "none":
            return None
        try:
            return float(text)
        except ValueError:
            raise ValueError(f"{source}: timeout must be a number of seconds or none, not {text!r}") from None
    return text


_Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


@dataclass(frozen=True)
class _Rule:
    """One entry of a no_proxy list."""

    port: int | None = None
    name: str | None = None
    subdomains: bool = False
    network: _Network | None = None

    def matches(self, host: str, port: int) -> bool:
        if self.port is not None and port != self.port:
            return False
        if self.network is not None:
            address = _ip(host)
            return address is not None and address.version == self.network.version and address in self.network
        if self.name is None:
            return True
        return host == self.name or (self.subdomains and host.endswith(f".{self.name}"))


class Bypass:
    """The destinations that are reached directly.

    Args:
        entries: a comma-separated string or an iterable of entries. `name` is that host; `.suffix` every host below
            it and itself; an address or a CIDR block is what it says; `host:port` (`[address]:port` for IPv6) is that
            port only; `*` is everything. None is loopback alone; an empty iterable is nothing.

    Raises:
        ValueError: an entry is none of these; the message quotes it.
    """

    def __init__(self, entries: str | Iterable[str] | None = None) -> None:
        if entries is None:
            entries = UNPROXIED_BY_DEFAULT
        elif isinstance(entries, str):
            entries = [entry for entry in entries.split(",") if entry.strip()]
        self.entries: tuple[str, ...] = tuple(entries)
        self._rules = [_rule(entry) for entry in self.entries]

    def covers(self, host: str, port: int) -> bool:
        """Whether `host` (a name or an address, as the application gave it) and `port` are reached directly."""
        host = _normal(host)
        return any(rule.matches(host, port) for rule in self._rules)


def _normal(host: str) -> str:
    return host.strip("[]").lower().rstrip(".")


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def _rule(entry: str) -> _Rule:
    if not isinstance(entry, str):
        raise TypeError(f"a no_proxy entry is a string, not {entry!r}")
    text = entry.strip().lower()
    if text == "*":
        return _Rule()
    host, port = _split_port(entry, text)
    if "/" in host:
        try:
            return _Rule(port=port, network=ipaddress.ip_network(host, strict=False))
        except ValueError as error:
            raise ValueError(f"bad no_proxy entry {entry!r}: {error}") from error
    address = _ip(host)
    if address is not None:
        return _Rule(port=port, network=ipaddress.ip_network(address))
    subdomains = host.startswith((".", "*."))
    name = host.removeprefix("*").strip(".")
    if not name or any(character.isspace() or character in "*:[]@?#" for character in name):
        raise ValueError(f"bad no_proxy entry {entry!r}: give a name, .suffix, address, CIDR block, host:port or *")
    return _Rule(port=port, name=name, subdomains=subdomains)


def _split_port(entry: str, text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"bad no_proxy entry {entry!r}: an IPv6 address with a port is written [address]:port")
        digits = rest[1:]
    elif text.count(":") == 1:
        host, _, digits = text.partition(":")
    else:
        return text, None
    if not digits:
        return host, None
    if not digits.isdigit() or not 0 < int(digits) < 65536:
        raise ValueError(f"bad no_proxy entry {entry!r}: {digits!r} is no port")
    return host, int(digits)
