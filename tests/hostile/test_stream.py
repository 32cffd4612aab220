"""A proxy that misbehaves in the middle of the data: what came before is delivered, then the error, for ever."""

from __future__ import annotations

import errno
import select
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

import gsssocks
from gsssocks import ProtectionError, ProtocolError, ProxyError
from gsssocks.testing import ScriptedProxy
from tests.hostile.misdeeds import CONTEXT, DATA, GARBAGE, LEVEL, REFUSAL, damaged
from tests.peers.receiving import receive_exactly

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Conversation
    from tests.hostile.misdeeds import Script

TARGET = ("secret.target.example", 4711)


class BadMessage(NamedTuple):
    """Something that a proxy must not send."""

    name: str
    send: Script
    error: type[ProxyError]
    says: str


def sends_damaged(client: Conversation) -> None:
    client.send_message(DATA, damaged(client.wrap(b"evil")))


def sends_damaged_header(client: Conversation) -> None:
    token = client.wrap(b"evil")
    client.send_message(DATA, bytes([token[0] ^ 1]) + token[1:])


def sends_twice(client: Conversation) -> None:
    token = client.wrap(b"")
    client.send_message(DATA, token)
    client.send_message(DATA, token)


def swaps(client: Conversation) -> None:
    first, second = client.wrap(b"first"), client.wrap(b"second")
    client.send_message(DATA, second)
    client.send_message(DATA, first)


def loses(client: Conversation) -> None:
    client.wrap(b"lost")
    client.send_data(b"evil")


def sends_short(client: Conversation) -> None:
    client.send_message(DATA, client.wrap(b"evil")[:-1])


def sends_long(client: Conversation) -> None:
    client.send_message(DATA, client.wrap(b"evil") + b"\0")


def sends_two_in_one(client: Conversation) -> None:
    client.send_message(DATA, client.wrap(b"evil") + client.wrap(b"evil"))


def sends_unencrypted(client: Conversation) -> None:
    client.send_message(DATA, client.wrap(b"evil", confidential=False))


def sends_data_as(mtyp: int) -> Script:
    def send(client: Conversation) -> None:
        client.send_message(mtyp, client.wrap(b"evil"))

    return send


def sends(octets: bytes) -> Script:
    def send(client: Conversation) -> None:
        client.send(octets)

    return send


NOT_A_MESSAGE = "version of the GSS-API message|in the middle of the data"
BAD_MESSAGES = [
    BadMessage("damaged", sends_damaged, ProtectionError, "damaged"),
    BadMessage("with a damaged header", sends_damaged_header, ProtectionError, "damaged"),
    BadMessage("repeated", sends_twice, ProtectionError, "repeated"),
    BadMessage("out of order", swaps, ProtectionError, "lost"),
    BadMessage("missing", loses, ProtectionError, "lost"),
    BadMessage("cut short", sends_short, ProtectionError, "damaged"),
    BadMessage("with an octet too many", sends_long, ProtectionError, "damaged"),
    BadMessage("with two tokens", sends_two_in_one, ProtectionError, "damaged"),
    BadMessage("with an empty token", sends(b"\x01\x03\x00\x00"), ProtectionError, "damaged"),
    BadMessage("longest, of garbage", sends(b"\x01\x03\xff\xff" + bytes(0xFFFF)), ProtectionError, "damaged"),
    BadMessage("not wrapped", sends(b"\x01\x03\x00\x04evil"), ProtectionError, "damaged"),
    BadMessage("unencrypted", sends_unencrypted, ProtectionError, "arrived unencrypted although confidentiality"),
    BadMessage("of type context", sends_data_as(CONTEXT), ProtocolError, "type 0x01 in the middle of the data"),
    BadMessage("of type level", sends_data_as(LEVEL), ProtocolError, "type 0x02 in the middle of the data"),
    BadMessage("of an unknown type", sends_data_as(0x7F), ProtocolError, "type 0x7f in the middle of the data"),
    BadMessage("empty, of type context", sends(b"\x01\x01\x00\x00"), ProtocolError, "type 0x01 in the middle"),
    BadMessage("refusal", sends(REFUSAL), ProtocolError, "type 0xff in the middle of the data"),
    BadMessage(
        "in the clear",
        sends(b"HTTP/1.1 200 OK\r\n\r\n"),
        ProtocolError,
        NOT_A_MESSAGE,
    ),
    BadMessage("garbage", sends(GARBAGE), ProtocolError, NOT_A_MESSAGE),
]

every_bad_message = pytest.mark.parametrize("bad", BAD_MESSAGES, ids=lambda bad: bad.name.replace(" ", "-"))


@contextmanager
def tunnel(script: Script, **options: object) -> Iterator[tuple[socket.socket, ScriptedProxy]]:
    """A client connected through a proxy that goes on with `script`."""

    def whole(client: Conversation) -> None:
        client.open_tunnel()
        script(client)

    with ScriptedProxy(whole) as proxy, gsssocks.create_connection(TARGET, 20, proxy=proxy.url(**options)) as sock:
        yield sock, proxy


@every_bad_message
def test_data_before_it_is_delivered_and_then_the_error(bad: BadMessage) -> None:
    def script(client: Conversation) -> None:
        client.send_data(b"good ")
        client.send_data(b"and true")
        bad.send(client)

    with tunnel(script) as (sock, _):
        assert receive_exactly(sock, 5) == b"good "
        assert receive_exactly(sock, 8) == b"and true"
        with pytest.raises(bad.error, match=bad.says) as caught:
            sock.recv(100)
        assert caught.value.errno == errno.EPROTO


@every_bad_message
def test_error_is_there_for_ever_and_for_sending_too(bad: BadMessage) -> None:
    def script(client: Conversation) -> None:
        bad.send(client)
        client.stay_silent()

    with tunnel(script) as (sock, _):
        for _ in range(2):
            with pytest.raises(bad.error, match=bad.says):
                sock.recv(100)
            with pytest.raises(bad.error, match=bad.says):
                sock.recv_into(bytearray(100))
            with pytest.raises(bad.error, match=bad.says):
                sock.send(b"secret data")
            with pytest.raises(bad.error, match=bad.says):
                sock.sendall(b"secret data")


@every_bad_message
def test_nothing_is_sent_after_it(bad: BadMessage) -> None:
    def script(client: Conversation) -> None:
        bad.send(client)
        # The client has ended the connection by itself, before it is closed.
        assert client.receive_data() == b""

    with tunnel(script) as (sock, proxy):
        with pytest.raises(bad.error):
            sock.recv(100)
        before = len(proxy.conversations[0].received)
        with pytest.raises(bad.error):
            sock.sendall(b"secret data")
    assert len(proxy.received) == before
    assert b"secret" not in proxy.received


@every_bad_message
def test_select_tells_of_the_error(bad: BadMessage) -> None:
    with tunnel(bad.send) as (sock, _):
        sock.setblocking(False)
        error = None
        while error is None:
            assert select.select([sock], [], [], 20)[0] == [sock]
            try:
                sock.recv(100)
            except BlockingIOError:
                continue
            except ProxyError as raised:
                error = raised
        assert isinstance(error, bad.error)
        assert select.select([sock], [], [], 20)[0] == [sock]


@every_bad_message
def test_file_over_the_socket_fails_alike(bad: BadMessage) -> None:
    def script(client: Conversation) -> None:
        client.send_data(b"a line\n")
        bad.send(client)

    with tunnel(script) as (sock, _), sock.makefile("rb") as file:
        assert file.readline() == b"a line\n"
        with pytest.raises(bad.error, match=bad.says):
            file.read()


@every_bad_message
def test_patched_socket_fails_alike(bad: BadMessage) -> None:
    def script(client: Conversation) -> None:
        client.open_tunnel()
        bad.send(client)

    with (
        ScriptedProxy(script) as proxy,
        gsssocks.installed(proxy.url()),
        socket.create_connection(("192.0.2.77", 4711), 20) as sock,
        pytest.raises(bad.error, match=bad.says),
    ):
        sock.recv(100)


@pytest.mark.parametrize("length", [0, 1, 100, 65475])
def test_encrypted_message_at_level_integrity_is_no_offence(length: int) -> None:
    def script(client: Conversation) -> None:
        client.send_message(DATA, client.wrap(bytes(length), confidential=True))
        client.send_data(b"end")

    with tunnel(script, protection="integrity") as (sock, _):
        assert receive_exactly(sock, length + 3) == bytes(length) + b"end"


def test_clients_own_message_sent_back_is_refused() -> None:
    def mirror(client: Conversation) -> None:
        mtyp, token = client.hear_message()
        client.send_message(mtyp, token)

    with tunnel(mirror) as (sock, _):
        sock.sendall(b"mine")
        with pytest.raises(ProtectionError, match="forged"):
            sock.recv(100)


def test_message_of_another_connection_is_refused() -> None:
    """Both have the same key in their ticket; each context has its own."""
    tokens: list[bytes] = []

    def script(client: Conversation) -> None:
        tokens.append(client.wrap(b"for one of them"))
        client.send_message(DATA, tokens[0])

    with tunnel(script) as (first, proxy), gsssocks.create_connection(TARGET, 20, proxy=proxy.url()) as second:
        received = []
        for sock in (first, second):
            try:
                received.append(sock.recv(100))
            except ProtectionError:
                received.append(b"refused")
        assert sorted(received) == [b"for one of them", b"refused"]


def test_reset_is_the_reset_of_a_plain_socket() -> None:
    def script(client: Conversation) -> None:
        client.receive_data()
        client.reset()

    with tunnel(script) as (sock, _):
        sock.sendall(b"ping")
        with pytest.raises(ConnectionResetError):
            sock.recv(100)


def test_end_between_messages_is_the_end_of_the_data() -> None:
    with tunnel(lambda client: client.send_data(b"all")) as (sock, _):
        assert sock.recv(100) == b"all"
        assert sock.recv(100) == b""
        assert sock.recv(100) == b""
