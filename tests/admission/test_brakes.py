"""Brakes: the same trouble in a row stops what is paid for and keeps what was paid."""

import json
import resource
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.watching import until
from tests.support.world import (
    World,
    crowd,
    hearing,
    make_buckets,
    posts,
    probe_now,
    reasons,
    recorded,
    set_bucket,
)
from vidgen_worker.domain.faults import ALLOWANCE, IN_A_ROW
from vidgen_worker.sandbox.supabase.keys import StorageKeys
from vidgen_worker.storage.buckets import Bucket, Found, misfits
from vidgen_worker.telemetry import events

ROOMY = {"VIDGEN_IMAGE_SLOTS": "100", "VIDGEN_VIDEO_SLOTS": "100", "VIDGEN_GATE_PROBE": "1h"}


IMAGES = Bucket("stills", public=True, max_bytes=50_000_000, media_types=("image/png",),
                least_bytes=5_000_000)  # fmt: skip


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (Found(True, None, None), []),
        (Found(True, 50_000_000, ("image/*",)), []),
        (Found(True, 50_000_000, ("image/jpeg", "image/png")), []),
        (Found(True, None, ()), []),
        (Found(True, 10_000_000, None), [("file_size_limit", False)]),
        (Found(True, 100, None), [("file_size_limit", True)]),
        (Found(True, 4_999_999, None), [("file_size_limit", True)]),
        (Found(True, None, ("image/PNG",)), [("allowed_mime_types", True)]),
        (Found(True, None, ("video/mp4", "*/*")), [("allowed_mime_types", True)]),
        (Found(False, None, None), [("visibility", True)]),
        (Found(False, 1, ("a/b",)),
         [("visibility", True), ("file_size_limit", True), ("allowed_mime_types", True)]),
    ],
)  # fmt: skip
def test_a_bucket_is_compared_with_what_is_asked_of_it(
    found: Found, wrong: list[tuple[str, bool]]
) -> None:
    compared = misfits(IMAGES, found)
    assert [(one.setting, one.fatal) for one in compared] == wrong
    assert all("stills" in str(one) and one.remedy for one in compared)


OTHERS = StorageKeys.generate()
WRONG_KEYS: Mapping[str, str] = {
    "nonsense": "not.a.jwt",
    "another project's": OTHERS.service_role,
    "another project's secret key": OTHERS.secret,
}
"""They are valid until the store is read."""


@pytest.mark.parametrize("wrong", [*WRONG_KEYS, "no right to store", "no store"])
async def test_nothing_is_claimed_while_the_key_may_not_store(world: World, wrong: str) -> None:
    make_buckets(world)
    # Even where an application lets everybody see the buckets.
    world.sql("create policy all_see on storage.buckets for select using (true)")
    key = WRONG_KEYS.get(wrong, world.storage.keys.service_role)
    settings = {"SUPABASE_SERVICE_ROLE_KEY": key}
    if wrong == "no right to store":
        world.sql("revoke insert on storage.objects from service_role")
    if wrong == "no store":
        settings["SUPABASE_URL"] = world.runway.url
    tasks = crowd(world, 3)
    async with hearing(events.GateClosed) as closed, world.worker(**ROOMY | settings):
        await closed.wait()
        await world.beats(3)
        said = "STORAGE_UNAVAILABLE" if wrong == "no store" else "STORAGE_DENIED"
        assert reasons(world) == [("storage", said)]
        assert {world.task(task)["attempt"] for task in tasks} == {0}
    assert posts(world) == (0, 0)


WRONG: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "too small": ("generated-content", {"file_size_limit": 100}, {"file_size_limit": None}),
    "too small for clips": ("video-files", {"file_size_limit": "1MB"}, {"file_size_limit": None}),
    "other types": (
        "video-files", {"allowed_mime_types": ["image/png"]}, {"allowed_mime_types": ["video/*"]},
    ),
    "stills that nobody sees": ("generated-content", {"public": False}, {"public": True}),
    "clips that everybody sees": ("video-files", {"public": True}, {"public": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(WRONG.keys() - {"too small"}))
async def test_a_bucket_with_other_settings_stops_all_before_it_costs(
    world: World, name: str
) -> None:
    bucket, wrong, right = WRONG[name]
    make_buckets(world)
    set_bucket(world, bucket, **wrong)
    tasks = crowd(world, 2)
    async with world.worker(VIDGEN_IMAGE_SLOTS="9", VIDGEN_VIDEO_SLOTS="9"):
        await until(world, lambda: reasons(world) == [("storage", "STORAGE_MISCONFIGURED")])
        gate = world.one("select message, details from vidgen.gates")
        assert bucket in gate["details"]
        assert "Dashboard" in gate["details"]
        assert bucket not in gate["message"]
        assert posts(world) == (0, 0)
        set_bucket(world, bucket, **right)
        rows = [await world.until(task) for task in tasks]
    assert {row["status"] for row in rows} == {"completed"}
    assert posts(world) == (2, 2)
    assert reasons(world) == []


@pytest.mark.parametrize("name", ["too small", "clips that everybody sees"])
async def test_a_bucket_that_is_changed_at_work_keeps_what_was_paid(
    world: World, name: str
) -> None:
    bucket, wrong, right = WRONG[name]
    if name == "too small":
        bucket = "video-files"
    async with world.worker(VIDGEN_RETRY_BACKOFF="100ms") as worker:
        scene_user = world.user()
        task = world.order(
            scene_user, world.scene(scene_user, visual_prompt="[[slow 2s]] around it")
        )
        await until(world, lambda: posts(world) == (1, 1))
        set_bucket(world, bucket, **wrong)
        if name != "too small":
            await worker.janitor.probing.prove_storage()
        await until(world, lambda: reasons(world) == [("storage", "STORAGE_MISCONFIGURED")])
        (late,) = crowd(world, 1)
        await world.beats(3)
        assert posts(world) == (1, 1)
        assert not [o for o in world.storage.objects() if o["bucket"] == "video-files"]
        set_bucket(world, bucket, **right)
        rows = [await world.until(one) for one in (task, late)]
    assert {(row["status"], row["failures"]) for row in rows} == {("completed", 0)}
    assert posts(world) == (2, 2)
    assert world.books_balance()


REFUSALS = (413, 415, 503)


@pytest.mark.parametrize("status", REFUSALS)
async def test_a_store_that_takes_nothing_costs_three_more_at_most(
    world: World, status: int
) -> None:
    """Four workers race over forty tasks: what was in flight by then, and three more."""
    world.storage.fail("upload", times=1_000_000, status=status)
    tasks = crowd(world, 40)
    at_once = {"VIDGEN_CONCURRENCY": "2", "VIDGEN_RETRY_BACKOFF": "100ms"}
    settings = ROOMY | at_once
    async with (
        world.worker(**settings) as one,
        world.worker(**settings), world.worker(**settings), world.worker(**settings),
    ):  # fmt: skip
        await until(world, lambda: bool(reasons(world)))
        await world.beats(12)
        images, clips = posts(world)
        assert images + clips <= 4 * 2 + ALLOWANCE
        assert reasons(world) == [
            ("storage", "STORAGE_UNAVAILABLE" if status == 503 else "STORAGE_REFUSED")
        ]
        assert {world.task(task)["status"] for task in tasks} <= {"pending", "processing"}
        # Free probes alone don't open it while what is kept can't be stored.
        async with hearing(events.GateProbed) as probed:
            probe_now(world)
            await probed.wait()
        await world.beats(4)
        assert posts(world) == (images, clips)
        world.storage.heal()
        probe_now(world)
        rows = [await world.until(task) for task in tasks[:12]]
        assert one.process.life.queue.key.scopes.storage
    assert {(row["status"], row["failures"]) for row in rows} == {("completed", 0)}


async def test_a_trouble_with_clips_is_not_forgotten_for_stills(world: World) -> None:
    """Stills are stored between: it is the clips' bucket that takes nothing."""
    make_buckets(world)
    world.sql(
        """
        create function refuse_clips() returns trigger language plpgsql as $$
        begin
          if new.bucket_id = 'video-files' and new.name like 'video-files/%%'
             and new.metadata is not null then
            raise exception 'no' using errcode = '57014';
          end if;
          return new;
        end $$
        """
    )
    world.sql(
        "create trigger refuse_clips before insert on storage.objects"
        " for each row execute function refuse_clips()"
    )
    crowd(world, 12)
    async with world.worker(**ROOMY | {"VIDGEN_CONCURRENCY": "1", "VIDGEN_RETRY_BACKOFF": "1h"}):
        await until(world, lambda: bool(reasons(world)))
        await world.beats(4)
        # A still and a clip of each of the users that it takes.
        assert posts(world) == (IN_A_ROW, IN_A_ROW)
    assert reasons(world) == [("storage", "STORAGE_UNAVAILABLE")]


async def test_an_error_that_nobody_expected_is_braked_too(world: World) -> None:
    """The name does not matter: here an application's trigger refuses the stored stage."""
    world.sql(
        """
        create function refuse() returns trigger language plpgsql as $$
        begin
          raise exception 'not today';
        end $$
        """
    )
    world.sql(
        "create trigger refuse before update on vidgen.checkpoints for each row"
        " when (new.state = 'done') execute function refuse()"
    )
    crowd(world, 10)
    async with world.worker(**ROOMY | {"VIDGEN_CONCURRENCY": "2", "VIDGEN_RETRY_BACKOFF": "1h"}):
        await until(world, lambda: bool(reasons(world)))
        await world.beats(3)
        assert sum(posts(world)) <= 2 + ALLOWANCE
    assert reasons(world) == [("default", "ROW_REFUSED")]


OFTEN_PROBED = ROOMY | {"VIDGEN_GATE_PROBE": "100ms", "VIDGEN_RETRY_BACKOFF": "1h"}


def refuse_stills(world: World, of: str) -> None:
    """The application refuses the stills of the tasks for which this condition holds."""
    world.sql(
        f"""
        create function application_refuses() returns trigger
        language plpgsql security definer as $$
        begin
          if new.image_path is not null and {of} then
            raise foreign_key_violation using message = 'notifications_user_id_fkey';
          end if;
          return null;
        end $$
        """
    )
    world.sql(
        "create trigger application_refuses after update on public.video_generation_tasks"
        " for each row execute function application_refuses()"
    )


async def test_rows_that_refuse_for_ever_keep_no_other_waiting(world: World) -> None:
    """Three users in a row close the gate; the row of a task that waits shows it is not all."""
    world.sql("create table public.broken (user_id uuid)")
    refuse_stills(world, "new.user_id in (select user_id from public.broken)")
    bad = crowd(world, IN_A_ROW)
    world.sql("insert into public.broken select user_id from public.video_generation_tasks")
    async with hearing(events.GateClosed) as closed, world.worker(**OFTEN_PROBED):
        await closed.wait()
        fine = crowd(world, 2)
        rows = [await world.until(task) for task in fine]
        assert {row["status"] for row in rows} == {"completed"}
        await until(world, lambda: not reasons(world))
        # Each of them was paid once, and comes again for nothing.
        assert posts(world) == (IN_A_ROW + 2, 2)
        assert {world.task(task)["status"] for task in bad} <= {"pending", "processing"}


async def test_all_rows_that_refuse_keep_the_gate_closed_for_free(world: World) -> None:
    refuse_stills(world, "true")
    crowd(world, 12)
    async with world.worker(**OFTEN_PROBED | {"VIDGEN_CONCURRENCY": "2"}):
        await until(world, lambda: bool(reasons(world)))
        for _ in range(3):
            async with hearing(events.GateProbed) as probed:
                probe_now(world)
                await probed.wait()
        assert sum(posts(world)) <= 2 + ALLOWANCE
        assert reasons(world) == [("default", "ROW_REFUSED")]
        world.sql("drop trigger application_refuses on public.video_generation_tasks")
        probe_now(world)
        await until(world, lambda: sum(posts(world)) > 2 + ALLOWANCE)


async def test_a_machine_that_can_not_look_at_files_claims_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its child can't start: nothing is paid there, and another machine goes on."""
    (tmp_path / "av.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tasks = crowd(world, 3)
    async with world.worker(VIDGEN_IMAGE_SLOTS="9", VIDGEN_VIDEO_SLOTS="9"):
        await until(world, lambda: [scope for scope, _ in reasons(world)] == ["machine"])
        await world.beats(3)
        assert posts(world) == (0, 0)
        monkeypatch.delenv("PYTHONPATH")
        rows = [await world.until(task) for task in tasks]
    assert {row["status"] for row in rows} == {"completed"}


async def test_users_count_where_their_input_may_be_to_blame(world: World) -> None:
    words = "[[fail INTERNAL.BAD_OUTPUT.CODE01]]"
    async with world.worker(**ROOMY | {"VIDGEN_RETRY_BACKOFF": "10ms"}):
        (good,) = crowd(world, 1)
        assert (await world.until(good))["status"] == "completed"
        # Five accounts for which it has never worked: they may send anything.
        bad = crowd(world, 5, words)
        rows = [await world.until(task) for task in bad]
        assert {row["error_code"] for row in rows} == {"GENERATION_FAILED"}
        assert reasons(world) == []
    # And users for whom it has: then it is the provider.
    async with world.worker(**ROOMY | {"VIDGEN_RETRY_BACKOFF": "1h"}):
        known = [world.user() for _ in range(IN_A_ROW)]
        for user in known:
            row = await world.until(world.order(user, world.scene(user)))
            assert row["status"] == "completed"
        for user in known:
            world.order(user, world.scene(user, image_prompt=words))
        await until(world, lambda: bool(reasons(world)))
        assert reasons(world) == [("default", "PROVIDER_STORM")]
        # Another user's task tries it at once.
        (other,) = crowd(world, 1)
        probe_now(world)
        assert (await world.until(other))["status"] == "completed"
        assert reasons(world) == []


async def test_a_machine_without_room_claims_nothing_and_heals(world: World) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        async with world.worker(VIDGEN_IMAGE_SLOTS="9", VIDGEN_VIDEO_SLOTS="9") as worker:
            await world.beats(2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
            await worker.janitor.probing.prove_machine()
            tasks = crowd(world, 3)
            await world.beats(3)
            assert reasons(world) == [("machine", "SCRATCH_UNAVAILABLE")]
            assert posts(world) == (0, 0)
            assert "vidgen-worker-" in world.one("select details from vidgen.gates")["details"]
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            rows = [await world.until(task) for task in tasks]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)
    assert {row["status"] for row in rows} == {"completed"}


async def test_a_success_forgets_a_trouble_before_it_closes_anything(world: World) -> None:
    with recorded() as heard:
        async with world.worker(**ROOMY | {"VIDGEN_RETRY_BACKOFF": "10ms"}):
            world.storage.fail("upload", times=1, status=415)
            first = crowd(world, 1)[0]
            assert (await world.until(first))["status"] == "completed"
            assert world.sql("select * from vidgen.troubles") == []
    assert not [event for event in heard if isinstance(event, events.GateClosed)]
    assert json.dumps(posts(world)) == "[1, 1]"


@pytest.mark.parametrize("key", [*WRONG_KEYS, "service_role", "no right to store"])
@pytest.mark.parametrize("there", [True, False], ids=["buckets are there", "no bucket yet"])
async def test_check_is_red_for_a_key_that_may_not_store(
    world: World, key: str, there: bool
) -> None:
    from vidgen_worker.cli.check_services import look_at_buckets  # noqa: PLC0415
    from vidgen_worker.cli.finding import State  # noqa: PLC0415

    if there:
        make_buckets(world)
    if key == "no right to store":
        world.sql("revoke insert on storage.objects from service_role")
    right = world.storage.keys.service_role
    settings = world.settings(SUPABASE_SERVICE_ROLE_KEY=WRONG_KEYS.get(key, right))
    found = await look_at_buckets(settings)
    good = State.OK if there else State.NOTE
    assert {one.state for one in found} == {good if key == "service_role" else State.BAD}


@pytest.mark.parametrize("name", WRONG)
async def test_check_names_bucket_setting_value_and_remedy(world: World, name: str) -> None:
    from vidgen_worker.cli.check_services import look_at_buckets  # noqa: PLC0415
    from vidgen_worker.cli.finding import State  # noqa: PLC0415

    bucket, wrong, _ = WRONG[name]
    make_buckets(world)
    set_bucket(world, bucket, **wrong)
    (red,) = [one for one in await look_at_buckets(world.settings()) if one.state is State.BAD]
    assert bucket in red.what
    assert bucket in red.remedy
    setting = next(iter(wrong))
    assert ("visibility" if setting == "public" else setting) in red.said
