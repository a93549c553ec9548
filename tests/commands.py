"""The commands of picows_fast and other programs, each in a process of its own, and real peers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import signal
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from websockets.asyncio.server import ServerConnection, serve

import picows_fast.cli
from picows_fast.cli.feedfile import FeedWriter, read_feed

LOOPS = ["asyncio", "picows_fast"] if sys.platform == "linux" else ["asyncio"]
if importlib.util.find_spec("uvloop"):
    LOOPS.append("uvloop")
# The commands run in a folder of the test, and still import the package that the test imported.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
CERTIFICATE = Path(picows_fast.cli.__file__).with_name("loopback.pem")
# Seconds after which a command hangs. Nothing here takes a tenth of that.
HANGS = 60

# What the log says of an exception that a callback raised, with its traceback.
CALLBACK_RAISED = re.compile(
    r"^<WSTransport [^\n]* raised\nTraceback .*?^\w[\w.]*(?:Error|Exception)\b[^\n]*\n", re.M | re.S
)
SLOW_TURN = re.compile(r"Executing <.* took [\d.]+ seconds$")

Handler = Callable[[ServerConnection], Awaitable[None]]


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Command:
    """A running command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        assert process.stdin is not None
        assert process.stdout is not None
        self.stdin = process.stdin
        self.stdout = process.stdout

    async def line(self) -> str:
        """The next line of its stdout."""
        return (await asyncio.wait_for(self.stdout.readline(), HANGS)).decode()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    async def finish(self, stdin: bytes | None = None) -> Result:
        """Write `stdin`, close it, wait for the end. Whatever happened, no traceback was
        shown but that of a callback's exception, which the log has."""
        out, err = await asyncio.wait_for(self.process.communicate(stdin), HANGS)
        assert self.process.returncode is not None
        # What asyncio's debug mode says about slow turns is a matter of the machine's load.
        lines = [line for line in err.decode().splitlines(True) if not SLOW_TURN.match(line)]
        told = CALLBACK_RAISED.sub("", "".join(lines))
        result = Result(self.process.returncode, out.decode(), told)
        assert "Traceback" not in result.err
        assert "Warning" not in result.err
        return result


class Commands:
    """Starts commands; kills at the end what a failed test left behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[asyncio.subprocess.Process] = []

    async def start(
        self, *arguments: object, program: str | None = None, script: Path | None = None
    ) -> Command:
        """Start a command of picows_fast, or a program of its own, or a file with one."""
        python = ["-c", program] if program else [str(script)] if script else ["-m", "picows_fast"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-X",
            "dev",
            *python,
            *map(str, arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env=ENVIRONMENT,
            limit=1 << 24,
        )
        self.started.append(process)
        return Command(process)

    async def run(
        self,
        *arguments: object,
        stdin: bytes = b"",
        program: str | None = None,
        script: Path | None = None,
    ) -> Result:
        return await (await self.start(*arguments, program=program, script=script)).finish(stdin)

    async def replay(self, *arguments: object) -> tuple[Command, str]:
        """A `replay` that listens, and its URL."""
        command = await self.start("replay", *arguments, "--port", 0)
        await command.line()
        found = re.search(r"ws://\S+", await command.line())
        assert found is not None
        return command, found[0]


@pytest.fixture(name="commands")
async def commands_fixture(tmp_path: Path) -> AsyncIterator[Commands]:
    commands = Commands(tmp_path)
    yield commands
    for process in commands.started:
        if process.returncode is None:
            process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def server(handler: Handler, **options: object) -> AsyncIterator[str]:
    """A WebSocket server of another make; yields its URL."""
    async with serve(handler, "127.0.0.1", 0, **options) as running:  # type: ignore[arg-type]
        port = next(iter(running.sockets)).getsockname()[1]
        yield f"{'wss' if options.get('ssl') else 'ws'}://127.0.0.1:{port}/"


@contextlib.contextmanager
def refusing_url() -> Iterator[str]:
    """A URL whose port is taken, but by a socket that does not listen."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"ws://127.0.0.1:{sock.getsockname()[1]}/"


def one_line(result: Result, exit_code: int) -> str:
    """The one line on stderr that explains a failure."""
    assert result.code == exit_code, result
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("picows_fast: ")
    return lines[0]


def write_feed(path: Path, messages: Iterator[tuple[int, str]] | list[tuple[int, str]]) -> Path:
    with FeedWriter(path, replace=True) as writer:
        for microseconds, text in messages:
            writer.write(microseconds, text)
    return path


def texts(path: Path) -> list[str]:
    return [text for _, text in read_feed(path)]


async def run_on_terminal(
    commands: Commands, *arguments: str, typed: bytes = b""
) -> tuple[str, int]:
    """Run a command whose stdin, stdout and stderr are a terminal; its output and exit code."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "picows_fast",
            *arguments,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=commands.folder,
            env=ENVIRONMENT,
        )
        commands.started.append(process)
        os.write(ours, typed)
        read = bytearray()
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, lambda: read.extend(os.read(ours, 65536)))
        try:
            code = await asyncio.wait_for(process.wait(), HANGS)
            os.set_blocking(ours, False)
            with contextlib.suppress(BlockingIOError):
                while chunk := os.read(ours, 65536):
                    read.extend(chunk)
        finally:
            loop.remove_reader(ours)
    finally:
        os.close(ours)
        os.close(theirs)
    return read.decode(), code


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def closed(connection: ServerConnection) -> int:
    """The code that the client closed with."""
    await connection.wait_closed()
    return connection.close_code or 0
