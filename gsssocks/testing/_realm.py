"""A private MIT Kerberos realm."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k5test.realm import MITRealm

from gsssocks.testing._daemon import Daemon, Watchdog
from gsssocks.testing._loopback import ReservedPort

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

_PACKAGES = "krb5-kdc krb5-admin-server krb5-user"
_VARIABLES = ("KRB5_CONFIG", "KRB5_KDC_PROFILE", "KRB5CCNAME", "KRB5_KTNAME", "KRB5_CLIENT_KTNAME", "KRB5RCACHEDIR")
_EXPIRY_LIMIT_SECONDS = 30.0

_Profile = dict[str, dict[str, Any]]


class RealmError(RuntimeError):
    """The private realm could not be started or used; the message holds what the Kerberos program said."""


class Realm:
    """A private Kerberos realm: a KDC on the loopback interface, one user with a ticket and one service with a keytab.

    Everything it writes is in one private directory. That goes, and the KDC with it, with `stop` or when the process
    ends, also by SIGKILL. Any number of realms can be up at once. Before its start, a realm only tells its names.

    Args:
        user: First part of the user's principal.
        service: First part of the service's principal.
        host: Second part of the service's principal.
        name: The realm's name.
        ticket_lifetime: How long tickets live, in the notation of krb5.conf ("1h", "90s").
        clock_skew_seconds: How far the clocks of the two sides may differ, which also is how long after its end a
            service still takes a ticket.
    """

    def __init__(
        self,
        *,
        user: str = "alice",
        service: str = "socks",
        host: str = "localhost",
        name: str = "GSSSOCKS.TEST",
        ticket_lifetime: str = "1h",
        clock_skew_seconds: int = 300,
    ) -> None:
        self.name = name
        self.ticket_lifetime = ticket_lifetime
        self.principal = f"{user}@{name}"
        self.service_principal = f"{service}/{host}@{name}"
        self.password = secrets.token_hex(8)
        self._clock_skew_seconds = clock_skew_seconds
        self._passwords: dict[str, str] = {}
        self._watchdog: Watchdog | None = None
        self._port: ReservedPort | None = None
        self._kdc: Daemon | None = None
        self._kerberos: _Kerberos | None = None

    def __enter__(self) -> Realm:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def directory(self) -> Path:
        """The private directory."""
        if self._watchdog is None:
            raise RealmError(f"the realm {self.name} is not started")
        return self._watchdog.directory

    @property
    def env(self) -> Mapping[str, str]:
        """The variables that make a process live in this realm: those named KRB5..., and nothing else."""
        return dict(self._running().env)

    @property
    def ccache(self) -> str:
        """Path of the credential cache of `env`; after the start it holds a fresh ticket of the user."""
        return str(self.directory / "ccache")

    @property
    def keytab(self) -> str:
        """Path of the keytab with the keys of every service."""
        return str(self.directory / "keytab")

    @property
    def client_keytab(self) -> str:
        """Path of a keytab with the user's keys.

        `env` does not point to it, for with KRB5_CLIENT_KTNAME the user would get a new ticket whenever one is missing.
        """
        return str(self.directory / "user.keytab")

    @property
    def port(self) -> int:
        """The KDC's TCP port."""
        if self._port is None:
            raise RealmError(f"the realm {self.name} is not started")
        return self._port.number

    def start(self) -> None:
        """Create the realm, start its KDC and get the user a ticket.

        Raises:
            RealmError: A Kerberos program is not installed, or failed.
        """
        if self._watchdog is not None:
            raise RealmError(f"the realm {self.name} is started already")
        self._watchdog = Watchdog("gsssocks-realm-")
        try:
            self._port = ReservedPort("127.0.0.1")
            self._populate(self._watchdog.directory, self._port.number)
            self.start_kdc()
            self.kinit()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the KDC and remove everything. Without effect if nothing is started."""
        self.stop_kdc()
        self._kerberos = None
        if self._port is not None:
            self._port.release()
            self._port = None
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None

    def start_kdc(self) -> None:
        """Start the KDC, again on the same port, and return when it answers. Without effect if it runs.

        Raises:
            RealmError: It did not start.
        """
        if self._kdc is not None:
            return
        kerberos = self._running()
        assert self._watchdog is not None
        command = [kerberos.krb5kdc, "-n"]
        self._kdc = Daemon(
            self._watchdog, "kdc", command, env=kerberos.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said = _read_until(self._kdc, b"starting...")
        if said is not None:
            self.stop_kdc()
            raise RealmError(f"krb5kdc did not start: {said}\n{self.kdc_log()}")

    def stop_kdc(self) -> None:
        """End the KDC; tickets stay as they are. Without effect if it does not run."""
        if self._kdc is None:
            return
        self._kdc.stop()
        self._kdc = None

    def kdc_log(self) -> str:
        """What the KDC has logged: among others, one line for each ticket it was asked for."""
        log = self.directory / "kdc.log"
        return log.read_text() if log.exists() else ""

    def add_service(self, principal: str) -> str:
        """Add a service, and its key to `keytab`.

        Args:
            principal: For example "socks/proxy.example"; the realm may be left out.

        Returns:
            The full principal.

        Raises:
            RealmError: It exists already.
        """
        principal = self._full(principal)
        self._running().addprinc(principal)
        self._running().extract_keytab(principal, self.keytab)
        return principal

    def add_user(self, user: str, password: str | None = None) -> str:
        """Add a user.

        Args:
            user: Principal; the realm may be left out.
            password: Without it, a random one, which `kinit` knows.

        Returns:
            The full principal.

        Raises:
            RealmError: It exists already.
        """
        principal = self._full(user)
        password = password or secrets.token_hex(8)
        self._running().addprinc(principal, password)
        self._passwords[principal] = password
        return principal

    def kinit(
        self,
        user: str | None = None,
        *,
        password: str | None = None,
        lifetime: str | None = None,
        ccache: str | os.PathLike[str] | None = None,
    ) -> str:
        """Get a ticket, in place of whatever the credential cache holds.

        Args:
            user: Principal, the realm may be left out. Without it, the realm's user.
            password: Without it, the one the realm gave the user.
            lifetime: For example "10m". Without it, `ticket_lifetime`.
            ccache: Path of the credential cache. Without it, `ccache`.

        Returns:
            The path of the credential cache.

        Raises:
            RealmError: The KDC did not give a ticket.
        """
        principal = self._full(user) if user else self.principal
        target = os.fspath(ccache or self.ccache)
        flags = ["-c", f"FILE:{target}", "-l", lifetime or self.ticket_lifetime]
        self._running().kinit(principal, password or self._passwords[principal], flags)
        return target

    def kinit_expired(self, *, ccache: str | os.PathLike[str] | None = None) -> str:
        """Get the user a real ticket of one second, and return when it has ended.

        Args:
            ccache: Path of the credential cache. Without it, `ccache`.

        Returns:
            The path of the credential cache.

        Raises:
            RealmError: The KDC did not give a ticket, or it did not end.
        """
        target = self.kinit(lifetime="1s", ccache=ccache)
        deadline = time.monotonic() + _EXPIRY_LIMIT_SECONDS
        while self._running().holds_ticket(target):
            if time.monotonic() > deadline:
                raise RealmError(f"the ticket in {target} does not end")
            time.sleep(0.05)
        # Kerberos counts in whole seconds, its programs differ over whether a ticket is good in its very last one, and
        # they read a clock that is some milliseconds behind this one.
        last = int(time.time())
        while time.time() < last + 1.1:
            time.sleep(0.05)
        return target

    def kdestroy(self, *, ccache: str | os.PathLike[str] | None = None) -> None:
        """Remove a credential cache, if it exists.

        Args:
            ccache: Its path. Without it, `ccache`.
        """
        target = os.fspath(ccache or self.ccache)
        if Path(target).exists():
            self._running().destroy(target)

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """Have this process live in the realm: put `env` into `os.environ`, and afterwards exactly what was there."""
        before = {name: os.environ.get(name) for name in _VARIABLES}
        os.environ.update(self.env)
        try:
            yield
        finally:
            for name, value in before.items():
                _restore(name, value)

    def _populate(self, directory: Path, port: int) -> None:
        self._kerberos = _Kerberos(directory, self._settings(port))
        self._kerberos.create_kdb()
        self.add_user(self.principal, self.password)
        self._kerberos.extract_keytab(self.principal, self.client_keytab)
        self.add_service(self.service_principal)

    def _settings(self, port: int) -> tuple[_Profile, _Profile]:
        address = f"127.0.0.1:{port}"
        krb5_conf: _Profile = {
            "libdefaults": {
                "default_realm": self.name,
                # A realm on the loopback interface asks no name server for anything.
                "dns_lookup_realm": "false",
                "dns_lookup_kdc": "false",
                "dns_canonicalize_hostname": "false",
                "rdns": "false",
                # The search domain of the machine's resolver would otherwise be appended to "localhost".
                "qualify_shortname": '""',
                # TCP: a KDC that is down is then noticed at once, where a datagram would be repeated.
                "udp_preference_limit": "1",
                # The KDC has this machine's clock. A deviation is found nevertheless where the second turns between
                # request and answer, and would move the end of the ticket.
                "kdc_timesync": "0",
                "ticket_lifetime": self.ticket_lifetime,
                "clockskew": str(self._clock_skew_seconds),
            },
            "realms": {self.name: {"kdc": address}},
        }
        kdc_conf: _Profile = {
            "realms": {
                self.name: {
                    "database_name": "$tmpdir/db",
                    "key_stash_file": "$tmpdir/stash",
                    "acl_file": "$tmpdir/acl",
                    "kdc_listen": '""',
                    "kdc_tcp_listen": address,
                }
            },
            "logging": {"kdc": "FILE:$tmpdir/kdc.log", "default": "FILE:$tmpdir/others.log"},
        }
        return krb5_conf, kdc_conf

    def _running(self) -> _Kerberos:
        if self._kerberos is None:
            raise RealmError(f"the realm {self.name} is not started")
        return self._kerberos

    def _full(self, principal: str) -> str:
        return principal if "@" in principal else f"{principal}@{self.name}"


class _Kerberos(MITRealm):  # type: ignore[misc]  # k5test ships no types
    """k5test's realm in a directory that is there already, whose programs say why they failed."""

    # k5test's own asks the resolver for this machine's name.
    hostname = "localhost"
    env: dict[str, str]

    def __init__(self, directory: Path, settings: tuple[_Profile, _Profile]) -> None:
        (name,) = settings[0]["realms"]
        super().__init__(realm=name, existing=str(directory), get_creds=False)
        self.env = {variable: self.env[variable] for variable in _VARIABLES}
        self.env["KRB5CCNAME"] = f"FILE:{self.ccache}"
        # Not k5test's defaults: for the second file it searches the disk for a directory that the KDC knows by itself.
        self._create_conf(settings[0], self.env["KRB5_CONFIG"])
        self._create_conf(settings[1], self.env["KRB5_KDC_PROFILE"])
        missing = [path for path in self._programs() if not os.access(path, os.X_OK)]
        if missing:
            raise RealmError(f"{', '.join(missing)} not found; the Debian packages to install are {_PACKAGES}")

    def run(
        self,
        args: Sequence[str],
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - k5test's name
        expected_code: int = 0,
    ) -> bytes:
        done = subprocess.run(
            args,
            env=self.env if env is None else env,
            input=(input or "").encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode != expected_code:
            raise RealmError(f"{Path(args[0]).name} failed: {done.stdout.decode(errors='replace').strip()}")
        return done.stdout

    def run_kadminl(self, query: str | Sequence[str], **keywords: Any) -> bytes:
        # k5test passes it to -q, with which kadmin.local succeeds whatever the outcome.
        words = shlex.split(query) if isinstance(query, str) else query
        return self.run([self.kadmin_local, *words], **keywords)

    def holds_ticket(self, ccache: str) -> bool:
        command = [self._klist, "-s", "-c", f"FILE:{ccache}"]
        return subprocess.run(command, env=self.env, check=False).returncode == 0

    def destroy(self, ccache: str) -> None:
        self.run([str(Path(self._kinit).with_name("kdestroy")), "-q", "-c", f"FILE:{ccache}"])

    def _programs(self) -> Sequence[str]:
        return (self.kdb5_util, self.krb5kdc, self.kadmin_local, self._kinit, self._klist)


def _read_until(daemon: Daemon, sign: bytes) -> str | None:
    """Wait for a line of the daemon's output; what it said instead, if it ended before."""
    assert daemon.process.stdout is not None
    said = b""
    for line in daemon.process.stdout:
        if sign in line:
            return None
        said += line
    return said.decode(errors="replace").strip()


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
