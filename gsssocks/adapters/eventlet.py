"""eventlet's sockets hold one of a second `socket.socket` class, a copy of the standard library's that no patch of ours
reaches: their connections would go past the proxy. Its TLS sockets are the standard library's, but would shake hands
past the tunnel.

They are refused where the rules want a proxy, whether eventlet patched the standard library or is used by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from eventlet.patcher import original

from gsssocks._guards import wrap
from gsssocks._routing import goes_through_proxy
from gsssocks.exceptions import unsupported

if TYPE_CHECKING:
    import socket
    from types import ModuleType

__all__ = ["cover"]


def cover(green: ModuleType) -> None:
    """Covers `eventlet.green.socket` or `eventlet.green.ssl`."""
    for method in ("connect", "connect_ex"):
        if green.__name__ == "eventlet.green.ssl":
            wrap(green.SSLSocket, method, _refuse_if_proxied)
        else:
            wrap(green.socket, method, _refuse_green_if_proxied)
            wrap(original("socket").socket, method, _refuse_if_proxied)
    if green.__name__ != "eventlet.green.ssl":
        for method in ("sendto", "sendmsg"):
            wrap(original("socket").socket, method, _refuse_if_proxied)


def _refuse_green_if_proxied(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    _refuse(instance.fd, wrapped.__name__, args)
    return wrapped(*args, **kwargs)


def _refuse_if_proxied(
    wrapped: Callable[..., Any], instance: socket.socket, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    _refuse(instance, wrapped.__name__, args)
    return wrapped(*args, **kwargs)


def _refuse(sock: socket.socket, method: str, args: tuple[Any, ...]) -> None:
    if goes_through_proxy(sock, method, args):
        raise unsupported(
            "eventlet's sockets", "use threads, asyncio or trio with gsssocks, or name the target in no_proxy"
        )
