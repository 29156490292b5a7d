"""What `baleen plan` may be asked about: a recipe, a Hugging Face folder, or a published model by name.

The first that fits decides: a well-known name, a model folder or its `config.json`, a recipe.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from baleen.model.config import ModelConfig
from baleen.model.families import FAMILIES, ConfigError
from baleen.pipeline.loading import load_recipe, packaged_recipes
from baleen.pipeline.recipe import Recipe

WELL_KNOWN = {
    "deepseek-v3.2": ModelConfig(),
    "deepseek-v3": ModelConfig(model_type="deepseek_v3"),
}
"""Published networks by name."""


class PlanError(ValueError):
    """What is to be planned is not there or does not fit together; the message says what is accepted."""


def read_subject(text: str, overrides: Sequence[str] = ()) -> Recipe | ModelConfig:
    """The recipe or network that `text` names, with `key=value` overrides (a recipe's dotted keys, a network's fields
    of `config.json`). Raises `PlanError`, `RecipeError` or `UnsupportedCheckpointError`."""
    path = Path(text).expanduser()
    if text.lower() in WELL_KNOWN:
        return _checked(_overridden(WELL_KNOWN[text.lower()], overrides))
    if path.suffix == ".json" or path.is_dir():
        return _checked(_overridden(_from_checkpoint(path), overrides))
    if path.suffix != ".toml" and not path.is_file() and text not in packaged_recipes():
        names = [*packaged_recipes(), *WELL_KNOWN]
        close = difflib.get_close_matches(text, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise PlanError(
            f"nothing to plan under {text!r}{hint} Accepted: a recipe ({', '.join(packaged_recipes())}, or a .toml "
            f"file), a Hugging Face model folder or its config.json, a model's name ({', '.join(WELL_KNOWN)})"
        )
    return load_recipe(text, overrides)


def _checked(config: ModelConfig) -> ModelConfig:
    """The config, unless its model type is not read here; a recipe checks its own."""
    if config.model_type not in FAMILIES:
        raise PlanError(f"model_type {config.model_type!r} is not planned here; {' and '.join(FAMILIES)} are")
    return config


def _from_checkpoint(path: Path) -> ModelConfig:
    if path.suffix == ".json":
        if path.name != "config.json":
            raise PlanError(f"{path}: give a Hugging Face model folder, or its file named config.json")
        path = path.parent
    try:
        return ModelConfig.from_pretrained(path)
    except ConfigError as error:
        raise PlanError(str(error)) from error


def _overridden(config: ModelConfig, overrides: Sequence[str]) -> ModelConfig:
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = (part.strip() for part in override.partition("="))
        if not equals or not key:
            raise PlanError(f"{override!r} is not an override; write key=value, for example num_hidden_layers=8")
        if key not in ModelConfig.model_fields:
            close = difflib.get_close_matches(key, ModelConfig.model_fields, n=1, cutoff=0.0)
            raise PlanError(f"unknown key {key!r}; did you mean {close[0]!r}?")
        try:
            changes[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            changes[key] = value  # a bare word is a string
    if not changes:
        return config
    try:
        return ModelConfig(**(config.model_dump() | changes))
    except ValidationError as error:
        raise PlanError(_readable(error)) from error


def _readable(error: ValidationError) -> str:
    problems = error.errors()
    return "; ".join(
        f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}".removeprefix(": ").replace("Value error, ", "")
        for each in problems
    )
