"""Every named query: used, prepared without hints, allowed to its role, harmless when repeated."""

import json
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

import vidgen_worker
from tests.support.hands import FENCED, STAGE, USUAL, Ground
from tests.support.sources import numbered
from tests.support.states import STATES
from vidgen_worker.client.database import QUERIES as CLIENT_QUERIES
from vidgen_worker.database.pool import QUERIES
from vidgen_worker.database.statements import load_queries

PACKAGE = Path(vidgen_worker.__file__).parent


# Used, and understood by the server.


def test_every_query_of_the_worker_is_used_in_its_box() -> None:
    for box in ("queue", "admission"):
        text = "".join(path.read_text() for path in (PACKAGE / box).glob("*.py"))
        blocks = "".join(path.read_text() for path in (PACKAGE / box).glob("*.sql"))
        names = set(re.findall(r"^-- (\w+) --$", blocks, re.MULTILINE))
        assert names <= set(QUERIES)
        assert [name for name in sorted(names) if f'"{name}"' not in text] == []


def test_a_name_that_stands_in_two_files_is_refused() -> None:
    with pytest.raises(ValueError, match="stands there twice"):
        load_queries("queue", "queue")


def test_every_query_of_the_client_is_used() -> None:
    sources = [*(PACKAGE / "client").glob("*.py"), *(PACKAGE / "cli").glob("*.py")]
    text = "".join(path.read_text() for path in sources)
    assert [name for name in CLIENT_QUERIES if f'"{name}"' not in text] == []


def test_every_query_carries_its_sentence() -> None:
    for name, body in {**QUERIES, **CLIENT_QUERIES}.items():
        assert body.startswith("-- "), f"{name} begins without a comment that says what it is for"


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


TAKES_WHAT_IS_LEFT = ("claim",)
READS = (
    "heartbeats", "load_task", "load_film", "seconds_of_parts", "paid_submissions",
    "read_submission", "generation_times",
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


def test_a_worker_that_leaves_reads_only_running_rows(crowded: Ground) -> None:
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
