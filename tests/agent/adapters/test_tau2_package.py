"""Where tau2-bench is not, or something else has its name, or half of it: every error says what to do."""

import subprocess
import sys

import pytest

from baleen.agent.adapters.tau2_package import Tau2Missing, missing_data, tau2_module
from baleen.benchmarks.tau2 import main


@pytest.fixture
def nowhere(monkeypatch):
    """No tau2-bench: neither loaded, nor named; whatever was loaded is there again afterwards."""
    loaded = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tau2"}
    for name in loaded:
        del sys.modules[name]
    monkeypatch.delenv("TAU2_BENCH", raising=False)
    yield monkeypatch
    for name in [name for name in sys.modules if name.split(".")[0] == "tau2"]:
        del sys.modules[name]
    sys.modules.update(loaded)


def checkout(folder, registry="registry = 'theirs'\n"):
    package = folder / "src" / "tau2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "registry.py").write_text(registry)
    return folder


def test_without_tau2_bench_the_error_says_how_to_name_one(nowhere):
    with pytest.raises(Tau2Missing, match="set TAU2_BENCH to a checkout"):
        tau2_module("registry")


def test_another_package_of_the_name_is_told_apart(nowhere, tmp_path):
    (tmp_path / "tau2").mkdir()
    (tmp_path / "tau2" / "__init__.py").write_text("magnetic = True\n")
    nowhere.syspath_prepend(tmp_path)
    for _ in range(2):  # what was imported half way is not taken for the real one by the next call
        with pytest.raises(Tau2Missing, match="not tau2-bench but another one"):
            tau2_module("registry")


def test_a_folder_that_is_no_checkout_is_named(nowhere, tmp_path):
    with pytest.raises(Tau2Missing, match=f"{tmp_path} is no checkout"):
        tau2_module("registry", tmp_path)


def test_a_missing_dependency_is_named_and_the_way_to_get_it(nowhere, tmp_path):
    theirs = checkout(tmp_path, "import surely_nobody_has_this\n")
    with pytest.raises(Tau2Missing, match=rf"surely_nobody_has_this.*pip install {theirs}"):
        tau2_module("registry", theirs)


def test_the_variable_names_a_checkout_and_the_import_leaves_no_path_behind(nowhere, tmp_path):
    nowhere.setenv("TAU2_BENCH", str(checkout(tmp_path)))
    before = list(sys.path)
    assert tau2_module("registry").registry == "theirs"
    assert sys.path == before


def test_a_process_holds_one_tau2_bench(nowhere, tmp_path):
    one, other = checkout(tmp_path / "one"), checkout(tmp_path / "other")
    assert tau2_module("registry", one) is tau2_module("registry", one)
    with pytest.raises(Tau2Missing, match=r"already runs the tau2-bench in .*one"):
        tau2_module("registry", other)


def test_a_data_file_that_a_partial_clone_left_out_is_named():
    error = missing_data(FileNotFoundError(2, "No such file or directory", "airline/db.json"))
    assert "airline/db.json is missing" in str(error)


def test_the_measurement_says_in_one_line_that_there_is_nothing_to_measure(nowhere, capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: tau2-bench is not here")


def test_the_adapter_loads_neither_tau2_bench_nor_torch_by_itself():
    program = "import sys, baleen.agent.adapters.tau2_user; print({'tau2', 'torch', 'litellm'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
