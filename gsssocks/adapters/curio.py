"""curio takes `send` and `recv` of a socket before it connects it: a plain socket's methods, which pass by the tunnel.

It is given them anew by whatever can make a tunnel of the socket; while that goes on, it looks them up for each call.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Callable

from gsssocks._guards import wrap

if TYPE_CHECKING:
    import socket
    from types import ModuleType

__all__ = ["cover"]


def cover(curio_io: ModuleType) -> None:
    """Covers `curio.io`."""
    for method in ("connect", "sendmsg", "sendto"):
        wrap(curio_io.Socket, method, _then_take_methods)


async def _then_take_methods(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    sock = instance._socket
    instance._socket_send = functools.partial(_call_method, sock, "send")
    instance._socket_recv = functools.partial(_call_method, sock, "recv")
    try:
        return await wrapped(*args, **kwargs)
    finally:
        instance._socket_send, instance._socket_recv = sock.send, sock.recv


def _call_method(sock: socket.socket, name: str, *args: Any) -> Any:
    return getattr(sock, name)(*args)
