"""`install()`: from now on, connections go through the proxy, in a program that knows nothing of it.

Methods of the existing `socket.socket` class are wrapped in place, so whoever holds a reference to the class is
covered, and so is every subclass. Only what makes a connection is wrapped; a socket that is not proxied sends and
receives with the C functions it always had. The ledger says how to put everything back.
"""

from __future__ import annotations

import errno
import socket
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from . import _guards, _listeners, _originals
from ._config import Settings
from ._datagram_socket import DatagramSocket
from ._datagrams import sendto, with_datagrams
from ._ledger import Ledger, on_import
from ._libraries import LIBRARIES_THAT_RESOLVE
from ._log import log_to_stderr_if_asked, log_to_stderr_no_more
from ._routing import (
    choose_placeholders,
    current,
    find_route,
    is_udp,
    listening_proxies,
    lookups,
    real_address,
    use,
)
from ._socket import connect_code, in_progress
from ._switching import open_tunnel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

    from ._config.settings import ProxyChoice, RuleChoice
    from ._destinations import Route

__all__ = ["Status", "activate", "install", "installed", "status", "uninstall"]


class _Installation:
    """What `install()` has put in force, or one block of `installed()`; None is nothing."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings


_lock = threading.RLock()
_ledger = Ledger()
_installations = [_Installation()]
"""Behind the first, which is `install()`'s, one for each block of `installed()` that has not ended. The last is in
force."""


def install(
    proxy: ProxyChoice = None,
    *,
    no_proxy: str | Iterable[str] | None = None,
    rules: RuleChoice = None,
    remote_dns: bool | None = None,
    bind: bool | None = None,
    placeholders: str | Iterable[str] | None = None,
    **proxy_options: Any,
) -> None:
    """Sends every TCP connection that this process makes from now on through a proxy, and every UDP datagram.

    Calling it again changes proxy and rules; connections that exist stay as they are. While blocks of `installed()`
    have not ended, it changes what the one that began last has installed, until that one ends.

    Args:
        proxy: a `Proxy`, a URL (`socks5h://[principal@]host[:port][?option=value&…]`), several of these (tried in
            order), or None for what the environment names (`GSSSOCKS_PROXY`, else `ALL_PROXY`), or the file
            `GSSSOCKS_CONFIG`.
        no_proxy: destinations to reach directly: see `Bypass`. None is what environment or file say, else loopback; an
            empty list is nothing.
        rules: what becomes of a connection, by its destination: see `Rules`. They come before `no_proxy`.
        remote_dns: whether a program that resolves names itself gets placeholder addresses for those that go through
            the proxy; None goes by the scheme (socks5h).
        bind: whether sockets that listen do so at the proxy (see `_listeners`), which lets each accept one connection;
            None is no, unless environment or file say otherwise.
        placeholders: the ranges that these come from, instead of 198.18.0.0/15 and 100::/64: one or two CIDR blocks.
            Addresses that were given out before go on standing for their names.
        proxy_options: arguments of `Proxy`, over those in the URL.

    Raises:
        ValueError, TypeError: something is wrong; the message quotes it and says where it comes from. Nothing has been
            changed then.
    """
    activate(
        Settings.load(
            proxy,
            no_proxy=no_proxy,
            rules=rules,
            remote_dns=remote_dns,
            placeholders=placeholders,
            bind=bind,
            **proxy_options,
        )
    )


def uninstall() -> None:
    """Puts everything back as it was before `install()`. Tunnels that exist go on working.

    While blocks of `installed()` have not ended, nothing is installed until the one that began last ends; then the one
    before it holds again.
    """
    activate(None)


class Status(NamedTuple):
    """What `status()` says."""

    patched: tuple[str, ...]
    """What is patched, by name; empty if nothing is installed and no tunnel is left (see `_guards`)."""
    references: tuple[str, ...]
    """What other modules had taken of that before, by their own names for it; covered as well."""
    settings: Settings | None
    """What `install()` gathered, with where each part came from (`settings.sources`)."""


def status() -> Status:
    """What is installed now."""
    with _lock:
        references = (*_ledger.references, *_guards.references())
        return Status((*_ledger.names, *_guards.patched()), references, current())


@contextmanager
def installed(proxy: ProxyChoice = None, **options: Any) -> Iterator[None]:
    """`install()` for the time of a with statement; afterwards what was installed before, or nothing.

    It holds for the whole process. Where blocks overlap, in several threads or tasks, the one that began last holds;
    when it ends, the one that began last of those that have not ended.
    """
    mine = _Installation(Settings.load(proxy, **options))
    with _lock:
        _installations.append(mine)
    try:
        _put_in_force()
        yield
    finally:
        with _lock:
            _installations.remove(mine)
            _put_in_force()


def activate(settings: Settings | None) -> None:
    """Has the program's connections made by these settings, or as ever if there are none."""
    with _lock:
        mine = _installations[-1]
        before, mine.settings = mine.settings, settings
        try:
            _put_in_force()
        except BaseException:
            mine.settings = before
            raise


def _put_in_force() -> None:
    """Has the last of the installations hold."""
    with _lock:
        settings = _installations[-1].settings
        if settings is not None and settings is current():
            return
        if settings is not None:
            _patch(settings)
            log_to_stderr_if_asked()
        use(settings)
        if settings is None:
            _ledger.restore()
            _resolving.clear()
            _guards.stand_while_installed(None)
            log_to_stderr_no_more()


def _patch(settings: Settings) -> None:
    """Patches what has not been patched yet."""
    if settings.sees_lookups:
        choose_placeholders(settings.placeholders)
    if not _ledger:
        _patch_connections()
    _guards.stand_while_installed(settings)
    _watch_resolving()
    if settings.sees_lookups:
        _patch_lookups()
    if settings.bind:
        _patch_listeners()
    _ledger.cover_references()


def _patch_connections() -> None:
    _ledger.wrap(_originals.socket, "connect", _connect)
    _ledger.wrap(_originals.socket, "connect_ex", _connect_ex)
    _ledger.wrap(_originals.socket, "sendto", sendto)


def _patch_lookups() -> None:
    """Has names that go to the proxy answered by placeholders, whichever module is asked."""
    for module in (socket, *_resolving):
        if not _ledger.has(module, "getaddrinfo"):
            for name, wrapper in lookups().items():
                _ledger.wrap(module, name, wrapper)


def _patch_listeners() -> None:
    """Has sockets listen at the proxy."""
    if not _ledger.has(_originals.socket, "listen"):
        for name, wrapper in _listeners.wrappers(listening_proxies).items():
            _ledger.wrap(_originals.socket, name, wrapper)


_resolving: list[ModuleType] = []
_watched = False


def _watch_resolving() -> None:
    """Has the lookups of libraries that have their own seen to: now if they are imported, else as soon as they are."""
    global _watched
    if not _watched:
        _watched = True
        for library in LIBRARIES_THAT_RESOLVE:
            on_import(library, _cover_lookups)
        return
    for library in LIBRARIES_THAT_RESOLVE:
        if library in sys.modules:
            _cover_lookups(sys.modules[library])


def _cover_lookups(library: ModuleType) -> None:
    # An import hook cannot be taken back; after uninstall() it does nothing.
    with _lock:
        if not _ledger or library in _resolving:
            return
        _resolving.append(library)
        settings = current()
        if settings is not None and settings.sees_lookups:
            _patch_lookups()
            _ledger.cover_references()


# The wrappers. Each decides first whether the socket concerns us, and if not, calls what was there.


def _connect(
    wrapped: Callable[..., None], instance: socket.socket, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    route = find_route(instance, args)
    if route is None:
        return wrapped(*args, **kwargs)
    if not route.proxies:
        return wrapped(real_address(instance, route.name, args[0]))
    if is_udp(instance):
        return DatagramSocket.connect(with_datagrams(instance), args[0])
    _tunnel(instance, route, args[0])
    if instance.gettimeout() == 0:
        raise in_progress()


def _connect_ex(
    wrapped: Callable[..., int], instance: socket.socket, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> int:
    try:
        route = find_route(instance, args)
        if route is None:
            return wrapped(*args, **kwargs)
        if not route.proxies:
            return wrapped(real_address(instance, route.name, args[0]))
        if is_udp(instance):
            return DatagramSocket.connect_ex(with_datagrams(instance), args[0])
        _tunnel(instance, route, args[0])
    except socket.gaierror:
        raise
    except OSError as error:
        return connect_code(instance, error)
    return errno.EINPROGRESS if instance.gettimeout() == 0 else 0


def _tunnel(sock: socket.socket, route: Route, address: object) -> None:
    open_tunnel(sock, route.proxies, address, route.name)
    if hasattr(sock, "_sslobj"):
        from ._tls import replace_tls_object

        replace_tls_object(sock)
