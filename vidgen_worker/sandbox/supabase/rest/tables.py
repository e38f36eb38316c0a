"""The verbs on tables: GET, POST, PATCH and DELETE of `/rest/v1/TABLE`.

Each runs inside the caller's transaction, in the caller's role. It never opens one.
"""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from psycopg import sql
from starlette.requests import Request

from vidgen_worker.sandbox.supabase.rest import statements
from vidgen_worker.sandbox.supabase.rest.catalog import (
    Connection,
    Table,
    relation_of,
    table_of,
)
from vidgen_worker.sandbox.supabase.rest.clauses import Related
from vidgen_worker.sandbox.supabase.rest.exchange import (
    MAX_ROWS,
    Answer,
    Preferences,
    accepted,
    body_of,
    content_range,
    is_object,
    paged,
    rows_of,
    shape_of,
    status_of_page,
)
from vidgen_worker.sandbox.supabase.rest.parsing import Embedded, Query, check_flat, parse
from vidgen_worker.sandbox.supabase.rest.refusals import RestRefusalError, not_one

Row = Mapping[str, Any]


async def read(connection: Connection, request: Request, preferences: Preferences) -> Answer:
    """Answer GET and HEAD. Raises `RestRefusalError`."""
    query = paged(parse(request.query_params.multi_items()), request)
    table = await table_of(connection, request.path_params["name"])
    related = await _related(connection, table.name, query)
    media = accepted(request)
    row = await _row(connection, statements.select(table, query, related, shape_of(media)))
    counted = statements.counted(table, query, related)
    total = await count(connection, counted, preferences.count, row["n"])
    body = _shown(row, media)
    status = status_of_page(query.offset, row["n"], total)
    header = content_range(query.offset, row["n"], total)
    return Answer(status, "" if request.method == "HEAD" else body, (header,))


async def insert(connection: Connection, request: Request, preferences: Preferences) -> Answer:
    """Answer POST, with or without an upsert. Raises `RestRefusalError`."""
    query = _change_of(request)
    rows = rows_of(await body_of(request))
    table = await table_of(connection, request.path_params["name"])
    names = _inserted(query, rows)
    _check_names(table, names)
    resolution = preferences.values.get("resolution")
    conflict: sql.Composable = sql.SQL("")
    if resolution is not None:
        key = query.on_conflict or table.key
        conflict = statements.on_conflict(names, key, resolution)
    statement = statements.insert(
        table, names, rows, conflict=conflict,
        returning=_returning(table, query, preferences),
        defaults=preferences.values.get("missing") == "default",
    )  # fmt: skip
    if not rows:
        return Answer(201, "[]", (content_range(0, 0, None),))
    answer = await _changed(connection, statement, query, request, preferences)
    if resolution == "merge-duplicates":
        merged = await _row(connection, sql.SQL("select current_setting('sandbox.merged', true) m"))
        if int(merged["m"] or 0) >= len(rows):
            return Answer(200, answer.body, answer.headers)
    return answer


async def update(connection: Connection, request: Request, preferences: Preferences) -> Answer:
    """Answer PATCH. Raises `RestRefusalError`."""
    query = _change_of(request)
    rows = rows_of(await body_of(request))
    if len(rows) != 1:
        raise RestRefusalError(400, "PGRST102", "Empty or invalid json")
    table = await table_of(connection, request.path_params["name"])
    row = {name: rows[0].get(name) for name in query.columns or rows[0]}
    _check_names(table, row)
    _check_where("UPDATE", query)
    if not row:
        body = "[]" if preferences.returns == "representation" else ""
        return Answer(200 if body else 204, body, (content_range(0, 0, None),))
    statement = statements.update(table, query, row, _returning(table, query, preferences))
    return await _changed(connection, statement, query, request, preferences)


async def delete(connection: Connection, request: Request, preferences: Preferences) -> Answer:
    """Answer DELETE. Raises `RestRefusalError`."""
    query = _change_of(request)
    table = await table_of(connection, request.path_params["name"])
    _check_where("DELETE", query)
    statement = statements.delete(table, query, _returning(table, query, preferences))
    return await _changed(connection, statement, query, request, preferences)


async def count(
    connection: Connection, rows: sql.Composed, kind: str | None, shown: int
) -> int | None:
    """Return how many rows there are, as exactly as was asked for; None where it wasn't."""
    if kind is None:
        return None
    planned = 0
    if kind != "exact":
        explained = await _row(connection, sql.SQL("explain (format json) {}").format(rows))
        planned = int(explained["QUERY PLAN"][0]["Plan"]["Plan Rows"])
    if kind == "planned" or planned > MAX_ROWS:
        return max(planned, shown)
    found = await _row(connection, sql.SQL("select count(*) as n from ({}) as c").format(rows))
    return int(found["n"])


async def _changed(
    connection: Connection, statement: sql.Composed, query: Query, request: Request,
    preferences: Preferences,
) -> Answer:  # fmt: skip
    """Run a change and answer as the client prefers."""
    inserts = request.method == "POST"
    media = accepted(request)
    headers: list[tuple[str, str]] = []
    if preferences.returns == "representation":
        row = await _row(connection, statements.change(statement, query, shape_of(media)))
        affected, body, status = int(row["n"]), _shown(row, media), 201 if inserts else 200
    else:
        cursor = await connection.execute(statement)
        affected, body, status = cursor.rowcount, "", 201 if inserts else 204
        if preferences.returns == "headers-only" and inserts and affected == 1:
            key = await cursor.fetchone() or {}
            where = "&".join(f"{name}=eq.{quote(str(value))}" for name, value in key.items())
            headers.append(("location", f"/{request.path_params['name']}?{where}"))
    preferences.check(affected)
    total = None if preferences.count is None else affected
    shown = affected if request.method == "PATCH" else 0
    return Answer(status, body, (*headers, content_range(0, shown, total)))


def _change_of(request: Request) -> Query:
    """Return which rows a change is of, and what it answers. Raises `RestRefusalError`."""
    query = parse(request.query_params.multi_items())
    check_flat(query)
    return query


def _returning(table: Table, query: Query, preferences: Preferences) -> sql.Composable:
    match preferences.returns:
        case "representation":
            return statements.returned(table, query)
        case "headers-only":
            return statements.returned_key(table)
        case _:
            return sql.SQL("")


def _shown(row: Row, media: str) -> str:
    """Return the rows as the client takes them. Raises `RestRefusalError`."""
    if not is_object(media):
        return str(row["body"])
    if row["n"] != 1:
        raise not_one(row["n"])
    return str(row["one"])


def _inserted(query: Query, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the columns of an insert. Raises `RestRefusalError` where the objects disagree."""
    if query.columns is not None:
        return query.columns
    if any(row.keys() != rows[0].keys() for row in rows):
        raise RestRefusalError(400, "PGRST102", "All object keys must match")
    return tuple(rows[0]) if rows else ()


def _check_names(table: Table, names: Iterable[str]) -> None:
    for name in names:
        if name not in table.columns:
            text = f"Could not find the '{name}' column of '{table.name}' in the schema cache"
            raise RestRefusalError(400, "PGRST204", text)


def _check_where(verb: str, query: Query) -> None:
    """A hosted project refuses changes of whole tables (extension safeupdate)."""
    if not query.where:
        raise RestRefusalError(400, "21000", f"{verb} requires a WHERE clause")


async def _related(connection: Connection, table: str, query: Query) -> dict[str, Related]:
    """Return the relations that a query embeds. Raises `RestRefusalError`."""
    found = {}
    for one in query.select:
        if isinstance(one, Embedded):
            relation = await relation_of(connection, table, one.target, one.hint)
            inner = await _related(connection, relation.table, one.query)
            found[one.name] = Related(relation, inner)
    return found


async def _row(connection: Connection, statement: sql.SQL | sql.Composed) -> dict[str, Any]:
    row = await (await connection.execute(statement)).fetchone()
    if row is None:
        raise RestRefusalError(500, "PGRSTX00", "The statement gave no row")
    return row
