"""Many connections, one after another and at once; memory as it was when they are gone.

Client and server share a process and a loop, so each connection counts twice. What is bounded is
what the process occupies, as the operating system says: Python's, ours and OpenSSL's memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc

import pytest

import picows_fast
from picows_fast import WSListener, WSMsgType

from .. import needs
from ..support import serving
from .checks import KIB, MIB, Leftovers, resident_bytes

pytestmark = [
    needs.descriptor_list,
    pytest.mark.skipif(not resident_bytes(), reason="needs /proc/self/statm"),
]

#: Both ends of one idle connection, listeners included. Measured: 2 x 3.7 KiB and 2 x 20 KiB. Over
#: a transport of the loop's, which has a receive buffer of its own: 2 x 13 KiB and 2 x 30 KiB.
PLAIN_PAIR = 16 * KIB
PLAIN_LOOP_PAIR = 36 * KIB
TLS_PAIR = 72 * KIB

#: What the process may have more after thousands of connections than after the first hundreds;
#: allocators do not give back every page that is empty but for a few bytes.
GROWTH = 16 * MIB


@pytest.fixture
def fewer(request, thorough):
    """What the numbers are divided by: asyncio's loop opens all of them, others would take as long
    again."""
    return 1 if thorough or "[asyncio" in request.node.name else 5


class Answering(WSListener):
    """The server's: answers data and CLOSE."""

    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
        else:
            transport.send(frame.msg_type, frame.get_payload_as_bytes())


class Asking(WSListener):
    """The client's: `answer` is a future of the next payload."""

    def on_ws_frame(self, transport, frame):
        if frame.msg_type != WSMsgType.CLOSE:
            self.answer.set_result(frame.get_payload_as_bytes())

    async def ask(self, transport, question):
        self.answer = asyncio.get_running_loop().create_future()
        transport.send(WSMsgType.BINARY, question)
        assert await self.answer == question
        self.answer = None


async def all_of(number, at_once, do):
    """Run `do(i)` for each i below `number`, `at_once` of them at a time."""
    numbers = iter(range(number))

    async def work():
        for i in numbers:
            await do(i)

    await asyncio.gather(*[work() for _ in range(at_once)])


async def one_after_another(number, url, **options):
    """Open, ask, and end that many connections; every fourth without a closing handshake."""

    async def live(i):
        transport, listener = await picows_fast.ws_connect(Asking, url, **options)
        await listener.ask(transport, b"%d" % i)
        if i % 8 == 3:
            transport.disconnect(graceful=False)
        elif i % 8 == 7:
            transport.disconnect()
        else:
            transport.send_close(1000)
        await transport.wait_disconnected()

    await asyncio.wait_for(all_of(number, 8, live), 100)


@pytest.mark.parametrize(
    ("number", "is_tls"), [(10_000, False), (1_000, True)], ids=["10000 plain", "1000 tls"]
)
async def test_connections_one_after_another(fewer, number, is_tls, server_tls, client_tls):
    """At most 16 MiB more than after the first 5 %, and no task, timer or descriptor."""
    number //= fewer
    leftovers = Leftovers()
    async with serving(lambda request: Answering(), tls=server_tls if is_tls else None) as url:
        await one_after_another(number // 20, url, ssl_context=client_tls)
        await settle()
        before = resident_bytes()
        await one_after_another(number, url, ssl_context=client_tls)
        await settle()
        growth = resident_bytes() - before
    print(f"{growth / KIB:.0f} KiB more")
    assert growth < GROWTH, f"{growth} bytes more than before"
    await leftovers.none()


@pytest.mark.parametrize(
    ("number", "is_tls", "bound"),
    [(5_000, False, PLAIN_PAIR), (500, True, TLS_PAIR)],
    ids=["5000 plain", "500 tls"],
)
async def test_connections_at_once(request, fewer, number, is_tls, bound, server_tls, client_tls):
    """All work, each takes no more than its bound, and when they are gone, their memory serves the
    next ones: the same number once more leaves nothing more behind."""
    number //= fewer
    if bound == PLAIN_PAIR and request.config.getoption("--transport") == "loop":
        bound = PLAIN_LOOP_PAIR
    with needs.descriptors(2 * number + 500):
        leftovers = Leftovers()
        context = server_tls if is_tls else None
        async with serving(lambda request: Answering(), tls=context, backlog=1000) as url:
            await one_after_another(200, url, ssl_context=client_tls)
            await settle()
            before = resident_bytes()
            highest = await open_at_once(number, url, client_tls)
            await settle()
            left = resident_bytes()
            await open_at_once(number, url, client_tls)
            await settle()
            growth = resident_bytes() - left
        taken = (highest - before) / number
        print(
            f"{taken / KIB:.1f} KiB for each pair, {(left - before) / MIB:.1f} MiB left, then",
            end=" ",
        )
        print(f"{growth / MIB:.1f} MiB")
        assert taken < bound, f"{taken / KIB:.1f} KiB for each"
        assert growth < GROWTH, f"{growth} bytes more than before"
        await leftovers.none()


async def open_at_once(number, url, context):
    """Open that many connections, use them, and end them; returns what the process occupied while
    all were open and idle."""
    connections = []

    async def connect(i):
        connections.append(
            await picows_fast.ws_connect(
                Asking, url, ssl_context=context, websocket_handshake_timeout=60
            )
        )

    async def ask(i):
        transport, listener = connections[i]
        await listener.ask(transport, b"%d" % i)

    async def end(i):
        transport, _ = connections[i]
        if i % 4:
            transport.send_close(1000)
        else:
            transport.disconnect(graceful=False)
        await transport.wait_disconnected()

    await asyncio.wait_for(all_of(number, 50, connect), 100)
    await asyncio.wait_for(all_of(number, 500, ask), 100)
    await settle()
    occupied = resident_bytes()
    await asyncio.wait_for(all_of(number, 500, end), 100)
    return occupied


async def settle():
    """Let the servers' sides end and the loop free what they held, and have the C library give back
    what it keeps for later."""
    await asyncio.sleep(0.1)
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # a C library that has no such function
        ctypes.CDLL(None).malloc_trim(0)
