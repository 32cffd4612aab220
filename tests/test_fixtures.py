"""The pytest fixture for users, in a test suite of theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.peers.targets import EchoServer

ROOT = Path(__file__).parents[1]
LIMIT = 120

TESTS = """
import os
import socket

import gsssocks

TARGET = ("127.0.0.1", {port})


def test_through_the_proxy(proxy):
    with gsssocks.installed(proxy.url(), no_proxy=[]), socket.create_connection(TARGET, 20) as client:
        client.sendall(b"data")
        assert client.recv(100) == b"data"
    (session,) = proxy.sessions
    assert session.principal == "alice@GSSSOCKS.TEST"
    assert session.protection == "confidentiality"


def test_each_test_has_its_own(proxy):
    assert proxy.sessions == []


def test_the_environment_is_as_it_was():
    assert "KRB5CCNAME" not in os.environ
"""


@pytest.mark.parametrize(
    "conftest", ['pytest_plugins = ["gsssocks.testing.fixtures"]', "from gsssocks.testing import proxy"]
)
def test_in_a_test_suite(tmp_path: Path, echo: EchoServer, conftest: str) -> None:
    (tmp_path / "conftest.py").write_text(f"{conftest}\n")
    (tmp_path / "test_program.py").write_text(TESTS.format(port=echo.address[1]))
    env = {name: value for name, value in os.environ.items() if not name.startswith("KRB5")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env={**env, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert "3 passed" in done.stdout, done.stdout


def test_pytest_is_not_needed_for_the_rest() -> None:
    program = "import sys; from gsssocks.testing import *; Realm; print('pytest' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True
    )
    assert done.stdout == "False\n"


def test_other_names_are_unknown() -> None:
    import gsssocks.testing

    with pytest.raises(AttributeError, match="has no attribute 'prxoy'"):
        gsssocks.testing.prxoy  # noqa: B018
