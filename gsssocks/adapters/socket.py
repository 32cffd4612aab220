"""`socket.socket(fileno=…)`, and what rests on it, `socket.fromfd` say, makes another socket object of a descriptor: it
becomes one of the tunnel that the descriptor belongs to. `socket.send_fds` gives descriptors to another process: they
become plain ones first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from gsssocks import _originals
from gsssocks._guards import wrap
from gsssocks._switching import adopt, make_descriptor_plain

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable
    from types import ModuleType

__all__ = ["cover"]


def cover(socket: ModuleType) -> None:
    """Covers the class, whatever stands at `socket.socket`, and the module."""
    wrap(_originals.socket, "__init__", _init)
    if hasattr(socket, "send_fds"):
        wrap(socket, "send_fds", _send_fds)


def _init(wrapped: Callable[..., None], instance: socket.socket, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    wrapped(*args, **kwargs)
    if len(args) > 3 or "fileno" in kwargs:
        adopt(instance)


def _send_fds(wrapped: Callable[..., int], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return _send_plain(wrapped, *args, **kwargs)


def _send_plain(
    send: Callable[..., int], sock: socket.socket, buffers: Any, fds: Iterable[int], *others: Any, **options: Any
) -> int:
    descriptors = list(fds)
    for fd in descriptors:
        make_descriptor_plain(fd)
    return send(sock, buffers, descriptors, *others, **options)
