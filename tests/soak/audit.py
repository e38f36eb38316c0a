"""What must be true after a soak, asked of the database, the doubles and the logs alike.

Everything is read once, when the workers have gone; every sentence of `Report.violations` is one
promise broken. It repairs nothing and excuses nothing but what is named here.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.table import Table

from tests.soak.faults import (
    ANYBODYS_ENDS,
    PROVIDER_FAULTS,
    STORAGE_TROUBLES,
    TroubledStorage,
    fired_words,
)
from tests.soak.plan import Order
from tests.support.world import Row, World
from vidgen_worker.sandbox.runway.double import RunwayDouble
from vidgen_worker.sandbox.runway.generations import Generation, State

PRICES: Mapping[str, int] = {"image": 5, "video": 25}
CAP = 2
"""VIDGEN_MAX_SUBMISSIONS of the soak: the default."""
SLOTS = 24
"""Generations of a model at once over all workers: fewer than these want to run."""
MOST_SENTENCES = 10
"""Of one kind of violation."""

Pair = tuple[UUID, str]


@dataclass(frozen=True, slots=True)
class Report:
    """What happened, and what should not have."""

    happened: Mapping[str, int]
    fired: Mapping[str, int]
    violations: list[str]

    def show(self) -> None:
        """Print it as tables."""
        console = Console(width=100)
        for title, rows in (("What happened", self.happened), ("Faults that fired", self.fired)):
            table = Table(title=title)
            table.add_column("what")
            table.add_column("count", justify="right")
            for name, count in rows.items():
                table.add_row(name, str(count))
            console.print(table)
        for sentence in self.violations:
            console.print(f"VIOLATION {sentence}", style="red", markup=False)
        if not self.violations:
            console.print("Nothing lost, nothing paid twice: every promise held.", style="green")


@dataclass(frozen=True)
class Ledger:
    """Everything that was read."""

    orders: Mapping[UUID, Order]
    asked: set[UUID]
    tasks: list[Row]
    checkpoints: Mapping[Pair, Row]
    submissions: Mapping[Pair, list[Row]]
    charges: set[Pair]
    entries: list[Row]
    objects: Mapping[tuple[str, str], Row]
    uploads: frozenset[tuple[str, str]]
    generations: Mapping[Pair, list[Generation]]


def audit(  # noqa: PLR0913 - what happened, in its parts
    world: World, runway: RunwayDouble, storage: TroubledStorage, orders: list[Order],
    asked: set[UUID], *, happened: Mapping[str, int], strange: list[str], log: Path,
) -> Report:  # fmt: skip
    """Ask for everything that must be true."""
    ledger = _read(world, runway, orders, asked)
    words = fired_words(runway)
    fired = {f"provider: {fault.words}": words[fault.words] for fault in PROVIDER_FAULTS} | {
        f"storage: {trouble.name}": storage.fired[trouble.name] for trouble in STORAGE_TROUBLES
    }
    violations = [
        *strange,
        *(f"{name} never fired" for name, count in fired.items() if not count),
        *(f"there was no {name}" for name, count in happened.items() if not count),
        *_ends(ledger),
        *_money(ledger, world),
        *_generations(ledger, runway),
        *_admission(ledger, world),
        *_objects(ledger),
        *_leases(world),
        *_leavings(world),
        *_tracebacks(log),
    ]
    return Report({**happened, **_counts(ledger)}, fired, violations)


def _read(world: World, runway: RunwayDouble, orders: list[Order], asked: set[UUID]) -> Ledger:
    submissions: dict[Pair, list[Row]] = {}
    for row in world.sql("select * from vidgen.submissions order by sent_at"):
        submissions.setdefault((row["task_id"], row["stage"]), []).append(row)
    generations: dict[Pair, list[Generation]] = {}
    for generation in runway.generations.all.values():
        # The prompts are ours: "video of <task> ...".
        stage, _, task_id = generation.prompt.split()[:3]
        generations.setdefault((UUID(task_id), stage), []).append(generation)
    return Ledger(
        orders={order.task_id: order for order in orders},
        asked=asked,
        tasks=world.sql("select * from public.video_generation_tasks"),
        checkpoints={
            (row["task_id"], row["stage"]): row
            for row in world.sql("select * from vidgen.checkpoints")
        },
        submissions=submissions,
        charges={
            (row["task_id"], row["stage"]) for row in world.sql("select * from vidgen.charges")
        },
        entries=world.sql("select * from public.credit_entries where kind = 'charge'"),
        objects={(row["bucket"], row["name"]): row for row in world.storage.objects()},
        uploads=frozenset(
            (row["bucket"], row["path"])
            for row in world.sql("select bucket, path from vidgen.uploads")
        ),
        generations=generations,
    )


def _some(sentences: list[str]) -> list[str]:
    """The first ones, and how many there are."""
    if len(sentences) <= MOST_SENTENCES:
        return sentences
    return [*sentences[:MOST_SENTENCES], f"... and {len(sentences) - MOST_SENTENCES} more like it"]


def _ends(ledger: Ledger) -> list[str]:
    """Every row is terminal, and for a reason."""
    found = []
    if missing := len(ledger.orders) - len(ledger.tasks):
        found.append(f"{missing} tasks were not inserted")
    for row in ledger.tasks:
        order = ledger.orders[row["id"]]
        name = f"task {row['id']} ({order.fault.words if order.fault else 'no fault'})"
        match row["status"]:
            case "completed":
                for stage in PRICES:
                    checkpoint = ledger.checkpoints.get((row["id"], stage))
                    if checkpoint is None or checkpoint["state"] != "done":
                        found.append(f"{name} is completed, and its {stage} is not done")
            case "failed":
                ends = ANYBODYS_ENDS | (order.fault.ends if order.fault else frozenset())
                ends |= {"ROW_REFUSED"} if order.refuses else set()
                ends |= {"SCENE_NOT_FOUND"} if order.deletes_scene else set()
                if row["error_code"] not in ends:
                    found.append(f"{name} failed with {row['error_code']}: {row['message']}")
            case "cancelled":
                if row["id"] not in ledger.asked:
                    found.append(f"{name} is cancelled, and nobody asked")
            case status:
                found.append(f"{name} is still {status}: {row['message']}, {row['current_step']}")
    return _some(found)


def _money(ledger: Ledger, world: World) -> list[str]:
    """The ledger is the sum of what was delivered; nothing is held; the books balance."""
    found = [
        f"the books of user {row['user_id']} do not balance: {row}"
        for row in world.sql("select * from vidgen.credit_discrepancies")
    ]
    held = world.one("select coalesce(sum(held), 0) as held from public.user_credits")["held"]
    holds = world.one("select count(*) as open from vidgen.holds where closed_at is null")["open"]
    if held or holds:
        found.append(f"{holds} holds are open, over {held} credits")
    done = {pair for pair, row in ledger.checkpoints.items() if row["state"] == "done"}
    found += [f"the {stage} of task {task_id} is done and not charged"
              for task_id, stage in done - ledger.charges]  # fmt: skip
    found += [f"the {stage} of task {task_id} is charged and not done"
              for task_id, stage in ledger.charges - done]  # fmt: skip
    entered = Counter((row["task_id"], row["stage"]) for row in ledger.entries)
    found += [f"{pair} has {count} entries in the ledger" for pair, count in entered.items()
              if count != 1 or pair not in ledger.charges]  # fmt: skip
    charged = -sum(row["amount"] for row in ledger.entries)
    delivered = sum(PRICES[pair[1]] for pair in done if _delivered(ledger, pair))
    if charged != delivered:
        found.append(f"{charged} credits were charged, {delivered} credits' worth was delivered")
    return _some(found)


def _delivered(ledger: Ledger, pair: Pair) -> bool:
    """Whether the object of a checkpoint is there, with the bytes of its record."""
    checkpoint = ledger.checkpoints[pair]
    stored = ledger.objects.get((checkpoint["bucket"], checkpoint["path"]))
    return stored is not None and stored["sha256"] == checkpoint["sha256"]


def _generations(ledger: Ledger, runway: RunwayDouble) -> list[str]:
    """Within the cap; above one only what was ambiguous or lost; none left running."""
    found = []
    for pair, generations in ledger.generations.items():
        name = f"the {pair[1]} of task {pair[0]}"
        paid = [one for one in generations if _may_cost(one)]
        if len(paid) > CAP:
            found.append(f"{name} was generated {len(paid)} times, the cap is {CAP}")
        submissions = ledger.submissions.get(pair, [])
        recorded = {row["generation_id"]: row for row in submissions if row["generation_id"]}
        unknown = sum(row["answer"] in {None, "unknown"} for row in submissions)
        strangers = [one for one in generations if UUID(one.id) not in recorded]
        if len(strangers) > unknown:
            found.append(f"{name}: {len(strangers)} generations have no record, "
                         f"{unknown} submissions are unknown")  # fmt: skip
        followed = ledger.checkpoints.get(pair, {}).get("generation_id")
        wanted = [
            one for one in generations
            if UUID(one.id) in recorded and UUID(one.id) != followed
            and not _explained(recorded[UUID(one.id)])
        ]  # fmt: skip
        if followed is not None and wanted:
            found.append(f"{name}: {[one.id for one in wanted]} were paid beside {followed}")
        if followed is None and len(wanted) > 1:
            found.append(f"{name}: {[one.id for one in wanted]} were paid, and one was enough")
        for one in generations:
            row = recorded.get(UUID(one.id))
            if row is not None and row["ended_at"] is None:
                found.append(f"{name}: the end of generation {one.id} is not booked")
            if row is not None and runway.generations.state(one).is_unfinished:
                found.append(f"{name}: generation {one.id} still runs at the provider")
    for pair, submissions in ledger.submissions.items():
        there = {UUID(one.id) for one in ledger.generations.get(pair, [])}
        found += [f"submission {row['id']} names a generation that the provider has not"
                  for row in submissions if row["generation_id"] not in {None, *there}]  # fmt: skip
    return _some(found)


def _admission(ledger: Ledger, world: World) -> list[str]:
    """Never more in flight than there are slots, whoever was killed; and none kept for ever.

    Of what was answered: what began without an answer is guessed to be over after a while. A
    generation that the double forgets is over for us when it is gone for us.
    """
    found = []
    ours = {
        row["generation_id"] for rows in ledger.submissions.values() for row in rows
        if row["answer"] == "generation" and row["late_at"] is None
    }  # fmt: skip
    for stage in PRICES:
        lives = [
            (one.created, one.ends) for pair, generations in ledger.generations.items()
            for one in generations
            if pair[1] == stage and UUID(one.id) in ours and "gone" not in one.words
        ]  # fmt: skip
        steps = sorted([(began, 1) for began, _ in lives] + [(ended, -1) for _, ended in lives])
        most = max(accumulate(step for _, step in steps), default=0)
        if most > SLOTS:
            found.append(f"{most} {stage} generations were in flight at once, {SLOTS} may be")
    kept = world.sql(
        "select s.id from vidgen.slots as s left join vidgen.submissions as sent"
        "    on sent.id = s.submission_id"
        " where s.task_id is not null and (s.submission_id is null or sent.ended_at is not null)"
    )
    found += [f"slot {row['id']} is taken by nothing" for row in kept]
    return found


def _may_cost(generation: Generation) -> bool:
    """Whether the cap counts it: not what failed for nothing."""
    return not ("fail" in generation.words and generation.final_cost == 0)


def _explained(submission: Row) -> bool:
    """Whether a generation that nobody follows has a reason in our records."""
    return (
        submission["ended_state"] in {"failed", "gone", "cancelled", "undecodable"}
        or submission["late_at"] is not None
    )


def _objects(ledger: Ledger) -> list[str]:
    """No object without a record: a checkpoint's, or an upload's that is still to be removed."""
    recorded = {(row["bucket"], row["path"]) for row in ledger.checkpoints.values() if row["path"]}
    found = [f"the {stage} of task {task_id} is done, and its object is not there or another"
             for (task_id, stage), row in ledger.checkpoints.items()
             if row["state"] == "done" and not _delivered(ledger, (task_id, stage))]  # fmt: skip
    found += [f"{place} is in the record of a checkpoint, and not in Storage"
              for place in recorded - ledger.objects.keys()]  # fmt: skip
    found += [f"object {place} is neither charged nor remembered to be removed"
              for place in ledger.objects.keys() - recorded - ledger.uploads]  # fmt: skip
    found += [f"{place} is charged, and to be removed" for place in recorded & ledger.uploads]
    return _some(found)


def _leavings(world: World) -> list[str]:
    """Nothing lives on behind a task that has ended, and no place is held."""
    found = [
        f"the {row['stage']} of task {row['task_id']} is {row['state']}, the task {row['status']}"
        for row in world.sql(
            "select c.task_id, c.stage, c.state, t.status from vidgen.checkpoints as c"
            "  join public.video_generation_tasks as t on t.id = c.task_id"
            " where t.status in ('completed', 'failed', 'cancelled')"
            "   and c.state in ('submitting', 'generating')"
        )
    ]
    found += [
        f"submission {row['id']} of task {row['task_id']} is open, and nobody follows it"
        for row in world.sql(
            "select id, task_id from vidgen.submissions"
            " where ended_at is null and answer is distinct from 'unknown'"
        )
    ]
    found += [
        f"slot {row['id']} is still taken by task {row['task_id']}"
        for row in world.sql("select id, task_id from vidgen.slots where task_id is not null")
    ]
    found += [
        f"task {row['task_id']} is still set aside: {row['error']}"
        for row in world.sql(
            "select a.task_id, r.error from vidgen.set_aside as a"
            "  join vidgen.refusals as r on r.task_id = a.task_id"
        )
    ]
    return _some(found)


def _leases(world: World) -> list[str]:
    """Nobody holds anything."""
    return _some([
        f"worker {row['id']} still holds a lease after its drain"
        for row in world.sql(
            "select w.id from vidgen.workers as w join public.video_generation_tasks as t "
            "on t.worker_id = w.id"
        )
    ])  # fmt: skip


def _tracebacks(log: Path) -> list[str]:
    """No worker met anything that it did not expect."""
    found: Counter[str] = Counter()
    for line in log.read_text(errors="replace").splitlines():
        try:
            said: Any = json.loads(line)
        except ValueError:
            continue  # cut by a kill, or not of a worker
        if isinstance(said, dict) and said.get("exception"):
            told = said.get("error") or said.get("details")
            found[f"{said.get('event')}: {told}"[:300]] += 1
    return _some([f"the log has {count} times: {text}" for text, count in found.items()])


def _counts(ledger: Ledger) -> dict[str, int]:
    """The numbers to show."""
    ends = Counter(row["status"] for row in ledger.tasks)
    codes = Counter(row["error_code"] for row in ledger.tasks if row["error_code"])
    submissions = [row for rows in ledger.submissions.values() for row in rows]
    recorded = {(row["bucket"], row["path"]) for row in ledger.checkpoints.values() if row["path"]}
    paid = [sum(map(_may_cost, some)) for some in ledger.generations.values()]
    return {
        **{f"tasks {status}": count for status, count in sorted(ends.items())},
        **{f"  failed with {code}": count for code, count in sorted(codes.items())},
        "cancels asked": len(ledger.asked),
        "attempts": sum(row["attempt"] for row in ledger.tasks),
        "paid POSTs": len(submissions),
        "  without an answer": sum(row["answer"] == "unknown" for row in submissions),
        "  answered too late": sum(row["late_at"] is not None for row in submissions),
        "stages generated": len(paid),
        "  more than once": sum(count > 1 for count in paid),
        "  extra generations": sum(count - 1 for count in paid if count),
        "  cancelled at the provider": sum(
            one.state(0) is State.CANCELLED and one.cancelled is not None
            for some in ledger.generations.values()
            for one in some
        ),
        "stages delivered and charged": len(ledger.charges),
        "credits charged": -sum(row["amount"] for row in ledger.entries),
        "objects stored": len(ledger.objects),
        "  still to be removed": len(ledger.objects.keys() - recorded),
        "uploads not charged": len(ledger.uploads),
    }
