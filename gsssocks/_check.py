"""`gsssocks check`: follows one connection from the configuration to the target, and says at each step what it found.

Every step is a `Finding`; the first that fails ends the examination, since nothing behind it could succeed. Only a
proxy that cannot be reached is followed by the next one, a protection level that is refused by the next one, and so is
an address of the target that the proxy cannot reach, if there is one, as in a program. A target that is reached
directly takes no proxy. No secret is ever part of a finding: names, lifetimes and levels are, tokens, keys and
passwords are not.
"""

from __future__ import annotations

import http.client
import socket
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable

from ._config import Settings
from ._connecting import initiator
from ._create_connection import create_connection
from ._findings import Finding, Report
from ._in_words import canonical_name, clock, duration
from ._negotiation import ClientNegotiation
from ._protocol import Address, Command, Method, Request
from ._target import Target, ask, direct_connection, is_looked_up_here, looked_up
from .exceptions import (
    AuthenticationError,
    LevelRefusedError,
    ReplyError,
    proxy_connection_error,
    proxy_timeout,
    refused_by_rule,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ._config import Proxy
    from ._config.rules import Decision
    from ._gss import Initiator
    from ._protocol import ProtectionLevel

__all__ = ["examine"]

_METHOD_NAMES = {Method.GSSAPI: "GSS-API", Method.USERPASS: "user name and password", Method.NONE: "none"}
_SERVICES = ("socks", "rcmd", "host")


def examine(target: str | None, environ: Mapping[str, str], said_by: Mapping[str, str]) -> Report:
    """Follows one connection, as a program would make it that is started in an environment.

    Args:
        target: a URL (http, https) or `host:port`; None ends with a proxy that is ready to connect.
        environ, said_by: as of `Settings.load()`.
    """
    report = Report()
    with suppress(_FailedError):
        for finding in _Examination(target, environ, said_by).steps():
            report.findings.append(finding)
    return report


class _FailedError(Exception):
    """A step has; its finding says why."""


class _Examination:
    _proxy: Proxy
    _target: Target | None = None
    _directly = False

    def __init__(self, target: str | None, environ: Mapping[str, str], said_by: Mapping[str, str]) -> None:
        self._given = target
        self._environ = environ
        self._said_by = said_by

    def steps(self) -> Iterator[Finding]:
        """Every finding.

        Raises:
            _FailedError: after that of a step that ends the examination.
        """
        yield from self._step("configuration", self._configuration)
        if self._target is not None and is_looked_up_here(self._settings, self._target.address):
            yield from self._step("target", self._look_up)
        if self._directly:
            yield from self._step("target", self._ask_directly)
            return
        yield from self._reach_a_proxy()
        try:
            yield from self._negotiate_for_an_address()
        finally:
            self._connection.close()
        if self._target is not None:
            yield from self._step("target", self._ask_target)

    def _reach_a_proxy(self) -> Iterator[Finding]:
        *others, last = self._proxies
        for self._proxy in others:
            yield from self._get_ticket()
            finding = self._timed("proxy", self._connect)
            yield finding
            if finding.ok:
                return
        self._proxy = last
        yield from self._get_ticket()
        yield from self._step("proxy", self._connect)

    def _get_ticket(self) -> Iterator[Finding]:
        """Where the proxy may ask for none, to have none ends nothing."""
        prepared = self._timed("credential", self._prepare)
        if not prepared.ok:
            yield prepared
            raise _FailedError
        if Method.GSSAPI not in self._proxy.offered:
            return
        for step, examine_step in (("credential", self._credential), ("service", self._service)):
            finding = self._timed(step, examine_step)
            yield finding
            if not finding.ok and self._proxy.offered == (Method.GSSAPI,):
                raise _FailedError
            if not finding.ok:
                return

    def _step(self, step: str, examine_step: Callable[[dict[str, str]], None]) -> Iterator[Finding]:
        finding = self._timed(step, examine_step)
        yield finding
        if not finding.ok:
            raise _FailedError

    def _timed(self, step: str, examine_step: Callable[[dict[str, str]], None]) -> Finding:
        finding = Finding(step)
        begun = time.monotonic()
        try:
            examine_step(finding.facts)
        except (OSError, ValueError, TypeError, http.client.HTTPException) as error:
            finding.ok = False
            finding.facts["problem"] = str(error) or type(error).__name__
        finding.milliseconds = (time.monotonic() - begun) * 1000
        return finding

    def _configuration(self, facts: dict[str, str]) -> None:
        settings = Settings.load(environ=self._environ, said_by=self._said_by)
        self._settings, self._proxies = settings, settings.proxies
        for number, proxy in enumerate(settings.proxies):
            facts["proxy" if not number else f"then proxy {number + 1}"] = proxy.url
        for name, source in settings.sources.items():
            facts[f"{name} from"] = source
        facts["directly"] = ", ".join(settings.rules.bypass.entries) or "nothing"
        if settings.rules.written:
            facts["rules"] = ", ".join("=".join(rule) for rule in settings.rules.written)
        facts["names"] = "resolved by the proxy" if settings.remote_dns else "resolved here"
        if settings.remote_dns:
            facts["placeholders"] = ", ".join(settings.placeholders)
        # Without a target, one that is never asked for.
        self._destinations = [Address("localhost", 1)]
        if self._given is None:
            return
        self._target = Target.parsed(self._given)
        self._destinations = [self._target.address]
        self._obey(settings.rules.decide(self._target.address.host, self._target.address.port), facts)

    def _obey(self, decision: Decision, facts: dict[str, str]) -> None:
        facts["this target"] = f"{decision.action}, by {decision.rule}" if decision.rule else decision.action
        if decision.action == "refuse":
            raise refused_by_rule(str(self._destinations[0]), decision.rule)
        self._decision, self._directly = decision, decision.action == "direct"
        self._proxies = self._settings.proxies
        if decision.protection is not None:
            self._proxies = tuple(proxy.demanding(decision.protection) for proxy in self._proxies)

    def _look_up(self, facts: dict[str, str]) -> None:
        """As a program does that is given no placeholder: rules are for the address then, too."""
        assert self._target is not None  # or there is nothing to look up
        host, port = self._target.address.host, self._target.address.port
        facts["target"] = str(self._target.address)
        found = looked_up(host, port)
        facts["looked up here"] = ", ".join(address.host for address in found)
        rules = self._settings.rules
        naming = rules.naming(host)
        decision = rules.decide(found[0].host, port, naming)
        self._destinations = [address for address in found if rules.decide(address.host, port, naming) == decision]
        self._obey(decision, facts)

    def _ask_directly(self, facts: dict[str, str]) -> None:
        assert self._target is not None  # or nothing says that it is reached directly
        facts["reached"] = f"directly, by {self._decision.rule}"
        hosts, port = [address.host for address in self._destinations], self._target.address.port
        with direct_connection(hosts, port, self._proxies[0].timeout) as connection:
            facts["address"] = str(Address(*connection.getpeername()[:2]))
            facts.update(ask(connection, self._target))

    def _prepare(self, _facts: dict[str, str]) -> None:
        self._initiator = initiator(self._proxy)
        self._token: bytes | None = None

    def _credential(self, facts: dict[str, str]) -> None:
        from ._gss import Source, credential, kdc_clock_offset

        if self._proxy.keytab is not None:
            facts["keytab"] = self._proxy.keytab
            _open_keytab(self._proxy.keytab)
        proxy = self._proxy
        password = proxy.password if proxy.username is None else None
        if proxy.keytab is None and password is None:
            offset = kdc_clock_offset(proxy.ccache)
            if offset is not None:
                facts["clock"] = clock(offset)
        found = credential(Source(proxy.principal, proxy.ccache, proxy.keytab, password, proxy.mechanism))
        facts["principal"] = found.principal
        facts["cache"] = found.cache
        facts["valid for"] = duration(found.lifetime)

    def _service(self, facts: dict[str, str]) -> None:
        facts["asked for"] = self._proxy.gss_target
        try:
            self._token = self._initiator.step(None)
            facts["KDC"] = "gave a ticket"
        finally:
            facts["would work"] = ", ".join(self._working_services()) or "none of " + ", ".join(_SERVICES)
            facts["name"] = canonical_name(self._proxy.host)

    def _working_services(self) -> Iterator[str]:
        host = self._proxy.host.lower()
        for service in _SERVICES:
            try:
                initiator(self._proxy, target=f"{service}@{host}").step(None)
            except AuthenticationError:
                continue
            yield service

    def _connect(self, facts: dict[str, str]) -> None:
        proxy = self._proxy
        facts["proxy"] = str(proxy)
        try:
            self._connection = direct_connection([proxy.host], proxy.port, proxy.timeout)
        except socket.timeout:
            raise proxy_timeout("connecting to the proxy", str(proxy)) from None
        except OSError as error:
            raise proxy_connection_error(error, str(proxy)) from error
        facts["address"] = "{}:{}".format(*self._connection.getpeername()[:2])

    def _negotiate_for_an_address(self) -> Iterator[Finding]:
        *others, last = self._destinations
        for self._destination in others:
            self._not_granted = False
            try:
                yield from self._negotiate_at_a_level()
            except _FailedError:
                if not self._not_granted:
                    raise
            else:
                return
            yield from self._connect_again()
        self._destination = last
        yield from self._negotiate_at_a_level()

    def _negotiate_at_a_level(self) -> Iterator[Finding]:
        *preferred, last = self._proxy.levels
        for level in preferred:
            self._level_refused = False
            try:
                yield from self._negotiate(level)
            except _FailedError:
                if not self._level_refused:
                    raise
            else:
                return
            yield from self._connect_again()
        yield from self._negotiate(last)

    def _connect_again(self) -> Iterator[Finding]:
        self._connection.close()
        self._initiator, self._token = initiator(self._proxy), None
        yield from self._step("proxy", self._connect)

    def _negotiate(self, level: ProtectionLevel) -> Iterator[Finding]:
        """The negotiation, one flight at a time, so that each step can be told from the next."""
        self._negotiation = ClientNegotiation(
            _Begun(self._initiator, self._token) if self._token else self._initiator,
            Request(Command.CONNECT, self._destination),
            proxy=str(self._proxy),
            level=level,
            least=self._proxy.least_level,
            methods=self._proxy.offered,
            user=self._proxy.user,
            pipelined=False,
            nec=self._proxy.nec,
        )
        self._pending = b""
        self._to_send = self._negotiation.start()
        yield from self._step("authentication", self._authenticate)
        yield from self._step("protection", self._agree)
        yield from self._step("target", self._await_reply)

    def _exchange(self, until: Callable[[], bool]) -> None:
        while not until():
            octets = self._heard()
            step = self._negotiation.receive(octets)
            self._pending, self._to_send = octets[step.taken :], step.to_send

    def _heard(self) -> bytes:
        """What the proxy says next, once it has what is to be sent."""
        negotiation, peer = self._negotiation, str(self._proxy)
        try:
            # A proxy that has gone may have said something before, which explains more.
            with suppress(ConnectionError):
                self._connection.sendall(self._to_send)
            self._to_send = b""
            octets = self._pending or self._connection.recv(65536)
        except socket.timeout:
            raise proxy_timeout(negotiation.phase, peer) from None
        except ConnectionError as error:
            raise negotiation.ended() from error
        except OSError as error:
            raise proxy_connection_error(error, peer) from error
        if not octets:
            raise negotiation.ended()
        return octets

    def _authenticate(self, facts: dict[str, str]) -> None:
        negotiation = self._negotiation
        facts["method offered"] = ", ".join(map(_method, self._proxy.offered))
        self._exchange(lambda: negotiation.method is not None)
        assert negotiation.method is not None  # it has been picked
        facts["method picked"] = _method(negotiation.method)
        if negotiation.method != Method.GSSAPI:
            self._exchange(lambda: negotiation.records is not None)
            return
        self._exchange(lambda: self._initiator.complete)
        from ._gss import ticket_flags

        forwardable, ok_as_delegate = ticket_flags(self._initiator)
        facts["as"] = f"{self._initiator.initiator_name}, by {self._initiator.mechanism}"
        facts["at"] = _proven(self._initiator.target_name or "", self._proxy.gss_target)
        facts["ticket"] = "forwardable" if forwardable else "not forwardable"
        facts["delegated"] = "yes" if self._initiator.granted.delegated else "no"
        if forwardable and not ok_as_delegate:
            facts["delegated"] += " (the KDC does not mark the proxy as fit for it)"
        facts["clocks"] = "close enough: the ticket was accepted"

    def _agree(self, facts: dict[str, str]) -> None:
        if self._negotiation.method != Method.GSSAPI:
            facts["granted"] = "none: the method has no protection"
            return
        facts["asked for"] = self._proxy.protection
        try:
            self._exchange(lambda: self._negotiation.agreed is not None)
        except LevelRefusedError:
            self._level_refused = True
            raise
        level = self._negotiation.agreed
        facts["granted"] = level.name.lower() if level is not None else "nothing"

    def _await_reply(self, facts: dict[str, str]) -> None:
        if self._target is None:
            facts["target"] = "none given: the proxy is ready"
            return
        facts["target"] = str(self._destination)
        try:
            self._exchange(lambda: self._negotiation.complete)
        except ReplyError:
            self._not_granted = True
            raise
        facts["reply"] = f"granted; the proxy's address there is {self._negotiation.bound}"

    def _ask_target(self, facts: dict[str, str]) -> None:
        """A second connection, all the way, as a program would make it."""
        assert self._target is not None  # or there is nothing to ask
        address = (self._destination.host, self._destination.port)
        # Its name has been looked up already, or is not to be.
        proxy = replace(self._proxy, remote_dns=True)
        with create_connection(address, timeout=proxy.timeout, proxy=proxy) as connection:
            facts.update(ask(connection, self._target))


class _Begun:
    """An initiator whose first step has been taken already."""

    def __init__(self, initiator: Initiator, token: bytes | None) -> None:
        self._initiator = initiator
        self._token = token

    def step(self, token: bytes | None) -> bytes | None:
        return self._token if token is None else self._initiator.step(token)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._initiator, name)


def _proven(name: str, asked: str) -> str:
    """The principal that has proved itself, and whether it is the one asked for."""
    meant = (asked if "/" in asked else asked.replace("@", "/", 1)).partition("@")[0]
    if name.partition("@")[0] == meant or "/" not in name:
        return name
    return (
        f"{name}, not {meant}: the name server has chosen it (dns_canonicalize_hostname in krb5.conf); to leave it no "
        "choice, give target_name= as a whole principal, or set that to false"
    )


def _method(method: Method) -> str:
    return f"{_METHOD_NAMES[method]} ({method:#04x})"


def _open_keytab(name: str) -> None:
    """Kerberos itself would not say that it cannot be read, but that there are no credentials, or nothing while the
    cache has a ticket."""
    path = name.removeprefix("FILE:")
    if path.startswith("/"):
        with open(path, "rb"):
            pass
