"""Chromium and Firefox without a window, driven by their own protocols, over our own client.

Chromium speaks the DevTools protocol, Firefox WebDriver BiDi, both JSON over WebSocket: a driver
program in between is not needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from picows_fast import WSMsgType, ws_connect
from picows_fast.layers.messages import WSMessageListener

PATIENCE = 60  # seconds; a browser that starts on a busy machine takes its time
NAMES = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "firefox": ("firefox-esr", "firefox"),
}

# What asks the network for something by itself is off.
FIREFOX_SETTINGS = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.safebrowsing.downloads.remote.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.search.update": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.push.connection.enabled": False,
    "extensions.systemAddon.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}


def program(name: str) -> str | None:
    """The path of "chromium" or "firefox"; None if it is not installed."""
    return next(filter(None, map(shutil.which, NAMES[name])), None)


class _Answers(WSMessageListener):
    """Gives each answer to the command that has its number."""

    def __init__(self) -> None:
        super().__init__(max_message_size=1 << 26)
        self.waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def on_ws_message(self, transport: Any, msg_type: Any, payload: Any) -> None:
        answer = json.loads(payload.get_payload_as_utf8_text())
        if (future := self.waiting.pop(answer.get("id"), None)) is not None and not future.done():
            future.set_result(answer)

    def on_ws_disconnected(self, transport: Any) -> None:
        for future in self.waiting.values():
            future.cancel()


class Browser(ABC):
    """A browser with one page."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._numbers = itertools.count(1)

    async def connect(self, url: str) -> None:
        self._transport, self._answers = await ws_connect(_Answers, url, max_frame_size=1 << 26)
        await self.begin()

    async def command(self, method: str, parameters: dict[str, Any], **more: str) -> Any:
        """The result of a command. RuntimeError: the browser refuses."""
        number = next(self._numbers)
        future = asyncio.get_running_loop().create_future()
        self._answers.waiting[number] = future
        message = {"id": number, "method": method, "params": parameters, **more}
        self._transport.send(WSMsgType.TEXT, json.dumps(message))
        answer = await asyncio.wait_for(future, PATIENCE)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']} {answer.get('message', '')}")
        return answer["result"]

    @abstractmethod
    async def begin(self) -> None: ...

    @abstractmethod
    async def open(self, url: str) -> None:
        """Load a page."""

    @abstractmethod
    async def _evaluate(self, expression: str) -> str: ...

    async def evaluate(self, expression: str) -> Any:
        """The value, which JSON can tell, of an expression in the page."""
        return json.loads(await self._evaluate(f"JSON.stringify({expression})"))

    async def until(self, condition: str) -> None:
        """Wait until an expression is true in the page."""

        async def wait() -> None:
            while not await self.evaluate(f"Boolean({condition})"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

        try:
            await asyncio.wait_for(wait(), PATIENCE)
        except asyncio.TimeoutError:
            state = await self.evaluate("[{...document.documentElement.dataset}, document.title]")
            raise AssertionError(f"{condition} never came: {state}") from None

    async def end(self) -> None:
        if hasattr(self, "_transport"):
            self._transport.disconnect(graceful=False)
            await self._transport.wait_disconnected()
        # The browser has started processes of its own.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


class Chromium(Browser):
    async def begin(self) -> None:
        target = await self.command("Target.createTarget", {"url": "about:blank"})
        attached = await self.command(
            "Target.attachToTarget", {"targetId": target["targetId"], "flatten": True}
        )
        self._session = attached["sessionId"]

    async def _in_page(self, method: str, parameters: dict[str, Any]) -> Any:
        return await self.command(method, parameters, sessionId=self._session)

    async def open(self, url: str) -> None:
        result = await self._in_page("Page.navigate", {"url": url})
        assert "errorText" not in result, result
        await self.until(
            f"location.href === {json.dumps(url)} && document.readyState === 'complete'"
        )

    async def _evaluate(self, expression: str) -> str:
        result = await self._in_page(
            "Runtime.evaluate", {"expression": expression, "returnByValue": True}
        )
        assert "exceptionDetails" not in result, result
        return str(result["result"]["value"])


class Firefox(Browser):
    async def begin(self) -> None:
        await self.command("session.new", {"capabilities": {}})
        tree = await self.command("browsingContext.getTree", {})
        self._context = tree["contexts"][0]["context"]

    async def open(self, url: str) -> None:
        await self.command(
            "browsingContext.navigate", {"context": self._context, "url": url, "wait": "complete"}
        )

    async def _evaluate(self, expression: str) -> str:
        parameters = {
            "expression": expression,
            "target": {"context": self._context},
            "awaitPromise": False,
        }
        result = await self.command("script.evaluate", parameters)
        assert result["type"] == "success", result
        return str(result["result"]["value"])


@contextlib.asynccontextmanager
async def browser(name: str, folder: Path) -> AsyncIterator[Browser]:
    """A running browser, "chromium" or "firefox", with a new profile in this folder."""
    path = program(name)
    assert path is not None
    if name == "chromium":
        kind: type[Browser] = Chromium
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--disable-background-networking", "--disable-component-update", "--no-first-run",
            "--remote-debugging-port=0", f"--user-data-dir={folder}", "about:blank",
        ]  # fmt: skip
    else:
        kind = Firefox
        settings = [
            f'user_pref("{key}", {json.dumps(value)});\n' for key, value in FIREFOX_SETTINGS.items()
        ]
        (folder / "user.js").write_text("".join(settings))
        options = [
            "--headless", "--no-remote", "--profile", str(folder), "--remote-debugging-port=0",
            "about:blank",
        ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        path,
        *options,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "HOME": str(folder), "LD_PRELOAD": ""},
    )
    running = kind(process)
    reading = None
    try:
        url = await asyncio.wait_for(_listening_on(process), PATIENCE)
        # What else it says is dropped, or the pipe would fill up.
        reading = asyncio.ensure_future(process.stderr.read())  # type: ignore[union-attr]
        await running.connect(url if name == "chromium" else f"{url}/session")
        yield running
    finally:
        await running.end()
        if reading is not None:
            await reading


async def _listening_on(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    said = []
    while line := (await process.stderr.readline()).decode():
        said.append(line)
        if found := re.search(r"listening on (ws://\S+)", line):
            return found[1]
    raise RuntimeError(f"the browser has ended: {''.join(said)}")
