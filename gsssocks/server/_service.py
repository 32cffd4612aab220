"""`gsssocks serve`: a proxy as a service of its own, from its start to the signal that ends it.

SIGTERM, SIGINT or SIGHUP ends it: it listens no more, sessions have their grace, and a second signal ends them at once.
None of them may just kill it: what is cut short would look complete. It stays in the foreground, as systemd and its
like want it. A changed configuration takes effect when it is started
again; where systemd holds the listening sockets, no client is refused meanwhile.
"""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING

from gsssocks import _originals
from gsssocks.exceptions import AuthenticationError

from ._log import log
from ._proxy import ProxyServer
from ._systemd import journal, notify, passed_descriptors

if TYPE_CHECKING:
    from collections.abc import Collection

    from ._settings import ServiceSettings

__all__ = ["serve"]

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def serve(settings: ServiceSettings) -> None:
    """Runs a proxy until a signal comes. Only for the main thread of a program of its own.

    Raises:
        ValueError: python-gssapi cannot be loaded, the keytab holds no key, or the sockets that systemd passes are not
            what is needed.
        OSError: it cannot listen there.
    """
    _begin_logging(settings.log_level)
    _check_keytab(settings.server.get("keytab"))
    server = ProxyServer(listeners=passed_descriptors(os.environ) or settings.listen, **settings.server)
    # Threads inherit it, so that a signal is not delivered but kept for whoever waits for it.
    ending = [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)
    server.start()
    where = ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in server.addresses)
    log.info("listening on %s", where)
    notify(os.environ, f"READY=1\nSTATUS=listening on {where}")
    number = signal.sigwait(ending)
    log.info("%s: no new sessions; those there are have %g s", signal.Signals(number).name, settings.grace)
    notify(os.environ, "STOPPING=1")
    _originals.Thread(target=_hurry, args=(server, ending), name="gsssocks-signal", daemon=True).start()
    server.stop(settings.grace)
    log.info("stopped")
    # What is still on its way out of the process may be cut off by a further signal.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)


def _check_keytab(keytab: str | None) -> None:
    try:
        from gsssocks._gss import check_keytab
    except AuthenticationError as error:
        raise ValueError(error.strerror) from error
    try:
        check_keytab(keytab)
    except AuthenticationError as error:
        if keytab is not None:
            raise ValueError(error.strerror) from error
        # There are other mechanisms than Kerberos, whose clients need none.
        log.warning("no client can come by Kerberos: %s", error.strerror)


def _hurry(server: ProxyServer, ending: Collection[signal.Signals]) -> None:
    number = signal.sigwait(ending)
    log.info("%s: ending all sessions", signal.Signals(number).name)
    server.stop()


def _begin_logging(level: str) -> None:
    handler = logging.StreamHandler()
    form = "%(levelname)s %(name)s: %(message)s"
    handler.setFormatter(logging.Formatter(form if journal(os.environ) else f"%(asctime)s {form}"))
    logger = logging.getLogger("gsssocks")
    logger.addHandler(handler)
    logger.setLevel(level.upper())
