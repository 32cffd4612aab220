"""An environment in which python-gssapi cannot be loaded: on a slim image the library that it is for is not there."""

from __future__ import annotations

import errno
import os
import socket
import sys
import venv
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.startup.program import EX_CONFIG, ROOT, Env, gsssocks, inside, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.default_python_only

WHY = "libgssapi_krb5.so.2: cannot open shared object file"
SAYS = f"python-gssapi cannot be loaded: {WHY}; install "
CONNECTING = """
import errno, socket, gsssocks
with gsssocks.installed(no_proxy=[]), socket.socket() as sock:
    try:
        sock.connect(("192.0.2.1", 80))
    except gsssocks.AuthenticationError as error:
        print(error)
    print(errno.errorcode[sock.connect_ex(("192.0.2.1", 80))])
"""
SERVING = """
import gsssocks.server
try:
    gsssocks.server.ProxyServer().start()
except gsssocks.AuthenticationError as error:
    print(error)
"""


@pytest.fixture
def without(env: Env, tmp_path: Path) -> Env:
    """An environment whose gssapi fails as it does without its library."""
    (tmp_path / "gssapi").mkdir()
    (tmp_path / "gssapi" / "__init__.py").write_text(f"raise ImportError({WHY!r})\n")
    return {**env, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


@pytest.fixture
def proxy_url() -> Iterator[str]:
    """Where somebody listens: what fails is not the connection to the proxy."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield f"socks5h://127.0.0.1:{listener.getsockname()[1]}"


def test_a_connect_fails_as_a_program_expects(without: Env, proxy_url: str) -> None:
    done = start(sys.executable, "-c", CONNECTING, env={**without, "GSSSOCKS_PROXY": proxy_url})
    said, code = done.stdout.splitlines()
    assert said.startswith(SAYS)
    assert code == errno.errorcode[getattr(errno, "ELIBACC", errno.EACCES)]


def test_run_does_not_start_the_program(without: Env) -> None:
    done = inside("-c", "print('ran')", env=without)
    assert (done.returncode, done.stdout) == (EX_CONFIG, "")
    assert done.stderr.startswith(f"gsssocks run: {SAYS}")


def test_serve_ends_with_78(without: Env) -> None:
    done = gsssocks("serve", "--listen", "127.0.0.1:0", env=without)
    assert done.returncode == EX_CONFIG
    assert done.stderr.startswith(f"gsssocks serve: {SAYS}")


def test_a_server_does_not_start(without: Env) -> None:
    assert start(sys.executable, "-c", SERVING, env=without).stdout.startswith(SAYS)


def test_a_program_does_not_start_where_the_package_is_missing(env: Env, tmp_path: Path) -> None:
    # All that a program needs, but for gssapi.
    for package in ("socks", "wrapt"):
        (tmp_path / f"{package}.py").write_text("")
    path = (ROOT / "gsssocks" / "_inject", ROOT, tmp_path)
    wrong = {**env, "GSSSOCKS_INJECT": "1", "PYTHONPATH": os.pathsep.join(map(str, path))}
    venv.create(tmp_path / "venv", symlinks=True)
    done = start(tmp_path / "venv" / "bin" / "python", "-c", "print('ran')", env=wrong)
    assert (done.returncode, done.stdout) == (EX_CONFIG, "")
    assert "No module named 'gssapi'" in done.stderr
