"""Both roles of the negotiation, against each other in memory, with real Kerberos contexts."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Callable

import pytest

from gsssocks import AuthenticationError, ProtectionError, ProtocolError, ReplyError
from gsssocks._gss import Acceptor, Initiator
from gsssocks._negotiation import ClientNegotiation, ServerNegotiation
from gsssocks._protocol import (
    Address,
    Command,
    Greeting,
    MessageType,
    Method,
    MethodSelection,
    ProtectionLevel,
    ReceiveBuffer,
    Reply,
    Request,
    TokenMessage,
)
from gsssocks.exceptions import LevelRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gsssocks._negotiation import Negotiation
    from gsssocks._record import Records
    from gsssocks._security import Granted
    from gsssocks.testing import Realm

pytestmark = pytest.mark.usefixtures("in_the_realm")

REQUEST = Request(Command.CONNECT, Address("target.example", 4711))
BOUND = Address("198.51.100.7", 1234)
GRANTED = Reply(0, BOUND).encode()
METHOD = MethodSelection(Method.GSSAPI).encode()
STRAY = TokenMessage(MessageType.CONTEXT).encode()
REFUSAL = TokenMessage(MessageType.REFUSAL).encode()

CONFIDENTIALITY, INTEGRITY = ProtectionLevel.CONFIDENTIALITY, ProtectionLevel.INTEGRITY

Pieces = Callable[[bytes], "Iterable[bytes]"]


def new_client(target: str = "socks@localhost", **options: Any) -> ClientNegotiation:
    return ClientNegotiation(Initiator(target), REQUEST, proxy="proxy:1080", **options)


def new_server(
    levels: Iterable[ProtectionLevel] = ProtectionLevel, authorize: Callable[[str], bool] = lambda _: True
) -> ServerNegotiation:
    return ServerNegotiation(Acceptor(), levels=set(levels), authorize=authorize)


def whole(octets: bytes) -> Iterable[bytes]:
    return [octets] if octets else []


def octet_by_octet(octets: bytes) -> Iterable[bytes]:
    return (bytes([octet]) for octet in octets)


def split_at(cut: int) -> Pieces:
    return lambda octets: filter(None, (octets[:cut], octets[cut:]))


def deliver(negotiation: Negotiation, pieces: Iterable[bytes]) -> bytes:
    """Shows the octets; returns what is sent for them. All are taken."""
    sent = b""
    for piece in pieces:
        step = negotiation.receive(piece)
        assert step.taken == len(piece)
        sent += step.to_send
    return sent


def converse(client: ClientNegotiation, server: ServerNegotiation, pieces: Pieces = whole) -> list[tuple[bytes, bytes]]:
    """The whole conversation up to the granted request: for each round trip, what the client and the proxy sent."""
    round_trips = []
    assert server.start() == b""
    out = client.start()
    while not client.complete:
        back = deliver(server, pieces(out))
        if server.complete:
            back += server.reply(0, BOUND)
        round_trips.append((out, back))
        out = deliver(client, pieces(back))
    assert out == b""
    return round_trips


def established(client: ClientNegotiation) -> tuple[Acceptor, bytes]:
    """Plays a proxy by hand up to where the client waits for the level; returns the proxy's context and what the client
    has sent since."""
    acceptor, heard = Acceptor(), ReceiveBuffer()
    heard.feed(client.start())
    heard.next(Greeting)
    if not len(heard):
        heard.feed(deliver(client, [METHOD]))
        greeted = b""
    else:
        greeted = METHOD
    answer = acceptor.step(heard.next(TokenMessage).token) or b""
    assert not len(heard)
    return acceptor, deliver(client, [greeted + TokenMessage(MessageType.CONTEXT, answer).encode()])


def agreed(client: ClientNegotiation) -> Acceptor:
    """Plays a proxy by hand up to where the client waits for the reply."""
    acceptor, _ = established(client)
    deliver(client, [level_answer(acceptor)])
    return acceptor


def level_granted(server: ServerNegotiation) -> Initiator:
    """Plays a client by hand up to where the server waits for the request."""
    initiator, heard = Initiator("socks@localhost"), ReceiveBuffer()
    server.start()
    hello = Greeting(b"\x01").encode() + TokenMessage(MessageType.CONTEXT, initiator.step(None) or b"").encode()
    heard.feed(deliver(server, [hello]))
    assert heard.next(MethodSelection) == MethodSelection(Method.GSSAPI)
    initiator.step(heard.next(TokenMessage).token)
    heard.feed(deliver(server, [level_answer(initiator)]))
    assert initiator.unwrap(heard.next(TokenMessage).token).data == b"\x02"
    return initiator


def level_answer(end: Acceptor | Initiator, octets: bytes = b"\x02", *, confidential: bool = False) -> bytes:
    return TokenMessage(MessageType.LEVEL, end.wrap(octets, confidential=confidential)).encode()


def data(end: Acceptor | Initiator, octets: bytes) -> bytes:
    return TokenMessage(MessageType.ENCAPSULATED, end.wrap(octets, confidential=True)).encode()


def records_of(negotiation: Negotiation) -> Records:
    assert negotiation.records is not None
    return negotiation.records


def arrives(sender: Negotiation, receiver: Negotiation, octets: bytes) -> None:
    """What one end protects, the other takes out again."""
    message = records_of(sender).protect(octets)
    records = records_of(receiver)
    assert records.receive(memoryview(bytearray(message)), len(octets)) == len(message)
    assert records.plaintext.take(len(octets)) == octets


every_level = pytest.mark.parametrize("level", list(ProtectionLevel))
both_forms = pytest.mark.parametrize("pipelined", [True, False])


class TestAgainstEachOther:
    @every_level
    @both_forms
    def test_request_arrives_and_is_granted(self, level: ProtectionLevel, pipelined: bool) -> None:
        client, server = new_client(level=level, pipelined=pipelined), new_server()
        converse(client, server)
        assert server.request == REQUEST
        assert client.bound == BOUND
        assert records_of(client).level == records_of(server).level == level

    @every_level
    @both_forms
    def test_data_goes_both_ways_afterwards(self, level: ProtectionLevel, pipelined: bool) -> None:
        client, server = new_client(level=level, pipelined=pipelined), new_server()
        converse(client, server)
        for octets in (b"x", b"data", bytes(1000), bytes(records_of(client).max_plaintext)):
            arrives(client, server, octets)
            arrives(server, client, octets)

    @every_level
    def test_octet_by_octet(self, level: ProtectionLevel) -> None:
        for pipelined in (True, False):
            client, server = new_client(level=level, pipelined=pipelined), new_server()
            converse(client, server, octet_by_octet)
            assert (server.request, client.bound) == (REQUEST, BOUND)

    def test_split_at_every_octet(self) -> None:
        longest = max(len(octets) for trip in converse(new_client(), new_server()) for octets in trip)
        for cut in range(1, longest + 1):
            client, server = new_client(), new_server()
            converse(client, server, split_at(cut))
            assert (server.request, client.bound) == (REQUEST, BOUND)

    def test_two_round_trips_if_pipelined_and_four_if_not(self) -> None:
        assert len(converse(new_client(pipelined=True), new_server())) == 2
        assert len(converse(new_client(pipelined=False), new_server())) == 4

    def test_each_message_has_a_token_of_its_own(self) -> None:
        """Dante drops octets behind a request in the same token."""
        (first, _), (second, _) = converse(new_client(), new_server())
        heard = ReceiveBuffer()
        heard.feed(first + second)
        assert heard.next(Greeting) == Greeting(b"\x01")
        assert [heard.next(TokenMessage).mtyp for _ in range(3)] == [
            MessageType.CONTEXT,
            MessageType.LEVEL,
            MessageType.ENCAPSULATED,
        ]
        assert len(heard) == 0

    @pytest.mark.parametrize("level", [CONFIDENTIALITY, ProtectionLevel.SELECTIVE])
    @both_forms
    def test_target_is_not_in_the_octets(self, level: ProtectionLevel, pipelined: bool) -> None:
        trips = converse(new_client(level=level, pipelined=pipelined), new_server())
        assert all(b"target" not in out for out, _ in trips)

    def test_target_is_in_the_octets_where_only_integrity_is_asked_for(self) -> None:
        trips = converse(new_client(level=INTEGRITY), new_server())
        assert any(b"target.example" in out for out, _ in trips)

    def test_proxy_knows_the_clients_name(self, realm: Realm) -> None:
        names: list[str] = []
        converse(new_client(), new_server(authorize=lambda name: not names.append(name)))  # type: ignore[func-returns-value]
        assert names == [realm.principal]


class TestServer:
    def test_chooses_among_several_methods(self) -> None:
        server = new_server()
        server.start()
        assert server.receive(Greeting(b"\x02\x01\x00").encode()).to_send == b"\x05\x01"

    def test_does_not_choose_what_is_not_offered(self) -> None:
        server = new_server()
        server.start()
        with pytest.raises(AuthenticationError, match=r"does not offer GSS-API, only methods 00 02"):
            server.receive(Greeting(b"\x00\x02").encode())
        assert server.farewell() == b"\x05\xff"

    def test_refuses_an_unauthorised_client(self, realm: Realm) -> None:
        client, server = new_client(), new_server(authorize=lambda _: False)
        server.start()
        with pytest.raises(AuthenticationError, match=f"{realm.principal} is not authorised"):
            server.receive(client.start())
        farewell = server.farewell()
        assert farewell == METHOD + REFUSAL
        with pytest.raises(AuthenticationError, match="refused our authentication"):
            client.receive(farewell)

    @pytest.mark.parametrize("level", [ProtectionLevel.NONE, INTEGRITY])
    def test_refuses_a_level_it_does_not_allow(self, level: ProtectionLevel) -> None:
        client, server = new_client(level=level), new_server(levels=[CONFIDENTIALITY])
        server.start()
        out = deliver(client, [deliver(server, [client.start()])])
        with pytest.raises(ProtectionError, match=f"not allowed here: {level.name.lower()}"):
            server.receive(out)
        farewell = server.farewell()
        assert farewell == REFUSAL
        with pytest.raises(ProtectionError, match="refused the protection level"):
            client.receive(farewell)

    def test_refuses_a_token_that_is_none(self) -> None:
        server = new_server()
        server.start()
        server.receive(Greeting(b"\x01").encode())
        with pytest.raises(AuthenticationError):
            server.receive(TokenMessage(MessageType.CONTEXT, b"no token").encode())
        assert server.farewell() == REFUSAL

    def test_knows_another_protocol_by_its_first_octet(self) -> None:
        server = new_server()
        server.start()
        with pytest.raises(ProtocolError, match="version of the greeting is 0x47"):
            server.receive(b"G")

    @pytest.mark.parametrize(
        ("octets", "code"),
        [(b"\x05\x01\x00\x09" + bytes(6), 8), (b"\x04\x01" + bytes(7), 1)],
        ids=["unknown type of address", "SOCKS 4"],
    )
    def test_replies_to_a_request_it_does_not_understand(self, octets: bytes, code: int) -> None:
        server = new_server()
        initiator = level_granted(server)
        with pytest.raises(ProtocolError):
            server.receive(data(initiator, octets))
        heard = ReceiveBuffer()
        heard.feed(server.farewell())
        assert initiator.unwrap(heard.next(TokenMessage).token).data[:2] == bytes([5, code])

    def test_does_not_take_a_request_without_encryption(self) -> None:
        server = new_server()
        initiator = level_granted(server)
        bare = TokenMessage(MessageType.ENCAPSULATED, initiator.wrap(REQUEST.encode(), confidential=False))
        with pytest.raises(ProtectionError, match="unencrypted"):
            server.receive(bare.encode())
        assert server.request is None

    def test_takes_a_request_split_over_messages(self) -> None:
        server = new_server()
        initiator = level_granted(server)
        deliver(server, (data(initiator, bytes([octet])) for octet in REQUEST.encode()))
        assert server.request == REQUEST

    def test_takes_nothing_behind_the_request(self) -> None:
        server = new_server()
        request = data(level_granted(server), REQUEST.encode())
        assert server.receive(request + b"tail").taken == len(request)
        assert server.complete

    def test_keeps_data_in_the_requests_token(self) -> None:
        server = new_server()
        deliver(server, [data(level_granted(server), REQUEST.encode() + b"first data")])
        assert server.request == REQUEST
        assert records_of(server).plaintext.take(100) == b"first data"

    def test_has_no_reply_before_there_is_a_request(self) -> None:
        with pytest.raises(ProtocolError, match="no request"):
            new_server().reply(0, BOUND)

    def test_end_of_the_client_says_where(self) -> None:
        server = new_server()
        server.start()
        assert "waiting for the greeting" in str(server.ended())
        level_granted(server)
        assert "waiting for the request" in str(server.ended())
        assert isinstance(server.ended(), ConnectionResetError)


class TestMethod:
    @both_forms
    def test_only_gssapi_is_offered(self, pipelined: bool) -> None:
        assert new_client(pipelined=pipelined).start().startswith(b"\x05\x01\x01")

    @pytest.mark.parametrize("method", [0x00, 0x02, 0x03, 0x7F, 0xFE])
    def test_no_other_is_taken(self, method: int) -> None:
        client = new_client()
        client.start()
        with pytest.raises(ProtocolError, match=f"chose method {method:#04x}, but only GSS-API was offered"):
            client.receive(bytes([5, method]))

    @both_forms
    def test_none_acceptable_says_whom_to_ask(self, pipelined: bool) -> None:
        client = new_client(pipelined=pipelined)
        client.start()
        with pytest.raises(AuthenticationError, match="does not offer GSS-API to this client: its rules") as caught:
            client.receive(b"\x05\xff")
        assert caught.value.errno == errno.EACCES

    def test_wrong_version_is_known_by_one_octet(self) -> None:
        client = new_client()
        client.start()
        with pytest.raises(ProtocolError, match="version of the method selection is 0x48"):
            client.receive(b"H")


class TestContext:
    def test_refusal_is_known_by_two_octets(self) -> None:
        """Nothing follows them; to wait for a length would be to wait for ever."""
        client = new_client()
        client.start()
        with pytest.raises(AuthenticationError, match="refused our authentication") as caught:
            client.receive(METHOD + REFUSAL)
        assert caught.value.errno == errno.EACCES

    @pytest.mark.parametrize("mtyp", [0, 2, 3, 4, 0x7F, 0xFE])
    def test_other_messages_are_refused(self, mtyp: int) -> None:
        client = new_client()
        client.start()
        with pytest.raises(ProtocolError, match=f"type {mtyp:#04x} instead of 0x01"):
            client.receive(METHOD + TokenMessage(mtyp, b"token").encode())

    def test_without_mutual_authentication_there_is_no_context(self) -> None:
        client = new_client()
        client.start()
        with pytest.raises(AuthenticationError, match="did not finish the security context"):
            client.receive(METHOD + STRAY)

    def test_may_wait_for_a_kdc_until_it_is_complete(self) -> None:
        client = new_client()
        assert client.may_block
        established(client)
        assert not client.may_block


class _Granting(Initiator):
    """A real context that turns out to lack a service, as a mechanism may."""

    def __init__(self, **lacking: bool) -> None:
        super().__init__("socks@localhost")
        self._lacking = lacking

    @property
    def granted(self) -> Granted:
        return super().granted._replace(**self._lacking)


class TestGranted:
    @pytest.mark.parametrize("level", [INTEGRITY, CONFIDENTIALITY, ProtectionLevel.SELECTIVE])
    @pytest.mark.parametrize("service", ["mutual", "replay", "sequence", "integrity"])
    def test_mechanism_without_what_every_level_needs_is_refused(self, level: ProtectionLevel, service: str) -> None:
        client = ClientNegotiation(_Granting(**{service: False}), REQUEST, proxy="proxy:1080", level=level)
        with pytest.raises(ProtectionError, match=f"lacks {service}.*nothing was sent") as caught:
            established(client)
        assert not isinstance(caught.value, LevelRefusedError)

    @pytest.mark.parametrize("level", [CONFIDENTIALITY, ProtectionLevel.SELECTIVE])
    def test_mechanism_without_confidentiality_is_refused_where_that_is_asked_for(self, level: ProtectionLevel) -> None:
        """Where integrity may do instead, it is asked for next."""
        client = ClientNegotiation(_Granting(confidentiality=False), REQUEST, proxy="proxy:1080", level=level)
        with pytest.raises(LevelRefusedError, match="lacks confidentiality"):
            established(client)

    def test_mechanism_without_confidentiality_will_do_for_integrity(self) -> None:
        client = ClientNegotiation(_Granting(confidentiality=False), REQUEST, proxy="proxy:1080", level=INTEGRITY)
        acceptor, _ = established(client)
        deliver(client, [level_answer(acceptor, b"\x01")])
        assert records_of(client).level == INTEGRITY


class TestLevel:
    @every_level
    @both_forms
    def test_answer_that_is_asked_for_is_taken(self, level: ProtectionLevel, pipelined: bool) -> None:
        client = new_client(level=level, pipelined=pipelined)
        acceptor, _ = established(client)
        deliver(client, [level_answer(acceptor, bytes([level]))])
        assert records_of(client).level == level

    # Less than what is demanded, although RFC 1961 knows it.
    @pytest.mark.parametrize(("wanted", "answer"), [(1, 0), (2, 0), (2, 1), (2, 3), (3, 0), (3, 1)])
    @both_forms
    def test_answer_below_it_ends_the_connection(self, wanted: int, answer: int, pipelined: bool) -> None:
        client = new_client(level=ProtectionLevel(wanted), pipelined=pipelined)
        acceptor, _ = established(client)
        with pytest.raises(ProtectionError, match="grants only the protection level") as caught:
            client.receive(level_answer(acceptor, bytes([answer])))
        assert caught.value.errno == errno.EACCES
        assert client.farewell() == b""

    @pytest.mark.parametrize(("wanted", "least", "answer"), [(2, 1, 1), (2, 1, 3), (2, 3, 3), (3, 1, 1), (3, 1, 2)])
    @both_forms
    def test_answer_between_it_and_the_least_is_taken_up(
        self, wanted: int, least: int, answer: int, pipelined: bool
    ) -> None:
        client = new_client(level=ProtectionLevel(wanted), least=ProtectionLevel(least), pipelined=pipelined)
        acceptor, _ = established(client)
        deliver(client, [level_answer(acceptor, bytes([answer]))])
        assert records_of(client).level == answer
        reply = acceptor.wrap(GRANTED, confidential=answer != INTEGRITY)
        deliver(client, [TokenMessage(MessageType.ENCAPSULATED, reply).encode()])
        assert client.bound == BOUND

    @pytest.mark.parametrize(("wanted", "least", "answer"), [(2, 3, 1), (3, 3, 1), (2, 1, 0), (3, 1, 0)])
    def test_answer_below_the_least_ends_the_connection(self, wanted: int, least: int, answer: int) -> None:
        client = new_client(level=ProtectionLevel(wanted), least=ProtectionLevel(least))
        acceptor, _ = established(client)
        with pytest.raises(ProtectionError, match=ProtectionLevel(least).name.lower()):
            client.receive(level_answer(acceptor, bytes([answer])))

    @pytest.mark.parametrize(("wanted", "answer"), [(0, 1), (0, 2), (2, 0)])
    def test_answer_that_a_request_sent_ahead_does_not_fit_ends_the_connection(self, wanted: int, answer: int) -> None:
        """It has been encapsulated, or has not."""
        client = new_client(level=ProtectionLevel(wanted), least=ProtectionLevel.NONE)
        acceptor, _ = established(client)
        with pytest.raises(ProtectionError, match="pipelined=False"):
            client.receive(level_answer(acceptor, bytes([answer])))

    @pytest.mark.parametrize(("wanted", "answer"), [(0, 1), (0, 2), (1, 2), (1, 3), (3, 2)])
    def test_answer_above_it_is_taken_up(self, wanted: int, answer: int) -> None:
        client = new_client(level=ProtectionLevel(wanted), pipelined=False)
        acceptor, asked = established(client)
        request = deliver(client, [level_answer(acceptor, bytes([answer]))])
        assert records_of(client).level == answer
        heard = ReceiveBuffer()
        heard.feed(asked + request)
        assert acceptor.unwrap(heard.next(TokenMessage).token).data == bytes([wanted])
        unwrapped = acceptor.unwrap(heard.next(TokenMessage).token)
        assert unwrapped.data == REQUEST.encode()
        assert unwrapped.confidential == (answer != 1)

    @pytest.mark.parametrize("octets", [b"\x04", b"\xff", b"", b"\x02\x02", b"confidentiality"])
    def test_undefined_answers_are_refused(self, octets: bytes) -> None:
        client = new_client()
        acceptor, _ = established(client)
        with pytest.raises(ProtocolError, match=f"RFC 1961 does not define: {octets[:8].hex()}"):
            client.receive(level_answer(acceptor, octets))

    def test_refusal_is_known_by_two_octets(self) -> None:
        client = new_client()
        established(client)
        with pytest.raises(ProtectionError, match=r"refused the protection level 'confidentiality'.*protection="):
            client.receive(REFUSAL)

    def test_one_empty_context_message_before_it_is_skipped(self) -> None:
        client = new_client()
        acceptor, _ = established(client)
        deliver(client, [STRAY + level_answer(acceptor)])
        assert records_of(client).level == CONFIDENTIALITY

    def test_second_empty_context_message_is_not(self) -> None:
        client = new_client()
        established(client)
        with pytest.raises(ProtocolError, match="type 0x01 instead of 0x02"):
            client.receive(STRAY + STRAY)

    def test_context_message_with_a_token_is_not(self) -> None:
        client = new_client()
        established(client)
        with pytest.raises(ProtocolError, match="type 0x01 instead of 0x02"):
            client.receive(TokenMessage(MessageType.CONTEXT, b"token").encode())

    def test_answer_may_be_encrypted(self) -> None:
        client = new_client()
        acceptor, _ = established(client)
        deliver(client, [level_answer(acceptor, confidential=True)])
        assert records_of(client).level == CONFIDENTIALITY

    def test_level_itself_is_sent_without_encryption(self) -> None:
        """RFC 1961, section 4.3."""
        acceptor, out = established(new_client())
        heard = ReceiveBuffer()
        heard.feed(out)
        assert acceptor.unwrap(heard.next(TokenMessage).token) == (b"\x02", False)


class TestNEC:
    @every_level
    @both_forms
    def test_level_is_bare(self, level: ProtectionLevel, pipelined: bool) -> None:
        client = new_client(level=level, nec=True, pipelined=pipelined)
        acceptor, out = established(client)
        assert out.startswith(b"\x01\x02\x00\x01" + bytes([level]))
        deliver(client, [b"\x01\x02\x00\x01" + bytes([level])])
        if level == ProtectionLevel.NONE:
            deliver(client, [GRANTED])
        else:
            deliver(client, [data(acceptor, GRANTED)])
        assert client.bound == BOUND

    def test_bare_answer_below_what_is_demanded_is_refused(self) -> None:
        client = new_client(nec=True)
        established(client)
        with pytest.raises(ProtectionError, match="grants only the protection level 'none'"):
            client.receive(b"\x01\x02\x00\x01\x00")

    def test_protected_answer_says_to_leave_the_option_out(self) -> None:
        client = new_client(nec=True)
        acceptor, _ = established(client)
        with pytest.raises(ProtectionError, match="leave out nec=True"):
            client.receive(level_answer(acceptor))

    def test_bare_answer_without_the_option_says_to_set_it(self) -> None:
        client = new_client()
        established(client)
        with pytest.raises(ProtectionError, match="set nec=True"):
            client.receive(b"\x01\x02\x00\x01\x02")


class TestReply:
    @pytest.mark.parametrize("size", range(1, len(GRANTED)))
    def test_split_over_messages(self, size: int) -> None:
        client = new_client()
        acceptor = agreed(client)
        deliver(client, (data(acceptor, GRANTED[i : i + size]) for i in range(0, len(GRANTED), size)))
        assert client.bound == BOUND

    def test_empty_messages_between(self) -> None:
        client = new_client()
        acceptor = agreed(client)
        deliver(client, [data(acceptor, b"") + data(acceptor, GRANTED[:3]) + data(acceptor, b"")])
        deliver(client, [data(acceptor, GRANTED[3:])])
        assert client.bound == BOUND

    @pytest.mark.parametrize("size", [1, 1000, 65475 - len(GRANTED)])
    def test_data_in_its_token_is_kept(self, size: int) -> None:
        client = new_client()
        deliver(client, [data(agreed(client), GRANTED + bytes(size))])
        assert client.complete
        assert records_of(client).plaintext.take(size + 1) == bytes(size)

    @pytest.mark.parametrize("pieces", [whole, octet_by_octet])
    def test_nothing_behind_its_message_is_taken(self, pieces: Pieces) -> None:
        client = new_client()
        acceptor = agreed(client)
        reply, following = data(acceptor, GRANTED), data(acceptor, b"data")
        deliver(client, pieces(reply[:-1]))
        assert client.receive(reply[-1:] + following).taken == 1
        assert client.complete
        records = records_of(client)
        assert records.receive(memoryview(bytearray(following)), 4) == len(following)
        assert records.plaintext.take(4) == b"data"

    @pytest.mark.parametrize("code", [1, 2, 3, 4, 5, 6, 7, 8, 9, 99, 255])
    def test_refusal_is_known_by_two_octets(self, code: int) -> None:
        client = new_client()
        acceptor = agreed(client)
        with pytest.raises(ReplyError, match=f"reply code {code}") as caught:
            client.receive(data(acceptor, bytes([5, code])))
        assert caught.value.code == code
        assert "target.example:4711" in str(caught.value)
        assert "proxy:1080" in str(caught.value)
        assert not client.complete

    def test_without_encryption_is_refused(self) -> None:
        client = new_client()
        acceptor = agreed(client)
        bare = TokenMessage(MessageType.ENCAPSULATED, acceptor.wrap(GRANTED, confidential=False))
        with pytest.raises(ProtectionError, match="unencrypted"):
            client.receive(bare.encode())

    def test_bare_reply_at_level_none(self) -> None:
        client = new_client(level=ProtectionLevel.NONE)
        acceptor, _ = established(client)
        step = client.receive(level_answer(acceptor, b"\x00") + GRANTED + b"tail")
        assert client.bound == BOUND
        assert step.taken == len(level_answer(acceptor, b"\x00") + GRANTED)


class TestEnd:
    """What the client makes of the end of the proxy's stream."""

    @both_forms
    def test_before_the_method(self, pipelined: bool) -> None:
        client = new_client(pipelined=pipelined)
        client.start()
        assert isinstance(client.ended(), ProtocolError)
        assert "is it a SOCKS 5 proxy?" in str(client.ended())

    @both_forms
    def test_before_the_context_token(self, pipelined: bool) -> None:
        client = new_client(pipelined=pipelined)
        client.start()
        deliver(client, [METHOD])
        assert isinstance(client.ended(), AuthenticationError)
        for hint in ("keytab", "service=", "clocks", "log"):
            assert hint in str(client.ended())

    @both_forms
    def test_before_the_level(self, pipelined: bool) -> None:
        client = new_client(pipelined=pipelined)
        established(client)
        assert isinstance(client.ended(), ProtectionError)
        assert "'confidentiality'" in str(client.ended())
        assert "protection=" in str(client.ended())

    @both_forms
    def test_before_the_reply(self, pipelined: bool) -> None:
        client = new_client(pipelined=pipelined)
        agreed(client)
        assert isinstance(client.ended(), ProtocolError)
        assert "instead of answering the request" in str(client.ended())

    def test_inside_the_context_token(self) -> None:
        server = new_server()
        server.start()
        client = new_client()
        back = deliver(server, [client.start()])
        deliver(client, [METHOD])
        for octet in back[len(METHOD) : -1]:
            deliver(client, [bytes([octet])])
            assert isinstance(client.ended(), ConnectionResetError)
            assert "inside a message" in str(client.ended())

    def test_inside_the_level_or_the_reply(self) -> None:
        client = new_client()
        acceptor, _ = established(client)
        for message in (level_answer(acceptor), data(acceptor, GRANTED)):
            for octet in message[:-1]:
                deliver(client, [bytes([octet])])
                assert isinstance(client.ended(), ConnectionResetError)
                assert "inside a message" in str(client.ended())
            deliver(client, [message[-1:]])
        assert client.complete

    def test_always_with_the_same_errno_and_the_proxys_name(self) -> None:
        client = new_client()
        client.start()
        ends = [client.ended()]
        deliver(client, [METHOD])
        ends.append(client.ended())
        client = new_client()
        acceptor, _ = established(client)
        ends.append(client.ended())
        deliver(client, [level_answer(acceptor)])
        ends.append(client.ended())
        assert {end.errno for end in ends} == {errno.ECONNRESET}
        assert all("proxy:1080" in str(end) for end in ends)
        assert len({str(end) for end in ends}) == len(ends)


def test_token_that_no_message_holds() -> None:
    """As of a delegated ticket with a long list of groups in it."""

    class Large(Initiator):
        def step(self, token: bytes | None) -> bytes | None:
            made = super().step(token)
            return made and made + bytes(65_536)

    client = ClientNegotiation(Large("socks@localhost"), REQUEST, proxy="proxy:1080")
    with pytest.raises(AuthenticationError, match="delegation='never'") as caught:
        client.start()
    assert caught.value.errno == errno.EMSGSIZE
