"""The embedded proxy: against our own client, and against clients that misbehave."""

from __future__ import annotations

import errno
import fcntl
import gc
import hashlib
import os
import resource
import shutil
import socket
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks.server import ProxyServer, Session, _places
from gsssocks.server._client import Client, reply_code
from tests.peers.by_hand import (
    LIMIT,
    RESET,
    ByHand,
    Exhausted,
    SlowHosts,
    Target,
    last_session,
    receive_all,
    received,
    request_for,
    server_threads,
    serving,
    through,
    until,
)
from tests.peers.off import name_of_two_hosts
from tests.peers.targets import EchoServer, SinkServer, SourceServer, octets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gsssocks.testing import Realm

pytestmark = pytest.mark.default_python_only

LEVELS = {"integrity": 1, "confidentiality": 2, "selective": 3}


def has_left(sock: socket.socket) -> bool:
    """Whether the peer's kernel has all that was sent, or will have it in a moment."""
    deadline = time.monotonic() + 0.3
    while any(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4))):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


class TestTunnel:
    @pytest.mark.parametrize("protection", LEVELS)
    def test_carries_data_both_ways(self, proxy: ProxyServer, echo: EchoServer, protection: str) -> None:
        data = octets(3_000_001)
        with through(proxy, echo.address, protection=protection) as client, ThreadPoolExecutor() as pool:
            sending = pool.submit(client.sendall, data)
            back = b""
            while len(back) < len(data):
                back += client.recv(1 << 20)
            sending.result()
            assert back == data
        session = last_session(proxy)
        assert (session.protection, session.error) == (protection, None)

    @pytest.mark.parametrize("level", LEVELS.values())
    def test_serves_a_client_by_hand(self, proxy: ProxyServer, echo: EchoServer, level: int) -> None:
        with ByHand(proxy) as client:
            client.connect(echo.address, level)
            client.send_data(b"one message", encrypt=level != 1)
            assert client.receive_data() == b"one message"
            client.stream.shutdown(socket.SHUT_WR)
            assert client.stream.recv(1) == b""

    def test_answers_are_protected_at_the_level(self, proxy: ProxyServer, echo: EchoServer) -> None:
        for level in (1, 2):
            with ByHand(proxy) as client:
                client.connect(echo.address, level)
                client.send_data(b"x", encrypt=level == 2)
                assert client.context.unwrap(client.receive_message(3)).encrypted == (level == 2)

    def test_level_none_is_bare(self, echo: EchoServer) -> None:
        with serving(levels=["none"]) as proxy:
            with through(proxy, echo.address, protection="none") as client:
                client.sendall(b"bare")
                assert client.recv(100) == b"bare"
            assert last_session(proxy).protection == "none"

    def test_selective_client_may_leave_a_message_unencrypted(self, proxy: ProxyServer, echo: EchoServer) -> None:
        with ByHand(proxy) as client:
            client.connect(echo.address, 3)
            client.send_data(b"open ", encrypt=False)
            client.send_data(b"closed", encrypt=True)
            back = client.receive_data()
            while len(back) < len(b"open closed"):
                back += client.receive_data()
            assert back == b"open closed"

    def test_data_behind_the_request_is_not_lost(self, proxy: ProxyServer, echo: EchoServer) -> None:
        with ByHand(proxy) as client:
            client.agree()
            # In the request's own token, and in one that is on its way before the answer.
            client.send_data(request_for(echo.address) + b"early ")
            client.send_data(b"bird")
            assert client.receive_data()[:2] == b"\x05\x00"
            back = b""
            while len(back) < len(b"early bird"):
                back += client.receive_data()
            assert back == b"early bird"

    def test_request_in_pieces(self, proxy: ProxyServer, echo: EchoServer) -> None:
        with ByHand(proxy) as client:
            client.agree()
            for octet in request_for(echo.address):
                client.send_data(bytes([octet]))
            assert client.receive_data()[:2] == b"\x05\x00"

    def test_greeting_with_other_methods_too(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            client.send(b"\x05\x04\x00\x02\x01\x80")
            assert client.receive(2) == b"\x05\x01"

    def test_the_answer_names_the_local_address_of_the_connection(self, proxy: ProxyServer) -> None:
        with Target() as target, through(proxy, target.address) as client, target.accept() as accepted:
            assert client.get_proxy_sockname() == accepted.getpeername()

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
    def test_looks_names_up(self, proxy: ProxyServer, echo: EchoServer, host: str) -> None:
        with through(proxy, (host, echo.address[1])) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        assert str(last_session(proxy).destination) == f"{host}:{echo.address[1]}"

    def test_ipv6_on_both_sides(self, echo_ipv6: EchoServer) -> None:
        with ProxyServer("::1") as proxy:
            assert proxy.address[0] == "::1"
            with through(proxy, echo_ipv6.address) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"

    def test_is_not_sent_through_itself(self, echo: EchoServer) -> None:
        """`install()` patches the sockets of the process that the server is in."""
        with ProxyServer() as proxy, gsssocks.installed(proxy.url(), no_proxy=[]):
            with socket.create_connection(echo.address, LIMIT) as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
            assert len(proxy.sessions) == 1

    def test_thirty_clients_at_once(self, proxy: ProxyServer, echo: EchoServer) -> None:
        start = threading.Barrier(30)

        def run(number: int) -> bool:
            data = octets(300_000, number)
            protection = list(LEVELS)[number % 3]
            start.wait()
            with through(proxy, echo.address, protection=protection) as client, ThreadPoolExecutor(1) as pool:
                sending = pool.submit(client.sendall, data)
                back = b""
                while len(back) < len(data):
                    back += client.recv(65536)
                sending.result()
            return back == data

        with ThreadPoolExecutor(30) as pool:
            assert all(pool.map(run, range(30)))
        assert len(proxy.sessions) == 30
        for session in proxy.sessions:
            assert session.ended.wait(LIMIT)
            assert (session.reply, session.error, session.octets_sent) == (0, None, 300_000)


def receive_messages(client: ByHand, into: bytearray) -> None:
    while True:
        into += client.receive_data()


class TestEndOfData:
    """What one side did is what the other side sees."""

    @pytest.mark.parametrize("protection", LEVELS)
    def test_the_clients_end_reaches_the_target(self, proxy: ProxyServer, protection: str) -> None:
        data = octets(5_000_001)
        with SinkServer() as sink, through(proxy, sink.address, protection=protection) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert received(client).decode() == hashlib.sha256(data).hexdigest()

    @pytest.mark.parametrize("protection", LEVELS)
    def test_the_targets_end_reaches_the_client(self, proxy: ProxyServer, protection: str) -> None:
        with SourceServer() as source, through(proxy, source.address, protection=protection) as client:
            client.sendall((5_000_001).to_bytes(8, "big"))
            assert received(client) == octets(5_000_001)

    def test_the_client_goes_on_after_the_targets_end(self, proxy: ProxyServer) -> None:
        with Target() as target, through(proxy, target.address) as client, target.accept() as accepted:
            accepted.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
            with ThreadPoolExecutor() as pool:
                hearing = pool.submit(received, accepted)
                client.sendall(octets(1_000_000))
                client.shutdown(socket.SHUT_WR)
                assert hearing.result() == octets(1_000_000)
        assert last_session(proxy).error is None

    def test_data_sent_right_before_closing_arrives(self, proxy: ProxyServer) -> None:
        with Target() as target:
            for _ in range(20):
                client = through(proxy, target.address)
                client.sendall(octets(200_000))
                client.close()
                with target.accept() as accepted:
                    assert received(accepted) == octets(200_000)

    def test_what_a_client_that_is_gone_had_sent_arrives(self, proxy: ProxyServer) -> None:
        """It closes with data unread, hence by RST: what it sent before is the target's, but must not look complete."""
        with Target() as target, ByHand(proxy) as client:
            client.connect(target.address)
            session = proxy.sessions[-1]
            with target.accept() as accepted:
                arrived = 0
                while True:
                    client.send_data(octets(60_000, arrived))
                    if not has_left(client.stream):
                        break
                    arrived += 60_000
                accepted.sendall(b"never read")
                assert client.stream.recv(1, socket.MSG_PEEK)
                assert session.octets_received < arrived
                client.stream.close()
                accepted.sendall(b"too late")
                assert not session.ended.wait(0.3)
                data = bytearray()
                with pytest.raises(ConnectionResetError):
                    receive_all(accepted, data)
                assert data[:arrived] == octets(arrived)

    def test_what_a_target_that_is_gone_had_sent_arrives(self, proxy: ProxyServer) -> None:
        with Target() as target, ByHand(proxy) as client:
            client.connect(target.address)
            session = proxy.sessions[-1]
            with target.accept() as accepted:
                arrived = 0
                while True:
                    accepted.sendall(octets(60_000, arrived))
                    if not has_left(accepted):
                        break
                    arrived += 60_000
                client.send_data(b"never read")
                assert accepted.recv(1, socket.MSG_PEEK)
                assert session.octets_sent < arrived
            client.send_data(b"too late")
            assert not session.ended.wait(0.3)
            data = bytearray()
            with pytest.raises(ConnectionResetError):
                receive_messages(client, data)
            assert data[:arrived] == octets(arrived)
        assert isinstance(last_session(proxy).error, OSError)

    def test_a_reset_by_the_target_reaches_the_client(self, proxy: ProxyServer) -> None:
        with Target() as target, through(proxy, target.address) as client:
            with target.accept() as accepted:
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert isinstance(last_session(proxy).error, ConnectionResetError)

    def test_a_reset_by_the_client_reaches_the_target(self, proxy: ProxyServer) -> None:
        with Target() as target, ByHand(proxy) as client:
            client.connect(target.address)
            with target.accept() as accepted:
                client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                client.stream.close()
                with pytest.raises(ConnectionResetError):
                    accepted.recv(1)


class TestWaiting:
    """Whatever a session waits for, waiting takes no time of the processor's."""

    SECONDS = 0.5

    def assert_free_of_charge(self, client: socket.socket) -> None:
        began = time.process_time()
        client.settimeout(self.SECONDS)
        with pytest.raises(socket.timeout):
            client.recv(1, socket.MSG_PEEK)
        assert time.process_time() - began < self.SECONDS / 5

    def test_after_the_clients_end(self, proxy: ProxyServer) -> None:
        with Target() as target, through(proxy, target.address) as client, target.accept() as accepted:
            client.shutdown(socket.SHUT_WR)
            assert accepted.recv(1) == b""
            self.assert_free_of_charge(client)

    def test_after_the_targets_end(self, proxy: ProxyServer) -> None:
        with Target() as target, through(proxy, target.address) as client, target.accept() as accepted:
            accepted.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
            self.assert_free_of_charge(accepted)

    def test_for_a_target_that_does_not_read(self, proxy: ProxyServer) -> None:
        with Target() as target, through(proxy, target.address) as client, target.accept() as accepted:
            client.settimeout(0.3)
            with pytest.raises(socket.timeout):
                client.sendall(bytes(256 << 20))
            # What the kernel keeps for a socket, and what was read ahead for one write.
            assert proxy.sessions[-1].octets_received < 16 << 20
            self.assert_free_of_charge(client)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def test_for_a_client_that_does_not_read(self, proxy: ProxyServer) -> None:
        with Target() as target, through(proxy, target.address) as client, target.accept() as accepted:
            accepted.settimeout(0.3)
            with pytest.raises(socket.timeout):
                accepted.sendall(bytes(256 << 20))
            assert proxy.sessions[-1].octets_sent < 16 << 20
            self.assert_free_of_charge(accepted)
            # Only now may the session notice.
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()


class TestRefusals:
    def test_a_client_without_gssapi(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            client.send(b"\x05\x02\x00\x02")
            assert client.ending() == b"\x05\xff"
        assert isinstance(last_session(proxy).error, gsssocks.AuthenticationError)

    def test_no_methods_at_all(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            client.send(b"\x05\x00")
            assert client.ending() == b"\x05\xff"

    @pytest.mark.parametrize("pipelined", [True, False])
    def test_a_principal_that_is_not_authorised(self, echo: EchoServer, *, pipelined: bool) -> None:
        asked: list[str] = []

        def nobody(principal: str) -> bool:
            asked.append(principal)
            return False

        with serving(authorize=nobody) as proxy:
            with pytest.raises(gsssocks.AuthenticationError, match="refused our authentication"):
                through(proxy, echo.address, pipelined=pipelined)
            assert asked == ["alice@GSSSOCKS.TEST"]
            session = last_session(proxy)
            assert (session.principal, session.protection, session.reply) == ("alice@GSSSOCKS.TEST", None, None)

    def test_a_principal_that_is_authorised(self, echo: EchoServer) -> None:
        with serving(authorize=lambda principal: principal.startswith("alice@")) as proxy:
            through(proxy, echo.address).close()

    def test_a_refusal_is_two_octets(self) -> None:
        with serving(authorize=lambda _: False) as proxy, ByHand(proxy) as client:
            client.greet()
            client.send_message(1, client.context.step())
            assert client.ending() == b"\x01\xff"

    def test_a_keytab_without_the_service(self, realm: Realm, echo: EchoServer) -> None:
        refused = pytest.raises(gsssocks.AuthenticationError, match="refused our authentication")
        with serving(keytab=realm.client_keytab) as proxy:
            with refused:
                through(proxy, echo.address)
            said = f"the client was not accepted: its ticket is not for a key in the keytab '{realm.client_keytab}'"
            assert str(last_session(proxy).error).startswith(said)

    def test_a_keytab_that_has_gone_is_what_its_operator_is_told_of(
        self, realm: Realm, echo: EchoServer, tmp_path: Path
    ) -> None:
        keytab = tmp_path / "keytab"
        shutil.copy(realm.keytab, keytab)
        with serving(keytab=str(keytab)) as proxy:
            keytab.unlink()
            with pytest.raises(gsssocks.AuthenticationError, match="refused our authentication"):
                through(proxy, echo.address)
            error = str(last_session(proxy).error)
        assert f"there is no key to accept clients with in the keytab '{keytab}'" in error
        assert "kinit" not in error

    @pytest.mark.parametrize("text", [None, "no keytab"])
    def test_a_keytab_by_which_nobody_could_be_accepted(self, tmp_path: Path, text: str | None) -> None:
        keytab = tmp_path / "keytab"
        if text is not None:
            keytab.write_text(text)
        with pytest.raises(gsssocks.AuthenticationError, match=f"no key to accept clients with in .*{keytab}"):
            ProxyServer("localhost", keytab=str(keytab)).start()

    @pytest.mark.parametrize("levels", [["integrity"], ["confidentiality"], ["confidentiality", "selective"]])
    @pytest.mark.parametrize("asked", LEVELS)
    def test_levels(self, echo: EchoServer, levels: list[str], asked: str) -> None:
        with serving(levels=levels) as proxy:
            if asked in levels:
                through(proxy, echo.address, protection=asked).close()
                assert last_session(proxy).protection == asked
                return
            with pytest.raises(gsssocks.ProtectionError, match="refused the protection level"):
                through(proxy, echo.address, protection=asked)
            assert last_session(proxy).reply is None

    @pytest.mark.parametrize("command", [0, 4, 255])
    def test_commands_not_supported(self, proxy: ProxyServer, echo: EchoServer, command: int) -> None:
        with ByHand(proxy) as client:
            assert client.ask(request_for(echo.address, command)) == 7
            assert client.ending() == b""
        assert last_session(proxy).reply == 7

    def test_an_address_type_not_supported(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            assert client.ask(b"\x05\x01\x00\x02\x00\x00\x00\x00\x00\x00") == 8
            assert client.ending() == b""

    def test_a_request_that_is_none(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            assert client.ask(b"\x04\x01\x00\x01\x00\x00\x00\x00\x00\x00") == 1
            assert client.ending() == b""

    def test_a_target_that_refuses(self, proxy: ProxyServer) -> None:
        with Target() as target:
            closed = target.address
        with pytest.raises(ConnectionRefusedError):
            through(proxy, closed)
        session = last_session(proxy)
        assert (session.reply, type(session.error)) == (5, ConnectionRefusedError)

    @pytest.mark.parametrize("name", ["name.invalid", "a" * 255, "a..b"])
    def test_a_name_that_is_unknown(self, proxy: ProxyServer, name: str) -> None:
        with pytest.raises(gsssocks.ReplyError) as caught:
            through(proxy, (name, 80))
        assert (caught.value.code, caught.value.errno) == (4, errno.EHOSTUNREACH)

    def test_an_empty_name(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            assert client.ask(b"\x05\x01\x00\x03\x00\x00\x50") == 4

    def test_a_network_that_is_unreachable(self, proxy: ProxyServer) -> None:
        with pytest.raises(gsssocks.ReplyError) as caught:
            through(proxy, ("255.255.255.255", 80))
        assert (caught.value.code, caught.value.errno) == (3, errno.ENETUNREACH)

    def test_a_name_that_is_not_found_in_time(self) -> None:
        hosts = SlowHosts()
        with serving(connect_timeout=0.2, hosts=hosts) as proxy:
            with pytest.raises(TimeoutError):
                through(proxy, ("slow.test", 80))
            assert last_session(proxy).reply == 6
            hosts.answer.set()
            until(lambda: server_threads() == ["gsssocks-server"])

    def test_a_target_that_does_not_answer(self) -> None:
        with serving(connect_timeout=0.2) as proxy, silent_target() as address:
            with pytest.raises(TimeoutError):
                through(proxy, address)
            assert last_session(proxy).reply == 6

    def test_an_address_that_does_not_answer_leaves_time_for_the_name_s_others(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with ExitStack() as stack:
            port = stack.enter_context(Target()).address[1]
            name = stack.enter_context(name_of_two_hosts(monkeypatch, port))
            through(stack.enter_context(serving(connect_timeout=4.0)), (name, port)).close()

    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (OSError(errno.EACCES, ""), 2),
            (OSError(errno.EPERM, ""), 2),
            (OSError(errno.EHOSTUNREACH, ""), 4),
            (OSError(errno.ETIMEDOUT, ""), 6),
            (OSError(errno.EAFNOSUPPORT, ""), 8),
            (OSError(errno.EMFILE, ""), 1),
            (socket.gaierror(socket.EAI_AGAIN, ""), 4),
        ],
    )
    def test_replies_to_what_cannot_be_brought_about_here(self, error: OSError, code: int) -> None:
        assert reply_code(error) == code


@contextmanager
def silent_target() -> Iterator[tuple[str, int]]:
    """An address where connections are neither accepted nor refused: the queue of a listener that is full."""
    with Target(backlog=0) as target:
        waiting = []
        try:
            while True:
                waiting.append(socket.socket())
                waiting[-1].settimeout(0.2)
                if waiting[-1].connect_ex(target.address):
                    break
            yield target.address
        finally:
            for sock in waiting:
                sock.close()


class TestLimits:
    @pytest.mark.parametrize("said", [b"", b"\x05", b"\x05\x01", b"\x05\x01\x01", b"\x05\x01\x01\x01\x01\x40\x00abc"])
    def test_time_before_the_request(self, said: bytes) -> None:
        with serving(negotiation_timeout=0.3) as proxy, ByHand(proxy) as client:
            began = time.monotonic()
            client.send(said)
            received(client.stream)
            assert 0.25 < time.monotonic() - began < 10
            assert "timed out" in str(last_session(proxy).error)

    def test_time_is_counted_from_the_start(self) -> None:
        """A client that sends an octet now and then gains nothing."""
        with serving(negotiation_timeout=0.5) as proxy, ByHand(proxy) as client:
            began = time.monotonic()
            client.send(b"\x05\xff")
            client.stream.settimeout(0.02)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                send_slowly(client)
            assert time.monotonic() - began < 10

    def test_authenticated_clients_are_not_limited(self, echo: EchoServer) -> None:
        with serving(negotiation_timeout=0.2) as proxy, through(proxy, echo.address) as client:
            client.settimeout(0.5)
            with pytest.raises(socket.timeout):
                client.recv(1)
            client.sendall(b"x")
            assert client.recv(1) == b"x"

    def test_clients_beyond_the_limit_wait(self, echo: EchoServer) -> None:
        with serving(max_clients=2) as proxy:
            first, second = through(proxy, echo.address), through(proxy, echo.address)
            with ByHand(proxy) as third:
                third.stream.settimeout(0.3)
                third.send(b"\x05\x01\x01")
                with pytest.raises(socket.timeout):
                    third.receive(2)
                assert len(proxy.sessions) == 2
                first.close()
                third.stream.settimeout(LIMIT)
                assert third.receive(2) == b"\x05\x01"
            second.close()

    def test_silent_clients_do_not_keep_others_out(self, echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who is not authenticated makes room, the oldest first."""
        monkeypatch.setattr(_places, "LEAST_SECONDS", 0.1)
        with serving(max_clients=2) as proxy, ExitStack() as open_ones:
            silent = [open_ones.enter_context(socket.create_connection(proxy.address, LIMIT)) for _ in range(6)]
            with through(proxy, echo.address) as client:
                assert [received(sock) for sock in silent[:-1]] == [b""] * 5
                silent[-1].settimeout(0.3)
                with pytest.raises(socket.timeout):
                    silent[-1].recv(1)
                client.sendall(b"data")
                assert client.recv(4) == b"data"
            first = proxy.sessions[0]
            assert first.ended.wait(LIMIT)
            assert "had to make room for another client" in str(first.error)

    def test_authenticated_clients_keep_their_places(self, echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also before they have asked for anything."""
        monkeypatch.setattr(_places, "LEAST_SECONDS", 0.0)
        with serving(max_clients=2) as proxy, through(proxy, echo.address) as served, ByHand(proxy) as asking:
            asking.authenticate()
            with ByHand(proxy) as third:
                third.stream.settimeout(0.3)
                third.send(b"\x05\x01\x01")
                with pytest.raises(socket.timeout):
                    third.receive(2)
            asking.send_message(2, asking.wrap(b"\x02", encrypt=False))
            assert asking.unwrap(asking.receive_message(2)) == b"\x02"
            served.sendall(b"data")
            assert served.recv(4) == b"data"

    def test_many_at_once_wait_for_each_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_places, "LEAST_SECONDS", LIMIT)
        with serving(max_clients=1) as proxy, ByHand(proxy) as first, ByHand(proxy) as second:
            first.greet()
            second.send(b"\x05\x01\x01")
            first.send_message(1, first.context.step())
            first.context.step(first.receive_message(1))
            first.stream.close()
            assert second.receive(2) == b"\x05\x01"
            assert "room" not in str(proxy.sessions[0].error)

    def test_stops_while_one_waits_for_a_place(self) -> None:
        with serving(max_clients=1) as proxy:
            with socket.create_connection(proxy.address, LIMIT), socket.create_connection(proxy.address, LIMIT):
                until(lambda: bool(proxy.sessions))
                proxy.stop()
            assert len(proxy.sessions) == 1

    def test_accepts_again_when_descriptors_are_there_again(self, proxy: ProxyServer) -> None:
        with socket.socket() as client:
            client.settimeout(0.3)
            with no_descriptors_left():
                client.connect(proxy.address)
                client.sendall(b"\x05\x01\x01")
                began = time.process_time()
                with pytest.raises(socket.timeout):
                    client.recv(2)
                assert time.process_time() - began < 0.1
            client.settimeout(LIMIT)
            assert client.recv(2) == b"\x05\x01"


def send_slowly(client: ByHand) -> None:
    for _ in range(255):
        client.send(b"\x02")
        with suppress(socket.timeout):
            if not client.stream.recv(1):
                client.stream.settimeout(LIMIT)


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(256, taken[0] + 1), before[1]))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in taken:
            os.close(fd)


GARBAGE = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "SOCKS 4": b"\x04\x01\x00\x50\x7f\x00\x00\x01\x00",
    "zeros": b"\x00" * 1000,
    "much": b"\xff" * 1_000_000,
}


def answer_before_closing(client: ByHand) -> bytes:
    """What the proxy says before it closes, by a reset if it has left octets of the client's unread."""
    said = bytearray()
    with suppress(ConnectionResetError):
        receive_all(client.stream, said)
    return bytes(said)


class TestHostileClients:
    @pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
    def test_garbage_is_not_answered(self, proxy: ProxyServer, echo: EchoServer, garbage: bytes) -> None:
        with ByHand(proxy) as client:
            with suppress(ConnectionResetError, BrokenPipeError):
                client.stream.sendall(garbage)
            assert answer_before_closing(client) == b""
        assert isinstance(last_session(proxy).error, gsssocks.ProtocolError)
        through(proxy, echo.address).close()

    @pytest.mark.parametrize("kind", [0, 2, 3, 0xFF])
    def test_another_message_instead_of_a_context_token(self, proxy: ProxyServer, kind: int) -> None:
        with ByHand(proxy) as client:
            client.greet()
            client.send_message(kind, client.context.step())
            assert answer_before_closing(client) == b""
        assert isinstance(last_session(proxy).error, gsssocks.ProtocolError)

    @pytest.mark.parametrize("kind", [0, 1, 3, 0xFF])
    def test_another_message_instead_of_the_level(self, proxy: ProxyServer, kind: int) -> None:
        with ByHand(proxy) as client:
            client.authenticate()
            client.send_message(kind, client.wrap(b"\x02"))
            assert answer_before_closing(client) == b""

    @pytest.mark.parametrize("kind", [0, 1, 2, 0xFF])
    def test_another_message_in_the_tunnel(self, proxy: ProxyServer, kind: int) -> None:
        with Target() as target, ByHand(proxy) as client:
            client.connect(target.address)
            client.send_message(kind, client.wrap(b"data"))
            assert_cut_short(target)

    @pytest.mark.parametrize("token", [b"\x00", bytes(65535)], ids=["short", "longest"])
    def test_a_context_token_that_is_none(self, proxy: ProxyServer, token: bytes) -> None:
        with ByHand(proxy) as client:
            client.greet()
            client.send_message(1, token)
            assert client.ending() == b"\x01\xff"
        assert isinstance(last_session(proxy).error, gsssocks.AuthenticationError)

    def test_a_context_token_used_before(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client, ByHand(proxy) as thief:
            token = client.context.step()
            client.greet()
            client.send_message(1, token)
            assert client.receive_message(1)
            thief.greet()
            thief.send_message(1, token)
            assert thief.ending() == b"\x01\xff"

    @pytest.mark.parametrize("level", [b"", b"\x00", b"\x04", b"\xff", b"\x02\x02"], ids=lambda level: level.hex())
    def test_a_level_that_is_none(self, proxy: ProxyServer, level: bytes) -> None:
        with ByHand(proxy) as client:
            client.authenticate()
            client.send_message(2, client.wrap(level, encrypt=False))
            assert client.ending() == b"\x01\xff"
        assert isinstance(last_session(proxy).error, gsssocks.ProtectionError)

    @pytest.mark.parametrize("token", [b"\x02", bytes(65535)], ids=["bare", "longest"])
    def test_a_level_without_protection(self, proxy: ProxyServer, token: bytes) -> None:
        with ByHand(proxy) as client:
            client.authenticate()
            client.send_message(2, token)
            assert client.ending() == b"\x01\xff"

    def test_a_damaged_message(self, proxy: ProxyServer) -> None:
        with Target() as target, ByHand(proxy) as client:
            client.connect(target.address)
            token = bytearray(client.wrap(b"data"))
            token[-1] ^= 1
            client.send_message(3, bytes(token))
            assert_cut_short(target)
        assert isinstance(last_session(proxy).error, gsssocks.ProtectionError)

    def test_a_repeated_message(self, proxy: ProxyServer) -> None:
        with Target() as target, ByHand(proxy) as client:
            client.connect(target.address)
            token = client.wrap(b"once")
            client.send_message(3, token)
            client.send_message(3, token)
            assert_cut_short(target, b"once")

    def test_a_message_left_out(self, proxy: ProxyServer) -> None:
        with Target() as target, ByHand(proxy) as client:
            client.connect(target.address)
            client.wrap(b"left out")
            client.send_data(b"next")
            assert_cut_short(target)

    def test_a_message_that_is_not_encrypted_at_level_2(self, proxy: ProxyServer) -> None:
        with Target() as target, ByHand(proxy) as client:
            client.connect(target.address)
            client.send_data(b"data", encrypt=False)
            assert_cut_short(target)

    def test_an_end_inside_a_message(self, proxy: ProxyServer) -> None:
        with Target() as target, ByHand(proxy) as client:
            client.connect(target.address)
            client.send_data(b"whole")
            client.send(b"\x01\x03\x01\x00part")
            client.stream.shutdown(socket.SHUT_WR)
            assert_cut_short(target, b"whole")

    def test_empty_messages_are_no_end(self, proxy: ProxyServer, echo: EchoServer) -> None:
        with ByHand(proxy) as client:
            client.connect(echo.address)
            for _ in range(1000):
                client.send_data(b"")
            client.send_data(b"data")
            assert client.receive_data() == b"data"

    def test_empty_messages_without_end_do_not_hold_up_stop(self, proxy: ProxyServer) -> None:
        with Target() as target, ByHand(proxy) as client:
            client.connect(target.address)

            def flood() -> None:
                with suppress(ConnectionError):
                    while True:
                        client.send_data(b"")

            with ThreadPoolExecutor() as pool:
                flooding = pool.submit(flood)
                until(lambda: proxy.sessions[-1].tokens_received > 1000)
                proxy.stop()
                flooding.result(LIMIT)

    def test_a_refused_client_that_goes_on_is_cut_off(self, proxy: ProxyServer) -> None:
        with ByHand(proxy) as client:
            client.send(b"\x05\x01\x00")
            with pytest.raises(ConnectionError):
                client.send(bytes(256 << 20))

    @pytest.mark.parametrize("reset", [False, True])
    def test_an_end_after_every_octet_of_the_conversation(self, echo: EchoServer, *, reset: bool) -> None:
        ended: list[Session] = []
        with serving(on_session=ended.append) as proxy:
            with ByHand(proxy) as client:
                self.converse(client, echo)
                length = client.sent
            for budget in range(length):
                with ByHand(proxy, budget=budget) as client:
                    # The last few may get by: the length of a token varies by an octet or two.
                    with suppress(Exhausted):
                        self.converse(client, echo)
                    if reset:
                        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            until(lambda: len(ended) == length + 1)
            until(lambda: server_threads() == ["gsssocks-server"])
            cut = [session for session in ended if session.reply is None]
            assert len(cut) > length // 2
            assert all(isinstance(session.error, OSError) for session in cut)
            through(proxy, echo.address).close()

    @staticmethod
    def converse(client: ByHand, echo: EchoServer) -> None:
        client.send(b"")
        client.connect(echo.address)
        client.send_data(b"data")
        assert client.receive_data() == b"data"

    def test_hundred_half_open_clients_do_not_hold_up_another(self, proxy: ProxyServer, echo: EchoServer) -> None:
        idle = [socket.create_connection(proxy.address, LIMIT) for _ in range(100)]
        for sock in idle[::2]:
            sock.sendall(b"\x05\x01")
        through(proxy, echo.address).close()
        for sock in idle:
            sock.close()

    def test_a_mistake_in_authorize_admits_nobody(self, echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[threading.ExceptHookArgs] = []
        monkeypatch.setattr(threading, "excepthook", told.append)

        def mistaken(_principal: str) -> bool:
            raise KeyError("a mistake")

        with serving(authorize=mistaken) as proxy:
            with pytest.raises(gsssocks.AuthenticationError, match="closed the connection"):
                through(proxy, echo.address)
            assert isinstance(last_session(proxy).error, KeyError)
        assert [args.exc_type for args in told] == [KeyError]


def assert_cut_short(target: Target, data: bytes = b"") -> None:
    """The target receives `data`, and then a reset: it must not take what it has for all there was."""
    heard = bytearray()
    with target.accept() as accepted, pytest.raises(ConnectionResetError):
        receive_all(accepted, heard)
    # A reset may overtake what was sent before it.
    assert data.startswith(heard)


def send_for_ever(client: ByHand) -> None:
    while True:
        client.send_data(bytes(60000))


class TestStop:
    def test_with_clients_at_every_stage(self, echo: EchoServer) -> None:
        with ProxyServer(authorize=None) as proxy, silent_target() as silent, Target() as target:
            clients = [ByHand(proxy) for _ in range(6)]
            connected, greeting, authenticated, asking, idle, busy = clients
            greeting.send(b"\x05\x01")
            authenticated.authenticate()
            asking.agree()
            asking.send_data(request_for(silent))
            idle.connect(echo.address)
            busy.connect(target.address)
            busy.stream.settimeout(0.3)
            with pytest.raises(socket.timeout):
                send_for_ever(busy)
            refused = socket.create_connection(proxy.address, LIMIT)
            refused.sendall(b"\x05\x01\x00")
            assert refused.recv(2) == b"\x05\xff"
            until(lambda: len(proxy.sessions) == 7)

            began = time.monotonic()
            proxy.stop()
            assert time.monotonic() - began < 10
            assert not server_threads()
            assert all(session.ended.is_set() for session in proxy.sessions)
            for client in clients:
                client.stream.settimeout(LIMIT)
                answer_before_closing(client)
                client.stream.close()
            with pytest.raises(ConnectionResetError), target.accept() as accepted:
                received(accepted)
            assert connected.sent == 0
            refused.close()

    def test_tells_both_sides_that_the_data_are_not_complete(self, proxy: ProxyServer) -> None:
        with Target() as target, through(proxy, target.address) as client, target.accept() as accepted:
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"
            proxy.stop()
            for end in (client, accepted):
                with pytest.raises(ConnectionResetError):
                    end.recv(1)
            assert "stopped" in str(last_session(proxy).error)

    def test_nobody_listens_afterwards(self) -> None:
        with ProxyServer() as proxy:
            address = proxy.address
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, LIMIT)

    def test_twice_and_never_started(self) -> None:
        proxy = ProxyServer()
        proxy.stop()
        proxy.start()
        proxy.stop()
        proxy.stop()

    def test_starts_again(self, echo: EchoServer) -> None:
        proxy = ProxyServer()
        for _ in range(2):
            with proxy:
                through(proxy, echo.address).close()
                assert last_session(proxy).reply == 0
        assert len(proxy.sessions) == 2

    def test_while_a_name_is_looked_up(self) -> None:
        hosts = SlowHosts()
        with serving(hosts=hosts) as proxy, ByHand(proxy) as client:
            client.agree()
            client.send_data(b"\x05\x01\x00\x03\x09slow.test\x00\x50")
            assert hosts.asked.wait(LIMIT)
            proxy.stop()
            assert last_session(proxy).reply is None
            hosts.answer.set()
            until(lambda: not server_threads())

    def test_with_the_limit_reached(self, echo: EchoServer) -> None:
        with serving(max_clients=1) as proxy:
            client = through(proxy, echo.address)
            waiting = socket.create_connection(proxy.address, LIMIT)
            proxy.stop()
            client.close()
            waiting.close()


class TestWhatItTells:
    def test_a_session(self, echo: EchoServer) -> None:
        told: list[Session] = []
        with serving(on_session=told.append) as proxy:
            with through(proxy, echo.address, protection="integrity") as client:
                client.sendall(bytes(1000))
                received_octets = 0
                while received_octets < 1000:
                    received_octets += len(client.recv(1000))
                local = client.get_proxy_peername()
                assert local == echo.address
            session = last_session(proxy)
            assert told == proxy.sessions == [session]
        assert session.client.host == "127.0.0.1"
        assert session.principal == "alice@GSSSOCKS.TEST"
        assert session.service == "socks/localhost@GSSSOCKS.TEST"
        assert (session.mechanism, session.protection) == ("krb5", "integrity")
        assert str(session.destination) == f"127.0.0.1:{echo.address[1]}"
        assert (session.reply, session.error) == (0, None)
        assert (session.octets_received, session.octets_sent) == (1000, 1000)
        assert session.tokens_received == session.tokens_sent == 2  # request and data, reply and data
        assert session.wire_received > 1000 < session.wire_sent
        assert session.setup_seconds is not None
        assert 0 < session.setup_seconds < LIMIT

    @pytest.mark.parametrize(("pipelined", "round_trips"), [(True, 2), (False, 4)])
    def test_round_trips(self, proxy: ProxyServer, echo: EchoServer, *, pipelined: bool, round_trips: int) -> None:
        through(proxy, echo.address, pipelined=pipelined).close()
        assert last_session(proxy).round_trips == round_trips

    def test_octets_on_the_wire(self, proxy: ProxyServer, echo: EchoServer) -> None:
        with ByHand(proxy) as client:
            client.connect(echo.address)
            client.send_data(b"data")
            assert client.receive_data() == b"data"
            sent = client.sent
        assert last_session(proxy).wire_received == sent

    def test_keeps_the_last_thousand_sessions(self) -> None:
        ended: list[Session] = []
        with serving(on_session=ended.append) as proxy:
            for _ in range(1001):
                socket.create_connection(proxy.address, LIMIT).close()
            until(lambda: len(ended) == 1001)
            assert len(proxy.sessions) == 1000

    def test_remembers_no_connection_with_a_session(self, echo: EchoServer) -> None:
        with serving(levels=["integrity"]) as proxy:
            with pytest.raises(gsssocks.ProtectionError):
                through(proxy, echo.address)
            with Target() as target:
                closed = target.address
            with pytest.raises(ConnectionRefusedError):
                through(proxy, closed, protection="integrity")
            assert all(session.ended.wait(LIMIT) and session.error for session in proxy.sessions)
            until(lambda: len(server_threads()) == 1)
            gc.collect()
            assert not [thing for thing in gc.get_objects() if isinstance(thing, Client)]

    def test_its_url(self) -> None:
        with ProxyServer() as proxy:
            assert proxy.url() == f"socks5h://localhost:{proxy.port}"
            assert proxy.url(protection="integrity", service="host").endswith("?service=host&protection=integrity")
        with ProxyServer("::1") as proxy:
            assert (
                proxy.url(service="host") == f"socks5h://[::1]:{proxy.port}?service=host&target_name=host%40localhost"
            )

    def test_what_is_wrong_with_its_arguments(self) -> None:
        with pytest.raises(ValueError, match="unknown protection level 'secret'"):
            ProxyServer(levels=["secret"])
        with pytest.raises(ValueError, match="must not be empty"):
            ProxyServer(levels=[])
        with pytest.raises(ValueError, match="must not be empty"):
            ProxyServer(listeners=[])

    def test_listens_in_several_places(self, echo: EchoServer) -> None:
        with serving(listeners=[("127.0.0.1", 0), ("::1", 0), ("127.0.0.2", 0)]) as proxy:
            assert [host for host, _ in proxy.addresses] == ["127.0.0.1", "::1", "127.0.0.2"]
            assert proxy.address == proxy.addresses[0]
            for host, port in proxy.addresses:
                there = gsssocks.Proxy(host, port, target_name="socks@localhost")
                gsssocks.create_connection(echo.address, LIMIT, proxy=there).close()
            assert len(proxy.sessions) == 3

    def test_both_families_at_one_port(self) -> None:
        with serving(listeners=[("0.0.0.0", 0)]) as first, serving(listeners=[("::", first.port)]) as second:
            assert first.port == second.port

    def test_listens_on_a_socket_it_is_given(self, echo: EchoServer) -> None:
        given = socket.create_server(("127.0.0.1", 0))
        address = given.getsockname()
        with serving(listeners=[given.detach()]) as proxy:
            assert proxy.address == address
            assert proxy.url() == f"socks5h://localhost:{address[1]}"
            through(proxy, echo.address).close()

    def test_if_it_cannot_listen_in_one_place_it_does_in_none(self, proxy: ProxyServer) -> None:
        with socket.create_server(("127.0.0.2", 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            ProxyServer(listeners=[("127.0.0.2", port), proxy.address]).start()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), LIMIT)

    def test_a_port_in_use(self, proxy: ProxyServer) -> None:
        with pytest.raises(OSError, match="in use"):
            ProxyServer(port=proxy.port).start()

    def test_what_it_has_only_while_it_runs(self) -> None:
        proxy = ProxyServer()
        with pytest.raises(RuntimeError, match="not running"):
            _ = proxy.address
        with proxy, pytest.raises(RuntimeError, match="running already"):
            proxy.start()
