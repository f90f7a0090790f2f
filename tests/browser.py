"""A headless Chromium, if there is one, driven over a pipe by its own protocol: no package is needed for it.

`python -m tests.browser URL FILE.png [width] [light|dark]` takes a picture of a page.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOW_TO_GET = "there is no chromium to look at the page with: `apt-get install chromium`"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
LOOK_SECONDS = 0.02
START_SECONDS_MAX = 60.0


class Browser:
    """One browser with one page. Use it in a `with` statement."""

    def __init__(self) -> None:
        assert CHROMIUM is not None, HOW_TO_GET
        self._home = tempfile.TemporaryDirectory(prefix="madkv-browser-", ignore_cleanup_errors=True)
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        # It reads from descriptor 3 and writes to descriptor 4.
        shell = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        command = [CHROMIUM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={self._home.name}", "about:blank"]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", shell, *command],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)

    def __enter__(self) -> Self:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.errors: list[str] = []
        """What pages have complained about: exceptions, and what their policy forbids."""
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for each in (self._to, self._from):
            os.close(each)
        self._home.cleanup()

    def call(self, method: str, **arguments: Any) -> Any:
        """One command of the protocol; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": arguments}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._from, 1 << 20)
            assert piece, "the browser has ended"
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        found = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(found["exceptionDetails"].get("exception", {}).get("description", "an exception"))
        elif message.get("method") == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.errors.append(f"{found['entry']['text']} {found['entry'].get('url', '')}")
        return message

    def look(self, width: int, height: int, scheme: str) -> None:
        """How large the page is shown, in CSS pixels, and whether `light` or `dark`."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def open(self, url: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """What an expression is on the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float) -> float:
        """Wait until an expression holds on the page; how many seconds that took."""
        began = time.monotonic()
        while not self.value(expression):
            assert time.monotonic() - began < seconds, f"not within {seconds} s: {expression}\n{self.value(TEXT)}"
            time.sleep(LOOK_SECONDS)  # between two looks at the page; the deadline is above
        return time.monotonic() - began

    def picture(self, path: Path) -> None:
        """Write what the whole page looks like, as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


HAS_RATES = "[...document.querySelectorAll('[data-is=reads]')].some((each) => each.textContent !== '–')"
TEXT = "document.body ? document.body.innerText : ''"


def main(url: str, path: str, width: str = "1280", scheme: str = "light") -> None:
    with Browser() as browser:
        browser.look(int(width), 900 if int(width) > 600 else 1600, scheme)
        browser.open(url)
        browser.wait_for("document.readyState === 'complete' && !!document.querySelector('.group')", START_SECONDS_MAX)
        browser.wait_for(HAS_RATES, START_SECONDS_MAX)
        browser.picture(Path(path))


if __name__ == "__main__":
    main(*sys.argv[1:])
