"""Fairness as a property: whatever happens in whatever order, users take turns and nobody is lost.

The queue's own statements run over several real connections: claims in transactions that stay open,
line_ups that stay open, claims held up between their snapshot and their first lock, clients that
hold rows, rows for later that become due. It repeats itself from run to run;
`HYPOTHESIS_EXPLORE=1000` lets it look elsewhere.

A turn is what one claim gives one user of the line: at most `ceil(slots / users in its line)` new
tasks. The line of a claim is the first `slots` users of `vidgen.turns` by `waiting_since` whose
turn no other transaction holds. What is resumed is no turn: it was begun in one.

What is asserted, and is as strong as it can be made:

- *One round.* Let a user have a due task that nobody holds, and be in the line. Until a claim gives
  it something, no other user gets more than one turn, however many tasks, workers and slots there
  are. Claims while another transaction holds the user's turn are not counted: that one is serving
  it. A claim that is in flight while others end sees the line as it was: what it gives is not
  counted, and who finds there only what another claim has just given it, has had its turn twice.
  Where a client holds a row, the user whose row it is has had its turn.
- *Work-conserving.* A claim that returns fewer tasks than it has slots for leaves nothing due and
  free behind, or says so.
- *A user's own order* is priority, run_after, created_at; what is resumed comes before what is new.
- *Nobody is starved.* When all transactions have ended, every due task is claimed, and at most two
  claims come back with nothing: who has nothing left leaves the line at once.
"""

import os
import random
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import ceil
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import errors

from tests.support.hands import HELD_UP_BY_ITS_PID, Ground, Hand, Held, Later, Row, stage_of
from vidgen_worker.database.pool import PLANNED_ONCE

TASKS = "public.video_generation_tasks"
WORKERS, USERS = 4, 4
IMPATIENT = "set lock_timeout = '10ms'"

AN_HOUR_GOES_BY = {
    TASKS: ("run_after", "created_at"),
    "vidgen.turns": ("due_at", "waiting_since"),
    "vidgen.arrivals": ("due_at",),
    "vidgen.resumes": ("resume_at",),
}


@dataclass
class Seen:
    """The data of a claim: the free part of the line in its order, and the rows it may take."""

    line: list[UUID]
    fresh: dict[UUID, Row]
    resumable: dict[UUID, Row]
    hindered: set[UUID]
    """Users with a due row that is locked."""

    def claimable(self) -> set[UUID]:
        """Every row that this claim could take if it had slots enough."""
        in_line = {task for task, row in self.fresh.items() if row["user_id"] in self.line}
        return in_line | set(self.resumable)

    def ready(self) -> set[UUID]:
        """Users of the line with a new task that is not locked."""
        return {row["user_id"] for row in self.fresh.values()} & set(self.line)


@dataclass
class Turn:
    """One claim, in the order in which the claims began; or users seen outside the line."""

    served: set[UUID]
    seen: Seen | None = None
    absent: set[UUID] = field(default_factory=set)
    undone: bool = False


class Player:
    """A worker's connection, what it holds, and what it has left open."""

    def __init__(self, hand: Hand) -> None:
        self.hand = hand
        hand.conn.execute(IMPATIENT)
        # In the same way as the worker's own claims.
        hand.conn.prepare_threshold = 0
        hand.conn.execute(PLANNED_ONCE)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget everything."""
        self.open = False
        self.held: list[Held] = []
        self.claimed: list[Held] = []
        self.turn: Turn | None = None
        self.stalled: Later | None = None

    @property
    def free(self) -> bool:
        """Whether it may begin something."""
        return not self.open and self.stalled is None

    def end(self, how: str) -> None:
        """Commit or roll back what is open; only then its claims are its own."""
        if self.open:
            self.hand.conn.execute(how.encode())
            self.open = False
        if how == "commit":
            self.held += self.claimed
        elif self.turn is not None:
            self.turn.undone = True
        self.claimed, self.turn = [], None


class Line:
    """Workers, a client, and users with tasks, on one database."""

    def __init__(self, ground: Ground, players: list[Player], client: Hand, idle: Hand) -> None:
        self.ground = ground
        self.players = players
        self.client = client
        self.idle = idle
        self.client_is_open = False
        self.names = [uuid4() for _ in range(USERS)]
        self.users = set(self.names)
        self.log: list[Turn] = []
        self.attempts: set[tuple[UUID, int]] = set()
        for player in players:
            player.begin_anew()
        with ground.admin.transaction():
            # Autovacuum gives way after a second.
            ground.sql("set local lock_timeout = '10s'")
            ground.sql(
                f"truncate {TASKS}, public.video_renditions, vidgen.films, vidgen.parts,"
                " vidgen.endings,"
                " vidgen.submissions, vidgen.turns, vidgen.arrivals,"
                " vidgen.resumes, vidgen.budgets, vidgen.checkpoints, vidgen.events, vidgen.holds,"
                " vidgen.charges"
            )

    def play(self, act: str, who: int, number: int) -> None:
        """One step of one actor."""
        player, user = self.players[who % WORKERS], self.names[who % USERS]
        match act:
            case "commit" | "rollback":
                self.end_one(player, act)
            case "go on":
                for one in self.players:
                    self.go_on(one)
            case "an hour goes by":
                self.an_hour_goes_by()
            case _ if act.startswith("client"):
                self.client_asks(act.removeprefix("client "), user, number)
            case _ if player.free:
                self.work(player, act, number, user)
            case _:
                pass
        self.note_who_is_absent()

    def end_one(self, player: Player, how: str) -> None:
        """This one ends what it has open, or another one does."""
        for one in sorted(self.players, key=lambda one: one is not player):
            if one.open:
                one.end(how)
                return

    def work(self, player: Player, act: str, number: int, user: UUID) -> None:
        """One act of a worker that has nothing open."""
        match act:
            case "claim":
                self.claim(player, slots=1 + number % 5, together=number % 2 == 1)
            case "claim openly":
                self.claim(player, slots=1 + number % 3, openly=True, together=number % 2 == 1)
            case "clear_line":
                player.hand("clear_line")
            case "claim haltingly":
                self.halt(player, slots=1 + number % 3)
            case "claim haltingly beside an arrival":
                # Slots for all that it sees: then it believes that nothing is left.
                self.halt(player, slots=40)
                self.arrive(user)
                if number % 2:
                    self.go_on(player)
            case "line_up openly":
                player.hand.conn.execute("begin")
                player.open = True
                self.line_up(player)
            case "end":
                self.end(player, number)
            case "requeue" | "requeue with a generation":
                self.requeue(player, number, living=act != "requeue")
            case _:
                raise AssertionError(act)

    # Clients.

    def client_asks(self, what: str, user: UUID, number: int) -> None:
        """One act of the application."""
        match what:
            case "inserts" | "inserts many" | "inserts for later" | "inserts openly":
                self.insert(what, user, number)
            case "holds" | "cancels":
                self.client_holds(what, number)
            case "ends":
                self.client_ends()
            case "retries":
                self.retry(number)
            case _:
                raise AssertionError(what)

    def insert(self, how: str, user: UUID, number: int) -> None:
        """Orders of one user, in one statement; perhaps in a transaction that stays open."""
        if how == "inserts openly" and not self.client_is_open:
            self.client.conn.execute("begin")
            self.client_is_open = True
        elif how == "inserts openly":
            return
        later = how == "inserts for later"
        self.client.conn.execute(
            f"insert into {TASKS} (user_id, priority, run_after)"
            " select %s, case when %s then 0 else (n + %s) %% 3 - 1 end,"
            "        case when %s then date_trunc('hour', now()) + interval '1 hour'"
            "             else now() end"
            "   from generate_series(1, %s) as n".encode(),
            [user, later, number, later, 12 if how == "inserts many" else 2],
        )

    def arrive(self, user: UUID) -> None:
        """One more order of the user with the fewest, merged into the line at once."""
        seen = self.look(self.idle)
        has = Counter(row["user_id"] for row in seen.fresh.values())
        least = min(seen.line, key=lambda one: has[one], default=user)
        self.ground.sql(f"insert into {TASKS} (user_id) values (%s)", least)
        other = next((one for one in self.players if one.free), None)
        if other is not None:
            self.line_up(other)

    def client_holds(self, how: str, number: int) -> None:
        """A client has the lock of a waiting row, or cancels it and has not committed."""
        found = self.waiting_rows()
        if self.client_is_open or not found:
            return
        task = found[number % len(found)]["id"]
        self.client.conn.execute("begin")
        self.client_is_open = True
        statement = (
            f"select 1 from {TASKS} where id = %s for update"
            if how == "holds"
            else "select 1 from public.cancel_video_generation_task(%s)"
        )
        try:
            self.client.conn.execute(statement.encode(), [task])
        except errors.LockNotAvailable:
            self.client_ends()

    def client_ends(self) -> None:
        """The client commits; after an error that rolls back."""
        if self.client_is_open:
            self.client.conn.execute("commit")
            self.client_is_open = False

    def retry(self, number: int) -> None:
        """Somebody tries a task again that has ended without a video."""
        ended = self.ground.sql(
            f"select t.id from {TASKS} as t left join vidgen.budgets as b on b.task_id = t.id"
            " where t.status in ('failed', 'cancelled') and coalesce(b.retries, 0) < 3"
            " order by t.created_at, t.id"
        )
        if ended:
            try:
                self.ground.sql(
                    "select public.retry_video_generation_task(%s)",
                    ended[number % len(ended)]["id"],
                )
            except errors.LockNotAvailable:
                return

    def an_hour_goes_by(self) -> None:
        """The clock alone: no trigger tells of rows that become due."""
        self.all_transactions_end()
        with self.ground.admin.transaction():
            self.ground.sql("set local session_replication_role = replica")
            for table, clocks in AN_HOUR_GOES_BY.items():
                earlier = ", ".join(f"{clock} = {clock} - interval '1 hour'" for clock in clocks)
                self.ground.sql(f"update {table} set {earlier}")

    # Workers.

    def line_up(self, player: Player) -> bool:
        """Whether it came through: it waits for a claim that has the turn of one with mail."""
        try:
            player.hand("line_up")
        except errors.LockNotAvailable:
            player.end("rollback")
            return False
        return True

    def claim(
        self, player: Player, slots: int, *, openly: bool = False, together: bool = False
    ) -> list[Row]:
        """A claim; judged at once by what it found.

        `openly` leaves its transaction open; `together` has line_up in the same one.
        """
        conn = player.hand.conn
        if not together and not self.line_up(player):
            return []
        if openly or together:
            conn.execute("begin")
            player.open = True
        if together and not self.line_up(player):
            return []
        seen = self.look(player.hand)
        rows = player.hand("claim", slots=slots)
        if not rows and player.hand.still_waiting()["resumable"]:
            rows = player.hand("resume", slots=slots)
            if not rows:
                rows = player.hand("claim", slots=slots, resumed=True)
        more = any(row.get("more", True) for row in rows) if rows else self.still_waiting(player)
        player.claimed = [Held(row["id"], row["attempt"], row["worker_id"]) for row in rows]
        player.turn = Turn(self.served(rows, seen), seen)
        self.log.append(player.turn)
        self.judge(rows, seen, slots, more=more)
        if not openly:
            player.end("commit")
        return rows

    def halt(self, player: Player, slots: int) -> None:
        """A claim that has its snapshot, and is then held up until it may go on."""
        if not self.line_up(player):
            return
        self.ground.sql("select pg_advisory_lock(%s)", player.hand.conn.info.backend_pid)
        player.hand.conn.execute("set lock_timeout = 0")
        player.stalled = player.hand.later(lambda: player.hand("claim", slots=slots))
        if not self.ground.waits(player.stalled):
            # The line is empty: the claim did not read the gates.
            self.go_on(player)

    def go_on(self, player: Player) -> None:
        """The claim took its tasks by an old snapshot."""
        if player.stalled is None:
            return
        resumable, before = set(self.look(self.idle).resumable), self.places()
        self.ground.sql("select pg_advisory_unlock(%s)", player.hand.conn.info.backend_pid)
        rows: list[Row] = player.stalled.result()
        player.stalled = None
        player.hand.conn.execute(IMPATIENT)
        player.held += [Held(row["id"], row["attempt"], row["worker_id"]) for row in rows]
        served = {row["user_id"] for row in rows if row["id"] not in resumable}
        moved = {user for user, place in self.places().items() if place != before.get(user)}
        self.log.append(Turn(served | moved))

    def end(self, player: Player, number: int) -> None:
        """A task comes to its end."""
        if not player.held:
            return
        held = player.held.pop(number % len(player.held))
        how = ("complete", "fail", "cancel")[number % 3]
        if how == "complete":
            player.hand.walk(held, "finish_stage", stage="video")
        player.hand.walk(held, how)

    def requeue(self, player: Player, number: int, *, living: bool) -> None:
        """Back to waiting, now or for later; with a generation it is resumed before all others."""
        if not player.held:
            return
        held = player.held.pop(number % len(player.held))
        if living:
            fresh = Held(held.id, held.attempt, held.worker_id)
            for step in ("begin_submission", "answer_submission"):
                player.hand.about(fresh, step, **stage_of("image"), max_submissions=99)
        later = "30 minutes" if number % 3 == 0 else "0"
        assert player.hand.about(held, "requeue", delay=later, failures=number % 2)

    def all_transactions_end(self) -> None:
        """No transaction is open any more."""
        self.client_ends()
        for player in self.players:
            self.go_on(player)
            player.end("commit")

    # Invariants.

    def look(self, hand: Hand) -> Seen:
        """The free rows of a claim that begins now; all its locks are released at once."""
        with hand.conn.transaction(force_rollback=True):
            return self._look(hand)

    def _look(self, hand: Hand) -> Seen:
        line = hand.conn.execute(
            "select user_id from vidgen.turns where waiting_since is not null"
            " order by waiting_since for update skip locked"
        ).fetchall()
        free = hand.conn.execute(
            "select t.id, t.user_id, t.priority, t.run_after, t.created_at,"
            "       exists (select from vidgen.resumes as r where r.task_id = t.id) as resumes"
            f"  from {TASKS} as t where t.status = 'pending' and t.run_after <= now()"
            "   for no key update of t skip locked".encode()
        ).fetchall()
        rows = {row["id"]: row for row in free}
        return Seen(
            [row["user_id"] for row in line],
            {task: row for task, row in rows.items() if not row["resumes"]},
            {task: row for task, row in rows.items() if row["resumes"]},
            {row["user_id"] for row in self.waiting_rows() if row["id"] not in rows},
        )

    def waiting_rows(self) -> list[Row]:
        """All due rows as everybody sees them, held or not."""
        return self.ground.sql(
            f"select t.id, t.user_id from {TASKS} as t where t.status = 'pending'"
            " and t.run_after <= now() and t.cancel_requested_at is null"
            " and not exists (select from vidgen.resumes as r where r.task_id = t.id)"
            " order by t.created_at, t.id"
        )

    def still_waiting(self, player: Player) -> bool:
        """The question of a worker whose claim was empty."""
        return player.hand.still_waiting()["waiting"] is True

    def served(self, rows: Iterable[Row], seen: Seen) -> set[UUID]:
        """Users to whom a claim gave something new."""
        return {row["user_id"] for row in rows if row["id"] in seen.fresh}

    def judge(self, rows: list[Row], seen: Seen, slots: int, *, more: bool) -> None:
        """One claim: its size, its shares, each user's own order, and what it left behind."""
        taken = {row["id"] for row in rows}
        assert len(taken) == len(rows) <= slots
        assert taken <= seen.claimable(), "it took what was held, or not yet due"
        left = seen.claimable() - taken
        assert more or len(taken) == slots or not left, "it left work behind and did not say so"
        if left & set(seen.resumable):
            assert not taken & set(seen.fresh), "new tasks came before those to be resumed"
        share = ceil(slots / max(1, min(len(seen.line), slots)))
        new = [seen.fresh[task] for task in taken & set(seen.fresh)]
        for user, count in Counter(row["user_id"] for row in new).items():
            assert count <= share, "one user had more than its share"
            last = max(own_order(row) for row in new if row["user_id"] == user)
            assert all(
                last <= own_order(seen.fresh[task])
                for task in left & set(seen.fresh)
                if seen.fresh[task]["user_id"] == user
            ), "a user's own order was not kept"

    def places(self) -> dict[UUID, object]:
        """Everybody's place in the line."""
        rows = self.ground.sql(
            "select user_id, waiting_since from vidgen.turns where waiting_since is not null"
        )
        return {row["user_id"]: row["waiting_since"] for row in rows}

    def note_who_is_absent(self) -> None:
        """A user who is not in the line waits for nothing, and begins anew later."""
        absent = self.users - self.places().keys()
        if absent:
            self.log.append(Turn(set(), absent=absent))

    def one_round(self) -> None:
        """No user has two turns while another waits for one."""
        had: dict[UUID, Counter[UUID]] = {user: Counter() for user in self.users}
        for turn in self.log:
            if turn.undone:
                continue
            for user in turn.served | turn.absent:
                had[user].clear()
            if turn.seen is None:
                continue
            for user in turn.seen.ready() - turn.served:
                if user in turn.seen.hindered:
                    had[user].clear()
                    continue
                had[user].update(turn.served)
                assert max(had[user].values(), default=0) <= 1, (
                    "a user had two turns while another one waited for its first"
                )

    def all_comes_to_an_end(self) -> None:
        """All transactions end, the clock goes on, and one worker finds everything."""
        self.an_hour_goes_by()
        due = {
            row["id"] for row in self.ground.sql(f"select id from {TASKS} where status = 'pending'")
        }
        player, found, empty = self.players[0], set[UUID](), 0
        slots = 1 + len(self.log) % 4
        while (rows := self.claim(player, slots=slots)) or self.still_waiting(player):
            found |= {row["id"] for row in rows}
            if not rows:
                empty += 1
                player.hand("clear_line")
            assert empty <= 2
            self.note_who_is_absent()
        assert found == due, "a waiting task was forgotten"


def own_order(row: Row) -> tuple[object, ...]:
    return (-row["priority"], row["run_after"], row["created_at"])


ACTS = (
    *["client inserts"] * 4, "client inserts many", *["client inserts for later"] * 3,
    "client inserts openly", "client holds", "client cancels", *["client ends"] * 2,
    "client retries", *["claim"] * 12, *["claim openly"] * 4, "claim haltingly",
    *["claim haltingly beside an arrival"] * 2, *["go on"] * 3, "line_up openly",
    *["commit"] * 3, "rollback", *["end"] * 3, *["requeue"] * 3,
    *["requeue with a generation"] * 3, "an hour goes by",
)  # fmt: skip
"""The possible next steps; a step that is listed more often happens more often."""


@pytest.mark.slow
def test_users_take_turns_in_any_interleaving(ground: Ground) -> None:
    ground.sql(HELD_UP_BY_ITS_PID)
    ground.sql(IMPATIENT)

    @settings(
        max_examples=int(os.environ.get("HYPOTHESIS_EXPLORE", "40")),
        derandomize="HYPOTHESIS_EXPLORE" not in os.environ,
        # To find the shortest way to a failure takes minutes: for who explores.
        phases=[Phase.generate, *([Phase.shrink] if "HYPOTHESIS_EXPLORE" in os.environ else [])],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    # A seed, not a list of acts: Hypothesis varies its own lists little, and most would be alike.
    # What it may shorten is the length.
    @given(st.integers(0, 2**32), st.integers(20, 70))
    def play(seed: int, length: int) -> None:
        chance = random.Random(seed)
        line = Line(ground, players, client, idle)
        for user in line.names:
            ground.sql(
                f"insert into {TASKS} (user_id) select %s from generate_series(1, %s)",
                user, chance.choice([0, 1, 2, 9]),
            )  # fmt: skip
        try:
            for _ in range(length):
                line.play(chance.choice(ACTS), chance.randrange(WORKERS), chance.randrange(10))
            line.all_comes_to_an_end()
            line.one_round()
        finally:
            client.conn.rollback()
            for player in players:
                line.go_on(player)
                player.hand.conn.rollback()

    with ExitStack() as stack:
        players = [
            Player(stack.enter_context(Hand(ground.database.url)).registered())
            for _ in range(WORKERS)
        ]
        client = stack.enter_context(Hand(ground.database.url))
        idle = stack.enter_context(Hand(ground.database.url))
        for hand in (client, idle):
            hand.conn.execute(IMPATIENT)
        play()
