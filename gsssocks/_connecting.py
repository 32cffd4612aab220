"""How a tunnelled connection is made: from the proxy's name to the granted request, within one deadline."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from . import _arguments, _descriptor, _originals
from ._config.addresses import ip
from ._destinations import in_family
from ._log import log
from ._negotiation import ClientNegotiation
from ._protocol import Address, Command, Method, Request
from ._transport import Deadline, Transport, call_within
from ._tunnel import Attachment, Beside, Tunnel, attachment_of
from .exceptions import (
    AuthenticationError,
    LevelRefusedError,
    ProxyConnectionError,
    proxy_connection_error,
    proxy_timeout,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._config import Proxy
    from ._gss import Initiator
    from ._protocol import ProtectionLevel

__all__ = [
    "as_kernel_says",
    "bound_address",
    "checked_address",
    "destination",
    "disconnect",
    "establish",
    "establish_in_place",
    "initiator",
    "tunnel_for",
]

_INET = (socket.AF_INET, socket.AF_INET6)
_timeout = _originals.SocketType.gettimeout


def tunnel_for(
    sock: socket.socket, proxies: Sequence[Proxy], address: tuple[Any, ...], name: str | None = None
) -> Tunnel:
    """A tunnel yet to be made, from `sock` through the first of `proxies` that answers to `address` (checked).

    Args:
        name: what the address stands for, where it is a placeholder.
    """
    return Tunnel(proxies, destination(sock, proxies[0], address, name), as_kernel_says(sock, address))


def checked_address(sock: socket.socket, address: object, method: str = "connect") -> tuple[Any, ...]:
    """The address, if it has the form that the socket's family takes; the exceptions are those that `method` of a plain
    socket raises."""
    family = "AF_INET6" if sock.family == socket.AF_INET6 else "AF_INET"
    if not isinstance(address, tuple):
        raise TypeError(f"{method}(): {family} address must be tuple, not {type(address).__name__}")
    if not (len(address) == 2 or (sock.family == socket.AF_INET6 and 2 <= len(address) <= 4)):
        raise TypeError(f"{family} address must be a pair (host, port)")
    host, port = address[0], address[1]
    if not isinstance(host, (str, bytes, bytearray)):
        raise TypeError(f"str, bytes or bytearray expected, not {type(host).__name__}")
    if not hasattr(port, "__index__"):
        raise TypeError(f"'{type(port).__name__}' object cannot be interpreted as an integer")
    if not 0 <= port.__index__() <= 0xFFFF:
        raise OverflowError(f"{method}(): port must be 0-65535.")
    if not isinstance(host, str) and not bytes(host).isascii():
        # There may be resolvers that know such a name; there is no way to ask a proxy for it.
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    null: Any = "\0" if isinstance(host, str) else b"\0"
    if len(address) > 2 or null in host:
        # Judged with a host that needs no lookup.
        _arguments.check(sock.family, "connect", (null if null in host else "::1", *address[1:]))
    return address


def destination(sock: socket.socket, proxy: Proxy, address: tuple[Any, ...], name: str | None) -> Address:
    """What to ask the proxy for, to reach `address` (checked), or the name that it stands for."""
    host, port = name or _host(address), address[1].__index__()
    if not host:
        host = "::" if sock.family == socket.AF_INET6 else "0.0.0.0"  # what "" means to connect(2)
    numeric = ip(host)
    if numeric is not None:
        return Address(str(numeric), port)
    return Address(host if name or proxy.remote_dns else _resolved(host, port, sock.family), port)


def as_kernel_says(sock: socket.socket, address: tuple[Any, ...]) -> tuple[Any, ...]:
    """An address in the form in which a plain socket's getpeername() gives it; a name stays one."""
    host, port = _host(address), address[1].__index__()
    inet6 = sock.family == socket.AF_INET6
    if ":" not in host:
        host = str(ip(host) or host)
    with suppress(ValueError):
        literal = ipaddress.ip_address(host)
        mapped = isinstance(literal, ipaddress.IPv6Address) and literal.ipv4_mapped
        # What ipaddress makes of a mapped address depends on the version of Python.
        host = socket.inet_ntop(socket.AF_INET6, literal.packed) if mapped else str(literal)
    if host in ("", "0.0.0.0", "::"):
        host = "::1" if inet6 else "127.0.0.1"  # where connect(2) goes then
    return (host, port, *address[2:], *(0, 0)[len(address) - 2 :]) if inet6 else (host, port)


def _host(address: tuple[Any, ...]) -> str:
    host: str = address[0] if isinstance(address[0], str) else bytes(address[0]).decode("ascii")
    return "255.255.255.255" if host == "<broadcast>" else host


def _resolved(host: str, port: int, family: int) -> str:
    return str(_originals.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4][0])


def establish_in_place(sock: socket.socket, tunnel: Tunnel) -> None:
    """Makes the tunnel that `sock` has its share in, or leaves the kernel's socket as it was: not connected.

    The share is to be taken away only then: what another thread sends meanwhile must not meet the kernel's method over
    a connection to the proxy.
    """
    fd = _originals.SocketType.fileno(sock)
    try:
        establish(sock, tunnel)
    except BaseException:
        if _originals.SocketType.fileno(sock) == fd:
            disconnect(sock, tunnel)
        raise
    finally:
        if _originals.SocketType.fileno(sock) == fd:
            os.set_blocking(fd, _timeout(sock) is None)


def disconnect(sock: socket.socket, tunnel: Tunnel) -> None:
    """Makes the kernel's socket of a connect that failed one that can be connected again."""
    # Without a descriptor left for that, the failure is told all the same, and the connection has ended.
    with suppress(OSError):
        transport = _transport(sock)
        _descriptor.disconnect(transport.fd, transport.family, sock.family, bound=tunnel.local)
    if tunnel.local is None:
        with suppress(OSError):
            _left[sock] = _originals.SocketType.getsockname(sock)


_left: Beside[tuple[Any, ...]] = Beside()
"""The addresses that connects which failed have left on sockets, as those of a plain socket do."""


def bound_address(sock: socket.socket) -> tuple[Any, ...] | None:
    """The local address that the application has bound an IP socket to; None if it has not."""
    name: tuple[Any, ...] = _originals.SocketType.getsockname(sock)
    return name if name[1] and name != _left.get(sock) else None


def establish(sock: socket.socket, tunnel: Tunnel) -> None:
    """From the proxy's name to the granted request, on the descriptor of `sock`, within one deadline."""
    begun = time.monotonic()
    deadline = _connect_deadline(_timeout(sock), tunnel.proxy.timeout)
    try:
        request = Request(tunnel.command, tunnel.destination)
        request.encode()
    except ValueError as error:
        raise ProxyConnectionError(
            errno.EADDRNOTAVAIL, f"cannot ask a proxy for {tunnel.destination}: {error}"
        ) from error
    _connect_to_a_proxy(sock, tunnel, deadline)
    if tunnel.command == Command.UDP_ASSOCIATE:
        # No address in particular (RFC 1928, section 4), but of the family by which the proxy can be reached: it
        # relays at one of that family then.
        unspecified = "::" if _transport(sock).family == socket.AF_INET6 else "0.0.0.0"
        request = Request(tunnel.command, Address(unspecified, 0))
    _agree_with_proxy(sock, tunnel, request, deadline)
    _log_connection(tunnel, time.monotonic() - begun)


def _agree_with_proxy(sock: socket.socket, tunnel: Tunnel, request: Request, deadline: Deadline) -> None:
    """The negotiation, at the first of the proxy's levels that it agrees to."""
    *preferred, last = tunnel.proxy.levels
    for level in preferred:
        try:
            return _negotiate(sock, tunnel, request, level, deadline)
        except LevelRefusedError as error:
            # A proxy may also close instead of answering (Dante does): another level takes another connection.
            log(logging.DEBUG, "%s: %s", tunnel.proxy, error)
            _renew(sock, tunnel, sock.family)
            _connect_to_proxy(sock, tunnel, deadline)
    _negotiate(sock, tunnel, request, last, deadline)


def _negotiate(
    sock: socket.socket, tunnel: Tunnel, request: Request, level: ProtectionLevel, deadline: Deadline
) -> None:
    proxy = tunnel.proxy
    context = initiator(proxy, sequence=tunnel.command != Command.UDP_ASSOCIATE)
    negotiation = ClientNegotiation(
        context,
        request,
        proxy=str(proxy),
        level=level,
        least=proxy.least_level,
        confidential=proxy.confidential,
        methods=proxy.offered,
        user=proxy.user,
        pipelined=proxy.pipelined,
        nec=proxy.nec,
    )
    try:
        tunnel.stream.negotiate(_transport(sock), negotiation, deadline, str(proxy))
    except AuthenticationError:
        if negotiation.method == Method.GSSAPI and not context.complete:
            context.doubt_credential()
        raise
    assert negotiation.method is not None  # it has been chosen
    tunnel.method, tunnel.bound = negotiation.method, negotiation.bound
    tunnel.context = context if negotiation.method == Method.GSSAPI else None


def _log_connection(tunnel: Tunnel, seconds: float) -> None:
    done = ("listening at", tunnel.bound) if tunnel.command == Command.BIND else ("connected to", tunnel.destination)
    log(
        logging.INFO,
        "%s %s through %s as %s: %s, %.0f ms",
        *done,
        tunnel.proxy,
        tunnel.context.initiator_name if tunnel.context else tunnel.proxy.username or "nobody",
        tunnel.protection,
        seconds * 1000,
    )


def _connect_to_a_proxy(sock: socket.socket, tunnel: Tunnel, deadline: Deadline) -> None:
    """Connects to the first proxy that answers, those last in vain behind the others; each has its share of the
    time."""
    candidates = sorted(tunnel.proxies, key=_is_resting)
    for left, proxy in zip(range(len(candidates), 0, -1), candidates):
        tunnel.proxy = proxy
        try:
            _connect_to_proxy(sock, tunnel, deadline if left == 1 else deadline.share(left))
        except ProxyConnectionError:
            _resting[proxy.host, proxy.port] = time.monotonic() + REST
            if left == 1:
                raise
            _renew(sock, tunnel, sock.family)
        else:
            _resting.pop((proxy.host, proxy.port), None)
            return


REST = 30.0
"""Seconds for which a proxy that could not be reached stands behind the others."""
_resting: dict[tuple[str, int], float] = {}
"""Until when, by time.monotonic()."""


def _is_resting(proxy: Proxy) -> bool:
    return _resting.get((proxy.host, proxy.port), 0.0) > time.monotonic()


def _connect_deadline(timeout: float | None, limit: float | None) -> Deadline:
    # A non-blocking connect waits here all the same: nothing outside this call could carry the negotiation on.
    if not timeout:
        return Deadline(limit)
    return Deadline(timeout if limit is None else min(timeout, limit))


def initiator(proxy: Proxy, *, target: str | None = None, sequence: bool = True) -> Initiator:
    """The client's end of a new security context with a proxy, on that proxy's terms.

    Args:
        target: whom to ask for, instead of the proxy's own name.
        sequence: whether messages must arrive in order: False for UDP.
    """
    # Imported here: gssapi takes time and memory that a program without a tunnel does not owe us.
    from ._gss import Initiator

    return Initiator(
        target or proxy.gss_target,
        mechanism=proxy.mechanism,
        delegation=proxy.delegation,
        sequence=sequence,
        principal=proxy.principal,
        ccache=proxy.ccache,
        keytab=proxy.keytab,
        password=proxy.password if proxy.username is None else None,
    )


def _attachment(sock: socket.socket) -> Attachment:
    attachment = attachment_of(sock)
    if attachment is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return attachment


def _transport(sock: socket.socket) -> Transport:
    return _attachment(sock).transport


def _connect_to_proxy(sock: socket.socket, tunnel: Tunnel, deadline: Deadline) -> None:
    proxy = tunnel.proxy
    failure: OSError | None = None
    try:
        addresses = _proxy_addresses(proxy, sock.family, deadline)
        for left, (family, address) in zip(range(len(addresses), 0, -1), addresses):
            mapped = family == socket.AF_INET and _takes_mapped(_transport(sock))
            needed = socket.AF_INET6 if mapped else family
            if failure is not None or needed != _transport(sock).family:
                _renew(sock, tunnel, needed)
            try:
                # Of several hosts that share the name, one that is off must leave time for the others.
                return _transport(sock).connect(in_family(address, needed), deadline.share(left))
            except OSError as error:
                if left == 1 and isinstance(error, socket.timeout):
                    raise
                failure = error
    except socket.timeout:
        raise proxy_timeout("connecting to the proxy", str(proxy)) from None
    except OSError as error:
        failure = error
    try:
        raise proxy_connection_error(
            failure or OSError(errno.EHOSTUNREACH, "its name has no address"), str(proxy)
        ) from failure
    finally:
        failure = None  # or its traceback would hold this frame, and that the failure


def _takes_mapped(transport: Transport) -> bool:
    """Whether an IPv6 socket can be connected to IPv4 addresses."""
    if transport.family != socket.AF_INET6 or not transport.takes_ipv4:
        return False
    host = transport.local[0]
    return host == "::" or bool(host.startswith("::ffff:"))


def _proxy_addresses(proxy: Proxy, family: int, deadline: Deadline) -> list[tuple[int, tuple[Any, ...]]]:
    """The proxy's addresses, those of the socket's own family first: they need no other kernel socket."""

    def look_up() -> list[tuple[Any, ...]]:
        return cast("list[tuple[Any, ...]]", _originals.getaddrinfo(proxy.host, proxy.port, 0, socket.SOCK_STREAM))

    try:
        ipaddress.ip_address(proxy.host)
    except ValueError:
        found = call_within(deadline, look_up)
    else:
        found = look_up()
    addresses = [(info[0], info[4]) for info in found if info[0] in _INET]
    return sorted(addresses, key=lambda pair: pair[0] != family)


def _renew(sock: socket.socket, tunnel: Tunnel, family: int) -> None:
    """An unconnected kernel socket of `family` under the descriptor, for another attempt."""
    attachment = _attachment(sock)
    transport = attachment.transport
    bound = tunnel.local if family == sock.family else None
    _descriptor.disconnect(transport.fd, transport.family, family, bound=bound)
    if transport.family != family:
        attachment.transport = Transport(transport.fd, family)
        transport.release()
