"""A headless chromium driven over the DevTools protocol: just what the test of the chat page needs."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import time
from pathlib import Path

from websockets.sync.client import connect

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
]
PATIENCE = 10.0
"""Seconds after which something that the page should have done counts as not done."""


class Browser:
    """One tab. `events` holds what chromium reported: requests, exceptions, console errors."""

    def __init__(self, chromium: str, folder: Path):
        command = [chromium, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        environment = {**os.environ, "HOME": str(folder)}
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            port, path = wait(lambda: _address(folder / "DevToolsActivePort"), "chromium opens its port", 20)
            self.socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None, compression=None)
        except BaseException:
            self.process.kill()
            raise
        self.numbers = itertools.count(1)
        self.events: list[dict] = []
        self.session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params):
        """Runs one command and returns its result; events that arrive meanwhile are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session and not method.startswith("Browser."):
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv(timeout=PATIENCE))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def run(self, script: str):
        """The value of a JavaScript expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def until(self, script: str):
        """Waits until a JavaScript expression is true."""
        wait(lambda: self.run(f"Boolean({script})"), script, PATIENCE)

    def open(self, url: str):
        """Loads a page and waits until its script has run."""
        self.send("Page.navigate", url=url)
        self.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def reload(self):
        """Reloads the page, which drops its state and its requests."""
        self.events = [event for event in self.events if event.get("method") != "Page.loadEventFired"]
        self.send("Page.reload")
        wait(lambda: self.heard("Page.loadEventFired"), "the page loads", PATIENCE)

    def click(self, selector: str, count: int = 1):
        """A real click in the middle of the first element that matches."""
        script = f"(() => {{ const node = document.querySelector({json.dumps(selector)});"
        script += "node.scrollIntoView({block: 'nearest'}); const box = node.getBoundingClientRect();"
        x, y = self.run(script + "return [box.x + box.width / 2, box.y + box.height / 2]; })()")
        for number in range(1, count + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=number)

    def type(self, selector: str, text: str):
        """Focuses a field and inserts a text at its end."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.send("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0):
        """One key: "Enter" or "Escape"; 8 is shift."""
        code = {"Enter": 13, "Escape": 27}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def dress(self, width: int, height: int, scheme: str):
        """Sets the window's size and the system's colours."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path):
        """Writes what is seen as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def heard(self, method: str) -> bool:
        """Whether an event has come; asks something of the browser, not of the page, which may be about to change."""
        self.send("Browser.getVersion")
        return any(event.get("method") == method for event in self.events)

    def requested(self) -> list[str]:
        """The addresses of all requests so far, those of opened sockets too."""
        self.run("0")  # collects what is waiting
        kinds = ("Network.requestWillBeSent", "Network.webSocketCreated")
        events = [event["params"] for event in self.events if event.get("method") in kinds]
        return [event["request"]["url"] if "request" in event else event["url"] for event in events]

    def complaints(self) -> list[str]:
        """Uncaught exceptions and what the browser logged as an error, broken policies included."""
        self.run("0")
        found = [event["params"] for event in self.events if event.get("method") == "Runtime.exceptionThrown"]
        logged = [event["params"]["entry"] for event in self.events if event.get("method") == "Log.entryAdded"]
        found += [entry for entry in logged if entry["level"] == "error" and entry["source"] != "network"]
        return [json.dumps(each) for each in found]

    def close(self):
        """Ends the browser that this object started."""
        try:
            self.send("Browser.close")
            self.process.wait(5)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            self.process.kill()
        self.socket.close()


def ask(page: Browser, text: str):
    """Writes a message and sends it."""
    page.type("#text", text)
    page.press("Enter")


def until_answered(page: Browser, answers: int = 1):
    """Waits until so many answers are there and nothing streams."""
    done = "document.querySelector('#thread').ariaBusy === 'false'"
    page.until(f"{done} && document.querySelectorAll('.assistant').length === {answers}")


def count(page: Browser, selector: str) -> int:
    """How many elements match."""
    return page.run(f"document.querySelectorAll({json.dumps(selector)}).length")


def text_of(page: Browser, selector: str) -> str:
    """The text that is seen in the first element that matches."""
    return page.run(f"document.querySelector({json.dumps(selector)}).innerText")


def wait(check, what: str, seconds: float):
    """The first true value of `check()`."""
    end = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < end, f"did not happen within {seconds:g} s: {what}"
        time.sleep(0.02)
    return value


def _address(file: Path):
    lines = file.read_text().split("\n") if file.exists() else []
    return lines[:2] if len(lines) >= 2 and lines[1] else None
