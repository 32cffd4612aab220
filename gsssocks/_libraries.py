"""Libraries whose sockets the patch of `socket.socket` does not cover by itself."""

from __future__ import annotations

__all__ = ["LIBRARIES", "LIBRARIES_THAT_RESOLVE"]

LIBRARIES = {
    "OpenSSL.SSL": "gsssocks.adapters.pyopenssl",
    "eventlet.green.socket": "gsssocks.adapters.eventlet",
    "eventlet.green.ssl": "gsssocks.adapters.eventlet",
    "gevent._socket3": "gsssocks.adapters.gevent",
    "trio._socket": "gsssocks.adapters.trio",
    "uvloop": "gsssocks.adapters.uvloop",
}
"""Modules that pass by a subclass of `socket.socket`, by unbound calls or the bare descriptor, and who sees to them."""
LIBRARIES_THAT_RESOLVE = ("eventlet.green.socket", "gevent._socket3")
"""Those of them that have lookups of their own, and put them into `socket` when they patch it."""
