"""Small real proxies for tests: HTTP CONNECT (plain or over TLS), SOCKS4, SOCKS4a and SOCKS5.

They run in the loop of the test, relay bytes to real sockets, resolve names by a table of their
own, and record what they were asked for. They check no more of the protocol than a test needs.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import ssl
from dataclasses import dataclass, field
from typing import Any


class _RefusedError(Exception):
    pass


@dataclass
class Proxy:
    """Use with ``async with``.

    ``kind``: "http", "socks4" or "socks5". ``names``: host name -> address, the proxy's DNS.
    ``credentials``: (user name, password) to insist on. ``refuse``: turn every request down.
    ``answer``: sent in place of the answer that grants the request. ``pieces``: send that answer
    byte by byte. ``silent``: never answer. ``close_early``: close in place of an answer.
    """

    kind: str
    names: dict[str, str] = field(default_factory=dict)
    credentials: tuple[str, str] | None = None
    ssl_context: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    refuse: bool = False
    silent: bool = False
    close_early: bool = False
    pieces: bool = False
    answer: bytes | None = None
    requests: list[tuple[str, int]] = field(default_factory=list)
    given_credentials: list[Any] = field(default_factory=list)
    peers: list[tuple[Any, ...]] = field(default_factory=list)

    async def __aenter__(self) -> Proxy:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, self.host, 0, ssl=self.ssl_context)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        # abort() closes the sockets in the loop's next turn.
        await asyncio.sleep(0)

    def url(self, scheme: str | None = None, user_info: str = "") -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = scheme or ("https" if self.ssl_context else self.kind)
        return f"{scheme}://{user_info}{'@' if user_info else ''}{host}:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.peers.append(writer.get_extra_info("peername"))
        try:
            await getattr(self, f"_serve_{self.kind}")(reader, writer)
        except (OSError, _RefusedError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        granted: bytes,
        refused: bytes,
        allowed: bool = True,
    ) -> None:
        if self.silent:
            await asyncio.Event().wait()
        if self.close_early:
            raise _RefusedError
        if self.refuse or not allowed:
            writer.write(refused)
            await writer.drain()
            writer.write_eof() if writer.can_write_eof() else writer.close()
            await reader.read()  # until the client has seen it, and left
            raise _RefusedError
        answer = granted if self.answer is None else self.answer
        for piece in [answer[i : i + 1] for i in range(len(answer))] if self.pieces else [answer]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)

    async def _relay(
        self, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        target_reader, target_writer = await asyncio.open_connection(
            self.names.get(host, host), port
        )
        upward = asyncio.create_task(_copy(reader, target_writer))
        try:
            await _copy(target_reader, writer)
        finally:
            upward.cancel()
            target_writer.transport.abort()

    async def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
        request_line, *lines = head.split("\r\n")
        method, authority, _ = request_line.split(" ")
        assert method == "CONNECT"
        host, _, port = authority.rpartition(":")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        self.requests.append((host.strip("[]"), int(port)))
        self.given_credentials.append(headers.get("proxy-authorization"))
        allowed = True
        if self.credentials is not None:
            wanted = base64.b64encode(":".join(self.credentials).encode()).decode()
            allowed = f"Proxy-Authorization: Basic {wanted}" in lines
        status = "403 Forbidden" if allowed else "407 Proxy Authentication Required"
        await self._answer(
            reader,
            writer,
            b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n",
            f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode(),
            allowed,
        )
        await self._relay(host.strip("[]"), int(port), reader, writer)

    async def _serve_socks4(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readexactly(8)
        assert head[:2] == b"\x04\x01"
        port, address = int.from_bytes(head[2:4], "big"), head[4:8]
        user = (await reader.readuntil(b"\0"))[:-1].decode()
        if address[:3] == b"\0\0\0":  # SOCKS4a
            host = (await reader.readuntil(b"\0"))[:-1].decode()
        else:
            host = str(ipaddress.IPv4Address(address))
        self.requests.append((host, port))
        self.given_credentials.append(user)
        allowed = self.credentials is None or user == self.credentials[0]
        await self._answer(reader, writer, b"\0\x5a" + bytes(6), b"\0\x5b" + bytes(6), allowed)
        await self._relay(host, port, reader, writer)

    async def _serve_socks5(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        version, count = await reader.readexactly(2)
        assert version == 5
        methods = await reader.readexactly(count)
        if self.credentials is not None:
            if 2 not in methods:
                writer.write(b"\x05\xff")
                await writer.drain()
                raise _RefusedError
            writer.write(b"\x05\x02")
            await reader.readexactly(1)
            user = await reader.readexactly((await reader.readexactly(1))[0])
            password = await reader.readexactly((await reader.readexactly(1))[0])
            self.given_credentials.append((user.decode(), password.decode()))
            if self.given_credentials[-1] != self.credentials:
                writer.write(b"\x01\x01")
                await writer.drain()
                raise _RefusedError
            writer.write(b"\x01\x00")
        else:
            writer.write(b"\x05\x00")
        _, _, _, kind = await reader.readexactly(4)
        if kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            packed = await reader.readexactly(4 if kind == 1 else 16)
            host = str(ipaddress.ip_address(packed))
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.requests.append((host, port))
        bound = b"\x01" + bytes(6)
        await self._answer(reader, writer, b"\x05\x00\x00" + bound, b"\x05\x02\x00" + bound)
        await self._relay(host, port, reader, writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()
