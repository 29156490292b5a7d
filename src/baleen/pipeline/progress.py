"""What a run shows while it works: a live bar on a terminal, a line every ten seconds elsewhere, a table at the end.

Both forms say the same: which stage of how many, how far, the stage's figures (loss, tokens per second), time left.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.table import Table

LINE_EVERY_SECONDS = 10.0
MARK_DONE = "✓"


class RunProgress(Protocol):
    """Where the runner tells which stage it is at; `update` is the stage's own `Progress`."""

    def begin(self, index: int, count: int, title: str) -> None:
        """Stage `index` of `count` begins or goes on."""
        ...

    def skip(self, index: int, count: int, title: str, seconds: float) -> None:
        """The stage was done by an earlier attempt, in `seconds`."""
        ...

    def update(self, done: float, total: float, **figures: float) -> None:
        """See `pipeline.stage.Progress`."""
        ...

    def end(self, seconds: float) -> None:
        """The stage is done, in `seconds` over all attempts."""
        ...


@contextmanager
def open_progress(stream: TextIO | None = None) -> Iterator[RunProgress]:
    """The live display when `stream` (stdout by default) is a terminal, plain lines otherwise."""
    stream = stream or sys.stdout
    if not stream.isatty():
        yield PlainProgress(stream)
        return
    from rich.console import Console

    live = LiveProgress(Console(file=stream))
    try:
        yield live
    finally:
        live.close()


class PlainProgress:
    """A line when a stage begins and ends, and one every `every` seconds between."""

    def __init__(self, stream: TextIO, every: float = LINE_EVERY_SECONDS) -> None:
        self._stream = stream
        self._every = every
        self._label = ""
        self._pace = Pace()
        self._last = 0.0

    def begin(self, index: int, count: int, title: str) -> None:
        """See `RunProgress`."""
        self._label, self._pace, self._last = f"[{index}/{count}] {title}", Pace(), time.perf_counter()
        self._say(self._label)

    def skip(self, index: int, count: int, title: str, seconds: float) -> None:
        """See `RunProgress`."""
        self._say(f"[{index}/{count}] {title}: done before, in {duration(seconds)}")

    def update(self, done: float, total: float, **figures: float) -> None:
        """See `RunProgress`."""
        left = self._pace.seconds_left(done, total)
        if time.perf_counter() - self._last < self._every:
            return
        self._last = time.perf_counter()
        self._say(", ".join(filter(None, (f"{self._label}: {share(done, total)}", describe(figures), _left(left)))))

    def end(self, seconds: float) -> None:
        """See `RunProgress`."""
        self._say(f"{self._label}: done in {duration(seconds)}")

    def _say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class LiveProgress:
    """Rich's live display: one line per stage that is done, a bar for the one at work."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = console
        self._bar = Progress(
            SpinnerColumn(finished_text=MARK_DONE),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="dim"),
            console=console,
            transient=True,
        )
        self._task: Any = None
        self._label = ""
        self._pace = Pace()
        self._bar.start()

    def begin(self, index: int, count: int, title: str) -> None:
        """See `RunProgress`."""
        self._label, self._pace = f"[bold]{index}/{count}[/] {title}", Pace()
        self._task = self._bar.add_task(self._label, total=None, figures="", left="")

    def skip(self, index: int, count: int, title: str, seconds: float) -> None:
        """See `RunProgress`."""
        self._console.print(
            f"[green]{MARK_DONE}[/] [bold]{index}/{count}[/] {title} [dim]done before, in {duration(seconds)}[/]",
            highlight=False,
        )

    def update(self, done: float, total: float, **figures: float) -> None:
        """See `RunProgress`."""
        if self._task is None:
            return
        left = _left(self._pace.seconds_left(done, total))
        self._bar.update(self._task, completed=done, total=total, figures=describe(figures), left=left)

    def end(self, seconds: float) -> None:
        """See `RunProgress`."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        line = f"[green]{MARK_DONE}[/] {self._label} [dim]{duration(seconds)}[/]"
        self._console.print(line, highlight=False)

    def close(self) -> None:
        """Gives the terminal back."""
        self._bar.stop()


class Pace:
    """Time left from the speed of this attempt: what an earlier attempt did came for free and tells nothing."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None

    def seconds_left(self, done: float, total: float) -> float | None:
        """Seconds to go, or None while there is no speed to judge by."""
        now = time.perf_counter()
        if self._first is None:
            self._first = (done, now)
            return None
        begun, at = self._first
        if done <= begun or now <= at:
            return None
        return max(0.0, (total - done) * (now - at) / (done - begun))


def results_table(summary: Mapping[str, Any]) -> Table:
    """The run's results and what each stage cost. Rows that the run did not measure are left out."""
    from rich.table import Table

    table = Table(title=f"recipe {summary.get('recipe', '')}", title_style="bold", show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in _results(summary):
        table.add_row(name, value)
    table.add_section()
    for stage in summary.get("stages", []):
        tokens = f"{stage['tokens']:,} tokens  " if stage.get("tokens") else ""
        table.add_row(stage["title"], f"{tokens}{duration(stage['seconds']):>8}")
    return table


def duration(seconds: float) -> str:
    """A time span as people say it: 8.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def describe(figures: Mapping[str, float]) -> str:
    """A stage's figures in a few characters each."""
    return "  ".join(
        f"{value:,.0f} tok/s" if name == "tokens_per_second" else f"{name.replace('_', ' ')} {_short(value)}"
        for name, value in figures.items()
    )


def share(done: float, total: float) -> str:
    """How much is behind us, in percent."""
    return f"{100 * done / total:.0f}%" if total else "0%"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} left"


def _short(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) >= 10 else f"{value:.4g}"


def _results(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, score in summary.get("pass_at_1", {}).items():
        if isinstance(score, Mapping) and score.get("value") is not None:
            yield f"pass@1, {name.replace('_', ' ')}", f"{100 * score['value']:.1f}%  (n = {score.get('n', '?')})"
    for name, loss in summary.get("validation_loss", {}).items():
        if isinstance(loss, int | float):
            yield f"validation loss, {name}", f"{loss:.4f}"
    for name, mass in summary.get("attention_mass", {}).items():
        if isinstance(mass, int | float):
            yield f"attention mass, {name}", f"{100 * mass:.1f}%"
    gap = summary.get("logprob_gap")
    for name, value in gap.items() if isinstance(gap, Mapping) else [("", gap)]:
        if isinstance(value, int | float):
            yield f"sampler-trainer gap {name.replace('_', ' ')}".strip(), f"{value:.2e}"
    yield "time", duration(summary.get("wall_seconds", 0.0))
    yield "peak memory", f"{summary.get('peak_rss_bytes', 0) / 2**30:.2f} GiB"
