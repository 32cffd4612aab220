"""What `gsssocks check` says in words: of times, clocks and names."""

from __future__ import annotations

import socket

from . import _originals

__all__ = ["canonical_name", "clock", "duration"]

_TOLERATED = 300  # seconds that clocks may be apart, unless krb5.conf says otherwise (`clockskew`)


def duration(seconds: int | None) -> str:
    """A lifetime; None never ends."""
    if seconds is None:
        return "ever"
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"


def clock(offset: float) -> str:
    """In words, by how many seconds the KDC's clock was ahead of this machine's."""
    if abs(offset) <= 1:  # that much is found where the second turns between request and answer
        return "the same as the KDC's when the ticket was got"
    apart = f"{duration(round(abs(offset)))} {'behind' if offset > 0 else 'ahead of'} the KDC's when the ticket was got"
    return apart if abs(offset) <= _TOLERATED else f"{apart}: too far for a proxy that has the right time; set it"


def canonical_name(host: str) -> str:
    """What the resolver makes of the proxy's name: MIT Kerberos may ask for that instead, unless krb5.conf says no."""
    try:
        info = _originals.getaddrinfo(host, None, 0, socket.SOCK_STREAM, 0, socket.AI_CANONNAME)
        canonical = info[0][3] or host
        address = str(info[0][4][0])
    except OSError as error:
        return f"{host} does not resolve: {error}"
    try:
        pointer = _originals.gethostbyaddr(address)[0]
    except OSError:
        pointer = "no name"
    text = f"{host} is {canonical} is {address} is {pointer}"
    if canonical.lower() != host.lower():
        text += f"; an alias: where krb5.conf has dns_canonicalize_hostname, Kerberos asks for {canonical}"
    if pointer.lower() != canonical.lower():
        text += f"; PTR mismatch: where krb5.conf has rdns, Kerberos asks for {pointer}"
    agreeing = canonical.lower() == host.lower() == pointer.lower()
    return text if agreeing else f"{text}; if the KDC knows another, give target_name="
