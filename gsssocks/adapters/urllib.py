"""`urllib.request.getproxies()` tells requests, httpx, websockets and others of the proxies that the environment names,
to which they then speak themselves.

A SOCKS proxy that everything goes through already must not be among them: they know no GSS-API, so they would fail at
it, or, where it lets them in without, send in the clear. It is left out of the answer; the environment stays as it is,
for other programs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable
from urllib.parse import urlsplit

from gsssocks._config import Proxy
from gsssocks._guards import wrap
from gsssocks._routing import current

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["cover"]


def cover(request: ModuleType) -> None:
    """Covers `urllib.request`."""
    for name in ("getproxies", "getproxies_environment"):
        wrap(request, name, _getproxies)


def _getproxies(
    wrapped: Callable[..., dict[str, str]], _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, str]:
    proxies = wrapped(*args, **kwargs)
    settings = current()
    if settings is None:
        return proxies
    in_force = {(proxy.host.lower(), proxy.port) for proxy in settings.proxies}
    return {
        scheme: urls
        for scheme, urls in proxies.items()
        if not any(_is_one_of(in_force, url) for url in urls.split(","))
    }


def _is_one_of(places: set[tuple[str, int]], url: str) -> bool:
    """Whether a URL names a SOCKS proxy at one of these hosts and ports."""
    try:
        parts = urlsplit(url)
        place = (parts.hostname, parts.port or Proxy.port)
    except ValueError:
        return False
    return parts.scheme.startswith("socks") and place in places
