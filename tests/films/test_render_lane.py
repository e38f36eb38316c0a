"""Films with outputs: checked, ordered, cut and stored by real workers beside the doubles."""

import asyncio
import io
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import av
import httpx
import psutil
import pytest
from PIL import Image, features
from psycopg.types.json import Jsonb

from tests.support.cuts import wav
from tests.support.watching import until_true, watch
from tests.support.world import World, cancel, hearing, posts, reasons, recorded, vidgen
from vidgen_worker.films.fonts import Fonts, MissingGlyphError
from vidgen_worker.films.rendering import CHILD
from vidgen_worker.telemetry import events

if not features.check("fribidi") or not Fonts().files:
    pytest.skip("there is no libfribidi0, or no font", allow_module_level=True)
Row = dict[str, Any]
PRICE = 30
TASKS = "public.video_generation_tasks"
STATUS = f"select status = '{{}}' from {TASKS} where id = %s"
SHORT = {"preset": "preview", "format": "mp4"}
"""An output that takes no second."""
SLOW = {"preset": "av1", "target": "best"}
"""One that takes many; of twelve parts it is at work for longer than a test looks."""


@pytest.fixture(autouse=True)
def renders(world: World) -> None:
    """Let workers cut films, and owners bring assets before any worker has come."""
    world.environment = {"VIDGEN_RENDERS": "1"}
    world.sql(
        "insert into storage.buckets (id, name, public) "
        "values ('film-assets', 'film-assets', false)"
    )  # fmt: skip


def order(world: World, user: UUID, parts: list[Row], outputs: list[Any], **rest: object) -> UUID:
    """Insert a film as its user."""
    film = uuid4()
    world.as_user(
        user, f"insert into {TASKS} (id, user_id, cut) values (%s, %s, %s)",
        film, user, Jsonb({"parts": parts, "outputs": outputs, **rest}),
    )  # fmt: skip
    return film


def scene(world: World, user: UUID, **rest: object) -> Row:
    """A part of one second."""
    return {"scene": str(world.scene(user)), "to": 1, **rest}


async def clip_of(world: World, user: UUID) -> Row:
    """A part whose clip exists: nothing is paid for a film of it."""
    task = world.order(user, world.scene(user))
    assert (await world.until(task))["status"] == "completed"
    return {"task": str(task)}


def renditions(world: World, film: UUID) -> dict[str, Row]:
    rows = world.sql(
        "select * from public.video_renditions where film_id = %s order by position", film
    )
    return {row["name"]: row for row in rows}


def upload(world: World, user: UUID, path: str, content: bytes, media_type: str) -> httpx.Response:
    """Bring a file to the bucket of assets, as its owner's browser does."""
    return httpx.post(
        f"{world.storage.url}/storage/v1/object/film-assets/{path}",
        content=content,
        headers={
            "apikey": world.storage.keys.anon,
            "authorization": f"Bearer {world.storage.keys.user_token(user)}",
            "content-type": media_type,
        },
    )


def read(world: World, user: UUID | None, bucket: str, path: str) -> httpx.Response:
    """Read an object as a signed-in user, or (None) as the service."""
    keys = world.storage.keys
    token = keys.service_role if user is None else keys.user_token(user)
    return httpx.get(
        f"{world.storage.url}/storage/v1/object/authenticated/{bucket}/{path}",
        headers={"apikey": keys.anon, "authorization": f"Bearer {token}"},
    )


def signed(url: str) -> bytes:
    return httpx.get(url).raise_for_status().content


def spoil(world: World, changed: str, gone: str) -> None:
    """Write another clip over one, which differs in nothing that is seen, and delete another."""
    other = read(world, None, "video-files", changed).content + b"\0\0\0\x08free"
    with httpx.Client(
        base_url=f"{world.storage.url}/storage/v1/object/video-files/",
        headers={"authorization": f"Bearer {world.storage.keys.service_role}"},
    ) as client:
        kept = {"x-upsert": "true", "content-type": "video/mp4"}
        client.post(changed, content=other, headers=kept).raise_for_status()
        client.delete(gone).raise_for_status()


def undrawn() -> str:
    """A letter that no font of this machine has."""
    for letter in "\U0001f9cc\u65e5\U00013000\U00020000":
        try:
            Fonts().runs(letter)
        except MissingGlyphError:
            return letter
    pytest.skip("the fonts of this machine have every letter")


def music(tmp_path: Path) -> bytes:
    return wav(tmp_path / "music.wav", 220, 1.0).read_bytes()


def children() -> list[int]:
    """The render children of this process and of the workers it has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if str(CHILD) in process.cmdline():
                found.append(process.pid)
        except psutil.Error:
            continue  # it has just ended
    return found


def ended(pid: int) -> bool:
    """Whether a process ends, or has ended."""
    if not psutil.pid_exists(pid):
        return True
    _, alive = psutil.wait_procs([psutil.Process(pid)], 20)
    return not alive


async def until_there_is_a_child(*, without: frozenset[int] = frozenset()) -> int:
    async with asyncio.timeout(30):
        while True:
            found = await asyncio.to_thread(children)
            if new := [pid for pid in found if pid not in without]:
                return new[0]


async def test_two_scenes_with_a_fade_a_caption_and_music_become_files(
    world: World, tmp_path: Path
) -> None:
    """Stored in the owner's folder, charged once, shown to nobody else; and equal once more."""
    world.sql("update public.video_presets set film_second_credits = 3 where name = 'vertical'")
    user, stranger = world.user(), world.user()
    assert upload(world, user, f"{user}/music/a.wav", music(tmp_path), "audio/wav").is_success
    for who, path in ((stranger, f"{user}/b.wav"), (user, f"{stranger}/b.wav"), (user, "b.wav")):
        assert upload(world, who, path, b"x", "audio/wav").status_code == 400
    assert read(world, user, "film-assets", f"{user}/music/a.wav").is_success
    assert read(world, stranger, "film-assets", f"{user}/music/a.wav").is_error
    parts = [
        scene(world, user),
        scene(world, user, transition={"kind": "fade", "seconds": 0.25}, caption="A lamp"),
    ]
    outputs = ["vertical", "poster", "captions"]
    sound = {"music": {"asset": "music/a.wav"}}
    film = order(world, user, parts, outputs, sound=sound)
    async with world.worker():
        with recorded() as heard:
            row = await world.until(film)
    assert (row["status"], row["error"], row["progress"]) == ("completed", None, 100)
    made = renditions(world, film)
    assert list(made) == ["vertical", "poster", "poster-avif", "captions"]
    told = [event.name for event in heard if isinstance(event, events.RenditionStored)]
    assert told == list(made)
    vertical = made["vertical"]
    assert (vertical["width"], vertical["height"]) == (720, 1280)
    assert abs(vertical["seconds"] - 1.75) < 0.05
    for one in made.values():
        assert one["path"].startswith(f"video-files/{user}/{film}/{one['name']}-")
        content = read(world, None, one["bucket"], one["path"])
        assert content.headers["content-type"].startswith(one["media_type"])
        assert content.headers["cache-control"] == "max-age=31536000, immutable"
        assert len(content.content) == one["size"]
        assert read(world, user, one["bucket"], one["path"]).is_success
        assert read(world, stranger, one["bucket"], one["path"]).is_error
    with av.open(io.BytesIO(signed(row["video_url"])), "r") as container:
        assert container.streams.audio
        shown = len(list(container.decode(video=0)))
        assert shown == round(vertical["seconds"] * 24)
    still = Image.open(io.BytesIO(read(world, None, "video-files", made["poster"]["path"]).content))
    assert still.size == (1280, 720)
    # Two seconds that have begun, at three credits each.
    assert world.credits(user) == (1000 - 2 * PRICE - 6, 0)
    assert posts(world) == (2, 2)

    tasks = world.sql(f"select id from {TASKS} where film_id = %s order by created_at, id", film)
    by_scene = {str(world.task(one["id"])["scene_id"]): str(one["id"]) for one in tasks}
    again = [
        {"task": by_scene[str(part["scene"])]} | {k: v for k, v in part.items() if k != "scene"}
        for part in parts
    ]
    second = order(world, user, again, outputs, sound=sound)
    async with world.worker():
        assert (await world.until(second))["status"] == "completed"
    assert [one["sha256"] for one in renditions(world, second).values()] == [
        one["sha256"] for one in made.values()
    ]
    assert posts(world) == (2, 2)
    assert world.books_balance()


async def test_what_can_t_be_made_is_refused_by_its_place_before_anything_is_paid(
    world: World, tmp_path: Path
) -> None:
    user = world.user()
    upload(world, user, f"{user}/a.wav", music(tmp_path), "audio/wav")
    upload(world, user, f"{user}/noise.mp3", os.urandom(5000), "audio/mpeg")
    late = {"from": 9, "to": 9.5, "text": "late"}
    strange = {"from": 0, "to": 0.5, "text": f"A {undrawn()}"}
    cuts: list[tuple[Row, str]] = [
        ({"sound": {"music": {"asset": "none.wav"}}}, "/sound/music/asset"),
        ({"sound": {"music": {"asset": "noise.mp3"}}}, "/sound/music/asset"),
        ({"logo": {"asset": "a.wav"}}, "/logo/asset"),
        ({"captions": [late]}, "/captions/0/from"),
        ({"captions": [strange]}, "/captions/0/text"),
        ({"parts": [scene(world, user) | {"to": 9}]}, "/parts/0/to"),
        ({"outputs": ["web", "cinema"]}, "/outputs/1"),
        ({"outputs": []}, "/outputs"),
    ]
    films = [
        order(world, user, **{"parts": [scene(world, user)], "outputs": [SHORT], **cut})
        for cut, _ in cuts
    ]
    async with world.worker():
        for film, (_, field) in zip(films, cuts, strict=True):
            row = await world.until(film)
            assert (row["error_code"], row["error"]["field"]) == ("INVALID_REQUEST", field)
    assert world.sql(f"select * from {TASKS} where film_id is not null") == []
    assert world.credits(user) == (1000, 0)
    assert posts(world) == (0, 0)
    assert reasons(world) == []


async def test_a_clip_that_was_changed_or_is_gone_fails_its_film_alone(world: World) -> None:
    user = world.user()
    async with world.worker():
        good, changed, gone = [await clip_of(world, user) for _ in range(3)]
        spoil(world, *(world.task(UUID(one["task"]))["video_path"] for one in (changed, gone)))
        films = [order(world, user, [good, bad], [SHORT]) for bad in (changed, gone)]
        for film in films:
            row = await world.until(film)
            assert row["error_code"] == "PART_UNUSABLE"
            assert row["error"]["field"] == "/parts/1"
            assert "part 2" in row["error_message"]
        fine = order(world, user, [good], [SHORT])
        assert (await world.until(fine))["status"] == "completed"
    assert reasons(world) == []
    assert world.credits(user)[1] == 0


async def test_a_cut_whose_child_crashes_twice_fails_alone_and_costs_nothing_more(
    world: World,
) -> None:
    user = world.user()
    async with world.worker():
        part = await clip_of(world, user)
        poison = order(world, user, [part] * 12, [SLOW])
        await until_true_of_the_film(world, poison)
        crashed: frozenset[int] = frozenset()
        while len(crashed) < 2:
            pid = await until_there_is_a_child(without=crashed)
            os.kill(pid, signal.SIGSEGV)
            crashed |= {pid}
        row = await world.until(poison)
        assert row["error_code"] == "RENDER_FAILED"
        fine = order(world, user, [part], [SHORT])
        assert (await world.until(fine))["status"] == "completed"
    assert world.task(UUID(part["task"]))["status"] == "completed"
    assert reasons(world) == []
    assert world.credits(user)[1] == 0


@contextmanager
def small_files(most: int) -> Iterator[None]:
    """Let this process write no file above so many bytes, as where its disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_film_waits_for_a_machine_without_room_or_memory_and_closes_no_gate(
    world: World,
) -> None:
    user = world.user()
    waits = "select exists (select from vidgen.events where task_id = %s and what = 'requeued')"
    async with world.worker():
        part = await clip_of(world, user)
        watch(world)
        with small_files(4096):
            film = order(world, user, [part], [SHORT])
            await until_true(world, waits, film)
        assert (await world.until(film))["status"] == "completed"

        killed: frozenset[int] = frozenset()
        second = order(world, user, [part] * 12, [SLOW])
        while len(killed) < 2:
            pid = await until_there_is_a_child(without=killed)
            os.kill(pid, signal.SIGKILL)
            killed |= {pid}
        await until_true(world, waits, second)
        cancel(world, user, second)
        assert (await world.until(second))["status"] == "cancelled"
    codes = world.sql("select distinct code from vidgen.events where what = 'requeued'")
    assert [row["code"] for row in codes] == ["SCRATCH_UNAVAILABLE"]
    assert reasons(world) == []
    assert world.sql("select * from vidgen.troubles") == []


async def test_a_cancel_and_a_drain_end_the_render_at_once(world: World) -> None:
    user = world.user()
    async with world.worker():
        part = await clip_of(world, user)
        film = order(world, user, [part] * 12, [SLOW])
        await until_true_of_the_film(world, film)
        cancel(world, user, film)
        assert (await world.until(film))["status"] == "cancelled"
        assert children() == []
        film = order(world, user, [part] * 12, [SHORT, SLOW])
        async with hearing(events.RenditionStored) as stored:
            await stored.wait()
        await until_there_is_a_child()
    row = world.task(film)
    assert (row["status"], children()) == ("pending", [])
    assert list(renditions(world, film)) == ["preview"]
    assert world.books_balance()


async def until_true_of_the_film(world: World, film: UUID) -> None:
    """Wait until an output of it is made."""
    watch(world)
    await until_true(world, f"select message like 'Making%%' from {TASKS} where id = %s", film)


async def test_an_heir_makes_only_what_is_missing(world: World, tmp_path: Path) -> None:
    """Its worker is killed within the second output; the child dies with it."""
    user = world.user()
    async with world.worker():
        part = await clip_of(world, user)
    watch(world)
    log = tmp_path / "worker.log"
    slow = {"preset": "web", "name": "again"}
    cut = {"captions": [{"from": 0, "to": 0.5, "text": "A lamp"}]}
    with world.process(log) as process:
        film = order(world, user, [part], [SHORT, slow], **cut)
        await until_true(
            world, "select exists (select from public.video_renditions where film_id = %s)", film
        )
        child = await until_there_is_a_child()
        process.kill()
        await asyncio.to_thread(process.wait)
    assert await asyncio.to_thread(ended, child)
    before = renditions(world, film)
    with recorded() as heard:
        async with world.worker(VIDGEN_RENDERS="2"):
            assert (await world.until(film))["status"] == "completed"
    told = [event.name for event in heard if isinstance(event, events.RenditionStored)]
    assert told == ["again"]
    assert renditions(world, film)["preview"] == before["preview"]
    assert world.sql("select * from vidgen.uploads") == []
    assert world.books_balance()


async def test_two_films_are_cut_at_once_beside_paid_work(world: World) -> None:
    """And a worker without renders takes neither."""
    user, other = world.user(), world.user()
    async with world.worker(VIDGEN_RENDERS="0"):
        part, theirs = await clip_of(world, user), await clip_of(world, other)
        films = [
            order(world, user, [part] * 12, [SLOW]),
            order(world, other, [theirs] * 12, [SLOW]),
        ]
        await world.until(world.order(user, world.scene(user)))
        assert {world.task(film)["attempt"] for film in films} == {0}
        assert world.task(films[0])["message"] == "Waiting for a worker that cuts films"
        stats = await asyncio.to_thread(vidgen, world, "stats")
        assert "no worker cuts any" in stats.stdout
        checked = await asyncio.to_thread(vidgen, world, "check", VIDGEN_RENDERS="1")
        assert "no worker cuts any" in checked.stdout
        assert "Bucket film-assets" in checked.stdout
    async with world.worker(VIDGEN_RENDERS="2", VIDGEN_CONCURRENCY="1"):
        stopped: set[int] = set()
        while len(stopped) < 2:  # stopped, they still hold their places
            child = await until_there_is_a_child(without=frozenset(stopped))
            with suppress(ProcessLookupError):  # one that only looked has ended by now
                os.kill(child, signal.SIGSTOP)
                stopped.add(child)
        assert (await world.until(world.order(user, world.scene(user))))["status"] == "completed"
        assert len(children()) == 2
        for film, owner in zip(films, (user, other), strict=True):
            cancel(world, owner, film)
            assert (await world.until(film))["status"] == "cancelled"
    assert world.credits(user)[1] == 0
