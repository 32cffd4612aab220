"""One requests session through the proxy; the rest of the program goes its way as before.

    python examples/requests_adapter.py socks5h://proxy.example.com:1080 https://example.org/

It needs a Kerberos ticket (kinit).
"""

import hashlib
import sys

import requests

from gsssocks.adapters.requests import GSSSocksAdapter


def session_through(proxy: str) -> requests.Session:
    """A session all of whose requests go through `proxy`."""
    session = requests.Session()
    # As with any adapter of requests: how often to try a connection again, how many to keep open, and so on.
    adapter = GSSSocksAdapter(proxy, max_retries=2, pool_maxsize=20)
    # Both, since a redirect may lead from one to the other.
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def main() -> None:
    proxy, url = sys.argv[1:]
    size, digest = 0, hashlib.sha256()
    try:
        with session_through(proxy) as session, session.get(url, timeout=(10, 60), stream=True) as response:
            for piece in response.iter_content(65536):
                size += len(piece)
                digest.update(piece)
    except requests.exceptions.ProxyError as error:
        sys.exit(f"the proxy, or the ticket for it, is at fault: {error}")
    except requests.ConnectionError as error:
        sys.exit(f"the proxy could not reach it: {error}")
    print(response.status_code, size, digest.hexdigest(), url)


if __name__ == "__main__":
    main()
