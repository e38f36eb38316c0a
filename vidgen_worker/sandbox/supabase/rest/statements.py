"""The statements behind the REST API, composed of identifiers and literals only.

Each that reads returns one row: `body` (the answer's JSON as PostgreSQL writes it, so that times
and numbers look as clients know them), `one` (the first of its rows), `n` (how many). It runs none.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from psycopg import sql

from vidgen_worker.sandbox.supabase.rest.catalog import SCHEMA, Argument, Function, Table
from vidgen_worker.sandbox.supabase.rest.clauses import (
    COMMA,
    NOTHING,
    ROWS,
    Related,
    Source,
    columns,
    order,
    page,
    where,
)
from vidgen_worker.sandbox.supabase.rest.parsing import Query
from vidgen_worker.sandbox.supabase.rest.refusals import RestRefusalError

Shape = Literal["json", "stripped", "csv"]
"""How rows are written: as JSON, as JSON without its nulls, as CSV."""


def select(
    table: Table, query: Query, related: Mapping[str, Related], shape: Shape
) -> sql.Composed:
    """Return the rows of a table."""
    source = Source(table.name, related)
    rows = sql.SQL("select {} from {}{}{}{}").format(
        columns(query.select, source), _name(table), where(query, source),
        order(query.order, source), page(query),
    )  # fmt: skip
    return _as_rows(rows, shape)


def insert(  # noqa: PLR0913 - the parts of an INSERT
    table: Table, names: Sequence[str], rows: list[dict[str, Any]], *, conflict: sql.Composable,
    returning: sql.Composable, defaults: bool,
) -> sql.Composed:  # fmt: skip
    """Return the statement that inserts JSON objects; what one lacks is null, or the default."""
    targets = COMMA.join(map(sql.Identifier, names))
    record = sql.SQL("null::{}").format(_name(table))
    if not names:
        values: sql.Composable = sql.SQL("default values")
        head = sql.SQL("insert into {} {}").format(_name(table), values)
    elif defaults and any(name not in row for row in rows for name in names):
        values = COMMA.join(
            sql.SQL("({})").format(COMMA.join(_cell(record, row, name) for name in names))
            for row in rows
        )
        head = sql.SQL("insert into {} ({}) values {}").format(_name(table), targets, values)
    else:
        picked = COMMA.join(sql.Identifier("sandbox_given", name) for name in names)
        head = sql.SQL(
            "insert into {} ({}) select {} from jsonb_populate_recordset({}, {}::jsonb)"
            " as sandbox_given"
        ).format(_name(table), targets, picked, record, sql.Literal(json.dumps(rows)))
    return sql.SQL("{}{}{}").format(head, conflict, returning)


def on_conflict(names: Sequence[str], key: Sequence[str], resolution: str) -> sql.Composed:
    """Return what an upsert does with a row that is there. Without a key nothing can be done."""
    if not key:
        return sql.Composed([NOTHING])
    target = COMMA.join(map(sql.Identifier, key))
    if resolution == "ignore-duplicates" or not names:
        return sql.SQL(" on conflict ({}) do nothing").format(target)
    changes = COMMA.join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Identifier("excluded", name))
        for name in names
    )
    # The only trace that a row was changed and not inserted; PostgREST counts in the same way.
    count = sql.SQL(
        "set_config('sandbox.merged', (coalesce(nullif(current_setting('sandbox.merged', true),"
        " ''), '0')::integer + 1)::text, true) <> ''"
    )
    return sql.SQL(" on conflict ({}) do update set {} where {}").format(target, changes, count)


def update(
    table: Table, query: Query, row: Mapping[str, Any], returning: sql.Composable
) -> sql.Composed:
    """Return the statement that changes what a JSON object names."""
    source = Source(table.name, {})
    record = sql.SQL("jsonb_populate_record(null::{}, {}::jsonb)").format(
        _name(table), sql.Literal(json.dumps(row))
    )
    return sql.SQL("update {} set ({}) = (select {} from {} as sandbox_given){}{}").format(
        _name(table),
        COMMA.join(map(sql.Identifier, row)),
        COMMA.join(sql.Identifier("sandbox_given", name) for name in row),
        record,
        where(query, source),
        returning,
    )


def delete(table: Table, query: Query, returning: sql.Composable) -> sql.Composed:
    """Return the statement that deletes rows."""
    condition = where(query, Source(table.name, {}))
    return sql.SQL("delete from {}{}{}").format(_name(table), condition, returning)


def returned(table: Table, query: Query) -> sql.Composed:
    """Return the RETURNING of a change whose rows are the answer."""
    return sql.SQL(" returning {}").format(columns(query.select, Source(table.name, {})))


def returned_key(table: Table) -> sql.Composed:
    """Return the RETURNING of a change whose answer names the rows' keys."""
    names = COMMA.join(sql.Identifier(table.name, name) for name in table.key)
    return sql.SQL(" returning {}").format(names if table.key else sql.SQL("1"))


def change(statement: sql.Composed, query: Query, shape: Shape) -> sql.Composed:
    """Return a change whose rows are the answer."""
    ordered = sql.SQL("select * from sandbox_found{}").format(
        order(query.order, Source("sandbox_found", {}))
    )
    return sql.SQL("with sandbox_found as ({}), {} as ({}) select {}").format(
        statement, ROWS, ordered, _shaped(shape)
    )


def call(
    function: Function, arguments: object, query: Query, shape: Shape, *, is_text: bool
) -> sql.Composed:
    """Return the call of a function, its rows filtered, ordered and picked like a table's.

    `arguments` are an object of them, or the body of one that takes it whole; `is_text`: values are
    as a query string has them.
    """
    given, called = _called(function, arguments, is_text=is_text)
    source = Source(function.name, {})
    if function.is_composite:
        found = sql.SQL("select {}.* from {} as {}{}").format(
            sql.Identifier(source.alias), called, sql.Identifier(source.alias), where(query, source)
        )
        picked = columns(query.select, source)
    else:
        word = sql.SQL("select value from {} as value" if function.is_set else "select {} as value")
        found = word.format(called)
        picked = sql.Composed([sql.Identifier(source.alias, "value")])
    rows = sql.SQL("select {} from sandbox_found as {}{}{}").format(
        picked, sql.Identifier(source.alias), order(query.order, source), page(query)
    )
    before = [*given, sql.SQL("sandbox_found as ({})").format(found)]
    value = sql.SQL("{}.*" if function.is_composite else "{}.value").format(ROWS)
    total = sql.SQL("(select count(*) from sandbox_found) as total")
    return sql.SQL("with {}, {} as ({}) select {}").format(
        COMMA.join(before), ROWS, rows, _shaped(shape, value, also=total)
    )


def _called(
    function: Function, arguments: object, *, is_text: bool
) -> tuple[list[sql.Composed], sql.Composed]:
    """Return what comes before a call, and the call; PostgreSQL makes values of the JSON."""
    name = sql.Identifier(SCHEMA, function.name)
    if function.whole is not None:
        kind = sql.Identifier(function.whole.schema, function.whole.type)
        literal = sql.Literal(json.dumps(arguments))
        return [], sql.SQL("{}({}::{})").format(name, literal, kind)
    values = dict(arguments) if isinstance(arguments, dict) else {}
    if not values:
        return [], sql.SQL("{}()").format(name)
    kinds = {one: kind for one, kind in function.arguments.items() if one in values}
    if is_text:
        values = {one: _of_text(kinds[one], value) for one, value in values.items()}
    record = COMMA.join(
        sql.SQL("{} {}").format(sql.Identifier(one), sql.Identifier(kind.schema, kind.type))
        for one, kind in kinds.items()
    )
    before = sql.SQL("sandbox_arguments as (select * from json_to_record({}) as r({}))").format(
        sql.Literal(json.dumps(values)), record
    )
    given = COMMA.join(
        sql.SQL("{}{} => (select {} from sandbox_arguments)").format(
            sql.SQL("variadic ") if kind.is_variadic else NOTHING,
            sql.Identifier(one),
            sql.Identifier("sandbox_arguments", one),
        )
        for one, kind in kinds.items()
    )
    return [before], sql.SQL("{}({})").format(name, given)


def _of_text(kind: Argument, value: object) -> object:
    """Return a query string's value as JSON; only a JSON argument has it in JSON already."""
    if not kind.is_json:
        return value
    try:
        return json.loads(str(value))
    except ValueError as error:
        text = "invalid input syntax for type json"
        raise RestRefusalError(
            400, "22P02", text, details=f'Token "{value}" is invalid.'
        ) from error


def counted(table: Table, query: Query, related: Mapping[str, Related]) -> sql.Composed:
    """Return the rows that a count counts, each as 1."""
    condition = where(query, Source(table.name, related))
    return sql.SQL("select 1 from {}{}").format(_name(table), condition)


def _name(table: Table) -> sql.Identifier:
    return sql.Identifier(SCHEMA, table.name)


def _cell(record: sql.Composable, row: Mapping[str, Any], name: str) -> sql.Composed:
    if name not in row:
        return sql.Composed([sql.SQL("default")])
    cell = sql.Literal(json.dumps({name: row[name]}))
    return sql.SQL("(jsonb_populate_record({}, {}::jsonb)).{}").format(
        record, cell, sql.Identifier(name)
    )


def _shaped(
    shape: Shape, value: sql.Composable | None = None, also: sql.Composable | None = None
) -> sql.Composed:
    """Return the answer of the rows in ROWS: `body`, `one` and `n`."""
    value = value or sql.Composed([ROWS, sql.SQL(".*")])
    rows = sql.SQL("json_agg({})").format(value)
    if shape == "stripped":
        rows = sql.SQL("json_strip_nulls({})").format(rows)
    body = sql.SQL("coalesce({}, '[]')::text").format(rows)
    if shape == "csv":
        body = sql.SQL(
            "coalesce((select string_agg(sandbox_key, ',') from (select json_object_keys("
            "row_to_json({rows}.*)) as sandbox_key from (select * from {rows} limit 1) as {rows})"
            " as sandbox_keys) || E'\\n' || string_agg(substring({rows}::text, 2,"
            " length({rows}::text) - 2), E'\\n'), '')"
        ).format(rows=ROWS)
    more = sql.SQL(", {}").format(also) if also else NOTHING
    return sql.SQL("{} as body, ({} -> 0)::text as one, count(*) as n{} from {}").format(
        body, rows, more, ROWS
    )


def _as_rows(rows: sql.Composable, shape: Shape) -> sql.Composed:
    return sql.SQL("with {} as ({}) select {}").format(ROWS, rows, _shaped(shape))
