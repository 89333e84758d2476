"""Drives a headless Chromium by the DevTools protocol over pipes, without further packages."""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60.0


def find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page; `problems` collects its console output and errors."""

    def __init__(self, folder: Path, **environment: str):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        switches = "headless no-sandbox disable-gpu disable-dev-shm-usage no-first-run"
        command = [
            str(find()),
            *(f"--{name}" for name in switches.split()),
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
        ]
        # The protocol's pipes are the descriptors 3 and 4.
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | environment,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._unread, self._count, self._session = b"", 0, None
        self.problems: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        found = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._out)  # closing the pipe ends the browser and all its processes
        try:
            self._process.wait(timeout=SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._in)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command; events before it are recorded."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            if not select.select([self._in], [], [], SECONDS)[0]:
                raise TimeoutError(f"no message from the browser for {SECONDS:.0f} s")
            if not (part := os.read(self._in, 1 << 20)):
                raise RuntimeError("the browser ended")
            self._unread += part
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.problems.append(json.dumps(event["params"])[:2000])
        if event.get("method") == "Log.entryAdded":
            self.problems.append(event["params"]["entry"]["text"])

    def run(self, expression: str) -> Any:
        """The value of JavaScript in the page; promises are awaited."""
        found = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Waits until the JavaScript is true."""
        end = time.monotonic() + SECONDS
        while not self.run(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {expression}; {self.problems}")
            time.sleep(0.02)

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait_for("document.readyState == 'complete' && location.href != 'about:blank'")

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
