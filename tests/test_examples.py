"""The examples do what they say, run as a user runs them: by Dante, to an HTTPS server."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.peers.targets import octets

if TYPE_CHECKING:
    import trustme

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante
    from tests.peers.targets import HTTPSServer

ROOT = Path(__file__).parents[1]
LIMIT_SECONDS = 60
SIZE = 1_000_003

Env = dict[str, str]


@pytest.fixture
def env(realm: Realm, trust: trustme.CA, tmp_path: Path) -> Env:
    """alice's ticket, trust in the HTTPS server, and this checkout; no proxy, and no exception from one."""
    bundle = str(tmp_path / "bundle.pem")
    trust.cert_pem.write_to_path(bundle)
    inherited = {name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")}
    chosen = {"SSL_CERT_FILE": bundle, "REQUESTS_CA_BUNDLE": bundle, "PYTHONPATH": str(ROOT), "GSSSOCKS_NO_PROXY": ""}
    return {**inherited, **realm.env, **chosen}


def run(*command: str, env: Env) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def fetched(url: str) -> tuple[int, str, str]:
    """What a program says and returns that has fetched `url`, and has had nothing to complain about."""
    return 0, f"200 {SIZE} {hashlib.sha256(octets(SIZE)).hexdigest()} {url}\n", ""


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def url(https_server: HTTPSServer) -> str:
    return https_server.url(f"/bytes/{SIZE}")


def test_legacy_app(dante_confidentiality: Dante, env: Env, url: str) -> None:
    granted = dante_confidentiality.connections()
    done = run("examples/legacy_app.py", url, env={**env, "GSSSOCKS_PROXY": dante_confidentiality.url()})
    assert outcome(done) == fetched(url)
    assert dante_confidentiality.connections() == granted + 1


def test_legacy_app_without_a_proxy_stops(https_server: HTTPSServer, env: Env, url: str) -> None:
    accepted = https_server.accepted
    done = run("examples/legacy_app.py", url, env=env)
    assert done.returncode != 0
    assert "GSSSOCKS_PROXY" in done.stderr
    assert https_server.accepted == accepted


def test_requests_adapter(dante_confidentiality: Dante, env: Env, url: str) -> None:
    granted = dante_confidentiality.connections()
    done = run("examples/requests_adapter.py", dante_confidentiality.url(), url, env=env)
    assert outcome(done) == fetched(url)
    assert dante_confidentiality.connections() == granted + 1


def test_requests_adapter_says_who_is_at_fault(dante_confidentiality: Dante, env: Env) -> None:
    proxy = dante_confidentiality.url()
    without_ticket = {**env, "KRB5CCNAME": "FILE:/nonexistent"}
    done = run("examples/requests_adapter.py", proxy, "http://localhost/", env=without_ticket)
    assert done.returncode == 1
    assert done.stderr.startswith("the proxy, or the ticket for it, is at fault: ")
    assert "kinit" in done.stderr
    done = run("examples/requests_adapter.py", proxy, "http://target.invalid/", env=env)
    assert done.returncode == 1
    assert done.stderr.startswith("the proxy could not reach it: ")


def test_injected_app(dante_confidentiality: Dante, https_server: HTTPSServer, env: Env, url: str) -> None:
    granted, accepted = dante_confidentiality.connections(), https_server.accepted
    program = ("examples/injected_app.py", url)
    assert outcome(run(*program, env=env)) == fetched(url)
    assert (dante_confidentiality.connections(), https_server.accepted) == (granted, accepted + 1)
    start = ("-m", "gsssocks", "run", "--proxy", dante_confidentiality.url(), "--", sys.executable)
    assert outcome(run(*start, *program, env=env)) == fetched(url)
    assert (dante_confidentiality.connections(), https_server.accepted) == (granted + 1, accepted + 2)
