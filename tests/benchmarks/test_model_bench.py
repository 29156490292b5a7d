"""`baleen bench model`: a quick run gives every figure, and a measurement that dies says so in one line."""

import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from baleen.benchmarks.model import bench_model
from baleen.benchmarks.model_figures import figures
from baleen.benchmarks.model_parts import PARTS, QUICK_SIZES, Bench, Sizes, measure_long, measure_prefill
from baleen.benchmarks.networks import BENCHMARK, QUICK
from baleen.benchmarks.operations import prefill_operations
from baleen.benchmarks.peer import _fastest
from baleen.benchmarks.processes import MeasurementError, run_task
from baleen.benchmarks.results import BenchmarkError, Results
from baleen.cli import main
from baleen.model.arithmetic import forward_flops
from baleen.model.config import ModelConfig

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_quick_run_gives_json_with_every_figure_and_a_drawing(tmp_path):
    command = [sys.executable, "-m", "baleen", "bench", "model", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "model-quick.json").read_text())
    assert {row["part"] for row in content["figures"]} == set(PARTS)
    for row in content["figures"]:
        assert row["verdict"] in ("met", "missed"), row
        assert row["name"] in done.stdout
        assert row["target"] in done.stdout
    assert content["machine"]["cores"] >= 1
    assert content["machine"]["torch"]
    assert isinstance(content["machine"]["native_bfloat16"], bool)
    assert "transformers" in next(line for line in done.stdout.splitlines() if line.startswith("256      t"))
    assert all("date" in entry and "task" in entry for entry in content["measurements"].values())
    drawing = ElementTree.parse(tmp_path / "cost-against-length.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list(drawing.iter("{http://www.w3.org/2000/svg}polyline"))) == 4
    page = (tmp_path / "model.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert "training step at 256" in page
    # Parts that are measured again go into the same file beside the others.
    before = content["measurements"]["peer/choice"]
    assert main(["bench", "model", "--quick", "--only", "decode", "--out", str(tmp_path)]) == 0
    after = json.loads((tmp_path / "model-quick.json").read_text())
    assert after["measurements"]["peer/choice"] == before
    assert after["measurements"]["decode"]["seconds"] != content["measurements"]["decode"]["seconds"]
    assert all(row["met"] is not None for row in after["figures"])


@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL; the kernel does that when memory runs out"),
        ("raise MemoryError('no room for 3 GB')", "failed: MemoryError: no room for 3 GB"),
        ("import sys; sys.exit(3)", "failed: exit status 3"),
        ("print('hello')", "did not answer in JSON: 'hello"),
        ("import time; time.sleep(60)", "took more than 1 s and was stopped"),
    ],
)
def test_a_process_that_dies_is_one_clear_line(program, told):
    with pytest.raises(MeasurementError) as caught:
        run_task({}, 1 if "sleep" in program else 30, [sys.executable, "-c", program])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_killed_benchmark_leaves_no_measurement_running():
    task = {"measure": "prefill", "length": 100_000, "form": "dense", "dtype": "float32", "compute": "float32"}
    program = f"from baleen.benchmarks.processes import run_task; run_task({task | {'quick': True}}, 60)"
    with subprocess.Popen([sys.executable, "-c", program], env=ENVIRONMENT) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        workers = awaited(lambda: children.read_text().split())
        # The memory that torch takes: by then the worker has begun.
        awaited(lambda: int(Path(f"/proc/{workers[0]}/statm").read_text().split()[1]) * 4096 > 150e6)
        parent.terminate()
    assert awaited(lambda: not is_running(workers[0]))


def awaited(condition, seconds=30):
    """The condition's value as soon as it holds; fails when it does not come to hold."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


def is_running(pid):
    """Whether a process is there and not a zombie."""
    file = Path(f"/proc/{pid}/stat")
    return file.exists() and file.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_measurement_that_died_is_noted_and_its_figures_say_so(tmp_path, capsys):
    results = Results(tmp_path / "model.json", "model", quick=True, timeout=30)
    bench = Bench(QUICK_SIZES, results)
    assert results.measure("decode", {"measure": "decode", "lengths": "nonsense"}) is None
    assert "decode ... the process failed: TypeError" in capsys.readouterr().err
    assert "TypeError" in json.loads((tmp_path / "model.json").read_text())["measurements"]["decode"]["error"]
    made = {figure.part: figure for figure in figures(bench)}
    assert made["decode"].met is None
    assert made["decode"].note.startswith("decode: the process failed: TypeError")
    assert "peer/choice: not measured" not in made["train"].note
    assert "train/sparse: not measured" in made["train"].note


def answers(bench, seconds):
    """Puts answers in place of the processes: `seconds` by the beginning of the key."""
    asked = []

    def measure(key, task):
        asked.append(key)
        if key == "peer/choice":
            form = {"attention": "sdpa", "experts": "eager", "use_cache": False}
            scale = bench.sizes.choice / 1024
            entry = {"best": {name: {**form, "seconds": seconds[name] * scale} for name in bench.sizes.dtypes}}
        else:
            entry = {"seconds": [seconds["bfloat16" if "bfloat16" in key else "float32"] * task["length"] / 1024]}
        bench.results.content["measurements"][key] = entry
        return entry

    bench.results.measure = measure
    return asked


@pytest.mark.parametrize(
    ("seconds", "left_out"),
    [
        ({"float32": 1.0, "bfloat16": 2.0}, []),
        ({"float32": 1.4, "bfloat16": 14.0}, [f"peer/bfloat16/{n}" for n in (4096, 8192)]),
        (
            {"float32": 70.0, "bfloat16": 80.0},
            [f"peer/{dtype}/{n}" for n in (4096, 8192) for dtype in ("float32", "bfloat16")],
        ),
    ],
    ids=["both", "one dtype is hopeless", "too long"],
)
def test_the_peer_is_spared_prompts_that_would_take_too_long(seconds, left_out, tmp_path):
    bench = Bench(Sizes(), Results(tmp_path / "model.json", "model", quick=False, timeout=1))
    asked = answers(bench, seconds)
    measure_prefill(bench)
    entries = bench.results.content["measurements"]
    assert [key for key, entry in entries.items() if "left out" in entry.get("error", "")] == left_out
    assert not set(asked) & set(left_out)


def test_the_peers_form_is_chosen_one_choice_after_the_other():
    costs = {("a", 1): 5.0, ("b", 1): 3.0, ("b", 2): 4.0}
    asked = []

    def cost(form):
        asked.append((form["kind"], form["size"]))
        if form["size"] == 3:
            raise RuntimeError("not on a CPU")
        return costs[asked[-1]]

    choices = [{"kind": "a", "size": 1}, {"kind": "b"}, {"size": 2}, {"size": 3}]
    tried = _fastest(choices, cost)
    assert asked == [("a", 1), ("b", 1), ("b", 2), ("b", 3)]
    assert [one["seconds"] for one in tried] == [3.0, 4.0, 5.0, None]
    assert tried[-1]["error"] == "not on a CPU"
    assert len(_fastest(choices, cost, hopeless=4.5)) == 1


def test_our_dense_side_is_the_faster_of_its_two_forms(tmp_path):
    sizes = Sizes(dtypes=("float32",))
    for form, other in (("dense", "dense_whole"), ("dense_whole", "dense")):
        bench = Bench(sizes, Results(tmp_path / f"{form}.json", "model", quick=False, timeout=1))
        asked = {}

        def measure(key, task, faster=form, bench=bench, asked=asked):
            asked[key] = task
            bench.results.content["measurements"][key] = {"seconds": [1.0 if task["form"] == faster else 2.0]}
            return bench.results.get(key)

        bench.results.measure = measure
        measure_long(bench)
        assert f"prefill/{form}/float32/32768" in asked
        assert f"prefill/{other}/float32/32768" not in asked
        assert asked["long/dense-one-layer"]["form"] == form


@pytest.mark.parametrize("length", [5, 512, 513, 2048])
def test_operations_are_those_of_the_plan_token_by_token(length):
    config = ModelConfig(**BENCHMARK)
    heads = 2 * config.hidden_size * config.vocab_size * (length - 1)  # a prompt needs the last token's logits alone
    for sparse in (False, True):
        tokens = (forward_flops(config, context, sparse=sparse).total for context in range(1, length + 1))
        assert prefill_operations(BENCHMARK, length, sparse=sparse) == sum(tokens) - heads


def test_operations_are_those_of_the_issue():
    assert prefill_operations(BENCHMARK, 8192, sparse=True) == pytest.approx(0.53e12, rel=0.02)
    attention = [prefill_operations(BENCHMARK, n, sparse=False) - 2 * n * 0.5 for n in (32768, 65536)]
    assert 3 < attention[1] / attention[0] < 4


@pytest.mark.parametrize("fields", [BENCHMARK, QUICK], ids=["benchmark", "quick"])
def test_operations_of_a_short_prompt_are_what_torch_counts(fields):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from baleen.benchmarks.networks import build, token_ids

    small = fields | {"num_hidden_layers": 2}
    model, length = build(small), 96
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = model(token_ids(fields["vocab_size"], length), sparse=False, logits=False)
        model.lm_head(out.hidden[:, -1:])
    # torch counts the products; the fused attention is not among them on a CPU.
    pairs = length * (length + 1) // 2
    pair_width = fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"] + fields["v_head_dim"]
    attention = 2 * small["num_hidden_layers"] * pairs * fields["num_attention_heads"] * pair_width
    assert counter.get_total_flops() + attention == prefill_operations(small, length, sparse=False)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_peak_memory_is_what_came_on_top_since_the_start():
    program = """
from baleen.benchmarks.clock import PeakMemory
before = bytearray(b"x") * 400_000_000
del before
memory = PeakMemory()
during = bytearray(b"x") * 100_000_000
del during
print(memory.read()["memory_bytes"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 95e6 < int(done.stdout) < 150e6


def test_a_prompt_that_failed_is_not_followed_by_longer_ones(tmp_path):
    bench = Bench(Sizes(dtypes=("float32",)), Results(tmp_path / "model.json", "model", quick=False, timeout=1))
    asked = answers(bench, {"float32": 1.0, "bfloat16": 1.0})
    answering = bench.results.measure

    def measure(key, task):
        if key != "peer/float32/2048":
            return answering(key, task)
        bench.results.content["measurements"][key] = {"error": "the process was ended by SIGKILL"}
        return None

    bench.results.measure = measure
    measure_prefill(bench)
    assert "peer/float32/1024" in asked
    assert bench.results.problem("peer/float32/8192") == "left out: it failed on a shorter prompt"
    speed = next(figure for figure in figures(bench) if figure.name == "prefill at 8K against transformers")
    assert speed.met is None
    assert speed.note == "peer/float32/8192: left out: it failed on a shorter prompt"


def test_a_wrong_part_and_a_foreign_file_are_one_line(tmp_path, capsys):
    assert main(["bench", "model", "--only", "prefil", "--out", str(tmp_path)]) == 2
    assert "no part 'prefil'; did you mean 'prefill'?" in capsys.readouterr().err
    file = tmp_path / "model.json"
    file.write_text(json.dumps({"benchmark": "model", "quick": True}))
    with pytest.raises(BenchmarkError, match="was not written by `bench model`: give another --json"):
        bench_model(only=["decode"], json_file=file)
    file.write_text("{")
    with pytest.raises(BenchmarkError, match="not JSON"):
        bench_model(only=["decode"], json_file=file)
