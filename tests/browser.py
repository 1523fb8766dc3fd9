"""Chromium without a window, told by the DevTools protocol over pipes what to do: no port, no library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = shutil.which("chromium")
LIMIT = 60  # seconds that a browser may take for a command, on a busy machine


class Browser:
    """One page. A context manager."""

    def __init__(self, profile: Path, width: int = 1000, height: int = 800, dark: bool = False) -> None:
        told, self._tell = os.pipe()
        self._hear, said = os.pipe()
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run",
            f"--user-data-dir={profile}",
        ]  # fmt: skip
        # Chromium reads commands at 3 and answers at 4
        script = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", script, str(told), str(said), str(CHROMIUM), *options, "about:blank"],
            pass_fds=(told, said), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(told)
        os.close(said)
        self._number, self._held, self.events = 0, b"", list[dict[str, Any]]()
        self._session: str | None = None
        [page] = [t for t in self.tell("Target.getTargets")["targetInfos"] if t["type"] == "page"][:1]
        self._session = self.tell("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.tell(f"{domain}.enable")
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in (self._tell, self._hear):
            os.close(end)
        try:
            self._process.wait(5)  # it ends with its pipe
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's result; events that come meanwhile are kept in `events`."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._tell, json.dumps(command).encode() + b"\0")
        while (heard := self._next())["id"] != self._number:
            pass
        assert "error" not in heard, heard
        result: dict[str, Any] = heard["result"]
        return result

    def _next(self) -> dict[str, Any]:
        """The next answer."""
        until = time.monotonic() + LIMIT
        while True:
            while b"\0" not in self._held:
                ready, _, _ = select.select([self._hear], [], [], max(0.0, until - time.monotonic()))
                assert ready, "the browser says nothing"
                part = os.read(self._hear, 1 << 20)
                assert part, "the browser is gone"
                self._held += part
            text, self._held = self._held.split(b"\0", 1)
            heard: dict[str, Any] = json.loads(text)
            if "id" in heard:
                return heard
            self.events.append(heard)

    # The page -------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        self.tell("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """An expression's value, or a promise's."""
        done = self.tell("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, script: str) -> None:
        """The expression is true."""
        until = time.monotonic() + LIMIT
        while not self.run(f"Boolean({script})"):
            assert time.monotonic() < until, f"never: {script}"
            time.sleep(0.05)

    def type(self, selector: str, text: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.tell("Input.insertText", text=text)

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """A key; modifiers: 2 for Ctrl."""
        for kind in ("rawKeyDown", "keyUp"):
            self.tell("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=modifiers)

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def text(self, selector: str = "body") -> str:
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def picture(self, path: Path) -> None:
        """Of the whole page, down to its end."""
        size = self.tell("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.tell("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """What the browser has logged of errors, among them breaches of the page's policy."""
        self.run("1")
        found = []
        for event in self.events:
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]))
        return found

    def requests(self) -> list[str]:
        """Addresses of all that the page asked for."""
        self.run("1")
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]
