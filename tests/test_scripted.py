"""The scripted proxy is honest where it says so, and tells of a script that fails."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks.testing import ClientGoneError, ScriptedProxy
from tests.peers.host import PATIENCE_SECONDS
from tests.peers.receiving import receive_exactly

if TYPE_CHECKING:
    from gsssocks.testing import Conversation, Realm

pytestmark = pytest.mark.usefixtures("in_the_realm")

TARGET = ("target.example", 4711)


def serve(client: Conversation) -> None:
    client.open_tunnel()
    client.echo()


@pytest.mark.parametrize("protection", ["none", "integrity", "confidentiality", "selective"])
@pytest.mark.parametrize("pipelined", ["true", "false"])
def test_honest_at_every_level(protection: str, pipelined: str) -> None:
    with ScriptedProxy(serve) as proxy:
        url = proxy.url(protection=protection, pipelined=pipelined)
        with gsssocks.create_connection(TARGET, PATIENCE_SECONDS, proxy=url) as sock:
            sock.sendall(b"hello")
            assert receive_exactly(sock, 5) == b"hello"
    assert (b"hello" in proxy.received) == (protection in ("none", "integrity"))


def test_request_is_told() -> None:
    requests = []

    def script(client: Conversation) -> None:
        requests.append(client.open_tunnel())

    with ScriptedProxy(script) as proxy:
        gsssocks.create_connection(TARGET, PATIENCE_SECONDS, proxy=proxy.url()).close()
    (request,) = requests
    assert (request.command, request.address.host, request.address.port) == (1, *TARGET)


def test_each_client_has_a_conversation() -> None:
    with ScriptedProxy(serve) as proxy:
        socks = [gsssocks.create_connection(TARGET, PATIENCE_SECONDS, proxy=proxy.url()) for _ in range(5)]
        for number, sock in enumerate(socks):
            with sock:
                sock.sendall(b"%d" % number)
                assert sock.recv(1) == b"%d" % number
    assert len(proxy.conversations) == 5
    assert b"".join(conversation.received for conversation in proxy.conversations) == proxy.received


def test_everything_the_client_sent_is_read_though_the_script_has_ended() -> None:
    with ScriptedProxy(lambda _: None) as proxy, socket.create_connection(("127.0.0.1", proxy.port)) as client:
        client.sendall(bytes(100_000))
    assert proxy.received == bytes(100_000)


def test_keytab_may_be_named(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KRB5_KTNAME", "/nonexistent")
    with ScriptedProxy(serve, keytab=realm.keytab) as proxy:
        gsssocks.create_connection(TARGET, PATIENCE_SECONDS, proxy=proxy.url()).close()


@pytest.mark.parametrize("octets", [0, 1, 2, 100])
def test_cut_after_so_many_octets(octets: int) -> None:
    with ScriptedProxy(serve, cut_after=octets) as proxy, pytest.raises(gsssocks.ProxyError, match="closed"):
        gsssocks.create_connection(TARGET, PATIENCE_SECONDS, proxy=proxy.url())
    assert [conversation.sent for conversation in proxy.conversations] == [octets]


def test_failure_of_the_script_is_raised_at_the_end() -> None:
    def script(client: Conversation) -> None:
        assert client.hear_greeting() == b"\x00", "this client offers GSS-API"

    def connect() -> None:
        with ScriptedProxy(script) as proxy, pytest.raises(gsssocks.ProtocolError):
            gsssocks.create_connection(TARGET, PATIENCE_SECONDS, proxy=proxy.url())

    with pytest.raises(AssertionError, match="this client offers GSS-API"):
        connect()


def test_client_that_goes_away_is_no_failure() -> None:
    heard = []

    def script(client: Conversation) -> None:
        try:
            client.hear_message()
        except ClientGoneError:
            heard.append("gone")
            raise

    with ScriptedProxy(script) as proxy:
        socket.create_connection(("127.0.0.1", proxy.port)).close()
    assert heard == ["gone"]


def test_ends_with_a_client_still_there() -> None:
    with ScriptedProxy(serve) as proxy:
        client = socket.create_connection(("127.0.0.1", proxy.port))
    with client:
        assert client.recv(1) == b""
