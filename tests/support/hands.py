"""Hands on the queue's SQL: the real named queries over real connections, transactions held open.

For tests of the database alone: no event loop, no provider. A `Hand` is one worker's connection, a
`Ground` is one test's database with users, scenes and tasks in it. Nothing here decides anything.
"""

import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType, SimpleNamespace
from typing import TYPE_CHECKING, Any, LiteralString, Self, TypeVar, cast
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from tests.conftest import Database
from tests.support.application import Application
from vidgen_worker.database.pool import QUERIES
from vidgen_worker.queue.claims import Claimed, Claims
from vidgen_worker.queue.films import Films, Lane

if TYPE_CHECKING:
    from vidgen_worker.queue.caller import Caller

T = TypeVar("T")

# A claim of the one whose connection's number is locked by the test waits where it has its snapshot
# and no lock yet. Stable, the function is asked once, whether a gate stands there or not.
HELD_UP_BY_ITS_PID = """
create function public.wait_for_the_test() returns boolean language plpgsql stable as $$
begin
  perform pg_advisory_xact_lock_shared(pg_backend_pid());
  return true;
end $$;
alter table vidgen.gates rename to gates_behind;
create view vidgen.gates with (security_barrier) as
  select * from vidgen.gates_behind where public.wait_for_the_test();
grant all on vidgen.gates to postgres;
"""


PATIENCE = 20.0
"""Seconds after which a thing that should happen has not: only ever reached by a failing test."""

IMAGE_PRICE, VIDEO_PRICE = 5, 25

Row = dict[str, Any]
Connection = psycopg.Connection[Row]

# What a worker sends where a test says nothing else. Names that a query doesn't know are left out.
USUAL: Mapping[str, Any] = MappingProxyType({
    "host": "here", "pid": 1, "version": "0", "concurrency": 20, "lease": timedelta(seconds=15),
    "provider": "runway", "key_fingerprint": "key", "account": "default",
    "scope": "default", "scopes": ["*", "default", "key:key"], "image_model": "gen4_image",
    "image_stage": "image", "video_model": "gen4_turbo", "video_stage": "video",
    "images_bucket": "generated-content",
    "videos_bucket": "video-files", "running": 0, "steady": True, "sweep": True,
    "task_ids": [], "attempts": [], "slots": 20, "idle": True, "resumed": False, "max_crashes": 3,
    "lane": 1,
    "max_running_per_user": None, "models": ["gen4_image", "gen4_turbo"],
    "duty": "forget", "keep": timedelta(days=90), "after": None, "batch": 1000,
    "discrepancies": 0, "max_generations": None, "patience": timedelta(minutes=3),
    "every": timedelta(minutes=1), "absence": timedelta(hours=1),
    "scene_updates": True, "credits": True,
    "lost_message": "The worker was lost.", "resolution": "1280:720", "video_ratio": "1280:720",
    "image_ratio": "1920:1080", "stage": "image",
    "made_from": None,
    "model": "gen4_image", "fingerprint": "body", "request": Jsonb({"promptText": "a bottle"}),
    "inputs": "digest", "max_submissions": 2, "progress": 35.0, "stage_progress": [50.0],
    "messages": ["at work"], "current_step": "Generating scene image with AI",
    "message": "at work", "answer": "generation", "estimated_cost": 5, "details": "",
    "ended_state": "succeeded", "cost": 5, "bucket": "generated-content",
    "media_type": "image/png", "size": 100, "sha256": "ab",
    "image_url": "https://storage.test/g.png", "video_path": None,
    "video_url": "https://storage.test/signed", "signed_url": None,
    "good_for": timedelta(hours=1), "silent_ids": [], "silent_beats": [],
    "delay": timedelta(0), "failures": 0,
    "code": "GENERATION_FAILED", "visible": Jsonb({}), "reason": "PROVIDER_UNFUNDED",
    "probe": timedelta(seconds=30), "verdict": None, "show": True, "follow": True,
    "statement": "complete", "error": "P0001 no", "waiting": None, "part": "storage",
    "allowance": 3, "upload_ids": [], "digest": "digest", "rejected": False,
    "places": 20, "arrived": True, "status": 204, "pause": None, "gone": False, "ids": [],
    "seconds_left": 60.0, "clip_seconds": 0, "ended_after": 30.0, "ended_by": 36.0,
    "renders": 1, "most": 20, "rendition": "web", "position": 1, "preset": "web", "width": 1280,
    "height": 720, "seconds": 4.2, "quality": None,
})  # fmt: skip

FENCED = (
    "load_task", "start_task", "begin_submission", "answer_submission", "end_generation",
    "begin_upload", "finish_stage", "report", "complete", "requeue", "fail", "cancel", "set_aside",
    "load_film", "order_parts", "wait_for_parts", "seconds_of_parts", "begin_rendering",
    "begin_rendition", "finish_rendition",
)  # fmt: skip
"""The queries about one task, which carry its fence."""

READS = ("load_task", "load_film", "seconds_of_parts")
"""Those of them that write nothing."""

OF_FILMS = ("load_film", "order_parts", "wait_for_parts")
"""Those of them that are about any film."""

OF_RENDERS = ("seconds_of_parts", "begin_rendering", "begin_rendition", "finish_rendition")
"""Those of them that are about a film with outputs."""

UNFENCED_FACTS: Mapping[str, str] = MappingProxyType(
    {"answer_submission": "vidgen.submissions", "end_generation": "vidgen.submissions"}
)
"""The one exception: what the provider said is written down, whoever has the task."""


@dataclass(frozen=True, slots=True)
class Held:
    """A claimed task, and what its stages are known by."""

    id: UUID
    attempt: int
    worker_id: UUID
    submission_id: UUID = field(default_factory=uuid4)
    generation_id: UUID = field(default_factory=uuid4)
    upload_id: UUID = field(default_factory=uuid4)

    @property
    def fence(self) -> dict[str, Any]:
        """The fence and the ids, as the queries name them."""
        return {
            "task_id": self.id, "attempt": self.attempt, "worker_id": self.worker_id,
            "submission_id": self.submission_id, "generation_id": self.generation_id,
            "upload_id": self.upload_id,
        }  # fmt: skip


class Hand:
    """One worker's connection."""

    queries: Mapping[str, LiteralString] = QUERIES

    def __init__(self, url: str, worker_id: UUID | None = None) -> None:
        self.conn: Connection = psycopg.connect(url, autocommit=True, row_factory=dict_row)
        self.worker_id = worker_id or uuid4()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.conn.close()

    def __call__(self, name: str, **parameters: object) -> list[Row]:
        """Run a named query. Of a claim: what began, not the row that says only what is left."""
        rows = self.send(name, **parameters)
        return rows if name != "claim" else [row for row in rows if row["id"]]

    def still_waiting(self, **parameters: object) -> dict[str, bool]:
        """What a claim says is left: `resumable` and `waiting`. It takes nothing."""
        row = self.send("claim", slots=0, **parameters)[0]
        assert row["id"] is None
        return {"resumable": row["resumable"], "waiting": row["waiting"]}

    def send(self, name: str, **parameters: object) -> list[Row]:
        """Run a named query."""
        if name == "take_over" and "silent_ids" not in parameters:
            parameters |= self.observed()
        cursor = self.conn.execute(
            self.queries[name], {**USUAL, "worker_id": self.worker_id, **parameters}
        )
        return cursor.fetchall() if cursor.description else []

    def observed(self) -> dict[str, Any]:
        """What `take_over` is told by an observer that has watched every worker for a whole lease.

        To age a row (`Ground.silent`) is to let its worker be silent; a worker's own observer waits
        until it has seen no change for a lease.
        """
        silent = [row for row in self("heartbeats") if row["age"] > row["lease"]]
        return {
            "silent_ids": [row["id"] for row in silent],
            "silent_beats": [row["heartbeat_at"] for row in silent],
        }

    def registered(self, **parameters: object) -> Self:
        """Write the worker's row."""
        self("register_worker", **parameters)
        return self

    def claim(self, slots: int = 20, **parameters: object) -> list[Held]:
        """Claim as a worker does; what was taken, in the order in which it was returned.

        Which statements these are, and in which order, is the queue's own code.
        """
        idle = bool(parameters.pop("idle", USUAL["idle"]))
        claims = Claims(cast("Caller", AtOnce(self, parameters)))
        claimed: Claimed = at_once(claims.take(slots, idle=idle))
        assert len({task.id for task, _ in claimed.tasks}) == len(claimed.tasks)
        fences = [task.fence for task, _ in claimed.tasks]
        return [Held(fence.task_id, fence.attempt, fence.worker_id) for fence in fences]

    def claim_films(
        self, *, idle: bool = True, lane: Lane = Lane.BATCHES, most: int = 20
    ) -> list[Held]:
        """Claim films that are due, as a worker does."""
        films = Films(cast("Caller", AtOnce(self, {})))
        taken, _ = at_once(films.take(idle=idle, lane=lane, most=most))
        fences = [task.fence for task, _ in taken]
        return [Held(fence.task_id, fence.attempt, fence.worker_id) for fence in fences]

    def about(self, held: Held, name: str, **parameters: object) -> list[Row]:
        """Run a fenced query about one task."""
        more = {"digest": str(held.id), **of_report(name, held)}
        if name in ("end_generation", "begin_upload", "finish_stage"):
            more |= self.place_of(held, str(parameters.get("stage", "image")))
        if name in OF_RENDERS:
            more |= self.place_of_rendition(held, str(parameters.get("rendition", "web")))
        return self(name, **{**held.fence, **more, **parameters})

    def place_of(self, held: Held, stage: str) -> dict[str, Any]:
        """Where an upload lies: in the folder of the task's user."""
        row = self.conn.execute(
            "select user_id from public.video_generation_tasks where id = %s", [held.id]
        ).fetchone()
        user_id = row["user_id"] if row else uuid4()
        if stage == "image":
            path = f"generated_images/{user_id}/{held.upload_id}.png"
            return {"path": path, "image_path": path, "video_path": None}
        path = f"video-files/{user_id}/{held.upload_id}.mp4"
        return {"path": path, "image_path": None, "video_path": path}

    def place_of_rendition(self, held: Held, name: str) -> dict[str, Any]:
        """Where a rendition lies, and what kind of file it is."""
        row = self.conn.execute(
            "select user_id from public.video_generation_tasks where id = %s", [held.id]
        ).fetchone()
        user_id = row["user_id"] if row else uuid4()
        return {
            "bucket": "video-files", "media_type": "video/mp4",
            "path": f"video-files/{user_id}/{held.id}/{name}-0123456789abcdef.mp4",
            "progress": 85.0, "current_step": "Rendering", "message": "Rendering web (1 of 1)",
        }  # fmt: skip

    def walk(self, held: Held, *steps: str, stage: str = "image") -> None:
        """Run the queries of one stage up to a point; each must find the task its own."""
        for step in steps:
            rows = self.about(held, step, **stage_of(stage))
            assert rows, f"{step} found nothing of its own"

    @contextmanager
    def holding(self) -> Iterator[Self]:
        """A transaction held open, committed at the end of the block."""
        with self.conn.transaction():
            yield self

    def later(self, act: Callable[[], Any]) -> "Later":
        """Start something that must wait for a lock, and return when it does."""
        later = Later(act, self.conn.info.backend_pid)
        later.start()
        return later


class AtOnce:
    """A caller of the queue whose statements run on a hand's connection, at once.

    What a test says counts before what the queue says; who the worker is, is the hand's to say.
    """

    def __init__(self, hand: Hand, parameters: Mapping[str, object]) -> None:
        self._hand = hand
        self._parameters = parameters
        self.worker_id = hand.worker_id
        self.claims = self
        self.settings = SimpleNamespace(vidgen_max_running_per_user=USUAL["max_running_per_user"])
        self.key = SimpleNamespace(
            names=dict, image_model=USUAL["image_model"], video_model=USUAL["video_model"]
        )

    async def once(self, name: str, **parameters: object) -> list[Row]:
        """One statement."""
        return self._hand.send(name, **{**parameters, **self._parameters})

    async def pair(self, first: str, second: str, **parameters: object) -> list[Row]:
        """Two statements; the rows of the second."""
        await self.once(first, **parameters)
        return await self.once(second, **parameters)


def at_once(verb: Coroutine[Any, Any, T]) -> T:
    """What a verb of the queue returns that has nothing to wait for."""
    try:
        verb.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    verb.close()
    raise AssertionError("the verb waits for something: it needs an event loop")


STAGE = ("begin_submission", "answer_submission", "end_generation", "finish_stage")
"""The walk of one stage."""


def stage_of(stage: str) -> dict[str, Any]:
    """What the queries are told about a stage."""
    if stage == "image":
        return {"stage": "image"}
    return {
        "stage": "video", "model": "gen4_turbo", "progress": 70.0, "bucket": "video-files",
        "media_type": "video/mp4", "image_url": None, "made_from": "image",
    }  # fmt: skip


def of_report(name: str, held: Held) -> dict[str, Any]:
    """`report` takes arrays."""
    if name != "report":
        return {}
    return {
        "task_ids": [held.id], "attempts": [held.attempt], "progress": [38.0],
        "seconds_left": [60.0],
    }  # fmt: skip


class Later(threading.Thread):
    """A statement that waits for a lock in a thread of its own."""

    def __init__(self, act: Callable[[], Any], pid: int) -> None:
        super().__init__(daemon=True)
        self._act = act
        self.pid = pid
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it and keep what came of it."""
        try:
            self._result = self._act()
        except psycopg.Error as error:
            self._error = error

    def result(self) -> Any:  # noqa: ANN401 - whatever the act gives
        """Wait for the end."""
        self.join(PATIENCE)
        assert not self.is_alive(), "the statement never came back"
        if self._error is not None:
            raise self._error
        return self._result


@dataclass
class Ground(Application):
    """One test's database, for tests of the SQL alone."""

    database: Database
    admin: Connection
    stack: ExitStack

    def hand(self, worker_id: UUID | None = None) -> Hand:
        """Open a connection of a worker that is not registered."""
        return self.stack.enter_context(Hand(self.database.url, worker_id))

    def worker(self, **parameters: object) -> Hand:
        """Open a connection of a registered worker."""
        return self.hand().registered(**parameters)

    def sql(self, statement: str, *parameters: object) -> list[Row]:
        """Run one statement as superuser."""
        cursor = self.admin.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []

    def none(self, query: str, *parameters: object) -> bool:
        """Whether a query finds nothing. (`select from` shows no rows to the driver.)"""
        return self.one(f"select not exists ({query}) as none", *parameters)["none"] is True

    def scene(self, user_id: UUID) -> UUID:
        """Make a scene of the user."""
        return self.insert_scene(user_id, visual_prompt="a bottle")

    def order(
        self, user_id: UUID | None = None, *, priority: int = 0, due: timedelta = timedelta(0)
    ) -> UUID:
        """Make a task of the user's, due at now + `due` (in the past: as if inserted then)."""
        user_id = user_id or self.user()
        task_id = uuid4()
        self.sql(
            "insert into public.video_generation_tasks (id, user_id, scene_id, priority, run_after)"
            " values (%s, %s, %s, %s, now() + %s)",
            task_id, user_id, self.scene(user_id), priority, due,
        )  # fmt: skip
        if due < timedelta(0):
            self.sql(
                "update public.video_generation_tasks set run_after = now() + %s where id = %s",
                due, task_id,
            )  # fmt: skip
        return task_id

    def film(
        self, user_id: UUID, parts: int = 2, cut: Mapping[str, Any] | None = None,
        outputs: Sequence[Any] | None = None,
    ) -> UUID:  # fmt: skip
        """Order a film of so many new scenes of the user's, or with this cut."""
        film_id = uuid4()
        if cut is None:
            cut = {"parts": [{"scene": str(self.scene(user_id))} for _ in range(parts)]}
        if outputs is not None:
            cut = {**cut, "outputs": list(outputs)}
        self.sql(
            "insert into public.video_generation_tasks (id, user_id, cut) values (%s, %s, %s)",
            film_id, user_id, Jsonb(dict(cut)),
        )  # fmt: skip
        return film_id

    def held_film(
        self, hand: Hand, *walk: str, user_id: UUID | None = None, parts: int = 2,
        cut: Mapping[str, Any] | None = None, outputs: Sequence[Any] | None = None,
    ) -> Held:  # fmt: skip
        """Order a film, let this worker claim it, and walk its attempt up to a point."""
        film_id = self.film(user_id or self.user(), parts, cut, outputs)
        lane = Lane.BATCHES if outputs is None else Lane.RENDERS
        (held,) = (taken for taken in hand.claim_films(lane=lane) if taken.id == film_id)
        hand.walk(held, *walk)
        return held

    def cut_film(
        self, hand: Hand, *walk: str, user_id: UUID | None = None, parts: int = 2,
        outputs: Sequence[Any] = ("web",),
    ) -> Held:  # fmt: skip
        """Let a film with outputs be claimed again, with all its parts completed."""
        film = self.held_film(hand, "order_parts", user_id=user_id, parts=parts, outputs=outputs)
        hand.walk(film, "wait_for_parts")
        for part in hand.claim():
            hand.walk(part, "start_task", *STAGE)
            again = Held(part.id, part.attempt, part.worker_id)
            hand.walk(again, *STAGE, "complete", stage="video")
        hand("wake_films")
        (held,) = (one for one in hand.claim_films(lane=Lane.RENDERS) if one.id == film.id)
        hand.walk(held, *walk)
        return held

    def parts(self, film_id: UUID) -> list[Row]:
        """A film's parts in order: position, and the columns of each task."""
        return self.sql(
            "select p.position, t.* from vidgen.parts as p"
            " left join public.video_generation_tasks as t on t.id = p.task_id"
            " where p.film_id = %s order by p.position", film_id,
        )  # fmt: skip

    def orders(self, user_id: UUID, rows: int, due: timedelta = timedelta(0)) -> None:
        """Make many tasks of one user in one statement."""
        self.sql(
            "insert into public.video_generation_tasks (user_id, scene_id, run_after)"
            " select %s, %s, now() + %s from generate_series(1, %s)",
            user_id, self.scene(user_id), due, rows,
        )  # fmt: skip

    def held(self, hand: Hand, *walk: str, user_id: UUID | None = None) -> Held:
        """Make a task, let this worker claim it, and walk its image stage up to a point."""
        task_id = self.order(user_id)
        (held,) = hand.claim()
        assert held.id == task_id
        hand.walk(held, *walk)
        return held

    def prepared(self, hand: Hand, name: str) -> Held:
        """Make a claimed task in the state in which this fenced query has something to do."""
        if name == "seconds_of_parts":
            return self.held_film(hand, outputs=["web"])
        if name in OF_RENDERS:
            return self.cut_film(
                hand, *(("begin_rendition",) if name == "finish_rendition" else ())
            )
        if name in OF_FILMS:
            return self.held_film(hand, *(("order_parts",) if name == "wait_for_parts" else ()))
        walk = {
            "begin_submission": ("start_task",),
            "answer_submission": ("start_task", *STAGE[:1]),
            "end_generation": ("start_task", *STAGE[:2]),
            "begin_upload": ("start_task", *STAGE[:2]),
            "finish_stage": ("start_task", *STAGE[:3]),
            "complete": ("start_task", *STAGE),
        }.get(name, ())
        held = self.held(hand, *walk)
        if name == "begin_upload":
            hand.about(held, "end_generation", upload_id=None)
        if name == "complete":
            hand.walk(Held(held.id, held.attempt, held.worker_id), *STAGE, stage="video")
        return held

    def silent(self, *worker_ids: UUID) -> None:
        """Let the last heartbeat of these workers be long ago."""
        self.sql(
            "update vidgen.workers set heartbeat_at = now() - interval '1 hour' where id = any(%s)",
            list(worker_ids),
        )

    def waits(self, later: Later) -> bool:
        """Return True once the statement waits for a lock, False when it ended without."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if not later.is_alive():
                later.result()
                return False
            if self.one("select cardinality(pg_blocking_pids(%s)) > 0 as waits", later.pid)[
                "waits"
            ]:
                return True
        raise AssertionError("the statement neither waited for a lock nor ended")

    def dump(self, *, without: Sequence[str] = ()) -> dict[str, list[Row]]:
        """Everything in all tables of ours, but for clocks that every write moves."""
        tables = self.sql(
            "select quote_ident(n.nspname) || '.' || quote_ident(c.relname) as name"
            "  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
            " where c.relkind = 'r' and n.nspname in ('public', 'vidgen') order by 1"
        )
        clocks = [
            "updated_at",
            "expected_at",
            "heartbeat_at",
            "cost_read_at",
            "read_at",
            "audited_at",
        ]
        return {
            table["name"]: [
                row["row"]
                for row in self.sql(
                    f"select to_jsonb(t) - %s::text[] as row from {table['name']} as t"
                    " order by to_jsonb(t)::text",
                    clocks,
                )
            ]
            for table in tables
            if table["name"] not in without
        }


def refuse(ground: Ground, *task_ids: UUID, when: str = "true") -> None:
    """Give the application a trigger that raises when these tasks' rows are changed.

    `when` is an SQL condition on `new` and `old`.
    """
    ground.sql("create table if not exists public.refused_tasks (id uuid primary key)")
    ground.sql("grant select on public.refused_tasks to public")
    for task_id in task_ids:
        ground.sql("insert into public.refused_tasks values (%s) on conflict do nothing", task_id)
    ground.sql(
        "create or replace function public.application_refuses() returns trigger"
        f" language plpgsql as $$ begin if {when}"
        " and exists (select from public.refused_tasks as r where r.id = new.id) then"
        " raise foreign_key_violation using message = 'notifications_user_id_fkey';"
        " end if; return null; end $$"
    )
    ground.sql(
        "create or replace trigger application_refuses"
        " after update on public.video_generation_tasks"
        " for each row execute function public.application_refuses()"
    )


def let_go(ground: Ground) -> None:
    """Take the application's trigger away."""
    ground.sql("drop trigger application_refuses on public.video_generation_tasks")


@contextmanager
def ground_of(database: Database) -> Iterator[Ground]:
    """Open a database for a test."""
    with (
        ExitStack() as stack,
        psycopg.connect(database.admin_url, autocommit=True, row_factory=dict_row) as admin,
    ):
        yield Ground(database, admin, stack)


def aged(ground: Ground, days: int = 100) -> None:
    """Let everything that is there have happened long ago."""
    with ground.admin.transaction():
        ground.sql("set local session_replication_role = replica")
        ago = f"interval '{days} days'"
        ground.sql(
            f"update public.video_generation_tasks set created_at = created_at - {ago},"
            f" started_at = started_at - {ago}, run_after = run_after - {ago},"
            f" completed_at = completed_at - {ago}"
        )
        ground.sql(
            f"update vidgen.submissions set sent_at = sent_at - {ago},"
            f" answered_at = answered_at - {ago}, ended_at = ended_at - {ago}"
        )
        ground.sql(
            f"update vidgen.holds set opened_at = opened_at - {ago}, closed_at = closed_at - {ago}"
        )
        ground.sql(f"update public.credit_entries set created_at = created_at - {ago}")


def completed(ground: Ground, hand: Hand, user: UUID) -> Held:
    held = ground.held(hand, "start_task", *STAGE, user_id=user)
    hand.walk(Held(held.id, held.attempt, held.worker_id), *STAGE, stage="video")
    hand.walk(held, "complete")
    return held
