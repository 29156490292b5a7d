"""The published names of our parameters. Files hold experts one by one, memory holds them joined; files hold the
multi-token-prediction layer as one more layer behind the last."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from baleen.model.config import ModelConfig


def second_prediction(config: ModelConfig) -> str:
    """What the published names of the multi-token-prediction layer begin with."""
    return f"model.layers.{config.num_hidden_layers}."


def published(name: str, parameter: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """The published names of one of our parameters, with the views of it that they hold."""
    if name.startswith("mtp."):
        layer = second_prediction(config)
        name = name.removeprefix("mtp.")
        name = layer + ("shared_head." + name if name.startswith("norm.") else name.removeprefix("layer."))
    elif not name.startswith("lm_head."):
        name = "model." + name
    if ".experts." not in name:
        yield name, parameter
        return
    prefix, kind = name.rsplit(".", 1)
    for expert in range(config.n_routed_experts):
        if kind == "down_proj":
            yield f"{prefix}.{expert}.down_proj.weight", parameter[expert]
        else:
            gate, up = parameter[expert].chunk(2)
            yield f"{prefix}.{expert}.gate_proj.weight", gate
            yield f"{prefix}.{expert}.up_proj.weight", up


def is_left_out(name: str, config: ModelConfig) -> bool:
    """Whether files hold this tensor without a need for it: what the second prediction shares with the model, a head
    that is the embedding, and frequencies that follow from the config."""
    second = second_prediction(config)
    if name.startswith(second) and config.num_nextn_predict_layers == 0:
        return False
    shared = name.startswith(f"{second}embed_tokens.") or name.endswith("shared_head.head.weight")
    tied = config.tie_word_embeddings and name == "lm_head.weight"
    return shared or tied or name.endswith("rotary_emb.inv_freq")
