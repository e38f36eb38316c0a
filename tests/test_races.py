"""The races that break the obvious design, by name; and any interleaving of the real SQL.

The machine at the end drives the queue's named queries over four real connections, with
transactions held open, committed and rolled back at random, zombies included. It repeats itself
from run to run; `HYPOTHESIS_EXPLORE=1` lets it look elsewhere.
"""

import os
from contextlib import ExitStack
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg import errors

from tests.hands import FENCED, UNFENCED_FACTS, Ground, Hand, Held, Row, stage_of

TASKS = "public.video_generation_tasks"
PRICE = 30

WRITES = [name for name in FENCED if name != "load_task"]


def without_facts(name: str) -> list[str]:
    return [UNFENCED_FACTS[name]] if name in UNFENCED_FACTS else []


# The five.


@pytest.mark.parametrize("name", WRITES)
def test_race_of_a_fence_by_join_on_another_table(ground: Ground, name: str) -> None:
    """A zombie's write waits behind the takeover's lock, and is judged by what that left.

    A fence in the WHERE of another table's UPDATE would not be looked at again.
    """
    zombie, successor = ground.worker(), ground.worker()
    held = ground.prepared(zombie, name)
    ground.silent(zombie.worker_id)
    with successor.holding():
        assert [row["id"] for row in successor("take_over")] == [held.id]
        late = zombie.later(lambda: zombie.about(held, name))
        assert ground.waits(late), "it must wait for the row: else it has not looked at it"
        before = successor.conn.execute(
            f"select * from {TASKS} where id = %s".encode(), [held.id]
        ).fetchone()
        checkpoints = ground.sql("select * from vidgen.checkpoints order by stage")
        charges = ground.sql("select * from vidgen.charges")
        balances = ground.sql("select * from public.user_credits")
    rows = late.result()

    assert [row for row in rows if row.get("mine") is not False] == []
    assert ground.task(held.id) == before
    assert ground.sql("select * from vidgen.checkpoints order by stage") == checkpoints
    assert ground.sql("select * from vidgen.charges") == charges
    assert ground.sql("select * from public.user_credits") == balances
    assert ground.books_balance()


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("verdict", ["handed back", "lost", "cancelled"])
def test_race_of_a_fence_by_attempt_alone(ground: Ground, name: str, verdict: str) -> None:
    """After a hand-back, a janitor's verdict or a cancel the attempt is still the same number."""
    zombie, other = ground.worker(), ground.worker()
    held = ground.prepared(zombie, name)
    match verdict:
        case "handed back":
            zombie("heartbeat")
        case "lost":
            ground.sql(
                "insert into vidgen.budgets (task_id, crashes) values (%s, 2)"
                " on conflict (task_id) do update set crashes = 2",
                held.id,
            )
            ground.silent(zombie.worker_id)
            other("take_over")
        case _:
            zombie.about(held, "cancel")
    row = ground.task(held.id)
    assert (row["attempt"], row["worker_id"]) == (held.attempt, None)
    before = ground.dump(without=without_facts(name))
    rows = zombie.about(held, name)
    assert [found for found in rows if found.get("mine") is not False] == []
    assert ground.dump(without=without_facts(name)) == before


def test_race_of_a_takeover_that_comes_before_the_heartbeat(ground: Ground) -> None:
    """The verdict is a write to the worker's own row: the late heartbeat finds it and is dead."""
    late_one, successor = ground.worker(), ground.worker()
    held = ground.held(late_one)
    ground.silent(late_one.worker_id)
    with successor.holding():
        assert len(successor("take_over")) == 1
        beat = late_one.later(
            lambda: late_one("heartbeat", task_ids=[held.id], attempts=[held.attempt])
        )
        assert ground.waits(beat)
    assert "alive" not in {row["kind"] for row in beat.result()}
    assert ground.task(held.id)["worker_id"] == successor.worker_id


def test_race_of_a_takeover_that_comes_after_the_heartbeat(ground: Ground) -> None:
    """The takeover saw an old heartbeat, waits for the row, and finds a new one."""
    late_one, successor = ground.worker(), ground.worker()
    held = ground.held(late_one)
    ground.silent(late_one.worker_id)
    with late_one.holding():
        rows = late_one("heartbeat", task_ids=[held.id], attempts=[held.attempt])
        assert {row["kind"] for row in rows} == {"alive"}
        takeover = successor.later(lambda: successor("take_over"))
        assert ground.waits(takeover)
    assert takeover.result() == []
    assert ground.task(held.id)["worker_id"] == late_one.worker_id
    assert ground.none("select from vidgen.workers where dead_at is not null")


def test_race_of_a_hold_as_balance_minus_a_sum(ground: Ground) -> None:
    """Three holds at once on a balance for one: a sum would not see the others' rows."""
    user = ground.user(PRICE + PRICE - 1)
    hands = [ground.worker() for _ in range(3)]
    tasks = [ground.held(hand, user_id=user) for hand in hands]
    with hands[0].holding():
        assert hands[0].about(tasks[0], "start_task")[0]["verdict"] == "held"
        late = [
            hand.later(lambda hand=hand, task=task: hand.about(task, "start_task"))  # type: ignore[misc]
            for hand, task in zip(hands[1:], tasks[1:], strict=True)
        ]
        assert all(ground.waits(one) for one in late)
    assert [one.result()[0]["verdict"] for one in late] == ["refused", "refused"]
    assert ground.credits(user) == (PRICE + PRICE - 1, PRICE)


def test_race_of_a_limit_by_a_bare_count(ground: Ground) -> None:
    """Two transactions of one user, each of which counts before the other commits."""
    user = ground.user()
    scene = ground.scene(user)
    ground.sql("update vidgen.settings set max_unfinished_per_user = 2")
    statement = f"insert into {TASKS} (scene_id) select %s from generate_series(1, 2)".encode()
    clients = [ground.hand(), ground.hand()]
    for client in clients:
        client.conn.execute("begin")
        client.conn.execute("set local role authenticated")
        client.conn.execute(
            "select set_config('request.jwt.claims',"
            " json_build_object('sub', %s::text, 'role', 'authenticated')::text, true)",
            [user],
        )
    clients[0].conn.execute(statement, [scene])
    late = clients[1].later(lambda: clients[1].conn.execute(statement, [scene]))
    assert ground.waits(late), "the second count must wait for the first transaction"
    clients[0].conn.execute("commit")
    with pytest.raises(psycopg.Error, match="limit reached: 2 unfinished tasks"):
        late.result()
    clients[1].conn.execute("rollback")
    assert ground.one(f"select count(*) as tasks from {TASKS}")["tasks"] == 2


def test_a_cancel_and_a_claim_of_one_task_do_not_both_win(ground: Ground) -> None:
    """The client has the row: the claim passes by. The claim has it: the client waits and asks."""
    worker, client = ground.worker(), ground.hand()
    task = ground.order()
    worker("line_up")
    cancel = f"select status from public.cancel_video_generation_task('{task}')".encode()
    with worker.holding():
        assert [row["id"] for row in worker("claim")] == [task]
        late = client.later(lambda: client.conn.execute(cancel).fetchone())
        assert ground.waits(late)
    assert late.result() == {"status": "processing"}
    assert ground.task(task)["cancel_requested_at"] is not None


def test_two_reports_of_many_tasks_do_not_deadlock(ground: Ground) -> None:
    """Batched statements lock in id order, whatever order the arrays have."""
    hand, twin = ground.worker(), ground.hand()
    twin.worker_id = hand.worker_id
    ground.orders(ground.user(), 20)
    held = hand.claim()
    ids, attempts = [h.id for h in held], [h.attempt for h in held]
    several: dict[str, Any] = {
        "progress": [36.0] * 20, "stage_progress": [1.0] * 20, "messages": ["at work"] * 20,
    }  # fmt: skip
    with hand.holding():
        hand("report", task_ids=ids[:10], attempts=attempts[:10], **{
            key: value[:10] for key, value in several.items()
        })  # fmt: skip
        late = twin.later(
            lambda: twin("report", task_ids=ids[::-1], attempts=attempts[::-1], **several)
        )
        assert ground.waits(late)
    late.result()
    row = ground.one(f"select count(*) as tasks from {TASKS} where progress = 36")
    assert row["tasks"] == 20


# Any interleaving.

REFUSALS = (
    errors.LockNotAvailable, errors.CheckViolation, errors.RaiseException, errors.UniqueViolation,
    errors.InFailedSqlTransaction,
)  # fmt: skip
"""What a statement may meet: somebody's lock, or a rule that holds. Nothing is written then."""


class Player:
    """A connection, what it believes to hold, and the transaction that it may have open."""

    def __init__(self, hand: Hand) -> None:
        self.hand = hand
        hand.conn.execute("set lock_timeout = '20ms'")
        self.open = False
        self.held: list[Held] = []
        self.fresh: list[Held] = []
        self.stale: list[Held] = []

    def commit(self) -> None:
        """Commit what is open; only now its claims are its own."""
        if self.open:
            self.hand.conn.execute("commit")
            self.open = False
        self.held += self.fresh
        self.fresh = []

    def rollback(self) -> None:
        """Undo what is open: its claims never happened, but it may still believe in them."""
        if self.open:
            self.hand.conn.execute("rollback")
            self.open = False
        self.stale += self.fresh
        self.fresh = []

    def act(self, name: str, **parameters: object) -> list[Row] | None:
        """Run a named query; None when it was refused and the transaction with it."""
        try:
            return self.hand(name, **parameters)
        except REFUSALS:
            self.rollback()
            return None

    def say(self, statement: str, *parameters: object) -> None:
        """Run any statement; a refusal ends the transaction."""
        try:
            self.hand.conn.execute(statement.encode(), parameters)
        except REFUSALS:
            self.rollback()
        except psycopg.Error as refused:
            if not str(refused.sqlstate).startswith("PT"):
                raise
            self.rollback()


players = st.integers(0, 2)
index = st.integers(0, 7)


class Interleavings(RuleBasedStateMachine):
    """Three workers and a client over four connections, on one database."""

    ground: Ground

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.tasks: list[UUID] = []
        self.ended: dict[UUID, tuple[Row, int]] = {}
        self.attempts: dict[UUID, int] = {}
        self.references = 0

    @initialize()
    def begin(self) -> None:
        """An empty database, three workers, two users with credits for three tasks each."""
        ground = self.ground
        ground.sql("alter table public.credit_entries disable trigger user")
        ground.sql(
            "truncate public.video_generation_tasks, vidgen.workers, vidgen.submissions,"
            " vidgen.turns, vidgen.arrivals, vidgen.resumes, vidgen.budgets, vidgen.checkpoints,"
            " vidgen.holds, vidgen.charges, public.user_credits, public.credit_entries"
        )
        ground.sql("alter table public.credit_entries enable trigger user")
        self.users = [ground.user(3 * PRICE) for _ in range(2)]
        self.scenes = [ground.scene(user) for user in self.users]
        hands = [self.stack.enter_context(Hand(ground.database.url)) for _ in range(4)]
        self.workers = [Player(hand.registered()) for hand in hands[:3]]
        self.client = Player(hands[3])

    def task(self, number: int) -> UUID | None:
        return self.tasks[number % len(self.tasks)] if self.tasks else None

    # The client.

    @rule(who=st.integers(0, 1), priority=st.integers(-1, 1))
    def order(self, who: int, priority: int) -> None:
        task_id = uuid4()
        self.tasks.append(task_id)
        self.client.say(
            f"insert into {TASKS} (id, user_id, scene_id, priority) values (%s, %s, %s, %s)",
            task_id, self.users[who], self.scenes[who], priority,
        )  # fmt: skip

    @rule(number=index, call=st.sampled_from(["cancel", "retry"]))
    def call(self, number: int, call: str) -> None:
        if task_id := self.task(number):
            self.client.say(f"select public.{call}_video_generation_task(%s)", task_id)

    @rule(number=index)
    def delete(self, number: int) -> None:
        if (task_id := self.task(number)) and number == 7:
            self.client.say(f"delete from {TASKS} where id = %s", task_id)

    @rule(who=st.integers(0, 1), again=st.booleans())
    def grant(self, who: int, *, again: bool) -> None:
        self.references += 0 if again else 1
        self.client.say(
            "select public.grant_video_credits(%s, 7, %s)",
            self.users[who], f"payment {self.references} {who}",
        )  # fmt: skip

    # Transactions.

    @rule(who=st.integers(0, 3))
    def hold_open(self, who: int) -> None:
        player = [*self.workers, self.client][who]
        if not player.open:
            player.hand.conn.execute("begin")
            player.open = True

    @rule(who=st.integers(0, 3), kept=st.sampled_from([True, True, False]))
    def close(self, who: int, *, kept: bool) -> None:
        player = [*self.workers, self.client][who]
        player.commit() if kept else player.rollback()

    # The workers.

    @rule(who=players)
    def line_up(self, who: int) -> None:
        self.workers[who].act("line_up")

    @rule(who=players, slots=st.integers(1, 3), query=st.sampled_from(["claim", "claim_cancelled"]))
    def claim(self, who: int, slots: int, query: str) -> None:
        player = self.workers[who]
        player.act("line_up")
        self._took(player, player.act(query, slots=slots, idle=not player.held))

    @rule(who=players)
    def take_over(self, who: int) -> None:
        player = self.workers[who]
        rows = player.act("take_over", slots=2, idle=not player.held)
        self._took(player, [row for row in rows or [] if row["kind"] == "taken"])

    def _took(self, player: Player, rows: list[Row] | None) -> None:
        player.fresh += [Held(row["id"], row["attempt"], row["worker_id"]) for row in rows or []]
        if not player.open:
            player.commit()

    @rule(who=players, number=index, ended_state=st.sampled_from(["succeeded"] * 3 + ["failed"]))
    def walk_on(self, who: int, number: int, ended_state: str) -> None:
        """The next step of a task that the worker holds, as the pipeline would take it."""
        player = self.workers[who]
        if player.held:
            held = player.held[number % len(player.held)]
            step, parameters = self._next(player, held)
            self._write(player, held, step, ended_state=ended_state, **parameters)

    def _next(self, player: Player, held: Held) -> tuple[str, dict[str, Any]]:
        try:
            rows = player.hand.conn.execute(
                "select c.stage, c.state, c.submission_id, c.generation_id, s.ended_at"
                "  from vidgen.checkpoints as c"
                "  join vidgen.submissions as s on s.id = c.submission_id"
                " where c.task_id = %s",
                [held.id],
            ).fetchall()
            hold = player.hand.conn.execute(
                "select 1 from vidgen.holds where task_id = %s and closed_at is null", [held.id]
            ).fetchone()
        except REFUSALS:
            player.rollback()
            return "requeue", {}
        reached = {row["stage"]: row for row in rows}
        done = {stage for stage, row in reached.items() if row["state"] == "done"}
        if hold is None:
            return "start_task", {
                "image_due": "image" not in done,
                "video_due": "video" not in done,
            }
        for stage in ("image", "video"):
            if stage in done:
                continue
            row = reached.get(stage)
            if row is None or (row["state"] == "submitting" and row["ended_at"] is not None):
                return "begin_submission", stage_of(stage) | {"submission_id": uuid4()}
            step = {
                "submitting": "answer_submission",
                "generating": "end_generation",
                "storing": "finish_stage",
            }[row["state"]]
            return step, stage_of(stage) | {
                "submission_id": row["submission_id"],
                "generation_id": row["generation_id"] or uuid4(),
            }
        return "complete", {}

    @rule(who=players, number=index, end=st.sampled_from(["requeue", "fail", "cancel"]))
    def conclude(self, who: int, number: int, end: str) -> None:
        player = self.workers[who]
        if player.held:
            held = player.held[number % len(player.held)]
            self._write(player, held, end)

    @rule(who=players, number=index, name=st.sampled_from(WRITES), stage=st.booleans())
    def zombie(self, who: int, number: int, name: str, *, stage: bool) -> None:
        """A late write of one that has lost its task, or only believes that it had it."""
        player = self.workers[who]
        if player.stale and not player.open:
            held = player.stale[number % len(player.stale)]
            self._write(player, held, name, **stage_of("image" if stage else "video"))

    def _write(self, player: Player, held: Held, name: str, **parameters: object) -> None:
        """Write, fenced; it may find its row only while the row is its own."""
        own = self._own(player, held)
        try:
            rows = player.hand.about(held, name, **parameters)
        except REFUSALS:
            player.rollback()
            return
        wrote = name != "report" and any(row.get("mine") is not False for row in rows)
        assert own or not wrote, f"{name} wrote about a task that was another's"

    def _own(self, player: Player, held: Held) -> bool:
        try:
            row = player.hand.conn.execute(
                f"select from {TASKS} where id = %s and attempt = %s and worker_id = %s"
                " and status = 'processing'".encode(),
                [held.id, held.attempt, held.worker_id],
            ).fetchone()
        except REFUSALS:
            player.rollback()
            return False
        return row is not None

    @rule(who=players, forgotten=st.integers(0, 5))
    def heartbeat(self, who: int, forgotten: int) -> None:
        """Sometimes a task is forgotten first: a coroutine that died."""
        player = self.workers[who]
        if player.open:
            return
        if forgotten == 0 and player.held:
            player.stale.append(player.held.pop())
        rows = player.act(
            "heartbeat", task_ids=[h.id for h in player.held],
            attempts=[h.attempt for h in player.held],
        )  # fmt: skip
        if rows is None:
            return
        lost = {(row["id"], row["attempt"]) for row in rows if row["kind"] == "lost"}
        player.stale += [h for h in player.held if (h.id, h.attempt) in lost]
        player.held = [h for h in player.held if (h.id, h.attempt) not in lost]
        if not any(row["kind"] == "alive" for row in rows):
            player.stale += player.held
            player.held = []
            player.hand.worker_id = uuid4()
            player.act("register_worker")

    @rule(who=players)
    def fall_silent(self, who: int) -> None:
        try:
            self.ground.sql("set lock_timeout = '20ms'")
            self.ground.silent(self.workers[who].hand.worker_id)
        except errors.LockNotAvailable:
            return

    @rule(who=players)
    def drain(self, who: int) -> None:
        player = self.workers[who]
        if not player.open and player.act("hand_back", task_ids=None) is not None:
            player.stale += player.held
            player.held = []

    @precondition(lambda self: bool(self.tasks))
    @rule()
    def time_goes_by(self) -> None:
        self.ground.sql("update vidgen.turns set due_at = now() where due_at < 'infinity'")

    # What must hold after every step, as everybody else sees it.

    @invariant()
    def the_books_agree(self) -> None:
        if not hasattr(self, "users"):
            return
        assert self.ground.books_balance()
        assert self.ground.none("select from public.user_credits where held < 0 or held > balance")

    @invariant()
    def a_stage_is_charged_once(self) -> None:
        assert self.ground.none(
            "select from public.credit_entries where kind = 'charge'"
            " group by task_id, stage having count(*) > 1"
        )
        assert self.ground.none(
            "select from public.credit_entries as e"
            "  full join vidgen.charges as c using (task_id, stage)"
            " where coalesce(e.kind, 'charge') = 'charge'"
            "   and (e.id is null or c.task_id is null)"
        )
        assert self.ground.none(
            "select from vidgen.charges as c"
            "  join vidgen.checkpoints as p using (task_id, stage) where p.state <> 'done'"
        )

    @invariant()
    def no_hold_is_orphaned(self) -> None:
        assert self.ground.none(
            f"select from vidgen.holds as h left join {TASKS} as t on t.id = h.task_id"
            " where h.closed_at is null"
            "   and coalesce(t.status, 'gone') not in ('pending', 'processing')"
        )

    @invariant()
    def what_has_ended_stays_and_attempts_only_rise(self) -> None:
        rows = self.ground.sql(
            "select t.id, t.status, t.attempt, to_jsonb(t) as row,"
            "       coalesce(b.retries, 0) as retries"
            f"  from {TASKS} as t left join vidgen.budgets as b on b.task_id = t.id"
        )
        for row in rows:
            assert row["attempt"] >= self.attempts.get(row["id"], 0)
            self.attempts[row["id"]] = row["attempt"]
            if row["id"] in self.ended:
                before, retries = self.ended[row["id"]]
                assert row["row"] == before or row["retries"] > retries
                del self.ended[row["id"]]
            if row["status"] in ("completed", "failed", "cancelled"):
                self.ended[row["id"]] = (row["row"], row["retries"])

    # At the end: everybody dies, one newcomer finds all that is left.

    def teardown(self) -> None:
        """Whatever happened, no waiting task is forgotten and all of it comes to an end."""
        try:
            if hasattr(self, "workers"):
                self._clear_up()
        finally:
            self.stack.close()

    def _clear_up(self) -> None:
        ground = self.ground
        for player in [*self.workers, self.client]:
            player.commit()
        ground.silent(*[player.hand.worker_id for player in self.workers])
        ground.sql("update vidgen.turns set due_at = now() where due_at < 'infinity'")
        with Hand(ground.database.url) as hand:
            newcomer = Player(hand.registered())
            for _ in range(60):
                for query in ("line_up", "take_over", "claim_cancelled", "claim"):
                    rows = newcomer.act(query, slots=3)
                    assert rows is not None
                    if query != "line_up":
                        self._took(newcomer, [r for r in rows if r.get("kind") != "lost"])
                while newcomer.held:
                    newcomer.act("fail", **newcomer.held.pop().fence)
        assert ground.none(f"select from {TASKS} where status in ('pending', 'processing')"), (
            "a waiting task was forgotten"
        )
        for name in cast("list[str]", ["the_books_agree", "no_hold_is_orphaned"]):
            getattr(self, name)()


@pytest.mark.slow
def test_any_interleaving_keeps_the_invariants(ground: Ground) -> None:
    machine = type("Machine", (Interleavings,), {"ground": ground})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("HYPOTHESIS_EXPLORE", "40")),
            stateful_step_count=50,
            deadline=None,
            derandomize="HYPOTHESIS_EXPLORE" not in os.environ,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
