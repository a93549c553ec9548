"""loop: what the kernel tells once is not lost, limits that outlast many waits are kept, and
spinning overlooks nobody.
"""

from __future__ import annotations

import asyncio
import contextvars
import fcntl
import gc
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

import picows_fast
from picows_fast import WSMsgType

from . import needs
from .peers import connect_socket, connected
from .support import Echo, Recorder, address, server_frame, serving, until
from .test_loop import Calls, cancel

pytestmark = [pytest.mark.native, needs.epoll]

BINARY = WSMsgType.BINARY


@pytest.fixture(params=[0.0, 0.002], ids=["blocking", "spinning"])
def new_loop(request):
    return lambda: picows_fast.new_event_loop(busy_poll=request.param)


@pytest.fixture
def run(new_loop):
    def run(main):
        loop = new_loop()
        try:
            return loop.run_until_complete(asyncio.wait_for(main, 60))
        finally:
            loop.close()

    return run


def let_it_arrive():
    """Block the loop until the kernel has what was sent."""
    time.sleep(0.05)


@pytest.mark.parametrize("graceful", [True, False], ids=["fin", "reset"])
def test_bytes_and_the_end_behind_them(run, graceful):
    """The end is there when the bytes are read, and nothing new tells of it."""

    async def main():
        async with connected("client") as link:
            await link.peer.send_bytes(server_frame(BINARY, b"last"))
            let_it_arrive()
            if graceful:
                link.peer.fin()
            else:
                link.peer.reset()
            let_it_arrive()
            await link.listener.closed()
            return link.listener.frames

    assert run(main()) == [(BINARY, b"last", True)]


SIZES = [1, 262_144 - 20, 300_000, 5, 4_097, 262_144, 70_000, 524_288, 125]


def test_reads_that_fill_their_room(run):
    """What a read had no room for is read in the next turn, though nothing new comes."""

    async def main():
        async with connected("client") as link:
            data = b"".join(
                server_frame(BINARY, bytes([index]) * n) for index, n in enumerate(SIZES)
            )
            sending = asyncio.create_task(link.peer.send_bytes(data))
            await asyncio.sleep(0)
            let_it_arrive()
            await link.listener.until(lambda: len(link.listener.frames) == len(SIZES))
            await sending
            return [(payload[0], len(payload)) for _, payload, _ in link.listener.frames]

    assert run(main()) == list(enumerate(SIZES))


def test_urgent_data_amidst_the_bytes(run):
    """A read ends there. The byte itself is not in the stream, as on any loop."""

    async def main():
        async with connected("client") as link:
            await link.peer.send_bytes(server_frame(BINARY, b"before"))
            link.peer.sock.send(b"!", socket.MSG_OOB)
            await link.peer.send_bytes(server_frame(BINARY, b"behind"))
            let_it_arrive()
            await link.listener.frame(1)
            return [payload for _, payload, _ in link.listener.frames]

    assert run(main()) == [b"before", b"behind"]


def test_urgent_data_at_the_end_is_no_endless_event(run):
    async def main():
        loop = asyncio.get_running_loop()
        async with connected("client") as link:
            await link.peer.send_bytes(server_frame(BINARY, b"before"))
            link.peer.sock.send(b"!", socket.MSG_OOB)
            await link.listener.frame()
            await asyncio.sleep(0.05)
            selects = 0
            select = loop._selector.select

            def counted(timeout):
                nonlocal selects
                selects += 1
                return select(timeout)

            loop._selector = type("Counting", (), {"select": staticmethod(counted)})()
            try:
                await asyncio.sleep(0.1)
            finally:
                loop._selector = select.__self__
            return selects

    assert run(main()) < 10


def test_what_comes_in_a_loop_inside_a_callback(run):
    """The connection whose callback it is cannot be called there; it is afterwards."""

    async def main():
        loop = asyncio.get_running_loop()

        def turn_of_the_loop():
            if len(link.listener.frames) == 1:
                link.peer.sock.send(server_frame(BINARY, b"second"))
                let_it_arrive()
                loop.call_soon(int)
                loop._run_once()

        async with connected("client", Calls(turn_of_the_loop)) as link:
            await link.peer.send_bytes(server_frame(BINARY, b"first"))
            await link.listener.frame(1)

    run(main())


def number_of(transport):
    return transport.underlying_transport.get_extra_info("socket").fileno()


async def echoed_at(number, sock, url):
    """Have a connected socket under this number, and a connection to an echo server over it."""
    os.dup2(sock.fileno(), number)
    transport, client = await picows_fast.ws_connect(
        Recorder, url, sock=socket.socket(fileno=number)
    )
    assert number_of(transport) == number
    transport.send(BINARY, b"echo")
    await client.frame()
    transport.disconnect()
    await client.closed()


def test_a_number_that_a_closed_stream_had(run):
    """It is the number of whatever has it next: a file object, a stream."""

    async def main():
        loop = asyncio.get_running_loop()
        theirs, ours = socket.socketpair()
        async with serving(lambda request: Echo()) as url, connected("client") as lost:
            number = number_of(lost.transport)
            with theirs, ours, await connect_socket(address(url)) as sock:
                os.dup2(ours.fileno(), number)  # closes what the stream has
                readable = asyncio.Event()
                loop.add_reader(number, readable.set)
                theirs.send(b"x")
                await asyncio.wait_for(readable.wait(), 20)
                loop.remove_reader(number)
            async with connected("client") as second:
                with await connect_socket(address(url)) as sock:
                    number = number_of(second.transport)
                    await echoed_at(number, sock, url)
                assert not second.listener.frames
                os.dup2(0, number)  # what is closed now
            assert not lost.listener.frames

    run(main())


def test_a_number_that_a_closed_file_object_had(run):
    """To forget the file object leaves the stream alone that has its number now."""

    async def main():
        loop = asyncio.get_running_loop()
        theirs, ours = socket.socketpair()
        async with serving(lambda request: Echo()) as url:
            with theirs, await connect_socket(address(url)) as sock:
                number = ours.fileno()
                loop.add_reader(number, pytest.fail)
                os.dup2(sock.fileno(), ours.detach())
                transport, client = await picows_fast.ws_connect(
                    Recorder, url, sock=socket.socket(fileno=number)
                )
                assert not loop.remove_reader(number)
                with pytest.raises(OSError):
                    loop.add_reader(number, pytest.fail)
                transport.send(BINARY, b"x")
                await client.frame()
                transport.disconnect()
                await client.closed()

    run(main())


def test_a_number_that_is_used_again_in_a_loop_inside_a_callback(run):
    """The stream that has it next is called there, though the callback of the former one is not
    over."""

    async def main():
        def reuse():
            number = number_of(link.transport)
            link.transport.disconnect(graceful=False)
            loop.create_task(asyncio.wait_for(echoed_at(number, sock, url), 20)).add_done_callback(
                done.append
            )
            task = asyncio.current_task()
            if task is not None:
                asyncio.tasks._leave_task(loop, task)
            while not done:
                loop._run_once()
            if task is not None:
                asyncio.tasks._enter_task(loop, task)

        loop = asyncio.get_running_loop()
        done = []
        async with serving(lambda request: Echo()) as url:
            with await connect_socket(address(url)) as sock:
                async with connected("client", Calls(reuse)) as link:
                    await link.peer.send_bytes(server_frame(BINARY, b"first"))
                    await until(lambda: done)
        done[0].result()

    run(main())


def test_a_collection_of_garbage_while_a_stream_is_watched(run):
    """It may run Python code, which may have the loop watch a descriptor of so large a number that
    what is noted of them all is moved."""

    async def main():
        loop = asyncio.get_running_loop()
        thresholds = gc.get_threshold()
        moved = []

        def collecting(phase, info):
            if not moved:
                moved.append(fcntl.fcntl(pair[0], fcntl.F_DUPFD, 900))
                loop.add_reader(moved[0], pytest.fail)

        pair = socket.socketpair()
        async with connected("client") as link:
            link.transport.pause_reading()
            resume = link.transport.resume_reading
            kept = [contextvars.copy_context() for _ in range(300)]  # else freed ones are reused
            gc.callbacks.append(collecting)
            try:
                gc.set_threshold(1)  # the next object that is made
                resume()
            finally:
                gc.set_threshold(*thresholds)
                gc.callbacks.remove(collecting)
            await link.peer.send_bytes(server_frame(BINARY, b"x"))
            await link.listener.frame()
            del kept
        for number in moved:
            loop.remove_reader(number)
            os.close(number)
        for sock in pair:
            sock.close()
        if sys.version_info < (3, 12):  # later ones collect between two Python instructions
            assert moved

    run(main())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_who_else_was_ready_when_a_callback_ended_the_loop(new_loop, kind):
    """The loop runs again, and calls who it had no more time for."""
    loop = new_loop()
    calls = []

    def called():
        calls.append(1)
        if len(calls) == 1:
            raise kind

    async def main():
        async with (
            connected("client", Calls(called)) as first,
            connected("client", Calls(called)) as second,
            connected("client", Calls(called)) as third,
        ):
            for link in (first, second, third):
                await link.peer.send_bytes(server_frame(BINARY, b"x"))
            let_it_arrive()
            await asyncio.Event().wait()

    async def until_called():
        while len(calls) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    try:
        task = loop.create_task(main())
        with pytest.raises(kind):
            loop.run_forever()
        assert len(calls) == 1
        loop.run_until_complete(asyncio.wait_for(until_called(), 20))
        cancel(task, loop)
    finally:
        loop.close()


def test_debug_mode_comes_and_goes(run):
    async def main():
        loop = asyncio.get_running_loop()
        async with connected("client") as link:
            for number in range(6):
                loop.set_debug(number % 2 == 1)
                data = server_frame(BINARY, bytes([number]) * 300_000)
                sending = asyncio.create_task(link.peer.send_bytes(data))
                await link.listener.frame(number)
                await sending
            loop.set_debug(False)

    run(main())


def test_a_pause_in_the_midst(run):
    """What had arrived when reading was paused is there when it is resumed."""

    async def main():
        async with connected("client") as link:
            for number in range(5):
                link.transport.pause_reading()
                await link.peer.send_bytes(server_frame(BINARY, bytes([number])))
                let_it_arrive()
                await asyncio.sleep(0)
                assert len(link.listener.frames) == number
                link.transport.resume_reading()
                await link.listener.frame(number)

    run(main())


def test_a_backlog_and_incoming_frames(run):
    """While the loop waits for the socket to take more, frames still come; and afterwards, too."""

    async def main():
        async with connected("client") as link:
            link.transport.send(BINARY, bytes(8_000_000))
            for number in range(3):
                await link.peer.send_bytes(server_frame(BINARY, bytes([number])))
                await link.listener.frame(number)
            assert link.transport.write_backlog
            while link.transport.write_backlog:
                await link.peer.more()
                link.peer.data.clear()
            for number in range(3, 6):
                await link.peer.send_bytes(server_frame(BINARY, bytes([number])))
                await link.listener.frame(number)

    run(main())


# --- the alarm


async def echoes(count):
    """Traffic between two connections of the loop, without a task's turn in between."""
    done = asyncio.get_running_loop().create_future()

    class Again(Recorder):
        def on_ws_frame(self, transport, frame):
            self.left -= 1
            if self.left:
                transport.send(BINARY, b"x")
            elif not done.done():
                done.set_result(None)

    async with serving(lambda request: Echo()) as url:
        transport, listener = await picows_fast.ws_connect(Again, url)
        listener.left = count
        transport.send(BINARY, b"x")
        await done
        transport.disconnect(graceful=False)
        await listener.closed()


def test_timers_during_traffic(run):
    """Each comes when it is due, and in order, however often the loop waits meanwhile."""

    async def main():
        loop = asyncio.get_running_loop()
        due = [0.03, 0.001, 0.02, 0.002, 0.01, 0.0105]
        start = loop.time()
        called = []
        for delay in due:
            loop.call_at(start + delay, lambda delay=delay: called.append((delay, loop.time())))
        while len(called) < len(due):
            await echoes(200)
        assert [delay for delay, _ in called] == sorted(due)
        assert all(now >= start + delay for delay, now in called)

    run(main())


def test_a_timer_that_traffic_alone_must_not_outlast(run):
    """It ends a traffic that has no end of its own."""

    async def main():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(echoes(10**9), 0.05)

    run(main())


def test_a_timer_before_the_alarm(run):
    """The alarm is set for a timer far away; then comes a near one, and silence."""

    async def main():
        far = asyncio.get_running_loop().call_later(1000, int)
        await echoes(50)
        await asyncio.sleep(0.01)
        await echoes(50)
        await asyncio.sleep(0.01)
        far.cancel()

    run(main())


def test_a_timer_behind_the_alarm(run):
    """The timer that the alarm was set for is cancelled: it goes off for nothing."""

    async def main():
        loop = asyncio.get_running_loop()
        near = loop.call_later(0.05, int)
        await echoes(50)
        near.cancel()
        start = loop.time()
        await asyncio.sleep(0.1)
        assert loop.time() >= start + 0.1

    run(main())


# --- while it spins


FLOODED = 20_000  # frames; without Python in between the loop takes 1,000 of them


def test_who_receives_without_a_break_while_the_loop_spins():
    """The other connection is read, though a read of the one that received last never fails."""
    loop = picows_fast.new_event_loop(busy_poll=0.002)

    async def main():
        def send_another():
            if not other.listener.frames and len(flooded.listener.frames) < FLOODED:
                flooded.peer.sock.send(frame)

        frame = server_frame(BINARY, b"x")
        async with (
            connected("client", Calls(send_another)) as flooded,
            connected("client") as other,
        ):
            await flooded.peer.send_bytes(frame)
            await flooded.listener.frame(10)  # from now on it is who received last
            other.peer.sock.send(frame)
            await other.listener.frame()
            return len(flooded.listener.frames)

    try:
        assert loop.run_until_complete(asyncio.wait_for(main(), 60)) < FLOODED
    finally:
        loop.close()


def test_an_end_that_comes_while_the_loop_spins():
    """What the end scheduled is done, whether epoll told of it or a read that asked first.

    Which one it is depends on the instant: one time in two or three it is the read.
    """
    loop = picows_fast.new_event_loop(busy_poll=0.2)

    async def main():
        for _ in range(30):
            async with connected("client") as link:
                await link.peer.send_bytes(server_frame(BINARY, b"x"))
                await link.listener.frame()
                ending = threading.Timer(0.002, link.peer.fin)
                ending.start()
                # Longer than it spins, and nothing else wakes the loop meanwhile.
                await asyncio.wait_for(link.transport.wait_disconnected(), 10)
                ending.join()

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()


# --- the only thread of a process

ALONE = """
import asyncio, os, threading, time
import picows_fast
from tests.support import Echo, Recorder, serving
from tests.test_loop_edges import BINARY, echoes

async def main():
    loop = asyncio.get_running_loop()
    async with serving(lambda request: Echo()) as url:
        transport, listener = await picows_fast.ws_connect(Recorder, url)
        transport.send(BINARY, b"alone")
        await listener.frame()
        print("threads:", len(os.listdir("/proc/self/task")))
        ended = threading.Event()
        turns = []

        def compute():
            while not ended.is_set():
                time.sleep(0)
                turns.append(None)

        thread = threading.Thread(target=compute)
        thread.start()
        # While the loop has nothing to do but to wait, the thread has many turns, if the machine
        # lets it run; with the interpreter held it would have one or two, after the wait.
        before = len(turns)
        while len(turns) < before + 100:
            before = len(turns)
            await asyncio.sleep(0.05)
        threading.Timer(0.01, loop.call_soon_threadsafe, (ended.set,)).start()
        await loop.run_in_executor(None, thread.join)
        transport.disconnect(graceful=False)
        await listener.closed()

picows_fast.run(asyncio.wait_for(main(), 30))
print("done")
"""


def test_threads_that_begin_later():
    """Serving and connecting to addresses makes no thread; who comes later gets the interpreter."""
    result = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.stdout, result.stderr) == ("threads: 1\ndone\n", "")
