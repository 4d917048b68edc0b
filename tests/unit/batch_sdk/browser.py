"""A real browser, driven over its DevTools protocol, to see what a page becomes in it."""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = (
    f"no browser on PATH ({', '.join(NAMES)}): run `make browser`, or on Debian `apt-get install chromium`"
)
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-port=0",
)  # fmt: skip
_SECONDS = 60


class View(NamedTuple):
    """A page at one width: a PNG of all of it, and what a script said there."""

    png: bytes
    value: Any


class Seen(NamedTuple):
    """What a browser made of a page: a view for every width, complaints on its console, and URLs asked for."""

    views: list[View]
    complaints: list[str]
    urls: list[str]


def find() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path is not None), None)


def look(page: Path | str, script: str, *settings: tuple[int, str]) -> Seen:
    """Open a file or a URL. `settings` are widths and colour schemes; `script` is evaluated at each of them."""
    program = find()
    assert program is not None, MISSING
    url = page if isinstance(page, str) else page.as_uri()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # Quiet, or it tells of a machine without a bus; what the page itself says comes over the protocol.
        browser = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port = _port(Path(profile) / "DevToolsActivePort", browser)
            return asyncio.run(asyncio.wait_for(_look(port, url, script, settings), _SECONDS))
        finally:
            browser.terminate()
            browser.wait(10)


def _port(file: Path, browser: subprocess.Popen) -> int:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        assert browser.poll() is None, f"the browser ended with {browser.returncode}"
        if file.exists() and "\n" in (text := file.read_text()):
            return int(text.split("\n")[0])
        time.sleep(0.02)
    raise AssertionError("the browser does not say where it listens")


class _Tab:
    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._last, self.events = socket, 0, []

    async def call(self, method: str, **params: Any) -> dict:
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": params})
        while (message := await self._socket.receive_json()).get("id") != self._last:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    async def until(self, method: str) -> None:
        while all(event["method"] != method for event in self.events):
            self.events.append(await self._socket.receive_json())


async def _look(port: int, url: str, script: str, settings: tuple) -> Seen:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            target = next(one for one in await answer.json() if one["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            tab = _Tab(socket)
            for domain in ("Page", "Network", "Log", "Runtime"):
                await tab.call(f"{domain}.enable")
            await tab.call("Page.navigate", url=url)
            await tab.until("Page.loadEventFired")
            views = [await _view(tab, script, width, scheme) for width, scheme in settings]
            return Seen(views, _complaints(tab.events), _urls(tab.events))


async def _view(tab: _Tab, script: str, width: int, scheme: str) -> View:
    await tab.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600
    )
    media = [{"name": "prefers-color-scheme", "value": scheme}]
    await tab.call("Emulation.setEmulatedMedia", features=media)
    found = await tab.call("Runtime.evaluate", expression=script, returnByValue=True)
    shot = await tab.call("Page.captureScreenshot", captureBeyondViewport=True)
    return View(base64.b64decode(shot["data"]), found["result"].get("value"))


def _complaints(events: list[dict]) -> list[str]:
    kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    return [str(event["params"]) for event in events if event["method"] in kinds]


def _urls(events: list[dict]) -> list[str]:
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
