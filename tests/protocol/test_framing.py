"""However the octets arrive: whole, in pieces, or glued to what follows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsssocks import ProtocolError
from gsssocks._protocol import (
    Address,
    Greeting,
    MessageType,
    MethodSelection,
    ReceiveBuffer,
    Reply,
    Request,
    TokenMessage,
    UserPassword,
    UserPasswordStatus,
)
from tests.protocol.strategies import any_message

pytestmark = pytest.mark.default_python_only

SAMPLES: list[Any] = [
    Greeting(b"\x00\x01\x02"),
    MethodSelection(1),
    UserPassword(b"alice", b"wonderland"),
    UserPasswordStatus(0),
    Address("198.51.100.7", 1080),
    Address("2001:db8::7", 1080),
    Address("target.example", 1080),
    Request(1, Address("target.example", 80)),
    Request(2, Address("192.0.2.1", 80)),
    Request(3, Address("2001:db8::1", 80)),
    Reply(0, Address("proxy.example", 80)),
    Reply(0, Address("192.0.2.1", 80)),
    Reply(0, Address("2001:db8::1", 80)),
    TokenMessage(MessageType.CONTEXT, bytes(range(256))),
    TokenMessage(MessageType.LEVEL, b"\x02"),
    TokenMessage(MessageType.ENCAPSULATED),
    TokenMessage(MessageType.REFUSAL),
]

every_sample = pytest.mark.parametrize("message", SAMPLES, ids=str)


def read_exactly(buffer: ReceiveBuffer, kind: type[Any], octets: bytes) -> tuple[Any, bytes]:
    """The next message, reading no more than `missing` asks for each time; and what has not been read."""
    while missing := buffer.missing(kind):
        assert octets, "asks for more than the message has"
        buffer.feed(octets[:missing])
        octets = octets[missing:]
    return buffer.next(kind), octets


@every_sample
def test_split_at_every_octet(message: Any) -> None:
    octets = message.encode()
    for cut in range(len(octets) + 1):
        buffer = ReceiveBuffer()
        buffer.feed(octets[:cut])
        if cut < len(octets):
            assert 1 <= buffer.missing(type(message)) <= len(octets) - cut
        buffer.feed(octets[cut:])
        assert buffer.missing(type(message)) == 0
        assert buffer.next(type(message)) == message
        assert len(buffer) == 0


@every_sample
def test_octet_by_octet(message: Any) -> None:
    buffer = ReceiveBuffer()
    for octet in message.encode():
        assert buffer.missing(type(message)) > 0
        buffer.feed(bytes([octet]))
    assert buffer.missing(type(message)) == 0
    assert buffer.next(type(message)) == message


@every_sample
def test_what_is_glued_to_it_is_not_asked_for(message: Any) -> None:
    octets = message.encode()
    decoded, rest = read_exactly(ReceiveBuffer(), type(message), octets + b"tail")
    assert decoded == message
    assert rest == b"tail"


@every_sample
def test_what_is_glued_to_it_stays(message: Any) -> None:
    buffer = ReceiveBuffer()
    buffer.feed(message.encode() + b"tail")
    assert buffer.missing(type(message)) == 0
    assert buffer.next(type(message)) == message
    assert len(buffer) == 4


@given(any_message, any_message)
def test_two_messages_glued_together(first: Any, second: Any) -> None:
    buffer = ReceiveBuffer()
    buffer.feed(first.encode() + second.encode())
    assert buffer.next(type(first)) == first
    assert buffer.next(type(second)) == second
    assert len(buffer) == 0


@given(st.lists(any_message, max_size=5), st.data())
def test_any_stream_in_any_pieces(stream: list[Any], data: st.DataObject) -> None:
    octets = b"".join(message.encode() for message in stream)
    received: list[Any] = []
    buffer = ReceiveBuffer()
    while len(received) < len(stream):
        kind = type(stream[len(received)])
        if buffer.missing(kind):
            size = data.draw(st.integers(1, len(octets)))
            buffer.feed(octets[:size])
            octets = octets[size:]
        else:
            received.append(buffer.next(kind))
    assert received == stream


@given(st.binary(max_size=100))
@pytest.mark.parametrize(
    "kind", [Greeting, MethodSelection, UserPassword, UserPasswordStatus, Address, Request, Reply, TokenMessage]
)
def test_any_octets_are_a_message_or_a_protocol_error(kind: type[Any], octets: bytes) -> None:
    """Nothing that a peer sends has another outcome, and no more is read than it takes to know."""
    try:
        message, _ = read_exactly(ReceiveBuffer(), kind, octets + bytes(70_000))
    except ProtocolError:
        return
    assert isinstance(message, kind)
