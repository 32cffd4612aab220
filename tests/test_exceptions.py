"""Errors are what code for plain sockets, and code for PySocks, already knows how to handle."""

from __future__ import annotations

import copy
import errno
import pickle
import socket
from typing import Any

import pytest
import socks

import gsssocks
from gsssocks import (
    AuthenticationError,
    ProtectionError,
    ProtocolError,
    ProxyConnectionError,
    ProxyError,
    ReplyError,
    exceptions,
)
from gsssocks.exceptions import (
    proxy_connection_error,
    proxy_timeout,
    refused_by_rule,
    reply_error,
    truncated,
    unsupported,
)

pytestmark = pytest.mark.default_python_only

PUBLIC = [AuthenticationError, ProtectionError, ProtocolError, ProxyConnectionError, ProxyError, ReplyError]
EVERY_ERROR: list[ProxyError] = [
    *(cls(errno.EPROTO, "what happened, and what to do") for cls in PUBLIC),
    *(reply_error(code, "target:80", "proxy:1080") for code in (*range(1, 10), 255)),
    proxy_connection_error(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "proxy:1080"),
    proxy_connection_error(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "proxy:1080"),
    proxy_connection_error(OSError(errno.ENETUNREACH, "Network is unreachable"), "proxy:1080"),
    proxy_connection_error(socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "proxy:1080"),
    proxy_timeout("waiting", "proxy:1080"),
    refused_by_rule("target:80", "target=refuse"),
    unsupported("datagrams", "do without"),
    truncated("the end came too early"),
]

every_error = pytest.mark.parametrize("error", EVERY_ERROR, ids=lambda error: f"{type(error).__name__}-{error.errno}")


@pytest.mark.parametrize("cls", PUBLIC)
def test_public_classes_are_in_the_facade(cls: type[ProxyError]) -> None:
    assert getattr(gsssocks, cls.__name__) is cls
    assert getattr(exceptions, cls.__name__) is cls
    assert cls.__doc__


@every_error
def test_each_is_a_proxy_error_and_an_os_error(error: ProxyError) -> None:
    assert isinstance(error, ProxyError)
    assert isinstance(error, OSError)


@pytest.mark.parametrize(
    ("ours", "pysocks"),
    [
        (ProxyError, socks.ProxyError),
        (ProxyConnectionError, socks.ProxyConnectionError),
        (ProtocolError, socks.GeneralProxyError),
        (AuthenticationError, socks.SOCKS5AuthError),
        (ProtectionError, socks.GeneralProxyError),
        (ReplyError, socks.SOCKS5Error),
    ],
)
def test_each_is_what_pysocks_would_have_raised(ours: type[ProxyError], pysocks: type[Exception]) -> None:
    assert issubclass(ours, pysocks)


@pytest.mark.parametrize(
    ("code", "number", "plain"),
    [
        (1, errno.ECONNABORTED, ConnectionAbortedError),
        (2, errno.EACCES, PermissionError),
        (3, errno.ENETUNREACH, OSError),
        (4, errno.EHOSTUNREACH, OSError),
        (5, errno.ECONNREFUSED, ConnectionRefusedError),
        (6, errno.ETIMEDOUT, TimeoutError),
        (7, errno.EOPNOTSUPP, OSError),
        (8, errno.EAFNOSUPPORT, OSError),
        (9, errno.EPROTO, OSError),
        (255, errno.EPROTO, OSError),
    ],
)
def test_reply_is_what_connect_would_have_raised(code: int, number: int, plain: type[OSError]) -> None:
    error = reply_error(code, "target:80", "proxy:1080")
    assert isinstance(error, ReplyError)
    assert isinstance(error, plain)
    assert (error.code, error.errno) == (code, number)
    for part in ("target:80", "proxy:1080", f"reply code {code}"):
        assert part in str(error)


@pytest.mark.parametrize(
    ("cause", "number", "plain"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), errno.ECONNREFUSED, ConnectionRefusedError),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), errno.ECONNRESET, ConnectionResetError),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), errno.ENETUNREACH, OSError),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), errno.ETIMEDOUT, socket.timeout),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), errno.EHOSTUNREACH, OSError),
        (OSError("without a number"), errno.EHOSTUNREACH, OSError),
    ],
)
def test_unreachable_proxy_is_what_a_plain_socket_would_have_raised(
    cause: OSError, number: int, plain: type[OSError]
) -> None:
    error = proxy_connection_error(cause, "proxy:1080")
    assert isinstance(error, ProxyConnectionError)
    assert isinstance(error, plain)
    assert error.errno == number
    assert str(error).startswith("cannot reach the proxy proxy:1080: ")
    assert str(cause.strerror or cause) in str(error)
    assert error.socket_err is cause


def test_timeout_is_a_sockets_timeout() -> None:
    error = proxy_timeout("waiting for the proxy's part", "proxy:1080")
    assert isinstance(error, ProxyConnectionError)
    assert isinstance(error, socket.timeout)
    assert error.errno == errno.ETIMEDOUT
    assert str(error) == "timed out while waiting for the proxy's part (proxy proxy:1080)"


def test_truncation_is_a_reset() -> None:
    error = truncated("data is missing")
    assert isinstance(error, ProtocolError)
    assert isinstance(error, ConnectionResetError)
    assert error.errno == errno.ECONNRESET


def test_refusal_by_rule_is_a_permission_error_that_quotes_the_rule() -> None:
    error = refused_by_rule("target:80", "target=refuse")
    assert isinstance(error, PermissionError)
    assert error.errno == errno.EACCES
    assert "'target=refuse'" in str(error)


@every_error
def test_text_is_the_message_alone(error: ProxyError) -> None:
    assert str(error) == error.strerror == error.msg
    assert error.args == (error.errno, error.strerror)


@every_error
def test_number_is_a_true_errno(error: ProxyError) -> None:
    assert error.errno in errno.errorcode


@every_error
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_copy_is_the_same_error(error: ProxyError, copied: Any) -> None:
    twin = copied(error)
    assert type(twin) is type(error)
    assert (twin.args, twin.errno, str(twin), repr(twin)) == (error.args, error.errno, str(error), repr(error))
    assert {name: repr(value) for name, value in vars(twin).items()} == {
        name: repr(value) for name, value in vars(error).items()
    }


@every_error
def test_except_clauses_of_other_programs_catch_it(error: ProxyError) -> None:
    for caught in (OSError, socket.error, socks.ProxyError):
        with pytest.raises(caught):
            raise error
