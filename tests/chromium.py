"""A headless Chromium that tests drive: the DevTools protocol through a pair of pipes.

Only the standard library; messages are JSON objects that end with a zero byte.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--disable-extensions", "--remote-debugging-pipe"),
)
#: seconds that a single answer may take
_PATIENCE = 30.0


def find_chromium() -> str | None:
    """The path of an installed browser."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. What it logs, asks for or shows in a dialog is collected while answers are read."""

    def __init__(self, to: int, back: int) -> None:
        self.to, self.back = to, back
        self.buffer, self.number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.number:
            self.events.append(answer)
            if answer.get("method") == "Page.javascriptDialogOpening":  # it would block the page
                dismiss = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {}}
                dismiss |= {"sessionId": self.session}
                dismiss["params"] = {"accept": False}
                os.write(self.to, json.dumps(dismiss).encode() + b"\0")
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            if not select.select([self.back], [], [], _PATIENCE)[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self.back, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def run(self, script: str) -> Any:
        """Evaluate an expression; a promise is awaited. The value must be JSON."""
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """Evaluate an expression until it is true, and return it."""
        end = time.monotonic() + _PATIENCE
        while not (value := self.run(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {script}")
            time.sleep(0.02)
        return value

    def open(self, file: Path) -> None:
        """Load a file and wait until it is there."""
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.wait_for("location.protocol === 'file:' && document.readyState === 'complete'")

    def press(self, key: str) -> None:
        """Press and release a key, as a person would."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, **_KEYS[key])

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def of(self, *methods: str) -> list[dict[str, Any]]:
        """The parameters of the events of these kinds so far."""
        self.run("0")  # what was sent before this answer is read with it
        return [event["params"] for event in self.events if event.get("method") in methods]


_KEYS = {
    name: {"windowsVirtualKeyCode": code, "nativeVirtualKeyCode": code}
    for name, code in {"Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}.items()
}


@contextmanager
def browse(binary: str, profile: Path) -> Iterator[Page]:
    """Start a browser with an empty profile; it ends with the context."""
    profile.mkdir(parents=True, exist_ok=True)
    theirs_in, to = os.pipe()
    back, theirs_out = os.pipe()
    # the browser reads from file 3 and writes to file 4; high numbers are in nobody's way
    given = [fcntl.fcntl(fd, fcntl.F_DUPFD, 40) for fd in (theirs_in, theirs_out)]
    start = ["bash", "-c", f'exec "$@" 3<&{given[0]} 4>&{given[1]}', "bash"]
    process = subprocess.Popen(
        [*start, binary, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=given,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for fd in (theirs_in, theirs_out, *given):
        os.close(fd)
    try:
        yield Page(to, back)
    finally:
        os.close(to)  # without its pipe the browser ends
        os.close(back)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
