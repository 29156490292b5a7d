"""The same folder under `transformers`: `generate` with its own cache, in the fastest form that it has here."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import torch

from baleen.benchmarks.serve_prompts import random_prompts

ATTENTIONS, EXPERTS = ("sdpa", "eager"), ("grouped_mm", "eager")
WARMUP_TOKENS = 4


@torch.no_grad()
def generated(
    *, path: str, at_once: int, prompt_tokens: int, max_tokens: int, trial_tokens: int, repeats: int
) -> dict[str, Any]:
    """Completion tokens per second of one batch. Every form (attention, experts, threads) is tried on `trial_tokens`;
    the fastest one is then measured at full length."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tried: list[dict[str, Any]] = []
    models: dict[tuple[str, str], Any] = {}
    for attention, experts in itertools.product(ATTENTIONS, EXPERTS):
        models[attention, experts] = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation=attention, experts_implementation=experts
        ).eval()
        for threads in sorted({1, len(os.sched_getaffinity(0))}):
            form = {"attention": attention, "experts": experts, "threads": threads}
            torch.set_num_threads(threads)
            prompts = torch.tensor(random_prompts(path, at_once, prompt_tokens, seed=0))
            try:
                _rate(models[attention, experts], prompts, WARMUP_TOKENS)
                tried.append({**form, "tokens_per_second": _rate(models[attention, experts], prompts, trial_tokens)})
            except (RuntimeError, NotImplementedError, ValueError) as error:
                tried.append({**form, "tokens_per_second": 0.0, "error": str(error)[:200]})
    best = max(tried, key=lambda form: float(form["tokens_per_second"]))
    torch.set_num_threads(best["threads"])
    rates = [
        _rate(
            models[best["attention"], best["experts"]],
            torch.tensor(random_prompts(path, at_once, prompt_tokens, seed=seed)),
            max_tokens,
        )
        for seed in range(repeats)
    ]
    found = {"rates": rates, "tokens_per_second": max(rates), "best": best, "tried": tried}
    return {"torch": torch.__version__, "transformers": transformers.__version__, **found}


def _rate(model: Any, prompts: torch.Tensor, tokens: int) -> float:
    began = time.perf_counter()
    made = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        pad_token_id=0,
    )
    if made.shape[1] != prompts.shape[1] + tokens:
        raise ValueError(f"{made.shape[1] - prompts.shape[1]} tokens were generated, not {tokens}")
    return len(prompts) * tokens / (time.perf_counter() - began)
