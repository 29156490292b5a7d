"""Tokens in, tokens out: continuous batching over a cache of latents, with shared prefixes computed once.

Requests wait until a slot is free; `step` admits what it can, prefills it and samples one token for every running
sequence. A new prompt takes over the longest prefix that any slot holds (its own earlier turn, the same tools block in
another episode, its group's common prompt), copied, never recomputed. New weights empty the cache.
"""

# B = running slots, T = new tokens

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np
import torch

from baleen.engine.sampler import SamplingParams, draw
from baleen.engine.sequence import Generation, Sequence, SlotRecord, trace_of
from baleen.model.cache import CacheView, LatentCache
from baleen.model.network import Model, Output

PREFILL_TOKENS = 4096
"""New tokens of one prefill forward, padding included; bounds its memory."""

WORTH_WAITING = 16
"""A prompt waits for another one's prefill when it then shares at least this many tokens more."""


class EngineError(ValueError):
    """A request that can never run, and why."""


class Engine:
    """Generates with `model`. `slots` sequences run at once, of up to `max_tokens` tokens each.

    While others run, requests are admitted every `admit_every` steps: 1 answers soonest; many episodes, whose turns end
    one by one, get through faster when their prompts are prefilled a few together.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: object,
        *,
        slots: int = 64,
        max_tokens: int | None = None,
        admit_every: int = 1,
    ) -> None:
        self.model, self.tokenizer, self.admit_every = model, tokenizer, admit_every
        self.steps = 0
        self.max_tokens = max_tokens or min(model.config.max_position_embeddings, 2048)
        self.cache = LatentCache(model.config, slots, self.max_tokens, model.compute_dtype)
        self.version = 0
        config = model.config
        moe, layers = len(config.moe_layers), config.num_hidden_layers
        self.records = [
            SlotRecord(
                np.zeros(self.max_tokens, np.int32),
                np.zeros((self.max_tokens, moe, config.num_experts_per_tok), np.int16),
                np.full((self.max_tokens, layers, config.index_topk), -1, np.int16),
            )
            for _ in range(slots)
        ]
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.computed_tokens = 0

    def generate(self, prompts: Many[Many[int]], params: SamplingParams | Many[SamplingParams]) -> list[Generation]:
        """Completes every prompt; one `params` for all (each gets its own seed from it) or one each."""
        if isinstance(params, SamplingParams):
            params = [replace(params, seed=params.seed + index) for index in range(len(prompts))]
        sequences = [self.submit(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
        while self.busy:
            self.step()
        return [sequence.generation for sequence in sequences if sequence.generation is not None]

    def submit(self, prompt: Many[int], params: SamplingParams) -> Sequence:
        """Queues a request. Raises `EngineError` when it cannot fit."""
        if not len(prompt):
            raise EngineError("the prompt is empty: give at least one token")
        if len(prompt) >= self.max_tokens:
            raise EngineError(f"a prompt of {len(prompt)} tokens does not fit {self.max_tokens}: raise max_tokens")
        sequence = Sequence(np.asarray(prompt, dtype=np.int32), params)
        self.waiting.append(sequence)
        return sequence

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.waiting or self.running)

    def weights_changed(self) -> None:
        """Forgets all cached prefixes; the next tokens carry a new version."""
        if self.busy:
            raise EngineError("weights changed while sequences run: finish them first")
        self.version += 1
        for record in self.records:
            record.length = 0

    @torch.no_grad()
    def step(self, on_token: Callable[[Sequence, int], None] | None = None) -> list[Sequence]:
        """Admits and prefills what fits, samples one token for every running sequence; returns those that ended."""
        fresh: list[Sequence] = []
        # Counted from the last time that nothing ran, so that a run which is taken up again does the same.
        self.steps = self.steps + 1 if self.running else 0
        admits = self.steps % self.admit_every == 0
        while self.waiting and admits:
            wave = self._admit()
            if not wave:
                break
            logits = self._prefill(wave)
            self._sample(wave, logits, on_token)
            fresh += wave
        new = {id(sequence) for sequence in fresh}
        old = [sequence for sequence in self.running if sequence.finish_reason is None and id(sequence) not in new]
        old.sort(key=lambda sequence: sequence.slot)
        if old:
            self._sample(old, self._decode(old), on_token)
        ended = [sequence for sequence in self.running if sequence.finish_reason is not None]
        for sequence in ended:
            self._finish(sequence)
        self.running = [sequence for sequence in self.running if sequence.finish_reason is None]
        return ended

    def _admit(self) -> list[Sequence]:
        """Takes waiting requests that need not wait for one another's prefill, and copies their cached prefixes."""
        wave: list[Sequence] = []
        later: list[Sequence] = []
        free = {slot for slot, record in enumerate(self.records) if not record.busy}
        for index, sequence in enumerate(self.waiting):
            if not free:
                later += self.waiting[index:]
                break
            reach = [record.common_prefix(sequence.prompt) for record in self.records]
            best = max(range(len(reach)), key=lambda slot: (reach[slot], not self.records[slot].busy, -slot))
            siblings = (_common(sequence.prompt, other.prompt) for other in wave)
            if max(siblings, default=0) >= reach[best] + WORTH_WAITING:
                later.append(sequence)
                continue
            # The free slot that holds the least is given up, unless the best prefix lies in a free slot already.
            slot = best if best in free and reach[best] > 0 else min(free, key=lambda s: (self.records[s].length, s))
            if slot != best:
                self.cache.copy_prefix(best, slot, reach[best])
            self.records[slot].copy_prefix(self.records[best], reach[best])
            self.records[slot].busy = True
            free.remove(slot)
            sequence.slot, sequence.reused = slot, reach[best]
            wave.append(sequence)
        self.waiting = later
        self.running += wave
        return wave

    def _prefill(self, wave: list[Sequence]) -> torch.Tensor:
        """Runs the uncached part of each prompt; logits [len(wave), V] of the last tokens."""
        order = sorted(range(len(wave)), key=lambda i: len(wave[i].prompt) - wave[i].reused)
        logits = torch.empty(len(wave), self.model.config.vocab_size)
        while order:
            group: list[int] = []
            while order and (not group or (len(group) + 1) * _missing(wave[order[0]]) <= PREFILL_TOKENS):
                group.append(order.pop(0))
            sequences = [wave[i] for i in group]
            new = [sequence.prompt[sequence.reused :] for sequence in sequences]
            starts = [sequence.reused for sequence in sequences]
            out = self._forward([sequence.slot for sequence in sequences], starts, new)
            last = torch.tensor([len(part) - 1 for part in new])
            hidden = out.hidden[torch.arange(len(group)), last]
            logits[group] = self.model.lm_head(hidden).float()
            for row, sequence in enumerate(sequences):
                self._record(out, row, sequence.slot, new[row], starts[row], traced=sequence.params.trace)
        return logits

    def _decode(self, sequences: list[Sequence]) -> torch.Tensor:
        slots = [sequence.slot for sequence in sequences]
        starts = [self.records[slot].length for slot in slots]
        new = [np.asarray([sequence.tokens[-1]], dtype=np.int32) for sequence in sequences]
        out = self._forward(slots, starts, new)
        for row, sequence in enumerate(sequences):
            self.records[sequence.slot].tokens[starts[row]] = sequence.tokens[-1]
            self.records[sequence.slot].length = starts[row] + 1
        traced = [row for row, sequence in enumerate(sequences) if sequence.params.trace]
        if traced:
            self._record_step(out, traced, sequences, starts)
        return self.model.lm_head(out.hidden[:, 0]).float()

    def _forward(self, slots: list[int], starts: list[int], new: list[np.ndarray]) -> Output:
        """Forwards new[b] for slots[b] from starts[b] on; rows are padded at the right to the longest."""
        width = max(len(part) for part in new)
        tokens = np.zeros((len(new), width), dtype=np.int64)
        for row, part in enumerate(new):
            tokens[row, : len(part)] = part
        positions = torch.tensor(starts).unsqueeze(1) + torch.arange(width)
        # Padding may point behind the slot's end; it is kept inside, where nothing reads it before it is overwritten.
        positions = positions.clamp(max=self.max_tokens - 1)
        view = CacheView(self.cache, torch.tensor(slots), positions, int(positions.max()) + 1)
        self.computed_tokens += sum(len(part) for part in new)
        return self.model(torch.from_numpy(tokens), cache=view, logits=False)

    def _record(self, out: Output, row: int, slot: int, new: np.ndarray, start: int, *, traced: bool) -> None:
        record, count = self.records[slot], len(new)
        span = slice(start, start + count)
        record.tokens[span] = new
        record.length = start + count
        if not traced:
            return
        for layer, experts in enumerate(out.experts):
            record.experts[span, layer] = experts[row, :count].numpy()
        for layer, selected in enumerate(out.selected):
            if selected is None:
                record.selected[span, layer] = _everything(np.arange(start, start + count), record.selected.shape[-1])
            else:
                record.selected[span, layer, : selected.shape[-1]] = selected[row, :count].numpy()

    def _record_step(self, out: Output, rows: list[int], sequences: list[Sequence], starts: list[int]) -> None:
        experts = torch.stack(out.experts, dim=2)[:, 0].numpy() if out.experts else None
        selected = [None if layer is None else layer[:, 0].numpy() for layer in out.selected]
        for row in rows:
            record, position = self.records[sequences[row].slot], starts[row]
            if experts is not None:
                record.experts[position] = experts[row]
            for layer, chosen in enumerate(selected):
                width = record.selected.shape[-1]
                record.selected[position, layer] = (
                    _everything(np.asarray([position]), width)[0] if chosen is None else chosen[row]
                )

    def _sample(
        self, sequences: list[Sequence], logits: torch.Tensor, on_token: Callable[[Sequence, int], None] | None
    ) -> None:
        drawn = draw(logits, [s.params for s in sequences], [s.next_uniform for s in sequences])
        ends = self.model.config.stop_token_ids
        for row, sequence in enumerate(sequences):
            token = drawn.tokens[row]
            sequence.tokens.append(token)
            sequence.logprobs.append(drawn.logprobs[row])
            sequence.kept.append(drawn.kept[row])
            if on_token is not None:
                on_token(sequence, token)
            if token in ends or token in sequence.params.stop_ids:
                sequence.finish_reason = "stop"
            elif len(sequence.tokens) >= sequence.params.max_tokens or sequence.length >= self.max_tokens:
                sequence.finish_reason = "length"

    def _finish(self, sequence: Sequence) -> None:
        record = self.records[sequence.slot]
        record.busy = False
        sequence.generation = Generation(
            prompt=tuple(sequence.prompt.tolist()),
            tokens=tuple(sequence.tokens),
            finish_reason=sequence.finish_reason or "stop",
            trace=trace_of(sequence, record, self.version),
            reused_tokens=sequence.reused,
        )


def _missing(sequence: Sequence) -> int:
    return len(sequence.prompt) - sequence.reused


def _common(left: np.ndarray, right: np.ndarray) -> int:
    limit = min(len(left), len(right))
    differs = left[:limit] != right[:limit]
    return int(differs.argmax()) if differs.any() else limit


def _everything(positions: np.ndarray, width: int) -> np.ndarray:
    """[len(positions), width] all positions up to each one: what an unselective step saw."""
    every = np.arange(width, dtype=np.int16)
    return np.where(every <= positions[:, None], every, np.int16(-1))
