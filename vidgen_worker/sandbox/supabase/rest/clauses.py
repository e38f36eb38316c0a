"""What statements are made of: columns, conditions, orders, and related rows.

Composed of identifiers and literals only. The aliases of rows are words that no column is called:
where a column has the name of an alias, PostgreSQL takes the column. It runs nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg import sql

from vidgen_worker.sandbox.supabase.rest.catalog import SCHEMA, Relation
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
    "isdistinct": sql.SQL("{} is distinct from {}"), "sl": sql.SQL("{} << {}"),
    "sr": sql.SQL("{} >> {}"), "nxr": sql.SQL("{} &< {}"), "nxl": sql.SQL("{} &> {}"),
    "adj": sql.SQL("{} -|- {}"),
}  # fmt: skip
SEARCHES = {
    "fts": sql.SQL("to_tsquery"), "plfts": sql.SQL("plainto_tsquery"),
    "phfts": sql.SQL("phraseto_tsquery"), "wfts": sql.SQL("websearch_to_tsquery"),
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
ROWS = sql.Identifier("sandbox_rows")
COMMA = sql.SQL(", ")


@dataclass(frozen=True, slots=True)
class Related:
    """A relation, and those of the rows behind it, by the names that the answer has for them."""

    relation: Relation
    inner: Mapping[str, "Related"]


@dataclass(frozen=True, slots=True)
class Source:
    """What is read from: an alias in the statement, and what it embeds."""

    alias: str
    related: Mapping[str, Related]

    def below(self, name: str) -> "Source":
        """Return the source of the related rows of that name."""
        related, alias = self.related[name], f"{self.related[name].relation.table}_1"
        return Source(alias if alias != self.alias else f"{alias}_1", related.inner)


def columns(select: Sequence[Selected | Embedded], source: Source) -> sql.Composed:
    """Return the columns of an answer."""
    return COMMA.join(
        _embedded(one, source) if isinstance(one, Embedded) else _selected(one, source.alias)
        for one in select
        # `table()` is there to be filtered by, and is not shown.
        if not isinstance(one, Embedded) or one.query.select
    )


def where(query: Query, source: Source) -> sql.Composed:
    """Return the conditions of a query, empty where it has none."""
    found = _conditions(query, source)
    if not found:
        return sql.Composed([NOTHING])
    return sql.SQL(" where {}").format(sql.SQL(" and ").join(found))


def order(terms: Sequence[Order], source: Source) -> sql.Composed:
    """Return the order of a query, empty where it has none."""
    found = [
        sql.SQL("{}{}{}").format(
            _ordered_by(term, source),
            sql.SQL(" desc") if term.descends else sql.SQL(" asc"),
            NULLS[term.nulls_first],
        )
        for term in terms
    ]
    return sql.SQL(" order by {}").format(COMMA.join(found)) if found else sql.Composed([NOTHING])


def page(query: Query) -> sql.Composed:
    """Return how many rows, and from which on."""
    limit = sql.Literal(query.limit)
    return sql.SQL(" limit {} offset {}").format(limit, sql.Literal(query.offset))


def _conditions(query: Query, source: Source) -> list[sql.Composed]:
    """Return what must hold of a row: the filters, and that an inner relation has rows."""
    inner = [
        sql.SQL("exists ({})").format(_rows(one, source, NOTHING))
        for one in query.select
        if isinstance(one, Embedded) and one.is_inner
    ]
    return [_condition(one, query, source) for one in query.where] + inner


def _condition(one: Filter | Group, query: Query, source: Source) -> sql.Composed:
    negation = sql.SQL("not ") if one.negated else NOTHING
    if isinstance(one, Group):
        joined = JUNCTIONS[one.junction].join(_condition(m, query, source) for m in one.members)
        return sql.SQL("{}({})").format(negation, joined)
    if one.column.name in source.related and not one.column.path:
        test = _is_there(one, query, source)
    else:
        test = _test(one, _reference(one.column, source.alias))
    return sql.SQL("{}{}").format(negation, test)


def _reference(column: Column, alias: str) -> sql.Composed:
    """Return a column, or a place in its JSON."""
    if not column.path:
        return sql.Composed([sql.Identifier(alias, column.name)])
    found = sql.SQL("to_jsonb({})").format(sql.Identifier(alias, column.name))
    for arrow, key in column.path:
        place = sql.Literal(int(key) if re.fullmatch(r"-?[0-9]{1,9}", key) else key)
        found = ARROWS[arrow].format(found, place)
    return sql.SQL("({})").format(found)


def _test(one: Filter, column: sql.Composed) -> sql.Composed:
    if one.operator == "is":
        return STATES[one.values[0].lower()].format(column)
    if one.operator in SEARCHES:
        words = [one.quantifier, *one.values] if one.quantifier else one.values
        given = COMMA.join(map(sql.Literal, words))
        return sql.SQL("{} @@ {}({})").format(column, SEARCHES[one.operator], given)
    if one.operator == "in":
        listed = COMMA.join(map(sql.Literal, one.values))
        nobody = sql.Composed([sql.SQL("false")])
        return sql.SQL("{} in ({})").format(column, listed) if one.values else nobody
    junction = JUNCTIONS["and" if one.quantifier == "all" else "or"]
    each = [OPERATORS[one.operator].format(column, sql.Literal(value)) for value in one.values]
    return sql.SQL("({})").format(junction.join(each))


def _is_there(one: Filter, query: Query, source: Source) -> sql.Composed:
    """Return whether there are related rows; nothing else may be asked of them as a whole."""
    name = one.column.name
    embedded = next(e for e in query.select if isinstance(e, Embedded) and e.name == name)
    if one.operator != "is" or one.values[0].lower() not in ("null", "not_null"):
        text = f"Bad operator on the '{name}' embedded resource"
        details = "Only is null or not is null filters are allowed on embedded resources"
        raise RestRefusalError(400, "PGRST120", text, details=details)
    exists = sql.SQL("exists ({})").format(_rows(embedded, source, NOTHING))
    return sql.SQL("not {}").format(exists) if one.values[0].lower() == "null" else exists


def _ordered_by(term: Order, source: Source) -> sql.Composed:
    if term.related is None:
        return _reference(term.column, source.alias)
    if term.related not in source.related:
        text = f"'{term.related}' is not an embedded resource in this request"
        raise RestRefusalError(400, "PGRST108", text)
    relation, below = source.related[term.related].relation, source.below(term.related)
    if not relation.is_to_one:
        text = f"A related order on '{term.related}' is not possible"
        raise RestRefusalError(400, "PGRST118", text)
    return sql.SQL("(select {} from {} as {} where {})").format(
        _reference(term.column, below.alias),
        sql.Identifier(SCHEMA, relation.table),
        sql.Identifier(below.alias),
        _joined(relation, source.alias, below.alias),
    )


def _selected(one: Selected, alias: str) -> sql.Composed:
    if one.column.name == "*" and not one.column.path:
        return sql.SQL("{}.*").format(sql.Identifier(alias))
    return sql.SQL("{} as {}").format(_value(one, alias), sql.Identifier(one.name))


def _value(one: Selected, alias: str) -> sql.Composed:
    found = _reference(one.column, alias)
    if not one.cast:
        return found
    kind = one.cast.lower()
    return sql.SQL("{}::{}").format(found, sql.Identifier(TYPES.get(kind, kind)))


def _embedded(one: Embedded, source: Source) -> sql.Composed:
    relation, below = source.related[one.name].relation, source.below(one.name)
    if one.is_spread:
        return _spread(one, source)
    one_row, many = sql.SQL("row_to_json({}.*)"), sql.SQL("coalesce(json_agg({}.*), '[]')")
    return sql.SQL("(select {} from ({}) as {}) as {}").format(
        (one_row if relation.is_to_one else many).format(ROWS),
        _rows(one, source, columns(one.query.select, below)),
        ROWS,
        sql.Identifier(one.name),
    )


def _spread(one: Embedded, source: Source) -> sql.Composed:
    """Return the columns of the related row as the row's own."""
    plain = [
        inner
        for inner in one.query.select
        if isinstance(inner, Selected) and inner.column.name != "*"
    ]
    if not source.related[one.name].relation.is_to_one or len(plain) != len(one.query.select):
        text = "The sandbox spreads named columns of one related row"
        raise RestRefusalError(400, "PGRST127", "Feature not implemented", details=text)
    return COMMA.join(
        sql.SQL("({}) as {}").format(
            _rows(one, source, _value(inner, source.below(one.name).alias)),
            sql.Identifier(inner.name),
        )
        for inner in plain
    )


def _rows(one: Embedded, source: Source, picked: sql.Composable) -> sql.Composed:
    """Return the SELECT of the rows that are related to a row of `source`."""
    relation, below = source.related[one.name].relation, source.below(one.name)
    joined = _joined(relation, source.alias, below.alias)
    return sql.SQL("select {} from {} as {} where {}{}{}").format(
        picked,
        sql.Identifier(SCHEMA, relation.table),
        sql.Identifier(below.alias),
        sql.SQL(" and ").join([joined, *_conditions(one.query, below)]),
        order(one.query.order, below),
        page(one.query),
    )


def _joined(relation: Relation, ours: str, theirs: str) -> sql.Composed:
    return sql.SQL(" and ").join(
        sql.SQL("{} = {}").format(sql.Identifier(theirs, there), sql.Identifier(ours, here))
        for here, there in zip(relation.ours, relation.theirs, strict=True)
    )
