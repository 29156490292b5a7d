"""Chat completions as OpenAI's own clients meet them."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from loopback import MODEL, WEATHER
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from scripted_service import always

from baleen.chat.markup import EOS, RESULTS_CLOSE
from baleen.server.responses import ChatAnswer

USER = {"role": "user", "content": "What is the weather in Paris?"}
CALL = (
    "I need the weather</think>Let me look.\n\n<｜DSML｜function_calls>\n"
    '<｜DSML｜invoke name="get_weather">\n'
    '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜function_calls>"
)


def looks_then_answers(prompt, params):
    """Calls the tool, and answers when its result is there."""
    return ("It is sunny</think>21 degrees." if prompt.endswith(f"{RESULTS_CLOSE}\n\n<think>") else CALL) + EOS


def collected(stream):
    """The turn that a stream brought, put together as a client would, and the last finish reason."""
    turn = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
    reason = None
    for chunk in stream:
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
            turn["content"] += choice.delta.content or ""
            turn["reasoning_content"] += getattr(choice.delta, "reasoning_content", None) or ""
            for call in choice.delta.tool_calls or ():
                if call.id:
                    assert call.index == len(turn["tool_calls"])
                    function = {"name": call.function.name, "arguments": ""}
                    turn["tool_calls"].append({"id": call.id, "type": "function", "function": function})
                turn["tool_calls"][call.index]["function"]["arguments"] += call.function.arguments or ""
    return turn, reason


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_the_usual_loop_thinks_calls_reads_the_result_and_answers(serving, streamed):
    server = serving(answers=looks_then_answers)
    client = server.openai()
    messages = [USER]
    reasons = []
    for _ in range(2):
        answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], stream=streamed)
        if streamed:
            turn, reason = collected(answer)
        else:
            turn, reason = answer.choices[0].message.model_dump(exclude_none=True), answer.choices[0].finish_reason
        reasons.append(reason)
        messages.append(turn)
        for call in turn.get("tool_calls") or ():
            assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": "sunny, 21"})
    assert reasons == ["tool_calls", "stop"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["reasoning_content"] == "I need the weather"
    assert (messages[3]["reasoning_content"], messages[3]["content"]) == ("It is sunny", "21 degrees.")
    second = server.service.tokenizer.decode(server.service.streams[1].prompt)
    assert "I need the weather</think>Let me look." in second, "the reasoning was sent back and stands in the prompt"


def test_the_prompt_of_the_second_turn_extends_the_tokens_of_the_first(serving):
    server = serving(answers=looks_then_answers)
    client = server.openai()
    first = client.chat.completions.create(model=MODEL, messages=[USER], tools=[WEATHER]).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "sunny"}
    client.chat.completions.create(model=MODEL, messages=[USER, first.model_dump(), result], tools=[WEATHER])
    one, two = server.service.streams
    assert two.prompt[: len(one.prompt) + len(one.tokens)] == one.prompt + one.tokens


def test_the_async_client_gets_the_same(serving):
    server = serving()

    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            whole, stream = await asyncio.gather(
                client.chat.completions.create(model=MODEL, messages=[USER]),
                client.chat.completions.create(model=MODEL, messages=[USER], stream=True),
            )
            return whole.choices[0].message.content, [chunk async for chunk in stream]

    content, chunks = asyncio.run(ask())
    assert content == "Hello, world" == collected(chunks)[0]["content"]


def test_answers_fit_openais_types_to_the_letter_and_our_own_description(serving):
    client = serving(answers=looks_then_answers).http()
    body = {
        "messages": [USER],
        "tools": [WEATHER],
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "return_token_ids": True,
    }
    answer = client.post("/v1/chat/completions", json=body).content
    assert len(ChatCompletion.model_validate_json(answer, strict=True).choices) == 2
    assert len(ChatAnswer.model_validate_json(answer, strict=True).choices) == 2


def test_chunks_fit_openais_types_to_the_letter(serving):
    client = serving(answers=looks_then_answers).http()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    body = {"messages": [USER], "tools": [WEATHER], "n": 2, "logprobs": True, "top_logprobs": 2, **options}
    lines = client.post("/v1/chat/completions", json=body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [ChatCompletionChunk.model_validate_json(line.removeprefix("data: "), strict=True) for line in lines[:-2]]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", "assistant"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])
    whole = client.post("/v1/chat/completions", json=body | {"stream": False}).json()
    for index in range(2):
        streamed = [entry for chunk in chunks for choice in chunk.choices if choice.index == index and choice.logprobs
                    for entry in choice.logprobs.content]  # fmt: skip
        assert [entry.model_dump() for entry in streamed] == whole["choices"][index]["logprobs"]["content"]


def test_log_probabilities_name_every_token_and_join_to_the_text(serving):
    server = serving(answers=always("好</think>你好，世界"))
    answer = server.openai().chat.completions.create(
        model=MODEL, messages=[USER], logprobs=True, top_logprobs=3, extra_body={"return_token_ids": True}
    )
    entries = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == f"好</think>你好，世界{EOS}"
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    named = server.openai().chat.completions.create(
        model=MODEL, messages=[USER], logprobs=True, extra_body={"return_tokens_as_token_ids": True}
    )
    ids = answer.choices[0].token_ids
    assert [entry.token for entry in named.choices[0].logprobs.content] == [f"token_id:{number}" for number in ids]


def test_usage_counts_a_prompt_once_and_tells_what_was_cached_and_what_was_reasoning(serving):
    server = serving(answers=always("Fine</think>Hello"))
    usage = server.openai().chat.completions.create(model=MODEL, messages=[USER], n=3).usage
    stream = server.service.streams[0]
    reasoning = stream.tokens.index(server.service.tokenizer.think_end_id) + 1
    assert usage.prompt_tokens == len(stream.prompt)
    assert usage.completion_tokens == 3 * len(stream.tokens)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == len(stream.prompt) // 2
    assert usage.completion_tokens_details.reasoning_tokens == 3 * reasoning


@pytest.mark.parametrize(
    ("switch", "thinks"),
    [
        ({}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"chat_template_kwargs": {"thinking": False}}, False),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, False),
        ({"reasoning_effort": "high"}, True),
        ({"chat_template_kwargs": {"thinking": True}, "reasoning_effort": "none"}, True),
    ],
)
def test_every_way_to_switch_thinking_is_understood(serving, switch, thinks):
    server = serving(answers=lambda prompt, params: ("why</think>" if prompt.endswith("<think>") else "") + "so" + EOS)
    message = server.http().post("/v1/chat/completions", json={"messages": [USER], **switch}).json()["choices"][0]
    assert message["message"]["reasoning_content"] == message["message"]["reasoning"] == ("why" if thinks else None)
    assert message["message"]["content"] == "so"


def test_reasoning_is_accepted_back_under_either_name(serving):
    server = serving(answers=looks_then_answers)
    turn = server.openai().chat.completions.create(model=MODEL, messages=[USER], tools=[WEATHER]).choices[0].message
    result = {"role": "tool", "tool_call_id": turn.tool_calls[0].id, "content": "sunny"}
    for name in ("reasoning_content", "reasoning"):
        sent = {"role": "assistant", "content": turn.content, name: turn.reasoning_content}
        sent["tool_calls"] = [call.model_dump() for call in turn.tool_calls]
        server.openai().chat.completions.create(model=MODEL, messages=[USER, sent, result], tools=[WEATHER])
    one, two = server.service.streams[1:]
    assert one.prompt == two.prompt


def test_the_length_ends_a_choice_with_its_faults(serving):
    answer = (
        serving(answers=always("a long way to go"))
        .openai()
        .chat.completions.create(model=MODEL, messages=[USER], max_completion_tokens=3, max_tokens=9)
    )
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].faults == ["missing_think_end", "missing_end_of_sentence"]


def test_a_stop_string_ends_the_text_before_it(serving):
    server = serving(answers=always("</think>one two three four"))
    for streamed in (False, True):
        answer = server.openai().chat.completions.create(model=MODEL, messages=[USER], stop=["three"], stream=streamed)
        turn = collected(answer)[0]["content"] if streamed else answer.choices[0].message.content
        assert turn == "one two "
        if not streamed:
            assert answer.choices[0].faults == [], "what the client asked for is no fault of the model"
        stream = server.service.streams[-1]
        assert stream.given < len(stream.tokens)


def test_the_choices_of_a_request_have_seeds_that_follow_each_other(serving):
    server = serving()
    server.openai().chat.completions.create(model=MODEL, messages=[USER], n=3, seed=-7)
    seeds = [stream.params.seed for stream in server.service.streams]
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]
    server.openai().chat.completions.create(model=MODEL, messages=[USER], seed=-7)
    assert server.service.streams[-1].params.seed == seeds[0]
    for _ in range(2):
        server.openai().chat.completions.create(model=MODEL, messages=[USER])
    assert server.service.streams[-1].params.seed != server.service.streams[-2].params.seed


def test_every_sampling_field_reaches_the_engine(serving):
    server = serving()
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "presence_penalty": 0.25, "min_tokens": 2,
              "frequency_penalty": -0.5, "repetition_penalty": 1.5, "max_tokens": 33, "seed": 5}  # fmt: skip
    more = {"logit_bias": {"17": -3}, "stop_token_ids": [9], "stop": "end", "ignore_eos": True}
    answer = server.http().post(
        "/v1/chat/completions", json={"messages": [USER], **fields, **more, "unknown": {"a": 1}}
    )
    assert answer.status_code == 200
    params = server.service.streams[0].params
    assert {name: getattr(params, name) for name in fields} == fields
    assert (params.logit_bias, params.stop_ids, params.stop, params.ignore_end) == (((17, -3.0),), (9,), ("end",), True)


def test_without_a_limit_the_answer_may_fill_the_context(serving):
    server = serving()
    server.openai().chat.completions.create(model=MODEL, messages=[USER])
    stream = server.service.streams[0]
    assert stream.params.max_tokens == server.service.info.max_tokens - len(stream.prompt)


def test_tool_choice_none_keeps_the_tools_in_the_prompt_and_bans_calls(serving):
    server = serving()
    server.openai().chat.completions.create(model=MODEL, messages=[USER], tools=[WEATHER], tool_choice="none")
    server.openai().chat.completions.create(model=MODEL, messages=[USER], tools=[WEATHER])
    without, free = server.service.streams
    assert without.prompt == free.prompt
    banned = {token for token, bias in without.params.logit_bias if bias == -100}
    assert set(server.service.tokenizer.encode(CALL)) & banned
    assert not free.params.logit_bias


@pytest.mark.parametrize(
    ("fields", "bound"),
    [
        ({"tools": [WEATHER]}, False),
        ({"tools": [WEATHER], "tool_choice": "auto"}, False),
        ({"tools": [WEATHER], "tool_choice": "required"}, True),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}, True),
        ({"tools": [WEATHER], "parallel_tool_calls": False}, True),
        ({"tools": [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]}, True),
        ({"response_format": {"type": "text"}}, False),
        ({"response_format": {"type": "json_object"}}, True),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            True,
        ),
    ],
)
def test_a_grammar_binds_the_answer_exactly_where_the_request_asks_for_it(serving, fields, bound):
    server = serving(answers=looks_then_answers)
    server.http().post("/v1/chat/completions", json={"messages": [USER], **fields}).raise_for_status()
    assert (server.service.streams[0].params.grammar is not None) == bound


def test_a_response_format_stands_in_the_prompt_below_the_system_message(serving):
    server = serving()
    schema = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    for opening in ([], [{"role": "system", "content": "Be brief."}]):
        server.openai().chat.completions.create(model=MODEL, messages=[*opening, USER], response_format=form)
        prompt = server.service.tokenizer.decode(server.service.streams[-1].prompt)
        assert f"adhere to the following schema to reply:\n{json.dumps(schema)}" in prompt
        assert prompt.index("Response Format") < prompt.index("What is the weather")


def test_tokens_sent_as_the_prompt_are_the_prompt(serving):
    server = serving()
    answer = server.openai().chat.completions.create(
        model=MODEL, messages=[USER], extra_body={"prompt_token_ids": [0, 300, 301], "return_token_ids": True}
    )
    assert server.service.streams[0].prompt == (0, 300, 301)
    assert answer.prompt_token_ids == [0, 300, 301]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "oracle", "content": "x"}]}, "messages"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "hello " * 20_000}]}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 17}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": ["a", ""]}, "stop"),
        ({"logit_bias": {"many": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"prompt_token_ids": [999_999]}, "prompt_token_ids"),
        ({"stop_token_ids": [999_999]}, "stop_token_ids"),
    ],
)
def test_what_is_wrong_is_400_and_names_the_field(serving, fields, param):
    server = serving()
    answer = server.http().post("/v1/chat/completions", json={"messages": [USER], **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert set(error) == {"message", "type", "param", "code"}
    assert not server.service.streams


def test_openais_client_raises_its_own_errors(serving):
    client = serving().openai()
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="another", messages=[USER])
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=[USER], temperature=-1)


def test_null_fields_and_whitespace_content_beside_calls_change_nothing(serving):
    server = serving(answers=looks_then_answers)
    turn = server.openai().chat.completions.create(model=MODEL, messages=[USER], tools=[WEATHER]).choices[0].message
    sent = {
        "role": "assistant",
        "reasoning_content": "r",
        "tool_calls": [call.model_dump() for call in turn.tool_calls],
    }
    result = {"role": "tool", "name": "get_weather", "tool_call_id": turn.tool_calls[0].id, "content": "sunny", "x": 1}
    for content in (None, "", "\n"):
        body = {"messages": [USER, {**sent, "content": content, "refusal": None}, result], "tools": [WEATHER]}
        nulls = dict.fromkeys(("stop", "seed", "n", "top_p", "response_format", "tool_choice", "logit_bias", "stream"))
        server.http().post("/v1/chat/completions", json=body | nulls).raise_for_status()
    assert len({stream.prompt for stream in server.service.streams[1:]}) == 1
