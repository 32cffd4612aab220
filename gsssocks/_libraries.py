"""Modules that the patch of `socket.socket` does not cover by itself, and who sees to them.

They pass by a subclass of it, by unbound calls or the bare descriptor, or connect by other means.
"""

from __future__ import annotations

__all__ = ["LIBRARIES", "LIBRARIES_THAT_RESOLVE", "PROXIES_OF_THE_ENVIRONMENT", "STANDARD_LIBRARY"]

LIBRARIES = {
    "OpenSSL.SSL": "gsssocks.adapters.pyopenssl",
    "_socket": "gsssocks.adapters.ancillary",
    "curio.io": "gsssocks.adapters.curio",
    "eventlet.green.socket": "gsssocks.adapters.eventlet",
    "eventlet.green.ssl": "gsssocks.adapters.eventlet",
    "gevent._socket3": "gsssocks.adapters.gevent",
    "trio._socket": "gsssocks.adapters.trio",
    "uvloop": "gsssocks.adapters.uvloop",
}
"""Those of other makers, and `sendmsg`: covered while something is installed, and while there are tunnels."""
PROXIES_OF_THE_ENVIRONMENT = {"urllib.request": "gsssocks.adapters.urllib"}
"""What tells programs of the proxies that the environment names: covered likewise. It imports `socket`."""
STANDARD_LIBRARY = {
    "multiprocessing.reduction": "gsssocks.adapters.multiprocessing",
    "os": "gsssocks.adapters.os",
    "socket": "gsssocks.adapters.socket",
    "ssl": "gsssocks.adapters.ssl",
    "subprocess": "gsssocks.adapters.subprocess",
}
"""Python's own: left alone until there is a tunnel."""
LIBRARIES_THAT_RESOLVE = ("eventlet.green.socket", "gevent._socket3")
"""Those that have lookups of their own, and put them into `socket` when they patch it."""
