"""How a socket becomes a tunnelled one in place: same object, same descriptor; its class is switched to a subclass of
what it was.

So whoever holds a reference to it notices nothing, and sockets that are not proxied pay nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import weakref
from typing import TYPE_CHECKING, Any

from . import _bind, _descriptor, _originals
from ._connecting import bound_address, checked_address, establish_in_place, tunnel_for
from ._endpoint import endpoint_under, join, share_of
from ._relay import relay
from ._transport import Transport
from ._tunnel import Beside, Tunnel, attach, attachments, claim, detach, remember, tunnel_under
from .exceptions import ProxyError, unsupported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._config import Proxy

__all__ = [
    "accepted_elsewhere",
    "adopt",
    "check_connectable",
    "connect_again",
    "is_connected",
    "kinds",
    "make_descriptor_plain",
    "make_inherited_plain",
    "make_plain",
    "may_listen",
    "open_checked_tunnel",
    "open_listener",
    "open_tunnel",
    "relayed",
    "switch",
    "switched_classes",
    "tunnelled_class",
    "use_raw",
]

_INET = (socket.AF_INET, socket.AF_INET6)
_timeout = _originals.SocketType.gettimeout
_ACCEPTCONN: int | None = getattr(socket, "SO_ACCEPTCONN", None)

relayed: Beside[Tunnel] = Beside()
"""The tunnels behind sockets that have been given a plain connection."""
_used_raw: Beside[bool] = Beside()
"""Sockets, not tunnelled yet, whose descriptor foreign code uses."""
_switched_classes: weakref.WeakKeyDictionary[type, dict[type, type]] = weakref.WeakKeyDictionary()
"""By what they are subclasses of, and whose methods they have."""
kinds: dict[int, type[socket.socket]] = {}
"""Whose methods sockets of each type are given; that class's module puts it here."""


def adopt(sock: socket.socket) -> bool:
    """Makes a socket object that was given a descriptor part of the tunnel its kernel socket belongs to; False if it
    belongs to none."""
    fd = _originals.SocketType.fileno(sock)
    endpoint = endpoint_under(fd)
    if endpoint is not None and share_of(sock) is None:
        switch(sock, socket.SOCK_DGRAM)
        join(sock, fd, lambda: endpoint)
        return True
    tunnel = tunnel_under(fd)
    if tunnel is None or id(sock) in attachments:
        return False
    switch(sock)
    attach(sock, tunnel, Transport(fd, sock.family))
    return True


def switch(sock: socket.socket, kind: int = socket.SOCK_STREAM) -> None:
    """Gives a socket object, in place, the methods of the class for its type."""
    if not isinstance(sock, kinds[kind]):
        sock.__class__ = tunnelled_class(type(sock), kind)


class _Unannounced:
    """Keeps a base from hearing of its subclass: the application has made none, and what `__init_subclass__` wants to
    be told, it alone knows."""

    __slots__ = ()

    def __init_subclass__(cls, **_: object) -> None:
        pass


def tunnelled_class(base: type, kind: int = socket.SOCK_STREAM) -> type:
    """The subclass of `base` whose socket methods are ours: they stand just above `socket.socket` in the resolution
    order, so a subclass that overrides recv() and calls super().recv() meets them next."""
    methods = kinds[kind]
    switched = _switched_classes.setdefault(base, {}).get(methods)
    if switched is None:
        namespace = {
            "__slots__": (),
            "__module__": base.__module__,
            "__qualname__": base.__qualname__,
            "__doc__": base.__doc__,
        }
        bases = (methods,) if issubclass(methods, base) else (base, methods)
        switched = type(base)(base.__name__, (_Unannounced, *bases), namespace)
        switched.__bases__ = bases
        _switched_classes[base][methods] = switched
    return switched


def switched_classes() -> list[tuple[type, type]]:
    """Classes of TCP sockets, each with the one that its sockets have in a tunnel."""
    methods = kinds[socket.SOCK_STREAM]
    switched = [(base, ours[methods]) for base, ours in list(_switched_classes.items()) if methods in ours]
    return [(_originals.socket, methods), *switched]


def open_tunnel(sock: socket.socket, proxies: Sequence[Proxy], address: Any, name: str | None = None) -> None:
    """Connects `sock` to `address` through the first of `proxies` that answers, in place: same object, same descriptor;
    its class becomes a subclass of it.

    Args:
        name: what to ask the proxy for instead, where the address is a placeholder for it.

    Raises:
        OSError: as a plain socket's connect does; `ProxyError` and its subclasses for what the proxy is the cause of.
            The socket is as it was then and may be connected again.
    """
    open_checked_tunnel(sock, proxies, check_connectable(sock, address), name)


def open_checked_tunnel(
    sock: socket.socket, proxies: Sequence[Proxy], address: tuple[Any, ...], name: str | None = None
) -> None:
    """The same with an address that `check_connectable` has found to be one."""
    tunnel = tunnel_for(sock, proxies, address, name)
    tunnel.local = bound_address(sock)
    with tunnel.stream.negotiating():
        # Before its class is touched, since another thread may have been first.
        claim(sock, tunnel, Transport(_originals.SocketType.fileno(sock), sock.family))
        was = type(sock)
        try:
            switch(sock)
            establish_in_place(sock, tunnel)
            remember(tunnel, _originals.SocketType.fileno(sock))
        except BaseException:
            # In this order, lest another thread's connect, which finds no tunnel any more, has its class taken away.
            sock.__class__ = was
            detach(sock)
            raise
        finally:
            tunnel.settle()
    if sock in _used_raw:
        make_plain(sock)


def open_listener(sock: socket.socket, proxies: Sequence[Proxy]) -> None:
    """Has the first of `proxies` that answers listen for `sock`, in place, as with `open_tunnel`."""
    was = type(sock)
    switch(sock)
    try:
        _bind.listen(sock, proxies)
    except BaseException:
        sock.__class__ = was
        raise


def check_connectable(sock: socket.socket, address: Any) -> tuple[Any, ...]:
    """The address, if `sock` may be connected to it; exceptions and auditing are those of a plain socket."""
    checked = checked_address(sock, address)
    sys.audit("socket.connect", sock, address)  # what connects to the proxy tells of that alone
    if is_connected(sock) or _is_listening(sock):
        raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
    return checked


def connect_again(sock: socket.socket, address: Any, tunnel: Tunnel) -> None:
    """What becomes of a connect on a socket that has a tunnel already: as on Linux, one that waits for ever waits for
    the connect of another thread, and succeeds with it."""
    checked_address(sock, address)
    sys.audit("socket.connect", sock, address)
    if _timeout(sock) is not None:
        tunnel.check_settled()
    elif not tunnel.is_settled:
        tunnel.wait_settled()
        tunnel.check_settled()  # a signal handler's connect in the thread that connects cannot wait
        attachment = attachments.get(id(sock))
        if attachment is None or attachment.tunnel is not tunnel:
            raise ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))
        return
    code = errno.EISCONN if _originals.SocketType.fileno(sock) >= 0 else errno.EBADF
    raise OSError(code, os.strerror(code))


def _is_listening(sock: socket.socket) -> bool:
    return _ACCEPTCONN is not None and bool(_originals.SocketType.getsockopt(sock, socket.SOL_SOCKET, _ACCEPTCONN))


def may_listen(sock: socket.socket) -> bool:
    """Whether it is a TCP socket that neither is connected nor listens in the kernel."""
    tcp = sock.family in _INET and sock.type == socket.SOCK_STREAM
    return tcp and not is_connected(sock) and not _is_listening(sock)


def is_connected(sock: socket.socket) -> bool:
    """Whether the kernel's socket is."""
    try:
        _originals.SocketType.getpeername(sock)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        return False
    return True


def use_raw(sock: socket.socket) -> None:
    """To be told before foreign code reads and writes the descriptor of `sock` itself: it will find a plain connection.

    A tunnelled socket is given one now, by a relay; another when it becomes one. Same object, same descriptor.
    """
    if id(sock) in attachments:
        make_plain(sock)
        return
    _used_raw[sock] = True


def make_plain(sock: socket.socket) -> None:
    """Gives a tunnelled socket a plain connection that carries the same data; `getpeername` answers as before."""
    attachment = attachments[id(sock)]
    if isinstance(attachment.tunnel, _bind.Listener):
        raise accepted_elsewhere()
    relay(attachment.transport.fd, sock.family, attachment.tunnel.stream)
    detach(sock)
    relayed[sock] = attachment.tunnel


def make_descriptor_plain(fd: int) -> None:
    """To be told before a descriptor is given to another program. If it is a tunnelled socket's, all sockets of that
    connection become plain ones, and it is one of theirs.

    Raises:
        ProxyError: that cannot be, since TLS runs over one of them, or there is none any more.
    """
    tunnel = tunnel_under(fd)
    if tunnel is None:
        return
    sharing = [attachment for attachment in list(attachments.values()) if attachment.tunnel is tunnel]
    sockets = [sock for sock in (attachment.reference() for attachment in sharing) if sock is not None]
    if not sockets or any(attachment.tls for attachment in sharing):
        raise unsupported(
            "what another program writes to a descriptor whose socket is closed, or under TLS",
            "give it the descriptor of a socket that is neither",
        )
    first, *others = sockets
    make_plain(first)
    plain = _originals.SocketType.fileno(first)
    for other in others:
        _descriptor.put_under(_originals.SocketType.fileno(other), plain)
        detach(other)
        relayed[other] = tunnel
    if tunnel_under(fd) is tunnel:
        _descriptor.put_under(fd, plain)


def make_inherited_plain() -> None:
    """The same for all descriptors that a program would inherit."""
    for fd in _descriptor.inheritable([attachment.transport.fd for attachment in list(attachments.values())]):
        make_descriptor_plain(fd)


def accepted_elsewhere() -> ProxyError:
    """The error for handing over the descriptor of a listening socket."""
    return unsupported(
        "connections that other code accepts by the bare descriptor of a listening socket",
        "accept them by the socket's own method, then wrap or detach the connection",
    )
