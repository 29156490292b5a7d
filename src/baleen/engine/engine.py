"""Tokens in, tokens out: continuous batching over a paged cache of latents and index keys.

Four nouns. A `Sequence` is one request; the `PagePool` shares, finds and evicts pages; the `Scheduler` chooses what a
step runs; the `Runner` runs it as one flat list. `step` then samples one token for every sequence whose tokens are all
in the cache, and with drafting perhaps a second one; sequences of a small network that need no look at what they say
decode some milliseconds in one compiled loop. A sequence's tokens and log-probabilities do not depend on what
else is in the batch, on pages, chunks, cached prefixes, preemption or drafts: in fp32 on a CPU to the last bit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence as Many
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from baleen.chat.grammar import GrammarError, GrammarSpec
from baleen.chat.text_stream import TextStream
from baleen.chat.tokenizer import Tokenizer
from baleen.engine.grammar import Grammar
from baleen.engine.pages import PagePool
from baleen.engine.params import MAX_SEED, EngineError, EngineOptions, SamplingParams
from baleen.engine.recorder import Recorder
from baleen.engine.runner import Forward, Runner, Span
from baleen.engine.sampler import draw
from baleen.engine.scheduler import Scheduler
from baleen.engine.sequence import Generation, Sequence
from baleen.engine.trace import Trace, join_kept
from baleen.model.cache import LatentCache
from baleen.model.network import Model

GRAMMARS_KEPT = 16
"""Compiled grammars: the turns of a conversation and the choices of a request ask for the same."""


class Engine:
    """Generates with `model`. Without a tokenizer there are no stop texts and no grammars.

    Raises `EngineError` when the memory budget holds no sequence at all.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer | None, options: EngineOptions | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.options = options or EngineOptions()
        config = model.config
        self.drafts = self.options.drafts
        if self.drafts and model.mtp is None:
            raise EngineError("this model has no multi-token-prediction layer to draft with: leave drafts off")
        self.max_tokens = self.options.max_tokens or config.max_position_embeddings
        page_tokens = self.options.page_tokens
        self.token_bytes = LatentCache.token_bytes(config, model.compute_dtype, drafts=self.drafts)
        if self.options.traces:
            self.token_bytes += Recorder.token_bytes(config, self.max_tokens)
        self.memory_bytes = self._budget()
        pages = self.memory_bytes // (self.token_bytes * page_tokens)
        if pages < 2:
            raise EngineError(
                f"{self.memory_bytes} bytes hold less than two pages of {page_tokens} tokens, "
                f"{self.token_bytes} bytes a token: give more memory_bytes"
            )
        cache = LatentCache(config, pages, page_tokens, model.compute_dtype, drafts=self.drafts)
        self.recorder = Recorder(config, pages, page_tokens, self.max_tokens) if self.options.traces else None
        self.pool = PagePool(pages)
        self.capacity = min(self.max_tokens, self.pool.total * page_tokens)
        self.scheduler = Scheduler(self.pool, self.options, self.recorder)
        self.runner = Runner(model, cache, self.recorder)
        self._compiled = lru_cache(GRAMMARS_KEPT)(lambda spec: Grammar(spec, self._named_tokens, config.vocab_size))
        self.ends = frozenset(config.stop_token_ids)
        self.version = 0
        self.steps = 0
        self.prompt_tokens = self.cached_tokens = self.generated_tokens = self.computed_tokens = 0
        self.drafted_tokens = self.accepted_tokens = 0

    def generate(self, prompts: Many[Many[int]], params: SamplingParams | Many[SamplingParams]) -> list[Generation]:
        """Completes every prompt, `params.n` times each. One `params` for all prompts (each gets its own seeds from
        it), or one each."""
        if isinstance(params, SamplingParams):
            one = params
            params = [replace(one, seed=(one.seed + index * one.n) % MAX_SEED) for index in range(len(prompts))]
        sequences: list[Sequence] = []
        try:
            for prompt, each in zip(prompts, params, strict=True):
                for index in range(each.n):
                    sequences.append(self.submit(prompt, replace(each, seed=(each.seed + index) % MAX_SEED, n=1)))
        except ValueError:
            for sequence in sequences:
                self.cancel(sequence)
            raise
        while self.busy:
            self.step()
        return [sequence.generation for sequence in sequences if sequence.generation is not None]

    def submit(self, prompt: Many[int], params: SamplingParams) -> Sequence:
        """Queues a request. Raises `EngineError` when it can never run."""
        ids = np.asarray(prompt, dtype=np.int64)
        if not len(ids):
            raise EngineError("the prompt is empty: give at least one token")
        if len(ids) >= self.capacity:
            raise EngineError(
                f"a prompt of {len(ids)} tokens does not fit {self.capacity}: raise max_tokens or the memory"
            )
        vocabulary = self.model.config.vocab_size
        if ids.min() < 0 or ids.max() >= vocabulary:
            raise EngineError(f"the prompt has ids outside the vocabulary of {vocabulary}")
        named = [*params.stop_ids, *(token for token, _ in params.logit_bias)]
        if any(not 0 <= token < vocabulary for token in named):
            raise EngineError(f"stop_ids or logit_bias name ids outside the vocabulary of {vocabulary}")
        if params.trace and self.recorder is None:
            raise EngineError("this engine records no traces: build it with traces=True")
        sequence = Sequence(ids.astype(np.int32), params, self.capacity, self.options.page_tokens)
        self._prepare(sequence)
        self.prompt_tokens += len(ids)
        self.scheduler.waiting.append(sequence)
        return sequence

    def compile(self, spec: GrammarSpec) -> Grammar:
        """The grammar, ready to run; the last ones are kept. Beside a step another thread may do it beforehand, as it
        can take a second. Raises `EngineError` for a grammar that cannot run."""
        try:
            return self._compiled(spec)
        except GrammarError as error:
            raise EngineError(str(error)) from error

    @property
    def waiting(self) -> Many[Sequence]:
        """Requests that have no place yet."""
        return self.scheduler.waiting

    @property
    def running(self) -> Many[Sequence]:
        """Requests that hold pages."""
        return self.scheduler.running

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def stats(self) -> dict[str, float]:
        """What runs, what is stored, and what was done so far."""
        return {
            "running": len(self.running),
            "waiting": len(self.waiting),
            "pages_total": self.pool.total,
            "pages_used": self.pool.used,
            "pages_cached": self.pool.cached,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "generated_tokens": self.generated_tokens,
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "preemptions": self.scheduler.preemptions,
            "steps": self.steps,
            "version": self.version,
        }

    def cancel(self, sequence: Sequence) -> None:
        """Ends a request now; its pages are free. Does nothing when it has ended already."""
        if sequence.finish_reason is None:
            sequence.finish_reason = "abort"
            self._finish(sequence)

    def weights_changed(self) -> None:
        """Says that the model's parameters are others now. Nothing cached is used any more: what runs is computed anew
        before its next token, which carries the new version."""
        for sequence in reversed(list(self.scheduler.running)):
            self.scheduler.preempt(sequence)
        self.pool.forget_all()
        self.version += 1

    def forget_prefixes(self) -> None:
        """Drops every cached beginning that nothing uses now."""
        self.pool.forget_all()

    @torch.no_grad()
    def step(self) -> list[Sequence]:
        """One forward and the tokens that follow from it, or several where all that runs may run ahead; returns the
        sequences that ended."""
        began = time.perf_counter()
        spans = self.scheduler.plan()
        if not spans:
            return []
        steps = self._decode(spans) if self._runs_ahead(spans) else self._forward(spans)
        self.steps += steps
        ended = [span.sequence for span in spans if span.sequence.finish_reason is not None]
        for sequence in ended:
            self._finish(sequence)
        self.scheduler.observe(time.perf_counter() - began, spans, steps)
        return ended

    def _runs_ahead(self, spans: list[Span]) -> bool:
        """Whether all of these can go on for some tokens in one compiled loop."""
        if not self.runner.compiled or self.drafts:
            return False
        return all(not span.prompt and span.sequence.runs_ahead for span in spans)

    def _decode(self, spans: list[Span]) -> int:
        """Some tokens for each; returns how many steps that was."""
        sequences, most = [span.sequence for span in spans], self.scheduler.ahead(spans)
        made = self.runner.decode(sequences, most, self.ends)
        for sequence, count, tokens, logprobs in zip(
            sequences, made.counts.tolist(), made.tokens.tolist(), made.logprobs.tolist(), strict=True
        ):
            greedy = sequence.params.temperature == 0
            for token, logprob in zip(tokens[:count], logprobs[:count], strict=True):
                sequence.append(token, logprob, np.array([token], np.int32) if greedy else None, self.version)
            self.scheduler.computed(sequence, sequence.length - 1)
            self.computed_tokens += count
            self.generated_tokens += count
            self._judge(sequence, tokens[count - 1])
        return int(made.counts.max())

    def _forward(self, spans: list[Span]) -> int:
        """One forward of all spans, and a token for each that it completes, with drafts perhaps two."""
        done = self.runner.forward(spans)
        self.computed_tokens += sum(len(span.tokens) for span in spans)
        for span in spans:
            self.scheduler.computed(span.sequence, span.end - span.drafted)
        ready = [place for place, span in enumerate(done.spans) if span.completes]
        last = {place: done.first_row[place] + len(done.spans[place].tokens) - 1 for place in ready}
        self._sample(done, {place: last[place] - done.spans[place].drafted for place in ready})
        # A draft that the sampler would have said: what follows it is known already.
        right = [place for place in ready if self._accept(done, place)]
        self._sample(done, {place: last[place] for place in right})
        if self.drafts:
            self._draft(done, {p: last[p] - (done.spans[p].drafted and p not in right) for p in ready})
        return 1

    def _budget(self) -> int:
        """Bytes that the cache may take."""
        if self.options.memory_bytes is not None:
            return self.options.memory_bytes
        pages = -(-self.max_tokens // self.options.page_tokens) * self.options.max_running + 1
        return min(pages * self.options.page_tokens * self.token_bytes, _free_memory() // 4)

    def _prepare(self, sequence: Sequence) -> None:
        """Stop texts and the grammar, where the request has them."""
        params = sequence.params
        if params.stop:
            sequence.text = TextStream(self._named_tokens, params.stop)
        if params.grammar:
            sequence.matcher = self.compile(params.grammar).matcher()

    @property
    def _named_tokens(self) -> Tokenizer:
        if self.tokenizer is None:
            raise EngineError("stop texts and grammars need a tokenizer: give the engine one")
        return self.tokenizer

    def _sample(self, done: Forward, rows: dict[int, int]) -> None:
        """Samples after the given rows of the forward; keys are places of spans."""
        rows = {place: row for place, row in rows.items() if self._allow(done.spans[place].sequence)}
        if not rows:
            return
        sequences = [done.spans[place].sequence for place in rows]
        logits = self.runner.logits(done.hidden, list(rows.values()))
        for sequence, drawn in zip(sequences, draw(logits, sequences, self.ends), strict=True):
            sequence.append(drawn.token, drawn.logprob, drawn.kept, self.version)
            if sequence.params.top_logprobs:
                sequence.top.append(drawn.top)
            self.generated_tokens += 1
            self._judge(sequence, drawn.token)

    def _allow(self, sequence: Sequence) -> bool:
        """Asks the grammar what may follow; a grammar that fails ends its own request and no other."""
        if sequence.matcher is None:
            return True
        try:
            sequence.allowed = sequence.matcher.mask()
        except GrammarError as error:
            self._fail(sequence, error)
        return sequence.finish_reason is None

    def _fail(self, sequence: Sequence, error: GrammarError) -> None:
        sequence.error = EngineError(f"the grammar failed after {sequence.sampled} tokens: {error}")
        sequence.finish_reason = "abort"

    def _judge(self, sequence: Sequence, token: int) -> None:
        """Whether the sequence ends with this token."""
        if sequence.matcher is not None:
            try:
                sequence.matcher.advance(token)
            except GrammarError as error:
                self._fail(sequence, error)
                return
        if sequence.text is not None:
            sequence.text.feed((token,))
        at_end = token in sequence.ends(self.ends)
        text_ends = sequence.text is not None and sequence.text.stopped is not None
        grammar_ends = sequence.matcher is not None and sequence.matcher.finished
        if at_end or text_ends or grammar_ends:
            sequence.finish_reason = "stop"
        elif not sequence.room:
            sequence.finish_reason = "length"

    def _accept(self, done: Forward, place: int) -> bool:
        """Whether the span's draft is what was sampled, and the sequence goes on."""
        span = done.spans[place]
        if not span.drafted:
            return False
        sequence = span.sequence
        self.drafted_tokens += 1
        if sequence.finish_reason is not None or span.tokens[-1] != sequence.ids[-1]:
            return False
        self.scheduler.computed(sequence, sequence.computed + 1)
        self.accepted_tokens += 1
        return True

    def _draft(self, done: Forward, rows: dict[int, int]) -> None:
        """Guesses the token behind the next one for every sequence that goes on. All tokens of the forward pass through
        the draft layer, because later drafts look back at them."""
        following = np.zeros(done.hidden.shape[0], dtype=np.int64)
        for span, first in zip(done.spans, done.first_row, strict=True):
            known = span.sequence.ids[span.start + 1 : span.end + 1]
            following[first : first + len(known)] = known
        hidden = self.runner.draft(done, following)
        rows = {p: row for p, row in rows.items() if self._can_draft(done.spans[p].sequence)}
        if rows:
            sequences = [done.spans[place].sequence for place in rows]
            logits = self.runner.logits(hidden, list(rows.values()))
            for sequence, guess in zip(sequences, draw(logits, sequences, self.ends), strict=True):
                sequence.draft = guess.token

    def _can_draft(self, sequence: Sequence) -> bool:
        return sequence.can_draft and self._allow(sequence)

    def _finish(self, sequence: Sequence) -> None:
        records = None
        if sequence.params.trace and self.recorder is not None and sequence.was_admitted:
            records = self.recorder.of(sequence)
        kept_ids, kept_offsets = join_kept(sequence.kept)
        self.cached_tokens += max(sequence.reused, 0)
        sequence.generation = Generation(
            prompt=tuple(sequence.prompt.tolist()),
            tokens=tuple(sequence.tokens),
            finish_reason=sequence.finish_reason or "stop",
            trace=Trace(
                logprobs=np.asarray(sequence.logprobs, dtype=np.float32),
                kept_ids=kept_ids,
                kept_offsets=kept_offsets,
                experts=records.experts if records else None,
                selected=records.selected if records else None,
                versions=np.asarray(sequence.versions, dtype=np.int32),
            ),
            reused_tokens=max(sequence.reused, 0),
            top_logprobs=tuple(sequence.top),
        )
        self.scheduler.remove(sequence)


def _free_memory() -> int:
    """Bytes that this machine could give to a process now."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
