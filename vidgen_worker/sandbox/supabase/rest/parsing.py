"""The query string: what to select, which rows, in which order. PostgREST's grammar, no SQL.

Left out, and refused by name where a client asks for it: aggregates, full text search, filters and
orders on embedded tables, embedded tables in what a change or a function answers.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vidgen_worker.sandbox.supabase.rest.refusals import RestRefusalError, not_parsed

OPERATORS = (
    "eq", "neq", "gt", "gte", "lt", "lte", "like", "ilike", "match", "imatch",
    "cs", "cd", "ov", "isdistinct", "is", "in",
)  # fmt: skip
QUANTIFIED = ("eq", "gt", "gte", "lt", "lte", "like", "ilike", "match", "imatch")
STATES = ("null", "not_null", "true", "false", "unknown")
NOT_FILTERS = frozenset({"select", "order", "limit", "offset", "columns", "on_conflict"})
FILTER = re.compile(
    r"(?P<negated>not\.)?(?P<operator>[a-z]+)(?:\((?P<quantifier>any|all)\))?\.(?P<value>.*)",
    re.DOTALL,
)
COLUMN = re.compile(r"[^\s,.():\"]+")
ITEM = re.compile(
    r"(?:(?P<alias>[^:(),]+):(?!:))?(?P<name>\"[^\"]+\"|[^:(),!]+?)"
    r"(?:!(?P<hint>[\w!]+))?(?:\((?P<inner>.*)\))?(?:::(?P<cast>\w+))?"
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column, or a place in its JSON: `data->a->>b`."""

    name: str
    path: tuple[tuple[str, str], ...] = ()
    """(arrow, key) pairs."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition. `values` are those of `in` and of `any`/`all`, else the one."""

    column: Column
    operator: str
    values: tuple[str, ...]
    negated: bool = False
    quantifier: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Conditions joined by `and` or `or`."""

    junction: str
    members: tuple["Filter | Group", ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Selected:
    """A column of the answer."""

    column: Column
    alias: str | None = None
    cast: str | None = None


@dataclass(frozen=True, slots=True)
class Embedded:
    """Rows of a related table within a row of the answer."""

    table: str
    select: tuple["Selected | Embedded", ...]
    alias: str | None = None
    hint: str | None = None
    is_inner: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """One term of the order."""

    column: Column
    descends: bool
    nulls_first: bool | None


@dataclass(frozen=True, slots=True)
class Query:
    """A query string, taken apart."""

    select: tuple[Selected | Embedded, ...]
    where: tuple[Filter | Group, ...]
    order: tuple[Order, ...]
    limit: int | None
    offset: int
    columns: tuple[str, ...] | None
    on_conflict: tuple[str, ...] | None
    arguments: dict[str, str] = field(default_factory=dict)
    """The arguments of a function that is called by GET."""


def parse(items: Iterable[tuple[str, str]], arguments: frozenset[str] = frozenset()) -> Query:
    """Take a query string apart; names in `arguments` are no filters. Raises `RestRefusalError`."""
    single: dict[str, str] = {}
    called: dict[str, str] = {}
    where: list[Filter | Group] = []
    for name, value in items:
        if name in NOT_FILTERS:
            single[name] = value
        elif name in arguments:
            called[name] = value
        elif name in ("and", "or", "not.and", "not.or"):
            where.append(_group(f"{name}{value}"))
        else:
            where.append(_filter(_column(name), value, in_group=False))
    return Query(
        select=_select(single.get("select") or "*"),
        where=tuple(where),
        order=tuple(_order(term) for term in _names(single.get("order")) or ()),
        limit=_number("limit", single.get("limit")),
        offset=_number("offset", single.get("offset")) or 0,
        columns=_names(single.get("columns")),
        on_conflict=_names(single.get("on_conflict")),
        arguments=called,
    )


def check_flat(query: Query) -> None:
    """Refuse related rows where only reads of tables have them. Raises `RestRefusalError`."""
    if any(isinstance(one, Embedded) for one in query.select):
        text = "The sandbox embeds related rows in reads of tables only"
        raise RestRefusalError(400, "PGRST127", "Feature not implemented", details=text)


def split(text: str) -> list[str]:
    """Split at the commas that stand in no parentheses, braces or quotes."""
    parts, depth, quoted, begin, skip = [], 0, False, 0, False
    for place, letter in enumerate(text):
        if skip:
            skip = False
        elif letter == "\\" and quoted:
            skip = True
        elif letter == '"':
            quoted = not quoted
        elif not quoted and letter in "({":
            depth += 1
        elif not quoted and letter in ")}":
            depth -= 1
        elif letter == "," and not quoted and not depth:
            parts.append(text[begin:place])
            begin = place + 1
    return [*parts, text[begin:]]


def unquoted(text: str) -> str:
    """Return a value without its quotes and backslashes."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(unquoted(part.strip()) for part in split(text) if part)


def _number(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"-?\d{1,18}", text):
        raise not_parsed(f"{name} parameter ({text})", f"{name} is no whole number")
    if int(text) < 0:
        details = "Limit should be greater than or equal to zero."
        raise RestRefusalError(416, "PGRST103", "Requested range not satisfiable", details=details)
    return int(text)


def _column(text: str) -> Column:
    head, *rest = re.split(r"(->>|->)", text.strip())
    name = unquoted(head)
    if not (name and (head.startswith('"') or COLUMN.fullmatch(name))):
        raise not_parsed(
            f"column ({text})", "a column's name, perhaps with -> or ->>, was expected"
        )
    return Column(name, tuple(zip(rest[::2], rest[1::2], strict=True)))


def _filter(column: Column, text: str, *, in_group: bool) -> Filter:
    found = FILTER.fullmatch(text)
    operator = found["operator"] if found else ""
    if found is None or operator not in OPERATORS:
        known = ", ".join(OPERATORS)
        raise not_parsed(f"filter ({text})", f"one of these operators was expected: {known}")
    value, quantifier = found["value"], found["quantifier"]
    if quantifier and operator not in QUANTIFIED:
        raise not_parsed(f"filter ({text})", f"{operator} takes no {quantifier}")
    if operator == "is" and value.lower() not in STATES:
        raise not_parsed(f"filter ({text})", f"is takes {', '.join(STATES)}")
    if operator == "in" or quantifier:
        values = tuple(_list(value))
    else:
        values = (unquoted(value) if in_group else value,)
    if operator in ("like", "ilike"):
        values = tuple(one.replace("*", "%") for one in values)
    return Filter(column, operator, values, found["negated"] is not None, quantifier)


def _list(text: str) -> Iterator[str]:
    """The members of `(a,"b,c")` or `{a,b}`."""
    if len(text) < 2 or text[0] + text[-1] not in ("()", "{}"):  # noqa: PLR2004 - its brackets
        raise not_parsed(f"filter ({text})", "a list in parentheses was expected")
    if text[1:-1]:
        yield from map(unquoted, split(text[1:-1]))


def _group(text: str) -> Group:
    found = re.fullmatch(r"(not\.)?(and|or)\((.*)\)", text.strip(), re.DOTALL)
    if found is None or not found[3]:
        raise not_parsed(f"logic tree ({text})", "and(…) or or(…) was expected")
    return Group(found[2], tuple(map(_member, split(found[3]))), found[1] is not None)


def _member(text: str) -> Filter | Group:
    if re.match(r"\s*(not\.)?(and|or)\(", text):
        return _group(text)
    found = re.fullmatch(r"\s*(\"[^\"]+\"[^.]*|[^.]+)\.(.*)", text, re.DOTALL)
    if found is None:
        raise not_parsed(f"logic tree ({text})", "column.operator.value was expected")
    return _filter(_column(found[1]), found[2], in_group=True)


def _select(text: str) -> tuple[Selected | Embedded, ...]:
    return tuple(_item(part.strip()) for part in split(text) if part.strip())


def _item(text: str) -> Selected | Embedded:
    found = ITEM.fullmatch(text)
    if found is None:
        raise not_parsed(f"select parameter ({text})", "a column or a table with (…) was expected")
    alias, hint = found["alias"], found["hint"]
    if found["inner"] is not None:
        if not found["inner"] and found["name"] in ("count", "sum", "avg", "min", "max"):
            text = "Use of aggregate functions is not allowed"
            raise RestRefusalError(400, "PGRST123", text)
        words = [word for word in (hint or "").split("!") if word not in ("", "left")]
        hints = [word for word in words if word != "inner"]
        inner = _select(found["inner"])
        return Embedded(
            unquoted(found["name"]), inner, alias, hints[0] if hints else None, "inner" in words
        )
    return Selected(_column(found["name"]), alias, found["cast"])


def _order(text: str) -> Order:
    name, *words = text.split(".")
    if not set(words) <= {"asc", "desc", "nullsfirst", "nullslast"}:
        raise not_parsed(f"order ({text})", "asc, desc, nullsfirst or nullslast was expected")
    nulls = "nullsfirst" in words if {"nullsfirst", "nullslast"} & set(words) else None
    return Order(_column(name), "desc" in words, nulls)
