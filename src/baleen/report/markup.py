"""HTML that is safe by type: a plain `str` is text and gets escaped, only `Html` passes as markup.

What a model wrote is hostile until shown otherwise. So escaping is not something a section can forget: `element`
escapes every child and attribute that is not `Html`, and `Html` is made here (and of our own style sheet and script).
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

VOID_TAGS = frozenset({"meta", "br", "input", "rect", "line", "circle", "path", "polyline"})

LARGEST = 1e100
"""A curve that went further has diverged; beyond it the arithmetic of an axis would overflow."""


class Html(str):
    """Text that already is markup."""


def element(tag: str, *children: str, **attributes: str | float | bool | None) -> Html:
    """`<tag ...>children</tag>`. `class_` becomes `class`, `aria_label` becomes `aria-label`; None is left out."""
    parts = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{escape(_attribute(value))}"')
    opening = " ".join(parts)
    if tag in VOID_TAGS and not children:
        return Html(f"<{opening}/>")
    return Html(f"<{opening}>{join(children)}</{tag}>")


def join(children: Iterable[str], separator: str = "") -> Html:
    """Children side by side, each escaped unless it is markup."""
    return Html(separator.join(escape(child) for child in children))


def escape(value: str) -> Html:
    """Text as markup: no tag, quote, control character, bidirectional override or lone surrogate comes through.

    The colon of `://` is written as an entity: it reads the same, and a search for addresses in the page finds none.
    """
    if isinstance(value, Html):
        return value
    clean = value.translate(_UNPRINTABLE).encode("utf-8", "replace").decode("utf-8")
    return Html(html.escape(clean, quote=True).replace("://", "&#58;//"))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: Iterable[int] = (), **attributes: str) -> Html:
    """A table in its own scrolling box; the columns in `numeric` are right-aligned."""
    right = set(numeric)

    def cells(tag: str, row: Sequence[str]) -> list[Html]:
        return [element(tag, cell, class_="number" if index in right else None) for index, cell in enumerate(row)]

    head = element("thead", element("tr", *cells("th", header)))
    body = element("tbody", *(element("tr", *cells("td", row)) for row in rows))
    return element("div", element("table", head, body, **attributes), class_="scroll")


def missing(what: str) -> Html:
    """The line a section shows in place of what the run has not left."""
    return element("p", what, class_="missing")


def number(value: object) -> float | None:
    """The value as a float; None for anything else (absent, text, NaN, infinity, or too large to draw)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None


def percent(value: float | None, digits: int = 1) -> str:
    """A share of one as a percentage."""
    return "–" if value is None else f"{100 * value:.{digits}f}%"


def whole_percent(value: float | None) -> str:
    """A share of one as a percentage without decimals, for axes and tight places."""
    return percent(value, 0)


def compact(value: float | None) -> str:
    """A number short enough for an axis: 1.2M, 340, 0.012, 3e-06."""
    if value is None:
        return "–"
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            scaled = value / {"G": 1e9, "M": 1e6, "k": 1e3}[letter]
            return f"{scaled:.3g}{letter}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Seconds as 4.2 s, 3 min 05 s or 1 h 02 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def spoken(name: str) -> str:
    """`cold_start` as `cold start`, with the field's abbreviations kept."""
    words = name.split("_")
    return " ".join({"rl": "RL", "kl": "KL", "mtp": "MTP"}.get(word, word) for word in words)


def titled(name: str) -> str:
    """`mixed_rl` as `Mixed RL`."""
    words = spoken(name)
    return words[:1].upper() + words[1:]


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _visible(code: int) -> str:
    return f"⟨U+{code:04X}⟩"


_CONTROLS = [*range(0x00, 0x09), 0x0B, 0x0C, *range(0x0E, 0x20), *range(0x7F, 0xA0)]
_DIRECTIONS = [0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_UNPRINTABLE = {code: _visible(code) for code in (*_CONTROLS, *_DIRECTIONS)}
