"""Every named query: used, prepared without hints, allowed to its role, harmless when repeated."""

import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

import vidgen_worker
from tests.support.hands import FENCED, STAGE, USUAL, Ground, Hand, let_go, refuse
from vidgen_worker.client.database import QUERIES as CLIENT_QUERIES
from vidgen_worker.database.pool import QUERIES

PACKAGE = Path(vidgen_worker.__file__).parent

Parameters = dict[str, Any]
Prepare = Callable[[Ground, Hand], Parameters]


# Used, and understood by the server.


def test_every_query_of_the_worker_is_used_by_the_queue() -> None:
    """One module speaks the queue's SQL."""
    queue = (PACKAGE / "queue" / "queue.py").read_text()
    assert [name for name in QUERIES if f'"{name}"' not in queue] == []


def test_every_query_of_the_client_is_used() -> None:
    sources = [*(PACKAGE / "client").glob("*.py"), *(PACKAGE / "cli").glob("*.py")]
    text = "".join(path.read_text() for path in sources)
    assert [name for name in CLIENT_QUERIES if f'"{name}"' not in text] == []


def test_every_query_carries_its_sentence() -> None:
    for name, body in {**QUERIES, **CLIENT_QUERIES}.items():
        assert body.startswith("-- "), f"{name} begins without a comment that says what it is for"


def numbered(query: str) -> tuple[str, list[str]]:
    """The query with $1, $2, … and the names they stand for."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return re.sub(r"%%|%\((\w+)\)s", number, query), names


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_is_prepared_without_type_hints(ground: Ground, name: str) -> None:
    """The server finds every parameter's type by itself: no value's Python type can matter."""
    body, _ = numbered(QUERIES[name])
    ground.sql("select 1")
    ground.admin.execute(f"prepare it as {body}".encode())
    types = ground.one("select parameter_types::text[] as types from pg_prepared_statements")
    assert "unknown" not in types["types"]


@pytest.mark.parametrize("name", CLIENT_QUERIES)
def test_a_query_of_the_client_is_prepared_without_type_hints(ground: Ground, name: str) -> None:
    body, _ = numbered(CLIENT_QUERIES[name])
    ground.admin.execute(f"prepare it as {body}".encode())


@pytest.mark.parametrize("name", QUERIES)
def test_the_worker_s_own_role_may_run_it(ground: Ground, name: str) -> None:
    """Planned and opened as `vidgen_worker`: a missing grant on a table or function is refused."""
    body, names = numbered(QUERIES[name])
    with ground.admin.transaction(force_rollback=True):
        ground.sql("set local role vidgen_worker")
        ground.admin.execute(f"prepare it as {body}".encode())
        nulls = f"({', '.join(['null'] * len(names))})" if names else ""
        ground.admin.execute(f"explain execute it{nulls}".encode())


# Twice.


def nothing(_: Ground, __: Hand) -> Parameters:
    return {}


def a_claimable_task(ground: Ground, hand: Hand) -> Parameters:
    ground.orders(ground.user(), 5)
    ground.order()
    hand("line_up")
    return {"slots": 3}


def tasks_to_go_on(ground: Ground, hand: Hand) -> Parameters:
    begun = [ground.held(hand, "start_task", *steps) for steps in (STAGE[:2], STAGE)]
    for held in begun:
        hand.about(held, "requeue")
    return {}


def a_line_of_cancelled_tasks(ground: Ground, hand: Hand) -> Parameters:
    waiting, gone = ground.order(), ground.order()
    ground.order(ground.task(gone)["user_id"], due=timedelta(hours=1))
    hand("line_up")
    ground.sql("select public.cancel_video_generation_task(%s)", gone)
    assert waiting != gone
    return {}


def arrivals(ground: Ground, _: Hand) -> Parameters:
    ground.orders(ground.user(), 5)
    ground.order(due=timedelta(hours=1))
    return {}


def held_lost_and_orphaned(ground: Ground, hand: Hand) -> Parameters:
    held, _orphan = ground.held(hand), ground.held(hand)
    return {"task_ids": [held.id, uuid4()], "attempts": [held.attempt, 1], "running": 2}


def a_waiting_cancel(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:2])
    hand.about(held, "requeue")
    ground.sql("select public.cancel_video_generation_task(%s)", held.id)
    return {}


def the_dead(ground: Ground, _: Hand) -> Parameters:
    dead = ground.worker()
    ground.held(dead)
    last = ground.held(dead, "start_task")
    ground.sql(
        "insert into vidgen.budgets (task_id, crashes, suspect) values (%s, 2, true)", last.id
    )
    ground.silent(dead.worker_id)
    return {}


def a_generation_nobody_follows(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:2])
    hand.about(held, "cancel")
    ground.sql("update vidgen.submissions set answered_at = now() - interval '1 hour'")
    return held.fence


def a_task_that_waits(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand)
    hand.about(held, "requeue", waiting=True)
    return held.fence


def held_tasks(ground: Ground, hand: Hand) -> Parameters:
    ground.held(hand)
    ground.held(hand, "start_task", *STAGE[:2])
    return {"task_ids": None}


def a_closed_gate(ground: Ground, hand: Hand) -> Parameters:
    hand("close_gate")
    ground.sql("update vidgen.gates set probe_at = now()")
    return {"probes": 0}


def gates_of_nobody(ground: Ground, hand: Hand) -> Parameters:
    hand("close_gate", scope="machine:gone", model="*")
    hand("close_gate", scope="key:key", model="*")
    ground.sql("update vidgen.gates set closed_at = now() - interval '2 hours'")
    return {}


def a_trouble(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task")
    user = ground.task(held.id)["user_id"]
    return {"task_id": held.id, "user_id": user}


def a_refusal_met_again(ground: Ground, hand: Hand) -> Parameters:
    user = ground.user()
    for _ in range(2):
        held = ground.held(hand, "start_task", *STAGE[:1], user_id=user)
        hand.about(held, "answer_submission", answer="refused", generation_id=None)
        ground.sql(
            "update vidgen.submissions set met_gate = 'key:key' where task_id <> %s", held.id
        )
    return {"task_id": held.id, "user_id": user, "scope": "key:key"}


def a_trouble_behind_a_gate(ground: Ground, hand: Hand) -> Parameters:
    hand("note_trouble", **a_trouble(ground, hand), model="gen4_image")
    hand("close_gate", model="*")
    return {}


def a_kept_output(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:3])
    hand("note_trouble", task_id=held.id, user_id=ground.task(held.id)["user_id"], model="kept")
    ground.sql('update vidgen.checkpoints set request = \'{"model": "kept"}\'')
    hand.about(held, "requeue", delay=timedelta(hours=1))
    return {}


def a_storm(ground: Ground, hand: Hand) -> Parameters:
    ground.order()
    ground.order()
    hand("line_up")
    return a_closed_gate(ground, hand)


def stale_rows(ground: Ground, hand: Hand) -> Parameters:
    ground.order()
    hand.claim()
    dead = ground.worker()
    ground.sql(
        "update vidgen.workers set dead_at = now() - interval '2 hours' where id = %s",
        dead.worker_id,
    )
    return {}


def a_task_that_was_locked(ground: Ground, hand: Hand) -> Parameters:  # noqa: ARG001
    ground.sql(
        "insert into vidgen.passed_over (task_id, until)"
        " values (gen_random_uuid(), now() - interval '2 hours')"
    )
    return {}


def another_keys_generation(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:2])
    return {**held.fence, "key_fingerprint": "another"}


def generations_left_alone(ground: Ground, hand: Hand) -> Parameters:
    """One whose task waits, and one that nobody follows, of a key that has gone."""
    a_generation_nobody_follows(ground, hand)
    hand.about(ground.held(hand, "start_task", *STAGE[:2]), "requeue")
    ground.sql(
        "update vidgen.submissions set account = 'old', key_fingerprint = 'old',"
        " sent_at = now() - interval '2 hours'"
    )
    ground.sql("update vidgen.resumes set followers = array['old', 'key:old']")
    return {}


def a_failure_with_a_cost(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:2])
    hand.about(held, "end_generation", ended_state="failed")
    ground.sql(
        "update vidgen.submissions"
        "   set ended_at = now() - interval '1 hour', cost_read_at = now() - interval '1 hour'"
    )
    return held.fence


def lost_slots(ground: Ground, hand: Hand) -> Parameters:
    """An unanswered submission of long ago, and the slot of a task that is gone."""
    hand("set_limit", model="gen4_image", max_generations=3)
    ground.held(hand, "start_task", *STAGE[:1])
    ground.held(hand)
    ground.sql("update vidgen.submissions set sent_at = now() - interval '1 hour'")
    ground.sql(
        "update vidgen.slots set taken_at = now() - interval '1 hour' where task_id is not null"
    )
    return {}


def refused_long_ago(ground: Ground, hand: Hand) -> Parameters:
    """Rows that refused to be claimed, whose pause is over: one for the last time, one not."""
    one, other = ground.order(), ground.order()
    refuse(ground, one, other)
    hand.claim()
    ground.sql("update vidgen.refusals set until = now()")
    ground.sql("update vidgen.refusals set tries = 8 where task_id = %s", other)
    let_go(ground)
    return {}


def an_owed_scene(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand)
    scene_id = ground.task(held.id)["scene_id"]
    with ground.hand().holding() as client:
        client.conn.execute("select from video_scenes where id = %s for update", [scene_id])
        assert hand.about(held, "start_task")[0]["scene_refused"].startswith("55P03")
    return {"scene_id": scene_id}


def unanswered_of_long_ago(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:1])
    hand.about(held, "fail")
    ground.sql("update vidgen.submissions set sent_at = now() - interval '1 hour'")
    return {}


def a_task_of_long_ago(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE)
    hand.about(held, "fail")
    user = ground.task(held.id)["user_id"]
    ground.sql("update public.user_credits set balance = balance + 1 where user_id = %s", user)
    with ground.admin.transaction():
        ground.sql("set local session_replication_role = replica")
        ago = "now() - interval '1 year'"
        ground.sql(f"update public.video_generation_tasks set completed_at = {ago}")
        ground.sql(f"update vidgen.submissions set sent_at = {ago}")
        ground.sql(f"update vidgen.holds set closed_at = {ago}")
        ground.sql(f"update public.credit_entries set created_at = {ago}")
    return {}


def an_upload_nobody_charges(ground: Ground, hand: Hand) -> Parameters:
    held = ground.held(hand, "start_task", *STAGE[:4])
    hand.about(held, "cancel")
    ground.sql("update vidgen.uploads set since = now() - interval '2 hours'")
    return {}


def an_upload_that_is_removed(ground: Ground, hand: Hand) -> Parameters:
    an_upload_nobody_charges(ground, hand)
    return {"upload_ids": [row["upload_id"] for row in hand("take_uploads")]}


def limits_to_read(_: Ground, hand: Hand) -> Parameters:
    hand("expect_limit")
    return {}


def a_rejection_of_long_ago(ground: Ground, _: Hand) -> Parameters:
    ground.sql(
        "insert into vidgen.rejections (user_id, digest, task_id, rejected_at)"
        " values (%s, 'digest', %s, now() - interval '2 days')",
        uuid4(), uuid4(),
    )  # fmt: skip
    return {}


STATES: Mapping[str, Prepare] = {
    "register_worker": nothing,
    "share_buckets": lambda *_: {"images_bucket": "other", "videos_bucket": "another"},
    "heartbeat": held_lost_and_orphaned,
    "line_up": arrivals,
    "claim": a_claimable_task,
    "resume": tasks_to_go_on,
    "still_waiting": a_claimable_task,
    "clear_line": a_line_of_cancelled_tasks,
    "claim_cancelled": a_waiting_cancel,
    "claim_trial": a_storm,
    "take_over": the_dead,
    "heartbeats": the_dead,
    "paid_submissions": a_generation_nobody_follows,
    "read_submission": a_generation_nobody_follows,
    "waited": a_task_that_waits,
    "close_generation": a_generation_nobody_follows,
    "stray_submissions": a_generation_nobody_follows,
    "costs_to_read_again": a_failure_with_a_cost,
    "is_gone": another_keys_generation,
    "stands_aside": nothing,
    "let_anyone_follow": generations_left_alone,
    "hand_back": held_tasks,
    "leave": nothing,
    "retry_refused": refused_long_ago,
    "is_troubled": a_trouble,
    "try_rows": nothing,
    "owed_scenes": an_owed_scene,
    "write_owed_scene": an_owed_scene,
    "give_up_submissions": unanswered_of_long_ago,
    "close_gate": nothing,
    "note_trouble": a_trouble,
    "meet_gate": a_refusal_met_again,
    "relieve": a_trouble_behind_a_gate,
    "try_kept": a_kept_output,
    "take_probe": a_closed_gate,
    "open_gate": a_closed_gate,
    "read_gates": a_closed_gate,
    "ask_limits": limits_to_read,
    "set_limit": lambda *_: {"model": "gen4_image", "max_generations": 3},
    "expect_limit": nothing,
    "free_slots": lost_slots,
    "sweep_workers": stale_rows,
    "sweep_gates": gates_of_nobody,
    "sweep_turns": stale_rows,
    "sweep_passed": a_task_that_was_locked,
    "sweep_limits": a_rejection_of_long_ago,
    "fleet": a_closed_gate,
    "take_duty": nothing,
    "take_uploads": an_upload_nobody_charges,
    "uploads_removed": an_upload_that_is_removed,
    "uploads_left": an_upload_nobody_charges,
    "forget_tasks": a_task_of_long_ago,
    "forget_holds": a_task_of_long_ago,
    "audit_entries": a_task_of_long_ago,
    "audit_users": a_task_of_long_ago,
    "note_audit": lambda *_: {"discrepancies": 3},
    "read_audit": nothing,
}
"""The state in which a query that carries no task's fence has something to do."""

TAKES_WHAT_IS_LEFT = ("claim",)
READS = (
    "heartbeats", "still_waiting", "load_task", "paid_submissions", "read_submission",
    "costs_to_read_again", "waited", "read_gates", "stands_aside", "fleet", "read_audit",
    "is_troubled", "try_rows", "uploads_left", "owed_scenes",
)  # fmt: skip
AS_BEFORE = ("register_worker",)
"""Found its work done at the first run: the hand had registered."""


def test_every_query_has_a_state_in_which_it_is_sent_twice() -> None:
    """A new query without a case here fails this test."""
    assert set(QUERIES) == set(STATES) | set(FENCED)


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_sent_twice_changes_nothing_more(ground: Ground, name: str) -> None:
    """Law 8: the acknowledgement was lost, the statement is sent again."""
    hand = ground.worker()
    if name in FENCED:
        held = ground.prepared(hand, name)
        parameters = {}
    else:
        held = None
        parameters = STATES[name](ground, hand)

    def send() -> list[dict[str, Any]]:
        if held is not None:
            return hand.about(held, name)
        return hand(name, **parameters)

    before = ground.dump()
    first = send()
    after = ground.dump()
    if name in READS:
        assert after == before
        assert first, "a read that finds nothing shows nothing"
    elif name not in AS_BEFORE:
        assert after != before, "the first run had nothing to do: the state is not realistic"
    second = send()
    if name in TAKES_WHAT_IS_LEFT:
        taken = [row["id"] for row in first + second]
        assert len(taken) == len(set(taken)) == 6
        send()
        after = ground.dump()
        assert send() == []
    assert ground.dump() == after


# Indexes: tens of thousands of rows, the planner free to choose.

ROWS = 30_000


@pytest.fixture
def crowded(ground: Ground) -> Ground:
    """Many rows of one user, many for later, many that have ended, some that run."""
    crowd, sleeper = ground.user(), ground.user()
    scene = ground.scene(crowd)
    hand = ground.worker()
    for _ in range(5):
        ground.held(hand, "start_task", *STAGE[:2])
    with ground.admin.transaction():
        ground.sql("alter table public.video_generation_tasks disable trigger user")
        for user, status, due in (
            (crowd, "pending", "0"), (sleeper, "pending", "1 day"), (None, "completed", "0"),
        ):  # fmt: skip
            ground.sql(
                "insert into public.video_generation_tasks (user_id, scene_id, status, attempt,"
                "  run_after, started_at, completed_at, video_path, progress)"
                " select coalesce(%s, gen_random_uuid()), %s, s.status, (s.ended)::integer,"
                "        now() + %s::interval, case when s.ended then now() end,"
                "        case when s.ended then now() end, case when s.ended then 'v' end,"
                "        case when s.ended then 100 else 0 end"
                "   from generate_series(1, %s), (select %s as status, %s as ended) as s",
                user, scene, due, ROWS, status, status == "completed",
            )  # fmt: skip
        ground.sql("alter table public.video_generation_tasks enable trigger user")
    ground.sql(
        "insert into vidgen.arrivals (user_id, lane, due_at)"
        " select user_id, 1, min(run_after) from public.video_generation_tasks"
        "  where status = 'pending' group by user_id"
    )
    hand("line_up")
    ground.sql("analyze")
    return ground


def planned(ground: Ground, name: str, **parameters: object) -> list[dict[str, Any]]:
    """Every node of the plan of a query, carried out and rolled back."""
    with ground.hand() as hand, hand.conn.transaction(force_rollback=True):
        worker_id = ground.one("select id from vidgen.workers limit 1")["id"]
        row = hand.conn.execute(
            f"explain (analyze, timing off, format json) {QUERIES[name]}".encode(),
            {**USUAL, "worker_id": worker_id, **parameters},
        ).fetchone()
    assert row is not None
    answer = row["QUERY PLAN"]
    nodes = []
    waiting = [(answer if isinstance(answer, list) else json.loads(answer))[0]["Plan"]]
    while waiting:
        node = waiting.pop()
        nodes.append(node)
        waiting += node.get("Plans", [])
    return nodes


TASKS = "video_generation_tasks"


def read_of_tasks(nodes: list[dict[str, Any]]) -> float:
    """How many rows of the tasks' table a plan looked at."""
    rows = [
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in nodes
        if node.get("Relation Name") == TASKS and node["Node Type"] != "ModifyTable"
    ]
    return float(sum(rows))


def indexes_of(nodes: list[dict[str, Any]]) -> set[str]:
    return {node["Index Name"] for node in nodes if "Index Name" in node}


def scanned(nodes: list[dict[str, Any]]) -> list[str]:
    """Big tables that were read from end to end."""
    return [
        node["Relation Name"]
        for node in nodes
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] == TASKS
    ]


RUNNING = {"video_generation_tasks_running", "video_generation_tasks_unfinished"}
"""Both hold the running rows only: the planner may take either where there are few."""


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("claim", {"video_generation_tasks_waiting"}),
        ("claim_cancelled", {"video_generation_tasks_to_cancel"}),
        ("take_over", RUNNING),
        ("heartbeat", RUNNING),
        ("hand_back", RUNNING),
    ],
)
def test_a_hot_query_uses_its_index_and_reads_few_rows(
    crowded: Ground, name: str, index: set[str]
) -> None:
    for worker in crowded.sql("select id from vidgen.workers"):
        crowded.silent(worker["id"])
    crowded.worker()
    nodes = planned(crowded, name, task_ids=[] if name == "heartbeat" else None)
    assert scanned(nodes) == []
    assert index & indexes_of(nodes)
    assert read_of_tasks(nodes) < 300


def test_leaving_reads_only_what_runs(crowded: Ground) -> None:
    """Any of the small indexes of running rows will do."""
    nodes = planned(crowded, "leave")
    assert scanned(nodes) == []
    assert read_of_tasks(nodes) < 300


def test_resumes_are_found_by_their_order(crowded: Ground) -> None:
    """Thousands wait to be resumed: the claim reads as many as it has slots for."""
    scene = crowded.scene(user := crowded.user())
    crowded.sql(
        "with made as (insert into public.video_generation_tasks (user_id, scene_id)"
        " select %s, %s from generate_series(1, 10000) returning id)"
        " insert into vidgen.resumes (task_id, user_id, lane, stage, resume_at)"
        " select id, %s, 1, 'video', now() from made",
        user, scene, user,
    )  # fmt: skip
    crowded.sql("analyze")
    nodes = planned(crowded, "resume")
    assert scanned(nodes) == []
    assert "resumes_in_order" in indexes_of(nodes)
    assert read_of_tasks(nodes) < 300


def test_the_limit_of_unfinished_tasks_is_counted_by_index(crowded: Ground) -> None:
    """Asked of the statistics of the transaction: the count runs inside a function."""
    user = crowded.one(
        "select user_id from public.video_generation_tasks where status = 'pending'"
        " and run_after <= now() group by user_id order by count(*) desc limit 1"
    )["user_id"]
    with crowded.hand() as hand, hand.conn.transaction(force_rollback=True):
        with pytest.raises(psycopg.Error) as refused, hand.conn.transaction():
            hand.conn.execute("select vidgen.check_limits(%s)", [user])
        assert refused.value.sqlstate == "PT429"
        row = hand.conn.execute(
            "select seq_scan, coalesce(idx_tup_fetch, 0) as fetched"
            "  from pg_stat_xact_user_tables where relname = %s",
            [TASKS],
        ).fetchone()
    assert row is not None
    assert row["seq_scan"] == 0
    assert row["fetched"] < 3_000, "it counts to the limit and no further"


def test_a_claim_stays_cheap_with_stale_statistics(crowded: Ground) -> None:
    crowded.sql("delete from pg_statistic where starelid = %s::regclass", f"public.{TASKS}")
    crowded.sql(
        "update pg_class set reltuples = 10, relpages = 1 where oid = %s::regclass",
        f"public.{TASKS}",
    )
    nodes = planned(crowded, "claim")
    assert read_of_tasks(nodes) < 300
