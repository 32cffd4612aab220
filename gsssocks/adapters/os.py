"""`os` has functions that take any descriptor, and would put bare octets into a tunnel, or take its messages out.

Those that move octets do so through the tunnel; those that give the descriptor to a file object, or to another program,
find a plain one.
"""

from __future__ import annotations

import errno
import operator
from typing import TYPE_CHECKING, Any, Callable

from gsssocks import _raw
from gsssocks._guards import wrap
from gsssocks._switching import make_descriptor_plain, make_inherited_plain
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


def _through_tunnel(function: Callable[..., Any]) -> Wrapper:
    """Has `function` do, for a descriptor that belongs to a tunnel, what the wrapped one does for others."""

    def call(wrapped: Callable[..., Any], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tunnel = _under(args[0]) if args else None
        if tunnel is None:
            return wrapped(*args, **kwargs)
        try:
            wrapped(-1, *args[1:], **kwargs)
        except OSError as error:
            # A descriptor that cannot be is the judge of all other arguments.
            if error.errno != errno.EBADF:
                raise
        return function(tunnel, *args)

    return call


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


def _fdopen(wrapped: Callable[..., Any], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    fd: Any = args[0] if args else kwargs.get("fd")
    if _under(fd) is not None:
        make_descriptor_plain(fd)
    return wrapped(*args, **kwargs)


def _posix_spawn(wrapped: Callable[..., int], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    duplicated = [action[1] for action in kwargs.get("file_actions") or () if len(action) == _DUP2_LENGTH]
    for fd in (*_STANDARD_STREAMS, *duplicated):
        if _under(fd) is not None:
            make_descriptor_plain(fd)
    make_inherited_plain()
    return wrapped(*args, **kwargs)


def _begin_program(wrapped: Callable[..., int], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    make_inherited_plain()
    return wrapped(*args, **kwargs)


_STANDARD_STREAMS = (0, 1, 2)
_DUP2_LENGTH = 3
"""Of `(POSIX_SPAWN_DUP2, fd, new_fd)`; the other actions have other lengths."""

_WRAPPERS: dict[str, Wrapper] = {
    "fdopen": _fdopen,
    "posix_spawn": _posix_spawn,
    "posix_spawnp": _posix_spawn,
    "read": _through_tunnel(_raw.read),
    "readv": _through_tunnel(_raw.read_into),
    "sendfile": _sendfile,
    # The others of their family call these.
    "spawnv": _begin_program,
    "spawnve": _begin_program,
    "spawnvp": _begin_program,
    "spawnvpe": _begin_program,
    "splice": _splice,
    "system": _begin_program,
    "write": _through_tunnel(_raw.write),
    "writev": _through_tunnel(_raw.write_from),
}


def _under(fd: Any) -> Tunnel | None:
    try:
        return tunnel_under(operator.index(fd))
    except (TypeError, OverflowError):
        return None  # no descriptor: the function itself says so
