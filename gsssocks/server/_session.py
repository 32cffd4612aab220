"""What is written down of a client's connection."""

from __future__ import annotations

import threading
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
        destination: what the client asked to be connected to.
        reply: the REP field of our answer (RFC 1928, section 6); 0 is success.
        round_trips: how often the client spoke, and waited for us, up to that answer.
        setup_seconds: from accepting the connection to that answer.
        octets_received, octets_sent: user data from and to the client.
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
    destination: Address | None = None
    reply: int | None = None
    round_trips: int = 0
    setup_seconds: float | None = None
    octets_received: int = 0
    octets_sent: int = 0
    tokens_received: int = 0
    tokens_sent: int = 0
    wire_received: int = 0
    wire_sent: int = 0
    error: Exception | None = None
    ended: threading.Event = field(default_factory=threading.Event, repr=False)
