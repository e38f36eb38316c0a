"""The subscriptions of a channel: events of a table, perhaps only of some rows.

A filter is looked at when it is subscribed, as Realtime does: a column that the role may not read,
an operator that there is not, or a value that is none of the column's, is an error then. It never
sends anything.
"""

import re
from dataclasses import dataclass
from typing import Any

from vidgen_worker.sandbox.supabase.callers import Caller
from vidgen_worker.sandbox.supabase.realtime import visibility
from vidgen_worker.sandbox.supabase.realtime.pgoutput import Change
from vidgen_worker.sandbox.supabase.realtime.reader import PUBLICATION
from vidgen_worker.sandbox.supabase.realtime.visibility import Condition, Connection

MOST_LISTED = 100
FILTER = re.compile(r"(?P<column>[^=]+)=(?P<operator>[a-z]+)\.(?P<value>.*)", re.DOTALL)
EVENTS = ("*", "INSERT", "UPDATE", "DELETE")


class SubscriptionError(Exception):
    """A subscription that can't be; the message is for the client."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One entry of a channel's `postgres_changes`. `id` is what its events name."""

    id: int
    event: str
    schema: str
    table: str
    condition: Condition | None

    @classmethod
    def of(cls, number: int, asked: dict[str, Any]) -> "Subscription":
        """Read one entry of a join. Raises `SubscriptionError`."""
        event, schema = str(asked.get("event", "*")), str(asked.get("schema", "public"))
        if event not in EVENTS:
            raise SubscriptionError(f"there is no event {event!r}")
        return cls(
            number, event, schema, str(asked.get("table") or "*"), _condition(asked.get("filter"))
        )

    def concerns(self, change: Change) -> bool:
        """Whether a change is of this table and event."""
        return (
            self.schema in ("*", change.schema)
            and self.table in ("*", change.table)
            and self.event in ("*", change.verb)
        )


async def check(connection: Connection, subscription: Subscription, caller: Caller) -> None:
    """Refuse what would never be sent. Raises `SubscriptionError` and `psycopg.Error`."""
    if subscription.table == "*":
        return
    cursor = await connection.execute(
        "select from pg_catalog.pg_publication_tables"
        " where pubname = %s and schemaname = %s and tablename = %s",
        [PUBLICATION, subscription.schema, subscription.table],
    )
    table = await visibility.describe(connection, subscription.schema, subscription.table)
    if await cursor.fetchone() is None or table is None:
        raise SubscriptionError(
            f"the table {subscription.schema}.{subscription.table} is not in the publication "
            f"{PUBLICATION}"
        )
    if subscription.condition is None:
        return
    if subscription.condition.column not in await visibility.selectable(
        connection, table, caller.role
    ):
        raise SubscriptionError(f"invalid column for filter {subscription.condition.column}")
    await visibility.holds(connection, table, subscription.condition, None)


def _condition(text: object) -> Condition | None:
    """Read `column=operator.value`, or `column=in.(a,b)`."""
    if not text:
        return None
    found = FILTER.fullmatch(str(text))
    if found is None or found["operator"] not in visibility.OPERATORS:
        raise SubscriptionError(f"there is no filter like {str(text)[:100]!r}")
    value = found["value"]
    values = (value,)
    if found["operator"] == "in":
        values = tuple(value.removeprefix("(").removesuffix(")").split(","))
        if len(values) > MOST_LISTED:
            raise SubscriptionError(f"a filter lists {MOST_LISTED} values at most")
    return Condition(found["column"], found["operator"], values)
