"""Text completions and the tokenizer's endpoints: token ids go in and come out as they are."""

from __future__ import annotations

import pytest
from loopback import MODEL, WEATHER
from openai.types import Completion
from scripted_service import always

from baleen.chat import encode
from baleen.chat.markup import BOS, EOS
from baleen.server.responses import TextAnswer

IDS = [0, 300, 301, 302]


def test_a_completion_goes_on_where_the_prompt_ends(serving):
    server = serving(answers=always(" and so on"))
    answer = server.openai().completions.create(model=MODEL, prompt="Once", max_tokens=50)
    assert answer.choices[0].text == " and so on", "the end token is no text"
    assert answer.choices[0].finish_reason == "stop"
    assert server.service.tokenizer.decode(server.service.streams[0].prompt) == f"{BOS}Once"


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", 1), (["a", "b"], 2), (IDS, 1), ([IDS, [5]], 2)],
    ids=["text", "texts", "ids", "lists of ids"],
)
def test_every_form_of_prompt_has_n_choices_in_order(serving, prompt, prompts):
    server = serving(answers=lambda text, params: f"{text.removeprefix(BOS)}!{EOS}")
    answer = server.openai().completions.create(model=MODEL, prompt=prompt, n=2, max_tokens=50)
    assert [choice.index for choice in answer.choices] == list(range(2 * prompts))
    texts = [choice.text for choice in answer.choices]
    assert texts[::2] == texts[1::2]
    assert answer.usage.prompt_tokens == sum(len(stream.prompt) for stream in server.service.streams[::2])


def test_ids_are_the_prompt_to_the_last_one(serving):
    server = serving()
    answer = server.openai().completions.create(model=MODEL, prompt=IDS, extra_body={"return_token_ids": True})
    assert server.service.streams[0].prompt == tuple(IDS)
    assert answer.choices[0].prompt_token_ids == IDS
    assert answer.choices[0].token_ids == list(server.service.streams[0].tokens)


def test_begin_of_sentence_is_written_once_or_not_at_all_when_told_so(serving):
    server = serving()
    for prompt, more in [("x", {}), (f"{BOS}x", {}), ("x", {"add_special_tokens": False})]:
        server.openai().completions.create(model=MODEL, prompt=prompt, extra_body=more)
    first, second, bare = (stream.prompt for stream in server.service.streams)
    assert first == second == (server.service.tokenizer.bos_id, *bare)


def test_echo_puts_the_prompt_before_the_text_streamed_or_not(serving):
    client = serving(answers=always("b")).openai()
    assert client.completions.create(model=MODEL, prompt="a", echo=True).choices[0].text == "ab"
    chunks = client.completions.create(model=MODEL, prompt="a", echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "ab"


def test_answers_and_chunks_fit_openais_types_to_the_letter(serving):
    client = serving().http()
    body = {"prompt": ["a", IDS and "b"], "n": 2, "logprobs": 2, "return_token_ids": True}
    answer = client.post("/v1/completions", json=body).content
    Completion.model_validate_json(answer, strict=True)
    TextAnswer.model_validate_json(answer, strict=True)
    lines = client.post("/v1/completions", json={"prompt": "a", "stream": True, "logprobs": 0}).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    for line in lines[:-2]:
        # OpenAI's type of a chunk is that of an answer, where the reason is not null; its client reads both.
        text = line.removeprefix("data: ").replace('"finish_reason":null', '"finish_reason":"stop"')
        Completion.model_validate_json(text, strict=True)


def test_logprobs_have_one_entry_per_token_with_where_its_text_begins(serving):
    server = serving(answers=always("Hello, world"))
    logprobs = server.openai().completions.create(model=MODEL, prompt="a", logprobs=2).choices[0].logprobs
    count = len(server.service.streams[0].tokens)
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == count
    text = "".join(logprobs.tokens)
    assert text == f"Hello, world{EOS}"
    assert [text[at:].startswith(token) for at, token in zip(logprobs.text_offset, logprobs.tokens, strict=True)]
    assert all(token in top for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True))


def test_a_stop_token_is_not_part_of_the_text(serving):
    server = serving(answers=always("one"))
    stop = server.service.tokenizer.encode("two")[-1]
    server.service.answers = lambda prompt, params: "one " + server.service.tokenizer.decode([stop])
    choice = (
        server.openai()
        .completions.create(model=MODEL, prompt="a", extra_body={"stop_token_ids": [stop], "return_token_ids": True})
        .choices[0]
    )
    assert (choice.text, choice.finish_reason, choice.token_ids[-1]) == ("one ", "stop", stop)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": []},
        {"prompt": [[]]},
        {"prompt": [1, "a"]},
        {"prompt": [-1]},
        {"prompt": [999_999]},
        {"prompt": None},
        {"prompt": "a", "n": 17},
        {"prompt": ["a"] * 300},
        {"prompt": "a", "echo": True, "logprobs": 1},
        {"prompt": [7] * 5000},
        {"prompt": "a", "logit_bias": {"-1": 2}},
    ],
)
def test_what_is_wrong_is_400(serving, fields):
    server = serving()
    answer = server.http().post("/v1/completions", json=fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert not server.service.streams


def test_tokenize_gives_the_prompts_ids_and_detokenize_their_text(serving):
    server = serving()
    client = server.http()
    for more in ({}, {"thinking": {"type": "disabled"}}):
        body = {"messages": [{"role": "user", "content": "hi"}], "tools": [WEATHER], **more}
        ids = client.post("/tokenize", json=body).json()["tokens"]
        client.post("/v1/chat/completions", json=body)
        assert tuple(ids) == server.service.streams[-1].prompt
        text = client.post("/detokenize", json={"tokens": ids}).json()["prompt"]
        assert text == encode(body["messages"], body["tools"], thinking=not more)
    answer = client.post("/tokenize", json={"prompt": "hi there", "return_token_strs": True}).json()
    assert "".join(answer["token_strs"]) == f"{BOS}hi there"
    assert (answer["count"], answer["max_model_len"]) == (len(answer["tokens"]), server.service.info.max_tokens)


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": [{"role": "user"}]}, {"messages": []}])
def test_tokenize_wants_one_of_the_two(serving, body):
    assert serving().http().post("/tokenize", json=body).status_code == 400
