"""Whose datagram it is, where the application knows its sender by a placeholder only."""

from __future__ import annotations

import pytest

from gsssocks._destinations import MAX_CONTACTS, Contacts, Destination, Route
from gsssocks._protocol import Address

pytestmark = pytest.mark.default_python_only


def named(name: str, port: int = 53) -> Destination:
    """A name, for which an address stands that is made of it."""
    return Destination(Route((), name), Address(name, port), (f"for {name}", port))


def numeric(host: str, port: int = 53) -> Destination:
    return Destination(Route((), None), Address(host, port), (host, port))


@pytest.fixture
def contacts() -> Contacts:
    return Contacts()


def test_address_is_shown_as_itself(contacts: Contacts) -> None:
    contacts.note(numeric("192.0.2.1"))
    assert contacts.shown(Address("192.0.2.1", 53)) is None


def test_only_name_at_the_port(contacts: Contacts) -> None:
    contacts.note(named("one"))
    contacts.note(named("other", 54))
    assert contacts.shown(Address("192.0.2.1", 53)) == ("for one", 53)
    assert contacts.shown(Address("192.0.2.1", 54)) == ("for other", 54)
    assert contacts.shown(Address("192.0.2.1", 55)) is None


def test_only_name_may_have_several_addresses(contacts: Contacts) -> None:
    contacts.note(named("one"))
    for host in ("192.0.2.1", "192.0.2.2", "192.0.2.1"):
        assert contacts.shown(Address(host, 53)) == ("for one", 53)


def test_names_that_were_heard_of_before(contacts: Contacts) -> None:
    contacts.note(named("one"))
    assert contacts.shown(Address("192.0.2.1", 53)) == ("for one", 53)
    contacts.note(named("other"))
    assert contacts.shown(Address("192.0.2.2", 53)) == ("for other", 53)
    assert contacts.shown(Address("192.0.2.1", 53)) == ("for one", 53)


def test_nobody_is_guessed_of_several(contacts: Contacts) -> None:
    contacts.note(named("one"))
    contacts.note(named("other"))
    assert contacts.shown(Address("192.0.2.1", 53)) is None


def test_address_that_was_sent_to_is_no_names(contacts: Contacts) -> None:
    contacts.note(numeric("192.0.2.1"))
    contacts.note(named("one"))
    assert contacts.shown(Address("192.0.2.1", 53)) is None
    assert contacts.shown(Address("192.0.2.2", 53)) == ("for one", 53)


def test_the_oldest_are_forgotten(contacts: Contacts) -> None:
    for number in range(2 * MAX_CONTACTS):
        contacts.note(named(f"n{number}", number))
        contacts.note(numeric("192.0.2.1", number))
        contacts.shown(Address("192.0.2.2", number))
    assert len(contacts._names) == len(contacts._addresses) == len(contacts._known) == MAX_CONTACTS
    assert contacts.shown(Address("192.0.2.2", 0)) is None
    assert contacts.shown(Address("192.0.2.2", 2 * MAX_CONTACTS - 1)) == (f"for n{2 * MAX_CONTACTS - 1}", 2047)
