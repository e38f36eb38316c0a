"""The database as `check` sees it: server, schema, rights, LISTEN, workers and clocks.

It reads only.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg

from vidgen_worker.cli.finding import Finding, State
from vidgen_worker.client.database import (
    ClientError,
    Database,
    connect,
    listens,
    open_database,
    too_new,
)
from vidgen_worker.config import Settings
from vidgen_worker.database.migrate import migrations, pending
from vidgen_worker.domain.keys import fingerprint

OLDEST_POSTGRES = 150_000
LISTEN_SECONDS = 2.0
SKEW_NOTED = timedelta(seconds=5)
SKEW_REFUSED = timedelta(minutes=5)


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
    from vidgen_worker.pipeline.stages import PIPELINE  # noqa: PLC0415 - it imports the decoder's part

    if not server["has_tasks"]:
        return
    named = {row["bucket"] for row in database.rows("buckets_of_the_policy")}
    wanted = list(dict.fromkeys(stage.bucket(settings) for stage in PIPELINE))
    missing = [bucket for bucket in wanted if bucket not in named]
    if not missing:
        yield Finding("Storage policy", State.OK, f"goes by {' and '.join(wanted)}")
        return
    said = f"goes by {' and '.join(sorted(named))}, the settings by {' and '.join(missing)} as well"
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
    """Find rights of the application that let users act with ours, or hide scenes from us."""
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
        said = "none has kept its lease for long enough: none takes over from dead workers yet"
        yield Finding("Workers", State.NOTE, said, "Wait a lease; then look at database and load.")
    if len(silent) == len(workers):
        yield Finding("Workers", State.NOTE, "none is running", "Start one: vidgen-worker run")
    films = database.rows("films_to_cut")[0]
    if films["waiting"] and not films["cut"]:
        yield Finding(
            "Films", State.NOTE, "films with outputs wait, and no worker cuts any",
            "Run a worker with the extra films (pip install 'vidgen-worker[films]'), and not "
            "with VIDGEN_RENDERS=0.",
        )  # fmt: skip


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
