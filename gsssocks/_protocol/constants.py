"""Registries and limits of RFC 1928, RFC 1929 and RFC 1961."""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "GSS_VERSION",
    "MAX_TOKEN",
    "SOCKS_VERSION",
    "USERPASS_VERSION",
    "AddressType",
    "Command",
    "MessageType",
    "Method",
    "ProtectionLevel",
]

SOCKS_VERSION = 5
"""VER of every RFC 1928 message."""
GSS_VERSION = 1
"""`ver` of every RFC 1961 message."""
USERPASS_VERSION = 1
"""VER of the RFC 1929 sub-negotiation."""
MAX_TOKEN = 0xFFFF
"""Octets in the longest token: `len` has sixteen bits (RFC 1961, section 3.4)."""


class Method(IntEnum):
    """Authentication methods (RFC 1928, section 3)."""

    NONE = 0x00
    GSSAPI = 0x01
    USERPASS = 0x02
    NO_ACCEPTABLE = 0xFF


class Command(IntEnum):
    """CMD of a request (RFC 1928, section 4)."""

    CONNECT = 1
    BIND = 2
    UDP_ASSOCIATE = 3


class AddressType(IntEnum):
    """ATYP (RFC 1928, section 5)."""

    IPV4 = 1
    NAME = 3
    IPV6 = 4


class MessageType(IntEnum):
    """`mtyp` (RFC 1961, sections 3.4, 3.8, 4.2 and 5)."""

    CONTEXT = 0x01
    LEVEL = 0x02
    ENCAPSULATED = 0x03
    REFUSAL = 0xFF


class ProtectionLevel(IntEnum):
    """What protects the messages of a connection (RFC 1961, section 4.1).

    `NONE` is not in the RFC: it is what NEC's reference code and Dante's "clear" mean by zero.
    """

    NONE = 0
    INTEGRITY = 1
    CONFIDENTIALITY = 2
    SELECTIVE = 3

    def satisfies(self, wanted: ProtectionLevel) -> bool:
        """Whether a connection at this level gives at least what `wanted` promises for every message.

        Selective protection guarantees integrity alone: the peer chooses, message by message, whether to hide the
            content.
        """
        return _STRENGTH[self] >= _STRENGTH[wanted]


_STRENGTH = {
    ProtectionLevel.NONE: 0,
    ProtectionLevel.INTEGRITY: 1,
    ProtectionLevel.SELECTIVE: 2,
    ProtectionLevel.CONFIDENTIALITY: 3,
}
