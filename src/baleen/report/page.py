"""A run folder becomes `report.html`: one file that needs nothing else, readable in light and dark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from baleen.report.curves import rl_curves, text_curves
from baleen.report.document import document, write_page
from baleen.report.episodes import episodes
from baleen.report.headline import headline, pipeline_table, recipe_name, verdict
from baleen.report.markup import Html, compact, duration, element, number
from baleen.report.run_folder import RunFolder, as_row
from baleen.report.scores import scores
from baleen.report.sparsity import selection_map, sparsity
from baleen.report.viewer import ASSETS as VIEWER_ASSETS


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor and name in the navigation, its heading, and what fills it."""

    name: str
    title: str
    content: Callable[[RunFolder], Html]
    lede: str = ""


SECTIONS = (
    Section("Numbers", "What it had to show", headline),
    Section("Pipeline", "The pipeline", pipeline_table, "From → to: the means of a curve's first and last tenth."),
    Section(
        "Text",
        "Learning from text",
        text_curves,
        "Faint lines are the steps, strong ones their rolling mean. Point at a curve to read its numbers.",
    ),
    Section(
        "Sparsity",
        "Sparse against dense attention",
        sparsity,
        "For each token the indexer picks a fixed number of earlier ones. What does that cost?",
    ),
    Section(
        "Selection",
        "Where the indexer looks",
        selection_map,
        "One long sequence. Each row is a token that asks, each column a token that it may look at; the stronger the "
        "colour, the larger the share of the cell that was picked. The diagonal is the recent past, vertical stripes "
        "are tokens that many look back to.",
    ),
    Section("Rewards", "Learning from rewards", rl_curves, "One curve for each reinforcement learning stage."),
    Section("Scores", "Held-out tasks", scores, "Each checkpoint on tasks it never saw."),
    Section("Episodes", "Episodes to read", episodes, "Choose one by clicking or with the arrow keys."),
)


def write_report(run_folder: Path) -> Path:
    """Writes `<run_folder>/report.html` and returns its path. Stages that have not run are named, not required.

    Raises `FileNotFoundError` when the run folder is missing.
    """
    run = RunFolder.read(Path(run_folder))
    return write_page(run.path / "report.html", render(run))


def render(run: RunFolder) -> str:
    """The whole page."""
    sections = [_section(run, section) for section in SECTIONS]
    main = element("main", _header(run), *sections, _problems(run))
    tip = element("div", id="tip", hidden=True)
    title = f"Baleen: {recipe_name(run)}"
    return document(title, _navigation(), main, tip, assets=("page.css", "page.js", *VIEWER_ASSETS))


def _header(run: RunFolder) -> Html:
    wall = number(run.summary.get("wall_seconds"))
    took = f" in {duration(wall)}" if wall is not None else ""
    size = as_row(run.summary.get("parameters"))
    total, active = number(size.get("total")), number(size.get("active"))
    model = (
        f" {compact(total)} parameters, {compact(active)} of them active for each token." if total is not None else ""
    )
    seed = f", seed {run.summary['seed']}" if "seed" in run.summary else ""
    return element(
        "header",
        element("p", "Baleen", class_="brand"),
        element("h1", "A small DeepSeek-V3.2 agent, from text to tool use"),
        element("p", "Recipe ", element("b", recipe_name(run)), f"{seed}: {verdict(run)}{took}.{model}", class_="lede"),
    )


def _navigation() -> Html:
    return element("nav", *(element("a", section.name, href=f"#{section.name.lower()}") for section in SECTIONS))


def _section(run: RunFolder, section: Section) -> Html:
    intro = element("p", section.lede, class_="lede") if section.lede else Html()
    return element("section", element("h2", section.title), intro, section.content(run), id=section.name.lower())


def _problems(run: RunFolder) -> Html:
    if not run.problems:
        return Html()
    listed = element("ul", *(element("li", problem) for problem in run.problems[:20]))
    return element("section", element("h2", "Files that could not be read"), listed, id="problems")
