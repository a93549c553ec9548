"""The server object that users hold.

Owns a server's life: serving, the connections that are attached to it, and their end, at once or
in order. Listening sockets are ``net.listen``'s, counting and limits ``limits``'; what happens
on a connection is the transport's, which reports here how its opening handshake went.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, Protocol

from ..net.listen import LOGGER, Acceptor, LoopAcceptor, OnSocket
from ..protocol.codec import WSCloseCode, build_close_payload
from ..protocol.upgrade import HandshakeRefusedError
from ..states import WSDisconnectCause
from ..transport.counters import SharedTraffic
from .limits import CLOSED, ERROR, ConnectionTable, ServerStats

__all__ = ["Connection", "Server"]

# What shutdown() sends in one turn of the loop, so that it does not stand still for thousands.
_CLOSES_PER_TURN: Final = 64
_CLOSE_INTERVAL: Final = 0.01  # seconds; a paced shutdown does not wake up more often


class Connection(Protocol):
    """What ``Server`` asks of an attached connection."""

    @property
    def disconnect_cause(self) -> WSDisconnectCause | None:
        """Why it ended, once it has."""

    def send_close(self, close_code: int, close_message: str | None = None) -> bool:
        """Send CLOSE, if that is possible; return whether it was sent."""
        ...

    def disconnect(self, graceful: bool = True) -> None:
        """End the connection, in order if ``graceful``."""

    def _handshake_timed_out(self) -> None:
        """Refuse a handshake that was not finished in time."""

    def _has_been_silent(self) -> bool:
        """Whether no byte of a request has come yet."""
        ...


class Server:
    """What ``ws_create_server`` returns; has the interface of ``asyncio.Server``.

    ``close`` stops listening and leaves the open connections alone, as with asyncio;
    ``wait_closed`` returns when these have ended too, as with asyncio from Python 3.12 on.
    Leaving ``async with``, and cancelling ``serve_forever``, do more than asyncio: they also close
    the open connections, since waiting for clients to leave by themselves may take forever.
    ``shutdown`` does all of it in order.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Sequence[socket.socket],
        on_socket: OnSocket,
        *,
        backlog: int = 100,
        keep_alive: bool = False,
        unix_path: str | bytes | os.PathLike[str] | None = None,
        logger: Any = LOGGER,
        acceptor: LoopAcceptor | None = None,
        max_connections: int | None = None,
        max_connections_per_ip: int | None = None,
        max_pending_handshakes: int | None = None,
        handshake_timeout: float | None = None,
    ) -> None:
        self._loop = loop
        self._sockets = tuple(sockets)
        self._backlog = backlog
        self._logger = logger
        self._acceptor = acceptor or Acceptor(
            loop, sockets, on_socket, backlog=backlog, keep_alive=keep_alive, logger=logger
        )
        self._unix_path = None if unix_path is None else os.fspath(unix_path)
        self._unix_inode = _inode(self._unix_path)
        self._connections: ConnectionTable[Connection] = ConnectionTable(
            max_connections=max_connections,
            max_per_ip=max_connections_per_ip,
            max_handshakes=max_pending_handshakes,
        )
        self._deadlines = _Deadlines(loop, handshake_timeout)
        #: Its connections add to this.
        self.traffic = SharedTraffic()
        self._is_serving = False
        self._is_closed = False
        self._all_ended = asyncio.Event()
        self._forever: asyncio.Future[None] | None = None
        # From shutdown() on: what a handshake that was under way ends with.
        self._final_close: tuple[int, str | None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} sockets={self.sockets!r}>"

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; empty after ``close``."""
        return () if self._is_closed else self._sockets

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that the server belongs to."""
        return self._loop

    def is_serving(self) -> bool:
        """Whether connections are accepted."""
        return self._is_serving

    def stats(self) -> ServerStats:
        """Return what was counted so far, and what there is now. Costs the same for any number of
        connections."""
        return self._connections.stats(self.traffic.received, self.traffic.sent)

    # --- Whether a connection may come, and how it went: called by ``server`` and the transport

    def reason_to_turn_away(self, key: str | None, *, is_new: bool = True) -> str | None:
        """Why a connection that was just accepted is not to be attached, which is counted then;
        None if it may be. One that is not new takes another's place, by ``hand_over``."""
        reason = self._connections.reason_to_turn_away(key)
        if self._is_closed and is_new:
            reason = CLOSED
        if reason is not None:
            self._connections.turned_away(reason)
        return reason

    def reason_to_refuse(self, key: str | None) -> str | None:
        """Why a request must not become a WebSocket connection; None if it may."""
        return self._connections.reason_to_refuse(key)

    def attach(
        self, connection: Connection, key: str | None = None, due: float | None = None
    ) -> None:
        """Count a connection, whose handshake and its deadline begin. ``wait_closed`` waits until
        it is detached.

        ``key``: see ``connections.address_key``. ``due``: the deadline, in the loop's time, if it
        has begun before.
        """
        self._connections.attach(connection, key)
        self._deadlines.add(connection, due)
        if not self._connections.has_room:
            self._acceptor.hold()

    def hand_over(self, connection: Connection, take: Callable[[float | None], None]) -> None:
        """Another connection takes the place of one that is in its handshake.

        ``take`` gets the deadline and attaches the other one with it, or counts why not.
        """
        self._connections.withdraw(connection)
        due = self._deadlines.withdraw(connection)
        try:
            take(due)
        finally:
            self._note_room()
            self._note_end()

    def connection_opened(self, connection: Connection) -> None:
        """The handshake succeeded; the listener is about to be told."""
        self._connections.opened(connection)
        self._deadlines.discard(connection)
        self._note_room()
        if self._final_close is not None:
            self._loop.call_soon(connection.send_close, *self._final_close)

    def connection_answered(self, connection: Connection, status: int) -> None:
        """The factory chose another response than 101."""
        self._connections.answered(connection, status)
        self._deadlines.discard(connection)

    def connection_refused(self, connection: Connection, status: int, error: BaseException) -> None:
        """The handshake failed on the request, a limit or the factory."""
        reason = error.reason if isinstance(error, HandshakeRefusedError) else None
        self._connections.refused(connection, status, reason)
        self._deadlines.discard(connection)

    def set_up_failed(
        self, connection: Connection | None, address: Any, error: BaseException
    ) -> None:
        """A connection that was accepted from this address could not be served, which is counted
        and logged here. It is ended by the caller.

        ``connection``: None if there is none yet, else it may be attached or not.
        """
        if connection is not None and self._connections.is_in_handshake(connection):
            self._connections.refused(connection, HTTPStatus.INTERNAL_SERVER_ERROR, ERROR)
            self._deadlines.discard(connection)
        else:
            self._connections.turned_away(ERROR)
        self._logger.error("could not set up the connection from %r", address, exc_info=error)

    def detach(self, connection: Connection) -> None:
        """Count a connection as ended. Does nothing if it is not attached."""
        self._connections.detach(connection, connection.disconnect_cause)
        self._deadlines.discard(connection)
        self._note_room()
        self._note_end()

    def _note_room(self) -> None:
        if self._connections.has_room:
            self._acceptor.release()

    # --- asyncio.Server

    async def start_serving(self) -> None:
        """Begin to accept connections. Does nothing if it has begun.

        Raises RuntimeError after ``close``, also if that comes meanwhile, and OSError if a socket
        cannot listen.
        """
        if self._is_closed:
            raise RuntimeError(f"server {self!r} is closed")
        if not self._is_serving:
            for sock in self._sockets:
                sock.listen(self._backlog)
            await self._acceptor.start()
            self._is_serving = True

    async def serve_forever(self) -> None:
        """Accept connections until the server is closed or the call is cancelled.

        Either way it ends with CancelledError. If the call is cancelled, the server and its
        connections are closed and waited for first. Raises RuntimeError after ``close``, or if
        another task is in this call.
        """
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        await self.start_serving()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            if not self._is_closed:
                await self._close_everything()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Stop listening. Open connections are left alone. May be called again."""
        if self._is_closed:
            return
        # Before the socket is gone: afterwards the path may be another server's.
        path, inode = self._unix_path, self._unix_inode
        if path is not None and inode is not None and _inode(path) == inode:
            with contextlib.suppress(OSError):
                os.remove(path)
        self._is_closed = True
        self._is_serving = False
        self._acceptor.close()
        if self._forever is not None:
            self._forever.cancel()
        self._note_end()

    def close_clients(self) -> None:
        """Send CLOSE 1001 (going away) on every open connection and end it in order. Opening
        handshakes that are under way are aborted."""
        for connection in self._connections:
            connection.send_close(WSCloseCode.GOING_AWAY)
            connection.disconnect(graceful=True)

    def abort_clients(self) -> None:
        """Abort every connection at once, in its opening handshake or open."""
        for connection in self._connections:
            connection.disconnect(graceful=False)

    async def wait_closed(self) -> None:
        """Wait until ``close`` was called and every connection has ended."""
        await self._all_ended.wait()

    # --- Ending in order

    async def shutdown(
        self,
        *,
        code: int = WSCloseCode.GOING_AWAY,
        reason: str | None = None,
        timeout: float | None = None,
        spread: float = 0.0,
    ) -> None:
        """Close the server and end every connection in order (RFC 6455 7.1.2), then return.

        Listening stops at once. Every open connection gets CLOSE, and has its ``close_timeout`` to
        answer; until then nothing that was sent to it is lost. Handshakes that are under way go
        on within ``websocket_handshake_timeout``, and the connection they lead to gets CLOSE, too.
        A connection on which no request has begun, such as a browser opens beforehand, ends at
        once.

        If the call is cancelled, every connection that is left is aborted. It may be called
        again, also while another task is in it, to hurry: the earliest deadline counts.

        :param code: close code: 1001 (going away), 1012 (service restart) or another that may be
            sent
        :param reason: at most 123 bytes of UTF-8
        :param timeout: seconds after which what is left is aborted; None: the deadlines of the
            connections suffice
        :param spread: seconds over which the CLOSE frames are spread evenly, so that the clients
            do not all come back at once
        :raises ValueError, TypeError: an argument is not valid
        """
        build_close_payload(code, reason)  # it raises what every send_close() would
        if timeout is not None:
            _check_seconds("timeout", timeout)
        _check_seconds("spread", spread)
        if timeout is not None and spread > timeout:
            raise ValueError(f"spread must not exceed timeout ({timeout}), got {spread}")
        self._final_close = (code, reason)
        self.close()
        silent = _SilentConnections(self._loop, self._connections.handshakes())
        closing = _PacedClose(self._loop, self._connections.open_connections(), code, reason)
        closing.start(spread)
        deadline = None
        if timeout is not None:
            deadline = self._loop.call_later(timeout, self._on_deadline, timeout)
        try:
            await self.wait_closed()
        except asyncio.CancelledError:
            self.abort_clients()
            raise
        finally:
            silent.cancel()
            closing.cancel()
            if deadline is not None:
                deadline.cancel()

    def _on_deadline(self, timeout: float) -> None:
        self._logger.warning(
            "shutdown: aborting %d connections after %g s", len(self._connections), timeout
        )
        self.abort_clients()

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close_everything()

    async def _close_everything(self) -> None:
        self.close()
        self.close_clients()
        await self.wait_closed()

    def _note_end(self) -> None:
        if self._is_closed and not self._connections:
            self._all_ended.set()


class _Deadlines:
    """The deadlines of the handshakes that are under way: one timer for all, as each has the same
    time.

    A dict keeps the order in which they came, which is the order in which they are due.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout: float | None) -> None:
        self._loop = loop
        self._timeout = timeout
        self._due: dict[Connection, float] = {}
        self._handle: asyncio.TimerHandle | None = None
        # Of those that began before they came here, and so are out of that order.
        self._timers: dict[Connection, asyncio.TimerHandle] = {}

    def add(self, connection: Connection, due: float | None = None) -> None:
        """Its time begins; or it began before and ends at ``due``, of the loop's time."""
        if self._timeout is None:
            return
        if due is not None:
            self._timers[connection] = self._loop.call_at(due, self._on_own_timer, connection)
            return
        self._due[connection] = due = self._loop.time() + self._timeout
        if self._handle is None:
            self._handle = self._loop.call_at(due, self._on_timer)

    def discard(self, connection: Connection) -> None:
        """The handshake is over, or has been refused. Does nothing if it is not there."""
        if self._due.pop(connection, None) is not None and not self._due:
            self._cancel()
        elif self._timers and (timer := self._timers.pop(connection, None)) is not None:
            timer.cancel()

    def withdraw(self, connection: Connection) -> float | None:
        """Another one has the rest of its time: return until when. None: without end."""
        due = self._due.get(connection)
        self.discard(connection)
        return due

    def _cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _on_timer(self) -> None:
        self._handle = None
        now = self._loop.time()
        while self._due:
            connection, due = next(iter(self._due.items()))
            if due > now:
                self._handle = self._loop.call_at(due, self._on_timer)
                return
            del self._due[connection]
            self._end(connection)

    def _on_own_timer(self, connection: Connection) -> None:
        del self._timers[connection]
        self._end(connection)

    def _end(self, connection: Connection) -> None:
        try:
            connection._handshake_timed_out()
        except Exception as exc:
            # Such as a log handler that fails: the others have their deadlines all the same.
            self._loop.call_exception_handler(
                {"message": "a handshake timed out", "exception": exc}
            )


class _PacedClose:
    """Sends CLOSE on each of these connections, evenly over some seconds."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connections: Sequence[Connection],
        code: int,
        reason: str | None,
    ) -> None:
        self._loop = loop
        self._waiting = deque(connections)
        self._total = len(connections)
        self._code = code
        self._reason = reason
        self._started = 0.0
        self._spread = 0.0
        self._handle: asyncio.Handle | None = None

    def start(self, spread: float) -> None:
        """``spread``: seconds from the first to behind the last."""
        self._started = self._loop.time()
        self._spread = spread
        self._send()

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._waiting.clear()

    def _is_due(self) -> bool:
        number = self._total - len(self._waiting)
        return self._loop.time() >= self._started + self._spread * number / self._total

    def _send(self) -> None:
        self._handle = None
        for _ in range(_CLOSES_PER_TURN):
            if not self._waiting or not self._is_due():
                break
            try:
                self._waiting.popleft().send_close(self._code, self._reason)
            except Exception as exc:
                # One that fails must not keep the others from their end; it has its deadline.
                self._loop.call_exception_handler({"message": "CLOSE not sent", "exception": exc})
        if self._waiting:
            if self._is_due():
                self._handle = self._loop.call_soon(self._send)
            else:
                delay = max(self._spread / self._total, _CLOSE_INTERVAL)
                self._handle = self._loop.call_later(delay, self._send)


class _SilentConnections:
    """Ends those on which no request has begun, once the loop has read what had come by now."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connections: Iterable[Connection]) -> None:
        self._loop = loop
        self._connections = [each for each in connections if each._has_been_silent()]
        # The loop asks which descriptors are readable between its turns, and may have begun this
        # one before a request came.
        self._turns = 2
        self._handle: asyncio.Handle | None = loop.call_soon(self._end_turn)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._connections.clear()

    def _end_turn(self) -> None:
        self._handle = None
        if self._turns:
            self._turns -= 1
            self._handle = self._loop.call_soon(self._end_turn)
            return
        for connection in self._connections:
            if connection._has_been_silent():
                connection.disconnect(graceful=False)
        self._connections.clear()


def _check_seconds(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, got {type(value).__name__}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be finite and not negative, got {value}")


def _inode(path: str | bytes | None) -> tuple[int, int] | None:
    """Which file is at this path, as (device, inode); None if there is none."""
    if path is None:
        return None
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: an abstract address is no path
        return None
    return found.st_dev, found.st_ino
