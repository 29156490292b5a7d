"""The program that runs a Jupyter kernel inside the sandbox and speaks JSON lines with the host.

Started as `python3 -P -c SOURCE CONFIG`; needs `ipykernel` and `jupyter_client` on its path and nothing of Baleen. One
driver, one kernel: where the kernel is lost the driver says so and ends, and the host starts another.

    in:  {"code": ..., "timeout": seconds, "token": any text}
    out: {"ready": true}, then for each request its token and {"text", "error", "images": [[media type, base64]], "end"}

`end` is `done`, `interrupted` (time was over, variables are kept), `stuck` (it could not be interrupted) or `died`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

_START_SECONDS = 60.0
_INTERRUPT_SECONDS = 2.0
_LAST_WORDS_SECONDS = 1.0
"""How long output may come after the reply: without it a lost status message would cost the whole time."""
_SETUP = """
import sys as _sys, warnings as _warnings
_sys.path.insert(0, "")
_warnings.filterwarnings("ignore", message="To exit: use")
get_ipython().system = get_ipython().system_raw
del _sys, _warnings
"""
"""The first cell: files of the workspace can be imported (not before the kernel itself is), `!command` needs no
terminal, of which there is none."""
_IMAGE_TYPES = ("image/png", "image/jpeg")


def main(config: dict[str, Any]) -> None:
    """Starts the kernel and answers until the host closes the pipe or the kernel is lost."""
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)  # nothing that the kernel's code prints may look like an answer

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    try:
        kernel = Kernel(config)
    except Exception as error:  # noqa: BLE001 - the host must hear why there is no kernel, whatever it was
        answer(ready=False, reason=f"{type(error).__name__}: {error}")
        return
    answer(ready=True)
    try:
        for line in requests:
            request = json.loads(line)
            reply = kernel.run(request["code"], request["timeout"])
            answer(token=request["token"], **reply)
            if reply["end"] in ("stuck", "died"):
                return
    finally:
        kernel.kill()


class Kernel:
    """One kernel process and the client's end of its sockets."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.output_characters: int = config["output_characters"]
        self.image_bytes: int = config["image_bytes"]
        folder = self.folder = tempfile.mkdtemp(prefix="kernel-")
        os.environ |= {"IPYTHONDIR": folder, "JUPYTER_RUNTIME_DIR": folder, "MPLCONFIGDIR": folder}
        connection = os.path.join(folder, "connection.json")
        # Sockets in the file system: no network, not even loopback, is needed.
        channels = ("shell", "iopub", "stdin", "control", "hb")
        sockets = {f"{channel}_port": number for number, channel in enumerate(channels, 1)}
        key = {"key": secrets.token_hex(16), "signature_scheme": "hmac-sha256"}
        with open(connection, "w", encoding="utf-8") as file:
            json.dump({"transport": "ipc", "ip": os.path.join(folder, "socket"), **sockets, **key}, file)
        options = ["--HistoryManager.enabled=False", "--InteractiveShell.xmode=Plain", "--quiet"]
        command = [sys.executable, "-P", "-m", "ipykernel_launcher", "-f", connection, *options]
        self.process = subprocess.Popen(command, start_new_session=True)
        # Imported while the kernel starts: both take their time.
        from jupyter_client.blocking.client import BlockingKernelClient

        self.client = BlockingKernelClient()
        self.client.load_connection_file(connection)
        self.client.start_channels(stdin=False, hb=False)
        self._wait_until_ready()

    def run(self, code: str, timeout: float) -> dict[str, Any]:
        """Runs one cell to its end, or to the end of its time."""
        message = self.client.execute(code, allow_stdin=False, store_history=True)
        cell = Cell(message, self.output_characters, self.image_bytes)
        if self._drain(cell, time.monotonic() + timeout):
            return cell.reply("done")
        if self._dead():
            return cell.reply("died", exit_code=self.process.returncode)
        for _ in range(2):
            os.killpg(self.process.pid, signal.SIGINT)
            if self._drain(cell, time.monotonic() + _INTERRUPT_SECONDS):
                return cell.reply("interrupted")
        self.kill()
        return cell.reply("stuck")

    def kill(self) -> None:
        """Ends the kernel and what it started in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wait_until_ready(self) -> None:
        """Until both directions work: a request is answered, and its status has come over the broadcast socket."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._dead():
                raise RuntimeError(f"the kernel ended with exit code {self.process.returncode} while it started")
            cell = Cell(self.client.execute(_SETUP, silent=True, allow_stdin=False), 0, 0)
            if self._drain(cell, min(deadline, time.monotonic() + 5.0)) and cell.heard_idle:
                return
        raise TimeoutError(f"the kernel did not start within {_START_SECONDS:g} s")

    def _drain(self, cell: Cell, deadline: float) -> bool:
        """Takes messages until the cell has ended; False when the time is over or the kernel dead."""
        import zmq

        iopub, shell = self.client.iopub_channel, self.client.shell_channel
        poller = zmq.Poller()
        for channel in (iopub, shell):
            poller.register(channel.socket, zmq.POLLIN)
        while not cell.heard_idle:
            wait = min(deadline, cell.replied_at + _LAST_WORDS_SECONDS) - time.monotonic()
            if wait <= 0:
                return cell.replied_at < float("inf")
            ready = dict(poller.poll(round(1000 * min(wait, 0.2)) + 1))
            if iopub.socket in ready:
                cell.take(iopub.get_msg(timeout=0))
            if shell.socket in ready:
                cell.take_reply(shell.get_msg(timeout=0))
            if not ready and self._dead():
                return False
        return True

    def _dead(self) -> bool:
        return self.process.poll() is not None


class Cell:
    """What one request has brought so far."""

    def __init__(self, message: str, output_characters: int, image_bytes: int) -> None:
        self.message = message
        self.heard_idle = False
        self.replied_at = float("inf")
        self.text = ""
        self.error = ""
        self.images: list[tuple[str, str]] = []
        self.left_out = 0
        self._characters, self._image_room = output_characters, image_bytes

    def take(self, message: dict[str, Any]) -> None:
        """A message of the broadcast socket."""
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "stream":  # also of a thread that an earlier cell has started
            self._add(content["text"])
        elif message["parent_header"].get("msg_id") != self.message:
            return
        elif kind == "status":
            self.heard_idle = content["execution_state"] == "idle"
        elif kind in ("execute_result", "display_data"):
            self._show(content["data"])
        elif kind == "error":
            self.error = "\n".join(content["traceback"]) or f"{content['ename']}: {content['evalue']}"

    def take_reply(self, message: dict[str, Any]) -> None:
        """A message of the request's own socket."""
        if message["parent_header"].get("msg_id") == self.message:
            self.replied_at = time.monotonic()

    def reply(self, end: str, exit_code: int | None = None) -> dict[str, Any]:
        """The answer to the host."""
        return {
            "text": self.text,
            "left_out": self.left_out,
            "error": self.error,
            "images": self.images,
            "end": end,
            "exit_code": exit_code,
        }

    def _show(self, data: dict[str, Any]) -> None:
        for media_type in _IMAGE_TYPES:
            if media_type in data:
                encoded = _base64(data[media_type])
                if encoded is None:
                    self._add(f"[an image was left out: its {media_type} data is not base64]\n")
                elif len(encoded) > self._image_room:
                    self._add(f"[an image of {len(encoded)} characters was left out: too large]\n")
                else:
                    self._image_room -= len(encoded)
                    self.images.append((media_type, encoded))
                return
        text = str(data.get("text/plain", ""))
        self._add(text if text.endswith("\n") or not text else text + "\n")

    def _add(self, text: str) -> None:
        """Keeps the beginning and the end of what has come."""
        keep, self.text = self._characters, self.text + text
        if len(self.text) > 4 * keep:
            self.left_out += len(self.text) - 2 * keep
            self.text = self.text[:keep] + self.text[len(self.text) - keep :]


def _base64(value: Any) -> str | None:
    """`value` without white space; None where it is not base64, which the host would take for a disturbed channel."""
    if not isinstance(value, str):
        return None
    text = "".join(value.split())
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return text


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
