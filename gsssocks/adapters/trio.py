"""trio calls the methods of `socket.socket` unbound, as functions it looked up when it was imported, and takes sockets
of no other class.

The former passes by every subclass: on a tunnelled socket the function is exchanged for the method of the socket's own
class. The latter would refuse a socket that was tunnelled in place before, an accepted one, and a duplicate.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Callable

from gsssocks import _originals
from gsssocks._endpoint import share_of
from gsssocks._guards import wrap
from gsssocks._switching import kinds, tunnelled_class
from gsssocks._tunnel import attachment_of

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["cover"]


def cover(trio_socket: ModuleType) -> None:
    """Covers `trio._socket`."""
    wrap(trio_socket._SocketType, "__init__", _init)
    wrap(trio_socket._SocketType, "_nonblocking_helper", _by_own_method)


def _init(wrapped: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    sock: Any = args[0] if args else kwargs.get("sock")
    if not _is_switched(sock):
        return wrapped(*args, **kwargs)
    with _originals.socket(sock.family, sock.type) as stand_in:
        wrapped(stand_in)
    sock.setblocking(False)
    instance._sock = sock
    return None


def _is_switched(sock: object) -> bool:
    """Whether it was a `socket.socket`, of that very class, before it was tunnelled."""
    return any(type(sock) is tunnelled_class(socket.socket, kind) for kind in kinds)


def _by_own_method(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    wait, function, *rest = args
    if attachment_of(instance._sock) is not None or share_of(instance._sock) is not None:
        function = getattr(type(instance._sock), function.__name__)
    return wrapped(wait, function, *rest, **kwargs)
