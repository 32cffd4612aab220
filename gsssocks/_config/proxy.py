"""A proxy, and the terms on which to use it."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Callable
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from gsssocks._evident import FALSE
from gsssocks._protocol import Method, Octets, ProtectionLevel, UserPassword
from gsssocks._security import MECHANISMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .url import Shown

__all__ = [
    "JUDGED_ALONE",
    "METHODS",
    "PROTECTION_LEVELS",
    "SCHEMES",
    "URL_OPTIONS",
    "Proxy",
    "check_options",
    "parsed_option",
]

PROTECTION_LEVELS: Mapping[str, ProtectionLevel] = {level.name.lower(): level for level in ProtectionLevel}
METHODS: Mapping[str, Method] = {"gssapi": Method.GSSAPI, "userpass": Method.USERPASS, "none": Method.NONE}
DELEGATIONS = ("policy", "always", "never")
SCHEMES = ("socks5h", "socks5")
_CHOICES: Mapping[str, Iterable[str]] = {"delegation": DELEGATIONS}
_LISTS: Mapping[str, Iterable[str]] = {"protection": PROTECTION_LEVELS, "methods": METHODS}
_TRUE = ("1", "true", "yes", "on")


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
            below. "none" (not in the RFC) leaves everything after the authentication bare. Several, separated by
            commas, are asked for in order: the next one by a new connection, where the proxy refuses the one before.
        confidential: at "selective", told the octets of each message, says whether to encrypt it; without it all are.
            The proxy chooses for what it sends. Called while the message is being sent: it must not wait.
        mechanism: "krb5", "spnego", "ntlmssp" or an OID; None is the GSS-API library's default, Kerberos where a
            credential is named.
        delegation: "policy": delegate the ticket only if the KDC marks the proxy as fit for it; "always"; "never".
        ccache: credential cache to use, such as "FILE:/tmp/krb5cc_0"; None is the default one.
        keytab: client keytab to get tickets with, when the `ccache` named beside it has none; without one, always, and
            they are kept in memory.
        principal: whose credential to use; None is the cache's default.
        username, password: for the method "userpass" (RFC 1929), which sends them bare. Without a user name, the
            password is the principal's, to get a ticket with: nobody but the KDC is asked by it.
        methods: the authentication methods to offer (RFC 1928, section 3), separated by commas: "gssapi", "userpass",
            "none". With the latter two, nothing protects the data on the way to the proxy.
        nec: send the protection level unwrapped, as the NEC reference implementation does.
        timeout: seconds for everything up to the proxy's reply, whatever the socket's own timeout; None for no limit.
        pipelined: send ahead what depends on no answer (two round trips instead of four); False for proxies that
            cannot take it.
        remote_dns: whether names go to the proxy unresolved; in a URL, the scheme says so (socks5h).

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
    principal: str | None = field(default=None, metadata={"url": True})
    username: str | None = field(default=None, metadata={"url": True})
    password: str | None = field(default=None, repr=False, metadata={"url": True})
    methods: str = field(default="gssapi", metadata={"url": True})
    confidential: Callable[[Octets], bool] | None = None
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
        for name, choices in _LISTS.items():
            # In one spelling, so that equal proxies are equal. The class is frozen for everybody else.
            object.__setattr__(self, name, ",".join(_chosen(name, getattr(self, name), choices)))
        _check_host(self.host)
        _check_mechanism(self.mechanism)
        _check_choice("delegation", self.delegation, DELEGATIONS)
        for name in ("nec", "pipelined", "remote_dns"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"proxy {name} must be True or False, not {getattr(self, name)!r}")
        self._check_timeout()
        self._check_user()
        if self.confidential is not None and "selective" not in self.protection.split(","):
            raise ValueError("proxy confidential= chooses message by message, which takes protection='selective'")

    def _check_user(self) -> None:
        for name in ("username", "password"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"proxy {name} must be a string, not {type(value).__name__}")
        by_password = "userpass" in self.methods.split(",")
        if by_password and (self.username is None or self.password is None):
            raise ValueError("the method 'userpass' takes username= and password=")
        if self.username is not None and not by_password:
            raise ValueError(
                "proxy username= is for the method 'userpass', which sends it bare: say so by methods='userpass'; "
                "Kerberos has principal="
            )
        if self.password is not None and self.username is None and self.principal is None:
            raise ValueError("proxy password= has nobody it is of: give principal= (or username= and methods=)")
        if self.user is not None:
            self.user.encode()

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
    def levels(self) -> tuple[ProtectionLevel, ...]:
        """`protection` as RFC 1961 numbers it: the levels to ask for, in this order."""
        return tuple(PROTECTION_LEVELS[name] for name in self.protection.split(","))

    @property
    def least_level(self) -> ProtectionLevel:
        """The weakest of them: what the connection has at least."""
        return next(level for level in self.levels if all(other.satisfies(level) for other in self.levels))

    @property
    def offered(self) -> tuple[Method, ...]:
        """`methods` as RFC 1928 numbers them."""
        return tuple(METHODS[name] for name in self.methods.split(","))

    @property
    def user(self) -> UserPassword | None:
        """What the method "userpass" sends (RFC 1929); None where it is not offered."""
        if self.username is None or self.password is None:
            return None
        return UserPassword(self.username.encode(), self.password.encode())

    def demanding(self, protection: str) -> Proxy:
        """This proxy where a rule demands `protection`, a level's name, of one destination.

        Raises:
            ValueError: the level takes the method "gssapi", and that is not among its methods.
        """
        if protection == "none":
            return replace(self, protection=protection, confidential=None)
        if Method.GSSAPI not in self.offered:
            raise ValueError(
                f"{protection} takes the method 'gssapi'; for the proxy {self}, methods are {self.methods!r}"
            )
        # Another method would protect nothing. The password is the user's, where there is one.
        alone = replace(
            self, methods="gssapi", username=None, password=None if self.username is not None else self.password
        )
        if protection == "integrity" and self.levels == (ProtectionLevel.SELECTIVE,):
            # The level stays: to choose message by message is what it is for.
            return replace(alone, confidential=_never)
        return replace(
            alone, protection=protection, confidential=self.confidential if protection == "selective" else None
        )

    @property
    def strength(self) -> tuple[bool, int]:
        """How well it protects a connection at least, to be compared with another's."""
        protects = self.offered == (Method.GSSAPI,)
        return protects, sum(map(self.least_level.satisfies, ProtectionLevel))

    @property
    def gss_target(self) -> str:
        """The name to import for GSS-API: `target_name`, or `service@host` with the host in lower case (RFC 1961,
        section 3.1)."""
        return self.target_name or f"{self.service}@{self.host.lower().rstrip('.')}"

    @property
    def url(self) -> str:
        """The URL that `from_url` turns into this proxy again, but for the password and `confidential`."""
        user = f"{quote(self.principal, safe='')}@" if self.principal else ""
        changed = {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if option.name in URL_OPTIONS
            and option.name not in ("principal", "password")
            and getattr(self, option.name) != option.default
        }
        query = f"?{urlencode(changed)}" if changed else ""
        return f"{'socks5h' if self.remote_dns else 'socks5'}://{user}{self}{query}"

    @classmethod
    def from_url(cls, url: str, *, defaults: Mapping[str, object] | None = None, **options: object) -> Proxy:
        """A proxy from `socks5h://[principal[:password]@]host[:port][?option=value&…]`.

        Args:
            url: scheme socks5h (the proxy resolves names) or socks5 (they are resolved here); the options are the
                arguments of the class by name. Before the "@" stands the user name instead, if `methods` in the URL or
                in `options` has userpass and not gssapi.
            defaults: arguments of the class for what the URL does not say.
            options: arguments of the class that take precedence over the URL.

        Raises:
            ValueError, TypeError: the URL or an option is wrong; the message quotes it, without a password.
        """
        if not isinstance(url, str):
            raise TypeError(f"a proxy URL is a string, not {type(url).__name__}")
        check_options(options)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            # Not urlsplit's own words: they may quote the password.
            raise ValueError(
                f"bad proxy URL {without_password(url)!r}: the host must be a name or an address ([…] around IPv6), "
                f"the port 1 to 65535"
            ) from None
        try:
            arguments = {**(defaults or {}), **_url_arguments(parts, port), **options}
            _give_user_its_name(arguments)
            return cls(**arguments)  # type: ignore[arg-type]  # __post_init__ checks what came as text
        except (TypeError, ValueError) as error:
            text, regular = _shown(url)
            if not regular:
                # Nor the error's words: what they quote may be the password's.
                raise ValueError(f"bad proxy URL {text!r}: {_WRITE}") from None
            raise type(error)(f"bad proxy URL {text!r}: {error}") from error

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None, **options: object) -> Proxy:
        """The proxy that the environment names.

        Args:
            environ: the environment; None is `os.environ`. `GSSSOCKS_PROXY` is a URL; where it is absent, `ALL_PROXY`
                or `all_proxy`, if its scheme is socks5h or socks5. `GSSSOCKS_SERVICE`, `GSSSOCKS_PROTECTION` and so
                on, one for each option, are for what the URL does not say.
            options: arguments of the class that take precedence over the environment.

        Raises:
            ValueError: no proxy is named, or something is wrong; the message quotes value and variable.
        """
        check_options(options)
        environ = os.environ if environ is None else environ
        variable, url = environ_url(environ)
        if not url:
            raise ValueError("no proxy given: pass one, or set GSSSOCKS_PROXY=socks5h://host:port (or ALL_PROXY)")
        if "," in url.partition("?")[0]:
            raise ValueError(
                f"environment variable {variable} names several proxies, and a Proxy is one: give install(), "
                "create_connection() or an adapter none, and they take them all"
            )
        defaults = {name: value for name, (value, _) in environ_options(environ).items()}
        try:
            return cls.from_url(url, defaults=defaults, **options)
        except (TypeError, ValueError) as error:
            raise type(error)(f"environment variable {variable}: {error}") from error


def check_options(options: Mapping[str, object]) -> None:
    """Judges arguments of the class that come beside a URL, as far as they can be without it: it is not at fault.

    Raises:
        ValueError, TypeError: one is wrong, or unknown; the message quotes it.
    """
    for name, value in options.items():
        if name not in _ARGUMENTS:
            raise TypeError(f"unknown option {name!r}; the options are {', '.join(_ARGUMENTS)}")
        if name in JUDGED_ALONE:
            Proxy("proxy", **{name: value})  # type: ignore[arg-type]  # it checks what it is given


def without_password(url: str) -> str:
    """The URL as it may be shown. It may be malformed in any way: what could be a password is left out."""
    return _shown(url).text


def _shown(url: str) -> Shown:
    from .url import shown

    return shown(url, URL_OPTIONS)


def environ_url(environ: Mapping[str, str]) -> tuple[str, str]:
    """The variable that names the proxy, and what it says; empty strings if there is none."""
    if environ.get("GSSSOCKS_PROXY"):
        return "GSSSOCKS_PROXY", environ["GSSSOCKS_PROXY"]
    for variable in ("ALL_PROXY", "all_proxy"):
        url = environ.get(variable, "")
        if url.partition("://")[0].lower() in SCHEMES:
            return variable, url
    return "", ""


def environ_options(environ: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    """The options of a proxy that the environment gives, each with the variable it comes from.

    Raises:
        ValueError: one is wrong; the message quotes value and variable.
    """
    found: dict[str, tuple[object, str]] = {}
    for name in URL_OPTIONS:
        variable = f"GSSSOCKS_{name.upper()}"
        if environ.get(variable):
            found[name] = (parsed_option(name, environ[variable], f"environment variable {variable}"), variable)
    return found


def _url_arguments(parts: SplitResult, port: int | None) -> dict[str, object]:
    if parts.scheme not in SCHEMES:
        raise ValueError(f"the scheme must be one of {', '.join(SCHEMES)}, as in socks5h://proxy:1080")
    if not parts.hostname:
        raise ValueError("it names no host")
    if parts.path not in ("", "/") or parts.fragment:
        raise ValueError("nothing may follow host and port but ?options")
    arguments: dict[str, object] = {"host": parts.hostname, "remote_dns": parts.scheme == "socks5h"}
    if port is not None:
        arguments["port"] = port
    if parts.username:
        arguments["principal"] = unquote(parts.username)
    if parts.password:
        arguments["password"] = unquote(parts.password)
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in URL_OPTIONS:
            raise ValueError(f"unknown option {name!r}; the options are {', '.join(URL_OPTIONS)}")
        if name in arguments:
            raise ValueError(f"option {name!r} is given twice")
        arguments[name] = parsed_option(name, text, "in the query")
    return arguments


def _give_user_its_name(arguments: dict[str, object]) -> None:
    """What stands before the "@" of a URL is the user of the only method that knows one."""
    methods = str(arguments.get("methods", "")).split(",")
    if "userpass" in methods and "gssapi" not in methods and "principal" in arguments:
        arguments.setdefault("username", arguments.pop("principal"))


def _never(_octets: Octets) -> bool:
    return False


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"proxy {name} must be a string, not {value!r}")
    if not value or any(character.isspace() or character == "\0" for character in value):
        raise ValueError(f"proxy {name} must not be empty or hold spaces: {value!r}")


def _check_host(host: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return
    if set(host) & set(":/?#@[]%"):
        raise ValueError(
            f"proxy host is no host name or address: {host!r}; give the port apart, as in Proxy(host, port)"
        )
    try:
        encoded = host.rstrip(".").encode("idna")
    except UnicodeError as error:
        raise ValueError(f"proxy host is no host name: {host!r} ({error})") from None
    if len(encoded) > 253:
        raise ValueError(f"proxy host is longer than a host name can be: {host!r}")


def _check_mechanism(mechanism: str | None) -> None:
    if mechanism is None or mechanism.lower() in MECHANISMS or _OID.fullmatch(mechanism):
        return
    raise ValueError(f"proxy mechanism must be one of {', '.join(MECHANISMS)}, or a dotted OID, not {mechanism!r}")


def _chosen(name: str, text: object, choices: Iterable[str]) -> list[str]:
    """The entries of a comma-separated list."""
    if not isinstance(text, str):
        raise TypeError(f"proxy {name} must be a string, not {text!r}")
    chosen = [entry.strip() for entry in text.split(",")]
    for entry in chosen:
        _check_choice(name, entry, choices)
        if chosen.count(entry) > 1:
            raise ValueError(f"proxy {name} names {entry!r} twice")
    return chosen


def _check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"proxy {name} must be one of {', '.join(choices)}, not {value!r}")


def parsed_option(name: str, text: str, source: str) -> object:
    """The value of a proxy's option that is given as text.

    Raises:
        ValueError: it cannot be that option's; the message quotes it and names `source`.
    """
    if name in _CHOICES or name in _LISTS:
        try:
            if name in _LISTS:
                _chosen(name, text, _LISTS[name])
            else:
                _check_choice(name, text, _CHOICES[name])
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
    if name in ("nec", "pipelined", "remote_dns", "bind"):
        if text.lower() not in _TRUE + FALSE:
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


_ARGUMENTS: tuple[str, ...] = tuple(argument.name for argument in fields(Proxy))
URL_OPTIONS: tuple[str, ...] = tuple(option.name for option in fields(Proxy) if option.metadata.get("url"))
"""The options that may be given as text: in a URL, a variable or a file."""
JUDGED_ALONE = frozenset(URL_OPTIONS) - {"username", "password", "methods"}
"""Options whose values are right or wrong whatever the others are."""
_WRITE = (
    "write socks5h://[principal[:password]@]host[:port][?option=value&…], and percent-encode what is special in a "
    f"principal or password; Proxy.from_url() takes one URL alone; the options are {', '.join(URL_OPTIONS)}"
)
_OID = re.compile(r"\d+(\.\d+)+")
