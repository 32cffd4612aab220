"""A program that knows nothing of proxies, sent through one by a line at its top.

    GSSSOCKS_PROXY=socks5h://proxy.example.com:1080 python examples/legacy_app.py https://example.org/

It needs a Kerberos ticket (kinit). What GSSSOCKS_NO_PROXY names is reached directly; without it, this machine alone is.
"""

import gsssocks

# The proxy that GSSSOCKS_PROXY names. It could be said here, too: gsssocks.install("socks5h://proxy.example.com:1080").
gsssocks.install()

# From here on, the program as it was.

import hashlib
import sys
import urllib.request


def main() -> None:
    for url in sys.argv[1:]:
        with urllib.request.urlopen(url, timeout=30) as response:
            body = response.read()
        print(response.status, len(body), hashlib.sha256(body).hexdigest(), url)


if __name__ == "__main__":
    main()
