"""How far this machine's clock is from the KDC's.

GSS-API does not tell. But MIT Kerberos compares the two when it gets a ticket (krb5.conf's `kdc_timesync`), and notes
the difference at the head of a credential cache that is a file (MIT's "Credential cache file format", version 4).
"""

from __future__ import annotations

import struct

from gssapi import raw

__all__ = ["kdc_clock_offset"]

_VERSION_4 = b"\x05\x04"
_LONGEST_HEADER = 2 + 2 + 0xFFFF
_OFFSET_TAG = 1


def kdc_clock_offset(ccache: str | None) -> float | None:
    """Seconds by which the KDC's clock was ahead of this machine's when the ticket in a cache was got; None where it is
    not known.

    Args:
        ccache: credential cache, such as "FILE:/tmp/krb5cc_0"; None is the default one.
    """
    name = ccache or _default_cache()
    path = name.removeprefix("FILE:").removeprefix("DIR::")
    if not path.startswith("/"):
        return None  # it is no file
    try:
        with open(path, "rb") as file:
            head = file.read(_LONGEST_HEADER)
    except OSError:
        return None
    return _offset(head)


def _default_cache() -> str:
    # Not in every build of python-gssapi. To name none has it give the name that is in force.
    named = getattr(raw, "krb5_ccache_name", None)
    return "" if named is None else (named(None) or b"").decode("utf-8", "replace")


def _offset(head: bytes) -> float | None:
    if head[:2] != _VERSION_4:
        return None
    fields = head[4 : 4 + int.from_bytes(head[2:4], "big")]
    while len(fields) >= 4:
        tag, length = struct.unpack_from(">HH", fields)
        value, fields = fields[4 : 4 + length], fields[4 + length :]
        if tag == _OFFSET_TAG and len(value) == 8:
            seconds, microseconds = struct.unpack(">ii", value)
            return float(seconds + microseconds / 1_000_000)
    return None
