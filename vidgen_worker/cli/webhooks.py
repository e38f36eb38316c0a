"""`webhooks`: who is told of what, what was told, and the keys of it."""

from typing import Annotated, Any

import typer

from vidgen_worker.cli.ids import check_name, find_id
from vidgen_worker.cli.options import Json, Yes, duration
from vidgen_worker.cli.output import console, lasting, need_yes, print_json, short, table
from vidgen_worker.client.database import load_client_settings, open_database

EVENTS = (
    "video.*", "video.completed", "video.failed", "video.cancelled",
    "film.*", "film.completed", "film.failed", "film.cancelled",
    "gate.*", "gate.closed", "gate.opened",
)  # fmt: skip
"""As `vidgen.are_webhook_events` knows them."""

Webhook = Annotated[
    str, typer.Argument(help="The webhook's id, or its beginning.", show_default=False)
]


def list_webhooks(json: Json = False) -> None:
    """Show each webhook: whether it is enabled, its last answer, what waits for it."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        rows = database.rows("webhooks")
    if json:
        print_json(rows)
    elif not rows:
        console().print("There is no webhook. Add one with: vidgen-worker webhooks add URL")
    else:
        columns = ("webhook", "url", "events", "state", "last answer", "waiting")
        console().print(table(columns, [_line(row) for row in rows]))


def _line(row: dict[str, Any]) -> tuple[object, ...]:
    answer = "-" if row["last_status"] is None else row["last_status"]
    waiting = (
        f"{row['waiting']}, for {lasting(row['oldest_seconds'])}" if row["waiting"] else "nothing"
    )
    return (
        short(row["id"]), row["url"], " ".join(row["events"]),
        "enabled" if row["enabled"] else f"disabled. {row['disabled_reason']}", answer, waiting,
    )  # fmt: skip


def add(
    url: Annotated[str, typer.Argument(help="https, port 443.", show_default=False)],
    events: Annotated[list[str] | None, typer.Option("--event", help="May be repeated.")] = None,
    json: Json = False,
) -> None:
    """Add a webhook for all users' events. Its secret is shown this once."""
    wanted = events or ["video.*", "film.*"]
    for event in wanted:
        check_name(event, EVENTS, "event")
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        made = database.rows("add_webhook", {"url": url, "events": wanted})[0]["made"]
    if json:
        print_json(made)
        return
    out = console()
    out.print(f"Webhook {made['id']} is added. Its secret, which is not shown again:")
    out.print(f"  {made['secret']}", soft_wrap=True, highlight=False)
    out.print("A worker sends webhook.test now. The webhook is enabled once it answers with 2xx.")
    out.print(f"Look: vidgen-worker webhooks deliveries --webhook {short(made['id'])}")


def send_test(webhook: Webhook, json: Json = False) -> None:
    """Send webhook.test. Once that is answered, a disabled webhook is enabled."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        webhook_id = find_id(database, "webhook", webhook)
        database.rows("test_webhook", {"webhook_id": webhook_id})
    if json:
        print_json({"id": webhook_id})
    else:
        console().print("A worker sends webhook.test now. Look: vidgen-worker webhooks list")


def rotate(webhook: Webhook, yes: Yes = False, json: Json = False) -> None:
    """Make a new secret. The old one signs beside it for 24 hours."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        webhook_id = find_id(database, "webhook", webhook)
        need_yes(
            f"Make a new secret for webhook {webhook_id}. The old one is good for 24 hours more.",
            yes=yes,
        )
        secret = database.rows("rotate_webhook", {"webhook_id": webhook_id})[0]["secret"]
    if json:
        print_json({"id": webhook_id, "secret": secret})
    else:
        console().print("The new secret, which is not shown again:")
        console().print(f"  {secret}", soft_wrap=True, highlight=False)


def resend(
    webhook: Webhook,
    since: Annotated[str, typer.Option(help="How far back: a duration (2h).")] = "1d",
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Send again what has ended since then, delivered or given up, under the same ids."""
    back = duration(since, "--since")
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        webhook_id = find_id(database, "webhook", webhook)
        need_yes(f"Send all deliveries of webhook {webhook_id} of the last {since} again.", yes=yes)
        found = database.rows("resend_deliveries", {"webhook_id": webhook_id, "since": back})
    if json:
        print_json(found[0])
    else:
        console().print(f"{found[0]['deliveries']} deliveries are sent again.")


def remove(webhook: Webhook, yes: Yes = False, json: Json = False) -> None:
    """Remove a webhook, and what is on its way to it."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        webhook_id = find_id(database, "webhook", webhook)
        need_yes(f"Remove webhook {webhook_id}, and all that is on its way to it.", yes=yes)
        database.rows("delete_webhook", {"webhook_id": webhook_id})
    if json:
        print_json({"id": webhook_id})
    else:
        console().print(f"Webhook {webhook_id} is removed.")


def deliveries(
    webhook: Annotated[
        str | None, typer.Option(help="Only of this webhook: its id, or its beginning.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Deliveries to show.")] = 20,
    json: Json = False,
) -> None:
    """Show the newest deliveries, and what came of each."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        only = find_id(database, "webhook", webhook) if webhook else None
        rows = database.rows("deliveries", {"webhook_id": only, "limit": limit})
    if json:
        print_json(rows)
    elif not rows:
        console().print("There is no delivery. What ends while a webhook is enabled makes one.")
    else:
        columns = ("when", "webhook", "event", "task", "state", "tries", "answer")
        console().print(table(columns, [_delivery(row) for row in rows]))


def _delivery(row: dict[str, Any]) -> tuple[object, ...]:
    state = row["state"]
    if state == "waiting":
        state = f"waiting, next in {lasting(row['next_in'])}"
    elif state == "delivered":
        state = f"delivered in {row['took']:.2f} s"
    return (
        row["created_at"], short(row["webhook_id"]), row["event"],
        short(row["task_id"]) if row["task_id"] else "-", state, row["tries"],
        row["last_status"] or row["last_error"] or "-",
    )  # fmt: skip
