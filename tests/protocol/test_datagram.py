"""A datagram between client and proxy has the octets that RFC 1928, section 7, gives it, and is known again by them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsssocks import ProtocolError
from gsssocks._protocol import Address, Datagram
from tests.protocol.strategies import addresses, octet

pytestmark = pytest.mark.default_python_only

datagrams = st.builds(Datagram, addresses, st.binary(max_size=300), octet)

# Each with the octets written out by hand from the figure of the RFC.
EXAMPLES: dict[str, tuple[Datagram, str]] = {
    "to IPv4": (Datagram(Address("192.0.2.1", 53), b"\x01\x02"), "00 00 00 01 c0 00 02 01 00 35 01 02"),
    "to a name": (Datagram(Address("ns", 53), b"q"), "00 00 00 03 02 6e 73 00 35 71"),
    "to IPv6": (
        Datagram(Address("2001:db8::1", 65535), b"q"),
        "00 00 00 04 20 01 0d b8 00 00 00 00 00 00 00 00 00 00 00 01 ff ff 71",
    ),
    "without data": (Datagram(Address("192.0.2.1", 53), b""), "00 00 00 01 c0 00 02 01 00 35"),
    "a fragment, the last": (Datagram(Address("192.0.2.1", 53), b"q", 0x82), "00 00 82 01 c0 00 02 01 00 35 71"),
}

every_example = pytest.mark.parametrize(("datagram", "octets"), EXAMPLES.values(), ids=list(EXAMPLES))


@every_example
def test_octets_of_the_rfc_go_out(datagram: Datagram, octets: str) -> None:
    assert datagram.encode() == bytes.fromhex(octets)


@every_example
def test_octets_of_the_rfc_come_in(datagram: Datagram, octets: str) -> None:
    assert Datagram.decode(bytes.fromhex(octets)) == datagram


@given(datagrams, st.sampled_from([bytes, bytearray, memoryview]))
def test_round_trip(datagram: Datagram, kind: type[Any]) -> None:
    assert Datagram.decode(kind(datagram.encode())) == datagram


@given(addresses, st.data())
def test_part_of_a_header_is_recognised(address: Address, data: st.DataObject) -> None:
    header = Datagram(address, b"").encode()
    length = data.draw(st.integers(0, len(header) - 1))
    with pytest.raises(ProtocolError, match="ends inside its header"):
        Datagram.decode(header[:length])


@given(st.binary(max_size=100))
def test_any_octets_are_a_datagram_or_an_error(octets: bytes) -> None:
    try:
        datagram = Datagram.decode(octets)
    except ProtocolError:
        return
    assert octets.endswith(datagram.data)


def test_unknown_type_of_address() -> None:
    for atyp in set(range(256)) - {1, 3, 4}:
        with pytest.raises(ProtocolError, match=f"unknown type {atyp:#04x}"):
            Datagram.decode(bytes([0, 0, 0, atyp]) + bytes(300))


@pytest.mark.parametrize("reserved", ["0100", "0001", "0103"])
def test_reserved_octets_must_be_zero(reserved: str) -> None:
    with pytest.raises(ProtocolError, match=f"begins with {reserved}, not 0000"):
        Datagram.decode(bytes.fromhex(f"{reserved} 00 01 c0 00 02 01 00 35"))
