"""`socket.socket(fileno=…)`, and what rests on it, `socket.fromfd` say, makes another socket object of a descriptor: it
becomes one of the tunnel that the descriptor belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from gsssocks import _originals
from gsssocks._guards import wrap
from gsssocks._switching import adopt

if TYPE_CHECKING:
    import socket
    from types import ModuleType

__all__ = ["cover"]


def cover(_socket: ModuleType) -> None:
    """Covers the class, whatever stands at `socket.socket`."""
    wrap(_originals.socket, "__init__", _init)


def _init(wrapped: Callable[..., None], instance: socket.socket, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    wrapped(*args, **kwargs)
    if len(args) > 3 or "fileno" in kwargs:
        adopt(instance)
