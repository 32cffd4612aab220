"""The socket objects as they were before any patch of ours, for the code that must reach the kernel itself.

`install()` wraps methods of `socket.socket`; the C type below it (`_socket.SocketType`) cannot be patched in place, so
calling its methods unbound always means the kernel's own operation. This module must be imported before a patch is
made.
"""

from __future__ import annotations

from _socket import SocketType
from select import select
from socket import getaddrinfo, gethostbyaddr, socket
from threading import Thread
from typing import TYPE_CHECKING

if not TYPE_CHECKING:
    # Somebody's subclass may stand there, as PySocks' documentation has it, or something quite different, gevent's or
    # eventlet's. What they replaced lives on, not least as a base of `ssl.SSLSocket`.
    candidates = socket.__mro__ if issubclass(socket, SocketType) else SocketType.__subclasses__()
    socket = next(cls for cls in candidates if (cls.__module__, cls.__name__) == ("socket", "socket"))

__all__ = ["SocketType", "Thread", "getaddrinfo", "gethostbyaddr", "select", "socket"]
