"""Where tau2-bench is found. Nothing of it is shipped here: its own code and data run, out of a checkout of it.

`TAU2_BENCH` names the checkout (sierra-research/tau2-bench on GitHub), or its package is installed. Beware: the `tau2`
on PyPI is something else. Its own log lines, one per tool result, are turned off, and the price list that one of its
dependencies would fetch over the network at import is read from that dependency's files.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baleen.agent.environment import InfrastructureError

VARIABLE = "TAU2_BENCH"


class Tau2Missing(InfrastructureError):
    """tau2-bench cannot be used here; the message says what is missing and what to do."""


def tau2_module(name: str, checkout: str | Path | None = None) -> Any:
    """The module `tau2.NAME` of the checkout (default: `TAU2_BENCH`, else what is installed). Raises `Tau2Missing`.

    The first import takes seconds. A process holds one tau2-bench: asking for another checkout later is an error.
    """
    _import(checkout)
    return importlib.import_module(f"tau2.{name}")


def tau2_domain(domain: str, split: str, checkout: str | Path | None = None) -> Mapping[str, Any]:
    """The domain's own task objects of one split, by id, in their order. Raises `Tau2Missing` for data that is not
    there, and `ValueError` for a domain or a split that tau2-bench does not know."""
    registry = tau2_module("registry", checkout).registry
    if domain not in registry.get_info().domains:
        raise ValueError(f"tau2-bench has no domain {domain!r}, only {', '.join(registry.get_info().domains)}")
    return _tasks(domain, split)


@functools.cache
def _tasks(domain: str, split: str) -> Mapping[str, Any]:
    registry = importlib.import_module("tau2.registry").registry
    try:
        return {task.id: task for task in registry.get_tasks_loader(domain)(split)}
    except FileNotFoundError as error:
        raise missing_data(error) from error


def missing_data(error: FileNotFoundError) -> Tau2Missing:
    """What to say of a data file that a checkout lacks."""
    return Tau2Missing(
        f"tau2-bench's data file {error.filename} is missing: complete the checkout. Partial clones leave out files of "
        "some megabytes, such as the airline database and the telecom tasks"
    )


def _import(checkout: str | Path | None) -> None:
    """Imports the package, from the checkout where one is named."""
    root = Path(checkout or os.environ[VARIABLE]).resolve() if checkout or os.environ.get(VARIABLE) else None
    if "tau2" in sys.modules:
        _check_origin(root)
        return
    if root is not None and not (root / "src" / "tau2" / "registry.py").is_file():
        raise Tau2Missing(f"{root} is no checkout of tau2-bench: it has no src/tau2/registry.py. Set {VARIABLE} to one")
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    if root is not None:
        sys.path.insert(0, str(root / "src"))
    try:
        _silence()
        importlib.import_module("tau2.registry")
    except ModuleNotFoundError as error:
        # A package that stopped half way would be taken for a loaded one by the next call.
        for name in [name for name in sys.modules if name.split(".")[0] == "tau2"]:
            del sys.modules[name]
        raise Tau2Missing(_advice(error, root)) from error
    finally:
        if root is not None:
            sys.path.remove(str(root / "src"))


def _check_origin(root: Path | None) -> None:
    loaded = Path(str(sys.modules["tau2"].__file__)).resolve().parent
    if root is not None and loaded != root / "src" / "tau2":
        raise Tau2Missing(f"this process already runs the tau2-bench in {loaded}: start another one for {root}")


def _silence() -> None:
    """loguru is tau2-bench's logger; without it the import below says what is missing."""
    try:
        importlib.import_module("loguru").logger.disable("tau2")
    except ModuleNotFoundError as error:
        if error.name != "loguru":
            raise


def _advice(error: ModuleNotFoundError, root: Path | None) -> str:
    if error.name == "tau2" and root is None:
        return (
            f"tau2-bench is not here: set {VARIABLE} to a checkout of sierra-research/tau2-bench (GitHub), in a Python "
            "that has its dependencies; the package named tau2 on PyPI is another one"
        )
    if root is None and error.name == "tau2.registry":
        return f"the installed package tau2 is not tau2-bench but another one: set {VARIABLE} to a checkout of it"
    return f"tau2-bench needs the module {error.name}: install its dependencies (pip install {root or 'CHECKOUT'})"
