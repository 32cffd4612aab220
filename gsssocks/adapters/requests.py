"""requests through the proxy, with nothing installed: an adapter for a session.

import requests
from gsssocks.adapters.requests import GSSSocksAdapter

session = requests.Session()
for scheme in ("http://", "https://"):
    session.mount(scheme, GSSSocksAdapter("socks5h://proxy.example.com:1080"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn
from urllib.request import getproxies

from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidProxyURL
from requests.utils import select_proxy

from gsssocks._config import chosen_proxies

from .urllib3 import GSSSocksPoolManager

if TYPE_CHECKING:
    from collections.abc import Mapping

    from requests import PreparedRequest, Response

    from gsssocks._config import ProxyChoice

__all__ = ["GSSSocksAdapter"]


class GSSSocksAdapter(HTTPAdapter):
    """What it is mounted for goes through a SOCKS 5 proxy with GSS-API; other sessions, and all else, do not.

    Mount it for `http://` and `https://`: a redirect from one to the other goes by what is mounted there. What is to be
    reached directly gets an adapter of its own, `session.mount("http://localhost", HTTPAdapter())`.

    `HTTP_PROXY`, `NO_PROXY` and the like do not apply to it. A request that asks for another proxy, by `proxies=` or by
    the session's, is refused (`InvalidProxyURL`): the adapter makes no connection but through its own.

    Args:
        proxy: as for `install()`: a `Proxy`, a URL, several of these, or None for what the environment names
            (`GSSSOCKS_PROXY`, else `ALL_PROXY`), or the file `GSSSOCKS_CONFIG`.
        options: those of `requests.adapters.HTTPAdapter`: `pool_connections`, `pool_maxsize`, `max_retries`,
            `pool_block`.

    Raises:
        ValueError, TypeError: the proxy is wrong, or none is named.

    Requests raise `requests.ConnectTimeout` when proxy or target take too long to connect, `requests.ConnectionError`
    when the target cannot be reached, and its subclass `ProxyError` for all else that the proxy, or the way to it, is
    the cause of; the error that a `GSSSocket` raises is in the chain of their causes.
    """

    __attrs__ = [*HTTPAdapter.__attrs__, "socks_proxies"]  # noqa: RUF012 - what pickling keeps; requests' own class has a list

    def __init__(self, proxy: ProxyChoice = None, **options: Any) -> None:
        self.socks_proxies = chosen_proxies(proxy)
        super().__init__(**options)

    def init_poolmanager(self, connections: int, *args: Any, **kwargs: Any) -> None:
        """requests' hook: makes the pools."""
        super().init_poolmanager(connections, *args, **kwargs)
        options = self.poolmanager.connection_pool_kw
        self.poolmanager = GSSSocksPoolManager(self.socks_proxies, connections, **options)

    def proxy_manager_for(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """requests' hook for a request that asks for another proxy.

        Raises:
            requests.exceptions.InvalidProxyURL: always.
        """
        # The other proxy is not quoted: its URL may hold a password.
        raise InvalidProxyURL(
            f"the session's adapter sends everything through {self.socks_proxies[0]}, and proxies= asks for another "
            "proxy: leave it out, or use a session without the adapter"
        )

    def send(
        self,
        request: PreparedRequest,
        stream: bool = False,  # noqa: FBT001, FBT002 - the signature is requests'
        timeout: Any = None,
        verify: bool | str = True,  # noqa: FBT001, FBT002
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> Response:
        """Sends a request, as `HTTPAdapter.send` does.

        Raises:
            requests.exceptions.InvalidProxyURL: `proxies` asks for another proxy than the environment does.
        """
        # The session has put what the environment names among `proxies`. On a redirect it may have taken the password
        # for that proxy, too, which is none of the target's business.
        if select_proxy(request.url or "", proxies) in [None, *getproxies().values()]:
            proxies = None
        request.headers.pop("Proxy-Authorization", None)
        return super().send(request, stream, timeout, verify, cert, proxies)
