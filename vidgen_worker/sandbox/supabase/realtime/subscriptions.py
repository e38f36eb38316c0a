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
FILTER = re.compile(
    r"(?P<column>[^=]+)=(?P<negated>not\.)?(?P<operator>[a-z]+)\.(?P<value>.*)", re.DOTALL
)
EVENTS = ("INSERT", "UPDATE", "DELETE")
OPERATORS = (*visibility.OPERATORS, *visibility.PATTERNS, "is")


class SubscriptionError(Exception):
    """A subscription that can't be; the message is for the client."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """One entry of a channel's `postgres_changes`. `id` is what its events name."""

    id: int
    event: str
    schema: str
    table: str
    conditions: tuple[Condition, ...]

    @classmethod
    def of(cls, number: int, asked: dict[str, Any]) -> "Subscription":
        """Read an entry of a join; an unknown event is any. Raises `SubscriptionError`."""
        event, schema = str(asked.get("event", "*")).upper(), str(asked.get("schema", "public"))
        return cls(
            number,
            event if event in EVENTS else "*",
            schema,
            str(asked.get("table") or "*"),
            _conditions(asked.get("filter")),
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
    if not subscription.conditions:
        return
    allowed = await visibility.selectable(connection, table, caller.role)
    for condition in subscription.conditions:
        if condition.column not in allowed:
            raise SubscriptionError(f"invalid column for filter {condition.column}")
        await visibility.holds(connection, table, condition, None)


def _conditions(text: object) -> tuple[Condition, ...]:
    """Read `column=operator.value,column=not.in.(a,"b,c")`: all of them must hold."""
    given = str(text or "").strip()
    return tuple(_condition(part.strip()) for part in _split(given)) if given else ()


def _condition(text: str) -> Condition:
    found = FILTER.fullmatch(text)
    if found is None or found["operator"] not in OPERATORS:
        raise SubscriptionError(
            f"there is no filter like {text[:100]!r}: a column, =, one of {', '.join(OPERATORS)}, "
            "a dot and a value were expected"
        )
    operator, value = found["operator"], found["value"]
    if operator == "is" and value.lower() not in visibility.STATES:
        raise SubscriptionError(f"is takes {', '.join(visibility.STATES)}, not {value[:100]!r}")
    values: tuple[str, ...] = (_unquoted(value),)
    if operator == "in":
        if not (value.startswith("(") and value.endswith(")")):
            raise SubscriptionError("`in` filter value must be wrapped by parentheses")
        values = tuple(_unquoted(one) for one in _split(value[1:-1]))
        if len(values) > MOST_LISTED:
            raise SubscriptionError(f"a filter lists {MOST_LISTED} values at most")
    return Condition(found["column"], operator, values, found["negated"] is not None)


def _split(text: str) -> list[str]:
    """Split at the commas outside of parentheses and quotes; a quote begins a value only."""
    parts, depth, quoted, begin = [], 0, False, 0
    for place, letter in enumerate(text):
        before = text[place - 1] if place > begin else ","
        if quoted:
            quoted = letter != '"' or before == "\\"
        elif letter == '"' and before in ".(,":
            quoted = True
        elif letter in "()":
            depth = max(0, depth + (1 if letter == "(" else -1))
        elif letter == "," and not depth:
            parts.append(text[begin:place])
            begin = place + 1
    return [*parts, text[begin:]]


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text
