"""Whose credential a proxy's configuration names: cache, keytab or password, for each proxy its own."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from gssapi import raw

import gsssocks
from gsssocks import AuthenticationError, GSSSocket, Proxy
from gsssocks._gss import _credential
from gsssocks.server import ProxyServer
from gsssocks.testing import Realm, ScriptedProxy
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Conversation
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer

pytestmark = pytest.mark.default_python_only


@pytest.fixture(autouse=True)
def _in_the_realm(realm: Realm) -> Iterator[None]:
    """Without a ticket in the default cache: whatever works here does so by the credential that is named."""
    realm.kdestroy()
    with realm.activate():
        yield
    realm.kinit()


@pytest.fixture(scope="module")
def bob(realm: Realm) -> tuple[str, str]:
    """Another user: principal and password."""
    return realm.add_user("bob", "correct horse"), "correct horse"


@pytest.fixture
def server() -> Iterator[ProxyServer]:
    with ProxyServer("localhost") as started:
        yield started


def named(server: ProxyServer | Dante, **options: object) -> Proxy:
    return Proxy("localhost", server.port, **options)  # type: ignore[arg-type]  # each test names what it sets


def initiator(proxy: Proxy, target: tuple[str, int]) -> str | None:
    """Whom the proxy takes us for, after an echo through it."""
    with gsssocks.create_connection(target, PATIENCE_SECONDS, proxy=proxy) as sock:
        sock.sendall(b"ping")
        assert receive_exactly(sock, 4) == b"ping"
        assert sock.tunnel is not None
        return sock.tunnel.initiator


def tickets_asked_for(realm: Realm, principal: str) -> int:
    """How many initial tickets the KDC has given a user."""
    return sum(
        "AS_REQ" in line and "ISSUE" in line and f"{principal} for krbtgt" in line
        for line in realm.kdc_log().splitlines()
    )


class TestCache:
    def test_named_file(
        self, realm: Realm, bob: tuple[str, str], tmp_path: Path, server: ProxyServer, echo: EchoServer
    ) -> None:
        cache = realm.kinit(bob[0], ccache=tmp_path / "bob")
        assert initiator(named(server, ccache=f"FILE:{cache}"), echo.address) == bob[0]

    def test_named_collection(self, realm: Realm, tmp_path: Path, server: ProxyServer, echo: EchoServer) -> None:
        (tmp_path / "collection").mkdir(mode=0o700)
        cache = f"DIR:{tmp_path / 'collection'}"
        subprocess.run(
            ["kinit", "-c", cache, realm.principal],
            input=realm.password,
            text=True,
            env={**os.environ, **realm.env},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        assert initiator(named(server, ccache=cache), echo.address) == realm.principal

    def test_kernels_keyring(self, realm: Realm, server: ProxyServer, echo: EchoServer) -> None:
        cache = "KEYRING:session:gsssocks-test"
        environ = {**os.environ, **realm.env}
        got = subprocess.run(
            ["kinit", "-c", cache, realm.principal],
            input=realm.password,
            text=True,
            env=environ,
            capture_output=True,
            check=False,
        )
        if got.returncode:
            pytest.skip(f"no keyrings on this system: {got.stderr}")
        try:
            assert initiator(named(server, ccache=cache), echo.address) == realm.principal
        finally:
            subprocess.run(["kdestroy", "-c", cache], env=environ, check=True)

    def test_in_memory(self, realm: Realm, server: ProxyServer, echo: EchoServer) -> None:
        store: dict[bytes | str, bytes | str] = {
            b"ccache": b"MEMORY:filled-by-the-program",
            b"client_keytab": realm.client_keytab.encode(),
        }
        kept = raw.acquire_cred_from(store, None, usage="initiate").creds
        assert initiator(named(server, ccache="MEMORY:filled-by-the-program"), echo.address) == realm.principal
        del kept

    def test_empty_one_is_named_in_the_error(self, server: ProxyServer, echo: EchoServer, tmp_path: Path) -> None:
        with pytest.raises(AuthenticationError, match=r"FILE:.*/nothing.*run kinit"):
            initiator(named(server, ccache=f"FILE:{tmp_path / 'nothing'}"), echo.address)


class TestKeytab:
    def test_gets_its_own_ticket(self, realm: Realm, dante: Dante, echo: EchoServer) -> None:
        level = "confidentiality" if dante.enctype == "confidentiality" else "integrity"
        proxy = named(dante, keytab=realm.client_keytab, principal=realm.principal, protection=level)
        assert initiator(proxy, echo.address) == realm.principal

    def test_principal_follows_from_the_keytab(self, realm: Realm, server: ProxyServer, echo: EchoServer) -> None:
        assert initiator(named(server, keytab=realm.client_keytab), echo.address) == realm.principal

    def test_default_cache_is_left_alone(self, realm: Realm, server: ProxyServer, echo: EchoServer) -> None:
        initiator(named(server, keytab=realm.client_keytab), echo.address)
        assert not Path(realm.ccache).exists()

    def test_default_cache_is_not_used(
        self, realm: Realm, bob: tuple[str, str], server: ProxyServer, echo: EchoServer
    ) -> None:
        realm.kinit(bob[0])
        assert initiator(named(server, keytab=realm.client_keytab), echo.address) == realm.principal

    def test_kdc_is_asked_once_for_many_connections(self, realm: Realm, server: ProxyServer, echo: EchoServer) -> None:
        proxy = named(server, keytab=realm.client_keytab, principal=realm.principal, service="socks")
        initiator(proxy, echo.address)
        before = tickets_asked_for(realm, realm.principal)
        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(lambda _: initiator(proxy, echo.address), range(24))) == {realm.principal}
        assert tickets_asked_for(realm, realm.principal) == before

    def test_principal_that_is_not_in_it(self, realm: Realm, server: ProxyServer, echo: EchoServer) -> None:
        with pytest.raises(AuthenticationError, match="keytab") as caught:
            initiator(named(server, keytab=realm.client_keytab, principal="mallory@GSSSOCKS.TEST"), echo.address)
        assert "mallory" in str(caught.value)
        assert "the keytab has no key of that user" in str(caught.value)

    @pytest.mark.parametrize("with_a_cache", [False, True])
    @pytest.mark.parametrize("text", [None, "no keytab"])
    def test_that_cannot_be_read_is_what_the_error_speaks_of(
        self,
        server: ProxyServer,
        echo: EchoServer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        text: str | None,
        *,
        with_a_cache: bool,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        if text is not None:
            Path("user.keytab").write_text(text)
        cache = {"ccache": f"FILE:{tmp_path}/cache"} if with_a_cache else {}
        with pytest.raises(AuthenticationError, match=r"cannot be read: see klist -k user\.keytab\.") as caught:
            initiator(named(server, keytab="user.keytab", **cache), echo.address)
        assert "kinit" not in str(caught.value)

    def test_ticket_is_renewed_before_it_ends(self, echo: EchoServer) -> None:
        short = Realm(name="SHORT.TEST", ticket_lifetime="4s", clock_skew_seconds=1)
        with short, short.activate(), ProxyServer("localhost", keytab=short.keytab) as server:
            proxy = named(server, keytab=short.client_keytab)
            initiator(proxy, echo.address)
            before = tickets_asked_for(short, short.principal)
            first_has_ended = time.monotonic() + 5
            while time.monotonic() < first_has_ended:
                assert initiator(proxy, echo.address) == short.principal
                time.sleep(0.1)
            assert tickets_asked_for(short, short.principal) > before

    def test_ticket_that_ended_while_the_machine_slept(self, monkeypatch: pytest.MonkeyPatch, echo: EchoServer) -> None:
        """time.monotonic() stands still meanwhile; what tickets go by does not."""
        short = Realm(name="SLEEP.TEST", ticket_lifetime="3s", clock_skew_seconds=1)
        with short, short.activate(), ProxyServer("localhost", keytab=short.keytab) as server:
            proxy = named(server, keytab=short.client_keytab)
            initiator(proxy, echo.address)
            time.sleep(5)
            monkeypatch.setattr(_credential, "time", Slept(5))
            assert initiator(proxy, echo.address) == short.principal

    def test_ticket_for_a_key_that_the_proxy_has_no_more_is_got_anew(self, echo: EchoServer) -> None:
        with Realm(name="ROTATED.TEST") as rotated, rotated.activate(), ProxyServer("localhost") as server:
            proxy = named(server, keytab=rotated.client_keytab, principal=rotated.principal)
            initiator(proxy, echo.address)
            renew_key(rotated)
            with pytest.raises(AuthenticationError):
                initiator(proxy, echo.address)
            assert initiator(proxy, echo.address) == rotated.principal

    def test_proxy_that_refuses_every_ticket_does_not_have_the_kdc_asked_each_time(self, realm: Realm) -> None:
        with ScriptedProxy(refuse_the_ticket) as refusing:
            proxy = Proxy("localhost", refusing.port, keytab=realm.client_keytab, principal=realm.principal)
            before = tickets_asked_for(realm, realm.principal)
            for _ in range(6):
                with pytest.raises(AuthenticationError):
                    gsssocks.create_connection(("target.example", 80), proxy=proxy)
            assert tickets_asked_for(realm, realm.principal) <= before + 2


class Slept:
    """The module `time` after the machine has slept."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def monotonic(self) -> float:
        return time.monotonic() - self._seconds


def refuse_the_ticket(client: Conversation) -> None:
    client.choose_method()
    client.hear_message()
    client.send(b"\x01\xff")


def renew_key(realm: Realm) -> None:
    """A new key of the service, at the KDC and in its keytab, which has no other then."""
    Path(realm.keytab).unlink()
    kerberos = realm._kerberos
    assert kerberos is not None
    kerberos.run_kadminl(["ktadd", "-k", realm.keytab, realm.service_principal])


class TestPassword:
    def test_gets_a_ticket(self, bob: tuple[str, str], server: ProxyServer, echo: EchoServer) -> None:
        assert initiator(named(server, principal=bob[0], password=bob[1]), echo.address) == bob[0]

    def test_in_a_url(self, bob: tuple[str, str], server: ProxyServer, echo: EchoServer) -> None:
        proxy = Proxy.from_url(f"socks5h://bob%40GSSSOCKS.TEST:correct%20horse@localhost:{server.port}")
        assert initiator(proxy, echo.address) == bob[0]

    def test_wrong_one(self, bob: tuple[str, str], server: ProxyServer, echo: EchoServer) -> None:
        with pytest.raises(AuthenticationError, match="password") as caught:
            initiator(named(server, principal=bob[0], password="battery staple"), echo.address)
        assert "battery" not in str(caught.value)
        assert "check the password" in str(caught.value)

    def test_by_pysocks_names(self, bob: tuple[str, str], server: ProxyServer, echo: EchoServer) -> None:
        with GSSSocket() as sock:
            sock.set_proxy(2, "localhost", server.port, username=bob[0], password=bob[1])
            sock.connect(echo.address)
            assert sock.tunnel is not None
            assert sock.tunnel.initiator == bob[0]

    def test_kdc_is_asked_once_for_many_connections(
        self, realm: Realm, bob: tuple[str, str], server: ProxyServer, echo: EchoServer
    ) -> None:
        proxy = named(server, principal=bob[0], password=bob[1])
        initiator(proxy, echo.address)
        before = tickets_asked_for(realm, bob[0])
        for _ in range(5):
            initiator(proxy, echo.address)
        assert tickets_asked_for(realm, bob[0]) == before


def test_only_so_many_are_kept(realm: Realm, bob: tuple[str, str], server: ProxyServer, echo: EchoServer) -> None:
    """Whether they were got or not: a program may try any number of passwords."""
    for number in range(_credential.MAX_ACQUIRED + 3):
        acquired = _credential.acquire(_credential.Source(bob[0], f"ignored-{number}", None, bob[1], "krb5"))
        assert acquired is not None
        with pytest.raises(raw.GSSError):
            _credential.acquire(_credential.Source(bob[0], None, None, f"wrong-{number}", "krb5"))
    assert len(_credential._acquired) == _credential.MAX_ACQUIRED
    assert not _credential._locks
    assert initiator(named(server, principal=bob[0], password=bob[1]), echo.address) == bob[0]


def test_two_identities_at_once(realm: Realm, bob: tuple[str, str], server: ProxyServer, echo: EchoServer) -> None:
    alices = named(server, keytab=realm.client_keytab)
    bobs = named(server, principal=bob[0], password=bob[1])
    start = threading.Barrier(8)

    def connect(proxy: Proxy) -> list[str | None]:
        start.wait()
        return [initiator(proxy, echo.address) for _ in range(10)]

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(connect, [alices, bobs] * 4))
    assert found == [[realm.principal] * 10, [bob[0]] * 10] * 4


def test_kdc_that_does_not_answer_keeps_nobody_else_waiting(
    realm: Realm, bob: tuple[str, str], server: ProxyServer, echo: EchoServer
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, Realm(name="SILENT.TEST") as unreachable:
        profile = Path(unreachable.env["KRB5_CONFIG"]).read_text()
        port = silent.getsockname()[1]
        with_silent = Path(unreachable.directory, "silent.conf")
        with_silent.write_text(profile.replace(f"127.0.0.1:{unreachable.port}", f"127.0.0.1:{port}"))
        both = f"{realm.env['KRB5_CONFIG']}:{with_silent}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KRB5_CONFIG", both)
            waiting = named(server, principal="alice@SILENT.TEST", password="x", timeout=3.0)
            with ThreadPoolExecutor(1) as threads:
                failing = threads.submit(initiator, waiting, echo.address)
                silent.settimeout(PATIENCE_SECONDS)
                with silent.accept()[0]:  # it has been asked
                    assert initiator(named(server, principal=bob[0], password=bob[1]), echo.address) == bob[0]
                    assert not failing.done()
                    assert isinstance(failing.exception(), socket.timeout)


def test_environment_stays_as_it_is(realm: Realm, bob: tuple[str, str], server: ProxyServer, echo: EchoServer) -> None:
    before = dict(os.environ)
    initiator(named(server, keytab=realm.client_keytab), echo.address)
    initiator(named(server, principal=bob[0], password=bob[1]), echo.address)
    assert dict(os.environ) == before


def test_principal_alone_is_never_somebody_else(realm: Realm, server: ProxyServer, echo: EchoServer) -> None:
    """Where several mechanisms are installed, GSS-API would find a credential of another one for any name, and go on
    with the default Kerberos user."""
    realm.kinit()
    with pytest.raises(AuthenticationError, match=r"mallory@GSSSOCKS\.TEST"):
        initiator(named(server, principal="mallory@GSSSOCKS.TEST"), echo.address)
