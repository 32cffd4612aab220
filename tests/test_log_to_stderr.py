"""`GSSSOCKS_DEBUG`: a log on standard error while gsssocks is installed, or once a `GSSSocket` has connected."""

from __future__ import annotations

import io
import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import pytest

import gsssocks
from gsssocks import GSSSocket, Proxy
from gsssocks._log import log_to_stderr_no_more
from tests.peers.host import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer

PROXY = "socks5h://proxy.example"
LOG = logging.getLogger("gsssocks")


@pytest.fixture(autouse=True)
def _debug(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GSSSOCKS_DEBUG", "1")
    yield
    log_to_stderr_no_more()


@contextmanager
def logging_of_the_program(stream: TextIO, level: int = logging.NOTSET) -> Iterator[None]:
    """What `logging.basicConfig(stream=stream)` does."""
    handler = logging.StreamHandler(stream)
    handler.setLevel(level)
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)


def test_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with gsssocks.installed(PROXY):
        LOG.debug("a phase")
    assert capsys.readouterr().err == "gsssocks: a phase\n"


def test_is_told_once_by_several_installs(capsys: pytest.CaptureFixture[str]) -> None:
    with gsssocks.installed(PROXY), gsssocks.installed(PROXY):
        LOG.info("a connection")
    assert capsys.readouterr().err == "gsssocks: a connection\n"


def test_ends_with_uninstall(capsys: pytest.CaptureFixture[str]) -> None:
    before = LOG.level
    with gsssocks.installed(PROXY):
        pass
    LOG.info("a connection")
    assert capsys.readouterr().err == ""
    assert (LOG.handlers, LOG.level) == ([], before)


def test_begins_again_with_the_next_install(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with gsssocks.installed(PROXY):
            LOG.info("a connection")
    assert capsys.readouterr().err == 2 * "gsssocks: a connection\n"


@pytest.mark.usefixtures("in_the_realm")
def test_tells_of_a_single_connection(
    dante_confidentiality: Dante, echo: EchoServer, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy = Proxy.from_url(dante_confidentiality.url())
    gsssocks.create_connection(echo.address, PATIENCE_SECONDS, proxy=proxy).close()
    with GSSSocket(proxy=proxy) as sock:
        sock.connect(echo.address)
    target = "{}:{}".format(*echo.address)
    assert capsys.readouterr().err.count(f"gsssocks: connected to {target} through {proxy} as ") == 2


def test_is_told_once_where_the_program_logs_there_too(capsys: pytest.CaptureFixture[str]) -> None:
    with gsssocks.installed(PROXY), logging_of_the_program(sys.stderr):
        LOG.info("a connection")
    assert capsys.readouterr().err == "a connection\n"


def test_is_told_there_where_the_program_logs_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    elsewhere = io.StringIO()
    with gsssocks.installed(PROXY), logging_of_the_program(elsewhere):
        LOG.info("a connection")
    assert capsys.readouterr().err == "gsssocks: a connection\n"
    assert elsewhere.getvalue() == "a connection\n"


def test_is_told_where_the_program_logs_nothing_of_that_level(capsys: pytest.CaptureFixture[str]) -> None:
    with gsssocks.installed(PROXY), logging_of_the_program(sys.stderr, logging.WARNING):
        LOG.info("a connection")
    assert capsys.readouterr().err == "gsssocks: a connection\n"


@pytest.mark.parametrize("value", ["", "0", "no", "False", "OFF"])
def test_is_not_asked_for(value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("GSSSOCKS_DEBUG", value)
    with gsssocks.installed(PROXY):
        LOG.info("a connection")
    assert capsys.readouterr().err == ""


def test_leaves_the_programs_own_arrangements_alone() -> None:
    own = logging.NullHandler()
    LOG.addHandler(own)
    before = LOG.level
    try:
        with gsssocks.installed(PROXY):
            assert (LOG.handlers, LOG.level) == ([own], before)
        assert (LOG.handlers, LOG.level) == ([own], before)
    finally:
        LOG.removeHandler(own)
