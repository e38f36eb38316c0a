"""Films with outputs in the queue's statements: their prices, renditions and lane."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors
from psycopg.types.json import Jsonb

from tests.support.hands import STAGE, Ground, Hand, Held, aged, completed
from vidgen_worker.client.database import QUERIES as CLIENT_QUERIES
from vidgen_worker.films.presets import FORMATS, PRESETS, Preset
from vidgen_worker.queue.films import Lane

TASKS = "public.video_generation_tasks"
PARTS = 2 * 30
"""Credits for two scenes."""
SECOND = 3
"""Credits for a second of an output."""


def priced(ground: Ground, *presets: str) -> None:
    ground.sql(
        "update public.video_presets set film_second_credits = %s where name = any(%s)",
        SECOND, list(presets),
    )  # fmt: skip


def recorded(ground: Ground, film: UUID) -> dict[str, str]:
    rows = ground.sql("select name, path from public.video_renditions where film_id = %s", film)
    return {row["name"]: row["path"] for row in rows}


def lines(ground: Ground, film: UUID) -> dict[str, int]:
    """The ledger of a film, by stage."""
    rows = ground.sql("select stage, amount from public.credit_entries where task_id = %s", film)
    assert len({row["stage"] for row in rows}) == len(rows)
    return {row["stage"]: row["amount"] for row in rows}


def render(hand: Hand, film: Held, name: str, **parameters: object) -> dict[str, Any]:
    hand.walk(film, "begin_rendition") if name == "web" else hand.about(
        film, "begin_rendition", rendition=name
    )
    (row,) = hand.about(film, "finish_rendition", rendition=name, **parameters)
    return row


# Prices.


def test_an_output_is_charged_for_what_it_plays_and_the_rest_of_its_hold_goes_back(
    ground: Ground,
) -> None:
    """Two scenes of five seconds: ten seconds are held for each output that has a price."""
    priced(ground, "web", "poster")
    hand, user = ground.worker(), ground.user(1000)
    outputs = ["web", {"preset": "poster", "name": "still"}, "small"]
    film = ground.cut_film(hand, "begin_rendering", user_id=user, outputs=outputs)
    held = 2 * 10 * SECOND
    assert ground.credits(user) == (1000 - PARTS, held)
    assert render(hand, film, "web", seconds=4.2)["charged"] == 5 * SECOND
    assert render(hand, film, "still", seconds=None, position=2)["charged"] == SECOND
    assert render(hand, film, "still-avif", seconds=None, position=3)["charged"] == 0
    assert render(hand, film, "small", seconds=4.2, position=4)["charged"] == 0
    assert lines(ground, film.id) == {"render:web": -5 * SECOND, "render:still": -SECOND}
    assert ground.credits(user) == (1000 - PARTS - 6 * SECOND, held - 6 * SECOND)
    hand.walk(film, "complete")
    assert ground.credits(user) == (1000 - PARTS - 6 * SECOND, 0)
    assert ground.task(film.id)["video_path"] == recorded(ground, film.id)["web"]
    assert ground.books_balance()


def test_nothing_is_charged_above_its_hold_or_at_a_later_price(ground: Ground) -> None:
    priced(ground, "web")
    hand, user = ground.worker(), ground.user(1000)
    film = ground.cut_film(hand, user_id=user)
    ground.sql("update public.video_presets set film_second_credits = 1000")
    assert render(hand, film, "web", seconds=99.0)["charged"] == 10 * SECOND
    with pytest.raises(psycopg.Error, match="was settled before"):
        ground.sql("select vidgen.settle_render(%s, 'web')", film.id)
    assert ground.credits(user) == (1000 - PARTS - 10 * SECOND, 0)


def test_a_balance_for_the_scenes_and_not_for_the_outputs_begins_nothing(ground: Ground) -> None:
    priced(ground, "web")
    hand, user = ground.worker(), ground.user(PARTS + 10 * SECOND - 1)
    film = ground.held_film(hand, user_id=user, outputs=["web"])
    (row,) = hand.about(film, "order_parts")
    assert row["refused"] == "INSUFFICIENT_CREDITS"
    assert "outputs" in row["said"]
    assert ground.parts(film.id) == []
    assert ground.credits(user) == (PARTS + 10 * SECOND - 1, 0)
    ground.sql("select public.grant_video_credits(%s, 1, 'one more')", user)
    assert hand.about(film, "order_parts")[0]["refused"] is None
    assert ground.credits(user) == (PARTS + 10 * SECOND, PARTS + 10 * SECOND)


def test_a_hold_for_a_film_is_what_its_outputs_cost(ground: Ground) -> None:
    """Whoever has the worker's role holds no more, and charges for nothing that isn't recorded."""
    priced(ground, "web")
    hand, user = ground.worker(), ground.user()
    film = ground.cut_film(hand, user_id=user)
    ground.sql("update vidgen.holds set closed_at = now(), amount = 0 where task_id = %s", film.id)
    with pytest.raises(psycopg.Error, match="is not what its outputs cost"):
        ground.sql(
            "select vidgen.hold_credits(%s, %s, %s)", film.id, user, Jsonb({"render:web": 9999})
        )
    with pytest.raises(psycopg.Error, match="nothing was generated for its render:web"):
        ground.sql(
            "insert into vidgen.charges (task_id, stage, user_id) values (%s, 'render:web', %s)",
            film.id, user,
        )  # fmt: skip


@pytest.mark.parametrize("end", ["cancel", "fail", "delete"])
def test_a_film_that_ends_early_keeps_its_charges_and_frees_its_hold(
    ground: Ground, end: str
) -> None:
    priced(ground, "web", "square")
    hand, user = ground.worker(), ground.user(1000)
    film = ground.cut_film(hand, user_id=user, outputs=["web", "square"])
    render(hand, film, "web", seconds=9.5)
    if end == "delete":
        ground.sql(f"delete from {TASKS} where id = %s", film.id)
    else:
        hand.walk(film, end)
    assert ground.credits(user) == (1000 - PARTS - 10 * SECOND, 0)
    assert ground.books_balance()


def test_without_credits_nothing_is_held_or_charged(ground: Ground) -> None:
    priced(ground, "web")
    hand, user = ground.worker(), ground.user(0)
    film = ground.held_film(hand, user_id=user, outputs=["web"])
    assert hand.about(film, "order_parts", credits=False)[0]["refused"] is None
    render(hand, film, "web", credits=False)
    assert recorded(ground, film.id).keys() == {"web"}
    assert ground.none("select from vidgen.holds")
    assert ground.none("select from vidgen.charges")


def test_a_preset_that_is_not_offered_is_refused_before_anything_is_held(ground: Ground) -> None:
    ground.sql("update public.video_presets set retired_at = now() where name = 'story'")
    hand, user = ground.worker(), ground.user()
    film = ground.held_film(hand, user_id=user, outputs=["web", {"preset": "story"}])
    (row,) = hand.about(film, "order_parts")
    assert (row["refused"], row["field"]) == ("INVALID_REQUEST", "/outputs/1")
    assert ground.credits(user)[1] == 0
    assert ground.none(f"select from {TASKS} where film_id is not null")


def test_the_presets_of_the_table_are_those_that_are_made(ground: Ground) -> None:
    rows = ground.sql(
        "select name, description, spec from public.video_presets where kind = 'output'"
        " order by position"
    )
    assert [(row["name"], row["description"], row["spec"]) for row in rows] == [
        (name, preset.title, spec(preset)) for name, preset in PRESETS.items()
    ]


def spec(preset: Preset) -> dict[str, Any]:
    said = {
        "formats": [
            {"name": name, "media_type": FORMATS[made].media_type}
            for name, made in preset.formats.items()
        ],
        "usual": preset.usual,
        "box": list(preset.box) if preset.box else None,
        "fit": preset.fit.value if preset.shape else None,
        "most_fps": preset.most_fps,
        "seconds": preset.seconds,
        "silent": preset.silent or None,
        "overlays": None if preset.overlays else False,
        "target": preset.target.value if preset.target else None,
        "most_bytes": preset.most_bytes,
    }
    return {name: value for name, value in said.items() if value is not None}


def test_lengths_are_known_before_anything_is_ordered(ground: Ground) -> None:
    """A clip is as long as its request was frozen, or as its scene says; null means five."""
    hand, user = ground.worker(), ground.user()
    frozen = ground.held(hand, "start_task", *STAGE, user_id=user)
    hand.about(
        frozen, "begin_submission", stage="video", submission_id=uuid4(),
        request=Jsonb({"seconds": 7}),
    )  # fmt: skip
    parts: list[dict[str, str]] = [{"task": str(frozen.id)}, {"scene": str(uuid4())}]
    for duration in (None, 10):
        scene = ground.scene(user)
        ground.sql("update public.video_scenes set duration = %s where id = %s", duration, scene)
        parts.append({"scene": str(scene)})
    film = ground.held_film(hand, user_id=user, cut={"parts": parts}, outputs=["web"])
    (row,) = hand.about(film, "seconds_of_parts")
    assert row["seconds"] == [7, None, 5, 10]
    assert ground.none("select from vidgen.parts")


# Renditions.


def test_a_retry_keeps_what_is_recorded_and_holds_only_for_the_rest(ground: Ground) -> None:
    priced(ground, "web", "square")
    hand, user = ground.worker(), ground.user(1000)
    film = ground.cut_film(hand, user_id=user, outputs=["web", "square"])
    render(hand, film, "web", seconds=10.0)
    kept = recorded(ground, film.id)
    hand.about(film, "fail")
    ground.sql("select public.retry_video_generation_task(%s)", film.id)
    (film,) = hand.claim_films(lane=Lane.RENDERS)
    assert hand.about(film, "order_parts")[0]["refused"] is None
    assert ground.credits(user) == (1000 - PARTS - 10 * SECOND, 10 * SECOND)
    (loaded,) = hand.about(film, "load_film")
    assert loaded["stored"] == kept
    assert [clip["path"] for clip in loaded["clips"]] == [
        part["video_path"] for part in ground.parts(film.id)
    ]
    assert {clip["sha256"] for clip in loaded["clips"]} == {"ab"}


def test_what_is_made_of_other_files_replaces_a_rendition_and_is_paid_once(ground: Ground) -> None:
    """The former object is removed once its attempt is over; the recorded one never is."""
    priced(ground, "web")
    hand, user = ground.worker(), ground.user(1000)
    film = ground.cut_film(hand, user_id=user)
    render(hand, film, "web", seconds=10.0)
    former = recorded(ground, film.id)["web"]
    now = former.replace("0123456789abcdef", "fedcba9876543210")
    hand.about(film, "begin_rendition", path=now)
    (row,) = hand.about(film, "finish_rendition", path=now, sha256="cd", seconds=10.0)
    assert (row["charged"], row["recorded"]) == (0, True)
    assert recorded(ground, film.id) == {"web": now}
    assert hand("take_uploads") == []
    hand.walk(film, "complete")
    assert [row["path"] for row in hand("take_uploads")] == [former]
    assert lines(ground, film.id) == {"render:web": -10 * SECOND}


def test_an_upload_that_is_not_recorded_is_removed_and_nobody_reads_it(ground: Ground) -> None:
    hand = ground.worker()
    film = ground.cut_film(hand, "begin_rendition")
    path = ground.one("select path from vidgen.uploads")["path"]
    assert ground.one("select vidgen.is_unpaid('video-files', %s) as it", path)["it"]
    hand.walk(film, "cancel")
    assert [row["path"] for row in hand("take_uploads")] == [path]


def test_a_later_attempt_waits_for_the_removal_of_what_an_earlier_one_uploaded(
    ground: Ground,
) -> None:
    """Both name the same place: what is removed just now must not be recorded."""
    hand, janitor = ground.worker(), ground.worker()
    film = ground.cut_film(hand, "begin_rendition")
    hand("hand_back", task_ids=None)
    (again,) = hand.claim_films(lane=Lane.RENDERS)
    (upload,) = janitor("take_uploads")
    assert hand.about(again, "begin_rendition")[0]["busy"]
    janitor("uploads_removed", upload_ids=[upload["upload_id"]])
    assert not hand.about(again, "finish_rendition")[0]["recorded"]
    assert not hand.about(again, "begin_rendition")[0]["busy"]
    assert hand.about(again, "finish_rendition")[0]["recorded"]
    assert ground.none("select from vidgen.uploads")
    assert hand.about(film, "finish_rendition") == []


def test_a_cancel_stops_before_the_next_upload(ground: Ground) -> None:
    hand = ground.worker()
    film = ground.cut_film(hand)
    ground.sql("select public.cancel_video_generation_task(%s)", film.id)
    for name in ("begin_rendering", "begin_rendition"):
        assert hand.about(film, name)[0]["cancel"]
    assert ground.none("select from vidgen.uploads")


def test_a_rendition_lies_in_its_film_s_folder_and_bucket(ground: Ground) -> None:
    """A worker's role names no other object: each is signed, and removed with the film."""
    film = ground.cut_film(ground.worker())
    hand = ground.stack.enter_context(Hand(ground.database.admin_url, film.worker_id))
    hand.conn.execute("set role vidgen_worker")
    place = {"bucket": "generated-content"}
    hand.about(film, "begin_rendition", **place)
    with pytest.raises(psycopg.Error, match="no worker is about to record"):
        hand.about(film, "finish_rendition", **place)
    hand.about(film, "begin_rendition", rendition="other")
    (upload,) = hand.conn.execute("select path from vidgen.uploads where path like '%other%'")
    with pytest.raises(errors.CheckViolation, match="path_is_in_the_film_s_folder"):
        hand.about(film, "finish_rendition", path=upload["path"])
    with pytest.raises(errors.CheckViolation, match="path_is_in_its_users_folder"):
        hand.about(film, "begin_rendition", path=f"{upload['path']}/x")


def test_pruning_a_film_names_its_renditions_and_not_its_parts(ground: Ground) -> None:
    hand, user = ground.worker(), ground.user(1000)
    film = ground.cut_film(hand, user_id=user, outputs=["web", "poster"])
    for name in ("web", "poster"):
        render(hand, film, name)
    hand.walk(film, "complete")
    paths = recorded(ground, film.id)
    ground.sql(f"update {TASKS} set priority = 0")
    with ground.hand() as operator:
        operator.queries = CLIENT_QUERIES
        left = [part["id"] for part in ground.parts(film.id)]
        when = ground.one("select now() + interval '1 minute' as at")["at"]
        operator("prune_tasks", before=when, left=left, batch=10)
        (row,) = operator("pruned_objects", batch=10)
    assert row["task_id"] == film.id
    assert {one["path"] for one in row["objects"]} == set(paths.values())
    assert ground.none("select from public.video_renditions")


def test_charges_of_an_old_film_are_forgotten_with_the_rest(ground: Ground) -> None:
    priced(ground, "web")
    hand, user = ground.worker(), ground.user(1000)
    film = ground.cut_film(hand, user_id=user)
    render(hand, film, "web")
    hand.walk(film, "complete")
    aged(ground)
    ground.sql("update vidgen.charges set charged_at = charged_at - interval '100 days'")
    (row,) = hand("forget_tasks")
    assert row["tasks"] == 3
    assert ground.none("select from vidgen.charges")
    assert ground.books_balance()


# The lane.


def test_only_a_claim_of_its_lane_meets_a_film_with_outputs(ground: Ground) -> None:
    hand, crowd, other = ground.worker(), ground.user(), ground.user()
    films = [ground.film(crowd, outputs=["web"]) for _ in range(3)]
    mine = ground.film(other, outputs=["web"])
    assert hand.claim() == []
    assert hand.claim_films() == []
    (woken,) = hand("wake_films")
    assert (woken["due"], woken["renders_due"]) == (False, True)
    taken = [held.id for _ in range(4) for held in hand.claim_films(lane=Lane.RENDERS, most=1)]
    assert mine in taken[:2], "users take turns, also with one place"
    assert sorted(taken) == sorted([*films, mine])


def test_a_suspect_with_outputs_asks_only_a_worker_that_renders_to_become_idle(
    ground: Ground,
) -> None:
    plain, renders = ground.worker(renders=0), ground.worker()
    dead = ground.worker()
    film = ground.held_film(dead, outputs=["web"])
    ground.sql("insert into vidgen.budgets (task_id, crashes) values (%s, 1)", film.id)
    ground.silent(dead.worker_id)
    plain("take_over")
    asked = [
        [row["kind"] for row in hand("take_over", idle=False)] for hand in (plain, renders, plain)
    ]
    assert asked == [[], ["suspect waits"], []]
    assert [held.id for held in renders.claim_films(lane=Lane.RENDERS)] == [film.id]


# Automatic films.

AUTO = {"outputs": ["small", "poster"], "on_failure": "skip"}


def automatic(ground: Ground, cut: dict[str, Any] | None = None) -> None:
    ground.sql("update vidgen.settings set auto_cut = %s", Jsonb(cut or AUTO))


def test_each_completed_scene_gets_the_automatic_film_once(ground: Ground) -> None:
    """Not what a film has ordered, and not what has failed; its owner sees it as his own."""
    automatic(ground)
    hand, user = ground.worker(), ground.user()
    film = ground.cut_film(hand, user_id=user)
    hand.about(film, "cancel")
    hand.about(ground.held(hand, user_id=user), "fail")
    hand("wake_films")
    assert ground.none(f"select from {TASKS} where cut is not null and id <> %s", film.id)

    done = completed(ground, hand, user)
    assert ground.one("select task_id from vidgen.wanted_films") == {"task_id": done.id}
    hand("wake_films")
    hand("wake_films")
    (row,) = ground.sql(f"select * from {TASKS} where cut is not null and id <> %s", film.id)
    assert (row["user_id"], row["lane"], row["status"]) == (user, -1, "pending")
    assert row["cut"] == {**AUTO, "parts": [{"task": str(done.id)}]}
    (held,) = hand.claim_films(lane=Lane.RENDERS)
    assert hand.about(held, "order_parts")[0]["refused"] is None
    (loaded,) = hand.about(held, "load_film")
    assert (loaded["completed"], loaded["unfinished"]) == (1, 0)


def test_an_application_that_refuses_the_film_harms_no_end(ground: Ground) -> None:
    """It is tried again with pauses, reported each time, and given up in the end."""
    automatic(ground)
    hand, user = ground.worker(), ground.user()
    refuse_films(ground)
    done = completed(ground, hand, user)
    assert ground.task(done.id)["status"] == "completed"
    said = []
    for _ in range(8):
        said += [row["refused"] for row in hand("wake_films") if row["refused"]]
        ground.sql("update vidgen.wanted_films set due_at = now()")
    assert len(said) == 8
    assert "no films here" in said[0]
    assert said[-1].endswith("no film is ordered of it any more")
    assert ground.none("select from vidgen.wanted_films")


def refuse_films(ground: Ground) -> None:
    ground.sql(
        "create function public.no_films() returns trigger language plpgsql as"
        " $$ begin raise exception 'no films here'; end $$"
    )
    ground.sql(
        f"create trigger no_films before insert on {TASKS} for each row"
        " when (new.cut is not null) execute function public.no_films()"
    )


@pytest.mark.parametrize(
    "cut",
    [
        "[]", "{}", '{"outputs": []}', '{"outputs": "web"}',
        '{"outputs": ["web"], "parts": []}', '{"outputs": ["web"], "scenario": "x"}',
    ],
)  # fmt: skip
def test_an_automatic_cut_has_outputs_and_no_parts(ground: Ground, cut: str) -> None:
    with pytest.raises(errors.CheckViolation, match="auto_cut_has_outputs_and_no_parts"):
        ground.sql("update vidgen.settings set auto_cut = %s::jsonb", cut)


# All at once.


def test_films_with_outputs_end_once_whatever_meets_what(ground: Ground) -> None:
    """16 connections order, wait, are handed back and record, each statement sent twice."""
    priced(ground, "web", "square")
    users = [ground.user(100_000) for _ in range(4)]
    films = [ground.film(users[n % 4], 1, outputs=["web", "square"]) for n in range(16)]
    workers = [ground.worker() for _ in range(16)]
    with ThreadPoolExecutor(16) as threads:
        for _ in range(6):
            list(threads.map(partial(step, len(films)), workers))
    ended = ground.sql(f"select status from {TASKS} where lane = -1")
    assert {row["status"] for row in ended} == {"completed"}
    assert len(ground.sql("select name from public.video_renditions")) == 2 * len(films)
    assert len(ground.sql("select 1 from vidgen.charges where starts_with(stage, 'render:')")) == 32
    for user in users:
        assert ground.credits(user) == (100_000 - 4 * (30 + 2 * 5 * SECOND), 0)
    assert ground.books_balance()


def step(most: int, hand: Hand) -> None:
    """Do what there is to do; every third film of an attempt is handed back half way."""
    hand("wake_films")
    for number, film in enumerate(hand.claim_films(lane=Lane.RENDERS, most=max(most // 8, 1))):
        (loaded,) = hand.about(film, "load_film")
        if not loaded["ordered"]:
            again(hand, film, "order_parts")
        (loaded,) = hand.about(film, "load_film")
        if loaded["unfinished"]:
            hand.about(film, "wait_for_parts")
            continue
        for name in {"web", "square"} - set(loaded["stored"]):
            hand.about(film, "begin_rendition", rendition=name)
            for _ in range(2):
                assert hand.about(film, "finish_rendition", rendition=name)[0]["recorded"]
            if number % 3 == 2:
                break
        else:
            hand.walk(film, "complete")
            continue
        hand("hand_back", task_ids=[film.id], attempts=[film.attempt])
    for part in hand.claim(4):
        hand.walk(part, "start_task", *STAGE)
        other = Held(part.id, part.attempt, part.worker_id)
        hand.walk(other, *STAGE, "complete", stage="video")


def again(hand: Hand, film: Held, name: str) -> None:
    """Send it until no other order of this user is in its way."""
    while True:
        try:
            assert hand.about(film, name)[0]["refused"] is None
        except errors.LockNotAvailable:
            continue
        return
