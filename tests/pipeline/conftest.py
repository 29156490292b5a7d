"""The toy stages for every test of this folder."""

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("pipeline_toy", Path(__file__).with_name("toy.py"))
_toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_toy)


@pytest.fixture
def toy():
    return _toy


@pytest.fixture
def toy_folder():
    return Path(__file__).parent
