"""Tests of CPython that cannot be relied on to pass through a proxy, one by one, with the reason.

They are run all the same, and nothing is asked of their outcome. Bypassed, there is no exception.
"""

from __future__ import annotations

_RESET = (
    "One side sends data and resets the connection at once; the other is to find data on a connection that has ended. "
    "Through a proxy there are two connections, and the second is reset a moment after the data has arrived on it. If "
    "the TLS handshake begins within that moment, it meets the data, and fails with another message."
)

EXCUSED: dict[str, str] = {
    # Seen to fail, once in ten runs or so.
    "test_ssl.TestPreHandshakeClose.test_preauth_data_to_tls_server": _RESET,
    # The same race with the sides exchanged. Not seen to fail so far.
    "test_ssl.TestPreHandshakeClose.test_preauth_data_to_tls_client": _RESET,
}
"""By the test's id without "test."."""

NOT_RUN: dict[str, str] = {
    # On a virtual machine whose host does not pass its connections back, it waits for ever.
    "test_socket.ThreadedVSOCKSocketStreamTest.testStream": "VSOCK, not TCP",
}
"""Tests that are not run in any mode."""
