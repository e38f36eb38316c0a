"""Whatever a client can lock, and for however long: nobody else waits for it, and nothing is lost.

Each lock is held in an open transaction, as a statement with a filter that burns holds it until it
is cancelled. Tests wait for states while the lock is held; none of them measures a time.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.types.json import Jsonb

from tests.support.clients import acting
from tests.support.hands import STAGE, Ground, Hand, Held, refuse
from tests.support.states import STATES
from tests.support.watching import until_true, watch
from tests.support.world import PATIENCE, World, hearing, recorded, told, vidgen
from vidgen_worker.database.pool import Databases
from vidgen_worker.database.trouble import DatabaseUnavailableError, LockedError
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.keys import Key, Scopes
from vidgen_worker.domain.task import Answer, Completed, Fence, GenerationEnd, StageName
from vidgen_worker.queue import checkpoints
from vidgen_worker.queue.caller import Caller
from vidgen_worker.queue.checkpoints import Step
from vidgen_worker.queue.errors import RowRefusedError
from vidgen_worker.queue.queue import Queue
from vidgen_worker.telemetry import events

BOUNDED = 40.0
"""The longest time of another user's order under any lock: many times its usual time."""

MODES = (
    "access share", "row share", "row exclusive", "share update exclusive", "share",
    "share row exclusive", "exclusive", "access exclusive",
)  # fmt: skip


# The rows that clients can lock.


@pytest.mark.parametrize("role", ["anon", "authenticated"])
def test_no_client_may_lock_a_table_so_that_others_wait(ground: Ground, role: str) -> None:
    """By what PostgreSQL says to each LOCK TABLE: a new table, or a new right, is met here."""
    tables = ground.sql(
        "select n.nspname as schema, c.relname as name"
        "  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
        " where n.nspname in ('public', 'vidgen') and c.relkind in ('r', 'p') order by 1, 2"
    )
    assert len(tables) > 20
    granted = set()
    with acting(ground, role, uuid4()) as conn:
        for table in tables:
            name = sql.Identifier(table["schema"], table["name"])
            for mode in MODES:
                with suppress(errors.InsufficientPrivilege), conn.transaction():
                    conn.execute(sql.SQL("lock table {} in {} mode").format(name, sql.SQL(mode)))
                    granted.add((table["name"], mode))
        # A foreign key or a trigger on a table keeps its writers out until its transaction ends.
        for right in ("references", "trigger"):
            named = conn.execute(
                "select n.nspname || '.' || c.relname as name"
                "  from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
                " where n.nspname in ('public', 'vidgen') and c.relkind in ('r', 'p')"
                "   and (has_table_privilege(c.oid, %s)"
                "        or (%s = 'references' and has_any_column_privilege(c.oid, %s)))",
                [right] * 3,
            ).fetchall()
            assert named == []
    assert {mode for _, mode in granted} <= {"access share", "row share", "row exclusive"}
    if role == "authenticated":
        assert ("video_scenes", "access share") in granted, "nothing was tried"


def test_a_scene_is_deleted_by_its_owner_and_its_tasks_stay(ground: Ground) -> None:
    user, stranger = ground.user(), ground.user()
    task = ground.order(user)
    scene = ground.task(task)["scene_id"]
    for who, gone in ((stranger, False), (user, True), (user, False)):
        with acting(ground, "authenticated", who) as conn:
            row = conn.execute("select public.delete_video_scene(%s) as gone", [scene]).fetchone()
        assert row == {"gone": gone}
    assert ground.task(task)["scene_id"] is None


# Scene writes.


@contextmanager
def locked(ground: Ground, statement: str, *parameters: object) -> Iterator[None]:
    """Hold what this statement locks, until the block ends."""
    with ground.hand().holding() as client:
        client.conn.execute(statement.encode(), parameters)
        yield


def scene_of(ground: Ground, held: Held) -> dict[str, object]:
    return ground.one(
        "select s.* from video_scenes as s join video_generation_tasks as t on t.scene_id = s.id"
        " where t.id = %s", held.id,
    )  # fmt: skip


def write_what_is_owed(ground: Ground, hand: Hand) -> list[str | None]:
    """Do the janitor's work as if every pause was over; return the refusal of each scene."""
    ground.sql("update vidgen.scene_writes set due_at = now()")
    scenes = [row["scene_id"] for row in hand("owed_scenes")]
    return [hand("write_owed_scene", scene_id=one)[0]["refused"] for one in scenes]


@pytest.mark.parametrize(
    "lock",
    [
        "select from video_scenes for update",
        "update video_scenes set visual_prompt = visual_prompt",
        "lock table video_scenes in share mode",
    ],
)
def test_a_scene_that_is_locked_is_written_later(ground: Ground, lock: str) -> None:
    """From its first word to its last: every write is owed, and the task goes on to its end."""
    hand, other = ground.worker(), ground.worker()
    held = ground.held(hand)
    hand.conn.execute("set statement_timeout = '10s'")  # it waits for a tenth of a second
    with locked(ground, lock):
        assert hand.about(held, "start_task")[0]["scene_refused"].startswith("55P03")
        hand.walk(held, *STAGE)
        hand.walk(Held(held.id, held.attempt, held.worker_id), *STAGE, stage="video")
        hand.about(held, "complete")
        assert ground.task(held.id)["status"] == "completed"
        assert write_what_is_owed(ground, other) == [None]
    assert scene_of(ground, held)["status"] == "pending"
    assert not ground.none("select from vidgen.scene_writes"), "it was locked: it is owed still"
    assert write_what_is_owed(ground, other) == [None]
    scene = scene_of(ground, held)
    assert scene["status"] == "completed"
    assert scene["image_url"] == ground.task(held.id)["image_url"]
    assert scene["generated_video_url"] == ground.task(held.id)["video_url"]
    assert ground.none("select from vidgen.scene_writes")
    assert ground.books_balance()


def test_an_owed_write_overwrites_no_newer_value(ground: Ground) -> None:
    """One attempt failed while the scene was locked; a newer task of the scene runs by now."""
    hand, user = ground.worker(), ground.user()
    old = ground.held(hand, "start_task", user_id=user)
    scene = ground.task(old.id)["scene_id"]
    with locked(ground, "select from video_scenes for update"):
        hand.about(old, "fail")
    ground.sql(
        "insert into video_generation_tasks (user_id, scene_id) values (%s, %s)", user, scene
    )
    (new,) = hand.claim()
    hand.walk(new, "start_task")
    assert write_what_is_owed(ground, hand) == [None]
    assert scene_of(ground, new)["status"] == "processing"
    hand.about(new, "fail")
    assert scene_of(ground, new)["status"] == "failed", "nothing is owed: it is written at once"


def test_owed_writes_of_a_deleted_or_refusing_scene_are_dropped(ground: Ground) -> None:
    hand = ground.worker()
    gone, refusing = ground.held(hand), ground.held(hand)
    with locked(ground, "select from video_scenes for update"):
        hand.walk(gone, "start_task")
        hand.walk(refusing, "start_task")
    ground.sql("delete from video_scenes where id = %s", ground.task(gone.id)["scene_id"])
    ground.sql("alter table video_scenes add constraint own check (status = 'pending')")
    (refused,) = filter(None, write_what_is_owed(ground, hand))
    assert refused.startswith("23514")
    assert ground.none("select from vidgen.scene_writes")


def test_one_user_s_owed_scenes_keep_nobody_else_s_waiting(ground: Ground) -> None:
    ground.sql(
        "insert into vidgen.scene_writes (scene_id, user_id, status, since, due_at)"
        " select gen_random_uuid(), %s, 'failed', now(), now() - interval '1 hour'"
        " from generate_series(1, 300)", uuid4(),
    )  # fmt: skip
    scene = uuid4()
    ground.sql(
        "insert into vidgen.scene_writes (scene_id, user_id, status) values (%s, %s, 'failed')",
        scene, uuid4(),
    )  # fmt: skip
    assert scene in [row["scene_id"] for row in ground.worker()("owed_scenes")[:2]]


# A task's row.


def test_a_task_that_is_locked_is_set_aside_and_never_ends_by_that(ground: Ground) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task")
    error = {"error": "55P03 canceling statement due to lock timeout", "statement": "requeue"}
    with locked(ground, "select from video_generation_tasks for update"):
        for _ in range(10):
            (row,) = hand.about(held, "set_aside", **error)
            assert (row["tries"], row["became"]) == (1, "processing")
            assert row["pause"] <= timedelta(seconds=31)
        refusal = ground.one("select * from vidgen.refusals")
        assert refusal["error"] == "55P03 locked by another transaction"
        ground.sql("update vidgen.refusals set tries = 8, until = now()")
        assert [row["became"] for row in hand("retry_refused")] == ["locked"]
        ground.sql("update vidgen.refusals set tries = 1")
    (row,) = hand.about(held, "set_aside", **error)
    assert row["became"] == "pending"
    assert "another transaction holds" in ground.task(held.id)["message"]


def test_a_worker_that_lost_a_locked_task_records_nothing_about_it(ground: Ground) -> None:
    hand = ground.worker()
    held = ground.held(hand, "start_task")
    with locked(ground, "select from video_generation_tasks for update"):
        assert hand.about(held, "set_aside", attempt=held.attempt + 1) == []
    assert ground.none("select from vidgen.refusals")


def test_a_verdict_about_a_locked_task_is_the_next_attempt_s_only(ground: Ground) -> None:
    """Its fence could not be checked: it may be a zombie's, and is deleted after that."""
    hand = ground.worker()
    held = ground.held(hand, "start_task")
    verdict = Jsonb({"code": "CANCELLED"})
    with locked(ground, "select from video_generation_tasks for update"):
        hand.about(held, "set_aside", error="55P03 locked", verdict=verdict)
    found = []
    for _ in range(2):
        hand("hand_back", task_ids=None)
        ground.sql("update vidgen.refusals set until = now()")
        hand("retry_refused")
        (held,) = hand.claim()
        found.append(hand.about(held, "load_task")[0]["verdict"])
    assert found == [{"code": "CANCELLED"}, None]


def test_refusals_by_locks_close_no_gate(ground: Ground) -> None:
    hand = ground.worker()
    for _ in range(3):
        hand.about(ground.held(hand, "start_task"), "set_aside", error="55P03 locked")
    assert hand("try_rows")[0]["refusing"] == 0
    hand.about(ground.held(hand, "start_task"), "set_aside", error="P0001 no")
    assert hand("try_rows")[0]["refusing"] == 1


ROWS_OF_CLIENTS = (
    "public.video_generation_tasks", "public.video_scenes", "public.user_credits",
    "vidgen.submissions", "vidgen.checkpoints", "vidgen.budgets", "vidgen.resumes",
    "vidgen.refusals", "vidgen.holds", "vidgen.scene_writes",
)  # fmt: skip
"""The rows that a client's call writes: the client holds them while its statement runs."""
OF_ONE_ROW = ("close_generation", "is_gone")
"""About one submission, each in a statement of its own: `Queue` gives them up after a while."""


@pytest.mark.parametrize("name", [name for name in STATES if name not in OF_ONE_ROW])
def test_a_statement_about_many_tasks_waits_for_no_locked_row(ground: Ground, name: str) -> None:
    """Generated: every named query that is not about one task, beside rows that are all held."""
    hand = ground.worker()
    parameters = STATES[name](ground, hand)
    with ground.hand().holding() as client:
        for table in ROWS_OF_CLIENTS:
            client.conn.execute(f"select from {table} for update".encode())
        hand.conn.execute("set lock_timeout = '150ms'")
        hand(name, **parameters)


def burning_retry(ground: Ground, hand: Hand, held: Held, user: UUID) -> Callable[[], object]:
    """Let a task of the user's end, and hold what a retry of it locks; returns how to let go."""
    hand.about(held, "fail")
    block = acting(ground, "authenticated", user)
    conn = block.__enter__()
    conn.execute("select public.retry_video_generation_task(%s)", [held.id])
    return lambda: block.__exit__(None, None, None)


def test_a_user_s_repeated_retries_keep_no_slot_from_others(ground: Ground) -> None:
    """The sweep of slots and of unanswered submissions leaves out what the call holds."""
    hand, user = ground.worker(), ground.user()
    hand("set_limit", model="gen4_image", max_generations=3)
    mine, other = (ground.held(hand, "start_task", STAGE[0], user_id=who) for who in (
        user, ground.user()
    ))  # fmt: skip
    hand.about(other, "fail")
    ground.sql("update vidgen.submissions set sent_at = now() - interval '1 hour'")
    ground.sql("update vidgen.slots set taken_at = now() - interval '1 hour' where task_id notnull")
    let_go = burning_retry(ground, hand, mine, user)
    hand.conn.execute("set lock_timeout = '150ms'")
    hand("free_slots")
    hand("give_up_submissions")
    taken = ground.sql("select task_id from vidgen.slots where task_id is not null")
    assert [row["task_id"] for row in taken] == [mine.id]
    let_go()
    hand("free_slots")
    assert ground.none("select from vidgen.slots where task_id is not null")


# A place that a locked row keeps.


def waiting(ground: Ground, hand: Hand, *users: UUID, past_image: bool, crashes: int) -> list[UUID]:
    """A task of each user that is put back for later, with its still or with nothing."""
    ids = []
    for user in users:
        held = ground.held(hand, "start_task", *(STAGE if past_image else ()), user_id=user)
        hand.about(held, "requeue", delay=timedelta(hours=1))
        ids.append(held.id)
    ground.sql(
        "insert into vidgen.budgets as b (task_id, crashes, suspect) select unnest(%s), %s, %s"
        " on conflict (task_id) do update"
        "   set crashes = excluded.crashes, suspect = excluded.suspect",
        ids, crashes, crashes >= 2,
    )  # fmt: skip
    return ids


def all_due(ground: Ground) -> None:
    """Let everything that was put back wait no longer, in the order in which it was ordered."""
    for row in ground.sql("select id from video_generation_tasks order by created_at"):
        ground.sql("update video_generation_tasks set run_after = now() where id = %s", row["id"])


SUSPECT = 2
"""Deaths of a task that runs alone: one below the limit."""


def the_pauses_end(ground: Ground) -> None:
    """Let every task that was passed over have waited long enough."""
    ground.sql("update vidgen.passed_over set until = now()")


@contextmanager
def kept(ground: Ground, how: str, user: UUID, *tasks: UUID) -> Iterator[None]:
    """Hold rows of these tasks: their own, or all that a cancel changes, which is taken back."""
    if how == "a lock":
        statement = "select from video_generation_tasks where user_id = %s for update"
        with locked(ground, statement, user):
            yield
        return
    with acting(ground, "authenticated", user) as conn:
        for task in tasks:
            conn.execute("select public.cancel_video_generation_task(%s)", [task])
        yield
        raise psycopg.Rollback


@pytest.mark.parametrize("how", ["a lock", "a cancel"])
@pytest.mark.parametrize("past_image", [False, True])
def test_a_locked_suspect_reserves_no_slot(ground: Ground, past_image: bool, how: str) -> None:
    """One generation of each model at once: the place left for a suspect is the only one."""
    hand, user = ground.worker(), ground.user()
    suspect, others = waiting(
        ground, hand, user, ground.user(), past_image=past_image, crashes=SUSPECT
    )
    all_due(ground)
    for model in ("gen4_image", "gen4_turbo"):
        hand("set_limit", model=model, max_generations=1)
    with kept(ground, how, user, suspect):
        (first,) = hand.claim()
        assert first.id == others
        hand.about(first, "fail")
        plain = ground.order()
        # One turn a claim: users stand before it who have nothing that may begin.
        (second,) = next(filter(None, (hand.claim() for _ in range(5))))
        assert second.id == plain
        # No busy worker becomes idle for it, either.
        the_pauses_end(ground)
        assert hand("take_over", idle=False) == []
        hand.about(second, "fail")
        assert hand.claim() == []
    assert hand.claim() == [], "it comes again after a pause"
    the_pauses_end(ground)
    assert [row["kind"] for row in hand("take_over", idle=False)] == ["suspect waits"]
    assert [held.id for held in hand.claim()] == [suspect]


@pytest.mark.parametrize("how", ["a lock", "a cancel"])
def test_locked_clips_reserve_no_room(ground: Ground, how: str) -> None:
    """Enough tasks past their image to stop every next image."""
    hand, user = ground.worker(), ground.user()
    clips = waiting(ground, hand, user, user, past_image=True, crashes=0)
    all_due(ground)
    for model in ("gen4_image", "gen4_turbo"):
        hand("set_limit", model=model, max_generations=1)
    other = ground.order()
    room = "select vidgen.room_before('runway', 'default', 'gen4_turbo') as room"
    with kept(ground, how, user, *clips):
        assert ground.one(room)["room"] == 0
        assert [one.id for one in hand.claim()] == [other]
    the_pauses_end(ground)
    assert [one.id for one in hand.claim()] == clips[:1]


@pytest.mark.parametrize("how", ["a lock", "a cancel", "a trigger"])
def test_rows_that_can_not_be_concluded_reserve_no_room(ground: Ground, how: str) -> None:
    """The rows stay 'processing' with their worker: enough to stop every next image."""
    hand, user = ground.worker(), ground.user()
    for model, most in (("gen4_image", 5), ("gen4_turbo", 1)):
        hand("set_limit", model=model, max_generations=most)
    ground.orders(user, 2)
    mine = hand.claim()
    assert len(mine) == 2
    other = ground.order()
    assert hand.claim() == [], "there is room for two"
    if how == "a trigger":
        refuse(ground, *(one.id for one in mine), when="old.status = 'processing'")
        for one in mine:
            (row,) = hand.about(one, "set_aside", statement="start_task", error="P0001 no")
            assert row["became"] == "processing"
        assert [one.id for one in hand.claim()] == [other]
        return
    with kept(ground, how, user, *(one.id for one in mine)):
        for one in mine:
            (row,) = hand.about(one, "set_aside", statement="start_task", error="55P03 locked")
            assert row["became"] == "processing"
        # Their pauses end, and the lock lasts.
        ground.sql("update vidgen.refusals set until = now()")
        assert [row["became"] for row in hand("retry_refused")] == ["locked"] * 2
        assert ground.none("select from vidgen.refusals where until is null or tries > 1")
        assert [row["kind"] for row in hand("heartbeat")] == ["alive"], "its worker leaves it alone"
        assert [one.id for one in hand.claim()] == [other]
    ground.sql("update vidgen.refusals set until = now()")
    assert [row["became"] for row in hand("retry_refused")] == ["processing"] * 2
    orphans = {row["task_id"] for row in hand("heartbeat") if row["kind"] == "orphan"}
    assert orphans >= {one.id for one in mine}, "it hands them back"


def test_clips_that_are_locked_keep_no_gate_closed(ground: Ground) -> None:
    """As many as a trial reads, and they are locked at every probe."""
    hand, user, other = ground.worker(), ground.user(), ground.user()
    clips = waiting(ground, hand, *[user] * 20, past_image=True, crashes=0)
    theirs = waiting(ground, hand, other, past_image=True, crashes=0)
    all_due(ground)
    hand("close_gate", reason="PROVIDER_STORM", model="gen4_turbo")
    with kept(ground, "a cancel", user, *clips):
        found = hand("claim_trial", model="gen4_turbo", probes=0)
        assert [row["id"] for row in found] == theirs


def test_cancels_that_are_locked_keep_no_other_s_waiting(ground: Ground) -> None:
    """As many as one statement takes."""
    hand, user, other = ground.worker(), ground.user(10_000), ground.user()
    ids = []
    for who in [user] * 100 + [other]:
        held = ground.held(hand, "start_task", *STAGE[:2], user_id=who)
        hand.about(held, "requeue", delay=timedelta(hours=1))
        ground.sql("select public.cancel_video_generation_task(%s)", held.id)
        ids.append(held.id)
    with kept(ground, "a lock", user):
        assert [row["id"] for row in hand("claim_cancelled")] == ids[-1:]


def test_costs_that_retries_hold_keep_no_other_s_from_being_read(ground: Ground) -> None:
    """As many as one statement returns."""
    hand, user, other = ground.worker(), ground.user(10_000), ground.user()
    ids = []
    for who in [user] * 20 + [other]:
        held = ground.held(hand, "start_task", *STAGE[:2], user_id=who)
        hand.about(held, "end_generation", ended_state="failed")
        hand.about(held, "fail")
        ids.append(held.id)
    ground.sql(
        "update vidgen.submissions set ended_at = ended_at - interval '10 minutes',"
        " cost_read_at = cost_read_at - interval '10 minutes'"
    )
    with acting(ground, "authenticated", user) as conn:
        for task in ids[:-1]:
            conn.execute("select public.retry_video_generation_task(%s)", [task])
        assert [row["task_id"] for row in hand("costs_to_read_again")] == ids[-1:]


def test_a_lasting_lock_is_tried_less_and_less_often(ground: Ground) -> None:
    hand, user = ground.worker(), ground.user()
    waiting(ground, hand, user, past_image=True, crashes=SUSPECT)
    all_due(ground)
    pauses = []
    with locked(ground, "select from video_generation_tasks for update"):
        for _ in range(6):
            assert hand.claim() == []
            row = ground.one(
                "select extract(epoch from until - clock_timestamp()) as s from vidgen.passed_over"
            )
            pauses.append(round(float(row["s"]), 1))
            the_pauses_end(ground)
    assert pauses == pytest.approx([3, 6, 12, 24, 30, 30], abs=0.3)


def test_a_task_that_two_claims_meet_and_one_hands_back_goes_on_at_once(ground: Ground) -> None:
    hand, rival = ground.worker(), ground.worker()
    ground.held(hand, "start_task", *STAGE[:2])
    hand("hand_back", task_ids=None)
    with hand.holding():
        (held,) = hand.claim()
        assert rival.claim() == []
    assert not ground.none("select from vidgen.passed_over"), "nobody passed it over"
    hand("hand_back", task_ids=None)
    assert [one.id for one in rival.claim()] == [held.id]


@pytest.mark.parametrize("crashes", [0, SUSPECT])
def test_a_task_passed_over_before_the_clock_was_set_back_goes_on(
    ground: Ground, crashes: int
) -> None:
    hand, user = ground.worker(), ground.user()
    ids = waiting(ground, hand, user, past_image=True, crashes=crashes)
    all_due(ground)
    a_day_ahead = "update vidgen.passed_over set until = now() + interval '1 day'"
    with locked(ground, "select from video_generation_tasks for update"):
        assert hand.claim() == []
        ground.sql(a_day_ahead)
        assert hand.claim() == []
        assert ground.none("select from vidgen.due_resumes"), "it is passed over anew"
    ground.sql(a_day_ahead)
    assert [one.id for one in hand.claim()] == ids


@pytest.mark.parametrize("past_image", [False, True])
def test_claims_that_meet_each_other_lose_nothing(ground: Ground, past_image: bool) -> None:
    """The row is locked by the one that begins it: the other one passes it over, for a moment."""
    hand, rival, user = ground.worker(), ground.worker(), ground.user()
    (suspect,) = waiting(ground, hand, user, past_image=past_image, crashes=SUSPECT)
    all_due(ground)
    with hand.holding():
        (held,) = hand.claim()
        assert held.id == suspect
        assert rival.claim() == []
    hand.about(held, "requeue")
    the_pauses_end(ground)
    assert [held.id for held in rival.claim()] == [suspect]


async def test_a_locked_suspect_and_locked_clips_stop_no_worker(world: World) -> None:
    watch(world)
    user, other = world.user(), world.user()
    with world.ground() as ground:
        hand = ground.worker()
        clips = waiting(ground, hand, user, user, past_image=True, crashes=0)
        suspects = waiting(ground, hand, user, past_image=False, crashes=SUSPECT)
        all_due(ground)
        hand("leave")
    scene = world.scene(other)
    async with world.worker(VIDGEN_IMAGE_SLOTS="1", VIDGEN_VIDEO_SLOTS="1"):
        with closing(world.admin()) as client, client.transaction():
            client.execute(
                "select from video_generation_tasks where user_id = %s for update", [user]
            )
            for _ in range(2):
                row = await world.until(world.order(other, scene), patience=BOUNDED)
                assert row["status"] == "completed"
        for one in (*clips, *suspects):
            row = await world.until(one, patience=BOUNDED)
            assert row["attempt"] > 1


# The locks of an application's slow trigger.


SLOW = """
create function public.application_is_slow() returns trigger language plpgsql as $$
begin
  if new.user_id = (select user_id from public.slow_user) then
    perform pg_advisory_xact_lock(7);
  end if;
  return new;
end
$$;
create trigger application_is_slow before update on public.video_generation_tasks
  for each row execute function public.application_is_slow();
"""


@contextmanager
def slow_trigger(ground: Ground, user: UUID) -> Iterator[None]:
    """Let every update of a task of this user's last until the block ends."""
    ground.sql("create table if not exists public.slow_user (user_id uuid)")
    ground.sql("grant select on public.slow_user to public")
    ground.sql("insert into public.slow_user values (%s)", user)
    ground.admin.execute(SLOW.encode())
    with locked(ground, "select pg_advisory_xact_lock(7)"):
        yield


def braked(ground: Ground, hand: Hand, user: UUID) -> None:
    """A trouble that shows, with submissions left; this user has met it, too."""
    for one in (ground.user(), ground.user(), user):
        held = ground.held(hand, "start_task", STAGE[0], user_id=one)
        hand("note_trouble", task_id=held.id, user_id=one, part="storage")
        hand.about(held, "fail")
    assert ground.one("select remaining from vidgen.troubles")["remaining"] == 3


@pytest.mark.parametrize("name", STAGE)
def test_a_slow_trigger_of_one_user_keeps_no_other_s_submission(ground: Ground, name: str) -> None:
    """During any slow statement the rows that count all submissions are free."""
    hand, other, third, user = ground.worker(), ground.worker(), ground.worker(), ground.user()
    braked(ground, hand, user)
    held = ground.held(hand, "start_task", *STAGE[: STAGE.index(name)], user_id=user)
    second = ground.held(other, "start_task", user_id=user)
    theirs = [ground.held(third, "start_task") for _ in range(3)]
    third.conn.execute("set lock_timeout = '150ms'")
    with slow_trigger(ground, user):
        late = hand.later(lambda: hand.about(held, name))
        waits = ground.waits(late)
        # Another order of the same user: it is repeated, and blocks no one.
        with suppress(errors.LockNotAvailable):
            other.conn.execute("set lock_timeout = '150ms'")
            other.about(second, "begin_submission")
        third.about(theirs[0], "begin_submission")
        third.walk(theirs[1], *STAGE)
        third("relieve")
        third("note_trouble", task_id=theirs[2].id, user_id=ground.task(theirs[2].id)["user_id"])
    assert late.result()
    assert waits is (name in ("end_generation", "finish_stage"))
    assert ground.one("select count(*) as n from vidgen.submissions where task_id = %s",
                      theirs[0].id)["n"] == 1  # fmt: skip


def test_a_statement_that_waits_for_a_user_s_limits_blocks_no_other_user(ground: Ground) -> None:
    """However long he waits: the trouble, and a free place at the provider, are taken after it."""
    hand, other, user = ground.worker(), ground.worker(), ground.user()
    braked(ground, hand, user)
    held, theirs = ground.held(hand, "start_task", user_id=user), ground.held(other, "start_task")
    hand("set_limit", model="gen4_image", max_generations=1)
    ground.sql("update vidgen.slots set task_id = null, taken_at = null, submission_id = null")
    noting = ground.worker()
    met = ground.one("select task_id as id from vidgen.submissions where user_id = %s", user)
    ground.sql("alter function vidgen.lock_limits set lock_timeout = '20s'")
    other.conn.execute("set lock_timeout = '150ms'")
    with ground.hand().holding() as first:
        first.conn.execute("select from vidgen.user_limits where user_id = %s for update", [user])
        late = [
            hand.later(lambda: hand.about(held, "begin_submission")),
            noting.later(lambda: noting("note_trouble", task_id=met["id"], user_id=user)),
        ]
        assert [ground.waits(one) for one in late] == [True, True]
        assert other.about(theirs, "begin_submission")[0]["refused"] is False
    assert all(one.result() for one in late)


def test_rows_that_end_slowly_are_ended_a_few_at_a_time(ground: Ground) -> None:
    """A second for each: one user's twenty rows hold no janitor for twenty seconds."""
    hand, user = ground.worker(), ground.user()
    ground.orders(user, 20)
    ground.sql(
        "insert into vidgen.refusals (task_id, tries, until, statement, error)"
        " select id, 8, now() - interval '1 minute', 'claim', 'P0001 no'"
        " from video_generation_tasks"
    )
    ground.sql(
        "create function public.application_is_slow() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(1); return new; end $$"
    )
    ground.sql(
        "create trigger application_is_slow before update on video_generation_tasks"
        " for each row when (new.status = 'failed') execute function public.application_is_slow()"
    )
    ended: list[UUID] = []
    for _ in range(2):
        said = [row for row in hand("retry_refused") if row["became"] is not None]
        assert 1 <= len(said) <= 3
        assert {row["became"] for row in said} == {"failed"}
        ended += [row["task_id"] for row in said]
    assert len(set(ended)) == len(ended), "the next turn goes on with the others"


# The worker's own verbs.

A_STEP = Step(40.0, "Storing the still", "at work")


@contextmanager
def queue_of(world: World, worker_id: UUID) -> Iterator[tuple[Queue, Databases]]:
    """A queue as a worker has it, with the hand's identity."""
    databases = Databases(world.database.url, 2, timedelta(seconds=5))
    key = Key(
        "runway", "gen4_image", "gen4_turbo",
        Scopes(account="default", key="key:key", storage="storage:s", machine="machine:m"),
    )  # fmt: skip
    queue = Queue(Caller(databases, world.settings(), key, lambda: False, worker_id))
    yield queue, databases


async def test_an_address_is_good_for_what_is_left_at_the_try_that_writes_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the first try, which an outage or a lock may have kept away for long."""
    with world.ground() as ground:
        hand = ground.worker()
        held = ground.prepared(hand, "complete")
        outcome = Completed("https://storage.test/signed", boot_time() + 3600)
        fence = Fence(held.id, held.attempt, held.worker_id)
        with queue_of(world, hand.worker_id) as (queue, databases):
            await databases.open()
            try:
                async with hearing(events.DatabaseTrouble) as tried:
                    with locked(ground, "select from video_generation_tasks for update"):
                        completing = asyncio.create_task(queue.conclusions.complete(fence, outcome))
                        async with asyncio.timeout(PATIENCE):
                            await tried.wait()
                        monkeypatch.setattr(checkpoints, "boot_time", lambda: boot_time() + 600)
                    await completing
            finally:
                await databases.close()
        assert ground.one(
            "select video_url_expires_at - completed_at between interval '49 minutes'"
            "       and interval '50 minutes' as told from video_generation_tasks where id = %s",
            held.id,
        ) == {"told": True}  # fmt: skip


async def test_an_answer_is_recorded_while_its_task_is_locked(world: World) -> None:
    with world.ground() as ground:
        hand = ground.worker()
        held = ground.held(hand, "start_task", STAGE[0])
        with queue_of(world, hand.worker_id) as (queue, databases):
            await databases.open()
            try:
                with locked(ground, "select from video_generation_tasks for update"):
                    with pytest.raises(RowRefusedError) as refused:
                        await queue.submissions.answer(
                            Fence(held.id, held.attempt, held.worker_id), StageName("image"),
                            held.submission_id, Answer.REFUSED, None, "no",
                        )  # fmt: skip
                    assert refused.value.locked
                    row = ground.one("select answer, details from vidgen.submissions")
                    assert row == {"answer": "refused", "details": "no"}
            finally:
                await databases.close()


@pytest.mark.parametrize("state", ["succeeded", "failed"])
async def test_the_end_of_a_generation_is_booked_while_its_task_is_locked(
    world: World, state: str
) -> None:
    """And that it was rejected: its owner's lock hides nothing."""
    rejected = state == "failed"
    with world.ground() as ground:
        hand = ground.worker()
        held = ground.held(hand, "start_task", *STAGE[:2])
        with queue_of(world, hand.worker_id) as (queue, databases):
            await databases.open()
            try:
                with locked(ground, "select from video_generation_tasks for update"):
                    with pytest.raises(RowRefusedError):
                        await queue.submissions.end_generation(
                            Fence(held.id, held.attempt, held.worker_id), StageName("image"),
                            held.generation_id, GenerationEnd(state), 5, A_STEP, rejected=rejected,
                        )  # fmt: skip
                    row = ground.one("select ended_state, cost, rejected from vidgen.submissions")
                    assert (row["ended_state"], int(row["cost"])) == (state, 5)
                    assert row["rejected"] is rejected
            finally:
                await databases.close()
        # A later attempt reads it once more and goes on.
        hand.walk(held, *STAGE[2:])


async def test_a_statement_says_that_it_met_a_lock(world: World) -> None:
    with world.ground() as ground, queue_of(world, uuid4()) as (_, databases):
        await databases.open()
        try:
            with locked(ground, "select from vidgen.settings for update"):
                with pytest.raises(LockedError) as met:
                    await databases.work.once("share_buckets", images_bucket="a", videos_bucket="b")
                assert isinstance(met.value, DatabaseUnavailableError)
            await databases.work.once("share_buckets", images_bucket="a", videos_bucket="b")
        finally:
            await databases.close()


# A whole worker: one user's rows are held, and another user's order ends.

WITH_ACCOUNTS = """
insert into auth.users (id) select user_id from public.user_credits on conflict do nothing;
alter table public.video_scenes add foreign key (user_id) references auth.users on delete cascade;
alter table public.user_credits add foreign key (user_id) references auth.users on delete cascade;
"""

LOCKS = {
    "one scene": ("select from video_scenes where user_id = %s limit 1 for update", "completed"),
    "all his scenes": (
        "update video_scenes set visual_prompt = visual_prompt where user_id = %s", "completed",
    ),
    "his tasks": ("select from video_generation_tasks where user_id = %s for update", "completed"),
    "his balance": ("select from user_credits where user_id = %s for update", "completed"),
    "the deletion of his scenes": ("delete from video_scenes where user_id = %s", None),
    "the deletion of his account": ("delete from auth.users where id = %s", None),
    "an order of his that is not committed": (
        """insert into video_generation_tasks (user_id, scene_id)
           select user_id, id from video_scenes where user_id = %s limit 1""", "completed",
    ),
    "cancels of his that are not committed": (
        """select public.cancel_video_generation_task(id)
           from video_generation_tasks where user_id = %s""", None,
    ),
    "his account, as a foreign key's check holds it": (
        "select from auth.users where id = %s for key share", "completed",
    ),
    "all rows, as a foreign key's check holds them": (
        """select from video_generation_tasks for key share;
           select from video_scenes for key share""", "completed",
    ),
    "a cursor that reads on": (
        """declare reading cursor for select from video_generation_tasks, video_scenes;
           fetch 1 from reading""", "completed",
    ),
    "the tables, as far as his grants allow": (
        "lock table video_scenes, video_generation_tasks in row exclusive mode", "completed",
    ),
    "his scenes, in a table that is locked against writes": (
        "lock table video_scenes in share row exclusive mode", "completed",
    ),
}  # fmt: skip
"""The held lock, and the ends of the tasks after its release; None: any end."""


@pytest.mark.parametrize("name", LOCKS)
async def test_one_user_s_locks_stop_nobody_else(world: World, name: str) -> None:
    statement, ends = LOCKS[name]
    watch(world)
    world.sql("update vidgen.settings set refusal_pause = '100 milliseconds'")
    user, other = world.user(), world.user()
    tasks = [
        world.order(user, world.scene(user, image_prompt=f"[[slow 400ms]] {n}")) for n in range(4)
    ]
    theirs = world.scene(other)
    with world.admin() as conn:
        conn.execute(WITH_ACCOUNTS.encode())
    async with world.worker(VIDGEN_DATABASE_POOL="2", VIDGEN_CONCURRENCY="6"):
        await until_true(
            world, "select count(distinct task_id) = 4 from vidgen.submissions where answer notnull"
        )
        with closing(world.admin()) as client, recorded() as heard:
            with client.transaction():
                for part in statement.split(";"):
                    client.execute(part.encode(), [user] if "%s" in part else None)
                order = world.order(other, theirs)
                row = await world.until(order, patience=BOUNDED)
                assert row["status"] == "completed"
                assert client.info.transaction_status is psycopg.pq.TransactionStatus.INTRANS
            for task in tasks:
                row = await world.until(task)
                assert ends in (None, row["status"]), row["error_message"]
        if ends is not None:
            await until_true(world, "select not exists (select from vidgen.scene_writes)")
            await until_true(
                world, "select bool_and(status = 'completed' and generated_video_url is not null)"
                " from video_scenes",
            )  # fmt: skip
    assert not [e for e in heard if isinstance(e, events.LoopFailed | events.WorkerDeclaredDead)]
    paid = world.one(
        "select count(*) as all, count(distinct (task_id, stage)) as once from vidgen.submissions"
    )
    assert paid["all"] == paid["once"], "a stage was paid twice"
    if ends is not None:
        assert world.books_balance()


OWNERS_WORK = (
    "alter table video_scenes add column added integer",
    "create index on video_scenes (visual_prompt)",
    "create index on video_generation_tasks (message)",
    "alter table user_credits add column added integer",
)
"""An open change of a table by the database's owner: it may stop orders."""


@pytest.mark.parametrize("statement", OWNERS_WORK)
async def test_a_task_that_its_owner_s_transaction_stopped_goes_on_after_it(
    world: World, statement: str
) -> None:
    """The lease is kept meanwhile, no task ends by it, and nothing is paid twice."""
    watch(world)
    world.sql("update vidgen.settings set refusal_pause = '100 milliseconds'")
    user, other = world.user(), world.user()
    tasks = [
        world.order(user, world.scene(user, image_prompt=f"[[slow 400ms]] {n}")) for n in range(3)
    ]
    async with world.worker(VIDGEN_DATABASE_POOL="2", VIDGEN_LEASE="2s"):
        await until_true(
            world, "select count(distinct task_id) = 3 from vidgen.submissions where answer notnull"
        )
        with recorded() as heard:
            with closing(world.admin()) as owner, owner.transaction():
                owner.execute(statement.encode())
                # Longer than the lease, as its own beats count it.
                await world.beats(6)
            tasks.append(world.order(other, world.scene(other)))
            for task in tasks:
                row = await world.until(task, patience=BOUNDED)
                assert row["status"] == "completed", row["error_message"]
    assert not [e for e in heard if isinstance(e, events.LoopFailed | events.WorkerDeclaredDead)]
    paid = world.one(
        "select count(*) as all, count(distinct (task_id, stage)) as once from vidgen.submissions"
    )
    assert paid["all"] == paid["once"], "a stage was paid twice"
    assert world.books_balance()


async def test_a_worker_that_lost_its_lease_to_an_owner_s_transaction_starts_over(
    world: World,
) -> None:
    """The heartbeat reads the table of tasks: a change of its columns stops it, too."""
    watch(world)
    user = world.user()
    task = world.order(user, world.scene(user, image_prompt="[[slow 400ms]] a bottle"))
    async with world.worker(VIDGEN_LEASE="2s") as worker:
        await until_true(world, "select count(*) >= 1 from vidgen.submissions where answer notnull")
        with closing(world.admin()) as owner, owner.transaction():
            owner.execute("alter table video_generation_tasks add column added integer")
            async with asyncio.timeout(BOUNDED), hearing(events.DatabaseTrouble) as met:
                while worker.process.life.lease.held():
                    met.clear()
                    await met.wait()
        assert (await world.until(task, patience=BOUNDED))["status"] == "completed"
    paid = world.one(
        "select count(*) as all, count(distinct (task_id, stage)) as once from vidgen.submissions"
    )
    assert paid["all"] == paid["once"], "a stage was paid twice"


async def test_a_drain_waits_for_no_lock(world: World) -> None:
    """The worker ends while all its rows are locked; the successor goes on after the locks."""
    watch(world)
    user = world.user()
    task = world.order(user, world.scene(user, image_prompt="[[slow 2s]] a bottle"))
    with closing(world.admin()) as client:
        async with hearing(events.WorkerStopped) as stopped, world.worker() as worker:
            await until_true(
                world, "select count(*) >= 1 from vidgen.submissions where answer notnull"
            )
            with client.transaction():
                client.execute(b"select from video_generation_tasks for update")
                client.execute(b"select from video_scenes for update")
                worker.stop()
                async with asyncio.timeout(BOUNDED):
                    await stopped.wait()
    async with world.worker():
        assert (await world.until(task))["status"] == "completed"
    assert world.one("select count(*) as n from vidgen.submissions")["n"] == 2


# The command line.


def test_a_verb_says_that_a_row_is_locked(world: World) -> None:
    user = world.user()
    task = world.order(user, world.scene(user))
    with closing(world.admin()) as client, client.transaction():
        client.execute("select from video_generation_tasks where id = %s for update", [task])
        done = vidgen(world, "tasks", "cancel", str(task), "--yes")
    assert done.returncode != 0
    assert "is locked by another transaction" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_task_that_is_locked_or_refuses_stops_no_prune(world: World) -> None:
    with world.ground() as ground:
        hand = ground.worker()
        ids = []
        for _ in range(6):
            held = ground.held(hand, "start_task")
            hand.about(held, "fail")
            ids.append(held.id)
        with ground.admin.transaction():
            ground.sql("set local session_replication_role = replica")
            ground.sql("update video_generation_tasks set completed_at = now() - interval '1 year'")
        ground.sql("create table public.invoices (task_id uuid references video_generation_tasks)")
        ground.sql("insert into public.invoices values (%s)", ids[3])
        with locked(ground, "select from video_generation_tasks where id = %s for update", ids[1]):
            said = told(world, "prune", "--yes")
        assert said["tasks"] == 4
        assert list(said["left"]) == [str(ids[3])]
        assert "invoices" in said["left"][str(ids[3])]
        left = {row["id"] for row in ground.sql("select id from video_generation_tasks")}
        assert left == {ids[1], ids[3]}
