"""The statements behind the REST API, composed of identifiers and literals only.

Each that reads returns one row: `body` (the answer's JSON as PostgreSQL writes it, so that times
and numbers look as clients know them), `one` (the first of its rows), `n` (how many). It runs none.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from vidgen_worker.sandbox.supabase.rest.catalog import (
    SCHEMA,
    Argument,
    Function,
    Relation,
    Table,
)
from vidgen_worker.sandbox.supabase.rest.parsing import (
    Column,
    Embedded,
    Filter,
    Group,
    Order,
    Query,
    Selected,
)
from vidgen_worker.sandbox.supabase.rest.refusals import RestRefusalError

TYPES = {
    "integer": "int4", "int": "int4", "bigint": "int8", "smallint": "int2", "real": "float4",
    "boolean": "bool", "double": "float8", "timestamp": "timestamp", "string": "text",
}  # fmt: skip
"""Names of types that are words of the grammar, and not names in pg_type."""
OPERATORS = {
    "eq": sql.SQL("{} = {}"), "neq": sql.SQL("{} <> {}"), "gt": sql.SQL("{} > {}"),
    "gte": sql.SQL("{} >= {}"), "lt": sql.SQL("{} < {}"), "lte": sql.SQL("{} <= {}"),
    "like": sql.SQL("{} like {}"), "ilike": sql.SQL("{} ilike {}"),
    "match": sql.SQL("{} ~ {}"), "imatch": sql.SQL("{} ~* {}"), "cs": sql.SQL("{} @> {}"),
    "cd": sql.SQL("{} <@ {}"), "ov": sql.SQL("{} && {}"),
    "isdistinct": sql.SQL("{} is distinct from {}"),
}  # fmt: skip
STATES = {
    "null": sql.SQL("{} is null"), "not_null": sql.SQL("{} is not null"),
    "true": sql.SQL("{} is true"), "false": sql.SQL("{} is false"),
    "unknown": sql.SQL("{} is unknown"),
}  # fmt: skip
ARROWS = {"->": sql.SQL("{} -> {}"), "->>": sql.SQL("{} ->> {}")}
JUNCTIONS = {"and": sql.SQL(" and "), "or": sql.SQL(" or ")}
NULLS = {None: sql.SQL(""), True: sql.SQL(" nulls first"), False: sql.SQL(" nulls last")}
NOTHING = sql.SQL("")
COMMA = sql.SQL(", ")


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a read: an alias in the statement, and the relations of its embedded tables."""

    alias: str
    relations: Mapping[str, Relation]


def select(table: Table, query: Query, relations: Mapping[str, Relation]) -> sql.Composed:
    """Return the rows of a table."""
    source = Source("t", relations)
    return _as_json(
        sql.SQL("select {} from {} as t{}{}{}").format(
            columns(query.select, source),
            _name(table),
            where(query, source),
            order(query.order, source.alias),
            _page(query),
        )
    )


def counted(table: Table, query: Query, relations: Mapping[str, Relation]) -> sql.Composed:
    """Return the rows that a count counts, each as 1."""
    condition = where(query, Source("t", relations))
    return sql.SQL("select 1 from {} as t{}").format(_name(table), condition)


def insert(  # noqa: PLR0913 - the parts of an INSERT
    table: Table, names: Sequence[str], rows: list[dict[str, Any]], *, conflict: sql.Composable,
    returning: sql.Composable, defaults: bool,
) -> sql.Composed:  # fmt: skip
    """Return the statement that inserts JSON objects; what one lacks is null, or the default."""
    targets = COMMA.join(map(sql.Identifier, names))
    record = sql.SQL("null::{}").format(_name(table))
    if not names:
        values: sql.Composable = sql.SQL("default values")
        head = sql.SQL("insert into {} as t {}").format(_name(table), values)
    elif defaults and any(name not in row for row in rows for name in names):
        values = COMMA.join(
            sql.SQL("({})").format(COMMA.join(_cell(record, row, name) for name in names))
            for row in rows
        )
        head = sql.SQL("insert into {} as t ({}) values {}").format(_name(table), targets, values)
    else:
        picked = COMMA.join(sql.Identifier("r", name) for name in names)
        head = sql.SQL(
            "insert into {} as t ({}) select {} from jsonb_populate_recordset({}, {}::jsonb) as r"
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
    source = Source("t", {})
    record = sql.SQL("jsonb_populate_record(null::{}, {}::jsonb)").format(
        _name(table), sql.Literal(json.dumps(row))
    )
    return sql.SQL("update {} as t set ({}) = (select {} from {} as r){}{}").format(
        _name(table),
        COMMA.join(map(sql.Identifier, row)),
        COMMA.join(sql.Identifier("r", name) for name in row),
        record,
        where(query, source),
        returning,
    )


def delete(table: Table, query: Query, returning: sql.Composable) -> sql.Composed:
    """Return the statement that deletes rows."""
    condition = where(query, Source("t", {}))
    return sql.SQL("delete from {} as t{}{}").format(_name(table), condition, returning)


def returned(query: Query) -> sql.Composed:
    """Return the RETURNING of a change whose rows are the answer."""
    return sql.SQL(" returning {}").format(columns(query.select, Source("t", {})))


def returned_key(table: Table) -> sql.Composed:
    """Return the RETURNING of a change whose answer names the rows' keys."""
    names = COMMA.join(sql.Identifier("t", name) for name in table.key)
    return sql.SQL(" returning {}").format(names if table.key else sql.SQL("1"))


def change(statement: sql.Composed, query: Query) -> sql.Composed:
    """Return a change whose rows are the answer."""
    if not query.order:
        return _as_json(statement)
    return sql.SQL("with c as ({}) {}").format(
        statement, _as_json(sql.SQL("select * from c{}").format(order(query.order, "c")))
    )


def call(function: Function, arguments: Mapping[str, Any], query: Query) -> sql.Composed:
    """Return the call of a function, its rows filtered, ordered and picked like a table's."""
    given = COMMA.join(
        sql.SQL("{} => {}").format(sql.Identifier(name), argument(function.arguments[name], value))
        for name, value in arguments.items()
    )
    called = sql.SQL("{}({})").format(sql.Identifier(SCHEMA, function.name), given)
    if function.is_composite:
        source = Source("t", {})
        return _as_json(
            sql.SQL("select {} from {} as t{}{}{}").format(
                columns(query.select, source), called, where(query, source),
                order(query.order, source.alias), _page(query),
            )
        )  # fmt: skip
    return sql.SQL(
        "with r as (select {} as value)"
        " select coalesce(json_agg(r.value), '[]')::text as body,"
        " (json_agg(r.value) -> 0)::text as one, count(*) as n from r"
    ).format(called)


def argument(kind: Argument, value: object) -> sql.Composed:
    """Return a JSON value as an argument of its type."""
    is_json = kind.type in ("json", "jsonb")
    text = json.dumps(value) if is_json else pg_text(value, is_array=kind.category == "A")
    literal = sql.Literal(text)
    return sql.SQL("{}::{}").format(literal, sql.Identifier(kind.schema, kind.type))


def pg_text(value: object, *, is_array: bool) -> str | None:
    """Return a JSON value in PostgreSQL's input syntax."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and is_array:
        return "{" + ",".join(map(_member, value)) + "}"
    return json.dumps(value)


def columns(select: Sequence[Selected | Embedded], source: Source) -> sql.Composed:
    """Return the columns of an answer."""
    return COMMA.join(
        _embedded(one, source) if isinstance(one, Embedded) else _selected(one, source.alias)
        for one in select
    )


def where(query: Query, source: Source) -> sql.Composed:
    """Return the conditions of a query, empty where it has none."""
    inner = [one for one in query.select if isinstance(one, Embedded) and one.is_inner]
    found = [condition(one, source.alias) for one in query.where] + [
        sql.SQL("exists (select from {} as e where {})").format(
            sql.Identifier(SCHEMA, one.table), _joined(source, one)
        )
        for one in inner
    ]
    if not found:
        return sql.Composed([NOTHING])
    return sql.SQL(" where {}").format(sql.SQL(" and ").join(found))


def condition(one: Filter | Group, alias: str) -> sql.Composed:
    """Return one condition."""
    if isinstance(one, Group):
        joined = JUNCTIONS[one.junction].join(condition(m, alias) for m in one.members)
        return sql.SQL("{}({})").format(_not(is_so=one.negated), joined)
    column = reference(one.column, alias)
    if one.operator == "is":
        test = STATES[one.values[0].lower()].format(column)
    elif one.operator == "in":
        listed = COMMA.join(map(sql.Literal, one.values))
        nobody = sql.Composed([sql.SQL("false")])
        test = sql.SQL("{} in ({})").format(column, listed) if one.values else nobody
    else:
        junction = JUNCTIONS["and" if one.quantifier == "all" else "or"]
        each = [OPERATORS[one.operator].format(column, sql.Literal(v)) for v in one.values]
        test = sql.SQL("({})").format(junction.join(each))
    return sql.SQL("{}{}").format(_not(is_so=one.negated), test)


def order(terms: Sequence[Order], alias: str) -> sql.Composed:
    """Return the order of a query, empty where it has none."""
    found = [
        sql.SQL("{}{}{}").format(
            reference(term.column, alias),
            sql.SQL(" desc") if term.descends else sql.SQL(" asc"),
            NULLS[term.nulls_first],
        )
        for term in terms
    ]
    return sql.SQL(" order by {}").format(COMMA.join(found)) if found else sql.Composed([NOTHING])


def reference(column: Column, alias: str) -> sql.Composed:
    """Return a column, or a place in its JSON."""
    if not column.path:
        return sql.Composed([sql.Identifier(alias, column.name)])
    found = sql.SQL("to_jsonb({})").format(sql.Identifier(alias, column.name))
    for arrow, key in column.path:
        place = sql.Literal(int(key) if re.fullmatch(r"-?[0-9]{1,9}", key) else key)
        found = ARROWS[arrow].format(found, place)
    return sql.SQL("({})").format(found)


def _selected(one: Selected, alias: str) -> sql.Composed:
    if one.column.name == "*" and not one.column.path:
        return sql.SQL("{}.*").format(sql.Identifier(alias))
    found = reference(one.column, alias)
    if one.cast:
        found = sql.SQL("{}::{}").format(
            found, sql.Identifier(TYPES.get(one.cast.lower(), one.cast.lower()))
        )
    path = one.column.path
    name = one.alias or (path[-1][1] if path else one.column.name)
    return sql.SQL("{} as {}").format(found, sql.Identifier(name))


def _embedded(one: Embedded, source: Source) -> sql.Composed:
    if any(isinstance(inner, Embedded) for inner in one.select):
        text = "The sandbox embeds one level of related rows"
        raise RestRefusalError(400, "PGRST127", "Feature not implemented", details=text)
    rows = sql.SQL("select {} from {} as e where {}").format(
        columns(one.select, Source("e", {})),
        sql.Identifier(SCHEMA, one.table),
        _joined(source, one),
    )
    is_one = source.relations[one.table].is_to_one
    shape = sql.SQL("row_to_json(x)") if is_one else sql.SQL("coalesce(json_agg(x), '[]')")
    return sql.SQL("(select {} from ({}) as x) as {}").format(
        shape, rows, sql.Identifier(one.alias or one.table)
    )


def _joined(source: Source, one: Embedded) -> sql.Composed:
    relation = source.relations[one.table]
    return sql.SQL(" and ").join(
        sql.SQL("{} = {}").format(sql.Identifier("e", theirs), sql.Identifier(source.alias, ours))
        for ours, theirs in zip(relation.ours, relation.theirs, strict=True)
    )


def _name(table: Table) -> sql.Identifier:
    return sql.Identifier(SCHEMA, table.name)


def _page(query: Query) -> sql.Composed:
    limit = sql.Literal(query.limit)
    return sql.SQL(" limit {} offset {}").format(limit, sql.Literal(query.offset))


def _cell(record: sql.Composable, row: Mapping[str, Any], name: str) -> sql.Composed:
    if name not in row:
        return sql.Composed([sql.SQL("default")])
    cell = sql.Literal(json.dumps({name: row[name]}))
    return sql.SQL("(jsonb_populate_record({}, {}::jsonb)).{}").format(
        record, cell, sql.Identifier(name)
    )


def _member(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return "{" + ",".join(map(_member, value)) + "}"
    text = value if isinstance(value, str) else json.dumps(value)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _not(*, is_so: bool) -> sql.SQL:
    return sql.SQL("not ") if is_so else NOTHING


def _as_json(rows: sql.Composable) -> sql.Composed:
    return sql.SQL(
        "with r as ({}) select coalesce(json_agg(r), '[]')::text as body,"
        " (json_agg(r) -> 0)::text as one, count(*) as n from r"
    ).format(rows)
