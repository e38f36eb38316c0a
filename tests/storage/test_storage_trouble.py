"""Trouble with outputs and with the file store: a paid generation is kept, used once, and whole."""

import hashlib
from typing import Any

import httpx
import pytest

from tests.support.films import size_of
from tests.support.watching import until
from tests.support.world import Row, World, hearing, posts, recorded
from vidgen_worker.telemetry import events

TIMEOUT = {"VIDGEN_STORAGE_TIMEOUT": "1s"}


async def whole(world: World, row: Row) -> None:
    """The task is complete with one generation per stage; what is stored is what was recorded.

    Or it is written down to be removed: an upload that came to nothing has a place of its own.
    """
    assert row["status"] == "completed", row["error"]
    assert row["failures"] == 0
    assert posts(world) == (1, 1)
    assert {generation["state"] for generation in world.runway.generations()} == {"SUCCEEDED"}
    checkpoints = world.sql("select * from vidgen.checkpoints order by stage")
    stored = {thing["name"]: thing for thing in world.storage.objects()}
    left = {upload["path"] for upload in world.sql("select path from vidgen.uploads")}
    assert {row["image_path"], row["video_path"]} == stored.keys() - left
    async with httpx.AsyncClient() as http:
        for checkpoint, url in zip(
            checkpoints, (row["image_url"], row["video_url"]), strict=True
        ):  # fmt: skip
            content = (await http.get(url)).raise_for_status().content
            assert checkpoint["state"] == "done"
            assert checkpoint["sha256"] == hashlib.sha256(content).hexdigest()
            assert checkpoint["size"] == len(content) > 0
            assert stored[checkpoint["path"]]["sha256"] == checkpoint["sha256"]
    assert world.credits(row["user_id"]) == (70, 0)
    assert world.books_balance()


STORE: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "502 with a page": {"status": 502},
    "544": {"status": 544},
    "429": {"status": 429},
    "a hang": {"hang": 30},
    "cut before": {"drop": "before"},
    "cut in the middle": {"drop": "during"},
    "cut after it was stored": {"drop": "after"},
}


@pytest.mark.parametrize("kind", ["upload", "sign"])
@pytest.mark.parametrize("name", STORE)
async def test_trouble_that_passes_is_retried_in_place(world: World, name: str, kind: str) -> None:
    if kind == "sign" and name == "cut in the middle":
        kind = "bucket"  # there is no middle of a request without a body
    world.storage.fail(kind, times=2, **STORE[name])
    user = world.user(100)
    async with world.worker(**TIMEOUT):
        row = await world.until(world.order(user, world.scene(user)))
    await whole(world, row)
    assert row["attempt"] == 1


@pytest.mark.parametrize("name", STORE)
async def test_a_longer_trouble_is_waited_for_and_nothing_half_written_counts(
    world: World, name: str
) -> None:
    user = world.user(100)
    async with world.worker(**TIMEOUT):
        async with hearing(events.TaskRequeued) as put_back:
            world.storage.fail("upload", times=100, **STORE[name])
            task = world.order(user, world.scene(user))
            await put_back.wait()
        (checkpoint,) = world.sql("select * from vidgen.checkpoints")
        assert (checkpoint["state"], checkpoint["path"]) == ("storing", None)
        assert world.task(task)["image_path"] is None
        assert world.sql("select * from vidgen.charges") == []
        if name != "cut after it was stored":
            assert world.storage.objects() == []
        world.storage.heal()
        row = await world.until(task)
    await whole(world, row)


async def test_a_bucket_that_is_deleted_while_its_clip_is_made(world: World) -> None:
    user = world.user(100)
    async with world.worker():
        task = world.order(user, world.scene(user, visual_prompt="[[slow 1s]] around it"))
        await until(world, lambda: posts(world) == (1, 1))
        world.sql("select 1")
        world.storage.delete_bucket("video-files")
        row = await world.until(task)
    await whole(world, row)


OUTPUTS = {
    "expired": "[[expire-urls x2]]",
    "cut": "[[truncate-download x2]]",
    "empty": "[[zero-bytes x2]]",
    "a page": "[[page-download x3]]",
    "an odd header": "[[odd-encoding]]",
    "one after the other": "[[expire-urls]] [[truncate-download]] [[zero-bytes]]",
}


@pytest.mark.parametrize("stage", ["image_prompt", "visual_prompt"])
@pytest.mark.parametrize("name", OUTPUTS)
async def test_an_output_that_does_not_arrive_is_asked_for_again(
    world: World, name: str, stage: str
) -> None:
    user = world.user(100)
    async with world.worker():
        row = await world.until(
            world.order(user, world.scene(user, **{stage: f"{OUTPUTS[name]} a bottle"}))
        )
    await whole(world, row)


CONFORMED = {
    "another type of picture": ("image_prompt", "[[wrong-type]]"),
    "another type of clip": ("visual_prompt", "[[wrong-type]]"),
    "another size of picture": ("image_prompt", "[[wrong-size]]"),
    "another size of clip": ("visual_prompt", "[[wrong-size]]"),
    "another duration": ("visual_prompt", "[[wrong-duration]]"),
}


@pytest.mark.parametrize("name", CONFORMED)
async def test_an_output_that_is_not_quite_right_is_put_right_and_used(
    world: World, name: str
) -> None:
    field, words = CONFORMED[name]
    user = world.user(100)
    with recorded() as heard:
        async with world.worker():
            row = await world.until(
                world.order(user, world.scene(user, **{field: f"{words} a bottle"}))
            )
    await whole(world, row)
    stage = "image" if field == "image_prompt" else "video"
    assert stage in [e.stage for e in heard if isinstance(e, events.OutputConformed)]
    async with httpx.AsyncClient() as http:
        still, clip = await http.get(row["image_url"]), await http.get(row["video_url"])
    assert (still.headers["content-type"], still.content[:8]) == ("image/png", b"\x89PNG\r\n\x1a\n")
    assert (clip.headers["content-type"], clip.content[4:8]) == ("video/mp4", b"ftyp")
    assert size_of(still.content) == row["image_ratio"]
    assert size_of(clip.content) == row["video_ratio"]


@pytest.mark.parametrize("stage", ["image_prompt", "visual_prompt"])
async def test_noise_is_never_stored_and_another_generation_is_paid_only_when_it_differs(
    world: World, stage: str
) -> None:
    user = world.user(100)
    async with world.worker():
        differs = await world.until(
            world.order(user, world.scene(user, **{stage: "[[garbage]] a bottle"}))
        )
        assert (differs["status"], differs["failures"]) == ("completed", 1)
        assert sum(posts(world)) == 3
        same = await world.until(
            world.order(user, world.scene(user, **{stage: "[[garbage same]] another bottle"}))
        )
    assert (same["status"], same["error_code"]) == ("failed", "GENERATION_FAILED")
    assert sum(posts(world)) == 4 if stage == "image_prompt" else 5
    assert same["video_path"] is None
    ends = world.sql("select ended_state from vidgen.submissions where ended_state = 'undecodable'")
    assert len(ends) == 2
    assert world.books_balance()


async def test_a_retry_after_broken_bytes_begins_a_new_generation(world: World) -> None:
    user = world.user(100)
    scene = world.scene(user, image_prompt="[[garbage same]] a bottle")
    async with world.worker():
        task = world.order(user, scene)
        assert (await world.until(task))["status"] == "failed"
        world.as_user(user, "select public.retry_video_generation_task(%s)", task)
        row = await world.until(task, "completed")
    assert posts(world) == (2, 1)
    assert row["failures"] == 0
    assert world.credits(user) == (70, 0)
