"""A UDP target, in a thread of this process."""

from __future__ import annotations

# The C base class: gsssocks may have replaced socket.socket, and what is sent here must go where it is to go.
import _socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["EchoDatagrams"]

_END = b"\0the test is over\0"


class EchoDatagrams:
    """Sends each datagram back to where it came from.

    Args:
        host: "127.0.0.1" or "::1".

    Attributes:
        address: its address and port.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._socket = _socket.socket(_socket.AF_INET6 if ":" in host else _socket.AF_INET, _socket.SOCK_DGRAM)
        self._socket.bind((host, 0))
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> EchoDatagrams:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        last = _socket.socket(self._socket.family, _socket.SOCK_DGRAM)
        last.sendto(_END, self.address)
        last.close()
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, sender = self._socket.recvfrom(65536)
            if data == _END:
                return
            self._socket.sendto(data, sender)
