"""`install(bind=True)`: which listening sockets listen at a proxy.

A program listens for many reasons, and not all of them concern the outside. What a socket has been bound to decides:

- a loopback address: it listens here, since it is this machine that shall be able to connect;
- another address of this machine: the rules are asked of that address and port, as of a destination;
- the unspecified address, or none: it listens at the proxy, unless a rule, or an entry of the `no_proxy` that was
  given, has that address (`0.0.0.0:8000=direct`). What is reached directly where no `no_proxy` is given does not
  count: there the unspecified address means loopback, as to connect(2).

A socket that is not of TCP listens as ever. So do the sockets of libraries that have their own (gevent, uvloop).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from . import _arguments
from ._bind import UNSPECIFIED, asked_address, remember_address
from ._config import Bypass, Decision
from ._socket import GSSSocket
from ._switching import may_listen, open_listener

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from ._config import Proxy, Rules

__all__ = ["decide", "wrappers"]

_Wrapper = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any]], Any]
_LOOPBACK = Bypass()


def decide(rules: Rules, host: str, port: int) -> Decision:
    """What becomes of a socket that is bound to `host` (an address) and `port` (0 for any) when it is to listen."""
    if host not in UNSPECIFIED and _LOOPBACK.covers(host, port):
        return Decision("direct", None, "loopback")
    decision = rules.decide(host, port)
    by_default = decision.rule == "no_proxy" and not rules.bypass.given
    return Decision("proxy") if host in UNSPECIFIED and by_default else decision


def wrappers(proxies_for: Callable[[str, int], Sequence[Proxy] | None]) -> dict[str, _Wrapper]:
    """What to wrap the methods of `socket.socket` with, by name.

    Args:
        proxies_for: the proxies to listen at for a socket that is bound to this address and port; None for here. It may
            raise an OSError.
    """

    def bind(
        wrapped: Callable[..., None], instance: socket.socket | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        wrapped(*args, **kwargs)
        if instance is not None:
            remember_address(instance, *args)

    def listen(
        wrapped: Callable[..., None], instance: socket.socket | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # What is a GSSSocket has decided already.
        if kwargs or instance is None or isinstance(instance, GSSSocket) or not may_listen(instance):
            return wrapped(*args, **kwargs)
        _arguments.check(instance.family, "listen", *args)
        proxies = proxies_for(*asked_address(instance))
        if proxies is None:
            return wrapped(*args)
        open_listener(instance, proxies)

    return {"bind": bind, "listen": listen}
