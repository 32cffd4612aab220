"""Sockets through a SOCKS 5 proxy that asks for Kerberos (GSS-API, RFC 1961) and protects every octet.

    import gsssocks

    gsssocks.install("socks5h://proxy.example.com:1080")

From then on every TCP connection the program makes goes through the proxy, and every UDP datagram it sends. Importing
this package changes nothing, and loads nothing before it is used.
"""

from __future__ import annotations

# Not from `typing`, whose import takes as long as the rest of a small program's start; type checkers know the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from . import exceptions
    from ._config import Bypass, Proxy, Rules
    from ._create_connection import create_connection
    from ._patch import Status, install, installed, status, uninstall
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
    "exceptions",
    "install",
    "installed",
    "status",
    "uninstall",
]

__version__ = "0.1.0"

_ROOMS = {
    "AuthenticationError": "exceptions",
    "Bypass": "_config",
    "GSSSocket": "_datagram_socket",  # which has what one for UDP becomes
    "ProtectionError": "exceptions",
    "ProtocolError": "exceptions",
    "Proxy": "_config",
    "ProxyConnectionError": "exceptions",
    "ProxyError": "exceptions",
    "ReplyError": "exceptions",
    "Rules": "_config",
    "Status": "_patch",
    "TunnelInfo": "_tunnel",
    "create_connection": "_create_connection",
    "install": "_patch",
    "installed": "_patch",
    "status": "_patch",
    "uninstall": "_patch",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    room = import_module(f".{_ROOMS.get(name, name)}", __name__)
    found = room if name == "exceptions" else getattr(room, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
