"""The query string: what to select, which rows, in which order. PostgREST's grammar, no SQL.

Left out, and refused by name where a client asks for it: aggregates, relations through a third
table, related rows in what a change or a function answers.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from vidgen_worker.sandbox.supabase.rest.refusals import RestRefusalError, not_parsed

OPERATORS = (
    "eq", "neq", "gt", "gte", "lt", "lte", "like", "ilike", "match", "imatch",
    "cs", "cd", "ov", "sl", "sr", "nxl", "nxr", "adj", "isdistinct", "is", "in",
    "fts", "plfts", "phfts", "wfts",
)  # fmt: skip
SEARCHES = ("fts", "plfts", "phfts", "wfts")
AGGREGATES = ("count", "sum", "avg", "min", "max")
DEEPEST = 100
PAGING = ("order", "limit", "offset")
QUANTIFIED = ("eq", "gt", "gte", "lt", "lte", "like", "ilike", "match", "imatch")
STATES = ("null", "not_null", "true", "false", "unknown")
NOT_FILTERS = frozenset({"select", "order", "limit", "offset", "columns", "on_conflict"})
FILTER = re.compile(
    r"(?P<negated>not\.)?(?P<operator>[a-z]+)(?:\((?P<quantifier>[^()]+)\))?\.(?P<value>.*)",
    re.DOTALL,
)
COLUMN = re.compile(r"[^,.():\"]+")
ITEM = re.compile(
    r"(?:(?P<alias>[^:(),]+):(?!:))?(?P<spread>\.\.\.)?(?P<name>\"[^\"]+\"|[^:(),!]+?)"
    r"(?:!(?P<hint>[\w!]+))?(?:\((?P<inner>.*)\))?(?:::(?P<cast>\w+))?"
)

ORDER = re.compile(
    r"(?:(?P<related>[^().\"]+)\()?(?P<column>\"[^\"]+\"[^.)]*|[^.()]+)(?(related)\))(?P<words>[.a-z]*)"
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column, or a place in its JSON: `data->a->>b`."""

    name: str
    path: tuple[tuple[str, str], ...] = ()
    """(arrow, key) pairs."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One condition. `values` are those of `in` and of `any`/`all`, else the one.

    `quantifier` is `any` or `all`; of a text search, its configuration.
    """

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

    @property
    def name(self) -> str:
        """What the answer calls it."""
        path = self.column.path
        return self.alias or (path[-1][1] if path else self.column.name)


@dataclass(frozen=True, slots=True)
class Embedded:
    """Rows of a related table within a row of the answer, or (`is_spread`) among its columns."""

    target: str
    """The related table, or the foreign key's column or name."""
    query: "Query"
    alias: str | None = None
    hint: str | None = None
    is_inner: bool = False
    is_spread: bool = False

    @property
    def name(self) -> str:
        """What the answer, and filters, call it."""
        return self.alias or self.target


@dataclass(frozen=True, slots=True)
class Order:
    """One term of the order; of a related row, where `related` names it."""

    column: Column
    descends: bool
    nulls_first: bool | None
    related: str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A query string, taken apart."""

    select: tuple[Selected | Embedded, ...]
    where: tuple[Filter | Group, ...] = ()
    order: tuple[Order, ...] = ()
    limit: int | None = None
    offset: int = 0
    columns: tuple[str, ...] | None = None
    on_conflict: tuple[str, ...] | None = None
    arguments: dict[str, str] = field(default_factory=dict)
    """The arguments of a function that is called by GET."""


def parse(items: Iterable[tuple[str, str]], arguments: frozenset[str] = frozenset()) -> Query:
    """Take a query string apart; names in `arguments` are no filters. Raises `RestRefusalError`."""
    single: dict[str, str] = {}
    called: dict[str, str] = {}
    rest: list[tuple[str, str]] = []
    for name, value in items:
        _check_depth(name, value)
        if name in NOT_FILTERS and name not in PAGING:
            single[name] = value
        elif name in arguments:
            called[name] = value
        else:
            rest.append((name, value))
    return replace(
        _query(_select(single.get("select") or "*"), rest),
        columns=_names(single.get("columns")),
        on_conflict=_names(single.get("on_conflict")),
        arguments=called,
    )


def _query(select: tuple[Selected | Embedded, ...], items: list[tuple[str, str]]) -> Query:
    """Return what is asked of one table; `related.column` is asked of a related one."""
    of_related: dict[str, list[tuple[str, str]]] = {
        one.name: [] for one in select if isinstance(one, Embedded)
    }
    paging: dict[str, str] = {}
    where: list[Filter | Group] = []
    for name, value in items:
        head, dot, inner = name.partition(".")
        if dot and head in of_related:
            of_related[head].append((inner, value))
        elif name in PAGING:
            paging[name] = value
        elif name in ("and", "or", "not.and", "not.or"):
            where.append(_group(f"{name}{value}"))
        elif dot and not head.startswith('"') and "->" not in head:
            text = f"'{head}' is not an embedded resource in this request"
            raise RestRefusalError(400, "PGRST108", text)
        else:
            where.append(_filter(_column(name), value, in_group=False))
    return Query(
        select=tuple(
            replace(one, query=_query(one.query.select, of_related[one.name]))
            if isinstance(one, Embedded)
            else one
            for one in select
        ),
        where=tuple(where),
        order=tuple(_order(term) for term in split(paging.get("order", "")) if term),
        limit=_number("limit", paging.get("limit")),
        offset=_number("offset", paging.get("offset")) or 0,
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


def _check_depth(name: str, value: str) -> None:
    """Refuse what would take long to take apart, level by level."""
    depth = 0
    for letter in value:
        depth += (letter == "(") - (letter == ")")
        if depth > DEEPEST:
            raise not_parsed(
                f"{name} ({value[:100]})", f"it is nested deeper than {DEEPEST} levels"
            )


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
    is_quantified = quantifier in ("any", "all") and operator in QUANTIFIED
    if quantifier and not is_quantified and operator not in SEARCHES:
        raise not_parsed(f"filter ({text})", f"{operator} takes no {quantifier}")
    if operator == "is" and value.lower() not in STATES:
        raise not_parsed(f"filter ({text})", f"is takes {', '.join(STATES)}")
    if operator == "in" or is_quantified:
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
    return tuple(_item(part.strip()) for part in split(text)) if text.strip() else ()


def _item(text: str) -> Selected | Embedded:
    found = ITEM.fullmatch(text)
    if found is None:
        raise not_parsed(f"select parameter ({text})", "a column or a table with (…) was expected")
    alias, inner, name = found["alias"], found["inner"], unquoted(found["name"])
    if inner == "" and name.rpartition(".")[2] in AGGREGATES:
        raise RestRefusalError(400, "PGRST123", "Use of aggregate functions is not allowed")
    if inner is None:
        if found["spread"]:
            raise not_parsed(f"select parameter ({text})", "... takes a table with (…)")
        return Selected(_column(found["name"]), alias, found["cast"])
    words = [word for word in (found["hint"] or "").split("!") if word not in ("", "left")]
    hints = [word for word in words if word != "inner"]
    return Embedded(
        name,
        Query(_select(inner)),
        alias,
        hints[0] if hints else None,
        "inner" in words,
        found["spread"] is not None,
    )


def _order(text: str) -> Order:
    found = ORDER.fullmatch(text)
    words = found["words"].split(".")[1:] if found else ["?"]
    if found is None or not set(words) <= {"asc", "desc", "nullsfirst", "nullslast"}:
        raise not_parsed(f"order ({text})", "asc, desc, nullsfirst or nullslast was expected")
    nulls = "nullsfirst" in words if {"nullsfirst", "nullslast"} & set(words) else None
    return Order(_column(found["column"]), "desc" in words, nulls, found["related"])
