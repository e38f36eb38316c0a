"""`run` and `migrate`: what a deployment calls."""

import faulthandler
import signal
import sys
from types import FrameType
from typing import Annotated

import psycopg
import typer

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.options import Json
from vidgen_worker.cli.output import console, fail, print_json
from vidgen_worker.client.database import (
    ClientSettings,
    connect,
    load_client_settings,
    open_database,
    too_new,
)
from vidgen_worker.config import load
from vidgen_worker.database import sessions
from vidgen_worker.database.database_url import place_of
from vidgen_worker.database.migrate import StrangeSchemaError, migrations, pending
from vidgen_worker.database.migrate import migrate as apply_migrations
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.telemetry.log import configure


def run() -> None:
    """Run the worker until SIGTERM or SIGINT; then it hands its tasks back and ends."""
    # Until the worker has a handler of its own. Without any, a container's first process would
    # not hear the signal at all.
    signal.signal(signal.SIGTERM, _end_before_it_began)
    # Here, because its imports take a second that the other verbs need not wait for.
    from vidgen_worker.worker.serve import assemble  # noqa: PLC0415

    settings = load()
    configure(settings.vidgen_log_level, settings.vidgen_log_format)
    # Better a sentence here than the error of the first statement that fails.
    connect(settings.database_url.get_secret_value()).close()
    missing = pending(settings.database_url.get_secret_value())
    if missing:
        fail(
            ExitCode.FAILED,
            f"The database lacks {len(missing)} migration(s): {', '.join(missing)}. "
            "Run: vidgen-worker migrate",
        )
    with open_database(settings.database_url.get_secret_value()) as database:
        problem = too_new(database, migrations()[-1].version)
    if problem:
        fail(ExitCode.CONFIGURATION, problem)
    # When a loop hangs, systemd's SIGABRT writes its place to the journal.
    faulthandler.enable()
    with assemble(settings) as (loop, worker):
        status = loop.run(worker.run())
    raise typer.Exit(status)


def _share_buckets(url: str, settings: ClientSettings) -> None:
    """Tell the storage policy the buckets that are set here; what is not set stays as it is."""
    told = settings.model_dump(include=settings.model_fields_set)
    buckets = {
        "images_bucket": told.get("storage_bucket_images"),
        "videos_bucket": told.get("storage_bucket_videos"),
    }
    with open_database(url) as database:
        database.rows("share_buckets", buckets)


def _end_before_it_began(_number: int, _frame: FrameType | None) -> None:
    """End well: nothing was claimed yet."""
    sys.exit(ExitCode.OK)


def migrate(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is missing.")] = False,
    json: Json = False,
) -> None:
    """Bring the database up to this version. Needs DATABASE_URL only; safe to repeat.

    Where STORAGE_BUCKET_IMAGES or STORAGE_BUCKET_VIDEOS is set, the storage policy goes by it.
    """
    settings = load_client_settings()
    url = settings.database_url.get_secret_value()
    with connect(url) as connection, connection.transaction():
        sessions.pin_transaction(connection)
        found = connection.execute("select to_regnamespace('auth') is not null as is_supabase")
        if not (found.fetchone() or {})["is_supabase"]:
            fail(
                ExitCode.FAILED,
                f"The database at {place_of(url)} is no Supabase project's: it has no schema auth.",
                "Copy DATABASE_URL again (dashboard → Connect); Supabase's database is called "
                "postgres. Nothing was changed.",
            )
    try:
        versions = pending(url) if dry_run else apply_migrations(url)
        if not dry_run:
            _share_buckets(url, settings)
    except StrangeSchemaError as error:
        fail(ExitCode.FAILED, str(error))
    except psycopg.Error as error:
        hint = error.diag.message_hint
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            hint = hint or "Use the URL of role postgres in DATABASE_URL: it owns what is made."
        fail(
            ExitCode.FAILED,
            f"A migration was refused: {printable(error.diag.message_primary or str(error))}",
            *([hint] if hint else []),
            "The file that failed was undone as a whole; those before it are recorded.",
        )
    if json:
        print_json(versions)
    elif versions:
        did = "Missing" if dry_run else "Applied"
        console().print("\n".join(f"{did} {version}" for version in versions), soft_wrap=True)
    else:
        console().print("The database is up to date.")
