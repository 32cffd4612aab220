"""`create_connection()`, for programs that choose the proxy themselves."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

from . import _originals
from ._config import chosen_proxies
from ._socket import GSSSocket
from .exceptions import ReplyError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._config import Proxy, ProxyChoice

__all__ = ["create_connection"]

_DEFAULT_TIMEOUT: Any = object()


def create_connection(
    address: tuple[str, int],
    timeout: float | None = _DEFAULT_TIMEOUT,
    source_address: tuple[str, int] | None = None,
    *,
    proxy: ProxyChoice = None,
    socket_options: Iterable[tuple[int, int, int | bytes]] = (),
) -> GSSSocket:
    """A socket connected to `address` through a proxy; `socket.create_connection` with a proxy.

    Args:
        address: host (a name goes to the proxy unresolved, unless `proxy.remote_dns` is False) and port.
        timeout: seconds for this and each later operation; None never ends; absent is `socket.getdefaulttimeout()`.
        source_address: local host and port to bind to, on the way to the proxy.
        proxy: as for `install()`: a `Proxy`, a URL, several of these, or None for what environment or file name.
        socket_options: arguments of `setsockopt`, applied before connecting (as with PySocks and urllib3).

    Raises:
        OSError: `ProxyError` and its subclasses for what the proxy is the cause of.
        ValueError, TypeError: the proxy is wrong, or none is named.
    """
    chosen = chosen_proxies(proxy)
    failure: OSError | None = None
    for candidate in _candidates(address, chosen[0]):
        # As many families as there are addresses: the kernel socket's own family is the proxy's.
        sock = GSSSocket(socket.AF_INET6 if len(candidate) > 2 else socket.AF_INET, socket.SOCK_STREAM, proxy=chosen)
        try:
            if timeout is not _DEFAULT_TIMEOUT:
                sock.settimeout(timeout)
            for option in socket_options:
                sock.setsockopt(*option)
            if source_address:
                sock.bind(source_address)
            sock.connect(candidate)
        except ReplyError as error:
            # Another address of the target may be reached; nothing else that went wrong would go right with one.
            failure = error
            sock.close()
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    try:
        raise failure or OSError(errno.EHOSTUNREACH, f"{address[0]} has no address")
    finally:
        failure = None  # or the exception would keep itself alive by way of this frame


def _candidates(address: tuple[str, int], proxy: Proxy) -> list[tuple[Any, ...]]:
    """The addresses to try: the name itself where the proxy resolves it, else what it resolves to here."""
    if proxy.remote_dns:
        return [address]
    host, port = address
    return [info[4] for info in _originals.getaddrinfo(host, port, 0, socket.SOCK_STREAM)]
