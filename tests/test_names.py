"""Rules and no_proxy by name hold for programs that look the name up first and connect to its address: most do."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import gsssocks
from gsssocks._answers import Answers
from gsssocks._config import NAMELESS, Rules
from gsssocks._resolver import Placeholders
from gsssocks.exceptions import ForbiddenError
from gsssocks.server import ProxyServer
from tests.peers.by_hand import until
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.targets import EchoServer, HTTPServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gsssocks.testing import Realm

pytestmark = [pytest.mark.default_python_only, pytest.mark.usefixtures("in_the_realm")]

NAME, SIBLING = "wiki.intranet.example", "files.intranet.example"
"""At one address, where the targets are."""
OTHER = "elsewhere.example"
"""At that address, too."""
ALONE = "alone.example"
"""At an address of its own."""
ADDRESS, OTHER_ADDRESS = "127.0.0.1", "127.0.0.9"
HOSTS = {NAME: ADDRESS, SIBLING: ADDRESS, OTHER: ADDRESS, ALONE: OTHER_ADDRESS}

MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "socks5h": ("socks5h", {}),
    "socks5": ("socks5", {}),
    "remote_dns=False": ("socks5h", {"remote_dns": False}),
}
every_mode = pytest.mark.parametrize("mode", MODES)
resolving_here = pytest.mark.parametrize("mode", ["socks5", "remote_dns=False"])


@pytest.fixture(scope="module")
def proxy(realm: Realm) -> Iterator[ProxyServer]:
    with ProxyServer("localhost", keytab=realm.keytab, hosts=HOSTS) as started:
        yield started


@pytest.fixture
def http() -> Iterator[HTTPServer]:
    """Each test has its own, which accepts nothing late that another test has made."""
    with HTTPServer(ADDRESS) as started:
        yield started


def url(proxy: ProxyServer, mode: str) -> str:
    host, port = proxy.address
    scheme, _ = MODES[mode]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}?target_name=socks@localhost"


# Fresh processes, whose resolver has another hosts file: the C library's own lookups.

PROGRAM = """
import asyncio, json, socket, sys, urllib.request
import requests
import trio
import gsssocks

url, options, name, port = json.loads(sys.argv[1])
gsssocks.install(url, **options)

def create_connection():
    socket.create_connection((name, port), 20).close()

def connect_to_gethostbyname():
    with socket.socket() as sock:
        sock.settimeout(20)
        sock.connect((socket.gethostbyname(name), port))

def connect_to_name():
    with socket.socket() as sock:
        sock.settimeout(20)
        sock.connect((name, port))

def urllib_request():
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(f"http://{name}:{port}/bytes/1", timeout=20).close()

def by_requests():
    with requests.Session() as session:
        session.trust_env = False
        session.get(f"http://{name}:{port}/bytes/1", timeout=20).close()

def open_connection():
    async def connect():
        _, writer = await asyncio.open_connection(name, port)
        writer.close()
        await writer.wait_closed()
    asyncio.run(connect())

def open_tcp_stream():
    async def connect():
        async with await trio.open_tcp_stream(name, port):
            pass
    trio.run(connect)

def root_of(error):
    causes = [error]
    while True:
        cause = getattr(error, "reason", None) or error.__cause__ or error.__context__
        (error, *_) = getattr(error, "exceptions", [cause])
        if not isinstance(error, BaseException):
            return causes
        causes.append(error)

ways = [
    create_connection, connect_to_gethostbyname, connect_to_name, urllib_request, by_requests, open_connection,
    open_tcp_stream,
]
outcomes = {}
for way in ways:
    try:
        way()
    except Exception as error:
        outcomes[way.__name__] = [type(cause).__name__ for cause in root_of(error)]
    else:
        outcomes[way.__name__] = "connected"
print(json.dumps(outcomes))
"""


@pytest.fixture
def run(proxy: ProxyServer, tmp_path: Path) -> Any:
    (tmp_path / "hosts").write_text("".join(f"{address} {name}\n" for name, address in HOSTS.items()))
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    env.update(LD_PRELOAD="libnss_wrapper.so", NSS_WRAPPER_HOSTS=str(tmp_path / "hosts"))

    def run(mode: str, name: str, port: int, **options: Any) -> dict[str, Any]:
        """What became of a connection in each of the ways in which programs make one."""
        arguments = json.dumps([url(proxy, mode), {**MODES[mode][1], **options}, name, port])
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, arguments], capture_output=True, check=False, env=env, timeout=120
        )
        assert done.stderr == b""
        outcomes: dict[str, Any] = json.loads(done.stdout)
        return outcomes

    return run


class TestEveryWayToConnect:
    @every_mode
    @pytest.mark.parametrize("entry", [NAME, ".intranet.example", "{name}:{port}", ".intranet.example:{port}"])
    def test_is_direct_where_no_proxy_names_it(
        self, run: Any, mode: str, entry: str, proxy: ProxyServer, http: HTTPServer
    ) -> None:
        port, sessions = http.address[1], len(proxy.sessions)
        outcomes = run(mode, NAME, port, no_proxy=[entry.format(name=NAME, port=port)])
        assert set(outcomes.values()) == {"connected"}
        assert len(proxy.sessions) == sessions
        until(lambda: http.accepted == len(outcomes))

    @every_mode
    def test_goes_through_the_proxy_at_other_ports(
        self, run: Any, mode: str, proxy: ProxyServer, http: HTTPServer
    ) -> None:
        sessions = len(proxy.sessions)
        outcomes = run(mode, NAME, http.address[1], no_proxy=[f"{NAME}:1"])
        assert set(outcomes.values()) == {"connected"}
        assert len(proxy.sessions) == sessions + len(outcomes)

    @every_mode
    @pytest.mark.parametrize("entry", [NAME, ".intranet.example", "{name}:{port}"])
    def test_is_refused_where_a_rule_refuses_the_name(
        self, run: Any, mode: str, entry: str, proxy: ProxyServer, http: HTTPServer
    ) -> None:
        port, sessions = http.address[1], len(proxy.sessions)
        outcomes = run(mode, NAME, port, no_proxy=[], rules={entry.format(name=NAME, port=port): "refuse"})
        assert [way for way, outcome in outcomes.items() if "ForbiddenError" not in outcome] == []
        assert (len(proxy.sessions), http.accepted) == (sessions, 0)

    @every_mode
    def test_is_protected_as_a_rule_demands_for_the_name(
        self, run: Any, mode: str, proxy: ProxyServer, http: HTTPServer
    ) -> None:
        sessions = len(proxy.sessions)
        outcomes = run(mode, NAME, http.address[1], no_proxy=[], rules={NAME: "integrity"})
        assert set(outcomes.values()) == {"connected"}
        assert {session.protection for session in proxy.sessions[sessions:]} == {"integrity"}
        assert len(proxy.sessions) == sessions + len(outcomes)


# In this process, over a resolver that answers from `HOSTS`.


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Name and address of each host, to be changed at will."""
    known = dict(HOSTS)
    getaddrinfo, gethostbyname, gethostbyname_ex = socket.getaddrinfo, socket.gethostbyname, socket.gethostbyname_ex
    gethostbyaddr = socket.gethostbyaddr

    def answer(host: Any) -> Any:
        return known.get(host.decode() if isinstance(host, bytes) else host, host)

    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **kw: getaddrinfo(answer(host), *args, **kw))
    monkeypatch.setattr(socket, "gethostbyname", lambda host: gethostbyname(answer(host)))
    monkeypatch.setattr(socket, "gethostbyname_ex", lambda host: (host, *gethostbyname_ex(answer(host))[1:]))
    monkeypatch.setattr(
        socket,
        "gethostbyaddr",
        lambda host: (host, [], [known[host]]) if host in known else (reverse(host) or gethostbyaddr(host)),
    )

    def reverse(address: str) -> Any:
        return next(((name, [], [address]) for name, known_ in known.items() if known_ == address), None)

    return known


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has been looked up yet."""
    monkeypatch.setattr("gsssocks._routing._answers", Answers())


@contextmanager
def installed(proxy: ProxyServer, mode: str, **options: Any) -> Iterator[None]:
    with gsssocks.installed(url(proxy, mode), **{"no_proxy": [], **MODES[mode][1], **options}):
        yield


def is_direct(address: tuple[Any, ...]) -> bool:
    with socket.create_connection(address[:2], PATIENCE_SECONDS) as sock:
        return not isinstance(sock, gsssocks.GSSSocket)


def protection(address: tuple[Any, ...]) -> str | None:
    with socket.create_connection(address[:2], PATIENCE_SECONDS) as sock:
        assert isinstance(sock, gsssocks.GSSSocket)
        return sock.protection


@pytest.mark.usefixtures("hosts", "fresh")
class TestWhatAProgramIsAnswered:
    @every_mode
    @pytest.mark.parametrize(
        "lookup",
        [
            lambda name: socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0],
            lambda name: socket.getaddrinfo(name.encode(), "80")[0][4][0],
            lambda name: socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)[0][4][0],
            lambda name: socket.gethostbyname(f"{name}"),
            lambda name: socket.gethostbyname_ex(name)[2][0],
            lambda name: socket.gethostbyaddr(name)[2][0],
        ],
    )
    def test_is_the_real_address_of_what_is_direct(
        self, mode: str, lookup: Any, proxy: ProxyServer, echo: EchoServer
    ) -> None:
        with installed(proxy, mode, no_proxy=[".intranet.example"]):
            assert lookup(NAME) == ADDRESS
            assert is_direct((ADDRESS, echo.address[1]))

    @resolving_here
    def test_is_the_real_address_of_what_goes_through_the_proxy(self, mode: str, proxy: ProxyServer) -> None:
        with installed(proxy, mode, rules={NAME: "integrity", ALONE: "direct"}):
            assert socket.gethostbyname(NAME) == ADDRESS
            assert socket.gethostbyname(OTHER) == ADDRESS

    @every_mode
    def test_is_a_placeholder_for_what_is_refused(self, mode: str, proxy: ProxyServer) -> None:
        with installed(proxy, mode, rules={NAME: "refuse"}):
            assert Placeholders().covers(socket.gethostbyname(NAME))

    @resolving_here
    def test_is_the_real_address_of_what_is_refused_at_other_ports(self, mode: str, proxy: ProxyServer) -> None:
        with installed(proxy, mode, rules={f"{NAME}:25": "refuse"}):
            assert socket.gethostbyname(NAME) == ADDRESS
            assert socket.getaddrinfo(NAME, 80)[0][4][0] == ADDRESS
            assert Placeholders().covers(str(socket.getaddrinfo(NAME, 25)[0][4][0]))


@pytest.mark.usefixtures("hosts", "fresh")
class TestAnAddressOfSeveralNames:
    """Nothing tells for which of them a connection is meant: what is strictest for one of them holds."""

    @resolving_here
    def test_is_direct_only_where_all_of_them_are(self, mode: str, proxy: ProxyServer, echo: EchoServer) -> None:
        address = (ADDRESS, echo.address[1])
        with installed(proxy, mode, no_proxy=[".intranet.example"]):
            assert not is_direct(address)
            for name in (NAME, SIBLING):
                socket.gethostbyname(name)
                assert is_direct(address)
            socket.gethostbyname(OTHER)
            assert not is_direct(address)

    @resolving_here
    def test_has_the_strongest_protection_that_one_of_them_has(
        self, mode: str, proxy: ProxyServer, echo: EchoServer
    ) -> None:
        address = (ADDRESS, echo.address[1])
        with installed(proxy, mode, rules={NAME: "integrity", SIBLING: "selective"}):
            socket.gethostbyname(NAME)
            assert protection(address) == "integrity"
            socket.gethostbyname(SIBLING)
            assert protection(address) == "selective"
            socket.gethostbyname(OTHER)  # at the proxy's own level
            assert protection(address) == "confidentiality"

    @resolving_here
    def test_is_refused_at_a_port_where_one_of_them_is(self, mode: str, proxy: ProxyServer, echo: EchoServer) -> None:
        with installed(proxy, mode, rules={f"{NAME}:9": "refuse"}):
            socket.gethostbyname(NAME)
            with pytest.raises(ForbiddenError, match=f"{ADDRESS}:9 .*'{NAME}:9=refuse'"):
                socket.create_connection((ADDRESS, 9), PATIENCE_SECONDS)
            assert not is_direct((ADDRESS, echo.address[1]))

    @every_mode
    def test_that_is_refused_by_one_name_is_reached_by_another(
        self, mode: str, proxy: ProxyServer, echo: EchoServer
    ) -> None:
        port = echo.address[1]
        with installed(proxy, mode, rules={NAME: "refuse"}):
            with pytest.raises(ForbiddenError):
                socket.create_connection((NAME, port), PATIENCE_SECONDS)
            assert not is_direct((OTHER, port))


@pytest.mark.usefixtures("fresh")
class TestAnAddress:
    @every_mode
    def test_of_no_name_is_decided_by_itself(
        self, mode: str, hosts: dict[str, str], proxy: ProxyServer, echo: EchoServer
    ) -> None:
        hosts[NAME] = OTHER_ADDRESS
        with installed(proxy, mode, no_proxy=[NAME]):
            socket.gethostbyname(NAME)
            assert not is_direct(echo.address)

    @every_mode
    def test_is_not_a_names_because_its_owner_says_so(
        self, mode: str, hosts: dict[str, str], proxy: ProxyServer, echo: EchoServer
    ) -> None:
        with installed(proxy, mode, no_proxy=[".intranet.example"]):
            assert socket.gethostbyaddr(hosts[NAME])[0] == NAME
            assert not is_direct(echo.address)

    @pytest.mark.usefixtures("hosts")
    @every_mode
    @pytest.mark.parametrize("spelling", ["127.1", "0x7f.0.0.1", "2130706433"])
    def test_is_the_names_in_any_spelling(self, mode: str, spelling: str, proxy: ProxyServer, echo: EchoServer) -> None:
        with installed(proxy, mode, no_proxy=[NAME]):
            socket.gethostbyname(NAME)
            with socket.socket() as sock:
                sock.connect((spelling, echo.address[1]))
                assert not isinstance(sock, gsssocks.GSSSocket)

    @pytest.mark.usefixtures("hosts")
    @resolving_here
    @pytest.mark.parametrize(
        ("rules", "action"),
        [
            ([(NAME, "direct"), (f"{ADDRESS}/32", "refuse")], "direct"),
            ([(f"{ADDRESS}/32", "refuse"), (NAME, "direct")], "refuse"),
            ([(OTHER, "refuse"), (f"{ADDRESS}/32", "direct")], "direct"),
        ],
    )
    def test_and_its_name_are_decided_by_the_first_rule_that_fits_either(
        self, mode: str, rules: list[tuple[str, str]], action: str, proxy: ProxyServer, echo: EchoServer
    ) -> None:
        with installed(proxy, mode, rules=rules):
            socket.gethostbyname(NAME)
            with socket.socket() as sock:
                code = sock.connect_ex(echo.address)
                assert (code, isinstance(sock, gsssocks.GSSSocket)) == (errno.EACCES * (action == "refuse"), False)

    @pytest.mark.usefixtures("hosts")
    @resolving_here
    def test_in_no_proxy_is_direct_whatever_its_name(self, mode: str, proxy: ProxyServer, echo: EchoServer) -> None:
        with installed(proxy, mode, no_proxy=[f"{ADDRESS}/32", ".intranet.example"]):
            assert is_direct((OTHER, echo.address[1]))

    @pytest.mark.usefixtures("hosts")
    def test_stays_its_names_under_other_settings_and_back(self, proxy: ProxyServer, echo: EchoServer) -> None:
        with installed(proxy, "socks5", no_proxy=[NAME]):
            socket.gethostbyname(NAME)
            with installed(proxy, "socks5h"):
                assert not is_direct(echo.address)
            assert is_direct(echo.address)


@pytest.mark.usefixtures("hosts", "fresh")
class TestDatagrams:
    @resolving_here
    def test_to_an_address_that_turns_out_to_be_a_refused_names_are_refused(
        self, mode: str, proxy: ProxyServer
    ) -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        ):
            server.bind((ADDRESS, 0))
            to = server.getsockname()
            with installed(proxy, mode, no_proxy=[ADDRESS], rules={f"{NAME}:{to[1]}": "refuse"}):
                assert sock.sendto(b"x", to) == 1
                socket.gethostbyname(NAME)
                with pytest.raises(ForbiddenError):
                    sock.sendto(b"x", to)

    @every_mode
    def test_to_a_direct_names_address_are_the_kernels(self, mode: str, proxy: ProxyServer) -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        ):
            server.bind((ADDRESS, 0))
            with installed(proxy, mode, no_proxy=[NAME]):
                address = socket.getaddrinfo(NAME, server.getsockname()[1], type=socket.SOCK_DGRAM)[0][4]
                sock.sendto(b"x", address)
                assert type(sock) is socket.socket
            server.settimeout(PATIENCE_SECONDS)
            assert server.recv(10) == b"x"


class TestLookups:
    """They are left alone where nothing depends on them."""

    @pytest.mark.parametrize("options", [{}, {"no_proxy": "10.0.0.0/8,*:25"}, {"rules": {"10.0.0.0/8:25": "refuse"}}])
    def test_are_not_patched_where_no_name_is_given(self, options: dict[str, Any]) -> None:
        with gsssocks.installed("socks5://127.0.0.1:1", **options):
            assert not {"socket.getaddrinfo", "socket.gethostbyname"}.intersection(gsssocks.status().patched)

    def test_may_answer_anything_if_they_are_somebody_elses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers: list[Any] = [[], None, [()], [("?", "?")], [(1, 2, 3, 4, (None,))]]
        for answer in answers:
            monkeypatch.setattr(socket, "getaddrinfo", lambda *_, answer=answer: answer)
            with gsssocks.installed("socks5://127.0.0.1:1", no_proxy=[NAME]):
                assert socket.getaddrinfo(NAME, 80) is answer


class TestAnswers:
    RULES = Rules({"a.example": "direct", ".example": "refuse"})
    NAMINGS = (RULES.naming("a.example"), RULES.naming("b.example"))

    def test_are_known_by_address_in_any_form(self) -> None:
        answers = Answers()
        answers.note(["192.0.2.1", "fe80::1%lo"], self.NAMINGS[0])
        for address in ("192.0.2.1", "::ffff:192.0.2.1", "192.0.513", "fe80::1", "FE80::1%1"):
            assert answers.namings(address) == (self.NAMINGS[0],)
        assert not answers.namings("192.0.2.2")
        assert not answers.namings("a.example")

    def test_are_news_once(self) -> None:
        answers = Answers()
        assert answers.note(["192.0.2.1"], NAMELESS)
        assert not answers.note(["192.0.2.1"], NAMELESS)
        assert answers.note(["192.0.2.2", "192.0.2.1"], NAMELESS)
        assert answers.note(["192.0.2.1"], self.NAMINGS[1])
        assert answers.namings("192.0.2.1") == (NAMELESS, self.NAMINGS[1])

    def test_of_names_that_rules_cannot_tell_apart_take_room_once(self) -> None:
        rules = Rules({".example": "refuse"})
        answers = Answers()
        for number in range(1000):
            answers.note(["0.0.0.0"], rules.naming(f"host{number}.example"))
        assert len(answers.namings("0.0.0.0")) == 1

    def test_used_last_are_remembered_and_no_others(self) -> None:
        answers = Answers(limit=2)
        answers.note(["192.0.2.1", "192.0.2.2"], NAMELESS)
        assert answers.namings("192.0.2.1")
        answers.note(["192.0.2.3"], NAMELESS)
        assert not answers.namings("192.0.2.2")
        assert answers.namings("192.0.2.1")
        assert answers.namings("192.0.2.3")
