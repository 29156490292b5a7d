"""One HTML document that needs nothing else and may fetch nothing.

Its content security policy forbids every request and every script but its own, and with trusted types no script can
turn text into markup: even a model's output that slipped through the escaping could not act.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from baleen.report.markup import Html, element


def document(title: str, *content: Html, assets: Sequence[str], class_: str | None = None) -> str:
    """The page with `content` as its body; `assets` names the style sheets and scripts of this folder that it uses."""
    styles = [_asset(name) for name in assets if name.endswith(".css")]
    scripts = [_asset(name) for name in assets if name.endswith(".js")]
    sources = " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {sources}; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        *(element("style", style) for style in styles),
    )
    body = element("body", *content, *(element("script", script) for script in scripts), class_=class_)
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def write_page(path: Path, page: str) -> Path:
    """Writes the page whole or not at all, and returns its path."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def _asset(name: str) -> Html:
    return Html(files("baleen.report").joinpath(name).read_text(encoding="utf-8"))


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
