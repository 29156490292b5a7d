"""A recipe is data: it loads, takes overrides, and every mistake is answered with what was meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baleen.pipeline.loading import RecipeError, as_given, known_keys, load_recipe, packaged_recipes, parse_recipe


@pytest.mark.parametrize("name", packaged_recipes())
def test_every_packaged_recipe_loads_and_survives_being_frozen(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert parse_recipe(recipe.model_dump()) == recipe


def test_micro_and_nano_come_with_the_package():
    assert {"micro", "nano"} <= set(packaged_recipes())


def test_every_field_says_what_it_is():
    recipe = load_recipe("micro")
    for section in [recipe, *(getattr(recipe, name) for name in type(recipe).model_fields)]:
        for name, field in getattr(type(section), "model_fields", {}).items():
            assert field.description, f"{type(section).__name__}.{name} has no description"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("run.seed=7", 7),
        ("run.dtype=float32", "float32"),
        ('run.dtype="float32"', "float32"),
        ("pretrain.learning_rate=1e-4", 1e-4),
        ("pretrain.learning_rate=1", 1.0),
        ("mixed_rl.keep_routing=false", False),
        ("mixed_rl.domains.tools=0.25", 0.25),
        ("corpus.path=/some/where", "/some/where"),
        ("corpus.path=a=b", "a=b"),
        ('stages=["tokenizer"]', ["tokenizer"]),
    ],
)
def test_an_override_is_a_toml_value_or_a_bare_word(override, value):
    recipe = load_recipe("micro", [override])
    found = recipe.model_dump()
    for part in override.partition("=")[0].split("."):
        found = found[part]
    assert found == value


def test_the_short_form_of_the_corpus_keeps_the_rest_of_its_section(tmp_path):
    recipe = load_recipe("micro", ["corpus=/texts"])
    assert recipe.corpus.path == "/texts"
    assert recipe.corpus.max_bytes == load_recipe("micro").corpus.max_bytes
    file = tmp_path / "own.toml"
    file.write_text('stages = ["a"]\ncorpus = "/texts"\n')
    assert load_recipe(str(file), ["corpus.max_bytes=5"]).corpus.path == "/texts"
    assert load_recipe(str(file)).name == "own"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pretrian.steps=3", r"'pretrian\.steps'; did you mean 'pretrain\.steps'"),
        ("pretrain.step=3", r"'pretrain\.steps'"),
        ("mixed_rl.keep_rooting=true", r"'mixed_rl\.keep_routing'"),
        ("seed=3", r"'run\.seed'"),
        ("zzz.q=3", "the sections are"),
        ("pretrain.steps=many", r"pretrain\.steps.*integer.*'many'"),
        ("pretrain.steps=true", r"pretrain\.steps.*integer"),
        ("pretrain.steps=1.5", r"pretrain\.steps.*integer"),
        ("run.dtype=float16", r"run\.dtype.*'float32' or 'bfloat16'"),
        ("mixed_rl.top_p=2", r"mixed_rl\.top_p.*less than or equal to 1"),
        ("model.n_group=7", r"n_routed_experts \d+ must be a multiple"),
        ('stages=["a", "a"]', "more than once"),
        ('run.dtype="half', "not a TOML value"),
        ("steps", "key=value"),
    ],
)
def test_a_mistake_names_the_key_and_what_was_meant(override, told):
    with pytest.raises(RecipeError, match=told):
        load_recipe("micro", [override])


@given(key=st.sampled_from(known_keys()), data=st.data())
def test_a_key_with_one_letter_lost_finds_its_way_back(key, data):
    at = data.draw(st.integers(0, len(key) - 1).filter(lambda index: key[index] != "."))
    misspelt = key[:at] + key[at + 1 :]
    if len(key.rpartition(".")[2]) < 4 or misspelt in known_keys() or misspelt.startswith("."):
        return
    with pytest.raises(RecipeError, match="did you mean") as caught:
        load_recipe("micro", [f"{misspelt}=1"])
    assert misspelt in str(caught.value)


def test_an_unknown_key_in_a_file_is_named_with_its_section(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('stages = ["a"]\n[mixed_rl]\nklip = 0.1\n')
    with pytest.raises(RecipeError, match=r"'mixed_rl\.klip'; did you mean 'mixed_rl\.clip'"):
        load_recipe(str(file))


def test_a_recipe_that_is_not_there_names_the_nearest(tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'nano'"):
        load_recipe("nanno")
    with pytest.raises(RecipeError, match="cannot read"):
        load_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("stages = [")
    with pytest.raises(RecipeError, match="not valid TOML"):
        load_recipe(str(tmp_path / "bad.toml"))


def test_the_given_text_keeps_recipe_and_overrides():
    text = as_given("micro", ["run.seed=3"])
    assert "# recipe micro" in text
    assert "# override run.seed=3" in text
    assert "[pretrain]" in text
