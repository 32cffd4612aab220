"""What modules had taken of `socket` and `os` before `install()`: covered, told, and given back."""

from __future__ import annotations

import gc
import importlib.util
import os
import socket
import sys
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any, Callable

import pytest

import gsssocks
from gsssocks import _originals
from gsssocks._resolver import Placeholders
from gsssocks.testing import tunnelled_pair
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly
from tests.peers.routes import tunnelled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer

FUNCTIONS = ("getaddrinfo", "gethostbyaddr", "gethostbyname", "gethostbyname_ex", "getnameinfo")
PROXY = "socks5h://proxy.example"


class Earlier(ModuleType):
    """A module with one name for a function."""

    taken: Callable[..., object]


@pytest.fixture
def earlier() -> Iterator[Earlier]:
    module = Earlier("earlier")
    sys.modules["earlier"] = module
    yield module
    del sys.modules["earlier"]


class TestTakenBefore:
    @pytest.mark.parametrize("name", FUNCTIONS)
    def test_is_covered(self, earlier: Earlier, name: str) -> None:
        plain = earlier.taken = getattr(socket, name)
        with gsssocks.installed(PROXY):
            assert earlier.taken is getattr(socket, name)
            assert earlier.taken is not plain
        assert earlier.taken is plain

    def test_sendfile_is_covered_as_soon_as_there_is_a_tunnel(self, earlier: Earlier) -> None:
        gc.collect()  # tunnels of other tests that nobody refers to any more
        plain = earlier.taken = os.sendfile
        with gsssocks.installed(PROXY):
            assert earlier.taken is plain
            sock, peer = tunnelled_pair()
            with sock, peer:
                assert earlier.taken is os.sendfile
                assert earlier.taken is not plain
        assert earlier.taken is plain

    def test_answers_placeholders(self, earlier: Earlier) -> None:
        earlier.taken = socket.gethostbyname
        with gsssocks.installed(PROXY):
            assert Placeholders().covers(str(earlier.taken("target.example")))

    def test_is_told_by_status(self, earlier: Earlier) -> None:
        earlier.taken = socket.gethostbyname
        with gsssocks.installed(PROXY):
            assert "earlier.taken" in gsssocks.status().references
        assert gsssocks.status().references == ()

    def test_is_covered_when_remote_dns_comes_later(self, earlier: Earlier) -> None:
        plain = earlier.taken = socket.gethostbyname
        with gsssocks.installed(PROXY, remote_dns=False):
            assert earlier.taken is plain
            gsssocks.install(PROXY)
            assert earlier.taken is socket.gethostbyname
        assert earlier.taken is plain

    def test_is_left_alone_if_it_is_something_else(self, earlier: Earlier) -> None:
        earlier.taken = own = lambda: None
        with gsssocks.installed(PROXY):
            assert earlier.taken is own
        assert earlier.taken is own

    def test_is_left_alone_if_it_was_bound_anew_meanwhile(self, earlier: Earlier) -> None:
        earlier.taken = socket.gethostbyname
        with gsssocks.installed(PROXY):
            earlier.taken = own = lambda: None
        assert earlier.taken is own

    def test_is_covered_once_by_several_installs(self, earlier: Earlier) -> None:
        plain = earlier.taken = socket.gethostbyname
        with gsssocks.installed(PROXY):
            before = gsssocks.status().references
            with gsssocks.installed(PROXY):
                assert gsssocks.status().references == before
        assert earlier.taken is plain


METHODS = ("connect", "connect_ex", "sendto", "sendmsg", "bind", "listen")


class TestMethodTakenBefore:
    @pytest.mark.parametrize("name", METHODS)
    def test_is_covered(self, earlier: Earlier, name: str) -> None:
        plain = earlier.taken = getattr(socket.socket, name)
        with gsssocks.installed(PROXY, bind=True):
            assert earlier.taken is not plain
            assert earlier.taken == getattr(socket.socket, name)
            assert "earlier.taken" in gsssocks.status().references
        assert earlier.taken is plain

    def test_connects_through_the_proxy(
        self, earlier: Earlier, realm: Realm, dante_confidentiality: Dante, echo: EchoServer
    ) -> None:
        earlier.taken = socket.socket.connect
        with socket.socket() as sock:
            sock.settimeout(PATIENCE_SECONDS)
            with tunnelled(realm, dante_confidentiality):
                earlier.taken(sock, echo.address)
            assert isinstance(sock, gsssocks.GSSSocket)
            sock.sendall(b"hello")
            assert receive_exactly(sock, 5) == b"hello"

    def test_connects_directly_what_is_reached_directly(self, earlier: Earlier, echo: EchoServer) -> None:
        earlier.taken = socket.socket.connect
        with gsssocks.installed(PROXY), socket.socket() as sock:
            earlier.taken(sock, echo.address)
            assert type(sock) is socket.socket

    @pytest.mark.parametrize("name", ["connect", "connect_ex"])
    def test_called_with_a_socket_of_another_class_is_what_it_was(
        self, earlier: Earlier, echo: EchoServer, name: str
    ) -> None:
        earlier.taken = getattr(socket.socket, name)
        underlying = _originals.SocketType()
        with gsssocks.installed(PROXY, no_proxy=[]):
            earlier.taken(underlying, echo.address)
        assert underlying.getpeername() == echo.address
        underlying.close()

    def test_put_back_by_whoever_took_it_leaves_no_trace(self, earlier: Earlier) -> None:
        """As testing tools do that lock the network out for the time of a test."""
        earlier.taken = socket.socket.connect
        with gsssocks.installed(PROXY):
            for method in (lambda *_: None, earlier.taken):
                socket.socket.connect = method  # type: ignore[method-assign]
            with socket.socket() as sock, pytest.raises(gsssocks.ProxyError):
                sock.connect(("target.example", 80))
        assert "connect" not in vars(socket.socket)

    def test_by_whoever_patches_the_method_with_it_is_left_alone(
        self, earlier: Earlier, echo: EchoServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is what our own calls in the end."""
        plain = earlier.taken = socket.socket.connect
        monkeypatch.setattr(socket.socket, "connect", lambda *arguments: earlier.taken(*arguments))  # noqa: PLW0108
        with gsssocks.installed(PROXY), socket.socket() as sock:
            assert earlier.taken is plain
            sock.connect(echo.address)


def test_taken_between_is_given_back(earlier: Earlier) -> None:
    plain = socket.getaddrinfo
    with gsssocks.installed(PROXY):
        earlier.taken = socket.getaddrinfo
    assert earlier.taken is plain


def test_our_own_originals_stay_the_originals() -> None:
    plain = _originals.getaddrinfo, _originals.gethostbyaddr
    with gsssocks.installed(PROXY):
        assert (_originals.getaddrinfo, _originals.gethostbyaddr) == plain


def test_a_lazy_module_stays_unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazily.py").write_text("from socket import gethostbyname\n")
    spec = importlib.util.spec_from_file_location("lazily", tmp_path / "lazily.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lazily", module)
    spec.loader.exec_module(module)
    with gsssocks.installed(PROXY):
        assert "gethostbyname" not in object.__getattribute__(module, "__dict__")
        assert module.gethostbyname is socket.gethostbyname


class Touchy:
    """Some packages put objects like it in the place of their modules."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


class TouchyModule(ModuleType):
    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was asked for")


@pytest.mark.parametrize(
    "make", [Touchy, lambda: TouchyModule("touchy"), lambda: None], ids=["object", "module", "none"]
)
def test_whatever_stands_in_the_place_of_a_module_is_asked_nothing(
    make: Callable[[], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "touchy", make())
    with gsssocks.installed(PROXY):
        pass


def test_other_threads_may_import_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    failures: list[BaseException] = []

    def keep_importing() -> None:
        number = 0
        try:
            while not ended.is_set():
                number = (number + 1) % 1000
                sys.modules[f"meanwhile{number}"] = module = ModuleType("meanwhile")
                vars(module).update({f"name{count}": socket.gethostbyname for count in range(10)})
        except BaseException as error:  # noqa: BLE001 - told by the assertion
            failures.append(error)

    thread = threading.Thread(target=keep_importing)
    thread.start()
    try:
        for _ in range(50):
            with gsssocks.installed(PROXY):
                pass
    finally:
        ended.set()
        thread.join()
        for name in [name for name in sys.modules if name.startswith("meanwhile")]:
            del sys.modules[name]
    assert not failures
