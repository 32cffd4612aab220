"""Environments for fresh processes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.startup.program import ROOT, Env, clean

if TYPE_CHECKING:
    from pathlib import Path

    import trustme

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante


@pytest.fixture
def env() -> Env:
    """This checkout, and a proxy that nothing may need, since there is none."""
    return {**clean(os.environ), "PYTHONPATH": str(ROOT), "GSSSOCKS_PROXY": "socks5h://127.0.0.1:1"}


@pytest.fixture
def dante_env(realm: Realm, dante_confidentiality: Dante, ca_file: Path) -> Env:
    """This checkout, alice's ticket, a real proxy for every destination, and trust in the HTTPS server."""
    return {
        **clean(os.environ),
        **realm.env,
        "PYTHONPATH": str(ROOT),
        "GSSSOCKS_PROXY": dante_confidentiality.url(),
        "GSSSOCKS_NO_PROXY": "",
        "SSL_CERT_FILE": str(ca_file),
        "REQUESTS_CA_BUNDLE": str(ca_file),
    }


@pytest.fixture
def ca_file(trust: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    trust.cert_pem.write_to_path(str(path))
    return path
