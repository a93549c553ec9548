"""picows_fast.cli: arguments, help texts, and the demo, run as a user runs them."""

from __future__ import annotations

import asyncio
import gzip
import re
import ssl

import pytest
from cryptography import x509
from websockets.asyncio.client import connect as websockets_connect

from picows_fast.cli import main

from .commands import (  # noqa: F401
    CERTIFICATE,
    LOOPS,
    Commands,
    Result,
    commands_fixture,
    echo,
    one_line,
    refusing_url,
    run_on_terminal,
    server,
    write_feed,
)

# The event loop that matters is the command's, chosen by --loop.
pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> Result:
    """Run a command that does not get as far as to do anything, in this process."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert isinstance(caught.value.code, int)
    return Result(caught.value.code, *capsys.readouterr())


@pytest.mark.parametrize("command", [None, "demo", "connect", "record", "replay"])
async def test_help_has_examples(capsys: pytest.CaptureFixture[str], command: str | None) -> None:
    result = refused(capsys, *filter(None, [command]), "--help")
    assert result.code == 0
    assert "examples:" in result.out
    assert f"python -m picows_fast {command or 'demo'}" in result.out
    assert result.err == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "COMMAND"),
        (["trade"], "invalid choice"),
        (["demo", "--clients", "0"], "--clients"),
        (["demo", "--clients", "many"], "--clients"),
        (["demo", "--seconds", "-1"], "--seconds"),
        (["demo", "--seconds", "nan"], "--seconds"),
        (["demo", "--rate", "0"], "--rate"),
        (["demo", "--loop", "trio"], "--loop"),
        (["demo", "--speed", "10"], "--speed is for a recorded feed"),
        (["demo", "--feed", "x", "--rate", "10"], "--rate is for the generated order book"),
        (["demo", "--feed", "x", "--speed", "fast"], "--speed"),
        (["demo", "--feed", "x", "--speed", "0"], "--speed"),
        (["connect"], "URL"),
        (["connect", "ws://h/", "-H", "no colon"], "Name: value"),
        (["connect", "ws://h/", "--wait", "-1"], "--wait"),
        (["record", "ws://h/"], "-o"),
        (["record", "ws://h/", "-o", "x", "--messages", "0"], "--messages"),
        (["record", "ws://h/", "-o", "x", "--send", "\udcff"], "--send: not valid UTF-8"),
        (["record", "ws://h/", "-o", "x", "--seconds", "1e300"], "--seconds"),
        (["connect", "ws://h/", "--wait", "1e300"], "--wait"),
        (["demo", "--rate", "1e-300"], "--rate"),
        (["replay"], "FILE"),
        (["replay", "x", "--port", "65536"], "--port"),
        (["replay", "x", "--speed", "inf"], "--speed"),
    ],
)
async def test_bad_arguments(
    capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    result = refused(capsys, *arguments)
    assert result.code == 2
    assert result.out == ""
    assert reason in result.err.splitlines()[-1]


async def test_the_module_is_run_as_a_command(commands: Commands) -> None:
    result = await commands.run("trade")
    assert (result.code, result.out) == (2, "")
    assert "invalid choice" in result.err


async def test_uvloop_that_is_not_installed(commands: Commands) -> None:
    program = (
        "import sys; sys.modules['uvloop'] = None; from picows_fast.cli import main;"
        "sys.exit(main(sys.argv[1:]))"
    )
    result = await commands.run("demo", "--loop", "uvloop", program=program)
    assert "pip install 'uvloop>=0.19'" in one_line(result, 2)


@pytest.mark.parametrize("command", [["connect"], ["record", "-o", "out"]])
@pytest.mark.parametrize("url", ["http:/", "ftp://127.0.0.1/", "ws://127.0.0.1:99999/"])
async def test_bad_url(commands: Commands, command: list[str], url: str) -> None:
    one_line(await commands.run(*command, url), 2)
    assert list(commands.folder.iterdir()) == []


@pytest.mark.parametrize("command", [["connect"], ["record", "-o", "out"]])
async def test_connection_refused(commands: Commands, command: list[str]) -> None:
    with refusing_url() as url:
        line = one_line(await commands.run(*command, url.replace("//", "//user:secret@")), 1)
    assert url in line
    assert "secret" not in line
    assert list(commands.folder.iterdir()) == []


@pytest.mark.parametrize("command", [["connect"], ["record", "-o", "out"]])
async def test_server_that_is_no_websocket_server(commands: Commands, command: list[str]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as http:
        port = http.sockets[0].getsockname()[1]
        line = one_line(await commands.run(*command, f"ws://127.0.0.1:{port}/"), 1)
    assert "404" in line


async def test_header_that_would_inject_another(commands: Commands) -> None:
    with refusing_url() as url:
        one_line(await commands.run("connect", url, "-H", "A: b\r\nC: d"), 2)


# demo


def published_messages(result: Result) -> int:
    """What the summary says."""
    found = re.search(r"published +([\d,]+) messages", result.out)
    assert found is not None, result
    return int(found[1].replace(",", ""))


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("loop", LOOPS)
async def test_demo(commands: Commands, loop: str, tls: bool) -> None:
    arguments = ["--seconds", "1.5", "--rate", "400", "--clients", "3", "--loop", loop]
    result = await commands.run("demo", *arguments, *(["--tls"] if tls else []))
    assert result.code == 0, result
    assert result.err == ""
    live = [line for line in result.out.splitlines() if "msg/s" in line]
    assert len(live) >= 1
    assert re.search(r"p50 .* p99 .* max ", live[0])
    published = published_messages(result)
    assert f"received     {3 * published:,} messages" in result.out
    # No more than the schedule allows; on a machine that is busy elsewhere, fewer.
    duration = float(re.search(r"duration +([\d.]+) s", result.out)[1])  # type: ignore[index]
    assert 0 < published <= 400 * (duration + 0.05) + 1
    assert re.search(rf"event loop +{loop}$", result.out, re.M)
    assert re.search(r"TLS +" + ("yes, certificate verified" if tls else "no"), result.out)
    assert "every client received every message, in order, unchanged" in result.out
    assert "\r" not in result.out


@pytest.mark.parametrize("loop", LOOPS)
async def test_demo_publishes_a_feed_that_is_larger_than_what_may_be_on_its_way(
    commands: Commands, loop: str
) -> None:
    feed = write_feed(commands.folder / "feed", [(n, f"{n} \u20ac") for n in range(34_000)])
    arguments = ["--speed", "max", "--clients", 2, "--loop", loop]
    result = await commands.run("demo", "--feed", feed, *arguments)
    assert result.code == 0, result
    assert "published    34,000 messages" in result.out
    assert "received     68,000 messages" in result.out
    assert "in order, unchanged" in result.out


async def test_demo_with_large_messages_waits_for_its_clients(commands: Commands) -> None:
    feed = write_feed(commands.folder / "feed", [(0, f"{n}" * 100_000) for n in range(300)])
    result = await commands.run("demo", "--feed", feed, "--speed", "max", "--tls")
    assert result.code == 0, result
    assert "published    300 messages" in result.out


async def test_demo_starts_a_feed_again_if_it_ends_before_its_time(commands: Commands) -> None:
    feed = write_feed(commands.folder / "feed", [(n * 1000, f"{n}") for n in range(5)])
    result = await commands.run("demo", "--feed", feed, "--speed", "10", "--seconds", "1")
    assert result.code == 0, result
    assert published_messages(result) > 5
    assert "in order, unchanged" in result.out


async def test_demo_ends_early_with_ctrl_c(commands: Commands) -> None:
    command = await commands.start("demo", "--seconds", 600, "--rate", 100)
    await command.line()
    await command.line()
    assert "msg/s" in await command.line()
    command.interrupt()
    result = await command.finish()
    assert result.code == 130, result
    assert "Summary" in result.out
    assert "every client received every message" in result.out
    assert result.err == ""


SPOILED = """
import sys
from picows_fast import WSMsgType
from picows_fast.cli import main
from picows_fast.cli.demo import Exchange
from picows_fast.cli.publish import Subscriber

def publish_one(self, payload):
    self.published.add(payload)
    for number, subscriber in enumerate(self._subscribers):
        if number == 1 and self.published.count == 3:
            spoil(subscriber.transport, payload)
        else:
            subscriber.transport.send(WSMsgType.TEXT, payload)

Exchange.publish_one = publish_one
spoil = {spoil}
sys.exit(main(["demo", "--clients", "2", "--rate", "100", "--seconds", "30"]))
"""


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("lambda transport, payload: None", "message 3 is not what was published"),
        (
            "lambda transport, payload: transport.send(WSMsgType.TEXT, payload[:-1] + b'x')",
            "message 3 is not what was published",
        ),
        (
            "lambda transport, payload: transport.send(WSMsgType.BINARY, payload)",
            "message 3 is not what was published",
        ),
        (
            "lambda transport, payload:"
            " [transport.send(WSMsgType.TEXT, payload) for _ in range(2)]",
            "message 4 ",
        ),
        ("lambda transport, payload: transport.disconnect(graceful=False)", "connection lost"),
        ("lambda transport, payload: transport.send_close(1011)", "code 1011"),
    ],
)
async def test_demo_notices_what_does_not_arrive(
    commands: Commands, spoil: str, reason: str
) -> None:
    result = await commands.run(program=SPOILED.replace("{spoil}", spoil))
    assert result.code == 1, result
    failed = [line for line in result.out.splitlines() if line.startswith("  FAILED")]
    assert len(failed) == 1
    assert reason in result.out
    assert "verified" not in result.out


async def test_demo_refuses_more_clients_than_files_may_be_open(commands: Commands) -> None:
    program = (
        "import resource, sys; from picows_fast.cli import main;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100));"
        "sys.exit(main(['demo', '--clients', '100']))"
    )
    assert "the limit is 100" in one_line(await commands.run(program=program), 2)


@pytest.mark.parametrize("command", [["demo", "--feed"], ["replay"]])
async def test_bad_feed_file_is_named_with_its_line(commands: Commands, command: list[str]) -> None:
    feed = commands.folder / "bad.jsonl.gz"
    feed.write_bytes(gzip.compress(b'[0,"a"]\n[1,2]\n'))
    line = one_line(await commands.run(*command, feed), 1)
    assert f"{feed}, line 2: the message must be a JSON string" in line
    assert "No such file" in one_line(await commands.run(*command, "missing"), 1)


async def test_live_line_rewrites_itself_on_a_terminal(commands: Commands) -> None:
    output, code = await run_on_terminal(
        commands, "demo", "--seconds", "1.2", "--rate", "100", "--clients", "1"
    )
    assert code == 0
    assert len(re.findall(r"\r +\d+\.\d s .*? msg/s [^\r\n]*\x1b\[K", output)) >= 2
    assert "every client received every message" in output


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "example.com"])
async def test_certificate_of_the_demo_is_for_loopback_and_lasts(name: str) -> None:
    certificate = x509.load_pem_x509_certificate(CERTIFICATE.read_bytes())
    assert certificate.not_valid_before_utc.year <= 2020
    assert certificate.not_valid_after_utc.year >= 2100
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_tls.load_cert_chain(CERTIFICATE)
    client_tls = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with server(echo, ssl=server_tls) as url:
        connecting = websockets_connect(url, ssl=client_tls, server_hostname=name)
        if name == "example.com":
            with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'example\.com'"):
                await connecting
        else:
            async with connecting:
                pass
