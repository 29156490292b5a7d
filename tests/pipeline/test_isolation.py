"""A recipe that runs a model's programs wants them isolated, or that somebody says it need not be so."""

import shutil

import pytest

from baleen.pipeline.isolation import IsolationError, check_isolation
from baleen.pipeline.loading import load_recipe


@pytest.fixture
def nothing_isolates(monkeypatch):
    real = shutil.which
    monkeypatch.setattr("shutil.which", lambda name: None if name == "bwrap" else real(name))
    monkeypatch.setattr("baleen.agent.sandbox.weak.landlock_version", lambda: 0)


def test_where_something_isolates_a_recipe_begins():
    check_isolation(load_recipe("micro", []))


def test_where_nothing_does_it_is_refused_before_anything_is_trained(nothing_isolates):
    with pytest.raises(IsolationError, match=r"run\.weak_sandbox=true"):
        check_isolation(load_recipe("micro", []))


def test_who_accepts_it_may_go_on(nothing_isolates):
    check_isolation(load_recipe("micro", ["run.weak_sandbox=true"]))
