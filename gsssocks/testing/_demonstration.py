"""`gsssocks demo`: an unmodified program, a real realm, a real proxy and a real HTTPS server, and what came of it.

Nothing is printed here; `demonstrate` yields one phase after the other, as it is over.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import os
import secrets
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import trustme

from gsssocks.server import ProxyServer, Session
from gsssocks.testing._realm import Realm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["DemonstrationError", "Phase", "demonstrate"]

DOCUMENT_SIZE = 1 << 20
PROGRAM_LIMIT_SECONDS = 120
SESSION_LIMIT_SECONDS = 30

PROGRAM = """\
import hashlib
import sys

import requests

response = requests.get(sys.argv[1], timeout=60)
print(response.status_code, response.reason, len(response.content), hashlib.sha256(response.content).hexdigest())
"""
"""The program to be sent through the proxy. It knows nothing of gsssocks."""

# What puts a program through the proxy without a change to it.
_LAUNCH = """\
import runpy, sys
import gsssocks
gsssocks.install()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

_LEVELS = {"integrity": 1, "confidentiality": 2, "selective": 3}


class DemonstrationError(RuntimeError):
    """Something did not work; the message says what."""


class Phase(NamedTuple):
    """A part of the demonstration that is over."""

    title: str
    seconds: float
    facts: Mapping[str, str]


def demonstrate() -> Iterator[Phase]:
    """Runs the demonstration.

    Raises:
        RealmError: there is no KDC to be had.
        DemonstrationError: anything else did not work.
    """
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        realm = stack.enter_context(Realm())
        # The proxy is in this process, and its Kerberos library reads the environment.
        stack.enter_context(realm.activate())
        yield Phase("Kerberos realm", time.monotonic() - began, _about_realm(realm))

        began = time.monotonic()
        proxy = stack.enter_context(ProxyServer())
        server = stack.enter_context(_HTTPSServer(realm.directory))
        facts = {
            "proxy": proxy.url(),
            "HTTPS server": server.url,
            "document": f"{len(server.document):,} random octets",
        }
        yield Phase("Servers", time.monotonic() - began, facts)

        began = time.monotonic()
        said = _run_program(realm.directory, proxy, server)
        spent = time.monotonic() - began
        session = _tunnel(proxy)
        yield Phase("Tunnel, as the proxy saw it", session.setup_seconds or 0.0, _about_tunnel(session))
        yield Phase("Program, unmodified", spent, _about_answer(said, server))


def _about_realm(realm: Realm) -> Mapping[str, str]:
    return {
        "realm": f"{realm.name}, with a KDC of its own at 127.0.0.1:{realm.port}",
        "user": f"{realm.principal}, who has a ticket for {realm.ticket_lifetime}",
        "proxy's service": f"{realm.service_principal}, in a keytab",
    }


def _about_tunnel(session: Session) -> Mapping[str, str]:
    level = session.protection or "none"
    return {
        "principal": session.principal or "",
        "service ticket": session.service or "",
        "mechanism": session.mechanism or "",
        "protection level": f"{level} (RFC 1961, level {_LEVELS.get(level, 0)})",
        "destination": str(session.destination),
        "round trips": str(session.round_trips),
        "octets out": _amount(session.octets_received, session.tokens_received, session.wire_received),
        "octets in": _amount(session.octets_sent, session.tokens_sent, session.wire_sent),
    }


def _amount(octets: int, tokens: int, wire: int) -> str:
    return f"{octets:>9,} plaintext {wire:>11,} on the wire {tokens:>5,} tokens"


def _about_answer(said: str, server: _HTTPSServer) -> Mapping[str, str]:
    status, reason, size, digest = said.split()
    if (status, digest) != ("200", hashlib.sha256(server.document).hexdigest()):
        raise DemonstrationError(f"the program received something else than the document: it says {said.strip()!r}")
    return {
        "program": f"requests.get({server.url!r})",
        "HTTP response": f"{status} {reason}, {int(size):,} octets",
        "SHA-256": digest,
        "SHA-256 match": "yes, this is the document that the server sent",
    }


def _run_program(directory: Path, proxy: ProxyServer, server: _HTTPSServer) -> str:
    script = directory / "program.py"
    script.write_text(PROGRAM)
    # Proxies that the user's environment names are none of the program's here.
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env.update(GSSSOCKS_PROXY=proxy.url(), GSSSOCKS_NO_PROXY="", REQUESTS_CA_BUNDLE=str(server.authority))
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LAUNCH, str(script), server.url],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROGRAM_LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DemonstrationError(f"the program did not end within {PROGRAM_LIMIT_SECONDS} s") from None
    if done.returncode:
        raise DemonstrationError(f"the program failed:\n{done.stderr.strip()}")
    return done.stdout


def _tunnel(proxy: ProxyServer) -> Session:
    granted = [session for session in proxy.sessions if session.reply == 0]
    if not granted:
        raise DemonstrationError("the program went past the proxy")
    if not granted[-1].ended.wait(SESSION_LIMIT_SECONDS):
        raise DemonstrationError(f"the tunnel did not end within {SESSION_LIMIT_SECONDS} s")
    return granted[-1]


class _HTTPSServer:
    """Serves one document of random octets, under a certificate for localhost.

    Args:
        directory: where to put the certificate of the authority that signed the server's.
    """

    def __init__(self, directory: Path) -> None:
        self.document = secrets.token_bytes(DOCUMENT_SIZE)
        self.authority = directory / "authority.pem"
        trust = trustme.CA()
        trust.cert_pem.write_to_path(str(self.authority))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trust.issue_cert("localhost", "127.0.0.1").configure_cert(context)
        document = self.document

        class Handler(_Handler):
            content = document

        self._server = _Server(("127.0.0.1", 0), Handler)
        # The handshake is made with the first read, in the connection's own thread.
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"https://localhost:{self._server.server_address[1]}/"

    def __enter__(self) -> _HTTPSServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = False  # so that server_close() waits for them

    def handle_error(self, request: Any, client_address: Any) -> None:
        """What a client cannot have made of its connection, it will say itself."""


class _Handler(http.server.BaseHTTPRequestHandler):
    content = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None:
        """Standard error is the command's."""
