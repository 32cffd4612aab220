"""A SOCKS proxy that the environment names is one that programs speak to themselves: but not where everything goes
through it already."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest
import requests

import gsssocks
from tests.peers.host import PATIENCE_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

    import trustme

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante
    from tests.peers.targets import HTTPSServer

GET = "import requests, sys; print(len(requests.get(sys.argv[1], verify=sys.argv[2], timeout=20).content))"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def authority(trust: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "authority.pem"
    trust.cert_pem.write_to_path(str(path))
    return str(path)


class TestGetproxies:
    def test_the_one_in_force_is_left_out(self, environment: pytest.MonkeyPatch) -> None:
        environment.setenv("ALL_PROXY", "socks5h://Proxy.example")
        environment.setenv("HTTPS_PROXY", "socks5://user:secret@proxy.example:1080/")
        environment.setenv("HTTP_PROXY", "http://proxy.example:1080")
        with gsssocks.installed():
            assert urllib.request.getproxies() == {"http": "http://proxy.example:1080"}
            assert urllib.request.getproxies_environment() == {"http": "http://proxy.example:1080"}

    @pytest.mark.parametrize("url", ["socks5h://other.example", "socks5h://proxy.example:1081", "socks5h://a:b:c", ""])
    def test_others_stay(self, environment: pytest.MonkeyPatch, url: str) -> None:
        environment.setenv("ALL_PROXY", url)
        before = urllib.request.getproxies()
        with gsssocks.installed("socks5h://proxy.example"):
            assert urllib.request.getproxies() == before

    def test_several_in_one_variable(self, environment: pytest.MonkeyPatch) -> None:
        environment.setenv("ALL_PROXY", "socks5h://one.example,socks5h://two.example:1081")
        with gsssocks.installed():
            assert urllib.request.getproxies() == {}

    def test_uninstall_leaves_no_trace(self) -> None:
        gc.collect()  # tunnels of other tests that nobody refers to any more
        before = urllib.request.getproxies, requests.utils.getproxies  # type: ignore[attr-defined]
        with gsssocks.installed("socks5h://proxy.example"):
            assert urllib.request.getproxies is not before[0]
        assert (urllib.request.getproxies, requests.utils.getproxies) == before  # type: ignore[attr-defined]

    def test_the_environment_is_as_it_was(self, environment: pytest.MonkeyPatch) -> None:
        environment.setenv("ALL_PROXY", "socks5h://proxy.example")
        with gsssocks.installed():
            assert os.environ["ALL_PROXY"] == "socks5h://proxy.example"


class TestRequests:
    @pytest.mark.usefixtures("in_the_realm")
    def test_installed(
        self,
        dante_confidentiality: Dante,
        https_server: HTTPSServer,
        authority: str,
        environment: pytest.MonkeyPatch,
    ) -> None:
        environment.setenv("ALL_PROXY", dante_confidentiality.url())
        granted = dante_confidentiality.connections()
        with gsssocks.installed(no_proxy=[]):
            answer = requests.get(https_server.url("/bytes/1000"), verify=authority, timeout=PATIENCE_SECONDS)
        assert len(answer.content) == 1000
        assert dante_confidentiality.connections() == granted + 1

    def test_run(self, realm: Realm, dante_confidentiality: Dante, https_server: HTTPSServer, authority: str) -> None:
        granted = dante_confidentiality.connections()
        run = [sys.executable, "-m", "gsssocks", "run", "--no-proxy", "", "--", sys.executable, "-c", GET]
        done = subprocess.run(
            [*run, https_server.url("/bytes/1000"), authority],
            env={**os.environ, **realm.env, "ALL_PROXY": dante_confidentiality.url()},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=PATIENCE_SECONDS,
        )
        assert done.stdout == "1000\n"
        assert dante_confidentiality.connections() == granted + 1
