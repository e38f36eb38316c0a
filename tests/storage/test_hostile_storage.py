"""Nothing in Storage is readable before it is paid, and what is never paid is removed.

The hostile user has a browser's means: his own token at Storage, and the calls of the API. He may
even know an object's path. The race runs the real steps (record, upload, charge) against the double
of Storage, which asks PostgreSQL for each verb as the real one does.
"""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from tests.support.clients import acting, as_user
from tests.support.hands import STAGE, Ground, Hand, Held, aged, completed
from tests.support.mortal import KILLED, QUICK, mortals
from tests.support.watching import watch
from tests.support.world import PATIENCE, World, cancel, make_buckets, recorded, vidgen
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.faults import Fault
from vidgen_worker.domain.task import Artifact, Fence, GenerationEnd, Task
from vidgen_worker.media.scratch import scratch
from vidgen_worker.pipeline.generating import Generating, Upload
from vidgen_worker.pipeline.run import Run, Tools
from vidgen_worker.pipeline.stages import IMAGE, PIPELINE, VIDEO, Order, Stage
from vidgen_worker.pipeline.storing import Storing
from vidgen_worker.queue.checkpoints import Place
from vidgen_worker.queue.errors import CancelAskedError, LeaseLostError
from vidgen_worker.telemetry import bus, events
from vidgen_worker.worker.serve import build_worker
from vidgen_worker.worker.worker import Worker

TASKS = "public.video_generation_tasks"
STILLS, CLIPS = "generated-content", "video-files"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)
ROUNDS, AT_ONCE = 200, 25
LONGEST = 0.5
"""Seconds by which Storage's answer is late, at the most."""
WIDE = "create policy wide on storage.objects for select to anon, authenticated using (true)"
"""An application's own: everybody reads everything."""


# The thief.


@dataclass
class Thief:
    """A signed-in user at Storage."""

    url: str
    token: str
    key: str
    http: httpx.AsyncClient

    @property
    def headers(self) -> dict[str, str]:
        return {"apikey": self.key, "authorization": f"Bearer {self.token}"}

    async def ask(self, method: str, path: str, json: object = None) -> httpx.Response:
        return await self.http.request(
            method, f"{self.url}/storage/v1/object/{path}", json=json, headers=self.headers
        )

    async def glance(self, bucket: str, path: str) -> list[str]:
        """What opens at a glance: his folder, and a link to the object."""
        folder, _, name = path.rpartition("/")
        listed = await self.ask("POST", f"list/{bucket}", {"prefix": folder, "limit": 1000})
        signed = await self.ask("POST", f"sign/{bucket}/{path}", {"expiresIn": 31_536_000})
        seen = listed.is_success and name in [one["name"] for one in listed.json()]
        return ["list"] * seen + ["sign"] * signed.is_success

    async def try_everything(self, bucket: str, path: str, *, public: bool = True) -> list[str]:
        """Every verb that would give him the object, or tell him that it is there.

        Without `public` those are left out that give an object of a public bucket to whoever knows
        its path: Storage asks no policy there.
        """
        tries: dict[str, tuple[str, str, object]] = {}
        if public:
            tries = {
                "download": ("GET", f"{bucket}/{path}", None),
                "head": ("HEAD", f"{bucket}/{path}", None),
                "download as signed in": ("GET", f"authenticated/{bucket}/{path}", None),
                "head as signed in": ("HEAD", f"authenticated/{bucket}/{path}", None),
                "info": ("GET", f"info/{bucket}/{path}", None),
                "info as signed in": ("GET", f"info/authenticated/{bucket}/{path}", None),
                "public": ("GET", f"public/{bucket}/{path}", None),
                "public info": ("GET", f"info/public/{bucket}/{path}", None),
            }
        for verb in ("copy", "move"):
            keys = {"bucketId": bucket, "sourceKey": path, "destinationKey": f"mine/{uuid4()}"}
            tries[verb] = ("POST", verb, keys)
        opened = await self.glance(bucket, path)
        for name, (method, where, json) in tries.items():
            if (await self.ask(method, where, json)).is_success:
                opened.append(name)
        many = await self.ask("POST", f"sign/{bucket}", {"expiresIn": 60, "paths": [path]})
        if many.is_success and many.json()[0]["signedURL"]:
            opened.append("sign many")
        removed = await self.ask("DELETE", bucket, {"prefixes": [path]})
        if removed.is_success and removed.json():
            opened.append("remove")
        return opened


READS = {
    "list", "sign", "download", "head", "download as signed in", "head as signed in", "info",
    "info as signed in", "sign many",
}  # fmt: skip
"""What an owner may do with what he has paid for."""


@asynccontextmanager
async def thieves(world: World) -> AsyncIterator["Thieves"]:
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(limits=limits, timeout=PATIENCE) as http:
        yield Thieves(world, http)


@dataclass
class Thieves:
    """They share their connections."""

    world: World
    http: httpx.AsyncClient

    def be(self, user: UUID | None) -> Thief:
        """Somebody signed in, or (None) somebody with no more than the public key."""
        keys = self.world.storage.keys
        token = keys.anon if user is None else keys.user_token(user)
        return Thief(self.world.storage.url, token, keys.anon, self.http)


# The race.

POINTS: dict[str, type[bus.Event] | None] = {
    "before it begins": None,
    "it has begun": events.UploadBegun,
    "it is there": None,
    "it is uploaded": events.OutputUploaded,
    "it is charged": events.StageDone,
}


@dataclass
class Round:
    """One upload, cancelled at one point, with its thief."""

    ground: Ground
    held: Held
    user: UUID
    stage: Stage
    point: str
    thief: Thief
    run: Run = field(init=False)
    opened: list[str] = field(default_factory=list)
    path: str = ""
    happened: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False

    def __post_init__(self) -> None:
        """An attempt as the worker would run it."""
        task = Task(self.fence, self.user, None, 0, 3, 40, datetime.now(UTC))
        self.run = Run(task)

    @property
    def fence(self) -> Fence:
        return Fence(self.held.id, self.held.attempt, self.held.worker_id)

    @property
    def place(self) -> tuple[str, str]:
        return (STILLS if self.stage is IMAGE else CLIPS), self.path

    def made_up(self) -> Place:
        """A place for an upload of its user's."""
        upload_id = uuid4()
        return Place(upload_id, self.place[0], self.stage.path(self.user, upload_id))

    def cancel(self) -> None:
        """Its owner asks, and the worker hears of it at once."""
        self.ask()
        self.run.cancel.set()

    def ask(self) -> None:
        """Ask as PostgREST would for him, on the connection that all of them share."""
        with self.ground.admin.transaction():
            self.ground.sql("set local role authenticated")
            self.ground.sql(
                "select set_config('request.jwt.claims', %s::text, true)",
                Jsonb({"sub": str(self.user), "role": "authenticated"}),
            )
            self.ground.sql("select public.cancel_video_generation_task(%s)", self.held.id)

    def hear(self, event: bus.Event) -> None:
        if not isinstance(event, bus.TaskEvent) or event.fence != self.fence:
            return
        if isinstance(event, events.UploadBegun):
            self.path = event.path
        if type(event) is POINTS[self.point]:
            self.cancel()
        self.happened.set()

    async def look(self) -> None:
        """The thief looks whenever something happens."""
        while not self.over:
            await self.happened.wait()
            self.happened.clear()
            if self.path:
                self.opened += await self.thief.glance(*self.place)

    async def wait_for_it(self) -> None:
        """He cancels when the file appears; the answer to its upload is still on its way."""
        there = "select exists (select from storage.objects where name = %s) as there"
        while not self.over:
            if self.path:
                # Psycopg lets one statement at a time onto the connection.
                row = await asyncio.to_thread(self.ground.one, there, self.path)
                if row["there"]:
                    self.cancel()
                    self.opened += await self.thief.glance(*self.place)
                    return
            await asyncio.sleep(0.05)  # how often a thief looks: the round's end bounds it

    async def play(self, tools: Tools, file: Path) -> None:
        """Store an output as an attempt does, while its owner cancels and looks at it."""
        order = Order.thawed({
            "endpoint": "", "model": "gen4_image", "body": {}, "source": None,
            "ratio": "1920:1080", "seconds": 5,
        })  # fmt: skip
        generating = Generating(tools, self.run, self.stage, order, self.held.generation_id)
        output = Storing(tools, self.run, self.stage, order, generating)
        if self.point == "before it begins":
            self.ask()
        thief = [asyncio.create_task(self.look())]
        if self.point == "it is there":
            thief.append(asyncio.create_task(self.wait_for_it()))
        try:
            with bus.subscribed(self.hear), contextlib.suppress(CancelAskedError):
                place = self.made_up()
                recorded = await generating.end(GenerationEnd.SUCCEEDED, 5, 0, place=place)
                artifact = Artifact(place.bucket, place.path, "image/png", len(PNG), "ab")
                upload = Upload(place, recorded)
                await output.keep(self.held.generation_id, file, artifact, upload)
        finally:
            with contextlib.suppress(LeaseLostError):  # a stored clip has completed its task
                await tools.queue.conclusions.cancel(self.fence)
            self.over = True
            self.happened.set()
            await asyncio.gather(*thief)


@asynccontextmanager
async def resting_worker(world: World) -> AsyncIterator[Worker]:
    """A worker whose loops don't turn: its parts are used one by one."""
    worker = build_worker(world.settings())
    await worker.process.databases.open()
    try:
        yield worker
    finally:
        await worker.process.databases.close()
        for adapter in (worker.process.provider, worker.process.storage, worker.process.media):
            await adapter.aclose()


@contextmanager
def tools_of(worker: Worker) -> Iterator[Tools]:
    process = worker.process
    with scratch() as folder:
        yield Tools(
            settings=worker.settings, queue=process.life.queue, gates=process.life.gates,
            provider=process.provider, storage=process.storage, media=process.media,
            license=process.license, report=lambda _: None, turns=process.turns, scratch=folder,
            stages=process.stages, fonts=process.fonts,
        )  # fmt: skip


def about_to_store(ground: Ground, hand: Hand, count: int) -> list[tuple[Held, UUID, Stage]]:
    """So many tasks, each of a user of its own, that are about to store a still or a clip."""
    ground.sql(
        "with made as (insert into public.video_scenes (id, user_id, scenario_id, visual_prompt)"
        "   select gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'a bottle'"
        "     from generate_series(1, %s) returning id, user_id)"
        f" insert into {TASKS} (scene_id, user_id) select id, user_id from made",
        count,
    )
    ground.sql(f"select public.grant_video_credits(user_id, 100, id::text) from {TASKS}")
    for held in hand.claim(slots=count):
        hand.about(held, "start_task")
    ground.sql(
        "insert into vidgen.submissions (id, task_id, user_id, stage, attempt, worker_id, provider,"
        "   account, key_fingerprint, model, fingerprint, answer, answered_at, generation_id,"
        "   estimated_cost, ended_state, ended_at, cost)"
        " select gen_random_uuid(), id, user_id,"
        "        case when row_number() over () %% 2 = 0 then 'image' else 'video' end, attempt,"
        "        worker_id, 'runway', 'default', 'key', 'm', 'f', 'generation', now(),"
        f"       gen_random_uuid(), 5, 'succeeded', now(), 5 from {TASKS}"
    )
    ground.sql(
        "insert into vidgen.checkpoints (task_id, stage, state, request, inputs, submission_id,"
        "   generation_id)"
        " select task_id, stage, 'storing', '{}', '', id, generation_id from vidgen.submissions"
    )
    return [
        (
            Held(row["id"], row["attempt"], row["worker_id"], generation_id=row["generation_id"]),
            row["user_id"], IMAGE if row["stage"] == "image" else VIDEO,
        )
        for row in ground.sql(
            "select t.id, t.attempt, t.worker_id, t.user_id, c.stage, c.generation_id"
            f" from {TASKS} as t join vidgen.checkpoints as c on c.task_id = t.id"
        )
    ]  # fmt: skip


async def test_nobody_reads_an_unpaid_file_however_he_races(world: World, tmp_path: Path) -> None:
    """Cancelled at every point of storing, with Storage slow: nothing readable and uncharged."""
    make_buckets(world)
    file = tmp_path / "output.png"
    file.write_bytes(PNG)
    dice = random.Random(1)
    async with thieves(world) as some, resting_worker(world) as worker:
        with world.ground() as ground, tools_of(worker) as tools:
            hand = ground.hand(worker.process.life.queue.worker_id).registered()
            tasks = about_to_store(ground, hand, ROUNDS)
            rounds = [
                Round(ground, held, user, stage, point, some.be(user))
                for (held, user, stage), point in zip(tasks, itertools.cycle(POINTS))
            ]
            for _ in rounds:
                late = {
                    dice.choice(("begin_after", "hang_after", "hang_after")): dice.random()
                    * LONGEST
                }
                (
                    await some.http.patch(
                        f"{world.storage.url}/sandbox/storage/faults",
                        json={"kind": "upload", **late},
                    )
                ).raise_for_status()
            slots = asyncio.Semaphore(AT_ONCE)

            async def in_turn(one: Round) -> None:
                async with slots:
                    await one.play(tools, file)

            # All of them end, also where one of them is wrong: they share what is closed then.
            ended = await asyncio.gather(*map(in_turn, rounds), return_exceptions=True)
            assert [error for error in ended if error is not None] == []
        world.storage.heal()
        charged = {
            (row["bucket"], row["path"])
            for row in world.sql("select bucket, path from vidgen.checkpoints where path <> ''")
        }
        uncharged = [one for one in rounds if one.place not in charged]
        paid = [one for one in rounds if one.place in charged]
        assert [(one.point, one.opened) for one in uncharged if one.opened] == []
        assert {one.point for one in paid} >= {"it is charged"}
        assert any(one.opened for one in paid), "the thief's means work where he has paid"
        # How many lie there that nobody has paid is the machine's doing.
        there = stored(world)
        for one in [one for one in uncharged if one.place in there][:6]:
            # In the public bucket who knows the path may read it: it is told to nobody.
            public = one.stage is not IMAGE
            assert await one.thief.try_everything(*one.place, public=public) == [], one.point
        # What a user has thrown away counts against his limit.
        for one in uncharged[:5]:
            row = world.one("select vidgen.unbilled_cost(%s) as cost", one.user)
            assert row["cost"] > 0
        await everything_uncharged_goes(world, worker, charged)
    assert world.books_balance()


async def everything_uncharged_goes(
    world: World, worker: Worker, charged: set[tuple[str, str]]
) -> None:
    """The janitor's rounds, until Storage holds what is charged and nothing else."""
    for _ in range(20):
        await worker.janitor.remove_uploads()
        # An upload that was cut off may have landed since: it is looked for again.
        if stored(world) <= charged:
            break
        world.sql("update vidgen.uploads set look_at = now()")
    assert stored(world) <= charged


def stored(world: World) -> set[tuple[str, str]]:
    return {(one["bucket"], one["name"]) for one in world.storage.objects()}


# By state of the task: who sees its still, who sees its clip.


def put_there(ground: Ground, bucket: str, path: str) -> None:
    ground.sql(
        "insert into storage.buckets (id, name) values (%s, %s) on conflict do nothing",
        bucket, bucket,
    )  # fmt: skip
    ground.sql("insert into storage.objects (bucket_id, name) values (%s, %s)", bucket, path)


def uploading(ground: Ground, hand: Hand, held: Held, stage: str) -> str:
    """Walk a stage until its object is there and not charged; the path."""
    hand.walk(held, *STAGE[:3], stage=stage)
    path = str(hand.place_of(held, stage)["path"])
    put_there(ground, STILLS if stage == "image" else CLIPS, path)
    return path


ENDS = ("running", "cancel asked", "cancelled", "failed", "handed back", "requeued", "lost",
        "retried", "deleted")  # fmt: skip


def end(ground: Ground, hand: Hand, held: Held, how: str) -> None:
    """Let something become of the attempt."""
    match how:
        case "running":
            pass
        case "cancel asked":
            ground.sql("select public.cancel_video_generation_task(%s)", held.id)
        case "cancelled":
            hand.about(held, "cancel")
        case "failed":
            hand.about(held, "fail")
        case "handed back":
            hand("hand_back", task_ids=[held.id], attempts=[held.attempt])
        case "requeued":
            hand.about(held, "requeue")
        case "lost":
            ground.silent(hand.worker_id)
            assert ground.worker()("take_over")
        case "retried":
            hand.about(held, "fail")
            ground.sql("select public.retry_video_generation_task(%s)", held.id)
        case "deleted":
            ground.sql(f"delete from {TASKS} where id = %s", held.id)
        case _:
            raise AssertionError(how)


def seen_by(ground: Ground, role: str, user: UUID | None) -> list[str]:
    with acting(ground, role, user) as conn:
        return sorted(row["name"] for row in conn.execute("select name from storage.objects"))


def test_a_role_of_the_application_s_own_reads_nothing_unpaid_either(ground: Ground) -> None:
    """Its tokens carry another role, and a policy of its own opens their folders to everybody."""
    editor = f"editor_{uuid4().hex[:12]}"
    hand, user = ground.worker(), ground.user()
    ground.sql(f"create role {editor} role postgres")
    try:
        ground.sql(f"grant usage on schema storage, auth to {editor}")
        ground.sql(f"grant select on storage.objects to {editor}")
        ground.sql(
            "create policy own_folder on storage.objects for select to public"
            " using (split_part(name, '/', 2) = auth.uid()::text)"
        )
        held = ground.held(hand, "start_task", *STAGE[:3], user_id=user)
        path = hand.place_of(held, "image")["path"]
        ground.sql("insert into storage.buckets (id, name) values (%s, %s)", STILLS, STILLS)
        for bucket_path in (path, f"notes/{user}/mine.txt"):
            ground.sql(
                "insert into storage.objects (bucket_id, name) values (%s, %s)", STILLS, bucket_path
            )
        assert seen_by(ground, editor, user) == [f"notes/{user}/mine.txt"]
        hand.walk(held, "finish_stage")
        assert seen_by(ground, editor, user) == [path, f"notes/{user}/mine.txt"]
    finally:
        ground.sql(f"drop owned by {editor}")
        ground.sql(f"drop role {editor}")


@pytest.mark.parametrize("application", ["", WIDE], ids=["ours alone", "a wide policy beside ours"])
@pytest.mark.parametrize("stage", ["image", "video"])
def test_what_is_uploaded_and_not_charged_is_seen_by_nobody(
    ground: Ground, stage: str, application: str
) -> None:
    """In every state that its task can be in; what was charged before stays its owner's."""
    if application:
        ground.sql(application)
    for how in ENDS:
        hand = ground.worker()
        user, other = ground.user(), ground.user()
        held = ground.held(hand, "start_task", user_id=user)
        paid = []
        if stage == "video":
            paid = [uploading(ground, hand, held, "image")]
            hand.walk(held, "finish_stage")
            held = Held(held.id, held.attempt, held.worker_id)
        unpaid = uploading(ground, hand, held, stage)
        end(ground, hand, held, how)
        mine = [] if how == "deleted" and not application else paid
        assert seen_by(ground, "authenticated", user) == mine, how
        assert seen_by(ground, "authenticated", other) == (paid if application else []), how
        assert seen_by(ground, "anon", None) == (paid if application else []), how
        assert unpaid not in {row["path"] for row in ground.sql(
            f"select unnest(array[image_path, video_path]) as path from {TASKS} where id = %s",
            held.id,
        )}  # fmt: skip
        # Nothing that the owner may read tells where it is, nor when it has gone wrong.
        told = as_user(ground, user, f"select t::text as row from {TASKS} as t")
        assert str(held.upload_id) not in str(told)
        ground.sql(f"delete from {TASKS}")
        ground.sql("select set_config('storage.allow_delete_query', 'true', false)")
        ground.sql("delete from storage.objects")


def test_what_is_charged_is_seen_by_its_owner_only(ground: Ground) -> None:
    hand = ground.worker()
    user, other = ground.user(), ground.user()
    held = ground.held(hand, "start_task", user_id=user)
    still = uploading(ground, hand, held, "image")
    hand.walk(held, "finish_stage")
    clip_of = Held(held.id, held.attempt, held.worker_id)
    clip = uploading(ground, hand, clip_of, "video")
    assert seen_by(ground, "authenticated", user) == [still]
    hand.walk(clip_of, "finish_stage", stage="video")
    assert seen_by(ground, "authenticated", user) == [still, clip]
    hand.walk(held, "complete")
    assert seen_by(ground, "authenticated", user) == [still, clip]
    for role, who in (("authenticated", other), ("authenticated", None), ("anon", None)):
        assert seen_by(ground, role, who) == []
    # The same names in another bucket are no task's.
    ground.sql("select set_config('storage.allow_delete_query', 'true', false)")
    ground.sql("delete from storage.objects")
    put_there(ground, "another", clip)
    assert seen_by(ground, "authenticated", user) == []


def test_the_charge_and_the_reading_begin_in_one_commit(ground: Ground) -> None:
    """Not committed, not readable; rolled back, never."""
    hand = ground.worker()
    user = ground.user()
    held = ground.held(hand, "start_task", user_id=user)
    still = uploading(ground, hand, held, "image")
    with hand.conn.transaction(force_rollback=True):
        hand.about(held, "finish_stage")
        assert seen_by(ground, "authenticated", user) == []
    assert seen_by(ground, "authenticated", user) == []
    hand.about(held, "finish_stage")
    assert seen_by(ground, "authenticated", user) == [still]


async def test_over_http_an_owner_reads_what_he_paid_for_and_nothing_else(
    world: World, tmp_path: Path
) -> None:
    make_buckets(world)
    async with thieves(world) as some, resting_worker(world) as worker:
        with world.ground() as ground:
            hand, user = ground.worker(), ground.user()
            held = ground.held(hand, "start_task", *STAGE, user_id=user)
            clip = Held(held.id, held.attempt, held.worker_id)
            hand.walk(clip, *STAGE[:3], stage="video")
            path = str(hand.place_of(clip, "video")["path"])
            file = tmp_path / "clip.mp4"
            file.write_bytes(PNG)
            await worker.process.storage.put(CLIPS, path, file, "video/mp4")
            for thief in (some.be(user), some.be(ground.user()), some.be(None)):
                assert await thief.try_everything(CLIPS, path) == []
            hand.walk(clip, "finish_stage", stage="video")
            assert set(await some.be(user).try_everything(CLIPS, path)) == READS
            for thief in (some.be(ground.user()), some.be(None)):
                assert await thief.try_everything(CLIPS, path) == []


def test_the_policy_costs_one_probe_of_an_index(ground: Ground) -> None:
    hand = ground.worker()
    user = ground.user()
    for _ in range(3):
        completed(ground, hand, user)
    ground.sql("analyze public.video_generation_tasks")
    ground.sql("set enable_seqscan = off")
    for column in ("video_path", "image_path"):
        (row,) = ground.sql(f"explain select from {TASKS} where {column} = 'x'")[:1]
        assert f"video_generation_tasks_by_{column.removesuffix('_path')}" in str(row)


# What is not charged is removed.


def places(ground: Ground) -> list[str]:
    return sorted(row["path"] for row in ground.sql("select path from vidgen.uploads"))


@pytest.mark.parametrize("how", ENDS)
def test_an_upload_is_removed_once_its_attempt_is_over_and_not_before(
    ground: Ground, how: str
) -> None:
    hand, janitor = ground.worker(), ground.worker()
    held = ground.held(hand, "start_task")
    path = uploading(ground, hand, held, "image")
    end(ground, hand, held, how)
    taken = janitor("take_uploads")
    if how in ("running", "cancel asked"):
        assert taken == []
        assert places(ground) == [path]
        return
    assert [(row["bucket"], row["path"]) for row in taken] == [(STILLS, path)]
    assert janitor("take_uploads") == [], "nobody else is given it meanwhile"
    assert not hand.about(held, "finish_stage"), "an attempt that is over charges nothing"
    janitor("uploads_removed", upload_ids=[row["upload_id"] for row in taken])
    assert places(ground) == [path], "it may arrive late"
    assert ground.one("select removed_at is not null as removed from vidgen.uploads")["removed"]


def test_the_upload_of_an_attempt_that_goes_on_is_not_touched(ground: Ground) -> None:
    """Its successor stores to another place: what is removed is nobody's any more."""
    first, second = ground.worker(), ground.worker()
    held = ground.held(first, "start_task")
    lost = uploading(ground, first, held, "image")
    end(ground, first, held, "requeued")
    (again,) = second.claim()
    assert again.id == held.id
    again = Held(again.id, again.attempt, again.worker_id, held.submission_id, held.generation_id)
    assert second.about(again, "begin_upload")
    taken = first("take_uploads")
    assert [row["path"] for row in taken] == [lost]
    assert second.about(again, "finish_stage")
    first("uploads_removed", upload_ids=[row["upload_id"] for row in taken])
    assert places(ground) == [lost]
    assert ground.task(held.id)["image_path"] != lost


def test_what_is_charged_is_never_removed(ground: Ground) -> None:
    """Not even where a row says so: of an upload of the version before, or a forged one."""
    hand = ground.worker()
    user = ground.user()
    held = completed(ground, hand, user)
    row = ground.task(held.id)
    for path in (row["image_path"], row["video_path"]):
        bucket = STILLS if path == row["image_path"] else CLIPS
        put_there(ground, bucket, path)
        ground.sql(
            "insert into vidgen.uploads"
            " (id, task_id, user_id, stage, attempt, worker_id, bucket, path)"
            " values (gen_random_uuid(), gen_random_uuid(), %s, 'image', 1, gen_random_uuid(),"
            "         %s, %s)",
            user, bucket, path,
        )  # fmt: skip
    assert len(seen_by(ground, "authenticated", user)) == 2, "such a row hides nothing either"
    assert hand("take_uploads") == []
    assert places(ground) == []


@pytest.mark.parametrize(
    "path",
    ["avatars/me.png", "video-files/{other}/clip.mp4", "video-files/{user}/../x", "video-files/"],
)
def test_no_other_path_is_ever_recorded_for_removal(ground: Ground, path: str) -> None:
    user = ground.user()
    with pytest.raises(errors.CheckViolation, match="path_is_in_its_users_folder"):
        ground.sql(
            "insert into vidgen.uploads"
            " (id, task_id, user_id, stage, attempt, worker_id, bucket, path)"
            " values (gen_random_uuid(), gen_random_uuid(), %s, 'image', 1, gen_random_uuid(),"
            "         'b', %s)",
            user, path.format(user=user, other=uuid4()),
        )  # fmt: skip


async def test_an_upload_that_arrives_after_its_removal_is_found_and_removed(
    world: World, tmp_path: Path
) -> None:
    """A worker that was frozen in its upload: looked for again and again, for a day."""
    make_buckets(world)
    async with thieves(world) as some, resting_worker(world) as worker:
        with world.ground() as ground, recorded() as heard:
            ground.sql(WIDE)
            hand, user = ground.worker(), ground.user()
            held = ground.held(hand, "start_task", *STAGE[:3], user_id=user)
            path = str(hand.place_of(held, "image")["path"])
            end(ground, hand, held, "cancelled")
            await worker.janitor.remove_uploads()
            assert len([e for e in heard if isinstance(e, events.UploadsRemoved)]) == 1
            file = tmp_path / "late.png"
            file.write_bytes(PNG)
            await worker.process.storage.put(STILLS, path, file, "image/png")
            assert await some.be(user).glance(STILLS, path) == []
            await worker.janitor.remove_uploads()
            assert stored(world) == {(STILLS, path)}, "it is not its time yet"
            look_now(ground, timedelta(minutes=2))
            await worker.janitor.remove_uploads()
            assert stored(world) == set()
            # Removed for the first time so long ago: nothing arrives any more.
            assert places(ground) == [path]
            look_now(ground, timedelta(days=2))
            await worker.janitor.remove_uploads()
            assert places(ground) == []
            assert len([e for e in heard if isinstance(e, events.UploadsRemoved)]) == 1


def look_now(ground: Ground, later: timedelta) -> None:
    """Let this time pass."""
    ground.sql(
        "update vidgen.uploads set since = since - %(by)s, look_at = look_at - %(by)s,"
        " removed_at = removed_at - %(by)s".replace("%(by)s", f"interval '{later}'")
    )


async def test_a_worker_that_stood_still_uploads_nothing_any_more(
    world: World, tmp_path: Path
) -> None:
    make_buckets(world)
    file = tmp_path / "still.png"
    file.write_bytes(PNG)
    async with resting_worker(world) as worker:
        with pytest.raises(Fault, match="stood still for too long") as refused:
            await worker.process.storage.put(
                STILLS, "a.png", file, "image/png", until=boot_time() - 1
            )
        assert refused.value.name == "storage_unavailable"
    assert stored(world) == set()
    assert "upload" not in {request["kind"] for request in world.storage.requests()}


async def test_a_removal_that_storage_refuses_is_reported_and_tried_again(world: World) -> None:
    make_buckets(world)
    async with resting_worker(world) as worker:
        with world.ground() as ground, recorded() as heard:
            hand = ground.worker()
            held = ground.held(hand, "start_task", *STAGE[:3])
            end(ground, hand, held, "failed")
            look_now(ground, timedelta(hours=2))
            world.storage.fail("remove", times=1, status=403)
            await worker.janitor.remove_uploads()
            await worker.janitor.audit()
            assert [e.uploads for e in heard if isinstance(e, events.UploadsKept)] == [1]
            assert [e.uploads for e in heard if isinstance(e, events.UploadsLeft)] == [1]
            assert (await worker.process.life.queue.upkeep.fleet()).numbers["uploads_left"] == 1
            ground.sql("update vidgen.uploads set taken_at = taken_at - interval '1 hour'")
            await worker.janitor.remove_uploads()
            assert [e.uploads for e in heard if isinstance(e, events.UploadsRemoved)] == [1]
            assert (await worker.process.life.queue.upkeep.fleet()).numbers["uploads_left"] == 0


@pytest.mark.slow
async def test_an_upload_of_a_killed_and_cancelled_task_is_removed_in_one_round(
    world: World, tmp_path: Path
) -> None:
    watch(world)
    user = world.user(100)
    task = world.order(user, world.scene(user))
    with mortals(tmp_path / "mortal.log") as dying:
        mortal = await dying.start(world.env(**QUICK), "event OutputUploaded", 2)
        assert await mortal.ended() == KILLED
    (left,) = world.sql("select bucket, path from vidgen.uploads")
    assert (left["bucket"], left["path"]) in stored(world)
    async with thieves(world) as some:
        cancel(world, user, task)
        assert await some.be(user).try_everything(left["bucket"], left["path"]) == []
        async with world.worker(**QUICK) as worker:
            row = await world.until(task)
            assert row["status"] == "cancelled"
            await worker.janitor.remove_uploads()
        assert stored(world) == {(STILLS, row["image_path"])}
        assert await some.be(user).try_everything(left["bucket"], left["path"]) == []
    assert world.credits(user) == (95, 0)
    assert world.one("select vidgen.unbilled_cost(%s) > 0 as counted", user)["counted"]


async def test_prune_removes_what_attempts_have_left_and_what_pruned_tasks_had(
    world: World, tmp_path: Path
) -> None:
    make_buckets(world)
    async with resting_worker(world) as worker:
        with world.ground() as ground:
            hand, user = ground.worker(), ground.user()
            file = tmp_path / "some.png"
            file.write_bytes(PNG)
            old = ground.task(completed(ground, hand, user).id)
            aged(ground, 100)
            kept = ground.task(completed(ground, hand, user).id)
            failed = ground.held(hand, "start_task", *STAGE[:3])
            left = str(hand.place_of(failed, "image")["path"])
            end(ground, hand, failed, "failed")
            for path in (old["image_path"], kept["image_path"], left):
                await worker.process.storage.put(STILLS, path, file, "image/png")
            for path in (old["video_path"], kept["video_path"]):
                await worker.process.storage.put(CLIPS, path, file, "video/mp4")
            # A tombstone that names a file of a task which is there.
            ground.sql(
                "insert into vidgen.pruned (task_id, objects) values (gen_random_uuid(),"
                " jsonb_build_array(jsonb_build_object('bucket', %s::text, 'path', %s::text)))",
                CLIPS, kept["video_path"],
            )  # fmt: skip
    done = await asyncio.to_thread(vidgen, world, "prune", "--objects", "--yes")
    assert done.returncode == 0, done.stderr
    assert stored(world) == {(STILLS, kept["image_path"]), (CLIPS, kept["video_path"])}


# The paths in a task's row.


@pytest.mark.parametrize("role", ["vidgen_worker", "service_role", "postgres"])
@pytest.mark.parametrize("column", ["image_path", "video_path"])
def test_no_role_points_a_row_at_what_is_not_its_users(
    ground: Ground, role: str, column: str
) -> None:
    hand = ground.worker()
    victim = ground.task(completed(ground, hand, ground.user()).id)
    mine = ground.held(hand, "start_task")
    told = f"update {TASKS} set {column} = %s where id = %s"
    folder = {"image_path": "generated_images", "video_path": "video-files"}[column]
    for path in (
        victim[column], f"/{victim[column]}", f"{folder}/{victim['user_id']}/x", "x", "",
        f"{folder}/x", f"x/{folder}/{ground.task(mine.id)['user_id']}/x",
    ):  # fmt: skip
        assert refused(ground, role, told, path, mine.id), path
    assert ground.task(mine.id)[column] is None


@pytest.mark.parametrize("role", ["vidgen_worker", "service_role", "postgres"])
def test_a_path_that_is_there_stays(ground: Ground, role: str) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task", *STAGE)
    row = ground.task(held.id)
    for path in (f"generated_images/{row['user_id']}/another.png", None):
        assert refused(ground, role, f"update {TASKS} set image_path = %s where id = %s",
                       path, held.id)  # fmt: skip
    assert refused(ground, role, f"update {TASKS} set user_id = %s where id = %s",
                   ground.user(), held.id)  # fmt: skip
    assert ground.task(held.id) == row


def refused(ground: Ground, role: str, statement: str, *parameters: object) -> bool:
    """Whether a role is refused: by the trigger, or for want of the right."""
    with ground.admin.transaction(force_rollback=True):
        ground.sql(f"set local role {role}")
        try:
            ground.sql(statement, *parameters)
        except (errors.CheckViolation, errors.InsufficientPrivilege):
            return True
    return False


def test_a_stolen_worker_role_hides_and_opens_nothing(ground: Ground) -> None:
    """It writes down no upload but that of an attempt at work."""
    hand = ground.worker()
    user = ground.user()
    clip = ground.task(completed(ground, hand, user).id)["video_path"]
    put_there(ground, CLIPS, clip)
    with psycopg.connect(ground.database.admin_url, autocommit=True) as stolen:
        stolen.execute("set role vidgen_worker")
        with pytest.raises(errors.InsufficientPrivilege, match="no worker is about to store"):
            stolen.execute(
                "insert into vidgen.uploads"
                " (id, task_id, user_id, stage, attempt, worker_id, bucket, path)"
                " values (gen_random_uuid(), gen_random_uuid(), %s, 'video', 1, gen_random_uuid(),"
                "         %s, %s)",
                [user, CLIPS, clip],
            )
        with pytest.raises(errors.InsufficientPrivilege):
            stolen.execute("update vidgen.uploads set path = 'x'")
        with pytest.raises(errors.InsufficientPrivilege):
            stolen.execute("select from storage.objects")
    assert seen_by(ground, "authenticated", user) == [clip]
    assert hand("take_uploads") == []


def test_every_stage_is_tried_above() -> None:
    """A new one (a rendition, say) has to be seen and hidden as these two are."""
    assert PIPELINE == (IMAGE, VIDEO)
