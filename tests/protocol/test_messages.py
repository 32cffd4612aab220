"""Each message has the octets that the RFCs give it, and is recognised again from them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsssocks import ProtocolError
from gsssocks._protocol import (
    MAX_TOKEN,
    Address,
    Command,
    Greeting,
    MessageType,
    Method,
    MethodSelection,
    ProtectionLevel,
    Reply,
    Request,
    TokenMessage,
    UserPassword,
    UserPasswordStatus,
    message_header,
)
from tests.protocol.strategies import addresses, any_message, messages

pytestmark = pytest.mark.default_python_only

# Each with the octets written out by hand from the figures of the RFCs.
EXAMPLES: dict[str, tuple[Any, str]] = {
    "greeting, GSS-API alone (RFC 1928, section 3)": (Greeting(bytes([Method.GSSAPI])), "05 01 01"),
    "greeting, three methods": (Greeting(b"\x00\x01\x02"), "05 03 00 01 02"),
    "greeting, no method": (Greeting(b""), "05 00"),
    "selection of GSS-API": (MethodSelection(Method.GSSAPI), "05 01"),
    "selection of nothing": (MethodSelection(Method.NO_ACCEPTABLE), "05 ff"),
    "CONNECT to IPv4 (RFC 1928, section 4)": (
        Request(Command.CONNECT, Address("192.0.2.1", 80)),
        "05 01 00 01 c0 00 02 01 00 50",
    ),
    "CONNECT to a name": (
        Request(Command.CONNECT, Address("www.example.com", 443)),
        "05 01 00 03 0f 77 77 77 2e 65 78 61 6d 70 6c 65 2e 63 6f 6d 01 bb",
    ),
    "CONNECT to IPv6": (
        Request(Command.CONNECT, Address("2001:db8::1", 65535)),
        "05 01 00 04 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 01 ff ff",
    ),
    "BIND": (Request(Command.BIND, Address("0.0.0.0", 0)), "05 02 00 01 00 00 00 00 00 00"),
    "UDP ASSOCIATE": (Request(Command.UDP_ASSOCIATE, Address("::", 0)), "05 03 00 04" + " 00" * 18),
    "reply, granted (RFC 1928, section 6)": (
        Reply(0, Address("198.51.100.7", 1080)),
        "05 00 00 01 c6 33 64 07 04 38",
    ),
    "reply, bound to a name": (Reply(0, Address("out", 1)), "05 00 00 03 03 6f 75 74 00 01"),
    "user and password (RFC 1929, section 2)": (UserPassword(b"alice", b"pw"), "01 05 61 6c 69 63 65 02 70 77"),
    "password accepted": (UserPasswordStatus(0), "01 00"),
    "password refused": (UserPasswordStatus(1), "01 01"),
    "context token (RFC 1961, section 3.4)": (
        TokenMessage(MessageType.CONTEXT, b"\x60\x81\xff"),
        "01 01 00 03 60 81 ff",
    ),
    "empty context token (RFC 1961, section 3.6)": (TokenMessage(MessageType.CONTEXT), "01 01 00 00"),
    "refusal (RFC 1961, section 3.8)": (TokenMessage(MessageType.REFUSAL), "01 ff"),
    "protection level (RFC 1961, section 4.2)": (TokenMessage(MessageType.LEVEL, b"\x04\x04"), "01 02 00 02 04 04"),
    "data (RFC 1961, section 5)": (TokenMessage(MessageType.ENCAPSULATED, b"\x05\x04"), "01 03 00 02 05 04"),
}

every_example = pytest.mark.parametrize(("message", "octets"), EXAMPLES.values(), ids=list(EXAMPLES))


@every_example
def test_octets_of_the_rfc_go_out(message: Any, octets: str) -> None:
    assert message.encode() == bytes.fromhex(octets)


@every_example
def test_octets_of_the_rfc_come_in(message: Any, octets: str) -> None:
    assert type(message).decode(bytes.fromhex(octets)) == message


@given(any_message)
def test_round_trip(message: Any) -> None:
    assert type(message).decode(message.encode()) == message


@given(any_message)
def test_length_of_the_whole_is_its_length(message: Any) -> None:
    octets = message.encode()
    assert type(message).length(octets) == len(octets)


@given(any_message, st.sampled_from([bytearray, memoryview]))
def test_any_buffer_is_understood(message: Any, kind: type[Any]) -> None:
    octets = kind(message.encode())
    assert type(message).length(octets) == len(octets)
    assert type(message).decode(octets) == message


FIRST_OCTETS = {
    Greeting: 5,
    MethodSelection: 5,
    Request: 5,
    Reply: 5,
    UserPassword: 1,
    UserPasswordStatus: 1,
    TokenMessage: 1,
}


@pytest.mark.parametrize(("message", "first"), FIRST_OCTETS.items())
def test_wrong_first_octet_is_recognised_at_once(message: Any, first: int) -> None:
    for octet in range(256):
        if octet == first:
            assert message.length(bytes([octet])) > 1
            continue
        with pytest.raises(ProtocolError, match=rf"{octet:#04x}, not {first:#04x}"):
            message.length(bytes([octet]))


@pytest.mark.parametrize("prefix", [b"", b"\x05\x01\x00", b"\x05\x00\x00"], ids=["address", "request", "reply"])
def test_unknown_type_of_address_is_recognised_at_once(prefix: bytes) -> None:
    message: Any = {b"": Address, b"\x05\x01\x00": Request, b"\x05\x00\x00": Reply}[prefix]
    for atyp in set(range(256)) - {1, 3, 4}:
        with pytest.raises(ProtocolError, match=f"unknown type {atyp:#04x}"):
            message.length(prefix + bytes([atyp]))


class TestGreeting:
    def test_up_to_255_methods(self) -> None:
        assert Greeting(bytes(255)).encode() == b"\x05\xff" + bytes(255)

    def test_no_more_than_255_methods(self) -> None:
        with pytest.raises(ValueError, match=r"255|256"):
            Greeting(bytes(256)).encode()


class TestUserPassword:
    @pytest.mark.parametrize("length", [1, 255])
    def test_limits(self, length: int) -> None:
        octets = UserPassword(b"u" * length, b"p" * length).encode()
        assert len(octets) == 3 + 2 * length

    @pytest.mark.parametrize("length", [0, 256])
    def test_beyond_the_limits(self, length: int) -> None:
        with pytest.raises(ValueError, match=f"user name has 1 to 255 octets, not {length}"):
            UserPassword(b"u" * length, b"p").encode()
        with pytest.raises(ValueError, match=f"password has 1 to 255 octets, not {length}"):
            UserPassword(b"u", b"p" * length).encode()

    def test_password_is_not_shown(self) -> None:
        assert "s3cret" not in repr(UserPassword(b"alice", b"s3cret"))


class TestAddress:
    def test_longest_name(self) -> None:
        address = Address("n" * 255, 1)
        assert address.encode() == b"\x03\xff" + b"n" * 255 + b"\x00\x01"
        assert Address.decode(address.encode()) == address

    @pytest.mark.parametrize("length", [0, 256])
    def test_name_beyond_the_limits(self, length: int) -> None:
        with pytest.raises(ValueError, match=f"1 to 255 octets in SOCKS 5, not {length}"):
            Address("n" * length, 1).encode()

    def test_name_that_is_not_ascii_goes_as_idna(self) -> None:
        assert Address("bücher.example", 1).encode() == b"\x03\x15xn--bcher-kva.example\x00\x01"

    def test_name_that_idna_does_not_know(self) -> None:
        with pytest.raises(ValueError, match="label"):
            Address("ü" * 64, 1).encode()

    @pytest.mark.parametrize("character", [*map(chr, range(0x21)), "\x7f", "\\", "[", "]"], ids=ascii)
    def test_characters_that_no_name_has_go_nowhere(self, character: str) -> None:
        name = f"good.example{character}evil.example"
        with pytest.raises(ValueError, match="a host name has no control characters"):
            Address(name, 1).encode()
        with pytest.raises(ProtocolError, match="characters that none has") as caught:
            Address.decode(bytes([3, len(name)]) + name.encode() + b"\0\1")
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("name", ["_sip._tcp.example.com", "a-b.example.com.", "*", "127.1", "a/b", "a:b@c%d"])
    def test_other_characters_go_through(self, name: str) -> None:
        assert Address.decode(Address(name, 1).encode()) == Address(name, 1)

    def test_characters_that_idna_turns_into_such(self) -> None:
        with pytest.raises(ValueError, match="a host name has no"):
            Address("b\u00fccher\u3000example", 1).encode()

    def test_name_received_must_be_ascii(self) -> None:
        with pytest.raises(ProtocolError, match="characters that none has"):
            Address.decode(b"\x03\x02\xc3\xa4\x00\x01")

    def test_zone_of_an_address_cannot_be_sent(self) -> None:
        with pytest.raises(ValueError, match=r"fe80::1%eth0 has a zone"):
            Address("fe80::1%eth0", 1).encode()

    @pytest.mark.parametrize("port", [0, 1, 255, 256, 65535])
    def test_port_has_the_high_octet_first(self, port: int) -> None:
        assert Address("h", port).encode()[-2:] == bytes([port // 256, port % 256])

    @given(addresses)
    def test_text_form_can_be_taken_apart(self, address: Address) -> None:
        host, _, port = str(address).rpartition(":")
        assert (host.strip("[]"), int(port)) == (address.host, address.port)
        assert host.startswith("[") == (":" in address.host)


class TestReply:
    @given(st.integers(1, 255), addresses)
    def test_refusal_is_known_by_its_code_alone(self, code: int, address: Address) -> None:
        octets = Reply(code, address).encode()
        assert Reply.length(octets[:2]) == 2
        assert Reply.decode(octets[:2]).code == Reply.decode(octets).code == code


class TestTokenMessage:
    def test_longest_token(self) -> None:
        octets = TokenMessage(MessageType.ENCAPSULATED, bytes(MAX_TOKEN)).encode()
        assert octets == b"\x01\x03\xff\xff" + bytes(65535)

    def test_longer_token(self) -> None:
        with pytest.raises(ValueError, match="65536 octets does not fit a message: 65535 at most"):
            TokenMessage(MessageType.ENCAPSULATED, bytes(MAX_TOKEN + 1)).encode()

    @given(st.integers(0, 254), st.integers(0, MAX_TOKEN))
    def test_header_stands_before_the_token(self, mtyp: int, length: int) -> None:
        assert TokenMessage(mtyp, bytes(length)).encode() == message_header(mtyp, length) + bytes(length)

    def test_refusal_is_whole_after_two_octets(self) -> None:
        assert TokenMessage.length(b"\x01\xff") == 2


class TestProtectionLevel:
    # Rows: what is wanted; columns: what is granted, 0 to 3.
    @pytest.mark.parametrize(
        ("wanted", "satisfied_by"),
        [
            (ProtectionLevel.NONE, {0, 1, 2, 3}),
            (ProtectionLevel.INTEGRITY, {1, 2, 3}),
            (ProtectionLevel.SELECTIVE, {2, 3}),
            (ProtectionLevel.CONFIDENTIALITY, {2}),
        ],
    )
    def test_satisfies_what_promises_no_more(self, wanted: ProtectionLevel, satisfied_by: set[int]) -> None:
        assert {level for level in ProtectionLevel if level.satisfies(wanted)} == satisfied_by


def test_there_is_a_strategy_for_every_message() -> None:
    assert set(FIRST_OCTETS) | {Address} == set(messages)
