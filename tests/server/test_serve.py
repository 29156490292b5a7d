"""The server as a process: one line when it is ready, and an end that drops nobody."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from pydantic import ValidationError

from baleen.engine.params import EngineOptions
from baleen.server.serve import serve
from baleen.server.settings import ServerSettings

HERE = Path(__file__).parent
USER = {"role": "user", "content": "hi"}


@contextmanager
def program(tokenizer, folder, drain_seconds):
    """The server's process and its address."""
    tokenizer.save(folder)
    command = [sys.executable, HERE / "drained_program.py", folder, str(drain_seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("baleen serves on http://127.0.0.1:")
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def wait_until_draining(url):
    while httpx.get(f"{url}/health").status_code != 503:
        pass


def test_sigterm_lets_running_answers_end_and_refuses_new_ones(tokenizer, tmp_path):
    with program(tokenizer, tmp_path, 20) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
        stream = client.chat.completions.create(model=tmp_path.name, messages=[USER], stream=True)
        next(stream)
        process.send_signal(signal.SIGTERM)
        wait_until_draining(url)
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            client.chat.completions.create(model=tmp_path.name, messages=[USER])
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "stop"
        assert process.wait(10) == 0
        assert "ended True" in process.stdout.read()


@pytest.mark.parametrize("signals", [1, 2], ids=["time is over", "second signal"])
def test_answers_that_take_too_long_are_told_that_the_engine_closed(tokenizer, tmp_path, signals):
    with program(tokenizer, tmp_path, 0.1 if signals == 1 else 60) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
        stream = client.chat.completions.create(model=tmp_path.name, messages=[USER], stream=True)
        next(stream)
        process.send_signal(signal.SIGTERM)
        if signals == 2:
            wait_until_draining(url)
            process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="closed"):
            list(stream)
        assert process.wait(10) == 0


def test_a_port_that_is_taken_is_told_before_a_model_is_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve(tmp_path, ServerSettings(port=taken.getsockname()[1]), EngineOptions())


def test_the_servers_process_does_not_load_torch():
    program = "import sys, baleen.server.serve; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_settings_are_closed():
    with pytest.raises(ValidationError, match="max_body"):
        ServerSettings(max_body=1)
    with pytest.raises(ValidationError, match="api_key"):
        ServerSettings(api_key="")
