"""Which tiers there are, in which order they are tried, and why one cannot be had here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

from baleen.agent.sandbox.bubblewrap import bubblewrap_launches
from baleen.agent.sandbox.containers import container_launch
from baleen.agent.sandbox.launch import Launch, Tier, unprivileged_user
from baleen.agent.sandbox.limits import Limits
from baleen.agent.sandbox.weak import landlock_launch, open_launch

AUTOMATIC: tuple[Tier, ...] = ("bubblewrap", "landlock")
"""Tried in this order where none was named. A container costs most of a second, so it must be asked for."""


def launches(
    wanted: Tier | None,
    limits: Limits,
    readable: Sequence[str],
    links: Mapping[str, str],
    allow_weak: bool,
    reasons: list[str],
) -> Iterator[Launch]:
    """Ways to start, best first: of the tier that is wanted, else of all that isolate, and `none` only if allowed.

    Why a tier cannot be had at all is added to `reasons`.
    """
    for tier in AUTOMATIC if wanted is None else (wanted,):
        found = False
        if links and tier != "bubblewrap":
            reasons.append(f"{tier} has no file system of its own for links")
            continue
        for launch in _of_tier(tier, limits, readable, links, allow_weak):
            found = True
            yield launch
        if not found:
            reasons.append(_MISSING[tier])
    if wanted is None and allow_weak and not links:
        yield from _of_tier("none", limits, readable, links, allow_weak)


_MISSING: dict[Tier, str] = {
    "bubblewrap": "bwrap is not installed",
    "landlock": "this kernel has no Landlock of version 6 (Linux 6.12), or no Python that an unprivileged user reaches",
    "docker": "docker is not installed",
    "podman": "podman is not installed",
    "none": "the tier none must be allowed with allow_weak=True, and needs a Python that an unprivileged user reaches",
}


def _of_tier(
    tier: Tier, limits: Limits, readable: Sequence[str], links: Mapping[str, str], allow_weak: bool
) -> Iterator[Launch]:
    launch: Launch | None = None
    if tier == "bubblewrap":
        yield from bubblewrap_launches(limits.disk_bytes, readable, links)
    elif tier == "docker" or tier == "podman":
        launch = container_launch(tier, limits, readable)
    elif tier == "landlock":
        launch = _with_folder(lambda box: landlock_launch(box, readable))
    elif allow_weak:
        launch = _with_folder(lambda box: open_launch(box))
    if launch is not None:
        yield launch


def _with_folder(start: Callable[[str], Launch | None]) -> Launch | None:
    """A launch in a new folder of the host, which belongs to the user that programs run as."""
    box = tempfile.mkdtemp(prefix="baleen-sandbox-")
    launch = start(box)
    if launch is None:
        os.rmdir(box)
    elif (user := unprivileged_user()) is not None:
        os.chown(box, user, user)
    return launch
