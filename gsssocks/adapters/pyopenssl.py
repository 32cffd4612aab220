"""pyOpenSSL gives the socket's descriptor to OpenSSL, which reads and writes it without us: it is given a plain one."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any, Callable

from gsssocks._guards import wrap
from gsssocks._switching import use_raw

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["cover"]


def cover(openssl: ModuleType) -> None:
    """Covers `OpenSSL.SSL`."""
    wrap(openssl.Connection, "__init__", _init)


def _init(wrapped: Callable[..., None], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    sock = args[1] if len(args) > 1 else kwargs.get("socket")
    if isinstance(sock, socket.socket):
        use_raw(sock)
    wrapped(*args, **kwargs)
