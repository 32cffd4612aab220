"""What becomes of a datagram that a socket sends to an address while something is installed: it goes directly, or the
socket is given the methods that decide for each how it goes."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, Callable, cast

from ._datagram_socket import DatagramSocket, become_datagram_socket
from ._endpoint import share_of
from ._routing import current, decided, direct_addresses, find_route, is_udp
from ._socket import check_not_connecting
from .exceptions import unsupported

if TYPE_CHECKING:
    import socket

__all__ = ["goes_directly", "sendto", "with_datagrams"]

_lock = threading.RLock()
_MAX_DIRECT = 1024
"""How many addresses to note that datagrams go to directly, so that one need not be decided on again for each
datagram."""


def sendto(
    wrapped: Callable[..., int], instance: socket.socket | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> int:
    """What `socket.socket.sendto` is wrapped in. No instance: called unbound, with the socket of another class."""
    if instance is None or not args or goes_directly(instance, args[-1], args[1:-1]):
        return wrapped(*args, **kwargs)
    return DatagramSocket.sendto(with_datagrams(instance), *args)


def goes_directly(sock: socket.socket, address: Any, flags: tuple[Any, ...]) -> bool:
    """Whether what `sock` sends to `address` is left to the kernel; `flags` has the call's flags, if there are any.

    Raises:
        ProxyError: a rule refuses it, or it would connect past the proxy.
    """
    known = direct_addresses()  # of now: there may be others when it has been decided
    try:
        if address in known:
            return True
    except TypeError:
        known = set()  # it holds a bytearray, or is no address
    if not is_udp(sock):
        if flags and any(flags) and find_route(sock, (address,)) is not None:
            check_not_connecting(*flags)
        return True
    if share_of(sock) is not None:
        return False  # called unbound, past the methods that it has
    if find_route(sock, (address,)) is not None:
        return False
    if len(known) < _MAX_DIRECT:
        known.add(address)
    return True


def with_datagrams(sock: socket.socket) -> DatagramSocket:
    """The socket, as one that decides for each datagram how it goes: by the rules of now, as long as it lives."""
    with _lock:
        if share_of(sock) is None:
            settings = current()
            if settings is None:
                raise unsupported("this datagram", "send it again: gsssocks was being uninstalled")
            become_datagram_socket(sock, functools.partial(decided, settings))
    return cast("DatagramSocket", sock)
