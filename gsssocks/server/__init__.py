"""The proxy's side: a SOCKS 5 server with GSS-API (RFC 1928, RFC 1961), to be embedded in tests and demonstrations.

    with ProxyServer(keytab="/etc/socks.keytab") as proxy:
        gsssocks.create_connection(("example.com", 80), proxy=proxy.url())

It serves CONNECT, BIND and UDP ASSOCIATE, as its rules allow. `gsssocks serve` makes a service of it.

One thread accepts, and each client has one of its own: it negotiates, connects to the target and then carries data
both ways, never waiting for one direction while the other could move. Every wait also looks at one pipe, by which
`stop` ends all of them at once.

What one side did is what the other side sees: the end of its data as the end of the data, a reset as a reset. A
connection cut short must not look complete.

The kernel is reached by the C type below `socket.socket` only, so the server goes on as ever in a process whose
sockets `gsssocks.install()` sends through it.
"""

from __future__ import annotations

from ._proxy import ProxyServer
from ._session import Session

__all__ = ["ProxyServer", "Session"]
