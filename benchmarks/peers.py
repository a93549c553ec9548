"""The libraries under test, each as an echo server and an echo client that counts round trips.

One function a library and side; they are run in processes of their own by ``roundtrip``.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILT = HERE / "results" / "built"

#: library -> (module to import, module to cimport)
CALLBACK_LIBRARIES = {
    "picows_fast": ("picows_fast", "picows_fast.core"),
    "picows": ("picows", "picows.picows"),
}
LIBRARIES = (*CALLBACK_LIBRARIES, "websockets", "aiohttp")


def cython_listeners(library: str) -> Any:
    """Build (once) and import the Cython listeners for a library."""
    name = f"listeners_{library}"
    folder = BUILT / f"{sys.implementation.cache_tag}"
    folder.mkdir(parents=True, exist_ok=True)
    source = (
        (HERE / "listeners.pyx.txt").read_text().replace("MODULE", CALLBACK_LIBRARIES[library][1])
    )
    target = folder / f"{name}.pyx"
    built = folder / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    library_file = importlib.import_module(CALLBACK_LIBRARIES[library][1]).__file__
    is_fresh = (
        built.exists()
        and target.exists()
        and target.read_text() == source
        and built.stat().st_mtime > Path(library_file or "").stat().st_mtime
    )
    if not is_fresh:
        target.write_text(source)
        root = Path(
            importlib.import_module(CALLBACK_LIBRARIES[library][0]).__file__ or ""
        ).parent.parent
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from Cython.Build.Cythonize import main; main()",
                "-i",
                "-f",
                "-q",
                target.name,
            ],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": str(root)},
        )
    sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def python_listeners(module: Any) -> tuple[type, type]:
    close = module.WSMsgType.CLOSE
    binary = module.WSMsgType.BINARY

    class EchoServer(module.WSListener):  # type: ignore[misc, name-defined]
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == close:
                transport.disconnect()
            else:
                transport.send(frame.msg_type, frame.get_payload_as_memoryview())

    class EchoClient(module.WSListener):  # type: ignore[misc, name-defined]
        def __init__(self, message: bytes, done: asyncio.Future[None]) -> None:
            self.message = message
            self.done = done
            self.requests = 0

        def on_ws_connected(self, transport: Any) -> None:
            transport.send(binary, self.message)

        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            self.requests += 1
            transport.send(binary, self.message)

        def on_ws_disconnected(self, transport: Any) -> None:
            if not self.done.done():
                self.done.set_exception(ConnectionError("disconnected"))

    return EchoServer, EchoClient


async def serve(
    library: str, kind: str, tls: ssl.SSLContext | None, ready: Callable[[int], None]
) -> None:
    """Run an echo server until cancelled; `ready` is called with its port."""
    if library in CALLBACK_LIBRARIES:
        module = importlib.import_module(CALLBACK_LIBRARIES[library][0])
        echo = (
            cython_listeners(library).EchoServer
            if kind == "cython"
            else python_listeners(module)[0]
        )
        server = await module.ws_create_server(lambda request: echo(), "127.0.0.1", 0, ssl=tls)
        ready(server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()
    elif library == "websockets":
        from websockets.asyncio.server import serve as websockets_serve

        async def handler(connection: Any) -> None:
            async for message in connection:
                await connection.send(message)

        async with websockets_serve(
            handler, "127.0.0.1", 0, ssl=tls, compression=None, max_size=None, ping_interval=None
        ) as server:
            ready(next(iter(server.sockets)).getsockname()[1])
            await asyncio.Event().wait()
    else:
        from aiohttp import web

        async def handle(request: web.Request) -> web.WebSocketResponse:
            connection = web.WebSocketResponse(compress=False, max_msg_size=0)
            await connection.prepare(request)
            async for message in connection:
                await connection.send_bytes(message.data)
            return connection

        application = web.Application()
        application.router.add_get("/", handle)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        ready(site._server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()


async def request(
    library: str, kind: str, tls: ssl.SSLContext | None, port: int, message: bytes, seconds: float
) -> int:
    """Echo `message` for that long; return the number of round trips."""
    url = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/"
    loop = asyncio.get_running_loop()
    if library in CALLBACK_LIBRARIES:
        module = importlib.import_module(CALLBACK_LIBRARIES[library][0])
        client = (
            cython_listeners(library).EchoClient
            if kind == "cython"
            else python_listeners(module)[1]
        )
        done: asyncio.Future[None] = loop.create_future()
        transport, listener = await module.ws_connect(
            lambda: client(message, done), url, ssl_context=tls
        )
        loop.call_later(seconds, lambda: done.done() or done.set_result(None))
        await done
        requests: int = listener.requests
        transport.disconnect(False)
        return requests
    deadline = loop.time() + seconds
    count = 0
    if library == "websockets":
        from websockets.asyncio.client import connect

        async with connect(
            url, ssl=tls, compression=None, max_size=None, ping_interval=None, proxy=None
        ) as connection:
            while loop.time() < deadline:
                await connection.send(message)
                await connection.recv()
                count += 1
    else:
        import aiohttp

        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, ssl=tls or True, compress=0, max_msg_size=0) as connection,
        ):
            while loop.time() < deadline:
                await connection.send_bytes(message)
                await connection.receive()
                count += 1
    return count
