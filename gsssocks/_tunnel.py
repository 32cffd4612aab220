"""One tunnelled connection: what all its sockets share, and which sockets those are.

The registry stands beside the sockets: `socket.socket` has slots and no room for attributes, and a plain socket's
class can be switched in place only while its layout stays the same.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from . import _descriptor, _guards
from ._config.proxy import METHODS
from ._protocol import Address, Command, Method
from ._stream import ProtectedStream

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from ._config import Proxy
    from ._security import Granted, SecurityContext
    from ._transport import Transport

__all__ = [
    "Attachment",
    "Beside",
    "Tunnel",
    "TunnelInfo",
    "attach",
    "attachment_of",
    "attachments",
    "claim",
    "detach",
    "keep_low_water",
    "remember",
    "share_descriptor",
    "tunnel_under",
]

V = TypeVar("V")

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
        local: the address that the application has bound its socket to; None if it has not.
        bound: the proxy's own address towards the target, as the reply gave it.
        method: the authentication method that the proxy has chosen.
        context: the security context, once it is established; None where there is none.
        stream: the pump.
        low_water: SO_RCVLOWAT, as the application has set it; None if it has not. The kernel must not go by it: it
            counts octets of messages, of which one stands for all plaintext that waits.
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
        self.local: tuple[Any, ...] | None = None
        self.low_water: int | None = None
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

    @property
    def is_settled(self) -> bool:
        """Whether it is not being made any more."""
        return self._settled.is_set()

    def check_settled(self) -> None:
        """Raises the error for a connect while another is at it."""
        if not self.is_settled:
            raise BlockingIOError(errno.EALREADY, os.strerror(errno.EALREADY))


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


class Beside(Generic[V]):
    """What is known of sockets as long as they live: by id(), since a subclass of socket may define equality as it
    likes, and need not be hashable."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[socket.socket], V]] = {}

    def get(self, sock: socket.socket) -> V | None:
        reference, value = self._known.get(id(sock), (None, None))
        return value if reference is not None and reference() is sock else None

    def __contains__(self, sock: socket.socket) -> bool:
        return self.get(sock) is not None

    def __setitem__(self, sock: socket.socket, value: V) -> None:
        key = id(sock)
        self._known[key] = (weakref.ref(sock, lambda reference: self._forget(key, reference)), value)

    def pop(self, sock: socket.socket, default: V | None = None) -> V | None:
        value = self.get(sock)
        self._known.pop(id(sock), None)
        return default if value is None else value

    def _forget(self, key: int, reference: weakref.ref[socket.socket]) -> None:
        if self._known.get(key, (None,))[0] is reference:
            del self._known[key]


def attachment_of(sock: socket.socket) -> Attachment | None:
    """The socket's share in a tunnel; None for one that is not tunnelled."""
    return attachments.get(id(sock))


def attach(sock: socket.socket, tunnel: Tunnel, transport: Transport) -> None:
    """Gives a socket object its share in a tunnel."""
    attachments[id(sock)] = Attachment(sock, tunnel, transport)
    keep_low_water(tunnel, transport)


def keep_low_water(tunnel: Tunnel, transport: Transport) -> None:
    """To be called when the application may have set SO_RCVLOWAT."""
    asked = transport.take_low_water()
    if asked is not None:
        tunnel.low_water = asked


def claim(sock: socket.socket, tunnel: Tunnel, transport: Transport) -> None:
    """Gives a socket object its share in a tunnel, if it has none.

    Raises:
        OSError: EALREADY, EISCONN: it has one, which is being made, or has been.
    """
    attachment = Attachment(sock, tunnel, transport)
    first = attachments.setdefault(id(sock), attachment)
    if first is attachment:
        return
    transport.release()
    first.tunnel.check_settled()
    raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))


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
        _guards.stand_for(tunnel)


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
