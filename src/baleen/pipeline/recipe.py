"""What a recipe may say: closed, typed sections, one field per knob, each with its meaning and unit.

The idea: a recipe is data. A stage reads its own section and the shared ones (run, corpus, model), nothing else; the
file is TOML, and `load_recipe` (pipeline/loading.py) turns it into the frozen `Recipe` that the run folder keeps.
The model section uses the field names of Hugging Face's `config.json` for `deepseek_v32`.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from baleen.model.config import ModelConfig


class Section(BaseModel):
    """A closed, frozen group of fields: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class RunSection(Section):
    """What holds for every stage."""

    seed: int = Field(default=0, ge=0, description="root of every stage's seed")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of the matrix products while training"
    )
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 takes torch's own choice")
    weak_sandbox: bool = Field(
        default=False, description="whether programs of the model may run without isolation where nothing isolates"
    )


class CorpusSection(Section):
    """The text that tokenizer and pre-training read."""

    path: str | None = Field(
        default=None,
        description="folder, .txt, .jsonl, .parquet or a Hugging Face dataset; none: Python's standard library",
    )
    max_bytes: int = Field(default=16_000_000, gt=0, description="bytes of text read at most")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        # `corpus = "path"` is what people type first.
        return {"path": value} if isinstance(value, str) else value


class TokenizerSection(Section):
    """The byte-level BPE."""

    vocab_size: int = Field(default=2048, ge=300, description="tokens, special ones included")


class ModelSection(Section):
    """The network's shape, under Hugging Face's names."""

    hidden_size: int = Field(default=128, gt=0, description="width of the residual stream")
    num_hidden_layers: int = Field(default=4, gt=0, description="layers, without the MTP layer")
    num_attention_heads: int = Field(default=4, gt=0, description="attention heads")
    intermediate_size: int = Field(default=384, gt=0, description="width of a dense feed-forward layer")
    moe_intermediate_size: int = Field(default=96, gt=0, description="width of one expert")
    first_k_dense_replace: int = Field(default=1, ge=0, description="leading layers with a dense feed-forward")
    n_routed_experts: int = Field(default=8, gt=0, description="routed experts per layer")
    n_shared_experts: int = Field(default=1, ge=0, description="experts that see every token")
    num_experts_per_tok: int = Field(default=2, gt=0, description="routed experts per token")
    n_group: int = Field(default=1, gt=0, description="groups of experts")
    topk_group: int = Field(default=1, gt=0, description="groups a token may choose from")
    routed_scaling_factor: float = Field(default=2.5, gt=0, description="factor on the routed experts' sum")
    norm_topk_prob: bool = Field(default=True, description="whether the chosen experts' weights are made to sum to one")
    q_lora_rank: int = Field(default=64, gt=0, description="width of the query latent")
    kv_lora_rank: int = Field(default=32, gt=0, description="width of the key-value latent that the cache holds")
    qk_nope_head_dim: int = Field(default=32, gt=0, description="query and key dimensions per head without rope")
    qk_rope_head_dim: int = Field(default=16, gt=0, description="query and key dimensions per head with rope")
    v_head_dim: int = Field(default=32, gt=0, description="value dimensions per head")
    index_n_heads: int = Field(default=4, gt=0, description="the indexer's heads")
    index_head_dim: int = Field(default=32, gt=0, description="the indexer's dimensions per head")
    index_topk: int = Field(default=64, gt=0, description="positions a query attends to")
    num_nextn_predict_layers: int = Field(default=1, ge=0, le=1, description="MTP layers")
    max_position_embeddings: int = Field(default=2048, gt=0, description="longest sequence, tokens")
    rope_theta: float = Field(default=10_000.0, gt=0, description="base of the rotary frequencies")
    rms_norm_eps: float = Field(default=1e-6, gt=0, description="added to the variance in every norm")
    initializer_range: float = Field(default=0.02, gt=0, description="standard deviation of the first weights")


class SynthesisSection(Section):
    """How many tasks are made."""

    train_tasks: int = Field(default=2000, gt=0, description="tasks for training")
    test_tasks: int = Field(default=200, gt=0, description="unseen tasks in trained environments")
    unseen_tasks: int = Field(default=100, gt=0, description="tasks in the environment that is never trained on")
    invented: int = Field(default=24, ge=0, description="invented environments beside the four declared ones")


class DomainShares(Section):
    """How a stage's tasks or tokens are drawn: each domain's share, relative to the others; 0 leaves it out."""

    tools: float = Field(default=0.0, ge=0, description="share of tool-use tasks")
    arithmetic: float = Field(default=0.0, ge=0, description="share of arithmetic tasks")
    alignment: float = Field(default=0.0, ge=0, description="share of form-and-language tasks")


class TrainSection(Section):
    """A stage that learns from text."""

    steps: int = Field(default=100, ge=0, description="optimiser steps")
    tokens_per_step: int = Field(default=8192, gt=0, description="distinct tokens per optimiser step")
    sequence_length: int = Field(default=512, gt=0, description="tokens per text sequence")
    tree_length: int = Field(default=1536, gt=0, description="tokens per row of demonstrations that share prefixes")
    tools_share: float = Field(default=0.5, gt=0, lt=1, description="share of the tokens that are demonstrations")
    text_weight: float = Field(
        default=1.0, gt=0, description="weight of a prediction in text beside one in a demonstration"
    )
    repeats_steps: int = Field(default=0, ge=0, description="leading steps that are repeated segments alone")
    domains: DomainShares = Field(
        default=DomainShares(tools=0.7, arithmetic=0.2, alignment=0.1),
        description="what the demonstrations are drawn from, in tokens",
    )
    mtp_weight: float = Field(default=0.0, ge=0, description="weight of the multi-token-prediction loss on text")
    learning_rate: float = Field(default=1e-3, gt=0, description="peak learning rate")
    warmup_steps: int = Field(default=10, ge=0, description="steps of linear warm-up")
    checkpoint_every: int = Field(default=50, gt=0, description="steps between checkpoints")


class WarmupSection(TrainSection):
    """The indexer alone learns."""

    indexer: Literal["derived", "random"] = Field(
        default="derived", description="the indexer's first weights: from the attention's projections, or random"
    )


class DistillSection(TrainSection):
    """Fine-tuning on what the specialists got right."""

    tasks_per_specialist: int = Field(default=256, gt=0, description="tasks that each specialist is asked")


class ReinforcementSection(Section):
    """A GRPO stage."""

    domains: DomainShares = Field(default=DomainShares(tools=1.0), description="what the tasks are drawn from")
    steps: int = Field(default=20, ge=0, description="optimiser steps")
    tasks_per_step: int = Field(default=8, gt=0, description="groups per step")
    group_size: int = Field(default=8, gt=1, description="episodes per task (G)")
    learning_rate: float = Field(default=1e-4, gt=0, description="learning rate")
    gain_ratio: float = Field(default=1.0, gt=0, description="learning rate of the norms' gains over the weights'")
    max_norm: float = Field(default=1.0, gt=0, description="gradient norm that a step is scaled down to")
    clip: float = Field(default=0.2, gt=0, description="half-width of the ratio's clip range (epsilon)")
    beta: float = Field(default=0.001, ge=0, description="strength of the KL term")
    delta: float = Field(default=0.1, gt=0, description="mean log-ratio beyond which an A < 0 sequence is masked, nats")
    minibatches: int = Field(default=1, gt=0, description="optimiser steps per batch of episodes")
    keep_routing: bool = Field(default=True, description="force the sampler's experts in training")
    keep_sampling_mask: bool = Field(default=True, description="renormalise over the sampler's kept set")
    keep_selection: bool = Field(default=True, description="force the indexer's positions in training")
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature")
    top_p: float = Field(default=1.0, gt=0, le=1, description="probability mass that sampling keeps")
    max_tokens: int = Field(default=128, gt=0, description="tokens per turn at most")
    max_turns: int = Field(default=6, gt=0, description="assistant turns per episode at most")
    window: int = Field(default=2048, gt=0, description="tokens per episode at most, prompt and results included")
    length_penalty: float = Field(default=0.05, ge=0, lt=1, description="reward lost at twice the budget, if correct")
    length_budget: int = Field(default=256, gt=0, description="sampled tokens of an episode that cost nothing")
    language_weight: float = Field(default=0.05, ge=0, description="reward for the asked language, if correct")
    row_tokens: int = Field(default=4096, gt=0, description="distinct tokens per packed row")
    checkpoint_every: int = Field(default=5, gt=0, description="steps between checkpoints")

    @model_validator(mode="after")
    def _episodes_fit_rows(self) -> Self:
        if self.window > self.row_tokens:
            raise ValueError(f"an episode of window = {self.window} tokens does not fit row_tokens = {self.row_tokens}")
        return self


class EvaluationSection(Section):
    """How the checkpoints are judged."""

    tasks: int = Field(default=200, gt=0, description="held-out tasks at most")
    unseen_tasks: int = Field(default=48, ge=0, description="tasks with unseen tools at most")
    attempts: int = Field(default=4, gt=0, description="attempts per task of the first and the last checkpoint")
    temperature: float = Field(default=1.0, ge=0, description="sampling temperature")
    top_p: float = Field(default=1.0, gt=0, le=1, description="probability mass that sampling keeps")
    max_tokens: int = Field(default=128, gt=0, description="tokens per turn at most")
    max_turns: int = Field(default=6, gt=0, description="assistant turns per episode at most")
    window: int = Field(default=2048, gt=0, description="tokens per episode at most, prompt and results included")


class Recipe(Section):
    """A whole recipe. `stages` are run in order; every other field is a section."""

    name: str = Field(default="custom", description="what the run is called")
    stages: list[str] = Field(min_length=1, description="the stages' names, in order")
    run: RunSection = Field(default=RunSection(), description="what holds for every stage")
    corpus: CorpusSection = Field(default=CorpusSection(), description="the text")
    tokenizer: TokenizerSection = Field(default=TokenizerSection(), description="the vocabulary")
    model: ModelSection = Field(default=ModelSection(), description="the network")
    synthesis: SynthesisSection = Field(default=SynthesisSection(), description="environments and tasks")
    pretrain: TrainSection = Field(default=TrainSection(), description="dense pre-training")
    indexer_warmup: WarmupSection = Field(default=WarmupSection(), description="the indexer alone, dense attention")
    sparse: TrainSection = Field(default=TrainSection(), description="all parameters, sparse attention")
    cold_start: TrainSection = Field(default=TrainSection(), description="fine-tuning on solution trajectories")
    specialist_tools: ReinforcementSection = Field(default=ReinforcementSection(), description="RL on tool use")
    specialist_arithmetic: ReinforcementSection = Field(default=ReinforcementSection(), description="RL on arithmetic")
    distill: DistillSection = Field(
        default=DistillSection(), description="fine-tuning on the specialists' trajectories"
    )
    mixed_rl: ReinforcementSection = Field(default=ReinforcementSection(), description="RL over all domains")
    evaluation: EvaluationSection = Field(default=EvaluationSection(), description="held-out tasks")

    def network(self) -> ModelConfig:
        """The network that the recipe trains. Raises `ValueError` when its shapes do not fit together."""
        fields = self.model.model_dump() | {"vocab_size": self.tokenizer.vocab_size}
        try:
            return ModelConfig(**fields)
        except ValidationError as error:
            found = (problem["msg"].removeprefix("Value error, ") for problem in error.errors())
            raise ValueError(f"model: {'; '.join(found)}") from error

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        self.network()
        twice = sorted({name for name in self.stages if self.stages.count(name) > 1})
        if twice:
            raise ValueError(f"a stage runs once, but stages lists {', '.join(twice)} more than once")
        return self
