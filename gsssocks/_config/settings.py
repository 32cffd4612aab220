"""What `install()` is to do, gathered from its arguments, the URL, the environment and a file, in that order of
strength."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Union, cast

from .addresses import ip
from .placeholders import PlaceholderRanges
from .proxy import (
    JUDGED_ALONE,
    PROTECTION_LEVELS,
    URL_OPTIONS,
    Proxy,
    check_options,
    environ_options,
    environ_url,
    parsed_option,
)
from .rules import Bypass, Rules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["ProxyChoice", "RuleChoice", "Settings", "chosen_proxies"]

ProxyChoice = Union[None, str, Proxy, "Iterable[str | Proxy]"]
"""A proxy or several, tried in order: a `Proxy`, a URL, a comma-separated string of URLs, or an iterable of these."""
RuleChoice = Union[None, str, "Mapping[str, str]", "Iterable[tuple[str, str]]"]

_PREFIX = "GSSSOCKS_"
_NO_PROXY, _GENERAL_NO_PROXY = "GSSSOCKS_NO_PROXY", ("NO_PROXY", "no_proxy")
_FILE_OPTIONS = ("url", "no_proxy", "remote_dns", "placeholders", "bind", *URL_OPTIONS)
_OPTIONS = ("proxy", "config", "no_proxy", "rules", "remote_dns", "placeholders", "bind", *URL_OPTIONS)
_VARIABLES = {f"{_PREFIX}{name.upper()}" for name in (*_OPTIONS, "debug", "inject", "children")}
_ALIKE = 0.9
"""How much the name of a variable must be like another's, at the least, to be taken for a slip."""


@dataclass(frozen=True)
class Settings:
    """Everything `install()` needs to know.

    Attributes:
        proxies: tried in order.
        rules: what becomes of a connection, by its destination.
        remote_dns: whether programs that resolve names themselves get placeholder addresses for those that go through a
            proxy; without it, only for those that are refused.
        bind: whether sockets that listen do so at a proxy.
        placeholders: the ranges that those come from.
        sources: for each thing that was said, where: "argument", "proxy URL", a variable's or a file's name.
    """

    proxies: tuple[Proxy, ...]
    rules: Rules
    remote_dns: bool
    placeholders: PlaceholderRanges
    bind: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def sees_lookups(self) -> bool:
        """Whether something depends on the names that the program looks up."""
        return self.remote_dns or self.rules.by_name

    @classmethod
    def load(
        cls,
        proxy: ProxyChoice = None,
        *,
        no_proxy: str | Iterable[str] | None = None,
        rules: RuleChoice = None,
        remote_dns: bool | None = None,
        bind: bool | None = None,
        placeholders: str | Iterable[str] | None = None,
        environ: Mapping[str, str] | None = None,
        said_by: Mapping[str, str] | None = None,
        **proxy_options: object,
    ) -> Settings:
        """The settings from all sources.

        Args:
            proxy: None is what `GSSSOCKS_PROXY` or `ALL_PROXY` names, else the file.
            no_proxy: None is what `GSSSOCKS_NO_PROXY` says, else the file, else, where the proxy is not an argument,
                `NO_PROXY`, else loopback.
            rules: see `Rules`; None is what `GSSSOCKS_RULES` says, else the file.
            remote_dns: None is what `GSSSOCKS_REMOTE_DNS` says, else the file, else the scheme of the first proxy.
            bind: None is what `GSSSOCKS_BIND` says, else the file, else no.
            placeholders: None is what `GSSSOCKS_PLACEHOLDERS` says, else the file, else the default ranges.
            environ: None is `os.environ`. `GSSSOCKS_CONFIG` is the file's path.
            said_by: by a variable's name, what to call the source instead, where somebody else has set it for the user.
            proxy_options: arguments of `Proxy`, for every proxy.

        Raises:
            ValueError, TypeError: something is wrong; the message quotes it and names its source.
        """
        return _Sources(os.environ if environ is None else environ, said_by).settings(
            cls, proxy, no_proxy, rules, remote_dns, placeholders, bind, proxy_options
        )


def chosen_proxies(proxy: ProxyChoice = None) -> tuple[Proxy, ...]:
    """The proxies for one socket or one session, from the sources of `install()`, and on the terms that are there.

    Args:
        proxy: as for `install()`.

    Raises:
        ValueError, TypeError: something is wrong; the message quotes it and names its source.
    """
    given = None if proxy is None else _listed(proxy)
    if given is not None and all(isinstance(one, Proxy) for one in given):
        return tuple(cast("list[Proxy]", given))  # which have their terms already
    return _Sources(os.environ).proxies(given, {})


class _Sources:
    """The weaker sources, and what was taken from where."""

    def __init__(self, environ: Mapping[str, str], said_by: Mapping[str, str] | None = None) -> None:
        _check_variables(environ)
        self._environ = environ
        self._said_by = said_by or {}
        self._path = environ.get("GSSSOCKS_CONFIG", "")
        self._file: Mapping[str, Mapping[str, str]] = {}
        if self._path:
            from .file import read

            self._file = read(self._path, _FILE_OPTIONS)
        self.said: dict[str, str] = {}
        self._default_keytab: object = None

    def settings(
        self,
        cls: type[Settings],
        proxy: ProxyChoice,
        no_proxy: str | Iterable[str] | None,
        rules: RuleChoice,
        remote_dns: bool | None,  # noqa: FBT001
        placeholders: str | Iterable[str] | None,
        bind: bool | None,  # noqa: FBT001
        options: dict[str, object],
    ) -> Settings:
        proxies = self.proxies(proxy, options)
        self._check_keytabs(proxies)
        bypass = self._bypass(no_proxy, by_argument=proxy is not None)
        return cls(
            proxies=proxies,
            rules=self._rules(rules, bypass, proxies),
            remote_dns=self._choice("remote_dns", remote_dns, default=proxies[0].remote_dns),
            placeholders=self._placeholders(placeholders),
            bind=self._choice("bind", bind, default=False),
            sources=self.said,
        )

    def _variable_source(self, variable: str) -> str:
        return self._said_by.get(variable, f"environment variable {variable}")

    def _option(self, name: str) -> str:
        return self._file.get("proxy", {}).get(name, "").strip()

    def _file_source(self, name: str) -> str:
        return f"{self._path} [proxy] {name}"

    def proxies(self, proxy: ProxyChoice, options: dict[str, object]) -> tuple[Proxy, ...]:
        source, chosen = self._chosen(proxy)
        self.said["proxy"] = source
        check_options(options)
        for name in options:
            self.said[name] = "argument"
        defaults = self._defaults()
        self._default_keytab = defaults.get("keytab")
        try:
            return tuple(_proxy(one, defaults, options) for one in chosen)
        except (TypeError, ValueError) as error:
            if source == "argument":
                raise
            raise type(error)(f"{source}: {error}") from error

    def _check_keytabs(self, proxies: Iterable[Proxy]) -> None:
        for proxy in proxies:
            by_default = proxy.keytab is not None and proxy.keytab == self._default_keytab
            _check_keytab(proxy.keytab, self.said["keytab" if by_default else "proxy"])

    def _chosen(self, proxy: ProxyChoice) -> tuple[str, list[str | Proxy]]:
        if proxy is not None:
            return "argument", _listed(proxy)
        variable, url = environ_url(self._environ)
        if url:
            return self._variable_source(variable), _listed(url)
        if self._option("url"):
            return self._file_source("url"), _listed(self._option("url"))
        raise ValueError(
            "no proxy given: pass one, or set GSSSOCKS_PROXY=socks5h://host:port (or ALL_PROXY), or url= in the file "
            "that GSSSOCKS_CONFIG names"
        )

    def _defaults(self) -> dict[str, object]:
        """What the environment says of every proxy, and for the rest, the file."""
        found: dict[str, object] = {}
        for name in URL_OPTIONS:
            if self._option(name):
                found[name] = parsed_option(name, self._option(name), self._file_source(name))
                self.said[name] = self._file_source(name)
        for name, (value, variable) in environ_options(self._environ).items():
            found[name] = value
            self.said[name] = f"environment variable {variable}"
        for name in JUDGED_ALONE & found.keys():
            try:
                Proxy("proxy", **{name: found[name]})  # type: ignore[arg-type]  # it checks what came as text
            except (TypeError, ValueError) as error:
                raise type(error)(f"{self.said[name]}: {error}") from error
        return found

    def _bypass(self, no_proxy: str | Iterable[str] | None, *, by_argument: bool) -> Bypass:
        if no_proxy is not None:
            self.said["no_proxy"] = "argument"
            return Bypass(no_proxy)
        if _NO_PROXY in self._environ:
            return self._named("no_proxy", self._variable_source(_NO_PROXY), self._environ[_NO_PROXY])
        if "no_proxy" in self._file.get("proxy", {}):
            return self._named("no_proxy", self._file_source("no_proxy"), self._option("no_proxy"))
        # A general NO_PROXY belongs to a proxy that the environment names; it says nothing about one named in the
        # program.
        for variable in () if by_argument else _GENERAL_NO_PROXY:
            if variable in self._environ:
                text = _with_subdomains(self._environ[variable])
                return self._named("no_proxy", f"environment variable {variable}", text)
        return Bypass()

    def _named(self, name: str, source: str, text: str) -> Bypass:
        self.said[name] = source
        try:
            return Bypass(text)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    def _rules(self, rules: RuleChoice, bypass: Bypass, proxies: Iterable[Proxy]) -> Rules:
        source, chosen = "argument", rules
        if chosen is None and self._environ.get("GSSSOCKS_RULES"):
            source, chosen = self._variable_source("GSSSOCKS_RULES"), self._environ["GSSSOCKS_RULES"]
        if chosen is None and "rules" in self._file:
            source, chosen = f"{self._path} [rules]", self._file["rules"]
        if chosen is not None:
            self.said["rules"] = source
        try:
            found = Rules(chosen, bypass)
            _check_demands(found, proxies)
            return found
        except ValueError as error:
            if source == "argument":
                raise
            raise ValueError(f"{source}: {error}") from error

    def _choice(self, name: str, chosen: bool | None, *, default: bool) -> bool:  # noqa: FBT001
        if chosen is not None:
            self.said[name] = "argument"
            return chosen
        for source, text in self._weaker(name):
            if text:
                self.said[name] = source
                return bool(parsed_option(name, text, source))
        return default

    def _placeholders(self, placeholders: str | Iterable[str] | None) -> PlaceholderRanges:
        if placeholders is not None:
            self.said["placeholders"] = "argument"
            return PlaceholderRanges.parsed(placeholders)
        for source, text in self._weaker("placeholders"):
            if text:
                self.said["placeholders"] = source
                try:
                    return PlaceholderRanges.parsed(text)
                except ValueError as error:
                    raise ValueError(f"{source}: {error}") from error
        return PlaceholderRanges()

    def _weaker(self, name: str) -> Iterator[tuple[str, str]]:
        """What the environment, then what the file says of an option."""
        variable = f"GSSSOCKS_{name.upper()}"
        yield f"environment variable {variable}", self._environ.get(variable, "")
        yield self._file_source(name), self._option(name)


def _check_variables(environ: Mapping[str, str]) -> None:
    """A variable of that name may be somebody else's; one that is nearly ours is a slip."""
    for unknown in sorted(name for name in environ if name.startswith(_PREFIX) and name not in _VARIABLES):
        import difflib

        near = difflib.get_close_matches(unknown, _VARIABLES, 1, cutoff=_ALIKE)
        if near:
            raise ValueError(f"environment variable {unknown} is unknown; did you mean {near[0]}?")


def _with_subdomains(no_proxy: str) -> str:
    """What curl, requests and others take NO_PROXY for: a name there stands for those below it, too."""
    entries = [entry.strip() for entry in no_proxy.split(",")]
    return ",".join(
        f".{entry}" if _NAME.fullmatch(entry) and ip(entry.partition(":")[0]) is None else entry for entry in entries
    )


_NAME = re.compile(r"[^.*:/\[][^*:/\[]*(:\d+)?")


# An option in a URL may hold a comma, too, and so may a password.
_BETWEEN_URLS = re.compile(r",(?=\s*(?:$|(?:socks|http)\w*://))", re.IGNORECASE)


def _listed(proxy: str | Proxy | Iterable[str | Proxy]) -> list[str | Proxy]:
    if isinstance(proxy, Proxy):
        return [proxy]
    if isinstance(proxy, str):
        return [url.strip() for url in _BETWEEN_URLS.split(proxy) if url.strip()] or [proxy]
    try:
        listed = list(proxy)
    except TypeError:
        raise TypeError(f"proxy must be a Proxy, a URL or None, not {type(proxy).__name__}") from None
    if not listed:
        raise ValueError("the list of proxies is empty")
    return listed


def _proxy(one: str | Proxy, defaults: dict[str, object], options: dict[str, object]) -> Proxy:
    if not isinstance(one, Proxy):
        return Proxy.from_url(one, defaults=defaults, **options)
    if options:
        raise TypeError(f"a Proxy has its options already; give {', '.join(options)} to it")
    return one


def _check_demands(rules: Rules, proxies: Iterable[Proxy]) -> None:
    for entry, action in rules.written:
        for proxy in proxies if action in PROTECTION_LEVELS else ():
            try:
                proxy.demanding(action)
            except ValueError as error:
                raise ValueError(f"bad rule {f'{entry}={action}'!r}: {error}") from None


def _check_keytab(keytab: str | None, source: str) -> None:
    path = (keytab or "").removeprefix("FILE:")
    # Other types than FILE (MEMORY, …) are the Kerberos library's to know.
    if path.startswith("/") and (not os.access(path, os.R_OK) or os.path.isdir(path)):
        prefix = "" if source == "argument" else f"{source}: "
        raise ValueError(f"{prefix}the keytab {path!r} is not there or cannot be read")
