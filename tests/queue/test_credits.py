"""Credits: held before, charged once per stage, the rest given back, and the books always agree."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors

from tests.support.hands import IMAGE_PRICE, STAGE, VIDEO_PRICE, Ground, Hand, Held, stage_of
from vidgen_worker.database.migrate import migrate

BOTH = IMAGE_PRICE + VIDEO_PRICE


def claimed(ground: Ground, hand: Hand, user: UUID) -> Held:
    """A task of the user under this worker."""
    return ground.held(hand, user_id=user)


# Hold.


def test_a_hold_reserves_the_stages_still_to_do(ground: Ground) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    (row,) = hand.about(held, "start_task")
    hold = ground.one("select prices from vidgen.holds where task_id = %s", held.id)
    assert (row["funding"], hold["prices"]) == (
        "held", {"image": IMAGE_PRICE, "video": VIDEO_PRICE},
    )  # fmt: skip
    assert ground.credits(user) == (100, BOTH)
    assert ground.books_balance()


def test_a_hold_for_the_video_alone_leaves_the_image_out(ground: Ground) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    for step in ("start_task", *STAGE):
        hand.about(held, step, credits=False)
    hand.about(held, "start_task")
    assert ground.credits(user) == (100, VIDEO_PRICE)


def test_an_open_hold_is_the_same_at_every_request(ground: Ground) -> None:
    user, hand = ground.user(BOTH), ground.worker()
    held = claimed(ground, hand, user)
    for _ in range(3):
        assert hand.about(held, "start_task")[0]["funding"] == "held"
    assert ground.credits(user) == (BOTH, BOTH)
    assert ground.one("select count(*) as holds from vidgen.holds")["holds"] == 1


def test_a_hold_outlives_the_attempt_that_opened_it(ground: Ground) -> None:
    user, hand = ground.user(BOTH), ground.worker()
    hand.about(claimed(ground, hand, user), "start_task")
    hand("hand_back", task_ids=None)
    assert ground.credits(user) == (BOTH, BOTH)
    (again,) = hand.claim()
    assert hand.about(again, "start_task")[0]["funding"] == "held"
    assert ground.credits(user) == (BOTH, BOTH)


@pytest.mark.parametrize("balance", [0, IMAGE_PRICE, BOTH - 1])
def test_too_few_credits_make_no_hold_and_change_no_row(ground: Ground, balance: int) -> None:
    user, hand = ground.user(balance), ground.worker()
    held = claimed(ground, hand, user)
    before = ground.dump()
    assert hand.about(held, "start_task")[0]["funding"] == "refused"
    assert ground.dump() == before


def test_a_missing_price_fails_closed(ground: Ground) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    ground.sql("delete from public.credit_prices where action = 'generate_scene'")
    before = ground.dump()
    assert hand.about(held, "start_task")[0]["funding"] == "price_missing"
    assert ground.dump() == before
    ground.sql("insert into public.credit_prices values ('generate_scene', 7)")
    assert hand.about(held, "start_task")[0]["funding"] == "held"


def test_a_hold_of_zero_credits_always_succeeds(ground: Ground) -> None:
    user, hand = ground.user(0), ground.worker()
    ground.sql("update public.credit_prices set credits = 0")
    held = claimed(ground, hand, user)
    assert hand.about(held, "start_task")[0]["funding"] == "held"
    hand.walk(held, *STAGE)
    assert ground.one("select amount from public.credit_entries") == {"amount": 0}
    assert ground.one("select count(*) as users from public.user_credits")["users"] == 0
    assert ground.books_balance()


def test_eight_holds_at_once_never_overdraw(ground: Ground) -> None:
    """Eight real connections, one balance for three: three are held, five refused."""
    user = ground.user(3 * BOTH + BOTH - 1)
    hand = ground.worker()
    for _ in range(8):
        ground.order(user)
    tasks = hand.claim()
    hands = [ground.hand(hand.worker_id) for _ in tasks]

    def hold(pair: tuple[Hand, Held]) -> str:
        return str(pair[0].about(pair[1], "start_task")[0]["funding"])

    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(hold, zip(hands, tasks, strict=True)))
    assert sorted(verdicts) == ["held"] * 3 + ["refused"] * 5
    assert ground.credits(user) == (4 * BOTH - 1, 3 * BOTH)
    assert ground.books_balance()


def test_a_hold_waits_for_another_and_then_sees_the_rest_of_the_balance(ground: Ground) -> None:
    user = ground.user(BOTH)
    one, two = ground.worker(), ground.worker()
    first, second = claimed(ground, one, user), claimed(ground, two, user)
    with one.holding():
        assert one.about(first, "start_task")[0]["funding"] == "held"
        late = two.later(lambda: two.about(second, "start_task"))
        assert ground.waits(late)
    assert late.result()[0]["funding"] == "refused"


def test_the_balance_can_t_be_overdrawn_by_anybody(ground: Ground) -> None:
    user = ground.user(10)
    for change in ("held = 11", "held = -1", "balance = -1"):
        with pytest.raises(errors.CheckViolation, match="held_is_covered_by_the_balance"):
            ground.sql(f"update public.user_credits set {change} where user_id = %s", user)


# Settle.


def test_each_stage_is_charged_when_it_is_stored(ground: Ground) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.walk(held, "start_task", *STAGE)
    assert ground.credits(user) == (100 - IMAGE_PRICE, VIDEO_PRICE)
    hand.walk(Held(held.id, held.attempt, held.worker_id), *STAGE, stage="video")
    assert ground.credits(user) == (100 - BOTH, 0)
    entries = ground.sql("select stage, amount, task_id from public.credit_entries order by id")
    assert [(row["stage"], row["amount"]) for row in entries] == [
        (None, 100), ("image", -IMAGE_PRICE), ("video", -VIDEO_PRICE),
    ]  # fmt: skip
    assert {row["task_id"] for row in entries[1:]} == {held.id}
    assert ground.books_balance()


def test_a_stage_is_settled_once_however_often_it_is_finished(ground: Ground) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.walk(held, "start_task", *STAGE)
    for _ in range(3):
        assert hand.about(held, "finish_stage")[0]["settled"] == 0
    assert ground.credits(user) == (100 - IMAGE_PRICE, VIDEO_PRICE)


def test_a_charge_without_its_checkpoint_stops_the_settle(ground: Ground) -> None:
    """The books would be wrong either way: it raises, and nothing of it is written."""
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.walk(held, "start_task", *STAGE[:3])
    ground.sql(
        "insert into vidgen.charges (task_id, stage, user_id) values (%s, 'image', %s)",
        held.id, user,
    )  # fmt: skip
    before = ground.dump()
    with pytest.raises(errors.UniqueViolation, match="charges_pkey"):
        hand.about(held, "finish_stage")
    assert ground.dump() == before


def test_a_settle_without_a_hold_stops_the_statement(ground: Ground) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.walk(held, "start_task", *STAGE[:3])
    ground.sql("update vidgen.holds set amount = 0, closed_at = now()")
    before = ground.dump()
    with pytest.raises(psycopg.Error, match="no open hold to settle its image from") as refused:
        hand.about(held, "finish_stage")
    assert refused.value.sqlstate == "VG003"
    assert ground.dump() == before


def test_prices_are_those_of_the_hold_not_those_of_today(ground: Ground) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.walk(held, "start_task")
    ground.sql("update public.credit_prices set credits = credits * 10")
    hand.about(held, "start_task")
    hand.walk(held, *STAGE)
    assert ground.credits(user) == (100 - IMAGE_PRICE, VIDEO_PRICE)
    ground.sql("delete from public.credit_prices")
    hand.walk(Held(held.id, held.attempt, held.worker_id), *STAGE, stage="video")
    assert ground.credits(user) == (100 - BOTH, 0)


def test_without_credits_nothing_is_held_or_charged(ground: Ground) -> None:
    hand = ground.worker()
    held = claimed(ground, hand, ground.user(0))
    assert hand.about(held, "start_task", credits=False)[0]["funding"] == "held"
    hand.walk(held, *STAGE[:3])
    hand.about(held, "finish_stage", credits=False)
    for table in ("vidgen.holds", "vidgen.charges", "public.credit_entries"):
        assert ground.none(f"select from {table}")


# Release.


@pytest.mark.parametrize("end", ["fail", "cancel"])
@pytest.mark.parametrize(("steps", "paid"), [((), 0), (STAGE[:3], 0), (STAGE, IMAGE_PRICE)])
def test_the_end_of_a_task_releases_what_was_not_charged(
    ground: Ground, end: str, steps: tuple[str, ...], paid: int
) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.walk(held, "start_task", *steps)
    hand.about(held, end)
    assert ground.credits(user) == (100 - paid, 0)
    assert ground.one("select amount from vidgen.holds where closed_at is not null")["amount"] == 0
    ground.sql("select vidgen.release_credits(%s)", held.id)
    assert ground.credits(user) == (100 - paid, 0)
    assert ground.books_balance()


def test_the_last_stage_completes_its_task_with_its_charge_and_once(ground: Ground) -> None:
    """Its row shows the step before the end, in this order to a trigger of an application's too."""
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.walk(held, "start_task", *STAGE)
    clip = Held(held.id, held.attempt, held.worker_id)
    hand.walk(clip, *STAGE[:-1], stage="video")
    # It has waited for Storage: the stage and the end both forget that, in one statement.
    ground.sql(
        "insert into vidgen.budgets (task_id, waiting_since) values (%s, now())"
        " on conflict (task_id) do update set waiting_since = now()",
        held.id,
    )
    ground.sql("create table public.seen (n serial, at float8, step text)")
    ground.sql("""
        create function public.see() returns trigger language plpgsql security definer as $$
        begin
          insert into public.seen (at, step) values (new.progress, new.current_step);
          return null;
        end $$;
        create trigger see after update on public.video_generation_tasks
          for each row execute function public.see()""")
    last = {
        **stage_of("video"),
        "progress": 95.0,
        "current_step": "Saving",
        "signed_url": "https://x",
    }
    (row,) = hand.about(clip, "finish_stage", **last)
    assert row["charged"] == VIDEO_PRICE
    assert row["completed"]["seconds"] >= 0
    assert hand.about(clip, "finish_stage", **last) == [], "its acknowledgement was lost"
    task = ground.task(held.id)
    assert (task["status"], task["video_url"], task["worker_id"]) == (
        "completed",
        "https://x",
        None,
    )
    seen = ground.sql("select at, step from public.seen order by n")
    assert [tuple(row.values()) for row in seen] == [(95, "Saving"), (100, "Completed")]
    assert ground.credits(user) == (100 - BOTH, 0)
    assert ground.none("select from vidgen.holds where closed_at is null")
    assert ground.none("select from vidgen.budgets where waiting_since is not null")
    assert ground.books_balance()


def test_a_cancelled_waiting_task_gives_its_hold_back(ground: Ground) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.walk(held, "start_task")
    hand.about(held, "requeue")
    ground.sql("select public.cancel_video_generation_task(%s)", held.id)
    assert ground.credits(user) == (100, 0)


@pytest.mark.parametrize("waiting", [True, False])
def test_a_deleted_task_gives_its_hold_back(ground: Ground, *, waiting: bool) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.walk(held, "start_task", *STAGE)
    if waiting:
        hand.about(held, "requeue")
    ground.sql("delete from public.video_generation_tasks where id = %s", held.id)
    assert ground.credits(user) == (100 - IMAGE_PRICE, 0)
    assert ground.none("select from vidgen.holds where closed_at is null")
    assert ground.books_balance()
    assert not ground.none("select from vidgen.charges"), "what was charged outlives the task"


def test_a_retry_holds_only_what_is_left_to_pay(ground: Ground) -> None:
    user, hand = ground.user(BOTH), ground.worker()
    held = claimed(ground, hand, user)
    hand.walk(held, "start_task", *STAGE)
    hand.about(held, "fail")
    ground.sql("select public.retry_video_generation_task(%s)", held.id)
    (again,) = hand.claim()
    assert hand.about(again, "start_task")[0]["funding"] == "held"
    assert ground.credits(user) == (VIDEO_PRICE, VIDEO_PRICE)
    hand.walk(again, *STAGE, stage="video")
    assert ground.credits(user) == (0, 0)
    assert ground.books_balance()


# Grants and the ledger.


def test_a_grant_counts_once_per_reference(ground: Ground) -> None:
    user = ground.user(0)
    for _ in range(3):
        row = ground.one("select * from public.grant_video_credits(%s, 50, 'payment 1')", user)
        assert (row["user_id"], row["balance"], row["held"]) == (user, 50, 0)
    ground.one("select * from public.grant_video_credits(%s, 7, 'payment 2')", user)
    assert ground.credits(user) == (57, 0)
    assert ground.books_balance()


def test_a_grant_waits_for_the_same_one_and_counts_once(ground: Ground) -> None:
    user = ground.user(0)
    one, two = ground.hand(), ground.hand()
    grant = "select * from public.grant_video_credits(%s, 50, 'payment')"
    with one.holding():
        one.conn.execute(grant, [user])
        late = two.later(lambda: two.conn.execute(grant, [user]).fetchone())
        assert ground.waits(late)
    assert late.result()["balance"] == 50
    assert ground.credits(user) == (50, 0)


def test_a_reference_can_t_be_used_for_another_grant(ground: Ground) -> None:
    user = ground.user(0)
    grant = "select public.grant_video_credits(%s, %s, 'payment')"
    ground.sql(grant, user, 50)
    for other_user, amount in ((user, 51), (ground.user(0), 50)):
        with pytest.raises(psycopg.Error, match="was used for another grant") as refused:
            ground.sql(grant, other_user, amount)
        assert refused.value.sqlstate == "PT409"
    assert ground.credits(user) == (50, 0)


@pytest.mark.parametrize(
    ("user", "amount", "reference"),
    [
        (None, 5, "r"), (uuid4(), 0, "r"), (uuid4(), -5, "r"), (uuid4(), None, "r"),
        (uuid4(), 5, ""), (uuid4(), 5, "  "), (uuid4(), 5, None), (uuid4(), 5, "r" * 501),
    ],
)  # fmt: skip
def test_an_invalid_grant_is_refused(
    ground: Ground, user: UUID | None, amount: int | None, reference: str | None
) -> None:
    with pytest.raises(psycopg.Error, match="grant_video_credits needs") as refused:
        ground.sql("select public.grant_video_credits(%s, %s, %s)", user, amount, reference)
    assert refused.value.sqlstate == "PT400"
    assert ground.none("select from public.credit_entries")


@pytest.mark.parametrize("role", ["anon", "authenticated", "vidgen_worker"])
def test_clients_can_t_grant_themselves_credits(ground: Ground, role: str) -> None:
    user = ground.user(0)
    with ground.admin.transaction(force_rollback=True):
        ground.sql(f"set local role {role}")
        with pytest.raises(errors.InsufficientPrivilege):
            ground.sql("select public.grant_video_credits(%s, 5, 'mine')", user)


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
@pytest.mark.parametrize(
    "statement",
    [
        "update public.user_credits set balance = 1000000",
        "insert into public.user_credits (user_id, balance) values (gen_random_uuid(), 5)",
        "delete from public.user_credits",
        "delete from public.credit_entries",
        "insert into public.credit_entries (user_id, kind, amount) values (%s, 'charge', -5)",
        "select vidgen.grant_credits(gen_random_uuid(), 5, 'mine')",
        "select * from vidgen.holds",
    ],
)
def test_only_the_grant_writes_the_books(ground: Ground, role: str, statement: str) -> None:
    with ground.admin.transaction(force_rollback=True):
        ground.sql(f"set local role {role}")
        with pytest.raises(errors.InsufficientPrivilege):
            ground.sql(statement, *[uuid4()] * statement.count("%s"))


@pytest.mark.parametrize(
    "statement",
    ["update public.credit_entries set amount = 1", "delete from public.credit_entries"],
)
def test_the_ledger_is_append_only_even_for_its_owner(ground: Ground, statement: str) -> None:
    ground.user(5)
    hand = ground.hand()
    with pytest.raises(errors.CheckViolation, match="append-only"):
        hand.conn.execute(statement.encode())


# Outputs that are made here and not paid.


def made_here(hand: Hand, held: Held, state: str = "storing") -> None:
    """A checkpoint of the still without a submission."""
    hand.conn.execute(
        "insert into vidgen.checkpoints (task_id, stage, state, request, inputs, submission_id)"
        " values (%s, 'image', %s, '{}', '', null)",
        [held.id, state],
    )


def test_an_output_made_here_is_stored_and_not_charged(ground: Ground) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.about(held, "start_task")
    made_here(hand, held)
    hand.walk(held, "begin_upload", "finish_stage")
    done = ground.one("select state, generation_id from vidgen.checkpoints")
    assert (done["state"], done["generation_id"]) == ("done", None)
    assert ground.sql("select stage from vidgen.charges") == []
    assert ground.credits(user) == (100, BOTH)
    hand.about(held, "requeue")
    assert ground.one("select stage from vidgen.resumes")["stage"] == "video"
    (again,) = hand.claim()
    (loaded,) = hand.about(again, "load_task")
    assert (loaded["state"], loaded["followed_here"]) == ("done", True)


@pytest.mark.parametrize("state", ["submitting", "generating"])
def test_no_checkpoint_is_submitting_or_generating_without_a_submission(
    ground: Ground, state: str
) -> None:
    hand = ground.worker()
    held = claimed(ground, hand, ground.user(100))
    with pytest.raises(errors.CheckViolation, match="without_a_submission_nothing_is_generated"):
        made_here(hand, held, state)


# Functions that an application replaces, and signs of wrong books.


def test_replaced_functions_survive_another_migrate(ground: Ground) -> None:
    hand = ground.hand()
    hand.conn.execute(
        "create or replace function vidgen.hold_credits("
        "  task_id uuid, user_id uuid, prices jsonb"
        ") returns boolean language sql as 'select true'"
    )
    assert migrate(ground.database.url) == []
    body = ground.one(
        "select prosrc from pg_proc where proname = 'hold_credits'"
        " and pronamespace = 'vidgen'::regnamespace"
    )
    assert body["prosrc"] == "select true"

    worker = ground.worker()
    held = claimed(ground, worker, ground.user(0))
    assert worker.about(held, "start_task")[0]["funding"] == "held"


def test_charges_stay_unique_when_the_settle_is_replaced(ground: Ground) -> None:
    """The primary key is ours, whatever an application's own settle does."""
    hand = ground.hand()
    for name, arguments in (("settle", "task_id uuid, stage text"), ("release", "task_id uuid")):
        hand.conn.execute(
            f"create or replace function vidgen.{name}_credits({arguments}) returns void"
            " language sql as 'select'".encode()
        )
    worker = ground.worker()
    held = claimed(ground, worker, ground.user(100))
    worker.walk(held, "start_task", *STAGE)
    worker.about(held, "finish_stage")
    assert ground.one("select count(*) as charges from vidgen.charges")["charges"] == 1


def corrupt_balance(ground: Ground, user: UUID) -> None:
    ground.sql("update public.user_credits set balance = balance + 1 where user_id = %s", user)


def corrupt_held(ground: Ground, user: UUID) -> None:
    ground.sql("update public.user_credits set held = held + 1 where user_id = %s", user)


def lose_the_balance(ground: Ground, user: UUID) -> None:
    ground.sql("delete from public.user_credits where user_id = %s", user)


def hold_behind_its_back(ground: Ground, user: UUID) -> None:
    ground.sql(
        "insert into vidgen.holds (task_id, user_id, prices, amount)"
        """ values (%s, %s, '{"image": 5, "video": 25}', 30)""",
        uuid4(), user,
    )  # fmt: skip


@pytest.mark.parametrize(
    "corrupt", [corrupt_balance, corrupt_held, lose_the_balance, hold_behind_its_back]
)
def test_books_that_don_t_agree_are_seen(
    ground: Ground, corrupt: Callable[[Ground, UUID], None]
) -> None:
    user = ground.user(100)
    ground.user(50)
    assert ground.books_balance()
    corrupt(ground, user)
    rows = ground.sql("select user_id from vidgen.credit_discrepancies")
    assert rows == [{"user_id": user}]


# Changes of an application to the books.


def test_a_charge_survives_a_balance_that_is_deleted_under_its_hold(ground: Ground) -> None:
    """The row is the running total of the ledger, and is made again from it."""
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.about(held, "start_task")
    lose_the_balance(ground, user)
    hand.walk(held, *STAGE)
    assert ground.credits(user) == (100 - IMAGE_PRICE, VIDEO_PRICE)
    assert ground.books_balance()


def test_a_balance_that_is_deleted_and_granted_anew_holds_what_was_held(ground: Ground) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.about(held, "start_task")
    lose_the_balance(ground, user)
    ground.sql("select public.grant_video_credits(%s, 10, 'again')", user)
    assert ground.credits(user) == (110, BOTH)
    hand.walk(held, *STAGE)
    assert ground.credits(user) == (110 - IMAGE_PRICE, VIDEO_PRICE)
    assert ground.books_balance()


def test_a_balance_that_an_application_makes_anew_without_its_holds_is_restored(
    ground: Ground,
) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.about(held, "start_task")
    ground.sql("update public.user_credits set balance = 0, held = 0 where user_id = %s", user)
    hand.walk(held, *STAGE)
    assert ground.credits(user) == (100 - IMAGE_PRICE, VIDEO_PRICE)
    assert ground.books_balance()


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_a_release_restores_a_deleted_balance(ground: Ground, end: str) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.about(held, "start_task")
    lose_the_balance(ground, user)
    assert hand.about(held, end)
    assert ground.credits(user) == (100, 0)
    assert ground.books_balance()


def test_a_user_who_may_have_no_balance_any_more_stops_no_task_and_is_in_the_audit(
    ground: Ground,
) -> None:
    """The application's own foreign key to its users cascades, and refuses the restored row."""
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.about(held, "start_task")
    ground.sql("create table public.accounts (id uuid primary key)")
    ground.sql("insert into public.accounts values (%s)", user)
    ground.sql(
        "alter table public.user_credits add foreign key (user_id) references public.accounts"
        " on delete cascade"
    )
    ground.sql("delete from public.accounts")
    hand.walk(held, *STAGE)
    charged = "select amount from public.credit_entries where kind = 'charge'"
    assert ground.sql(charged) == [{"amount": -IMAGE_PRICE}]
    (wrong,) = ground.sql("select user_id, balance, entries_total from vidgen.credit_discrepancies")
    assert wrong == {"user_id": user, "balance": 0, "entries_total": 100 - IMAGE_PRICE}


def test_a_grant_that_meets_a_settle_of_a_deleted_balance_counts_both(ground: Ground) -> None:
    user, hand = ground.user(100), ground.worker()
    held = claimed(ground, hand, user)
    hand.about(held, "start_task")
    hand.walk(held, *STAGE[:3])
    lose_the_balance(ground, user)
    with hand.holding():
        hand.walk(held, "finish_stage")
        other = ground.hand()
        granting = other.later(
            lambda: other.conn.execute("select public.grant_video_credits(%s, 7, 'seven')", [user])
        )
        assert ground.waits(granting)
    granting.result()
    assert ground.credits(user) == (107 - IMAGE_PRICE, VIDEO_PRICE)
    assert ground.books_balance()


# Ids.


@pytest.mark.parametrize("ended", [True, False])
def test_an_id_used_again_after_a_delete_is_refused_before_anything_is_paid(
    ground: Ground, *, ended: bool
) -> None:
    user, hand = ground.user(200), ground.worker()
    held = claimed(ground, hand, user)
    hand.walk(held, "start_task", *STAGE)
    if ended:
        hand.about(held, "fail")
    ground.sql("delete from public.video_generation_tasks where id = %s", held.id)
    again = "insert into public.video_generation_tasks (id, user_id, scene_id) values (%s, %s, %s)"
    with pytest.raises(psycopg.Error, match="pruned or deleted") as refused:
        ground.sql(again, held.id, user, ground.scene(user))
    assert refused.value.sqlstate == "PT409"
    assert "an id of its own" in str(refused.value.diag.message_hint)
    # Of many at once: none of them.
    with pytest.raises(psycopg.Error, match=str(held.id)):
        ground.sql(
            "insert into public.video_generation_tasks (id, user_id, scene_id)"
            " select unnest(%s::uuid[]), %s, %s",
            [uuid4(), held.id, uuid4()], user, ground.scene(user),
        )  # fmt: skip


def test_an_id_of_a_task_that_was_never_begun_may_come_again(ground: Ground) -> None:
    task = ground.order(user := ground.user())
    ground.sql("delete from public.video_generation_tasks where id = %s", task)
    ground.sql(
        "insert into public.video_generation_tasks (id, user_id, scene_id) values (%s, %s, %s)",
        task, user, ground.scene(user),
    )  # fmt: skip
    assert ground.task(task)["status"] == "pending"


# Two tasks of one scene.


def of_one_scene(ground: Ground, hand: Hand) -> tuple[Held, Held, UUID]:
    """Two running tasks of one scene, the older first."""
    user = ground.user()
    scene = ground.scene(user)
    tasks = []
    for _ in range(2):
        ground.sql(
            "insert into public.video_generation_tasks (user_id, scene_id) values (%s, %s)",
            user, scene,
        )  # fmt: skip
        (held,) = hand.claim()
        hand.walk(held, "start_task")
        tasks.append(held)
    return tasks[0], tasks[1], scene


def made(hand: Hand, held: Held, name: str) -> None:
    hand.walk(held, *STAGE[:3])
    hand.about(held, "finish_stage", image_url=f"https://storage.test/{name}.png")
    hand.walk(Held(held.id, held.attempt, held.worker_id), *STAGE, stage="video")
    hand.about(held, "complete", video_url=f"https://storage.test/{name}.mp4")


def shown(ground: Ground, scene: UUID) -> tuple[str, str | None, str | None]:
    row = ground.one(
        "select status, image_url, generated_video_url from public.video_scenes where id = %s",
        scene,
    )
    names = [url and url.split("/")[-1] for url in (row["image_url"], row["generated_video_url"])]
    return row["status"], names[0], names[1]


@pytest.mark.parametrize("end", ["fail", "cancel"])
@pytest.mark.parametrize("newest", [True, False])
def test_a_scene_that_is_completed_stays_so_when_its_other_task_ends_badly(
    ground: Ground, end: str, *, newest: bool
) -> None:
    hand = ground.worker()
    older, newer, scene = of_one_scene(ground, hand)
    good, bad = (newer, older) if newest else (older, newer)
    made(hand, good, "good")
    hand.about(bad, end)
    assert shown(ground, scene) == ("completed", "good.png", "good.mp4")


def test_a_scene_shows_its_newest_clip_whichever_came_last(ground: Ground) -> None:
    hand = ground.worker()
    older, newer, scene = of_one_scene(ground, hand)
    made(hand, newer, "newer")
    made(hand, older, "older")
    assert shown(ground, scene) == ("completed", "newer.png", "newer.mp4")


def test_a_scene_shows_the_older_clip_until_the_newer_one_is_there(ground: Ground) -> None:
    hand = ground.worker()
    older, newer, scene = of_one_scene(ground, hand)
    made(hand, older, "older")
    assert shown(ground, scene) == ("processing", "older.png", "older.mp4")
    made(hand, newer, "newer")
    assert shown(ground, scene) == ("completed", "newer.png", "newer.mp4")


def test_a_scene_whose_tasks_all_failed_is_failed(ground: Ground) -> None:
    hand = ground.worker()
    older, newer, scene = of_one_scene(ground, hand)
    hand.about(older, "fail")
    assert shown(ground, scene)[0] == "processing"
    hand.about(newer, "fail")
    assert shown(ground, scene)[0] == "failed"
