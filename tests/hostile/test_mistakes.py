"""What the user got wrong is said before anything is sent, and changes nothing."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks import GSSSocket, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = ("secret.target.example", 4711)

WRONG_URLS = {
    "http://proxy:1080": "the scheme must be one of socks5h, socks5",
    "proxy:1080": "the scheme must be one of socks5h, socks5",
    "proxy.example.com": "the scheme must be one of socks5h, socks5",
    "socks4://proxy": "the scheme must be one of socks5h, socks5",
    "socks5h://": "it names no host",
    "socks5h://:1080": "it names no host",
    "socks5h://proxy:99999": "[Pp]ort",
    "socks5h://proxy:ssh": "[Pp]ort",
    "socks5h://proxy/path": "nothing may follow host and port",
    "socks5h://proxy#fragment": "nothing may follow host and port",
    "socks5h://proxy?protection=full": "one of none, integrity, confidentiality, selective, not 'full'",
    "socks5h://proxy?protection=": "not ''",
    "socks5h://proxy?sevrice=socks": "unknown option 'sevrice'; the options are service",
    "socks5h://proxy?timeout=soon": "timeout must be a number of seconds or none, not 'soon'",
    "socks5h://proxy?timeout=-1": "timeout must be a positive number of seconds",
    "socks5h://proxy?nec=perhaps": "nec must be true or false, not 'perhaps'",
    "socks5h://proxy?delegation=please": "one of policy, always, never, not 'please'",
    "socks5h://proxy?service=a&service=b": "'service' is given twice",
    "socks5h://proxy?mechanism=kerberos": "mechanism",
}

SHOWN = {
    "socks5h://proxy:ssh": "socks5h://proxy:***",
    "socks5h://proxy?sevrice=socks": "socks5h://proxy?sevrice=***",
}
"""Of these, what may be a password is not quoted."""

every_wrong_url = pytest.mark.parametrize(("url", "says"), WRONG_URLS.items(), ids=list(WRONG_URLS))


@pytest.fixture(autouse=True)
def _unpatched_before_and_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GSSSOCKS_PROXY", raising=False)
    monkeypatch.delenv("ALL_PROXY", raising=False)
    monkeypatch.delenv("all_proxy", raising=False)
    before = dict(vars(socket.socket))
    yield
    after = dict(vars(socket.socket))
    gsssocks.uninstall()
    assert after == before


@every_wrong_url
def test_create_connection_quotes_a_wrong_url(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        gsssocks.create_connection(TARGET, proxy=url)
    assert repr(SHOWN.get(url, url)) in str(caught.value)


@every_wrong_url
def test_install_quotes_a_wrong_url(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        gsssocks.install(url)
    assert repr(SHOWN.get(url, url)) in str(caught.value)


@every_wrong_url
def test_environment_variable_with_a_wrong_url_is_named(url: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GSSSOCKS_PROXY", url)
    with pytest.raises(ValueError, match=says) as caught:
        gsssocks.install()
    assert repr(SHOWN.get(url, url)) in str(caught.value)
    assert "GSSSOCKS_PROXY" in str(caught.value)


@every_wrong_url
def test_gsssocket_quotes_a_wrong_url(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GSSSocket(proxy=url)


def test_no_proxy_anywhere() -> None:
    with pytest.raises(ValueError, match="no proxy given: pass one, or set GSSSOCKS_PROXY=socks5h://host:port"):
        gsssocks.install()
    with pytest.raises(ValueError, match="no proxy given"):
        gsssocks.create_connection(TARGET)
    with GSSSocket() as sock, pytest.raises(ValueError, match="no proxy given"):
        sock.connect(TARGET)


def test_password_without_anybody_it_is_of_is_not_shown() -> None:
    with pytest.raises(ValueError, match="nobody it is of") as caught:
        gsssocks.install("socks5h://:s3cret@proxy")
    assert "s3cret" not in str(caught.value)
    with GSSSocket() as sock, pytest.raises(ValueError, match="nobody it is of") as caught:
        sock.set_proxy(2, "proxy", 1080, password="s3cret")
    assert "s3cret" not in str(caught.value)


def test_bad_no_proxy_entry_is_quoted() -> None:
    with pytest.raises(ValueError, match=r"'10\.0\.0\.0/33'"):
        gsssocks.install("socks5h://proxy", no_proxy=["10.0.0.0/33"])


def test_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="protecton"):
        gsssocks.install("socks5h://proxy", protecton="integrity")


def test_options_beside_a_whole_proxy_are_refused() -> None:
    with pytest.raises(TypeError, match="protection"):
        gsssocks.install(Proxy("proxy"), protection="integrity")


@pytest.mark.parametrize("kind", [1, 3])
def test_other_kinds_of_proxy_are_refused(kind: int) -> None:
    with GSSSocket() as sock, pytest.raises(ValueError, match="SOCKS 5 only"):
        sock.set_proxy(kind, "proxy", 1080)
