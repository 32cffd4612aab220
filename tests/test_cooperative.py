"""gevent and eventlet, whose sockets cannot be tunnelled: refused where the rules want a proxy, whichever came first,
the library or `install()`; never past the proxy, and no lookup of a target's name."""

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

pytestmark = pytest.mark.default_python_only

PATCH = {
    "gevent": "from gevent import monkey; monkey.patch_all()\nimport socket as green",
    "eventlet": "import eventlet; eventlet.monkey_patch()\nimport socket as green",
}
BY_NAME = {
    "gevent": "from gevent import socket as green",
    "eventlet": "from eventlet.green import socket as green",
}
WATCH = """
import ipaddress, os, sys
url, port = sys.argv[1], int(sys.argv[2])

def watch(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        try:
            ipaddress.ip_address(args[0])
        except ValueError:
            os.write(2, f"{event} of {args[0]!r}\\n".encode())
            os._exit(99)
    if event == "socket.connect":
        os.write(2, f"a connection to {args[1]!r}\\n".encode())
        os._exit(99)

sys.addaudithook(watch)
"""
BEGIN = """
import sys
url, port = sys.argv[1], int(sys.argv[2])
"""
INSTALL = "import gsssocks; gsssocks.install(url, no_proxy=[])"
ATTEMPTS = {
    "create_connection": "green.create_connection(('target.invalid', port), 10)",
    "connect": "green.socket().connect((green.gethostbyname('target.invalid'), port))",
    "connect_ex": "green.socket().connect_ex(('192.0.2.1', port))",
    "IPv6": "green.socket(green.AF_INET6).connect(('2001:db8::1', port))",
    "non-blocking": "s = green.socket(); s.setblocking(False); s.connect(('192.0.2.1', port))",
    "TLS before connecting": "import ssl; ssl.create_default_context().wrap_socket(green.socket(), "
    "server_hostname='target.invalid').connect(('192.0.2.1', port))",
    "http.client": "import http.client; http.client.HTTPConnection('target.invalid', port).request('GET', '/')",
}
ECHO = """
with green.create_connection(("127.0.0.1", port), 20) as sock:
    sock.sendall(b"hello")
    print(sock.recv(5).decode())
"""

every_library = pytest.mark.parametrize("library", PATCH)
either_order = pytest.mark.parametrize("library_first", [True, False], ids=["library-first", "install-first"])


def run(program: str, url: str, port: int, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, url, str(port)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
        env={**os.environ, **(environ or {})},
        cwd=Path(__file__).parents[1],
    )


def in_order(library: str, *, library_first: bool) -> str:
    return f"{library}\n{INSTALL}\n" if library_first else f"{INSTALL}\n{library}\n"


def refused(attempt: str) -> str:
    return f"""
try:
    {attempt}
except gsssocks.ProxyError as error:
    print(error)
else:
    print("not refused")
"""


@every_library
@either_order
class TestRefused:
    def expect_refusal(self, library: str, program: str) -> None:
        # By address: the proxy's own name would be looked up, if anybody went there.
        done = run(WATCH + program, "socks5h://127.0.0.1:1", 80)
        remedy = "use threads, asyncio or trio with gsssocks, or name the target in no_proxy"
        expected = f"{library}'s sockets cannot be sent through the proxy: {remedy}\n"
        assert (done.returncode, done.stdout) == (0, expected), done.stderr

    @pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
    def test_when_it_has_patched_the_standard_library(self, library: str, library_first: bool, attempt: str) -> None:
        self.expect_refusal(library, in_order(PATCH[library], library_first=library_first) + refused(attempt))

    @pytest.mark.parametrize("attempt", ["create_connection", "connect", "connect_ex"])
    def test_when_it_is_used_by_name(self, library: str, library_first: bool, attempt: str) -> None:
        program = in_order(BY_NAME[library], library_first=library_first) + refused(ATTEMPTS[attempt])
        self.expect_refusal(library, program)


@every_library
@either_order
class TestNotRefused:
    def test_what_the_rules_send_there_directly(self, library: str, library_first: bool, echo: EchoServer) -> None:
        install = "import gsssocks; gsssocks.install(url)\n"  # loopback is direct
        parts = (PATCH[library], install) if library_first else (install, PATCH[library])
        done = run(BEGIN + "\n".join(parts) + ECHO, "socks5h://127.0.0.1:1", echo.address[1])
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr

    def test_after_uninstall(self, library: str, library_first: bool, echo: EchoServer) -> None:
        program = in_order(PATCH[library], library_first=library_first)
        program += "before = green.socket\ngsssocks.uninstall()\nassert green.socket is before\n"
        done = run(BEGIN + program + ECHO, "socks5h://127.0.0.1:1", echo.address[1])
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr

    def test_a_plain_socket_class_taken_before_goes_through_the_proxy(
        self, library: str, library_first: bool, realm: Realm, dante_confidentiality: Dante, echo: EchoServer
    ) -> None:
        granted = dante_confidentiality.connections()
        program = BEGIN + "from socket import socket as taken\n" + in_order(PATCH[library], library_first=library_first)
        program += """
sock = taken()
sock.settimeout(20)
sock.connect(("127.0.0.1", port))
sock.sendall(b"hello")
print(sock.recv(5).decode())
"""
        done = run(program, dante_confidentiality.url(), echo.address[1], dict(realm.env))
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
        assert dante_confidentiality.connections() == granted + 1

    def test_a_tunnel_that_is_asked_for_by_name(
        self, library: str, library_first: bool, realm: Realm, dante_confidentiality: Dante, echo: EchoServer
    ) -> None:
        granted = dante_confidentiality.connections()
        program = BEGIN + in_order(PATCH[library], library_first=library_first)
        program += """
sock = gsssocks.create_connection(("127.0.0.1", port), 20, proxy=url)
sock.sendall(b"hello")
print(sock.recv(5).decode())
"""
        done = run(program, dante_confidentiality.url(), echo.address[1], dict(realm.env))
        assert (done.returncode, done.stdout) == (0, "hello\n"), done.stderr
        assert dante_confidentiality.connections() == granted + 1


@every_library
def test_uninstall_restores_its_functions(library: str) -> None:
    names = "getaddrinfo", "gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo"
    program = (
        BEGIN
        + f"""
{PATCH[library]}
import socket
def functions():
    # By identity: a wrapper equals what it wraps.
    return [id(vars(module)[name]) for module in (green, socket) for name in {names!r}] + [
        id(green.socket.connect)
    ]
before = functions()
{INSTALL}
assert functions() != before
gsssocks.uninstall()
print(functions() == before)
"""
    )
    done = run(program, "socks5h://127.0.0.1:1", 80)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
