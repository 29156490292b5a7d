"""The rules that keep the house: who may import whom, how long a file may be, and that each says what it is."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "baleen"
FILES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE = 450

# Top to bottom: a folder imports from itself and from those below it. The files at the root are the commands' level.
LAYERS = [
    *("cli", "benchmarks", "recipes", "pipeline", "report", "evaluation", "rl", "training", "synthesis"),
    *("agent", "server", "engine", "chat", "model", "ops"),
]


def layer_of(parts):
    """The layer of a dotted path below `baleen`; None for the package itself, which is everybody's."""
    if not parts:
        return None
    return parts[0] if parts[0] in LAYERS else "cli"


def imports_of(file):
    """Dotted paths below `baleen` that a file imports anywhere, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; write the full name"
            if node.module == "baleen":
                yield from ([alias.name] for alias in node.names)
            elif node.module and node.module.startswith("baleen."):
                yield node.module.split(".")[1:]
        elif isinstance(node, ast.Import):
            yield from (name.name.split(".")[1:] for name in node.names if name.name.split(".")[0] == "baleen")


def name(file):
    return str(file.relative_to(SOURCE))


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_file_imports_only_from_its_own_layer_and_those_below(file):
    if file == SOURCE / "__init__.py":
        return  # the package's face: it names what it shows, and loads it when asked
    here = LAYERS.index(layer_of(file.relative_to(SOURCE).with_suffix("").parts))
    above = [".".join(parts) for parts in imports_of(file) if parts and LAYERS.index(layer_of(parts)) < here]
    assert not above, f"{name(file)} imports from above: {', '.join(above)}"


def test_every_folder_has_its_place():
    folders = {path.parent.relative_to(SOURCE).parts[0] for path in FILES if path.parent != SOURCE}
    assert folders <= set(LAYERS)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_a_file_says_what_it_is_and_is_one_idea_long(file):
    text = file.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{name(file)} has no docstring"
    assert len(text.splitlines()) <= LONGEST_FILE, f"{name(file)} is longer than {LONGEST_FILE} lines"


@pytest.mark.parametrize("folder", ["report", "chat", "server"])
def test_folders_that_must_not_know_torch_do_not(folder):
    for file in (SOURCE / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [each for each in names if each.split(".")[0] == "torch"], f"{name(file)} imports torch"
