"""Flags of send(2) and recv(2) on a tunnelled connection: what each means, waits for, and refuses."""

from __future__ import annotations

import errno
import operator
import os
import socket
from typing import TYPE_CHECKING

from . import _arguments, _originals
from ._transport import Deadline, receiving_deadline, sending_deadline

if TYPE_CHECKING:
    from ._stream import ProtectedStream
    from ._transport import Transport
    from ._tunnel import Attachment

__all__ = ["receive_with_flags", "sending"]

# Plain numbers: the operators of enum.Flag would take longer than the system calls.
_PEEK = int(socket.MSG_PEEK)
_DONTWAIT = int(getattr(socket, "MSG_DONTWAIT", 0))
_FASTOPEN = int(getattr(socket, "MSG_FASTOPEN", 0))
_NOW = Deadline(0)
_ERRQUEUE = int(getattr(socket, "MSG_ERRQUEUE", 0))


def sending(
    sock: socket.socket, attachment: Attachment, view: memoryview, flags: int
) -> tuple[Transport, memoryview, Deadline]:
    if flags:
        _arguments.check(sock.family, "send", b"", flags)
        flags = operator.index(flags)
        if flags & socket.MSG_OOB:
            raise OSError(errno.EOPNOTSUPP, "SOCKS cannot carry urgent data")
        if flags & _FASTOPEN:
            raise OSError(errno.EISCONN, os.strerror(errno.EISCONN))
    transport = attachment.transport
    if attachment.tls:
        # ssl.SSLSocket falls through to its base class once shutdown() has dropped the TLS object: that would be
        # plaintext.
        raise BrokenPipeError(errno.EPIPE, "TLS has ended on this socket without unwrap(); nothing more can be sent")
    if flags and _at_once(sock, flags):
        return transport, view, _NOW
    return transport, view, sending_deadline(sock, transport)


def receive_with_flags(sock: socket.socket, attachment: Attachment, size: int, flags: int) -> bytes:
    """recv(2) with flags. Those that mean nothing to TCP are passed over, as Linux does."""
    flags = operator.index(flags)
    if flags & socket.MSG_OOB:
        return _receive_urgent(sock, attachment, size)
    if flags & _ERRQUEUE:
        return _originals.SocketType.recv(sock, size, flags)  # not of the stream: the kernel's own notes
    stream, transport = attachment.tunnel.stream, attachment.transport
    deadline = _NOW if _at_once(sock, flags) else receiving_deadline(sock, transport)
    whole, peek = bool(flags & socket.MSG_WAITALL), bool(flags & _PEEK)
    if whole and not peek:
        return _receive_all(stream, transport, size, deadline)
    return stream.receive(transport, size, deadline, peek=peek, whole=whole and deadline.timeout is None)


def _at_once(sock: socket.socket, flags: int) -> bool:
    # A socket with a timeout waits before it calls the kernel: MSG_DONTWAIT changes nothing then (socketmodule.c).
    return bool(flags & _DONTWAIT) and _originals.SocketType.gettimeout(sock) is None


def _receive_urgent(sock: socket.socket, attachment: Attachment, size: int) -> bytes:
    """There is no urgent data, and never will be; a socket with a timeout waits before it says so (socketmodule.c)."""
    if not size:
        return b""
    deadline = Deadline(_originals.SocketType.gettimeout(sock))
    if deadline.timeout and not attachment.transport.is_broken():
        try:
            attachment.tunnel.stream.receive(attachment.transport, 1, deadline, peek=True)
        except socket.timeout:
            raise
        except OSError:
            pass  # readable all the same
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _receive_all(stream: ProtectedStream, transport: Transport, size: int, deadline: Deadline) -> bytes:
    """MSG_WAITALL: `size` octets, fewer only if the stream ends or fails after some (recv(2)).

    A socket with a timeout does not wait for more than the first ones (socketmodule.c).
    """
    octets = bytearray(stream.receive(transport, size, deadline))
    rest = deadline if deadline.timeout is None else _NOW
    while octets and len(octets) < size and not transport.is_broken():
        try:
            part = stream.receive(transport, size - len(octets), rest)
        except OSError:
            break  # it will be said next time
        if not part:
            break
        octets += part
    return bytes(octets)
