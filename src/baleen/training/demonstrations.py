"""Demonstrations as training samples: exactly the tokens that serving would see, learning on what the model says.

A conversation is cut where the thinking rule rewrites the context, so that what is trained is what is served.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from baleen.chat.encoding import segments
from baleen.chat.messages import Message, ToolSpec
from baleen.chat.retention import training_views
from baleen.chat.tokenizer import Tokenizer
from baleen.training.batch import Batch, tree_batch
from baleen.training.packing import pack_tree
from baleen.training.sample import Sample, plain_sample

FORWARD_TOKENS = 4096
"""Tokens of one forward; bounds its memory."""


def demonstration_samples(
    messages: Sequence[Message], tools: Sequence[ToolSpec], thinking: bool, tokenizer: Tokenizer
) -> list[Sample]:
    """The samples of one conversation; a turn that was sampled under a shorter context is masked in later views."""
    samples = []
    for view in training_views(messages, thinking):
        ids, sampled = tokenizer.encode_segments(segments(view, tools, thinking))
        samples.append(plain_sample(ids, sampled))
    return samples


def demonstration_batches(
    samples: Sequence[Sample], *, row_tokens: int, tokens: int, seed: int, prompt_weight: float = 0.0
) -> list[Batch]:
    """A random draw of samples, by seed, as tree rows of up to `row_tokens` that hold about `tokens` distinct
    tokens."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(samples))
    chosen: list[Sample] = []
    rows = max(1, tokens // row_tokens)
    size = 0
    # Shared prefixes are not known before packing, so the draw is cut by rows: a little more is drawn than fits.
    for index in order:
        sample = samples[index]
        if len(sample.tokens) > row_tokens:
            continue
        chosen.append(sample)
        size += int(sample.sampled.sum()) * 2
        if size >= rows * row_tokens * 1.5:
            break
    packed = pack_tree(chosen, row_tokens)
    # Rows stand in the order of their tokens: the first ones would be the same environments at every step.
    kept = np.sort(random.permutation(len(packed))[:rows])
    packed = [packed[index] for index in kept]
    together = max(1, FORWARD_TOKENS // row_tokens)
    groups = [packed[start : start + together] for start in range(0, len(packed), together)]
    return [tree_batch(group, chosen, prompt_weight=prompt_weight) for group in groups]
