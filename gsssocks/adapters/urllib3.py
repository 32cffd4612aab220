"""urllib3 through the proxy, with nothing installed: a `PoolManager` that makes tunnelled connections.

    from gsssocks.adapters.urllib3 import GSSSocksPoolManager

    http = GSSSocksPoolManager("socks5h://proxy.example.com:1080")
    http.request("GET", "https://example.org/")

It rides on what urllib3's own SOCKS support rides on: pool classes by scheme, and a connection class that makes its
socket itself.
"""

from __future__ import annotations

import socket
import ssl
import sys
from typing import TYPE_CHECKING, Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.exceptions import ProxyError as Urllib3ProxyError
from urllib3.poolmanager import PoolManager
from urllib3.util.ssl_ import create_urllib3_context, resolve_cert_reqs, resolve_ssl_version

from gsssocks._config import chosen_proxies
from gsssocks._create_connection import create_connection
from gsssocks._switching import use_raw
from gsssocks._tls import carry
from gsssocks.exceptions import ProxyError, ReplyError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gsssocks._config import Proxy, ProxyChoice
    from gsssocks._socket import GSSSocket

__all__ = ["GSSSocksPoolManager"]


class GSSSocksPoolManager(PoolManager):
    """A `urllib3.PoolManager` all of whose connections go through a SOCKS 5 proxy with GSS-API.

    `HTTP_PROXY`, `NO_PROXY` and the like are not looked at, nor is an `install()` in force.

    Args:
        proxy: as for `install()`: a `Proxy`, a URL, several of these, or None for what the environment names
            (`GSSSOCKS_PROXY`, else `ALL_PROXY`), or the file `GSSSOCKS_CONFIG`.
        num_pools, headers, connection_pool_kw: as for `urllib3.PoolManager`.

    Raises:
        ValueError, TypeError: the proxy is wrong, or none is named.

    Its requests raise `urllib3.exceptions.ConnectTimeoutError` when proxy or target take too long, `NewConnectionError`
    when the target cannot be reached, `ProxyError` for all else that the proxy, or the way to it, is the cause of;
    `__cause__` is the error that a `GSSSocket` raises.
    """

    def __init__(
        self,
        proxy: ProxyChoice = None,
        num_pools: int = 10,
        headers: Mapping[str, str] | None = None,
        **connection_pool_kw: Any,
    ) -> None:
        self.socks_proxies = chosen_proxies(proxy)
        super().__init__(num_pools, headers, **connection_pool_kw)
        self.pool_classes_by_scheme = {"http": GSSSocksHTTPConnectionPool, "https": GSSSocksHTTPSConnectionPool}

    def _new_pool(
        self, scheme: str, host: str, port: int, request_context: dict[str, Any] | None = None
    ) -> HTTPConnectionPool:
        # Not among `connection_pool_kw`, from which urllib3 makes the pool's key: it takes none but its own names
        # there.
        context = self.connection_pool_kw if request_context is None else request_context
        return super()._new_pool(scheme, host, port, {**context, "socks_proxies": self.socks_proxies})


class GSSSocksHTTPConnection(HTTPConnection):
    def __init__(self, *args: Any, socks_proxies: Sequence[Proxy], **kwargs: Any) -> None:
        self._socks_proxies = socks_proxies
        super().__init__(*args, **kwargs)

    def _new_conn(self) -> GSSSocket:
        try:
            sock = create_connection(
                (self.host, self.port),
                _seconds(self.timeout),
                self.source_address,
                socket_options=self.socket_options or (),
                proxy=self._socks_proxies,
            )
        except (TimeoutError, socket.timeout) as error:
            raise ConnectTimeoutError(
                self, f"Connection to {self.host} timed out. (connect timeout={self.timeout}): {error}"
            ) from error
        except OSError as error:
            raise _failure(self, error) from error
        sys.audit("http.client.connect", self, self.host, self.port)
        return sock


class GSSSocksHTTPSConnection(GSSSocksHTTPConnection, HTTPSConnection):
    def _new_conn(self) -> GSSSocket:
        if self.ssl_context is None:
            self.ssl_context = self._default_context()
        sock = super()._new_conn()
        _prepare_for_tls(sock, self.ssl_context)
        return sock

    def _default_context(self) -> ssl.SSLContext:
        """The context that urllib3 would make, after asking for a socket."""
        context = create_urllib3_context(
            ssl_version=resolve_ssl_version(self.ssl_version), cert_reqs=resolve_cert_reqs(self.cert_reqs)
        )
        for bound in ("minimum_version", "maximum_version"):
            version = getattr(self, f"ssl_{bound}", None)  # urllib3 1.26 has neither
            if version is not None:
                setattr(context, bound, version)
        if not (self.ca_certs or self.ca_cert_dir or self.ca_cert_data) and hasattr(context, "load_default_certs"):
            context.load_default_certs()
        return context


class GSSSocksHTTPConnectionPool(HTTPConnectionPool):
    ConnectionCls = GSSSocksHTTPConnection


class GSSSocksHTTPSConnectionPool(HTTPSConnectionPool):
    ConnectionCls = GSSSocksHTTPSConnection


def _seconds(timeout: object) -> float | None:
    """A connection's timeout, for which urllib3 1.26 has an object that stands for the default."""
    return timeout if timeout is None or isinstance(timeout, (int, float)) else socket.getdefaulttimeout()


def _failure(connection: HTTPConnection, error: OSError) -> NewConnectionError | Urllib3ProxyError:
    failed = NewConnectionError(connection, f"Failed to establish a new connection: {error}")
    if not isinstance(error, ProxyError) or isinstance(error, ReplyError):
        return failed
    return Urllib3ProxyError("Unable to connect to proxy", failed)


def _prepare_for_tls(sock: GSSSocket, context: object) -> None:
    if isinstance(context, ssl.SSLContext):
        carry(context)
    else:
        use_raw(sock)  # pyOpenSSL's, by `urllib3.contrib.pyopenssl`: it reads and writes the descriptor
