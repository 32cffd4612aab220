"""TLS inside a tunnel is the TLS of a plain socket: `ssl.SSLSocket` with all it can do, and all it refuses."""

from __future__ import annotations

import datetime as dt
import hashlib
import select
import socket
import ssl
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Callable, TypeVar

import pytest

import gsssocks
from tests.peers.host import PATIENCE_SECONDS, Host, received_until_end
from tests.peers.targets import octets
from tests.peers.tls import LayeredTLS, is_nothing_but_tls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    import trustme

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante
    from tests.peers.routes import SameAsPlain

    Connect = Callable[..., ssl.SSLSocket]
    FailingAlike = Callable[..., type[BaseException]]
    Conversation = Callable[..., AbstractContextManager[tuple[Host[Any], ssl.SSLSocket]]]

T = TypeVar("T")

MEBIBYTE = 1 << 20
SHORT_SECONDS = 0.1
"""A timeout that a test waits for."""
SECRET = b"the secret that must never be seen on the wire"


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS1.2", "TLS1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    chosen: ssl.TLSVersion = request.param
    return chosen


@pytest.fixture(scope="module")
def certificate(trust: trustme.CA) -> trustme.LeafCert:
    return trust.issue_cert("localhost", "127.0.0.1")


def serving(certificate: trustme.LeafCert, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return restricted(context, version)


def trusting(trust: trustme.CA | None, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if trust is not None:
        trust.configure_trust(context)
    return restricted(context, version)


def restricted(context: ssl.SSLContext, version: ssl.TLSVersion | None) -> ssl.SSLContext:
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


@pytest.fixture
def server_context(certificate: trustme.LeafCert, version: ssl.TLSVersion) -> ssl.SSLContext:
    return serving(certificate, version)


@pytest.fixture
def client_context(trust: trustme.CA, version: ssl.TLSVersion) -> ssl.SSLContext:
    return trusting(trust, version)


def wrapped_after_connecting(context: ssl.SSLContext, address: tuple[str, int], **options: Any) -> ssl.SSLSocket:
    with socket.create_connection(address, PATIENCE_SECONDS) as plain:
        return context.wrap_socket(plain, **options)


def wrapped_before_connecting(context: ssl.SSLContext, address: tuple[str, int], **options: Any) -> ssl.SSLSocket:
    with socket.socket() as plain:
        plain.settimeout(PATIENCE_SECONDS)
        encrypted = context.wrap_socket(plain, **options)
    try:
        encrypted.connect(address)
    except BaseException:
        encrypted.close()
        raise
    return encrypted


@pytest.fixture(params=[wrapped_after_connecting, wrapped_before_connecting], ids=["after", "before"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Connects by `context, address, **options`, and wraps before or after that."""
    chosen: Connect = request.param
    return chosen


def tls_host(context: ssl.SSLContext, script: Callable[[ssl.SSLSocket], T]) -> Host[T]:
    """A target that shakes hands first."""

    def serve(connection: socket.socket) -> T:
        with context.wrap_socket(connection, server_side=True) as encrypted:
            return script(encrypted)

    return Host(serve)


@pytest.fixture
def conversation(connect: Connect, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> Conversation:
    """Begun by `script, raw=False, **options`: gives a host and a socket connected to it, which has been wrapped with
    these options. The host shakes hands and runs the script; if raw, it leaves all to the script."""

    @contextmanager
    def begin(
        script: Callable[[Any], T], *, raw: bool = False, **options: Any
    ) -> Iterator[tuple[Host[T], ssl.SSLSocket]]:
        options = {"server_hostname": "localhost", **options}
        host = Host(script) if raw else tls_host(server_context, script)
        with host, connect(client_context, host.address, **options) as encrypted:
            yield host, encrypted

    return begin


def refused_host(context: ssl.SSLContext) -> Host[None]:
    """A target with which no handshake succeeds, or not for long."""

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(connection, server_side=True) as encrypted:
            received_until_end(encrypted)

    return Host(serve)


def echo(encrypted: ssl.SSLSocket) -> None:
    while piece := encrypted.recv(65536):
        encrypted.sendall(piece)


def nothing(encrypted: ssl.SSLSocket) -> None:
    """Shakes hands, and no more."""


def until_closed(encrypted: ssl.SSLSocket) -> None:
    """Shakes hands, and stays."""
    with suppress(OSError):
        received_until_end(encrypted)


def answer(encrypted: ssl.SSLSocket, request: bytes, size: int) -> bytes:
    """Sends a request; `size` octets of what comes back."""
    encrypted.sendall(request)
    received = b""
    while len(received) < size:
        piece = encrypted.recv(size - len(received))
        if not piece:
            break
        received += piece
    return received


def drive(encrypted: ssl.SSLSocket, operation: Callable[[], T]) -> T:
    """Repeats an operation of a socket that does not wait, as select() allows it."""
    while True:
        try:
            return operation()
        except ssl.SSLWantReadError:
            assert select.select([encrypted], [], [], PATIENCE_SECONDS)[0], "never became readable"
        except ssl.SSLWantWriteError:
            assert select.select([], [encrypted], [], PATIENCE_SECONDS)[1], "never became writable"


@pytest.mark.usefixtures("through_dante")
class TestHandshake:
    def test_gives_an_ssl_socket_of_the_version_agreed_on(
        self, conversation: Conversation, version: ssl.TLSVersion
    ) -> None:
        with conversation(echo) as (_, encrypted):
            assert isinstance(encrypted, ssl.SSLSocket)
            assert encrypted.version() == version.name.replace("_", ".")
            assert answer(encrypted, b"hello", 5) == b"hello"

    def test_peer_is_the_target_and_not_the_proxy(self, conversation: Conversation) -> None:
        with conversation(nothing) as (host, encrypted):
            assert encrypted.getpeername() == host.address

    def test_server_hears_the_name(self, conversation: Conversation, server_context: ssl.SSLContext) -> None:
        names: list[str | None] = []
        server_context.sni_callback = lambda _socket, name, _context: names.append(name)
        with conversation(nothing) as (_, encrypted):
            assert encrypted.server_hostname == "localhost"
        assert names == ["localhost"]

    def test_protocol_is_agreed_on_by_alpn(
        self, conversation: Conversation, server_context: ssl.SSLContext, client_context: ssl.SSLContext
    ) -> None:
        server_context.set_alpn_protocols(["spdy", "http/1.1"])
        client_context.set_alpn_protocols(["h2", "http/1.1"])
        with conversation(ssl.SSLSocket.selected_alpn_protocol) as (host, encrypted):
            assert encrypted.selected_alpn_protocol() == "http/1.1"
            assert host.result() == "http/1.1"

    def test_server_sees_the_clients_certificate(
        self,
        conversation: Conversation,
        trust: trustme.CA,
        server_context: ssl.SSLContext,
        client_context: ssl.SSLContext,
    ) -> None:
        trust.issue_cert("alice@example.com").configure_cert(client_context)
        server_context.verify_mode = ssl.CERT_REQUIRED
        trust.configure_trust(server_context)

        def name_the_client(encrypted: ssl.SSLSocket) -> object:
            certificate = encrypted.getpeercert()
            assert certificate
            return certificate["subjectAltName"]

        with conversation(name_the_client) as (host, encrypted):
            assert encrypted.recv(1) == b""
            assert host.result() == (("email", "alice@example.com"),)

    def test_client_certificate_may_be_asked_for_later(self, trust: trustme.CA, certificate: trustme.LeafCert) -> None:
        server = serving(certificate, ssl.TLSVersion.TLSv1_3)
        client = trusting(trust, ssl.TLSVersion.TLSv1_3)
        trust.issue_cert("alice@example.com").configure_cert(client)
        client.post_handshake_auth = True
        server.post_handshake_auth = True
        server.verify_mode = ssl.CERT_REQUIRED
        trust.configure_trust(server)

        def ask(encrypted: ssl.SSLSocket) -> bool:
            assert not encrypted.getpeercert()
            encrypted.verify_client_post_handshake()
            encrypted.sendall(b"?")
            assert encrypted.recv(1) == b"!"
            return bool(encrypted.getpeercert())

        options: dict[str, Any] = {"server_hostname": "localhost"}
        with tls_host(server, ask) as host, wrapped_after_connecting(client, host.address, **options) as encrypted:
            assert encrypted.recv(1) == b"?"
            encrypted.sendall(b"!")
            assert host.result()

    def test_waits_for_do_handshake_where_it_was_asked_to(self, conversation: Conversation) -> None:
        with conversation(echo, do_handshake_on_connect=False) as (_, encrypted):
            assert encrypted.version() is None
            encrypted.do_handshake()
            assert encrypted.version() is not None
            assert answer(encrypted, b"hello", 5) == b"hello"

    def test_begins_with_the_first_write(self, conversation: Conversation) -> None:
        with conversation(echo, do_handshake_on_connect=False) as (_, encrypted):
            assert answer(encrypted, b"hello", 5) == b"hello"

    def test_never_waits_on_a_socket_that_does_not(
        self, conversation: Conversation, server_context: ssl.SSLContext
    ) -> None:
        asked = threading.Event()

        def serve(connection: socket.socket) -> None:
            assert asked.wait(PATIENCE_SECONDS)
            with server_context.wrap_socket(connection, server_side=True) as encrypted:
                echo(encrypted)

        with conversation(serve, raw=True, do_handshake_on_connect=False) as (_, encrypted):
            encrypted.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                encrypted.do_handshake()
            asked.set()
            drive(encrypted, encrypted.do_handshake)
            assert drive(encrypted, lambda: encrypted.send(b"hello")) == 5
            assert drive(encrypted, lambda: encrypted.recv(5)) == b"hello"

    def test_follows_a_connect_that_does_not_wait(
        self, server_context: ssl.SSLContext, client_context: ssl.SSLContext
    ) -> None:
        options: dict[str, Any] = {"server_hostname": "localhost", "do_handshake_on_connect": False}
        with (
            tls_host(server_context, echo) as host,
            client_context.wrap_socket(socket.socket(), **options) as encrypted,
        ):
            encrypted.setblocking(False)
            encrypted.connect_ex(host.address)
            assert select.select([], [encrypted], [], PATIENCE_SECONDS)[1]
            assert encrypted.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            drive(encrypted, encrypted.do_handshake)
            encrypted.settimeout(PATIENCE_SECONDS)
            assert answer(encrypted, b"hello", 5) == b"hello"

    def test_resumes_a_session(
        self, conversation: Conversation, connect: Connect, client_context: ssl.SSLContext
    ) -> None:
        def greet(encrypted: ssl.SSLSocket) -> bool | None:
            encrypted.sendall(b"hello")
            return encrypted.session_reused

        with conversation(greet) as (host, first):
            assert first.recv(5) == b"hello"
            assert not first.session_reused
            assert host.result() is False
            options: dict[str, Any] = {"server_hostname": "localhost", "session": first.session}
            with connect(client_context, host.address, **options) as second:
                assert second.recv(5) == b"hello"
                assert second.session_reused
                assert host.result() is True

    def test_session_may_be_given_before_the_handshake(
        self, conversation: Conversation, connect: Connect, client_context: ssl.SSLContext
    ) -> None:
        with conversation(echo) as (host, first):
            assert answer(first, b"hello", 5) == b"hello"
            options: dict[str, Any] = {"server_hostname": "localhost", "do_handshake_on_connect": False}
            with connect(client_context, host.address, **options) as second:
                second.session = first.session
                second.do_handshake()
                assert second.session_reused
                assert answer(second, b"hello", 5) == b"hello"

    def test_both_ends_have_the_same_channel_binding(self, conversation: Conversation) -> None:
        with conversation(ssl.SSLSocket.get_channel_binding) as (host, encrypted):
            binding = encrypted.get_channel_binding("tls-unique")
            assert binding
            assert host.result() == binding

    def test_tunnelled_end_may_be_the_server(
        self, server_context: ssl.SSLContext, client_context: ssl.SSLContext
    ) -> None:
        def call_back(connection: socket.socket) -> bytes:
            with client_context.wrap_socket(connection, server_hostname="localhost") as encrypted:
                return received_until_end(encrypted)

        with Host(call_back) as host:
            with wrapped_after_connecting(server_context, host.address, server_side=True) as encrypted:
                encrypted.sendall(b"hello")
            assert host.result() == b"hello"

    def test_gives_the_contexts_own_class_of_socket(
        self, conversation: Conversation, client_context: ssl.SSLContext
    ) -> None:
        class Counting(ssl.SSLSocket):
            sent = 0

            def send(self, data: Any, flags: int = 0) -> int:
                self.sent += len(data)
                return super().send(data, flags)

        client_context.sslsocket_class = Counting
        with conversation(echo) as (_, encrypted):
            assert isinstance(encrypted, Counting)
            assert answer(encrypted, b"hello", 5) == b"hello"
            assert encrypted.sent == 5

    def test_outlives_uninstall_between_connecting_and_wrapping(
        self, server_context: ssl.SSLContext, client_context: ssl.SSLContext
    ) -> None:
        with tls_host(server_context, echo) as host, socket.create_connection(host.address, PATIENCE_SECONDS) as plain:
            gsssocks.uninstall()
            with client_context.wrap_socket(plain, server_hostname="localhost") as encrypted:
                assert answer(encrypted, b"hello", 5) == b"hello"


class TestWhatTheConnectionSaysOfItself:
    def test_is_what_a_plain_one_says(
        self,
        same_as_plain: SameAsPlain,
        connect: Connect,
        server_context: ssl.SSLContext,
        client_context: ssl.SSLContext,
    ) -> None:
        with tls_host(server_context, until_closed) as host:

            def describe() -> dict[str, object]:
                with connect(client_context, host.address, server_hostname="localhost") as encrypted:
                    return {
                        "certificate": encrypted.getpeercert(),
                        "octets of it": encrypted.getpeercert(binary_form=True),
                        "cipher": encrypted.cipher(),
                        "compression": encrypted.compression(),
                        "version": encrypted.version(),
                        "protocol": encrypted.selected_alpn_protocol(),
                        "name": encrypted.server_hostname,
                        "side": encrypted.server_side,
                        "context": encrypted.context is client_context,
                        "pending": encrypted.pending(),
                        "timeout": encrypted.gettimeout(),
                        "peer": encrypted.getpeername(),
                        "class": (type(encrypted).__name__, type(encrypted).__module__, type(encrypted).__qualname__),
                        "family": (encrypted.family, encrypted.type, encrypted.proto),
                    }

            assert same_as_plain(describe).value["certificate"]["subject"]

    @pytest.mark.parametrize(
        "call",
        [
            lambda s: s.recv(1, socket.MSG_PEEK),
            lambda s: s.recv_into(bytearray(1), 1, socket.MSG_PEEK),
            lambda s: s.send(b"x", socket.MSG_DONTWAIT),
            lambda s: s.sendall(b"x", socket.MSG_DONTWAIT),
            lambda s: s.recvfrom(1),
            lambda s: s.recvfrom_into(bytearray(1)),
            lambda s: s.sendto(b"x", ("127.0.0.1", 1)),
            lambda s: s.recvmsg(1),
            lambda s: s.recvmsg_into([bytearray(1)]),
            lambda s: s.sendmsg([b"x"]),
            lambda s: s.dup(),
            lambda s: s.connect(("127.0.0.1", 1)),
            lambda s: s.connect_ex(("127.0.0.1", 1)),
            lambda s: s.get_channel_binding("unknown"),
            lambda s: s.read(-1),
            lambda s: s.recv(-1),
            lambda s: s.recv(0),
            lambda s: s.write("text"),
            lambda s: s.send("text"),
            lambda s: s.sendall(b""),
            lambda s: s.read(10, b"not writable"),
            lambda s: setattr(s, "context", None),
            lambda s: setattr(s, "session", None),
            lambda s: s.verify_client_post_handshake(),
        ],
    )
    def test_refuses_what_a_plain_one_refuses(
        self,
        same_as_plain: SameAsPlain,
        call: Callable[[ssl.SSLSocket], object],
        trust: trustme.CA,
        certificate: trustme.LeafCert,
    ) -> None:
        with tls_host(serving(certificate), until_closed) as host:

            def refuse() -> object:
                with wrapped_after_connecting(trusting(trust), host.address, server_hostname="localhost") as encrypted:
                    return call(encrypted)

            same_as_plain(refuse)


class TestFailures:
    """Each is what a plain connection has: class, errno, text, reason and verification code."""

    @pytest.fixture
    def failing_alike(
        self, same_as_plain: SameAsPlain, connect: Connect, client_context: ssl.SSLContext
    ) -> FailingAlike:
        """The class of the exception with which both a plain and a tunnelled connection to a host fail."""

        def compare(
            host: Host[Any],
            operation: Callable[[ssl.SSLSocket], object] = lambda encrypted: encrypted.recv(1),
            *,
            context: ssl.SSLContext = client_context,
            **options: Any,
        ) -> type[BaseException]:
            def fail() -> None:
                # In TLS 1.3 the server may object when the client has finished: hence an operation in any case.
                with connect(context, host.address, **{"server_hostname": "localhost", **options}) as encrypted:
                    operation(encrypted)

            failure = same_as_plain(fail).failure
            assert failure is not None
            return failure.kind

        return compare

    def test_unknown_authority(
        self, failing_alike: FailingAlike, server_context: ssl.SSLContext, version: ssl.TLSVersion
    ) -> None:
        with refused_host(server_context) as host:
            assert failing_alike(host, context=trusting(None, version)) is ssl.SSLCertVerificationError

    def test_another_name(self, failing_alike: FailingAlike, server_context: ssl.SSLContext) -> None:
        with refused_host(server_context) as host:
            assert failing_alike(host, server_hostname="example.com") is ssl.SSLCertVerificationError

    def test_expired_certificate(self, failing_alike: FailingAlike, trust: trustme.CA) -> None:
        last_year = dt.datetime.now(dt.timezone.utc) - dt.timedelta(days=365)
        with refused_host(serving(trust.issue_cert("localhost", not_after=last_year))) as host:
            assert failing_alike(host) is ssl.SSLCertVerificationError

    def test_missing_name(
        self, same_as_plain: SameAsPlain, server_context: ssl.SSLContext, client_context: ssl.SSLContext
    ) -> None:
        with refused_host(server_context) as host:
            failure = same_as_plain(lambda: wrapped_after_connecting(client_context, host.address)).failure
        assert failure is not None
        assert failure.kind is ValueError

    def test_no_common_version(
        self, failing_alike: FailingAlike, trust: trustme.CA, certificate: trustme.LeafCert
    ) -> None:
        with refused_host(serving(certificate, ssl.TLSVersion.TLSv1_2)) as host:
            assert failing_alike(host, context=trusting(trust, ssl.TLSVersion.TLSv1_3)) is ssl.SSLError

    def test_client_certificate_required(
        self, failing_alike: FailingAlike, trust: trustme.CA, server_context: ssl.SSLContext
    ) -> None:
        server_context.verify_mode = ssl.CERT_REQUIRED
        trust.configure_trust(server_context)
        with refused_host(server_context) as host:
            assert failing_alike(host) is ssl.SSLError

    def test_peer_that_speaks_no_tls(self, failing_alike: FailingAlike) -> None:
        def speak_http(connection: socket.socket) -> None:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        with Host(speak_http) as host:
            assert failing_alike(host) is ssl.SSLError

    def test_peer_that_hangs_up_during_the_handshake(self, failing_alike: FailingAlike) -> None:
        with Host(lambda connection: connection.recv(65536)) as host:
            # Python 3.9 has another subclass for it.
            assert issubclass(failing_alike(host), ssl.SSLError)

    def test_end_without_close_notify(
        self,
        same_as_plain: SameAsPlain,
        connect: Connect,
        server_context: ssl.SSLContext,
        client_context: ssl.SSLContext,
    ) -> None:
        options: dict[str, Any] = {"server_hostname": "localhost", "suppress_ragged_eofs": False}
        with tls_host(server_context, nothing) as host:

            def read() -> bytes:
                with connect(client_context, host.address, **options) as encrypted:
                    return encrypted.recv(1)

            end = same_as_plain(read)
        # Python 3.9 and early releases of 3.11 ask OpenSSL 3 not to notice it; an older OpenSSL has no such option.
        ignored = client_context.options & getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
        assert end.value == b"" if ignored else end.failure is not None

    def test_damaged_record(self, failing_alike: FailingAlike, server_context: ssl.SSLContext) -> None:
        def damage(encrypted: ssl.SSLSocket) -> None:
            encrypted.recv(1)
            with socket.socket(fileno=encrypted.detach()) as below:
                below.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
                below.settimeout(PATIENCE_SECONDS)
                received_until_end(below)

        def read(encrypted: ssl.SSLSocket) -> None:
            encrypted.sendall(b"x")
            encrypted.recv(1)

        with tls_host(server_context, damage) as host:
            assert failing_alike(host, read) is ssl.SSLError

    def test_handshake_that_takes_too_long(self, same_as_plain: SameAsPlain, client_context: ssl.SSLContext) -> None:
        with Host(received_until_end) as host:

            def give_up() -> None:
                with socket.create_connection(host.address, PATIENCE_SECONDS) as plain:
                    plain.settimeout(SHORT_SECONDS)
                    client_context.wrap_socket(plain, server_hostname="localhost")

            failure = same_as_plain(give_up).failure
        assert failure is not None
        assert failure.kind is socket.timeout

    def test_read_that_takes_too_long(self, failing_alike: FailingAlike, server_context: ssl.SSLContext) -> None:
        def give_up(encrypted: ssl.SSLSocket) -> None:
            encrypted.settimeout(SHORT_SECONDS)
            encrypted.recv(1)

        with tls_host(server_context, until_closed) as host:
            assert failing_alike(host, give_up) is socket.timeout

    @pytest.mark.parametrize(
        "operation", [lambda s: s.sendall(bytes(64 * MEBIBYTE)), ssl.SSLSocket.unwrap], ids=["write", "unwrap"]
    )
    def test_peer_that_does_not_read(
        self,
        failing_alike: FailingAlike,
        server_context: ssl.SSLContext,
        operation: Callable[[ssl.SSLSocket], object],
    ) -> None:
        given_up = threading.Semaphore(0)

        def give_up(encrypted: ssl.SSLSocket) -> None:
            encrypted.settimeout(SHORT_SECONDS)
            try:
                operation(encrypted)
            finally:
                given_up.release()

        with tls_host(server_context, lambda _: given_up.acquire(timeout=PATIENCE_SECONDS)) as host:
            assert failing_alike(host, give_up) is socket.timeout


@pytest.mark.usefixtures("through_dante")
class TestData:
    @pytest.fixture
    def encrypted(self, conversation: Conversation) -> Iterator[ssl.SSLSocket]:
        """Connected to an echo."""
        with conversation(echo) as (_, connected):
            yield connected

    def test_read_leaves_the_rest_of_a_record_pending(self, encrypted: ssl.SSLSocket) -> None:
        encrypted.sendall(octets(100))
        assert encrypted.recv(10) == octets(10)
        assert encrypted.pending() == 90
        assert encrypted.recv(1000) == octets(90, 10)
        assert encrypted.pending() == 0

    def test_read_and_write(self, encrypted: ssl.SSLSocket) -> None:
        assert encrypted.write(b"hello") == 5
        assert encrypted.read(100) == b"hello"

    def test_read_into_a_buffer(self, encrypted: ssl.SSLSocket) -> None:
        encrypted.sendall(b"hello")
        buffer = bytearray(b"-" * 8)
        count: Any = encrypted.read(3, buffer)
        assert count == 3
        assert encrypted.recv_into(memoryview(buffer)[3:]) == 2
        assert buffer == b"hello---"

    def test_makefile_reads_and_writes(self, encrypted: ssl.SSLSocket) -> None:
        with encrypted.makefile("rwb") as file:
            file.write(b"first\nsecond\n")
            file.flush()
            assert file.readline() == b"first\n"
            assert file.readline() == b"second\n"

    def test_text_file_reads_and_writes(self, encrypted: ssl.SSLSocket) -> None:
        with encrypted.makefile("rw", encoding="utf-8", newline="\n") as file:
            file.write("grüße\n")
            file.flush()
            assert file.readline() == "grüße\n"

    def test_file_is_sent(self, encrypted: ssl.SSLSocket, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_bytes(octets(200_000))
        sent: list[int | None] = []
        with open(path, "rb") as file:
            sender = threading.Thread(target=lambda: sent.append(encrypted.sendfile(file, 1000)))
            sender.start()
            received = b""
            while len(received) < 199_000:
                received += encrypted.recv(65536)
            sender.join()
        assert sent == [199_000]
        assert received == octets(199_000, 1000)

    def test_select_tells_of_each_record(self, encrypted: ssl.SSLSocket) -> None:
        for number in range(20):
            encrypted.sendall(b"%06d" % number)
            received = b""
            while len(received) < 6:
                assert encrypted.pending() or select.select([encrypted], [], [], PATIENCE_SECONDS)[0]
                received += encrypted.recv(4)
            assert received == b"%06d" % number

    def test_goes_on_after_a_read_that_took_too_long(self, encrypted: ssl.SSLSocket) -> None:
        encrypted.settimeout(SHORT_SECONDS)
        with pytest.raises(socket.timeout):
            encrypted.recv(1)
        encrypted.settimeout(PATIENCE_SECONDS)
        assert answer(encrypted, b"hello", 5) == b"hello"

    def test_one_thread_reads_while_another_writes(self, encrypted: ssl.SSLSocket) -> None:
        size = 16 * MEBIBYTE
        data = octets(size)
        writer = threading.Thread(target=encrypted.sendall, args=(data,))
        writer.start()
        digest, received = hashlib.sha256(), 0
        while received < size:
            piece = encrypted.recv(65536)
            assert piece
            digest.update(piece)
            received += len(piece)
        writer.join()
        assert digest.digest() == hashlib.sha256(data).digest()

    def test_reader_is_not_held_up_by_a_writer_whose_peer_wants_to_be_read_first(
        self, conversation: Conversation
    ) -> None:
        size = 32 * MEBIBYTE

        def talk_first_then_listen(encrypted: ssl.SSLSocket) -> int:
            encrypted.sendall(bytes(size))
            heard = 0
            while heard < size:
                heard += len(encrypted.recv(65536))
            encrypted.sendall(b"!")
            return heard

        with conversation(talk_first_then_listen) as (host, encrypted):
            encrypted.settimeout(PATIENCE_SECONDS)
            writer = threading.Thread(target=encrypted.sendall, args=(bytes(size),))
            writer.start()
            heard = 0
            while heard < size:
                heard += len(encrypted.recv(min(65536, size - heard)))
            writer.join()
            assert encrypted.recv(2) == b"!"
            assert host.result() == size

    def test_thread_writes_while_another_waits_for_something_to_read(self, encrypted: ssl.SSLSocket) -> None:
        heard: list[bytes] = []
        reader = threading.Thread(target=lambda: heard.append(encrypted.recv(5)))
        reader.start()
        encrypted.sendall(b"hello")
        reader.join(PATIENCE_SECONDS)
        assert heard == [b"hello"]


@pytest.mark.usefixtures("through_dante")
@pytest.mark.parametrize("buffer_size", [2048, 16384, 100_000])
def test_large_writes_on_a_socket_that_does_not_wait_arrive_whole(
    buffer_size: int, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    data = memoryview(octets(4 * MEBIBYTE))

    def digest(encrypted: ssl.SSLSocket) -> str:
        with encrypted.makefile("rb") as file:
            return hashlib.sha256(file.read(len(data))).hexdigest()

    with tls_host(server_context, digest) as host, socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size)
        plain.connect(host.address)
        with client_context.wrap_socket(plain, server_hostname="localhost") as encrypted:
            encrypted.setblocking(False)
            sent = 0
            while sent < len(data):
                rest = data[sent:]
                sent += drive(encrypted, lambda rest=rest: encrypted.send(rest))  # type: ignore[misc]
            assert host.result() == hashlib.sha256(data).hexdigest()


@pytest.mark.usefixtures("through_dante")
class TestUnwrap:
    def test_gives_back_the_tunnelled_socket_for_plain_data_both_ways(
        self, conversation: Conversation, server_context: ssl.SSLContext
    ) -> None:
        def serve(connection: socket.socket) -> bytes:
            encrypted = server_context.wrap_socket(connection, server_side=True)
            assert encrypted.recv(3) == b"TLS"
            with encrypted.unwrap() as plain:
                plain.sendall(b"plain from the target")
                return received_until_end(plain)

        with conversation(serve, raw=True) as (host, encrypted):
            encrypted.sendall(b"TLS")
            plain = encrypted.unwrap()
            assert plain.recv(100) == b"plain from the target"
            plain.sendall(b"plain to the target")
            plain.shutdown(socket.SHUT_WR)
            assert host.result() == b"plain to the target"

    def test_leaves_plain_data_that_arrived_together_with_the_end_of_tls(
        self, conversation: Conversation, server_context: ssl.SSLContext
    ) -> None:
        together = threading.Event()

        def serve(connection: socket.socket) -> None:
            tls = LayeredTLS(connection, server_context)
            tls.do_handshake()
            assert tls.recv(10) == b"go"
            connection.sendall(tls.farewell(b"last words") + b"plain")
            together.set()
            received_until_end(connection)

        with conversation(serve, raw=True) as (_, encrypted):
            encrypted.sendall(b"go")
            assert together.wait(PATIENCE_SECONDS)
            assert encrypted.recv(100) == b"last words"
            assert encrypted.unwrap().recv(100) == b"plain"

    def test_may_be_followed_by_another_handshake(
        self, conversation: Conversation, server_context: ssl.SSLContext, client_context: ssl.SSLContext
    ) -> None:
        def serve(connection: socket.socket) -> None:
            first = server_context.wrap_socket(connection, server_side=True)
            assert first.recv(5) == b"first"
            with server_context.wrap_socket(first.unwrap(), server_side=True) as second:
                echo(second)

        with conversation(serve, raw=True) as (host, first):
            first.sendall(b"first")
            with client_context.wrap_socket(first.unwrap(), server_hostname="localhost") as second:
                assert second.getpeername() == host.address
                assert answer(second, b"second", 6) == b"second"

    def test_without_waiting(self, conversation: Conversation, server_context: ssl.SSLContext) -> None:
        def serve(connection: socket.socket) -> bytes:
            encrypted = server_context.wrap_socket(connection, server_side=True)
            with encrypted.unwrap() as plain:
                return received_until_end(plain)

        with conversation(serve, raw=True) as (host, encrypted):
            encrypted.setblocking(False)
            with drive(encrypted, encrypted.unwrap) as plain:
                plain.setblocking(True)
                plain.sendall(b"plain")
            assert host.result() == b"plain"


@pytest.mark.usefixtures("through_dante")
class TestEnd:
    def test_with_close_notify_is_an_empty_read(self, conversation: Conversation) -> None:
        with conversation(lambda encrypted: encrypted.unwrap().close(), suppress_ragged_eofs=False) as (_, encrypted):
            assert encrypted.recv(1) == b""
            encrypted.unwrap()

    def test_without_close_notify_is_an_empty_read_where_that_is_accepted(self, conversation: Conversation) -> None:
        with conversation(nothing, suppress_ragged_eofs=True) as (_, encrypted):
            assert encrypted.recv(1) == b""

    def test_close_reaches_the_target(self, conversation: Conversation) -> None:
        def greet_and_listen(connection: socket.socket) -> bytes:
            connection.sendall(b"x")
            return received_until_end(connection)

        with conversation(greet_and_listen) as (host, encrypted):
            # Also takes the session tickets of TLS 1.3: left unread, they would turn the close into a reset.
            assert encrypted.recv(1) == b"x"
            encrypted.close()
            assert host.result() == b""


def _shut_reading(encrypted: ssl.SSLSocket) -> None:
    encrypted.shutdown(socket.SHUT_RD)


def _shut_writing(encrypted: ssl.SSLSocket) -> None:
    encrypted.shutdown(socket.SHUT_WR)


def _shut_both(encrypted: ssl.SSLSocket) -> None:
    encrypted.shutdown(socket.SHUT_RDWR)


def _fail_to_unwrap(encrypted: ssl.SSLSocket) -> None:
    encrypted.settimeout(SHORT_SECONDS)
    with pytest.raises(socket.timeout):
        encrypted.unwrap()


ENDINGS = [_shut_reading, _shut_writing, _shut_both, _fail_to_unwrap]

WAYS_TO_SEND: list[Callable[[ssl.SSLSocket], object]] = [
    lambda s: s.send(SECRET),
    lambda s: s.sendall(SECRET),
    lambda s: s.write(SECRET),
    lambda s: s.sendto(SECRET, ("127.0.0.1", 1)),
    lambda s: s.sendmsg([SECRET]),  # type: ignore[arg-type]
    lambda s: s.makefile("wb", buffering=0).write(SECRET),
]


@pytest.mark.usefixtures("through_dante")
class TestNeverPlaintext:
    """A plain `ssl.SSLSocket` sends plaintext after shutdown(SHUT_RD). Not so here: the target's own record is looked
    at."""

    @pytest.fixture
    def recorder(self, server_context: ssl.SSLContext) -> Callable[[socket.socket], bytes]:
        """A script that shakes hands if it comes to that, and then writes down what arrives, octet by octet."""
        # Tickets would stay unread: to close a connection then resets it, and what was sent may be lost.
        server_context.num_tickets = 0

        def record(connection: socket.socket) -> bytes:
            tls = LayeredTLS(connection, server_context)
            with suppress(ssl.SSLError):
                tls.do_handshake()
            return tls.hear_until_end()

        return record

    @pytest.mark.parametrize("end", ENDINGS)
    @pytest.mark.parametrize("send", WAYS_TO_SEND)
    def test_after_the_end_of_tls(
        self,
        conversation: Conversation,
        recorder: Callable[[socket.socket], bytes],
        end: Callable[[ssl.SSLSocket], None],
        send: Callable[[ssl.SSLSocket], object],
    ) -> None:
        with conversation(recorder, raw=True) as (host, encrypted):
            end(encrypted)
            with suppress(OSError, ValueError, NotImplementedError):
                send(encrypted)
            encrypted.close()
            heard = host.result()
        assert SECRET not in heard
        assert is_nothing_but_tls(heard)

    def test_refusal_says_why(self, conversation: Conversation) -> None:
        with conversation(until_closed) as (_, encrypted):
            encrypted.shutdown(socket.SHUT_RD)
            with pytest.raises(BrokenPipeError, match="TLS has ended"):
                encrypted.send(SECRET)

    @pytest.mark.parametrize("send", WAYS_TO_SEND)
    def test_after_a_failed_handshake(
        self, conversation: Conversation, send: Callable[[ssl.SSLSocket], object]
    ) -> None:
        def object_and_record(connection: socket.socket) -> bytes:
            hello = connection.recv(65536)
            connection.sendall(b"noTLS")  # as long as a record's header: nothing stays unread, which would reset
            return hello + received_until_end(connection)

        with conversation(object_and_record, raw=True, do_handshake_on_connect=False) as (host, encrypted):
            with pytest.raises(ssl.SSLError):
                encrypted.do_handshake()
            with suppress(OSError, ValueError, NotImplementedError):
                send(encrypted)
            encrypted.close()
            heard = host.result()
        assert SECRET not in heard
        assert is_nothing_but_tls(heard)

    @pytest.mark.parametrize("send", WAYS_TO_SEND)
    def test_before_the_handshake(
        self,
        conversation: Conversation,
        recorder: Callable[[socket.socket], bytes],
        send: Callable[[ssl.SSLSocket], object],
    ) -> None:
        with conversation(recorder, raw=True, do_handshake_on_connect=False) as (host, encrypted):
            with suppress(OSError, ValueError, NotImplementedError):
                send(encrypted)
            encrypted.close()
            heard = host.result()
        assert SECRET not in heard
        assert is_nothing_but_tls(heard)


@pytest.mark.usefixtures("through_dante")
def test_tls_carries_another_tls(
    conversation: Conversation, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    def serve(outer: ssl.SSLSocket) -> str:
        inner = LayeredTLS(outer, server_context)
        inner.do_handshake()
        inner.sendall(b"hello from within")
        digest = hashlib.sha256()
        while piece := inner.recv(65536):
            digest.update(piece)
        return digest.hexdigest()

    with conversation(serve) as (host, outer):
        inner = LayeredTLS(outer, client_context, server_hostname="localhost")
        inner.do_handshake()
        assert inner.recv(100) == b"hello from within"
        inner.sendall(octets(MEBIBYTE))
        outer.close()
        assert host.result() == hashlib.sha256(octets(MEBIBYTE)).hexdigest()


@pytest.mark.usefixtures("through_dante")
def test_urllib3_carries_tls_in_tls(
    conversation: Conversation, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    from urllib3.util.ssltransport import SSLTransport

    def serve(outer: ssl.SSLSocket) -> None:
        inner = LayeredTLS(outer, server_context)
        inner.do_handshake()
        while piece := inner.recv(65536):
            inner.sendall(piece)

    with conversation(serve) as (_, outer):
        inner = SSLTransport(outer, client_context, server_hostname="localhost")
        inner.sendall(b"hello")
        assert inner.recv(100) == b"hello"


class TestWithoutPatch:
    """A `GSSSocket` given to `SSLContext.wrap_socket` in a program that has installed nothing."""

    @pytest.fixture
    def plain(
        self, realm: Realm, dante_confidentiality: Dante, server_context: ssl.SSLContext
    ) -> Iterator[gsssocks.GSSSocket]:
        """Connected to an echo over TLS."""
        url = dante_confidentiality.url()
        with tls_host(server_context, echo) as host, realm.activate():
            connected = gsssocks.create_connection(host.address, PATIENCE_SECONDS, proxy=url)
            with connected:
                yield connected

    def test_works(self, plain: gsssocks.GSSSocket, client_context: ssl.SSLContext) -> None:
        with client_context.wrap_socket(plain, server_hostname="localhost") as encrypted:
            assert isinstance(encrypted, ssl.SSLSocket)
            assert answer(encrypted, octets(50_000), 50_000) == octets(50_000)

    def test_keeps_timeout(self, plain: gsssocks.GSSSocket, client_context: ssl.SSLContext) -> None:
        with client_context.wrap_socket(plain, server_hostname="localhost") as encrypted:
            assert encrypted.gettimeout() == PATIENCE_SECONDS
            encrypted.settimeout(SHORT_SECONDS)
            with pytest.raises(socket.timeout):
                encrypted.recv(1)

    def test_ends_with_unwrap(
        self,
        realm: Realm,
        dante_confidentiality: Dante,
        server_context: ssl.SSLContext,
        client_context: ssl.SSLContext,
    ) -> None:
        def serve(connection: socket.socket) -> bytes:
            with server_context.wrap_socket(connection, server_side=True).unwrap() as plain:
                return received_until_end(plain)

        with Host(serve) as host, realm.activate():
            plain = gsssocks.create_connection(host.address, PATIENCE_SECONDS, proxy=dante_confidentiality.url())
            with client_context.wrap_socket(plain, server_hostname="localhost").unwrap() as unwrapped:
                unwrapped.sendall(b"plain")
            assert host.result() == b"plain"
