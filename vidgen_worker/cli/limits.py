"""`limits`: which users their own limits keep back, why and until when; lift a user's limits."""

from typing import Annotated

import typer

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.ids import find_id
from vidgen_worker.cli.options import Json, User, Yes
from vidgen_worker.cli.output import console, facts, fail, need_yes, print_json, table
from vidgen_worker.client.database import load_client_settings, open_database


def list_limits(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Users to show.")] = 50,
    json: Json = False,
) -> None:
    """Show the users who are stopped, slowed, or near it."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        rows = database.rows("limited_users", {"limit": limit})
    if json:
        print_json(rows)
    elif not rows:
        console().print("No limit keeps any user back.")
    else:
        columns = ("user", "rejections", "stopped until", "paused until", "reason")
        lines = [
            (r["user_id"], r["rejections"], r["stopped_until"], r["paused_until"], r["reason"])
            for r in rows
        ]
        console().print(table(columns, lines))


def show(user: User, json: Json = False) -> None:
    """Show what a user has used of each limit, and which inputs are not sent again."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        user_id = find_id(database, "user", user)
        row = database.rows("limits_of_user", {"user_id": user_id})[0]
        rejections = database.rows("rejections_of_user", {"user_id": user_id, "limit": 20})
    if json:
        print_json({**row, "rejected_inputs": rejections})
        return
    console().print(facts([
        ("user", user_id),
        ("stopped until", row["stopped_until"]),
        ("paused until", row["paused_until"]),
        ("reason", row["reason"]),
        ("rejections in a row", (f"{row['rejections']}; pauses from {row['rejections_to_slow']}, "
                                f"a stop at {row['rejections_to_stop']}")),
        ("provider credits lost", f"{row['lost']:g} of {row['most_lost']:g} within a day"),
        ("under way", f"{row['running']} generation(s), {row['open']:g} provider credits"),
        ("unfinished tasks", f"{row['unfinished']} of {row['most_unfinished']}"),
        ("inserted this hour", f"{row['inserts']} of {row['max_inserts_per_hour']}"),
        ("cancelled and retried", f"{row['changes']} of {row['max_changes_per_hour']}"),
        ("lifted", row["lifted_at"]),
    ]))  # fmt: skip
    if rejections:
        lines = [(r["task_id"], r["rejected_at"], r["forgotten_at"]) for r in rejections]
        columns = ("task", "rejected", "forgotten")
        console().print(table(columns, lines, "Rejected inputs, not sent again"))


def lift(user: User, yes: Yes = False, json: Json = False) -> None:
    """Lift a user's limits: no stop, no pause, no loss counted; rejected inputs stay rejected."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        user_id = find_id(database, "user", user)
        before = database.rows("limits_of_user", {"user_id": user_id})[0]
        need_yes(
            f"Lift the limits of user {user_id}: {before['rejections']} rejection(s) in a row, "
            f"{before['lost']:g} provider credits lost today. Tasks that wait go on at once, "
            "which costs money.",
            yes=yes,
        )
        known = database.rows("lift_limits", {"user_id": user_id})[0]["known"]
        after = database.rows("limits_of_user", {"user_id": user_id})[0]
    if not known:
        fail(ExitCode.FAILED, f"Nothing was ever counted for user {user_id}. Check the id.")
    if json:
        print_json({"before": before, "after": after})
    else:
        console().print(f"The limits of user {user_id} are lifted.")
