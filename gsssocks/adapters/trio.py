"""trio calls the methods of `socket.socket` unbound, as functions it looked up when it was imported.

That passes by every subclass. On a tunnelled socket the function is exchanged for the method of the socket's own class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from gsssocks._endpoint import share_of
from gsssocks._patch import wrap
from gsssocks._tunnel import attachment_of

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["cover"]


def cover(trio_socket: ModuleType) -> None:
    """Covers `trio._socket`."""
    wrap(trio_socket._SocketType, "_nonblocking_helper", _by_own_method)


def _by_own_method(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    wait, function, *rest = args
    # trio takes no other class for an accepted connection than `socket.socket`: by accept() unbound it gets one, plain,
    # since that calls the socket's own _accept().
    ours = attachment_of(instance._sock) is not None or share_of(instance._sock) is not None
    if ours and function.__name__ != "accept":
        function = getattr(type(instance._sock), function.__name__)
    return wrapped(wait, function, *rest, **kwargs)
