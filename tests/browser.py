"""Headless Chromium, driven by chromedriver's HTTP interface (WebDriver, and the DevTools protocol through it)."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
IS_MISSING = "" if CHROMIUM and DRIVER else "chromium and chromium-driver are not installed"

_ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


class Browser:
    """A session of one window."""

    def __init__(self, port: int) -> None:
        self._request = build_opener(ProxyHandler({})).open
        self._root = f"http://127.0.0.1:{port}"
        options = {"binary": CHROMIUM, "args": [*_ARGUMENTS]}
        logged = {"goog:loggingPrefs": {"browser": "ALL"}}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options, **logged}
        session = self._post("/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._root += f"/session/{session['sessionId']}"

    def show(self, page: Path, *, width: int, dark: bool) -> None:
        """Open a file in a viewport of that width. The width is real: a window could not be so narrow."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self._post("/url", {"url": page.as_uri()})

    def open(self, address: str) -> None:
        """Open a page of a server."""
        self._post("/url", {"url": address})

    def run(self, script: str) -> Any:
        """Return what a script returns. The script of a page itself may be forbidden all the same."""
        return self._post("/execute/sync", {"script": script, "args": []})

    def command(self, name: str, **parameters: Any) -> Any:
        """Send a command of the DevTools protocol."""
        return self._post("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def messages(self) -> list[str]:
        """Return what the console has said since the last call: errors, and what a page was not allowed to load."""
        return [each["message"] for each in self._post("/se/log", {"type": "browser"})]

    def picture(self) -> bytes:
        """Return a picture (PNG) of the whole page."""
        width, height = self.run("const e = document.documentElement; return [innerWidth, e.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(shot["data"])

    def close(self) -> None:
        with self._request(Request(self._root, method="DELETE"), timeout=60):
            pass

    def _post(self, path: str, values: dict[str, Any]) -> Any:
        request = Request(self._root + path, json.dumps(values).encode(), {"Content-Type": "application/json"})
        with self._request(request, timeout=60) as answer:
            return json.load(answer)["value"]


@contextmanager
def start() -> Iterator[Browser]:
    """Start chromedriver and Chromium, which end with the context."""
    assert DRIVER is not None
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
        try:
            assert driver.stdout is not None
            port = next(found for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
            browser = Browser(int(port[1]))
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
