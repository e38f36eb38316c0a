"""`reconcile`: the provider's own counters beside our records, and the unexplained rest."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from pydantic import SecretStr

from vidgen_worker.cli.account import read_account
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.options import Json
from vidgen_worker.cli.output import console, facts, fail, print_json, table
from vidgen_worker.client.database import Database, open_database
from vidgen_worker.config import RUNWAY_URL, read
from vidgen_worker.domain.faults import Fault
from vidgen_worker.domain.keys import DEFAULT_ACCOUNT, fingerprint
from vidgen_worker.providers import proxies
from vidgen_worker.providers.protocol import Account
from vidgen_worker.settings.environment import Environment


class AccountSettings(Environment):
    """What this verb reads; the names of models are not looked at, for which the SDK is needed."""

    database_url: SecretStr
    runwayml_api_secret: SecretStr
    runwayml_base_url: str = RUNWAY_URL
    vidgen_account: str = DEFAULT_ACCOUNT


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model's last 24 hours. `unexplained` may be covered by submissions without an answer."""

    model: str
    provider: int
    ours: int
    unknown: int
    in_flight: int

    @property
    def unexplained(self) -> int:
        """Generations at the provider beyond those we know of, and those we may have caused."""
        return max(self.provider - self.ours - self.unknown - self.in_flight, 0)


def reconcile(json: Json = False) -> None:
    """Compare the provider's counters with our records; exit code 1 when something is unexplained.

    Generations are compared by model over 24 hours, credits since the last time this ran. A top-up
    in between shows as credits gained; use of the same key elsewhere as credits gone.
    """
    settings = read(AccountSettings, proxies.problems())
    secret = settings.runwayml_api_secret
    try:
        account = asyncio.run(read_account(secret, settings.runwayml_base_url))
    except Fault as fault:
        fail(ExitCode.UNAVAILABLE, f"Runway could not be asked: {fault.details}")
    key = {
        "provider": "runway", "account": settings.vidgen_account,
        "key_fingerprint": fingerprint(secret.get_secret_value()),
    }  # fmt: skip
    with open_database(settings.database_url.get_secret_value()) as database:
        comparisons = compare(account, database.rows("submissions_of_account", key))
        credits_ = _credits(database, account, key)
    unexplained = sum(comparison.unexplained for comparison in comparisons)
    if json:
        rows = [
            {"model": c.model, "provider": c.provider, "ours": c.ours, "unknown": c.unknown,
             "in_flight": c.in_flight, "unexplained": c.unexplained}
            for c in comparisons
        ]  # fmt: skip
        print_json({"models": rows, "credits": credits_, "unexplained": unexplained})
    else:
        columns = ("model", "at Runway", "ours", "possibly paid", "in flight", "unexplained")
        lines = [
            (c.model, c.provider, c.ours, c.unknown, c.in_flight, c.unexplained)
            for c in comparisons
        ]
        console().print(table(columns, lines, "Generations of the last 24 hours"))
        console().print("", facts(_sum_of(credits_)))
    if unexplained or (credits_["unexplained"] or 0) > 0:
        fail(
            ExitCode.FAILED,
            f"Runway counts more than we can explain: {unexplained} generation(s), "
            f"{credits_['unexplained'] or 0:g} credit(s). Look for other users of this key, and "
            "at Request History in Runway's developer portal.",
        )


def _sum_of(credits_: dict[str, Any]) -> list[tuple[str, object]]:
    """Return the credits as a sum that adds up, line by line."""
    if credits_["read before"] is None:
        return [
            ("balance", credits_["balance"]),
            ("", "Read for the first time: the next time this compares what has gone since."),
        ]
    unanswered = f"{credits_['possibly_paid_submissions']} submission(s) without an answer, which "
    unanswered += "may exist"
    if credits_["unpriced"]:
        unanswered += f"; {credits_['unpriced']} of unknown price"
    return [
        ("balance", credits_["balance"]),
        ("read before", credits_["read before"]),
        ("gone since", f"{credits_['gone since']:g}"),
        ("of that our generations", f"{credits_['explained']:g}"),
        ("possibly paid", f"up to {credits_['possibly_paid']:g}, for {unanswered}"),
        ("unexplained", f"{credits_['unexplained']:g}"),
    ]  # fmt: skip


def compare(account: Account, submissions: list[dict[str, Any]]) -> list[Comparison]:
    """Set the provider's count of each used model beside ours."""
    ours = {row["model"]: row for row in submissions}
    used = {name for name, limits in account.models.items() if limits.daily_generations}
    comparisons = []
    for model in sorted(used | set(ours)):
        limits, row = account.models.get(model), ours.get(model, {})
        comparisons.append(
            Comparison(
                model,
                limits.daily_generations if limits else 0,
                row.get("generations", 0),
                row.get("unknown", 0),
                row.get("in_flight", 0),
            )
        )
    return comparisons


def _credits(database: Database, account: Account, key: dict[str, str]) -> dict[str, Any]:
    """Compare the balance with the reading before, and keep this one for the next."""
    row = database.row("outlay_of_account", key) or {"outlay": Decimal(0), "reading": None}
    before, outlay = row["reading"], Decimal(row["outlay"])
    gone = explained = unexplained = None
    maybe: dict[str, Any] = {"submissions": 0, "credits": Decimal(0), "unpriced": 0}
    if before is not None:
        gone = Decimal(str(before["credit_balance"])) - account.credit_balance
        explained = outlay - Decimal(str(before["outlay"]))
        maybe = database.rows("possibly_paid", {**key, "since": before["read_at"]})[0]
        left = gone - explained
        # Possibly paid credits explain at most what is missing.
        unexplained = left - min(max(left, Decimal(0)), maybe["credits"])
    database.rows(
        "add_account_reading",
        {**key, "credit_balance": account.credit_balance, "outlay": outlay},
    )
    return {
        "balance": account.credit_balance,
        "read before": datetime.fromisoformat(before["read_at"]) if before else None,
        "gone since": gone,
        "explained": explained,
        "possibly_paid": maybe["credits"],
        "possibly_paid_submissions": maybe["submissions"],
        "unpriced": maybe["unpriced"],
        "unexplained": unexplained,
    }
