"""Which proxy, on what terms, and for which destinations. No sockets, no lookups."""

from __future__ import annotations

from .placeholders import IPV4_RANGE, IPV6_RANGE
from .proxy import PROTECTION_LEVELS, Proxy
from .rules import UNPROXIED_BY_DEFAULT, Bypass, Decision, Destinations, Rules
from .settings import Settings

__all__ = [
    "IPV4_RANGE",
    "IPV6_RANGE",
    "PROTECTION_LEVELS",
    "UNPROXIED_BY_DEFAULT",
    "Bypass",
    "Decision",
    "Destinations",
    "Proxy",
    "Rules",
    "Settings",
]
