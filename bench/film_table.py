"""The rows of the table that are about films."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from bench.cells import TIMES, Cells, Row

FILM_CPU_GOAL, MOVIEPY_GOAL, FILM_MEMORY_GOAL = 1.0, 0.35, 1.1
FILM_BYTES_GOAL, FILM_SHARE_GOAL = 0.7, 0.9
ORDER_MS_GOAL, CANCEL_MS_GOAL, END_MS_GOAL = 100.0, 1000.0, 1.0


def _film_cpu(row: Row) -> list[Cells]:
    ours = row["vidgen-worker"]["cpu_seconds"]
    others = {name: ours / row[name]["cpu_seconds"] for name in ("ffmpeg", "moviepy")}
    said = ", ".join(
        f"{shown} {row[name]['cpu_seconds']:g} s"
        for name, shown in (("ffmpeg", "FFmpeg's command"), ("moviepy", "MoviePy"))
    )
    return [(
        f"CPU of a film of {row['scenes']} scenes, {row['seconds']['vidgen-worker']:g} s, 720p",
        f"≤ {FILM_CPU_GOAL:g}{TIMES} FFmpeg's command, ≤ {MOVIEPY_GOAL:g}{TIMES} MoviePy",
        f"{ours:g} s", said, f"{others['ffmpeg']:.2f}, {others['moviepy']:.2f}",
        others["ffmpeg"] <= FILM_CPU_GOAL and others["moviepy"] <= MOVIEPY_GOAL,
    )]  # fmt: skip


def _film_memory(row: Row) -> list[Cells]:
    return [(
        "peak memory of a film of 30 scenes", f"≤ {FILM_MEMORY_GOAL}{TIMES} that of 3",
        f"{row['ratio']:.2f}{TIMES} ({row['few_mb']:g} → {row['many_mb']:g} MB)", "", "",
        row["ratio"] <= FILM_MEMORY_GOAL,
    )]  # fmt: skip


def _film_sizes(row: Row) -> list[Cells]:
    each = ", ".join(f"{one['clip'].partition('-')[0]} {one['ratio']:.2f}" for one in row["clips"])
    worst = max(one["ratio"] for one in row["clips"])
    return [(
        "bytes of AV1 at the VMAF of x264 CRF 23, medium",
        f"≤ {FILM_BYTES_GOAL}{TIMES}, every clip", f"{row['ratio']:.2f}{TIMES} ({each})", "", "",
        worst <= FILM_BYTES_GOAL,
    )]  # fmt: skip


def _film_targets(row: Row) -> list[Cells]:
    worst = max(row["outputs"], key=lambda one: abs(one["off"]))
    which = f"{worst['clip']}, {worst['format']}, {worst['target']}"
    bound = sum(one["at_bound"] and not one["near"] for one in row["outputs"])
    said = (
        f"{row['near']} ({row['share']:.0%}); {bound} too good at the highest rate factor;"
        f" the farthest {worst['off']:+.1f} ({which})"
    )
    return [(
        f"outputs within 1.5 VMAF of their target, of {len(row['outputs'])}",
        f"≥ {FILM_SHARE_GOAL:.0%}",
        said, "", "", row["share"] >= FILM_SHARE_GOAL,
    )]  # fmt: skip


def _film_queue(row: Row) -> list[Cells]:
    twice = row["ordered_twice"] + row["claimed_twice"] + row["ended_twice"]
    what = (
        f"{row['films']:,} films of {row['parts']} parts a second, no HTTP, {row['connections']}"
        f" connections, {row['kills']} of them killed"
    )
    return [(
        what, "none stuck, none twice",
        f"{row['films_per_second']:g}; {row['stuck']} stuck, {row['failed']} failed, {twice} twice",
        "", "", not (row["stuck"] or row["failed"] or twice),
    )]  # fmt: skip


def _film_statements(row: Row) -> list[Cells]:
    return [
        (
            f"the order of a film of {row['many']} parts, and its cancel",
            f"≤ {ORDER_MS_GOAL:g} ms, ≤ {CANCEL_MS_GOAL:g} ms",
            f"{row['order_ms']:g} ms, {row['cancel_ms']:g} ms", "", "",
            row["order_ms"] <= ORDER_MS_GOAL and row["cancel_ms"] <= CANCEL_MS_GOAL,
        ),
        (
            "the end of a film's part over that of a task, p50", f"≤ +{END_MS_GOAL:g} ms",
            f"{row['more_ms']:+g} ms ({row['task_ms']:g} → {row['part_ms']:g} ms)", "", "",
            row["more_ms"] <= END_MS_GOAL,
        ),
    ]  # fmt: skip


FILM_ROWS: Mapping[str, Callable[[Any], list[Cells]]] = MappingProxyType({
    "film_cpu": _film_cpu,
    "film_memory": _film_memory,
    "film_sizes": _film_sizes,
    "film_targets": _film_targets,
    "film_queue": _film_queue,
    "film_statements": _film_statements,
})  # fmt: skip
