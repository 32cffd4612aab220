"""A proxy that does what a script says: honest for as long as the script likes, and then not."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from typing import TYPE_CHECKING, Callable, NoReturn, TypeVar
from urllib.parse import urlencode

from gsssocks import _originals
from gsssocks._gss import Acceptor
from gsssocks._protocol import (
    Address,
    Greeting,
    MessageType,
    Method,
    MethodSelection,
    ProtectionLevel,
    ReceiveBuffer,
    Reply,
    Request,
    TokenMessage,
)
from gsssocks._record import BareRecords, ProtectedRecords

if TYPE_CHECKING:
    from types import TracebackType

    from gsssocks._protocol import Octets, Receivable
    from gsssocks._record import Records

T = TypeVar("T")

_PATIENCE_SECONDS = 20.0
_PIECE = 65536
_RESET = struct.pack("ii", 1, 0)  # struct linger: on, no time; close() then sends RST


class ClientGoneError(ConnectionError):
    """The client closed the connection where the script still had something to hear."""


class _Over(Exception):  # noqa: N818 - it is no error
    """The conversation ends here, as the script or the proxy's `cut_after` wants it."""


class _Anything:
    """As a message: whatever there is, at least one octet."""

    @staticmethod
    def length(prefix: Octets) -> int:
        return max(1, len(prefix))

    @classmethod
    def decode(cls, octets: Octets) -> bytes:
        return bytes(octets)


class _WholeMessage(_Anything):
    """A message of RFC 1961 with its header."""

    length = TokenMessage.length


class Conversation:
    """One client's connection, as a script sees it.

    The honest steps, in their order, are `choose_method`, `establish_context`, `grant_level`, `hear_request` and
    `reply`; `open_tunnel` is all of them. Each first reads what the client has to say. Any step may be left out or
    replaced by octets of one's own, with `send`.

    Attributes:
        received: everything the client has sent and that has been read, as it was on the wire.
        sent: how many octets have been sent to it.
        context: the proxy's end of the security context.
        records: the protection of the data, from `grant_level` on.
    """

    def __init__(self, connection: socket.socket, keytab: str | None, cut_after: int | None) -> None:
        self.received = b""
        self.sent = 0
        self.context = Acceptor(keytab=keytab)
        self.records: Records = BareRecords()
        self._connection = connection
        self._cut_after = cut_after
        self._buffer = ReceiveBuffer()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(_PATIENCE_SECONDS)

    # The honest steps

    def choose_method(self, method: int = Method.GSSAPI) -> bytes:
        """Reads the greeting, answers with `method`; returns the methods offered."""
        methods = self.hear_greeting()
        self.send(MethodSelection(method).encode())
        return methods

    def establish_context(self) -> None:
        """Reads the client's tokens and answers each, until the security context is complete."""
        while not self.context.complete:
            _, token = self.hear_message()
            self.send_message(MessageType.CONTEXT, self.context.step(token) or b"")

    def grant_level(self, level: int | None = None) -> int:
        """Reads the protection level asked for, answers with `level` (None: the same); returns the one asked for."""
        asked = self.hear_level()
        granted = asked if level is None else level
        self.send_message(MessageType.LEVEL, self.wrap(bytes([granted]), confidential=False))
        self.use_level(granted)
        return asked

    def hear_level(self) -> int:
        """Reads the protection level asked for, and returns it. Part of `grant_level`."""
        _, token = self.hear_message()
        (asked,) = self.context.unwrap(token).data
        return asked

    def use_level(self, level: int) -> None:
        """Protects the data at `level` from now on. Part of `grant_level`."""
        if level == ProtectionLevel.NONE:
            self.records = BareRecords()
        else:
            self.records = ProtectedRecords(self.context, ProtectionLevel(level))

    def hear_request(self) -> Request:
        """Reads the request: `command`, and `address` with `host` and `port`."""
        return Request.decode(self.receive_data())

    def reply(self, code: int = 0, host: str = "127.0.0.1", port: int = 1) -> None:
        """Answers the request: `code` 0 grants it (RFC 1928, section 6); host and port are the bound address."""
        self.send_data(self.reply_octets(code, host, port))

    def reply_octets(self, code: int = 0, host: str = "127.0.0.1", port: int = 1) -> bytes:
        """The reply without protection."""
        return Reply(code, Address(host, port)).encode()

    def open_tunnel(self) -> Request:
        """All steps from the greeting to the granted request, which it returns."""
        self.choose_method()
        self.establish_context()
        self.grant_level()
        request = self.hear_request()
        self.reply()
        return request

    # Inside the tunnel

    def send_data(self, data: bytes) -> None:
        """Sends user data in one protected message."""
        self.send(self.records.protect(data))

    def receive_data(self) -> bytes:
        """The user data of the client's next message that has any; nothing at the end of the stream."""
        while not self.records.plaintext:
            try:
                octets = self._hear(_Anything if isinstance(self.records, BareRecords) else _WholeMessage)
            except ClientGoneError:
                if self._buffer:
                    raise
                return b""
            self.records.receive(memoryview(octets), len(octets))
        return self.records.plaintext.take(len(self.records.plaintext))

    def echo(self) -> None:
        """Sends all user data back, until the client's end of stream."""
        while data := self.receive_data():
            self.send_data(data)

    # Anything else

    def send(self, octets: bytes) -> None:
        """Sends octets as they are."""
        if self._cut_after is not None:
            octets = octets[: self._cut_after - self.sent]
        self._connection.sendall(octets)
        self.sent += len(octets)
        if self.sent == self._cut_after:
            raise _Over

    def send_message(self, mtyp: int, token: bytes) -> None:
        """Sends a message of RFC 1961: version, `mtyp`, length, token."""
        self.send(TokenMessage(mtyp, token).encode())

    def hear_greeting(self) -> bytes:
        """Reads the greeting; returns the methods offered."""
        return self._hear(Greeting).methods

    def hear_message(self) -> tuple[int, bytes]:
        """Reads a message of RFC 1961; returns its `mtyp` and token.

        Raises:
            ClientGoneError: the client closed the connection before or inside it; unless caught, the script ends there.
        """
        message = self._hear(TokenMessage)
        return message.mtyp, message.token

    def wrap(self, data: bytes, *, confidential: bool = True) -> bytes:
        """A token of the security context that protects `data`, the next in sequence, whether it is sent or not."""
        return self.context.wrap(data, confidential=confidential)

    def stay_silent(self) -> None:
        """Reads on, and says nothing, until the client closes the connection."""
        try:
            while True:
                self._read()
        except ClientGoneError:
            return

    def end(self) -> NoReturn:
        """Ends the stream to the client and the script; the client's octets are still read, up to its own end."""
        raise _Over

    def reset(self) -> NoReturn:
        """Ends connection and script by RST."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._connection.close()
        raise _Over

    def _hear(self, message: type[Receivable[T]]) -> T:
        while self._buffer.missing(message):
            self._buffer.feed(self._read())
        return self._buffer.next(message)

    def _read(self) -> bytes:
        octets = self._connection.recv(_PIECE)
        if not octets:
            raise ClientGoneError(errno.ECONNRESET, "the client closed the connection")
        self.received += octets
        return octets

    def _play(self, script: Callable[[Conversation], None]) -> None:
        with contextlib.suppress(_Over):
            script(self)
        # Not close(), which would discard what the client has not read yet if something of its own is unread here.
        # Where the script or the client has closed, there is nothing to end, and may still be something to read.
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            self.stay_silent()

    def _hang_up(self) -> None:
        # What has arrived can still be read.
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _close(self) -> None:
        self._connection.close()


class ScriptedProxy:
    """A SOCKS 5 proxy with GSS-API on 127.0.0.1, for tests of what a client does with every kind of proxy.

        def refuse_the_ticket(client: Conversation) -> None:
            client.choose_method()
            client.send(b"\\x01\\xff")

        with Realm() as realm, realm.activate():
            with ScriptedProxy(refuse_the_ticket) as proxy, pytest.raises(gsssocks.AuthenticationError):
                gsssocks.create_connection(("target.example", 80), proxy=proxy.url())
            assert b"target.example" not in proxy.received

    It connects to nothing: the script plays the target too. Every client has a thread of its own. Where the script
    ends, the stream to the client does, and the rest of what the client sends is read. An exception that the script
    raises, but for a `ConnectionError`, is raised again at the end of the `with` statement.

    Args:
        script: is called with each client's `Conversation`.
        keytab: the service's keys; without it, the default keytab, which is a realm's own while it is active.
        cut_after: end each conversation after so many octets to the client, wherever the script is then.

    Attributes:
        conversations: one for each client so far.
        port: its TCP port.
    """

    host = "localhost"

    def __init__(
        self, script: Callable[[Conversation], None], *, keytab: str | None = None, cut_after: int | None = None
    ) -> None:
        self.conversations: list[Conversation] = []
        self._script = script
        self._keytab = keytab
        self._cut_after = cut_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._players: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._last: object = None
        self._doorman = threading.Thread(target=self._accept, name="gsssocks-scripted-proxy", daemon=True)

    def __enter__(self) -> ScriptedProxy:
        self._doorman.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Clients are accepted in their order: whoever came before this one still gets a conversation.
        last = _originals.SocketType(socket.AF_INET, socket.SOCK_STREAM)
        last.bind(("127.0.0.1", 0))
        self._last = last.getsockname()
        last.connect(self._listener.getsockname())
        self._doorman.join()
        last.close()
        self._listener.close()
        for conversation in self.conversations:
            conversation._hang_up()  # noqa: SLF001 - one module, two classes
        for player in self._players:
            player.join()
        if self._failures:
            raise self._failures[0]

    @property
    def received(self) -> bytes:
        """What all clients have sent, as it was on the wire; complete once the `with` statement has ended."""
        return b"".join(conversation.received for conversation in self.conversations)

    def url(self, **options: object) -> str:
        """The proxy's URL.

        Args:
            **options: the URL's query.
        """
        query = f"?{urlencode(options)}" if options else ""
        return f"socks5h://{self.host}:{self.port}{query}"

    def _accept(self) -> None:
        while True:
            connection, client = self._listener.accept()
            if client == self._last:
                connection.close()
                return
            conversation = Conversation(connection, self._keytab, self._cut_after)
            self.conversations.append(conversation)
            player = threading.Thread(target=self._play, args=(conversation,), daemon=True)
            self._players.append(player)
            player.start()

    def _play(self, conversation: Conversation) -> None:
        try:
            conversation._play(self._script)  # noqa: SLF001 - one module, two classes
        except ConnectionError:
            pass  # the client went away, as it may
        except BaseException as error:  # noqa: BLE001 - raised again at the end
            self._failures.append(error)
        finally:
            conversation._close()  # noqa: SLF001 - one module, two classes
