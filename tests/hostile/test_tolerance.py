"""What looks odd and is allowed: the client gets along with it."""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks.testing import ScriptedProxy
from tests.hostile.misdeeds import CONTEXT, DATA, LEVEL, before_level, before_reply

if TYPE_CHECKING:
    from gsssocks.testing import Conversation
    from tests.hostile.misdeeds import Script

TARGET = ("secret.target.example", 4711)
GREETING = b"220 the target speaks first\r\n"


def one_octet_at_a_time(client: Conversation) -> None:
    whole = client.send

    def send(octets: bytes) -> None:
        for octet in octets:
            whole(bytes([octet]))

    client.send = send  # type: ignore[method-assign]
    client.open_tunnel()
    client.send_data(GREETING)


def empty_message_after_the_context(client: Conversation) -> None:
    client.choose_method()
    client.establish_context()
    client.send_message(CONTEXT, b"")
    client.grant_level()
    client.hear_request()
    client.reply()
    client.send_data(GREETING)


def encrypted_level(client: Conversation) -> None:
    before_level(client)
    client.send_message(LEVEL, client.wrap(b"\x02", confidential=True))
    client.use_level(2)
    client.hear_request()
    client.reply()
    client.send_data(GREETING)


def reply_split_over_messages(client: Conversation) -> None:
    before_reply(client)
    for octet in client.reply_octets():
        client.send_data(bytes([octet]))
    client.send_data(GREETING)


def reply_after_empty_messages(client: Conversation) -> None:
    before_reply(client)
    for _ in range(3):
        client.send_data(b"")
    client.reply()
    client.send_data(GREETING)


def data_in_the_replys_message(client: Conversation) -> None:
    before_reply(client)
    client.send_data(client.reply_octets() + GREETING)


def data_begins_in_the_replys_message(client: Conversation) -> None:
    before_reply(client)
    client.send_data(client.reply_octets() + GREETING[:5])
    client.send_data(GREETING[5:])


def data_in_the_replys_segment(client: Conversation) -> None:
    before_reply(client)
    client.send(client.records.protect(client.reply_octets()) + client.records.protect(GREETING))


def empty_messages_between_data(client: Conversation) -> None:
    client.open_tunnel()
    for octet in GREETING:
        client.send_data(b"")
        client.send_data(b"")
        client.send_data(bytes([octet]))


def bound_to_a_name(client: Conversation) -> None:
    before_reply(client)
    client.reply(host="outside.proxy.example", port=7)
    client.send_data(GREETING)


def bound_to_the_longest_name(client: Conversation) -> None:
    before_reply(client)
    client.reply(host="n" * 255, port=7)
    client.send_data(GREETING)


def bound_to_ipv6(client: Conversation) -> None:
    before_reply(client)
    client.reply(host="2001:db8::7", port=7)
    client.send_data(GREETING)


ODDITIES = [
    one_octet_at_a_time,
    empty_message_after_the_context,
    encrypted_level,
    reply_split_over_messages,
    reply_after_empty_messages,
    data_in_the_replys_message,
    data_begins_in_the_replys_message,
    data_in_the_replys_segment,
    empty_messages_between_data,
    bound_to_a_name,
    bound_to_the_longest_name,
    bound_to_ipv6,
]

every_oddity = pytest.mark.parametrize("script", ODDITIES, ids=lambda script: script.__name__)


@every_oddity
def test_data_arrives_whole(script: Script) -> None:
    with ScriptedProxy(script) as proxy, gsssocks.create_connection(TARGET, 20, proxy=proxy.url()) as sock:
        with sock.makefile("rb") as file:
            assert file.read() == GREETING
        sock.sendall(b"answer")
    assert b"secret" not in proxy.received


@every_oddity
def test_in_turn_as_well(script: Script) -> None:
    with (
        ScriptedProxy(script) as proxy,
        gsssocks.create_connection(TARGET, 20, proxy=proxy.url(pipelined="false")) as sock,
        sock.makefile("rb") as file,
    ):
        assert file.read() == GREETING


def level_and_reply_in_one_segment(client: Conversation) -> None:
    before_level(client)
    level = client.wrap(b"\x02", confidential=False)
    reply = client.wrap(client.reply_octets())
    client.use_level(2)
    client.hear_request()
    client.send(b"\x01\x02\x00%c" % len(level) + level + b"\x01\x03\x00%c" % len(reply) + reply)
    client.send_data(GREETING)


def test_level_and_reply_may_share_a_segment() -> None:
    with (
        ScriptedProxy(level_and_reply_in_one_segment) as proxy,
        gsssocks.create_connection(TARGET, 20, proxy=proxy.url()) as sock,
        sock.makefile("rb") as file,
    ):
        assert file.read() == GREETING


@every_oddity
def test_select_tells_of_every_octet(script: Script) -> None:
    def read_on(client: Conversation) -> None:
        script(client)
        client.stay_silent()

    with ScriptedProxy(read_on) as proxy, gsssocks.create_connection(TARGET, 20, proxy=proxy.url()) as sock:
        sock.setblocking(False)
        received = b""
        while len(received) < len(GREETING):
            assert select.select([sock], [], [], 20)[0] == [sock]
            try:
                received += sock.recv(1)
            except BlockingIOError:
                continue
        assert received == GREETING
        assert select.select([sock], [], [], 0)[0] == []


@pytest.mark.parametrize(
    ("script", "bound"),
    [
        (bound_to_a_name, ("outside.proxy.example", 7)),
        (bound_to_the_longest_name, ("n" * 255, 7)),
        (bound_to_ipv6, ("2001:db8::7", 7)),
    ],
)
def test_bound_address_is_told_as_it_was_given(script: Script, bound: tuple[str, int]) -> None:
    with ScriptedProxy(script) as proxy, gsssocks.create_connection(TARGET, 20, proxy=proxy.url()) as sock:
        assert sock.get_proxy_sockname() == bound


@pytest.mark.parametrize("count", [1, 3])
def test_longest_messages_are_taken(count: int) -> None:
    """Their tokens have all the 65,535 octets that a token can have."""

    def script(client: Conversation) -> None:
        client.open_tunnel()
        for _ in range(count):
            client.send_data(bytes(client.records.max_plaintext))

    with (
        ScriptedProxy(script) as proxy,
        gsssocks.create_connection(TARGET, 20, proxy=proxy.url()) as sock,
        sock.makefile("rb") as file,
    ):
        received = file.read()
    assert received == bytes(count * proxy.conversations[0].records.max_plaintext)


def test_higher_level_than_asked_for_is_taken_up() -> None:
    def script(client: Conversation) -> None:
        client.choose_method()
        client.establish_context()
        assert client.grant_level(2) == 1
        client.hear_request()
        client.reply()
        client.send_message(DATA, client.wrap(b"not secret any more", confidential=False))

    with (
        ScriptedProxy(script) as proxy,
        gsssocks.create_connection(TARGET, 20, proxy=proxy.url(protection="integrity", pipelined="false")) as sock,
        pytest.raises(gsssocks.ProtectionError, match="arrived unencrypted"),
    ):
        sock.recv(100)
