"""What `plan` may be asked about, and the tables that answer."""

import io
import json

import pytest

import tiny
from baleen.model.config import ModelConfig, UnsupportedCheckpointError
from baleen.pipeline.devices import DevicesError, parse_devices, serving_memory
from baleen.pipeline.loading import RecipeError
from baleen.pipeline.networks import PlanError, read_subject
from baleen.pipeline.plan import plan_tables
from baleen.pipeline.recipe import Recipe


def printed(*arguments, width=80, **options):
    """The tables as a terminal of that width shows them, one text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None)
    for table in plan_tables(*arguments, **options):
        console.print(table)
    return console.file.getvalue()


def rows_of(text, title):
    """The cells of each row of the table whose title begins so."""
    table = text[text.index(f"\n{title} ") :]
    return [[cell.strip() for cell in line[1:-1].split("│")] for line in table.splitlines() if line.startswith("│")]


def test_a_subject_is_a_recipe_a_folder_its_config_or_a_name(tmp_path):
    config = ModelConfig(**tiny.TINY)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    (tmp_path / "mine.toml").write_text('stages = ["pretrain"]')
    assert isinstance(read_subject("nano"), Recipe)
    assert isinstance(read_subject(str(tmp_path / "mine.toml")), Recipe)
    for place in (tmp_path, tmp_path / "config.json"):
        assert read_subject(str(place)).kv_lora_rank == config.kv_lora_rank
    assert read_subject("deepseek-v3.2") == read_subject("DeepSeek-V3.2") == ModelConfig()
    assert not read_subject("deepseek-v3").sparse


def test_overrides_are_the_recipes_keys_or_the_networks_fields():
    assert read_subject("nano", ["model.hidden_size=64"]).network().hidden_size == 64
    assert read_subject("deepseek-v3.2", ["num_hidden_layers=8", "q_lora_rank=512"]).num_hidden_layers == 8
    with pytest.raises(PlanError, match="did you mean 'num_hidden_layers'"):
        read_subject("deepseek-v3.2", ["num_hiden_layers=8"])
    with pytest.raises(PlanError, match="key=value"):
        read_subject("deepseek-v3.2", ["num_hidden_layers"])
    with pytest.raises(PlanError, match="hidden_size"):
        read_subject("deepseek-v3.2", ["hidden_size=wide"])
    with pytest.raises(PlanError, match="n_group"):
        read_subject("deepseek-v3.2", ["n_group=7"])


@pytest.mark.parametrize(
    "override", ["num_hidden_layers=0", "hidden_size=-1", "index_topk=0", "model_type=deepseek_v4"]
)
def test_a_network_that_cannot_be_is_refused_by_its_field(override, tmp_path):
    key, value = override.split("=")
    with pytest.raises(PlanError, match=key):
        read_subject("deepseek-v3.2", [override])
    with pytest.raises(RecipeError, match=key):
        read_subject("nano", [f"model.{override}"])
    changed = ModelConfig(**tiny.TINY).to_json() | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises((PlanError, UnsupportedCheckpointError), match=key):
        read_subject(str(tmp_path))


def test_what_is_not_there_is_answered_with_what_is_accepted(tmp_path):
    with pytest.raises(PlanError, match=r"did you mean 'deepseek-v3.2'.* config.json"):
        read_subject("deepseek-v32")
    with pytest.raises(PlanError, match="/nowhere/model"):
        read_subject("/nowhere/model")
    with pytest.raises(RecipeError, match=r"mine\.toml"):
        read_subject("mine.toml")
    with pytest.raises(PlanError, match=r"named config\.json"):
        read_subject("model.json")
    with pytest.raises(UnsupportedCheckpointError):
        read_subject(str(tmp_path))
    for text in ('{"model_type": "deepseek_v3", "hidden_size": "wide"}', "no JSON"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises((PlanError, UnsupportedCheckpointError), match=r"config\.json"):
            read_subject(str(tmp_path))


@pytest.mark.parametrize("subject", ["deepseek-v3.2", "deepseek-v3", "nano"])
@pytest.mark.parametrize("width", [80, 120])
def test_the_tables_fit_their_terminal_uncut(subject, width):
    text = printed(subject, devices="64xH100", width=width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_the_published_network_is_planned_in_figures_that_are_published():
    text = printed("deepseek-v3.2", devices="64xH100")
    for part in ("671,026,404,352", "36,625,603,584", "656 B", "132 B", "671B", "37B", "131,072", "GFLOP"):
        assert part in text
    for part in ("16.4", "81.9", "278.5", "Published in FP8: 656 B and 132 B", "sequences that fit, together"):
        assert part in text


def test_what_does_not_fit_is_said_with_the_devices_that_would_do():
    rows = {cells[0]: cells[1:] for cells in rows_of(printed("deepseek-v3.2", devices="8xH100"), "serving")}
    assert rows["weights and one sequence fit"] == ["no", "no"]
    assert rows["fewest such devices that would do"] == [
        str(serving_memory(ModelConfig(), parse_devices("8xH100"), each, 131_072).devices_needed)
        for each in ("bf16", "fp8")
    ]
    rows = {cells[0]: cells[1:] for cells in rows_of(printed("deepseek-v3.2", devices="64x24GiB"), "serving")}
    assert rows["fewest such devices that would do"][0] == "no number"


def test_a_network_without_experts_is_planned_without_them():
    layers = ["first_k_dense_replace=61", "num_nextn_predict_layers=0"]
    text = printed("deepseek-v3.2", layers, devices="8xH200")
    assert "experts, 32 of 256" not in text
    assert "the MTP layer's weights" not in " ".join(text.split())


def test_without_devices_the_network_alone_is_shown():
    assert "serving" not in printed("deepseek-v3.2")
    assert "sparse" not in printed("deepseek-v3").replace("masked", "")


def test_context_and_tokens_are_taken_and_checked():
    text = printed("deepseek-v3.2", devices="8xH200", context=32_768, tokens=1_024)
    assert "sequence of 32,768 tokens" in text
    assert "activations of 1,024 tokens" in text
    with pytest.raises(PlanError, match="163840"):
        plan_tables("deepseek-v3.2", context=1_000_000)
    with pytest.raises(PlanError, match="--tokens 0"):
        plan_tables("deepseek-v3.2", tokens=0)
    with pytest.raises(DevicesError):
        plan_tables("deepseek-v3.2", devices="many")
