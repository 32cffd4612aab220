"""A child process reads and writes the descriptors it is given: those of tunnelled sockets become plain ones first."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Callable

from gsssocks._guards import wrap
from gsssocks._switching import make_descriptor_plain, make_inherited_plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

__all__ = ["cover"]

_STANDARD_STREAMS = {"stdin": 3, "stdout": 4, "stderr": 5}
"""Parameters of `subprocess.Popen`, with their positions."""
_CLOSE_FDS = 7
_PASS_FDS = 16


def cover(subprocess: ModuleType) -> None:
    """Covers `subprocess`."""
    wrap(subprocess.Popen, "__init__", _init)


def _init(wrapped: Callable[..., None], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if "pass_fds" in kwargs:
        kwargs["pass_fds"] = tuple(kwargs["pass_fds"])
    for fd in _descriptors(args, kwargs):
        make_descriptor_plain(fd)
    if not _argument(args, kwargs, _CLOSE_FDS, "close_fds", True):
        make_inherited_plain()
    wrapped(*args, **kwargs)


def _descriptors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[int]:
    for number, (name, position) in enumerate(_STANDARD_STREAMS.items()):
        stream = _argument(args, kwargs, position, name)
        yield number if stream is None else _descriptor_of(stream)
    for fd in _argument(args, kwargs, _PASS_FDS, "pass_fds") or ():
        yield _descriptor_of(fd)


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any = None) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)


def _descriptor_of(stream: Any) -> int:
    if isinstance(stream, int):
        return stream
    # What is wrong with it is Popen's to say.
    with suppress(AttributeError, OSError, ValueError):
        fd = stream.fileno()
        return fd if isinstance(fd, int) else -1
    return -1
