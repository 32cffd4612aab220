"""A session with a `GSSSocksAdapter` is a `requests.Session`, but for its way out; and nothing else is changed."""

from __future__ import annotations

import errno
import gc
import hashlib
import io
import pickle
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Callable

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

import gsssocks
from gsssocks.adapters.requests import GSSSocksAdapter
from gsssocks.adapters.urllib3 import GSSSocksPoolManager
from tests.peers.host import PATIENCE_SECONDS, Host
from tests.peers.targets import HTTPServer, octets

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trustme

    from gsssocks.testing import Realm
    from tests.peers.dante import Dante
    from tests.peers.targets import HTTPSServer

pytestmark = pytest.mark.default_python_only

ROOT = Path(__file__).parents[1]
MEBIBYTE = 1 << 20
SHORT_SECONDS = 0.2
"""A timeout that a test waits for."""


@pytest.fixture(autouse=True)
def environment(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """alice's ticket, and nothing that requests would take from the machine's own environment."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with realm.activate():
        yield


@pytest.fixture(scope="module")
def bundle(trust: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("trust") / "bundle.pem"
    trust.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture(scope="module")
def http_server() -> Iterator[HTTPServer]:
    with HTTPServer() as started:
        yield started


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest) -> HTTPServer:
    """A target without TLS and one with, one after the other."""
    started: HTTPServer = request.getfixturevalue(f"{request.param}_server")
    return started


def url_of(dante: Dante, **options: Any) -> str:
    return dante.url(protection=dante.enctype, **options)


@contextmanager
def mounted(proxy: str, bundle: str | None = None, **options: Any) -> Iterator[requests.Session]:
    """A session all of whose requests go through `proxy`."""
    with requests.Session() as session:
        adapter = GSSSocksAdapter(proxy, **options)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        if bundle:
            session.verify = bundle
        yield session


@pytest.fixture
def session(dante: Dante, bundle: str) -> Iterator[requests.Session]:
    with mounted(url_of(dante), bundle) as opened:
        yield opened


@pytest.fixture
def proxy_url(dante_confidentiality: Dante) -> str:
    return dante_confidentiality.url()


@pytest.fixture
def silent_proxy() -> Iterator[str]:
    """The URL of a proxy that can be connected to, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        yield f"socks5h://localhost:{silent.getsockname()[1]}"


class Answers:
    """A script for `Host`: each request, over whichever connection, gets the next answer.

    Args:
        answers: octets; None hangs up instead. An answer that is less than was announced lets the client wait.
        context: for TLS.

    Attributes:
        requests: the requests so far, as they came.
    """

    def __init__(self, *answers: bytes | None, context: ssl.SSLContext | None = None) -> None:
        self._answers = iter(answers)
        self._context = context
        self.requests: list[bytes] = []

    def __call__(self, connection: socket.socket) -> None:
        # A client that does not like the certificate, or waits no longer, is for the test to judge.
        with suppress(ConnectionError, ssl.SSLError):
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as stream:
                self._converse(connection, stream)

    def _converse(self, connection: socket.socket, stream: BinaryIO) -> None:
        while request := read_request(stream):
            self.requests.append(request)
            answer = next(self._answers)
            if answer is None:
                return
            connection.sendall(answer)


def read_request(stream: BinaryIO) -> bytes:
    """One request with its body; no octets at the end of the stream."""
    request = b""
    while line := stream.readline():
        request += line
        if line == b"\r\n":
            break
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", request)
    return request + stream.read(int(length[1]) if length else 0)


def answer(status: str, body: bytes = b"", **fields: str) -> bytes:
    header = "".join(f"{name}: {value}\r\n" for name, value in {"Content-Length": str(len(body)), **fields}.items())
    return f"HTTP/1.1 {status}\r\n{header}\r\n".encode() + body


OK = answer("200 OK", b"fine")
LAST = answer("200 OK", b"fine", Connection="close")
"""For a connection that urllib3 keeps open until the garbage of its retries is collected."""


def http_url(host: Host[Any]) -> str:
    return f"http://localhost:{host.address[1]}/"


def https_url(host: Host[Any]) -> str:
    return f"https://localhost:{host.address[1]}/"


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ours(error: BaseException) -> gsssocks.ProxyError:
    """The error of this package that is behind one of requests' or urllib3's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, gsssocks.ProxyError):
            return cause
        cause = cause.__cause__ or cause.__context__
    raise error


class TestRequests:
    def test_get_and_post(self, session: requests.Session, dante: Dante, server: HTTPServer) -> None:
        granted = dante.connections()
        fields = session.get(server.url("/headers"), headers={"X-Asked": "so"}).json()
        assert fields["X-Asked"] == "so"
        assert fields["Host"] == f"localhost:{server.address[1]}"
        body = octets(3 * MEBIBYTE + 1)
        assert session.post(server.url("/digest"), data=body).text == hashlib.sha256(body).hexdigest()
        assert session.get(server.url("/nowhere")).status_code == 404
        assert dante.connections() == granted + 1

    @pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
    def test_addresses(self, session: requests.Session, dante: Dante, server: HTTPServer, host: str) -> None:
        granted = dante.connections()
        assert session.get(server.url("/bytes/1000", host=host)).content == octets(1000)
        assert dante.connections() == granted + 1

    def test_prepared_request(self, session: requests.Session, server: HTTPServer) -> None:
        request = session.prepare_request(requests.Request("PUT", server.url("/digest"), data=b"put"))
        assert session.send(request).text == hashlib.sha256(b"put").hexdigest()

    def test_from_many_threads(self, dante: Dante, bundle: str, server: HTTPServer) -> None:
        granted = dante.connections()

        def fetch(size: int) -> bytes:
            return opened.get(server.url(f"/bytes/{size}")).content

        sizes = range(100_000, 100_040)
        with mounted(url_of(dante), bundle) as opened, ThreadPoolExecutor(8) as threads:
            assert all(map(bytes.__eq__, threads.map(fetch, sizes), map(octets, sizes)))
        assert 1 <= dante.connections() - granted <= 8

    def test_proxy_object_or_environment(
        self, dante_confidentiality: Dante, http_server: HTTPServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        granted = dante_confidentiality.connections()
        proxy = gsssocks.Proxy.from_url(dante_confidentiality.url())
        monkeypatch.setenv("GSSSOCKS_PROXY", dante_confidentiality.url())
        for adapter in (GSSSocksAdapter(proxy), GSSSocksAdapter()):
            assert adapter.socks_proxies == (proxy,)
            with requests.Session() as session:
                session.mount("http://", adapter)
                assert session.get(http_server.url("/headers")).ok
        assert dante_confidentiality.connections() == granted + 2

    def test_wrong_proxy_is_said_at_once(self) -> None:
        with pytest.raises(ValueError, match="ftp://proxy"):
            GSSSocksAdapter("ftp://proxy")
        with pytest.raises(ValueError, match="GSSSOCKS_PROXY"):
            GSSSocksAdapter()

    def test_session_can_be_pickled(self, dante_confidentiality: Dante, http_server: HTTPServer) -> None:
        granted = dante_confidentiality.connections()
        with (
            mounted(dante_confidentiality.url(), pool_maxsize=3) as original,
            pickle.loads(pickle.dumps(original)) as copy,
        ):
            assert copy.get(http_server.url("/headers")).ok
        assert dante_confidentiality.connections() == granted + 1


RESOLVING = """
import sys

import gsssocks

asked = []

def note(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        asked.append(arguments[0])
    # A GSSSocket's own event is about the connection through the proxy, which nothing here looks up.
    if event == "socket.connect" and not isinstance(arguments[0], gsssocks.GSSSocket):
        asked.append(arguments[1][0])

sys.addaudithook(note)

import requests
from gsssocks.adapters.requests import GSSSocksAdapter

with requests.Session() as session:
    session.mount("http://", GSSSocksAdapter(sys.argv[1]))
    assert session.get(sys.argv[2]).ok
print(*asked)
"""


class TestNames:
    def resolved(self, dante: Dante, server: HTTPServer, scheme: str) -> list[str]:
        """What a process, that fetches http://localhost through a proxy given by its address, looks up or connects
        to."""
        proxy = f"{scheme}://127.0.0.1:{dante.port}?target_name=socks@localhost"
        done = subprocess.run(
            [sys.executable, "-c", RESOLVING, proxy, server.url("/headers")],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=ROOT,
        )
        return done.stdout.split()

    def test_socks5h_leaves_them_to_the_proxy(self, dante_confidentiality: Dante, http_server: HTTPServer) -> None:
        assert set(self.resolved(dante_confidentiality, http_server, "socks5h")) == {"127.0.0.1"}

    def test_socks5_resolves_them_here(self, dante_confidentiality: Dante, http_server: HTTPServer) -> None:
        assert "localhost" in self.resolved(dante_confidentiality, http_server, "socks5")


class TestPooling:
    def test_connection_is_used_again(
        self, dante_confidentiality: Dante, bundle: str, http_server: HTTPServer, https_server: HTTPSServer
    ) -> None:
        granted = dante_confidentiality.connections()
        with mounted(dante_confidentiality.url(), bundle) as session:
            for size in range(20):
                assert session.get(http_server.url(f"/bytes/{size}")).content == octets(size)
                assert session.get(https_server.url(f"/bytes/{size}")).content == octets(size)
        assert dante_confidentiality.connections() == granted + 2

    def test_only_after_the_body_has_been_read(self, dante_confidentiality: Dante, http_server: HTTPServer) -> None:
        granted = dante_confidentiality.connections()
        with mounted(dante_confidentiality.url()) as session:
            first = session.get(http_server.url("/bytes/100000"), stream=True)
            assert session.get(http_server.url("/bytes/1")).ok
            assert dante_confidentiality.connections() == granted + 2
            assert first.content == octets(100000)

    def test_full_pool_can_block(self, dante_confidentiality: Dante, http_server: HTTPServer) -> None:
        granted = dante_confidentiality.connections()
        with (
            mounted(dante_confidentiality.url(), pool_maxsize=1, pool_block=True) as session,
            ThreadPoolExecutor(4) as threads,
        ):
            answers = threads.map(lambda _: session.get(http_server.url("/bytes/10")).content, range(12))
            assert set(answers) == {octets(10)}
        assert dante_confidentiality.connections() == granted + 1

    def test_connection_that_ended_meanwhile_is_not(self, proxy_url: str, dante_confidentiality: Dante) -> None:
        def answer_once(connection: socket.socket) -> None:
            with connection.makefile("rb") as stream:
                read_request(stream)
            connection.sendall(OK)

        granted = dante_confidentiality.connections()
        with Host(answer_once) as host, mounted(proxy_url) as session:
            adapter = session.get_adapter(http_url(host))
            assert isinstance(adapter, GSSSocksAdapter)
            assert session.get(http_url(host)).text == "fine"
            [key] = adapter.poolmanager.pools.keys()
            idle = adapter.poolmanager.pools[key].pool.queue[-1]
            until(lambda: not idle.is_connected)
            assert session.get(http_url(host)).text == "fine"
        assert dante_confidentiality.connections() == granted + 2

    def test_closed_session_closes_its_connections(self, proxy_url: str) -> None:
        with Host(Answers(OK)) as host:
            with mounted(proxy_url) as session:
                session.get(http_url(host))
            host.result()


class TestRetries:
    def test_none_by_default(self, proxy_url: str) -> None:
        answers = Answers(None)
        with (
            Host(answers) as host,
            mounted(proxy_url) as session,
            pytest.raises(requests.ConnectionError, match="without response"),
        ):
            session.get(http_url(host))
        assert len(answers.requests) == 1

    def test_after_a_lost_connection(self, proxy_url: str, dante_confidentiality: Dante) -> None:
        granted = dante_confidentiality.connections()
        answers = Answers(None, None, LAST)
        with Host(answers) as host, mounted(proxy_url, max_retries=Retry(2)) as session:
            assert session.get(http_url(host)).text == "fine"
        assert dante_confidentiality.connections() == granted + 3

    def test_after_a_status_with_the_body_once_more(self, proxy_url: str) -> None:
        answers = Answers(answer("503 Busy"), LAST)
        retries = Retry(1, status_forcelist=[503], allowed_methods=None)
        with Host(answers) as host, mounted(proxy_url, max_retries=retries) as session:
            assert session.post(http_url(host), data=io.BytesIO(b"body")).text == "fine"
        assert [request[-4:] for request in answers.requests] == [b"body", b"body"]

    def test_of_a_proxy_that_fails(self) -> None:
        visits = []
        with Host(lambda connection: visits.append(connection.recv(1))) as no_proxy:
            url = f"socks5h://localhost:{no_proxy.address[1]}"
            with mounted(url, max_retries=2) as session, pytest.raises(requests.exceptions.ProxyError):
                session.post("http://localhost/", data="never sent")
        assert visits == [b"\x05"] * 3


class TestTimeouts:
    @pytest.mark.parametrize("timeout", [SHORT_SECONDS, (PATIENCE_SECONDS, SHORT_SECONDS)])
    def test_while_waiting_for_the_response(self, proxy_url: str, timeout: float | tuple[float, float]) -> None:
        with (
            Host(Answers(b"")) as host,
            mounted(proxy_url) as session,
            pytest.raises(requests.ReadTimeout),
            within_limits(),
        ):
            session.get(http_url(host), timeout=timeout)

    def test_while_waiting_for_the_response_with_tls(self, proxy_url: str, trust: trustme.CA, bundle: str) -> None:
        answers = Answers(b"", context=serving(trust.issue_cert("localhost")))
        with (
            Host(answers) as host,
            mounted(proxy_url, bundle) as session,
            pytest.raises(requests.ReadTimeout),
            within_limits(),
        ):
            session.get(https_url(host), timeout=(PATIENCE_SECONDS, SHORT_SECONDS))

    def test_amid_the_body(self, proxy_url: str) -> None:
        half = answer("200 OK", octets(1000))[:-500]
        with Host(Answers(half)) as host, mounted(proxy_url) as session:
            response = session.get(http_url(host), timeout=SHORT_SECONDS, stream=True)
            pieces = response.iter_content(500)
            assert next(pieces) == octets(500)
            with pytest.raises(requests.ConnectionError, match="timed out"), within_limits():
                next(pieces)

    def test_while_connecting(self, silent_proxy: str) -> None:
        with (
            mounted(silent_proxy) as session,
            pytest.raises(requests.ConnectTimeout, match="timed out") as caught,
            within_limits(),
        ):
            session.get("http://localhost/", timeout=(SHORT_SECONDS, PATIENCE_SECONDS))
        assert isinstance(ours(caught.value), gsssocks.ProxyConnectionError)
        assert isinstance(ours(caught.value), socket.timeout)

    def test_of_the_proxy_holds_without_one_of_the_request(self, silent_proxy: str) -> None:
        with (
            mounted(f"{silent_proxy}?timeout={SHORT_SECONDS}") as session,
            pytest.raises(requests.ConnectTimeout),
            within_limits(),
        ):
            session.get("http://localhost/")


@contextmanager
def within_limits() -> Iterator[None]:
    """Not before `SHORT_SECONDS` are over, and not much later."""
    begun = time.monotonic()
    try:
        yield
    finally:
        assert SHORT_SECONDS * 0.9 < time.monotonic() - begun < PATIENCE_SECONDS / 3


class TestTLS:
    def test_unknown_authority_is_refused(self, proxy_url: str, https_server: HTTPSServer) -> None:
        with mounted(proxy_url) as session, pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY"):
            session.get(https_server.url("/headers"))

    def test_certificate_for_another_name_is_refused(self, proxy_url: str, trust: trustme.CA, bundle: str) -> None:
        answers = Answers(OK, context=serving(trust.issue_cert("other.example")))
        with (
            Host(answers) as host,
            mounted(proxy_url, bundle) as session,
            pytest.raises(requests.exceptions.SSLError, match="localhost"),
        ):
            session.get(https_url(host))
        assert not answers.requests

    def test_verification_can_be_turned_off(self, proxy_url: str, https_server: HTTPSServer) -> None:
        with mounted(proxy_url) as session, pytest.warns(urllib3.exceptions.InsecureRequestWarning):
            assert session.get(https_server.url("/headers"), verify=False).ok

    def test_client_certificate(self, proxy_url: str, trust: trustme.CA, bundle: str, tmp_path: Path) -> None:
        context = serving(trust.issue_cert("localhost"))
        context.verify_mode = ssl.CERT_REQUIRED
        trust.configure_trust(context)
        combined = tmp_path / "alice.pem"
        trust.issue_cert("alice.example").private_key_and_cert_chain_pem.write_to_path(str(combined))
        with Host(Answers(LAST, context=context)) as host, mounted(proxy_url, bundle) as session:
            with pytest.raises(requests.ConnectionError):
                session.get(https_url(host))
            assert session.get(https_url(host), cert=str(combined)).text == "fine"

    def test_needs_no_relay(self, proxy_url: str, bundle: str, https_server: HTTPSServer) -> None:
        before = set(threading.enumerate())
        with (
            mounted(proxy_url, bundle) as session,
            session.get(https_server.url("/bytes/10000000"), stream=True) as response,
        ):
            assert response.raw.read(1) == octets(1)
            new = [thread.name for thread in set(threading.enumerate()) - before]
        assert not [name for name in new if name.startswith("gsssocks")]


class TestStreaming:
    def test_download(self, session: requests.Session, server: HTTPServer) -> None:
        size = 8 * MEBIBYTE + 1
        digest = hashlib.sha256()
        with session.get(server.url(f"/bytes/{size}"), stream=True) as response:
            for piece in response.iter_content(100_000):
                digest.update(piece)
        assert digest.digest() == hashlib.sha256(octets(size)).digest()

    def test_download_arrives_as_it_is_sent(self, proxy_url: str) -> None:
        seen = threading.Event()

        def serve(connection: socket.socket) -> bool:
            with connection.makefile("rb") as stream:
                read_request(stream)
            connection.sendall(answer("200 OK", b"first second")[: -len(b" second")])
            was_seen = seen.wait(PATIENCE_SECONDS)
            connection.sendall(b" second")
            return was_seen

        with Host(serve) as host, mounted(proxy_url) as session:
            pieces = session.get(http_url(host), stream=True).iter_content(5)
            assert next(pieces) == b"first"
            seen.set()
            assert b"".join(pieces) == b" second"
            assert host.result()

    def test_download_can_be_left(self, proxy_url: str, bundle: str, server: HTTPServer) -> None:
        with mounted(proxy_url, bundle) as session:
            with session.get(server.url(f"/bytes/{64 * MEBIBYTE}"), stream=True) as response:
                assert response.raw.read(10) == octets(10)
            assert session.get(server.url("/bytes/10")).content == octets(10)

    def test_upload_of_a_file(self, session: requests.Session, server: HTTPServer, tmp_path: Path) -> None:
        path = tmp_path / "upload"
        path.write_bytes(octets(8 * MEBIBYTE + 1))
        with path.open("rb") as file:
            response = session.put(server.url("/digest"), data=file)
        assert response.text == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_upload_of_pieces(self, session: requests.Session, server: HTTPServer) -> None:
        pieces = [octets(size, size) for size in range(1, 100_000, 9_999)]
        response = session.post(server.url("/digest"), data=iter(pieces))
        assert response.text == hashlib.sha256(b"".join(pieces)).hexdigest()

    def test_upload_leaves_as_it_is_made(self, proxy_url: str) -> None:
        arrived = threading.Event()

        def serve(connection: socket.socket) -> None:
            with connection.makefile("rb") as stream:
                read_request(stream)
                assert stream.readline() == b"5\r\n"
                arrived.set()
                assert stream.read(len(b"first\r\n6\r\nsecond\r\n0\r\n\r\n")) == b"first\r\n6\r\nsecond\r\n0\r\n\r\n"
            connection.sendall(OK)

        def pieces() -> Iterator[bytes]:
            yield b"first"
            assert arrived.wait(PATIENCE_SECONDS)
            yield b"second"

        with Host(serve) as host, mounted(proxy_url) as session:
            assert session.post(http_url(host), data=pieces()).text == "fine"


class TestRedirects:
    def test_to_another_scheme(
        self, dante_confidentiality: Dante, bundle: str, https_server: HTTPSServer, http_server: HTTPServer
    ) -> None:
        granted = dante_confidentiality.connections()
        there = Answers(answer("302 Found", Location=https_server.url("/bytes/7")))
        back = Answers(answer("301 Moved Permanently", Location=http_server.url("/bytes/8")))
        with Host(there) as first, Host(back) as second, mounted(dante_confidentiality.url(), bundle) as session:
            assert session.get(http_url(first)).content == octets(7)
            assert session.get(http_url(second)).content == octets(8)
        assert dante_confidentiality.connections() == granted + 4

    def test_that_repeats_the_body(self, proxy_url: str, http_server: HTTPServer) -> None:
        with (
            Host(Answers(answer("307 Temporary Redirect", Location=http_server.url("/digest")))) as host,
            mounted(proxy_url) as session,
        ):
            assert session.post(http_url(host), data=b"body").text == hashlib.sha256(b"body").hexdigest()

    def test_without_end(self, proxy_url: str) -> None:
        with (
            Host(Answers(*[answer("302 Found", Location="/", Connection="close")] * 4)) as host,
            mounted(proxy_url) as session,
        ):
            session.max_redirects = 3
            with pytest.raises(requests.TooManyRedirects):
                session.get(http_url(host))


class TestThisSessionAlone:
    def test_another_one_goes_directly(self, dante_confidentiality: Dante, http_server: HTTPServer) -> None:
        granted, accepted = dante_confidentiality.connections(), http_server.accepted
        with mounted(dante_confidentiality.url()) as proxied, requests.Session() as direct:
            assert direct.get(http_server.url("/headers")).ok
            assert (dante_confidentiality.connections(), http_server.accepted) == (granted, accepted + 1)
            assert proxied.get(http_server.url("/headers")).ok
            assert (dante_confidentiality.connections(), http_server.accepted) == (granted + 1, accepted + 2)

    def test_what_another_adapter_is_mounted_for_goes_directly(
        self, dante_confidentiality: Dante, http_server: HTTPServer
    ) -> None:
        granted = dante_confidentiality.connections()
        with mounted(dante_confidentiality.url()) as session:
            session.mount("http://localhost", HTTPAdapter())
            assert session.get(http_server.url("/headers")).ok
            assert dante_confidentiality.connections() == granted
            assert session.get(http_server.url("/headers", host="127.0.0.1")).ok
        assert dante_confidentiality.connections() == granted + 1

    def test_nothing_is_installed(self, proxy_url: str, bundle: str, https_server: HTTPSServer) -> None:
        """What guards the tunnel's descriptor stands as long as the tunnel does; nothing that connects is patched."""
        gc.collect()  # tunnels of other tests that nobody refers to any more
        owners = (socket, socket.socket, ssl.SSLContext, ssl.SSLSocket)
        before = [dict(vars(owner)) for owner in owners]
        with mounted(proxy_url, bundle) as session:
            assert session.get(https_server.url("/headers")).ok
            now = [(name, found, own) for owner, own in zip(owners, before) for name, found in vars(owner).items()]
            changed = [name for name, found, own in now if found is not own.get(name)]
            assert sorted(changed) == ["__init__", "_wrap_socket", "send_fds", "sendmsg"]
        gc.collect()
        assert before == [vars(owner) for owner in owners]

    def test_what_is_installed_does_not_matter(
        self, dante_confidentiality: Dante, dante_integrity: Dante, bundle: str, server: HTTPServer
    ) -> None:
        of_process, of_session = dante_integrity.connections(), dante_confidentiality.connections()
        with (
            gsssocks.installed(dante_integrity.url(protection="integrity"), no_proxy=[]),
            mounted(dante_confidentiality.url(), bundle) as session,
        ):
            assert session.get(server.url("/headers")).ok
            assert requests.get(server.url("/headers"), verify=bundle, timeout=PATIENCE_SECONDS).ok
        assert dante_confidentiality.connections() == of_session + 1
        assert dante_integrity.connections() == of_process + 1


class TestOtherProxies:
    OTHER = "http://user:secret@other.invalid:3128"

    @pytest.fixture
    def named_by_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, self.OTHER)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    @pytest.mark.usefixtures("named_by_environment")
    def test_of_the_environment_do_not_matter(
        self, dante_confidentiality: Dante, bundle: str, server: HTTPServer
    ) -> None:
        granted = dante_confidentiality.connections()
        with mounted(dante_confidentiality.url(), bundle) as session:
            for host in ("localhost", "127.0.0.1"):
                assert session.get(server.url("/headers", host=host)).json()["Host"].startswith(host)
        assert dante_confidentiality.connections() == granted + 2

    @pytest.mark.usefixtures("named_by_environment")
    def test_their_password_is_not_given_to_the_target(self, proxy_url: str) -> None:
        answers = Answers(answer("302 Found", Location="/again"), OK)
        with Host(answers) as host, mounted(proxy_url) as session:
            assert session.get(http_url(host)).text == "fine"
        assert len(answers.requests) == 2
        assert b"proxy-authorization" not in b"".join(answers.requests).lower()

    @pytest.mark.parametrize("scheme", ["http", "https"])
    @pytest.mark.parametrize("of_session", [False, True])
    def test_asked_for_are_refused(
        self,
        dante_confidentiality: Dante,
        http_server: HTTPServer,
        scheme: str,
        of_session: bool,
    ) -> None:
        granted, accepted = dante_confidentiality.connections(), http_server.accepted
        proxies = {scheme: f"socks5h://user:hidden@127.0.0.1:{dante_confidentiality.port}"}
        url = http_server.url("/headers").replace("http", scheme, 1)
        with mounted(dante_confidentiality.url()) as session:
            if of_session:
                session.trust_env = False
                session.proxies = proxies
            with pytest.raises(requests.exceptions.InvalidProxyURL, match="proxies=") as caught:
                session.get(url, proxies=None if of_session else proxies)
        assert "hidden" not in str(caught.value)
        assert (dante_confidentiality.connections(), http_server.accepted) == (granted, accepted)


class TestErrors:
    """The proxy's fault is a `ProxyError`, the target's a `ConnectionError` that is none; both have ours behind
    them."""

    def failure(self, proxy: str, target: str = "http://localhost/") -> requests.ConnectionError:
        with mounted(proxy) as session, pytest.raises(requests.ConnectionError) as caught:
            session.get(target)
        assert str(ours(caught.value)) in str(caught.value)
        return caught.value

    def test_proxy_is_down(self, unused_port: int) -> None:
        error = self.failure(f"socks5h://localhost:{unused_port}")
        assert isinstance(error, requests.exceptions.ProxyError)
        assert isinstance(ours(error), gsssocks.ProxyConnectionError)
        assert isinstance(ours(error), ConnectionRefusedError)

    def test_proxy_has_no_address(self) -> None:
        error = self.failure("socks5h://proxy.invalid")
        assert isinstance(error, requests.exceptions.ProxyError)
        assert isinstance(ours(error), gsssocks.ProxyConnectionError)

    @pytest.mark.parametrize("option", [{"ccache": "FILE:/nonexistent"}, {"service": "unknown"}])
    def test_proxy_and_client_do_not_trust_each_other(
        self, dante_confidentiality: Dante, option: dict[str, str]
    ) -> None:
        error = self.failure(dante_confidentiality.url(**option))
        assert isinstance(error, requests.exceptions.ProxyError)
        assert isinstance(ours(error), gsssocks.AuthenticationError)

    def test_protection_is_not_granted(self, dante_integrity: Dante) -> None:
        error = self.failure(dante_integrity.url(protection="confidentiality"))
        assert isinstance(error, requests.exceptions.ProxyError)
        assert isinstance(ours(error), gsssocks.ProtectionError)

    def test_proxy_does_not_ask_for_authentication(self, dante_none: Dante) -> None:
        error = self.failure(dante_none.url())
        assert isinstance(error, requests.exceptions.ProxyError)

    def test_target_refuses(self, proxy_url: str, unused_port: int) -> None:
        error = self.failure(proxy_url, f"http://localhost:{unused_port}/")
        assert not isinstance(error, (requests.exceptions.ProxyError, requests.Timeout))
        assert isinstance(ours(error), gsssocks.ReplyError)
        assert isinstance(ours(error), ConnectionRefusedError)
        assert ours(error).errno == errno.ECONNREFUSED

    def test_target_has_no_address(self, proxy_url: str) -> None:
        error = self.failure(proxy_url, "https://target.invalid/")
        assert not isinstance(error, requests.exceptions.ProxyError)
        assert isinstance(ours(error), gsssocks.ReplyError)

    def test_target_has_no_address_here(self, proxy_url: str) -> None:
        with (
            mounted(proxy_url.replace("socks5h", "socks5")) as session,
            pytest.raises(requests.ConnectionError, match="known") as caught,
        ):
            session.get("http://target.invalid/")
        assert not isinstance(caught.value, requests.exceptions.ProxyError)


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port on both loopback addresses that refuses connections."""
    with socket.socket(socket.AF_INET6) as holder:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        holder.bind(("::", 0))
        yield holder.getsockname()[1]


class TestPoolManager:
    """What `GSSSocksAdapter` is built on, for programs that use urllib3 itself."""

    def test_request(self, dante: Dante, bundle: str, server: HTTPServer) -> None:
        granted = dante.connections()
        with GSSSocksPoolManager(url_of(dante), ca_certs=bundle) as http:
            assert http.request("GET", server.url("/bytes/100")).data == octets(100)
            assert (
                http.request("POST", server.url("/digest"), body=b"x").data == hashlib.sha256(b"x").hexdigest().encode()
            )
        assert dante.connections() == granted + 1

    def test_default_trust_is_the_systems(
        self, proxy_url: str, bundle: str, https_server: HTTPSServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", bundle)
        with GSSSocksPoolManager(proxy_url) as http:
            assert http.request("GET", https_server.url("/headers")).status == 200
        monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
        with GSSSocksPoolManager(proxy_url, retries=False) as http, pytest.raises(urllib3.exceptions.SSLError):
            http.request("GET", https_server.url("/headers"))

    def test_own_context_serves_plain_sockets_as_before(
        self, proxy_url: str, trust: trustme.CA, https_server: HTTPSServer
    ) -> None:
        context = ssl.create_default_context()
        trust.configure_trust(context)
        with GSSSocksPoolManager(proxy_url, ssl_context=context) as http:
            assert http.request("GET", https_server.url("/headers")).status == 200
        with (
            socket.create_connection(https_server.address) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            assert type(wrapped) is ssl.SSLSocket
            assert wrapped.version()

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_options_of_its_connections(
        self, proxy_url: str, bundle: str, https_server: HTTPSServer, version: ssl.TLSVersion
    ) -> None:
        with GSSSocksPoolManager(
            proxy_url,
            ca_certs=bundle,
            source_address=("127.0.0.2", 0),
            socket_options=[(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)],
            ssl_minimum_version=version,
            ssl_maximum_version=version,
        ) as http:
            connection: Any = http.connection_from_url(https_server.url())._new_conn()
            connection.connect()
            assert connection.sock.version() == version.name.replace("_", ".")
            assert connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert connection.sock.getsockname()[0] == "127.0.0.2"
            assert connection.sock.getpeername() == ("localhost", https_server.address[1])
            connection.close()

    def test_default_timeout_is_sockets_own(self, silent_proxy: str) -> None:
        socket.setdefaulttimeout(SHORT_SECONDS)
        try:
            with (
                GSSSocksPoolManager(silent_proxy, retries=False) as http,
                pytest.raises(urllib3.exceptions.ConnectTimeoutError),
                within_limits(),
            ):
                http.request("GET", "http://localhost/")
        finally:
            socket.setdefaulttimeout(None)

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_targets_fault(self, proxy_url: str, scheme: str) -> None:
        with (
            GSSSocksPoolManager(proxy_url, retries=False) as http,
            pytest.raises(urllib3.exceptions.NewConnectionError) as caught,
        ):
            http.request("GET", f"{scheme}://target.invalid/")
        assert isinstance(caught.value.__cause__, gsssocks.ReplyError)

    def test_proxys_fault(self, unused_port: int) -> None:
        with (
            GSSSocksPoolManager(f"socks5h://localhost:{unused_port}", retries=False) as http,
            pytest.raises(urllib3.exceptions.ProxyError) as caught,
        ):
            http.request("GET", "http://localhost/")
        assert isinstance(caught.value.__cause__, gsssocks.ProxyConnectionError)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # urllib3 and pyOpenSSL are not of one age
    def test_pyopenssl(self, proxy_url: str, bundle: str, https_server: HTTPSServer) -> None:
        """It reads and writes the descriptor itself, and finds a plain connection there."""
        pytest.importorskip("OpenSSL")
        pyopenssl = pytest.importorskip("urllib3.contrib.pyopenssl")
        pyopenssl.inject_into_urllib3()
        try:
            with GSSSocksPoolManager(proxy_url, ca_certs=bundle) as http:
                assert http.request("GET", https_server.url("/bytes/1000000")).data == octets(1000000)
            with GSSSocksPoolManager(proxy_url, retries=False) as http, pytest.raises(urllib3.exceptions.SSLError):
                http.request("GET", https_server.url("/headers"))
        finally:
            pyopenssl.extract_from_urllib3()
