"""The races that break the obvious design, by name; and any interleaving of the real SQL.

The machine at the end drives the queue's named queries over four real connections, with
transactions held open, committed and rolled back at random, zombies included. It repeats itself
from run to run; `HYPOTHESIS_EXPLORE=1` lets it look elsewhere.
"""

import os
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import errors

from tests.support.hands import (
    FENCED,
    OF_FILMS,
    OF_RENDERS,
    READS,
    UNFENCED_FACTS,
    Ground,
    Hand,
    Held,
    Row,
    stage_of,
)  # fmt: skip

TASKS = "public.video_generation_tasks"
LEFT = f"select from {TASKS} where status in ('pending', 'processing')"
PRICE = 30

LATE = [name for name in FENCED if name not in ("load_task", *OF_FILMS, *OF_RENDERS)]
"""What a zombie of the machine's, which has no films, writes late."""
WRITES = [name for name in FENCED if name not in READS]


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
        taken = [row["id"] for row in successor("take_over")]
        # Films have a claim of their own.
        assert taken == ([] if name in (*OF_FILMS, *OF_RENDERS) else [held.id])
        late = zombie.later(lambda: zombie.about(held, name))
        if name == "order_parts":
            # It gives up soon, whoever's lock it is, and comes again.
            with pytest.raises(errors.LockNotAvailable):
                late.result()
            late = zombie.later(list)
        # These two pass over what is locked; any other write waits, else it has not looked at it.
        waits = name not in ("report", "set_aside", "order_parts")
        assert ground.waits(late) is waits
        before = successor.conn.execute(
            f"select * from {TASKS} where id = %s".encode(), [held.id]
        ).fetchone()
        checkpoints = ground.sql("select * from vidgen.checkpoints order by stage")
        charges = ground.sql("select * from vidgen.charges")
        balances = ground.sql("select * from public.user_credits")
    rows = late.result()

    if name == "order_parts":
        rows = zombie.about(held, name)
    if name == "set_aside":
        # The fence could not be checked: only the lock is recorded.
        assert [row["became"] for row in rows] == ["processing"]
        rows = zombie.about(held, name)
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
            zombie("hand_back", task_ids=[held.id], attempts=[held.attempt])
        case "lost":
            ground.sql(
                "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)"
                " on conflict (task_id) do update set crashes = 2, suspect = true",
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
        assert hands[0].about(tasks[0], "start_task")[0]["funding"] == "held"
        late = [
            hand.later(lambda hand=hand, task=task: hand.about(task, "start_task"))  # type: ignore[misc]
            for hand, task in zip(hands[1:], tasks[1:], strict=True)
        ]
        assert all(ground.waits(one) for one in late)
    assert [one.result()[0]["funding"] for one in late] == ["refused", "refused"]
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


def test_a_stage_that_is_stored_during_a_probe_lets_its_gate_be_probed_again(
    ground: Ground,
) -> None:
    """The probe still saw the trouble, and would come again in minutes."""
    hand, prober = ground.worker(), ground.worker()
    held = ground.prepared(hand, "finish_stage")
    hand("note_trouble", task_id=held.id, user_id=ground.task(held.id)["user_id"])
    hand("close_gate", model="*", probe=timedelta(0))
    with prober.holding():
        (probe,) = prober("take_probe")
        assert hand.about(held, "finish_stage")[0]["troubled"]
        late = hand.later(lambda: hand("relieve"))
        assert ground.waits(late)
    late.result()
    assert ground.none("select from vidgen.troubles")
    assert [row["probes"] for row in prober("take_probe")] == [probe["probes"] + 1]


def test_a_gate_that_opens_and_one_that_is_relieved_wait_for_each_other_in_one_order(
    ground: Ground,
) -> None:
    hand, opener = ground.worker(), ground.worker()
    held = ground.prepared(hand, "finish_stage")
    hand("note_trouble", task_id=held.id, user_id=ground.task(held.id)["user_id"])
    hand("close_gate", model="*")
    with hand.holding():
        hand("relieve")
        opens = opener.later(lambda: opener("open_gate", model="*"))
        assert ground.waits(opens)
        # Had the other the gate's row by now, the two would wait for each other.
        hand.conn.execute("select from vidgen.gates for update nowait")
    assert opens.result()
    assert ground.none("select from vidgen.gates")


def test_a_report_passes_over_a_row_that_a_client_holds(ground: Ground) -> None:
    """One user's slow DELETE of a scene stops no other user's progress; that user's moves later."""
    hand, client = ground.worker(), ground.hand()
    ground.orders(ground.user(), 20)
    held = sorted(hand.claim(), key=lambda task: task.id)
    ids = [task.id for task in held]
    with client.holding():
        client.conn.execute(f"select 1 from {TASKS} where id = %s for update".encode(), [ids[9]])
        report = {
            "task_ids": ids[::-1], "attempts": [1] * 20, "progress": [36.0] * 20,
            "stage_progress": [1.0] * 20, "messages": ["at work"] * 20,
            "seconds_left": [None] * 20,
        }  # fmt: skip
        late = hand.later(lambda: hand("report", **report))
        assert not ground.waits(late)
        shown = ground.sql(f"select id from {TASKS} where progress = 36 order by id")
        assert [row["id"] for row in shown] == ids[:9] + ids[10:]
    hand("report", **report)
    row = ground.one(f"select count(*) as tasks from {TASKS} where progress = 36")
    assert row["tasks"] == 20


# Any interleaving.

REFUSALS = (
    errors.LockNotAvailable, errors.CheckViolation, errors.RaiseException, errors.UniqueViolation,
    errors.InFailedSqlTransaction,
)  # fmt: skip
"""The errors that a statement may meet: a lock, or a rule. Then nothing is written."""


BROKEN_LAWS = f"""
select 'balances, holds and ledger agree' as law
 where exists (select from vidgen.credit_discrepancies)
union all
select 'no more is held than there is'
 where exists (select from public.user_credits where held < 0 or held > balance)
union all
select 'a stage is charged once'
 where exists (select from public.credit_entries where kind = 'charge'
                group by task_id, stage having count(*) > 1)
union all
select 'the ledger and the charges name the same stages'
 where exists (select from public.credit_entries as e
                 full join vidgen.charges as c using (task_id, stage)
                where coalesce(e.kind, 'charge') = 'charge'
                  and (e.id is null or c.task_id is null))
union all
select 'what is charged is stored'
 where exists (select from vidgen.charges as c
                 join vidgen.checkpoints as p using (task_id, stage) where p.state <> 'done')
union all
select 'no hold is orphaned'
 where exists (select from vidgen.holds as h left join {TASKS} as t on t.id = h.task_id
                where h.closed_at is null
                  and coalesce(t.status, 'gone') not in ('pending', 'processing'))
"""
"""What must hold after every step, as everybody else sees it: the laws that do not."""


class Player:
    """A connection, what it believes to hold, and the transaction that it may have open."""

    def __init__(self, hand: Hand) -> None:
        self.hand = hand
        hand.conn.execute("set lock_timeout = '20ms'")
        self.open = False
        self.held: list[Held] = []
        self.fresh: list[Held] = []
        self.stale: list[Held] = []

    def begin(self) -> None:
        """Hold a transaction open from here on."""
        if not self.open:
            self.hand.conn.execute("begin")
            self.open = True

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


class Interleavings:
    """Three workers and a client over four connections, on one database."""

    def __init__(self, ground: Ground, stack: ExitStack) -> None:
        self.ground = ground
        self.tasks: list[UUID] = []
        self.ended: dict[UUID, tuple[Row, int]] = {}
        self.attempts: dict[UUID, int] = {}
        self.references = 0
        ground.sql("alter table public.credit_entries disable trigger user")
        ground.sql(
            "truncate public.video_generation_tasks, vidgen.workers, vidgen.submissions,"
            " vidgen.events, vidgen.turns, vidgen.arrivals, vidgen.resumes, vidgen.budgets,"
            " vidgen.checkpoints, vidgen.holds, vidgen.charges, public.user_credits,"
            " public.credit_entries, vidgen.parts, vidgen.films, vidgen.endings,"
            " public.video_renditions"
        )
        ground.sql("alter table public.credit_entries enable trigger user")
        self.users = [ground.user(3 * PRICE) for _ in range(2)]
        self.scenes = [ground.scene(user) for user in self.users]
        hands = [stack.enter_context(Hand(ground.database.url)) for _ in range(4)]
        self.workers = [Player(hand.registered()) for hand in hands[:3]]
        self.client = Player(hands[3])
        for who in (0, 1, 0, 1):
            self.order(who, priority=0)
        for player in self.workers:
            player.act("line_up")
            self._took(player, player.act("claim", slots=1))

    @property
    def players(self) -> list[Player]:
        """Everybody who may hold a transaction open."""
        return [*self.workers, self.client]

    def play(self, act: str, who: int, number: int, *, openly: bool) -> None:
        """One step of one actor; the invariants hold after every result."""
        match act:
            case "begin":
                self.players[who].begin()
            case "commit":
                self.players[who].commit()
            case "rollback":
                self.players[who].rollback()
            case "time":
                self.ground.sql("update vidgen.turns set due_at = now() where due_at < 'infinity'")
            case "order" | "ask to cancel" | "retry" | "delete" | "grant":
                self.client_asks(act, number, who % 2)
            case _:
                self.work(self.workers[who % 3], act, number, openly=openly)
        self.check()

    def work(self, player: Player, act: str, number: int, *, openly: bool) -> None:
        """One act of a worker."""
        match act:
            case "walk":
                self.walk_on(player, number, openly=openly)
            case "claim" | "claim_cancelled" | "take_over":
                player.act("line_up")
                asked = {"slots": 1 + number % 3, "idle": not player.held}
                rows = player.act(act, **asked)
                if act == "claim" and not rows:
                    rows = player.act("resume", **asked) or player.act(
                        "claim", **asked, resumed=True
                    )
                self._took(player, rows)
            case "zombie":
                self.zombie(player, number, openly=openly)
            case "generation fails":
                self.generation_fails(player, number)
            case "heartbeat":
                self.heartbeat(player, forgetful=number == 0)
            case "silent":
                self.fall_silent(player)
            case "drain":
                self.drain(player)
            case _:
                self.conclude(player, number, act, openly=openly)

    # The client.

    def client_asks(self, what: str, number: int, who: int) -> None:
        """An order, a call, a deletion, a payment."""
        task_id = self.tasks[number % len(self.tasks)]
        match what:
            case "order":
                self.order(who, priority=number % 3 - 1)
            case "grant":
                # Every second time under a reference that was used before.
                self.references += number % 2
                self.client.say(
                    "select public.grant_video_credits(%s, 7, %s)",
                    self.users[who], f"payment {self.references} {who}",
                )  # fmt: skip
            case "delete":
                self.client.say(f"delete from {TASKS} where id = %s", task_id)
            case "retry" | "ask to cancel":
                call = what.removeprefix("ask to ")
                self.client.say(f"select public.{call}_video_generation_task(%s)", task_id)
            case _:
                raise AssertionError(what)

    def order(self, who: int, priority: int) -> None:
        """A task of one of the two users."""
        task_id = uuid4()
        self.tasks.append(task_id)
        self.client.say(
            f"insert into {TASKS} (id, user_id, scene_id, priority) values (%s, %s, %s, %s)",
            task_id, self.users[who], self.scenes[who], priority,
        )  # fmt: skip

    # The workers.

    def _took(self, player: Player, rows: list[Row] | None) -> None:
        player.fresh += [
            Held(row["id"], row["attempt"], row["worker_id"])
            for row in rows or []
            if row.get("kind", "taken") == "taken" and not row["refused"]
        ]
        if not player.open:
            player.commit()

    def walk_on(self, player: Player, number: int, *, openly: bool) -> None:
        """Take the next steps of a task as the pipeline would; leave the last one open."""
        for left in range(number + 1, 0, -1):
            if not player.held:
                return
            held = player.held[number % len(player.held)]
            step, parameters = self._next(player, held)
            if openly and left == 1:
                player.begin()
            self._write(player, held, step, **parameters)

    def generation_fails(self, player: Player, number: int) -> None:
        """The provider ends a generation badly."""
        if player.held:
            held = player.held[number % len(player.held)]
            step, parameters = self._next(player, held)
            if step == "end_generation":
                self._write(player, held, step, **parameters | {"ended_state": "failed"})

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
            return "start_task", {}
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

    def conclude(self, player: Player, number: int, end: str, *, openly: bool) -> None:
        """End an attempt, or leave its end uncommitted."""
        if player.held:
            if openly:
                player.begin()
            self._write(player, player.held[number % len(player.held)], end)

    def zombie(self, player: Player, number: int, *, openly: bool) -> None:
        """A late write of one that has lost its task, or only believes that it had it."""
        if player.stale and not player.open:
            held = player.stale[number % len(player.stale)]
            name = LATE[(number + len(player.stale)) % len(LATE)]
            stage = {} if name == "report" else stage_of("image" if openly else "video")
            self._write(player, held, name, **stage)

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

    def heartbeat(self, player: Player, *, forgetful: bool) -> None:
        """Sometimes a task is forgotten first: a coroutine that died."""
        if player.open:
            return
        if forgetful and player.held:
            player.stale.append(player.held.pop())
        rows = player.act(
            "heartbeat", task_ids=[h.id for h in player.held],
            attempts=[h.attempt for h in player.held],
        )  # fmt: skip
        if rows is None:
            return
        lost = {(row["task_id"], row["attempt"]) for row in rows if row["kind"] == "lost"}
        player.stale += [h for h in player.held if (h.id, h.attempt) in lost]
        player.held = [h for h in player.held if (h.id, h.attempt) not in lost]
        if not any(row["kind"] == "alive" for row in rows):
            player.stale += player.held
            player.held = []
            player.hand.worker_id = uuid4()
            player.act("register_worker")

    def fall_silent(self, player: Player) -> None:
        """Let the last heartbeat of a worker be old."""
        try:
            self.ground.sql("set lock_timeout = '20ms'")
            self.ground.silent(player.hand.worker_id)
        except errors.LockNotAvailable:
            return

    def drain(self, player: Player) -> None:
        """Let a worker hand back all its tasks."""
        if not player.open and player.act("hand_back", task_ids=None) is not None:
            player.stale += player.held
            player.held = []

    # Invariants after every step, as another session sees them.

    def check(self) -> None:
        """Books, charges, holds, ends and attempts."""
        assert self.ground.sql(BROKEN_LAWS) == []
        self.what_has_ended_stays_and_attempts_only_rise()

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

    def clear_up(self) -> None:
        """After any history no waiting task is forgotten, and every task ends."""
        ground = self.ground
        for player in self.players:
            player.commit()
        ground.silent(*[player.hand.worker_id for player in self.workers])
        ground.sql("update vidgen.turns set due_at = now() where due_at < 'infinity'")
        with Hand(ground.database.url) as hand:
            newcomer = Player(hand.registered())
            for _ in range(60):
                for query in ("line_up", "take_over", "claim_cancelled", "resume", "claim"):
                    rows = newcomer.act(query, slots=3)
                    assert rows is not None
                    if query != "line_up":
                        self._took(newcomer, rows)
                while newcomer.held:
                    newcomer.act("fail", **newcomer.held.pop().fence)
                if ground.none(LEFT):
                    break
        assert ground.none(LEFT), "a waiting task was forgotten"
        self.check()


ACTS = (
    *["walk"] * 6, *["claim"] * 4, "claim_cancelled", "take_over", "take_over", "requeue",
    "requeue", "fail", "cancel", *["zombie"] * 3, "generation fails", "heartbeat", "heartbeat",
    "silent", "silent", "drain", "begin", *["commit"] * 4, "rollback", "time", "order", "order",
    "ask to cancel", "retry", "retry", "delete", "grant",
)  # fmt: skip
"""The possible next steps; a step that is listed more often happens more often."""


@pytest.mark.slow
def test_any_interleaving_keeps_the_invariants(ground: Ground) -> None:
    @settings(
        max_examples=int(os.environ.get("HYPOTHESIS_EXPLORE", "60")),
        derandomize="HYPOTHESIS_EXPLORE" not in os.environ,
        # To find the shortest way to a failure takes minutes: for who explores.
        phases=[Phase.generate, *([Phase.shrink] if "HYPOTHESIS_EXPLORE" in os.environ else [])],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(
            st.tuples(st.sampled_from(ACTS), st.integers(0, 3), st.integers(0, 7), st.booleans()),
            min_size=30,
            max_size=80,
        )
    )
    def play(acts: list[tuple[str, int, int, bool]]) -> None:
        with ExitStack() as stack:
            game = Interleavings(ground, stack)
            for act, who, number, openly in acts:
                game.play(act, who, number, openly=openly)
            game.clear_up()

    play()
