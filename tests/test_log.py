"""What the logger `gsssocks` says, and what it never does."""

from __future__ import annotations

import logging
import logging.handlers
import pickle
import re
import socket
import struct
from typing import TYPE_CHECKING

import pytest

import gsssocks
from gsssocks import Proxy
from tests.peers.host import PATIENCE_SECONDS, Host
from tests.peers.receiving import receive_exactly

if TYPE_CHECKING:
    from gsssocks.testing import Realm
    from tests.peers.dante import Dante
    from tests.peers.targets import EchoServer

pytestmark = pytest.mark.usefixtures("in_the_realm")


@pytest.fixture
def proxy(dante_confidentiality: Dante) -> Proxy:
    return Proxy("localhost", dante_confidentiality.port)


def connect(proxy: Proxy, target: tuple[str, int]) -> None:
    gsssocks.create_connection(target, PATIENCE_SECONDS, proxy=proxy).close()


def test_one_line_a_connection(realm: Realm, proxy: Proxy, echo: EchoServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "gsssocks"):
        connect(proxy, echo.address)
        connect(proxy, echo.address)
    assert [record.levelno for record in caplog.records] == [logging.INFO] * 2
    target = "{}:{}".format(*echo.address)
    line = rf"connected to {target} through {proxy} as {realm.principal}: confidentiality, \d+ ms"
    assert re.fullmatch(line, caplog.records[0].getMessage())


def test_phases_at_debug(proxy: Proxy, echo: EchoServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "gsssocks"):
        connect(proxy, echo.address)
    phases = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert any("authentication method" in phase for phase in phases)
    assert any("protection level" in phase for phase in phases)


def test_nothing_by_default(proxy: Proxy, echo: EchoServer, capfd: pytest.CaptureFixture[str]) -> None:
    connect(proxy, echo.address)
    assert capfd.readouterr() == ("", "")


def test_password_is_not_logged(
    realm: Realm, dante_confidentiality: Dante, echo: EchoServer, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = Proxy("localhost", dante_confidentiality.port, principal=realm.principal, password=realm.password)
    with caplog.at_level(logging.DEBUG, "gsssocks"):
        connect(proxy, echo.address)
    assert realm.password not in caplog.text


def test_handler_that_connects_does_not_log_its_own_connection(dante_confidentiality: Dante, echo: EchoServer) -> None:
    """It would have to connect for that line, too, and so on."""

    def first_record(connection: socket.socket) -> str:
        (length,) = struct.unpack(">L", receive_exactly(connection, 4))
        record = pickle.loads(receive_exactly(connection, length))
        return str(logging.makeLogRecord(record).getMessage())

    logger = logging.getLogger("gsssocks")
    with Host(first_record) as collector, gsssocks.installed(dante_confidentiality.url(), no_proxy=[]):
        handler = logging.handlers.SocketHandler(*collector.address)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            socket.create_connection(echo.address, PATIENCE_SECONDS).close()
            assert "connected to {}:{}".format(*echo.address) in collector.result()
        finally:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)
            handler.close()
