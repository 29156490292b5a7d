"""A run folder such as the recipe `nano` leaves, made of invented numbers, for the report to be built from."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

STAGES = (
    ("tokenizer", "Tokenizer", 12.0, 0),
    ("pretrain", "Dense pre-training", 310.0, 1_900_000),
    ("indexer_warmup", "Indexer warm-up", 40.0, 180_000),
    ("sparse", "Sparse training", 120.0, 520_000),
    ("tasks", "Environments and tasks", 9.0, 0),
    ("cold_start", "Cold start", 95.0, 600_000),
    ("specialist_tools", "Specialist: tools", 240.0, 900_000),
    ("specialist_arithmetic", "Specialist: arithmetic", 150.0, 500_000),
    ("distill", "Distillation", 70.0, 410_000),
    ("mixed_rl", "Mixed RL", 260.0, 1_000_000),
    ("evaluation", "Evaluation", 110.0, 700_000),
)
HOSTILE = "<script>alert('x')</script><img src=https://evil.example/a.png onerror=alert(1)>"


@pytest.fixture
def run_folder(tmp_path):
    """A complete run folder, hostile text included."""
    return make_run_folder(tmp_path / "runs" / "nano")


def make_run_folder(path: Path) -> Path:
    """Writes the whole folder."""
    chance = random.Random(7)
    for index, (name, title, seconds, tokens) in enumerate(STAGES, start=1):
        folder = path / "stages" / f"{index:02d}-{name}"
        folder.mkdir(parents=True)
        if name in ("pretrain", "indexer_warmup", "sparse", "cold_start", "distill"):
            write_rows(folder / "metrics.jsonl", text_rows(name, tokens, chance))
        if name.startswith("specialist") or name == "mixed_rl":
            write_rows(folder / "metrics.jsonl", rl_rows(name, chance))
        write_json(folder / "done.json", {"name": name, "title": title, "seconds": seconds, "tokens": tokens})
    write_json(path / "stages/01-tokenizer/summary.json", {"vocab_size": 4096, "bytes_per_token": 3.37})
    write_json(path / "stages/05-tasks/summary.json", {"environments": 5, "tasks": 1840, "unseen_tasks": 120})
    write_json(path / "stages/04-sparse/selection.json", selection(chance))
    write_json(path / "stages/04-sparse/sparsity.json", sparsity_json())
    write_json(path / "stages/11-evaluation/results.json", {"rows": list(result_rows())})
    write_rows(path / "stages/11-evaluation/episodes.jsonl", episode_rows(chance))
    write_json(path / "summary.json", summary_json())
    return path


def text_rows(name, tokens, chance):
    steps = 400 if name == "pretrain" else 90
    floor, height = {"pretrain": (1.6, 6.7), "cold_start": (0.06, 1.3), "distill": (0.05, 0.2)}.get(name, (1.55, 0.2))
    for step in range(steps):
        loss = floor + height * math.exp(-8 * step / steps) + chance.gauss(0, 0.03 * height**0.5)
        row = {"step": step, "tokens": (step + 1) * tokens // steps, "learning_rate": 1e-3, "tokens_per_second": 6800.0}
        row["loss"] = 2.2 * math.exp(-4 * step / steps) + 0.1 if name == "indexer_warmup" else loss
        if name == "indexer_warmup":
            row["kl"] = row["loss"]
        if name == "sparse":
            row["kl"] = 0.12 + 0.1 * math.exp(-5 * step / steps) + abs(chance.gauss(0, 0.01))
        if name == "pretrain":
            row |= {"mtp_loss": loss + 0.6, "load_max": 1.2 + 1.5 * math.exp(-9 * step / steps)}
        if step % 50 == 49 or step == steps - 1:
            row["validation_loss"] = loss + 0.05
        yield row


def rl_rows(name, chance):
    for step in range(60):
        share = step / 59
        outcome = min(1.0, max(0.0, 0.45 + 0.42 * share + chance.gauss(0, 0.06)))
        row = {
            "step": step,
            "reward": outcome * 1.05,
            "outcome": outcome,
            "kl": 0.02 * share + abs(chance.gauss(0, 0.002)),
        }
        row |= {"entropy": 0.5 - 0.3 * share + chance.gauss(0, 0.02), "clip_fraction": abs(chance.gauss(0, 0.004))}
        row |= {"mask_fraction": 0.0, "mismatch": 10 ** chance.gauss(-6.4, 0.2), "length_mean": 140 - 30 * share}
        row |= {"tokens_per_second": 2400 + chance.gauss(0, 90), "groups_used": chance.randint(6, 16)}
        if name == "mixed_rl":
            row |= {f"outcome_{domain}": outcome * rate for domain, rate in (("tools", 0.95), ("arithmetic", 1.0))}
            row |= {"reward_length": 0.04, "reward_language": 0.01}
        yield row


def selection(chance):
    length, topk = 512, 48
    layers = []
    for layer in range(4):
        sinks = sorted(chance.sample(range(length), 12))
        selected = []
        for query in range(length):
            local = range(max(0, query - (10 + 8 * layer)), query + 1)
            picked = set(local) | {key for key in sinks if key <= query}
            while len(picked) < min(topk, query + 1):
                picked.add(chance.randrange(query + 1))
            selected.append(sorted(picked))
        layers.append({"layer": layer, "queries": list(range(length)), "selected": selected})
    tokens = [
        chance.choice(["def", " return", " self", "\n", " </script>", " http://a.b", " x"]) for _ in range(length)
    ]
    return {"tokens": tokens, "layers": layers, "index_topk": topk}


def sparsity_json():
    def phase(selected, loss):
        by_layer = [
            {"selected": selected - 0.02 * i, "oracle": 0.98, "recent": 0.7 - 0.05 * i, "random": 0.3} for i in range(4)
        ]
        mass = {"selected": selected, "oracle": 0.978, "recent": 0.641, "random": 0.287, "by_layer": by_layer}
        needle = [{"depth": d / 10, "dense": 0.92, "sparse": 0.9 - 0.02 * (d % 3), "n": 50} for d in range(0, 11, 2)]
        return {"validation_loss": {"dense": 1.612, "sparse": loss}, "attention_mass": mass, "needle": needle}

    return {"after_warmup": phase(0.91, 1.664), "after_sparse": phase(0.958, 1.619)}


def result_rows():
    rates = {
        "cold_start": 0.55,
        "specialist_tools": 0.78,
        "specialist_arithmetic": 0.74,
        "distill": 0.8,
        "mixed_rl": 0.87,
    }
    for checkpoint, rate in rates.items():
        for domain, ease in (("tools", 0.0), ("arithmetic", 0.04), ("alignment", 0.08)):
            for split in ("test", "unseen") if domain == "tools" else ("test",):
                settings = [("all", "all", 1), ("all", "all", 4), ("thinking", "all", 1), ("non-thinking", "all", 1)]
                settings += [("all", difficulty, 1) for difficulty in range(1, 5)] if domain != "alignment" else []
                for mode, difficulty, k in settings:
                    value = (
                        rate
                        + ease
                        - (0.3 if split == "unseen" else 0)
                        + 0.08 * (k == 4)
                        - 0.04 * (mode == "non-thinking")
                    )
                    value -= 0.06 * (difficulty - 2) if difficulty != "all" else 0
                    value = min(0.99, value)
                    row = {"checkpoint": checkpoint, "domain": domain, "split": split, "mode": mode, "k": k}
                    yield row | {
                        "difficulty": difficulty,
                        "value": value,
                        "low": value - 0.05,
                        "high": min(1, value + 0.04),
                        "n": 240,
                    }


def episode_rows(chance):
    for index in range(60):
        checkpoint = "mixed_rl" if index % 2 else "cold_start"
        environment = ["library", "warehouse", "clinic", "calendar", "arithmetic"][index % 5]
        right = chance.random() < 0.6
        yield episode(index, checkpoint, environment, 1 + index % 4, right, thinking=index % 3 != 0)


def episode(index, checkpoint, environment, difficulty, right, thinking=True):
    asked = f"Which member has borrowed 'The {index} Whales' and is the loan overdue? Answer with the name. {HOSTILE}"
    messages = [
        {"role": "system", "content": "You are the clerk of a small library. Use the tools."},
        {"role": "user", "content": asked},
    ]
    for step in range(difficulty):
        call = {"name": "find_loan", "arguments": json.dumps({"title": f"The {index} Whales", "page": step})}
        thought = f"I need the loan first; step {step}. The tool takes a title. {HOSTILE}"
        messages.append(
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": thought if thinking else None,
                "tool_calls": [{"id": f"c{step}", "type": "function", "function": call}],
            }
        )
        answer = {"member": "Tarivo Meldan", "due": "2031-04-02", "overdue": step % 2 == 0, "note": HOSTILE}
        messages.append({"role": "tool", "tool_call_id": f"c{step}", "content": json.dumps(answer)})
    messages.append({"role": "assistant", "content": "Tarivo Meldan; the loan is overdue.", "reasoning_content": None})
    task = {
        "id": f"{environment}-{index}",
        "family": "general",
        "domain": "tools",
        "difficulty": difficulty,
        "split": "test",
    }
    task |= {"messages": messages[:2], "environment": environment, "verifier": "equals", "thinking": thinking}
    task |= {"metadata": {"expected": "Tarivo Meldan"}}
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {}}} for name in ("find_loan", "find_member")
    ]
    rewards = {"outcome": float(right), "length": 0.02 if right else 0.0}
    return {
        "checkpoint": checkpoint,
        "task": task,
        "messages": messages,
        "tools": tools,
        "status": "finished",
        "rewards": rewards,
    }


def summary_json():
    return {
        "recipe": "nano",
        "seed": 0,
        "wall_seconds": 1416.0,
        "peak_rss_bytes": int(3.4 * 2**30),
        "validation_loss": {"dense": 1.612, "sparse": 1.619},
        "attention_mass": {"selected": 0.958, "oracle": 0.978, "recent": 0.641, "random": 0.287},
        "pass_at_1": {
            "cold_start": {"value": 0.55, "n": 240, "low": 0.49, "high": 0.61},
            "mixed_rl": {"value": 0.87, "n": 240, "low": 0.82, "high": 0.91},
            "unseen_tools": {"value": 0.57, "n": 120, "low": 0.48, "high": 0.66},
        },
        "logprob_gap": {"replay": 4.1e-7, "without_replay": 0.031, "dtype": "float32"},
        "parameters": {"total": 2_400_000, "active": 1_300_000},
        "stages": [{"name": n, "title": t, "seconds": s, "tokens": k} for n, t, s, k in STAGES],
    }


def write_json(path, value):
    path.write_text(json.dumps(value))


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
