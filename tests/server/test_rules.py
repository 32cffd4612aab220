"""Who may do what with which destination."""

from __future__ import annotations

import socket
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks._protocol import Address, Command
from gsssocks.server._rules import Ruleset
from gsssocks.server._settings import DEFAULT_RULES
from tests.peers.by_hand import ByHand, last_session, request_for, serving, through

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.peers.targets import EchoServer

pytestmark = pytest.mark.default_python_only

ALICE = "alice@EXAMPLE.COM"
WEB = "www.example.com"


def allowed(rules: list[str], host: str, address: str | None = None, **other: object) -> bool:
    """Whether a client may reach `host` at `address`, or `host` itself if it is one."""
    principal, command, port = (
        other.get(name, default) for name, default in (("principal", ALICE), ("command", Command.CONNECT), ("port", 80))
    )
    permission = Ruleset(rules).concerning(principal, command)  # type: ignore[arg-type]
    destination = Address(host, port)  # type: ignore[arg-type]
    try:
        permission.check_name(destination)
        permission.check(destination, address or host)
    except PermissionError:
        return False
    return True


class TestDecision:
    @pytest.mark.parametrize(
        ("rules", "expected"),
        [
            ([], False),
            (["allow"], True),
            (["deny"], False),
            (["allow", "deny"], True),
            (["deny", "allow"], False),
            ([f"allow to={WEB}"], True),
            (["allow to=.example.com"], True),
            (["allow to=other.example.com"], False),
            (["allow to=other.example.com,*:80"], True),
            ([f"allow to={WEB}:443"], False),
            ([f"deny to={WEB}:443", "allow"], True),
            (["allow to=198.51.100.0/24"], True),
            (["allow to=198.51.100.0/24", "deny to=*"], True),
            (["allow to=192.0.2.0/24"], False),
            ([f"allow to={WEB}", "deny"], True),
        ],
    )
    def test_the_first_rule_that_fits_decides(self, rules: list[str], expected: bool) -> None:
        assert allowed(rules, WEB, "198.51.100.7") == expected

    @pytest.mark.parametrize(
        ("rules", "expected"),
        [
            (["deny to=198.51.100.0/24", "allow"], False),
            ([f"allow to={WEB}", "deny to=198.51.100.0/24"], False),
            (["allow", "deny to=198.51.100.7"], False),
            (["allow to=198.51.100.7", "deny to=198.51.100.0/24"], True),
            ([f"allow to={WEB},198.51.100.7", "deny to=198.51.100.0/24"], True),
            (["allow", "deny to=198.51.100.7:443"], True),
        ],
    )
    def test_a_name_does_not_open_an_address_that_is_denied(self, rules: list[str], expected: bool) -> None:
        assert allowed(rules, WEB, "198.51.100.7") == expected

    @pytest.mark.parametrize(
        ("condition", "expected"),
        [
            ("principal=alice@EXAMPLE.COM", True),
            ("principal=*@EXAMPLE.COM", True),
            ("principal=bob@*,alice@*", True),
            ("principal=*@example.com", False),
            ("principal=*@EXAMPLE.CO", False),
            ("principal=*/admin@EXAMPLE.COM", False),
            ("command=connect", True),
            ("command=bind,connect", True),
            ("command=bind,udp", False),
            ("principal=alice@* command=connect to=*:80", True),
            ("principal=alice@* command=connect to=*:81", False),
        ],
    )
    def test_conditions(self, condition: str, expected: bool) -> None:
        assert allowed([f"allow {condition}"], WEB, "198.51.100.7") == expected
        assert allowed([f"deny {condition}", "allow"], WEB, "198.51.100.7") != expected

    @pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1"])
    def test_an_address_is_judged_in_any_form(self, address: str) -> None:
        assert not allowed(["deny to=127.0.0.0/8", "allow"], address)

    def test_a_name_in_any_case(self) -> None:
        assert not allowed(["deny to=.example.com", "allow"], "WWW.Example.COM.", "198.51.100.7")

    def test_a_client_without_a_name_fits_only_what_fits_everybody(self) -> None:
        assert not allowed(["allow principal=?*"], WEB, "198.51.100.7", principal="")
        assert allowed(["allow"], WEB, "198.51.100.7", principal="")

    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            ("", "a rule is empty"),
            ("permit", "bad rule 'permit': it begins with allow or deny, not 'permit'"),
            ("allow form=x", "unknown condition 'form=x'; known are principal, command, to"),
            ("allow prinzipal=x", "unknown condition 'prinzipal=x'; did you mean principal="),
            ("allow www.example.com", "unknown condition 'www.example.com'"),
            ("allow to=", "give to= once"),
            ("allow to", "give to= once"),
            ("allow to=a to=b", "give to= once"),
            ("allow command=listen", "unknown command 'listen': use connect, bind, udp"),
            ("allow to=10.0.0.0/64", "bad destination '10.0.0.0/64'"),
            ("allow to=a:b", "'b' is no port"),
        ],
    )
    def test_what_is_no_rule(self, rule: str, message: str) -> None:
        with pytest.raises(ValueError) as caught:
            Ruleset([rule])
        assert message in str(caught.value)


def addresses_here() -> list[str]:
    """Addresses of this machine: there is loopback, and where there is a way to other machines, what it begins with."""
    found = ["127.0.0.1", "127.8.8.8", "::1"]
    for family, elsewhere in ((socket.AF_INET, "198.51.100.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))  # sends nothing
            found.append(probe.getsockname()[0])
    return found


@contextmanager
def everywhere() -> Iterator[int]:
    """The port of a server that listens at every address of this machine."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        yield server.getsockname()[1]


class TestThisMachine:
    """`to=@self`."""

    @pytest.mark.parametrize("rules", [["deny to=@self", "allow"], DEFAULT_RULES], ids=["of-its-own", "the-default"])
    @pytest.mark.parametrize("host", addresses_here())
    def test_is_denied_under_every_address_it_has(self, host: str, rules: list[str]) -> None:
        mapped = [host, f"::ffff:{host}"] if ":" not in host else [host]
        with everywhere() as port, serving(rules=rules) as proxy:
            for form in mapped:
                with pytest.raises(gsssocks.ReplyError) as caught:
                    through(proxy, (form, port))
                assert caught.value.code == 2
                assert f"the rule {rules[0]!r} denies it" in str(last_session(proxy).error)

    def test_is_denied_under_every_name_it_has(self) -> None:
        rules = ["deny to=@self", "allow"]
        with everywhere() as port, serving(rules=rules, hosts={"inside.test": "127.8.8.8"}) as proxy:
            for name in ("inside.test", "localhost", socket.gethostname()):
                with pytest.raises(gsssocks.ReplyError):
                    through(proxy, (name, port))

    @pytest.mark.parametrize("host", addresses_here())
    def test_a_rule_before_it_may_allow_an_address(self, host: str) -> None:
        with everywhere() as port, serving(rules=[f"allow to={host}", *DEFAULT_RULES]) as proxy:
            through(proxy, (host, port)).close()

    def test_may_be_all_that_is_allowed(self) -> None:
        with everywhere() as port, serving(rules=["allow to=@self"]) as proxy:
            through(proxy, ("localhost", port)).close()
            with pytest.raises(gsssocks.ReplyError):
                through(proxy, ("198.51.100.7", port))

    @pytest.mark.parametrize("host", ["198.51.100.7", "10.0.0.1", "2001:db8::1"])
    def test_is_no_other(self, host: str) -> None:
        assert allowed(["deny to=@self", "allow"], host)

    @pytest.mark.parametrize("group", ["224.0.0.251", "239.255.255.250", "ff02::fb"])
    def test_is_reached_by_multicast(self, group: str) -> None:
        assert not allowed(["deny to=@self", "allow"], group)

    def test_has_no_port(self) -> None:
        with pytest.raises(ValueError, match="bad destination '@self:80'"):
            Ruleset(["deny to=@self:80"])


class Hosts(dict[str, str]):
    """Names, and which of them have been asked for."""

    def __init__(self, known: Mapping[str, str]) -> None:
        super().__init__(known)
        self.asked: list[str] = []

    def get(self, name: str, default: str) -> str:  # type: ignore[override]
        self.asked.append(name)
        return super().get(name, default)


class TestProxy:
    @pytest.mark.parametrize("command", [1, 2, 3])
    def test_what_is_denied_is_answered_by_2(self, echo: EchoServer, command: int) -> None:
        with serving(rules=["deny to=127.0.0.1", "deny command=udp", "allow"]) as proxy, ByHand(proxy) as client:
            assert client.ask(request_for(echo.address, command)) == 2
            assert client.ending() == b""
            assert isinstance(last_session(proxy).error, PermissionError)

    def test_the_log_names_the_rule(self, echo: EchoServer) -> None:
        with serving(rules=["deny to=127.0.0.0/8", "allow"]) as proxy:
            with pytest.raises(gsssocks.ReplyError) as caught:
                through(proxy, echo.address)
            assert caught.value.code == 2
            assert "the rule 'deny to=127.0.0.0/8' denies it" in str(last_session(proxy).error)

    def test_principals(self, echo: EchoServer) -> None:
        with serving(rules=["deny principal=alice@* to=*:1", "allow principal=alice@GSSSOCKS.TEST"]) as proxy:
            through(proxy, echo.address).close()
        with serving(rules=["allow principal=bob@*"]) as proxy, pytest.raises(PermissionError):
            through(proxy, echo.address)

    @pytest.mark.parametrize("host", ["localhost", "inside.test", "127.1", "2130706433", "0x7f.1", "::ffff:127.0.0.1"])
    def test_no_other_word_for_an_address_opens_it(self, echo: EchoServer, host: str) -> None:
        with serving(rules=["deny to=127.0.0.0/8,::1", "allow"], hosts={"inside.test": "127.0.0.1"}) as proxy:
            with pytest.raises(gsssocks.ReplyError) as caught:
                through(proxy, (host, echo.address[1]))
            assert caught.value.code == 2

    def test_of_several_addresses_those_that_are_allowed(self, echo: EchoServer) -> None:
        found = {str(info[4][0]) for info in socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM)}
        denied = ",".join(found - {"127.0.0.1"}) or "::1"
        with serving(rules=[f"deny to={denied}", "allow"]) as proxy:
            through(proxy, ("localhost", echo.address[1])).close()

    def test_a_name_that_is_denied_is_not_looked_up(self) -> None:
        hosts = Hosts({"inside.test": "127.0.0.1"})
        rules = ["allow command=bind", "deny to=.test", "allow to=127.0.0.1"]
        with serving(rules=rules, hosts=hosts) as proxy, pytest.raises(PermissionError):
            through(proxy, ("inside.test", 80))
        assert hosts.asked == []

    def test_a_name_may_be_allowed_by_its_address(self, echo: EchoServer) -> None:
        hosts = Hosts({"inside.test": "127.0.0.1"})
        with serving(rules=["allow to=127.0.0.1"], hosts=hosts) as proxy:
            through(proxy, ("inside.test", echo.address[1])).close()
        assert hosts.asked == ["inside.test"]

    def test_what_is_wrong_with_a_rule_is_said_at_once(self) -> None:
        with pytest.raises(ValueError, match="bad rule 'permit'"), serving(rules=["permit"]):
            pass

    @pytest.mark.parametrize(
        "name", [rb"\105nside.test", rb"\inside.test", b"inside.test\n", b"inside .test", b"[inside.test]"]
    )
    def test_what_is_no_name_is_neither_judged_nor_looked_up(self, name: bytes) -> None:
        """The resolver would read another name than the rules do."""
        hosts = Hosts({"inside.test": "127.0.0.1"})
        request = b"\x05\x01\x00\x03" + bytes([len(name)]) + name + struct.pack("!H", 80)
        with serving(rules=["deny to=inside.test", "allow"], hosts=hosts) as proxy, ByHand(proxy) as client:
            assert client.ask(request) == 1
            assert hosts.asked == []
            error = last_session(proxy).error
            assert isinstance(error, gsssocks.ProtocolError)
            assert str(error).isprintable()
