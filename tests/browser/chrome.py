"""A headless Chromium of the test's own, spoken to in the DevTools protocol over a pair of pipes."""

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
        errors: What the console, the page's scripts and its policy complained of, since the last `open`.
        requests: Addresses that were asked for since then, data URIs aside.
    """

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = (
            os.fdopen(reader, "rb", buffering=0),
            os.fdopen(writer, "wb", buffering=0),
        )
        self._rest, self._number, self._session = b"", 0, None
        self.errors: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.bringToFront")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | (
            {"sessionId": self._session} if self._session else {}
        )
        self._writer.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._note(answer)

    def open(
        self, page: Path, fragment: str = "", width: int = 1280, height: int = 900, dark: bool = False
    ) -> None:
        """Opens a file in a window of that size, and waits until it has loaded."""
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
        self.errors, self.requests = [], []
        self.call("Page.navigate", url=page.as_uri() + fragment)
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; of what it promises, where it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(
                found["exceptionDetails"]
                .get("exception", {})
                .get("description", str(found["exceptionDetails"]))
            )
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + SECONDS
        while not self._holds(expression):
            if time.monotonic() > deadline:
                raise TimeoutError(expression)
            time.sleep(0.02)

    def _holds(self, expression: str) -> bool:
        """Whether an expression is true; not yet, while the page it is asked of is being left."""
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
        """Writes a PNG of the page, beyond the window too."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
        return path

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            read = self._reader.read(1 << 16)
            if not read:
                raise RuntimeError("the browser has gone")
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        given = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = given["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif event.get("method") == "Log.entryAdded":
            self.errors.append(f"{given['entry']['level']}: {given['entry']['text']}")
        elif event.get("method") == "Runtime.consoleAPICalled" and given["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.errors.append(" ".join(str(argument.get("value")) for argument in given["args"]))
        elif event.get("method") == "Network.requestWillBeSent" and not given["request"]["url"].startswith(
            ("data:", "about:")
        ):
            self.requests.append(given["request"]["url"])


@contextmanager
def chrome(home: Path) -> Iterator[Chrome]:
    """A browser that ends with the block.

    Args:
        home: An empty directory for its profile.
    """
    home.mkdir(parents=True, exist_ok=True)
    to_read, write = os.pipe()
    read, to_write = os.pipe()
    command = " ".join(
        shlex.quote(word) for word in [CHROMIUM, *FLAGS, f"--user-data-dir={home}", "about:blank"]
    )
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command} 3<&{to_read} 4>&{to_write}"],
        pass_fds=(to_read, to_write),
        env={**os.environ, "HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Chrome(read, write)
    finally:
        process.terminate()
        process.wait(timeout=30)
