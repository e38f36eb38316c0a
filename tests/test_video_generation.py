"""The whole pipeline: a row goes in, a video comes out, or a clear reason why not."""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from psycopg import sql

from tests.support.films import size_of
from tests.support.world import World, hearing, recorded
from vidgen_worker.domain.resolution import RATIOS
from vidgen_worker.telemetry import bus, events

IMAGE_PRICE, VIDEO_PRICE = 5, 25


async def test_a_row_becomes_a_stored_video(world: World) -> None:
    """The row, the scene, the objects, the ledger and the provider agree on one video."""
    user = world.user(100)
    scene = world.scene(user)
    async with world.worker():
        task = world.order(user, scene)
        row = await world.until(task)

    assert (row["status"], row["progress"], row["current_step"], row["message"]) == (
        "completed", 100, "Completed", "Video generation completed successfully",
    )  # fmt: skip
    assert (row["resolution"], row["video_ratio"], row["image_ratio"]) == (
        "1280:720", "1280:720", "1920:1080",
    )  # fmt: skip
    assert row["attempt"] == 1
    assert row["worker_id"] is None
    assert row["started_at"] <= row["completed_at"]
    image, video = world.runway.generations()
    assert row["image_path"].startswith(f"generated_images/{user}/")
    assert row["video_path"].startswith(f"video-files/{user}/")
    # A place of its own, which nothing tells before it is paid for.
    for path, generation in ((row["image_path"], image), (row["video_path"], video)):
        assert str(UUID(Path(path).stem)) not in {generation["id"], str(row["id"])}
    assert world.sql("select * from vidgen.uploads") == []
    assert world.credits(user) == (100 - IMAGE_PRICE - VIDEO_PRICE, 0)
    assert world.books_balance()
    seen = world.one("select * from video_scenes where id = %s", scene)
    assert seen["status"] == "completed"
    assert seen["image_url"] == row["image_url"]
    assert seen["generated_video_url"] == row["video_url"]


async def test_signed_urls(world: World) -> None:
    """The still is public, the clip only signed for one hour; both are what was stored."""
    user = world.user()
    async with world.worker():
        row = await world.until(world.order(user, world.scene(user)))
    async with httpx.AsyncClient() as http:
        still = await http.get(row["image_url"])
        clip = await http.get(row["video_url"])
        unsigned = await http.get(row["video_url"].split("?")[0])
    assert (still.status_code, still.headers["content-type"]) == (200, "image/png")
    assert (clip.status_code, clip.headers["content-type"]) == (200, "video/mp4")
    assert unsigned.status_code == 400
    assert clip.content[4:8] == b"ftyp"
    assert 3590 < (row["video_url_expires_at"] - row["completed_at"]).total_seconds() < 3610
    stored = world.one("select * from vidgen.checkpoints where stage = 'video'")
    assert stored["sha256"] == hashlib.sha256(clip.content).hexdigest()
    assert stored["size"] == len(clip.content)


@pytest.mark.parametrize("resolution", [*RATIOS, None, ""])
async def test_resolution_mapping(world: World, resolution: str | None) -> None:
    """Each resolution gets a clip of exactly its size; a missing or empty one 720:1280."""
    user = world.user()
    scene = world.scene(user, resolution=resolution)
    async with world.worker():
        row = await world.until(world.order(user, scene))
    assert row["status"] == "completed", row["error"]
    expected = resolution or "720:1280"
    video_ratio, image_ratio = RATIOS[expected]
    assert (row["resolution"], row["video_ratio"], row["image_ratio"]) == (
        expected, video_ratio, image_ratio,
    )  # fmt: skip
    assert size_of(await fetched(row["video_url"])) == video_ratio
    assert size_of(await fetched(row["image_url"])) == image_ratio


async def fetched(url: str) -> bytes:
    """What stands at a URL."""
    async with httpx.AsyncClient() as http:
        return (await http.get(url)).raise_for_status().content


async def test_progress_never_goes_down_and_says_the_steps_word_for_word(world: World) -> None:
    """The milestones and step texts of the contract, in order."""
    world.sql("create table seen (n serial, progress float8, current_step text)")
    world.sql("""
        create function see() returns trigger language plpgsql security definer as $$
        begin
          insert into public.seen (progress, current_step) values (new.progress, new.current_step);
          return null;
        end $$""")
    world.sql(
        "create trigger see after insert or update on video_generation_tasks "
        "for each row execute function see()"
    )
    user = world.user()
    async with world.worker():
        await world.until(world.order(user, world.scene(user)))
    seen = [(r["progress"], r["current_step"]) for r in world.sql("select * from seen order by n")]
    steps = list(dict.fromkeys(seen))
    assert steps == [
        (0, "Initializing"),
        (5, "Initializing video generation pipeline"),
        (15, "Fetching scene configuration and prompts"),
        (35, "Generating scene image with AI"),
        (40, "Storing generated image"),
        (70, "Creating video from generated image"),
        (75, "Storing generated video"),
        (95, "Saving results and finalizing"),
        (100, "Completed"),
    ]


# Bad input: refused with a code, the field and the remedy, and nothing is paid.

LONG = "x" * 1001
REFERENCE = "product_reference_image_url"
BAD_SCENES: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"image_prompt": None, "visual_prompt": " "}, "image_prompt"),
    "a prompt of 1,001 units": ({"image_prompt": LONG}, "image_prompt"),
    "a video prompt of 1,001 units": ({"visual_prompt": LONG}, "visual_prompt"),
    "an emoji prompt beyond the limit": ({"image_prompt": "😀" * 500 + "x"}, "image_prompt"),
    "duration 0": ({"duration": 0}, "duration"),
    "duration 11": ({"duration": 11}, "duration"),
    "an http reference": (
        {"product_reference_image_url": "http://cdn.example.com/a.png"}, REFERENCE,
    ),
    "a reference without a host": (
        {"product_reference_image_url": "https:///a.png"}, REFERENCE,
    ),
    "a reference at an IP address": (
        {"product_reference_image_url": "https://93.184.216.34/a.png"}, REFERENCE,
    ),
    "a reference of 3,000 characters": (
        {"product_reference_image_url": "https://cdn.example.com/" + "a" * 2976},
        REFERENCE,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SCENES)
async def test_a_bad_scene_is_refused_before_anything_is_paid(world: World, name: str) -> None:
    """INVALID_REQUEST names the field and the remedy; the hold was never opened."""
    columns, field = BAD_SCENES[name]
    user = world.user(100)
    scene = world.scene(user, **columns)
    async with world.worker():
        row = await world.until(world.order(user, scene))
    assert (row["status"], row["error_code"]) == ("failed", "INVALID_REQUEST")
    assert row["error"]["field"] == field
    assert field in row["error_message"]
    assert "retry" in row["error_message"]
    assert set(row["error"]) == {"error", "details", "code", "timestamp", "field"}
    assert world.runway.requests() == []
    assert world.credits(user) == (100, 0)
    assert world.one("select status from video_scenes where id = %s", scene)["status"] == "failed"


async def test_an_unknown_resolution_is_refused(world: World) -> None:
    """RESOLUTION_UNSUPPORTED names the ones that are supported."""
    user = world.user()
    async with world.worker():
        row = await world.until(world.order(user, world.scene(user, resolution="640:480")))
    assert row["error_code"] == "RESOLUTION_UNSUPPORTED"
    assert "1280:720" in row["error_message"]
    assert world.runway.requests() == []


async def test_another_users_scene_is_not_found(world: World) -> None:
    """A row that a trusted writer inserted for somebody else's scene."""
    user, stranger = world.user(), world.user()
    scene, task = world.scene(stranger), uuid4()
    world.sql(
        "insert into video_generation_tasks (id, scene_id, user_id) values (%s, %s, %s)",
        task, scene, user,
    )  # fmt: skip
    async with world.worker():
        row = await world.until(task)
    assert row["error_code"] == "SCENE_NOT_FOUND"
    assert world.runway.requests() == []
    assert world.one("select status from video_scenes where id = %s", scene)["status"] == "pending"


@pytest.mark.parametrize("whose", ["nobody's", "another's"])
def test_a_client_cannot_order_a_scene_that_is_not_its_own(world: World, whose: str) -> None:
    """The same refusal for an absent and a foreign scene: it tells nothing."""
    user = world.user()
    scene = uuid4() if whose == "nobody's" else world.scene(world.user())
    with pytest.raises(Exception, match="row-level security policy") as refused:
        world.order(user, scene)
    assert getattr(refused.value, "sqlstate", None) == "42501"


async def test_a_scene_deleted_before_the_claim_is_not_found(world: World) -> None:
    """The application stays free to delete scenes."""
    user = world.user()
    scene = world.scene(user)
    task = world.order(user, scene)
    world.sql("delete from video_scenes where id = %s", scene)
    async with world.worker():
        row = await world.until(task)
    assert (row["error_code"], row["scene_id"]) == ("SCENE_NOT_FOUND", None)
    assert world.runway.requests() == []


@pytest.mark.parametrize("balance", [0, IMAGE_PRICE, IMAGE_PRICE + VIDEO_PRICE - 1])
async def test_without_credits_for_all_of_it_nothing_is_paid(world: World, balance: int) -> None:
    """Credits for the image alone don't begin a video that can't be paid."""
    user = world.user(balance)
    async with world.worker():
        row = await world.until(world.order(user, world.scene(user)))
    assert row["error_code"] == "INSUFFICIENT_CREDITS"
    assert world.runway.requests() == []
    assert world.books_balance()


async def test_a_missing_price_fails_closed(world: World) -> None:
    """No price is not a price of zero."""
    world.sql("delete from credit_prices where action = 'generate_scene'")
    user = world.user()
    async with world.worker():
        row = await world.until(world.order(user, world.scene(user)))
    assert row["error_code"] == "PRICE_MISSING"
    assert world.runway.requests() == []


async def test_odd_but_good_input_is_not_refused(world: World) -> None:
    """An emoji prompt at exactly the limit, and a null duration, which means 5."""
    user = world.user()
    scene = world.scene(user, image_prompt="😀" * 500, duration=None)
    async with world.worker():
        row = await world.until(world.order(user, scene))
    assert row["status"] == "completed"
    _, video = world.runway.requests()
    assert video["body"]["duration"] == 5


async def test_the_product_reference_goes_along_with_its_tag(world: World) -> None:
    """The still is made with the product's picture; the clip starts from the still."""
    user = world.user()
    picture = f"{world.runway.url}/sandbox/product.png"
    scene = world.scene(user, product_reference_image_url=picture)
    async with world.worker():
        row = await world.until(world.order(user, scene))
    assert row["status"] == "completed", row["error"]
    image, video = world.runway.requests()
    assert image["body"]["referenceImages"] == [{"uri": picture, "tag": "product"}]
    assert "/outputs/" in video["body"]["promptImage"]


async def test_without_credits_switched_on_nothing_is_held_or_charged(world: World) -> None:
    """VIDGEN_CREDITS=off."""
    user = world.user(0)
    async with world.worker(VIDGEN_CREDITS="off"):
        row = await world.until(world.order(user, world.scene(user)))
    assert row["status"] == "completed"
    assert world.sql("select * from vidgen.holds") == []
    assert world.sql("select * from vidgen.charges") == []


async def test_disabled_runway_claims_nothing_and_says_so(world: World) -> None:
    """RUNWAYML_ENABLED=false."""
    user = world.user()
    with recorded() as heard:
        async with world.worker(RUNWAYML_ENABLED="false"):
            task = world.order(user, world.scene(user))
            await world.beats(2)
    assert any(isinstance(event, events.ClaimsDisabled) for event in heard)
    assert world.task(task)["status"] == "pending"


async def test_a_scene_table_that_refuses_our_status_does_not_stop_a_paid_task(
    world: World,
) -> None:
    """An application's own CHECK fails in a savepoint; it is logged."""
    world.sql("alter table video_scenes add constraint own check (status <> 'completed')")
    user = world.user()
    async with hearing(events.SceneWriteRefused) as refused, world.worker():
        row = await world.until(world.order(user, world.scene(user)))
        await asyncio.wait_for(refused.wait(), 60)  # said after the row is written
    assert row["status"] == "completed"


async def test_rejected_content_is_never_submitted_again(world: World) -> None:
    """CONTENT_REJECTED: one generation, the hold released, no retry while the scene is the same."""
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[fail SAFETY.INPUT.TEXT]] something")
    async with world.worker():
        task = world.order(user, scene)
        row = await world.until(task)
        assert row["error_code"] == "CONTENT_REJECTED"
        assert world.credits(user) == (100, 0)
        with pytest.raises(Exception, match="unchanged"):
            world.as_user(user, "select public.retry_video_generation_task(%s)", task)
        world.sql("update video_scenes set image_prompt = 'a kind one' where id = %s", scene)
        world.as_user(user, "select public.retry_video_generation_task(%s)", task)
        row = await world.until(task, "completed")
    assert len(world.runway.generations()) == 3
    assert world.books_balance()


async def test_a_failed_generation_is_tried_again_up_to_its_budget(world: World) -> None:
    """INTERNAL failures cost nothing at the provider and are retried; the budget ends it."""
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[fail INTERNAL.BAD_OUTPUT.CODE01 cost 0]] x")
    async with world.worker():
        row = await world.until(world.order(user, scene))
    assert (row["error_code"], row["failures"]) == ("GENERATION_FAILED", 3)
    assert len(world.runway.generations()) == 3
    assert world.credits(user) == (100, 0)


async def test_a_worker_process_serves_a_signed_in_user(world: World, tmp_path: Path) -> None:
    """As in production: a process of its own, a row from a browser, an MP4 by its signed URL."""
    user = world.user(100)
    log = tmp_path / "worker.log"
    with world.process(log):
        row = await world.until(world.order(user, world.scene(user)))
    assert row["status"] == "completed", log.read_text()
    assert (await fetched(row["video_url"]))[4:8] == b"ftyp"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    said = [line["event"] for line in lines]
    assert "Stored image in Supabase" in said
    assert "Stored video in Supabase" in said
    assert "Video generation completed" in said
    assert said[-1] == "Worker stopped"


async def test_a_failures_line_can_be_found_in_the_log(world: World, tmp_path: Path) -> None:
    """`grep ERROR | grep video_generation` finds it, with its code, in JSON too."""
    user = world.user(0)
    log = tmp_path / "worker.log"
    with world.process(log):
        await world.until(world.order(user, world.scene(user)))
    (line,) = [
        line
        for line in log.read_text().splitlines()
        if "ERROR" in line and "video_generation" in line
    ]
    assert json.loads(line)["code"] == "INSUFFICIENT_CREDITS"


# A scene that is edited while its still is made.


@contextmanager
def edited_while_the_still_is_made(world: World, scene: UUID, **columns: object) -> Iterator[None]:
    """Change the scene between two stages: once the still's generation has ended."""

    def edit(event: bus.Event) -> None:
        if isinstance(event, events.GenerationEnded) and event.stage == "image":
            for name, value in columns.items():
                with world.admin() as conn:
                    change = sql.SQL("update public.video_scenes set {} = %s where id = %s")
                    conn.execute(change.format(sql.Identifier(name)), [value, scene])

    with bus.subscribed(edit):
        yield


async def test_a_stage_not_begun_reads_the_edited_scene_without_a_restart(world: World) -> None:
    user = world.user()
    scene = world.scene(user)
    with edited_while_the_still_is_made(world, scene, visual_prompt="The camera flies away"):
        async with world.worker():
            await world.until(world.order(user, scene))
    assert "The camera flies away" in json.dumps(
        world.sql("select request from vidgen.checkpoints where stage = 'video'")
    )
    inputs = world.sql(
        "select c.inputs = md5(vidgen.read_scene(s.id, s.user_id)::text) as fresh"
        "  from vidgen.checkpoints as c, public.video_scenes as s order by c.stage"
    )
    assert [row["fresh"] for row in inputs] == [False, True]
    assert world.books_balance()


async def test_an_edited_duration_is_the_clips(world: World) -> None:
    user = world.user()
    scene = world.scene(user)
    with edited_while_the_still_is_made(world, scene, duration=3):
        async with world.worker():
            await world.until(world.order(user, scene))
    (video,) = [r for r in world.runway.requests() if r["path"].endswith("image_to_video")]
    assert video["body"]["duration"] == 3


async def test_a_scene_edited_to_nonsense_fails_and_pays_for_no_clip(world: World) -> None:
    user = world.user(100)
    scene = world.scene(user)
    with edited_while_the_still_is_made(world, scene, visual_prompt="x" * 1001):
        async with world.worker():
            row = await world.until(world.order(user, scene))
    assert row["error_code"] == "INVALID_REQUEST"
    assert world.sql("select stage from vidgen.submissions") == [{"stage": "image"}]
    assert world.credits(user) == (95, 0)


async def test_another_resolution_is_shown_and_asked_for(world: World) -> None:
    user = world.user()
    scene, portrait = world.scene(user), uuid4()
    world.sql("insert into video_scenarios (id, resolution) values (%s, '720:1280')", portrait)
    with edited_while_the_still_is_made(world, scene, scenario_id=portrait):
        async with world.worker():
            row = await world.until(world.order(user, scene))
    assert (row["status"], row["video_ratio"]) == ("completed", "720:1280")


async def test_an_unchanged_scene_is_read_once_and_a_begun_stage_keeps_its_request(
    world: World,
) -> None:
    user = world.user()
    scene = world.scene(user)

    def edit(event: bus.Event) -> None:
        if isinstance(event, events.SubmissionBegun) and event.stage == "video":
            world.sql("update video_scenes set visual_prompt = 'too late' where id = %s", scene)

    with recorded() as heard, bus.subscribed(edit):
        async with world.worker():
            await world.until(world.order(user, scene))
    assert len([event for event in heard if isinstance(event, events.ResolutionMapped)]) == 1
    assert "too late" not in json.dumps(world.sql("select request from vidgen.checkpoints"))
