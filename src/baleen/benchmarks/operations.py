"""Operations of a prefill, counted from the shapes: what has to be done, not what a form wastes.

The counts per weight and per query-key pair are those of `baleen plan` (`model/arithmetic.py`). The index scores every
pair of a query that sees more than `index_topk` keys; attention costs a query the cheaper of its selected pairs in the
absorbed form, which fetches rows, and all its pairs in the expanded form. `strict` counts selected pairs at the
expanded widths, which no form reaches: a floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from baleen.model.arithmetic import indexing_layers, pair_flops, weights
from baleen.model.config import ModelConfig


def prefill_operations(fields: Mapping[str, Any], length: int, *, sparse: bool, strict: bool = False) -> float:
    """Operations of reading `length` tokens up to the last one's logits."""
    config = ModelConfig(**fields)
    pair, layers, topk = pair_flops(config), config.num_hidden_layers, config.index_topk
    matrices = [weight for weight in weights(config) if weight.inputs > 1 and weight.part != "head"]
    used = sum(weight.active for weight in matrices if sparse or weight.part != "indexer")
    products = 2 * (length * used + config.hidden_size * config.vocab_size)
    contexts = range(1, length + 1)
    if not sparse:
        return float(products + layers * pair.mha * sum(contexts))
    scored = sum(context for context in contexts if context > topk)
    width = pair.mha if strict else pair.mqa
    attended = sum(min(width * min(context, topk), pair.mha * context) for context in contexts)
    return float(products + len(indexing_layers(config)) * pair.indexer * scored + layers * attended)
