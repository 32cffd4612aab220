"""Which proxy a single socket or session takes, on what terms: from the same sources as `install()`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable

import pytest
import requests

import gsssocks
from gsssocks import GSSSocket, Proxy
from gsssocks.adapters.requests import GSSSocksAdapter
from gsssocks.adapters.urllib3 import GSSSocksPoolManager
from tests.peers.targets import HTTPServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer

pytestmark = pytest.mark.default_python_only


@pytest.fixture(autouse=True)
def _environment(in_the_realm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """alice's ticket, and no proxy."""
    for name in list(os.environ):
        if name.startswith("GSSSOCKS_") or name.upper().endswith("_PROXY"):
            monkeypatch.delenv(name)


def by_create_connection(address: tuple[str, int], **proxy: Any) -> socket.socket:
    return gsssocks.create_connection(address, **proxy)


def by_socket(address: tuple[str, int], **proxy: Any) -> socket.socket:
    sock = GSSSocket(**proxy)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


@pytest.fixture(params=[by_create_connection, by_socket])
def connected(request: pytest.FixtureRequest, echo: EchoServer) -> Callable[..., Any]:
    """Connects, and returns the tunnel's description."""

    def connect(**proxy: Any) -> Any:
        with request.param(echo.address, **proxy) as sock:
            return sock.tunnel

    return connect


@pytest.fixture
def down(nobody: tuple[str, int]) -> str:
    """The URL of a proxy that is down."""
    return f"socks5h://localhost:{nobody[1]}"


def test_the_file_names_it(
    dante_confidentiality: Dante, connected: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gsssocks.ini"
    path.write_text(f"[proxy]\nurl = {dante_confidentiality.url()}\n")
    monkeypatch.setenv("GSSSOCKS_CONFIG", str(path))
    assert connected().proxy == Proxy.from_url(dante_confidentiality.url())


def test_the_environment_says_what_the_url_does_not(
    dante_integrity: Dante, connected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSSSOCKS_PROTECTION", "integrity")
    assert connected(proxy=f"socks5h://localhost:{dante_integrity.port}").protection == "integrity"


def test_several_are_tried_in_order(dante_confidentiality: Dante, connected: Callable[..., Any], down: str) -> None:
    tunnel = connected(proxy=f"{down},{dante_confidentiality.url()}")
    assert tunnel.proxy == Proxy.from_url(dante_confidentiality.url())


def test_several_of_the_environment_are_tried_in_order(
    dante_confidentiality: Dante, connected: Callable[..., Any], down: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSSSOCKS_PROXY", f"{down},{dante_confidentiality.url()}")
    assert connected().proxy == Proxy.from_url(dante_confidentiality.url())


def test_a_proxy_object_has_its_terms(
    dante_confidentiality: Dante, connected: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSSSOCKS_PROTECTION", "integrity")
    monkeypatch.setenv("GSSSOCKS_CONFIG", "/nonexistent")
    proxy = Proxy.from_url(dante_confidentiality.url())
    assert connected(proxy=proxy).proxy == proxy


def test_nowhere_one_says_where_it_could_be(connected: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"no proxy given: .*GSSSOCKS_PROXY.*GSSSOCKS_CONFIG"):
        connected()


def test_a_keytab_that_has_gone_is_an_error_of_the_connect(
    dante_confidentiality: Dante, connected: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSSSOCKS_PROXY", dante_confidentiality.url())
    monkeypatch.setenv("GSSSOCKS_KEYTAB", str(tmp_path / "none"))
    with pytest.raises(gsssocks.AuthenticationError):
        connected()


@pytest.fixture
def http_server() -> Iterator[HTTPServer]:
    with HTTPServer() as started:
        yield started


def test_a_session_goes_on_with_the_next_one(dante_confidentiality: Dante, down: str, http_server: HTTPServer) -> None:
    granted = dante_confidentiality.connections()
    with requests.Session() as session:
        session.mount("http://", GSSSocksAdapter(f"{down},{dante_confidentiality.url()}"))
        assert session.get(http_server.url("/headers")).ok
    with GSSSocksPoolManager(f"{down},{dante_confidentiality.url()}") as pools:
        assert pools.request("GET", http_server.url("/headers")).status == 200
    assert dante_confidentiality.connections() == granted + 2
