"""Rule-based rewards: the outcome, a length penalty and language consistency, the terms gated on the outcome.

The report's reasoning and agent tasks are paid by these three (section 4). Each term is multiplied by the outcome: in a
group where everybody failed all rewards are then exactly 0, so no advantage teaches "fail more briefly", which is how
ungated terms have ruined runs. For a correct answer (outcome 1) the terms count in full.

    total = outcome * (1 - length_penalty * clamp(sampled / budget - 1, 0, 1) + language_weight * consistency)
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from baleen.rl.language import language_consistency


class RewardConfig(BaseModel):
    """The strength of each term. The published system does not tell its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    length_penalty: float = Field(default=0.0, ge=0, lt=1)
    """Taken off a correct answer of twice the budget or more; below 1, so that being right always pays. 0 is off."""

    length_budget: int = Field(default=1024, gt=0)
    """Sampled tokens of a whole episode that cost nothing."""

    language_weight: float = Field(default=0.0, ge=0)
    """Added to a correct answer whose every word is in the language asked for. 0 is off."""


def shape(
    outcome: float | None,
    *,
    sampled_tokens: int,
    reasoning: str | None,
    content: str | None,
    language: str | None,
    config: RewardConfig,
) -> dict[str, float | None]:
    """The reward's parts: `outcome`, `length` (<= 0), `language` (>= 0) and `total`, their sum.

    `outcome` is 0 to 1 as the verifier gave it; None means not scored, and then every part is None. A failed episode
    (outcome 0) gets 0 in every part. `language` None means that no language was asked for, and costs or pays nothing.
    """
    if outcome is None:
        return {"outcome": None, "length": None, "language": None, "total": None}
    if outcome == 0:
        return {"outcome": 0.0, "length": 0.0, "language": 0.0, "total": 0.0}
    excess = min(max(sampled_tokens / config.length_budget - 1, 0.0), 1.0)
    length = -config.length_penalty * excess * outcome if excess else 0.0
    bonus = 0.0
    if language is not None and config.language_weight:
        said = f"{reasoning or ''}\n{content or ''}"
        bonus = config.language_weight * language_consistency(said, language) * outcome
    return {"outcome": outcome, "length": length, "language": bonus, "total": outcome + length + bonus}
