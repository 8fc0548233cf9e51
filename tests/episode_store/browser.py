"""A headless Chromium driven over WebDriver (w3.org/TR/webdriver2), which is JSON over HTTP: no package is needed."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--window-size=1600,1000"),
)
_MISSING = "the tests of the viewer need Chromium: sudo apt-get install chromium chromium-driver"
# Of the WebDriver standard: keys that are no characters.
LEFT, UP, RIGHT, DOWN = "\ue012", "\ue013", "\ue014", "\ue015"


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def open(self, url: str) -> None:
        """Goes there."""
        self._call("url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a function returns in the page."""
        return self._call("execute/sync", {"script": script, "args": list(arguments)})

    def text(self, selector: str) -> str:
        """The text that is seen of an element; "" when there is none."""
        return self.run(
            "const node = document.querySelector(arguments[0]); return node ? node.innerText : '';", selector
        )

    def click(self, selector: str) -> None:
        """Clicks an element."""
        self.run("document.querySelector(arguments[0]).click();", selector)

    def type(self, selector: str, text: str) -> None:
        """Types into a field, replacing what is there."""
        self.run("const node = document.querySelector(arguments[0]); node.focus(); node.select();", selector)
        self.press(*text)

    def press(self, *keys: str) -> None:
        """Real key presses, to whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def wait(self, what: str, condition: Callable[[], Any], seconds: float = 10.0) -> Any:
        """The first true value of a condition."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"waited {seconds} s for {what}; the console says {self.console()}"
            time.sleep(0.02)
        return value

    def wait_for_text(self, selector: str, part: str) -> None:
        """Until an element's text has a part."""
        self.wait(f"{part!r} in {selector}", lambda: part in self.text(selector))

    def console(self) -> list[str]:
        """Errors and warnings of the page since the last call, those of the content security policy among them."""
        return [entry["message"] for entry in self._call("se/log", {"type": "browser"})]

    def emulate(self, command: str, **parameters: Any) -> None:
        """A command of the DevTools protocol."""
        self._call("goog/cdp/execute", {"cmd": command, "params": parameters})

    def screenshot(self, path: Path) -> None:
        """What is seen, as PNG."""
        path.write_bytes(base64.b64decode(_request(f"{self._session}/screenshot")))

    def _call(self, name: str, body: dict[str, Any]) -> Any:
        return _request(f"{self._session}/{name}", body)


def _request(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as response:
            return json.load(response)["value"]
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url}: {json.load(error)['value']['message']}") from None


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser with a fresh profile in `folder`.

    Raises:
      AssertionError: it is not installed; says how.
    """
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary, _MISSING
    assert driver, _MISSING
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = next(
                match for line in process.stdout if (match := re.search(r"started successfully on port (\d+)", line))
            )
            options = {"binary": binary, "args": [*_FLAGS, f"--user-data-dir={folder / 'profile'}"]}
            capabilities = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
            root = f"http://127.0.0.1:{found[1]}/session"
            session = f"{root}/{_request(root, {'capabilities': capabilities})['sessionId']}"
            try:
                yield Browser(session)
            finally:
                urllib.request.urlopen(urllib.request.Request(session, method="DELETE"), timeout=60).close()
        finally:
            process.terminate()
