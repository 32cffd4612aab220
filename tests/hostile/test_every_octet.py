"""The proxy's stream ends after each possible number of octets."""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks import GSSSocket, ProtocolError, ProxyError
from gsssocks.testing import ScriptedProxy
from tests.peers.receiving import receive_exactly

if TYPE_CHECKING:
    from gsssocks.testing import Conversation

TARGET = ("secret.target.example", 4711)
# Two for the method, and the headers of the context token, the level, and the reply in its message.
FEWEST_OCTETS_OF_AN_HONEST_PROXY = 2 + 4 + 4 + 4 + 10


def open_tunnel(client: Conversation) -> None:
    client.open_tunnel()


def failure(proxy: ScriptedProxy, **options: str) -> ProxyError | None:
    """How an attempt to connect fails; None if it does not."""
    with GSSSocket(proxy=proxy.url(**options)) as sock:
        sock.settimeout(20)
        try:
            sock.connect(TARGET)
        except ProxyError as error:
            return error
        return None


@pytest.mark.parametrize("pipelined", ["true", "false"])
def test_end_before_the_request_is_granted(pipelined: str) -> None:
    for octets in itertools.count():
        with ScriptedProxy(open_tunnel, cut_after=octets) as proxy:
            error = failure(proxy, pipelined=pipelined)
        assert b"secret" not in proxy.received
        if error is None:
            break
        assert proxy.conversations[0].sent == octets
        assert error.errno == errno.ECONNRESET
        assert "closed the connection" in str(error)
        assert f"the proxy localhost:{proxy.port}" in str(error)
    assert octets > FEWEST_OCTETS_OF_AN_HONEST_PROXY


@pytest.mark.parametrize("protection", ["integrity", "confidentiality"])
def test_end_in_the_data(protection: str) -> None:
    def script(client: Conversation) -> None:
        client.open_tunnel()
        message = client.records.protect(b"abc")
        client.send(message[:cut])
        lengths.append(len(message))

    lengths: list[int] = []
    received: list[bytes] = []
    for cut in itertools.count():
        with (
            ScriptedProxy(script) as proxy,
            gsssocks.create_connection(TARGET, 20, proxy=proxy.url(protection=protection)) as sock,
        ):
            if cut in (0, *lengths):
                received.append(sock.recv(3))
            else:
                with pytest.raises(ProtocolError, match="data is missing") as caught:
                    sock.recv(3)
                assert isinstance(caught.value, ConnectionResetError)
        if cut in lengths:
            break
    assert received == [b"", b"abc"]


def test_end_inside_a_message_after_whole_ones() -> None:
    def script(client: Conversation) -> None:
        client.open_tunnel()
        client.send_data(b"whole ")
        client.send_data(b"messages")
        client.send(client.records.protect(b"not whole")[:-1])

    with ScriptedProxy(script) as proxy, gsssocks.create_connection(TARGET, 20, proxy=proxy.url()) as sock:
        assert receive_exactly(sock, 14) == b"whole messages"
        for _ in range(2):
            with pytest.raises(ProtocolError, match="data is missing"):
                sock.recv(100)
