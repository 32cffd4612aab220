"""Protection levels: NEC's form, counter-offers, and what the proxy chooses at the selective level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import gsssocks
from tests.peers.by_hand import ByHand, Target, last_session, received, request_for, serving, through

if TYPE_CHECKING:
    from tests.peers.targets import EchoServer

pytestmark = pytest.mark.default_python_only

LEVELS = {"none": 0, "integrity": 1, "confidentiality": 2, "selective": 3}


class TestNEC:
    @pytest.mark.parametrize("level", [1, 2, 3])
    def test_a_bare_level_is_answered_bare(self, echo: EchoServer, level: int) -> None:
        with serving(nec=True) as proxy, ByHand(proxy) as client:
            client.authenticate()
            client.send_message(2, bytes([level]))
            assert client.receive_message(2) == bytes([level])
            client.send_data(request_for(echo.address), encrypt=level != 1)
            assert client.receive_data()[:2] == b"\x05\x00"

    def test_a_protected_level_is_answered_protected(self, echo: EchoServer) -> None:
        with serving(nec=True) as proxy, ByHand(proxy) as client:
            client.connect(echo.address)
            client.send_data(b"data")
            assert client.receive_data() == b"data"

    @pytest.mark.parametrize("pipelined", [True, False])
    def test_our_own_client(self, echo: EchoServer, *, pipelined: bool) -> None:
        with serving(nec=True) as proxy, through(proxy, echo.address, nec=True, pipelined=pipelined) as client:
            client.sendall(b"data")
            assert client.recv(4) == b"data"

    def test_where_it_is_not_allowed(self, echo: EchoServer) -> None:
        with serving() as proxy:
            with pytest.raises(gsssocks.ProtectionError, match="refused the protection level"):
                through(proxy, echo.address, nec=True)
            assert "as NEC's implementation does" in str(last_session(proxy).error)

    @pytest.mark.parametrize(
        "level",
        [b"\x00", b"\x01", b"\x04", b"", b"\x02\x02", bytes(65535)],
        ids=lambda level: level[:4].hex() or "empty",
    )
    def test_a_level_that_is_not_allowed(self, level: bytes) -> None:
        with serving(nec=True, levels=["confidentiality"]) as proxy, ByHand(proxy) as client:
            client.authenticate()
            client.send_message(2, level)
            assert client.ending() == b"\x01\xff"


ANSWERS = [
    (["confidentiality"], "integrity", "confidentiality"),
    (["confidentiality"], "selective", "confidentiality"),
    (["selective"], "integrity", "selective"),
    (["selective", "confidentiality"], "integrity", "confidentiality"),
    (["none", "confidentiality"], "integrity", "confidentiality"),
    # What is allowed is granted as it is asked for.
    (["integrity", "confidentiality"], "integrity", "integrity"),
    # Nothing weaker is offered: there are clients that go on at their own level, and are not answered at it then.
    (["integrity"], "confidentiality", None),
    (["selective"], "confidentiality", None),
    (["integrity"], "selective", None),
    (["none"], "integrity", None),
    # Who asks for none may have sent a request already that nothing protects.
    (["confidentiality"], "none", None),
]


class TestCounterOffer:
    @pytest.mark.parametrize("pipelined", [True, False])
    @pytest.mark.parametrize(("allowed", "asked", "granted"), ANSWERS)
    def test_answers(
        self, echo: EchoServer, allowed: list[str], asked: str, granted: str | None, *, pipelined: bool
    ) -> None:
        with serving(counter_offer=True, levels=allowed) as proxy:
            if granted is None:
                with pytest.raises(gsssocks.ProtectionError, match="refused the protection level"):
                    through(proxy, echo.address, protection=asked, pipelined=pipelined)
                return
            with through(proxy, echo.address, protection=asked, pipelined=pipelined) as client:
                client.sendall(b"data")
                assert client.recv(4) == b"data"
            assert last_session(proxy).protection == granted

    def test_is_not_made_unless_asked_for(self, echo: EchoServer) -> None:
        with serving(levels=["confidentiality"]) as proxy, pytest.raises(gsssocks.ProtectionError):
            through(proxy, echo.address, protection="integrity")

    def test_holds_for_what_follows_the_request(self) -> None:
        with serving(counter_offer=True, levels=["confidentiality"]) as proxy, Target() as target:
            with ByHand(proxy) as client:
                client.authenticate()
                client.send_message(2, client.wrap(b"\x01", encrypt=False))
                client.send_data(request_for(target.address), encrypt=False)
                assert client.unwrap(client.receive_message(2)) == b"\x02"
                answer = client.context.unwrap(client.receive_message(3))
                assert (answer.message[:2], answer.encrypted) == (b"\x05\x00", True)
                client.send_data(b"open", encrypt=False)
                with target.accept() as accepted, pytest.raises(ConnectionResetError):
                    received(accepted)
            assert isinstance(last_session(proxy).error, gsssocks.ProtectionError)

    def test_made_bare_to_a_bare_level(self, echo: EchoServer) -> None:
        with serving(counter_offer=True, nec=True, levels=["confidentiality"]) as proxy, ByHand(proxy) as client:
            client.authenticate()
            client.send_message(2, b"\x01")
            assert client.receive_message(2) == b"\x02"
            client.send_data(request_for(echo.address))
            assert client.receive_data()[:2] == b"\x05\x00"


class TestSelective:
    def test_the_proxy_chooses_message_by_message(self, echo: EchoServer) -> None:
        def secret(data: bytes) -> bool:
            return not bytes(data).startswith(b"open")

        with serving(confidential=secret) as proxy, ByHand(proxy) as client:
            client.connect(echo.address, 3)
            for data in (b"open data", b"secret data", b"open again"):
                client.send_data(data)
                answer = client.context.unwrap(client.receive_message(3))
                assert (answer.message, answer.encrypted) == (data, secret(data))

    @pytest.mark.parametrize("level", [1, 2])
    def test_at_another_level_there_is_no_choice(self, echo: EchoServer, level: int) -> None:
        with serving(confidential=lambda _: level == 1) as proxy, ByHand(proxy) as client:
            client.connect(echo.address, level)
            client.send_data(b"data", encrypt=level == 2)
            assert client.context.unwrap(client.receive_message(3)).encrypted == (level == 2)
