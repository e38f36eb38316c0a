"""One test per row of the table of faults, through the real worker and the doubles.

A row without a case fails the test. Every case asserts what the user sees, what the provider was
asked and paid for, and that the books balance; a task that waits keeps its hold and goes on by
itself.
"""

import asyncio
import contextlib
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.support.watching import until_true, watch
from tests.support.world import Row, World, hearing, recorded
from vidgen_worker.domain.faults import FAULTS
from vidgen_worker.pipeline.stages import IMAGE, VIDEO
from vidgen_worker.telemetry import bus, events

CREDITS, IMAGE_PRICE, PRICE = 100, 5, 30

# What the doubles say in their answers: none of it may reach the user.
PROVIDER_TEXT = (
    "runway", "do not have enough", "invalid, disabled", "forbidden", "daily task limit",
    "rate limit", "server error", "something went wrong.", "flagged", "not usable",
    "unexpected error occurred", "task not found", "validation of body", "because the prompt says",
    "http", "mime", "jws", "connections",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What one trouble leads to. Pairs are (image, video); `requeued` are codes, in order."""

    image: str = ""
    video: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    storage: Mapping[str, Any] = field(default_factory=dict)
    status: str = "completed"
    code: str | None = None
    failures: int = 0
    posts: tuple[int, int] = (1, 1)
    generations: tuple[int, int] = (1, 1)
    charged: int = PRICE
    requeued: tuple[str, ...] = ()
    counted: bool = False
    gate: str | None = None
    waits: bool = True
    """Whether it can only go on once the gate is open again."""


@dataclass
class Story:
    """What happened to one task."""

    user: UUID
    row: Row
    heard: list[bus.Event]

    def of(self, kind: type[bus.Event]) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kind)]


@contextlib.contextmanager
def impatient(world: World, user: UUID) -> Iterator[None]:
    """Whenever the task is put back: its hold is kept; then its pause is over at once."""

    def hear(event: bus.Event) -> None:
        if isinstance(event, events.TaskRequeued):
            balance, held = world.credits(user)
            assert balance - held == CREDITS - PRICE
            world.sql(
                "update video_generation_tasks set run_after = now() "
                "where id = %s and status = 'pending'",
                event.fence.task_id,
            )

    with bus.subscribed(hear):
        yield


async def play(world: World, case: Case) -> Story:
    """Run one task to its end."""
    user = world.user(CREDITS)
    scene = world.scene(
        user, image_prompt=f"{case.image} a bottle", visual_prompt=f"{case.video} around it",
    )  # fmt: skip
    if case.storage:
        world.storage.fail(**case.storage)
    with recorded() as heard, impatient(world, user):
        async with world.worker(**case.settings):
            row = await world.until(world.order(user, scene))
    return Story(user, row, heard)


def check(world: World, case: Case, story: Story) -> None:
    """Compare what happened with what should have."""
    row = story.row
    assert (row["status"], row["error_code"]) == (case.status, case.code), row["error"]
    assert row["failures"] == case.failures
    assert row["attempt"] == 1 + len(case.requeued)
    requeued = story.of(events.TaskRequeued)
    assert tuple(event.code for event in requeued) == case.requeued
    assert all(event.counted is case.counted for event in requeued)
    assert posts(world) == case.posts
    assert generations(world) == case.generations
    assert world.credits(story.user) == (CREDITS - case.charged, 0)
    assert world.books_balance()
    silent_about_the_provider(row)
    closed = [event.code for event in story.of(events.GateClosed)]
    opened = [event.code for event in story.of(events.GateOpened)]
    assert closed == ([case.gate] if case.gate else [])
    if case.waits:
        assert opened == closed


def posts(world: World) -> tuple[int, int]:
    """How many paid POSTs the provider has seen, for the still and for the clip."""
    paths = [request["path"] for request in world.runway.requests()]
    return paths.count("/v1/text_to_image"), paths.count("/v1/image_to_video")


def generations(world: World) -> tuple[int, int]:
    """How many generations the provider has accepted."""
    kinds = [generation["kind"] for generation in world.runway.generations()]
    return kinds.count("image"), kinds.count("video")


def silent_about_the_provider(row: Row) -> None:
    """Only our own sentences are in the row."""
    shown = f"{row['message']} {row['error_message']} {row['error']}".lower()
    assert [text for text in PROVIDER_TEXT if text in shown] == []
    if row["status"] == "failed":
        assert row["error"]["code"] == row["error_code"]
        assert row["error"]["details"] == row["error_message"] == row["message"]


REJECTED = Case(
    status="failed", failures=1, posts=(1, 0), generations=(1, 0), charged=0,
)  # fmt: skip
UNPAID = Case(status="failed", failures=1, posts=(0, 0), generations=(0, 0), charged=0)
SLOW_AGAIN = {"VIDGEN_STAGE_DEADLINE": "200ms", "VIDGEN_STAGE_HARD_DEADLINE": "500ms"}


def rejected(code: str, failure: str) -> Case:
    """A generation that fails for good."""
    return Case(
        f"[[fail {failure}]]", status="failed", code=code, failures=1, posts=(1, 0),
        generations=(1, 0), charged=0,
    )  # fmt: skip


def gated(code: str, words: str) -> Case:
    """A refusal that closes the gate; one probe opens it."""
    return Case(words, posts=(2, 1), requeued=(code,), gate=code)


def again(
    code: str, words: str, *, counted: bool = True, settings: Mapping[str, str] | None = None
) -> Case:
    """A stage that takes a second generation."""
    return Case(
        words, posts=(2, 1), generations=(2, 1), requeued=(code,), counted=counted,
        failures=int(counted), settings=settings or {},
    )  # fmt: skip


CASES: dict[str, dict[str, Case]] = {
    "request_refused": {
        "the still": Case(
            "[[400 promptText]]", status="failed", code="INVALID_REQUEST", failures=1,
            posts=(1, 0), generations=(0, 0), charged=0,
        ),
        "the clip, after the still was settled": Case(
            video="[[400 promptText]]", status="failed", code="INVALID_REQUEST", failures=1,
            generations=(1, 0), charged=IMAGE_PRICE,
        ),
    },
    "frame_refused": {
        "the output's URL": Case(video="[[400 promptImage x1]]", posts=(1, 2)),
        "both URLs": Case(
            video="[[400 promptImage x2]]", posts=(1, 3), requeued=("GENERATION_FAILED",),
            counted=True, failures=1,
        ),
        "always": Case(
            video="[[400 promptImage]]", posts=(1, 6), generations=(1, 0), counted=True,
            requeued=("GENERATION_FAILED",) * 2, failures=3, status="failed",
            code="GENERATION_FAILED", charged=IMAGE_PRICE,
        ),
    },
    "provider_unfunded": {
        "400": gated("PROVIDER_UNFUNDED", "[[no-credits]]"),
        "402": gated("PROVIDER_UNFUNDED", "[[payment]]"),
    },
    "provider_denied": {
        "401": gated("PROVIDER_DENIED", "[[denied]]"),
        "403": gated("PROVIDER_DENIED", "[[forbidden]]"),
    },
    "provider_quota": {"429": gated("PROVIDER_QUOTA", "[[daily-limit]]")},
    "provider_busy": {
        "429": Case("[[busy x2]]", posts=(3, 1), requeued=("PROVIDER_BUSY",) * 2),
    },
    "submission_unknown": {
        "dropped": again("SUBMISSION_UNKNOWN", "[[drop-after-accept]]"),
        "500, nothing made": Case(
            "[[500-before-accept]]", posts=(2, 1), requeued=("SUBMISSION_UNKNOWN",), counted=True,
            failures=1,
        ),
        "up to the cap": Case(
            video="[[drop-after-accept x9]]", posts=(1, 2), generations=(1, 2), status="failed",
            requeued=("SUBMISSION_UNKNOWN",), counted=True, failures=2, code="SUBMISSION_UNKNOWN",
            charged=IMAGE_PRICE,
        ),
    },
    "poll_failed": {
        "500": Case("[[poll-500 x7]]"),
        "a page": Case(video="[[poll-html x7]]"),
        "a status that nobody knows": Case("[[weird-status x3]]"),
        "no cost": Case("[[no-cost]]", "[[no-cost]]"),
    },
    "generation_gone": {
        "404": again("GENERATION_GONE", "[[gone]]"),
        "cancelled, not by us": again("GENERATION_GONE", "[[cancelled]]"),
        "up to the cap": Case(
            "[[gone x9]]", posts=(2, 0), generations=(2, 0), status="failed", failures=2,
            code="GENERATION_GONE", requeued=("GENERATION_GONE",), counted=True, charged=0,
        ),
    },
    "content_rejected": {
        "the text": rejected("CONTENT_REJECTED", "SAFETY.INPUT.TEXT"),
        "the output": rejected("CONTENT_REJECTED", "SAFETY.OUTPUT.IMAGE"),
        "before it began": rejected("CONTENT_REJECTED", "INPUT_PREPROCESSING.SAFETY.TEXT"),
    },
    "asset_invalid": {
        "an asset": rejected("ASSET_INVALID", "ASSET.INVALID"),
        "a third party's check": rejected("ASSET_INVALID", "THIRD_PARTY.INPUT_VALIDATION"),
    },
    "generation_failed": {
        "a bad output": again("GENERATION_FAILED", "[[fail INTERNAL.BAD_OUTPUT.CODE01 x1]]"),
        "internal": again("GENERATION_FAILED", "[[fail INTERNAL x1]]"),
        "an unknown code": again("GENERATION_FAILED", "[[fail SOMETHING.NEW x1]]"),
        "no code": again("GENERATION_FAILED", "[[fail x1]]"),
        "no code and no cost, which counts as paid": again(
            "GENERATION_FAILED", "[[fail x1]] [[no-cost]]"
        ),
        "paid for, up to the cap": Case(
            "[[fail INTERNAL cost 8]]", posts=(2, 0), generations=(2, 0), status="failed",
            code="GENERATION_FAILED", failures=2, counted=True, requeued=("GENERATION_FAILED",),
            charged=0,
        ),
        "for nothing, up to the budget": Case(
            "[[fail INTERNAL]]", posts=(3, 0), generations=(3, 0), status="failed",
            code="GENERATION_FAILED", failures=3, counted=True,
            requeued=("GENERATION_FAILED",) * 2, charged=0,
        ),
    },
    "generation_unavailable": {
        "a third party": again(
            "PROVIDER_BUSY", "[[fail THIRD_PARTY.UNAVAILABLE x1]]", counted=False
        ),
        "preprocessing": again(
            "PROVIDER_BUSY", "[[fail INPUT_PREPROCESSING.INTERNAL x1]]", counted=False
        ),
        "paid for, up to the cap": Case(
            "[[fail THIRD_PARTY.UNAVAILABLE cost 8]]", posts=(2, 0), generations=(2, 0),
            status="failed", code="PROVIDER_BUSY", failures=1, requeued=("PROVIDER_BUSY",),
            charged=0,
        ),
    },
    "generation_overdue": {
        "ended at the hard deadline": again(
            "GENERATION_OVERDUE", "[[stall x1]]", settings=SLOW_AGAIN
        ),
    },
    "output_unavailable": {
        "expired": Case("[[expire-urls x2]]"),
        "cut": Case(video="[[truncate-download x2]]"),
        "empty": Case("[[zero-bytes x2]]"),
        "a page of a still": Case("[[page-download x2]]"),
        "a page of a clip": Case(video="[[page-download x2]]"),
        "a page, longer than in place": Case(
            "[[page-download x4]]", requeued=("OUTPUT_UNAVAILABLE",)
        ),
        "longer than in place": Case(
            "[[truncate-download x4]]", requeued=("OUTPUT_UNAVAILABLE",)
        ),
    },
    "output_undecodable": {"noise": again("GENERATION_FAILED", "[[garbage]]")},
    "output_broken": {
        "the same noise twice": Case(
            "[[garbage same]]", status="failed", code="GENERATION_FAILED", failures=1,
            posts=(1, 0), generations=(1, 0), charged=0,
        ),
    },
    "output_too_large": {
        "beyond the limit": Case(
            settings={"VIDGEN_MAX_IMAGE_BYTES": "1024"}, status="failed", code="OUTPUT_TOO_LARGE",
            failures=1, posts=(1, 0), generations=(1, 0), charged=0,
        ),
    },
    "storage_unavailable": {
        "in place": Case(storage={"kind": "upload", "times": 3, "status": 500}),
        "longer": Case(
            storage={"kind": "upload", "times": 5, "status": 544},
            requeued=("STORAGE_UNAVAILABLE",),
        ),
    },
    "storage_denied": {
        "403": Case(
            # Signed with the last stage, and once more after it.
            storage={"kind": "sign", "status": 403, "times": 2}, requeued=("STORAGE_DENIED",),
            gate="STORAGE_DENIED", waits=False, settings={"VIDGEN_QUEUE_POLL": "50ms"},
        ),
    },
    "upload_refused": {
        "415": Case(
            storage={"kind": "upload", "status": 415}, requeued=("STORAGE_REFUSED",),
        ),
        "413": Case(
            storage={"kind": "upload", "status": 413}, requeued=("STORAGE_REFUSED",),
        ),
    },
}  # fmt: skip

PLAYED = [(fault, name) for fault, cases in CASES.items() for name in cases]


@pytest.mark.parametrize(("fault", "name"), PLAYED, ids=[f"{f}: {n}" for f, n in PLAYED])
async def test_what_follows_from_a_fault(world: World, fault: str, name: str) -> None:
    case = CASES[fault][name]
    check(world, case, await play(world, case))


# Rows that take more than a prompt word.

Acted = Callable[[World], Awaitable[None]]
ACTED: dict[str, Acted] = {}


def acts(fault: str) -> Callable[[Acted], Acted]:
    """Register the test of a row."""

    def register(test: Acted) -> Acted:
        ACTED[fault] = test
        return test

    return register


def unpaid(world: World, row: Row, code: str) -> None:
    """Refused before anything was paid, and nothing is held."""
    assert (row["status"], row["error_code"]) == ("failed", code)
    assert posts(world) == (0, 0)
    assert world.credits(row["user_id"])[1] == 0
    assert world.books_balance()
    silent_about_the_provider(row)


@acts("scene_not_found")
async def test_a_foreign_scene_is_not_found(world: World) -> None:
    user, task = world.user(), uuid4()
    world.sql(
        "insert into video_generation_tasks (id, scene_id, user_id) values (%s, %s, %s)",
        task, world.scene(world.user()), user,
    )  # fmt: skip
    async with world.worker():
        unpaid(world, await world.until(task), "SCENE_NOT_FOUND")


@acts("scene_invalid")
async def test_a_scene_that_cannot_be_made_names_its_field(world: World) -> None:
    user = world.user()
    async with world.worker():
        row = await world.until(world.order(user, world.scene(user, duration=11)))
    assert row["error"]["field"] == "duration"
    assert (row["status"], row["error_code"], posts(world)) == ("failed", "INVALID_REQUEST", (0, 0))


@acts("user_limit")
async def test_a_user_beyond_a_limit_of_his_own_is_told_which(world: World) -> None:
    user = world.user()
    task = world.order(user, world.scene(user))
    world.sql(
        "update vidgen.user_limits set rejections = 10, stopped_until = now() + interval '1 day'"
        " where user_id = %s", user,
    )  # fmt: skip
    async with world.worker():
        row = await world.until(task)
    unpaid(world, row, "USER_LIMIT")
    assert "rejected 10 of your scenes in a row" in row["error_message"]


@acts("request_denied")
async def test_what_only_one_request_is_refused_for_ends_its_task(world: World) -> None:
    user = world.user()
    with recorded() as heard:
        async with world.worker():
            task = world.order(user, world.scene(user, image_prompt="[[forbidden x9]] a bottle"))
            row = await world.until(task)
    assert (row["status"], row["error_code"], row["failures"]) == ("failed", "REQUEST_DENIED", 3)
    assert (posts(world), generations(world)) == ((4, 0), (0, 0))
    assert world.credits(user) == (1000, 0)
    silent_about_the_provider(row)
    closed = [event.code for event in heard if isinstance(event, events.GateClosed)]
    assert closed == ["PROVIDER_DENIED"]


@acts("resolution_unsupported")
async def test_an_unsupported_resolution_is_refused(world: World) -> None:
    user = world.user()
    async with world.worker():
        row = await world.until(world.order(user, world.scene(user, resolution="1:1")))
    unpaid(world, row, "RESOLUTION_UNSUPPORTED")


@acts("insufficient_credits")
async def test_too_few_credits_are_refused(world: World) -> None:
    user = world.user(PRICE - 1)
    async with world.worker():
        row = await world.until(world.order(user, world.scene(user)))
    unpaid(world, row, "INSUFFICIENT_CREDITS")


@acts("price_missing")
async def test_a_missing_price_is_not_a_price_of_nothing(world: World) -> None:
    world.sql("delete from credit_prices where action = 'generate_image'")
    user = world.user()
    async with world.worker():
        row = await world.until(world.order(user, world.scene(user)))
    unpaid(world, row, "PRICE_MISSING")


@contextlib.asynccontextmanager
async def relay(world: World) -> AsyncIterator[tuple[str, Callable[[], Awaitable[None]]]]:
    """An address at which nobody listens, and what lets it lead to the provider."""
    port = int(world.runway.url.rpartition(":")[2])
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        servers: list[asyncio.Server] = []

        async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
            writer.close()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, back), pump(there, writer))

        async def listen() -> None:
            servers.append(await asyncio.start_server(serve, sock=ours))

        yield f"http://127.0.0.1:{ours.getsockname()[1]}", listen
        for server in servers:
            server.close()


@acts("provider_unreachable")
async def test_a_provider_that_cannot_be_reached_is_waited_for(world: World) -> None:
    user = world.user(CREDITS)
    async with relay(world) as (url, listen):
        with recorded() as heard, impatient(world, user):
            async with (
                world.worker(RUNWAYML_BASE_URL=url),
                hearing(events.TaskRequeued) as put_back,
            ):
                task = world.order(user, world.scene(user))
                await put_back.wait()
                assert posts(world) == (0, 0)
                await listen()
                row = await world.until(task)
    assert (row["status"], row["failures"]) == ("completed", 0)
    codes = {event.code for event in heard if isinstance(event, events.TaskRequeued)}
    assert codes == {"PROVIDER_UNREACHABLE"}
    assert posts(world) == generations(world) == (1, 1)
    assert world.books_balance()


@acts("poll_denied")
async def test_a_key_that_is_refused_while_polling_loses_no_generation(world: World) -> None:
    user = world.user(CREDITS)
    scene = world.scene(user, image_prompt="[[slow 300ms]] a bottle")
    async with world.worker():
        async with hearing(events.SubmissionRecorded) as submitted:
            task = world.order(user, scene)
            await submitted.wait()
        async with hearing(events.PollFailed) as failed:
            world.runway.set(key_disabled=True)
            await failed.wait()
        world.runway.set(key_disabled=False)
        row = await world.until(task)
    # The clip waits for another attempt where the still was done before the gate opened again.
    assert (row["status"], row["failures"]) == ("completed", 0)
    assert posts(world) == (1, 1)


@acts("bucket_missing")
async def test_a_bucket_that_went_missing_is_made_again(world: World) -> None:
    user = world.user(CREDITS)
    async with world.worker():
        await world.until(world.order(user, world.scene(user)))
        world.storage.delete_bucket("generated-content")
        world.storage.delete_bucket("video-files")
        row = await world.until(world.order(user, world.scene(user)))
    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 1, 0)
    assert {thing["bucket"] for thing in world.storage.objects()} == {
        "generated-content", "video-files",
    }  # fmt: skip
    assert posts(world) == (2, 2)


@acts("scratch_unavailable")
async def test_a_scratch_folder_that_is_gone_costs_the_task_nothing(
    world: World,
) -> None:
    user = world.user(CREDITS)
    with (
        recorded() as heard,
        tempfile.TemporaryDirectory() as home,
        pytest.MonkeyPatch.context() as patch,
    ):
        temp = Path(home, "temp")
        temp.mkdir()  # noqa: ASYNC240 - a test
        patch.setattr("tempfile.tempdir", str(temp))
        async with (
            hearing(events.SubmissionAnswered) as paid, hearing(events.TaskRequeued) as put_back,
            world.worker(),
        ):  # fmt: skip
            task = world.order(user, world.scene(user, image_prompt="[[slow 1s]] a bottle"))
            await paid.wait()
            shutil.rmtree(temp)
            temp.write_text("a file where the folder was")  # noqa: ASYNC240 - a test
            await put_back.wait()
            temp.unlink()  # noqa: ASYNC240 - a test
            row = await world.until(task)
    assert (row["status"], row["failures"]) == ("completed", 0)
    requeued = [event for event in heard if isinstance(event, events.TaskRequeued)]
    assert {(event.code, event.counted) for event in requeued} == {("SCRATCH_UNAVAILABLE", False)}
    assert str(temp) in requeued[0].details
    assert posts(world) == generations(world) == (1, 1)
    assert world.books_balance()


def break_the_scene(world: World, times: int, error: str) -> None:
    """Let reading a scene fail so often; a sequence counts on, whatever is rolled back."""
    world.sql("create sequence vidgen.broken")
    world.sql("create schema whole")
    world.sql("alter function vidgen.read_scene(uuid, uuid) set schema whole")
    world.sql(f"""
        create function vidgen.read_scene(scene_id uuid, user_id uuid) returns jsonb
        language plpgsql security definer as $$
        begin
          if nextval('vidgen.broken') <= {times} then
            raise exception 'secret words' using errcode = '{error}';
          end if;
          return whole.read_scene(scene_id, user_id);
        end $$""")


@acts("database_transient")
async def test_a_transient_error_of_the_database_costs_nothing(world: World) -> None:
    break_the_scene(world, 3, "40001")
    user = world.user(CREDITS)
    with recorded() as heard:
        async with world.worker():
            row = await world.until(world.order(user, world.scene(user)))
    assert (row["status"], row["failures"], row["attempt"]) == ("completed", 0, 1)
    assert [e.query for e in heard if isinstance(e, events.DatabaseTrouble)] == ["start_task"]


@acts("row_refused")
async def test_a_foreign_error_sets_the_task_aside_and_costs_nothing(world: World) -> None:
    world.sql("update vidgen.settings set refusal_pause = '20 milliseconds'")
    break_the_scene(world, 1, "P0001")
    user = world.user(CREDITS)
    with recorded() as heard:
        async with world.worker():
            row = await world.until(world.order(user, world.scene(user)))
    check(world, Case(), Story(user, {**row, "attempt": 1}, heard))
    (refused,) = [event for event in heard if isinstance(event, events.RowRefused)]
    assert (refused.statement, refused.tries, refused.became) == ("start_task", 1, "pending")
    assert "secret words" in refused.error


async def test_a_foreign_error_that_stays_ends_the_task_without_its_words(world: World) -> None:
    world.sql("update vidgen.settings set refusal_pause = '20 milliseconds', max_refusals = 3")
    break_the_scene(world, 1000, "P0001")
    user = world.user(CREDITS)
    async with world.worker():
        row = await world.until(world.order(user, world.scene(user)))
    assert (row["error_code"], row["failures"]) == ("ROW_REFUSED", 0)
    assert "secret" not in str(row)
    assert world.credits(user) == (CREDITS, 0)


async def a_broken_checkpoint(world: World) -> tuple[UUID, UUID]:
    """A task whose frozen request somebody has made unreadable: (user, task)."""
    watch(world)
    user = world.user(CREDITS)
    task = world.order(user, world.scene(user, image_prompt="[[slow 1s]] a bottle"))
    async with world.worker():
        await until_true(
            world, "select exists (select from vidgen.checkpoints where state = 'generating')"
        )
    world.sql("update vidgen.checkpoints set request = request - 'ratio'")
    return user, task


@acts("internal_error")
async def test_an_unexpected_error_is_counted_and_its_traceback_logged(world: World) -> None:
    user, task = await a_broken_checkpoint(world)
    patient = {"VIDGEN_RETRY_BACKOFF": "2s"}
    with recorded() as heard:
        async with world.worker(**patient), hearing(events.TaskRequeued) as requeued:
            await requeued.wait()
            world.sql(
                'update vidgen.checkpoints set request = request || \'{"ratio": "1920:1080"}\''
            )
            row = await world.until(task)
    case = Case(failures=1, counted=True, requeued=("INTERNAL_ERROR",))
    check(world, case, Story(user, {**row, "attempt": 2}, heard))
    (error,) = [event for event in heard if isinstance(event, events.UnexpectedError)]
    assert "Traceback" in error.traceback
    assert "KeyError: 'ratio'" in error.traceback


async def test_an_unexpected_error_that_stays_ends_the_task_and_what_it_has_begun(
    world: World,
) -> None:
    user, task = await a_broken_checkpoint(world)
    async with world.worker() as worker:
        row = await world.until(task)
        world.sql("update vidgen.submissions set answered_at = now() - interval '1 minute'")
        await worker.janitor.strays.end()
    assert (row["error_code"], row["failures"]) == ("INTERNAL_ERROR", 3)
    assert world.credits(user) == (CREDITS, 0)
    assert world.none_lives(task)


@contextlib.contextmanager
def small_clips_bucket(world: World, limit: int) -> Iterator[None]:
    """A bucket for clips of so many bytes, and a worker that finds this enough."""
    # Else a bucket as small as the double's films is refused before anything is paid.
    world.stages = (IMAGE, replace(VIDEO, least_bytes=1000))
    world.sql(
        "insert into storage.buckets (id, name, public, file_size_limit)"
        " values ('video-files', 'video-files', false, %s)",
        limit,
    )
    yield


@acts("storage_refused")
async def test_a_file_that_is_larger_than_its_bucket_takes_ends_its_task(world: World) -> None:
    case = Case(status="failed", code="STORAGE_REFUSED", failures=1, charged=IMAGE_PRICE)
    with small_clips_bucket(world, 5000):
        check(world, case, await play(world, case))


@acts("storage_misconfigured")
async def test_a_bucket_that_shows_clips_to_everybody_costs_nothing_until_it_is_put_right(
    world: World,
) -> None:
    user = world.user(CREDITS)
    world.sql(
        "insert into storage.buckets (id, name, public) values ('video-files', 'video-files', true)"
    )
    with recorded() as heard:
        async with hearing(events.GateClosed) as closed, world.worker():
            task = world.order(user, world.scene(user))
            await closed.wait()
            assert posts(world) == (0, 0)
            world.sql("update storage.buckets set public = false where id = 'video-files'")
            row = await world.until(task)
    assert (row["status"], row["failures"]) == ("completed", 0)
    (gate,) = [event for event in heard if isinstance(event, events.GateClosed)]
    assert gate.code == "STORAGE_MISCONFIGURED"
    assert "video-files" in gate.details
    assert posts(world) == (1, 1)
    assert world.books_balance()


def another_worker(world: World, *, dead: bool) -> UUID:
    """A worker's row, without a process."""
    worker = uuid4()
    world.sql(
        "insert into vidgen.workers (id, host, pid, version, provider, key_fingerprint, scopes, "
        "concurrency, lease, dead_at) values (%s, 'elsewhere', 1, '0', 'runway', 'other', '{*}', "
        "1, '1 hour', case when %s then now() end)",
        worker, dead,
    )  # fmt: skip
    return worker


@acts("lease_lost")
async def test_a_task_taken_by_another_worker_is_left_alone(world: World) -> None:
    user = world.user(CREDITS)
    scene = world.scene(user, image_prompt="[[slow 500ms]] a bottle")
    with recorded() as heard:
        async with world.worker() as worker:
            async with hearing(events.SubmissionRecorded) as submitted:
                task = world.order(user, scene)
                await submitted.wait()
            other = another_worker(world, dead=False)
            world.sql(
                "update video_generation_tasks set worker_id = %s, attempt = attempt + 1 "
                "where id = %s",
                other, task,
            )  # fmt: skip
            await world.beats(3)
            assert worker.process.held.tasks == {}
            assert world.task(task)["worker_id"] == other
            assert world.credits(user) == (CREDITS, PRICE)
            world.sql("update vidgen.workers set dead_at = now() where id = %s", other)
            row = await world.until(task)
    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 3, 0)
    assert posts(world) == (1, 1)
    assert not [event for event in heard if isinstance(event, events.TaskRequeued)]


@acts("cancelled")
async def test_a_cancelled_task_gives_the_rest_of_its_hold_back(world: World) -> None:
    user = world.user(CREDITS)
    async with world.worker(), hearing(events.Progressed) as running:
        task = world.order(user, world.scene(user, image_prompt="[[stall]] a bottle"))
        await running.wait()
        world.as_user(user, "select public.cancel_video_generation_task(%s)", task)
        row = await world.until(task)
    assert (row["status"], row["error_code"]) == ("cancelled", None)
    assert [g["state"] for g in world.runway.generations()] == ["CANCELLED"]
    assert world.credits(user) == (CREDITS, 0)


@acts("draining")
async def test_a_drain_costs_no_budget_and_no_second_generation(world: World) -> None:
    user = world.user(CREDITS)
    scene = world.scene(user, image_prompt="[[slow 500ms]] a bottle")
    async with world.worker(), hearing(events.SubmissionRecorded) as submitted:
        task = world.order(user, scene)
        await submitted.wait()
    row = world.task(task)
    assert (row["status"], row["failures"], world.credits(user)) == (
        "pending", 0, (CREDITS, PRICE),
    )  # fmt: skip
    async with world.worker():
        row = await world.until(task)
    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 2, 0)
    assert posts(world) == (1, 1)


@acts("worker_lost")
async def test_a_task_under_which_workers_die_ends_as_lost(world: World) -> None:
    user = world.user(CREDITS)
    task = world.order(user, world.scene(user))
    dead = another_worker(world, dead=True)
    world.sql("insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", task)
    world.sql(
        "update video_generation_tasks set status = 'processing', attempt = 1, worker_id = %s, "
        "started_at = now() where id = %s",
        dead, task,
    )  # fmt: skip
    world.sql("""select vidgen.hold_credits(%s, %s, '{"image": 5, "video": 25}')""", task, user)
    async with world.worker():
        row = await world.until(task)
    assert (row["status"], row["error_code"]) == ("failed", "WORKER_LOST")
    assert (posts(world), world.credits(user)) == ((0, 0), (CREDITS, 0))
    silent_about_the_provider(row)


OF_FILMS = {"cut_invalid", "part_failed", "part_unusable", "render_failed"}
"""Their cases are in tests/films/, in test_batch.py and test_render_lane.py."""


def test_every_row_of_the_table_has_a_case() -> None:
    assert CASES.keys() | ACTED.keys() | OF_FILMS == FAULTS.keys()
    assert not CASES.keys() & ACTED.keys()


# Budgets, backoff, retry.


async def test_pauses_double_and_count_what_they_should(world: World) -> None:
    user = world.user(CREDITS)
    scene = world.scene(user, image_prompt="[[busy x4]] a bottle")
    with recorded() as heard, impatient(world, user):
        async with world.worker(VIDGEN_RETRY_BACKOFF="10s"):
            row = await world.until(world.order(user, scene))
    assert (row["status"], row["failures"]) == ("completed", 0)
    pauses = [event.delay_seconds for event in heard if isinstance(event, events.TaskRequeued)]
    assert len(pauses) == 4
    for number, pause in enumerate(pauses):
        assert 10 * 2**number <= pause <= 15 * 2**number


async def test_a_long_pause_has_an_end(world: World) -> None:
    user = world.user(CREDITS)
    scene = world.scene(user, image_prompt="[[fail THIRD_PARTY.UNAVAILABLE x1]] a bottle")
    with recorded() as heard, impatient(world, user):
        async with world.worker():
            await world.until(world.order(user, scene))
    (requeued,) = [event for event in heard if isinstance(event, events.TaskRequeued)]
    assert 120 <= requeued.delay_seconds <= 180


async def test_an_overdue_generation_is_polled_on_and_used(world: World) -> None:
    user = world.user(CREDITS)
    scene = world.scene(user, image_prompt="[[slow 600ms]] a bottle")
    with recorded() as heard:
        async with world.worker(VIDGEN_STAGE_DEADLINE="100ms"):
            row = await world.until(world.order(user, scene))
    assert (row["status"], row["failures"]) == ("completed", 0)
    assert [e.stage for e in heard if isinstance(e, events.GenerationOverdue)] == ["image"]
    assert posts(world) == (1, 1)


async def test_an_overdue_generation_is_ended_at_the_provider(world: World) -> None:
    case = CASES["generation_overdue"]["ended at the hard deadline"]
    await play(world, case)
    states = [g["state"] for g in world.runway.generations(kind="image")]
    assert states == ["CANCELLED", "SUCCEEDED"]
    ended = world.sql("select ended_state from vidgen.submissions order by sent_at")
    assert [row["ended_state"] for row in ended] == ["cancelled", "succeeded", "succeeded"]


async def test_nothing_is_ended_at_the_provider_without_a_look(world: World) -> None:
    """Past the hard deadline, but unreadable: it may have finished, and a DELETE destroys that.

    Not for one bad answer, or four; `test_bounds.py` has those that never end.
    """
    user = world.user(CREDITS)
    scene = world.scene(user, image_prompt="[[poll-500 x4]] a bottle")
    async with world.worker(**SLOW_AGAIN):
        row = await world.until(world.order(user, scene))
    assert (row["status"], row["failures"]) == ("completed", 0)
    assert [g["state"] for g in world.runway.generations()] == ["SUCCEEDED", "SUCCEEDED"]


async def test_a_retry_goes_on_after_the_still(world: World) -> None:
    user = world.user(CREDITS)
    scene = world.scene(user, visual_prompt="[[fail ASSET.INVALID x1]] around it")
    async with world.worker():
        task = world.order(user, scene)
        failed = await world.until(task)
        assert (failed["error_code"], world.credits(user)) == (
            "ASSET_INVALID", (CREDITS - IMAGE_PRICE, 0),
        )  # fmt: skip
        world.as_user(user, "select public.retry_video_generation_task(%s)", task)
        row = await world.until(task, "completed")
    assert row["image_path"] == failed["image_path"]
    assert (row["error"], row["failures"]) == (None, 0)
    assert posts(world) == (1, 2)
    assert world.credits(user) == (CREDITS - PRICE, 0)
    assert world.books_balance()


async def test_a_retry_after_the_store_refused_pays_no_second_generation(world: World) -> None:
    user = world.user(CREDITS)
    with small_clips_bucket(world, 5000):
        async with world.worker():
            task = world.order(user, world.scene(user))
            assert (await world.until(task))["error_code"] == "STORAGE_REFUSED"
            world.sql("update storage.buckets set file_size_limit = null")
            world.as_user(user, "select public.retry_video_generation_task(%s)", task)
            await world.until(task, "completed")
    assert posts(world) == (1, 1)
    assert world.credits(user) == (CREDITS - PRICE, 0)


async def test_the_cap_holds_over_many_retries_of_one_kind_and_another(world: World) -> None:
    """Unknown once, then failed at a cost: two possibly paid, and that is the end."""
    user = world.user(CREDITS)
    scene = world.scene(
        user, image_prompt="[[drop-after-accept x1]] [[fail INTERNAL cost 8]] a bottle"
    )
    async with world.worker():
        row = await world.until(world.order(user, scene))
    assert row["status"] == "failed"
    assert posts(world) == (2, 0)
