"""What the pages show and change, how they say what went wrong, and what they read for it."""

import json
import re
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.hands import Ground
from tests.support.panel import Panel, browser, dashboard_of, form_token, panel, sentence_of
from tests.support.proxy import proxy
from vidgen_worker.client.database import TookTooLongError
from vidgen_worker.dashboard import pages
from vidgen_worker.dashboard.ahead import Ahead
from vidgen_worker.dashboard.numbers import SPANS, numbers
from vidgen_worker.dashboard.pages import USERS
from vidgen_worker.dashboard.reads import PAGE, QUERIES, Reads, tasks
from vidgen_worker.database.statements import load_queries

__all__ = ["browser", "panel"]

ANY: dict[str, Any] = {"user_id": None, "status": None, "code": None, "since": None}


def places(panel: Panel) -> list[str]:
    """Every page with rows in it."""
    return [
        "/", "/tasks", "/tasks?status=failed&since=7d", f"/tasks?user={panel.user}",
        f"/tasks/{panel.completed}", f"/tasks/{panel.rejected}", f"/tasks/{panel.waiting}",
        f"/tasks/{panel.film}", f"/tasks/{panel.film}?show=poster",
        "/users", f"/users/{panel.user}", "/numbers", "/numbers?span=7d",
        f"/act?action=cancel&task={panel.waiting}&task={panel.rejected}",
        f"/act?action=retry&task={panel.cancelled}&task={panel.rejected}",
        "/gate?action=close&model=*",
    ]  # fmt: skip


# What they show.


def test_what_people_write_is_text_on_every_page(panel: Panel, browser: httpx.Client) -> None:
    shown = 0
    for place in places(panel):
        answer = browser.get(place)
        assert answer.status_code == 200, f"{place}: {sentence_of(answer)}"
        for markup in ("<script>window", "<img src=x", "onerror='", '" autofocus', "\u202e"):
            assert markup not in answer.text, f"{place} says {markup} as it came"
        assert " 49 " not in answer.text, f"{place}: a template in a text was evaluated"
        shown += "&lt;script&gt;window.hacked" in answer.text
    assert shown >= 6, "the hostile text is hardly anywhere: the test looks at nothing"


def test_a_task_tells_its_whole_story(panel: Panel, browser: httpx.Client) -> None:
    page = browser.get(f"/tasks/{panel.completed}").text
    for part in ("credits held", "submitted", "accepted", "stored", "charged", "30 charged",
                 "gen4_image", "rest of the hold released", "camera moves"):  # fmt: skip
        assert part in page
    assert f'src="/tasks/{panel.completed}/clip"' in page
    page = browser.get(f"/tasks/{panel.rejected}").text
    assert "CONTENT_REJECTED" in page
    assert "content rules rejected its scene" in browser.get(
        f"/act?action=retry&task={panel.rejected}"
    ).text  # fmt: skip


def test_pictures_come_from_the_store_for_an_hour(panel: Panel, browser: httpx.Client) -> None:
    for kind, begins in (("still", b"\x89PNG"), ("clip", b"\0\0\0")):
        answer = browser.get(f"/tasks/{panel.completed}/{kind}", follow_redirects=False)
        assert answer.status_code == 307
        assert answer.headers["location"].startswith(panel.world.storage.url)
        assert panel.world.storage.keys.service_role not in answer.headers["location"]
        assert httpx.get(answer.headers["location"]).content.startswith(begins)
        assert browser.get(f"/tasks/{panel.waiting}/{kind}").status_code == 404


def test_a_film_shows_its_parts_its_files_and_plays_one(
    panel: Panel, browser: httpx.Client
) -> None:
    place = f"/tasks/{panel.film}"
    page = browser.get(place).text
    assert f'href="/tasks/{panel.completed}"' in page.partition('id="parts"')[2]
    assert re.search(r"<video [^>]*src=\"[^\"]+/files/web\" poster=\"[^\"]+/files/poster\"", page)
    assert f'href="{place}?show=poster"' in page
    assert f'href="{place}/files/captions"' in page, "no browser shows it: it is only opened"
    assert re.search(r"<img src=\"[^\"]+/files/poster\"", browser.get(f"{place}?show=poster").text)
    for name, begins in (("web", b"\0\0\0"), ("poster", b"\xff\xd8"), ("captions", b"WEBVTT")):
        answer = browser.get(f"{place}/files/{name}", follow_redirects=False)
        assert answer.status_code == 307
        assert httpx.get(answer.headers["location"]).content.startswith(begins)
    assert browser.get(f"{place}/files/audio").status_code == 404, "it is not stored yet"
    assert browser.get(f"/tasks/{panel.completed}/files/web").status_code == 404
    page = browser.get(f"/tasks/{panel.completed}").text
    assert f'part of the film <a class="id" href="{place}"' in page
    assert re.search(r">film</span>", browser.get("/tasks?status=pending").text)


def test_an_id_is_found_whatever_it_is_the_id_of(panel: Panel, browser: httpx.Client) -> None:
    assert browser.get("/find", params={"id": f" {panel.completed} "}).url.path.startswith("/tasks")
    assert browser.get("/find", params={"id": str(panel.user)}).url.path.startswith("/users")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/tasks/nonsense", "is no id of a task"),
        ("/tasks/11111111-2222-4333-8444-555555555555", "There is no task"),
        ("/tasks?status=%3Cb%3E", "There is no status"),
        ("/tasks?since=1y", "is not one of the listed times"),
        ("/tasks?page=21", "pages 1 to 20"),
        ("/tasks?page=%C2%B2", "pages 1 to 20"),
        ("/tasks?user=%00", "is no id of a user"),
        ("/numbers?span=x", "There is no span"),
        ("/act?action=drop&task=1", "cancelled or retried"),
        ("/act?action=cancel", "No task is chosen"),
        ("/gate?action=close&model=nothing", "No worker makes anything"),
        ("/nowhere", "There is no page"),
    ],
)
def test_what_is_not_there_is_said_in_a_sentence_of(
    browser: httpx.Client, path: str, said: str
) -> None:
    answer = browser.get(path)
    assert answer.status_code in (400, 404)
    assert said in sentence_of(answer)
    assert "Traceback" not in answer.text


def test_the_numbers_are_those_of_the_tables(panel: Panel) -> None:
    reads = Reads(panel.world.database.url)
    made = panel.world.one(
        "select count(*) filter (where status = 'completed') as completed,"
        "       count(*) filter (where status = 'failed') as failed,"
        "       count(*) filter (where status = 'cancelled') as cancelled,"
        "       (select count(*) from vidgen.submissions) as submissions,"
        "       (select sum(coalesce(cost, estimated_cost)) from vidgen.submissions)"
        "         as provider_cost,"
        "       (select -sum(amount) from public.credit_entries where kind = 'charge')"
        "         as credits_charged"
        "  from public.video_generation_tasks"
    )
    assert made["completed"], "there is nothing to add up"
    for span in SPANS:
        values = numbers(reads, {"span": span}).values
        assert values["total"] == made, "what is over, and the running hour, each once"
        assert [row["code"] for row in values["codes"]] == ["CONTENT_REJECTED"]
        assert sum(row["submissions"] for row in values["models"]) == made["submissions"]
        assert "1 completed</title>" in values["made"]
    reads.close()


def test_what_is_over_is_read_before_somebody_looks(panel: Panel) -> None:
    reads = Reads(panel.world.database.url)
    ahead = Ahead(reads)
    ahead.start()
    assert ahead.has_read.wait(20)
    ahead.stop()
    fresh = Reads(panel.world.database.url)
    move = "update vidgen.submissions set sent_at = sent_at %s interval '1 day'"
    panel.world.sql(move % "-")
    try:
        sent = [numbers(one, {"span": "7d"}).values["steps"][1]["submissions"]
                for one in (reads, fresh)]  # fmt: skip
    finally:
        panel.world.sql(move % "+")
    assert sent[0] == 0, "it was read again"
    assert sent[1] > 0
    reads.close()
    fresh.close()


def test_of_many_users_the_first_are_shown_and_the_page_says_so(
    panel: Panel,
) -> None:
    panel.world.sql(
        "insert into public.video_generation_tasks (user_id)"
        " select gen_random_uuid() from generate_series(1, %s)", USERS + 50,
    )  # fmt: skip
    with dashboard_of(panel.world) as link, httpx.Client(follow_redirects=True) as client:
        client.get(link)
        page = client.get(f"{link.partition('/?')[0]}/users").text
    assert page.count('<td class="key"><a class="id"') == USERS + 1  # one of them is kept back
    assert f"The first {USERS}, by what they have running and waiting." in page
    panel.world.sql("delete from public.video_generation_tasks where scene_id is null")


# What they change.


def test_a_preview_says_the_price_and_the_form_does_it(panel: Panel, browser: httpx.Client) -> None:
    before = panel.world.credits(panel.user)
    preview = browser.get("/act", params={"action": "retry", "task": str(panel.cancelled)}).text
    assert re.search(r"charged up to <strong>30</strong> credits", preview)
    assert "is unknown: they were never submitted" in preview
    form = {"token": form_token(preview), "action": "retry", "task": str(panel.cancelled)}
    page = browser.post("/act", data=form, headers=panel.origin).text
    assert "It waits in the line again." in page
    assert panel.world.task(panel.cancelled)["status"] == "pending"
    # What an action changed is read again at once, whatever was kept.
    assert str(panel.cancelled) in browser.get("/tasks?status=pending").text
    both = [str(panel.cancelled), str(panel.completed)]
    form = {"token": form_token(preview), "action": "cancel", "task": both}  # type: ignore[dict-item]  # httpx takes lists
    page = browser.post("/act", data=form, headers=panel.origin).text
    assert "It is cancelled." in page
    assert "It had ended already: completed." in page
    assert panel.world.credits(panel.user) == before
    form = {"token": form_token(preview), "action": "retry", "task": str(panel.completed)}
    page = browser.post("/act", data=form, headers=panel.origin).text
    assert "not changed" in page
    assert "only a failed or cancelled task can be retried" in page


def test_a_retry_of_a_film_costs_what_its_failed_parts_cost_and_a_cancel_frees_all_holds(
    ground: Ground,
) -> None:
    hand = ground.worker()
    film = ground.held_film(hand, "order_parts", "wait_for_parts", outputs=["web"])
    part, _ = ground.parts(film.id)
    reads = Reads(ground.database.url)
    before, of_part = (
        reads.fresh("consequences", task_ids=[one])[0] for one in (film.id, part["id"])
    )
    assert (before["stages"], before["price"]) == (None, 0), "no part of it has failed"
    assert (before["held"], of_part["held"]) == (60, 30)
    with ground.admin.transaction():
        ground.sql("set local session_replication_role = replica")
        ground.sql(
            "update public.video_generation_tasks set status = 'cancelled', completed_at = now()"
            " where id = %s", part["id"],
        )  # fmt: skip
    after = reads.fresh("consequences", task_ids=[film.id])[0]
    assert (after["stages"], after["price"]) == ("image, video", of_part["price"])
    assert of_part["price"] == 30
    reads.close()


def test_a_gate_is_closed_and_opened(panel: Panel, browser: httpx.Client) -> None:
    form = {"token": form_token(browser.get("/gate?action=close&model=*").text), "model": "*"}
    page = browser.post("/gate", data={**form, "action": "close"}, headers=panel.origin)
    assert (page.url.path, "by hand" in page.text) == ("/", True)
    gate = {"model": "*", "scope": "*"}
    found = panel.world.sql("select model, scope from vidgen.gates where model = '*'")
    assert found == [gate]
    opened = {**form, "action": "open", "scope": "*"}
    assert browser.post("/gate", data=opened, headers=panel.origin).url.path == "/"
    assert panel.world.sql("select from vidgen.gates where model = '*'") == []
    again = browser.post("/gate", data=opened, headers=panel.origin)
    assert again.status_code == 409
    assert "open already" in sentence_of(again)


# When the database is away, and how much is read.


async def test_a_database_that_is_away_is_a_sentence_and_comes_back(panel: Panel) -> None:
    async with proxy(panel.world.database.url) as between:
        with dashboard_of(panel.world, database_url=between.url) as link:
            url = link.partition("/?")[0]
            async with httpx.AsyncClient(base_url=url, follow_redirects=True) as client:
                assert (await client.get(link)).status_code == 200
                between.cut()
                answer = await client.get("/users")
                assert answer.status_code == 503
                assert "database" in sentence_of(answer)
                assert "data-again" in answer.text
                password = between.url.partition("://")[2].partition("@")[0].partition(":")[2]
                assert password not in answer.text
                between.mend()
                assert (await client.get("/users")).status_code == 200


def test_a_statement_ends_after_two_seconds(panel: Panel) -> None:
    reads = Reads(panel.world.database.url)
    with panel.world.admin() as conn:
        conn.execute("begin; lock table public.video_generation_tasks in access exclusive mode")
        began = datetime.now(UTC)
        with pytest.raises(TookTooLongError, match="Ask for less"):
            reads.rows("waiting_by_lane")
        assert datetime.now(UTC) - began < timedelta(seconds=20)
        conn.execute("rollback")
    assert reads.rows("waiting_by_lane")
    reads.close()


def test_an_answer_is_read_once_in_ten_seconds_however_many_look(panel: Panel) -> None:
    clock = [100.0]
    reads = Reads(panel.world.database.url, lambda: clock[0])
    first = reads.rows("queue_health")
    same: list[bool] = []
    threads = [
        threading.Thread(target=lambda: same.append(reads.rows("queue_health") is first))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 8
    clock[0] += 9.9
    assert reads.rows("queue_health") is first
    clock[0] += 0.2
    second = reads.rows("queue_health")
    assert second is not first
    reads.act("open_gate", model="none", scope=None)
    assert reads.rows("queue_health") is not second
    reads.close()


def test_pages_of_tasks_leave_none_out_and_show_none_twice(ground: Ground) -> None:
    """All rows of one INSERT have one time, and what ends in one statement as well."""
    user = ground.user()
    ground.orders(user, 2 * PAGE + 7)
    ground.orders(ground.user(), PAGE)
    ground.sql(
        "update public.video_generation_tasks set status = 'cancelled', completed_at = now()"
        " where id in (select id from public.video_generation_tasks order by id limit %s)",
        PAGE + 3,
    )  # fmt: skip
    reads = Reads(ground.database.url)
    for chosen in (ANY, {**ANY, "status": "pending"}, {**ANY, "status": "cancelled"},
                   {**ANY, "user_id": user}):  # fmt: skip
        seen: list[object] = []
        more, page = True, 0
        while more:
            page += 1
            rows, more = tasks(reads, chosen, page)
            seen += [row["id"] for row in rows]
        wanted = ground.sql(
            "select id from public.video_generation_tasks"
            " where status = coalesce(%s, status) and user_id = coalesce(%s, user_id)",
            chosen["status"], chosen["user_id"],
        )  # fmt: skip
        assert len(seen) == len(set(seen))
        assert set(seen) == {row["id"] for row in wanted}
    reads.close()


def test_every_statement_is_used_and_carries_its_sentence_of() -> None:
    own = load_queries("dashboard")
    text = "".join(file.read_text() for file in Path(pages.__file__).parent.glob("*.py"))
    assert [name for name in own if f'"{name}"' not in text] == []
    assert [name for name, body in own.items() if not body.startswith("-- ")] == []


ENDED = 10_000
BIG = ("video_generation_tasks", "submissions", "holds", "credit_entries", "charges", "checkpoints")


@pytest.fixture
def full(ground: Ground) -> Ground:
    """Many tasks that ended in a month, with what they left; some that wait."""
    user = ground.user()
    ground.orders(user, 500)
    with ground.admin.transaction():
        ground.sql("set local session_replication_role = replica")
        ground.sql(
            "insert into public.video_generation_tasks"
            " (user_id, status, attempt, progress, error_code, error_message, error, video_path,"
            "  created_at, started_at, completed_at)"
            " select gen_random_uuid(), s, 1, 100, case when s = 'failed' then 'X' end,"
            "        case when s = 'failed' then 'x' end,"
            "        case when s = 'failed' then '{}'::jsonb end, 'v', at - interval '3 minutes',"
            "        at - interval '2 minutes', at"
            "   from (select case when g %% 20 = 0 then 'failed' else 'completed' end as s,"
            "                now() - interval '30 days' * g / %s as at"
            "           from generate_series(1, %s) as g) as ended",
            ENDED, ENDED,
        )  # fmt: skip
        ground.sql(
            "insert into vidgen.submissions"
            " (id, task_id, user_id, stage, attempt, worker_id, provider, key_fingerprint, model,"
            "  fingerprint, sent_at, answer, answered_at, generation_id, cost, ended_state,"
            "  ended_at, billed)"
            " select gen_random_uuid(), id, user_id, 'video', 1, id, 'runway', 'k', 'gen4_turbo',"
            "        'x', started_at, 'generation', started_at, gen_random_uuid(), 25, 'succeeded',"
            "        completed_at, true"
            "   from public.video_generation_tasks where completed_at is not null"
        )
        ground.sql(
            "insert into vidgen.holds (task_id, user_id, prices, amount, opened_at, closed_at)"
            " select id, user_id, '{}', 0, started_at, completed_at"
            "   from public.video_generation_tasks where completed_at is not null"
        )
        ground.sql(
            "insert into public.credit_entries (user_id, kind, amount, task_id, stage, created_at)"
            " select user_id, 'charge', -25, id, 'video', completed_at"
            "   from public.video_generation_tasks where completed_at is not null"
            "  order by completed_at"
        )
    ground.sql("vacuum analyze")
    return ground


def test_no_statement_of_a_page_reads_what_has_ended_from_end_to_end(full: Ground) -> None:
    """Looked at in the plans: a table that grows with what has ended is never scanned."""
    ended = full.one(
        "select id, user_id from public.video_generation_tasks where status = 'failed' limit 1"
    )
    day = timedelta(days=1)
    last_day = {"since": day, "most": 1000}
    stretch = {
        "length": timedelta(hours=1),
        "since": datetime.now(UTC) - day,
        "until": datetime.now(UTC),
    }
    any_task = {"status": None, "code": None, "since": None, "limit": PAGE + 1, "most": 1000}
    of_task, of_user = {"task_id": ended["id"]}, {"user_id": ended["user_id"]}
    asked: dict[str, dict[str, Any]] = {
        "waiting_by_lane": {}, "what_waits": {}, "in_flight_by_stage": {}, "provider_slots": {},
        "task": of_task, "story_of_task": of_task,
        "submissions_of_task": of_task, "checkpoints_of_task": of_task, "money_of_task": of_task,
        "order_of_task": of_task, "refusal_of_task": of_task, "user_credits": of_user,
        "limits_of_user": of_user, "usage_of_user": of_user, "time_to_end": last_day,
        "codes_since": last_day, "time_of_generations": last_day, "ended_by_step": stretch,
        "submitted_by_step": stretch, "charged_by_step": stretch,
        "ended_tasks": {**any_task, "status": "failed", "code": "X"},
        "waiting_tasks": any_task,
        "running_tasks": any_task,
        "tasks_of_user": {**any_task, "user_id": ended["user_id"]},
        "credit_entries_of_user": {"user_id": ended["user_id"], "limit": 50},
        "users_now": {"limit": 100},
        "consequences": {"task_ids": [ended["id"]]},
    }  # fmt: skip
    assert set(load_queries("dashboard")) <= set(asked)
    for name, parameters in asked.items():
        answer = full.admin.execute(
            f"explain (analyze, timing off, format json) {QUERIES[name]}".encode(), parameters
        ).fetchone()
        assert answer is not None
        plan = answer["QUERY PLAN"]
        waiting = [(plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]]
        while waiting:
            node = waiting.pop()
            waiting += node.get("Plans", [])
            read = node.get("Relation Name")
            if read in BIG:
                rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                assert node["Node Type"] != "Seq Scan" or rows < 1000, f"{name} scans {read}"
                assert rows * node["Actual Loops"] < ENDED / 4, f"{name} reads {rows} of {read}"


def test_a_task_for_later_is_not_said_to_be_in_line(panel: Panel, browser: httpx.Client) -> None:
    user = panel.world.user()
    task = panel.world.order(user, panel.world.scene(user))
    panel.world.sql(
        "update video_generation_tasks set run_after = now() + interval '50 hours' where id = %s",
        task,
    )
    page = browser.get(f"/users/{user}").text
    assert re.search(r"due <time [^>]+>in 2 d [12] h</time>", page)
    assert "in line" not in page
