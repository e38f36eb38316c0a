"""The bench's parts on tiny sizes: that they run and mean what they say, never how fast it is."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import alone, film_queue, fleet, looks, races, views
from bench import run as bench_run
from bench.byhand import OutputError, check_clip, check_picture, open_by_hand
from bench.contenders import ALL, OURS, PEERS
from bench.drain import Hand, fence_of
from bench.ground import Ground, statement_name
from bench.lines import BrokenError, Process
from bench.table import BEGIN, END, FELT, between_markers, felt, table
from vidgen_worker.database.pool import QUERIES
from vidgen_worker.sandbox.runway import drawing, film

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench_ground() -> Iterator[Ground]:
    with Ground.start() as ground:
        yield ground


def test_the_server_is_durable_and_counts_statements(bench_ground: Ground) -> None:
    with bench_ground.site() as site:
        settings = site.sql(
            "select name from pg_settings where name in ('fsync', 'synchronous_commit',"
            " 'full_page_writes') and setting = 'on'"
        )
        assert len(settings) == 3
        bench_ground_statements = site.statements()
        assert bench_ground_statements == []


def test_what_operators_read_is_timed_to_the_last_page(
    bench_ground: Ground, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(views, "ROUNDS", 1)
    with bench_ground.site() as site:
        views.fill(site.admin_url, tasks=40, days=3, users=4, pending=3)
        views.measure(site.url)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len([*views.questions()]) + 1 + len(views.PAGES)
    assert all(line.endswith(" ms") for line in lines)


def test_our_pick_up_is_positive_and_counts_every_job(bench_ground: Ground) -> None:
    found = races.pick_up(bench_ground, jobs=3, rounds=1, who=(OURS,))
    assert found["vidgen-worker"]["n"] == 3
    assert 0 < found["vidgen-worker"]["p50_call"] <= found["vidgen-worker"]["p95_call"]


def test_our_pipelines_end_and_their_statements_have_names(bench_ground: Ground) -> None:
    found = races.pipelines(bench_ground, tasks=6, rounds=1, who=(OURS,))["vidgen-worker"]
    assert found["per_second"] > 0
    calls = {one["name"]: one["calls_per_task"] for one in found["runs"][0]["by_statement"]}
    assert calls["begin_submission"] == 2
    # The last of them ends the task: the worker may be stopped before its end is counted.
    assert calls["finish_stage"] == pytest.approx(2, abs=0.2)
    assert not {"begin_upload", "complete"} & calls.keys()


async def test_the_stages_by_hand_refuse_what_ours_would_not_store(
    bench_ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bench_ground.site() as site:
        for name, value in site.environment().items():
            monkeypatch.setenv(name, value)
        good, small, short = map(str, site.scenes(3, site.users(1)))
        spoil = "update public.video_scenes set {} = {} || ' [[wrong-size]]' where id = %s"
        site.sql(spoil.format("image_prompt", "image_prompt"), small)
        site.sql(spoil.format("visual_prompt", "visual_prompt"), short)
        async with open_by_hand() as by_hand:
            await by_hand.generate(good)
            with pytest.raises(OutputError, match="the picture is 960:540, not 1920:1080"):
                await by_hand.generate(small)
            with pytest.raises(OutputError, match="the clip is 640:360, not 1280:720"):
                await by_hand.generate(short)
        completed = site.sql("select id::text from public.video_scenes where status = 'completed'")
        assert [row["id"] for row in completed] == [good]
        stored = site.sql("select bucket_id from storage.objects order by bucket_id")
        # The still of the third is stored before its clip is asked for.
        assert [row["bucket_id"] for row in stored] == 2 * ["generated-content"] + ["video-files"]


def test_the_stages_by_hand_refuse_what_does_not_decode() -> None:
    picture = drawing.encoded(drawing.plain((1024, 1024)), "PNG")
    clip = film.plain_clip((960, 960), 2, "mp4")
    check_picture(picture, "1024:1024")
    check_clip(clip, "960:960")
    for noise in (picture[: len(picture) // 2], b"no picture" * 99):
        with pytest.raises(OutputError, match="the picture does not decode"):
            check_picture(noise, "1024:1024")
    for noise in (clip[: len(clip) // 2], b"no clip" * 99):
        with pytest.raises(OutputError, match=r"the clip (does not decode|is cut short)"):
            check_clip(noise, "960:960")


def test_holding_writes_one_heartbeat_for_all(bench_ground: Ground) -> None:
    found = alone.in_flight(bench_ground, tasks=5, seconds=1, poll="1h")
    assert found["tasks"] == 5
    assert found["by_statement"].get("report", 0) <= 2


def test_a_newcomer_is_next_behind_a_backlog(bench_ground: Ground) -> None:
    assert alone.turns(bench_ground, backlog=200)["place"] <= 1


def test_claims_are_measured_on_a_small_and_a_full_table(bench_ground: Ground) -> None:
    found = alone.level(bench_ground, finished=200, backlog=200, later=200, claims=3)
    assert found["small_ms"] > 0
    assert found["full_ms"] > 0
    assert found["stale_ms"] > 0


def test_one_insert_is_measured_with_and_without_triggers(bench_ground: Ground) -> None:
    found = alone.bulk_insert(bench_ground, rows=100, rounds=1)
    assert found["rows"] == 100
    assert found["ratio"] > 0


def test_a_claim_is_measured_before_and_after_a_held_snapshot(bench_ground: Ground) -> None:
    found = alone.held_snapshot(bench_ground, seconds=1, claims=3)
    assert found["tasks"] >= 5
    assert found["before_ms"] > 0
    assert found["after_ms"] > 0


@pytest.mark.slow
def test_the_provider_s_limit_holds_over_racing_workers(bench_ground: Ground) -> None:
    found = alone.limit(bench_ground, tasks=8, slots=2, workers=2)
    assert found["completed"] == 8
    assert found["generations"] >= 16
    assert (found["waited"], found["most_at_once"]) == (0, 2)


def test_processes_that_race_for_the_tasks_claim_none_twice(bench_ground: Ground) -> None:
    found = fleet.queue(bench_ground, tasks=120, processes=[1, 8])["runs"]
    for run in found.values():
        assert (run["claimed_twice"], run["not_completed"]) == (0, 0)
        assert run["per_second"] > 0


def test_the_statements_of_a_task_are_those_of_its_pipeline(bench_ground: Ground) -> None:
    """What the database alone is measured with is what a worker sends for a task."""
    whole = fleet.database(bench_ground, tasks=40, processes=[1])["runs"]["1"]
    assert whole["not_completed"] == 0
    assert whole["wal_bytes"] > 1000
    real = races.pipelines(bench_ground, tasks=9, rounds=1, who=(OURS,))["vidgen-worker"]
    often = {one["name"] for one in real["runs"][0]["by_statement"] if one["calls_per_task"] >= 0.9}
    # What a session is told belongs to its connection: here there are as many as tasks.
    sent = often & QUERIES.keys()
    with bench_ground.site() as site:
        scenes = site.scenes(1, site.users(1))
        site.sql(
            "insert into public.video_generation_tasks (id, scene_id, user_id)"
            " select s.id, s.id, s.user_id from public.video_scenes as s where s.id = %s",
            scenes[0],
        )
        site.forget_statements()
        hand = Hand(site.url)
        ((row,), _) = hand.claim()
        hand.task(fence_of(row), whole=True)
        hand.conn.close()
        drained = {row["name"] for row in site.statements()}
    assert sent <= drained


def test_the_disk_of_finished_tasks_is_measured_by_table(bench_ground: Ground) -> None:
    found = fleet.disk(bench_ground, tasks=1_000)
    assert found["bytes"].keys() == fleet.TABLES.keys()
    assert all(found["of_rows"][table] > 0 for table in fleet.TABLES)
    assert sum(found["bytes"].values()) == pytest.approx(found["bytes_per_task"], abs=10)


def test_a_worker_s_memory_files_and_connections_stay_flat(bench_ground: Ground) -> None:
    """The small form of 10,000 tasks: connections the same, files within what HTTP keeps alive."""
    found = fleet.flat(bench_ground, tasks=120, every=10)
    assert found["connections"][0] == found["connections"][1]
    assert found["processes"][0] == found["processes"][1]
    assert found["files"][1] <= found["files"][0] + 10
    assert found["mb"][1] <= found["mb"][0] * 1.1


@pytest.mark.slow
def test_large_clips_pass_through_little_memory(bench_ground: Ground) -> None:
    """Four at once, more than the process may hold in all."""
    found = fleet.streams(bench_ground, videos=4, clip_bytes=50_000_000)
    assert found["stored_mb"] >= 200
    assert found["worker_mb"] < 150
    assert found["worker_mb"] - found["idle_mb"] < 30


def test_a_look_at_a_clip_is_measured_as_it_is_and_conformed() -> None:
    found = looks.clip_memory(640, 360, 1)
    assert [found[way]["conformed"] for way in ("as_it_is", "conformed")] == [False, True]
    # Python and libav alone are some forty.
    assert 30 < found["as_it_is"]["mb"] < found["conformed"]["mb"] < 500


def test_a_process_that_breaks_is_no_result(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('out of order')"]
    with (
        Process(command, os.environ, tmp_path / "log", tmp_path) as process,
        pytest.raises(BrokenError, match="out of order"),
    ):
        process.until("ready")


def test_statements_are_known_by_their_block_without_their_values() -> None:
    bare = "\n".join(
        line for line in QUERIES["line_up"].splitlines() if not line.lstrip().startswith("--")
    )
    assert statement_name(bare.replace("2000", "$1").replace("500", "$2")) == "line_up"
    assert statement_name("select 1 from somewhere") == "select 1 from somewhere"


def test_films_are_drained_once_each_whoever_is_killed(bench_ground: Ground) -> None:
    found = film_queue.drained(bench_ground, 24, 2, 1, connections=2)
    assert film_queue.whole(found), found
    assert found["kills"] == 1
    assert not film_queue.whole({**found, "ended_twice": 1})
    took = film_queue.statements(bench_ground, 4)
    assert min(took["order_ms"], took["cancel_ms"], took["task_ms"], took["part_ms"]) > 0
    text = table(_found(film_queue=found, film_statements=took))
    assert "| 24 films of 2 parts a second, no HTTP, 2 connections, 1 of them killed |" in text
    assert "0 stuck, 0 failed, 0 twice |  |  | yes |" in text


def test_the_table_says_how_films_come_out() -> None:
    far = {"clip": "grain-4", "format": "mp4", "target": "good", "off": -4.0}
    rows = {
        "film_cpu": {
            "scenes": 3, "seconds": {"vidgen-worker": 14.04}, "vidgen-worker": {"cpu_seconds": 9.0},
            "ffmpeg": {"cpu_seconds": 10.0}, "moviepy": {"cpu_seconds": 36.0},
        },
        "film_memory": {"few_mb": 160.0, "many_mb": 200.0, "ratio": 1.25},
        "film_sizes": {"clips": [{"clip": "film-3", "ratio": 0.6}], "ratio": 0.6},
        "film_targets": {
            "outputs": [{**far, "near": False, "at_bound": False}], "near": 0, "share": 0.0,
        },
    }  # fmt: skip
    text = table(_found(**rows))
    assert "| 9 s | FFmpeg's command 10 s, MoviePy 36 s | 0.90, 0.25 | yes |" in text
    assert "1.25× (160 → 200 MB) |  |  | **no** |" in text  # noqa: RUF001 - as printed
    assert "the farthest -4.0 (grain-4, mp4, good) |  |  | **no** |" in text


def test_peers_are_pinned_and_ours_is_the_first() -> None:
    assert ALL[0] is OURS
    for peer in PEERS:
        assert all("==" in requirement for requirement in peer.requirements)


def _found(**rows: Any) -> dict[str, Any]:  # noqa: ANN401 - results are JSON
    return {
        "form": "quick", "at": "2026-11-22T18:00:00+00:00", "revision": "abc",
        "machine": {
            "cpu": "a processor", "cores": 2, "memory_gb": 24, "python": "3.11", "postgres": "18.1",
            "settings": {"fsync": "on", "synchronous_commit": "on"}, "load_before": 1.0,
        },
        "contenders": {"vidgen-worker": {"requirements": [], "settings": "defaults"}},
        "rows": rows,
    }  # fmt: skip


def test_the_table_says_where_another_one_is_better() -> None:
    pick_up = {"vidgen-worker": {"p50_call": 8.0}, "quick one": {"p50_call": 4.0}}
    text = table(_found(pick_up=pick_up))
    assert "2.00 (another one is better) | **no** |" in text
    assert "2026-11-22T18:00:00" in text


def test_the_table_adds_up_where_the_cores_go() -> None:
    ours = {
        "per_second": 30.0, "cpu_ms": 31.0, "postgres_cpu_ms": 12.0, "doubles_cpu_ms": 17.0,
        "statements": 12.0,
    }  # fmt: skip
    other = {**ours, "per_second": 20.0, "cpu_ms": 29.0, "doubles_cpu_ms": 16.0}
    text = table(_found(pipelines={"vidgen-worker": ours, "quick one": other}))
    assert "| … CPU of the worker per pipeline |  | 31.0 ms | quick one 29.0 ms |" in text
    assert "| … CPU of PostgreSQL per pipeline |  | 12.0 ms | quick one 12.0 ms |" in text
    assert "| … CPU of the doubles per pipeline |  | 17.0 ms | quick one 16.0 ms |" in text


def test_a_row_that_broke_is_shown_as_not_reached() -> None:
    assert "| outage | | did not finish" in table(_found(outage={"broken": "why"}))


def test_a_document_gets_the_table_between_its_markers() -> None:
    document = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert between_markers(document, "new\n") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="lacks the lines"):
        between_markers("no markers", "new")


def test_the_documents_have_the_table_of_the_kept_results() -> None:
    """The whole in docs/benchmark.md, what users feel in the README."""
    whole = table(json.loads((ROOT / "bench" / "results" / "full.json").read_text()))
    for name, text in (("docs/benchmark.md", whole), ("README.md", felt(whole))):
        document = (ROOT / name).read_text()
        assert document == between_markers(document, text), f"{name}: python -m bench.table --write"
    for begin in FELT[1:]:
        assert felt(whole).count(f"| {begin}") == 1, begin


def test_every_row_that_is_measured_is_in_the_table(bench_ground: Ground) -> None:
    from bench.table import ROWS  # noqa: PLC0415 - beside what it is compared with

    assert set(bench_run.rows(bench_ground, bench_run.QUICK)) == set(ROWS)


def test_kept_results_make_a_table() -> None:
    for file in (ROOT / "bench" / "results").glob("*.json"):
        assert table(json.loads(file.read_text())).count("\n") > 3, file


def test_the_bench_prints_its_help() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "bench.run", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "--quick" in said
