"""A program that nobody may edit. It goes through the proxy when it is started by `gsssocks run`:

    gsssocks run --proxy socks5h://proxy.example.com:1080 -- python examples/injected_app.py https://example.org/

That needs a Kerberos ticket (kinit), and works for whatever Python program stands behind the `--`.
"""

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
