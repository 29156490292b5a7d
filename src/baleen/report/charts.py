"""Three figures: lines over steps, grouped bars with confidence intervals, and a raster of shares.

Every figure takes values and gives `Html`; hovering shows the numbers (SVG titles, which `page.js` makes immediate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from baleen.report.markup import Html, compact, element, join
from baleen.report.svg import COLOURS, Format, Frame, Scale, axes, drawing, figure, frame, level, widened

HALF, FULL = 560.0, 1140.0
MOST_POINTS = 300
MOST_STRIPS = 90
SMOOTH_FROM = 40
SHADES = 5
LOWEST_DECADE = -30
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve; `colour` keeps a name's colour the same across figures."""

    name: str
    points: Sequence[Point]
    colour: int


@dataclass(frozen=True)
class Bar:
    """One bar with its interval; `value` is None where nothing was measured."""

    value: float | None
    low: float | None = None
    high: float | None = None
    tip: str = ""


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str = "step",
    y_format: Format = compact,
    axis_format: Format | None = None,
    from_zero: bool = False,
    logarithmic: bool = False,
    y_range: tuple[float, float] | None = None,
    note: str = "",
    smooth: bool = True,
) -> Html:
    """Curves over a shared x axis. Long noisy curves are drawn twice: as they are, faint, and as a rolling mean."""
    lines = [line for line in lines if line.points]
    if not lines:
        return Html()
    values = [y for line in lines for _, y in line.points]
    positive = [value for value in values if value > 0]
    logarithmic = logarithmic and bool(positive)
    size = frame(HALF, 230, left=58)
    places = [at for line in lines for at, _ in line.points]
    x = Scale(*_span(places), size.left, size.right, whole=all(at.is_integer() for at in places))
    if logarithmic:
        low, high = max(LOWEST_DECADE, math.floor(math.log10(min(positive)))), math.ceil(math.log10(max(positive)))
        y = Scale(10.0**low, 10.0 ** max(high, low + 1), size.bottom, size.top, logarithmic=True)
        note = f"{note} Zeros lie on the base line.".strip() if len(positive) < len(values) else note
    else:
        y = Scale(*(y_range or widened(values, from_zero)), size.bottom, size.top)
    grid = axes(size, x, y, compact, axis_format or y_format, x_label)
    curves = [_curve(line, x, y, smooth) for line in lines]
    body = drawing(size, title, grid, *curves, _strips(size, lines, x, x_label, y_format))
    return figure(title, body, [(line.name, line.colour) for line in lines] if len(lines) > 1 else [], note)


def bar_chart(
    title: str,
    groups: Sequence[str],
    series: Sequence[tuple[str, int]],
    bars: Sequence[Sequence[Bar]],
    *,
    y_format: Format = compact,
    axis_format: Format | None = None,
    y_range: tuple[float, float] | None = None,
    wide: bool = False,
    note: str = "",
) -> Html:
    """Grouped bars, `bars[group][series]`, with a whisker where an interval is known."""
    flat = [value for group in bars for bar in group for value in (bar.value, bar.high) if value is not None]
    if not flat:
        return Html()
    plain = frame(FULL if wide else HALF, 240, bottom=26)
    slot = (plain.right - plain.left) / len(groups)
    labels = [_label_lines(name, slot) for name in groups]
    size = replace(plain, height=plain.height + 14 * (max(map(len, labels)) - 1))
    y = Scale(*(y_range or widened(flat, True)), size.bottom, size.top + 14)
    pitch = min(46.0, slot * 0.82 / max(1, len(series)))
    parts = [axes(size, None, y, compact, axis_format or y_format)]
    for index, (name, group) in enumerate(zip(groups, bars, strict=True)):
        middle = size.left + (index + 0.5) * slot
        start = middle - pitch * len(group) / 2
        parts += [
            element("text", line, x=middle, y=size.bottom + 16 + 14 * row, class_="tick middle")
            for row, line in enumerate(labels[index])
        ]
        for place, (bar, (label, colour)) in enumerate(zip(group, series, strict=True)):
            tip = f"{name} · {label}: {y_format(bar.value)}{bar.tip}"
            parts.append(_bar(bar, start + place * pitch, pitch, y, colour, tip, y_format))
    return figure(title, drawing(size, title, *parts), series if len(series) > 1 else [], note, wide)


def raster(
    title: str,
    shares: Sequence[Sequence[float]],
    visible: Sequence[float],
    tips: Sequence[str],
    row_range: tuple[int, int],
    column_count: int,
    note: str = "",
) -> Html:
    """A map of `shares[row][column]` in [0, 1]; `visible[row]` is the share of the width that the row may see.

    Cells of equal shade are joined into one path: a 128 x 128 map costs kilobytes and takes the theme's colours.
    """
    rows, columns = len(shares), max(len(row) for row in shares)
    size = frame(420, 400, left=66, bottom=50)
    x = Scale(0, column_count, size.left, size.right)
    y = Scale(*row_range, size.top, size.bottom)
    width, height = (size.right - size.left) / columns, (size.bottom - size.top) / rows
    shade_paths: list[list[str]] = [[] for _ in range(SHADES)]
    for row, cells in enumerate(shares):
        column = 0
        while column < len(cells):
            shade, run = _shade(cells[column]), 1
            while column + run < len(cells) and _shade(cells[column + run]) == shade:
                run += 1
            if shade >= 0:
                shade_paths[shade].append(f"M{column} {row}h{run}v1h-{run}z")
            column += run
    seen = "".join(f"M0 {row}h{share * columns:.1f}v1h-{share * columns:.1f}z" for row, share in enumerate(visible))
    place = f"translate({size.left:g} {size.top:g}) scale({width:.4f} {height:.4f})"
    cells_drawn = element(
        "g",
        element("path", d=seen, class_="seen"),
        *(element("path", d="".join(path), class_=f"shade-{i}") for i, path in enumerate(shade_paths) if path),
        transform=place,
    )
    strips = [
        element(
            "rect",
            element("title", tip),
            x=size.left,
            y=size.top + row * height,
            width=size.right - size.left,
            height=height,
            class_="hit",
        )
        for row, tip in enumerate(tips)
    ]
    body = drawing(size, title, _raster_axes(size, x, y), cells_drawn, *strips)
    return figure(title, body, note=note)


def _curve(line: Line, x: Scale, y: Scale, smooth: bool) -> Html:
    colour = f"--ink-series:var(--series-{line.colour % COLOURS})"
    points = _thinned(line.points)
    parts = []
    if smooth and len(points) >= SMOOTH_FROM:
        parts.append(element("polyline", points=_path(points, x, y), class_="raw"))
        points = _rolling_mean(points, max(3, len(points) // 20))
    parts.append(element("polyline", points=_path(points, x, y), class_="curve"))
    if len(points) <= 16:
        parts += [element("circle", cx=x.place(a), cy=y.place(b), r=3, class_="dot") for a, b in points]
    return element("g", *parts, style=colour)


def _strips(size: Frame, lines: Sequence[Line], x: Scale, x_label: str, y_format: Format) -> Html:
    """Invisible columns that answer the mouse with the values of every curve there."""
    known = [dict(line.points) for line in lines]
    places = sorted({a for line in lines for a, _ in line.points})
    places = places[:: max(1, math.ceil(len(places) / MOST_STRIPS))]
    strips = []
    for index, at in enumerate(places):
        left = size.left if index == 0 else (x.place(places[index - 1]) + x.place(at)) / 2
        right = size.right if index == len(places) - 1 else (x.place(at) + x.place(places[index + 1])) / 2
        values = [f"{line.name} {y_format(table[at])}" for line, table in zip(lines, known, strict=True) if at in table]
        tip = "\n".join([f"{x_label} {compact(at)}", *values])
        strips.append(
            element(
                "rect",
                element("title", tip),
                x=left,
                y=size.top,
                width=max(right - left, 0.5),
                height=size.bottom - size.top,
                class_="hit",
            )
        )
    return join(strips)


def _bar(bar: Bar, left: float, pitch: float, y: Scale, colour: int, tip: str, y_format: Format) -> Html:
    middle, base = left + pitch / 2, y.place(max(0.0, y.low))
    if bar.value is None:
        return element("text", "–", x=middle, y=base - 4, class_="tick middle")
    top, width = y.place(bar.value), pitch * 0.84
    parts = [
        element("title", tip),
        element(
            "rect",
            x=middle - width / 2,
            y=min(top, base),
            width=width,
            height=max(abs(base - top), 1.0),
            rx=2.0,
            fill=f"var(--series-{colour % COLOURS})",
        ),
    ]
    label_at = top
    if bar.low is not None and bar.high is not None:
        low, high = y.place(bar.low), y.place(bar.high)
        cap = min(4.0, width / 3)
        caps = "".join(f"M{middle - cap:.1f} {end:.1f}h{2 * cap:.1f}" for end in (low, high))
        path = f"M{middle:.1f} {low:.1f}V{high:.1f}{caps}"
        parts.append(element("path", d=path, class_="whisker"))
        label_at = min(top, high)
    text = y_format(bar.value).removesuffix("%")
    if pitch >= 6.4 * len(text):
        parts.append(element("text", text, x=middle, y=label_at - 4, class_="value middle"))
    return element("g", *parts, class_="bar")


def _label_lines(name: str, slot: float) -> list[str]:
    """One or two lines that fit the group's slot."""
    room = max(4, int(slot / 6.4))
    lines = [""]
    for word in name.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return [line if len(line) <= room else line[: room - 1] + "…" for line in lines[:2]]


def _raster_axes(size: Frame, x: Scale, y: Scale) -> Html:
    parts = [
        element(
            "rect",
            x=size.left,
            y=size.top,
            width=size.right - size.left,
            height=size.bottom - size.top,
            class_="border",
        ),
        element("text", "key position", x=(size.left + size.right) / 2, y=size.height - 4, class_="label middle"),
        element(
            "text",
            "query position",
            transform=f"translate(16 {(size.top + size.bottom) / 2:g}) rotate(-90)",
            class_="label middle",
        ),
    ]
    parts += [
        element(
            "text",
            compact(value),
            x=x.place(value),
            y=size.bottom + 19,
            class_="tick end" if x.place(value) > size.right - 14 else "tick middle",
        )
        for value in x.ticks(4)
    ]
    parts += [
        element("text", compact(value), x=size.left - 6, y=y.place(value) + 4, class_="tick end")
        for value in y.ticks(4)
    ]
    return join(parts)


def _shade(share: float) -> int:
    """The shade of a cell: -1 for nothing, else by the square root, so that few picks in a large cell stay visible."""
    return -1 if share <= 0 else min(SHADES - 1, int(math.sqrt(min(share, 1.0)) * SHADES))


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    pad = max(0.5, 1e-6 * abs(high))
    return (low - pad, high + pad) if level(low, high) else (low, high)


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most `MOST_POINTS` points, each the mean of its neighbours."""
    if len(points) <= MOST_POINTS:
        return points
    stride = math.ceil(len(points) / MOST_POINTS)
    chunks = [points[index : index + stride] for index in range(0, len(points), stride)]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]


def _rolling_mean(points: Sequence[Point], window: int) -> list[Point]:
    half = window // 2
    means = []
    for index, (at, _) in enumerate(points):
        near = points[max(0, index - half) : index + half + 1]
        means.append((at, sum(value for _, value in near) / len(near)))
    return means


def _path(points: Sequence[Point], x: Scale, y: Scale) -> str:
    return " ".join(f"{x.place(a):.1f},{y.place(b):.1f}" for a, b in points)
