"""A checkpoint that was trained in the test run: a tiny network that learned a few conversations by heart.

What a trained model does on the wire (thinks, decides to call, reads the result, answers, ends) needs weights that mean
something. Learning some hundred tokens by heart takes a few seconds, and no other test has to have trained anything.
"""

from __future__ import annotations

from pathlib import Path

import torch
from loopback import WEATHER
from torch.nn import functional

from baleen.chat import Tokenizer, segments
from baleen.model.checkpoint import save_model
from tiny import tiny_model

CONTEXT = 4096
NAME = "whale-taught"
QUESTION = {"role": "user", "content": "What is the weather in Paris?"}
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
FIRST = {"role": "assistant", "reasoning_content": "I need the weather of the city.", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "sunny"}
SECOND = {"role": "assistant", "reasoning_content": "It is sunny.", "content": "It is sunny in Paris, 21 degrees."}
GREETING = {"role": "user", "content": "Hello, world."}
GREETED = {"role": "assistant", "reasoning_content": "I need to be sunny.", "content": "Hello! It is 21 degrees."}
ENDLESS = {"role": "user", "content": "the weather, the weather"}
"""A question whose answer never ends: the network goes on saying the same word."""

FOREVER = {"role": "assistant", "reasoning_content": "I need", "content": "weather" * 60}
LESSONS = [([QUESTION, FIRST, RESULT, SECOND], [WEATHER]), ([GREETING, GREETED], None), ([ENDLESS, FOREVER], None)]
MOST_STEPS = 600
GOOD_LOSS = 0.02
"""Of every token, in nats: what is taught is then said even at temperature 1, but for one token in fifty."""


def taught_model(tokenizer: Tokenizer, folder: Path) -> Path:
    """Teaches a network the lessons and saves it in `folder`."""
    torch.manual_seed(0)
    # Every position is looked at: an indexer that was never trained would choose at random.
    model = tiny_model(
        0, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, index_topk=512, num_hidden_layers=2
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    samples = [sample(tokenizer, messages, tools) for messages, tools in LESSONS]
    for _ in range(MOST_STEPS):
        worst = 0.0
        for ids, sampled in samples:
            logits = model(ids[None]).logits[0, :-1].float()
            losses = functional.cross_entropy(logits, ids[1:], reduction="none")[sampled[1:]]
            optimizer.zero_grad()
            losses.mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            worst = max(worst, float(losses.detach().max()))
        if worst < GOOD_LOSS:
            tokenizer.save(folder / "tokenizer")
            save_model(model, folder / NAME, tokenizer=folder / "tokenizer")
            return folder / NAME
    raise AssertionError(f"after {MOST_STEPS} steps the network still doubts: {worst:.3f} nats at one token")


def sample(tokenizer, messages, tools):
    """Ids, and which of them the model says. An answer that never ends has no end of sentence to learn."""
    pieces = list(segments(messages, tools))
    ids, sampled = tokenizer.encode_segments(pieces)
    if messages[-1] is FOREVER:
        ids, sampled = ids[:-1], sampled[:-1]
    return torch.tensor(ids), torch.tensor(sampled, dtype=torch.bool)
