"""An OpenAI-compatible endpoint on loopback that says what a script says: after k assistant messages comes the
script's message k, in pieces when the client streams. Standard library alone, so that any interpreter can run it."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def scripted_endpoint(scripts):
    """Yields (base URL, list of request bodies so far). `scripts`: the last user message to the assistant messages, in
    OpenAI's shape, that answer it."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(body)
            asked = [message["content"] for message in body["messages"] if message["role"] == "user"]
            message = scripts[asked[-1]][sum(message["role"] == "assistant" for message in body["messages"])]
            if body.get("stream"):
                self._send("text/event-stream", _stream(message))
            else:
                self._send("application/json", json.dumps(_completion(message)).encode())

        def _send(self, kind, data):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


USAGE = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}


def _completion(message):
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": _reason(message)}
    return {**_head("chat.completion"), "choices": [choice], "usage": USAGE}


def _stream(message):
    deltas = [{"role": "assistant"}]
    deltas += [{key: message[key]} for key in ("reasoning_content", "content") if message.get(key)]
    deltas += [{"tool_calls": [{"index": i, **call}]} for i, call in enumerate(message.get("tool_calls", []))]
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": _reason(message)})
    chunks = [{**_head("chat.completion.chunk"), "choices": [choice]} for choice in choices]
    chunks.append({**_head("chat.completion.chunk"), "choices": [], "usage": USAGE})
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"


def _head(kind):
    return {"id": "scripted", "object": kind, "created": 0, "model": "scripted"}


def _reason(message):
    return "tool_calls" if message.get("tool_calls") else "stop"
