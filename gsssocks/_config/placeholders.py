"""The ranges that placeholder addresses for names come from."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, NamedTuple, Union

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["IPV4_RANGE", "IPV6_RANGE", "PlaceholderRanges"]

IPV4_RANGE = "198.18.0.0/15"
"""Set aside for measuring network devices (RFC 2544, RFC 6890): no host on the Internet has such an address."""
IPV6_RANGE = "100::/64"
"""Discard-only (RFC 6666): whatever is sent there outside a tunnel, by mistake, reaches nobody."""
_SMALLEST = 4  # addresses: the first and the last one of a network are nobody's

_Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]


class PlaceholderRanges(NamedTuple):
    """One range for each family, in CIDR notation."""

    ipv4: str = IPV4_RANGE
    ipv6: str = IPV6_RANGE

    @classmethod
    def parsed(cls, placeholders: str | Iterable[str]) -> PlaceholderRanges:
        """The ranges in a comma-separated string or an iterable; the default one for a family that has none there.

        Raises:
            ValueError, TypeError: one is no range, or none to take placeholders from; the message quotes it.
        """
        listed = placeholders.split(",") if isinstance(placeholders, str) else list(placeholders)
        found: dict[int, str] = {}
        for text in listed:
            network = _network(text)
            if network.version in found:
                raise ValueError(f"bad placeholders: {text!r} is the second range for IPv{network.version}")
            found[network.version] = str(network)
        return cls(found.get(4, IPV4_RANGE), found.get(6, IPV6_RANGE))


def _network(text: str) -> _Network:
    if not isinstance(text, str):
        raise TypeError(f"a range of placeholders is a string, not {text!r}")
    try:
        network = ipaddress.ip_network(text.strip())
    except ValueError as error:
        raise ValueError(f"bad placeholders {text!r}: {error}; give a CIDR block, such as {IPV4_RANGE}") from error
    if network.num_addresses < _SMALLEST:
        raise ValueError(f"bad placeholders {text!r}: a range needs {_SMALLEST} addresses or more")
    return network
