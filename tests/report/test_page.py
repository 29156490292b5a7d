"""The report is one file, asks for nothing, trusts no text, and stands on whatever a run has left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from baleen.report.page import SECTIONS, write_report
from baleen.report.run_folder import RunFolder
from baleen.report.viewer import ASSETS as VIEWER_ASSETS


def page_of(run_folder):
    return write_report(run_folder).read_text(encoding="utf-8")


def rewrite(path, change):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def test_the_report_is_one_small_file_beside_the_run(run_folder):
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    assert path.stat().st_size < 3_000_000
    assert not list(run_folder.glob("*.partial"))


def test_the_report_refers_to_nothing_outside_itself(run_folder):
    page = page_of(run_folder)
    assert not re.search(r"https?://", page)
    assert all(target.startswith("#") for target in re.findall(r'\bhref="([^"]*)"', page))
    assert not re.search(r"<[^>]*\ssrc=", page)
    assert not re.search(r"<(link|img|iframe|object|embed|base|form)\b", page)
    assert "@import" not in page
    assert "url(" not in page
    assert "default-src &#x27;none&#x27;" in page


def test_hostile_text_stays_text(run_folder):
    rewrite(run_folder / "summary.json", lambda s: s.update(recipe="<script>alert('x')</script>"))
    page = page_of(run_folder)
    assert page.count("<script>") == len([name for name in VIEWER_ASSETS if name.endswith(".js")]) + 1
    assert "&lt;script&gt;alert(&#x27;x&#x27;)" in page


def test_every_complete_section_has_its_figures_and_nothing_is_missing(run_folder):
    page = page_of(run_folder)
    for section in SECTIONS:
        assert f"<h2>{section.title}</h2>" in page
    assert 'class="missing"' not in page
    assert page.count("<svg") > 25
    for title in ("Sampler–trainer mismatch", "Layer 3", "Dense pre-training: loss", "Pass@1 by difficulty: tools"):
        assert title in page


def test_headline_targets_are_judged(run_folder):
    assert "7 of 7 targets met" in page_of(run_folder)
    rewrite(run_folder / "summary.json", lambda s: s["pass_at_1"]["mixed_rl"].update(value=0.6))
    page = page_of(run_folder)
    assert "5 of 7 targets met" in page
    assert page.count("<b>not met</b>") == 2


def test_a_pass_rate_over_too_few_tasks_is_not_called_met(run_folder):
    rewrite(run_folder / "summary.json", lambda s: s["pass_at_1"]["mixed_rl"].update(n=60))
    page = page_of(run_folder)
    assert "fewer than 200 tasks" in page
    assert "6 of 7 targets met" in page


def test_the_smallest_recipe_is_not_held_to_nanos_pass_rates(run_folder):
    rewrite(run_folder / "summary.json", lambda s: s.update(recipe="micro"))
    assert page_of(run_folder).count("nano&#x27;s target") == 2


def test_an_empty_run_folder_gives_a_page_whose_sections_say_so(tmp_path):
    page = page_of(tmp_path)
    assert page.count('class="missing"') == len(SECTIONS)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder at"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize("index", range(11))
def test_any_one_stage_may_be_missing(run_folder, index):
    shutil.rmtree(sorted((run_folder / "stages").iterdir())[index])
    assert "<h2>Episodes to read</h2>" in page_of(run_folder)


def test_a_run_under_way_shows_the_stages_it_has(run_folder):
    (run_folder / "summary.json").unlink()
    for folder in sorted((run_folder / "stages").iterdir())[3:]:
        shutil.rmtree(folder)
    page = page_of(run_folder)
    assert "the run has not ended" in page
    assert "Indexer warm-up: indexer KL" in page
    assert "sparse, cold start, distill" in page


def test_nan_null_and_wrong_types_are_tolerated(run_folder):
    spoil = {"loss": float("nan"), "kl": None, "reward": "high", "outcome": float("inf"), "mismatch": [], "step": None}
    for path in run_folder.glob("stages/*/metrics.jsonl"):
        path.write_text(path.read_text() + json.dumps(spoil) + "\n[]\n7\n")
    for path in [run_folder / "summary.json", *run_folder.glob("stages/*/*.json")]:
        rewrite(path, spoiled)
    rows = [spoiled(json.loads(line)) for line in (run_folder / "stages/11-evaluation/episodes.jsonl").open()]
    (run_folder / "stages/11-evaluation/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(run_folder)
    assert not re.search(r'="-?(nan|inf)"', page)


def spoiled(value):
    """The value with every third leaf replaced by something unfit."""
    state = {"count": 0}
    unfit = [None, float("nan"), {}, "x", [], -1]

    def walk(part):
        if isinstance(part, dict):
            return {key: walk(item) for key, item in part.items()}
        if isinstance(part, list):
            return [walk(item) for item in part]
        state["count"] += 1
        return unfit[state["count"] // 3 % len(unfit)] if state["count"] % 3 == 0 else part

    return walk(value)


@pytest.mark.parametrize(
    "junk", ["", "{", "[]", "null", "7", '"text"', "[[[", '{"rows": 3, "layers": {}, "stages": [1, {}]}']
)
def test_a_broken_file_spoils_only_its_own_section(run_folder, junk):
    for name in ("summary.json", *(path.relative_to(run_folder) for path in run_folder.glob("stages/*/*.json"))):
        (run_folder / name).write_text(junk)
    page = page_of(run_folder)
    assert "<h2>Episodes to read</h2>" in page
    assert "Reward" in page


def test_a_broken_file_is_named_and_a_torn_last_line_is_not(run_folder):
    (run_folder / "stages/04-sparse/sparsity.json").write_text("{")
    metrics = run_folder / "stages/02-pretrain/metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 4')
    page = page_of(run_folder)
    assert "stages/04-sparse/sparsity.json" in page
    assert "02-pretrain/metrics" not in page


def test_a_step_logged_twice_counts_once_by_its_later_row(tmp_path):
    folder = tmp_path / "stages" / "02-pretrain"
    folder.mkdir(parents=True)
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 2.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert RunFolder.read(tmp_path).stage("pretrain").column("loss") == [(1.0, 3.0), (2.0, 2.0)]


def test_the_same_run_gives_the_same_page(run_folder):
    assert page_of(run_folder) == page_of(run_folder)


def test_a_huge_run_stays_under_three_megabytes(run_folder):
    evaluation = run_folder / "stages/11-evaluation"
    lines = [json.loads(line) for line in (evaluation / "episodes.jsonl").open()]
    for row in lines:
        for message in row["messages"]:
            message["content"] = "<\"&'>" * 20_000
        row["messages"] *= 30
    (evaluation / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines[:20]))
    results = json.loads((evaluation / "results.json").read_text())
    results["rows"] = [row | {"domain": f"domain {index}"} for index in range(60) for row in results["rows"]]
    (evaluation / "results.json").write_text(json.dumps(results))
    sparse = run_folder / "stages/04-sparse/selection.json"
    rewrite(sparse, lambda value: value.update(layers=value["layers"] * 16))
    assert write_report(run_folder).stat().st_size < 3_000_000


def test_writing_a_report_does_not_load_torch(run_folder):
    code = "import sys, pathlib; from baleen.report.page import write_report; write_report(pathlib.Path(sys.argv[1]));"
    command = [sys.executable, "-c", f"{code} assert 'torch' not in sys.modules", str(run_folder)]
    subprocess.run(command, check=True)


def test_a_browser_builds_the_page_and_runs_only_its_script(run_folder, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: install it to check the page in a browser")
    path = write_report(run_folder)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += [
        "--disable-background-networking",
        "--disable-component-update",
        f"--user-data-dir={tmp_path / 'browser'}",
    ]
    # The episodes are unpacked beside the page: the dump waits for them.
    command = [chromium, *flags, "--virtual-time-budget=10000", "--dump-dom", path.as_uri()]
    dump = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)}
    )
    assert dump.returncode == 0, dump.stderr
    assert "Episodes to read" in dump.stdout
    # The script turns SVG titles into data-tip: it ran, and the page's policy let it.
    assert "data-tip=" in dump.stdout
    assert 'class="row"' in dump.stdout
