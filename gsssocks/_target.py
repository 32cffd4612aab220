"""The target of `gsssocks check`: where it points, what it is looked up as, how it is reached directly, and what it
answers."""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from . import _originals
from ._config.addresses import ip
from ._config.proxy import without_password
from ._protocol import Address
from ._transport import Deadline, Transport, call_within

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._config import Settings

__all__ = ["Target", "ask", "direct_connection", "is_looked_up_here", "looked_up"]

_PORTS = {"http": 80, "https": 443}


class Target(NamedTuple):
    """What to connect to, and what to ask for there."""

    address: Address
    scheme: str
    """"http", "https", or empty: to connect is enough."""
    path: str

    @classmethod
    def parsed(cls, text: str) -> Target:
        """That of a URL (http, https) or `host:port`.

        Raises:
            ValueError: it is neither; the message quotes it, without a password.
        """
        try:
            parts = urlsplit(text if "://" in text else f"//{text}")
            port = parts.port or _PORTS.get(parts.scheme)
        except ValueError:
            raise _bad(text) from None  # urlsplit's own words may quote a password
        if not parts.hostname or port is None or parts.scheme not in ("", *_PORTS):
            raise _bad(text)
        return cls(Address(parts.hostname, port), parts.scheme, parts.path or "/")


def _bad(target: str) -> ValueError:
    shown = without_password(target if "://" in target else f"//{target}").removeprefix("//").partition("?")[0]
    return ValueError(f"bad target {shown!r}: give a URL (http, https) or host:port")


def is_looked_up_here(settings: Settings, target: Address) -> bool:
    """Whether a program that connects there gets addresses for the name, not a placeholder."""
    if ip(target.host) is not None:
        return False
    return not settings.remote_dns or settings.rules.decide(target.host, target.port).action == "direct"


def looked_up(host: str, port: int) -> list[Address]:
    """The addresses of a name, in the order in which to try them.

    Raises:
        OSError: there is none.
    """
    found = _originals.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
    return [Address(address, port) for address in dict.fromkeys(str(info[4][0]) for info in found)]


def direct_connection(hosts: Iterable[str], port: int, timeout: float | None) -> socket.socket:
    """A connection past any proxy to the first address of `hosts` that answers.

    Args:
        timeout: seconds for all of it, and then for each operation; None never ends.

    Raises:
        OSError: none does; socket.timeout: in time.
    """
    deadline = Deadline(timeout)
    failure: OSError | None = None
    infos = call_within(deadline, lambda: list(_infos(hosts, port)))
    for left, (family, kind, proto, _, address) in zip(range(len(infos), 0, -1), infos):
        connection = _originals.socket(family, kind, proto)
        try:
            transport = Transport(connection.fileno(), family)
            try:
                transport.connect(address, deadline.share(left))
            finally:
                transport.release()
            connection.settimeout(timeout)
        except OSError as error:
            failure = error
            connection.close()
        else:
            return connection
    raise failure or OSError(f"{', '.join(hosts)} has no address")


def _infos(hosts: Iterable[str], port: int) -> Iterator[tuple[Any, ...]]:
    for host in hosts:
        yield from _originals.getaddrinfo(host, port, 0, socket.SOCK_STREAM)


def ask(connection: socket.socket, target: Target) -> dict[str, str]:
    """What a target says that is connected: an HTTP server to HEAD, any other nothing. Ends the connection."""
    if not target.scheme:
        connection.close()
        return {"connection": "made"}
    if target.scheme == "https":
        # Closes `connection` where that fails.
        connection = ssl.create_default_context().wrap_socket(connection, server_hostname=target.address.host)
    with connection:
        asked = http.client.HTTPConnection("")
        asked.sock = connection
        asked.request("HEAD", target.path, headers={"Connection": "close"})
        answer = asked.getresponse()
        facts = {"answer": f"HTTP {answer.status} {answer.reason}"}
        if isinstance(connection, ssl.SSLSocket):
            facts["TLS"] = str(connection.version())
        return facts
