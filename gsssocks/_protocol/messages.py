"""The messages of RFC 1928, RFC 1929 and RFC 1961, one class each: fields, octets out, octets in.

Every class has two functions for receiving. `length(prefix)` says how many octets the message has, as far as the
octets in `prefix` tell: while that exceeds `len(prefix)`, more must be read, and never more than that.
`decode(octets)` takes exactly one whole message. `length` checks each fixed octet as soon as it is there, so that a
peer who speaks another protocol is known by its first octet and not after a wait for octets that never come.
"""

from __future__ import annotations

import errno
import ipaddress
from dataclasses import dataclass, field
from typing import Union

from gsssocks.exceptions import ProtocolError

from .constants import (
    GSS_VERSION,
    MAX_TOKEN,
    SOCKS_VERSION,
    USERPASS_VERSION,
    AddressType,
    MessageType,
)

__all__ = [
    "Address",
    "Greeting",
    "MethodSelection",
    "Octets",
    "Reply",
    "Request",
    "TokenMessage",
    "UserPassword",
    "UserPasswordStatus",
    "message_header",
]

Octets = Union[bytes, bytearray, memoryview]

_IN_NO_NAME = frozenset((*range(0x21), 0x7F, *rb"[\]"))
"""Octets that no host name has. To a resolver, a backslash makes another character of what follows (RFC 1035, section
5.1): the name would not be the one that rules have judged. The others would fool whoever reads a log."""
_HEADER = 4  # ver, mtyp, len (RFC 1961), and VER, CMD/REP, RSV, ATYP (RFC 1928): both four octets


def _expect(octets: Octets, index: int, wanted: int, what: str) -> None:
    if len(octets) > index and octets[index] != wanted:
        raise ProtocolError(
            errno.EPROTO,
            f"the peer does not speak SOCKS 5 with GSS-API: {what} is {octets[index]:#04x}, not {wanted:#04x}; "
            "check the proxy's host and port",
        )


@dataclass(frozen=True)
class Greeting:
    """VER, NMETHODS, METHODS: the client's first message (RFC 1928, section 3)."""

    methods: bytes

    def encode(self) -> bytes:
        return bytes([SOCKS_VERSION, len(self.methods)]) + self.methods

    @staticmethod
    def length(prefix: Octets) -> int:
        _expect(prefix, 0, SOCKS_VERSION, "the version of the greeting")
        return 2 + prefix[1] if len(prefix) >= 2 else 2

    @classmethod
    def decode(cls, octets: Octets) -> Greeting:
        return cls(bytes(octets[2:]))


@dataclass(frozen=True)
class MethodSelection:
    """VER, METHOD: the server's choice (RFC 1928, section 3). `method` may be a number that no registry knows."""

    method: int

    def encode(self) -> bytes:
        return bytes([SOCKS_VERSION, self.method])

    @staticmethod
    def length(prefix: Octets) -> int:
        _expect(prefix, 0, SOCKS_VERSION, "the version of the method selection")
        return 2

    @classmethod
    def decode(cls, octets: Octets) -> MethodSelection:
        return cls(octets[1])


@dataclass(frozen=True)
class UserPassword:
    """VER, ULEN, UNAME, PLEN, PASSWD (RFC 1929, section 2); name and password have 1 to 255 octets each."""

    username: bytes
    password: bytes = field(repr=False)

    def encode(self) -> bytes:
        for what, value in (("user name", self.username), ("password", self.password)):
            if not 1 <= len(value) <= 255:
                raise ValueError(f"a SOCKS 5 {what} has 1 to 255 octets, not {len(value)} (RFC 1929, section 2)")
        name, password = self.username, self.password
        return bytes([USERPASS_VERSION, len(name)]) + name + bytes([len(password)]) + password

    @staticmethod
    def length(prefix: Octets) -> int:
        _expect(prefix, 0, USERPASS_VERSION, "the version of the user name message")
        if len(prefix) < 2:
            return 2
        password_length = 2 + prefix[1]
        if len(prefix) <= password_length:
            return password_length + 1
        return password_length + 1 + prefix[password_length]

    @classmethod
    def decode(cls, octets: Octets) -> UserPassword:
        end = 2 + octets[1]
        return cls(bytes(octets[2:end]), bytes(octets[end + 1 :]))


@dataclass(frozen=True)
class UserPasswordStatus:
    """VER, STATUS: 0 is success, anything else failure (RFC 1929, section 2)."""

    status: int

    def encode(self) -> bytes:
        return bytes([USERPASS_VERSION, self.status])

    @staticmethod
    def length(prefix: Octets) -> int:
        _expect(prefix, 0, USERPASS_VERSION, "the version of the password status")
        return 2

    @classmethod
    def decode(cls, octets: Octets) -> UserPasswordStatus:
        return cls(octets[1])


@dataclass(frozen=True)
class Address:
    """ATYP, ADDR, PORT (RFC 1928, section 5).

    Attributes:
        host: an IPv4 or IPv6 address in text form, or a name of up to 255 octets (IDNA for what is not ASCII).
        port: 0 to 65,535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def encode(self) -> bytes:
        return self._encoded_host() + self.port.to_bytes(2, "big")

    def _encoded_host(self) -> bytes:
        try:
            ip = ipaddress.ip_address(self.host)
        except ValueError:
            name = self._encoded_name()
            return bytes([AddressType.NAME, len(name)]) + name
        if getattr(ip, "scope_id", None):
            raise ValueError(f"{self.host} has a zone, which means nothing to a proxy: SOCKS 5 cannot carry it")
        return bytes([AddressType.IPV4 if ip.version == 4 else AddressType.IPV6]) + ip.packed

    def _encoded_name(self) -> bytes:
        name = self.host.encode("ascii") if self.host.isascii() else self.host.encode("idna")
        if not 1 <= len(name) <= 255:
            raise ValueError(f"a host name has 1 to 255 octets in SOCKS 5, not {len(name)}")
        if not _IN_NO_NAME.isdisjoint(name):
            raise ValueError(f"a host name has no control characters, spaces, brackets and backslashes: {self.host!r}")
        return name

    @staticmethod
    def length(prefix: Octets) -> int:
        """As for a message; `prefix` starts at ATYP."""
        if not prefix:
            return 1
        if prefix[0] == AddressType.IPV4:
            return 1 + 4 + 2
        if prefix[0] == AddressType.IPV6:
            return 1 + 16 + 2
        if prefix[0] != AddressType.NAME:
            raise ProtocolError(errno.EAFNOSUPPORT, f"the peer sent an address of unknown type {prefix[0]:#04x}")
        return 1 + 1 + prefix[1] + 2 if len(prefix) > 1 else 2

    @classmethod
    def decode(cls, octets: Octets) -> Address:
        atyp, data, port = octets[0], bytes(octets[1:-2]), int.from_bytes(octets[-2:], "big")
        if atyp != AddressType.NAME:
            return cls(str(ipaddress.ip_address(data)), port)
        name = data[1:]
        if not name.isascii() or not _IN_NO_NAME.isdisjoint(name):
            raise ProtocolError(errno.EPROTO, f"the peer sent a host name with characters that none has: {name!r}")
        return cls(name.decode("ascii"), port)


@dataclass(frozen=True)
class Request:
    """VER, CMD, RSV, ATYP, DST.ADDR, DST.PORT (RFC 1928, section 4)."""

    command: int
    address: Address

    def encode(self) -> bytes:
        return bytes([SOCKS_VERSION, self.command, 0]) + self.address.encode()

    @staticmethod
    def length(prefix: Octets) -> int:
        _expect(prefix, 0, SOCKS_VERSION, "the version of the request")
        return 3 + Address.length(prefix[3:])

    @classmethod
    def decode(cls, octets: Octets) -> Request:
        return cls(octets[1], Address.decode(octets[3:]))


@dataclass(frozen=True)
class Reply:
    """VER, REP, RSV, ATYP, BND.ADDR, BND.PORT (RFC 1928, section 6); `code` 0 is success."""

    code: int
    address: Address

    def encode(self) -> bytes:
        return bytes([SOCKS_VERSION, self.code, 0]) + self.address.encode()

    @staticmethod
    def length(prefix: Octets) -> int:
        _expect(prefix, 0, SOCKS_VERSION, "the version of the reply")
        # Some servers end a refusal after REP. Nothing behind it is of use then, so it is not waited for.
        if len(prefix) >= 2 and prefix[1] != 0:
            return len(prefix)
        return 3 + Address.length(prefix[3:])

    @classmethod
    def decode(cls, octets: Octets) -> Reply:
        if octets[1] != 0:
            return cls(octets[1], Address("0.0.0.0", 0))  # the RFC's "no address", nothing is bound
        return cls(0, Address.decode(octets[3:]))


def message_header(mtyp: int, token_length: int) -> bytes:
    """ver, mtyp, len (RFC 1961, section 3.4)."""
    return bytes([GSS_VERSION, mtyp, token_length >> 8, token_length & 0xFF])


@dataclass(frozen=True)
class TokenMessage:
    """ver, mtyp, len, token (RFC 1961, sections 3.4, 4.2 and 5); a refusal (section 3.8) is ver and mtyp alone."""

    mtyp: int
    token: bytes = b""

    def encode(self) -> bytes:
        if self.mtyp == MessageType.REFUSAL:
            return bytes([GSS_VERSION, MessageType.REFUSAL])
        if len(self.token) > MAX_TOKEN:
            raise ValueError(f"a token of {len(self.token)} octets does not fit a message: {MAX_TOKEN} at most")
        return message_header(self.mtyp, len(self.token)) + self.token

    @staticmethod
    def length(prefix: Octets) -> int:
        if not prefix or prefix[0] != GSS_VERSION:
            _expect(prefix, 0, GSS_VERSION, "the version of the GSS-API message")
        if len(prefix) < 2 or prefix[1] == MessageType.REFUSAL:
            return 2
        if len(prefix) < _HEADER:
            return _HEADER
        return _HEADER + (prefix[2] << 8 | prefix[3])

    @classmethod
    def decode(cls, octets: Octets) -> TokenMessage:
        # By way of a view, so that a long token is copied once.
        return cls(octets[1], bytes(memoryview(octets)[_HEADER:]))
