"""What the server does for its clients, and how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gsssocks._protocol import Octets, ProtectionLevel

    from ._rules import Ruleset

__all__ = ["Terms"]


@dataclass(frozen=True)
class Terms:
    """What the server does for its clients, and how long; the arguments of `ProxyServer`."""

    keytab: str | None
    levels: Collection[ProtectionLevel]
    nec: bool
    counter_offer: bool
    confidential: Callable[[Octets], bool] | None
    authorize: Callable[[str], bool]
    rules: Ruleset
    negotiation_timeout: float
    connect_timeout: float
    bind_timeout: float
    hosts: Mapping[str, str]
