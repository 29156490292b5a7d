"""Episodes -> training samples, by exact prefix: what the model saw is what it is trained on.

Turns of an episode whose prompt begins with the exact tokens of the turn before (its prompt and what was sampled) are
one sequence: one forward trains them all. Where the context was rewritten (the thinking rule drops reasoning at a new
user message, a context manager drops history) the prefix breaks and a new sample begins. Tokens are never produced
again from text, so a sampled token is trained under exactly the context it was sampled in.

Legend: S = tokens of a sample, N = its sampled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baleen.agent.episode import Episode
from baleen.agent.policy import Completion
from baleen.engine.trace import Trace
from baleen.training.sample import Sample, SampleError


def samples_from_episode(episode: Episode, *, group: int, advantage: float, index: int) -> list[Sample]:
    """The samples of one episode, in the order of its turns; turns that sampled nothing at all give none.

    `index` becomes `Sample.episode`. Raises `SampleError` when tokens or log-probabilities are missing, or a trace does
    not fit its tokens.
    """
    runs = join_completions(episode)
    return [_sample(run, group=group, advantage=advantage, index=index) for run in runs]


def join_completions(episode: Episode) -> list[tuple[Completion, ...]]:
    """The episode's completions, cut into runs in which every prompt extends the whole sequence before it.

    A turn that sampled nothing (its prompt had no room left) is in none: it has nothing to train, and no trace.
    """
    runs: list[list[Completion]] = []
    sequence: tuple[int, ...] = ()
    for turn, completion in enumerate(episode.completions):
        if not completion.prompt_tokens:
            raise SampleError(
                f"turn {turn} of task {episode.task.id} has no prompt tokens: the server did not return token ids; "
                "train on episodes of the engine in this process, or of a server that returns them"
            )
        if not completion.sampled_tokens:
            continue
        if runs and completion.prompt_tokens[: len(sequence)] == sequence:
            runs[-1].append(completion)
        else:
            runs.append([completion])
        sequence = completion.prompt_tokens + completion.sampled_tokens
    return [tuple(run) for run in runs]


def _sample(run: Sequence[Completion], *, group: int, advantage: float, index: int) -> Sample:
    traces = [_checked_trace(completion) for completion in run]
    last = run[-1]
    tokens = np.asarray(last.prompt_tokens + last.sampled_tokens, dtype=np.int32)
    sampled = np.zeros(len(tokens), dtype=np.bool_)
    logprobs = np.zeros(len(tokens), dtype=np.float32)
    for completion, trace in zip(run, traces, strict=True):
        start = len(completion.prompt_tokens)
        span = slice(start, start + len(completion.sampled_tokens))
        sampled[span] = True
        logprobs[span] = trace.logprobs
    kept_ids, kept_offsets = _joined_kept_sets(traces)
    # The last turn's trace covers the whole sequence, the turns before it and what the environment said included.
    experts, selected = traces[-1].experts, traces[-1].selected
    return Sample(tokens, sampled, logprobs, kept_ids, kept_offsets, experts, selected, group, float(advantage), index)


def _checked_trace(completion: Completion) -> Trace:
    trace = completion.trace
    if trace is None:
        raise SampleError("a completion has no trace: sample with log-probabilities, the objective needs pi_old")
    sampled = len(completion.sampled_tokens)
    forwarded = len(completion.prompt_tokens) + sampled - 1
    if trace.logprobs.shape != (sampled,):
        raise SampleError(f"trace has log-probabilities of shape {trace.logprobs.shape} for {sampled} sampled tokens")
    if (trace.kept_ids is None) != (trace.kept_offsets is None):
        raise SampleError("trace has kept ids without offsets, or offsets without ids")
    if trace.kept_ids is not None and trace.kept_offsets is not None:
        offsets = trace.kept_offsets
        ends_fit = offsets.shape == (sampled + 1,) and offsets[0] == 0 and offsets[-1] == len(trace.kept_ids)
        if not ends_fit or (np.diff(offsets) < 1).any():
            raise SampleError(f"kept sets do not cover {sampled} sampled tokens with one non-empty set each")
    for name in ("experts", "selected"):
        recorded = getattr(trace, name)
        if recorded is not None and (recorded.ndim != 3 or len(recorded) != forwarded):
            raise SampleError(f"trace.{name} has shape {recorded.shape}, expected [{forwarded}, layers, k]")
    if trace.selected is not None and (trace.selected > np.arange(forwarded)[:, None, None]).any():
        raise SampleError("trace.selected holds a position after its own token")
    return trace


def _joined_kept_sets(traces: Sequence[Trace]) -> tuple[NDArray[np.int32] | None, NDArray[np.int32] | None]:
    ids = [trace.kept_ids for trace in traces if trace.kept_ids is not None]
    offsets = [trace.kept_offsets for trace in traces if trace.kept_offsets is not None]
    if not ids:
        return None, None
    if len(ids) != len(traces):
        raise SampleError("some turns of one sequence record kept sets and some do not: sample an episode in one way")
    sizes = np.concatenate([np.diff(part) for part in offsets])
    joined = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    return np.concatenate(ids).astype(np.int32), joined
