"""ftplib in active mode under `gsssocks run`: the server connects to a socket that listens at the proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.peers.targets import octets
from tests.startup.program import Env, inside
from tests.startup.servers import ftp_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.peers.dante import Dante

ACTIVE = """
import ftplib, sys
with ftplib.FTP(timeout=20) as ftp:
    ftp.set_debuglevel(1)
    ftp.connect(sys.argv[1], int(sys.argv[2]))
    ftp.login("alice", "secret")
    ftp.set_pasv(False)
    assert ftp.nlst() == ["there"]
    ftp.retrbinary("RETR there", open("here", "wb").write)
    ftp.storbinary("STOR back", open("here", "rb"))
"""


@pytest.fixture
def env(dante_env: Env) -> Env:
    return {**dante_env, "GSSSOCKS_BIND": "1", "GSSSOCKS_DEBUG": "1"}


@pytest.mark.parametrize("scheme", ["socks5h", "socks5"])
def test_port(scheme: str, env: Env, dante_confidentiality: Dante, tmp_path: Path) -> None:
    proxy = f"{scheme}://127.0.0.1:{dante_confidentiality.port}?target_name=socks@localhost"
    said = transferred(proxy, "localhost", "127.0.0.1", env, tmp_path)
    assert said.count("'PORT 127,0,0,1,") == 3


def test_eprt(env: Env, dante_same_same: Dante, tmp_path: Path) -> None:
    proxy = f"socks5h://[::1]:{dante_same_same.port}?target_name=socks@localhost"
    said = transferred(proxy, "::1", "::1", env, tmp_path)
    assert said.count("'EPRT |2|::1|") == 3


def transferred(proxy: str, host: str, address: str, env: Env, directory: Path) -> str:
    """A file goes both ways; what the program has said on its way.

    Args:
        host: the server's name for the client.
        address: where the server listens.
    """
    content = octets(1_000_003)
    (directory / "served").mkdir()
    (directory / "served" / "there").write_bytes(content)
    with ftp_server(directory / "served", address) as port:
        done = inside("-c", ACTIVE, host, str(port), env={**env, "GSSSOCKS_PROXY": proxy}, cwd=directory)
    assert done.returncode == 0, done.stderr
    assert (directory / "served" / "back").read_bytes() == content
    assert done.stderr.count("gsssocks: listening at ") == done.stderr.count("gsssocks: accepted ") == 3
    return done.stdout
