"""uvloop connects by libuv, which knows nothing of `socket.socket`: its connections would not go through the proxy at
all.

`Loop.create_connection` is therefore given a connection that Python has made, in a thread; it is a plain one for
libuv, by a relay if it is tunnelled. Lookups, which libuv makes by itself as well, are left to `socket`. Datagrams
cannot be had so: an endpoint that is not for direct ones alone is refused.
"""

from __future__ import annotations

import functools
import socket
from typing import TYPE_CHECKING, Any, Callable

from gsssocks._endpoint import share_of
from gsssocks._guards import wrap
from gsssocks._routing import current, is_direct
from gsssocks._switching import use_raw
from gsssocks.exceptions import unsupported

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["cover"]


def cover(uvloop: ModuleType) -> None:
    """Covers `uvloop`."""
    wrap(uvloop.Loop, "create_connection", _create_connection)
    wrap(uvloop.Loop, "connect_accepted_socket", _connect_accepted_socket)
    wrap(uvloop.Loop, "create_datagram_endpoint", _create_datagram_endpoint)
    wrap(uvloop.Loop, "getaddrinfo", _getaddrinfo)
    wrap(uvloop.Loop, "getnameinfo", _getnameinfo)


async def _getaddrinfo(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if current() is None:
        return await wrapped(*args, **kwargs)
    return await instance.run_in_executor(None, functools.partial(socket.getaddrinfo, *args, **kwargs))


async def _getnameinfo(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if current() is None:
        return await wrapped(*args, **kwargs)

    def look_up(sockaddr: Any, flags: int = 0) -> Any:
        return socket.getnameinfo(sockaddr, flags)

    return await instance.run_in_executor(None, functools.partial(look_up, *args, **kwargs))


def _create_connection(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return _connect_then_create(wrapped, instance, *args, **kwargs)


async def _connect_then_create(
    create: Callable[..., Any],
    loop: Any,
    protocol_factory: Callable[[], Any],
    host: str | None = None,
    port: int | None = None,
    *,
    sock: socket.socket | None = None,
    local_addr: tuple[str, int] | None = None,
    **options: Any,
) -> Any:
    if sock is None and host is not None and port is not None and current() is not None:
        connect = functools.partial(socket.create_connection, (host, port), source_address=local_addr)
        sock = await loop.run_in_executor(None, connect)
        sock.setblocking(False)
        if options.get("ssl") and options.get("server_hostname") is None:
            options["server_hostname"] = host
    if sock is None:
        return await create(protocol_factory, host, port, local_addr=local_addr, **options)
    use_raw(sock)
    for resolved in ("family", "proto", "flags", "happy_eyeballs_delay", "interleave"):
        options.pop(resolved, None)
    return await create(protocol_factory, sock=sock, **options)


def _connect_accepted_socket(
    wrapped: Callable[..., Any], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    sock = args[1] if len(args) > 1 else kwargs.get("sock")
    if isinstance(sock, socket.socket):
        use_raw(sock)
    return wrapped(*args, **kwargs)


def _create_datagram_endpoint(
    wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    return _create_if_direct(wrapped, instance, *args, **kwargs)


async def _create_if_direct(
    create: Callable[..., Any],
    _loop: Any,
    protocol_factory: Callable[[], Any],
    local_addr: tuple[str, int] | None = None,
    remote_addr: tuple[str, int] | None = None,
    *,
    sock: socket.socket | None = None,
    **options: Any,
) -> Any:
    ends = (local_addr, remote_addr) if sock is None else (sock.getsockname(), _peer(sock))
    tunnelled = sock is not None and share_of(sock) is not None
    if tunnelled or (current() is not None and not _is_direct_alone(*ends)):
        raise unsupported(
            "datagrams of uvloop", "use asyncio's own event loop, or give a remote_addr that no_proxy names"
        )
    if sock is not None:
        options["sock"] = sock
    return await create(protocol_factory, local_addr=local_addr, remote_addr=remote_addr, **options)


def _peer(sock: socket.socket) -> Any:
    try:
        return sock.getpeername()
    except OSError:
        return None


def _is_direct_alone(local: Any, remote: Any) -> bool:
    """Whether nothing but direct destinations can be reached by way of an endpoint."""
    if not isinstance(remote or local, tuple):
        return isinstance(local, str)  # AF_UNIX
    if remote:
        return is_direct(*remote[:2])
    # From the loopback interface, only that is reached; from no address in particular, everything.
    return str(local[0]).startswith("127.") or local[0] in ("::1", "localhost")
