"""The commands: parses, calls, prints. What a command needs is imported when it runs, so that `--help` answers at once.

A mistake of the user's comes back as one readable line on stderr and exit status 2; an error that is not ours keeps its
traceback, because it is a fault to report.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # what shells report for a program ended by Ctrl-C

# Mistakes that the operating system names as well as we could: a path that is not there, or there already.
NAMED_BY_THE_SYSTEM = (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    began = time.perf_counter()
    options = _parse(arguments)
    try:
        return int(options.command(options, began) or 0)
    except KeyboardInterrupt:
        print("\nstopped. " + options.when_stopped, file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away: nothing to say and nobody to say it to
        return EXIT_INTERRUPTED
    except Exception as error:
        if not (type(error).__module__.startswith("baleen.") or isinstance(error, NAMED_BY_THE_SYSTEM)):
            raise
        print(f"baleen: {error}", file=sys.stderr)
        return EXIT_USER_ERROR


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. Overrides may stand behind `--out` too, where argparse alone would not know them any more."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(part.startswith("-") for part in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="baleen", description="The open recipe of DeepSeek-V3.2, small enough to read."
    )
    parser.add_argument("-V", "--version", action=_Version, nargs=0, help="print the version and stop")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="train a recipe, or go on with a run that was stopped")
    _recipe_arguments(run)
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/RECIPE)")
    run.add_argument("--dry-run", action="store_true", help="print stages, parameters, tokens and time, and stop")
    run.set_defaults(command=_run, when_stopped="Nothing is lost: run the same command to go on.")

    plan = commands.add_parser("plan", help="print what a network needs: parameters, operations, memory per device")
    _plan_arguments(plan)
    plan.set_defaults(command=_plan)

    convert = commands.add_parser("convert", help="make a sparse-attention folder from a dense MLA folder")
    convert.add_argument(
        "src", type=Path, help="Hugging Face folder of a dense MLA model (deepseek_v2, _v3, kimi_k2, glm4_moe_lite)"
    )
    convert.add_argument("dst", type=Path, help="folder to write")
    convert.add_argument(
        "--indexer",
        choices=("derived", "random"),
        default="derived",
        help="its first weights: from the attention's own (default; warms up several times faster) or random",
    )
    convert.add_argument("--index-heads", type=int, default=64, help="heads of the indexer (default: 64)")
    convert.add_argument("--index-dims", type=int, default=128, help="dimensions of an index head (default: 128)")
    convert.add_argument("--index-topk", type=int, default=2048, help="tokens that a query selects (default: 2048)")
    convert.set_defaults(command=_convert)

    chat = commands.add_parser("chat", help="talk to a model, with tools")
    chat.add_argument("path", type=Path, help="model folder, such as runs/nano/final")
    chat.add_argument("--no-thinking", action="store_true", help="answer without thinking first")
    chat.add_argument("--environment", metavar="NAME", help="offer the tools of this environment, such as library")
    chat.set_defaults(command=_chat)

    serve = commands.add_parser("serve", help="serve a model to OpenAI's clients, and a chat page")
    _serve_arguments(serve)
    serve.set_defaults(command=_serve)

    synth = commands.add_parser("synth", help="make environments and tasks")
    synth.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write tasks.jsonl in")
    synth.add_argument("--seed", type=int, default=0, help="the same seed gives the same tasks (default: 0)")
    synth.add_argument(
        "--tasks", type=int, default=1000, help="training tasks; a tenth is held out beside (default: 1000)"
    )
    synth.set_defaults(command=_synth)

    env = commands.add_parser("env", help="environments for others")
    environments = env.add_subparsers(title="commands", metavar="COMMAND", required=True)
    env_serve = environments.add_parser("serve", help="serve an environment's tools, task and verdict over MCP")
    env_serve.add_argument("subject", metavar="NAME", help="an environment, such as library, or a tasks.jsonl")
    env_serve.add_argument("--task", metavar="ID", help="this task alone (default: the client chooses)")
    env_serve.add_argument("--seed", type=int, default=0, help="the same seed gives the same tasks (default: 0)")
    way = env_serve.add_mutually_exclusive_group()
    way.add_argument("--stdio", action="store_true", help="over standard input and output, one session")
    way.add_argument("--port", type=int, default=8001, help="over HTTP on this machine; 0 takes a free one (8001)")
    env_serve.set_defaults(command=_env_serve)

    evaluate = commands.add_parser("eval", help="measure a model on held-out tasks")
    evaluate.add_argument("path", type=Path, help="model folder, such as runs/nano/final")
    evaluate.add_argument("--tasks", type=int, default=200, help="tasks of each split (default: 200)")
    evaluate.add_argument("--attempts", type=int, default=4, help="attempts per task, for pass@k (default: 4)")
    evaluate.add_argument("--seed", type=int, default=0, help="seed of tasks and sampling (default: 0)")
    evaluate.set_defaults(command=_eval)

    report = commands.add_parser("report", help="write a run folder's report.html, or the page of a file of episodes")
    report.add_argument("run", type=Path, metavar="RUN", help="run folder, such as runs/nano, or an episodes.jsonl")
    report.set_defaults(command=_report)

    bench = commands.add_parser("bench", help="measure this machine: our model beside its peers and its targets")
    benchmarks = bench.add_subparsers(title="benchmarks", metavar="NAME", required=True)
    bench_model = benchmarks.add_parser("model", help="prefill, decoding, training and memory, against transformers")
    _bench_arguments(bench_model, "model", _bench_model)

    bench_serve = benchmarks.add_parser("serve", help="the engine and the server, against transformers' generate")
    bench_serve.add_argument("path", type=Path, help="model folder, such as runs/nano/final")
    _bench_arguments(bench_serve, "serve", _bench_serve)

    bench_agent = benchmarks.add_parser("agent", help="sandbox, context strategies, and tau2-bench replayed")
    _bench_arguments(bench_agent, "agent", _bench_agent)

    doctor = commands.add_parser("doctor", help="say what this machine has, what is missing and how to get it")
    doctor.set_defaults(command=_doctor)

    for command in commands.choices.values():
        if command.get_default("when_stopped") is None:
            command.set_defaults(when_stopped="")
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: the look-up costs more than the rest of the parser."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"baleen {version('baleen')}")
        parser.exit()


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe that comes with baleen (micro, nano) or a TOML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, such as run.seed=1")


def _bench_arguments(parser: argparse.ArgumentParser, name: str, command: Callable[..., int]) -> None:
    parser.add_argument("--quick", action="store_true", help="the smallest sizes: tries the command")
    parser.add_argument(
        "--only", type=_names, default=[], metavar="PART,...", help="these parts, merged into an existing JSON"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"where the numbers go (default: DIR/{name}.json)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="folder for results (default: runs/bench)"
    )
    parser.set_defaults(command=command, when_stopped="What was measured is saved; --only PART,... measures the rest.")


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="model folder, such as runs/nano/final")
    key = os.environ.get("BALEEN_API_KEY")
    for name, default, note in (
        ("host", "127.0.0.1", "address to listen on (default: this machine alone)"),
        ("port", 8000, "0 takes a free one (default: 8000)"),
        ("model-name", None, "what clients ask for (default: the folder's name)"),
        ("api-key", key, "asked for (default: $BALEEN_API_KEY)"),
        ("max-tokens", None, "longest sequence (default: the model's context)"),
        ("max-running", 64, "sequences at once (default: 64)"),
        ("max-waiting", 256, "sequences that wait, then 429 (default: 256)"),
        ("memory", None, "GiB for the cache (default: a quarter of what is free)"),
        ("threads", None, "of the engine (default: all but one, two at least)"),
        ("request-seconds", 600.0, "longest request (default: 600)"),
        ("drain-seconds", 30.0, "for running requests after SIGTERM (default: 30)"),
    ):
        kind = {"memory": float, "threads": int, "max-tokens": int}.get(name, str if default is None else type(default))
        parser.add_argument(f"--{name}", default=default, type=kind, metavar="N" if kind is int else "X", help=note)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the parameters")
    for name, note in (
        ("no-thinking", "think only when a request asks for it"),
        ("drafts", "draft with the multi-token-prediction layer"),
        ("traces", "record experts and selections, for trainers"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=note)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject",
        metavar="CONFIG",
        help="a recipe (micro, nano, a TOML file), a model folder or its config.json, or deepseek-v3.2 or deepseek-v3",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe or of config.json")
    parser.add_argument("--devices", metavar="N", help="memory per device too: 64xH100, 8xH200, 2x80GB; 64 is 64xH100")
    parser.add_argument(
        "--context", type=int, metavar="TOKENS", help="length of a served sequence (default: 131072, or the longest)"
    )
    parser.add_argument(
        "--tokens", type=int, default=4096, metavar="TOKENS", help="trained tokens per device and pass (default: 4096)"
    )


def _run(options: argparse.Namespace, began: float) -> None:
    from baleen.pipeline.loading import as_given, load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    from rich.console import Console

    if options.dry_run:
        from baleen.pipeline.plan import stages_table

        Console().print(stages_table(recipe))
        return
    from baleen.pipeline.folder import open_run_folder
    from baleen.pipeline.isolation import check_isolation
    from baleen.pipeline.progress import open_progress, results_table
    from baleen.pipeline.runner import run, stages_of
    from baleen.pipeline.stages import STAGES

    # Before the folder is made: a recipe with a misspelt stage must not take the folder for itself.
    stages_of(recipe, STAGES)
    check_isolation(recipe)
    path = options.out or Path("runs") / recipe.name
    folder = open_run_folder(path, recipe, as_given(options.recipe, options.overrides))
    with open_progress() as progress:
        summary = run(recipe, folder, STAGES, progress, began=began)
    Console().print(results_table(summary))
    from baleen.report.page import write_report

    print(f"run folder {path}, report {write_report(path)}")


def _plan(options: argparse.Namespace, began: float) -> None:
    from rich.console import Console

    from baleen.pipeline.plan import plan_tables

    console = Console()
    for table in plan_tables(
        options.subject, options.overrides, devices=options.devices, context=options.context, tokens=options.tokens
    ):
        console.print(table)
        console.print()


def _convert(options: argparse.Namespace, began: float) -> None:
    from baleen.model.convert import convert

    convert(
        options.src,
        options.dst,
        index_n_heads=options.index_heads,
        index_head_dim=options.index_dims,
        index_topk=options.index_topk,
        indexer=options.indexer,
    )
    print(f"{options.dst}: a sparse model with a fresh indexer; train it with the warm-up and sparse stages")


def _chat(options: argparse.Namespace, began: float) -> None:
    from baleen.terminal import chat

    chat(options.path, thinking=not options.no_thinking, environment=options.environment)


def _serve(options: argparse.Namespace, began: float) -> None:
    from baleen.engine.params import EngineOptions
    from baleen.server.serve import serve
    from baleen.server.settings import PREFILL_SHARE, ServerSettings

    settings = ServerSettings.read(
        host=options.host,
        port=options.port,
        model_name=options.model_name,
        api_key=options.api_key or None,
        thinking=not options.no_thinking,
        max_waiting=options.max_waiting,
        request_seconds=options.request_seconds,
        drain_seconds=options.drain_seconds,
    )
    engine = EngineOptions(
        max_running=options.max_running,
        max_tokens=options.max_tokens,
        memory_bytes=None if options.memory is None else int(options.memory * (1 << 30)),
        prefill_share=PREFILL_SHARE,
        drafts=options.drafts,
        threads=options.threads,
        dtype=options.dtype,
        traces=options.traces,
    )
    serve(options.path, settings, engine)


def _env_serve(options: argparse.Namespace, began: float) -> None:
    from baleen.served_environment import serve

    transport: Literal["stdio", "http"] = "stdio" if options.stdio else "http"
    serve(options.subject, task=options.task, seed=options.seed, transport=transport, port=options.port)


def _synth(options: argparse.Namespace, began: float) -> None:
    from baleen.synthesis.catalogue import synthesise

    held_out = max(1, options.tasks // 10)
    tasks = synthesise(options.seed, train=options.tasks, test=held_out, unseen=held_out)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "tasks.jsonl"
    tasks.save(file)
    for place, counts in tasks.statistics().items():
        print(f"{place}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    print(f"{len(tasks.tasks)} tasks in {file}")


def _eval(options: argparse.Namespace, began: float) -> None:
    from baleen.terminal import evaluate

    evaluate(options.path, tasks=options.tasks, attempts=options.attempts, seed=options.seed)


def _report(options: argparse.Namespace, began: float) -> None:
    if options.run.suffix == ".jsonl":
        from baleen.report.viewer import write_viewer

        print(write_viewer([options.run], options.run.with_suffix(".html")))
    else:
        from baleen.report.page import write_report

        print(write_report(options.run))


def _bench_model(options: argparse.Namespace, began: float) -> int:
    from baleen.benchmarks.model import bench_model

    made = bench_model(quick=options.quick, only=options.only, json_file=options.json, out=options.out)
    return int(not options.only and any(figure.met is None for figure in made))


def _bench_serve(options: argparse.Namespace, began: float) -> int:
    from baleen.benchmarks.model_page import verdict
    from baleen.benchmarks.serve import bench_serve

    made = bench_serve(options.path, quick=options.quick, only=options.only, json_file=options.json, out=options.out)
    return int(not options.only and any(verdict(one) == "not measured" for one in made))


def _bench_agent(options: argparse.Namespace, began: float) -> int:
    from baleen.benchmarks.agent import bench_agent

    bench_agent(quick=options.quick, only=options.only, json_file=options.json, out=options.out)
    return 0


def _doctor(options: argparse.Namespace, began: float) -> int:
    from baleen.doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{'ok     ' if finding.fine else 'missing'}  {finding.name:<12} {finding.value}")
        if finding.remedy:
            print(f"{'':22}{finding.remedy}")
    return 0 if all(finding.fine or finding.optional for finding in findings) else 1
