"""`install()`: from now on, connections go through the proxy, in a program that knows nothing of it.

Methods of the existing `socket.socket` class are wrapped in place, so whoever holds a reference to the class is
covered, and so is every subclass. Only what makes a connection, or takes over a descriptor, is wrapped; a socket that
is not proxied sends and receives with the C functions it always had. The ledger says how to put everything back.
"""

from __future__ import annotations

import errno
import importlib
import os
import socket
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import wrapt

from ._config import Bypass, Proxy
from ._socket import GSSSocket, adopt, connect_code, in_progress, open_tunnel
from ._tunnel import attachment_of, tunnel_under

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

__all__ = ["install", "installed", "uninstall", "wrap"]

_Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class _Rules:
    """What an `install()` asked for."""

    proxy: Proxy
    bypass: Bypass


class _Patched(NamedTuple):
    """One line of the ledger."""

    owner: Any
    name: str
    own: Any | None
    """What stood in the owner's own namespace; None where the attribute was inherited."""


_lock = threading.RLock()
_ledger: list[_Patched] = []
_rules: _Rules | None = None


def install(
    proxy: Proxy | str | None = None, *, no_proxy: str | Iterable[str] | None = None, **proxy_options: Any
) -> None:
    """Sends every TCP connection that this process makes from now on through `proxy`.

    Calling it again changes proxy and rules; connections that exist stay as they are.

    Args:
        proxy: a `Proxy`, a URL (`socks5h://[principal@]host[:port][?option=value&…]`), or None for the one that the
            environment names (`GSSSOCKS_PROXY`, else `ALL_PROXY`).
        no_proxy: destinations to reach directly: see `Bypass`. None is what `GSSSOCKS_NO_PROXY` or `NO_PROXY` says,
            if the proxy comes from the environment, and otherwise loopback alone; an empty list is nothing.
        proxy_options: arguments of `Proxy`, over those in the URL.

    Raises:
        ValueError, TypeError: something is wrong; the message quotes it. Nothing has been changed then.
    """
    rules = _Rules(
        _chosen_proxy(proxy, proxy_options),
        Bypass(_environ_no_proxy() if proxy is None and no_proxy is None else no_proxy),
    )
    _activate(rules)


def uninstall() -> None:
    """Puts everything back as it was before `install()`. Tunnels that exist go on working."""
    _activate(None)


@contextmanager
def installed(
    proxy: Proxy | str | None = None, *, no_proxy: str | Iterable[str] | None = None, **proxy_options: Any
) -> Iterator[None]:
    """`install()` for the time of a with statement; afterwards what was installed before, or nothing."""
    before = _rules
    install(proxy, no_proxy=no_proxy, **proxy_options)
    try:
        yield
    finally:
        _activate(before)


def _chosen_proxy(proxy: Proxy | str | None, options: dict[str, Any]) -> Proxy:
    if proxy is None:
        return Proxy.from_environ(**options)
    if isinstance(proxy, str):
        return Proxy.from_url(proxy, **options)
    if not isinstance(proxy, Proxy):
        raise TypeError(f"proxy must be a Proxy, a URL or None, not {type(proxy).__name__}")
    if options:
        raise TypeError(f"a Proxy has its options already; give {', '.join(options)} to it")
    return proxy


def _environ_no_proxy() -> str | None:
    for variable in ("GSSSOCKS_NO_PROXY", "NO_PROXY", "no_proxy"):
        if variable in os.environ:
            return os.environ[variable]
    return None


def _activate(rules: _Rules | None) -> None:
    global _rules  # one process has one `socket` module, and one set of rules for it
    with _lock:
        if rules is not None and not _ledger:
            _patch()
        _rules = rules
        if rules is None:
            _restore()


def _patch() -> None:
    wrap(socket.socket, "__init__", _init)
    wrap(socket.socket, "connect", _connect)
    wrap(socket.socket, "connect_ex", _connect_ex)
    if hasattr(os, "sendfile"):
        wrap(os, "sendfile", _sendfile)
    _watch_libraries()


_LIBRARIES = {
    "OpenSSL.SSL": "gsssocks.adapters.pyopenssl",
    "trio._socket": "gsssocks.adapters.trio",
    "uvloop": "gsssocks.adapters.uvloop",
}
"""Modules that pass by a subclass of `socket.socket`, and who sees to them: unbound calls, or the bare descriptor."""
_watched = False


def _watch_libraries() -> None:
    """Has each of `_LIBRARIES` seen to: now if it is imported, else as soon as it is."""
    global _watched
    if not _watched:
        _watched = True
        for library, adapter in _LIBRARIES.items():
            wrapt.register_post_import_hook(_coverer(adapter), library)
        return
    for library, adapter in _LIBRARIES.items():
        if library in sys.modules:
            _coverer(adapter)(sys.modules[library])


def _coverer(adapter: str) -> Callable[[ModuleType], None]:
    def cover(library: ModuleType) -> None:
        # An import hook cannot be taken back; after uninstall() it does nothing.
        with _lock:
            if _ledger:
                importlib.import_module(adapter).cover(library)

    return cover


def _patch_ssl() -> None:
    """To be called when an `ssl.SSLSocket` turns out to be tunnelled: `ssl` is imported by then, and need not be
    before."""
    ssl = sys.modules["ssl"]
    with _lock:
        if _ledger and not any(entry.owner is ssl.SSLContext for entry in _ledger):
            wrap(ssl.SSLContext, "_wrap_socket", _wrap_socket)


def wrap(owner: Any, name: str, wrapper: _Wrapper) -> None:
    """Wraps an attribute of a class or module until `uninstall()`.

    Args:
        wrapper: called with the original (bound), the instance, and the arguments, as wrapt does.
    """
    _ledger.append(_Patched(owner, name, vars(owner).get(name)))
    wrapt.wrap_function_wrapper(owner, name, wrapper)


def _restore() -> None:
    while _ledger:
        owner, name, own = _ledger.pop()
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


# The wrappers. Each decides first whether the socket concerns us, and if not, calls what was there.


def _init(wrapped: Callable[..., None], instance: socket.socket, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    wrapped(*args, **kwargs)
    if len(args) > 3 or "fileno" in kwargs:
        _adopt(instance)


def _adopt(sock: socket.socket) -> None:
    if adopt(sock) and hasattr(sock, "_create"):
        _patch_ssl()


def _sendfile(wrapped: Callable[..., int], _instance: None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    fd = args[0] if args else kwargs.get("out_fd", -1)
    if isinstance(fd, int) and tunnel_under(fd) is not None:
        # What a kernel says that cannot do it; callers then send the file by send().
        raise OSError(errno.EINVAL, "os.sendfile() would send the file unprotected into a tunnel")
    return wrapped(*args, **kwargs)


def _connect(
    wrapped: Callable[..., None], instance: socket.socket, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    proxy = _proxy_for(instance, args)
    if proxy is None:
        return wrapped(*args, **kwargs)
    _tunnel(instance, proxy, args[0])
    if instance.gettimeout() == 0:
        raise in_progress()


def _connect_ex(
    wrapped: Callable[..., int], instance: socket.socket, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> int:
    proxy = _proxy_for(instance, args)
    if proxy is None:
        return wrapped(*args, **kwargs)
    try:
        _tunnel(instance, proxy, args[0])
    except socket.gaierror:
        raise
    except OSError as error:
        return connect_code(error)
    return errno.EINPROGRESS if instance.gettimeout() == 0 else 0


def _tunnel(sock: socket.socket, proxy: Proxy, address: object) -> None:
    open_tunnel(sock, proxy, address)
    if hasattr(sock, "_sslobj"):
        from ._tls import replace_tls_object

        replace_tls_object(sock)


def _wrap_socket(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from ._tls import tls_object

    return tls_object(instance, *args, **kwargs) or wrapped(*args, **kwargs)


def _proxy_for(sock: socket.socket, args: tuple[Any, ...]) -> Proxy | None:
    """The proxy a connect is to go through; None for what is reached directly, and for what is refused anyway."""
    rules = _rules
    if rules is None or sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return None
    if isinstance(sock, GSSSocket) and attachment_of(sock) is not None:
        return None  # connected already: the kernel says so
    if len(args) != 1 or not isinstance(args[0], tuple) or len(args[0]) < 2:
        return None  # not an address: the original method says so
    host, port = args[0][:2]
    if not hasattr(port, "__index__"):
        return None
    if isinstance(host, (bytes, bytearray)):
        host = bytes(host).decode("ascii", "replace")
    if isinstance(host, str) and rules.bypass.covers(host or _ANY[sock.family], port.__index__()):
        return None
    return rules.proxy


_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # what "" means to connect(2)
