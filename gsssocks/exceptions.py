"""What can go wrong between the application and its target, one class for each party at fault.

Every error is an `OSError` with a true `errno`, so code written for a plain socket handles it unchanged; where a
plain socket would have raised a particular subclass (`ConnectionRefusedError`, `TimeoutError`, …), so do we. Every
error is also an instance of the class that PySocks would have raised, so `except socks.ProxyError` keeps working.
"""

from __future__ import annotations

import errno
import socket

import socks

__all__ = [
    "AuthenticationError",
    "LevelRefusedError",
    "ProtectionError",
    "ProtocolError",
    "ProxyConnectionError",
    "ProxyError",
    "ReplyError",
    "association_ended",
    "proxy_connection_error",
    "proxy_timeout",
    "refused_by_rule",
    "reply_error",
    "truncated",
    "unsupported",
]


class ProxyError(socks.ProxyError):  # type: ignore[misc]  # PySocks has no type hints
    """Base of every error that the proxy, or the way to it, is the cause of.

    Args:
        errno: the number a program may branch on.
        message: what happened, and what to do next.
    """

    def __init__(self, errno: int, message: str) -> None:
        OSError.__init__(self, errno, message)
        # The two attributes PySocks' own classes have.
        self.msg = message
        self.socket_err: BaseException | None = None

    def __str__(self) -> str:
        return self.msg


class ProxyConnectionError(ProxyError, socks.ProxyConnectionError):  # type: ignore[misc]
    """The proxy itself could not be reached: its name, its address, or no answer within the time allowed."""


class ProtocolError(ProxyError, socks.GeneralProxyError):  # type: ignore[misc]
    """The peer broke SOCKS 5 or RFC 1961: not such a proxy, or not an honest one."""


class AuthenticationError(ProxyError, socks.SOCKS5AuthError):  # type: ignore[misc]
    """Client and proxy could not establish a security context: ticket, service name, key, clock or policy."""


class ProtectionError(ProxyError, socks.GeneralProxyError):  # type: ignore[misc]
    """The protection that policy demands was not granted, or a message arrived without it or damaged."""


class ReplyError(ProxyError, socks.SOCKS5Error):  # type: ignore[misc]
    """The proxy was reached and trusted us, but did not grant the request (RFC 1928, section 6).

    Attributes:
        code: the REP field, 1 to 255.
    """

    code: int = 0


class ProxyRefusedError(ProxyConnectionError, ConnectionRefusedError):
    pass


class ProxyResetError(ProxyConnectionError, ConnectionResetError):
    pass


class ProxyTimeoutError(ProxyConnectionError, socket.timeout):
    pass


class LevelRefusedError(ProtectionError):
    """The protection level asked for cannot be had. Another one may, if the proxy is asked anew."""


class ForbiddenError(ProxyError, PermissionError):
    pass


class TruncatedError(ProtocolError, ConnectionResetError):
    pass


class NotAllowedError(ReplyError, PermissionError):
    pass


class TargetRefusedError(ReplyError, ConnectionRefusedError):
    pass


class TargetTimeoutError(ReplyError, TimeoutError):
    pass


class RequestAbortedError(ReplyError, ConnectionAbortedError):
    pass


# RFC 1928, section 6. The errno is the one connect(2) gives for the same event; "general failure" has no counterpart
# there.
_REPLIES: dict[int, tuple[type[ReplyError], int, str]] = {
    1: (RequestAbortedError, errno.ECONNABORTED, "general failure at the proxy; its log says why"),
    2: (
        NotAllowedError,
        errno.EACCES,
        "not allowed by the proxy's rules; ask its operator, or name the target in no_proxy",
    ),
    3: (ReplyError, errno.ENETUNREACH, "network unreachable from the proxy"),
    4: (ReplyError, errno.EHOSTUNREACH, "host unreachable from the proxy, or its name unknown there"),
    5: (TargetRefusedError, errno.ECONNREFUSED, "connection refused by the target"),
    6: (TargetTimeoutError, errno.ETIMEDOUT, "the target did not answer the proxy in time"),
    7: (ReplyError, errno.EOPNOTSUPP, "the proxy does not support this command"),
    8: (ReplyError, errno.EAFNOSUPPORT, "the proxy does not support this type of address"),
}
_UNASSIGNED = (ReplyError, errno.EPROTO, "a reply code that RFC 1928 does not define")


def reply_error(code: int, target: str, proxy: str) -> ReplyError:
    """The error for a reply other than 0 (RFC 1928, section 6), `code` being its REP field."""
    cls, number, text = _REPLIES.get(code, _UNASSIGNED)
    error = cls(number, f"{text} (target {target}, proxy {proxy}, reply code {code})")
    error.code = code
    return error


def proxy_connection_error(cause: OSError, proxy: str) -> ProxyConnectionError:
    """The error for a proxy that could not be reached; its class and errno are those of `cause` where they mean
    something."""
    cls = ProxyConnectionError
    if isinstance(cause, ConnectionRefusedError):
        cls = ProxyRefusedError
    elif isinstance(cause, ConnectionResetError):
        cls = ProxyResetError
    elif isinstance(cause, (TimeoutError, socket.timeout)):
        cls = ProxyTimeoutError
    # A failed name lookup carries an EAI_* code, which is no errno.
    number = cause.errno if cause.errno and not isinstance(cause, socket.gaierror) else errno.EHOSTUNREACH
    error = cls(number, f"cannot reach the proxy {proxy}: {cause.strerror or cause}")
    error.socket_err = cause
    return error


def association_ended(proxy: str) -> ProxyConnectionError:
    """The error for a UDP association that is no more; also a `ConnectionResetError`."""
    return ProxyResetError(
        errno.ECONNRESET,
        f"the proxy {proxy} has ended the association, which carried this socket's datagrams; to send another datagram "
        "asks for a new one",
    )


def proxy_timeout(phase: str, proxy: str) -> ProxyConnectionError:
    """The error for a connect whose time ran out; `phase` says what it was waiting for.

    The message starts as a plain socket's does ("timed out"), for programs that look.
    """
    return ProxyTimeoutError(errno.ETIMEDOUT, f"timed out while {phase} (proxy {proxy})")


def refused_by_rule(target: str, rule: str) -> ProxyError:
    """The error for a destination that our own configuration forbids; also a `PermissionError`."""
    return ForbiddenError(
        errno.EACCES, f"connections to {target} are refused by the rule {rule!r} of this program's set-up"
    )


def unsupported(what: str, remedy: str) -> ProxyError:
    """The error for a way to connect that we cannot tunnel, and will not let go past the proxy."""
    return ProxyError(errno.EOPNOTSUPP, f"{what} cannot be sent through the proxy: {remedy}")


def truncated(message: str) -> ProtocolError:
    """The error for a stream that ended inside a message; also a `ConnectionResetError`."""
    return TruncatedError(errno.ECONNRESET, message)


def not_encrypted() -> ProtectionError:
    """The error for a message that the mechanism did not encrypt although asked to."""
    return ProtectionError(errno.EPROTO, "the mechanism did not encrypt a message although asked to; nothing was sent")
