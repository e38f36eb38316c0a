"""The visibility of a change for each user: the rules of Supabase's `realtime.apply_rls`.

A role sees the columns it may SELECT; without its primary key it is told that it may not. Row level
security is asked with the subscriber's role and claims, of the row as it is now. A DELETE goes to
everybody, with the key alone where row level security is on. It never decides without the database.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import AsyncConnection, errors, sql

from vidgen_worker.sandbox.supabase.callers import Caller
from vidgen_worker.sandbox.supabase.realtime.pgoutput import Change, Values

Connection = AsyncConnection[dict[str, Any]]

LARGEST_BYTES = 1024 * 1024
LARGEST_KEPT_BYTES = 64
"""The largest value that is sent of a row that is too large."""

_TABLE = """
select c.oid, c.relrowsecurity as has_rls, a.attname as name, t.typname as type,
       n.nspname as type_schema,
       exists (select from pg_catalog.pg_index as i
                where i.indrelid = c.oid and i.indisprimary and a.attnum = any(i.indkey)) as is_key
  from pg_catalog.pg_class as c
  join pg_catalog.pg_namespace as s on s.oid = c.relnamespace
  join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
  join pg_catalog.pg_type as t on t.oid = a.atttypid
  join pg_catalog.pg_namespace as n on n.oid = t.typnamespace
 where s.nspname = %s and c.relname = %s
 order by a.attnum
"""

OPERATORS = {
    "eq": sql.SQL("{} = {}"),
    "neq": sql.SQL("{} <> {}"),
    "lt": sql.SQL("{} < {}"),
    "lte": sql.SQL("{} <= {}"),
    "gt": sql.SQL("{} > {}"),
    "gte": sql.SQL("{} >= {}"),
    "in": sql.SQL("{} = {}"),
    "isdistinct": sql.SQL("{} is distinct from {}"),
}
PATTERNS = {
    "like": sql.SQL("{}::text like {}"),
    "ilike": sql.SQL("{}::text ilike {}"),
    "match": sql.SQL("{}::text ~ {}"),
    "imatch": sql.SQL("{}::text ~* {}"),
}
STATES = {
    "null": sql.SQL("{} is null"),
    "true": sql.SQL("{} is true"),
    "false": sql.SQL("{} is false"),
    "unknown": sql.SQL("{} is unknown"),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A part of a subscription's filter: one column against a value, several with `in`."""

    column: str
    operator: str
    values: tuple[str, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Described:
    """The table of a change, as the catalog has it."""

    oid: int
    has_rls: bool
    columns: tuple[Mapping[str, Any], ...]

    @property
    def key(self) -> tuple[str, ...]:
        """The primary key."""
        return tuple(column["name"] for column in self.columns if column["is_key"])

    def cast(self, name: str, text: str | None) -> sql.Composed:
        """Return a value of a column as SQL of the column's type."""
        column = next(one for one in self.columns if one["name"] == name)
        kind = sql.Identifier(column["type_schema"], column["type"])
        return sql.SQL("{}::{}").format(sql.Literal(text), kind)


class Catalog:
    """What the catalog says while one look at the slot is handed out; each thing is asked once."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._tables: dict[tuple[str, str], Described | None] = {}
        self._allowed: dict[tuple[int, str], frozenset[str]] = {}

    async def describe(self, schema: str, table: str) -> Described | None:
        """Return a table, None if it is not there."""
        if (schema, table) not in self._tables:
            self._tables[schema, table] = await describe(self.connection, schema, table)
        return self._tables[schema, table]

    async def selectable(self, table: Described, role: str) -> frozenset[str]:
        """Return the columns that a role may SELECT."""
        if (table.oid, role) not in self._allowed:
            self._allowed[table.oid, role] = await selectable(self.connection, table, role)
        return self._allowed[table.oid, role]


async def describe(connection: Connection, schema: str, table: str) -> Described | None:
    """Return what the catalog says of a table, None if it is not there."""
    rows = await (await connection.execute(_TABLE, [schema, table])).fetchall()
    return Described(rows[0]["oid"], rows[0]["has_rls"], tuple(rows)) if rows else None


async def selectable(connection: Connection, table: Described, role: str) -> frozenset[str]:
    """Return the columns that a role may SELECT."""
    cursor = await connection.execute(
        "select name from unnest(%s::text[]) as name"
        " where pg_catalog.has_column_privilege(%s, %s::oid, name, 'select')",
        [[column["name"] for column in table.columns], role, table.oid],
    )
    return frozenset(row["name"] for row in await cursor.fetchall())


async def passes(
    connection: Connection, table: Described, change: Change, conditions: Sequence[Condition]
) -> bool:
    """Whether a row is what the subscription asked for: all of its conditions hold."""
    row = change.new or change.old
    known = {column["name"] for column in table.columns}
    try:
        for condition in conditions:
            if condition.column not in row or condition.column not in known:
                return False
            if not await holds(connection, table, condition, row[condition.column]):
                return False
    except (errors.DataError, errors.ProgrammingError):
        return False  # asked for of all tables, and it means nothing in this one
    return True


async def holds(
    connection: Connection, table: Described, condition: Condition, value: str | None
) -> bool:
    """Whether a value of the column passes. Raises `psycopg.Error` where none ever could."""
    given = table.cast(condition.column, value)
    match condition.operator:
        case "is":
            tests = [STATES[condition.values[0].lower()].format(given)]
        case "like" | "ilike" | "match" | "imatch":
            tests = [PATTERNS[condition.operator].format(given, sql.Literal(condition.values[0]))]
        case _:
            tests = [
                OPERATORS[condition.operator].format(given, table.cast(condition.column, wanted))
                for wanted in condition.values
            ]
    joined = sql.SQL(" or ").join(tests)
    negation = sql.SQL("not " if condition.negated else "")
    statement = sql.SQL("select {}({}) as passes").format(negation, joined)
    found = await (await connection.execute(statement)).fetchone()
    return bool(found and found["passes"])


async def may_see(connection: Connection, table: Described, change: Change, caller: Caller) -> bool:
    """Whether the subscriber's own SELECT finds the row now."""
    if change.verb == "DELETE" or not table.has_rls:
        return True
    statement = sql.SQL("select from {} where {}").format(
        sql.Identifier(change.schema, change.table),
        sql.SQL(" and ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), table.cast(name, change.new[name]))
            for name in table.key
        ),
    )
    try:
        async with connection.transaction():
            await connection.execute(
                "select set_config('request.jwt.claims', %s, true), set_config('role', %s, true)",
                [json.dumps(caller.claims), caller.role],
            )
            return await (await connection.execute(statement)).fetchone() is not None
    except psycopg.Error:
        # No privilege, no such role, or a policy of the application that raises: for this
        # subscriber the row is not there. The others are asked all the same.
        if connection.closed:
            raise
        return False


async def payload(
    connection: Connection, table: Described, change: Change, allowed: frozenset[str]
) -> dict[str, Any]:
    """Return what a role that may SELECT the columns `allowed` is told of a change it may see."""
    head = {"schema": change.schema, "table": change.table, "type": change.verb}
    if change.verb != "DELETE" and not table.key:
        return {**head, "errors": ["Error 400: Bad Request, no primary key"]}
    if change.verb != "DELETE" and not allowed >= set(table.key):
        return {**head, "errors": ["Error 401: Unauthorized"]}
    size = sum(len(value or "") for value in change.new.values())
    is_large = size > LARGEST_BYTES
    hidden = change.verb == "DELETE" and table.has_rls
    data: dict[str, Any] = {
        **head,
        "commit_timestamp": change.committed.isoformat(timespec="milliseconds").replace(
            "+00:00", "Z"
        ),
        "columns": [
            {"name": column["name"], "type": column["type"]}
            for column in table.columns
            if column["name"] in allowed
        ],
        "errors": ["Error 413: Payload Too Large"] if is_large else None,
    }
    if change.verb != "DELETE":
        # An unchanged value that was stored apart is only in the old row, if anywhere.
        row = {**change.old, **change.new}
        data["record"] = await _record(connection, table, row, allowed, is_large=is_large)
    if change.verb != "INSERT":
        names = allowed & set(table.key) if hidden else allowed
        data["old_record"] = await _record(connection, table, change.old, names, is_large=is_large)
    return data


async def _record(
    connection: Connection, table: Described, row: Values, names: frozenset[str], *, is_large: bool
) -> dict[str, Any]:
    """Return a row as JSON, as PostgreSQL writes it."""
    parts: list[sql.Composable] = []
    for name, value in row.items():
        fits = not is_large or len(value or "") <= LARGEST_KEPT_BYTES
        if name in names and fits:
            parts += [sql.Literal(name), table.cast(name, value)]
    # A function takes a hundred arguments.
    pieces = [parts[at : at + 80] for at in range(0, len(parts), 80)] or [[]]
    built = sql.SQL(" || ").join(
        sql.SQL("jsonb_build_object({})").format(sql.SQL(", ").join(piece)) for piece in pieces
    )
    found = await (
        await connection.execute(sql.SQL("select {} as record").format(built))
    ).fetchone()
    record: dict[str, Any] = found["record"] if found else {}
    return record
