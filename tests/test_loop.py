"""loop: what asyncio promises holds on picows_fast's loop, and its connections starve nobody."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import signal
import socket
import sys
import threading
import time

import pytest

import picows_fast
from picows_fast import WSListener, WSMsgType

from . import needs
from .peers import connected
from .support import Echo, Recorder, accept_response, raw_server, server_frame, serving

pytestmark = needs.epoll

BINARY = WSMsgType.BINARY
SPIN = 0.002  # seconds
SO_BUSY_POLL = 46
SO_INCOMING_CPU = 49


def selector_of(loop):
    return loop._selector


@pytest.fixture(params=[0.0, SPIN], ids=["blocking", "spinning"])
def busy_poll(request):
    return request.param


@pytest.fixture
def run(busy_poll):
    return lambda main, **options: picows_fast.run(
        asyncio.wait_for(main, 60), busy_poll=busy_poll, **options
    )


class Calls(Recorder):
    """Calls a function for each frame."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def on_ws_frame(self, transport, frame):
        super().on_ws_frame(transport, frame)
        self.function()


async def one_frame(function, **options):
    """Have `function` called from on_ws_frame of a client, once."""
    async with connected("client", Calls(function), **options) as link:
        await link.peer.send_bytes(server_frame(BINARY, b"now"))
        await link.listener.frame()


def cancel(task, loop):
    """Before Python 3.12, asyncio.wait_for loses a cancellation that comes with its result."""
    while not task.done():
        task.cancel()
        loop.run_until_complete(asyncio.wait([task], timeout=0.1))


# --- making and running


def test_run_returns_what_main_returns():
    async def main():
        loop = asyncio.get_running_loop()
        assert isinstance(loop, asyncio.SelectorEventLoop)
        assert type(selector_of(loop)).__name__ == "LoopSelector"
        return 42

    assert picows_fast.run(main()) == 42


def test_run_raises_what_main_raises():
    async def main():
        raise LookupError("x")

    with pytest.raises(LookupError):
        picows_fast.run(main())


@pytest.mark.parametrize("debug", [None, True, False])
def test_run_sets_debug_mode(debug):
    async def main():
        return asyncio.get_running_loop().get_debug()

    assert picows_fast.run(main(), debug=debug) is bool(debug)


def test_run_inside_a_loop():
    async def main():
        with pytest.raises(RuntimeError, match="while an event loop runs"):
            picows_fast.run(asyncio.sleep(0))

    picows_fast.run(main())


def test_run_wants_a_coroutine():
    with pytest.raises(TypeError, match="coroutine"):
        picows_fast.run(lambda: None)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_busy_poll_has_a_sense(value):
    with pytest.raises(ValueError, match="busy_poll"):
        picows_fast.new_event_loop(busy_poll=value)


@pytest.mark.parametrize("value", ["1", None, True])
def test_busy_poll_is_a_number(value):
    with pytest.raises(TypeError, match="busy_poll"):
        picows_fast.new_event_loop(busy_poll=value)


def test_without_epoll_there_is_a_stock_loop(monkeypatch):
    monkeypatch.setattr(sys, "platform", "other")
    with pytest.warns(RuntimeWarning, match="epoll"):
        loop = picows_fast.new_event_loop()
    assert type(selector_of(loop)).__name__ != "LoopSelector"
    loop.close()


def test_what_run_does_on_python_310():
    from picows_fast.loop import _run_until_complete

    ended = []

    async def endless():
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("task")

    async def main():
        task = asyncio.get_running_loop().create_task(endless())
        await asyncio.sleep(0)
        return "done", task

    loop = picows_fast.new_event_loop()
    result, task = _run_until_complete(loop, main(), True)
    assert result == "done"
    assert task.cancelled()
    assert ended == ["task"]
    assert loop.is_closed()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.Runner came with Python 3.11")
def test_as_a_loop_factory():
    with asyncio.Runner(loop_factory=picows_fast.new_event_loop) as runner:
        assert runner.run(asyncio.sleep(0, "x")) == "x"


# --- what wakes the loop up


@pytest.mark.native
def test_streams_are_called_without_file_objects(run):
    async def main():
        loop = asyncio.get_running_loop()
        # The pipe that call_soon_threadsafe writes to, and nothing of ours.
        before = len(selector_of(loop).get_map())
        async with connected("client") as link:
            await link.peer.send_bytes(server_frame(BINARY, b"x"))
            await link.listener.frame()
            ours = link.transport.underlying_transport.get_extra_info("socket").fileno()
            assert ours not in selector_of(loop).get_map()
        return before

    assert run(main()) == 1


def test_the_loop_goes_on_with_what_a_callback_schedules(run):
    async def main():
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        timer = loop.create_future()

        def schedule():
            loop.call_soon(future.set_result, "soon")
            loop.call_later(0.01, timer.set_result, "later")

        await one_frame(schedule)
        return await future, await timer

    assert run(main()) == ("soon", "later")


def test_a_timer_set_by_a_callback_alone_is_kept(busy_poll):
    """With no other timer, and no callback that waits: the wait must notice it by itself."""
    loop = picows_fast.new_event_loop(busy_poll=busy_poll)
    called = []

    class Listener(WSListener):
        def on_ws_frame(self, transport, frame):
            loop.call_later(0.01, called.append, "timer")
            loop.call_later(0.02, loop.stop)

    async def main():
        async with connected("client", Listener()) as link:
            await link.peer.send_bytes(server_frame(BINARY, b"x"))
            await asyncio.Event().wait()

    try:
        task = loop.create_task(main())
        loop.run_forever()
        assert called == ["timer"]
        cancel(task, loop)
    finally:
        loop.close()


def test_stop_from_a_callback(busy_poll):
    loop = picows_fast.new_event_loop(busy_poll=busy_poll)

    async def main():
        async with connected("client", Calls(loop.stop)) as link:
            await link.peer.send_bytes(server_frame(BINARY, b"x"))
            await asyncio.Event().wait()

    try:
        task = loop.create_task(main())
        loop.run_forever()
        assert not task.done()
        cancel(task, loop)
    finally:
        loop.close()


def test_calls_from_other_threads(run):
    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(20):
            future = loop.create_future()
            threading.Timer(0.002, loop.call_soon_threadsafe, (future.set_result, 1)).start()
            await future
        return await loop.run_in_executor(None, lambda: "executor")

    assert run(main()) == "executor"


def test_signals(run):
    async def main():
        loop = asyncio.get_running_loop()
        got = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, got.set)
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        await got.wait()
        assert loop.remove_signal_handler(signal.SIGUSR1)

    run(main())


def test_a_signal_handler_that_raises_ends_the_loop(run):
    if sys.gettrace():
        pytest.skip("it may run, and raise, in what traces the lines")

    class RaisedError(Exception):
        pass

    def handler(number, frame):
        raise RaisedError

    old = signal.signal(signal.SIGUSR2, handler)
    try:

        async def main():
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR2)).start()
            await asyncio.sleep(20)

        with pytest.raises(RaisedError):
            run(main())
    finally:
        signal.signal(signal.SIGUSR2, old)


def test_ctrl_c(run):
    async def main():
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
        await asyncio.sleep(20)

    with pytest.raises(KeyboardInterrupt):
        run(main())


def test_subprocesses(run):
    async def main():
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "print(6 * 7)", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        return output.strip(), process.returncode

    assert run(main()) == (b"42", 0)


# --- callbacks


def test_callbacks_run_in_the_context_that_connected(run):
    variable = contextvars.ContextVar("variable", default="outside")
    seen = []

    async def main():
        variable.set("inside")
        await one_frame(
            lambda: seen.append((variable.get(), asyncio.current_task(), variable.set("changed")))
        )
        assert variable.get() == "inside"

    run(main())
    ((value, task, _),) = seen
    assert value == "inside"
    assert task is None
    assert variable.get() == "outside"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_leaves_run(run, kind):
    def fail():
        raise kind("now")

    with pytest.raises(kind, match="now"):
        run(one_frame(fail))


@pytest.mark.native
def test_slow_callbacks_are_told_of_in_debug_mode(run, caplog):
    async def main():
        asyncio.get_running_loop().slow_callback_duration = 0.05
        await one_frame(lambda: time.sleep(0.1))

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(main(), debug=True)
    assert any("_on_readable" in record.getMessage() for record in caplog.records)


def test_a_callback_closes_a_connection_that_is_ready_too(run):
    """Both are ready in the same wait; the second to be called is gone by then."""

    async def main():
        listeners = [Calls(lambda: end(1)), Calls(lambda: end(0))]

        def end(index):
            listeners[index].transport.disconnect(graceful=False)

        async with (
            connected("client", listeners[0]) as first,
            connected("client", listeners[1]) as second,
        ):
            await first.peer.send_bytes(server_frame(BINARY, b"x"))
            await second.peer.send_bytes(server_frame(BINARY, b"x"))
            time.sleep(0.05)  # noqa: ASYNC251  # until both have arrived
            await asyncio.sleep(0.05)
            return sorted(len(listener.frames) for listener in listeners)

    assert run(main()) == [0, 1]


# --- fairness


class Flood:
    """A thread that sends frames to a client of ours as fast as they are taken."""

    def __init__(self):
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self.listening.getsockname()[1]}/"
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        peer, _ = self.listening.accept()
        head = b""
        while b"\r\n\r\n" not in head:
            head += peer.recv(4096)
        peer.sendall(accept_response(head))
        block = server_frame(BINARY, b"x" * 100) * 2000
        try:
            while not self.ended.is_set():
                peer.sendall(block)
        except OSError:
            pass
        peer.close()

    def end(self):
        self.ended.set()
        self.listening.close()
        self.thread.join(10)


class Count(WSListener):
    frames = 0

    def on_ws_frame(self, transport, frame):
        self.frames += 1


ENOUGH = 20


async def timers(loop):
    for _ in range(ENOUGH):
        await asyncio.sleep(0.001)


async def file_objects(loop):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        for _ in range(ENOUGH):
            await loop.sock_sendall(theirs, b"x")
            await loop.sock_recv(ours, 10)


async def threads(loop):
    for _ in range(ENOUGH):
        await loop.run_in_executor(None, int)


async def connections(loop):
    async def answer(reader, writer):
        while await reader.read(100):
            writer.write(server_frame(BINARY, b"x"))

    async with raw_server(answer) as url:
        transport, listener = await picows_fast.ws_connect(Recorder, url)
        for index in range(ENOUGH):
            transport.send(BINARY, b"x")
            await listener.frame(index)
        transport.disconnect(graceful=False)
        await listener.closed()


@pytest.mark.parametrize("others", [timers, file_objects, threads, connections])
def test_a_flood_starves_nobody(run, others):
    """What else the loop has to do goes on while one connection is flooded."""

    async def main():
        flood = Flood()
        transport, count = await picows_fast.ws_connect(Count, flood.url)
        try:
            await others(asyncio.get_running_loop())
            before = count.frames
            while count.frames == before:  # noqa: ASYNC110  # it is still flooded
                await asyncio.sleep(0)
        finally:
            transport.disconnect(graceful=False)
            flood.end()

    run(main())


def test_one_read_per_turn(run):
    """What a callback schedules comes after the read that it was part of, however much waits."""

    async def main():
        seen = []

        class Scheduling(Count):
            def on_ws_frame(self, transport, frame):
                super().on_ws_frame(transport, frame)
                if self.frames == 1:
                    asyncio.get_running_loop().call_soon(lambda: seen.append(self.frames))

        flood = Flood()
        transport, listener = await picows_fast.ws_connect(Scheduling, flood.url)
        try:
            while listener.frames < 20_000:  # noqa: ASYNC110
                await asyncio.sleep(0)
        finally:
            transport.disconnect(graceful=False)
            flood.end()
        return seen

    (frames,) = run(main())
    assert frames <= 2 * 256 * 1024 // 102


# --- spinning on any loop, and socket options


async def test_busy_poll_of_a_connection():
    """Frames are answered while it spins, and what they schedule is not held up for ever."""

    async def answer(reader, writer):
        while await reader.read(4096):
            writer.write(server_frame(BINARY, b"x"))

    async with raw_server(answer) as url:
        transport, listener = await picows_fast.ws_connect(Recorder, url, busy_poll=SPIN)
        for index in range(20):
            transport.send(BINARY, b"x")
            await listener.frame(index)
        transport.disconnect(graceful=False)
        await listener.closed()


def test_busy_poll_of_a_connection_is_bounded(busy_poll):
    """A flooded connection that spins gives its turn back after busy_poll."""

    async def main():
        flood = Flood()
        transport, _ = await picows_fast.ws_connect(Count, flood.url, busy_poll=SPIN)
        try:
            for _ in range(ENOUGH):
                await asyncio.sleep(0.001)
        finally:
            transport.disconnect(graceful=False)
            flood.end()

    asyncio.run(asyncio.wait_for(main(), 60))
    picows_fast.run(asyncio.wait_for(main(), 60), busy_poll=busy_poll)


class Noting(socket.socket):
    """A socket that notes what is set: without privileges that is what would be so anyway."""

    def __init__(self):
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)
        self.options = []

    def setsockopt(self, level, option, *value):
        self.options.append((level, option, *value))
        super().setsockopt(level, option, *value)


SOCKET_OPTIONS = {"so_busy_poll": 0, "so_incoming_cpu": 0}
NOTED = {(socket.SOL_SOCKET, SO_BUSY_POLL, 0), (socket.SOL_SOCKET, SO_INCOMING_CPU, 0)}


async def test_socket_options():
    listening, ours = Noting(), Noting()
    listening.bind(("127.0.0.1", 0))
    server = await picows_fast.ws_create_server(
        lambda request: Echo(), sock=listening, tcp_quickack=True, **SOCKET_OPTIONS
    )
    transport, listener = await picows_fast.ws_connect(
        Recorder,
        f"ws://127.0.0.1:{listening.getsockname()[1]}/",
        socket_factory=lambda _: ours,
        tcp_quickack=True,
        **SOCKET_OPTIONS,
    )
    transport.send(BINARY, b"x")
    assert await listener.frame() == (BINARY, b"x", True)
    transport.disconnect(graceful=False)
    await listener.closed()
    server.close()
    await server.wait_closed()
    for sock in (listening, ours):
        assert set(sock.options) >= NOTED


class Refusing(socket.socket):
    """A socket that may not be made to poll."""

    def __init__(self):
        super().__init__(socket.AF_INET, socket.SOCK_STREAM)

    def setsockopt(self, level, option, *value):
        if (level, option) == (socket.SOL_SOCKET, SO_BUSY_POLL):
            raise PermissionError(1, "Operation not permitted")
        super().setsockopt(level, option, *value)


async def test_socket_options_that_are_not_allowed_are_named():
    async with serving(lambda request: Recorder()) as url:
        with pytest.raises(OSError, match="so_busy_poll: cannot set SO_BUSY_POLL"):
            await picows_fast.ws_connect(
                Recorder, url, socket_factory=lambda _: Refusing(), so_busy_poll=1
            )
    listening = Refusing()
    listening.bind(("127.0.0.1", 0))
    with pytest.raises(OSError, match="so_busy_poll"):
        await picows_fast.ws_create_server(lambda request: None, sock=listening, so_busy_poll=1)
    assert listening.fileno() == -1
