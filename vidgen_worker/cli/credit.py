"""`credits`: add to a user's balance, show it, and prove that the books agree."""

from typing import Annotated
from uuid import UUID, uuid4

import typer

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.ids import check_user, find_id
from vidgen_worker.cli.options import Json, User, Yes
from vidgen_worker.cli.output import console, facts, fail, need_yes, print_json, table
from vidgen_worker.client.database import load_client_settings, open_database

MOST = 2**31 - 1
"""The largest integer of PostgreSQL."""
NOTHING = {"balance": 0, "held": 0}


def grant(
    user: User,
    amount: Annotated[
        int, typer.Argument(min=1, max=MOST, help="Credits to add.", show_default=False)
    ],
    reference: Annotated[
        str | None,
        typer.Option(help="Makes it safe to repeat: the same reference is granted once."),
    ] = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Add credits to a user's balance."""
    name = reference or f"cli-{uuid4().hex[:16]}"
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        user_id = find_id(database, "user", user)
        check_user(database, user_id)
        of_user = {"user_id": user_id}
        before = database.row("user_credits", of_user) or NOTHING
        need_yes(
            f"Grant {amount} credits to user {user_id} (balance {before['balance']}), "
            f"reference {name}.",
            yes=yes,
        )
        granted = {"user_id": user_id, "amount": amount, "reference": name}
        database.rows("grant_credits", granted)
        after = database.row("user_credits", of_user) or NOTHING
    if json:
        print_json({"user_id": user_id, "reference": name, "before": before, "after": after})
    elif after["balance"] == before["balance"]:
        console().print(f"Reference {name} was granted before: nothing changed.")
    else:
        console().print(f"Balance: {before['balance']} → {after['balance']} credits.")


def show(
    user: User,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Entries to show.")] = 20,
    json: Json = False,
) -> None:
    """Show a user's balance, what of it is held, and the newest entries of the ledger."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        user_id = find_id(database, "user", user)
        of_user = {"user_id": user_id, "limit": limit}
        credits_ = database.row("user_credits", of_user) or NOTHING
        entries = database.rows("credit_entries_of_user", of_user)
        prices = database.rows("credit_prices")
    if json:
        print_json({**credits_, "entries": entries, "prices": prices})
        return
    free = credits_["balance"] - credits_["held"]
    pairs = [
        ("user", user_id),
        ("balance", credits_["balance"]),
        ("held", credits_["held"]),
        ("free", free),
        ("prices", ", ".join(f"{p['action']} {p['credits']}" for p in prices) or "none set"),
    ]
    console().print(facts(pairs))
    if entries:
        lines = [
            (e["created_at"], e["kind"], f"{e['amount']:+d}", e["task_id"] or e["reference"])
            for e in entries
        ]
        console().print("", table(("when", "kind", "amount", "task or reference"), lines))


def audit(json: Json = False) -> None:
    """Compare every balance with its ledger and holds; exit code 1 when one disagrees."""
    with open_database(load_client_settings().database_url.get_secret_value()) as database:
        wrong = database.rows("credit_audit")
    if json:
        print_json(wrong)
    elif not wrong:
        console().print("Balances, holds and ledger agree.")
    else:
        # Whole ids: what follows is done in SQL.
        lines = [[str(v) if isinstance(v, UUID) else v for v in row.values()] for row in wrong]
        console().print(table(list(wrong[0]), lines))
        fail(
            ExitCode.FAILED,
            f"{len(wrong)} balance(s) disagree with the ledger or the holds. The ledger "
            "(credit_entries) is the truth; find out who wrote to user_credits directly.",
        )
    if wrong:
        raise typer.Exit(ExitCode.FAILED)
