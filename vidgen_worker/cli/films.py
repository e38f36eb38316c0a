"""What the verbs show of a film beside its row: the parts it is made of, and the files it became.

It reads a film as an operator may, and prints. What a film is, it does not know.
"""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.text import Text

from vidgen_worker.cli.output import cell, status_text, table
from vidgen_worker.client.database import Database

Row = dict[str, Any]

FOR_EVER = 9999
"""The year until which a film waits whose parts have not ended."""
RENDER_LANE = -1
"""That of films with outputs."""
NOBODY_CUTS = (
    "no worker cuts films. Start one with the extra: pip install 'vidgen-worker[films]', and "
    "VIDGEN_RENDERS not 0"
)


def is_film(row: Row) -> bool:
    """Whether a task is a film."""
    return row["cut"] is not None


def parts_of(database: Database, row: Row) -> list[Row]:
    """Return the tasks that a film is made of, in their order; none for a task of a scene."""
    return database.rows("parts_of_film", {"task_id": row["id"]}) if is_film(row) else []


def renditions_of(database: Database, row: Row) -> list[Row]:
    """Return the files that a film became, in the cut's order; none for a task of a scene."""
    return database.rows("renditions_of_film", {"task_id": row["id"]}) if is_film(row) else []


def waits_of_film(database: Database, row: Row) -> Iterator[str]:
    """Say why a pending film waits, beside what any task waits for."""
    if row["run_after"].year == FOR_EVER:
        yield f"for its parts: {row['message']}"
    if row["lane"] == RENDER_LANE and not database.rows("films_to_cut")[0]["cut"]:
        yield NOBODY_CUTS


def print_parts(out: Console, parts: list[Row]) -> None:
    """Show parts as a table, where there are any."""
    if not parts:
        return
    lines = [
        (p["position"], p["task_id"], status_text(p) if p["status"] else "deleted",
         p["progress"], p["error_code"] or p["current_step"])
        for p in parts
    ]  # fmt: skip
    out.print(table(("part", "task", "status", "%", "step or code"), lines, "Parts"))


def print_renditions(out: Console, renditions: list[Row]) -> None:
    """Show files as a table, where there are any; their paths in one piece, to be copied."""
    if not renditions:
        return
    lines = [
        (r["name"], r["media_type"], _picture(r),
         None if r["seconds"] is None else f"{r['seconds']:.2f}", f"{r['size']:,}")
        for r in renditions
    ]  # fmt: skip
    out.print(table(("file", "type", "picture", "seconds", "bytes"), lines, "Files"))
    for r in renditions:
        where = Text.assemble((f"{r['name']}: ", "dim"), cell(f"{r['bucket']}/{r['path']}"))
        out.print(where, soft_wrap=True)


def _picture(rendition: Row) -> str | None:
    """The size of its picture, where it has one."""
    if not rendition["width"]:
        return None
    return f"{rendition['width']}x{rendition['height']}"
