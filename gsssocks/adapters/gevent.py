"""gevent's sockets are a class of their own, over C objects that no patch reaches: their connections would go past
the proxy.

They are refused where the rules want a proxy, whether gevent patched the standard library or is used by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from gsssocks._guards import wrap
from gsssocks._routing import goes_through_proxy
from gsssocks.exceptions import unsupported

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["cover"]


def cover(gevent_socket: ModuleType) -> None:
    """Covers `gevent._socket3`."""
    for method in ("connect", "connect_ex", "sendto", "sendmsg"):
        wrap(gevent_socket.socket, method, _refuse_if_proxied)


def _refuse_if_proxied(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if goes_through_proxy(instance._sock, wrapped.__name__, args):
        raise unsupported(
            "gevent's sockets", "use threads, asyncio or trio with gsssocks, or name the target in no_proxy"
        )
    return wrapped(*args, **kwargs)
