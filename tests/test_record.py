"""User data to messages and back, with real Kerberos contexts, however the octets are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsssocks import ProtectionError, ProtocolError
from gsssocks._gss import Acceptor, Initiator
from gsssocks._protocol import MAX_TOKEN, MessageType, ProtectionLevel, ReceiveBuffer, TokenMessage
from gsssocks._record import BareRecords, Plaintext, ProtectedRecords

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Realm

INTEGRITY, CONFIDENTIALITY = ProtectionLevel.INTEGRITY, ProtectionLevel.CONFIDENTIALITY
SELECTIVE = ProtectionLevel.SELECTIVE
EVERYTHING = 1 << 30


class Ends(NamedTuple):
    """Two contexts that belong together, and their record layers."""

    initiator: Initiator
    acceptor: Acceptor
    out: ProtectedRecords
    into: ProtectedRecords


@pytest.fixture(scope="module", autouse=True)
def _in_the_realm(realm: Realm) -> Iterator[None]:
    with realm.activate():
        yield


def connected(level: ProtectionLevel = CONFIDENTIALITY) -> Ends:
    initiator, acceptor = Initiator("socks@localhost"), Acceptor()
    initiator.step(acceptor.step(initiator.step(None)))
    return Ends(initiator, acceptor, ProtectedRecords(initiator, level), ProtectedRecords(acceptor, level))


def view(octets: bytes) -> memoryview:
    return memoryview(bytearray(octets))


def token_of(message: bytes) -> bytes:
    return TokenMessage.decode(message).token


class TestMessages:
    @pytest.mark.parametrize("level", [INTEGRITY, CONFIDENTIALITY, SELECTIVE])
    @given(chunks=st.lists(st.binary(max_size=200), max_size=20), data=st.data())
    def test_any_data_in_any_pieces(self, level: ProtectionLevel, chunks: list[bytes], data: st.DataObject) -> None:
        ends = connected(level)
        kernel = b"".join(ends.out.protect(chunk) for chunk in chunks)
        arrived, received = 0, b""
        while arrived < len(kernel) or len(ends.into.plaintext):
            if arrived < len(kernel):
                shown = data.draw(st.integers(1, len(kernel) - arrived))
                arrived += ends.into.receive(view(kernel[arrived : arrived + shown]), data.draw(st.integers(1, 300)))
            received += ends.into.plaintext.take(data.draw(st.integers(1, 300)))
        assert received == b"".join(chunks)
        assert ends.into.partial == 0

    @pytest.mark.parametrize("level", [INTEGRITY, CONFIDENTIALITY])
    def test_longest_message_fills_a_token(self, level: ProtectionLevel) -> None:
        ends = connected(level)
        room = ends.out.max_plaintext
        message = ends.out.protect(bytes(room))
        assert len(token_of(message)) == MAX_TOKEN
        assert ends.into.receive(view(message), EVERYTHING) == len(message)
        assert ends.into.plaintext.take(room) == bytes(room)

    def test_longer_message_is_not_made(self) -> None:
        ends = connected()
        with pytest.raises(ProtectionError, match="does not fit a message"):
            ends.out.protect(bytes(ends.out.max_plaintext + 1))

    def test_empty_message_is_no_end(self) -> None:
        ends = connected()
        message = ends.out.protect(b"")
        assert ends.into.receive(view(message), 1) == len(message)
        assert len(ends.into.plaintext) == 0
        message = ends.out.protect(b"data")
        assert ends.into.receive(view(message), 1) == len(message)
        assert ends.into.plaintext.take(10) == b"data"

    @pytest.mark.parametrize(("level", "encrypted"), [(INTEGRITY, False), (CONFIDENTIALITY, True), (SELECTIVE, True)])
    def test_level_says_whether_to_encrypt(self, level: ProtectionLevel, encrypted: bool) -> None:
        ends = connected(level)
        token = token_of(ends.out.protect(b"is this readable?"))
        assert (b"is this readable?" in token) != encrypted
        assert ends.acceptor.unwrap(token) == (b"is this readable?", encrypted)

    def test_selective_protection_is_chosen_for_each_message(self) -> None:
        ends = connected(SELECTIVE)
        out = ProtectedRecords(ends.initiator, SELECTIVE, confidential=lambda data: bytes(data).startswith(b"secret"))
        for data, encrypted in ((b"secret 1", True), (b"open", False), (b"secret 2", True)):
            message = out.protect(data)
            assert (data not in message) == encrypted
            ends.into.receive(view(message), 1)
            assert ends.into.plaintext.take(100) == data

    @pytest.mark.parametrize("level", [INTEGRITY, CONFIDENTIALITY])
    def test_choice_is_for_selective_protection_alone(self, level: ProtectionLevel) -> None:
        ends = connected(level)
        out = ProtectedRecords(ends.initiator, level, confidential=lambda _: level == INTEGRITY)
        assert ends.acceptor.unwrap(token_of(out.protect(b"data"))).confidential == (level == CONFIDENTIALITY)


class TestReceiving:
    def test_no_more_messages_are_taken_than_are_wanted(self) -> None:
        ends = connected()
        first, second = ends.out.protect(b"one"), ends.out.protect(b"two")
        assert ends.into.receive(view(first + second), 3) == len(first)
        assert ends.into.receive(view(second), 4) == len(second)
        assert ends.into.plaintext.take(10) == b"onetwo"

    def test_beginning_of_a_message_is_taken_where_there_is_nothing_else(self) -> None:
        ends = connected()
        message = ends.out.protect(b"data")
        for octet in message[:-1]:
            assert ends.into.receive(view(bytes([octet])), 1) == 1
        assert ends.into.partial == len(message) - 1
        assert ends.into.receive(view(message[-1:]), 1) == 1
        assert ends.into.partial == 0
        assert ends.into.plaintext.take(10) == b"data"

    def test_beginning_of_a_message_stays_behind_data(self) -> None:
        ends = connected()
        first, second = ends.out.protect(b"one"), ends.out.protect(b"two")
        assert ends.into.receive(view(first + second[:-1]), EVERYTHING) == len(first)
        assert ends.into.partial == 0

    def test_hint_is_what_the_begun_message_lacks(self) -> None:
        ends = connected()
        message = ends.out.protect(bytes(1000))
        ends.into.receive(view(message[:10]), 1)
        assert ends.into.hint == len(message) - 10

    def test_hint_is_the_length_of_the_last_message(self) -> None:
        ends = connected()
        message = ends.out.protect(bytes(1000))
        ends.into.receive(view(message), 1)
        assert ends.into.hint == len(message)

    def test_octets_shown_are_not_changed(self) -> None:
        """They may lie in the kernel still, or be shown again."""
        ends = connected()
        shown = view(ends.out.protect(b"data"))
        before = bytes(shown)
        ends.into.receive(shown, 1)
        assert bytes(shown) == before


class TestOffences:
    def test_unencrypted_message_at_level_confidentiality(self) -> None:
        ends = connected()
        bare = TokenMessage(MessageType.ENCAPSULATED, ends.initiator.wrap(b"data", confidential=False)).encode()
        with pytest.raises(ProtectionError, match="arrived unencrypted although confidentiality was agreed on"):
            ends.into.receive(view(bare), 1)
        assert len(ends.into.plaintext) == 0

    @pytest.mark.parametrize("level", [INTEGRITY, SELECTIVE])
    @pytest.mark.parametrize("encrypted", [True, False])
    def test_none_at_the_other_levels(self, level: ProtectionLevel, encrypted: bool) -> None:
        ends = connected(level)
        token = ends.initiator.wrap(b"data", confidential=encrypted)
        ends.into.receive(view(TokenMessage(MessageType.ENCAPSULATED, token).encode()), 1)
        assert ends.into.plaintext.take(10) == b"data"

    @pytest.mark.parametrize("mtyp", [0, 1, 2, 4, 0x7F, 0xFF])
    def test_other_type_is_known_by_two_octets(self, mtyp: int) -> None:
        with pytest.raises(ProtocolError, match=f"type {mtyp:#04x} in the middle of the data"):
            connected().into.receive(view(bytes([1, mtyp])), 1)

    def test_other_version_is_known_by_one_octet(self) -> None:
        with pytest.raises(ProtocolError, match="version of the GSS-API message is 0x48"):
            connected().into.receive(view(b"H"), 1)

    def test_any_changed_bit(self) -> None:
        length = len(token_of(connected().out.protect(b"data")))
        for index in range(length):
            ends = connected()
            token = bytearray(token_of(ends.out.protect(b"data")))
            token[index] ^= 0x10
            changed = TokenMessage(MessageType.ENCAPSULATED, bytes(token)).encode()
            with pytest.raises(ProtectionError):
                ends.into.receive(view(changed), 1)
            assert len(ends.into.plaintext) == 0

    def test_repeated_message(self) -> None:
        ends = connected()
        message = ends.out.protect(b"data")
        with pytest.raises(ProtectionError, match="repeated"):
            ends.into.receive(view(message + message), EVERYTHING)
        assert ends.into.plaintext.take(100) == b"data"

    def test_missing_message(self) -> None:
        ends = connected()
        ends.out.protect(b"lost")
        with pytest.raises(ProtectionError, match="lost"):
            ends.into.receive(view(ends.out.protect(b"data")), 1)
        assert len(ends.into.plaintext) == 0

    def test_messages_out_of_order(self) -> None:
        ends = connected()
        first, second = ends.out.protect(b"one"), ends.out.protect(b"two")
        with pytest.raises(ProtectionError):
            ends.into.receive(view(second + first), EVERYTHING)
        assert len(ends.into.plaintext) == 0

    def test_own_message_sent_back(self) -> None:
        ends = connected()
        with pytest.raises(ProtectionError):
            ends.out.receive(view(ends.out.protect(b"data")), 1)

    def test_message_of_another_connection(self) -> None:
        with pytest.raises(ProtectionError):
            connected().into.receive(view(connected().out.protect(b"data")), 1)

    def test_data_before_it_stays(self) -> None:
        ends = connected()
        good = ends.out.protect(b"good")
        with pytest.raises(ProtocolError):
            ends.into.receive(view(good + b"\x01\x01\x00\x00"), EVERYTHING)
        assert ends.into.plaintext.take(100) == b"good"


class TestBare:
    def test_octets_go_as_they_are(self) -> None:
        assert BareRecords().protect(b"data") == b"data"

    @given(st.binary(min_size=1, max_size=100), st.integers(1, 200))
    def test_no_more_octets_are_taken_than_are_wanted(self, octets: bytes, wanted: int) -> None:
        records = BareRecords()
        taken = records.receive(view(octets), wanted)
        assert taken == min(len(octets), wanted)
        assert records.plaintext.take(200) == octets[:taken]


class TestPlaintext:
    @given(st.lists(st.binary(max_size=10)), st.lists(st.integers(0, 25)))
    def test_octets_come_out_in_their_order(self, chunks: list[bytes], sizes: list[int]) -> None:
        plaintext = Plaintext()
        for chunk in chunks:
            plaintext.append(chunk)
        expected = b"".join(chunks)
        for size in sizes:
            assert len(plaintext) == len(expected)
            assert plaintext.look(size) == expected[:size]
            assert plaintext.take(size) == expected[:size]
            expected = expected[size:]
        assert plaintext.look(1000) == expected

    @given(st.lists(st.binary(max_size=10)), st.lists(st.integers(0, 25)))
    def test_into_a_buffer_and_dropped(self, chunks: list[bytes], sizes: list[int]) -> None:
        plaintext = Plaintext()
        expected = b""
        for chunk, size in zip(chunks, sizes):
            plaintext.append(chunk)
            expected += chunk
            buffer = bytearray(size)
            count = plaintext.peek_into(memoryview(buffer))
            assert buffer[:count] == expected[:size]
            plaintext.drop(count)
            expected = expected[count:]
            assert len(plaintext) == len(expected)


def test_receive_buffer_and_record_layer_agree_on_a_message() -> None:
    ends = connected()
    buffer = ReceiveBuffer()
    buffer.feed(ends.out.protect(b"one") + ends.out.protect(b"two"))
    assert [ends.acceptor.unwrap(buffer.next(TokenMessage).token).data for _ in range(2)] == [b"one", b"two"]
