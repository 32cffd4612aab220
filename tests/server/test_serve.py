"""`gsssocks serve`, run as an operator or systemd runs it: in processes of its own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks._protocol import Address
from gsssocks.server import Session
from gsssocks.server._log import line
from gsssocks.server._rules import Ruleset
from gsssocks.server._settings import DEFAULT_RULES, OPTIONS, ServiceSettings
from tests.peers.by_hand import LIMIT, Target, received

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gsssocks.testing import Realm
    from tests.peers.targets import EchoServer

pytestmark = pytest.mark.default_python_only

ROOT = Path(__file__).parents[2]
ANYWHERE = "127.0.0.1:0"
EVERYTHING = ("--rule", "allow")

# Listens, and becomes the service, as systemd makes it: the socket at descriptor 3.
ACTIVATE = """
import os, socket, sys
kind = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}[sys.argv[1]]
sock = socket.socket(socket.AF_INET, kind)
sock.bind(("127.0.0.1", 0))
if sys.argv[2] == "listen":
    sock.listen()
print(sock.getsockname()[1], flush=True)
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid() + int(sys.argv[3])), LISTEN_FDS=sys.argv[4])
os.execv(sys.executable, [sys.executable, "-m", "gsssocks", "serve", *sys.argv[5:]])
"""


class Service:
    """A service that runs, and what it writes to standard error."""

    def __init__(self, process: subprocess.Popen[str], output: Path) -> None:
        self.process = process
        self._output = output

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def status(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(LIMIT)

    def log(self) -> str:
        return self._output.read_text()

    def sessions(self) -> list[str]:
        """The lines that tell of sessions."""
        return [text for text in self.log().splitlines() if "client=" in text]

    @property
    def port(self) -> int:
        found = re.search(r"listening on [\d.]+:(\d+)", self.log())
        assert found
        return int(found[1])

    def url(self, protection: str) -> str:
        return f"socks5h://localhost:{self.port}?protection={protection}"


class Readiness:
    """The socket on which a service says how it is."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.settimeout(LIMIT)

    def __enter__(self) -> Readiness:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def next(self) -> list[str]:
        return self._socket.recv(4096).decode().splitlines()


@contextmanager
def running(
    directory: Path, *arguments: str, before: tuple[str, ...] = (), where: str = "notify", **env: str
) -> Iterator[tuple[Service, Readiness]]:
    """A service that has said that it is ready."""
    address = where if where.startswith("@") else str(directory / where)
    with Readiness(address.replace("@", "\0")) as readiness, open(directory / "output", "w") as output:
        command = [sys.executable, "-m", "gsssocks", "serve", *arguments]
        process = subprocess.Popen(
            [*before, *arguments] if before else command,
            cwd=ROOT,
            env={**os.environ, "NOTIFY_SOCKET": address, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
        service = Service(process, directory / "output")
        try:
            with process:
                ready = readiness.next()
                assert ready[0] == "READY=1", service.log()
                yield service, readiness
                process.kill()
        except BaseException:
            process.kill()
            raise


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gsssocks", "serve", *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def through(service: Service, target: tuple[str, int], protection: str = "confidentiality") -> gsssocks.GSSSocket:
    return gsssocks.create_connection(target, LIMIT, proxy=service.url(protection))


class TestService:
    def test_serves_and_stops(self, tmp_path: Path, echo: EchoServer) -> None:
        with running(tmp_path, "--listen", ANYWHERE, *EVERYTHING) as (service, readiness):
            with through(service, echo.address) as client:
                client.sendall(b"data")
                assert client.recv(4) == b"data"
            service.signal()
            assert readiness.next() == ["STOPPING=1"]
            assert service.status() == 0
            assert service.log().endswith("stopped\n")

    def test_its_log_has_a_line_for_each_session(self, tmp_path: Path, echo: EchoServer) -> None:
        with running(tmp_path, "--listen", ANYWHERE, *EVERYTHING) as (service, _):
            with through(service, echo.address, protection="integrity") as client:
                client.sendall(b"data")
                assert client.recv(4) == b"data"
            service.signal()
            assert service.status() == 0
            (told,) = service.sessions()
        told = re.sub(r"client=127\.0\.0\.1:\d+", "client=C", told)
        assert told.endswith(
            "INFO gsssocks.server: client=C principal=alice@GSSSOCKS.TEST command=connect "
            f"destination=127.0.0.1:{echo.address[1]} level=integrity reply=0 received=4 sent=4"
        )

    def test_its_log_says_why_a_session_failed(self, tmp_path: Path, echo: EchoServer) -> None:
        with running(tmp_path, "--listen", ANYWHERE) as (service, _):
            with pytest.raises(PermissionError):
                through(service, echo.address)
            service.signal()
            assert service.status() == 0
            (told,) = service.sessions()
        assert "reply=2" in told
        assert "the rule 'deny to=@self,0.0.0.0/8,127.0.0.0/8" in told

    def test_in_the_journal_there_is_no_time(self, tmp_path: Path) -> None:
        with running(tmp_path, "--listen", ANYWHERE, JOURNAL_STREAM="8:1") as (service, _):
            assert service.log().startswith("INFO gsssocks.server: listening on 127.0.0.1:")

    def test_listens_on_several_addresses(self, tmp_path: Path) -> None:
        with running(tmp_path, "--listen", "127.0.0.1:0, [::1]:0, 127.0.0.2:0") as (service, _):
            (told,) = re.findall("listening on (.*)", service.log())
            addresses = re.findall(r"([\d.:]+\d)\]?:(\d+)", told)
            assert [host for host, _ in addresses] == ["127.0.0.1", "::1", "127.0.0.2"]
            for host, port in addresses:
                with socket.create_connection((host, int(port)), LIMIT) as client:
                    client.sendall(b"\x05\x01\x01")
                    assert client.recv(2) == b"\x05\x01"

    def test_a_file(self, tmp_path: Path, realm: Realm, echo: EchoServer) -> None:
        config = tmp_path / "config"
        config.write_text(
            f"""
# What the service does.
[server]
listen = 127.0.0.1:1
keytab = {realm.keytab}
levels = integrity
counter_offer = no

[rules]
nobody else's = deny to={echo.address[0]}:1
ours = allow principal=*@GSSSOCKS.TEST to=127.0.0.0/8
"""
        )
        # The command line is stronger.
        with running(tmp_path, "--config", str(config), "--listen", ANYWHERE) as (service, _):
            through(service, echo.address, protection="integrity").close()
            with pytest.raises(gsssocks.ProtectionError):
                through(service, echo.address)
            with pytest.raises(PermissionError):
                through(service, (echo.address[0], 1), protection="integrity")

    def test_a_notification_to_an_abstract_address(self, tmp_path: Path) -> None:
        with running(tmp_path, "--listen", ANYWHERE, where=f"@gsssocks-{os.getpid()}") as (service, readiness):
            service.signal()
            assert readiness.next() == ["STOPPING=1"]

    def test_a_notification_to_nobody_is_no_failure(self, tmp_path: Path) -> None:
        with running(tmp_path, "--listen", ANYWHERE) as (service, readiness):
            readiness.__exit__()
            service.signal()
            assert service.status() == 0
            assert "cannot notify NOTIFY_SOCKET" in service.log()


class TestStop:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_sessions_may_end_by_themselves(self, tmp_path: Path, echo: EchoServer, number: signal.Signals) -> None:
        with running(tmp_path, "--listen", ANYWHERE, "--grace", "60", *EVERYTHING) as (service, readiness):
            port = service.port
            with through(service, echo.address) as client:
                service.signal(number)
                assert readiness.next() == ["STOPPING=1"]
                until_refused(port)
                client.sendall(b"data")
                assert client.recv(4) == b"data"
            assert service.status() == 0
            # Until nobody listened any more, `until_refused` may have been let in: those sessions have no command.
            (told,) = [session for session in service.sessions() if "command=connect" in session]
            assert "error=" not in told

    def test_a_signal_that_it_was_told_to_ignore_is_ignored(self, tmp_path: Path) -> None:
        nohup = ("nohup", sys.executable, "-m", "gsssocks", "serve")
        with running(tmp_path, "--listen", ANYWHERE, before=nohup) as (service, _):
            service.signal(signal.SIGHUP)
            service.signal(signal.SIGTERM)
            assert service.status() == 0
            assert "SIGHUP" not in service.log()

    def test_sessions_are_reset_when_their_time_is_over(self, tmp_path: Path) -> None:
        with running(tmp_path, "--listen", ANYWHERE, "--grace", "0.2", *EVERYTHING) as (service, _), Target() as target:
            with through(service, target.address) as client, target.accept() as accepted:
                service.signal()
                assert service.status() == 0
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
                with pytest.raises(ConnectionResetError):
                    received(accepted)
            assert 'error="[Errno 125] the proxy was stopped"' in service.sessions()[0]

    def test_a_second_signal_ends_them_at_once(self, tmp_path: Path, echo: EchoServer) -> None:
        options = ("--listen", ANYWHERE, "--grace", "3600", *EVERYTHING)
        with running(tmp_path, *options) as (service, readiness), through(service, echo.address) as client:
            service.signal()
            assert readiness.next() == ["STOPPING=1"]
            service.signal()
            assert service.status() == 0
            with pytest.raises(ConnectionResetError):
                client.recv(1)

    def test_with_all_places_taken_it_listens_no_more_either(self, tmp_path: Path, echo: EchoServer) -> None:
        options = ("--listen", ANYWHERE, "--grace", "60", "--max-clients", "1", *EVERYTHING)
        with running(tmp_path, *options) as (service, readiness), through(service, echo.address) as client:
            port = service.port
            service.signal()
            assert readiness.next() == ["STOPPING=1"]
            until_refused(port)
            client.close()
            assert service.status() == 0

    def test_in_a_process_of_its_own_from_another_thread(self, echo: EchoServer) -> None:
        """A second call of `stop` shortens the grace of the first."""
        with gsssocks.server.ProxyServer() as proxy:
            client = gsssocks.create_connection(echo.address, LIMIT, proxy=proxy.url())
            port = proxy.port
            stopping = threading.Thread(target=proxy.stop, args=(3600,))
            stopping.start()
            until_refused(port)
            proxy.stop()
            stopping.join(LIMIT)
            assert not stopping.is_alive()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            client.close()


def until_refused(port: int) -> None:
    """Waits until nobody listens there; who is still let in is not served."""
    while True:
        try:
            with suppress(ConnectionResetError):
                socket.create_connection(("127.0.0.1", port), LIMIT).close()
        except ConnectionRefusedError:
            return


class TestActivation:
    BEFORE = (sys.executable, "-c", ACTIVATE)

    def test_serves_on_the_socket_it_is_given(self, tmp_path: Path, echo: EchoServer) -> None:
        arguments = ("stream", "listen", "0", "1", "--listen", "127.0.0.1:1", *EVERYTHING)
        with running(tmp_path, *arguments, before=self.BEFORE) as (service, _):
            assert service.process.stdout is not None
            assert service.port == int(service.process.stdout.readline())
            through(service, echo.address).close()

    def test_a_socket_for_another_process_is_not_taken(self, tmp_path: Path) -> None:
        arguments = ("stream", "listen", "1", "1", "--listen", ANYWHERE)
        with running(tmp_path, *arguments, before=self.BEFORE) as (service, _):
            assert service.process.stdout is not None
            assert service.port != int(service.process.stdout.readline())

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("stream", "bind", "0", "1"), "the descriptor 3 is no TCP socket that listens"),
            (("datagram", "bind", "0", "1"), "the descriptor 3 is no TCP socket that listens"),
            (("stream", "listen", "0", "9"), "is no socket"),
            (("stream", "listen", "0", "some"), "LISTEN_FDS: it must be a number, not 'some'"),
        ],
    )
    def test_what_cannot_be_served_on(self, arguments: tuple[str, ...], message: str) -> None:
        done = subprocess.run(
            [*self.BEFORE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert done.returncode == 78
        assert message in done.stderr


class TestConfiguration:
    @pytest.mark.parametrize(
        ("option", "text", "message"),
        [
            ("listen", "", "listen must be one or more of address:port"),
            ("listen", "127.0.0.1:http", "bad address '127.0.0.1:http': 'http' is no port"),
            ("listen", "127.0.0.1:65536", "bad address '127.0.0.1:65536': '65536' is no port"),
            ("listen", ":1080", "bad address ':1080': it has no host"),
            ("listen", "[::1", "bad address '[::1': an IPv6 address with a port is written [address]:port"),
            ("keytab", "/nowhere", "the keytab '/nowhere' is not there or cannot be read"),
            ("keytab", "/", "the keytab '/' is not there or cannot be read"),
            ("levels", "", "levels must be one or more of none, integrity, confidentiality, selective"),
            ("levels", "integrity,secret", "unknown protection level 'secret'"),
            ("nec", "maybe", "nec must be true or false, not 'maybe'"),
            ("counter_offer", "2", "counter_offer must be true or false, not '2'"),
            ("negotiation_timeout", "soon", "negotiation_timeout must be a number of seconds, not 'soon'"),
            ("connect_timeout", "0", "connect_timeout must be a number of seconds, not '0'"),
            ("bind_timeout", "inf", "bind_timeout must be a number of seconds, not 'inf'"),
            ("grace", "nan", "grace must be a number of seconds, not 'nan'"),
            ("grace", "-1", "grace must be a number of seconds, not '-1'"),
            ("max_clients", "0", "max_clients must be a number from 1, not '0'"),
            ("max_clients", "many", "max_clients must be a number from 1, not 'many'"),
            ("log_level", "loud", "log_level must be one of debug, info, warning, error, not 'loud'"),
        ],
    )
    def test_a_value_that_is_wrong(self, tmp_path: Path, option: str, text: str, message: str) -> None:
        """It is quoted, with where it stands."""
        path = tmp_path / "config"
        path.write_text(f"[server]\n{option} = {text}\n")
        with pytest.raises(ValueError) as caught:
            ServiceSettings.load(str(path), {})
        assert str(caught.value).startswith(f"{path} [server] {option}: {message}")
        with pytest.raises(ValueError) as caught:
            ServiceSettings.load(None, {option: text})
        assert str(caught.value).startswith(f"--{option.replace('_', '-')}: {message}")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("[sever]", "unknown section 'sever'; did you mean 'server'?"),
            ("[server]\nlisten_on = x", "unknown option 'listen_on'; did you mean 'listen'?"),
            ("[server]\nlisten", "cannot read the configuration, "),
            ("listen = 127.0.0.1", "cannot read the configuration, "),
            ("[rules]\na = allow\na = deny", "cannot read the configuration, "),
            ("[rules]\nlan = permit to=10.0.0.0/8", "[rules] lan: bad rule 'permit to=10.0.0.0/8'"),
        ],
    )
    def test_a_file_that_is_wrong(self, tmp_path: Path, content: str, message: str) -> None:
        path = tmp_path / "config"
        path.write_text(content)
        with pytest.raises(ValueError) as caught:
            ServiceSettings.load(str(path), {})
        assert message in str(caught.value)
        assert str(path) in str(caught.value)

    def test_a_file_that_is_not_there(self) -> None:
        with pytest.raises(ValueError, match="cannot read the configuration, '/nowhere'"):
            ServiceSettings.load("/nowhere", {})

    def test_every_option_may_be_given_in_both_places(self, tmp_path: Path, realm: Realm) -> None:
        texts = {
            "listen": "localhost:1, [::1]:2, 127.0.0.1, ::1",
            "keytab": realm.keytab,
            "levels": "integrity, confidentiality",
            "nec": "true",
            "counter_offer": "yes",
            "negotiation_timeout": "1",
            "connect_timeout": "2.5",
            "bind_timeout": "3",
            "max_clients": "4",
            "grace": "0",
            "log_level": "warning",
        }
        assert set(texts) == set(OPTIONS)
        path = tmp_path / "config"
        path.write_text("[server]\n" + "".join(f"{name} = {text}\n" for name, text in texts.items()))
        from_file, from_arguments = ServiceSettings.load(str(path), {}), ServiceSettings.load(None, texts)
        assert from_file == from_arguments
        assert from_file.listen == [("localhost", 1), ("::1", 2), ("127.0.0.1", 1080), ("::1", 1080)]
        assert (from_file.grace, from_file.log_level) == (0, "warning")
        assert from_file.server == {
            "keytab": realm.keytab,
            "levels": ["integrity", "confidentiality"],
            "nec": True,
            "counter_offer": True,
            "negotiation_timeout": 1,
            "connect_timeout": 2.5,
            "bind_timeout": 3,
            "max_clients": 4,
            "rules": DEFAULT_RULES,
        }

    def test_rules_of_the_command_line_replace_those_of_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "config"
        path.write_text("[rules]\nfirst = deny to=10.0.0.0/8\nthen = allow\n")
        assert ServiceSettings.load(str(path), {}).server["rules"] == ["deny to=10.0.0.0/8", "allow"]
        assert ServiceSettings.load(str(path), {}, ["deny"]).server["rules"] == ["deny"]

    def test_without_rules_in_the_section_nothing_is_allowed(self, tmp_path: Path) -> None:
        path = tmp_path / "config"
        path.write_text("[rules]\n")
        assert ServiceSettings.load(str(path), {}).server["rules"] == []

    @pytest.mark.parametrize(
        ("host", "allowed"),
        [
            ("198.51.100.7", True),
            ("10.0.0.1", True),
            ("2001:db8::1", True),
            ("127.0.0.1", False),
            ("127.255.255.255", False),
            ("0.0.0.0", False),
            ("::", False),
            ("::1", False),
            ("::ffff:127.0.0.1", False),
            ("169.254.169.254", False),
            ("fe80::1", False),
        ],
    )
    def test_the_default_rules(self, host: str, *, allowed: bool) -> None:
        permission = Ruleset(DEFAULT_RULES).concerning("alice@GSSSOCKS.TEST", 1)
        try:
            permission.check(Address("www.example.com", 80), host)
        except PermissionError:
            assert not allowed
        else:
            assert allowed

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--grace", "soon"), "gsssocks serve: --grace: grace must be a number of seconds, not 'soon'\n"),
            (("--rule", "allow to=a/b"), "gsssocks serve: --rule: bad rule 'allow to=a/b': bad destination 'a/b'"),
            (("--config", "/nowhere"), "gsssocks serve: cannot read the configuration, '/nowhere'"),
        ],
    )
    def test_wrong_ones_end_it_with_78(self, arguments: tuple[str, ...], message: str) -> None:
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (78, "")
        assert done.stderr.startswith(message)
        assert done.stderr.count("\n") == 1

    def test_a_keytab_without_keys_ends_it_with_78(self, tmp_path: Path) -> None:
        (tmp_path / "keytab").write_bytes(b"")
        done = run("--listen", ANYWHERE, "--keytab", str(tmp_path / "keytab"))
        assert done.returncode == 78
        said = f"gsssocks serve: no key to accept clients with in the keytab '{tmp_path}/keytab':"
        assert done.stderr.startswith(said)

    def test_without_a_default_keytab_it_warns(self, tmp_path: Path) -> None:
        with running(tmp_path, "--listen", ANYWHERE, KRB5_KTNAME="FILE:/nowhere") as (service, _):
            assert "WARNING gsssocks.server: no client can come by Kerberos: no key to accept clients" in service.log()

    def test_a_port_in_use_ends_it_with_1_and_is_named(self) -> None:
        with Target() as target:
            where = "{}:{}".format(*target.address)
            done = run("--listen", f"{ANYWHERE},{where}")
        assert (done.returncode, done.stderr) == (
            1,
            f"gsssocks serve: cannot listen: {where}: Address already in use\n",
        )

    def test_a_name_that_nobody_knows_ends_it_with_1_and_is_named(self) -> None:
        done = run("--listen", "unknown.invalid:1080")
        assert done.returncode == 1
        assert done.stderr.startswith("gsssocks serve: cannot listen: unknown.invalid:1080: ")


class TestLine:
    def test_values_that_would_begin_another_line_are_quoted(self) -> None:
        session = Session(Address("192.0.2.1", 5))
        session.principal = 'a b"c@X'
        session.destination = Address("a\nclient=forged", 80)
        session.error = OSError(5, "ü")
        assert line(session) == (
            'client=192.0.2.1:5 principal="a b\\"c@X" destination="a\\nclient=forged:80" received=0 sent=0 '
            'error="[Errno 5] \\u00fc"'
        )

    def test_datagrams_that_were_dropped_are_counted(self) -> None:
        session = Session(Address("192.0.2.1", 5))
        session.dropped.update({"forged": 2, "fragment": 1})
        assert line(session) == "client=192.0.2.1:5 received=0 sent=0 dropped=3"
