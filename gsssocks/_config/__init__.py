"""Which proxy, on what terms, and for which destinations. No sockets, no lookups."""

from __future__ import annotations

from .placeholders import IPV4_RANGE, IPV6_RANGE
from .proxy import PROTECTION_LEVELS, Proxy
from .rules import NAMELESS, UNPROXIED_BY_DEFAULT, Bypass, Decision, Destinations, Naming, Rules
from .settings import ProxyChoice, Settings, chosen_proxies

__all__ = [
    "IPV4_RANGE",
    "IPV6_RANGE",
    "NAMELESS",
    "PROTECTION_LEVELS",
    "UNPROXIED_BY_DEFAULT",
    "Bypass",
    "Decision",
    "Destinations",
    "Naming",
    "Proxy",
    "ProxyChoice",
    "Rules",
    "Settings",
    "chosen_proxies",
]
