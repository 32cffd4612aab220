"""The embedded proxy and a client that others have made: Dante's, preloaded into programs that know of no proxy."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks.server import ProxyServer, Session
from tests.peers.dante import prefix
from tests.peers.targets import SinkServer, SourceServer, octets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gsssocks.testing import Realm
    from tests.peers.targets import EchoServer

LIMIT = 60
# What `gssapi.enctype` calls the level, and what we do.
LEVELS = {"integrity": "integrity", "confidentiality": "confidentiality", "clear": "none"}

# Plain programs. Each is told host and port.
UPLOAD = """
import hashlib, socket, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
client.sendall(bytes(range(251)) * 8000)
client.shutdown(socket.SHUT_WR)
print(client.makefile().read())
"""
DOWNLOAD = """
import hashlib, socket, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
client.sendall((2000003).to_bytes(8, "big"))
print(hashlib.sha256(client.makefile("rb").read()).hexdigest())
"""
DIALOGUE = """
import socket, sys
for number in range(3):
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as client:
        for turn in range(20):
            said = b"%d/%d" % (number, turn)
            client.sendall(said)
            assert client.recv(100) == said
print("done")
"""
ATTEMPT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 30)
except OSError as error:
    print(type(error).__name__)
else:
    print("connected")
"""


@pytest.fixture(autouse=True)
def _in_the_realm(realm: Realm) -> Iterator[None]:
    with realm.activate():
        yield


class DanteClient:
    """Dante's client library with one route, to the proxy.

    Args:
        directory: for its configuration and its log.
        proxy: where the route leads.
        enctype: the protection level it asks for, in Dante's words.
        names: "fake" sends names to the proxy, "tcp" looks them up here.
    """

    def __init__(self, directory: Path, proxy: ProxyServer, enctype: str, *, names: str = "tcp") -> None:
        self._log = directory / "log"
        self._configuration = directory / "socks.conf"
        self._configuration.write_text(
            f"""
logoutput: {self._log}
resolveprotocol: {names}
route {{
    from: 0/0 to: 0/0 via: localhost port = {proxy.port}
    proxyprotocol: socks_v5
    command: connect
    method: gssapi
    gssapi.servicename: socks
    gssapi.enctype: {enctype}
}}
"""
        )

    def run(self, program: str, host: str, port: int) -> str:
        """What a Python program prints that is told host and port, with the library preloaded."""
        env = {
            **os.environ,
            "LD_PRELOAD": str(prefix() / "lib" / "libdsocksd.so"),
            "SOCKS_CONF": str(self._configuration),
            "SOCKS_AUTOADD_LANROUTES": "no",
        }
        # Isolated: nothing of gsssocks is within its reach.
        command = [sys.executable, "-I", "-c", program, host, str(port)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{self._log.read_text()}"
        return done.stdout.strip()


def first_session(proxy: ProxyServer) -> Session:
    session = proxy.sessions[0]
    assert session.ended.wait(LIMIT)
    return session


def only_session(proxy: ProxyServer) -> Session:
    assert len(proxy.sessions) == 1
    return first_session(proxy)


@pytest.fixture(params=LEVELS)
def enctype(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def proxy(enctype: str) -> Iterator[ProxyServer]:
    with ProxyServer(levels=[LEVELS[enctype]]) as server:
        yield server


def test_upload_and_half_close(tmp_path: Path, proxy: ProxyServer, enctype: str) -> None:
    with SinkServer() as sink:
        said = DanteClient(tmp_path, proxy, enctype).run(UPLOAD, *sink.address)
    assert said == hashlib.sha256(bytes(range(251)) * 8000).hexdigest()
    session = only_session(proxy)
    assert (session.principal, session.protection) == ("alice@GSSSOCKS.TEST", LEVELS[enctype])
    assert (session.octets_received, session.octets_sent, session.error) == (251 * 8000, 64, None)


def test_download(tmp_path: Path, proxy: ProxyServer, enctype: str) -> None:
    with SourceServer() as source:
        said = DanteClient(tmp_path, proxy, enctype).run(DOWNLOAD, *source.address)
    assert said == hashlib.sha256(octets(2_000_003)).hexdigest()
    assert only_session(proxy).octets_sent == 2_000_003


def test_dialogues(tmp_path: Path, proxy: ProxyServer, enctype: str, echo: EchoServer) -> None:
    assert DanteClient(tmp_path, proxy, enctype).run(DIALOGUE, *echo.address) == "done"
    assert [session.reply for session in proxy.sessions] == [0, 0, 0]


def test_names_are_looked_up_by_the_proxy(tmp_path: Path, proxy: ProxyServer, enctype: str, echo: EchoServer) -> None:
    client = DanteClient(tmp_path, proxy, enctype, names="fake")
    assert client.run(ATTEMPT, "localhost", echo.address[1]) == "connected"
    assert str(only_session(proxy).destination) == f"localhost:{echo.address[1]}"


def test_a_target_that_refuses(tmp_path: Path, proxy: ProxyServer, enctype: str) -> None:
    with SinkServer() as closed:
        pass
    assert DanteClient(tmp_path, proxy, enctype).run(ATTEMPT, *closed.address) == "ConnectionRefusedError"
    assert only_session(proxy).reply == 5


def test_a_level_that_is_not_granted(tmp_path: Path, echo: EchoServer) -> None:
    with ProxyServer(levels=["confidentiality"]) as proxy:
        assert DanteClient(tmp_path, proxy, "integrity").run(ATTEMPT, *echo.address) != "connected"
        assert isinstance(first_session(proxy).error, gsssocks.ProtectionError)


def test_a_principal_that_is_not_authorised(tmp_path: Path, echo: EchoServer) -> None:
    with ProxyServer(authorize=lambda _: False) as proxy:
        assert DanteClient(tmp_path, proxy, "integrity").run(ATTEMPT, *echo.address) != "connected"
        assert isinstance(first_session(proxy).error, gsssocks.AuthenticationError)
