"""The command line of picows_fast: its arguments, help texts and exit codes.

Each command is a module of its own; this one reads the arguments, runs the command and turns its
errors into one line on stderr. The commands use the public API only.

Exit codes: 0 success, 1 the command failed, 2 the arguments cannot be used, 3 the server closed
before the limit of `record`, 128 plus the number of the signal that ended the command.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import connect, demo, record, replay, web
from .client import add_connection_arguments
from .demo import DEFAULT_RATE, DEFAULT_SECONDS
from .feedfile import FeedError, check_feed
from .runtime import INTERRUPTED, LOOP_NAMES, CommandError, default_loop, run_command
from .web import DEFAULT_WEB_PORT, DEFAULT_WEB_RATE

_PROGRAM = "python -m picows_fast"
_DEFAULT_CLIENTS = 4

_EPILOG = f"""\
examples:
  {_PROGRAM} demo                      see it work: an exchange and 4 clients, 10 seconds
  {_PROGRAM} connect wss://host/path   talk to a WebSocket server by hand
  {_PROGRAM} record wss://host/path -o feed.jsonl.gz
  {_PROGRAM} replay feed.jsonl.gz      serve what was recorded to your own program

'{_PROGRAM} COMMAND --help' explains each command.
"""

_DEMO_EPILOG = f"""\
A generated order book is published for {DEFAULT_SECONDS:g} seconds; a recorded feed from its first
message to its last. With --seconds, a feed that ends earlier starts again.
The exit code is 0 if every client received every message in order and unchanged, 1 if not, 130 if
Ctrl-C ended it and every client received what there was.

examples:
  {_PROGRAM} demo --tls --clients 20
  {_PROGRAM} demo --rate 50000 --seconds 30 --loop asyncio
  {_PROGRAM} demo --feed feed.jsonl.gz --speed max
  {_PROGRAM} demo --web              a page to open in a browser: live books, latency
"""

_CONNECT_EPILOG = f"""\
Type a line and press Enter to send it as a TEXT message; Ctrl-D or Ctrl-C closes the connection.
Messages are printed to stdout, remarks about the connection (starting with '*') to stderr.
The exit code is 0 after a clean close (1000, 1001 or no code), 1 if the connection failed or was
lost, 130 after Ctrl-C.

examples:
  {_PROGRAM} connect ws://127.0.0.1:8765/ --ping
  {_PROGRAM} connect wss://host/path -H 'Authorization: Bearer abc' --subprotocol v2
  echo '{{"op":"subscribe"}}' | {_PROGRAM} connect wss://host/path --wait 5 > answers.txt
  {_PROGRAM} connect wss://host/path --wait inf < subscriptions.txt
"""

_RECORD_EPILOG = f"""\
Without a limit it records until the server closes the connection or Ctrl-C is pressed; the file is
complete in either case. While it records, the data is in FILE.part, written out every second. A
FIFO, a device, a socket or /dev/stdout is written into.
FILE is gzip; each line is a JSON array: [microseconds since the first message, "message"].
The exit code is 0 if a limit was reached or, without one, the server closed cleanly; 3 if it closed
cleanly before the limit; 1 if the connection was lost or no TEXT message came, which leaves no
file; 130 after Ctrl-C.

examples:
  {_PROGRAM} record wss://host/path -o feed.jsonl.gz --seconds 60
  {_PROGRAM} record wss://host/path -o feed.jsonl.gz --send '{{"op":"subscribe"}}' --messages 1000
"""

_REPLAY_EPILOG = f"""\
Every client gets the whole feed from its first message, then a close with code 1000. A client that
reads slowly is waited for. Messages from clients are ignored.

examples:
  {_PROGRAM} replay feed.jsonl.gz
  {_PROGRAM} replay feed.jsonl.gz --port 9000 --speed 10 --repeat
"""


# The types of arguments. argparse calls them with the text, and names them in its errors.


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value


# More seconds than that, 30 years, are more than event loops can count to.
_MOST_SECONDS = 1e9


def _rate(text: str) -> float:
    value = float(text)
    if not 1 / _MOST_SECONDS <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def _positive_seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= _MOST_SECONDS:
        raise ValueError(text)
    return value


def _seconds_or_inf(text: str) -> float:
    value = float(text)
    if not (0 <= value <= _MOST_SECONDS or value == float("inf")):
        raise argparse.ArgumentTypeError(f"must be 0 or more, or inf, got {text}")
    return value


def _text(text: str) -> str:
    """What can be sent as a TEXT message: an argument may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("not valid UTF-8") from None
    return text


def _speed(text: str) -> float | None:
    """A factor above 0, or "max" for None."""
    if text == "max":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a speed is a number above 0 or 'max', got {text!r}")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"a port is 0 to 65535, got {text}")
    return value


_positive_int.__name__ = "whole number"
_rate.__name__ = _seconds_or_inf.__name__ = "number"
_positive_seconds.__name__ = "duration in seconds"
_port.__name__ = "port number"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Try picows_fast, look at a WebSocket server, record and replay market data.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, summary: str, description: str, epilog: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def add_loop(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--loop",
            choices=LOOP_NAMES,
            default=default_loop(),
            help="event loop; picows_fast's own is for Linux (default: uvloop if it is installed, "
            "otherwise asyncio)",
        )

    def add_plot(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--plot",
            metavar="FILE",
            type=Path,
            help="draw the distribution of latencies at the end: a .svg, .png or .pdf; "
            "needs matplotlib",
        )

    def add_speed(to: argparse.ArgumentParser) -> None:
        to.add_argument(
            "--speed",
            metavar="FACTOR",
            type=_speed,
            default=argparse.SUPPRESS,
            help="1: as recorded (default), 10: ten times as fast, max: as fast as it is received",
        )

    sub = command(
        "demo",
        "run an exchange and clients on this machine and measure",
        "Start a small exchange on loopback, connect clients to it, and show messages/s, bytes/s\n"
        "and the latency from the exchange to the clients while it runs. Nothing leaves this\n"
        "machine.",
        _DEMO_EPILOG,
    )
    sub.add_argument(
        "--clients",
        metavar="N",
        type=_positive_int,
        help=f"number of clients, each gets every message (default: {_DEFAULT_CLIENTS})",
    )
    sub.add_argument(
        "--seconds",
        metavar="S",
        type=_positive_seconds,
        help=f"how long to publish (default: {DEFAULT_SECONDS:g}, or the whole feed)",
    )
    sub.add_argument(
        "--rate",
        metavar="N",
        type=_rate,
        help=f"messages/s of the generated order book (default: {DEFAULT_RATE:g}, with --web "
        f"{DEFAULT_WEB_RATE:g})",
    )
    sub.add_argument(
        "--feed",
        metavar="FILE",
        type=Path,
        help="publish a recorded feed instead of the generated order book",
    )
    add_speed(sub)
    sub.add_argument(
        "--tls", action="store_true", help="use wss, with a certificate made for this demo"
    )
    sub.add_argument(
        "--web",
        action="store_true",
        help="instead of clients: serve a page that shows the books and the latency, and their "
        "WebSocket from the same port, until Ctrl-C",
    )
    sub.add_argument("--host", help="with --web: address to listen on (default: 127.0.0.1)")
    sub.add_argument(
        "--port",
        metavar="P",
        type=_port,
        help=f"with --web: port to listen on, 0 for any free one (default: {DEFAULT_WEB_PORT})",
    )
    add_plot(sub)
    add_loop(sub)

    sub = command(
        "connect",
        "talk to a WebSocket server: lines in, messages out",
        "Connect to a WebSocket server, send what is typed or piped in, print what comes back.",
        _CONNECT_EPILOG,
    )
    add_connection_arguments(sub)
    sub.add_argument(
        "--ping", action="store_true", help="send a ping every second and print the round-trip time"
    )
    sub.add_argument(
        "--ping-interval",
        metavar="S",
        type=_positive_seconds,
        default=1.0,
        help="seconds between pings (default: 1)",
    )
    sub.add_argument(
        "--wait",
        metavar="S",
        type=_seconds_or_inf,
        default=1.0,
        help="when the input ends, wait S seconds for answers before closing; 'inf' "
        "waits until the server closes (default: 1)",
    )
    add_plot(sub)

    sub = command(
        "record",
        "write the messages of a WebSocket server to a file",
        "Record the TEXT messages of a WebSocket server with the time at which each came.",
        _RECORD_EPILOG,
    )
    add_connection_arguments(sub)
    sub.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        required=True,
        help="file to write, usually named something.jsonl.gz",
    )
    sub.add_argument(
        "--force",
        action="store_true",
        help="replace FILE, and a FILE.part of another recording, if they exist",
    )
    sub.add_argument(
        "--send",
        metavar="TEXT",
        type=_text,
        action="append",
        default=[],
        help="send this first, e.g. to subscribe; may be repeated",
    )
    sub.add_argument(
        "--seconds", metavar="S", type=_positive_seconds, help="stop S seconds after connecting"
    )
    sub.add_argument("--messages", metavar="N", type=_positive_int, help="stop after N messages")
    add_loop(sub)

    sub = command(
        "replay",
        "serve a recorded file to every client that connects",
        "Start a WebSocket server that publishes a recorded feed to every client.",
        _REPLAY_EPILOG,
    )
    sub.add_argument("file", metavar="FILE", type=Path, help="a file written by 'record'")
    sub.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only)",
    )
    sub.add_argument(
        "--port",
        metavar="P",
        type=_port,
        default=8765,
        help="port to listen on, 0 for any free one (default: 8765)",
    )
    add_speed(sub)
    sub.add_argument(
        "--repeat",
        action="store_true",
        help="start again at the end, until the client leaves",
    )
    add_loop(sub)
    return parser


def _run_web(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.feed is not None or args.clients is not None:
        parser.error("--web is for the generated order book, and its clients are browsers")
    if args.plot is not None:
        parser.error("--plot is for clients of the demo's own; the page of --web shows latencies")
    args.host = args.host or "127.0.0.1"
    args.port = DEFAULT_WEB_PORT if args.port is None else args.port
    args.rate = args.rate or DEFAULT_WEB_RATE
    return run_command(web.run(args), args.loop)


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    has_speed = hasattr(args, "speed")
    if not has_speed:
        args.speed = 1.0
    if args.command == "connect":
        return run_command(connect.run(args))
    if args.command == "record":
        writer = record.open_output(args.output, replace=args.force)
        try:
            return run_command(record.run(args, writer), args.loop)
        finally:
            writer.discard()  # nothing, if it is complete
    if args.command == "replay":
        return run_command(replay.run(args, check_feed(args.file)), args.loop)
    if args.web:
        return _run_web(parser, args)
    if args.host is not None or args.port is not None:
        parser.error("--host and --port are for --web")
    args.clients = args.clients or _DEFAULT_CLIENTS
    if args.feed is None:
        if has_speed:
            parser.error("--speed is for a recorded feed; the generated one has --rate")
        args.rate = args.rate or DEFAULT_RATE
        return run_command(demo.run(args, None), args.loop)
    if args.rate is not None:
        parser.error("--rate is for the generated order book; a recorded feed has --speed")
    return run_command(demo.run(args, check_feed(args.feed)), args.loop)


def _ensure_standard_streams() -> bool:
    """Open the null device for each standard stream that is closed; whether stdout is open.

    The next file or socket would get the closed one's number, and what is printed.
    """
    has_output = sys.stdout is not None
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    return has_output


def _flush_output(code: int) -> int:
    """Write what stdout holds; the exit code then. Python itself would complain at exit."""
    try:
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        error = None
    except OSError as caught:
        error = caught
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error is not None:
        _complain(f"cannot write to standard output: {error.strerror or error}")
    return code or 1


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):
        print(f"picows_fast: {message}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: sys.argv[1:]); return the exit code.

    Raises SystemExit for --help and for arguments that argparse refuses.
    """
    has_output = _ensure_standard_streams()
    parser = _parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as error:
        if error.code == 0:
            sys.exit(_flush_output(0))
        raise
    if args.command == "connect" and not has_output:
        _complain("cannot print messages: standard output is closed")
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A message must not end a command because the terminal's encoding lacks a character.
        sys.stdout.reconfigure(errors="backslashreplace")
    return _flush_output(_exit_code(parser, args))


def _exit_code(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Run the command; what went wrong is told in one line."""
    try:
        return _run(parser, args)
    except CommandError as error:
        message, exit_code = str(error), error.exit_code
    except FeedError as error:
        message, exit_code = str(error), 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return 1  # whoever read our output has gone
    except OSError as error:
        message, exit_code = error.strerror or str(error), 1
    _complain(message)
    return exit_code
