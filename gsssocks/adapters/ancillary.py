"""`socket.sendmsg` has two things that concern us: an address, and ancillary data.

A datagram goes to its address as what is installed has it. Descriptors that ancillary data give to another process
(SCM_RIGHTS, unix(7)) become plain ones first.

Both are one wrapper, for as long as something is installed or there is a tunnel: two would cost every other sendmsg
twice as much.
"""

from __future__ import annotations

import array
import socket
from typing import TYPE_CHECKING, Any, Callable

from gsssocks import _originals
from gsssocks._datagram_socket import DatagramSocket
from gsssocks._datagrams import goes_directly, with_datagrams
from gsssocks._guards import wrap
from gsssocks._switching import make_descriptor_plain

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import ModuleType

__all__ = ["cover"]

_RIGHTS = (socket.SOL_SOCKET, getattr(socket, "SCM_RIGHTS", None))


def cover(_underlying: ModuleType) -> None:
    """Covers the class above `_socket`'s."""
    if hasattr(_originals.socket, "sendmsg"):
        wrap(_originals.socket, "sendmsg", _sendmsg)


def _sendmsg(
    wrapped: Callable[..., int], instance: socket.socket | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> int:
    if len(args) > 1 and args[1]:
        args = (args[0], _with_plain_descriptors(args[1]), *args[2:])
    if instance is None or len(args) < 4 or args[3] is None or goes_directly(instance, args[3], args[2:3]):
        return wrapped(*args, **kwargs)
    return DatagramSocket.sendmsg(with_datagrams(instance), *args)


def _with_plain_descriptors(ancillary: Any) -> Any:
    try:
        iterator = iter(ancillary)
    except TypeError:
        return ancillary  # sendmsg says so
    items = list(iterator)
    for item in items:
        for fd in _descriptors(item):
            make_descriptor_plain(fd)
    return items


def _descriptors(item: Any) -> Iterable[int]:
    if not isinstance(item, tuple) or len(item) != len(("level", "type", "data")) or item[:2] != _RIGHTS:
        return ()
    try:
        octets = bytes(memoryview(item[2]))
    except TypeError:
        return ()  # sendmsg says so
    descriptors = array.array("i")
    descriptors.frombytes(octets[: len(octets) // descriptors.itemsize * descriptors.itemsize])
    return descriptors
