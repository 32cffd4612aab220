"""Every message of the protocol, as hypothesis makes them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from gsssocks._protocol import (
    MAX_TOKEN,
    Address,
    Greeting,
    MethodSelection,
    Reply,
    Request,
    TokenMessage,
    UserPassword,
    UserPasswordStatus,
)

octet = st.integers(0, 255)
ports = st.integers(0, 0xFFFF)
# No name of these letters is an address in text form.
names = st.text("ghijklmnopqrstuvwxyzGHIJKLMNOPQRSTUVWXYZ-_.", min_size=1, max_size=255)
ipv4 = st.ip_addresses(v=4).map(str)
ipv6 = st.ip_addresses(v=6).map(str)
addresses = st.builds(Address, st.one_of(names, ipv4, ipv6), ports)
tokens = st.one_of(st.binary(max_size=300), st.sampled_from([bytes(MAX_TOKEN), bytes(MAX_TOKEN - 1), bytes(256)]))

messages: dict[type[Any], st.SearchStrategy[Any]] = {
    Greeting: st.builds(Greeting, st.binary(max_size=255)),
    MethodSelection: st.builds(MethodSelection, octet),
    UserPassword: st.builds(UserPassword, st.binary(min_size=1, max_size=255), st.binary(min_size=1, max_size=255)),
    UserPasswordStatus: st.builds(UserPasswordStatus, octet),
    Address: addresses,
    Request: st.builds(Request, octet, addresses),
    Reply: st.builds(Reply, st.just(0), addresses),
    TokenMessage: st.builds(TokenMessage, st.integers(0, 254), tokens),
}
"""The strategy for each class of message."""

any_message = st.one_of(*messages.values())
