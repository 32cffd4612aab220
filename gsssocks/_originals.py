"""The socket objects as they were before any patch of ours, for the code that must reach the kernel itself.

`install()` wraps methods of `socket.socket`; the C type below it (`socket.SocketType`) cannot be patched in place, so
calling its methods unbound always means the kernel's own operation. This module must be imported before a patch is
made.
"""

from __future__ import annotations

from select import select
from socket import SocketType, getaddrinfo, gethostbyaddr, socket
from threading import Thread

__all__ = ["SocketType", "Thread", "getaddrinfo", "gethostbyaddr", "select", "socket"]
