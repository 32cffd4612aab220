"""Sockets through a SOCKS 5 proxy that asks for Kerberos (GSS-API, RFC 1961) and protects every octet.

    import gsssocks

    gsssocks.install("socks5h://proxy.example.com:1080")

From then on every TCP connection the program makes goes through the proxy, and every UDP datagram it sends. Importing
this package changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._config import Bypass, Proxy, Rules
from ._create_connection import create_connection
from ._datagram_socket import DatagramSocket as _DatagramSocket  # noqa: F401  # what a GSSSocket for UDP becomes
from ._socket import GSSSocket
from ._tunnel import TunnelInfo
from .exceptions import (
    AuthenticationError,
    ProtectionError,
    ProtocolError,
    ProxyConnectionError,
    ProxyError,
    ReplyError,
)

if TYPE_CHECKING:
    from ._patch import Status, install, installed, status, uninstall

__all__ = [
    "AuthenticationError",
    "Bypass",
    "GSSSocket",
    "ProtectionError",
    "ProtocolError",
    "Proxy",
    "ProxyConnectionError",
    "ProxyError",
    "ReplyError",
    "Rules",
    "Status",
    "TunnelInfo",
    "create_connection",
    "install",
    "installed",
    "status",
    "uninstall",
]

__version__ = "0.1.0"

_FROM_PATCH = ("Status", "install", "installed", "status", "uninstall")


def __getattr__(name: str) -> object:
    # Only a program that patches owes the price of wrapt, which imports asyncio.
    if name not in _FROM_PATCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import _patch

    globals().update({function: getattr(_patch, function) for function in _FROM_PATCH})
    return globals()[name]
