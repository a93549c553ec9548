"""listening: binding and accepting, on real sockets."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from picows_fast.net import listen as listening
from picows_fast.net.listen import Acceptor, open_listening_sockets
from picows_fast.server.server import Server

from . import needs
from .support import until


async def bind(*args: Any, **options: Any) -> list[socket.socket]:
    return await open_listening_sockets(asyncio.get_running_loop(), *args, **options)


class Accepted:
    """Callback that keeps what it is given."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.addresses: list[Any] = []

    def __call__(self, sock: socket.socket, address: Any) -> None:
        self.sockets.append(sock)
        self.addresses.append(address)

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    async def wait_for(self, count: int) -> None:
        await until(lambda: len(self.sockets) >= count)


@asynccontextmanager
async def serving(
    *args: Any, on_socket: Any = None, **options: Any
) -> AsyncIterator[tuple[Server, Accepted]]:
    accepted = Accepted()
    server_options = {
        name: options.pop(name) for name in ("keep_alive", "logger") if name in options
    }
    sockets = await bind(*args, **options)
    server = Server(
        asyncio.get_running_loop(),
        sockets,
        on_socket or accepted,
        backlog=options.get("backlog", 100),
        unix_path=options.get("unix_path"),
        **server_options,
    )
    await server.start_serving()
    try:
        yield server, accepted
    finally:
        server.close()
        accepted.close()


def connect(address: Any, family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family)
    sock.settimeout(10)
    sock.connect(address)
    return sock


# Binding.


async def test_port_0_takes_a_free_port() -> None:
    (sock,) = await bind("127.0.0.1", 0)
    with sock:
        host, port = sock.getsockname()
        assert host == "127.0.0.1"
        assert port > 0
        assert sock.getblocking() is False
        assert sock.get_inheritable() is False
        connect((host, port)).close()


async def test_port_none_takes_a_free_port() -> None:
    (sock,) = await bind("127.0.0.1")
    with sock:
        assert sock.getsockname()[1] > 0


@pytest.mark.parametrize("host", [None, ""])
async def test_all_interfaces(host: str | None) -> None:
    sockets = await bind(host, 0)
    names = {sock.getsockname()[0] for sock in sockets}
    for sock in sockets:
        sock.close()
    assert "0.0.0.0" in names
    assert names <= {"0.0.0.0", "::"}


@needs.ipv6
async def test_ipv6_does_not_take_the_ipv4_port() -> None:
    (ipv4,) = await bind("0.0.0.0", 0)
    port = ipv4.getsockname()[1]
    with ipv4:
        (ipv6,) = await bind("::", port)
        with ipv6:
            assert ipv6.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1


@needs.ipv6
async def test_sequence_of_hosts() -> None:
    sockets = await bind(["127.0.0.1", "::1", "127.0.0.1"], 0)
    names = [sock.getsockname()[0] for sock in sockets]
    for sock in sockets:
        sock.close()
    assert names == ["127.0.0.1", "::1"]


async def test_family() -> None:
    sockets = await bind("localhost", 0, family=socket.AF_INET)
    families = [sock.family for sock in sockets]
    for sock in sockets:
        sock.close()
    assert families == [socket.AF_INET]


async def test_a_port_in_use_is_named_and_nothing_stays_open() -> None:
    (first,) = await bind("127.0.0.1", 0)
    port = first.getsockname()[1]
    with first, socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        with pytest.raises(OSError, match=rf"cannot bind \('127\.0\.0\.1', {port}\)") as caught:
            await bind(["127.0.0.2", "127.0.0.1"], port)
        assert caught.value.errno == errno.EADDRINUSE
        # Had the socket on 127.0.0.2 stayed open, this would fail.
        (again,) = await bind("127.0.0.2", port)
        again.close()


async def test_an_address_that_is_not_ours() -> None:
    with pytest.raises(OSError, match=r"cannot bind \('192\.0\.2\.1', 0\)") as caught:
        await bind("192.0.2.1", 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL
    # Beside one that is ours it is passed over.
    (sock,) = await bind(["192.0.2.1", "127.0.0.1"], 0)
    with sock:
        assert sock.getsockname()[0] == "127.0.0.1"


async def test_an_unknown_host_is_named() -> None:
    with pytest.raises(socket.gaierror, match=r"cannot resolve 'host\.invalid'"):
        await bind("host.invalid", 0)


@needs.reuse_port
async def test_reuse_port() -> None:
    (first,) = await bind("127.0.0.1", 0, reuse_port=True)
    with first:
        (second,) = await bind("127.0.0.1", first.getsockname()[1], reuse_port=True)
        second.close()
        assert first.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) != 0


async def test_without_reuse_address() -> None:
    (sock,) = await bind("127.0.0.1", 0, reuse_address=False)
    with sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 0


async def test_sock() -> None:
    given = socket.socket()
    given.bind(("127.0.0.1", 0))
    sockets = await bind(sock=given)
    assert sockets == [given]
    with given:
        connect(given.getsockname()).close()


async def test_sock_of_a_wrong_type() -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as given,
        pytest.raises(ValueError, match="sock must be a stream socket"),
    ):
        await bind(sock=given)


async def test_one_place_to_listen_on() -> None:
    with socket.socket() as given:
        for args, options in (
            ((), {}),
            (("127.0.0.1",), {"sock": given}),
            ((None, 0), {"unix_path": "x.sock"}),
            ((), {"sock": given, "unix_path": "x.sock"}),
        ):
            with pytest.raises(ValueError, match="exactly one of host/port, sock and unix_path"):
                await bind(*args, **options)
    with pytest.raises(ValueError, match="empty sequence"):
        await bind([], 0)


async def test_unix_path(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    (sock,) = await bind(unix_path=path)
    with sock:
        connect(str(path), socket.AF_UNIX).close()
        with pytest.raises(OSError, match=str(path)) as caught:
            await bind(unix_path=str(path))
        assert caught.value.errno == errno.EADDRINUSE
    # Nobody listens any more: the path is stale.
    (sock,) = await bind(unix_path=os.fsencode(path))
    with sock:
        connect(str(path), socket.AF_UNIX).close()


async def test_unix_path_that_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(OSError, match=str(path)):
        await bind(unix_path=path)
    assert path.read_text() == "precious"


@pytest.mark.skipif(sys.platform != "linux", reason="abstract addresses are Linux's")
async def test_abstract_unix_address() -> None:
    address = f"\0picows-fast-test-{os.getpid()}"
    (sock,) = await bind(unix_path=address)
    with sock:
        connect(address, socket.AF_UNIX).close()


# Accepting.


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs.ipv6)])
async def test_accept(host: str) -> None:
    async with serving(host, 0) as (server, accepted):
        (listener,) = server.sockets
        client = connect(listener.getsockname(), listener.family)
        await accepted.wait_for(1)
        with client:
            assert accepted.addresses == [client.getsockname()]
            (sock,) = accepted.sockets
            assert sock.getblocking() is False
            assert sock.get_inheritable() is False
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
            client.sendall(b"hello")
            assert await asyncio.get_running_loop().sock_recv(sock, 10) == b"hello"


async def test_keep_alive() -> None:
    async with serving("127.0.0.1", 0, keep_alive=True) as (server, accepted):
        with connect(server.sockets[0].getsockname()):
            await accepted.wait_for(1)
            assert accepted.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0


async def test_accept_on_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with serving(unix_path=path) as (server, accepted):
        with connect(str(path), socket.AF_UNIX) as client:
            await accepted.wait_for(1)
            accepted.sockets[0].send(b"hello")
            assert client.recv(10) == b"hello"
        server.close()
        assert not path.exists()


async def test_close_leaves_the_path_of_a_later_server(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with serving(unix_path=path) as (first, _):
        path.unlink()
        async with serving(unix_path=path) as (_, accepted):
            first.close()
            with connect(str(path), socket.AF_UNIX):
                await accepted.wait_for(1)


@pytest.mark.parametrize("backlog", [1, 3, 100])
async def test_all_that_wait_are_accepted(backlog: int) -> None:
    loop = asyncio.get_running_loop()
    sockets = await bind("127.0.0.1", 0, backlog=50)
    clients = [connect(sockets[0].getsockname()) for _ in range(20)]
    turns: list[int] = []
    accepted = Accepted()

    def on_socket(sock: socket.socket, address: Any) -> None:
        accepted(sock, address)
        turns[-1] += 1

    acceptor = Acceptor(loop, sockets, on_socket, backlog=backlog)
    accept = acceptor._accept

    def counting_accept(listening_socket: socket.socket) -> None:
        turns.append(0)
        accept(listening_socket)

    acceptor._accept = counting_accept  # type: ignore[method-assign]
    await acceptor.start()
    await acceptor.start()
    await accepted.wait_for(20)
    assert max(turns) <= backlog
    assert sorted(accepted.addresses) == sorted(client.getsockname() for client in clients)
    acceptor.close()
    acceptor.close()
    with pytest.raises(RuntimeError, match="closed"):
        await acceptor.start()
    accepted.close()
    for client in clients:
        client.close()


async def test_an_error_of_the_callback_costs_one_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    accepted = Accepted()

    def on_socket(sock: socket.socket, address: Any) -> None:
        if not failed:
            failed.append(address)
            sock.close()  # it is the callback's
            raise LookupError("not this one")
        accepted(sock, address)

    failed: list[Any] = []
    async with serving("127.0.0.1", 0, on_socket=on_socket) as (server, _):
        address = server.sockets[0].getsockname()
        with connect(address) as first, connect(address):
            await accepted.wait_for(1)
            assert first.recv(1) == b""
    accepted.close()
    (record,) = caplog.records
    assert record.name == "picows_fast.server"
    assert record.exc_info is not None
    assert record.exc_info[0] is LookupError


async def test_closing_in_the_callback() -> None:
    accepted = Accepted()

    def on_socket(sock: socket.socket, address: Any) -> None:
        accepted(sock, address)
        servers[0].close()

    servers: list[Server] = []
    sockets = await bind("127.0.0.1", 0)
    clients = [connect(sockets[0].getsockname()) for _ in range(3)]
    servers.append(Server(asyncio.get_running_loop(), sockets, on_socket))
    await servers[0].start_serving()
    await accepted.wait_for(1)
    await asyncio.sleep(0.01)
    assert len(accepted.sockets) == 1
    accepted.close()
    for client in clients:
        client.close()


class FailingSocket(socket.socket):
    """A listening socket whose accept fails as often as it is told to."""

    failures: list[OSError]
    attempts = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.attempts += 1
        if self.failures:
            raise self.failures.pop(0)
        return super().accept()


def failing_socket(*numbers: int) -> FailingSocket:
    sock = FailingSocket()
    sock.failures = [OSError(number, os.strerror(number)) for number in numbers]
    sock.bind(("127.0.0.1", 0))
    return sock


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EINTR, errno.EPROTO, errno.EPERM])
async def test_a_lost_connection_does_not_stop_accepting(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    sock = failing_socket(number)
    async with serving(sock=sock) as (_, accepted):
        with connect(sock.getsockname()):
            await accepted.wait_for(1)
    assert caplog.records == []


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EINVAL]
)
async def test_out_of_resources(
    number: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_PAUSE_AFTER_ERROR", 0.05)
    sock = failing_socket(number, number, number)
    async with serving(sock=sock) as (server, accepted):
        with connect(sock.getsockname()):
            await until(lambda: sock.attempts > 0)
            assert server.is_serving()
            await accepted.wait_for(1)
            # Three failures and one success, however long the socket stayed readable, and then
            # the attempt that finds the queue empty.
            assert sock.attempts in (4, 5)
        sock.failures.append(OSError(number, os.strerror(number)))
        with connect(sock.getsockname()):
            await accepted.wait_for(2)
    # Once for each episode.
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert os.strerror(number) in caplog.text


async def test_close_while_paused() -> None:
    sock = failing_socket(*[errno.EMFILE] * 1000)
    async with serving(sock=sock) as (server, accepted):
        with connect(sock.getsockname()):
            await until(lambda: sock.attempts > 0)
            server.close()
        assert sock.fileno() == -1
        await server.wait_closed()
        assert accepted.sockets == []
        assert sock.attempts == 1


@needs.descriptor_list
async def test_out_of_descriptors_for_real(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    monkeypatch.setattr(listening, "_PAUSE_AFTER_ERROR", 0.05)
    async with serving("127.0.0.1", 0) as (server, accepted):
        client = socket.socket()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        fillers = [os.dup(client.fileno()) for _ in range(highest + 1)]
        try:
            # All descriptors below the limit are taken now.
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers) + 1, hard))
            client.connect(server.sockets[0].getsockname())
            await until(lambda: bool(caplog.records))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                os.close(filler)
        await accepted.wait_for(1)
        client.close()
    assert "Too many open files" in caplog.text
