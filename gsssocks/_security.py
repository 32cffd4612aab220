"""What gsssocks asks of a security mechanism, and nothing more: the narrow interface behind which GSS-API stands.

An implementation may block in `step` (a key distribution centre is asked over the network); it never blocks in `wrap`
and `unwrap`. One `wrap` and one `unwrap` may run at the same time; two of a kind may not.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MECHANISMS", "Arrived", "Granted", "Sealed", "SecurityContext", "Unwrapped"]


MECHANISMS: Mapping[str, str] = {
    "krb5": "1.2.840.113554.1.2.2",
    "spnego": "1.3.6.1.5.5.2",
    "ntlmssp": "1.3.6.1.4.1.311.2.2.10",
}
"""Mechanisms that may be asked for by name; any other by its OID in dotted form."""


class Granted(NamedTuple):
    """The services a context turned out to have, once it is complete."""

    mutual: bool
    replay: bool
    sequence: bool
    integrity: bool
    confidentiality: bool
    delegated: bool


class Unwrapped(NamedTuple):
    """One message out of its protection."""

    data: bytes
    confidential: bool
    """conf_state: whether the message was encrypted. False means integrity alone."""


Sealed = list[tuple[tuple[bytes, bool], bool]]
"""Tokens, each with whether it is encrypted, and whether it was to be."""
Arrived = deque[tuple[tuple[Any, ...], int]]
"""What was in tokens: the data, whether it was encrypted, and what else the mechanism says; each with a note."""


class SecurityContext(Protocol):
    """One end of a security context, initiator or acceptor."""

    @property
    def complete(self) -> bool:
        """Whether no further token is awaited from the peer."""

    @property
    def granted(self) -> Granted:
        """The services granted; only when complete."""

    @property
    def initiator_name(self) -> str | None:
        """Who started the context, as the mechanism shows names; None while it is not known."""

    @property
    def target_name(self) -> str | None:
        """Whom the initiator asked for, as the mechanism shows names; None while it is not known."""

    @property
    def mechanism(self) -> str:
        """Name of the mechanism in use, or its OID where it has none here."""

    @property
    def lifetime(self) -> int | None:
        """Seconds until the context expires; None where it never does or is not known."""

    def step(self, token: bytes | None) -> bytes | None:
        """Takes the peer's token (None at the initiator's first step) and returns the one to send, None if there is
        none.

        Raises:
            AuthenticationError: no context can be had; the message says why and what to do.
        """

    def max_plaintext(self, *, confidential: bool, max_token: int) -> int:
        """The most octets that `wrap` turns into a token of at most `max_token` octets (RFC 2743, section 2.2.5)."""

    def wrap(self, data: bytes, *, confidential: bool) -> bytes:
        """One message under protection.

        Raises:
            ProtectionError: the mechanism could not, or did not encrypt although asked to.
        """

    def unwrap(self, token: bytes) -> Unwrapped:
        """One message out of its protection. The octets of `token` may be changed in place.

        Raises:
            ProtectionError: damaged, repeated, out of sequence, or not from the peer.
        """

    # On a stream, a token counts: to forget one that was made or taken would end it. So there what has been done is
    # noted in the same step, between which and the next a signal handler may raise whatever it likes.

    def wrap_onto(self, sealed: Sealed, data: bytes, *, confidential: bool) -> None:
        """As `wrap`, and appends the token to `sealed`, in one step. Whether it is encrypted is for the caller to
        judge."""

    def unwrap_onto(self, arrived: Arrived, token: bytes, note: int) -> None:
        """As `unwrap`, and appends the outcome to `arrived`, with `note`, in one step."""

    def unwrap_datagram(self, token: bytes) -> Unwrapped | None:
        """As `unwrap`, in a context without sequence detection, where messages may be lost, repeated or overtaken: None
        for one that has been here before, or is too old to tell.

        Raises:
            ProtectionError: damaged, or not from the peer.
        """
