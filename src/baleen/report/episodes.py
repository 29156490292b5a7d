"""Ten episodes to read, right ones and wrong ones, as varied as the run has them.

Each is a conversation as the model lived it: thinking dimmed and foldable, a call and its result on one card, and the
verifier's verdict. What is long is cut, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from baleen.report.markup import Html, compact, element, join, missing, number, spoken
from baleen.report.run_folder import Row, RunFolder, as_list, as_row

SHOWN = 10
LONGEST_TEXT = 6_000
LONGEST_EPISODE = 40_000
MOST_MESSAGES = 60
CHECKPOINT = "mixed_rl"
CANDIDATES_OF_A_KIND = 20
"""How many episodes of one (verdict, checkpoint, environment, difficulty, mode) are held in memory to choose from."""


def episodes(run: RunFolder) -> Html:
    """The chosen episodes; the first right and the first wrong one are open."""
    chosen = choose(run.artefact_rows("evaluation", "episodes.jsonl"))
    if not chosen:
        return missing("The evaluation has not left episodes (episodes.jsonl) yet.")
    opened: set[str] = set()
    articles = []
    for episode in chosen:
        verdict = verdict_of(episode)
        articles.append(_episode(episode, verdict, verdict not in opened))
        opened.add(verdict)
    right = sum(verdict_of(episode) == "right" for episode in chosen)
    note = (
        f"{len(chosen)} episodes, {right} right. They are chosen for variety, not drawn at random: "
        "the share of right ones says nothing."
    )
    return join([element("p", note, class_="note"), *articles])


def choose(rows: Iterable[Row], shown: int = SHOWN) -> list[Row]:
    """Half right, half wrong where they exist; the rest is filled from what there is, the unscored ones last."""
    pools: dict[str, list[Row]] = {"right": [], "wrong": [], "not scored": []}
    counts: dict[tuple[str, ...], int] = {}
    for row in rows:
        key = (verdict_of(row), *_kind(row))
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= CANDIDATES_OF_A_KIND:
            pools[verdict_of(row)].append(row)
    half = shown // 2
    right, wrong = _varied(pools["right"], shown), _varied(pools["wrong"], shown)
    kept_right = right[: max(half, shown - len(wrong))]
    kept_wrong = wrong[: shown - len(kept_right)]
    rest = _varied(pools["not scored"], shown - len(kept_right) - len(kept_wrong))
    return [*kept_right, *kept_wrong, *rest]


def verdict_of(episode: Row) -> str:
    """right, wrong, or not scored."""
    outcome = number(as_row(episode.get("rewards")).get("outcome"))
    if outcome is None or episode.get("status") == "infrastructure_error":
        return "not scored"
    return "right" if outcome >= 0.5 else "wrong"


def _kind(episode: Row) -> tuple[str, ...]:
    task = as_row(episode.get("task"))
    keys = ("environment", "difficulty", "thinking", "split")
    return (str(episode.get("checkpoint")), *(str(task.get(key)) for key in keys))


def _varied(pool: Sequence[Row], count: int) -> list[Row]:
    """Greedily the episode that shares least with those chosen, the last checkpoint's before others'."""
    left = list(pool)
    chosen: list[Row] = []
    seen: dict[tuple[int, str], int] = {}
    weights = (0, 4, 3, 1, 1)
    while left and len(chosen) < count:

        def cost(index: int) -> tuple[bool, int, bool, float, int]:
            kind = _kind(left[index])
            repeats = sum(weight * seen.get(part, 0) for weight, part in zip(weights, enumerate(kind), strict=True))
            # Among equals the one with the most to read goes first: it is the one that stands open.
            thinking, difficulty = kind[3] != "False", number(as_row(left[index].get("task")).get("difficulty")) or 0.0
            return (kind[0] != CHECKPOINT, repeats, not thinking, -difficulty, index)

        best = left.pop(min(range(len(left)), key=cost))
        for part in enumerate(_kind(best)):
            seen[part] = seen.get(part, 0) + 1
        chosen.append(best)
    return chosen


def _episode(episode: Row, verdict: str, opened: bool) -> Html:
    task = as_row(episode.get("task"))
    messages = [message for message in as_list(episode.get("messages")) if isinstance(message, dict)]
    asked = next((_content(message) for message in messages if message.get("role") == "user"), "")
    facts = [
        spoken(str(task.get("environment") or task.get("domain") or "no environment")),
        f"difficulty {task.get('difficulty', '?')}",
        "thinking" if task.get("thinking", True) else "non-thinking",
        f"split {task.get('split', '?')}",
        spoken(str(episode.get("checkpoint", "?"))),
        spoken(str(episode.get("status", "?"))),
    ]
    badge = element("span", verdict, class_=f"badge {verdict.replace(' ', '-')}")
    heading = element(
        "summary",
        badge,
        element("span", _heading(asked, 160), class_="asked"),
        element("span", " · ".join(facts), class_="facts"),
    )
    return element(
        "details",
        heading,
        _offered(episode),
        *_conversation(messages),
        _rewards(episode),
        _reference(task),
        class_="episode",
        open=opened,
    )


def _conversation(messages: Sequence[Row]) -> list[Html]:
    results = {str(m["tool_call_id"]): m for m in messages if m.get("role") == "tool" and m.get("tool_call_id")}
    parts: list[Html] = []
    answered: set[int] = set()
    spent = 0
    for index, message in enumerate(messages):
        if index >= MOST_MESSAGES or spent > LONGEST_EPISODE:
            parts.append(missing(f"{len(messages) - index} more messages are not shown."))
            break
        if message.get("role") == "tool" and id(message) in answered:
            continue
        for call in as_list(message.get("tool_calls")):
            result = results.get(str(as_row(call).get("id")))
            answered |= {id(result)} if result else set()
        part = _message(message, results)
        spent += len(part)
        parts.append(part)
    return parts


def _message(message: Row, results: dict[str, Row]) -> Html:
    role = str(message.get("role", "?"))
    parts: list[Html] = []
    thought = message.get("reasoning_content")
    if isinstance(thought, str) and thought.strip():
        parts.append(
            element("details", element("summary", "Thinking"), _prose(thought.strip()), class_="thinking", open=True)
        )
    content = _content(message).strip()
    if role in ("system", "developer") and content:
        parts.append(element("details", element("summary", _heading(content, 100)), _prose(content)))
    elif role == "tool":
        parts.append(element("div", element("div", _result(message)), class_="call"))
    elif content:
        parts.append(_prose(content))
    parts += [_call(as_row(call), results) for call in as_list(message.get("tool_calls"))]
    if not parts:
        parts.append(missing("An empty message."))
    return element(
        "div",
        element("div", role, class_="role"),
        element("div", *parts, class_="said"),
        class_=f"message {role if role in ('user', 'assistant', 'tool') else 'system'}",
    )


def _call(call: Row, results: dict[str, Row]) -> Html:
    function = as_row(call.get("function"))
    arguments = function.get("arguments")
    parsed = _parsed(arguments)
    if isinstance(parsed, dict):
        pairs = [
            join([element("dt", str(key)), element("dd", _cut(_shown(value)))])
            for key, value in list(parsed.items())[:40]
        ]
        given = element("dl", *pairs) if pairs else element("p", "no arguments", class_="dim small")
    else:
        given = element("pre", _cut(_shown(arguments)))
    result = results.get(str(call.get("id")))
    answer = _result(result) if result else element("p", "No result.", class_="dim small")
    return element(
        "div",
        element("div", element("code", str(function.get("name", "?"))), given, class_="asking"),
        answer,
        class_="call",
    )


def _result(message: Row) -> Html:
    return element(
        "div",
        element("span", "result", class_="arrow"),
        element("pre", _cut(_shown(_parsed(_content(message))))),
        class_="result",
    )


def _offered(episode: Row) -> Html:
    names = [str(as_row(as_row(tool).get("function")).get("name", "?")) for tool in as_list(episode.get("tools"))]
    if not names:
        return element("p", "No tools offered.", class_="offered")
    codes = join((element("code", name) for name in names[:40]), " ")
    return element("p", "Tools offered: ", codes, class_="offered")


def _rewards(episode: Row) -> Html:
    rewards = as_row(episode.get("rewards"))
    parts = [f"{spoken(str(key))} {compact(number(value))}" for key, value in list(rewards.items())[:20]]
    return element("p", "Rewards: " + (" · ".join(parts) or "none"), class_="offered")


def _reference(task: Row) -> Html:
    metadata = as_row(task.get("metadata"))
    if not metadata:
        return Html()
    heading = element("summary", f"Task {task.get('id', '')}: what the verifier knows")
    return element("details", heading, element("pre", _cut(_shown(metadata), 3_000)), class_="offered")


def _prose(text: str) -> Html:
    return element("div", _cut(text), class_="prose")


def _content(message: Row) -> str:
    """The content as text; clients may send it as a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(as_row(part).get("text", "")) for part in content)
    return "" if content is None else str(content)


def _parsed(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    flat = json.dumps(value, ensure_ascii=False, default=str)
    return flat if len(flat) <= 100 else json.dumps(value, ensure_ascii=False, indent=2, default=str)


def _heading(text: str, longest: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]}…"


def _cut(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else f"{text[:longest]} … ({len(text) - longest:,} more characters)"
