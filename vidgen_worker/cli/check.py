"""`check`: the effective settings, then every dependency in turn, red or green with the remedy.

It reads only: no bucket is created, nothing is submitted, no row is written.
"""

import asyncio
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psycopg
import typer
from rich.text import Text

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.options import Json
from vidgen_worker.cli.output import console, print_json, table
from vidgen_worker.client.database import (
    ClientError,
    Database,
    connect,
    listens,
    open_database,
    too_new,
)
from vidgen_worker.config import Settings, effective, load
from vidgen_worker.database.migrate import migrations, pending
from vidgen_worker.domain.faults import Fault, First
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.domain.keys import fingerprint
from vidgen_worker.media.scratch import room
from vidgen_worker.providers import proxies
from vidgen_worker.providers.protocol import Account

# The adapters are imported where they are used: that takes a second, which no other verb waits for.
if TYPE_CHECKING:
    import httpx

    from vidgen_worker.storage.storage import Bucket, Found, Misfit, Storage

OLDEST_POSTGRES = 150_000
LISTEN_SECONDS = 2.0
HTTP_SECONDS = 15.0
SKEW_NOTED = timedelta(seconds=5)
SKEW_REFUSED = timedelta(minutes=5)
LOW_BALANCE = 100
WIDE = 120
"""Columns of a terminal from which on each setting's meaning is shown."""
FILES_AT_ONCE = 4
"""So many of the largest clips in the scratch folder leave no worker short of room."""


class State(StrEnum):
    """What came out of a check."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


MARKS = {
    State.OK: Text("✓", style="bold green"),
    State.NOTE: Text("!", style="bold yellow"),
    State.BAD: Text("✗", style="bold red"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the result; `remedy` is empty where nothing is to be done."""

    what: str
    state: State
    said: str
    remedy: str = ""


def check(json: Json = False) -> None:
    """Show the effective settings, test each dependency, and say what to do about what is red."""
    settings = load()
    rows = effective(settings)
    out = console()
    if not json:
        columns = ("setting", "value", "meaning")[: 3 if out.width >= WIDE else 2]
        out.print(table(columns, [row[: len(columns)] for row in rows]), "")
    findings = []
    for look in (check_postgres, check_storage, check_runway, check_scratch, check_media):
        for finding in look(settings):
            findings.append(finding)
            if not json:
                out.print(_line(finding), soft_wrap=True)
    if json:
        print_json(
            {
                "settings": {name: value for name, value, _ in rows},
                "findings": [asdict(finding) for finding in findings],
            }
        )
    if any(finding.state is State.BAD for finding in findings):
        raise typer.Exit(ExitCode.FAILED)


def check_postgres(settings: Settings) -> Iterator[Finding]:
    """Look at the server, the schema, the rights, LISTEN, the workers and the clocks."""
    url = settings.database_url.get_secret_value()
    with ExitStack() as stack:
        database = stack.enter_context(open_database(url))
        try:
            before = datetime.now(UTC)
            server = database.rows("server")[0]
            after = datetime.now(UTC)
        except ClientError as error:
            yield Finding("PostgreSQL", State.BAD, str(error))
            return
        yield _version(server)
        yield _clock(server["clock"], before + (after - before) / 2)
        for look in (_schema, _rights, _exposure, _policy, _listen, _workers):
            try:
                yield from look(database, settings, server)
            except (ClientError, psycopg.Error) as error:
                yield Finding(look.__name__.strip("_"), State.BAD, str(error))


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Look at Supabase Storage and the two buckets."""
    import httpx  # noqa: PLC0415 - see above

    key = settings.supabase_service_role_key.get_secret_value()
    try:
        answer = httpx.get(
            f"{settings.supabase_url.rstrip('/')}/storage/v1/bucket",
            headers={"apikey": key, "Authorization": f"Bearer {key}"},
            timeout=HTTP_SECONDS,
        )
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        said = f"{settings.supabase_url} can't be reached: {error}"
        remedy = f"Check SUPABASE_URL{_through_proxy()}; is the project paused?"
        yield Finding("Storage", State.BAD, said, remedy)
        return
    found = _buckets_in(answer)
    if found is None:
        said = f"{settings.supabase_url} answers {answer.status_code}: {answer.text[:200]}"
        yield Finding("Storage", State.BAD, said, _storage_remedy(answer))
        return
    yield Finding("Storage", State.OK, f"{settings.supabase_url}, {len(found)} bucket(s)")
    yield from asyncio.run(look_at_buckets(settings))


async def look_at_buckets(settings: Settings) -> list[Finding]:
    """Compare both buckets with the settings, and ask leave to upload; nothing is written."""
    from vidgen_worker.storage.storage import Storage  # noqa: PLC0415 - see above
    from vidgen_worker.worker.scopes import buckets  # noqa: PLC0415 - see above

    key = settings.supabase_service_role_key.get_secret_value()
    wanted = buckets(settings)
    storage = Storage(
        settings.supabase_url, key, buckets=wanted, timeout=timedelta(seconds=HTTP_SECONDS)
    )
    findings: list[Finding] = []
    try:
        for purpose, bucket in zip(("stills", "clips"), wanted, strict=True):
            findings += await _bucket(storage, purpose, bucket)
    finally:
        await storage.aclose()
    return findings


def check_runway(settings: Settings) -> Iterator[Finding]:
    """Look at the account behind the key; free."""
    if not settings.runwayml_enabled:
        said = "RUNWAYML_ENABLED=false: the worker claims nothing, rows stay pending"
        yield Finding("Runway", State.NOTE, said, "Set it to true to generate.")
    try:
        account, _ = asyncio.run(read_account(settings))
    except (Fault, ValueError) as error:
        remedy = (
            "Check RUNWAYML_API_SECRET (dev.runwayml.com → API Keys) and RUNWAYML_BASE_URL"
            f"{_through_proxy()}."
        )
        said = error.details if isinstance(error, Fault) else str(error)
        yield Finding("Runway", State.BAD, said, remedy)
        return
    balance = account.credit_balance
    yield Finding(
        "Runway",
        State.OK if balance >= LOW_BALANCE else State.NOTE,
        f"{settings.runwayml_base_url}, {balance} credits",
        "" if balance >= LOW_BALANCE else "Top up at dev.runwayml.com → Billing.",
    )
    for model in (settings.vidgen_image_model, settings.vidgen_video_model):
        yield _model(model, account)


def check_scratch(settings: Settings) -> Iterator[Finding]:
    """Look at the folder that downloads pass through, and the room in it."""
    remedy = "Make room there (df -h, df -i), or set TMPDIR to a folder with room."
    try:
        found = room()
    except OSError as error:
        yield Finding("Scratch", State.BAD, f"no file can be written: {error}", remedy)
        return
    files = "" if found.free_files is None else f", {found.free_files} files"
    said = f"{found.folder}: {found.free_bytes / 2**20:.0f} MiB free{files}"
    # A clip as it is delivered and as it is stored, for each that is under way.
    needed = 2 * settings.vidgen_max_video_bytes * FILES_AT_ONCE
    if found.free_bytes < 2 * settings.vidgen_max_video_bytes or found.free_files == 0:
        yield Finding("Scratch", State.BAD, said, remedy)
    elif found.free_bytes < needed:
        enough = f"{needed / 2**20:.0f} MiB hold {FILES_AT_ONCE} of the largest clips at once."
        yield Finding("Scratch", State.NOTE, said, f"{enough} {remedy}")
    else:
        yield Finding("Scratch", State.OK, said)


def check_media(settings: Settings) -> Iterator[Finding]:
    """Start the process that decodes outputs, and ask it which of its walls hold here."""
    try:
        lacking = asyncio.run(_lacking_walls(settings))
    except Fault as fault:
        remedy = "The machine is short of memory or processes: free some (free -m, ulimit -u)."
        yield Finding("Media", State.BAD, str(fault.details), remedy)
        return
    if not lacking:
        yield Finding("Media", State.OK, "each output is decoded in a process of its own, behind "
                      "Landlock and seccomp")  # fmt: skip
    for said in lacking:
        yield Finding(
            "Media", State.NOTE, f"a wall round the decoding of outputs is missing: {said}",
            "The other walls hold. Linux 5.13 and newer has both, where containers allow them.",
        )  # fmt: skip


async def _lacking_walls(settings: Settings) -> tuple[str, ...]:
    from vidgen_worker.media.outputs import Media  # noqa: PLC0415 - see above

    media = Media(
        max_image_bytes=settings.vidgen_max_image_bytes,
        max_video_bytes=settings.vidgen_max_video_bytes,
    )
    try:
        await media.prove()
        return media.lacking
    finally:
        await media.aclose()


async def read_account(settings: Settings) -> tuple[Account, str]:
    """Ask Runway for the account; return it with the key's fingerprint. Raises Fault."""
    from vidgen_worker.providers.runway.adapter import Runway  # noqa: PLC0415 - see above

    runway = Runway(
        settings.runwayml_api_secret.get_secret_value(),
        base_url=settings.runwayml_base_url,
        submit_timeout=settings.vidgen_submit_timeout,
    )
    try:
        return await runway.account(), runway.key_fingerprint
    finally:
        await runway.aclose()


def _version(server: dict[str, Any]) -> Finding:
    said = f"{server['version_text']}, database {server['database']}, role {server['role']}"
    if server["version"] < OLDEST_POSTGRES:
        return Finding("PostgreSQL", State.BAD, said, "PostgreSQL 15 or newer is needed: upgrade.")
    if server["is_standby"]:
        return Finding("PostgreSQL", State.BAD, f"{said}, a standby", "Use the primary's URL.")
    if server["read_only"]:
        remedy = (
            "default_transaction_read_only is on for this database or role. Supabase does so when "
            "the disk is full (dashboard → Database): make room, then alter … reset it."
        )
        return Finding("PostgreSQL", State.BAD, f"{said}, read-only", remedy)
    return Finding("PostgreSQL", State.OK, said)


def _clock(theirs: datetime, ours: datetime) -> Finding:
    skew = abs(theirs - ours)
    said = f"{skew.total_seconds():.1f} s between this machine and the database"
    remedy = "Switch on time synchronisation (timedatectl set-ntp true)."
    if skew > SKEW_REFUSED:
        return Finding("Clock", State.BAD, said, remedy)
    if skew > SKEW_NOTED:
        return Finding("Clock", State.NOTE, said, remedy)
    return Finding("Clock", State.OK, said)


def _schema(database: Database, settings: Settings, server: dict[str, Any]) -> Iterator[Finding]:
    del server
    missing = pending(settings.database_url.get_secret_value())
    if missing:
        said = f"{len(missing)} migration(s) missing: {', '.join(missing)}"
        yield Finding("Schema", State.BAD, said, "Run: vidgen-worker migrate")
        return
    problem = too_new(database, migrations()[-1].version)
    if problem:
        yield Finding("Schema", State.BAD, problem, "pip install --upgrade vidgen-worker")
    else:
        yield Finding("Schema", State.OK, "up to date")


def _policy(database: Database, settings: Settings, server: dict[str, Any]) -> Iterator[Finding]:
    """Whether owners can sign what the worker stores: the storage policy names the buckets."""
    if not server["has_tasks"]:
        return
    (row,) = database.rows("buckets_of_the_policy")
    wanted = settings.storage_bucket_images, settings.storage_bucket_videos
    if (row["images_bucket"], row["videos_bucket"]) == wanted:
        yield Finding("Storage policy", State.OK, f"goes by {' and '.join(wanted)}")
        return
    said = (
        f"goes by {row['images_bucket']} and {row['videos_bucket']}, the settings by {wanted[0]} "
    )
    said += f"and {wanted[1]}"
    remedy = (
        "Run vidgen-worker migrate as the database's owner with these settings, or correct them."
    )
    yield Finding("Storage policy", State.NOTE, said, remedy)


def _rights(database: Database, settings: Settings, server: dict[str, Any]) -> Iterator[Finding]:
    del settings
    if not server["has_tasks"]:
        return
    lacking = [row["what"] for row in database.rows("worker_rights") if not row["granted"]]
    if lacking:
        said = f"role {server['role']} may not {', '.join(lacking)}"
        remedy = f"Run as postgres: grant vidgen_worker to {server['role']}"
        yield Finding("Rights", State.BAD, said, remedy)
    else:
        yield Finding("Rights", State.OK, f"role {server['role']} may do a worker's work")
    if server["published"]:
        yield Finding("Realtime", State.OK, "the tasks are published: users see progress live")
    else:
        said = "the tasks are not in publication supabase_realtime: users see no live progress"
        remedy = "alter publication supabase_realtime add table public.video_generation_tasks"
        yield Finding("Realtime", State.NOTE, said, remedy)
    for gate in database.rows("gates"):
        said = (
            f"{gate['model']} in scope {gate['scope']} since {gate['closed_at']:%Y-%m-%d %H:%M}: "
            f"{gate['reason']}"
        )
        yield Finding("Gate closed", State.NOTE, said, f"{gate['details']} (vidgen-worker gate)")


def _exposure(database: Database, settings: Settings, server: dict[str, Any]) -> Iterator[Finding]:
    """What of the application's rights lets its users act with ours, or hides scenes from us."""
    del settings
    if not server["has_tasks"]:
        return
    findings = [
        Finding(
            "Client rights", State.BAD,
            f"{row['roles']} may put triggers on {row['name']}, which run with our rights",
            f"Run as its owner: revoke trigger on {row['name']} from {row['roles']}",
        )
        for row in database.rows("trigger_rights")
    ]  # fmt: skip
    findings += [
        Finding(
            "Client rights", State.BAD,
            f"the logins {row['logins']} may put triggers on storage.objects, which run with the "
            f"rights of service_role",
            f"Run as {row['owner']}: revoke trigger on storage.objects from {row['roles']}. Hosted "
            f"Supabase lets nobody do that: give these logins a role of their own there, with only "
            f"the rights that they need.",
        )
        for row in database.rows("storage_trigger_logins")
    ]  # fmt: skip
    findings += [
        Finding(
            "Client rights", State.BAD,
            f"{row['roles']} may create functions in schema public, which our statements may call",
            f"Run as postgres: revoke create on schema public from {row['roles']}",
        )
        for row in database.rows("creators_in_public")
    ]  # fmt: skip
    yield from findings or [
        Finding("Client rights", State.OK, "no client's trigger or function runs with our rights")
    ]
    for row in database.rows("hidden_scenes"):
        said = f"row level security hides the rows of {row['name']} from {row['owner']}, the owner "
        said += "of our functions: tasks end as SCENE_NOT_FOUND"
        remedy = (
            f'Run as its owner: create policy "vidgen-worker sees all" on {row["name"]} '
            f"to {row['owner']} using (true)"
        )
        yield Finding("Scenes", State.BAD, said, remedy)


def _listen(database: Database, settings: Settings, server: dict[str, Any]) -> Iterator[Finding]:
    del database, server
    every = settings.vidgen_queue_poll.total_seconds()
    if settings.vidgen_listen == "off":
        said = f"VIDGEN_LISTEN=off: the queue is read every {every:g} s"
        yield Finding("LISTEN", State.NOTE, said)
        return
    url = settings.database_url.get_secret_value()
    with connect(url) as ear, connect(url) as mouth:
        heard = listens(ear, mouth, f"vidgen_check_{uuid4().hex}", LISTEN_SECONDS)
    if heard:
        yield Finding("LISTEN", State.OK, "new rows wake the worker at once")
    else:
        said = f"a transaction pooler is in between: the queue is read every {every:g} s instead"
        remedy = "For instant starts take the direct URL or the session pooler's (port 5432)."
        yield Finding("LISTEN", State.NOTE, said, remedy)


def _workers(database: Database, settings: Settings, server: dict[str, Any]) -> Iterator[Finding]:
    if not server["has_tasks"]:
        return
    workers = database.rows("live_workers")
    yield _account(settings, workers)
    silent = [row for row in workers if row["silence"] > settings.vidgen_lease]
    for row in workers:
        said = f"{row['host']} pid {row['pid']}, version {row['version']}, {row['running']} task(s)"
        late = row in silent
        seconds = row["silence"].total_seconds()
        yield Finding(
            "Worker",
            State.NOTE if late else State.OK,
            f"{said}, last heard of {seconds:.0f} s ago",
            "Any other worker takes its tasks over." if late else "",
        )
    if len(silent) < len(workers) and not any(
        row["state"] == "steady" for row in database.rows("workers")
    ):
        said = "none has lived a whole lease in good order: nobody takes over from the dead yet"
        yield Finding("Workers", State.NOTE, said, "Wait a lease; then look at database and load.")
    if len(silent) == len(workers):
        yield Finding("Workers", State.NOTE, "none is running", "Start one: vidgen-worker run")


def _account(settings: Settings, workers: list[dict[str, Any]]) -> Finding:
    """Say whose account this is, and which other keys spend from it."""
    key = fingerprint(settings.runwayml_api_secret.get_secret_value())
    mates = [row for row in workers if row["account"] == settings.vidgen_account]
    others = sorted({row["key_fingerprint"] for row in mates} - {key})
    said = f"{settings.vidgen_account}, key {key}, {len(mates)} live worker(s)"
    if not others:
        return Finding("Account", State.OK, said)
    with_others = sum(row["key_fingerprint"] in others for row in mates)
    return Finding(
        "Account",
        State.NOTE,
        f"{said}, {with_others} of them with other keys ({', '.join(others)})",
        "Fine where all of these are keys of one Runway account; else set VIDGEN_ACCOUNT.",
    )


async def _bucket(storage: "Storage", purpose: str, bucket: "Bucket") -> list[Finding]:
    what = f"Bucket {bucket.name}"
    remedy = "Copy SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY again: the project's secret key."
    found: Found | None = None
    wrong: list[Misfit] = []
    try:
        found, wrong = await storage.look(bucket)
        await storage.may_store(bucket.name)
    except Fault as fault:
        if found is None and fault.rule.first is First.LOOK_AT_BUCKET:
            # Only a key that may write is told that there is no bucket to write to.
            return [Finding(what, State.NOTE, f"for {purpose}: missing; the worker creates it")]
        return [Finding(what, State.BAD, f"for {purpose}: {fault.code}: {fault.details}", remedy)]
    if found is None:
        return [Finding(what, State.NOTE, f"for {purpose}: missing; the worker creates it")]
    if not wrong:
        shown = "public" if bucket.public else "private"
        return [Finding(what, State.OK, f"for {purpose}, {shown}")]
    return [
        Finding(
            what, State.BAD if one.fatal else State.NOTE,
            f"for {purpose}: {one.setting} is {one.value}", one.remedy,
        )
        for one in wrong
    ]  # fmt: skip


def _buckets_in(answer: "httpx.Response") -> dict[str, bool] | None:
    """Name and visibility of each bucket; None where this is no list of buckets."""
    try:
        return {str(bucket["name"]): bool(bucket["public"]) for bucket in answer.json()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _storage_remedy(answer: "httpx.Response") -> str:
    """Say what to correct, by who answered what: Storage packs its own status into a 400."""
    from httpx import codes  # noqa: PLC0415 - see above

    status = answer.status_code
    if status == codes.BAD_REQUEST and re.search(r'"statusCode": *"40[13]"', answer.text):
        status = codes.FORBIDDEN
    if status in (codes.UNAUTHORIZED, codes.FORBIDDEN):
        return (
            "Copy SUPABASE_SERVICE_ROLE_KEY again: it is the secret key, not the publishable one."
        )
    if answer.is_redirect:
        to = answer.headers.get("location", "elsewhere")
        return f"It sends requests on to {to}: write the address that answers into SUPABASE_URL."
    if status >= codes.INTERNAL_SERVER_ERROR:
        return "Storage, or what stands before it, is in trouble: look at the project's dashboard."
    return (
        "Supabase Storage doesn't answer there: write the project's URL into SUPABASE_URL, "
        "https://<ref>.supabase.co."
    )


def _through_proxy() -> str:
    names = proxies.names_set()
    return f" (requests go through the proxy of {' and '.join(names)})" if names else ""


def _model(model: str, account: Account) -> Finding:
    what = f"Model {model}"
    limits = account.models.get(model)
    if limits is None:
        said = "the account lists no limits for it"
        return Finding(what, State.NOTE, said, "Is it in your tier? See dev.runwayml.com → Usage.")
    at_once = "any number" if limits.max_concurrent is None else str(limits.max_concurrent)
    daily = "no limit" if limits.max_daily is None else str(limits.max_daily)
    said = f"{at_once} at once; {limits.daily_generations} of {daily} used today"
    if limits.max_daily is not None and limits.daily_generations >= limits.max_daily:
        return Finding(what, State.NOTE, said, "The daily limit is reached: it resets by itself.")
    return Finding(what, State.OK, said)


def _line(finding: Finding) -> Text:
    line = Text.assemble(
        MARKS[finding.state], " ", (f"{finding.what}: ", "bold"), printable(finding.said)
    )
    if finding.remedy:
        line.append(f"\n    → {finding.remedy}", style="italic")
    return line
