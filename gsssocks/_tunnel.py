"""One tunnelled connection: what all its sockets share, which sockets those are, and how it is made.

The registry stands beside the sockets: `socket.socket` has slots and no room for attributes, and a plain socket's
class can be switched in place only while its layout stays the same.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from . import _arguments, _descriptor, _originals
from ._config.proxy import METHODS
from ._log import log
from ._negotiation import ClientNegotiation
from ._protocol import Address, Command, Method, Request
from ._stream import ProtectedStream
from ._transport import Deadline, Transport, call_within
from .exceptions import LevelRefusedError, ProxyConnectionError, proxy_connection_error, proxy_timeout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._config import Proxy
    from ._gss import Initiator
    from ._protocol import ProtectionLevel
    from ._security import Granted, SecurityContext

__all__ = [
    "Attachment",
    "Tunnel",
    "TunnelInfo",
    "as_kernel_says",
    "attach",
    "attachment_of",
    "attachments",
    "checked_address",
    "destination",
    "detach",
    "establish",
    "establish_in_place",
    "initiator",
    "remember",
    "share_descriptor",
    "tunnel_for",
    "tunnel_under",
]

_INET = (socket.AF_INET, socket.AF_INET6)
_METHOD_NAMES = {method: name for name, method in METHODS.items()}


class TunnelInfo(NamedTuple):
    """What is known of a tunnelled connection, at the moment it was asked for."""

    proxy: Proxy
    """The proxy it goes through, and the terms it was asked for on."""
    destination: tuple[str, int]
    """What the proxy was asked to connect to: a name or an address, and a port."""
    method: str
    """The authentication method: "gssapi", "userpass" or "none"."""
    protection: str
    """The protection level agreed on; "none" where nothing protects the data."""
    mechanism: str | None
    """The GSS-API mechanism, by name or OID; None without GSS-API, as all that follow."""
    initiator: str | None
    """Whom the proxy knows us as."""
    target: str | None
    """Whom the proxy has proved to be."""
    granted: Granted | None
    """The services of the security context."""
    lifetime: int | None
    """Seconds until the context expires; 0 afterwards, when the tunnel goes on all the same (see the README)."""
    octets_sent: int
    """Octets of user data."""
    octets_received: int
    tokens_sent: int
    """Messages, those of the SOCKS request and reply among them."""
    tokens_received: int

    @property
    def delegated(self) -> bool:
        """Whether the proxy was given a ticket to act for us."""
        return self.granted is not None and self.granted.delegated


class Tunnel:
    """What all sockets of one tunnelled connection share.

    Attributes:
        proxies: the proxies to try.
        proxy: the one it goes through, once it is made.
        command: what the proxy is asked for (RFC 1928, section 4).
        destination: the address that goes with it: for CONNECT, what to connect to.
        peername: the address as the application gave it.
        bound: the proxy's own address towards the target, as the reply gave it.
        method: the authentication method that the proxy has chosen.
        context: the security context, once it is established; None where there is none.
        stream: the pump.
    """

    def __init__(
        self,
        proxies: Sequence[Proxy],
        destination: Address,
        peername: tuple[Any, ...],
        *,
        command: Command = Command.CONNECT,
    ) -> None:
        self.proxies = proxies
        self.proxy = proxies[0]
        self.command = command
        self.destination = destination
        self.peername = peername
        self.bound: Address | None = None
        self.method = Method.GSSAPI
        self.context: SecurityContext | None = None
        self.stream = ProtectedStream()
        self.kernel_name_shown = False
        self._connecting_thread: int | None = threading.get_ident()
        self._settled = threading.Event()

    @property
    def protection(self) -> str:
        """What protects the data: a protection level's name, "none" without one."""
        return self.stream.records.level.name.lower()

    def info(self) -> TunnelInfo:
        """What is known of it; only when the connection has been made."""
        context, stream = self.context, self.stream
        return TunnelInfo(
            proxy=self.proxy,
            destination=(self.destination.host, self.destination.port),
            method=_METHOD_NAMES[self.method],
            protection=self.protection,
            mechanism=context.mechanism if context else None,
            initiator=context.initiator_name if context else None,
            target=context.target_name if context else None,
            granted=context.granted if context else None,
            lifetime=context.lifetime if context else None,
            octets_sent=stream.octets_sent,
            octets_received=stream.octets_received,
            tokens_sent=stream.records.tokens_sent,
            tokens_received=stream.records.tokens_received,
        )

    def settle(self) -> None:
        """The connection has been made, or could not be."""
        self._connecting_thread = None
        self._settled.set()

    def wait_settled(self) -> None:
        """Waits while another thread is still connecting."""
        if self._connecting_thread not in (None, threading.get_ident()):
            self._settled.wait()


class Attachment:
    """One socket object's share in a tunnel.

    Attributes:
        tls: whether TLS runs over it, begun and not ended by `unwrap()`: then nothing but TLS may send.
    """

    __slots__ = ("reference", "tls", "transport", "tunnel")

    def __init__(self, sock: socket.socket, tunnel: Tunnel, transport: Transport) -> None:
        key = id(sock)
        self.reference = weakref.ref(sock, lambda reference: _drop(key, reference))
        self.tunnel = tunnel
        self.transport = transport
        self.tls = False


attachments: dict[int, Attachment] = {}
"""By id(), since a subclass of socket may define equality as it likes."""
_tunnels: weakref.WeakValueDictionary[tuple[int, int], Tunnel] = weakref.WeakValueDictionary()
"""By the kernel socket's identity, for descriptors that come back in another Python object."""


def attachment_of(sock: socket.socket) -> Attachment | None:
    """The socket's share in a tunnel; None for one that is not tunnelled."""
    return attachments.get(id(sock))


def attach(sock: socket.socket, tunnel: Tunnel, transport: Transport) -> None:
    """Gives a socket object its share in a tunnel."""
    attachments[id(sock)] = Attachment(sock, tunnel, transport)


def detach(sock: socket.socket) -> None:
    """Takes it away again. The descriptor stays as it is."""
    attachment = attachments.pop(id(sock), None)
    if attachment is not None:
        attachment.transport.release()


def _drop(key: int, reference: weakref.ref[socket.socket]) -> None:
    # The object has gone, and its descriptor has been closed: ours must not be used, or closed, again.
    attachment = attachments.get(key)
    if attachment is not None and attachment.reference is reference:
        del attachments[key]
        attachment.transport.release()


def share_descriptor(attachment: Attachment) -> bool:
    """Whether another socket object has the same descriptor: `SSLContext.wrap_socket` makes one before it detaches the
    first."""
    fd = attachment.transport.fd
    return any(other is not attachment and other.transport.fd == fd for other in list(attachments.values()))


def remember(tunnel: Tunnel, fd: int) -> None:
    """Lets `tunnel_under` find the tunnel by any descriptor of its kernel socket."""
    identity = _descriptor.identity(fd)
    if identity is not None:
        _tunnels[identity] = tunnel


def tunnel_under(fd: int) -> Tunnel | None:
    """The tunnel whose messages the kernel socket under `fd` carries, if any."""
    if not _tunnels:
        return None
    identity = _descriptor.identity(fd)
    tunnel = _tunnels.get(identity) if identity is not None else None
    return tunnel if tunnel is not None and _still_there(tunnel, identity) else None


def _still_there(tunnel: Tunnel, identity: tuple[int, int] | None) -> bool:
    # A descriptor closed behind our back (os.close) leaves an entry whose identity the kernel may give to another
    # socket.
    sharing = [attachment for attachment in list(attachments.values()) if attachment.tunnel is tunnel]
    return not sharing or any(_descriptor.identity(attachment.transport.fd) == identity for attachment in sharing)


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
    null: Any = "\0" if isinstance(host, str) else b"\0"
    if len(address) > 2 or null in host:
        # Judged with a host that needs no lookup.
        _arguments.check(sock.family, "connect", (null if null in host else "::1", *address[1:]))
    return address


def destination(sock: socket.socket, proxy: Proxy, address: tuple[Any, ...], name: str | None) -> Address:
    """What to ask the proxy for, to reach `address` (checked), or the name that it stands for."""
    host = name or (address[0] if isinstance(address[0], str) else bytes(address[0]).decode("ascii"))
    port = address[1].__index__()
    if not host:
        host = "::" if sock.family == socket.AF_INET6 else "0.0.0.0"  # what "" means to connect(2)
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return Address(host if name or proxy.remote_dns else _resolved(host, port, sock.family), port)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return Address(str(mapped or ip), port)


def as_kernel_says(sock: socket.socket, address: tuple[Any, ...]) -> tuple[Any, ...]:
    """An address in the form in which a plain socket's getpeername() gives it; a name stays one."""
    host, port = (
        address[0] if isinstance(address[0], str) else bytes(address[0]).decode("ascii"),
        address[1].__index__(),
    )
    inet6 = sock.family == socket.AF_INET6
    if host in ("", "0.0.0.0", "::"):
        host = "::1" if inet6 else "127.0.0.1"  # where connect(2) goes then
    with suppress(ValueError):
        host = str(ipaddress.ip_address(host))
    return (host, port, *address[2:], *(0, 0)[len(address) - 2 :]) if inet6 else (host, port)


def _resolved(host: str, port: int, family: int) -> str:
    return str(_originals.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4][0])


def establish_in_place(sock: socket.socket, tunnel: Tunnel, *, bound: tuple[Any, ...] | None = None) -> None:
    """Attaches `sock` to the tunnel and makes it, or leaves the socket as it was: not connected.

    Args:
        bound: the local address that the socket is then bound to again.
    """
    fd = _originals.SocketType.fileno(sock)
    attach(sock, tunnel, Transport(fd, sock.family))
    try:
        establish(sock, tunnel)
    except BaseException:
        detach(sock)
        if _originals.SocketType.fileno(sock) == fd:
            _descriptor.replace(fd, sock.family, bound=bound)
        raise
    finally:
        if _originals.SocketType.fileno(sock) == fd:
            os.set_blocking(fd, sock.gettimeout() is None)
        tunnel.settle()


def establish(sock: socket.socket, tunnel: Tunnel) -> None:
    """From the proxy's name to the granted request, on the descriptor of `sock`, within one deadline."""
    begun = time.monotonic()
    deadline = _connect_deadline(sock.gettimeout(), tunnel.proxy.timeout)
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
    tunnel.stream.negotiate(_transport(sock), negotiation, deadline, str(proxy))
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


def _transport(sock: socket.socket) -> Transport:
    attachment = attachments.get(id(sock))
    if attachment is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return attachment.transport


def _connect_to_proxy(sock: socket.socket, tunnel: Tunnel, deadline: Deadline) -> None:
    proxy = tunnel.proxy
    failure: OSError | None = None
    try:
        for family, address in _proxy_addresses(proxy, sock.family, deadline):
            if failure is not None or family != _transport(sock).family:
                _renew(sock, tunnel, family)
            try:
                return _transport(sock).connect(address, deadline)
            except socket.timeout:
                raise
            except OSError as error:
                failure = error
    except socket.timeout:
        raise proxy_timeout("connecting to the proxy", str(proxy)) from None
    except OSError as error:
        failure = error
    raise proxy_connection_error(
        failure or OSError(errno.EHOSTUNREACH, "its name has no address"), str(proxy)
    ) from failure


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
    """Another kernel socket of `family` under the descriptor, for another attempt."""
    fd = _transport(sock).fd
    detach(sock)
    _descriptor.replace(fd, family)
    attach(sock, tunnel, Transport(fd, family))
