"""The API of picows 2.3.1: names, parameters, defaults, and what a program sees of them."""

from __future__ import annotations

import asyncio
import inspect

import picows
import pytest

import picows_fast

from .support import until

CLASSES = sorted(
    name
    for name, value in vars(picows).items()
    if inspect.isclass(value) and not name.startswith("_")
)


@pytest.mark.parametrize("name", ["ws_connect", "ws_create_server"])
def test_parameters_and_defaults(name):
    theirs = inspect.signature(getattr(picows, name)).parameters
    ours = inspect.signature(getattr(picows_fast, name)).parameters
    for parameter in theirs.values():
        if parameter.kind == parameter.VAR_KEYWORD:
            continue
        assert parameter.name in ours
        assert ours[parameter.name].kind == parameter.kind
        assert ours[parameter.name].default == parameter.default
    # Positional ones first and in the same order; everything of ours is by keyword.
    assert all(
        parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD)
        for name, parameter in ours.items()
        if name not in theirs
    )


@pytest.mark.parametrize("name", CLASSES)
def test_classes_and_attributes(name):
    theirs, ours = getattr(picows, name), getattr(picows_fast, name)
    names = {attribute for attribute in dir(theirs) if not attribute.startswith("_")}
    fields = set(getattr(ours, "__dataclass_fields__", ())) | set(getattr(ours, "__slots__", ()))
    assert names <= set(dir(ours)) | fields
    # An error is caught where it was caught.
    if issubclass(theirs, Exception):
        for base in theirs.__mro__[1:]:
            mine = getattr(picows_fast, base.__name__, base)
            assert issubclass(ours, mine)


@pytest.mark.parametrize("name", ["WSMsgType", "WSCloseCode", "WSAutoPingStrategy"])
def test_enums(name):
    ours = getattr(picows_fast, name)
    for member in getattr(picows, name):
        assert ours[member.name] == member.value


def test_debug_level():
    assert picows_fast.PICOWS_DEBUG_LL == picows.PICOWS_DEBUG_LL


async def events_of_a_program(module):
    """A program written for picows, run with either module: what its two sides see, in order."""
    seen = {"client": [], "server": []}

    class Side(module.WSListener):
        def __init__(self, name):
            self.events = seen[name]
            self.name = name

        def on_ws_connected(self, transport):
            self.events.append(("connected", transport.is_client_side, transport.is_secure))
            self.transport = transport

        def on_ws_frame(self, transport, frame):
            kind = module.WSMsgType(frame.msg_type).name
            self.events.append(
                (kind, frame.get_payload_as_bytes(), bool(frame.fin), bool(frame.rsv1))
            )
            if frame.msg_type == module.WSMsgType.CLOSE:
                self.events.append(
                    (int(frame.get_close_code()), frame.get_close_message(), frame.payload_size)
                )
                transport.send_close(frame.get_close_code(), frame.get_close_message())
                transport.disconnect()
            elif self.name == "server":
                transport.send(frame.msg_type, frame.get_payload_as_bytes(), frame.fin)

        def on_ws_disconnected(self, transport):
            handshake = transport.close_handshake
            self.events.append(
                (
                    "disconnected",
                    int(handshake.recv.code),
                    handshake.recv.reason,
                    int(handshake.sent.code),
                    handshake.sent.reason,
                    bool(handshake.recv_then_sent),
                )
            )

    paths = []

    def accept(request):
        paths.append((request.method, request.path, request.headers["X-Desk"]))
        return Side("server")

    server = await module.ws_create_server(accept, "127.0.0.1", 0, enable_auto_ping=True)
    port = server.sockets[0].getsockname()[1]
    transport, client = await module.ws_connect(
        lambda: Side("client"),
        f"ws://127.0.0.1:{port}/feed?depth=10",
        extra_headers={"X-Desk": "7"},
        enable_auto_ping=True,
        auto_ping_strategy=module.WSAutoPingStrategy.PING_PERIODICALLY,
    )
    for message in ("text", "é", b"bytes", bytearray(b"array"), memoryview(b"view"), None, ""):
        transport.send(module.WSMsgType.BINARY, message)
    transport.send(module.WSMsgType.TEXT, "one", False)
    transport.send(module.WSMsgType.CONTINUATION, "two", True)
    transport.send_reuse_external_bytearray(
        module.WSMsgType.BINARY, bytearray(14) + b"reused" * 100, 14
    )
    assert len(await asyncio.wait_for(transport.measure_roundtrip_time(2), 20)) == 2
    transport.send_ping(b"ping")
    await until(lambda: seen["client"][-1][0] == "PONG")
    transport.send_close(module.WSCloseCode.OK, "enough")
    await asyncio.wait_for(transport.wait_disconnected(), 20)
    assert client.transport is transport
    server.close()
    await until(lambda: seen["server"][-1][0] == "disconnected")
    return paths, seen


async def test_a_program_sees_the_same():
    assert await events_of_a_program(picows_fast) == await events_of_a_program(picows)
