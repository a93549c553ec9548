"""Listener methods that raise, and that call back into the transport, at every moment of a
connection's life: in Python and in Cython, for client and server, over each kind of stream.

Whatever they do: the connection ends in order and once, what was raised is told once, and the other
connections of the event loop notice nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging

import pytest

import picows_fast
from picows_fast import (
    WSCloseCode,
    WSConnectionClosedError,
    WSDisconnectCause,
    WSListener,
    WSMsgType,
    WSProtocolError,
    WSState,
)
from picows_fast.core import PICOWS_DEBUG_LL

from ..cython_build import load
from ..peers import TIMEOUT, Contexts, connected
from ..support import Echo, Recorder, serving

pytestmark = pytest.mark.usefixtures("leaves_nothing")

LARGE = bytes(1_000_000)


# --- A listener whose methods do what the test says


class PythonActing(WSListener):
    """Calls `act(name, transport, frame)` in each method."""

    act = None
    transport = None

    def on_ws_connected(self, transport):
        self.transport = transport
        self.act("on_ws_connected", transport, None)

    def on_ws_frame(self, transport, frame):
        self.act("on_ws_frame", transport, frame)

    def on_ws_disconnected(self, transport):
        self.act("on_ws_disconnected", transport, None)

    def send_user_specific_ping(self, transport):
        self.act("send_user_specific_ping", transport, None)
        transport.send_ping()

    def is_user_specific_pong(self, frame):
        return self.act("is_user_specific_pong", self.transport, frame)

    def pause_writing(self):
        self.act("pause_writing", self.transport, None)

    def resume_writing(self):
        self.act("resume_writing", self.transport, None)


class Script:
    """When the method `moment` is called first, `reaction(script, transport)` happens.

    `calls` are the names of the methods that were called, with the state they were called in.
    """

    def __init__(self, moment, reaction):
        self.moment = moment
        self.reaction = reaction
        self.calls = []
        self.counts = {}
        self.reached = False
        self.tasks = []
        self._changed = asyncio.Event()

    def act(self, name, transport, frame):
        if name == "on_ws_frame" and frame.msg_type == WSMsgType.CLOSE:
            name = "CLOSE"
        self.calls.append((name, transport.state))
        self._changed.set()
        if name == self.moment and not self.reached:
            self.reached = True
            self.reaction(self, transport)
        return name == "is_user_specific_pong" and frame.msg_type == WSMsgType.PONG

    async def until(self, condition):
        async def wait():
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        await asyncio.wait_for(wait(), TIMEOUT)

    def count(self, name):
        return sum(called == name for called, _ in self.calls)

    def check(self):
        """What holds for every connection, whatever happened to it."""
        names = [name for name, _ in self.calls]
        states = [state for _, state in self.calls]
        assert names[0] == "on_ws_connected"
        assert names[-1] == "on_ws_disconnected"
        assert names.count("on_ws_connected") == names.count("on_ws_disconnected") == 1
        assert names.count("CLOSE") <= 1
        assert states == sorted(states)
        assert states[-1] == WSState.CLOSED


# --- The moments: how to get there, from an open connection


async def data(pair):
    await pair.peer.send(WSMsgType.TEXT, "data")


async def close_frame(pair):
    await pair.peer.send_close(1000, "peer first")


async def close_frame_after_ours(pair):
    pair.transport.send_close(1000, "we first")
    assert await pair.peer.read_close() == (1000, "we first")
    await pair.peer.send_close(1000)


async def backlog(pair):
    pair.transport.send(WSMsgType.BINARY, LARGE)


async def backlog_before_close(pair):
    pair.transport.send(WSMsgType.BINARY, LARGE)
    pair.transport.send_close(1000)


async def backlog_before_disconnect(pair):
    pair.transport.send(WSMsgType.BINARY, LARGE)
    pair.transport.disconnect()


async def backlog_after_peers_close(pair):
    """Data may still be sent to a peer whose CLOSE has come (RFC 6455 5.5.1)."""
    script = pair.listener.act.__self__
    await pair.peer.send_close(1000)
    await script.until(lambda: script.count("CLOSE"))
    pair.transport.send(WSMsgType.BINARY, LARGE)


async def nothing(pair):
    """What is waited for comes by itself, or has come."""


async def answer_to_ping(pair):
    assert (await pair.peer.read_frame())[0] == WSMsgType.PING
    await pair.peer.send(WSMsgType.TEXT, "a pong?")


async def abort(pair):
    pair.transport.disconnect(graceful=False)


async def disconnect(pair):
    pair.transport.disconnect()


async def peer_gone(pair):
    pair.peer.fin()


async def peer_reset(pair):
    pair.peer.reset()


async def protocol_error(pair):
    await pair.peer.send_bytes(pair.peer.frame(WSMsgType.CONTINUATION, "stray"))


PINGING = {
    "enable_auto_ping": True,
    "auto_ping_idle_timeout": 0.01,
    "auto_ping_reply_timeout": 10,
}

#: name: (method, how to get there, the state it is called in, options)
MOMENTS = {
    "connected": ("on_ws_connected", nothing, WSState.OPEN, {}),
    "data": ("on_ws_frame", data, WSState.OPEN, {}),
    "CLOSE": ("CLOSE", close_frame, WSState.CLOSING, {}),
    "CLOSE, auto-close": ("CLOSE", close_frame, WSState.CLOSING, {"enable_auto_close": True}),
    "CLOSE after ours": ("CLOSE", close_frame_after_ours, WSState.CLOSING, {}),
    "pause": ("pause_writing", backlog, WSState.OPEN, {}),
    "pause, closing": ("pause_writing", backlog_after_peers_close, WSState.CLOSING, {}),
    "resume": ("resume_writing", backlog, WSState.OPEN, {}),
    "resume after CLOSE": ("resume_writing", backlog_before_close, WSState.CLOSING, {}),
    "resume, disconnecting": ("resume_writing", backlog_before_disconnect, WSState.CLOSING, {}),
    "resume, closing": ("resume_writing", backlog_after_peers_close, WSState.CLOSING, {}),
    "ping": ("send_user_specific_ping", nothing, WSState.OPEN, PINGING),
    "pong": ("is_user_specific_pong", answer_to_ping, WSState.OPEN, PINGING),
    "aborted": ("on_ws_disconnected", abort, WSState.CLOSED, {}),
    "disconnected": ("on_ws_disconnected", disconnect, WSState.CLOSED, {}),
    "peer gone": ("on_ws_disconnected", peer_gone, WSState.CLOSED, {}),
    "peer reset": ("on_ws_disconnected", peer_reset, WSState.CLOSED, {}),
    "protocol error": ("on_ws_disconnected", protocol_error, WSState.CLOSED, {}),
}

#: (language, side, stream); each language, side and stream meets each of the others
SETTINGS = [
    ("Python", "client", "plain"),
    ("Cython", "client", "tls"),
    ("Cython", "server", "plain"),
    ("Python", "server", "tls"),
    ("Python", "server", "loop"),
    ("Cython", "client", "loop"),
]


@pytest.fixture(scope="session")
def cython_acting(cython_folder):
    return load(cython_folder, "acting").Acting


@pytest.fixture(params=SETTINGS, ids="-".join)
def connect(request, cython_acting, server_tls, client_tls):
    """`connected` for one of SETTINGS, with a listener that does what a Script says."""
    language, side, stream = request.param

    @contextlib.asynccontextmanager
    async def connect(script, **options):
        listener = PythonActing() if language == "Python" else cython_acting()
        listener.act = script.act
        async with connected(
            side,
            listener,
            contexts=Contexts(server_tls, client_tls) if stream == "tls" else None,
            use_loop_transport=stream == "loop",
            small_buffers=True,
            close_timeout=0.3,
            **options,
        ) as pair:
            yield pair

    def share_of(things):
        """Each setting gets a third of these, and each third is two settings'."""
        return list(things)[SETTINGS.index(request.param) // 2 :: 3]

    connect.share_of = share_of
    return connect


@contextlib.asynccontextmanager
async def bystander():
    """A connection on the same loop; gives a function that checks that nothing happened to it."""
    async with serving(lambda request: Echo()) as url:
        transport, listener = await picows_fast.ws_connect(Recorder, url)
        count = 0

        async def check():
            nonlocal count
            transport.send(WSMsgType.TEXT, str(count))
            assert (await listener.frame(count))[1] == str(count).encode()
            count += 1
            assert listener.events == ["connected"] + ["frame"] * count

        await check()
        yield check
        await check()
        transport.disconnect()
        await transport.wait_disconnected()


async def run(connect, moment, reaction, **more):
    """Live through a connection in which `reaction(script, transport)` happens at that moment.

    The peer plays along: it reads everything, answers CLOSE and ends its side. Returns the script,
    the transport and the frames that the peer got.
    """
    method, go, state, options = MOMENTS[moment]
    script = Script(method, reaction)
    async with connect(script, **options, **more) as pair:
        got = []

        async def read():
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                while True:
                    got.append(await pair.peer.read_frame())
                    if got[-1][0] == WSMsgType.CLOSE:
                        await pair.peer.send_close(1000)  # which is ignored if it is the second
                        pair.peer.fin()
            with contextlib.suppress(OSError):
                pair.peer.fin()

        await go(pair)
        if method not in ("resume_writing", "on_ws_disconnected"):
            # Reading earlier would keep pause_writing() from coming.
            await script.until(lambda: script.reached)
        reading = asyncio.create_task(read() if go is not peer_reset else nothing(pair))
        await script.until(lambda: script.reached)
        # Connections that the reaction does not end are ended now. A paused one sees no FIN.
        pair.transport.uncork()
        pair.transport.resume_reading()
        pair.transport.disconnect()
        await asyncio.wait_for(reading, TIMEOUT)
        pair.peer.close()
        await script.until(lambda: script.count("on_ws_disconnected"))
        await asyncio.wait_for(asyncio.gather(*script.tasks, return_exceptions=True), TIMEOUT)
    script.check()
    assert (method, state) in script.calls
    assert pair.transport.state == WSState.CLOSED
    assert pair.transport.write_backlog == 0
    return script, pair.transport, got


# --- Raising


def raising(error):
    def react(script, transport):
        raise error

    return react


@pytest.mark.parametrize("moment", MOMENTS)
async def test_raising(connect, moment, caplog):
    """CLOSE 1011 if there was none yet, the end, and the error told once."""
    error = LookupError("raised by the listener")
    async with bystander():
        script, transport, got = await run(connect, moment, raising(error))
    closes = [payload for opcode, payload in got if opcode == WSMsgType.CLOSE]
    open_before = MOMENTS[moment][2] == WSState.OPEN
    if open_before or moment in ("CLOSE", "CLOSE, auto-close"):
        assert closes == [WSCloseCode.INTERNAL_ERROR.to_bytes(2, "big")]
    assert len(closes) <= 1
    if open_before:
        assert transport.disconnect_cause == WSDisconnectCause.CALLBACK_ERROR
        assert transport.disconnect_exception is error
        # Nothing but the end is told after an error.
        at = [name for name, _ in script.calls].index(script.moment)
        after = [name for name, _ in script.calls[at + 1 :] if name != "resume_writing"]
        assert after == ["on_ws_disconnected"]
    else:
        assert transport.disconnect_cause != WSDisconnectCause.CALLBACK_ERROR or (
            transport.disconnect_exception is error
        )
    logged = [record for record in caplog.records if record.levelno >= logging.WARNING]
    if transport.is_client_side:
        with pytest.raises(LookupError) as caught:
            await transport.wait_disconnected()
        assert caught.value is error
    else:
        await transport.wait_disconnected()
    assert [record.exc_info[1] for record in logged] == [error]


@pytest.mark.parametrize("moment", MOMENTS)
async def test_raising_with_a_log_only(connect, moment, caplog):
    """With disconnect_on_exception off the connection goes its way, if it is not new."""
    error = LookupError("raised by the listener")
    _, transport, got = await run(connect, moment, raising(error), disconnect_on_exception=False)
    if moment == "connected":
        assert transport.disconnect_cause == WSDisconnectCause.CALLBACK_ERROR
        if transport.is_client_side:
            with pytest.raises(LookupError):
                await transport.wait_disconnected()
            return
    else:
        assert transport.disconnect_cause != WSDisconnectCause.CALLBACK_ERROR
        assert WSCloseCode.INTERNAL_ERROR.to_bytes(2, "big") not in [payload for _, payload in got]
    if moment == "protocol error" and transport.is_client_side:
        with pytest.raises(picows_fast.WSPeerProtocolError):
            await transport.wait_disconnected()
    else:
        await transport.wait_disconnected()
    logged = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.exc_info[1] for record in logged] == [error]


class NoCodeError(WSProtocolError):
    """An error class whose __init__ leaves out its base's."""

    def __init__(self):
        pass


def with_code(code):
    error = WSProtocolError(4000, "as given")
    error.code = code
    return error


class OwnReasonError(WSProtocolError):
    close_reason = None

    def __init__(self, reason):
        super().__init__(4000)
        self.close_reason = reason


class ViolationError(picows_fast.WSPeerProtocolError):
    """Claims to be the peer's doing."""

    def __init__(self):
        pass


class UnprintableError(Exception):
    def __str__(self):
        raise ValueError("no text")

    __repr__ = __str__


UNUSUAL = {
    "no code": lambda: NoCodeError(),
    "code is text": lambda: with_code("4000"),
    "code is None": lambda: with_code(None),
    "code is huge": lambda: with_code(2**100),
    "code is negative": lambda: with_code(-1),
    "code is 1005": lambda: with_code(1005),
    "reason is a number": lambda: OwnReasonError(5),
    "reason is too long": lambda: OwnReasonError(b"x" * 200),
    "reason is not UTF-8": lambda: OwnReasonError(b"\xff"),
    "reason is str": lambda: OwnReasonError("as given"),
    "reason is unprintable": lambda: WSProtocolError(4000, UnprintableError()),
    "unprintable": lambda: UnprintableError(),
    "stop, unprintable": lambda: StopIteration(UnprintableError()),
    "a violation without code": lambda: ViolationError(),
    "a class": lambda: KeyError,
    "cancelled": lambda: asyncio.CancelledError("raised by the listener"),
    "timeout": lambda: TimeoutError(),
    "stop": lambda: StopIteration(5),
    "stop, asynchronous": lambda: StopAsyncIteration(5),
    "recursion": lambda: RecursionError("too deep"),
    "no memory": lambda: MemoryError(),
    "system": lambda: OSError(9, "looks like the socket's"),
    "reset": lambda: ConnectionResetError("looks like the peer's"),
    "closed": lambda: WSConnectionClosedError("looks like ours"),
    "wanted": lambda: __import__("ssl").SSLWantReadError("looks like TLS's"),
}


@pytest.mark.parametrize("kind", UNUSUAL)
async def test_unusual_errors(connect, kind, monkeypatch):
    """Errors that look like those of our own layers, and ones that are half made."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    async with bystander():
        for moment in ("connected", "data", "pause", "resume", "ping", "pong", "aborted"):
            _, transport, got = await run(connect, moment, raising(UNUSUAL[kind]()))
            closes = [payload for opcode, payload in got if opcode == WSMsgType.CLOSE]
            if moment != "aborted":
                cause, expected = WSDisconnectCause.CALLBACK_ERROR, b"\x03\xf3"
                if "violation" in kind:
                    cause = WSDisconnectCause.PROTOCOL_ERROR
                elif kind == "reason is str":
                    # The only one of which a CLOSE frame can be made as it asks.
                    cause, expected = WSDisconnectCause.LOCAL_REFUSAL, b"\x0f\xa0as given"
                assert transport.disconnect_cause == cause
                assert closes == [expected]
            with contextlib.suppress(BaseException):
                await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)


async def test_an_error_is_told_once_though_all_methods_raise(connect, caplog):
    """The first counts; all are logged."""
    errors = []

    class Raising(Script):
        def act(self, name, transport, frame):
            super().act(name, transport, frame)
            errors.append(LookupError(name))
            raise errors[-1]

    script = Raising("on_ws_frame", lambda script, transport: None)
    async with bystander(), connect(script) as pair:
        await pair.peer.read_to_end()
        pair.peer.close()
        await script.until(lambda: script.count("on_ws_disconnected"))
    script.check()
    assert [str(error) for error in errors] == ["on_ws_connected", "on_ws_disconnected"]
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    if pair.transport.is_client_side:
        with pytest.raises(LookupError) as caught:
            await pair.transport.wait_disconnected()
        assert caught.value is errors[0]
    assert logged == errors


# --- A log that raises


class LogError(Exception):
    pass


class RaisingLog:
    """Anything with a logger's methods may be given as one. This one's raise."""

    def __init__(self):
        self.calls = 0

    def isEnabledFor(self, level):  # noqa: N802
        return level > PICOWS_DEBUG_LL

    def debug(self, *arguments, **more):
        """Quiet, as else it would end the connection when it is new."""

    def info(self, *arguments, **more):
        self.calls += 1
        raise LogError

    warning = error = exception = critical = log = info


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_log_that_raises_keeps_no_connection_open(connect, moment):
    """The event loop is told of the log's error."""
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    log = RaisingLog()
    _, transport, _ = await run(connect, moment, raising(LookupError()), logger_name=log)
    if transport.is_client_side:
        with pytest.raises(LookupError):
            await transport.wait_disconnected()
    else:
        await transport.wait_disconnected()
    assert log.calls or transport.is_client_side
    assert {type(context["exception"]) for context in told} <= {LogError}


async def test_a_log_that_raises_with_a_slow_peer(link):
    async with link(
        Recorder(), logger_name=RaisingLog(), small_buffers=True, max_write_backlog=100_000
    ) as pair:
        told = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        pair.transport.send(WSMsgType.BINARY, LARGE)
        assert [type(context["exception"]) for context in told] == [LogError]
        await pair.listener.closed()
        assert pair.transport.disconnect_cause == WSDisconnectCause.WRITE_BACKLOG


# --- The listener's factory, and listeners that cannot be looked at


class Hidden(Recorder):
    """To look which methods it has raises."""

    @property
    def on_ws_frame(self):
        raise LookupError("not to be looked at")


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize(
    "error",
    [
        LookupError,
        StopIteration,
        asyncio.CancelledError,
        GeneratorExit,
        NoCodeError,
        UnprintableError,
        None,
    ],
)
async def test_a_factory_that_raises(side, error, io_options):
    """ws_connect raises it; a client of a server of ours gets 500, and no frame behind that."""
    seen = []

    def factory(request, response=None):
        if error is None:
            seen.append(Hidden())
            return seen[0]
        raise error

    told = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
    if side == "client":
        async with serving(lambda request: Echo()) as url:
            with pytest.raises(BaseException) as caught:
                await asyncio.wait_for(
                    picows_fast.ws_connect(factory, url, **io_options, logger_name=Silent()),
                    TIMEOUT,
                )
        if error in (StopIteration, asyncio.CancelledError):
            assert isinstance(caught.value, RuntimeError)
            assert isinstance(caught.value.__cause__, error)
        else:
            assert isinstance(caught.value, error or LookupError)
    else:
        async with serving(factory, logger_name=Silent(), **io_options) as url:
            with pytest.raises(picows_fast.WSInvalidStatusError) as caught:
                await asyncio.wait_for(picows_fast.ws_connect(Recorder, url), TIMEOUT)
            assert caught.value.response.status == 500
    assert not any(listener.events for listener in seen)
    assert [type(context["exception"]) for context in told] == [GeneratorExit] * (
        error is GeneratorExit
    )


class Silent(RaisingLog):
    def debug(self, *arguments, **more):
        pass

    info = warning = error = exception = critical = log = debug


# --- Calling back


def task(method, *arguments):
    def react(script, transport):
        async def call():
            with contextlib.suppress(WSConnectionClosedError):
                return await getattr(transport, method)(*arguments)

        script.tasks.append(asyncio.get_running_loop().create_task(call()))

    return react


def call(*calls):
    def react(script, transport):
        for method, *arguments in calls:
            getattr(transport, method)(*arguments)

    return react


def call_and_raise(*calls):
    def react(script, transport):
        call(*calls)(script, transport)
        raise LookupError("after calling")

    return react


REACTIONS = {
    "send": call(("send", WSMsgType.TEXT, "from inside")),
    "send much": call(*[("send", WSMsgType.BINARY, LARGE)] * 3),
    "send_close": call(("send_close", 4000, "from inside")),
    "send and send_close": call(("send", WSMsgType.BINARY, LARGE), ("send_close", 1000)),
    "disconnect": call(("disconnect",)),
    "abort": call(("disconnect", False)),
    "abort and more": call(
        ("disconnect", False), ("send", WSMsgType.TEXT, "x"), ("send_close",), ("disconnect",)
    ),
    "disconnect, then abort": call(("disconnect",), ("disconnect", False)),
    "close, then abort": call(("send_close",), ("disconnect", False)),
    "pause_reading": call(("pause_reading",)),
    "pause and resume": call(("pause_reading",), ("resume_reading",), ("pause_reading",)),
    "resume_reading": call(("resume_reading",)),
    "cork": call(("cork",), ("send", WSMsgType.TEXT, "held")),
    "cork and uncork": call(("cork",), ("send", WSMsgType.BINARY, LARGE), ("uncork",), ("uncork",)),
    "cork and close": call(("cork",), ("send", WSMsgType.TEXT, "x"), ("send_close",)),
    "notify": call(("notify_user_specific_pong_received",)),
    "ping and pong": call(("send_ping", "x"), ("send_pong", "x")),
    "close below": lambda script, transport: transport.underlying_transport.close(),
    "abort below": lambda script, transport: transport.underlying_transport.abort(),
    "measure": task("measure_roundtrip_time", 1),
    "wait": task("wait_disconnected"),
    "collect garbage": lambda script, transport: gc.collect(),
    "send, then raise": call_and_raise(("send", WSMsgType.BINARY, LARGE)),
    "close, then raise": call_and_raise(("send_close", 4000)),
    "disconnect, then raise": call_and_raise(("disconnect",)),
    "abort, then raise": call_and_raise(("disconnect", False)),
    "pause, then raise": call_and_raise(("pause_reading",)),
    "cork, then raise": call_and_raise(("cork",), ("send", WSMsgType.TEXT, "x")),
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_calling_back(connect, moment, caplog):
    """Every call from inside every method; the connection is over in order soon after."""
    async with bystander() as check_bystander:
        for name in connect.share_of(REACTIONS):
            caplog.clear()
            script, transport, got = await run(connect, moment, REACTIONS[name])
            closes = [payload for opcode, payload in got if opcode == WSMsgType.CLOSE]
            assert len(closes) <= 1, name
            error = LookupError if "raise" in name else picows_fast.WSPeerProtocolError
            if transport.is_client_side and ("raise" in name or moment == "protocol error"):
                with pytest.raises(error):
                    await transport.wait_disconnected()
            else:
                await transport.wait_disconnected()
            loud = [record for record in caplog.records if record.levelno >= logging.WARNING]
            assert len(loud) == int("raise" in name), (
                name,
                [record.getMessage() for record in loud],
            )
            if name == "abort" and MOMENTS[moment][2] == WSState.OPEN:
                assert transport.disconnect_cause == WSDisconnectCause.LOCAL_ABORT
                assert script.count("resume_writing") == (moment == "resume")
            if name == "send_close" and MOMENTS[moment][2] == WSState.OPEN:
                assert closes == [(4000).to_bytes(2, "big") + b"from inside"]
            await check_bystander()


async def test_one_connection_acts_on_another(connect):
    """A callback of one ends, corks or writes to the next: a gateway does that all day."""
    scripts = []

    def chain(action, script, transport):
        action(scripts[1].other)

    for action in (
        lambda t: t.disconnect(False),
        lambda t: t.disconnect(),
        lambda t: t.send_close(1000),
        lambda t: t.send(WSMsgType.BINARY, LARGE),
        lambda t: t.pause_reading(),
    ):
        for method in ("on_ws_frame", "on_ws_disconnected"):
            scripts[:] = [
                Script(method, functools.partial(chain, action)),
                Script("never", lambda script, transport: None),
            ]
            async with connect(scripts[0]) as first, connect(scripts[1]) as second:
                scripts[1].other = second.transport
                await first.peer.send(WSMsgType.TEXT, "go")
                if method == "on_ws_disconnected":
                    first.transport.disconnect(False)
                await scripts[0].until(lambda: scripts[0].reached)
                second.transport.resume_reading()
                reading = asyncio.create_task(second.peer.read_to_end())
                await second.peer.send(WSMsgType.TEXT, "still there?")
                second.transport.disconnect()
                await reading
                first.peer.close()
                second.peer.close()
            for script in scripts:
                await script.until(lambda script=script: script.count("on_ws_disconnected"))
                script.check()


async def test_a_callback_replaces_methods_of_its_listener(link):
    """Which methods there are is found out once; what changes later changes nothing."""

    class Changing(Recorder):
        def on_ws_frame(self, transport, frame):
            super().on_ws_frame(transport, frame)
            self.on_ws_frame = None
            self.is_user_specific_pong = None
            type(self).on_ws_frame = None

    async with link(Changing()) as pair:
        for i in range(3):
            await pair.peer.send(WSMsgType.TEXT, str(i))
        await pair.listener.frame(2)
