"""The peers of the other tests are what they claim to be."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import gssapi
import pytest
import socks
from gssapi.exceptions import MissingCredentialsError
from gssapi.raw.misc import GSSError

from gsssocks.testing import Realm, RealmError
from tests.peers.dante import Dante
from tests.peers.targets import EchoServer, SinkServer, SourceServer, octets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import trustme

    from tests.peers.targets import HTTPSServer

LEVELS = {"clear": 0, "integrity": 1, "confidentiality": 2}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within 20 s"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def accepted_by(realm: Realm, target: str = "socks@localhost") -> str:
    """Establish a context between the realm's user and its keytab, in this process; whom the service sees."""
    with realm.activate():
        name = gssapi.Name(target, gssapi.NameType.hostbased_service)
        token = gssapi.SecurityContext(name=name, usage="initiate").step()
        service = gssapi.SecurityContext(usage="accept")
        service.step(token)
        return str(service.initiator_name)


@pytest.fixture
def own_realm() -> Iterator[Realm]:
    with Realm() as started:
        yield started


class TestRealm:
    def test_user_and_service_establish_a_context(self, realm: Realm) -> None:
        assert accepted_by(realm) == realm.principal == "alice@GSSSOCKS.TEST"

    def test_two_at_once_are_apart(self, realm: Realm) -> None:
        with Realm(user="bob", name="OTHER.TEST") as other:
            assert accepted_by(other) == "bob@OTHER.TEST"
            assert accepted_by(realm) == "alice@GSSSOCKS.TEST"
            assert other.port != realm.port

    def test_activation_restores_the_environment(self, realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("KRB5CCNAME", "FILE:/before")
        monkeypatch.delenv("KRB5_CONFIG", raising=False)
        before = dict(os.environ)
        with realm.activate():
            assert os.environ["KRB5CCNAME"] == f"FILE:{realm.ccache}"
            assert dict(os.environ) == {**before, **realm.env}
        assert dict(os.environ) == before

    def test_added_service_and_user(self, own_realm: Realm) -> None:
        assert own_realm.add_service("socks/proxy.example") == "socks/proxy.example@GSSSOCKS.TEST"
        assert own_realm.add_user("bob") == "bob@GSSSOCKS.TEST"
        own_realm.kinit("bob")
        assert accepted_by(own_realm, "socks@proxy.example") == "bob@GSSSOCKS.TEST"

    def test_failures_say_why(self, own_realm: Realm) -> None:
        with pytest.raises(RealmError, match="already exists"):
            own_realm.add_user("alice")
        with pytest.raises(RealmError, match="Password incorrect"):
            own_realm.kinit(password="wrong")

    def test_expired_and_missing_tickets(self, own_realm: Realm) -> None:
        own_realm.kinit_expired()
        with pytest.raises(GSSError, match=r"(?i)expired"):
            accepted_by(own_realm)
        own_realm.kdestroy()
        with pytest.raises(MissingCredentialsError):
            accepted_by(own_realm)
        own_realm.kinit()
        assert accepted_by(own_realm) == own_realm.principal

    def test_client_keytab_holds_the_users_keys(self, own_realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
        own_realm.kdestroy()
        with own_realm.activate(), monkeypatch.context() as patch:
            patch.setenv("KRB5_CLIENT_KTNAME", own_realm.client_keytab)
            credentials = gssapi.Credentials(usage="initiate")
            assert str(credentials.name) == own_realm.principal

    def test_kdc_stops_and_starts(self, own_realm: Realm) -> None:
        own_realm.stop_kdc()
        with pytest.raises(RealmError, match="Cannot contact any KDC"):
            own_realm.kinit()
        own_realm.start_kdc()
        own_realm.kinit()

    def test_stop_removes_everything(self) -> None:
        with Realm() as stopped:
            directory = stopped.directory
            kdc = int((directory / "kdc.pid").read_text())
            assert runs(kdc)
        assert not directory.exists()
        assert not runs(kdc)

    def test_killed_process_leaves_neither_kdc_nor_directory(self) -> None:
        program = "from gsssocks.testing import Realm; r = Realm(); r.start(); print(r.directory, flush=True); input()"
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            directory = Path(process.stdout.readline().strip())
            kdc = int((directory / "kdc.pid").read_text())
            assert runs(kdc)
            process.send_signal(signal.SIGKILL)
        until(lambda: not runs(kdc))
        until(lambda: not directory.exists())


class Tunnel:
    """RFC 1961 by hand: what a client does, with nothing of gsssocks in it."""

    def __init__(self, realm: Realm, proxy: Dante, *, nec: bool = False) -> None:
        self.level = 0
        self.stream = socket.create_connection(("127.0.0.1", proxy.port), timeout=20)
        self.stream.sendall(b"\x05\x01\x01")
        assert self.receive(2) == b"\x05\x01"
        with realm.activate():
            name = gssapi.Name("socks@localhost", gssapi.NameType.hostbased_service)
            self.context = gssapi.SecurityContext(name=name, usage="initiate", flags=_FLAGS)
            token = self.context.step()
            while token:
                self.send_message(1, token)
                token = None if self.context.complete else self.context.step(self.receive_message(1))
            if not self.context.complete:
                self.context.step(self.receive_message(1))
        self.nec = nec

    def negotiate(self, level: int) -> int:
        offer = bytes([level])
        self.send_message(2, offer if self.nec else self.context.wrap(offer, False).message)
        answer = self.receive_message(2)
        (self.level,) = answer if self.nec else self.context.unwrap(answer).message
        return self.level

    def connect(self, address: tuple[str, int]) -> bytes:
        self.send(b"\x05\x01\x00\x01" + socket.inet_aton(address[0]) + struct.pack("!H", address[1]))
        reply = self.receive_data()
        return reply[:2]

    def send(self, data: bytes) -> None:
        if self.level == 0:
            self.stream.sendall(data)
            return
        self.send_message(3, self.context.wrap(data, self.level == 2).message)

    def receive_data(self) -> bytes:
        if self.level == 0:
            return self.stream.recv(65536)
        return self.context.unwrap(self.receive_message(3)).message

    def send_message(self, kind: int, token: bytes) -> None:
        self.stream.sendall(struct.pack("!BBH", 1, kind, len(token)) + token)

    def receive_message(self, kind: int) -> bytes:
        version, found, length = struct.unpack("!BBH", self.receive(4))
        assert (version, found) == (1, kind)
        return self.receive(length)

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.stream.recv(count - len(data))
            assert piece, f"the proxy ended the stream after {data!r}"
            data += piece
        return data


_FLAGS = (
    gssapi.RequirementFlag.mutual_authentication
    | gssapi.RequirementFlag.integrity
    | gssapi.RequirementFlag.confidentiality
    | gssapi.RequirementFlag.replay_detection
    | gssapi.RequirementFlag.out_of_sequence_detection
)


class TestDante:
    @pytest.mark.parametrize("enctype", ["clear", "integrity", "confidentiality"])
    def test_relays_at_its_level(
        self, realm: Realm, request: pytest.FixtureRequest, echo: EchoServer, enctype: str
    ) -> None:
        proxy: Dante = request.getfixturevalue(f"dante_{enctype}")
        granted = proxy.connections()
        tunnel = Tunnel(realm, proxy)
        with tunnel.stream:
            assert tunnel.negotiate(LEVELS[enctype]) == LEVELS[enctype]
            assert tunnel.connect(echo.address) == b"\x05\x00"
            tunnel.send(b"one message")
            assert tunnel.receive_data() == b"one message"
            assert proxy.connections() == granted + 1

    def test_nec(self, realm: Realm, echo: EchoServer) -> None:
        with Dante(realm, enctype="confidentiality", nec=True) as proxy:
            tunnel = Tunnel(realm, proxy, nec=True)
            with tunnel.stream:
                assert tunnel.negotiate(2) == 2
                assert tunnel.connect(echo.address) == b"\x05\x00"
                tunnel.send(b"one message")
                assert tunnel.receive_data() == b"one message"

    @pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
    def test_without_authentication(self, dante_none: Dante, echo: EchoServer, address: str) -> None:
        with socks.create_connection(echo.address, 20, None, socks.SOCKS5, address, dante_none.port) as tunnel:
            tunnel.sendall(b"one message")
            assert tunnel.recv(100) == b"one message"

    def test_reaches_ipv6_and_resolves_names(self, dante_none: Dante, echo_ipv6: EchoServer, echo: EchoServer) -> None:
        for target in (echo_ipv6.address, ("localhost", echo.address[1])):
            with socks.socksocket() as tunnel:
                tunnel.settimeout(20)
                tunnel.set_proxy(socks.SOCKS5, "127.0.0.1", dante_none.port, rdns=True)
                tunnel.connect(target)
                tunnel.sendall(b"one message")
                assert tunnel.recv(100) == b"one message"

    def test_fifty_clients_at_once(self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer) -> None:
        tunnels = [Tunnel(realm, dante_confidentiality) for _ in range(50)]
        for number, tunnel in enumerate(tunnels):
            assert tunnel.negotiate(2) == 2
            assert tunnel.connect(echo.address) == b"\x05\x00"
            tunnel.send(b"%d" % number)
        for number, tunnel in enumerate(tunnels):
            assert tunnel.receive_data() == b"%d" % number
            tunnel.stream.close()

    def test_two_hundred_clients_one_after_another(
        self, realm: Realm, dante_confidentiality: Dante, echo: EchoServer
    ) -> None:
        for _ in range(200):
            tunnel = Tunnel(realm, dante_confidentiality)
            with tunnel.stream:
                tunnel.negotiate(2)
                assert tunnel.connect(echo.address) == b"\x05\x00"

    def test_killed_process_leaves_no_dante(self) -> None:
        program = (
            "from gsssocks.testing import Realm; from tests.peers.dante import Dante\n"
            "with Realm() as realm, Dante(realm, enctype=None) as dante:\n"
            "    print(dante._directory, flush=True); input()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        ) as process:
            assert process.stdout is not None
            directory = Path(process.stdout.readline().strip())
            mother = int((directory / "sockd.pid").read_text())
            children = [int(pid) for pid in Path(f"/proc/{mother}/task/{mother}/children").read_text().split()]
            assert children
            process.send_signal(signal.SIGKILL)
        until(lambda: not any(runs(pid) for pid in [mother, *children]))
        until(lambda: not directory.exists())


class TestTargets:
    def test_octets_are_one_sequence(self) -> None:
        assert octets(200000)[70000:] == octets(130000, 70000)

    def test_sink_and_source(self) -> None:
        with SinkServer() as sink, socket.create_connection(sink.address, 20) as client:
            client.sendall(octets(300000))
            client.shutdown(socket.SHUT_WR)
            assert client.makefile("rb").read().decode() == hashlib.sha256(octets(300000)).hexdigest()
        with SourceServer("::1") as source, socket.create_connection(source.address, 20) as client:
            client.sendall((300000).to_bytes(8, "big"))
            assert client.makefile("rb").read() == octets(300000)

    def test_https(self, https_server: HTTPSServer, trust: trustme.CA) -> None:
        import ssl

        context = ssl.create_default_context()
        trust.configure_trust(context)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(https_server.url("/bytes/100000"), timeout=20) as answer:
            assert answer.read() == octets(100000)
        upload = urllib.request.Request(https_server.url("/digest"), octets(100000), method="PUT")
        with opener.open(upload, timeout=20) as answer:
            assert answer.read().decode() == hashlib.sha256(octets(100000)).hexdigest()
        with opener.open(https_server.url("/headers"), timeout=20) as answer:
            assert json.load(answer)["Host"] == f"localhost:{https_server.address[1]}"

    def test_ends_with_a_client_still_there(self) -> None:
        with EchoServer() as server:
            client = socket.create_connection(server.address, 20)
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        with client:
            assert client.recv(1) == b""
