"""What is installed now, and how a destination is reached by it: through which proxies, directly, or not at all."""

from __future__ import annotations

import functools
import operator
import socket
import sys
from typing import TYPE_CHECKING, Any, Callable

from . import _listeners, _originals
from ._answers import Answers
from ._config import NAMELESS
from ._config.addresses import ip
from ._destinations import Route
from ._resolver import Placeholders, Resolver
from ._tunnel import attachment_of
from .exceptions import refused_by_rule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ._config import Proxy, Settings
    from ._config.placeholders import PlaceholderRanges

__all__ = [
    "choose_placeholders",
    "current",
    "decided",
    "direct_addresses",
    "find_route",
    "goes_through_proxy",
    "is_direct",
    "is_udp",
    "listening_proxies",
    "lookups",
    "real_address",
    "use",
]

# As numbers: `socket.socket` makes an enum member of them each time, which takes longer than deciding.
_family = _originals.SocketType.family.__get__
_type = _originals.SocketType.type.__get__
_protocol = _originals.SocketType.proto.__get__
_INET = (socket.AF_INET, socket.AF_INET6)
_ANY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # what "" means to connect(2)
_BROADCAST = "255.255.255.255"

_current: Settings | None = None


def current() -> Settings | None:
    """The settings that hold now; None where nothing is installed."""
    return _current


def use(settings: Settings | None) -> None:
    """From now on `settings` hold."""
    global _current, _direct
    _current = settings
    _direct = set()


_direct: set[object] = set()


def direct_addresses() -> set[object]:
    """Where to note addresses that are reached directly as they are, by what is known now. When there are other
    settings, or an address turns out to be a name's, it is another set."""
    return _direct


_answers = Answers()
_placeholders: Placeholders | None = None
_resolver: Resolver | None = None


def choose_placeholders(ranges: PlaceholderRanges) -> None:
    """Names that go to the proxy get addresses of these ranges from now on."""
    global _placeholders, _resolver
    # Kept for good: what a program was once answered, it may connect to at any time.
    if _placeholders is not None:
        _placeholders.move(*ranges)
        return
    _placeholders = Placeholders(*ranges)
    _resolver = Resolver(_placeholders, _is_remote, _note)


def lookups() -> Mapping[str, Callable[..., Any]]:
    """By its name in the `socket` module, what to call instead of each lookup (see `Resolver.wrappers`); none before
    there are placeholders."""
    return _resolver.wrappers() if _resolver is not None else {}


def _is_remote(name: str, port: int | None) -> bool:
    settings = _current
    if settings is None:
        return False
    # A proxy's own name is not asked of a proxy.
    own = {proxy.host.lower().rstrip(".") for proxy in settings.proxies if ip(proxy.host) is None}
    if name.lower().rstrip(".") in own:
        return False
    action = settings.rules.action(name, port)
    if settings.remote_dns:
        return action != "direct"
    # What is refused by its name is so without a refusal for whatever else has the same address.
    return action == "refuse" and ip(name) is None


def _note(name: str, addresses: list[str]) -> None:
    """Of a name that was looked up here."""
    global _direct
    settings = _current
    if settings is None or not settings.rules.by_name:
        return
    if _answers.note(addresses, settings.rules.naming(name)):
        _direct = set()


def find_route(sock: socket.socket | None, args: tuple[Any, ...]) -> Route | None:
    """How `sock` is to reach its destination, the one argument of a connect; None for what is reached directly as it
    is, and for what the kernel refuses anyway.

    Args:
        sock: None for one that is no `socket.socket`, whose methods were called with it all the same.
        args: the arguments of the connect.

    Raises:
        ProxyError: a rule refuses the destination.
        OSError: EHOSTUNREACH: the address is a placeholder of an unknown name; EALREADY: another thread is connecting
            `sock`.
    """
    settings = _current
    if settings is None or sock is None or _family(sock) not in _INET:
        return None
    if _type(sock) != socket.SOCK_STREAM and not is_udp(sock):
        return None
    attachment = attachment_of(sock)
    if attachment is not None:
        attachment.tunnel.check_settled()
        return None  # connected already: the kernel says so
    destination = _host_and_port(sock, args)
    if destination is None:
        return None  # not an address: the original method says so
    route = decided(settings, *destination)
    return route if route.proxies or route.name else None


def is_udp(sock: socket.socket) -> bool:
    """Whether it is a UDP socket, and open: the kernel says what there is to say of a closed one."""
    udp = _type(sock) == socket.SOCK_DGRAM and _family(sock) in _INET and _protocol(sock) in (0, socket.IPPROTO_UDP)
    return udp and _originals.SocketType.fileno(sock) >= 0


def decided(settings: Settings, host: str, port: int) -> Route:
    """As the rules of `settings` have it.

    Raises:
        ProxyError: a rule refuses the destination.
        OSError: EHOSTUNREACH: the address is a placeholder of an unknown name.
    """
    host = _BROADCAST if host == "<broadcast>" else host
    name = _resolver.asked_name(host) if _resolver is not None else None
    namings = _answers.namings(host) if name is None else ()
    decisions = [settings.rules.decide(name or host, port, naming) for naming in namings or (NAMELESS,)]
    for decision in decisions:
        if decision.action == "refuse":
            raise refused_by_rule(f"{name or host}:{port}", decision.rule)
    demands = frozenset(decision.protection for decision in decisions if decision.action == "proxy")
    return Route(_proxies(settings.proxies, demands) if demands else (), name)


def goes_through_proxy(sock: socket.socket, method: str, args: tuple[Any, ...]) -> bool:
    """Whether a connect or a datagram is to go through a proxy, for classes that only hold a C socket, `sock`.

    Args:
        method: which of a socket's methods is called.
        args: its arguments.

    Raises:
        ProxyError: a rule refuses the destination.
    """
    # sendmsg may have no address; all others have it behind everything else.
    address = args[3:] if method == "sendmsg" else args[-1:]
    route = find_route(sock, address) if address else None
    return route is not None and bool(route.proxies)


def is_direct(host: str, port: int) -> bool:
    """Whether what is sent to a host is left alone.

    Raises:
        ProxyError: a rule refuses the destination.
    """
    settings = _current
    return settings is None or not decided(settings, host, port).proxies


def _host_and_port(sock: socket.socket, args: tuple[Any, ...]) -> tuple[str, int] | None:
    if len(args) != 1 or not isinstance(args[0], tuple) or len(args[0]) < 2:
        return None
    host, port = args[0][:2]
    if isinstance(host, (bytes, bytearray)):
        host = bytes(host).decode("ascii", "replace")
    number = _port_number(port)
    if not isinstance(host, str) or number is None:
        return None
    return host or _ANY[sock.family], number


def _port_number(port: Any) -> int | None:
    """What the kernel is told for a port; None for what is none."""
    if hasattr(port, "__index__"):
        return operator.index(port)
    # CPython 3.9 takes whatever int() takes for an integer, but for a float.
    if sys.version_info < (3, 10) and hasattr(port, "__int__") and not isinstance(port, float):
        return int(port)
    return None


@functools.lru_cache(maxsize=16)
def _proxies(proxies: tuple[Proxy, ...], demands: frozenset[str | None]) -> tuple[Proxy, ...]:
    """The proxies, each on the strictest of the terms that are demanded; None demands nothing."""

    def on_terms(proxy: Proxy) -> Proxy:
        terms = [proxy if demand is None else proxy.demanding(demand) for demand in demands]
        return max(terms, key=lambda one: one.strength)

    return tuple(map(on_terms, proxies))


def listening_proxies(host: str, port: int) -> Sequence[Proxy] | None:
    """The proxies to listen at, for a socket bound to an address; None for one that listens here."""
    settings = _current
    if settings is None or not settings.bind:
        return None
    decision = _listeners.decide(settings.rules, host, port)
    if decision.action == "refuse":
        raise refused_by_rule(f"{host}:{port}", decision.rule)
    return None if decision.action == "direct" else _proxies(settings.proxies, frozenset((decision.protection,)))


def real_address(sock: socket.socket, name: str | None, address: tuple[Any, ...]) -> tuple[Any, ...]:
    """Where a placeholder's name really is, for a connection that goes there directly after all."""
    found = _originals.getaddrinfo(name, address[1], sock.family, _type(sock))
    return found[0][4]
