"""The episode viewer: a list to filter and search, and beside it one episode as the model lived it.

Its markup is here, what moves is in `viewer.js` and `viewer_episode.js`, what it holds in `episode_pack`. It stands in
a run's report and, by `write_viewer`, alone over any files of episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from baleen.report.document import document, write_page
from baleen.report.episode_pack import EpisodePack, Found, pack
from baleen.report.markup import Html, element, join
from baleen.report.run_folder import read_rows

ASSETS = ("viewer.css", "viewer_episode.js", "viewer.js")
MOST_BYTES_ALONE = 48 * 1024**2
ORDERS = {
    "": "as written",
    "outcome": "highest outcome",
    "turns": "most turns",
    "tokens": "most tokens",
    "seconds": "longest time",
}


def write_viewer(episode_files: Sequence[Path | str], path: Path | str, most_bytes: int = MOST_BYTES_ALONE) -> Path:
    """Writes the viewer over files of episodes (JSON lines, `agent/records.py`) as one HTML file; returns its path.

    `most_bytes` bounds what is held; of more, episodes evenly spread over all are shown, and the page says so. Raises
    `FileNotFoundError` for a file that is missing and `ValueError` where no line of any file is an episode.
    """
    files = [Path(file) for file in episode_files]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"no file of episodes at {file}")
    problems: list[str] = []
    packed = pack(_found(files, problems), most_bytes)
    if not packed.total:
        raise ValueError(f"no episodes in {', '.join(map(str, files))}: no line is an object with `messages`")
    names = ", ".join(file.name for file in files)
    heading = element("header", element("h1", "Episodes"), element("p", names, class_="dim small"), class_="alone")
    unread = element("p", f"Not read: {'; '.join(problems[:5])}", class_="missing") if problems else Html()
    title = f"Baleen: episodes of {names}"
    page = document(title, heading, unread, viewer(packed), assets=("page.css", *ASSETS), class_="alone")
    return write_page(Path(path), page)


def viewer(packed: EpisodePack) -> Html:
    """The viewer's markup and its data."""
    lines = [_data(piece, data_episodes=True) for piece in packed.pieces]
    panes = element("div", _list(), _detail(), class_="panes")
    without = element("noscript", element("p", "Episodes are unpacked by a script; allow scripts to read them."))
    shell = element("div", without, _filters(), panes, id="viewer")
    return join([shell, _data(packed.index, data_index=True), *lines])


def is_episode(row: object) -> bool:
    """Whether a line of a file is an episode."""
    return isinstance(row, dict) and isinstance(row.get("messages"), list)


def _found(files: Sequence[Path], problems: list[str]) -> Iterator[Found]:
    names = [file.name for file in files]
    for file in files:
        name = file.name if names.count(file.name) == 1 else str(file)
        for line, row in read_rows(file, _noting(problems, name)):
            if is_episode(row):
                yield Found(name, line, row)


def _noting(problems: list[str], name: str) -> Callable[[Exception], None]:
    return lambda error: problems.append(f"{name}, {error}")


def _filters() -> Html:
    search = _field("search", _input("search", type="search", placeholder="in questions, thinking, calls, results"))
    options = [element("option", name, value=value) for value, name in ORDERS.items()]
    chosen = element(
        "div",
        element("div", data_part="facets"),
        _field("outcome from", _input("least", type="number", step=0.1)),
        _field("to", _input("most", type="number", step=0.1)),
        _field("order", element("select", *options, data_part="order")),
        class_="fields",
    )
    folded = element("details", element("summary", "Filters"), chosen, data_part="filters", open=True)
    tally = element("p", data_part="tally", role="status")
    bar = element("div", search, tally, _button("clear", "Clear filters"), class_="bar")
    return element("div", bar, folded, class_="filters", role="search", aria_label="Filter episodes")


def _list() -> Html:
    rows = element("div", data_part="rows", role="presentation")
    none = element("p", "No episode passes these filters.", data_part="none", class_="quiet", hidden=True)
    return element("div", rows, none, data_part="list", role="listbox", aria_label="Episodes", tabindex="0")


def _detail() -> Html:
    folds = [
        _button(name, name, aria_pressed="false", aria_label=f"unfold {name}")
        for name in ("thinking", "calls", "results")
    ]
    moves = [_button("previous", "↑", aria_label="previous episode"), _button("next", "↓", aria_label="next episode")]
    controls = join([*moves, element("span", "unfold", class_="quiet"), *folds, _button("copy", "Copy as JSON")])
    tools = element("div", controls, class_="controls", role="group", aria_label="This episode")
    episode = element("div", data_part="episode")
    return element("div", tools, episode, data_part="detail", tabindex="0", role="region", aria_label="Episode")


def _field(name: str, control: Html) -> Html:
    return element("label", element("span", name), control)


def _input(part: str, **attributes: str | float) -> Html:
    return element("input", data_part=part, autocomplete="off", **attributes)


def _button(part: str, text: str, **attributes: str) -> Html:
    return element("button", text, type="button", data_part=part, **attributes)


def _data(base64_text: str, **attributes: bool) -> Html:
    """A block of data: a script element of a type that no browser runs."""
    return element("script", Html(base64_text), type="application/octet-stream", **attributes)
