"""`os.sendfile()` to a tunnelled socket's descriptor: what the kernel would send past the tunnel goes through it.

asyncio calls it with a descriptor, and so may anybody.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from ._transport import Deadline
from ._tunnel import attachments

if TYPE_CHECKING:
    from ._tunnel import Attachment, Tunnel

__all__ = ["send_file"]

AT_ONCE = 256 * 1024
"""Octets of the file read for one call, at most: as with the kernel's own, the caller goes on with the rest."""


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
    attachment = _plain_attachment(tunnel, out_fd)
    data = _read(in_fd, offset, min(count, AT_ONCE))
    if not data:
        return 0
    deadline = Deadline(None if os.get_blocking(out_fd) else 0)
    with memoryview(data) as view:
        sent = tunnel.stream.send(attachment.transport, view, deadline)
    if offset is None:
        os.lseek(in_fd, sent, os.SEEK_CUR)
    return sent


def _plain_attachment(tunnel: Tunnel, fd: int) -> Attachment:
    """The share of the socket that has the descriptor; but not under TLS, where the file would go between records."""
    for attachment in list(attachments.values()):
        if attachment.tunnel is tunnel and attachment.transport.fd == fd and not attachment.tls:
            return attachment
    raise OSError(errno.EINVAL, "os.sendfile() would send the file unprotected into a tunnel")


def _read(fd: int, offset: int | None, count: int) -> bytes:
    try:
        start = os.lseek(fd, 0, os.SEEK_CUR) if offset is None else offset
        return os.pread(fd, count, start)
    except OSError as error:
        # What cannot be read at a position is no file to sendfile(2).
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) if error.errno == errno.ESPIPE else error from None
