"""Who speaks next, from the greeting to the granted request (RFC 1928 sections 3 to 6, RFC 1961 sections 3 and 4),
both roles.

A negotiation does no I/O. Its driver sends what `start` returns; then it shows `receive` the octets that have
arrived, takes as many off the connection as `receive` says it has taken, and sends what it asks to be sent, until
`complete`. No octet behind the last message is ever taken, so user data that follows it stays where it is; user data
that shares a *token* with the reply waits in `records.plaintext`.

The inside is a generator that reads like the conversation itself: it says what it has to say, and yields where it
must listen. `start` and `receive` may block where the security context does (see `_security`); nothing else blocks.

    client                             proxy
    greeting, context token  ──────▶
                             ◀──────  method, context token
    level, request           ──────▶
                             ◀──────  level, reply

That is the pipelined form: what depends on no answer goes out ahead. Otherwise each message waits for the one before.
"""

from __future__ import annotations

from ._client import ClientNegotiation
from ._conversation import NO_ADDRESS, Negotiation, Step
from ._server import ServerNegotiation

__all__ = ["NO_ADDRESS", "ClientNegotiation", "Negotiation", "ServerNegotiation", "Step"]
