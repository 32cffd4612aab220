"""uvloop connects by libuv, which knows nothing of `socket.socket`: its connections would not go through the proxy at
all.

`Loop.create_connection` is therefore given a connection that Python has made, in a thread; it is a plain one for
libuv, by a relay. What is reached directly is left to libuv, by its address. Lookups, which libuv makes by itself as
well, are left to `socket`. Datagrams cannot be had so: an endpoint that is not for direct ones alone is refused.
"""

from __future__ import annotations

import functools
import socket
import ssl
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from gsssocks._endpoint import share_of
from gsssocks._guards import wrap
from gsssocks._originals import Thread
from gsssocks._routing import current, decided, is_direct
from gsssocks._switching import use_raw
from gsssocks.exceptions import unsupported

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["cover"]

T = TypeVar("T")


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
    if sock is not None:
        use_raw(sock)
        return await create(protocol_factory, host, port, sock=sock, local_addr=local_addr, **options)
    if host is None or port is None or current() is None:
        return await create(protocol_factory, host, port, local_addr=local_addr, **options)
    resolved = {name: options.pop(name, 0) for name in ("family", "proto", "flags")}
    if options.get("ssl") and options.get("server_hostname") is None:
        options["server_hostname"] = host
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, **resolved)
    failure: OSError | None = None
    for info in await _in_a_thread(loop, look_up):
        try:
            if _is_left_to_libuv(*info[4][:2]):
                return await create(protocol_factory, _literal(info[4]), port, local_addr=local_addr, **options)
            sock = await _in_a_thread(loop, functools.partial(_connected, info, local_addr), socket.socket.close)
        except ssl.SSLError:
            raise  # there is a connection
        except OSError as error:
            failure = error
        else:
            return await _handed_over(create, protocol_factory, sock, options)
    try:
        raise failure or OSError("getaddrinfo() returned empty list")
    finally:
        failure = None  # or its traceback would hold this frame, and that the failure


async def _handed_over(
    create: Callable[..., Any], protocol_factory: Callable[[], Any], sock: socket.socket, options: dict[str, Any]
) -> Any:
    try:
        use_raw(sock)
        return await create(protocol_factory, sock=sock, **options)
    except BaseException:
        sock.close()
        raise


def _is_left_to_libuv(host: str, port: int) -> bool:
    """Whether libuv can connect to an address: it is reached directly, and stands for itself, not for a name."""
    settings = current()
    if settings is None:
        return True
    route = decided(settings, host, port)
    return not route.proxies and route.name is None


def _literal(address: tuple[Any, ...]) -> str:
    """The address without its port, so that nothing is looked up any more and the address decided on is the one that is
    connected to."""
    host: str = address[0]
    return f"{host}%{address[3]}" if len(address) == 4 and address[3] else host


def _connected(info: tuple[Any, ...], local_addr: tuple[str, int] | None) -> socket.socket:
    family, kind, protocol, _, address = info
    sock = socket.socket(family, kind, protocol)
    try:
        if local_addr is not None:
            sock.bind(local_addr)
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


async def _in_a_thread(loop: Any, function: Callable[[], T], discard: Callable[[T], object] | None = None) -> T:
    """What a function that waits returns. Its thread is its own: those of the executor are few, and the loop's end
    waits for each of them, also where nobody wants the result any more.

    Args:
        discard: what to do with a result that nobody wants any more.
    """
    future = loop.create_future()

    def run() -> None:
        try:
            value = function()
        except BaseException as error:  # noqa: BLE001 - raised again where the result is awaited
            settle: Callable[[], object] = functools.partial(future.set_exception, error)
            unwanted: Callable[[], object] = _nothing
        else:
            settle = functools.partial(future.set_result, value)
            unwanted = _nothing if discard is None else functools.partial(discard, value)
        try:
            loop.call_soon_threadsafe(lambda: unwanted() if future.done() else settle())
        except RuntimeError:
            unwanted()  # the loop is closed

    Thread(target=run, name="gsssocks-connect", daemon=True).start()
    result: T = await future
    return result


def _nothing() -> None:
    """There is no result to discard."""


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
