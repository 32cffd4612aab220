"""Placeholders and the lookups that answer them: the contract, and that nothing is asked of the local resolver."""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Callable, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsssocks._config import IPV4_RANGE, IPV6_RANGE
from gsssocks._resolver import Placeholders, Resolver

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FAMILIES = (socket.AF_INET, socket.AF_INET6)
NAME = "Target.Example"
# 14 addresses: names meet, and are forgotten.
CRAMPED: dict[str, Any] = {"ipv4": "192.0.2.0/28", "ipv6": "2001:db8::/124"}
THREADS = 8

T = TypeVar("T")

labels = st.text("abcdefghijklmnopqrstuvwxyzäß0123456789-", min_size=1, max_size=12).filter(
    lambda label: not label.startswith("-") and not label.endswith("-") and not label.isdigit()
)
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
few_names = st.integers(0, 19).map("host{}.example".format)
families = st.sampled_from(FAMILIES)


def spellings(name: str) -> st.SearchStrategy[str]:
    """The same name in other cases, with and without the final dot."""
    variants = st.sampled_from([name, name.upper(), name.title()])
    # Upper case is not always reversible: ß becomes SS.
    return st.tuples(variants.filter(lambda variant: variant.lower() == name), st.sampled_from(["", "."])).map("".join)


class TestPlaceholders:
    @given(st.data(), names, families)
    def test_one_name_has_one_address(self, data: st.DataObject, name: str, family: int) -> None:
        placeholders = Placeholders()
        address = placeholders.address(data.draw(spellings(name)), family)
        assert placeholders.address(data.draw(spellings(name)), family) == address

    @given(names, families)
    def test_it_follows_from_the_name_alone(self, name: str, family: int) -> None:
        assert Placeholders().address(name, family) == Placeholders().address(name, family)

    @given(names, families)
    def test_it_lies_in_the_range_and_is_neither_its_first_nor_its_last(self, name: str, family: int) -> None:
        network = ipaddress.ip_network(IPV4_RANGE if family == socket.AF_INET else IPV6_RANGE)
        address = ipaddress.ip_address(Placeholders().address(name, family))
        assert address in network
        assert address not in (network[0], network[-1])

    @given(st.data(), names)
    def test_it_leads_back_to_the_name_as_it_was_first_asked_for(self, data: st.DataObject, name: str) -> None:
        placeholders = Placeholders()
        first, second = data.draw(spellings(name)), data.draw(spellings(name))
        for family in FAMILIES:
            address = placeholders.address(first, family)
            placeholders.address(second, family)
            assert placeholders.covers(address)
            assert placeholders.name(address) == first

    @pytest.mark.parametrize("spelling", ["::ffff:{}", "::FFFF:{}"])
    def test_it_is_known_as_a_mapped_address_too(self, spelling: str) -> None:
        placeholders = Placeholders()
        assert placeholders.name(spelling.format(placeholders.address(NAME))) == NAME

    @pytest.mark.parametrize("spelling", ["{}%lo", "{}%1"])
    def test_it_is_known_with_a_zone_too(self, spelling: str) -> None:
        placeholders = Placeholders()
        assert placeholders.name(spelling.format(placeholders.address(NAME, socket.AF_INET6))) == NAME

    @given(st.lists(names, unique=True, max_size=14), families)
    def test_no_two_names_share_an_address(self, several: list[str], family: int) -> None:
        placeholders = Placeholders(**CRAMPED, limit=14)
        addresses = [placeholders.address(name, family) for name in several]
        assert [placeholders.name(address) for address in addresses] == several

    @given(st.integers(1, 14), st.lists(st.tuples(few_names, st.booleans()), max_size=60))
    def test_the_names_used_last_are_remembered_and_no_others(
        self, limit: int, uses: Sequence[tuple[str, bool]]
    ) -> None:
        placeholders = Placeholders(**CRAMPED, limit=limit)
        addresses: dict[str, str] = {}  # in order of use
        for name, backwards in uses:
            address = addresses.pop(name, None)
            if backwards and address is not None:
                assert placeholders.name(address) == name
            else:
                assert placeholders.address(name) == address or address is None
                address = placeholders.address(name)
            addresses[name] = address
            if len(addresses) > limit:
                del addresses[next(iter(addresses))]
        assert remembered(placeholders) == set(addresses)

    def test_half_the_range_is_remembered_unless_a_limit_says_otherwise(self) -> None:
        placeholders = Placeholders(**CRAMPED)
        several = [f"host{number}.example" for number in range(14)]
        for name in several:
            placeholders.address(name)
        assert remembered(placeholders) == set(several[7:])

    def test_other_names_hardly_ever_matter(self) -> None:
        placeholders = Placeholders()
        several = [f"host{number}.example" for number in range(2000)]
        moved = [name for name in several if placeholders.address(name) != Placeholders().address(name)]
        assert len(moved) < 40

    def test_one_that_was_forgotten_is_still_recognised(self) -> None:
        placeholders = Placeholders(limit=1)
        forgotten = placeholders.address("first.example")
        placeholders.address("second.example")
        assert placeholders.covers(forgotten)
        assert placeholders.name(forgotten) is None

    @given(st.one_of(st.text(), names, st.ip_addresses().map(str)))
    def test_anything_else_is_none(self, text: str) -> None:
        placeholders = Placeholders("203.0.113.0/24", "2001:db8:1::/48")
        if not text.startswith(("203.0.113.", "2001:db8:1:", "::ffff:cb00:71")):
            assert not placeholders.covers(text)
            assert placeholders.name(text) is None

    @pytest.mark.parametrize(
        "arguments",
        [
            {"ipv4": "198.18.0.0/33"},
            {"ipv4": "198.18.0.1/15"},
            {"ipv4": "100::/64"},
            {"ipv6": "198.18.0.0/15"},
            {"ipv4": "192.0.2.1/32"},
            {"ipv6": "100::/127"},
            {**CRAMPED, "limit": 15},
            {"limit": 0},
        ],
    )
    def test_what_cannot_work_is_refused(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValueError):
            Placeholders(**arguments)

    def test_from_other_ranges_after_a_move(self) -> None:
        placeholders = Placeholders()
        placeholders.move(CRAMPED["ipv4"], CRAMPED["ipv6"])
        for family, network in zip(FAMILIES, CRAMPED.values()):
            assert ipaddress.ip_address(placeholders.address(NAME, family)) in ipaddress.ip_network(network)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_given_out_before_a_move_go_on_standing_for_their_names(self, family: int) -> None:
        placeholders = Placeholders()
        earlier = placeholders.address(NAME, family)
        placeholders.move(**CRAMPED)
        assert placeholders.name(earlier) == placeholders.name(placeholders.address(NAME, family)) == NAME

    def test_of_the_ranges_before_a_move_are_recognised_only_by_their_names(self) -> None:
        placeholders = Placeholders(limit=1)
        forgotten = placeholders.address("first.example")
        placeholders.address("second.example")
        placeholders.move(**CRAMPED)
        assert not placeholders.covers(forgotten)

    def test_moved_back_are_the_same(self) -> None:
        placeholders = Placeholders()
        earlier = placeholders.address(NAME)
        placeholders.move(**CRAMPED)
        placeholders.move(IPV4_RANGE, IPV6_RANGE)
        assert placeholders.address(NAME) == earlier

    @pytest.mark.parametrize("ranges", [("198.18.0.0/16", IPV6_RANGE), (IPV4_RANGE, "100::/8")])
    def test_a_range_that_overlaps_an_earlier_one_is_refused(self, ranges: tuple[str, str]) -> None:
        placeholders = Placeholders()
        before = placeholders.address(NAME)
        (bad,) = set(ranges) - {IPV4_RANGE, IPV6_RANGE}
        with pytest.raises(ValueError, match=f"'{bad}': they overlap"):
            placeholders.move(*ranges)
        assert placeholders.address(NAME) == before

    def test_threads_agree(self) -> None:
        for turn in range(100):
            placeholders = Placeholders(**CRAMPED, limit=14)

            def look_up(_thread: int, placeholders: Placeholders = placeholders, turn: int = turn) -> list[str]:
                return [placeholders.address(f"host{number}.turn{turn}.example") for number in range(14)]

            found = at_once(look_up)
            assert found == [found[0]] * THREADS
            assert len(set(found[0])) == 14

    def test_threads_keep_to_the_limit(self) -> None:
        placeholders = Placeholders(**CRAMPED, limit=3)

        def look_up(thread: int) -> None:
            for number in range(500):
                placeholders.name(placeholders.address(f"host{number}.thread{thread}.example"))

        at_once(look_up)
        assert len(remembered(placeholders)) == 3

    def test_another_process_finds_the_same_address(self) -> None:
        program = f"from gsssocks._resolver import Placeholders; print(Placeholders().address({NAME!r}))"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": "1"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == Placeholders().address(NAME)

    def test_a_forked_child_knows_what_its_parent_knew(self) -> None:
        assert run(FORK_ONCE) == f"{NAME}\n"

    def test_a_fork_in_the_midst_of_other_threads_lookups_does_no_harm(self) -> None:
        assert run(FORK_OFTEN) == "50 children\n"


FORK_ONCE = f"""
import os
from gsssocks._resolver import Placeholders

placeholders = Placeholders()
address = placeholders.address({NAME!r})
if os.fork() == 0:
    assert placeholders.address({NAME!r}) == address
    print(placeholders.name(address), flush=True)
    os._exit(0)
os.wait()
"""

# A lock that a child inherits as taken would make it wait for ever: hence the alarm.
FORK_OFTEN = """
import itertools, os, signal, sys, threading
from gsssocks._resolver import Placeholders

sys.setswitchinterval(1e-6)
placeholders = Placeholders()
address = placeholders.address("kept.example")

def look_up(thread):
    for number in itertools.count():
        placeholders.address(f"host{number % 1000}.thread{thread}.example")
        placeholders.name(address)

def child():
    signal.alarm(20)
    assert placeholders.name(address) == "kept.example"
    assert placeholders.name(placeholders.address("new.example")) == "new.example"
    os._exit(0)

for thread in range(4):
    threading.Thread(target=look_up, args=(thread,), daemon=True).start()
children = 0
for _ in range(50):
    if os.fork() == 0:
        child()
    children += os.wait()[1] == 0
print(children, "children", flush=True)
os._exit(0)
"""


def run(program: str) -> str:
    # Forking a process with threads warns, from Python 3.12 on; that it does no harm is what is tested.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=100).stdout


def remembered(placeholders: Placeholders) -> set[str | None]:
    """All names that a cramped table knows."""
    everywhere = ipaddress.ip_network(CRAMPED["ipv4"])
    return {placeholders.name(str(address)) for address in everywhere} - {None}


def at_once(function: Callable[[int], T]) -> list[T]:
    """The results of several threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            together = threading.Barrier(THREADS)
            return list(pool.map(lambda number: (together.wait(), function(number))[1], range(THREADS)))
    finally:
        sys.setswitchinterval(before)


def numeric_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """The platform's own function, for addresses: to look a name up with it is the failure."""

    def call(first: Any, *rest: Any) -> Any:
        host = first[0] if isinstance(first, tuple) else first
        ipaddress.ip_address(host)
        return function(first, *rest)

    return call


def passed_on(*args: Any, **kwargs: Any) -> Any:
    """In the place of the original function, tells what it was called with."""
    return args, kwargs


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The result, or the error."""
    try:
        return function(*args, **kwargs)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is compared
        return type(error), error.args


class Lookups:
    """The functions of a resolver, over the platform's own; names below "direct" do not go to the proxy.

    Attributes:
        asked: what the resolver wanted to know: name, or address, and port.
        answered: what it was told to have been looked up here: name and addresses.
    """

    def __init__(self, placeholders: Placeholders | None = None) -> None:
        self.placeholders = placeholders or Placeholders()
        self.asked: list[tuple[str, int | None]] = []
        self.answered: list[tuple[str, list[str]]] = []
        self.resolver = Resolver(self.placeholders, self._is_proxied, self._note)

    def _is_proxied(self, name: str, port: int | None) -> bool:
        self.asked.append((name, port))
        return not name.endswith(".direct")

    def _note(self, name: str, addresses: list[str]) -> None:
        self.answered.append((name, addresses))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return self.over(name, numeric_only(getattr(socket, name)))

    def over(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """One of the functions, over another original."""
        wrapper = self.resolver.wrappers()[name]
        return lambda *args, **kwargs: wrapper(original, None, args, kwargs)


@pytest.fixture
def lookups() -> Lookups:
    return Lookups()


encoded_names = names.map(lambda name: f"{name}.example".encode("idna"))
hosts = st.one_of(names.map("{}.example".format), encoded_names)
ports = st.sampled_from([None, 0, 80, -1, 70000, "http", b"http", "443", "", "no-such-service", 1.5, object()])
tcp_flags = st.lists(
    st.sampled_from([socket.AI_CANONNAME, socket.AI_V4MAPPED, socket.AI_ALL, socket.AI_NUMERICSERV]), unique=True
).map(sum)


class TestGetaddrinfo:
    @given(
        hosts,
        ports,
        st.sampled_from([socket.AF_UNSPEC, *FAMILIES, socket.AF_UNIX, 99]),
        st.sampled_from([0, socket.SOCK_STREAM, socket.SOCK_DGRAM]),
        st.sampled_from([0, socket.IPPROTO_TCP]),
        tcp_flags,
    )
    def test_answers_as_the_platform_does_for_the_placeholder(
        self, host: str | bytes, port: object, family: int, kind: int, proto: int, flags: int
    ) -> None:
        lookups = Lookups()
        name = host if isinstance(host, str) else host.decode()
        answer = outcome(lookups.getaddrinfo, host, port, family, kind, proto, flags)
        address = lookups.placeholders.address(name, family)
        expected = outcome(socket.getaddrinfo, address, port, family, kind, proto, flags)
        if isinstance(expected, list):
            canonical = name.encode("idna").decode()
            expected = [(*info[:3], canonical if info[3] else "", info[4]) for info in expected]
        assert answer == expected

    def test_answers_ipv4_alone_unless_asked_for_ipv6(self, lookups: Lookups) -> None:
        # One address is one attempt to connect.
        for family, expected in ((socket.AF_UNSPEC, 4), (socket.AF_INET, 4), (socket.AF_INET6, 6)):
            (info,) = lookups.getaddrinfo(NAME, 80, family, socket.SOCK_STREAM)
            assert ipaddress.ip_address(info[4][0]).version == expected
            assert lookups.resolver.asked_name(info[4][0]) == NAME

    def test_answers_whatever_addresses_this_machine_has(self, lookups: Lookups) -> None:
        flags: list[int] = []

        def original(*args: Any) -> list[Any]:
            flags.append(args[5])
            return []

        lookups.over("getaddrinfo", original)(NAME, 80, flags=socket.AI_ADDRCONFIG)
        assert flags == [socket.AI_NUMERICHOST]

    def test_takes_its_arguments_by_name(self, lookups: Lookups) -> None:
        by_name = lookups.getaddrinfo(host=NAME, port=80, type=socket.SOCK_STREAM)
        assert by_name == lookups.getaddrinfo(NAME, 80, 0, socket.SOCK_STREAM)

    def test_the_canonical_name_is_the_name_itself(self, lookups: Lookups) -> None:
        infos = lookups.getaddrinfo("bücher.example.", 80, flags=socket.AI_CANONNAME)
        assert [info[3] for info in infos] == ["xn--bcher-kva.example"] + [""] * (len(infos) - 1)

    @pytest.mark.parametrize(
        ("port", "number"),
        [(80, 80), ("80", 80), (b"80", 80), ("http", 80), (b"http", 80), (None, None), ("no-such-service", None)],
    )
    def test_asks_with_the_name_as_given_and_the_number_of_the_port(
        self, lookups: Lookups, port: object, number: int | None
    ) -> None:
        outcome(lookups.getaddrinfo, NAME, port)
        assert lookups.asked == [(NAME, number)]

    @pytest.mark.parametrize("host", ["127.0.0.1 x", "127.0.0.256", "1.2.3.4.5", "2001:db8::1::", "localhost:80"])
    def test_takes_for_a_name_what_only_looks_like_an_address(self, lookups: Lookups, host: str) -> None:
        assert lookups.resolver.asked_name(lookups.getaddrinfo(host, 80)[0][4][0]) == host

    @pytest.mark.parametrize(
        ("args", "kwargs"),
        [
            ((None, 80), {}),
            (("", 80), {}),
            ((b"", 80), {}),
            (("192.0.2.1", 80), {}),
            ((b"192.0.2.1", 80), {}),
            (("127.1", 80), {}),
            (("0x7f000001", 80), {}),
            (("１２７.0.0.1", 80), {}),
            (("2001:db8::1", 80), {}),
            (("fe80::1%lo", 80), {}),
            ((socket.gethostname().upper(), 80), {}),
            ((bytearray(b"target.example"), 80), {}),
            ((1, 80), {}),
            ((NAME, 80, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE), {}),
            ((NAME, 80), {"flags": socket.AI_NUMERICHOST}),
            ((NAME, 80), {"flags": "0"}),
            ((NAME, 80), {"type": socket.SOCK_RAW}),
            ((NAME, 80), {"proto": socket.IPPROTO_ICMP}),
            ((NAME,), {}),
            ((), {"host": NAME}),
            ((NAME, 80), {"host": NAME}),
            ((NAME, 80), {"flag": 0}),
            ((NAME, 80, 0, 0, 0, 0, 0), {}),
        ],
    )
    def test_leaves_everything_else_to_the_original(
        self, lookups: Lookups, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        assert lookups.over("getaddrinfo", passed_on)(*args, **kwargs) == (args, kwargs)
        assert not lookups.asked

    def test_leaves_names_to_the_original_that_do_not_go_to_the_proxy(self, lookups: Lookups) -> None:
        assert lookups.over("getaddrinfo", passed_on)("target.direct", 80) == (("target.direct", 80), {})

    def test_leaves_a_placeholder_as_it_is(self, lookups: Lookups) -> None:
        address = lookups.placeholders.address(NAME)
        assert lookups.getaddrinfo(address, 80) == socket.getaddrinfo(address, 80)


every_forward_lookup = pytest.mark.parametrize(
    ("function", "rest"),
    [("getaddrinfo", [80]), ("gethostbyname", []), ("gethostbyname_ex", []), ("gethostbyaddr", [])],
)


@every_forward_lookup
class TestNamesThatNoProxyCanBeAskedFor:
    @pytest.mark.parametrize(
        "host", [b"\xff.example", b"a\0b.example", "a\0b.example", b"a" * 256, ".".join(["a" * 60] * 5)]
    )
    def test_do_not_exist(self, lookups: Lookups, function: str, rest: list[int], host: str | bytes) -> None:
        with pytest.raises(socket.gaierror) as caught:
            getattr(lookups, function)(host, *rest)
        assert caught.value.errno == socket.EAI_NONAME

    @pytest.mark.parametrize("host", ["a" * 64, "a..example", "ü" * 70])
    def test_or_cannot_be_encoded(self, lookups: Lookups, function: str, rest: list[int], host: str) -> None:
        answer = outcome(getattr(lookups, function), host, *rest)
        assert answer == outcome(getattr(socket, function), host, *rest)
        assert issubclass(answer[0], UnicodeError)


class TestGethostbyname:
    @given(st.one_of(hosts, encoded_names.map(bytearray)))
    def test_answers_the_placeholder(self, host: str | bytes | bytearray) -> None:
        lookups = Lookups()
        name = host if isinstance(host, str) else bytes(host).decode()
        address = lookups.gethostbyname(host)
        assert lookups.resolver.asked_name(address) == name
        assert lookups.gethostbyname_ex(host) == (name.encode("idna").decode(), [], [address])

    def test_a_label_of_octets_may_be_of_any_length(self, lookups: Lookups) -> None:
        # As with the original, which leaves it to the name servers.
        address = lookups.gethostbyname(b"a" * 100)
        assert lookups.gethostbyaddr(address) == ("a" * 100, [], [address])

    @pytest.mark.parametrize("function", ["gethostbyname", "gethostbyname_ex"])
    @pytest.mark.parametrize(
        "args",
        [
            ("",),
            ("<broadcast>",),
            ("192.0.2.1",),
            ("127.1",),
            ("2001:db8::1",),
            (socket.gethostname(),),
            (None,),
            (1,),
            (),
            (NAME, NAME),
        ],
    )
    def test_leaves_everything_else_to_the_original(
        self, lookups: Lookups, function: str, args: tuple[Any, ...]
    ) -> None:
        assert lookups.over(function, passed_on)(*args) == (args, {})
        assert not lookups.asked

    def test_leaves_names_to_the_original_that_do_not_go_to_the_proxy(self, lookups: Lookups) -> None:
        assert lookups.over("gethostbyname", passed_on)("target.direct") == (("target.direct",), {})

    def test_knows_the_keyword_that_gevent_gives_the_argument(self, lookups: Lookups) -> None:
        assert lookups.gethostbyname(hostname=NAME) == lookups.placeholders.address(NAME)


class TestGethostbyaddr:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_gives_the_name_behind_a_placeholder(self, lookups: Lookups, family: int) -> None:
        address = lookups.placeholders.address("bücher.example", family)
        for host in (address, address.encode(), bytearray(address.encode())):
            assert lookups.gethostbyaddr(host) == ("xn--bcher-kva.example", [], [address])

    def test_takes_a_name_like_gethostbyname_ex(self, lookups: Lookups) -> None:
        assert lookups.gethostbyaddr(NAME) == lookups.gethostbyname_ex(NAME)

    def test_does_not_look_up_a_placeholder_whose_name_is_not_known(self, lookups: Lookups) -> None:
        address = Placeholders().address(NAME)
        with pytest.raises(socket.herror) as caught:
            lookups.gethostbyaddr(address)
        assert caught.value.args == (1, "Unknown host")
        assert lookups.asked == [(address, None)]

    def test_an_address_of_the_range_that_is_reached_directly_is_none(self) -> None:
        resolver = Resolver(Placeholders(), lambda _name, _port: False, lambda _name, _addresses: None)
        wrapper = resolver.wrappers()["gethostbyaddr"]
        assert wrapper(passed_on, None, ("198.18.0.1",), {}) == (("198.18.0.1",), {})

    @pytest.mark.parametrize("args", [("192.0.2.1",), ("",), (1,), ()])
    def test_leaves_everything_else_to_the_original(self, lookups: Lookups, args: tuple[Any, ...]) -> None:
        assert lookups.over("gethostbyaddr", passed_on)(*args) == (args, {})
        assert not lookups.asked


class TestLookedUpHere:
    """What names are answered by their real addresses, the resolver tells."""

    HERE = "here.direct"

    @pytest.mark.parametrize(
        ("function", "args", "answer"),
        [
            ("getaddrinfo", (80,), [(2, 1, 6, "", ("192.0.2.1", 80)), (10, 1, 6, "", ("2001:db8::1", 80, 0, 0))]),
            ("getaddrinfo", (80, 0, 0, 0, socket.AI_PASSIVE), [(2, 1, 6, "", ("192.0.2.1", 80))]),
            ("gethostbyname", (), "192.0.2.1"),
            ("gethostbyname_ex", (), ("here.direct", [], ["192.0.2.1", "192.0.2.2"])),
            ("gethostbyaddr", (), ("here.direct", [], ["192.0.2.1"])),
        ],
    )
    @pytest.mark.parametrize("host", [HERE, HERE.encode(), "Here.direct"])
    def test_are_told_with_all_of_them(
        self, lookups: Lookups, function: str, args: tuple[Any, ...], answer: Any, host: Any
    ) -> None:
        assert lookups.over(function, lambda *_args, **_kwargs: answer)(host, *args) is answer
        ((name, addresses),) = lookups.answered
        assert name.lower() == self.HERE
        assert addresses == [
            address for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1") if address in repr(answer)
        ]

    @pytest.mark.parametrize("host", ["192.0.2.1", b"192.0.2.1", "192.0.513", "2001:db8::1", "fe80::1%lo", "", None])
    @pytest.mark.parametrize("function", ["gethostbyaddr", "gethostbyname_ex"])
    def test_are_no_addresses(self, lookups: Lookups, function: str, host: Any) -> None:
        lookups.over(function, lambda _host: (self.HERE, [], ["192.0.2.1"]))(host)
        assert not lookups.answered

    def test_are_none_where_the_answer_is_a_placeholder(self, lookups: Lookups) -> None:
        lookups.getaddrinfo(NAME, 80)
        assert not lookups.answered


name_flags = st.lists(
    st.sampled_from([socket.NI_NUMERICSERV, socket.NI_DGRAM, socket.NI_NOFQDN, socket.NI_NAMEREQD]), unique=True
).map(sum)


class TestGetnameinfo:
    @given(families, st.sampled_from([0, 22, 80, 514, 4711, 70000, -1, "80"]), name_flags)
    def test_gives_name_and_service(self, family: int, port: object, flags: int) -> None:
        lookups = Lookups()
        sockaddr = (lookups.placeholders.address(NAME, family), port)
        answer = outcome(lookups.getnameinfo, sockaddr, flags)
        plain = (flags & ~socket.NI_NAMEREQD) | socket.NI_NUMERICHOST
        expected = outcome(socket.getnameinfo, sockaddr, plain)
        if isinstance(expected[0], str):
            expected = (NAME, expected[1])
        assert answer == expected

    def test_gives_the_address_where_that_is_asked_for(self, lookups: Lookups) -> None:
        sockaddr = (lookups.placeholders.address(NAME), 80)
        for flags in (socket.NI_NUMERICHOST, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV):
            assert lookups.over("getnameinfo", passed_on)(sockaddr, flags) == ((sockaddr, flags), {})

    def test_gives_the_address_where_the_name_is_not_known(self, lookups: Lookups) -> None:
        address = Placeholders().address(NAME)
        assert lookups.getnameinfo((address, 80), 0) == (address, "http")

    def test_fails_where_the_name_is_not_known_and_required(self, lookups: Lookups) -> None:
        with pytest.raises(socket.gaierror) as caught:
            lookups.getnameinfo((Placeholders().address(NAME), 80), socket.NI_NAMEREQD)
        assert caught.value.errno == socket.EAI_NONAME

    @pytest.mark.parametrize(
        "args",
        [
            (("192.0.2.1", 80), 0),
            (("2001:db8::1", 80, 0, 0), 0),
            ((NAME, 80), 0),
            ((b"198.18.0.1", 80), 0),
            ((), 0),
            (["198.18.0.1", 80], 0),
            (("198.18.0.1", 80), "0"),
            (("198.18.0.1", 80),),
            (),
        ],
    )
    def test_leaves_everything_else_to_the_original(self, lookups: Lookups, args: tuple[Any, ...]) -> None:
        assert lookups.over("getnameinfo", passed_on)(*args) == (args, {})
        assert not lookups.asked


class TestAskedName:
    def test_is_the_name_behind_a_placeholder(self, lookups: Lookups) -> None:
        for family in FAMILIES:
            assert lookups.resolver.asked_name(lookups.placeholders.address(NAME, family)) == NAME

    @pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", NAME, "", "<broadcast>"])
    def test_is_none_for_anything_else(self, lookups: Lookups, host: str) -> None:
        assert lookups.resolver.asked_name(host) is None

    def test_that_is_not_known_is_an_error(self, lookups: Lookups) -> None:
        address = Placeholders().address(NAME)
        with pytest.raises(OSError, match=rf"{address} stands for a name that .* look the name up again") as caught:
            lookups.resolver.asked_name(address)
        assert caught.value.errno == errno.EHOSTUNREACH


class TestInTheSocketModule:
    """What Python's own code makes of these functions."""

    @pytest.fixture(autouse=True)
    def _patched(self, lookups: Lookups, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with monkeypatch.context() as patch:
            for name, wrapper in lookups.resolver.wrappers().items():
                original = numeric_only(getattr(socket, name))
                patch.setattr(socket, name, functools.partial(call, wrapper, original))
            yield

    def test_getfqdn_of_a_name_is_the_name(self) -> None:
        assert socket.getfqdn(NAME) == NAME

    def test_getfqdn_of_a_placeholder_is_the_name(self, lookups: Lookups) -> None:
        assert socket.getfqdn(lookups.placeholders.address(NAME)) == NAME

    def test_asyncio_finds_placeholders(self, lookups: Lookups) -> None:
        async def look_up() -> tuple[Any, Any]:
            loop = asyncio.get_running_loop()
            infos: Any = await loop.getaddrinfo(NAME, 80, type=socket.SOCK_STREAM)
            return infos, await loop.getnameinfo(infos[0][4], 0)

        infos, name = asyncio.run(look_up())
        assert [info[4] for info in infos] == [(lookups.placeholders.address(NAME), 80)]
        assert name == (NAME, "http")


def call(wrapper: Callable[..., Any], original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return wrapper(original, None, args, kwargs)
