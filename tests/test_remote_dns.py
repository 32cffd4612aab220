"""Remote DNS: a program that looks names up before it connects works, and no lookup of a target's name leaves it."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks import ReplyError
from gsssocks._resolver import Placeholders
from gsssocks.server import ProxyServer
from gsssocks.testing import ScriptedProxy
from tests.peers.targets import EchoServer, HTTPServer, octets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import trustme

    from gsssocks.server import Session
    from gsssocks.testing import Conversation, Realm
    from tests.peers.dante import Dante

pytestmark = pytest.mark.usefixtures("in_the_realm")

NAME = "target.invalid"
"""Known to `proxy`, and to nobody else: no resolver answers names below "invalid" (RFC 6761)."""
FAMILIES = (socket.AF_INET, socket.AF_INET6)
OTHER_RANGES = ("10.99.0.0/16", "fd00:99::/64")
FUNCTIONS = ("getaddrinfo", "gethostbyaddr", "gethostbyname", "gethostbyname_ex", "getnameinfo")


@pytest.fixture(scope="module")
def proxy(realm: Realm) -> Iterator[ProxyServer]:
    with ProxyServer("localhost", keytab=realm.keytab, hosts={NAME: "127.0.0.1"}) as started:
        yield started


@pytest.fixture(scope="module")
def https(trust: trustme.CA) -> Iterator[HTTPServer]:
    """An HTTPS server that is both localhost and `NAME`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trust.issue_cert("localhost", NAME).configure_cert(context)
    with HTTPServer(context=context) as started:
        yield started


@pytest.fixture(scope="module")
def ca_file(trust: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trust") / "ca.pem"
    trust.cert_pem.write_to_path(str(path))
    return path


def echoed(sock: socket.socket) -> bool:
    sock.sendall(b"through the tunnel")
    return sock.recv(100) == b"through the tunnel"


def last_session(proxy: ProxyServer) -> Session:
    return proxy.sessions[-1]


# Fresh processes, in which a lookup of any name, by whatever way, is the end. Each program fetches 1000 octets from an
# HTTPS server, as its library does that.

WATCHED = """
import ipaddress, os, sys

proxy, remote_dns, name, port, ca_file = sys.argv[1:]
port = int(port)

def watch(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        hosts = [args[0]]
    elif event in ("socket.connect", "socket.sendto", "socket.bind"):
        # The C functions look a name up by themselves.
        hosts = [args[1][0]] if isinstance(args[1], tuple) else []
    else:
        return
    for host in hosts:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            os.write(2, f"{event} of {host!r}\\n".encode())
            os._exit(99)

sys.addaudithook(watch)
"""
INSTALL = """
import gsssocks
gsssocks.install(proxy, no_proxy=[], remote_dns=bool(int(remote_dns)))
"""

PROGRAMS = {
    "requests": """
import requests
with requests.get(f"https://{name}:{port}/bytes/1000", verify=ca_file, timeout=20) as answer:
    data = answer.content
""",
    "urllib": """
import ssl, urllib.request
context = ssl.create_default_context(cafile=ca_file)
with urllib.request.urlopen(f"https://{name}:{port}/bytes/1000", context=context, timeout=20) as answer:
    data = answer.read()
""",
    "http.client": """
import http.client, ssl
connection = http.client.HTTPSConnection(name, port, context=ssl.create_default_context(cafile=ca_file), timeout=20)
connection.request("GET", "/bytes/1000")
data = connection.getresponse().read()
connection.close()
""",
    "asyncio": """
import asyncio, ssl

async def fetch():
    context = ssl.create_default_context(cafile=ca_file)
    reader, writer = await asyncio.open_connection(name, port, ssl=context)
    writer.write(b"GET /bytes/1000 HTTP/1.0\\r\\n\\r\\n")
    answer = await reader.read()
    writer.close()
    return answer[-1000:]

data = asyncio.run(asyncio.wait_for(fetch(), 20))
""",
    "socket.create_connection": """
import socket, ssl
context = ssl.create_default_context(cafile=ca_file)
with socket.create_connection((name, port), 20) as plain:
    with context.wrap_socket(plain, server_hostname=name) as sock:
        sock.sendall(b"GET /bytes/1000 HTTP/1.0\\r\\n\\r\\n")
        with sock.makefile("rb") as file:
            data = file.read()[-1000:]
""",
    "gethostbyname": """
import socket, ssl
context = ssl.create_default_context(cafile=ca_file)
plain = socket.socket()
plain.settimeout(20)
plain.connect((socket.gethostbyname(name), port))
with context.wrap_socket(plain, server_hostname=name) as sock:
    sock.sendall(b"GET /bytes/1000 HTTP/1.0\\r\\n\\r\\n")
    with sock.makefile("rb") as file:
        data = file.read()[-1000:]
""",
    "IPv6": """
import socket, ssl
context = ssl.create_default_context(cafile=ca_file)
((family, kind, proto, _, address),) = socket.getaddrinfo(name, port, socket.AF_INET6, socket.SOCK_STREAM)
plain = socket.socket(family, kind, proto)
plain.settimeout(20)
plain.connect(address)
with context.wrap_socket(plain, server_hostname=name) as sock:
    sock.sendall(b"GET /bytes/1000 HTTP/1.0\\r\\n\\r\\n")
    with sock.makefile("rb") as file:
        data = file.read()[-1000:]
""",
    "fork": """
import os, socket, ssl
context = ssl.create_default_context(cafile=ca_file)
((_, _, _, _, address),) = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
if os.fork():
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
with socket.create_connection(address, 20) as plain:
    with context.wrap_socket(plain, server_hostname=name) as sock:
        sock.sendall(b"GET /bytes/1000 HTTP/1.0\\r\\n\\r\\n")
        with sock.makefile("rb") as file:
            data = file.read()[-1000:]
""",
}

IMPORTS = """
import asyncio, http.client, requests, socket, ssl, urllib.request, urllib3.util.connection
"""
TAKEN_BEFORE = {
    "getaddrinfo": (
        "from socket import getaddrinfo, socket",
        """
import ssl
((family, kind, proto, _, address),) = getaddrinfo(name, port, 0, 1)
plain = socket(family, kind, proto)
plain.settimeout(20)
plain.connect(address)
with ssl.create_default_context(cafile=ca_file).wrap_socket(plain, server_hostname=name) as sock:
    sock.sendall(b"GET /bytes/1000 HTTP/1.0\\r\\n\\r\\n")
    with sock.makefile("rb") as file:
        data = file.read()[-1000:]
""",
    ),
    # As `requests.adapters` preloads one, in some versions.
    "TLS context": (
        "import ssl; context = ssl.create_default_context(cafile=ca_file)",
        """
import socket
with socket.create_connection((name, port), 20) as plain:
    with context.wrap_socket(plain, server_hostname=name) as sock:
        sock.sendall(b"GET /bytes/1000 HTTP/1.0\\r\\n\\r\\n")
        with sock.makefile("rb") as file:
            data = file.read()[-1000:]
""",
    ),
    "requests session": (
        "import requests; session = requests.Session()",
        """
with session.get(f"https://{name}:{port}/bytes/1000", verify=ca_file, timeout=20) as answer:
    data = answer.content
session.close()
""",
    ),
    "create_connection of urllib3": (
        "import ssl; from urllib3.util.connection import create_connection",
        """
with create_connection((name, port), 20) as plain:
    with ssl.create_default_context(cafile=ca_file).wrap_socket(plain, server_hostname=name) as sock:
        sock.sendall(b"GET /bytes/1000 HTTP/1.0\\r\\n\\r\\n")
        with sock.makefile("rb") as file:
            data = file.read()[-1000:]
""",
    ),
}

every_program = pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)


def run(
    program: str,
    proxy: str,
    name: str,
    server: HTTPServer,
    ca_file: Path,
    *,
    remote_dns: bool = True,
    before: str = "",
) -> subprocess.CompletedProcess[bytes]:
    text = f"{WATCHED}{before}{INSTALL}{program}\nos.write(1, data)\n"
    arguments = [proxy, str(int(remote_dns)), name, str(server.address[1]), str(ca_file)]
    # Nothing else may send the program to another proxy, or past this one.
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run(
        [sys.executable, "-c", text, *arguments],
        capture_output=True,
        check=False,
        env=env,
        timeout=60,
    )


def by_address(port: int, *, host: str = "127.0.0.1") -> str:
    """The URL of a proxy whose own name needs no lookup either."""
    return f"socks5h://{host}:{port}?target_name=socks@localhost"


class TestNoLookupLeaves:
    @every_program
    def test_through_dante(self, program: str, dante_confidentiality: Dante, https: HTTPServer, ca_file: Path) -> None:
        dante = dante_confidentiality
        granted = dante.connections()
        done = run(program, by_address(dante.port), "localhost", https, ca_file)
        assert done.stderr == b""
        assert done.stdout == octets(1000)
        assert dante.connections() == granted + 1

    @every_program
    def test_for_a_name_that_only_the_proxy_knows(
        self, program: str, proxy: ProxyServer, https: HTTPServer, ca_file: Path
    ) -> None:
        sessions = len(proxy.sessions)
        done = run(program, proxy_by_address(proxy), NAME, https, ca_file)
        assert done.stderr == b""
        assert done.stdout == octets(1000)
        assert [str(session.destination) for session in proxy.sessions[sessions:]] == [f"{NAME}:{https.address[1]}"]

    @every_program
    def test_whatever_was_imported_before(
        self, program: str, dante_confidentiality: Dante, https: HTTPServer, ca_file: Path
    ) -> None:
        proxy = by_address(dante_confidentiality.port)
        done = run(program, proxy, "localhost", https, ca_file, before=IMPORTS)
        assert (done.stderr, done.stdout) == (b"", octets(1000))

    @pytest.mark.parametrize(("before", "program"), TAKEN_BEFORE.values(), ids=TAKEN_BEFORE)
    def test_whatever_was_taken_before(
        self, before: str, program: str, dante_confidentiality: Dante, https: HTTPServer, ca_file: Path
    ) -> None:
        granted = dante_confidentiality.connections()
        proxy = by_address(dante_confidentiality.port)
        done = run(program, proxy, "localhost", https, ca_file, before=before)
        assert (done.stderr, done.stdout) == (b"", octets(1000))
        assert dante_confidentiality.connections() == granted + 1

    @every_program
    def test_else_the_watch_would_have_seen_it(
        self, program: str, proxy: ProxyServer, https: HTTPServer, ca_file: Path
    ) -> None:
        done = run(program, proxy_by_address(proxy), NAME, https, ca_file, remote_dns=False)
        assert done.returncode == 99
        assert repr(NAME).encode() in done.stderr


def proxy_by_address(proxy: ProxyServer) -> str:
    host, port = proxy.address
    return by_address(port, host=f"[{host}]" if ":" in host else host)


class TestLookups:
    def test_answer_placeholders_for_names_that_go_to_the_proxy(self, proxy: ProxyServer) -> None:
        with gsssocks.installed(proxy.url()):
            address = socket.gethostbyname(NAME)
            assert ipaddress.ip_address(address) in ipaddress.ip_network("198.18.0.0/15")
            assert [info[4] for info in socket.getaddrinfo(NAME, 80, type=socket.SOCK_STREAM)] == [(address, 80)]
            assert socket.gethostbyname_ex(NAME) == (NAME, [], [address])

    def test_lead_back_to_the_name(self, proxy: ProxyServer) -> None:
        with gsssocks.installed(proxy.url()):
            address = socket.gethostbyname(NAME)
            assert socket.gethostbyaddr(address)[0] == NAME
            assert socket.getnameinfo((address, 80), 0) == (NAME, "http")
            assert socket.getfqdn(address) == NAME

    def test_go_by_the_scheme(self, proxy: ProxyServer) -> None:
        with gsssocks.installed(proxy.url(remote_dns=False)), pytest.raises(socket.gaierror):
            socket.gethostbyname(NAME)

    def test_or_by_what_install_was_told(self, proxy: ProxyServer) -> None:
        with gsssocks.installed(proxy.url(), remote_dns=False), pytest.raises(socket.gaierror):
            socket.gethostbyname(NAME)
        with gsssocks.installed(proxy.url(remote_dns=False), remote_dns=True):
            assert Placeholders().covers(socket.gethostbyname(NAME))

    def test_of_names_reached_directly_are_the_systems(self, proxy: ProxyServer) -> None:
        plain = socket.getaddrinfo("localhost", 80)
        with gsssocks.installed(proxy.url()):
            assert socket.getaddrinfo("localhost", 80) == plain
        with gsssocks.installed(proxy.url(), no_proxy=NAME), pytest.raises(socket.gaierror):
            socket.gethostbyname(NAME)

    def test_of_the_proxys_own_name_are_the_systems(self, proxy: ProxyServer) -> None:
        plain = socket.getaddrinfo("localhost", proxy.port)
        with gsssocks.installed(proxy.url(), no_proxy=[]):
            assert socket.getaddrinfo("localhost", proxy.port) == plain

    def test_of_this_machines_name_are_the_systems(self, proxy: ProxyServer) -> None:
        plain = socket.getfqdn()
        with gsssocks.installed(proxy.url(), no_proxy=[]):
            assert socket.getfqdn() == plain

    def test_are_put_back(self, proxy: ProxyServer) -> None:
        before = [getattr(socket, name) for name in FUNCTIONS]
        with gsssocks.installed(proxy.url()):
            assert all(getattr(socket, name) is not plain for name, plain in zip(FUNCTIONS, before))
        assert all(getattr(socket, name) is plain for name, plain in zip(FUNCTIONS, before))


class TestOtherRanges:
    def test_are_what_lookups_answer_from(self, proxy: ProxyServer) -> None:
        with gsssocks.installed(proxy.url(), placeholders=OTHER_RANGES):
            for family, network in zip(FAMILIES, OTHER_RANGES):
                address = socket.getaddrinfo(NAME, 80, family)[0][4][0]
                assert ipaddress.ip_address(address) in ipaddress.ip_network(network)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_connect_to_an_address_from_before_them_goes_on(
        self, family: int, proxy: ProxyServer, echo: EchoServer
    ) -> None:
        with gsssocks.installed(proxy.url()):
            earlier = socket.getaddrinfo(NAME, echo.address[1], family, socket.SOCK_STREAM)[0][4]
            gsssocks.install(proxy.url(), placeholders=OTHER_RANGES)
            later = socket.getaddrinfo(NAME, echo.address[1], family, socket.SOCK_STREAM)[0][4]
            assert earlier != later
            for address in (earlier, later):
                with socket.socket(family) as sock:
                    sock.connect(address)
                    assert echoed(sock)
                assert str(last_session(proxy).destination) == f"{NAME}:{echo.address[1]}"

    def test_that_overlap_those_from_before_are_refused_and_nothing_changes(self, proxy: ProxyServer) -> None:
        with gsssocks.installed(proxy.url()):
            before = gsssocks.status()
            with pytest.raises(ValueError, match=r"bad placeholders '198\.18\.0\.0/16'"):
                gsssocks.install(proxy.url(), placeholders="198.18.0.0/16")
            assert gsssocks.status() == before


class TestConnect:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_to_a_placeholder_is_one_to_the_name(self, family: int, proxy: ProxyServer, echo: EchoServer) -> None:
        port = echo.address[1]
        with gsssocks.installed(proxy.url()), socket.socket(family) as sock:
            address = socket.getaddrinfo(NAME, port, family, socket.SOCK_STREAM)[0][4]
            sock.connect(address)
            assert echoed(sock)
            assert sock.getpeername()[:2] == address[:2]
        assert str(last_session(proxy).destination) == f"{NAME}:{port}"

    def test_ex_to_a_placeholder_is_one_to_the_name(self, proxy: ProxyServer, echo: EchoServer) -> None:
        with gsssocks.installed(proxy.url()), socket.socket() as sock:
            assert sock.connect_ex((socket.gethostbyname(NAME), echo.address[1])) == 0
            assert echoed(sock)

    def test_asks_for_the_name_as_it_was_first_looked_up(self, proxy: ProxyServer, echo: EchoServer) -> None:
        with gsssocks.installed(proxy.url()), socket.socket() as sock:
            # A label of its own: other tests have looked up NAME.
            address = socket.gethostbyname("Unknown.Target.Invalid.")
            assert socket.gethostbyname("unknown.target.invalid") == address
            with pytest.raises(ReplyError):
                sock.connect((address, echo.address[1]))
        destination = last_session(proxy).destination
        assert destination is not None
        assert destination.host == "Unknown.Target.Invalid."

    def test_to_a_name_the_proxy_does_not_know_fails_there(self, proxy: ProxyServer) -> None:
        with gsssocks.installed(proxy.url()), pytest.raises(ReplyError) as caught:
            socket.create_connection(("nowhere.invalid", 80), 20)
        assert caught.value.errno == errno.EHOSTUNREACH
        assert "nowhere.invalid" in str(caught.value)

    def test_to_a_placeholder_from_earlier_settings_goes_on(self, proxy: ProxyServer, echo: EchoServer) -> None:
        with gsssocks.installed(proxy.url()):
            address = (socket.gethostbyname(NAME), echo.address[1])
            with gsssocks.installed(proxy.url(remote_dns=False)), socket.create_connection(address, 20) as sock:
                assert echoed(sock)
        assert str(last_session(proxy).destination) == f"{NAME}:{echo.address[1]}"


class TestRules:
    """They apply to the name, not to the placeholder."""

    def test_refuse(self, proxy: ProxyServer) -> None:
        with gsssocks.installed(proxy.url(), rules={NAME: "refuse"}), pytest.raises(PermissionError, match=NAME):
            socket.create_connection((NAME, 80), 20)

    def test_protection(self, proxy: ProxyServer, echo: EchoServer) -> None:
        address = (NAME, echo.address[1])
        with gsssocks.installed(proxy.url(), rules={NAME: "integrity"}), socket.create_connection(address, 20) as sock:
            assert echoed(sock)
        assert last_session(proxy).protection == "integrity"

    def test_direct_for_the_port_alone(self, dante_confidentiality: Dante, echo: EchoServer) -> None:
        # The lookup cannot know: gethostbyname() is told no port.
        port = echo.address[1]
        granted = dante_confidentiality.connections()
        with gsssocks.installed(
            by_address(dante_confidentiality.port), no_proxy=[], rules={f"localhost:{port}": "direct"}
        ):
            address = socket.gethostbyname("localhost")
            assert Placeholders().covers(address)
            for connect in (socket.socket.connect, socket.socket.connect_ex):
                with socket.socket() as sock:
                    connect(sock, (address, port))
                    assert sock.getpeername() == ("127.0.0.1", port)
                    assert echoed(sock)
        assert dante_confidentiality.connections() == granted


class TestAPlaceholderThatIsNotKnown:
    ADDRESS = Placeholders().address("from.another.process.invalid")

    def test_is_refused_with_the_reason(self, proxy: ProxyServer) -> None:
        sessions = len(proxy.sessions)
        with gsssocks.installed(proxy.url()), socket.socket() as sock:
            with pytest.raises(OSError, match="look the name up again") as caught:
                sock.connect((self.ADDRESS, 80))
            assert caught.value.errno == errno.EHOSTUNREACH
            assert sock.connect_ex((self.ADDRESS, 80)) == errno.EHOSTUNREACH
        assert len(proxy.sessions) == sessions

    def test_is_an_address_like_any_other_without_remote_dns(self) -> None:
        requested: list[str] = []

        def refuse(client: Conversation) -> None:
            client.choose_method()
            client.establish_context()
            client.grant_level()
            requested.append(client.hear_request().address.host)
            client.reply(5)

        with (
            ScriptedProxy(refuse) as scripted,
            gsssocks.installed(scripted.url(), remote_dns=False),
            pytest.raises(ConnectionRefusedError),
        ):
            socket.create_connection((self.ADDRESS, 80), 20)
        assert requested == [self.ADDRESS]
