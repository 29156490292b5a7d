"""The chat page in a real browser, against a small scripted server that streams as ours does."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files

import pytest

from browser import ask, count, text_of, until_answered

PAGE = files("baleen.server") / "page.html"
HOSTILE = """<img src=x onerror="window.hacked = 1"> <script>window.hacked = 1</script>

[a link](javascript:window.hacked=1) and [another](https://evil.example/) and ![a picture](https://evil.example/a.png)

- <iframe src="https://evil.example/"></iframe>

```html" onload="window.hacked = 1
<svg onload="window.hacked = 1">
```
"""
HALF_A_CALL = {"index": 0, "id": "call_9", "function": {"name": "", "arguments": '{"city": '}}
ENDLESS = {
    "slow": {"content": "word word word "},
    "ponder": {"reasoning_content": "hm, and then \n"},
    "half a call": {"tool_calls": [HALF_A_CALL]},
}
MARKDOWN = """## A heading

Some **bold**, some *italic*, `code` and a [link](https://example.com/).

1. first
   - nested
2. second

```python
def f(x):
    return x < 1
```

| a | b |
|---|---|
| 1 | 2 |
"""


class Scripted(ThreadingHTTPServer):
    """Answers by the last message's text; `bodies` are the requests, `gone` tells that a reader left a stream."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict] = []
        self.gone = threading.Event()
        self.address = f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request, client_address):
        """A browser may close any connection: that is no news."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Tests are quiet."""

    def do_GET(self):
        if self.path == "/":
            self.reply(200, "text/html; charset=utf-8", PAGE.read_bytes())
        elif self.path == "/v1/models":
            self.reply(200, "application/json", json.dumps({"data": [{"id": "nano"}]}).encode())
        else:
            self.reply(404, "text/plain", b"")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        last = body["messages"][-1]
        text = last["content"]
        if text == "fail" and sum(each == body for each in self.server.bodies) == 1:
            error = {"message": "The queue is full.", "type": "rate_limit_error", "param": None, "code": None}
            self.reply(429, "application/json", json.dumps({"error": error}).encode())
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if last["role"] == "tool":
            self.thoughts("The tool has answered.")
            self.say("It is **17 degrees** in Oslo.")
        elif text in ENDLESS:
            try:
                while True:
                    self.delta(**ENDLESS[text])
                    time.sleep(0.005)
            except OSError:
                self.server.gone.set()
                return
        elif text == "two calls":
            for index, name in enumerate(["first", "second"]):
                call = {"index": index, "id": f"call_{name}", "function": {"name": name, "arguments": "{}"}}
                self.delta(tool_calls=[call])
        elif "weather" in text:
            self.thoughts("I have to look up Oslo.")
            call = {"index": 0, "id": "call_7", "type": "function"}
            self.delta(tool_calls=[call | {"function": {"name": "get_weather", "arguments": ""}}])
            for piece in ('{"ci', 'ty": "Os', 'lo"}'):
                self.delta(tool_calls=[{"index": 0, "function": {"arguments": piece}}])
        else:
            self.thoughts("Let me think about this.\nStep by step.")
            self.say({"hostile": HOSTILE, "markdown": MARKDOWN}.get(text, f"You said {text}."))
        self.delta(finish_reason="tool_calls" if "weather" in text and last["role"] == "user" else "stop")
        usage = {"prompt_tokens": 1240, "completion_tokens": 87, "prompt_tokens_details": {"cached_tokens": 1024}}
        self.event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def reply(self, status, kind, data):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def thoughts(self, text):
        for start in range(0, len(text), 4):
            self.delta(reasoning_content=text[start : start + 4])

    def say(self, text):
        for start in range(0, len(text), 5):
            self.delta(content=text[start : start + 5])

    def delta(self, finish_reason=None, **delta):
        self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    def event(self, data):
        self.wfile.write(f"data: {json.dumps(data)}\n\n".encode())
        self.wfile.flush()


@pytest.fixture(scope="module")
def server():
    with Scripted() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def page(browser, server):
    """The page without a past; every test also asserts that nothing went wrong and nothing left the origin."""
    browser.open(server.address)
    browser.run("conversations.clear(), localStorage.clear(), sessionStorage.clear()")
    browser.reload()
    browser.dress(1280, 800, "light")
    browser.events.clear()
    server.bodies.clear()
    server.gone.clear()
    yield browser
    strangers = [url for url in browser.requested() if not url.startswith((server.address, "data:"))]
    assert not strangers, "requests to another origin"
    assert not browser.complaints()


def test_a_question_streams_an_answer_with_its_reasoning_folded(page, server):
    ask(page, "markdown")
    until_answered(page)
    assert text_of(page, ".thinking summary").strip().startswith("Thought for")
    assert not page.run("document.querySelector('.thinking').open")
    assert page.run("document.querySelector('.thought').textContent") == "Let me think about this.\nStep by step."
    page.click(".thinking summary")
    assert page.run("document.querySelector('.thought').checkVisibility()")
    shape = ["h4", "strong", "em", "p>code", "ol>li>ul>li", ".fence", "table"]
    assert [name for name in shape if count(page, f".prose {name}") == 0] == []
    assert text_of(page, ".fence code") == "def f(x):\n    return x < 1"
    assert page.run("document.querySelector('.prose a').rel") == "noopener noreferrer"
    assert text_of(page, ".assistant > .tools span").startswith("1,240 tokens in, 1,024 cached · 87 out")
    body = server.bodies[0]
    assert body["model"] == "nano"
    assert body["stream"]
    assert body["stream_options"] == {"include_usage": True}
    assert body["chat_template_kwargs"] == {"thinking": True}
    assert "tools" not in body
    assert "temperature" not in body
    assert server.address + "v1/chat/completions" in page.requested()


def test_reasoning_is_seen_while_it_streams_and_folds_when_it_ends(page):
    ask(page, "ponder")
    page.until("document.querySelector('.thinking').open")
    page.until("document.querySelector('.thought').innerText.length > 500")
    assert text_of(page, ".thinking summary").strip().startswith("Thinking for")
    page.press("Escape")
    page.until("!document.querySelector('.thinking').open")
    assert text_of(page, ".thinking summary").strip().startswith("Thought for")


def test_markdown_is_the_same_however_the_stream_is_cut(page):
    script = f"""(() => {{
      const text = {json.dumps(MARKDOWN + HOSTILE)};
      const whole = document.createElement("div"), grown = document.createElement("div");
      showMarkdown(whole, text);
      for (let end = 0; end <= text.length; end += 1) showMarkdown(grown, text.slice(0, end));
      return whole.isEqualNode(grown);
    }})()"""
    assert page.run(script)


def test_a_tool_call_makes_a_card_and_its_result_goes_on(page, server):
    ask(page, "weather?")
    until_answered(page)
    assert text_of(page, ".call .asking code") == "get_weather"
    assert text_of(page, ".call .asking pre") == '{\n  "city": "Oslo"\n}'
    page.type(".call textarea", '{"celsius": 17}')
    page.click(".call .solid")
    until_answered(page, 2)
    assert text_of(page, ".assistant:last-child .prose") == "It is 17 degrees in Oslo."
    assert page.run("document.querySelector('.call form').hidden")
    assert json.loads(text_of(page, ".call .result pre")) == {"celsius": 17}
    user, assistant, tool = server.bodies[1]["messages"]
    assert user == {"role": "user", "content": "weather?"}
    assert assistant["reasoning_content"] == "I have to look up Oslo."
    function = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
    assert assistant["tool_calls"] == [{"id": "call_7", "type": "function", "function": function}]
    assert tool == {"role": "tool", "content": '{"celsius": 17}', "tool_call_id": "call_7"}


def test_two_calls_wait_for_both_results_and_keep_their_order(page, server):
    ask(page, "two calls")
    until_answered(page)
    page.type(".call:nth-child(2) textarea", "two")
    page.click(".call:nth-child(2) .solid")
    assert len(server.bodies) == 1
    page.reload()  # half of the work survives, too
    assert text_of(page, ".call:nth-child(2) .result pre") == "two"
    page.type(".call:nth-child(1) textarea", "one")
    page.click(".call:nth-child(1) .solid")
    until_answered(page, 2)
    results = server.bodies[1]["messages"][2:]
    assert [(result["tool_call_id"], result["content"]) for result in results] == [
        ("call_first", "one"),
        ("call_second", "two"),
    ]


def test_a_question_instead_of_a_result_says_that_there_is_none(page, server):
    ask(page, "weather?")
    until_answered(page)
    ask(page, "never mind")
    until_answered(page, 2)
    assert [message["role"] for message in server.bodies[1]["messages"]] == ["user", "assistant", "tool", "user"]
    assert text_of(page, ".call .result pre") == "(no result was given)"


def test_half_a_call_is_shown_but_not_sent_back(page, server):
    ask(page, "half a call")
    page.until("document.querySelector('.call pre')?.innerText.includes('city')")
    page.press("Escape")
    page.until("document.querySelector('.call header span').innerText.startsWith('incomplete')")
    ask(page, "again")
    until_answered(page, 2)
    assert server.bodies[1]["messages"] == [{"role": "user", "content": each} for each in ("half a call", "again")]


def test_stop_ends_the_request_and_keeps_what_arrived(page, server):
    for way in (lambda: page.press("Escape"), lambda: page.click("#send")):
        server.gone.clear()
        ask(page, "slow")
        page.until("document.querySelector('.assistant:last-of-type .prose').innerText.length > 50")
        way()
        page.until("document.querySelector('#thread').ariaBusy === 'false'")
        assert server.gone.wait(5)
        assert text_of(page, ".assistant:last-of-type .trouble").startswith("Stopped.")
        assert text_of(page, ".assistant:last-of-type .prose").startswith("word word")


def test_conversations_survive_a_reload_even_in_the_middle_of_an_answer(page):
    ask(page, "first")
    until_answered(page)
    page.click("#new")
    ask(page, "slow")
    page.until("document.querySelector('.prose').innerText.length > 50")
    page.type("#text", "half a thou")
    page.reload()
    assert page.run("document.querySelector('#text').value") == "half a thou"
    assert text_of(page, ".prose").startswith("word word")
    assert "page was closed" in text_of(page, ".trouble")
    assert page.run("[...document.querySelectorAll('#list .open')].map((each) => each.innerText)") == ["slow", "first"]
    page.click("#list li:nth-child(2) .open")
    assert text_of(page, ".prose") == "You said first."


def test_conversations_are_renamed_and_deleted_and_come_back(page):
    ask(page, "first")
    until_answered(page)
    page.click("#list .open", count=2)
    page.send("Input.insertText", text="Greetings")
    page.press("Enter")
    assert text_of(page, "#title") == "Greetings"
    page.click("#list .delete")
    assert count(page, ".user") == 0
    page.click("#notice button")
    assert text_of(page, "#title") == "Greetings"
    page.reload()
    assert text_of(page, "#list .open") == "Greetings"


def test_an_error_of_the_server_is_shown_with_a_retry(page, server):
    ask(page, "fail")
    until_answered(page)
    assert text_of(page, ".trouble").startswith("The queue is full. (429)")
    page.click(".trouble button")
    page.until("document.querySelector('.prose').innerText === 'You said fail.'")
    assert server.bodies[0] == server.bodies[1]


def test_the_last_question_is_edited_and_the_version_before_comes_back(page, server):
    ask(page, "one")
    until_answered(page)
    page.click(".user .tools button")
    page.type(".user textarea", " and two")
    page.press("Enter")
    page.until("document.querySelector('.prose')?.innerText === 'You said one and two.'")
    assert server.bodies[1]["messages"] == [{"role": "user", "content": "one and two"}]
    page.click("#thread > .tools button")
    assert text_of(page, ".prose") == "You said one."


def test_a_hostile_answer_creates_no_element(page):
    ask(page, "hostile")
    until_answered(page)
    assert count(page, ".prose p") == 2
    assert count(page, ".prose :is(img, script, iframe, svg, [onerror], [onload])") == 0
    assert "<img src=x onerror=" in text_of(page, ".prose")
    addresses = page.run("[...document.querySelectorAll('.prose a')].map((each) => each.href)")
    assert set(addresses) == {"https://evil.example/", "https://evil.example/a.png"}
    assert page.run("window.hacked") is None
    # Even a slip in the page's own code is refused: the policy turns text into markup nowhere.
    assert page.run("(() => { try { document.body.innerHTML = ''; } catch { return 'refused'; } })()") == "refused"
    assert page.complaints()  # that refusal, which is not the answer's
    page.events = [event for event in page.events if event.get("method") != "Log.entryAdded"]


def test_settings_are_sent_and_wrong_ones_are_explained(page, server):
    page.click("#settings-open")
    page.click("#thinking")
    page.type("#temperature", "0.6")
    page.type("#system", "Be brief.")
    page.type("#key", "secret")
    page.type("#tools", '[{"type": "function", "function": {}}]')
    assert text_of(page, "#tools-note") == 'Tool 1: "function" needs a "name"'
    page.press("Escape")
    ask(page, "hello")
    assert page.run("document.querySelector('#settings').open")
    assert not server.bodies
    assert page.run("document.querySelector('#text').value") == "hello"
    page.run("tools.value = '', tools.dispatchEvent(new Event('input', {bubbles: true})), 0")
    page.click("#example")
    page.press("Escape")
    page.run("document.querySelector('#text').focus()")
    page.press("Enter")
    until_answered(page)
    body = server.bodies[0]
    assert body["chat_template_kwargs"] == {"thinking": False}
    assert body["temperature"] == 0.6
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["tools"][0]["function"]["name"] == "get_weather"
    assert "secret" not in page.run("JSON.stringify(localStorage)")


def test_a_full_storage_is_told_and_the_conversation_goes_on(page):
    page.run("Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }")
    ask(page, "first")
    until_answered(page)
    page.until("!document.querySelector('#notice').hidden")
    assert "storage is full" in text_of(page, "#notice")
    assert text_of(page, ".prose") == "You said first."


def test_the_page_leaves_a_reader_where_they_read(page):
    ask(page, "slow")
    page.until("scroller.scrollHeight > scroller.clientHeight + 300")
    page.until("scroller.scrollTop + scroller.clientHeight > scroller.scrollHeight - 60")
    page.run("scroller.scrollTop = 0")
    page.until("!document.querySelector('#down').hidden")
    height = page.run("scroller.scrollHeight")
    page.until(f"scroller.scrollHeight > {height}")
    assert page.run("scroller.scrollTop") == 0
    page.click("#down")
    page.until("scroller.scrollTop + scroller.clientHeight > scroller.scrollHeight - 60")
    page.press("Escape")
    page.until("document.querySelector('#thread').ariaBusy === 'false'")


def test_dark_and_light_follow_the_system_until_the_reader_chooses(page):
    def brightness():
        colour = "getComputedStyle(document.body).backgroundColor"
        return page.run(f"{colour}.match(/\\d+/g).map(Number).reduce((a, b) => a + b)")

    assert brightness() > 600
    page.dress(1280, 800, "dark")
    assert brightness() < 150
    page.click("#theme")
    assert brightness() > 600
    page.reload()
    assert brightness() > 600


def test_a_narrow_window_has_no_sideways_scroll_and_a_drawer(page):
    page.dress(360, 740, "light")
    page.until("side.getBoundingClientRect().right <= 0")
    ask(page, "markdown")
    until_answered(page)
    ask(page, "weather, " + "in a city with a long name, " * 9)
    until_answered(page, 2)
    page.run("current.title = 'A title that is longer than the window is wide', render()")
    outside = "[...document.querySelectorAll('main :not(.fence *, .scroll *)')].filter(reaches).map((e) => e.outerHTML)"
    assert page.run(f"(reaches => {outside})((e) => e.getBoundingClientRect().right > 360)") == []
    assert not page.run("document.querySelector('#new').checkVisibility({visibilityProperty: true})")
    page.click("#menu")
    page.until("document.querySelector('#side').getBoundingClientRect().x === 0")
    page.click("#new")
    page.until("document.querySelector('#side').getBoundingClientRect().right <= 0")
    assert count(page, ".user") == 0
