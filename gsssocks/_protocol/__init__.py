"""The octets of SOCKS 5 (RFC 1928, RFC 1929) and of its GSS-API method (RFC 1961), for client and server. No I/O."""

from __future__ import annotations

from .constants import MAX_TOKEN, Command, MessageType, Method, ProtectionLevel
from .datagram import Datagram
from .framing import Receivable, ReceiveBuffer
from .messages import (
    Address,
    Greeting,
    MethodSelection,
    Octets,
    Reply,
    Request,
    TokenMessage,
    UserPassword,
    UserPasswordStatus,
    message_header,
)

__all__ = [
    "MAX_TOKEN",
    "Address",
    "Command",
    "Datagram",
    "Greeting",
    "MessageType",
    "Method",
    "MethodSelection",
    "Octets",
    "ProtectionLevel",
    "Receivable",
    "ReceiveBuffer",
    "Reply",
    "Request",
    "TokenMessage",
    "UserPassword",
    "UserPasswordStatus",
    "message_header",
]
