"""A headless Chromium, driven through chromedriver by the W3C WebDriver protocol: plain HTTP, no package needed."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OPTIONS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
"""Without a sandbox, since CI runs as root; only our own page is loaded."""

IS_INSTALLED = all(map(shutil.which, ("chromium", "chromedriver")))


class Browser:
    """One tab."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self.call("/url", {"url": url})

    def run(self, script: str) -> Any:
        """Run JavaScript in the page, and give back what it returns."""
        return self.call("/execute/sync", {"script": script, "args": []})

    def text(self, css: str) -> str:
        return self.run(f"return document.querySelector({json.dumps(css)}).innerText")

    def press(self, keys: str) -> None:
        """Press keys one after the other, as on a keyboard."""
        pressed = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": pressed}]})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("/screenshot")))

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Show the page at a size and in a color scheme."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", {"features": [scheme]})

    def devtools(self, command: str, params: dict[str, Any]) -> Any:
        return self.call("/goog/cdp/execute", {"cmd": command, "params": params})


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; it and its driver end with the block."""
    with subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        try:
            port = next(found[1] for line in driver.stdout if (found := re.search(r"on port (\d+)\.", line)))
            root = Browser(f"http://127.0.0.1:{port}")
            options = {"args": [*OPTIONS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
            wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
            browser = Browser(f"{root.url}/session/{root.call('/session', wanted)['sessionId']}")
            try:
                yield browser
            finally:
                browser.call("", method="DELETE")
        finally:
            driver.terminate()
