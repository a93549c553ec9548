"""Code that runs in the midst of the package's own calls, and acts on connections there.

Python code can run wherever the package calls anything of Python's: a finalizer or a weakref's
callback when something is allocated, a signal's handler, a method of an ``SSLObject`` subclass, a
log handler, the event loop's methods, an object that exports a buffer, the listener itself, and an
event loop that is run inside of a callback. Each of these moments is combined with everything that
such code may do to a connection, on every kind of stream.

Whatever it does: every peer gets whole frames of its own connection, in order; the connection that
was told to end does so once, and the others do not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import logging
import os
import signal
import ssl
import subprocess
import sys
import threading
import weakref

import pytest

from picows_fast import WSAutoPingStrategy, WSMsgType
from picows_fast.layers.broadcast import Channel

from ..cython_build import load
from ..support import until
from .conversation import STREAMS, NoDirectTls, World, payload

pytestmark = pytest.mark.usefixtures("leaves_nothing")

SIDES = ("client", "server")


# --- What the code does: with the first of two connections


def send_small(world):
    world.lines[0].send("midst", 50)


def send_large(world):
    world.lines[0].send("midst", 200_000)


def send_on_both(world):
    for line in world.lines:
        line.send("midst", 1000)


def ping(world):
    world.lines[0].transport.send_ping(b"midst")


def cork(world):
    transport = world.lines[0].transport
    transport.cork()
    world.lines[0].send("midst", 60)
    world.lines[0].send("midst", 30_000)
    transport.uncork()


def cork_for_a_while(world):
    transport = world.lines[0].transport
    transport.cork()
    asyncio.get_event_loop().call_later(0.001, transport.uncork)


def pause(world):
    transport = world.lines[0].transport
    if not transport.is_reading_paused:
        transport.pause_reading()
        asyncio.get_event_loop().call_later(0.001, transport.resume_reading)


def pause_and_resume(world):
    for line in world.lines:
        if not line.transport.is_reading_paused:
            line.transport.pause_reading()
            line.transport.resume_reading()


def publish(world):
    world.publish()


def close(world):
    world.lines[0].end("close")
    world.lines[0].transport.send_close(1000, "midst")


def disconnect(world):
    world.lines[0].end("graceful")
    world.lines[0].transport.disconnect()


def close_stream(world):
    world.lines[0].end("graceful")
    world.lines[0].transport.underlying_transport.close()


def abort(world):
    world.lines[0].end("abort")
    world.lines[0].transport.disconnect(graceful=False)


def abort_stream(world):
    world.lines[0].end("abort")
    world.lines[0].transport.underlying_transport.abort()


#: act -> how often at most, each how many moments
REPEATED = {
    send_small: (200, 1),
    send_large: (5, 7),
    send_on_both: (60, 2),
    ping: (60, 1),
    cork: (12, 3),
    cork_for_a_while: (30, 3),
    pause: (20, 3),
    pause_and_resume: (100, 1),
    publish: (60, 2),
}
#: acts after which the connection ends
ENDING = (close, disconnect, close_stream, abort, abort_stream)
ACTS = (*REPEATED, *ENDING)


def timers_are_sorted():
    """Whether asyncio's heap of timers is being put in order, which bears no new one meanwhile."""
    names = []
    frame = sys._getframe(1)
    while frame is not None and len(names) < 8:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return "__lt__" in names


class Firing:
    """Calls the act in some of the moments: an ending one in one of them only."""

    def __init__(self, world, act, at):
        self.world = world
        self.act = act
        self.at = at
        self.moments = 0
        self.left, self.stride = REPEATED.get(act, (1, 1))
        self.inside = False
        self.errors = []

    def __call__(self):
        if self.inside or not self.left or timers_are_sorted():
            return
        self.moments += 1
        if self.moments <= self.at or (self.moments - self.at) % self.stride:
            return
        self.left -= 1
        self.inside = True
        try:
            self.act(self.world)
        except BaseException as error:
            self.errors.append(error)
        finally:
            self.inside = False


class MidstWorld(World):
    """Two connections that subscribe to a channel; `fire()` is called in each moment."""

    firing = None

    def fire(self, *_):
        if self.firing is not None:
            self.firing()

    def subscribe(self):
        self.channel = Channel(max_messages=100_000, max_bytes=1 << 30, join_turn=False)
        self.messages = 0
        for line in self.lines if self.side == "server" else ():
            self.channel.subscribe(line.transport)

    def publish(self):
        number, self.messages = self.messages, self.messages + 1
        entries = [line.note("channel", number) for line in self.lines]
        self.channel.publish(WSMsgType.BINARY, payload("channel", number, 300))
        for entry in entries:
            entry.done = True


# --- The moments. Each is entered before the connections are made.


@contextlib.contextmanager
def collections(world, make):
    """Have the garbage collector free something with every allocation that it counts."""
    gc.collect()
    gc.freeze()
    threshold = gc.get_threshold()
    make()
    gc.set_threshold(1, 1_000_000, 1_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()


@contextlib.contextmanager
def finalizer(world):
    going_on = [True]

    class Garbage:
        def __init__(self):
            self.me = self

        def __del__(self):
            if going_on:
                Garbage()  # for the next collection
                world.fire()

    with collections(world, Garbage):
        yield
        going_on.clear()
    gc.collect()


@contextlib.contextmanager
def weakref_callback(world):
    going_on = [True]
    references = []

    class Garbage:
        def __init__(self):
            self.me = self
            references.append(weakref.ref(self, freed))

    def freed(reference):
        references.remove(reference)
        if going_on:
            Garbage()
            world.fire()

    with collections(world, Garbage):
        yield
        going_on.clear()
    gc.collect()


SIGNALLER = """
import os, signal, sys, time
number = int(sys.argv[1])
while os.getppid() == int(sys.argv[2]):
    os.kill(int(sys.argv[2]), number)
    time.sleep(0.0003)
"""


@contextlib.contextmanager
def signals(world):
    """Real ones, of another process, at any time."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled by the main thread")
    number = signal.SIGUSR2
    before = signal.signal(number, world.fire)
    command = [sys.executable, "-I", "-S", "-c", SIGNALLER, str(int(number)), str(os.getpid())]
    child = subprocess.Popen(command)
    try:
        yield
    finally:
        child.kill()
        child.wait()
        signal.signal(number, before)


@contextlib.contextmanager
def ssl_object(world):
    """Before and behind each call of the class that the caller's SSLContext names."""

    class Watched(ssl.SSLObject):
        def read(self, *arguments):
            world.fire()
            try:
                return super().read(*arguments)
            finally:
                world.fire()

        def write(self, data):
            world.fire()
            try:
                return super().write(data)
            finally:
                world.fire()

        def do_handshake(self):
            world.fire()
            return super().do_handshake()

        def unwrap(self):
            world.fire()
            try:
                return super().unwrap()
            finally:
                world.fire()

        def pending(self):
            world.fire()
            return super().pending()

    if not world.tls:
        pytest.skip("no TLS")
    context = world.contexts.client if world.side == "client" else world.contexts.server
    before = context.sslobject_class
    context.sslobject_class = Watched
    try:
        yield
    finally:
        context.sslobject_class = before


@contextlib.contextmanager
def log_handler(world):
    class Handler(logging.Handler):
        def emit(self, record):
            world.fire()

    logger = logging.Logger("midst", 1)
    logger.addHandler(Handler())
    world.options["logger_name"] = logger
    yield


LOOP_METHODS = ("call_soon", "call_later", "add_reader", "remove_reader", "add_writer")
LOOP_METHODS += ("remove_writer",)


@contextlib.contextmanager
def loop_methods(world):
    """Before and behind what the package calls of the loop."""
    loop = asyncio.get_running_loop()

    def watched(method):
        def call(*arguments, **options):
            owners = [type(getattr(one, "__self__", None)).__module__ for one in arguments]
            ours = len(arguments) == 1 or any(str(o).startswith("picows_fast") for o in owners)
            if ours:
                world.fire()
            try:
                return method(*arguments, **options)
            finally:
                if ours:
                    world.fire()

        return call

    for name in LOOP_METHODS:
        setattr(loop, name, watched(getattr(loop, name)))
    try:
        yield
    finally:
        for name in LOOP_METHODS:
            delattr(loop, name)


@contextlib.contextmanager
def buffer_protocol(world):
    """What is sent runs code when its buffer is taken, and when it is given back."""
    world.wrap = lambda data: world.exporter(data, world.fire)
    yield


def exporter(request):
    return load(request.getfixturevalue("cython_folder"), "exporting").Exporter


@contextlib.contextmanager
def nested_loop(world):
    """Callbacks that run the event loop, as nest_asyncio and debuggers do."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        pytest.skip("this loop cannot be run from within")
    depth = []

    def hook(name):
        if name == "on_ws_frame" and len(depth) < 2 and world.firing is not None:
            depth.append(name)
            try:
                run_turns(loop, 2)
                world.fire()
                run_turns(loop, 2)
            finally:
                depth.pop()

    world.hook = hook
    yield


def run_turns(loop, turns):
    """Turns of a loop that runs already, as nest_asyncio makes them."""
    task = asyncio.current_task(loop)
    if task is not None:
        asyncio.tasks._leave_task(loop, task)
    due = len(loop._ready)
    for _ in range(turns):
        loop._process_events(loop._selector.select(0))
        now = loop.time()
        for timer in [timer for timer in loop._scheduled if timer._when <= now]:
            loop._scheduled.remove(timer)
            timer._scheduled = False
            loop._ready.append(timer)
        heapq.heapify(loop._scheduled)
        for _ in range(len(loop._ready)):
            if loop._ready:
                handle = loop._ready.popleft()
                if not handle._cancelled:
                    handle._run()
    while len(loop._ready) < due:  # the outer turn has counted them
        loop.call_soon(int)
    if task is not None:
        asyncio.tasks._enter_task(loop, task)


def callbacks(*names):
    @contextlib.contextmanager
    def moment(world):
        def hook(name):
            if name in names:
                world.fire()

        world.hook = hook
        if "send_user_specific_ping" in names:
            world.options |= {
                "enable_auto_ping": True,
                "auto_ping_strategy": WSAutoPingStrategy.PING_PERIODICALLY,
                "auto_ping_idle_timeout": 0.002,
                "auto_ping_reply_timeout": 20,
            }
        yield

    return moment


MOMENTS = {
    "finalizer": finalizer,
    "weakref": weakref_callback,
    "signal": signals,
    "ssl_object": ssl_object,
    "log_handler": log_handler,
    "loop_methods": loop_methods,
    "buffer": buffer_protocol,
    "nested_loop": nested_loop,
    "on_ws_frame": callbacks("on_ws_frame"),
    "watermarks": callbacks("pause_writing", "resume_writing"),
    "ping": callbacks("send_user_specific_ping", "is_user_specific_pong"),
}


# --- The traffic

OUR_SIZES = (30, 40, 150_000, 126, 60_000, 20)
PEERS_SIZES = (30, 40, 126, 5000, 25, 400_000, 25, 70_000, 30, 30)
#: more than the buffer in which frames are put together takes
HUGE = 1_300_000
PATIENCE = 2
AT = (0, 1, 3, 7, 19, 43)


async def traffic(world, huge):
    """Both connections send and receive; wait until everything has come, or has ended."""
    talks = [asyncio.ensure_future(line.peer_talks(PEERS_SIZES)) for line in world.lines]
    for size in (*OUR_SIZES, HUGE if huge else 100, 50):
        for line in world.lines:
            line.send("traffic", size)
        await asyncio.sleep(0)
    _, hang = await asyncio.wait(talks, timeout=PATIENCE)
    if hang:
        raise asyncio.TimeoutError
    await until(lambda: all(line.settled() for line in world.lines), PATIENCE)
    world.firing = None
    await until(lambda: all(line.settled() for line in world.lines), PATIENCE)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("moment", MOMENTS)
async def test_midst(moment, stream, tls_contexts, thorough, monkeypatch, request):
    loop_number = ["_UnixSelectorEventLoop", "Loop", "_EventLoop"].index(
        type(asyncio.get_running_loop()).__name__
    )
    place = list(MOMENTS).index(moment) + list(STREAMS).index(stream) + loop_number
    if stream == "tls-in-tls" and moment in ("finalizer", "weakref", "signal", "ssl_object"):
        pytest.skip("the event loop's own TLS, which is below ours, does not bear it")
    if stream == "memory-tls":
        monkeypatch.setattr("picows_fast.net.open.DirectTlsStream", NoDirectTls)
    trouble = []
    for side in SIDES if thorough else [SIDES[place % 2]]:
        for number, act in enumerate(ACTS):
            if not thorough and (number + place) % 3:
                continue
            ats = (AT[(number + place) % len(AT)],)
            if thorough and act in ENDING:
                ats = AT
            for at in ats:
                world = MidstWorld(stream, "server" if act is publish else side, tls_contexts)
                if act is publish and world.side == "client":
                    continue  # a client's frames are masked one by one
                if moment == "buffer":
                    world.exporter = exporter(request)
                said = await run(world, MOMENTS[moment], act, at)
                if said:
                    trouble.append(f"{side} {act.__name__} at {at}: {said}")
    assert not trouble, "\n".join(trouble)


async def run(world, moment, act, at):
    """What goes wrong when this act happens in these moments; None if nothing."""
    with moment(world):
        async with world.opened():
            world.subscribe()
            world.firing = firing = Firing(world, act, at)
            try:
                await traffic(world, huge=at % 3 == 0)
                problem = None
            except asyncio.TimeoutError:
                problem = "hangs"
            world.firing = None
            for line in world.lines:
                try:
                    line.check()
                except Exception as error:
                    problem = f"{problem or ''} line {line.number}: {error!r:.1000}"
            if firing.errors:
                problem = f"{problem or ''} raised in the act: {firing.errors[0]!r}"
    return problem
