"""A recipe's name or path and the `key=value` overrides -> one checked `Recipe`.

Every mistake a person can make here is answered with the full dotted path of what is wrong and the nearest thing that
exists, because a silent default is found out only after the training.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from baleen.pipeline.recipe import Recipe


class RecipeError(ValueError):
    """The recipe or an override is wrong; the message says where and what was meant."""


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name_or_path` (packaged, or a TOML file) with dotted `key=value` overrides. Raises `RecipeError`."""
    name, text = read_recipe(name_or_path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name_or_path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply(values, override)
    values.setdefault("name", name)
    return parse_recipe(values)


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """Checks plain values (from TOML or from a frozen recipe.json) into a `Recipe`. Raises `RecipeError`."""
    unknown = [path for path, _ in flatten(values) if not _is_known(path)]
    if unknown:
        raise RecipeError("\n".join(_unknown_key(path) for path in unknown))
    try:
        # Through JSON, because pydantic's strict mode takes a dict for a section only there.
        return Recipe.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise RecipeError("\n".join(_readable(problem) for problem in error.errors())) from error


def read_recipe(name_or_path: str) -> tuple[str, str]:
    """The recipe's short name and its TOML text. Raises `RecipeError` when there is no such recipe."""
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        path = Path(name_or_path).expanduser()
        try:
            return path.stem, path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {path}: {error}") from error
    packaged = packaged_recipes()
    if name_or_path not in packaged:
        raise RecipeError(
            f"no recipe {name_or_path!r}{_nearest(name_or_path, packaged)} Recipes that come with baleen: "
            f"{', '.join(packaged)}; a file is given by its path, ending in .toml"
        )
    return name_or_path, (resources.files("baleen.recipes") / f"{name_or_path}.toml").read_text(encoding="utf-8")


def as_given(name_or_path: str, overrides: Sequence[str] = ()) -> str:
    """The recipe's text as the user gave it, with the overrides said at the top: what the run folder keeps."""
    _, text = read_recipe(name_or_path)
    head = [f"# recipe {name_or_path}", *(f"# override {override}" for override in overrides)]
    return "\n".join(head) + "\n\n" + text


def packaged_recipes() -> list[str]:
    """The names of the recipes that come with the package."""
    files = resources.files("baleen.recipes").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and values of the leaves."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_keys() -> list[str]:
    """Every dotted key that a recipe may set."""
    return list(_keys_of(Recipe, ""))


def _keys_of(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys_of(field.annotation, f"{prefix}{name}.")


def _is_known(path: str) -> bool:
    return path in known_keys()


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise RecipeError(f"{override!r} is not an override; write key=value, for example run.seed=1")
    if not _is_known(key):
        raise RecipeError(_unknown_key(key))
    value = _parse_value(key, text.strip())
    if key == "corpus" and isinstance(value, str):
        key = "corpus.path"  # the short form names the text and leaves the section's other keys alone
    *parents, leaf = key.split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):  # `corpus = "path"` in the file, `corpus.max_bytes=...` on the command line
            inner = values[parent] = {"path": inner} if parent == "corpus" else {}
        values = inner
    values[leaf] = value


def _parse_value(key: str, text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if text[:1] in {'"', "'", "[", "{"} or "\n" in text:
            raise RecipeError(f"{key}: {text} is not a TOML value: {error}") from error
        return text  # a bare word is a string


def _unknown_key(path: str) -> str:
    keys = known_keys()
    # A key without its section ('seed') is meant more often than a misspelling of another section.
    same_leaf = [key for key in keys if key.rpartition(".")[2] == path.rpartition(".")[2]]
    close = difflib.get_close_matches(path, keys, n=1, cutoff=0.6)
    section = path.partition(".")[0]
    if "." in path and section in keys:
        inside = [key for key in keys if key.startswith(f"{section}.")]
        nearest = difflib.get_close_matches(path, inside, n=1, cutoff=0.0)
    elif "." not in path and same_leaf:
        nearest = same_leaf[:3]
    else:
        nearest = close or same_leaf[:3]
    if nearest:
        return f"unknown key {path!r}; did you mean {' or '.join(repr(key) for key in nearest)}?"
    return f"unknown key {path!r}; the sections are {', '.join(key for key in keys if '.' not in key)}"


def _nearest(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


def _readable(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"]) or "recipe"
    if problem["type"] == "missing":
        return f"{path}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
    return f"{path}: {message[0].lower()}{message[1:]}{given}"
