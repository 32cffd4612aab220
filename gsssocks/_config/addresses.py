"""Addresses, in every spelling that the C library takes for one."""

from __future__ import annotations

import functools
import ipaddress
import socket
from contextlib import suppress
from typing import Union

__all__ = ["IPAddress", "IPNetwork", "ip", "network"]

IPAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
IPNetwork = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
_MAPPED_BITS = 96
"""Of an IPv6 address that stands for an IPv4 one: how many come before that (RFC 4291, section 2.5.5.2)."""


@functools.lru_cache(maxsize=1024)
def ip(host: str) -> IPAddress | None:
    """The address that `host` is to connect(2) and getaddrinfo(3), also in old spellings (`127.1`, `0x7f.1`,
    `2130706433`); None for what they take for a name. A mapped IPv4 address is the IPv4 address."""
    address: IPAddress
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return _ipv4_in_old_spelling(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _ipv4_in_old_spelling(host: str) -> ipaddress.IPv4Address | None:
    # inet_aton() does not look behind a space; getaddrinfo() does.
    if host.split() == [host] and host.isascii():
        with suppress(OSError, ValueError):
            return ipaddress.IPv4Address(socket.inet_aton(host))
    return None


def network(block: str) -> IPNetwork:
    """A block of addresses in CIDR notation, with bits behind its prefix or without. One of mapped IPv4 addresses is
    that of the IPv4 addresses.

    Raises:
        ValueError: it is none, or is written as mapped addresses and is more than these.
    """
    found = ipaddress.ip_network(block, strict=False)
    if isinstance(found, ipaddress.IPv4Network):
        return found
    mapped = ipaddress.IPv6Address(block.partition("/")[0]).ipv4_mapped
    if mapped is None:
        return found
    if found.prefixlen < _MAPPED_BITS:
        raise ValueError(
            f"a prefix of {found.prefixlen} bits holds more than mapped IPv4 addresses; write the IPv4 block"
        )
    return ipaddress.ip_network((mapped, found.prefixlen - _MAPPED_BITS), strict=False)
