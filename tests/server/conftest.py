"""Servers and a browser for the tests of this folder; what they share lies beside them."""

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from loopback import WEATHER, running
from scripted_service import ScriptedService
from taught import taught_model

from baleen.chat import Tokenizer, encode
from baleen.server.settings import ServerSettings
from browser import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def tokenizer():
    """A vocabulary that knows the words of these tests."""
    texts = [
        encode([{"role": "user", "content": "What is the weather in Paris? Hello, world."}], [WEATHER]),
        "I need the weather of the city. It is sunny in Paris, 21 degrees. 你好，世界",
    ]
    return Tokenizer.train(texts, 600)


@pytest.fixture(scope="session")
def taught(tokenizer, tmp_path_factory):
    """The folder of a small trained checkpoint; what it learned is in `taught.py`."""
    return taught_model(tokenizer, tmp_path_factory.mktemp("taught"))


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A chromium, where there is one."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: install it to try the chat page in a browser")
    browser = Browser(CHROMIUM, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def servers():
    """The servers that were started, by their settings: to start and stop one takes longer than most tests."""
    with ExitStack() as stack:
        started = {}

        def find(settings):
            if settings not in started:
                started[settings] = stack.enter_context(running(settings))
            return started[settings]

        yield find


@pytest.fixture
def serving(tokenizer, servers):
    """`serving(answers, ...)` gives a server with these settings; the rest is of its scripted service, a new one."""
    names = set(ServerSettings.model_fields)
    used = []

    def start(**given):
        settings = ServerSettings(**{key: value for key, value in given.items() if key in names})
        rest = {key: value for key, value in given.items() if key not in names or key == "max_waiting"}
        used.append(servers(settings))
        used[-1].begin(ScriptedService(tokenizer, **rest))
        return used[-1]

    yield start
    for server in used:
        server.end()
