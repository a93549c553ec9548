"""The kernel's times of arrival: which frames have them, and what they say.

No assertion is on how long something takes: a time lies between two readings of the same clock.
"""

from __future__ import annotations

import array
import asyncio
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest

import picows_fast
from picows_fast import FrameParser, WSListener, WSMsgType, build_frame
from picows_fast.layers.messages import WSMessageListener
from picows_fast.net import tls_fd
from picows_fast.net.stream import ByteStream
from picows_fast.net.tcp import TcpStream
from picows_fast.net.tls_bio import TlsStream

from . import needs
from .proxies import Proxy
from .support import Echo, Recorder, raw_server, server_frame, serving

pytestmark = [pytest.mark.native, needs.arrival_times]

BLOCKED = 0.05  # seconds


class Stamps(Recorder):
    """Keeps (timestamp, age, hardware timestamp, now) of every frame."""

    def __init__(self):
        super().__init__()
        self.stamps = []
        self.kept = []

    def on_ws_frame(self, transport, frame):
        self.stamps.append(
            (
                frame.recv_timestamp_ns,
                frame.age_ns(),
                frame.recv_hardware_timestamp_ns,
                time.time_ns(),
            )
        )
        self.kept.append(frame)
        super().on_ws_frame(transport, frame)


class Tls(NamedTuple):
    server: ssl.SSLContext | None
    client: ssl.SSLContext | None
    stream: type[ByteStream]


@pytest.fixture(params=["plain", "direct-tls", "memory-tls"])
def tls(request, server_tls, client_tls, monkeypatch):
    if request.param == "plain":
        return Tls(None, None, TcpStream)
    if request.param == "direct-tls":
        if not tls_fd.AVAILABLE:
            pytest.skip("the ssl module's OpenSSL is not found")
        return Tls(server_tls, client_tls, tls_fd.DirectTlsStream)
    without = type("Without", (), {"create": staticmethod(lambda *_, **__: None)})
    monkeypatch.setattr("picows_fast.net.open.DirectTlsStream", without)
    return Tls(server_tls, client_tls, TlsStream)


async def connected(server_side, url, client_tls=None, **options):
    """A client with times of arrival; they have begun to come."""
    transport, client = await picows_fast.ws_connect(
        Stamps, url, ssl_context=client_tls, rx_timestamps=True, **options
    )

    async def wait():
        # The kernel begins to note them some moments after the first socket asked for it.
        while not client.stamps or client.stamps[-1][0] is None:
            server_side.transport.send(WSMsgType.TEXT, "warm")
            await asyncio.sleep(0.005)

    await server_side.until(lambda: server_side.transport is not None)
    await asyncio.wait_for(wait(), 20)
    # None of them is on its way any more.
    server_side.transport.send(WSMsgType.BINARY, b"end")
    await client.until(lambda: client.frames[-1][1] == b"end")
    del client.stamps[:], client.frames[:], client.kept[:]
    return transport, client


def wait_until_acknowledged(transport):
    """Block until the peer's system has all that was sent: loopback may take its time."""
    import fcntl
    import termios

    sock = transport.underlying_transport.get_extra_info("socket")
    unacknowledged = array.array("i", [1])
    while unacknowledged[0]:
        fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, unacknowledged)


async def test_frames_that_waited(tls):
    """While the loop is blocked frames wait, and each says for how long."""
    server_side = Recorder()
    async with serving(lambda request: server_side, tls=tls.server) as url:
        transport, client = await connected(server_side, url, tls.client)
        assert type(transport.underlying_transport) is tls.stream
        before = time.time_ns()
        for number in range(20):
            server_side.transport.send(WSMsgType.BINARY, bytes([number]) * 50)
        wait_until_acknowledged(server_side.transport)
        arrived = time.time_ns()
        time.sleep(BLOCKED)  # noqa: ASYNC251
        await client.until(lambda: len(client.stamps) == 20)
        for stamp, age, hardware, now in client.stamps:
            assert before <= stamp <= arrived
            assert age >= BLOCKED * 1e9
            assert stamp + age <= now
            assert hardware is None  # loopback has no such clock
        stamps = [stamp for stamp, *_ in client.stamps]
        assert stamps == sorted(stamps)
        transport.disconnect(graceful=False)
        await client.closed()


async def test_a_frame_cut_over_reads_has_the_time_of_its_end(tls):
    """... and one behind another's end in the same segment has that time, too."""
    first = server_frame(WSMsgType.BINARY, b"a" * 100)
    second = server_frame(WSMsgType.BINARY, b"b" * 10_000)
    third = server_frame(WSMsgType.BINARY, b"c")
    go = asyncio.Queue()
    times = []

    async def pieces(reader, writer):
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await go.get()
        data = first + second + third
        for start, end in ((0, 1), (1, 50), (50, 6000), (6000, len(data))):
            times.append(time.time_ns())
            writer.write(data[start:end])
            await go.get()

    async with raw_server(pieces, tls=tls.server) as url:
        _, client = await picows_fast.ws_connect(
            Stamps, url, ssl_context=tls.client, rx_timestamps=True
        )
        for _ in range(4):
            await asyncio.sleep(0.02)
            go.put_nowait(None)
        await client.until(lambda: len(client.stamps) == 3)
        (one, *_), (two, *_), (three, *_) = client.stamps
        assert times[2] <= one <= times[3] <= two == three
        go.put_nowait(None)
        await client.closed()


async def test_kept_frames_keep_their_time(tls):
    server_side = Recorder()
    async with serving(lambda request: server_side, tls=tls.server) as url:
        transport, client = await connected(server_side, url, tls.client)
        for _ in range(3):
            server_side.transport.send(WSMsgType.BINARY, bytes(10))
            await asyncio.sleep(0.01)
        await client.until(lambda: len(client.kept) == 3)
        stamps = [frame.recv_timestamp_ns for frame in client.kept]
        assert stamps == [stamp for stamp, *_ in client.stamps]
        assert stamps[0] < stamps[1] < stamps[2]
        transport.disconnect(graceful=False)
        await client.closed()


async def test_more_than_one_read_takes(tls):
    """A megabyte that waited comes whole and in order, and with times that do not go back."""
    server_side = Recorder()
    async with serving(lambda request: server_side, tls=tls.server) as url:
        transport, client = await connected(server_side, url, tls.client)
        transport.pause_reading()
        sizes = [1, 20_000, 125, 16_384, 300_000, 70_000] * 3
        for number, size in enumerate(sizes):
            server_side.transport.send(WSMsgType.BINARY, bytes([number]) * size)
        await asyncio.sleep(0.01)
        transport.resume_reading()
        await client.until(lambda: len(client.frames) == len(sizes))
        assert [payload for _, payload, _ in client.frames] == [
            bytes([number]) * size for number, size in enumerate(sizes)
        ]
        stamps = [stamp for stamp, *_ in client.stamps]
        assert None not in stamps
        assert stamps == sorted(stamps)
        transport.disconnect(graceful=False)
        await client.closed()


class Pausing(Stamps):
    """Pauses after each frame."""

    def on_ws_frame(self, transport, frame):
        super().on_ws_frame(transport, frame)
        transport.pause_reading()


async def test_frames_from_before_a_pause(tls):
    """They come one by one, however many records or frames were read together."""
    server_side = Recorder()
    async with serving(lambda request: server_side, tls=tls.server) as url:
        transport, client = await picows_fast.ws_connect(
            Pausing, url, ssl_context=tls.client, rx_timestamps=True
        )
        await server_side.until(lambda: server_side.transport is not None)
        for number in range(10):
            server_side.transport.send(WSMsgType.BINARY, bytes([number]) * 1000)
        for number in range(10):
            await client.until(lambda number=number: len(client.frames) == number + 1)
            transport.resume_reading()
        assert [payload[0] for _, payload, _ in client.frames] == list(range(10))
        transport.disconnect(graceful=False)
        await client.closed()


async def test_a_servers_frames(tls):
    """rx_timestamps of ws_create_server."""
    server_side = Stamps()
    async with serving(lambda request: server_side, tls=tls.server, rx_timestamps=True) as url:
        transport, client = await picows_fast.ws_connect(Recorder, url, ssl_context=tls.client)

        async def wait():
            while not server_side.stamps or server_side.stamps[-1][0] is None:
                transport.send(WSMsgType.TEXT, "a")
                await asyncio.sleep(0.005)

        await asyncio.wait_for(wait(), 20)
        stamp, age, _, now = server_side.stamps[-1]
        assert stamp + age <= now
        transport.disconnect(graceful=False)
        await client.closed()


class Messages(WSMessageListener):
    def __init__(self):
        super().__init__()
        self.stamps = []

    def on_ws_message(self, transport, msg_type, payload):
        self.stamps.append((payload.get_payload_as_bytes(), payload.recv_timestamp_ns))


async def test_messages_have_the_time_of_their_last_fragment():
    server_side = Recorder()
    async with serving(lambda request: server_side) as url:
        transport, client = await picows_fast.ws_connect(Messages, url, rx_timestamps=True)
        await server_side.until(lambda: server_side.transport is not None)

        async def wait():
            while not client.stamps or client.stamps[-1][1] is None:
                server_side.transport.send(WSMsgType.TEXT, "warm")
                await asyncio.sleep(0.005)
            server_side.transport.send(WSMsgType.BINARY, b"ab", False)
            await asyncio.sleep(0.02)
            before = time.time_ns()
            server_side.transport.send(WSMsgType.CONTINUATION, b"cd")
            while client.stamps[-1][0] != b"abcd":  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            return before

        before = await asyncio.wait_for(wait(), 20)
        assert before <= client.stamps[-1][1] <= time.time_ns()
        transport.disconnect(graceful=False)
        await transport.wait_disconnected()


async def test_none_where_there_is_none(tmp_path):
    """Off; over a transport of the loop's; over a Unix socket; of a parser without I/O."""
    path = str(tmp_path / "socket")
    unix = await picows_fast.ws_create_server(lambda request: Echo(), unix_path=path)
    async with unix, serving(lambda request: Echo()) as url:
        for where, options in (
            (url, {}),
            (url, {"rx_timestamps": True, "use_loop_transport": True}),
            ("ws://host/", {"rx_timestamps": True, "unix_path": path}),
        ):
            transport, client = await picows_fast.ws_connect(Stamps, where, **options)
            transport.send(WSMsgType.TEXT, "a")
            await client.until(lambda client=client: client.stamps)
            assert client.stamps[0][:3] == (None, None, None)
            transport.disconnect(graceful=False)
            await client.closed()
    parser = FrameParser(is_client=True)
    parser.feed(build_frame(WSMsgType.TEXT, "a"))
    frame = parser.next_frame()
    assert (frame.recv_timestamp_ns, frame.age_ns()) == (None, None)
    with pytest.raises(AttributeError):
        frame.recv_timestamp_ns = 1


@pytest.mark.parametrize("kind", ["http", "socks4", "socks5"])
async def test_through_a_proxy(tls, kind):
    """It is the segments of the proxy that are stamped, not those that it was sent."""
    server_side = Recorder()
    async with serving(lambda request: server_side, tls=tls.server) as url, Proxy(kind) as proxy:
        transport, client = await connected(server_side, url, tls.client, proxy=proxy.url())
        assert proxy.requests
        server_side.transport.send(WSMsgType.BINARY, b"x")
        wait_until_acknowledged(server_side.transport)
        time.sleep(BLOCKED)  # noqa: ASYNC251
        # The proxy is of this loop, too: it has relayed nothing yet.
        relayed = time.time_ns()
        await client.until(lambda: client.stamps)
        ((stamp, age, hardware, now),) = client.stamps
        assert relayed <= stamp <= stamp + age <= now
        assert hardware is None
        transport.disconnect(graceful=False)
        await client.closed()


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_none_through_a_proxy_reached_by_tls(scheme, server_tls, client_tls):
    """There a transport of the loop's reads."""
    async with (
        serving(lambda request: Echo(), tls=server_tls if scheme == "wss" else None) as url,
        Proxy("http", ssl_context=server_tls) as proxy,
    ):
        transport, client = await picows_fast.ws_connect(
            Stamps,
            url,
            ssl_context=client_tls,
            proxy=proxy.url(),
            proxy_ssl_context=client_tls,
            rx_timestamps=True,
        )
        for number in range(3):
            transport.send(WSMsgType.TEXT, "a")
            await client.until(lambda number=number: len(client.stamps) > number)
            await asyncio.sleep(0.02)
        assert [stamp[:3] for stamp in client.stamps] == [(None, None, None)] * 3
        transport.disconnect(graceful=False)
        await client.closed()


async def test_the_end_is_told_apart(tls):
    """The descriptor is read by another way: what ends the connection is still found."""
    for graceful in (True, False):
        server_side = Echo()
        async with serving(lambda request, listener=server_side: listener, tls=tls.server) as url:
            transport, client = await picows_fast.ws_connect(
                Stamps, url, ssl_context=tls.client, rx_timestamps=True, close_timeout=5
            )
            await server_side.until(lambda listener=server_side: listener.transport is not None)
            server_side.transport.send(WSMsgType.BINARY, b"last")
            server_side.transport.disconnect(graceful=graceful)
            await client.closed()
            assert client.frames == [(WSMsgType.BINARY, b"last", True)]
            assert transport.disconnect_cause.name in (
                ("TLS_CLOSE_NOTIFY" if graceful else "TLS_TRUNCATED", "PEER_RESET")
                if tls.server
                else ("PEER_FIN", "PEER_RESET")
            )


async def test_cython_sees_minus_one(listeners):
    """... where Python sees None; a listener in Cython gets the same frame object."""
    server_side = Recorder()

    class Probe(WSListener):
        seen = None

        def on_ws_frame(self, transport, frame):
            self.seen = listeners.timestamps(frame)

    async with serving(lambda request: server_side) as url:
        for enabled in (False, True):
            transport, probe = await picows_fast.ws_connect(Probe, url, rx_timestamps=enabled)

            async def wait(probe=probe, enabled=enabled):
                while probe.seen is None or (probe.seen[0] == -1) == enabled:
                    server_side.transport.send(WSMsgType.TEXT, "a")
                    await asyncio.sleep(0.005)

            await server_side.until(lambda: server_side.transport is not None)
            await asyncio.wait_for(wait(), 20)
            stamp, age, hardware = probe.seen
            assert hardware == -1
            assert (stamp, age) == (-1, -1) if not enabled else stamp > 1e18 and age > 0
            transport.disconnect(graceful=False)
            server_side.transport = None


CONTROL_MESSAGES = r"""
#include <stdio.h>
#include "timestamps.h"

/* What pf_read_stamps() makes of another control message and one of times. */
int main(void)
{
    static const int64_t times[][6] = {
        {1, 5, 0, 0, 2, 7}, {1, 5, 0, 0, 0, 0}, {0, 0, 0, 0, 2, 7}, {0, 0, 0, 0, 0, 0}};
    union { struct cmsghdr header; char room[256]; } control;

    for (int i = 0; i < 4; i++) {
        struct msghdr message = {0};
        struct cmsghdr *next;
        pf_stamps stamps;
        int other = 3;

        memset(&control, 0, sizeof control);
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE(sizeof other) + CMSG_SPACE(sizeof times[i]);
        next = CMSG_FIRSTHDR(&message);
        next->cmsg_level = SOL_SOCKET;
        next->cmsg_type = SCM_RIGHTS;
        next->cmsg_len = CMSG_LEN(sizeof other);
        memcpy(CMSG_DATA(next), &other, sizeof other);
        next = CMSG_NXTHDR(&message, next);
        next->cmsg_level = SOL_SOCKET;
        next->cmsg_type = PF_STAMPING;
        next->cmsg_len = CMSG_LEN(sizeof times[i]);
        memcpy(CMSG_DATA(next), times[i], sizeof times[i]);
        pf_read_stamps(&message, &stamps);
        printf("%lld %lld\n", (long long)stamps.software, (long long)stamps.hardware);
    }
    return 0;
}
"""


@needs.c_compiler
def test_hardware_stamps_are_told_apart(tmp_path):
    """No device here makes them: the kernel's message is made up."""
    source = tmp_path / "stamps.c"
    source.write_text(CONTROL_MESSAGES)
    headers = Path(picows_fast.__file__).parent / "net"
    program = tmp_path / "stamps"
    command = ["cc", "-Wall", "-Werror", f"-I{headers}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    assert output.splitlines() == [
        "1000000005 2000000007",
        "1000000005 -1",
        "-1 2000000007",
        "-1 -1",
    ]
