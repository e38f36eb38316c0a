"""Deliveries in PostgreSQL: written with the event, taken by turns, booked under their fence."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.support.clients import as_user
from tests.support.hands import Ground, Hand, Row, refuse

URL = "https://example.com/hook"


def webhook(ground: Ground, *events: str, user_id: UUID | None = None, tested: bool = True) -> UUID:
    """A webhook of the operator's, or of a user."""
    wanted = list(events or ("video.*", "film.*"))
    if user_id is not None:
        ground.sql("update vidgen.settings set user_webhooks = true")
        (row,) = as_user(
            ground, user_id, "select public.create_video_webhook(%s, %s) ->> 'id' as id",
            URL, wanted,
        )  # fmt: skip
    else:
        (row,) = ground.sql(
            "select public.create_video_webhook(%s, %s) ->> 'id' as id", URL, wanted
        )
    made = UUID(row["id"])
    if tested:
        with ground.worker() as hand:
            (test,) = take(hand)
            assert book(hand, test) == "delivered"
    return made


def take(hand: Hand, places: int = 20) -> list[Row]:
    return hand("take_deliveries", places=places, lease=timedelta(seconds=60))


def book(hand: Hand, row: Row, **said: Any) -> str:  # noqa: ANN401 - parameters
    given = {
        "webhook_id": row["webhook_id"], "id": row["id"], "try_number": row["try"], "arrived": True,
        "status": 204, "error": None, "pause": None, "gone": False,
    }  # fmt: skip
    (answer,) = hand("book_delivery", **given | said)
    return str(answer["follows"])


def fail(hand: Hand, row: Row, **said: Any) -> str:  # noqa: ANN401 - parameters
    given = {"arrived": False, "status": 500, "pause": timedelta(seconds=5)}
    return book(hand, row, **given | said)


def ended(ground: Ground, hand: Hand, *, code: str = "GENERATION_FAILED") -> UUID:
    held = ground.held(hand)
    hand.about(held, "fail", code=code)
    return held.id


def deliveries(ground: Ground) -> list[Row]:
    return ground.sql(
        "select * from vidgen.deliveries where event <> 'webhook.test' order by created_at"
    )


def test_an_end_is_told_in_its_own_transaction(ground: Ground) -> None:
    of_all, hand = webhook(ground), ground.worker()
    task = ground.held(hand)
    ground.sql("update public.video_generation_tasks set reference = 'order 7'")
    with hand.conn.transaction(force_rollback=True):
        hand.about(task, "fail", code="ASSET_INVALID")
        assert deliveries(ground) == []
    assert deliveries(ground) == []
    hand.about(task, "fail", code="ASSET_INVALID")
    (told,) = deliveries(ground)
    assert (told["webhook_id"], told["task_id"], told["event"]) == (of_all, task.id, "video.failed")
    assert told["body"]["type"] == "video.failed"
    assert told["body"]["data"] | {"updated_at": 0, "scene_id": 0, "user_id": 0} == {
        "task_id": str(task.id), "kind": "video", "status": "failed", "attempt": 1,
        "film_id": None, "reference": "order 7", "error_code": "ASSET_INVALID",
        "video_path": None, "image_path": None, "credits": 0, "renditions": [],
        "updated_at": 0, "scene_id": 0, "user_id": 0,
    }  # fmt: skip
    assert len(str(told["body"])) < 2048


def test_the_end_of_a_film_names_its_files(ground: Ground) -> None:
    webhook(ground, "film.*")
    hand = ground.worker()
    film = ground.cut_film(hand, "begin_rendering")
    for name, kind in (("web", "video/mp4"), ("poster", "image/jpeg")):
        hand.about(film, "begin_rendition", rendition=name)
        hand.about(film, "finish_rendition", rendition=name, media_type=kind)
    hand.walk(film, "complete")
    (told,) = deliveries(ground)
    files = told["body"]["data"]["renditions"]
    assert told["event"] == "film.completed"
    assert {one["name"]: one["media_type"] for one in files} == {
        "web": "video/mp4", "poster": "image/jpeg",
    }  # fmt: skip
    assert told["body"]["data"]["video_path"] in {one["path"] for one in files}


def test_each_webhook_is_told_what_it_asked_for_of_its_own_user(ground: Ground) -> None:
    hand, owner, stranger = ground.worker(), uuid4(), uuid4()
    wanted = {
        webhook(ground): 2,
        webhook(ground, "video.completed"): 0,
        webhook(ground, "video.failed", user_id=owner): 1,
        webhook(ground, user_id=stranger): 0,
        webhook(ground, tested=False): 0,
    }
    for user in (owner, uuid4()):
        hand.about(ground.held(hand, user_id=user), "fail", code="ASSET_INVALID")
    found = [row["webhook_id"] for row in deliveries(ground)]
    assert {one: found.count(one) for one in wanted} == wanted


def test_a_second_end_of_a_task_is_another_delivery(ground: Ground) -> None:
    webhook(ground)
    hand, user = ground.worker(), uuid4()
    held = ground.held(hand, user_id=user)
    hand.about(held, "fail", code="TIMEOUT")
    as_user(ground, user, "select public.retry_video_generation_task(%s)", held.id)
    (again,) = hand.claim()
    hand.about(again, "fail", code="TIMEOUT")
    first, second = deliveries(ground)
    assert first["id"] != second["id"]
    assert [row["body"]["data"]["attempt"] for row in (first, second)] == [1, 2]


def test_a_retry_of_the_transaction_writes_one_row(ground: Ground) -> None:
    hook = webhook(ground)
    for _ in range(2):
        ground.sql("select vidgen.deliver('video.failed', null, null, 'the same', '{}')")
    (row,) = deliveries(ground)
    assert (row["id"].version, row["id"].variant) == (8, "specified in RFC 4122")
    assert row["webhook_id"] == hook


def test_operators_are_told_of_what_users_are_shown(ground: Ground) -> None:
    webhook(ground, "gate.*")
    ground.worker()
    refuse_all = (
        "insert into vidgen.gates (provider, scope, model, reason, message, details, closed_at,"
        " probe_at) values ('runway', '*', '*', 'OPERATOR', 'Back at noon.', '', now(), now())"
    )
    ground.sql(refuse_all)
    ground.sql("delete from vidgen.gates")
    closed, opened = deliveries(ground)
    assert (closed["event"], opened["event"]) == ("gate.closed", "gate.opened")
    assert closed["body"]["data"]["message"] == "Back at noon."


def test_a_row_that_refuses_its_end_tells_nobody(ground: Ground) -> None:
    webhook(ground)
    hand = ground.worker()
    held = ground.held(hand)
    refuse(ground, held.id, when="new.status = 'failed'")
    with pytest.raises(psycopg.Error):
        hand.about(held, "fail", code="TIMEOUT")
    assert deliveries(ground) == []


def test_two_of_a_webhook_are_under_way_and_webhooks_take_turns(ground: Ground) -> None:
    busy, quiet = webhook(ground, "video.failed"), webhook(ground, "video.cancelled")
    hand = ground.worker()
    for number in range(6):
        ground.sql("select vidgen.deliver('video.failed', null, null, %s, '{}')", str(number))
    ground.sql("select vidgen.deliver('video.cancelled', null, null, 'one', '{}')")
    first = take(hand)
    assert sorted(row["webhook_id"] for row in first) == sorted([busy, busy, quiet])
    assert take(ground.worker()) == []
    assert book(hand, first[0]) == "delivered"
    assert len(take(hand)) == 1


def test_sixteen_workers_never_have_three_of_a_webhook(ground: Ground) -> None:
    hooks = [webhook(ground) for _ in range(3)]
    for number in range(60):
        ground.sql("select vidgen.deliver('video.failed', null, null, %s, '{}')", str(number))

    def work(_: int) -> list[tuple[UUID, UUID, int]]:
        done = []
        with ground.worker() as hand:
            for _ in range(200):
                for row in take(hand, places=2):
                    (most,) = hand.conn.execute(
                        "select max(n) as n from (select count(*) as n from vidgen.deliveries"
                        " where leased_until > clock_timestamp() and delivered_at is null"
                        " group by webhook_id) as counted"
                    ).fetchall()
                    assert most["n"] <= 2
                    assert book(hand, row) == "delivered"
                    done.append((row["webhook_id"], row["id"], row["try"]))
                if ground.none("select from vidgen.deliveries where delivered_at is null"):
                    break
        return done

    with ThreadPoolExecutor(16) as pool:
        sent = [row for rows in pool.map(work, range(16)) for row in rows]
    assert len(sent) == len(set(sent)) == 60 * len(hooks)
    assert {row[2] for row in sent} == {1}


def test_a_try_that_comes_back_after_its_lease_changes_nothing(ground: Ground) -> None:
    webhook(ground)
    zombie, other = ground.worker(), ground.worker()
    ended(ground, zombie)
    (late,) = take(zombie)
    ground.sql(
        "update vidgen.deliveries set leased_until = now(), next_at = now() where tries = 1"
        " and delivered_at is null"
    )
    (again,) = take(other)
    assert (again["id"], again["try"]) == (late["id"], 2)
    assert fail(zombie, late, pause=None) == "lost"
    assert book(other, again) == "delivered"
    assert book(other, again) == "lost"  # sent twice


def test_a_worker_that_stops_gives_back_what_it_had_under_way(ground: Ground) -> None:
    webhook(ground)
    hand = ground.worker()
    ended(ground, hand)
    (row,) = take(hand)
    hand("return_deliveries", ids=[row["id"]])
    (again,) = take(ground.worker())
    assert again["id"] == row["id"]
    assert book(hand, row) == "lost"


def test_a_webhook_is_enabled_by_its_test_and_disabled_by_410(ground: Ground) -> None:
    hook, hand = webhook(ground, tested=False), ground.worker()

    def shown() -> Row:
        (row,) = ground.sql("select * from public.video_webhooks where id = %s", hook)
        return row

    (test,) = take(hand)
    assert test["event"] == "webhook.test"
    assert fail(hand, test, status=None, error="no answer within 15 s") == "again"
    assert not shown()["enabled"]
    assert "no answer within 15 s" in shown()["disabled_reason"]
    ground.sql("select public.test_video_webhook(%s)", hook)
    (test,) = take(hand)
    assert book(hand, test, status=200) == "delivered"
    assert (shown()["enabled"], shown()["disabled_reason"], shown()["last_status"]) == (
        True, None, 200,
    )  # fmt: skip
    ended(ground, hand)
    ended(ground, hand)
    first, second = take(hand)
    assert fail(hand, first, status=410, gone=True) == "disabled"
    assert "410" in shown()["disabled_reason"]
    # The other try was under way, and what it says still counts for its own row.
    assert fail(hand, second) == "again"
    ended(ground, hand)
    assert take(hand) == []
    assert len(deliveries(ground)) == 2
    ground.sql("update vidgen.deliveries set next_at = now() where next_at < 'infinity'")
    assert take(hand) == []
    ground.sql("select public.test_video_webhook(%s)", hook)
    (test,) = take(hand)
    assert book(hand, test) == "delivered"
    assert len(take(hand)) == 2


def test_five_days_without_an_arrival_disable_a_webhook(ground: Ground) -> None:
    hook, hand = webhook(ground), ground.worker()
    ended(ground, hand)
    (row,) = take(hand)
    assert fail(hand, row, pause=timedelta(0)) == "again"
    ground.sql("update vidgen.webhook_turns set failing_since = now() - interval '121 hours'")
    (row,) = take(hand)
    assert fail(hand, row) == "disabled"
    (shown,) = ground.sql("select * from public.video_webhooks where id = %s", hook)
    assert "five days" in shown["disabled_reason"]


def test_an_arrival_ends_the_days_of_failures(ground: Ground) -> None:
    webhook(ground)
    hand = ground.worker()
    for answer in (fail, book, fail):
        ground.sql(
            "update vidgen.webhook_turns set failing_since = failing_since - interval '6 days'"
        )
        ended(ground, hand)
        rows = take(hand)
        answer(hand, rows[-1])
    (turn,) = ground.sql(
        "select now() - failing_since < interval '1 hour' as new from vidgen.webhook_turns"
    )
    assert turn["new"]


def test_a_rotated_secret_signs_for_a_day_beside_the_new_one(ground: Ground) -> None:
    hook, hand = webhook(ground), ground.worker()
    (first,) = ground.sql("select secret from vidgen.webhook_secrets")
    (said,) = ground.sql(
        "select public.rotate_video_webhook_secret(%s) ->> 'secret' as secret", hook
    )
    ended(ground, hand)
    (row,) = take(hand)
    assert len(row["secrets"]) == 2
    assert row["secrets"][1] == first["secret"] != row["secrets"][0]
    assert said["secret"].startswith("whsec_")
    # A second change takes nothing from a receiver that knows the first secret.
    ground.sql("select public.rotate_video_webhook_secret(%s)", hook)
    hand("return_deliveries", ids=[row["id"]])
    (row,) = take(hand)
    assert first["secret"] in row["secrets"]
    ground.sql("update vidgen.webhook_secrets set until = now() where until is not null")
    hand("return_deliveries", ids=[row["id"]])
    (row,) = take(hand)
    assert len(row["secrets"]) == 1


def test_what_has_ended_is_sent_again_on_demand(ground: Ground) -> None:
    hook, hand = webhook(ground), ground.worker()
    ended(ground, hand)
    (row,) = take(hand)
    assert fail(hand, row, pause=None) == "gave up"
    count = "select public.resend_video_deliveries(%s, now() - %s::interval) as n"
    assert ground.sql(count, hook, "0 s")[0]["n"] == 0
    assert ground.sql(count, hook, "1 hour")[0]["n"] == 1
    (again,) = take(hand)
    assert (again["id"], again["try"]) == (row["id"], 1)


def test_old_deliveries_are_forgotten_and_what_waits_is_kept(ground: Ground) -> None:
    hook, hand = webhook(ground), ground.worker()
    ended(ground, hand)
    ended(ground, hand)
    (row, _) = take(hand)
    book(hand, row)
    ground.sql("update vidgen.deliveries set created_at = now() - interval '31 days'")
    assert hand("forget_deliveries")[0]["deliveries"] == 2
    assert len(deliveries(ground)) == 1
    ground.sql("select public.delete_video_webhook(%s)", hook)
    assert deliveries(ground) == []
    assert ground.none("select from vidgen.webhook_secrets")


@pytest.mark.parametrize("call", [
    "rotate_video_webhook_secret(%s)", "test_video_webhook(%s)", "delete_video_webhook(%s)",
    "resend_video_deliveries(%s, now())",
])  # fmt: skip
def test_nobody_reaches_the_webhook_of_another(ground: Ground, call: str) -> None:
    owner, stranger = uuid4(), uuid4()
    hook = webhook(ground, user_id=owner)
    with pytest.raises(psycopg.Error) as refused:
        as_user(ground, stranger, f"select public.{call}", hook)
    assert refused.value.sqlstate == "PT404"
    assert as_user(ground, stranger, "select from public.video_webhooks") == []
    assert len(as_user(ground, owner, "select * from public.video_webhooks")) == 1


def test_users_have_webhooks_only_where_an_operator_allows_it(ground: Ground) -> None:
    create = "select public.create_video_webhook(%s, array['video.*'])"
    with pytest.raises(psycopg.Error) as refused:
        as_user(ground, uuid4(), create, URL)
    assert refused.value.sqlstate == "PT403"
    owner = uuid4()
    for _ in range(5):
        webhook(ground, user_id=owner)
    with pytest.raises(psycopg.Error, match="limit reached: 5 webhooks"):
        as_user(ground, owner, create, URL)
    with pytest.raises(psycopg.Error) as not_theirs:
        as_user(ground, uuid4(), "select public.create_video_webhook(%s, array['gate.*'])", URL)
    assert "gates_concern_the_operator_only" in str(not_theirs.value)


def test_an_operator_stops_the_webhooks_of_all_users(ground: Ground) -> None:
    owner = uuid4()
    hook = webhook(ground, user_id=owner)
    ground.sql("update vidgen.settings set user_webhooks = false")
    with ground.worker() as hand:
        hand.about(ground.held(hand, user_id=owner), "fail", code="ASSET_INVALID")
    assert deliveries(ground) == []
    with pytest.raises(psycopg.Error) as refused:
        as_user(ground, owner, "select public.test_video_webhook(%s)", hook)
    assert refused.value.sqlstate == "PT403"


@pytest.mark.parametrize("url", [
    "http://example.com/", "https://a@example.com/", "https://a:b@example.com/", "ftp://x/",
    "https://example.com:8443/", "https://exa mple.com/", "https://", "javascript:alert(1)",
    "https:///x", "https://e\nx.com/", "http://127.0.0.1.example.com/", "https://example.com\\@x/",
    "https://example.com:443@evil.test/", "http://localhost@evil.test/", "https://" + "x" * 2000,
])  # fmt: skip
def test_a_url_of_another_form_is_refused_when_it_is_typed(ground: Ground, url: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        ground.sql("select public.create_video_webhook(%s, array['video.*'])", url)
    assert refused.value.sqlstate == "23514"
    assert "url_is_https_without_a_user_or_another_port" in str(refused.value)


@pytest.mark.parametrize("url", [
    "https://example.com", "https://example.com/a?b=c#d", "https://example.com:443/hook",
    "https://[2001:db8::1]/hook", "http://127.0.0.1:8080/hook", "http://localhost/x",
])  # fmt: skip
def test_a_url_of_this_form_is_taken(ground: Ground, url: str) -> None:
    assert ground.sql("select public.create_video_webhook(%s, array['video.*'])", url)


@pytest.mark.parametrize("events", [[], ["video"], ["video.*", "webhook.test"], ["*"], None])
def test_unknown_events_are_refused(ground: Ground, events: list[str] | None) -> None:
    with pytest.raises(psycopg.Error) as refused:
        ground.sql("select public.create_video_webhook(%s, %s::text[])", URL, events)
    assert refused.value.sqlstate in ("23514", "23502")


def test_a_delivery_to_a_dead_webhook_hides_no_other(ground: Ground) -> None:
    """Its 10,000 deliveries are not read to find those of others."""
    dead, alive = webhook(ground, "video.failed"), webhook(ground, "video.completed")
    ground.sql(
        "insert into vidgen.deliveries (webhook_id, id, event, body, next_at)"
        " select %s, gen_random_uuid(), 'video.failed', '{}', now() + interval '1 hour'"
        " from generate_series(1, 10000)", dead,
    )  # fmt: skip
    ground.sql("select vidgen.deliver('video.completed', null, null, 'one', '{}')")
    with ground.worker() as hand:
        (row,) = take(hand)
    assert row["webhook_id"] == alive
