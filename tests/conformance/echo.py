"""The server and the client that the test suite is run against: they send every message back.

LOOP is asyncio, uvloop, or "sockets": the sans-IO Connection over blocking sockets, in threads.

python -m tests.conformance.echo server LOOP [CERTIFICATE KEY]      prints the port
python -m tests.conformance.echo client LOOP URL AGENT [AUTHORITY]
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import sys
import threading

from picows_fast import (
    WSFrame,
    WSListener,
    WSMsgType,
    WSPeerProtocolError,
    WSState,
    WSTransport,
    parse_url,
    ws_connect,
    ws_create_server,
)
from picows_fast.layers.messages import WSMessageListener
from picows_fast.protocol.connection import Connection
from picows_fast.protocol.upgrade import ClientHandshake, ServerHandshake

# What cases 9.* send at most: 16 MiB, and 65,536 fragments with an empty one behind.
MESSAGE_SIZE = 16 * 1024 * 1024
FRAGMENTS = 65_537


class Echo(WSMessageListener):
    def __init__(self) -> None:
        super().__init__(
            max_message_size=MESSAGE_SIZE, max_fragments=FRAGMENTS, check_unfinished_text=True
        )

    def on_ws_message(self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame) -> None:
        transport.send(msg_type, payload)


class CaseCount(WSMessageListener):
    count = 0

    def on_ws_message(self, transport: WSTransport, msg_type: WSMsgType, payload: WSFrame) -> None:
        self.count = int(payload.get_payload_as_utf8_text())


async def serve(*files: str) -> None:
    context = None
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
    server = await ws_create_server(
        lambda request: Echo(), "127.0.0.1", 0, ssl=context, max_frame_size=MESSAGE_SIZE
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def run_cases(url: str, agent: str, *files: str) -> None:
    context = ssl.create_default_context(cafile=files[0]) if files else None

    async def until_closed(listener: WSListener, path: str) -> None:
        transport, _ = await ws_connect(
            lambda: listener, url + path, ssl_context=context, max_frame_size=MESSAGE_SIZE
        )
        with contextlib.suppress(WSPeerProtocolError):  # what many cases are about
            await transport.wait_disconnected()

    counter = CaseCount()
    await until_closed(counter, "/getCaseCount")
    for case in range(1, counter.count + 1):
        await until_closed(Echo(), f"/runCase?case={case}&agent={agent}")


# --- The sans-IO connection over blocking sockets


def talk(sock: socket.socket, handshake: ClientHandshake | ServerHandshake) -> list[WSFrame]:
    """Send every message back until the connection has ended; return what came."""
    connection = Connection(
        is_client=isinstance(handshake, ClientHandshake),
        max_frame_size=MESSAGE_SIZE,
        max_message_size=MESSAGE_SIZE,
        max_fragments=FRAGMENTS,
        check_unfinished_text=True,
    )
    got = []
    data = handshake.trailing_data
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        if data:
            connection.receive_data(data)
        for frame in connection:
            got.append(frame)
            if frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY):
                connection.send(frame.msg_type, frame)
        with contextlib.suppress(OSError):
            sock.sendall(connection.data_to_send())
            if connection.must_end:
                sock.shutdown(socket.SHUT_WR)
        if connection.state is WSState.CLOSED:
            return got
        try:
            data = sock.recv(65536)
        except OSError as error:
            connection.receive_eof(error)
        else:
            if not data:
                connection.receive_eof()


def serve_socket(sock: socket.socket) -> None:
    with sock:
        handshake = ServerHandshake()
        while data := sock.recv(65536):
            if handshake.receive_data(data) is not None:
                sock.sendall(handshake.accept().to_bytes())
                talk(sock, handshake)
                return


def serve_sockets() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    while True:
        sock, _ = listening.accept()
        threading.Thread(target=serve_socket, args=(sock,), daemon=True).start()


def run_case_over_socket(url: str) -> list[WSFrame]:
    parsed = parse_url(url)
    with socket.create_connection((parsed.host, parsed.port)) as sock:
        handshake = ClientHandshake(parsed)
        sock.sendall(handshake.request_bytes())
        while handshake.receive_data(sock.recv(65536)) is None:
            pass
        return talk(sock, handshake)


def run_cases_over_sockets(url: str, agent: str) -> None:
    first = run_case_over_socket(url + "/getCaseCount")[0]
    for case in range(1, int(first.get_payload_as_utf8_text()) + 1):
        run_case_over_socket(f"{url}/runCase?case={case}&agent={agent}")


def main(command: str, loop_name: str, *arguments: str) -> None:
    if loop_name == "sockets":
        with contextlib.suppress(KeyboardInterrupt):
            {"server": serve_sockets, "client": run_cases_over_sockets}[command](*arguments)
        return
    if loop_name == "uvloop":
        import uvloop

        loop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    with contextlib.suppress(KeyboardInterrupt):
        loop.run_until_complete({"server": serve, "client": run_cases}[command](*arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
