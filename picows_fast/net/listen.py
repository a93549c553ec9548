"""From host and port to accepted sockets.

Owns the listening sockets: binding them, accepting from them, closing them. What happens on an
accepted socket belongs to the callback it is given to.

Needs a loop with ``add_reader``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

__all__ = ["LOGGER", "Acceptor", "LoopAcceptor", "OnSocket", "open_listening_sockets"]

#: where no other one is given
LOGGER: Final = logging.getLogger("picows_fast.server")

#: called with an accepted socket, which it owns from then on, and the peer's address
OnSocket = Callable[[socket.socket, Any], None]

# Errors of one connection that died in the queue, not of the listening socket: accept(2).
_LOST_CONNECTION: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "ECONNRESET",
        "EPROTO",
        "EPERM",
        "ENETDOWN",
        "ENETUNREACH",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENOPROTOOPT",
        "ENONET",
    )
    if hasattr(errno, name)
)
# On Linux, an accepted socket has the options of the listening one.
_INHERITS_OPTIONS: Final = sys.platform == "linux"
_PAUSE_AFTER_ERROR: Final = 1.0  # seconds


async def open_listening_sockets(
    loop: asyncio.AbstractEventLoop,
    host: str | Sequence[str] | None = None,
    port: int | None = None,
    *,
    family: int = 0,
    flags: int = socket.AI_PASSIVE,
    sock: socket.socket | None = None,
    backlog: int = 100,
    reuse_address: bool | None = None,
    reuse_port: bool | None = None,
    unix_path: str | bytes | os.PathLike[str] | None = None,
    listen: bool = True,
) -> list[socket.socket]:
    """Bind every address that host and port stand for, and listen on all of them.

    Exactly one of host/port, ``sock`` and ``unix_path`` says where. A ``host`` of None or "" means
    all interfaces, a sequence several hosts; port 0 or None takes a free port for each address.
    ``backlog`` is the number of connections that may wait to be accepted. ``reuse_address`` None
    means on, except on Windows. A Unix socket that nobody listens on any more is replaced; any
    other file at ``unix_path`` is an error. Without ``listen`` the sockets are only bound.

    The sockets are non-blocking. If the call fails, those it made are closed. Raises OSError
    naming the address, and ValueError for arguments that do not go together or that this platform
    does not have.
    """
    ways = [host is not None or port is not None, sock is not None, unix_path is not None]
    if sum(ways) != 1:
        raise ValueError("exactly one of host/port, sock and unix_path must be given")
    if sock is not None:
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"sock must be a stream socket, got {sock.type!r}")
        sockets = [sock]
    elif unix_path is not None:
        sockets = [_bind_unix(os.fspath(unix_path))]
    else:
        infos = await _resolve_all(loop, host, port, family, flags)
        sockets = _bind_all(infos, reuse_address, bool(reuse_port))
    bound = sockets[0]
    try:
        for bound in sockets:
            bound.setblocking(False)
            if listen:
                bound.listen(backlog)
    except BaseException as exc:
        address = bound.getsockname()
        for opened in sockets:
            if opened is not sock:
                opened.close()
        if isinstance(exc, OSError):
            raise _naming("listen on", address, exc) from exc
        raise  # such as a backlog that is no C int
    return sockets


async def _resolve_all(
    loop: asyncio.AbstractEventLoop,
    host: str | Sequence[str] | None,
    port: int | None,
    family: int,
    flags: int,
) -> list[tuple[Any, ...]]:
    hosts: Sequence[str | None]
    if host is None or host == "":
        hosts = [None]
    elif isinstance(host, str):
        hosts = [host]
    else:
        hosts = host
    infos: dict[tuple[Any, ...], None] = {}
    for name in hosts:
        try:
            found = await _resolve(loop, name, port or 0, family, flags)
        except socket.gaierror as exc:
            raise socket.gaierror(exc.errno, f"cannot resolve {name!r}: {exc.strerror}") from exc
        if not found:
            raise OSError(f"cannot resolve {name!r}: no address")
        # A dict keeps the order; two names may stand for one address.
        infos.update(dict.fromkeys(found))
    if not infos:
        raise ValueError("host must not be an empty sequence")
    return list(infos)


async def _resolve(
    loop: asyncio.AbstractEventLoop, name: str | None, port: int, family: int, flags: int
) -> list[tuple[Any, ...]]:
    try:
        # An address needs no resolver, and so none of the loop's threads.
        return list(
            socket.getaddrinfo(
                name, port, family, socket.SOCK_STREAM, 0, flags | socket.AI_NUMERICHOST
            )
        )
    except (socket.gaierror, UnicodeError):
        return list(
            await loop.getaddrinfo(name, port, family=family, type=socket.SOCK_STREAM, flags=flags)
        )


def _bind_all(
    infos: list[tuple[Any, ...]], reuse_address: bool | None, reuse_port: bool
) -> list[socket.socket]:
    if reuse_address is None:
        # On Windows the option lets another process take the address over.
        reuse_address = os.name == "posix" and sys.platform != "cygwin"
    if reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise ValueError("reuse_port is not supported on this platform")
    sockets: list[socket.socket] = []
    unavailable: OSError | None = None
    try:
        for family, kind, proto, _, address in infos:
            try:
                sock = socket.socket(family, kind, proto)
            except OSError as exc:
                # getaddrinfo may name a family that this system has turned off.
                unavailable = _naming("open a socket for", address, exc)
                continue
            sockets.append(sock)
            if reuse_address:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6 and hasattr(socket, "IPPROTO_IPV6"):
                # Else the IPv6 socket takes the IPv4 port too, and binding that fails.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind(address)
            except OSError as exc:
                error = _naming("bind", address, exc)
                if exc.errno != errno.EADDRNOTAVAIL:
                    raise error from exc
                # Such as ::1 in a container without IPv6, when host is "localhost".
                sockets.remove(sock)
                sock.close()
                unavailable = error
        if not sockets and unavailable is not None:
            raise unavailable
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _bind_unix(path: str | bytes) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise ValueError("unix_path is not supported on this platform")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        _remove_stale_socket(path)
        sock.bind(path)
    except BaseException as exc:
        sock.close()
        if isinstance(exc, OSError):
            raise _naming("bind", path, exc) from exc
        raise  # such as a path with a NUL inside
    return sock


def _remove_stale_socket(path: str | bytes) -> None:
    if path[:1] in ("\0", b"\0"):  # an abstract address is no file
        return
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.remove(path)
        except OSError:
            # Somebody listens (a full queue gives EAGAIN) or it is not ours: bind will tell.
            pass


def _naming(action: str, address: object, exc: OSError) -> OSError:
    text = f"cannot {action} {address!r}: {exc.strerror or exc}"
    return OSError(exc.errno, text) if exc.errno is not None else OSError(text)


def _drop(sock: socket.socket, address: Any) -> None:
    del address
    sock.close()


class Acceptor:
    """Accepts connections and hands each to a callback.

    ``on_socket(sock, peer_address)`` gets a non-blocking socket, with TCP_NODELAY if it is TCP, and
    owns it from then on, also if it raises, which is logged. At most ``backlog`` connections are
    accepted in one turn of the loop, for each listening socket.

    When the process or the system is out of descriptors or memory, or accepting fails in a way that
    is not explained by a lost connection, this is logged once and accepting pauses for a second:
    the listening socket stays readable, and the loop would spin.

    Between ``hold`` and ``release`` new connections wait in the system's queue.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Sequence[socket.socket],
        on_socket: OnSocket,
        *,
        backlog: int = 100,
        keep_alive: bool = False,
        logger: Any = LOGGER,
    ) -> None:
        self._loop = loop
        self._sockets = tuple(sockets)
        self._on_socket = on_socket
        self._backlog = backlog
        self._keep_alive = keep_alive
        self._logger = logger
        self._is_started = False
        self._is_closed = False
        self._is_held = False
        self._is_watching = False
        self._is_failing = False
        self._resume_handle: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to accept. Does nothing if it has begun; RuntimeError after ``close``."""
        if self._is_closed:
            raise RuntimeError("the acceptor is closed")
        self._is_started = True
        if _INHERITS_OPTIONS:
            for sock in self._sockets:
                self._set_options(sock)
        self._update()

    def close(self) -> None:
        """Stop for good and close the listening sockets. May be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        self._on_socket = _drop  # usually refers to the server, which refers to this object
        if self._resume_handle is not None:
            self._resume_handle.cancel()
            self._resume_handle = None
        self._update()
        for sock in self._sockets:
            sock.close()

    def hold(self) -> None:
        """Accept nothing until ``release``, not even the next one of this turn."""
        self._is_held = True
        self._update()

    def release(self) -> None:
        """Accept again. Does nothing if nothing is held."""
        self._is_held = False
        self._update()

    def _is_accepting(self) -> bool:
        return (
            self._is_started
            and not self._is_closed
            and not self._is_held
            and self._resume_handle is None
        )

    def _update(self) -> None:
        """Watch the listening sockets if connections are to be accepted, else not."""
        if self._is_watching == self._is_accepting():
            return
        self._is_watching = not self._is_watching
        for sock in self._sockets:
            if self._is_watching:
                self._loop.add_reader(sock, self._accept, sock)
            else:
                self._loop.remove_reader(sock)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(self._backlog):
            # The callback may have closed or held this object, an error may have paused it.
            if not self._is_accepting():
                return
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                if exc.errno in _LOST_CONNECTION:
                    continue
                self._pause(exc)
                return
            self._is_failing = False
            self._deliver(sock, address)

    def _set_options(self, sock: socket.socket) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._keep_alive:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def _deliver(self, sock: socket.socket, address: Any) -> None:
        try:
            sock.setblocking(False)
            if not _INHERITS_OPTIONS:
                # The peer may be gone already, which some systems report here.
                with contextlib.suppress(OSError):
                    self._set_options(sock)
        except BaseException:
            sock.close()
            raise
        try:
            self._on_socket(sock, address)
        except Exception:
            # Not closed here: whoever the callback gave it to may have closed it, and its number
            # may be another socket's.
            self._logger.error("could not set up the connection from %r", address, exc_info=True)

    def _pause(self, exc: OSError) -> None:
        if not self._is_failing:
            self._is_failing = True
            self._logger.error(
                "cannot accept connections: %s; trying again every %g s", exc, _PAUSE_AFTER_ERROR
            )
        self._resume_handle = self._loop.call_later(_PAUSE_AFTER_ERROR, self._resume)
        self._update()

    def _resume(self) -> None:
        self._resume_handle = None
        self._update()


class LoopAcceptor:
    """Leaves accepting to the event loop: for loops that cannot watch a listening descriptor.

    ``make_protocol`` is called for each accepted connection, as with ``loop.create_server``. The
    loop cannot be told to wait, so ``hold`` has no effect.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sockets: Sequence[socket.socket],
        make_protocol: Callable[[], asyncio.BaseProtocol],
        *,
        backlog: int,
    ) -> None:
        self._loop = loop
        self._sockets = tuple(sockets)
        self._make_protocol: Callable[[], asyncio.BaseProtocol] | None = make_protocol
        self._backlog = backlog
        self._servers: list[asyncio.AbstractServer] = []

    async def start(self) -> None:
        """Begin to accept. RuntimeError if it is closed, also meanwhile."""
        for sock in self._sockets:
            server = await self._loop.create_server(
                self._protocol_factory(), sock=sock, backlog=self._backlog, start_serving=False
            )
            self._servers.append(server)  # before an await at which we may be cancelled
            await server.start_serving()
        self._protocol_factory()  # raises if it was closed at the last await

    def _protocol_factory(self) -> Callable[[], asyncio.BaseProtocol]:
        if self._make_protocol is None:
            raise RuntimeError("the acceptor is closed")
        return self._make_protocol

    def close(self) -> None:
        """Stop for good and close the listening sockets. May be called again."""
        self._make_protocol = None  # usually refers to the server, which refers to this object
        for server in self._servers:
            server.close()
        self._servers.clear()
        for sock in self._sockets:
            sock.close()

    def hold(self) -> None:
        """Does nothing."""

    def release(self) -> None:
        """Does nothing."""
