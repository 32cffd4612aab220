"""What a plain socket makes of its arguments: the same exceptions, before anything is sent or received.

A closed C socket is the judge of whatever is not the usual case: it parses exactly as an open one does, raises what
there is to raise, and otherwise finds that it is closed.
"""

from __future__ import annotations

import errno
import operator
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from ._config.addresses import ip
from ._originals import SocketType
from ._transport import byte_view

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed import ReadableBuffer

__all__ = ["check", "gathered", "has_control_messages", "listed", "room", "size"]

_INT_MAX = 2**31 - 1
_IOV_MAX = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") and "SC_IOV_MAX" in os.sysconf_names else 1024
_judges: dict[int, SocketType] = {}


def check(family: int, method: str, *arguments: Any) -> None:
    """Raises what `method` of a plain socket raises for these arguments, if anything. No name in an address is looked
    up."""
    if method in ("sendto", "sendmsg") and arguments:
        arguments = (*arguments[:-1], _numeric(family, arguments[-1]))
    judge = _judges.get(family)
    if judge is None:
        judge = _judges[family] = SocketType(family, socket.SOCK_STREAM, 0)
        judge.close()
    try:
        getattr(SocketType, method)(judge, *arguments)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


def _numeric(family: int, address: Any) -> Any:
    """An address as good as this one for whoever judges it, but with a name replaced, which the judge would look up."""
    if not isinstance(address, tuple) or not address or not isinstance(address[0], (str, bytes, bytearray)):
        return address
    host = address[0]
    text = host if isinstance(host, str) else bytes(host).decode("latin-1")
    if "\0" in text or ip(text) is not None:
        return address
    if isinstance(host, str) and not host.isascii():
        host.encode("idna")  # which may raise what a plain socket raises
    return ("::1" if family == socket.AF_INET6 else "127.0.0.1", *address[1:])


def size(family: int, method: str, value: Any, *others: Any) -> int:
    """A size that is the first argument of `method`, the others being integers."""
    usual = value.__class__ is int and 0 <= value <= sys.maxsize
    if usual and all(other.__class__ is int and 0 <= other <= _INT_MAX for other in others):
        return int(value)
    # A plain socket makes room for as much as is asked; the judge need not, where that is not the question.
    check(family, method, 0 if usual else value, *others)
    return operator.index(value)


def room(family: int, method: str, buffer: Any, nbytes: Any, flags: Any) -> memoryview:
    """The part of a buffer that `method`, recv_into or recvfrom_into, is to fill."""
    usual = nbytes.__class__ is int and flags.__class__ is int and nbytes >= 0 and 0 <= flags <= _INT_MAX
    if not usual:
        check(family, method, buffer, nbytes, flags)
    try:
        view = byte_view(buffer)
    except BufferError:
        check(family, method, buffer, nbytes, flags)
        raise
    if view.readonly or operator.index(nbytes) > len(view):
        with view:
            check(family, method, buffer, nbytes, flags)
    return view[: operator.index(nbytes) or len(view)]


def has_control_messages(family: int, buffers: Any, ancdata: Any, flags: Any, address: Any) -> bool:
    """Whether there are any among the arguments of sendmsg."""
    if ancdata.__class__ in (tuple, list) and not ancdata and address is None and flags.__class__ is int:
        return False
    listed_ancdata = list(ancdata)
    check(family, "sendmsg", buffers, listed_ancdata, flags, *([] if address is None else [address]))
    return bool(listed_ancdata)


def listed(buffers: Iterable[Any]) -> list[Any]:
    """The buffers, if there are no more than the kernel takes."""
    found = list(buffers)
    if len(found) > _IOV_MAX:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    return found


def gathered(buffers: Iterable[ReadableBuffer], max_plaintext: int, timeout: float | None) -> bytearray:
    """The buffers as one. Where the call may stop short, not more than it could get rid of at once."""
    enough = None if timeout is None else 4 * max_plaintext
    octets = bytearray()
    for buffer in buffers:
        octets += byte_view(buffer)
        if enough is not None and len(octets) >= enough:
            break
    return octets
