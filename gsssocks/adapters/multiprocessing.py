"""multiprocessing passes sockets to another process by their descriptors: a tunnelled one becomes a plain one first.

Its pickler knows how to by the class of an object, and a tunnelled socket's is not the one it knows.
"""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING, Any, Callable

from gsssocks._guards import wrap
from gsssocks._switching import make_descriptor_plain, relayed, switched_classes
from gsssocks._tunnel import attachment_of
from gsssocks.exceptions import unsupported

if TYPE_CHECKING:
    import socket
    from types import ModuleType

__all__ = ["cover"]


def cover(reduction: ModuleType) -> None:
    """Covers `multiprocessing.reduction`."""
    wrap(reduction.ForkingPickler, "__init__", _init)


def _init(wrapped: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    wrapped(*args, **kwargs)
    known = instance.dispatch_table
    tunnelled = {ours: _plain_then(known[base]) for base, ours in switched_classes() if base in known}
    instance.dispatch_table = ChainMap(tunnelled, known)


def _plain_then(reduce: Callable[[Any], Any]) -> Callable[[socket.socket], Any]:
    def reduce_plain(sock: socket.socket) -> Any:
        if sock.fileno() >= 0 and attachment_of(sock) is None and sock not in relayed:
            raise unsupported("a GSSSocket that another process is to connect", "connect it before it is passed on")
        make_descriptor_plain(sock.fileno())
        return reduce(sock)

    return reduce_plain
