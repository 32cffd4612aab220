"""`gsssocks check`: follows one connection from the configuration to the target, and says at each step what it found.

Every step is a `Finding`; the first that fails ends the examination, since nothing behind it could succeed. Only a
proxy that cannot be reached is followed by the next one, and a protection level that is refused by the next one, if
there is one, as in a program. No secret is ever part of a finding: names, lifetimes and levels are, tokens, keys and
passwords are not.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable
from urllib.parse import urlsplit

from . import _originals
from ._config import Settings
from ._config.proxy import without_password
from ._connecting import initiator
from ._create_connection import create_connection
from ._negotiation import ClientNegotiation
from ._protocol import Address, Command, Method, Request
from ._transport import Deadline, Transport, call_within
from .exceptions import AuthenticationError, LevelRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._config import Proxy
    from ._gss import Initiator
    from ._protocol import ProtectionLevel

__all__ = ["Finding", "Report", "examine"]

STATUS = {
    "configuration": 2,
    "credential": 3,
    "service": 4,
    "proxy": 5,
    "authentication": 6,
    "protection": 7,
    "target": 8,
}
"""Exit status by the step that failed; 0 if none did."""
_METHOD_NAMES = {Method.GSSAPI: "GSS-API", Method.USERPASS: "user name and password", Method.NONE: "none"}
_SERVICES = ("socks", "rcmd", "host")
_TOLERATED = 300  # seconds that clocks may be apart, unless krb5.conf says otherwise (`clockskew`)
_PORTS = {"http": 80, "https": 443}


@dataclass
class Finding:
    """One step of the examination.

    Attributes:
        step: a key of `STATUS`.
        ok: whether it succeeded.
        facts: what was found, in words.
        milliseconds: how long it took.
    """

    step: str
    ok: bool = True
    facts: dict[str, str] = field(default_factory=dict)
    milliseconds: float = 0.0


@dataclass
class Report:
    """All findings, in order."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status: 0, or the number of the step that ended the examination (`STATUS`)."""
        last = self.findings[-1]
        return 0 if last.ok else STATUS[last.step]


def examine(target: str | None = None, *, proxy: str | None = None, **options: Any) -> Report:
    """Follows one connection through the proxy.

    Args:
        target: a URL (http, https) or `host:port`; None ends with a proxy that is ready to connect.
        proxy: as for `install()`.
        options: as for `install()`.
    """
    report = Report()
    with suppress(_FailedError):
        for finding in _Examination(target, proxy, options).steps():
            report.findings.append(finding)
    return report


class _FailedError(Exception):
    """A step has; its finding says why."""


class _Examination:
    _proxy: Proxy

    def __init__(self, target: str | None, proxy: str | None, options: dict[str, Any]) -> None:
        self._target = target
        self._given = proxy
        self._options = options

    def steps(self) -> Iterator[Finding]:
        """Every finding.

        Raises:
            _FailedError: after that of a step that ends the examination.
        """
        yield from self._step("configuration", self._configuration)
        yield from self._reach_a_proxy()
        try:
            yield from self._negotiate_at_a_level()
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
        self._initiator = initiator(self._proxy)
        self._token: bytes | None = None
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
        settings = Settings.load(self._given, **self._options)
        self._proxies = settings.proxies
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
        self._destination = _destination(self._target)
        if self._target is not None:
            decision = settings.rules.decide(self._destination.host, self._destination.port)
            facts["this target"] = f"{decision.action}, by {decision.rule}" if decision.rule else decision.action

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
                facts["clock"] = _clock(offset)
        found = credential(Source(proxy.principal, proxy.ccache, proxy.keytab, password, proxy.mechanism))
        facts["principal"] = found.principal
        facts["cache"] = found.cache
        facts["valid for"] = _duration(found.lifetime)

    def _service(self, facts: dict[str, str]) -> None:
        facts["asked for"] = self._proxy.gss_target
        try:
            self._token = self._initiator.step(None)
            facts["KDC"] = "gave a ticket"
        finally:
            facts["would work"] = ", ".join(self._working_services()) or "none of " + ", ".join(_SERVICES)
            facts["name"] = _canonical_name(self._proxy.host)

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
        self._connection = _direct_connection(proxy.host, proxy.port, proxy.timeout)
        facts["address"] = "{}:{}".format(*self._connection.getpeername()[:2])

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
            self._connection.close()
            self._initiator, self._token = initiator(self._proxy), None
            yield from self._step("proxy", self._connect)
        yield from self._negotiate(last)

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
            self._connection.sendall(self._to_send)
            self._to_send = b""
            octets = self._pending or self._connection.recv(65536)
            if not octets:
                raise self._negotiation.ended()
            step = self._negotiation.receive(octets)
            self._pending, self._to_send = octets[step.taken :], step.to_send

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
        facts["at"] = str(self._initiator.target_name)
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
        self._exchange(lambda: self._negotiation.complete)
        facts["reply"] = f"granted; the proxy's address there is {self._negotiation.bound}"

    def _ask_target(self, facts: dict[str, str]) -> None:
        """A second connection, all the way, as a program would make it."""
        parts = urlsplit(self._target or "")
        host, port = self._destination.host, self._destination.port
        with create_connection((host, port), timeout=self._proxy.timeout, proxy=self._proxy) as connection:
            if parts.scheme not in _PORTS:
                facts["connection"] = "made"
                return
            if parts.scheme == "https":
                facts.update(
                    _ask(ssl.create_default_context().wrap_socket(connection, server_hostname=host), parts.path)
                )
            else:
                facts.update(_ask(connection, parts.path))


class _Begun:
    """An initiator whose first step has been taken already."""

    def __init__(self, initiator: Initiator, token: bytes | None) -> None:
        self._initiator = initiator
        self._token = token

    def step(self, token: bytes | None) -> bytes | None:
        return self._token if token is None else self._initiator.step(token)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._initiator, name)


def _method(method: Method) -> str:
    return f"{_METHOD_NAMES[method]} ({method:#04x})"


def _destination(target: str | None) -> Address:
    """Where `target` points; without one, an address that is never asked for."""
    if target is None:
        return Address("localhost", 1)
    try:
        parts = urlsplit(target if "://" in target else f"//{target}")
        port = parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        raise _bad(target) from None  # urlsplit's own words may quote a password
    if not parts.hostname or port is None or parts.scheme not in ("", *_PORTS):
        raise _bad(target)
    return Address(parts.hostname, port)


def _bad(target: str) -> ValueError:
    shown = without_password(target if "://" in target else f"//{target}").removeprefix("//").partition("?")[0]
    return ValueError(f"bad target {shown!r}: give a URL (http, https) or host:port")


def _duration(seconds: int | None) -> str:
    if seconds is None:
        return "ever"
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"


def _clock(offset: float) -> str:
    """In words, by how many seconds the KDC's clock was ahead of this machine's."""
    if abs(offset) <= 1:  # that much is found where the second turns between request and answer
        return "the same as the KDC's when the ticket was got"
    apart = (
        f"{_duration(round(abs(offset)))} {'behind' if offset > 0 else 'ahead of'} the KDC's when the ticket was got"
    )
    return apart if abs(offset) <= _TOLERATED else f"{apart}: too far for a proxy that has the right time; set it"


def _open_keytab(name: str) -> None:
    """Kerberos itself would not say that it cannot be read, but that there are no credentials, or nothing while the
    cache has a ticket."""
    path = name.removeprefix("FILE:")
    if path.startswith("/"):
        with open(path, "rb"):
            pass


def _canonical_name(host: str) -> str:
    """What the resolver makes of the proxy's name: MIT Kerberos may ask for that instead, unless krb5.conf says no."""
    try:
        info = _originals.getaddrinfo(host, None, 0, socket.SOCK_STREAM, 0, socket.AI_CANONNAME)
        canonical = info[0][3] or host
        address = str(info[0][4][0])
    except OSError as error:
        return f"{host} does not resolve: {error}"
    try:
        pointer = _originals.gethostbyaddr(address)[0]
    except OSError:
        pointer = "no name"
    text = f"{host} is {canonical} is {address} is {pointer}"
    if canonical.lower() != host.lower():
        text += f"; an alias: where krb5.conf has dns_canonicalize_hostname, Kerberos asks for {canonical}"
    if pointer.lower() != canonical.lower():
        text += f"; PTR mismatch: where krb5.conf has rdns, Kerberos asks for {pointer}"
    agreeing = canonical.lower() == host.lower() == pointer.lower()
    return text if agreeing else f"{text}; if the KDC knows another, give target_name="


def _direct_connection(host: str, port: int, timeout: float | None) -> socket.socket:
    deadline = Deadline(timeout)
    addresses = call_within(deadline, lambda: _originals.getaddrinfo(host, port, 0, socket.SOCK_STREAM))
    failure: OSError | None = None
    for family, kind, proto, _, address in addresses:
        connection = _originals.socket(family, kind, proto)
        try:
            transport = Transport(connection.fileno(), family)
            try:
                transport.connect(address, deadline)
            finally:
                transport.release()
            connection.settimeout(timeout)
        except OSError as error:
            failure = error
            connection.close()
        else:
            return connection
    raise failure or OSError(f"{host} has no address")


def _ask(connection: socket.socket, path: str) -> dict[str, str]:
    """What an HTTP server answers to HEAD."""
    with connection:
        asked = http.client.HTTPConnection("")
        asked.sock = connection
        asked.request("HEAD", path or "/", headers={"Connection": "close"})
        answer = asked.getresponse()
        facts = {"answer": f"HTTP {answer.status} {answer.reason}"}
        if isinstance(connection, ssl.SSLSocket):
            facts["TLS"] = str(connection.version())
        return facts
