"""What users write in Cython: modules built outside of the package, from its .pxd files alone."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import ModuleType

import pytest

import picows_fast
from picows_fast import WSCloseCode, WSDisconnectCause, WSMsgType

from .cython_build import load
from .support import Echo, Recorder, client_frame, raw_client, read_frame, serving


@pytest.fixture(scope="session")
def ported(cython_folder: Path) -> ModuleType:
    """tests/cython_user/ported.pyx, built and imported."""
    return load(cython_folder, "ported")


@pytest.fixture(scope="session")
def broadcasting(cython_folder: Path) -> ModuleType:
    """tests/cython_user/broadcasting.pyx, built and imported."""
    return load(cython_folder, "broadcasting")


async def closed(transport):
    await asyncio.wait_for(transport.wait_disconnected(), 20)


async def test_every_method_and_field(listeners, io_options):
    """cpdef overrides on both sides, reading payload_ptr and the frame's fields in C."""
    server_side = listeners.Full()
    async with serving(lambda request: server_side, enable_auto_pong=False, **io_options) as url:
        transport, client = await picows_fast.ws_connect(listeners.Full, url, **io_options)
        assert client.transport is transport
        transport.cork()
        transport.send(WSMsgType.TEXT, "first")
        transport.send(WSMsgType.BINARY, b"\0\1" * 100, False)
        transport.send(WSMsgType.CONTINUATION, b"")
        transport.uncork()
        await client.until(lambda: len(client.events) == 4)
        # one read: header and payload of what follows are the tail
        assert server_side.events[1:] == [
            ("on_ws_frame", WSMsgType.TEXT, True, b"first", True, False, 8 + 200 + 6),
            ("on_ws_frame", WSMsgType.BINARY, False, b"\0\1" * 100, False, False, 6),
            ("on_ws_frame", WSMsgType.CONTINUATION, False, b"", True, True, 0),
        ]
        assert [event[1:5] for event in client.events[1:]] == [
            (WSMsgType.TEXT, True, b"first", True),
            (WSMsgType.BINARY, False, b"\0\1" * 100, False),
            (WSMsgType.CONTINUATION, False, b"", True),
        ]
        transport.send_close(WSCloseCode.OK, "bye")
        await closed(transport)
        assert listeners.close_summary(transport) == (True, "bye", True, "bye", False)
        await server_side.until(lambda: server_side.names()[-1] == "on_ws_disconnected")
    assert server_side.events[0] == ("on_ws_connected", False)
    assert client.events[0] == ("on_ws_connected", True)
    assert client.names().count("on_ws_disconnected") == 1
    assert transport.disconnect_cause == WSDisconnectCause.LOCAL_CLOSE


async def test_publishing_and_a_channel_of_ones_own(broadcasting):
    """C calls of publish(), counters as C fields, and an override that Python and C calls find."""
    prices = broadcasting.Prices("prices")
    clients = []

    def factory(request):
        clients.append(broadcasting.Client(prices))
        return clients[-1]

    async with serving(factory) as url:
        assert broadcasting.publish_all(prices, [("a", "a0"), ("b", "b0"), ("a", "a1")]) == (
            0,
            0,
            3,
        )
        transport, received = await picows_fast.ws_connect(Recorder, url)
        await received.frame(1)
        assert broadcasting.publish_all(prices, [("a", "a2"), ("c", "c0")]) == (2, 4, 5)
        assert prices.publish(WSMsgType.TEXT, "b1", key="b") == 1
        await received.frame(4)
        assert [payload for _, payload, _ in received.frames] == [b"a1", b"b0", b"a2", b"c0", b"b1"]
        assert prices.newest == {"a": "a2", "b": "b1", "c": "c0"}
        (client,) = clients
        assert client.subscription.is_active
        assert broadcasting.counters(prices, client.transport) == (5, 5, 0, True)
        assert not client.subscription.is_active
        transport.disconnect()
        await closed(transport)


async def test_every_call(listeners, io_options):
    server_side = Recorder()
    async with serving(lambda request: server_side, enable_auto_pong=False, **io_options) as url:
        transport, _ = await picows_fast.ws_connect(Recorder, url, **io_options)
        listeners.call_everything(transport)
        await server_side.frame(7)
        transport.disconnect()
        await closed(transport)
    assert server_side.frames == [
        (WSMsgType.TEXT, b"text", True),
        (WSMsgType.BINARY, b"part", False),
        (WSMsgType.CONTINUATION, b"", True),
        (WSMsgType.BINARY, b"array", True),
        (WSMsgType.PING, b"", True),
        (WSMsgType.PING, b"ping", True),
        (WSMsgType.PONG, b"pong", True),
        (WSMsgType.CLOSE, b"\x03\xe8bye", True),
    ]


async def test_disconnect_from_a_callback(listeners):
    async with serving(lambda request: listeners.Full()) as url:
        transport, client = await picows_fast.ws_connect(Recorder, url)
        transport.send_close(WSCloseCode.GOING_AWAY)
        await client.closed()
    assert transport.disconnect_cause != WSDisconnectCause.CLOSE_TIMEOUT
    assert transport.close_handshake.recv is None


@pytest.mark.parametrize("size", [0, 100, 125, 126, 1000, 1025, 65535, 65536, 70_000, 1_000_000])
@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
async def test_send_reuse_external_buffer(
    listeners, io_options, size, sender, tls, server_tls, client_tls
):
    """The payload arrives; the caller's memory has it unchanged, and is overwritten at once."""
    payload = (bytes(range(251)) * (size // 251 + 1))[:size]
    server_side = Recorder()
    async with serving(
        lambda request: server_side, tls=server_tls if tls else None, **io_options
    ) as url:
        transport, client = await picows_fast.ws_connect(
            Recorder, url, ssl_context=client_tls, **io_options
        )
        source, target = transport, server_side
        if sender == "server":
            await server_side.until(lambda: server_side.transport)
            source, target = server_side.transport, client
        assert listeners.send_reusing(source, WSMsgType.BINARY, payload) == payload
        assert listeners.send_reusing(source, WSMsgType.TEXT, payload, fin=False) == payload
        assert listeners.send_reusing(source, WSMsgType.CONTINUATION, payload) == payload
        await target.frame(2)
        assert target.frames == [
            (WSMsgType.BINARY, payload, True),
            (WSMsgType.TEXT, payload, False),
            (WSMsgType.CONTINUATION, payload, True),
        ]
        transport.disconnect()
        await closed(transport)


async def test_send_reuse_external_buffer_keeps_the_rules(listeners):
    server_side = Recorder()
    async with serving(lambda request: server_side) as url:
        transport, client = await picows_fast.ws_connect(Recorder, url)
        await server_side.until(lambda: server_side.transport)
        for source in (transport, server_side.transport):
            with pytest.raises(ValueError, match="125 bytes"):
                listeners.send_reusing(source, WSMsgType.PING, bytes(126))
            with pytest.raises(ValueError, match="125 bytes"):
                listeners.send_reusing(source, WSMsgType.PING, bytes(5000))
            with pytest.raises(ValueError, match="fragmented"):
                listeners.send_reusing(source, WSMsgType.PONG, b"", fin=False)
            with pytest.raises(ValueError, match="close code"):
                listeners.send_reusing(source, WSMsgType.CLOSE, b"\0\0")
            with pytest.raises(RuntimeError, match="thread"):
                await asyncio.to_thread(listeners.send_reusing, source, WSMsgType.TEXT, bytes(5000))
        listeners.send_reusing(transport, WSMsgType.CLOSE, b"\x03\xe8")
        assert transport.is_close_frame_sent
        listeners.send_reusing(transport, WSMsgType.BINARY, bytes(5000))
        assert await server_side.frame() == (WSMsgType.CLOSE, b"\x03\xe8", True)
        transport.disconnect()
        await closed(transport)
        await server_side.closed()
        assert server_side.transport is not None
        listeners.send_reusing(server_side.transport, WSMsgType.BINARY, bytes(5000))
    assert len(server_side.frames) == 1
    assert client.frames == []


def python_subclass(listeners):
    class OverridesNothing(listeners.Full):
        pass

    return OverridesNothing()


def python_override(listeners):
    class Overrides(listeners.Full):
        def on_ws_frame(self, transport, frame):
            super().on_ws_frame(transport, frame)
            self.note(("on_ws_frame", "Python"))

    return Overrides()


def instance_override(listeners):
    class WithDict(listeners.Full):
        pass

    listener = WithDict()
    listener.on_ws_frame = lambda transport, frame: listener.note(("on_ws_frame", "instance"))
    return listener


def cython_on_python(listeners):
    """A Python class between the one that overrides and the object's own."""

    class Between(listeners.FullOnPlain):
        def on_ws_connected(self, transport):
            super().on_ws_connected(transport)

    return type("Last", (Between,), {})()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda listeners: listeners.Full(), b"data"),
        (lambda listeners: listeners.Nothing(), b"data"),
        (lambda listeners: listeners.Plain(), "def"),
        (lambda listeners: listeners.PlainOnFull(), "def on cpdef"),
        (lambda listeners: listeners.FullOnPlain(), "cpdef on def"),
        (python_subclass, b"data"),
        (python_override, "Python"),
        (instance_override, "instance"),
        (cython_on_python, "cpdef on def"),
    ],
    ids=[
        "cpdef",
        "cpdef-inherited",
        "def",
        "def-on-cpdef",
        "cpdef-on-def",
        "Python-subclass",
        "Python-override",
        "instance-override",
        "Python-between",
    ],
)
async def test_the_override_that_python_would_call_is_called(listeners, make, expected):
    """However a listener's class defines on_ws_frame, and whatever lies between."""
    listener = make(listeners)
    async with serving(lambda request: listener) as url:
        _, writer = await raw_client(url)
        writer.write(client_frame(WSMsgType.BINARY, b"data"))
        await listener.until(lambda: "on_ws_frame" in listener.names())
        writer.close()
        await listener.until(lambda: "on_ws_disconnected" in listener.names())
    last = [event for event in listener.events if event[0] == "on_ws_frame"][-1]
    assert last[3 if expected == b"data" else 1] == expected
    assert listener.names().count("on_ws_connected") == 1
    assert listener.names().count("on_ws_disconnected") == 1


@pytest.mark.parametrize("kind", ["Full", "Plain"])
async def test_auto_ping_hooks(listeners, kind):
    """send_user_specific_ping and is_user_specific_pong, and a pong is not given to on_ws_frame."""
    server_side = getattr(listeners, kind)()
    async with serving(
        lambda request: server_side, enable_auto_ping=True, auto_ping_idle_timeout=0.05
    ) as url:
        reader, writer = await raw_client(url)
        assert await asyncio.wait_for(read_frame(reader), 20) == (WSMsgType.TEXT, b"user ping")
        reply = b"user pong" if kind == "Full" else b"user ping"
        writer.write(client_frame(WSMsgType.TEXT, reply))
        await server_side.until(lambda: server_side.names().count("send_user_specific_ping") == 2)
        writer.close()
    assert "is_user_specific_pong" in server_side.names()
    assert "on_ws_frame" not in server_side.names()


async def test_notify_user_specific_pong_received(listeners):
    """The pong is found by on_ws_frame: more pings follow than one reply timeout allows."""
    server_side = listeners.Full(notifies=True)
    async with serving(
        lambda request: server_side,
        enable_auto_ping=True,
        auto_ping_idle_timeout=0.05,
        auto_ping_reply_timeout=0.1,
        auto_ping_strategy=picows_fast.WSAutoPingStrategy.PING_PERIODICALLY,
    ) as url:
        transport, client = await picows_fast.ws_connect(listeners.Full, url)
        await server_side.until(lambda: server_side.names().count("send_user_specific_ping") == 5)
        assert "on_ws_disconnected" not in server_side.names()
        assert server_side.names().count("on_ws_frame") >= 4
        client.silent = True
        await server_side.until(lambda: "on_ws_disconnected" in server_side.names())
        await closed(transport)
    assert transport.close_handshake.recv.code == WSCloseCode.GOING_AWAY


@pytest.mark.parametrize("kind", ["Full", "Plain"])
async def test_pause_and_resume_writing(listeners, kind, io_options):
    server_side = getattr(listeners, kind)()
    async with serving(lambda request: server_side, **io_options) as url:
        reader, writer = await raw_client(url)
        # Echoed 8 MiB are more than the sockets of a peer that does not read will hold.
        writer.write(client_frame(WSMsgType.BINARY, bytes(8 << 20)))
        await server_side.until(lambda: "pause_writing" in server_side.names())
        assert "resume_writing" not in server_side.names()
        await asyncio.wait_for(reader.readexactly(10 + (8 << 20)), 20)
        await server_side.until(lambda: "resume_writing" in server_side.names())
        writer.close()


@pytest.mark.parametrize("method", ["on_ws_connected", "on_ws_frame", "on_ws_disconnected"])
async def test_exceptions_come_out_of_wait_disconnected(listeners, method):
    """A cpdef method without `except` returns an object, so its exceptions are seen."""
    server_side = Recorder()
    async with serving(lambda request: server_side) as url:
        transport, _ = await picows_fast.ws_connect(lambda: listeners.Full(method), url)
        await server_side.until(lambda: server_side.transport)
        server_side.transport.send(WSMsgType.TEXT, "hello")
        if method == "on_ws_disconnected":
            server_side.transport.disconnect()
        with pytest.raises(LookupError, match=method):
            await closed(transport)
        await server_side.closed()
    if method == "on_ws_disconnected":
        assert transport.disconnect_cause == WSDisconnectCause.PEER_FIN  # what ended it before
    else:
        assert transport.disconnect_cause == WSDisconnectCause.CALLBACK_ERROR
        assert server_side.transport.close_handshake.recv.code == WSCloseCode.INTERNAL_ERROR


@pytest.mark.parametrize("method", ["send_user_specific_ping", "is_user_specific_pong"])
async def test_exceptions_in_ping_hooks(listeners, method):
    async with serving(lambda request: listeners.Full()) as url:
        transport, _ = await picows_fast.ws_connect(
            lambda: listeners.Full(method),
            url,
            enable_auto_ping=True,
            auto_ping_idle_timeout=0.05,
        )
        with pytest.raises(LookupError, match=method):
            await closed(transport)


@pytest.mark.parametrize("method", ["pause_writing", "resume_writing"])
async def test_exceptions_in_flow_control(listeners, method, caplog):
    server_side = listeners.Full(method)
    async with serving(lambda request: server_side) as url:
        reader, writer = await raw_client(url)
        writer.write(client_frame(WSMsgType.BINARY, bytes(8 << 20)))
        await server_side.until(lambda: "pause_writing" in server_side.names())
        await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await server_side.until(lambda: "on_ws_disconnected" in server_side.names())
    assert server_side.transport.disconnect_cause == WSDisconnectCause.CALLBACK_ERROR
    assert isinstance(server_side.transport.disconnect_exception, LookupError)
    assert f"{method} raised" in caplog.text


async def test_exceptions_are_logged_by_a_server(listeners, caplog):
    server_side = listeners.Full("on_ws_frame")
    async with serving(lambda request: server_side) as url:
        transport, _ = await picows_fast.ws_connect(Recorder, url)
        transport.send(WSMsgType.TEXT, "hello")
        await closed(transport)
        await server_side.until(lambda: "on_ws_disconnected" in server_side.names())
    assert transport.close_handshake.recv.code == WSCloseCode.INTERNAL_ERROR
    assert "LookupError: on_ws_frame" in caplog.text


def test_enum_objects(listeners):
    """A C enum value becomes a member of the package's own enum."""
    msg_type, code, strategy = listeners.enum_objects()
    assert msg_type is WSMsgType.PONG
    assert code is WSCloseCode.GOING_AWAY
    assert strategy is picows_fast.WSAutoPingStrategy.PING_PERIODICALLY


@pytest.mark.parametrize("size", [4, 5000, 70_000])
@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
async def test_ported_program(ported, size, tls, server_tls, client_tls):
    """A .pyx for picows with the module's name changed: both sides."""
    data = (b"abcdefgh" * (size // 8 + 1))[:size]
    async with serving(lambda request: ported.EchoServer(), tls=server_tls if tls else None) as url:
        transport, client = await picows_fast.ws_connect(
            lambda: ported.EchoClient(data), url, ssl_context=client_tls
        )
        assert await asyncio.wait_for(client.finished, 20) == (WSCloseCode.OK, "done", False)
        await closed(transport)
    assert client.replies == [
        (WSMsgType.BINARY, data),
        (WSMsgType.TEXT, data[:4]),
        (WSMsgType.BINARY, data),
    ]
    assert client.connected == client.disconnected == 1
    assert ported.strategies() == (1, 2)


PYTHON_PROGRAM = """
import asyncio
import picows_fast as picows
from picows_fast import WSMsgType


class Server(picows.WSListener):
    def on_ws_connected(self, transport: picows.WSTransport):
        transport.send(picows.WSMsgType.TEXT, "welcome to " + transport.request.path.decode())

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame):
        if frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())


class Client(picows.WSListener):
    def __init__(self):
        self.messages = []
        self.welcomed = asyncio.Event()

    def on_ws_frame(self, transport, frame):
        if frame.msg_type == picows.WSMsgType.CLOSE:
            transport.disconnect()
            return
        self.messages.append(frame.get_payload_as_ascii_text())
        if len(self.messages) == 1:
            self.welcomed.set()
        elif len(self.messages) == 2:
            buffer = bytearray(14) + b"and again"
            transport.send_reuse_external_bytearray(WSMsgType.BINARY, buffer, 14)
        else:
            transport.send_close(picows.WSCloseCode.OK)


async def main():
    def factory(request: picows.WSUpgradeRequest):
        if request.path == b"/missing":
            return None
        return picows.WSUpgradeResponseWithListener(
            picows.WSUpgradeResponse.create_101_response({"X-Server": "program"}), Server()
        )

    server = await picows.ws_create_server(factory, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        await picows.ws_connect(Client, f"ws://127.0.0.1:{port}/missing")
    except picows.WSHandshakeError as error:
        print(int(error.response.status))
    transport, client = await picows.ws_connect(
        Client, f"ws://127.0.0.1:{port}/feed", enable_auto_ping=True, auto_ping_idle_timeout=5,
        auto_ping_reply_timeout=5, auto_ping_strategy=picows.WSAutoPingStrategy.PING_WHEN_IDLE,
        enable_auto_pong=True, max_frame_size=1 << 20, logger_name="program", use_aiofastnet=False,
    )
    print(transport.response.headers["X-Server"])
    await client.welcomed.wait()
    print(len(await transport.measure_roundtrip_time(2)))
    transport.send(WSMsgType.TEXT, "again")
    await transport.wait_disconnected()
    print(client.messages)
    print(transport.close_handshake.recv.code.name, transport.close_handshake.recv.reason)
    server.close()
    await server.wait_closed()


asyncio.run(main())
"""


async def test_python_program_for_picows(tmp_path):
    """`import picows_fast as picows` is the one change."""
    (tmp_path / "program.py").write_text(PYTHON_PROGRAM)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(tmp_path / "program.py"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={"PYTHONPATH": str(Path(picows_fast.__file__).parent.parent)},
    )
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert output.decode().splitlines() == [
        "404",
        "program",
        "2",
        "['welcome to /feed', 'again', 'and again']",
        "OK None",
    ]


async def test_the_end_begins(listeners):
    """on_ws_closing by the vtable; what send_reuse_external_buffer returns."""
    async with serving(lambda request: Echo()) as url:
        transport, ending = await picows_fast.ws_connect(listeners.Ending, url)
        await transport.wait_disconnected()
    assert ending.events == [("connected", 1), ("closing", 0), ("disconnected", 0)]
