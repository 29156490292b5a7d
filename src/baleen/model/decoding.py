"""Many decoding steps of a small network at once: `ops/loops_decode.py` over one cache."""

# B = sequences, S = steps, L = layers, R = rope dims, P = pages of a sequence, K = selected, E = experts of a token

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from baleen.model.cache import LatentCache
from baleen.model.compiled import CompiledNetwork
from baleen.ops.threads import in_threads

if TYPE_CHECKING:
    from baleen.model.network import Model


@dataclass(frozen=True)
class Decoded:
    """What `counts` [B] tokens of each sequence came to: tokens and logprobs [B, S]; and with records of what was
    forwarded, experts [B, S, MoE layers, E] and selected [B, S, L, K]."""

    counts: NDArray[np.int64]
    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    experts: NDArray[np.int64]
    selected: NDArray[np.int32]


class DecodingLoop:
    """Decodes with a model that `compiled.takes_loops` over a cache that its loops have filled."""

    def __init__(self, model: Model, cache: LatentCache) -> None:
        self.model, self.cache = model, cache
        self._network: CompiledNetwork | None = None

    def run(
        self,
        last: NDArray[np.int64],
        starts: NDArray[np.int64],
        tables: NDArray[np.int64],
        most: NDArray[np.int64],
        ends: NDArray[np.int64],
        temperature: NDArray[np.float32],
        uniform: NDArray[np.float64],
        *,
        records: bool,
    ) -> Decoded:
        """Decodes from the tokens `last` [B] at positions `starts` [B] with pages `tables` [B, P], until a sequence
        says one of its `ends` [B, .] or `most` [B] tokens; uniform [B, S] decides."""
        from baleen.ops.loops_decode import decode

        network, config = self._current(), self.model.config
        rows, steps = uniform.shape
        cos, sin = self.model.rotations(int((starts + most).max()))
        kept = (rows, steps) if records else (0, 0)
        made = Decoded(
            counts=np.zeros(rows, np.int64),
            tokens=np.zeros((rows, steps), np.int64),
            logprobs=np.zeros((rows, steps), np.float32),
            experts=np.zeros((*kept, len(config.moe_layers), config.num_experts_per_tok), np.int64),
            selected=np.zeros((*kept, config.num_hidden_layers, config.index_topk), np.int32),
        )

        def share(part: slice) -> None:
            mine = part if records else slice(0)
            decode(
                self._table, self._constants, network.embedding, network.norm, network.head, cos.numpy(), sin.numpy(),
                tables[part], self.cache.page_tokens, last[part], starts[part], most[part].copy(), ends[part],
                temperature[part], uniform[part], made.tokens[part], made.logprobs[part], made.counts[part],
                made.experts[mine], made.selected[mine],
            )  # fmt: skip

        in_threads(share, rows, rows * steps * (network.token_work + network.key_work * int(starts.max())))
        return made

    def _current(self) -> CompiledNetwork:
        """The model's arrays, and the table of where they and the cache lie now."""
        network = CompiledNetwork.of(self.model)
        if network is not self._network:
            self._network, self._constants = network, network.constants()
            self._table = np.stack([self._row(network, layer) for layer in range(len(network.layers))])
        return network

    def _row(self, network: CompiledNetwork, layer: int) -> NDArray[np.int64]:
        arrays = (*network.layers[layer].arrays(), *self.cache.in_loops(layer))
        return np.array([_entry(each) for each in arrays], dtype=np.int64)


def _entry(array: NDArray | None) -> tuple[int, ...]:
    """Address and three sizes."""
    if array is None:
        return 0, 1, 1, 1
    return array.ctypes.data, *(1,) * (3 - array.ndim), *array.shape
