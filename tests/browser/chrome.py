"""Drives a headless Chromium through the DevTools protocol, over a pair of pipes."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "/usr/bin/chromium"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--remote-debugging-pipe",
)
SECONDS = 120.0  # of patience; a busy machine is slow


class Chrome:
    """One page of a running browser.

    Attributes:
        errors: Errors and warnings of console, scripts and content policy since the last `open`.
        requests: Addresses requested since then, without data URIs.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = os.fdopen(reader, "rb", buffering=0)
        self._writer = os.fdopen(writer, "wb", buffering=0)
        self._unread = b""
        self._number = 0
        self._session = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.has_scripts = True
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.bringToFront")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and waits for its response."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._writer.write(json.dumps(message).encode() + b"\0")
        while True:
            response = self._read_message()
            if response.get("id") == self._number:
                if "error" in response:
                    raise RuntimeError(f"{method}: {response['error']}")
                return dict(response["result"])
            self._record_event(response)

    def open(
        self, page: Path | str, fragment: str = "", width: int = 1280, height: int = 900, dark: bool = False
    ) -> None:
        """Opens a file, or a URL, in a window of a given size, and waits until its scripts have run."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.call("Page.navigate", url="about:blank")
        self.until("document.readyState === 'complete' && location.protocol === 'about:'")
        self.errors = []
        self.requests = []
        address = page if isinstance(page, str) else page.as_uri()
        self.call("Page.navigate", url=address + fragment)
        self.until("document.readyState === 'complete' && location.protocol !== 'about:'")
        if self.has_scripts:
            self.until("!document.querySelector('[data-view][data-source]:not([hidden])')")

    def enable_scripts(self, is_enabled: bool) -> None:
        """Switches the scripts of the pages that are opened from now on."""
        self.has_scripts = is_enabled
        self.call("Emulation.setScriptExecutionDisabled", value=not is_enabled)

    def run(self, expression: str) -> Any:
        """Evaluates a JavaScript expression, and awaits its value if it is a promise."""
        response = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in response:
            details = response["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", str(details)))
        return response["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self._holds(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(expression)
            time.sleep(0.02)

    def _holds(self, expression: str) -> bool:
        """Tells whether an expression is true; false while the page is being left."""
        try:
            return bool(self.run(f"!!({expression})"))
        except RuntimeError as error:
            if "navigated" not in str(error):
                raise
            return False

    def press(self, key: str, **more: Any) -> None:
        """Presses and releases a key, such as `Tab`, `Enter` or `ArrowRight`."""
        codes = {
            "Tab": 9,
            "Enter": 13,
            "Escape": 27,
            " ": 32,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }
        text = {"Enter": "\r", " ": " "}.get(key)
        event = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": codes[key],
            **more,
        }
        self.call(
            "Input.dispatchKeyEvent",
            type="keyDown" if text else "rawKeyDown",
            **event,
            **({"text": text} if text else {}),
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def screenshot(self, path: Path, whole: bool = True) -> Path:
        """Writes a PNG of the whole page, or of what the window shows of it."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        response = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(response["data"]))
        return path

    def _read_message(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            data = self._reader.read(1 << 16)
            if not data:
                raise RuntimeError("the browser has exited")
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        return dict(json.loads(message))

    def _record_event(self, event: dict[str, Any]) -> None:
        method = event.get("method")
        parameters = event.get("params", {})
        if method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded":
            entry = parameters["entry"]
            self.errors.append(f"{entry['level']}: {entry['text']}")
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            values = [str(argument.get("value")) for argument in parameters["args"]]
            self.errors.append(" ".join(values))
        elif method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if not url.startswith(("data:", "about:")):
                self.requests.append(url)


@contextmanager
def open_chrome(home: Path) -> Iterator[Chrome]:
    """Starts a browser, and ends it with the block.

    Args:
        home: Empty directory for the profile.
    """
    home.mkdir(parents=True, exist_ok=True)
    browser_reads, we_write = os.pipe()
    we_read, browser_writes = os.pipe()
    command = " ".join(
        shlex.quote(word) for word in [CHROMIUM, *FLAGS, f"--user-data-dir={home}", "about:blank"]
    )
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command} 3<&{browser_reads} 4>&{browser_writes}"],
        pass_fds=(browser_reads, browser_writes),
        env={**os.environ, "HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(browser_reads)
    os.close(browser_writes)
    try:
        yield Chrome(we_read, we_write)
    finally:
        process.terminate()
        process.wait(timeout=30)
