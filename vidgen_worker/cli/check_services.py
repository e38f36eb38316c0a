"""The checks of a worker's services beside the database: Storage, Runway, folder, decoder.

It reads only: no bucket is created and nothing is submitted. The adapters are imported where they
are used: that takes a second, which no other verb waits for.
"""

import asyncio
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from vidgen_worker.cli.account import read_account
from vidgen_worker.cli.finding import Finding, State
from vidgen_worker.config import Settings
from vidgen_worker.domain.faults import Fault, First
from vidgen_worker.media.scratch import room
from vidgen_worker.providers import proxies
from vidgen_worker.providers.protocol import Account

if TYPE_CHECKING:
    import httpx

    from vidgen_worker.storage.buckets import Bucket, Found, Misfit
    from vidgen_worker.storage.storage import Storage

HTTP_SECONDS = 15.0
LOW_BALANCE = 100
FILES_AT_ONCE = 4
"""A scratch folder with room for this many of the largest clips is large enough."""


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Look at Supabase Storage, and at the bucket of each stage."""
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
    """Compare each stage's bucket with the settings, and ask whether it takes an upload."""
    from vidgen_worker.pipeline.stages import PIPELINE  # noqa: PLC0415 - see above
    from vidgen_worker.storage.storage import Storage  # noqa: PLC0415 - see above
    from vidgen_worker.worker.scopes import buckets  # noqa: PLC0415 - see above

    key = settings.supabase_service_role_key.get_secret_value()
    wanted = buckets(settings)
    storage = Storage(
        settings.supabase_url, key, buckets=wanted, timeout=timedelta(seconds=HTTP_SECONDS)
    )
    findings: list[Finding] = []
    try:
        purposes = [*(f"stage {stage.name}" for stage in PIPELINE), "the assets of films"]
        # The last one only where films are cut.
        for purpose, bucket in zip(purposes, wanted, strict=False):
            findings += await _bucket(storage, purpose, bucket)
    finally:
        await storage.aclose()
    return findings


def check_runway(settings: Settings) -> Iterator[Finding]:
    """Look at the account behind the key, and at each stage's model; free."""
    from vidgen_worker.pipeline.stages import PIPELINE  # noqa: PLC0415 - see above

    if not settings.runwayml_enabled:
        said = "RUNWAYML_ENABLED=false: the worker claims nothing, rows stay pending"
        yield Finding("Runway", State.NOTE, said, "Set it to true to generate.")
    try:
        account = asyncio.run(
            read_account(settings.runwayml_api_secret, settings.runwayml_base_url)
        )
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
    for model in dict.fromkeys(stage.model(settings) for stage in PIPELINE):
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
            what, State.BAD if one.fatal or not bucket.vital else State.NOTE,
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
