"""How long the command line takes to answer, beside a Python that does nothing."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from uuid import UUID

from bench.ground import Ground, Site

VERBS: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "nothing": (),
    "--version": ("--version",),
    "--help": ("--help",),
    "tasks list": ("tasks", "list"),
    "tasks show": ("tasks", "show"),
    "stats": ("stats",),
    "gate list": ("gate", "list"),
    "credits show": ("credits", "show"),
    "limits list": ("limits", "list"),
    "reconcile": ("reconcile",),
})  # fmt: skip


def command_line(ground: Ground, rounds: int) -> dict[str, Any]:
    """Seconds from the start of a process to its end, medians of interleaved rounds.

    "nothing" is `python -c pass`. The database has a user with a hundred tasks.
    """
    with ground.site() as site:
        (user,) = site.users(1)
        task = _order(site, user)
        words = {"tasks show": (str(task),), "credits show": (str(user),)}
        taken: dict[str, list[float]] = {name: [] for name in VERBS}
        for _ in range(rounds + 1):  # the first finds no file in the page cache
            for name, verb in VERBS.items():
                taken[name].append(_seconds(site, (*verb, *words.get(name, ()))))
    return {name: round(statistics.median(values[1:]), 3) for name, values in taken.items()}


def _order(site: Site, user: UUID) -> UUID:
    """Order a hundred tasks; return the id of one."""
    made = site.sql(
        "insert into public.video_generation_tasks (scene_id, user_id)"
        " select s, %s from unnest(%s::uuid[]) as s returning id",
        user, site.scenes(100, [user]),
    )  # fmt: skip
    task: UUID = made[0]["id"]
    return task


def _seconds(site: Site, verb: tuple[str, ...]) -> float:
    program = ("-m", "vidgen_worker", *verb) if verb else ("-c", "pass")
    began = time.monotonic()
    subprocess.run(  # noqa: S603 - our own words
        [sys.executable, *program], env={**os.environ, **site.environment()}, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return time.monotonic() - began
