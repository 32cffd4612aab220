"""The command line, run as a user runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gsssocks

ROOT = Path(__file__).parents[1]
LIMIT = 120
UNSHARE = ("unshare", "--map-root-user", "--mount")


def run(*arguments: str, before: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    """`python -m gsssocks` with these arguments.

    Args:
        before: what to start it by.
        env: changes to the environment.
    """
    return subprocess.run(
        [*before, sys.executable, "-m", "gsssocks", *arguments],
        env={**os.environ, **env},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that failed says of it, which is a message and no traceback."""
    assert done.returncode == 1
    assert done.stderr.startswith("gsssocks demo: ")
    assert "worked" not in done.stdout
    return done.stderr


def module(directory: Path, name: str, content: str) -> str:
    """A directory that has a Python module of that name."""
    (directory / f"{name}.py").write_text(content)
    return str(directory)


class TestDemo:
    def test_shows_every_phase(self, tmp_path: Path) -> None:
        done = run("demo", TMPDIR=str(tmp_path))
        assert (done.returncode, done.stderr) == (0, "")
        facts = dict(re.findall(r"^  (\S.{,15}\S) {2,}(.*)$", done.stdout, re.MULTILINE))
        assert facts["principal"] == "alice@GSSSOCKS.TEST"
        assert facts["service ticket"] == "socks/localhost@GSSSOCKS.TEST"
        assert facts["mechanism"] == "krb5"
        assert facts["protection level"] == "confidentiality (RFC 1961, level 2)"
        assert facts["round trips"] == "2"
        assert facts["HTTP response"] == "200 OK, 1,048,576 octets"
        assert re.fullmatch("[0-9a-f]{64}", facts["SHA-256"])
        assert facts["SHA-256 match"].startswith("yes")
        for direction, least in (("octets out", 100), ("octets in", 1 << 20)):
            plaintext, wire, tokens = (
                int(number.replace(",", "")) for number in re.findall(r"[\d,]+", facts[direction])
            )
            assert wire > plaintext > least
            assert tokens > 1
        assert done.stdout.splitlines()[-1].startswith("It all worked")
        # One column of milliseconds, nothing that wraps, nothing left behind.
        ends = {len(line) for line in done.stdout.splitlines() if line.endswith(" ms")}
        assert len(ends) == 1
        assert max(map(len, done.stdout.splitlines())) < 100
        assert not list(tmp_path.iterdir())

    def test_does_not_care_for_the_users_proxies(self) -> None:
        nowhere = "http://127.0.0.1:1"
        done = run("demo", HTTPS_PROXY=nowhere, https_proxy=nowhere, ALL_PROXY="socks5h://127.0.0.1:1", NO_PROXY="*")
        assert (done.returncode, done.stderr) == (0, "")

    def test_without_a_kdc_names_the_packages(self) -> None:
        # A mount namespace of its own, in which this machine has no KDC.
        if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
            pytest.skip("this machine does not let a process have a mount namespace of its own")
        done = run("demo", before=(*UNSHARE, "sh", "-c", 'mount -t tmpfs none /usr/sbin && exec "$@"', "sh"))
        assert "krb5-kdc krb5-admin-server krb5-user" in failure(done)

    def test_with_a_kdc_that_does_not_start(self, tmp_path: Path) -> None:
        (tmp_path / "krb5kdc").symlink_to("/bin/false")
        done = run("demo", PATH=f"{tmp_path}:{os.environ['PATH']}")
        assert "krb5kdc did not start" in failure(done)

    @pytest.mark.parametrize("package", ["k5test", "trustme", "requests"])
    def test_without_a_package_names_the_extras(self, package: str) -> None:
        program = (
            f"import sys; sys.modules['{package}'] = None; from gsssocks.cli import main; sys.exit(main(['demo']))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        assert failure(done) == f"gsssocks demo: {package} not found: pip install 'gsssocks[testing,requests]'\n"

    def test_with_a_program_that_fails(self, tmp_path: Path) -> None:
        done = run("demo", PYTHONPATH=module(tmp_path, "requests", "raise RuntimeError('broken')"))
        assert "the program failed" in failure(done)
        assert "RuntimeError: broken" in done.stderr

    def test_with_a_program_that_does_not_use_the_proxy(self, tmp_path: Path) -> None:
        answer = (
            "class get:\n    status_code, reason, content = 200, 'OK', b''\n    def __init__(self, *_, **__): pass\n"
        )
        done = run("demo", PYTHONPATH=module(tmp_path, "requests", answer))
        assert "the program went past the proxy" in failure(done)


def test_version() -> None:
    assert run("--version").stdout == f"gsssocks {gsssocks.__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("juggle",), ("demo", "now")])
def test_wrong_arguments(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: gsssocks")
