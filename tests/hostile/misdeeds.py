"""What proxies do wrong until they have granted a request, and what the client makes of it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Callable, NamedTuple

from gsssocks import AuthenticationError, ProtectionError, ProtocolError, ProxyError, ReplyError

if TYPE_CHECKING:
    from gsssocks.testing import Conversation

CONTEXT, LEVEL, DATA, REFUSAL = 1, 2, 3, b"\x01\xff"
EKEYREJECTED = getattr(errno, "EKEYREJECTED", errno.EACCES)
GARBAGE = bytes(range(255, 155, -1))

Script = Callable[["Conversation"], None]


class Misdeed(NamedTuple):
    """One way to misbehave."""

    name: str
    script: Script
    error: type[OSError]
    """The class of ours that the client raises."""
    errno: int
    says: str
    """A regular expression for the message."""
    plain: type[OSError] = OSError
    """The class that a plain socket would raise."""


def damaged(token: bytes) -> bytes:
    """The token with one bit of its last octet turned over."""
    return token[:-1] + bytes([token[-1] ^ 1])


# The building blocks: each takes the conversation up to a point where the client waits for an answer.


def before_method(client: Conversation) -> None:
    client.hear_greeting()


def before_context(client: Conversation) -> None:
    client.choose_method()
    client.hear_message()


def before_level(client: Conversation) -> None:
    client.choose_method()
    client.establish_context()
    client.hear_level()


def before_reply(client: Conversation) -> None:
    client.choose_method()
    client.establish_context()
    client.grant_level()
    client.hear_request()


def sends(octets: bytes, after: Script) -> Script:
    """A script that answers with these octets."""

    def script(client: Conversation) -> None:
        after(client)
        client.send(octets)

    return script


def sends_message(mtyp: int, token: bytes, after: Script) -> Script:
    """A script that answers with this message."""

    def script(client: Conversation) -> None:
        after(client)
        client.send_message(mtyp, token)

    return script


# The way to the method


def closes_at_once(client: Conversation) -> None:
    client.end()


def resets_at_once(client: Conversation) -> None:
    client.reset()


def closes_inside_the_method(client: Conversation) -> None:
    before_method(client)
    client.send(b"\x05")


def resets_after_the_greeting(client: Conversation) -> None:
    before_method(client)
    client.reset()


def chooses(method: int) -> Script:
    def script(client: Conversation) -> None:
        client.choose_method(method)

    return script


NOT_A_SOCKS_PROXY = r"does not speak SOCKS 5.*check the proxy's host and port"

AT_THE_METHOD = [
    Misdeed("closes at once", closes_at_once, ProtocolError, errno.ECONNRESET, r"is it a SOCKS 5 proxy\?"),
    Misdeed(
        "closes inside the method",
        closes_inside_the_method,
        ProtocolError,
        errno.ECONNRESET,
        "closed the connection inside a message",
        ConnectionResetError,
    ),
    Misdeed("closes after the greeting", before_method, ProtocolError, errno.ECONNRESET, r"is it a SOCKS 5 proxy\?"),
    Misdeed("resets at once", resets_at_once, ProxyError, errno.ECONNRESET, r"the proxy localhost:\d+"),
    Misdeed(
        "resets after the greeting",
        resets_after_the_greeting,
        ProtocolError,
        errno.ECONNRESET,
        r"is it a SOCKS 5 proxy\?",
    ),
    Misdeed(
        "answers in HTTP",
        sends(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", before_method),
        ProtocolError,
        errno.EPROTO,
        NOT_A_SOCKS_PROXY,
    ),
    Misdeed(
        "is an SSH server",
        sends(b"SSH-2.0-OpenSSH_9.2p1\r\n", lambda _: None),
        ProtocolError,
        errno.EPROTO,
        NOT_A_SOCKS_PROXY,
    ),
    Misdeed(
        "answers in SOCKS 4",
        sends(b"\x00\x5b\x00\x00\x00\x00\x00\x00", before_method),
        ProtocolError,
        errno.EPROTO,
        NOT_A_SOCKS_PROXY,
    ),
    Misdeed("sends garbage", sends(GARBAGE, before_method), ProtocolError, errno.EPROTO, NOT_A_SOCKS_PROXY),
    Misdeed("refuses in place of a method", sends(REFUSAL, before_method), ProtocolError, errno.EPROTO, "SOCKS 5"),
    Misdeed("chooses no authentication", chooses(0x00), ProtocolError, errno.EPROTO, "0x00.*only GSS-API was offered"),
    Misdeed("chooses a password", chooses(0x02), ProtocolError, errno.EPROTO, "0x02.*only GSS-API was offered"),
    Misdeed("chooses an unknown method", chooses(0x7F), ProtocolError, errno.EPROTO, "0x7f.*only GSS-API was offered"),
    Misdeed("accepts no method", chooses(0xFF), AuthenticationError, errno.EACCES, "does not offer GSS-API.*rules"),
]


# The way to the security context


def mirrors_the_context_token(client: Conversation) -> None:
    client.choose_method()
    client.send_message(*client.hear_message())


def damages_the_context_token(client: Conversation) -> None:
    client.choose_method()
    _, token = client.hear_message()
    client.send_message(CONTEXT, damaged(client.context.step(token) or b""))


def changes_type_of_the_context_token(client: Conversation) -> None:
    client.choose_method()
    _, token = client.hear_message()
    client.send_message(LEVEL, client.context.step(token) or b"")


def never_stops_establishing(client: Conversation) -> None:
    client.choose_method()
    client.establish_context()
    while True:
        client.send_message(CONTEXT, b"")


def resets_at_the_context_token(client: Conversation) -> None:
    before_context(client)
    client.reset()


AT_THE_CONTEXT = [
    Misdeed(
        "closes at the context token",
        before_context,
        AuthenticationError,
        errno.ECONNRESET,
        "keytab.*service=.*clocks.*log",
    ),
    Misdeed(
        "resets at the context token",
        resets_at_the_context_token,
        AuthenticationError,
        errno.ECONNRESET,
        "keytab.*service=.*clocks.*log",
    ),
    Misdeed(
        "refuses the context", sends(REFUSAL, before_context), AuthenticationError, errno.EACCES, "refused.*its log"
    ),
    Misdeed(
        "sends an empty context token",
        sends_message(CONTEXT, b"", before_context),
        AuthenticationError,
        errno.EPROTO,
        "did not finish the security context",
    ),
    Misdeed(
        "sends garbage for a context token",
        sends_message(CONTEXT, GARBAGE, before_context),
        AuthenticationError,
        EKEYREJECTED,
        "forged or damaged.*GSS-API says",
    ),
    Misdeed(
        "sends the longest context token of garbage",
        sends_message(CONTEXT, bytes(0xFFFF), before_context),
        AuthenticationError,
        EKEYREJECTED,
        "forged or damaged.*GSS-API says",
    ),
    Misdeed(
        "sends the client's context token back",
        mirrors_the_context_token,
        AuthenticationError,
        EKEYREJECTED,
        "forged or damaged.*GSS-API says",
    ),
    Misdeed(
        "damages the context token",
        damages_the_context_token,
        AuthenticationError,
        EKEYREJECTED,
        "forged or damaged.*GSS-API says",
    ),
    Misdeed(
        "sends the context token as a level",
        changes_type_of_the_context_token,
        ProtocolError,
        errno.EPROTO,
        "type 0x02 instead of 0x01",
    ),
    Misdeed(
        "sends data for a context token",
        sends_message(DATA, GARBAGE, before_context),
        ProtocolError,
        errno.EPROTO,
        "type 0x03 instead of 0x01",
    ),
    Misdeed(
        "sends a message of version 2",
        sends(b"\x02\x01\x00\x01\x00", before_context),
        ProtocolError,
        errno.EPROTO,
        "version of the GSS-API message is 0x02",
    ),
    Misdeed(
        "grants the request without a context",
        sends(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x01", before_context),
        ProtocolError,
        errno.EPROTO,
        "version of the GSS-API message is 0x05",
    ),
    Misdeed(
        "sends empty context messages without end",
        never_stops_establishing,
        ProtocolError,
        errno.EPROTO,
        "type 0x01 instead of 0x02",
    ),
]


# The way to the protection level


def answers_level(octets: bytes) -> Script:
    def script(client: Conversation) -> None:
        before_level(client)
        client.send_message(LEVEL, client.wrap(octets, confidential=False))

    return script


def damages_the_level(client: Conversation) -> None:
    before_level(client)
    client.send_message(LEVEL, damaged(client.wrap(b"\x02", confidential=False)))


def mirrors_the_level(client: Conversation) -> None:
    client.choose_method()
    client.establish_context()
    client.send_message(*client.hear_message())


def sends_the_level_as(mtyp: int) -> Script:
    def script(client: Conversation) -> None:
        before_level(client)
        client.send_message(mtyp, client.wrap(b"\x02", confidential=False))

    return script


def loses_the_level(client: Conversation) -> None:
    before_level(client)
    client.wrap(b"\x02", confidential=False)
    client.send_message(LEVEL, client.wrap(b"\x02", confidential=False))


AT_THE_LEVEL = [
    Misdeed("closes at the level", before_level, ProtectionError, errno.ECONNRESET, "'confidentiality'.*protection="),
    Misdeed(
        "refuses the level", sends(REFUSAL, before_level), ProtectionError, errno.EACCES, "refused.*another protection="
    ),
    Misdeed("grants level 0", answers_level(b"\x00"), ProtectionError, errno.EACCES, "only.*'none', less than"),
    Misdeed("grants level 1", answers_level(b"\x01"), ProtectionError, errno.EACCES, "only.*'integrity', less than"),
    Misdeed("grants level 3", answers_level(b"\x03"), ProtectionError, errno.EACCES, "only.*'selective', less than"),
    Misdeed("grants level 9", answers_level(b"\x09"), ProtocolError, errno.EPROTO, "RFC 1961 does not define: 09"),
    Misdeed("grants two levels", answers_level(b"\x02\x02"), ProtocolError, errno.EPROTO, "does not define: 0202"),
    Misdeed("grants an empty level", answers_level(b""), ProtocolError, errno.EPROTO, "does not define"),
    Misdeed(
        "grants the level without protection",
        sends_message(LEVEL, b"\x02", before_level),
        ProtectionError,
        errno.EPROTO,
        "nec=",
    ),
    Misdeed(
        "grants the level in an empty token",
        sends_message(LEVEL, b"", before_level),
        ProtectionError,
        errno.EPROTO,
        "damaged",
    ),
    Misdeed("damages the level", damages_the_level, ProtectionError, errno.EPROTO, "damaged"),
    Misdeed("sends the client's level back", mirrors_the_level, ProtectionError, errno.EPROTO, "forged"),
    Misdeed("loses a message before the level", loses_the_level, ProtectionError, errno.EPROTO, "lost"),
    Misdeed(
        "sends the level as a context token",
        sends_the_level_as(CONTEXT),
        ProtocolError,
        errno.EPROTO,
        "type 0x01 instead of 0x02",
    ),
    Misdeed(
        "sends the level as data", sends_the_level_as(DATA), ProtocolError, errno.EPROTO, "type 0x03 instead of 0x02"
    ),
]


# The way to the reply


def answers_request(octets: bytes) -> Script:
    def script(client: Conversation) -> None:
        before_reply(client)
        client.send_data(octets)

    return script


def replies(code: int) -> Script:
    def script(client: Conversation) -> None:
        before_reply(client)
        client.reply(code)

    return script


def ends_a_refusal_at_the_code(client: Conversation) -> None:
    before_reply(client)
    client.send_data(b"\x05\x05")


def replies_without_encryption(client: Conversation) -> None:
    before_reply(client)
    client.send_message(DATA, client.wrap(client.reply_octets(), confidential=False))


def damages_the_reply(client: Conversation) -> None:
    before_reply(client)
    client.send_message(DATA, damaged(client.wrap(client.reply_octets())))


def mirrors_the_request(client: Conversation) -> None:
    client.choose_method()
    client.establish_context()
    client.grant_level()
    client.send_message(*client.hear_message())


def sends_the_level_twice(client: Conversation) -> None:
    client.choose_method()
    client.establish_context()
    client.hear_message()
    token = client.wrap(b"\x02", confidential=False)
    client.send_message(LEVEL, token)
    client.send_message(DATA, token)


def loses_a_message_before_the_reply(client: Conversation) -> None:
    before_reply(client)
    client.wrap(b"lost")
    client.reply()


def replies_as(mtyp: int) -> Script:
    def script(client: Conversation) -> None:
        before_reply(client)
        client.send_message(mtyp, client.wrap(client.reply_octets()))

    return script


def stops_in_the_middle_of_the_reply(client: Conversation) -> None:
    before_reply(client)
    client.send_data(client.reply_octets()[:5])


NO_ADDRESS = b"\x01\x00\x00\x00\x00\x00\x00"

AT_THE_REPLY = [
    Misdeed(
        "closes at the request",
        before_reply,
        ProtocolError,
        errno.ECONNRESET,
        "closed the connection instead of answering the request",
    ),
    Misdeed(
        "closes in the middle of the reply",
        stops_in_the_middle_of_the_reply,
        ProtocolError,
        errno.ECONNRESET,
        "closed the connection instead of answering the request",
    ),
    Misdeed("refuses at the request", sends(REFUSAL, before_reply), ProtocolError, errno.EPROTO, "type 0xff"),
    Misdeed("replies 1", replies(1), ReplyError, errno.ECONNABORTED, "its log", ConnectionAbortedError),
    Misdeed("replies 2", replies(2), ReplyError, errno.EACCES, "not allowed.*no_proxy", PermissionError),
    Misdeed("replies 3", replies(3), ReplyError, errno.ENETUNREACH, "network unreachable from the proxy"),
    Misdeed("replies 4", replies(4), ReplyError, errno.EHOSTUNREACH, "host unreachable from the proxy"),
    Misdeed("replies 5", replies(5), ReplyError, errno.ECONNREFUSED, "refused by the target", ConnectionRefusedError),
    Misdeed("replies 6", replies(6), ReplyError, errno.ETIMEDOUT, "did not answer the proxy in time", TimeoutError),
    Misdeed("replies 7", replies(7), ReplyError, errno.EOPNOTSUPP, "does not support this command"),
    Misdeed("replies 8", replies(8), ReplyError, errno.EAFNOSUPPORT, "type of address"),
    Misdeed("replies 99", replies(99), ReplyError, errno.EPROTO, "reply code 99"),
    Misdeed(
        "refuses without an address",
        ends_a_refusal_at_the_code,
        ReplyError,
        errno.ECONNREFUSED,
        r"target \S+:4711, proxy localhost:\d+, reply code 5",
        ConnectionRefusedError,
    ),
    Misdeed(
        "replies without any protection",
        sends(b"\x05\x00\x00" + NO_ADDRESS, before_reply),
        ProtocolError,
        errno.EPROTO,
        "version of the GSS-API message is 0x05",
    ),
    Misdeed(
        "replies in a token that is not wrapped",
        sends_message(DATA, b"\x05\x00\x00" + NO_ADDRESS, before_reply),
        ProtectionError,
        errno.EPROTO,
        "damaged",
    ),
    Misdeed(
        "replies without encryption", replies_without_encryption, ProtectionError, errno.EPROTO, "arrived unencrypted"
    ),
    Misdeed("damages the reply", damages_the_reply, ProtectionError, errno.EPROTO, "damaged"),
    Misdeed("sends the request back", mirrors_the_request, ProtectionError, errno.EPROTO, "forged"),
    Misdeed("sends the level again as data", sends_the_level_twice, ProtectionError, errno.EPROTO, "repeated"),
    Misdeed(
        "loses a message before the reply", loses_a_message_before_the_reply, ProtectionError, errno.EPROTO, "lost"
    ),
    Misdeed(
        "sends the reply as a context token",
        replies_as(CONTEXT),
        ProtocolError,
        errno.EPROTO,
        "type 0x01 instead of 0x03",
    ),
    Misdeed("sends the reply as a level", replies_as(LEVEL), ProtocolError, errno.EPROTO, "type 0x02 instead of 0x03"),
    Misdeed(
        "replies in SOCKS 4", answers_request(b"\x00\x5a" + bytes(6)), ProtocolError, errno.EPROTO, "version.*reply"
    ),
    Misdeed(
        "replies with an unknown type of address",
        answers_request(b"\x05\x00\x00\x09" + bytes(6)),
        ProtocolError,
        errno.EAFNOSUPPORT,
        "unknown type 0x09",
    ),
    Misdeed(
        "replies with a name that is not ASCII",
        answers_request(b"\x05\x00\x00\x03\x02\xc3\xa4\x00\x50"),
        ProtocolError,
        errno.EPROTO,
        "characters that none has",
    ),
    Misdeed(
        "replies with a name that would forge a line of a log",
        answers_request(b"\x05\x00\x00\x03\x09x\ngsssock\x00\x50"),
        ProtocolError,
        errno.EPROTO,
        r"characters that none has: b'x\\ngsssock'$",
    ),
]

MISDEEDS = [*AT_THE_METHOD, *AT_THE_CONTEXT, *AT_THE_LEVEL, *AT_THE_REPLY]
