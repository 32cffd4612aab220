"""`os` has functions that take any descriptor, and would put bare octets into a tunnel, or take its messages out."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, Callable

from gsssocks import _raw
from gsssocks._guards import wrap
from gsssocks._tunnel import tunnel_under

if TYPE_CHECKING:
    from types import ModuleType

    from gsssocks._ledger import Wrapper
    from gsssocks._tunnel import Tunnel

__all__ = ["cover"]


def cover(os: ModuleType) -> None:
    """Covers those that the platform has."""
    for name, wrapper in _WRAPPERS.items():
        if hasattr(os, name):
            wrap(os, name, wrapper)


def _write(wrapped: Callable[..., int], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    tunnel = _under(args[0]) if len(args) == 2 else None
    return wrapped(*args, **kwargs) if tunnel is None else _raw.write(tunnel, *args, **kwargs)


def _writev(wrapped: Callable[..., int], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    tunnel = _under(args[0]) if len(args) == 2 else None
    return wrapped(*args, **kwargs) if tunnel is None else _raw.write_from(tunnel, *args, **kwargs)


def _read(wrapped: Callable[..., bytes], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    tunnel = _under(args[0]) if len(args) == 2 else None
    if tunnel is None or not hasattr(args[1], "__index__") or operator.index(args[1]) < 0:
        return wrapped(*args, **kwargs)
    return _raw.read(tunnel, args[0], operator.index(args[1]))


def _readv(wrapped: Callable[..., int], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    tunnel = _under(args[0]) if len(args) == 2 else None
    return wrapped(*args, **kwargs) if tunnel is None else _raw.read_into(tunnel, *args, **kwargs)


_SENDFILE = ("out_fd", "in_fd", "offset", "count")


def _sendfile(wrapped: Callable[..., int], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    tunnel = _under(args[0] if args else kwargs.get("out_fd"))
    if tunnel is None:
        return wrapped(*args, **kwargs)
    return _raw.send_file(tunnel, **dict(zip(_SENDFILE, args)), **kwargs)


def _splice(wrapped: Callable[..., int], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    ends = [*args[:2], kwargs.get("src"), kwargs.get("dst")]
    if any(_under(end) is not None for end in ends):
        raise _raw.refusal("os.splice()")
    return wrapped(*args, **kwargs)


_WRAPPERS: dict[str, Wrapper] = {
    "read": _read,
    "readv": _readv,
    "sendfile": _sendfile,
    "splice": _splice,
    "write": _write,
    "writev": _writev,
}


def _under(fd: Any) -> Tunnel | None:
    try:
        return tunnel_under(operator.index(fd))
    except (TypeError, OverflowError):
        return None  # no descriptor: the function itself says so
