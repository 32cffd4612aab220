"""`ssl` gives the descriptor to OpenSSL: for a tunnelled socket, OpenSSL is given what goes through the tunnel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from gsssocks._guards import wrap
from gsssocks._tls import tls_object

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["cover"]


def cover(ssl: ModuleType) -> None:
    """Covers `ssl`."""
    wrap(ssl.SSLContext, "_wrap_socket", _wrap_socket)


def _wrap_socket(wrapped: Callable[..., Any], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return tls_object(instance, *args, **kwargs) or wrapped(*args, **kwargs)
