"""A class of somebody else's that stands at `socket.socket` before gsssocks is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.peers.host import PATIENCE_SECONDS

if TYPE_CHECKING:
    from gsssocks.testing import Realm
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer

BEGINNING = """
import socket, ssl, sys
first = socket.socket
host, port, url = "127.0.0.1", int(sys.argv[1]), sys.argv[2]
"""
CLASSES = {
    "a subclass": "socket.socket = type('Guard', (socket.socket,), {})",
    "a subclass of a subclass": "socket.socket = type('Outer', (type('Inner', (socket.socket,), {}),), {})",
    "a subclass of the same name": "socket.socket = type('socket', (socket.socket,), {})",
    "PySocks'": "import socks; socket.socket = socks.socksocket",
}
INSTALL = """
import gsssocks
replaced, before = socket.socket, dict(vars(socket))
gsssocks.install(url, no_proxy=[])
"""
ATTEMPTS = {
    "what stands there": "socket.socket()",
    "the class that it replaced": "first()",
    "create_connection": "socket.create_connection((host, port), 20)",
    "TLS before connecting": (
        "__import__('ssl').create_default_context().wrap_socket("
        "first(), server_hostname='x', do_handshake_on_connect=False)"
    ),
}

every_class = pytest.mark.parametrize("replace", CLASSES.values(), ids=CLASSES)
every_attempt = pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)


def run(program: str, port: int, url: str, realm: Realm | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING + program, str(port), url],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
        env={**os.environ, **(realm.env if realm else {})},
        cwd=Path(__file__).parents[1],
    )
    return done.stdout.strip()


@every_class
@every_attempt
def test_nothing_connects_directly(replace: str, attempt: str, echo: EchoServer) -> None:
    program = f"""
{replace}
{INSTALL}
try:
    ({attempt}).connect((host, port))
except (gsssocks.ProxyError, getattr(sys.modules.get("socks"), "ProxyError", OSError)) as error:
    print("refused")
"""
    assert run(program, echo.address[1], "socks5h://127.0.0.1:1") == "refused"


@every_class
def test_goes_through_the_proxy(replace: str, realm: Realm, dante_confidentiality: Dante, echo: EchoServer) -> None:
    granted = dante_confidentiality.connections()
    program = f"""
{replace}
{INSTALL}
with socket.create_connection((host, port), 20) as sock:
    sock.sendall(b"hello")
    print(sock.recv(5).decode(), isinstance(sock, replaced))
"""
    assert run(program, echo.address[1], dante_confidentiality.url(), realm) == "hello True"
    assert dante_confidentiality.connections() == granted + 1


@every_class
def test_stands_there_again_after_uninstall(replace: str, echo: EchoServer) -> None:
    program = f"""
own = dict(vars(first))
{replace}
{INSTALL}
gsssocks.uninstall()
with socket.create_connection((host, port), 20) as sock:
    print(socket.socket is replaced, type(sock) is replaced, dict(vars(first)) == own, dict(vars(socket)) == before)
"""
    assert run(program, echo.address[1], "socks5h://127.0.0.1:1") == "True True True True"
