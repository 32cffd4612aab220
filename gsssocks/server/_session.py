"""What is written down of a client's connection."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gsssocks._protocol import Address

__all__ = ["Session"]


@dataclass(eq=False)
class Session:
    """One client's connection, as far as it has come. The figures grow as long as it lasts.

    Attributes:
        client: address and port it came from.
        principal: who the client is; None before the security context stands.
        service: whom the client asked for, the proxy's own principal.
        mechanism: "krb5" and so on, or an OID.
        protection: the level agreed on: "integrity", "confidentiality", "selective" (RFC 1961, section 4.1).
        command: "connect", "bind" or "udp", or the number of another.
        destination: what the client asked to be connected to; for a BIND whom it expects, for a UDP association where
            it says it sends from.
        bound: what our first answer names: for a BIND where its peer may connect to, for a UDP association where the
            client's datagrams go.
        reply: the REP field of our last answer (RFC 1928, section 6); 0 is success.
        round_trips: how often the client spoke, and waited for us, up to that answer.
        setup_seconds: from accepting the connection to that answer.
        octets_received, octets_sent: user data from and to the client.
        datagrams_received, datagrams_sent: those among them that a UDP association has passed on.
        dropped: datagrams that were not passed on, by reason: "replayed" (or too old to tell), "forged" (or damaged),
            "not encrypted", "malformed", "fragment", "stranger" (not from the client's address), "not allowed" (by the
            rules), "unknown name", "unreachable", "too large".
        tokens_received, tokens_sent: messages in which it travelled, SOCKS request and reply among them.
        wire_received, wire_sent: octets of the connection itself, the negotiation included.
        error: why the session ended otherwise than by the end of both sides' data.
        ended: set when nothing of the session is left, and its observer has been told.
    """

    client: Address
    principal: str | None = None
    service: str | None = None
    mechanism: str | None = None
    protection: str | None = None
    command: str | None = None
    destination: Address | None = None
    bound: Address | None = None
    reply: int | None = None
    round_trips: int = 0
    setup_seconds: float | None = None
    octets_received: int = 0
    octets_sent: int = 0
    datagrams_received: int = 0
    datagrams_sent: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens_received: int = 0
    tokens_sent: int = 0
    wire_received: int = 0
    wire_sent: int = 0
    error: Exception | None = None
    ended: threading.Event = field(default_factory=threading.Event, repr=False)
