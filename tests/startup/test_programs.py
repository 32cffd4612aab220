"""Real, unmodified programs under `gsssocks run`, through a real Dante; with and without remote DNS."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.peers.targets import octets
from tests.startup.program import Env, fetched, inside, serving
from tests.startup.servers import ftp_server, package_index, smtp_server, write_wheel

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    import trustme

    from tests.peers.dante import Dante
    from tests.peers.targets import HTTPSServer

pytestmark = pytest.mark.default_python_only

HTTP_CLIENT = """
import http.client, sys
connection = http.client.HTTPSConnection("localhost", int(sys.argv[1]), timeout=20)
connection.request("GET", "/bytes/1000")
print(len(connection.getresponse().read()))
"""
FTP = """
import ftplib, io, sys
with ftplib.FTP(timeout=20) as ftp:
    ftp.connect("localhost", int(sys.argv[1]))
    ftp.login("alice", "secret")
    print(ftp.nlst())
    ftp.retrbinary("RETR there", open("here", "wb").write)
    ftp.storbinary("STOR back", open("here", "rb"))
"""
SMTP = """
import smtplib, ssl, sys
with smtplib.SMTP("localhost", int(sys.argv[1]), timeout=20) as server:
    server.starttls(context=ssl.create_default_context())
    server.sendmail("alice@example.org", ["bob@example.org"], "Subject: through the tunnel\\r\\n\\r\\nHello")
"""
FLASK = """
import flask, requests
app = flask.Flask(__name__)

@app.get("/<int:port>")
def call_out(port):
    return requests.get(f"https://localhost:{port}/bytes/1000", timeout=20).content
"""


DJANGO = """
import requests
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(ALLOWED_HOSTS=["127.0.0.1"], ROOT_URLCONF=__name__, SECRET_KEY="of a test")

def call_out(request, port):
    return HttpResponse(requests.get(f"https://localhost:{port}/bytes/1000", timeout=20).content)

urlpatterns = [path("<int:port>", call_out)]
application = get_wsgi_application()
"""


class Names(NamedTuple):
    """Who resolves a name that the program resolves first.

    Attributes:
        host: what the proxy is asked for then, in place of localhost.
    """

    scheme: str
    variables: Env
    host: str


BY_THE_PROXY = Names("socks5h", {}, "localhost")
HERE = Names("socks5", {}, "127.0.0.1")
BY_VARIABLE = (
    Names("socks5", {"GSSSOCKS_REMOTE_DNS": "1"}, "localhost"),
    Names("socks5h", {"GSSSOCKS_REMOTE_DNS": "0"}, "127.0.0.1"),
)


@pytest.fixture(params=[BY_THE_PROXY, HERE], ids=["remote-dns", "local-dns"])
def names(request: pytest.FixtureRequest) -> Names:
    chosen: Names = request.param
    return chosen


@pytest.fixture
def env(dante_env: Env, dante_confidentiality: Dante, names: Names) -> Env:
    """As an operator sets it, with one line to standard error for each connection.

    The proxy goes by its address: its own name would be resolved here in any case, and the targets have no other.
    """
    proxy = f"{names.scheme}://127.0.0.1:{dante_confidentiality.port}?target_name=socks@localhost"
    return {**dante_env, "GSSSOCKS_PROXY": proxy, "GSSSOCKS_DEBUG": "1", **names.variables}


@pytest.fixture(autouse=True)
def _nothing_else_is_granted(dante_confidentiality: Dante) -> Iterator[None]:
    granted = dante_confidentiality.connections()
    yield
    assert dante_confidentiality.connections() > granted


def targets(said: str) -> list[str]:
    """What the proxy was asked for, connection by connection."""
    return [line.split()[3] for line in said.splitlines() if line.startswith("gsssocks: connected to ")]


def succeeded(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The targets of a program that ended well."""
    assert done.returncode == 0, done.stderr
    return targets(done.stderr)


def test_pip_download(env: Env, names: Names, trust: trustme.CA, ca_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "index" / "simple" / "nothingness"
    page.mkdir(parents=True)
    wheel = write_wheel(page, "nothingness")
    with package_index(tmp_path / "index", trust) as port:
        index = f"https://localhost:{port}/simple/"
        options = (
            "--isolated",
            "--no-cache-dir",
            "--disable-pip-version-check",
            "--cert",
            ca_file,
            "--index-url",
            index,
        )
        done = inside("-m", "pip", "download", *options, "--dest", tmp_path, "nothingness", env=env)
    assert set(succeeded(done)) == {f"{names.host}:{port}"}
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


@pytest.mark.parametrize("names", [BY_THE_PROXY, HERE, *BY_VARIABLE], indirect=True)
def test_http_client(env: Env, names: Names, https_server: HTTPSServer, dante_confidentiality: Dante) -> None:
    granted = dante_confidentiality.connections()
    done = inside("-c", HTTP_CLIENT, str(https_server.address[1]), env=env)
    assert done.stdout == "1000\n"
    assert succeeded(done) == [f"{names.host}:{https_server.address[1]}"]
    assert dante_confidentiality.connections() == granted + 1


def test_ftplib_passive(env: Env, names: Names, dante_confidentiality: Dante, tmp_path: Path) -> None:
    content = octets(1_000_003)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "there").write_bytes(content)
    granted = dante_confidentiality.connections()
    with ftp_server(tmp_path / "served") as port:
        done = inside("-c", FTP, str(port), env=env, cwd=tmp_path)
    control, *data = succeeded(done)
    assert control == f"{names.host}:{port}"
    assert len(data) == 3
    assert dante_confidentiality.connections() == granted + 4
    assert done.stdout == "['there']\n"
    assert (tmp_path / "served" / "back").read_bytes() == content


def test_smtplib_starttls(env: Env, names: Names, trust: trustme.CA, dante_confidentiality: Dante) -> None:
    granted = dante_confidentiality.connections()
    with smtp_server(trust) as (port, messages):
        done = inside("-c", SMTP, str(port), env=env)
    assert succeeded(done) == [f"{names.host}:{port}"]
    assert dante_confidentiality.connections() == granted + 1
    assert [message["Subject"] for message in messages] == ["through the tunnel"]


def test_flask_app_that_calls_out(
    env: Env, names: Names, https_server: HTTPSServer, dante_confidentiality: Dante, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(FLASK)
    granted = dante_confidentiality.connections()
    command = (sys.executable, "-m", "flask", "--app", "app", "run", "--port", "0")
    with serving(*command, env=env, cwd=tmp_path, sign="Running on") as said:
        address = said[-1].split()[-1]
        assert fetched(f"{address}/{https_server.address[1]}") == octets(1000)
    assert targets("".join(said)) == [f"{names.host}:{https_server.address[1]}"]
    assert dante_confidentiality.connections() == granted + 1


def test_django_app_that_calls_out(
    env: Env, names: Names, https_server: HTTPSServer, dante_confidentiality: Dante, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(DJANGO)
    granted = dante_confidentiality.connections()
    command = (sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "app")
    with serving(*command, env=env, cwd=tmp_path, sign="Listening at:") as said:
        (address,) = (word for word in said[-1].split() if word.startswith("http://"))
        assert fetched(f"{address}/{https_server.address[1]}") == octets(1000)
    assert targets("".join(said)) == [f"{names.host}:{https_server.address[1]}"]
    assert dante_confidentiality.connections() == granted + 1
