"""`prune`: remove tasks that ended long ago, in batches, and their files if asked.

The unfinished are never touched, and neither are the books: submissions, charges, holds and the
ledger stay. A tombstone keeps a pruned id from being used again and names the files until they are
deleted, so that a run that was interrupted is simply repeated. A task that is locked, or whose
removal is refused, stays; all others are removed.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.options import Json, Yes, duration
from vidgen_worker.cli.output import console, fail, need_yes, print_json
from vidgen_worker.client.database import (
    Database,
    RefusedError,
    load_client_settings,
    open_database,
)
from vidgen_worker.domain.durations import format_duration
from vidgen_worker.domain.faults import Fault
from vidgen_worker.providers import proxies
from vidgen_worker.settings.environment import SettingsError
from vidgen_worker.settings.looks import REMEDIES

if TYPE_CHECKING:
    from vidgen_worker.storage.storage import Storage

SHORTEST = timedelta(days=1)
BATCH = 500
MOST_LEFT = 100
"""The most refused removals: more mean a rule of the application, and end the run."""


def prune(
    older_than: Annotated[
        str, typer.Option(help="Only tasks that ended before that: 90d, 36h; at least 1d.")
    ] = "90d",
    objects: Annotated[
        bool, typer.Option("--objects", help="Delete their stills and clips in Storage too.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="Tasks per statement.")] = BATCH,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Remove tasks that ended long ago. Their ids can't be used again; the books stay."""
    age = _age(older_than)
    settings = load_client_settings()
    storage = _storage_of() if objects else None
    with open_database(settings.database_url.get_secret_value()) as database:
        found = database.rows("prunable", {"age": age})[0]
        need_yes(_plan(found, age, objects=objects), yes=yes)
        tasks, left = _remove_tasks(database, found, batch, quiet=json)
        files = 0
        if storage is not None:
            try:
                files = asyncio.run(_remove_files(database, storage, batch))
            except Fault as fault:
                fail(
                    ExitCode.FAILED,
                    f"{tasks} task(s) removed, but Storage refused to delete files: "
                    f"{fault.details}. Run the same command again: it goes on where it stopped.",
                )
    if json:
        print_json({
            "tasks": tasks, "files": files, "before": found["before"], "left": left,
        })  # fmt: skip
    else:
        console().print(f"Removed {tasks} task(s) and {files} file(s).")
    for task, said in left.items():
        console(stderr=True).print(f"Task {task} stays: {said}", markup=False)


def _age(text: str) -> timedelta:
    age = duration(text, "--older-than")
    if age is None or age < SHORTEST:
        raise typer.BadParameter(
            f"{text} is too short: users look at what they made today.", param_hint="--older-than"
        )
    return age


def _plan(found: dict[str, Any], age: timedelta, *, objects: bool) -> str:
    plan = (
        f"Remove {found['tasks']} task(s) that ended more than {format_duration(age)} ago: "
        f"{found['completed']} completed, {found['failed']} failed, {found['cancelled']} "
        "cancelled. Each removal is one Realtime event to every subscriber of the table."
    )
    if objects:
        earlier = found["tombstones_with_files"]
        plan += (
            f" Delete their files, and those of {earlier} task(s) pruned earlier: links to them, "
            "in video_scenes too, stop working."
        )
    return plan


def _storage_of() -> tuple[str, str]:
    """Return URL and key of Storage; end with a sentence where one is missing."""
    if problems := proxies.problems():
        raise SettingsError(problems)
    settings = load_client_settings()
    url, key = settings.supabase_url, settings.supabase_service_role_key
    if not url or key is None:
        missing = [
            f"{name.upper()} ({REMEDIES[name]})"
            for name in ("supabase_url", "supabase_service_role_key")
            if not getattr(settings, name)
        ]
        fail(
            ExitCode.CONFIGURATION,
            f"--objects needs {' and '.join(missing)}. Nothing was removed.",
        )
    return url, key.get_secret_value()


def _remove_tasks(
    database: Database, found: dict[str, Any], batch: int, *, quiet: bool
) -> tuple[int, dict[str, str]]:
    """Remove batch after batch, each in a transaction of its own: (how many, what stays and why).

    A batch that is refused is halved, down to the one task that refuses or is locked: it stays.
    """
    removed, size, left = 0, batch, dict[str, str]()
    with Progress(console=console(stderr=True), transient=True, disable=quiet) as progress:
        line = progress.add_task("Removing tasks", total=found["tasks"])
        while True:
            values = {"before": found["before"], "batch": size, "left": list(left)}
            try:
                count = int(database.rows("prune_tasks", values)[0]["tasks"])
            except RefusedError as error:
                if size > 1:
                    size = max(size // 2, 1)
                    continue
                refusing = database.row("next_to_prune", values)
                if refusing is None or len(left) >= MOST_LEFT:
                    raise
                left[str(refusing["id"])] = str(error)
                continue
            removed += count
            size = min(size * 2, batch)
            progress.update(line, completed=removed)
            if count == 0:
                return removed, left


async def _remove_files(database: Database, access: tuple[str, str], batch: int) -> int:
    """Delete what tombstones name, then forget the names. Raises Fault."""
    # Here, because its imports take half a second that a run without --objects need not wait for.
    from vidgen_worker.storage.storage import Storage  # noqa: PLC0415

    removed = 0
    storage = Storage(*access, buckets=())
    try:
        while rows := database.rows("pruned_objects", {"batch": batch}):
            removed += await _remove(storage, [one for row in rows for one in row["objects"]])
            database.rows("objects_removed", {"task_ids": [row["task_id"] for row in rows]})
        # Uploads that were never charged: perhaps no worker runs whose janitor removes them.
        while rows := database.rows("take_uploads", {"batch": batch}):
            await _remove(storage, rows)
            database.rows("uploads_removed", {"upload_ids": [row["upload_id"] for row in rows]})
    finally:
        await storage.aclose()
    return removed


async def _remove(storage: "Storage", files: Iterable[dict[str, Any]]) -> int:
    """Remove files, each with its bucket and path; return how many. Raises Fault."""
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for named in files:
        paths[named["bucket"]].append(named["path"])
    for bucket, some in paths.items():
        try:
            await storage.remove(bucket, some)
        except Fault as fault:
            if not fault.rule.absent:  # with a bucket its files are gone
                raise
    return sum(map(len, paths.values()))
