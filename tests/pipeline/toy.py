"""Small stages that are real: they checkpoint, resume, draw random numbers and can be killed anywhere."""

import json
import time

import torch

from baleen.pipeline.loading import parse_recipe
from baleen.training.records import MetricsLog, write_json_atomic


def recipe(*stages, **sections):
    return parse_recipe({"name": "toy", "stages": list(stages or ("walk", "sum")), **sections})


class Walk:
    """A random walk that keeps its position and its generator's state in a checkpoint at every third step."""

    title = "A random walk"

    def __init__(self, name="walk", steps=12, pause=0.0):
        self.name, self.steps, self.pause = name, steps, pause
        self.calls = 0

    def run(self, context):
        self.calls += 1
        log, checkpoint = MetricsLog(context.folder / "metrics.jsonl"), context.folder / "checkpoint.json"
        step, position = 0, 0.0
        if checkpoint.exists():
            kept = json.loads(checkpoint.read_text())
            step, position = kept["step"], kept["position"]
            torch.set_rng_state(torch.tensor(kept["random"], dtype=torch.uint8))
        log.truncate_after(step)
        while step < self.steps:
            position += torch.randn(()).item()
            step += 1
            log.append({"step": step, "position": position})
            time.sleep(self.pause)
            if step % 3 == 0:
                state = torch.get_rng_state().tolist()
                write_json_atomic(checkpoint, {"step": step, "position": position, "random": state})
            context.progress.update(step, self.steps, loss=position)
        return {"tokens": 10 * step, "position": position, "run_summary": {"validation_loss": {"dense": position}}}


class Sum:
    """Reads what the walk left."""

    name, title = "sum", "The sum"

    def run(self, context):
        rows = list(MetricsLog(context.artefact("walk", "metrics.jsonl")))
        total = sum(row["position"] for row in rows)
        return {"total": total, "run_summary": {"validation_loss": {"sparse": total}, "logprob_gap": 1e-6}}
