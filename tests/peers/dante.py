"""Dante, the SOCKS server, with GSS-API."""

from __future__ import annotations

# The C base class: gsssocks may have replaced socket.socket, and the probe must reach the port itself.
import _socket
import os
import pwd
import re
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from gsssocks.testing._daemon import Daemon, Watchdog
from gsssocks.testing._loopback import ReservedPort

if TYPE_CHECKING:
    from types import TracebackType

    from gsssocks.testing import Realm

_START_LIMIT_SECONDS = 30.0
_NO_AUTHENTICATION, _GSSAPI = 0, 1


class Dante:
    """Dante 1.4.2 on 127.0.0.1 and ::1, same port, for any target on the loopback interface.

    Args:
        realm: Whose keytab the server has.
        enctype: The one protection level it accepts, as `gssapi.enctype` names it: "confidentiality", "integrity" or
            "clear"; None for a server without authentication.
        nec: Expect the protection level unwrapped, as NEC's clients send it.
        debug: Dante's debug level; its log is then long.
        buffer_size: Of each socket, in each direction, instead of the kernel's choice, which is some megabytes.
        same_same: Listen for BIND at the address that the client connected to. Otherwise it would look for a global
            address for a client that asks for ::, and there is none on the loopback interface.
        bind_replies: Let peers connect where it listens for BIND.

    Raises:
        RuntimeError: It is not built, or does not start.
    """

    host = "localhost"

    def __init__(
        self,
        realm: Realm,
        *,
        enctype: str | None,
        nec: bool = False,
        debug: int = 0,
        buffer_size: int | None = None,
        same_same: bool = False,
        bind_replies: bool = True,
    ) -> None:
        self._realm = realm
        self.enctype = enctype
        self._nec = nec
        self._debug = debug
        self._buffer_size = buffer_size
        self._same_same = same_same
        self._bind_replies = bind_replies
        self._port: ReservedPort | None = None
        self._watchdog: Watchdog | None = None
        self._daemon: Daemon | None = None

    def __enter__(self) -> Dante:
        self._watchdog = Watchdog("gsssocks-dante-")
        try:
            self._port = ReservedPort("127.0.0.1", "::1")
            self._daemon = self._launch(self._watchdog)
            self._await_answer(self._daemon)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """Its TCP port."""
        assert self._port is not None
        return self._port.number

    @property
    def process_group(self) -> int:
        """Number of the group that all of its processes are in, and nothing else."""
        assert self._daemon is not None
        return self._daemon.process.pid

    def url(self, **options: object) -> str:
        """The proxy's URL.

        Args:
            **options: The URL's query.
        """
        query = f"?{urlencode(options)}" if options else ""
        return f"socks5h://{self.host}:{self.port}{query}"

    def log(self) -> str:
        """What Dante has logged so far."""
        path = self._directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def connections(self) -> int:
        """How many CONNECT requests it has granted so far, which it logs before it answers them."""
        return len(re.findall(r"info: pass\(\d+\): tcp/connect \[", self.log()))

    def associations(self) -> int:
        """How many UDP ASSOCIATE requests it has granted so far, which it logs before it answers them."""
        return len(re.findall(r"info: pass\(\d+\): udp/udpassociate \[", self.log()))

    def stop(self) -> None:
        """End it, and every connection it relays. Without effect if it does not run."""
        if self._daemon is not None:
            self._daemon.stop()
            self._daemon = None
        if self._port is not None:
            self._port.release()
            self._port = None
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None

    @property
    def _directory(self) -> Path:
        assert self._watchdog is not None
        return self._watchdog.directory

    def _launch(self, watchdog: Watchdog) -> Daemon:
        configuration = self._directory / "sockd.conf"
        configuration.write_text(self._configuration())
        # TMPDIR: where its processes keep the memory they share.
        env = {**os.environ, **self._realm.env, "TMPDIR": str(self._directory)}
        command = [
            str(prefix() / "sbin" / "sockd"),
            "-f",
            str(configuration),
            "-p",
            str(self._directory / "sockd.number"),
        ]
        with open(self._directory / "output", "wb") as output:
            return Daemon(watchdog, "sockd", command, env=env, stdout=output, stderr=subprocess.STDOUT)

    def _configuration(self) -> str:
        user = pwd.getpwuid(os.getuid()).pw_name
        method = "gssapi" if self.enctype else "none"
        return f"""
logoutput: {self._directory / "log"}
debug: {self._debug}
internal: 127.0.0.1 port = {self.port}
internal: ::1 port = {self.port}
external: 127.0.0.1
external: ::1
{"external.rotation: same-same" if self._same_same else ""}
user.privileged: {user}
user.unprivileged: {user}
clientmethod: none
socksmethod: {method}
{self._buffer_sizes()}
client pass {{
    from: 0/0 to: 0/0
    {self._terms()}
    {"clientcompatibility: necgssapi" if self._nec else ""}
    log: connect disconnect error
}}
socks pass {{
    from: 0/0 to: 0/0
    command: bind connect udpassociate
    {self._terms()}
    log: connect disconnect error
}}
socks pass {{
    from: 0/0 to: 0/0
    command: {"bindreply " if self._bind_replies else ""}udpreply
    log: connect disconnect error
}}
"""

    def _buffer_sizes(self) -> str:
        if self._buffer_size is None:
            return ""
        return "\n".join(
            f"{side}.socket.{option}: {self._buffer_size}"
            for side in ("internal", "external")
            for option in ("so_sndbuf", "so_rcvbuf")
        )

    def _terms(self) -> str:
        if self.enctype is None:
            return ""
        keytab = f"gssapi.keytab: FILE:{self._realm.keytab}"
        return f"{keytab}\n    gssapi.servicename: socks\n    gssapi.enctype: {self.enctype}"

    def _await_answer(self, daemon: Daemon) -> None:
        deadline = time.monotonic() + _START_LIMIT_SECONDS
        while not all(self._answers(family, address) for family, address in _ADDRESSES):
            if not daemon.running() or time.monotonic() > deadline:
                output = (self._directory / "output").read_text(errors="replace")
                raise RuntimeError(f"sockd did not start:\n{output}\n{self.log()}")
            time.sleep(0.02)

    def _answers(self, family: int, address: str) -> bool:
        method = _GSSAPI if self.enctype else _NO_AUTHENTICATION
        probe = _socket.socket(family, _socket.SOCK_STREAM)
        try:
            probe.settimeout(_START_LIMIT_SECONDS)
            probe.connect((address, self.port))
            probe.send(bytes([5, 1, method]))
            return probe.recv(2) == bytes([5, method])
        except OSError:
            return False
        finally:
            probe.close()


_ADDRESSES = ((_socket.AF_INET, "127.0.0.1"), (_socket.AF_INET6, "::1"))


@cache
def prefix() -> Path:
    """Where Dante is installed: GSSSOCKS_DANTE, or else what `build-dante` prints, which may build it first.

    Raises:
        RuntimeError: It is not there.
    """
    given = os.environ.get("GSSSOCKS_DANTE")
    if given:
        found = Path(given)
    else:
        built = subprocess.run(
            [Path(__file__).with_name("build-dante")], stdout=subprocess.PIPE, text=True, check=False
        )
        found = Path(built.stdout.strip() or "/nonexistent")
    if not (found / "sbin" / "sockd").exists():
        raise RuntimeError(f"no Dante in {found}: tests/run installs what it takes to build it, and builds it")
    return found
