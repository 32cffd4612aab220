"""What `os` does with any descriptor, done with a tunnelled socket's: through the tunnel, not past it by the kernel.

asyncio calls some of these functions with a descriptor, and so may anybody. All arguments are right in themselves.
"""

from __future__ import annotations

import errno
import operator
import os
from typing import TYPE_CHECKING

from . import _arguments
from ._transport import Deadline, byte_view
from ._tunnel import attachments

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import SupportsIndex

    from _typeshed import ReadableBuffer, WriteableBuffer

    from ._transport import Transport
    from ._tunnel import Tunnel

__all__ = ["read", "read_into", "refusal", "send_file", "write", "write_from"]

AT_ONCE = 256 * 1024
"""Octets of the file read for one call, at most: as with the kernel's own, the caller goes on with the rest."""


def write(tunnel: Tunnel, fd: int, data: ReadableBuffer) -> int:
    """write(2)"""
    transport = _transport(tunnel, fd, "os.write()")
    with byte_view(data) as view:
        return tunnel.stream.send(transport, view, _deadline(fd))


def write_from(tunnel: Tunnel, fd: int, buffers: Iterable[ReadableBuffer]) -> int:
    """writev(2)"""
    transport, deadline = _transport(tunnel, fd, "os.writev()"), _deadline(fd)
    data = _arguments.gathered(_arguments.listed(buffers), tunnel.stream.records.max_plaintext, deadline.timeout)
    with byte_view(data) as view:
        return tunnel.stream.send(transport, view, deadline)


def read(tunnel: Tunnel, fd: int, size: SupportsIndex) -> bytes:
    """read(2)"""
    count = operator.index(size)
    if not count:
        return b""  # asks whether the descriptor is open, of a socket under TLS, too
    return tunnel.stream.receive(_transport(tunnel, fd, "os.read()"), count, _deadline(fd))


def read_into(tunnel: Tunnel, fd: int, buffers: Iterable[WriteableBuffer]) -> int:
    """readv(2)"""
    transport = _transport(tunnel, fd, "os.readv()")
    views = [byte_view(buffer) for buffer in _arguments.listed(buffers)]
    octets = memoryview(tunnel.stream.receive(transport, sum(map(len, views)), _deadline(fd)))
    received = len(octets)
    for view in views:
        part = octets[: len(view)]
        view[: len(part)] = part
        octets = octets[len(part) :]
    return received


def send_file(tunnel: Tunnel, out_fd: int, in_fd: int, offset: int | None, count: int) -> int:
    """sendfile(2): sends up to `count` octets of a file, waiting only if `out_fd` does.

    Args:
        out_fd: a descriptor of the tunnel's connection.
        offset: where to start in the file; None is its position, which moves then.

    Returns:
        the number of octets sent; 0 at the end of the file.

    Raises:
        BlockingIOError: none could be sent at once.
        OSError: EINVAL: it cannot be done; callers then send the file otherwise.
    """
    transport = _transport(tunnel, out_fd, "os.sendfile()")
    data = _read_file(in_fd, offset, min(count, AT_ONCE))
    if not data:
        return 0
    with memoryview(data) as view:
        sent = tunnel.stream.send(transport, view, _deadline(out_fd))
    if offset is None:
        os.lseek(in_fd, sent, os.SEEK_CUR)
    return sent


def refusal(function: str) -> OSError:
    """The error for what cannot be done through a tunnel; EINVAL is how a kernel says that it cannot."""
    return OSError(
        errno.EINVAL, f"{function} on the descriptor of a socket would go past the tunnel: use the socket's own methods"
    )


def _transport(tunnel: Tunnel, fd: int, function: str) -> Transport:
    """That of a socket which has the descriptor, or one of the same connection; but not under TLS, where the octets
    would go between records."""
    sharing = [attachment for attachment in list(attachments.values()) if attachment.tunnel is tunnel]
    if not sharing or any(attachment.tls for attachment in sharing):
        raise refusal(function)
    return next((each.transport for each in sharing if each.transport.fd == fd), sharing[0].transport)


def _deadline(fd: int) -> Deadline:
    return Deadline(None if os.get_blocking(fd) else 0)


def _read_file(fd: int, offset: int | None, count: int) -> bytes:
    try:
        start = os.lseek(fd, 0, os.SEEK_CUR) if offset is None else offset
        return os.pread(fd, count, start)
    except OSError as error:
        # What cannot be read at a position is no file to sendfile(2).
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) if error.errno == errno.ESPIPE else error from None
