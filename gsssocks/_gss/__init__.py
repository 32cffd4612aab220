"""Security contexts and credentials over python-gssapi: the only room that knows it."""

from __future__ import annotations

from ._clock import kdc_clock_offset
from ._context import Acceptor, Initiator, ticket_flags
from ._credential import Credential, Source, check_keytab, credential

__all__ = [
    "Acceptor",
    "Credential",
    "Initiator",
    "Source",
    "check_keytab",
    "credential",
    "kdc_clock_offset",
    "ticket_flags",
]
