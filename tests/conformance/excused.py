"""Tests of CPython that cannot be relied on to pass through a proxy, one by one, with the reason.

They are run all the same, and nothing is asked of their outcome. Without a proxy in between, that is directly and
bypassed, there is no exception.
"""

from __future__ import annotations

_RST = """\
    The one side sends data and resets the connection at once; the other is expected to find data that can be read on \
    a connection that has ended already. Through a proxy there are two connections, and the reset of the one comes to \
    be one of the other after a while only, if at all: until then the connection stands, and the TLS handshake begins, \
    and fails for the unencrypted data."""

EXCUSED: dict[str, str] = {
    "test_ssl.TestPreHandshakeClose.test_preauth_data_to_tls_server": _RST,
    "test_ssl.TestPreHandshakeClose.test_preauth_data_to_tls_client": _RST,
}
"""By the test's id without "test."."""

NOT_RUN: dict[str, str] = {
    # On a virtual machine it waits for ever for its own connection, which the hypervisor does not pass back.
    "test_socket.ThreadedVSOCKSocketStreamTest.testStream": "VSOCK, not TCP",
}
"""Tests that are not run in any mode."""
