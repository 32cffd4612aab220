"""What is wrong is between the client and Kerberos: tickets, names, keys, and a KDC that does not answer."""

from __future__ import annotations

import errno
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks import AuthenticationError, Proxy, ProxyConnectionError
from gsssocks.testing import Realm, ScriptedProxy
from tests.hostile.misdeeds import EKEYREJECTED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Conversation

TARGET = ("secret.target.example", 4711)
ENOKEY = getattr(errno, "ENOKEY", errno.EACCES)
EKEYEXPIRED = getattr(errno, "EKEYEXPIRED", errno.EACCES)


def serve(client: Conversation) -> None:
    client.open_tunnel()
    client.echo()


def fails(proxy: ScriptedProxy, **options: object) -> AuthenticationError:
    """How an attempt to connect with these options fails, by connect() and by connect_ex() alike."""
    with pytest.raises(AuthenticationError) as caught:
        gsssocks.create_connection(TARGET, 20, proxy=proxy.url(**options))
    with gsssocks.installed(proxy.url(**options)), socket.socket() as sock:
        fd = sock.fileno()
        assert sock.connect_ex(TARGET) == caught.value.errno
        assert type(sock) is socket.socket
        assert sock.fileno() == fd
    error: AuthenticationError = caught.value
    return error


@pytest.fixture
def proxy() -> Iterator[ScriptedProxy]:
    """An honest one, which is not told anything by a client that has no ticket for it."""
    with ScriptedProxy(serve) as started:
        yield started
    assert started.received == b""


@pytest.fixture
def kdc_at(realm: Realm, nobody: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A TCP port that the configuration names as the realm's KDC, and a user with no ticket for the proxy yet."""
    configuration = Path(realm.env["KRB5_CONFIG"]).read_text()
    moved = configuration.replace(f"127.0.0.1:{realm.port}", "{}:{}".format(*nobody))
    (tmp_path / "krb5.conf").write_text(moved)
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{realm.kinit(ccache=tmp_path / 'ccache')}")
    monkeypatch.setenv("KRB5_CONFIG", str(tmp_path / "krb5.conf"))
    return nobody[1]


class TestTicket:
    def test_none(self, proxy: ScriptedProxy, tmp_path: Path) -> None:
        error = fails(proxy, ccache=f"FILE:{tmp_path / 'none'}")
        assert error.errno == ENOKEY
        assert "run kinit" in str(error)
        assert str(tmp_path / "none") in str(error)

    def test_none_in_the_default_cache(
        self, proxy: ScriptedProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KRB5CCNAME", f"FILE:{tmp_path / 'none'}")
        error = fails(proxy)
        assert error.errno == ENOKEY
        assert "run kinit" in str(error)
        assert str(tmp_path / "none") in str(error)

    def test_expired(self, proxy: ScriptedProxy, realm: Realm, tmp_path: Path) -> None:
        ccache = realm.kinit_expired(ccache=tmp_path / "ccache")
        error = fails(proxy, ccache=f"FILE:{ccache}")
        assert error.errno == EKEYEXPIRED
        assert "expired: run kinit again" in str(error)

    def test_of_somebody_else(self, proxy: ScriptedProxy) -> None:
        mallory = Proxy.from_url(proxy.url(), principal="mallory@GSSSOCKS.TEST")
        with pytest.raises(AuthenticationError, match=r"mallory@GSSSOCKS\.TEST") as caught:
            gsssocks.create_connection(TARGET, 20, proxy=mallory)
        assert "kinit" in str(caught.value)

    def test_client_keytab_missing(self, proxy: ScriptedProxy, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"the keytab .*no\.keytab' is not there"):
            fails(proxy, ccache=f"FILE:{tmp_path / 'none'}", keytab=tmp_path / "no.keytab")


class TestName:
    def test_wrong_service(self, proxy: ScriptedProxy) -> None:
        error = fails(proxy, service="rcmd")
        assert error.errno == EKEYREJECTED
        assert "rcmd@localhost" in str(error)
        assert "service=" in str(error)

    def test_wrong_host(self, proxy: ScriptedProxy) -> None:
        with pytest.raises(AuthenticationError, match=r"the proxy.s host.*target_name=") as caught:
            gsssocks.create_connection(TARGET, 20, proxy=f"socks5h://127.0.0.1:{proxy.port}")
        assert "socks@127.0.0.1" in str(caught.value)
        assert caught.value.errno == EKEYREJECTED

    def test_target_name_of_another_service(self, proxy: ScriptedProxy) -> None:
        error = fails(proxy, target_name="http/elsewhere.example@GSSSOCKS.TEST")
        assert error.errno == EKEYREJECTED
        assert "http/elsewhere.example@GSSSOCKS.TEST" in str(error)

    def test_unknown_realm(self, proxy: ScriptedProxy) -> None:
        error = fails(proxy, target_name="socks/localhost@ELSEWHERE.EXAMPLE")
        assert "ELSEWHERE.EXAMPLE" in str(error)
        assert "target_name=" in str(error)


def test_proxys_keytab_holds_another_key() -> None:
    """A proxy that cannot read the ticket closes, as Dante does."""

    def cannot_read_the_ticket(client: Conversation) -> None:
        client.choose_method()
        with pytest.raises(AuthenticationError):
            client.establish_context()

    with (
        Realm() as namesake,
        ScriptedProxy(cannot_read_the_ticket, keytab=namesake.keytab) as proxy,
        pytest.raises(AuthenticationError, match=r"keytab \(key version\)") as caught,
    ):
        gsssocks.create_connection(TARGET, 20, proxy=proxy.url())
    assert caught.value.errno == errno.ECONNRESET
    assert b"secret" not in proxy.received


@contextmanager
def left_behind_ends() -> Iterator[None]:
    """Wait, at the end, for the calls into Kerberos that were left behind at a deadline."""

    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name == "gsssocks-wait":
            thread.join(60)
            assert not thread.is_alive()


class TestKDC:
    @pytest.mark.usefixtures("kdc_at")
    def test_down(self, proxy: ScriptedProxy) -> None:
        error = fails(proxy)
        assert error.errno == errno.ENETUNREACH
        assert "no KDC of the realm answers" in str(error)

    @pytest.mark.parametrize(("socket_timeout", "proxy_timeout"), [(0.2, 30), (None, 0.2)])
    def test_deadline_holds_while_it_does_not_answer(
        self, proxy: ScriptedProxy, kdc_at: int, socket_timeout: float | None, proxy_timeout: float
    ) -> None:
        with (
            left_behind_ends(),
            socket.create_server(("127.0.0.1", kdc_at)),
            pytest.raises(ProxyConnectionError, match="timed out while acquiring a ticket for the proxy") as caught,
        ):
            gsssocks.create_connection(TARGET, socket_timeout, proxy=proxy.url(timeout=proxy_timeout))
        assert isinstance(caught.value, socket.timeout)
        assert caught.value.errno == errno.ETIMEDOUT

    def test_socket_is_fresh_while_the_kdc_is_still_being_asked(self, proxy: ScriptedProxy, kdc_at: int) -> None:
        with (
            left_behind_ends(),
            socket.create_server(("127.0.0.1", kdc_at)),
            gsssocks.installed(proxy.url(timeout=0.2)),
            socket.socket() as sock,
        ):
            fd = sock.fileno()
            assert sock.connect_ex(TARGET) == errno.ETIMEDOUT
            assert type(sock) is socket.socket
            assert sock.fileno() == fd
            sock.connect(("127.0.0.1", kdc_at))
