"""What systemd and a service tell each other: sd_listen_fds(3) and sd_notify(3)."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from gsssocks import _originals

from ._log import log

if TYPE_CHECKING:
    from collections.abc import MutableMapping, Sequence

__all__ = ["journal", "notify", "passed_descriptors"]

_FIRST = 3  # SD_LISTEN_FDS_START


def passed_descriptors(environ: MutableMapping[str, str]) -> Sequence[int]:
    """Descriptors of the sockets that systemd listens on for us; none if it does not. What says so is taken out of the
    environment, since it is nobody else's.

    Raises:
        ValueError: it says so in a way that cannot be understood.
    """
    process, number = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if process != str(os.getpid()):
        return ()
    if not number.isdecimal() or int(number) > 1024:
        raise ValueError(f"environment variable LISTEN_FDS: it must be a number, not {number!r}")
    return range(_FIRST, _FIRST + int(number))


def notify(environ: MutableMapping[str, str], state: str) -> None:
    """Tells systemd, if it wants to be told."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    sock = _originals.SocketType(socket.AF_UNIX, socket.SOCK_DGRAM, 0)
    try:
        sock.sendto(state.encode(), address)
    except OSError as error:
        log.warning("cannot notify NOTIFY_SOCKET: %s", error.strerror)
    finally:
        sock.close()


def journal(environ: MutableMapping[str, str]) -> bool:
    """Whether standard error goes to the journal, which notes the time by itself."""
    return "JOURNAL_STREAM" in environ
