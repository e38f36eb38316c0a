"""The catalogue of the schema `public`: tables with columns, keys and relations, and functions.

PostgREST keeps this in a cache; here the catalog is asked each time, so that nothing is ever stale.
It reads pg_catalog only.
"""

from dataclasses import dataclass, replace
from typing import Any

from psycopg import AsyncConnection

from vidgen_worker.sandbox.supabase.rest.refusals import RestRefusalError

Connection = AsyncConnection[dict[str, Any]]

SCHEMA = "public"

_TABLE = """
select (select array_agg(a.attname::text order by a.attnum)
          from pg_catalog.pg_attribute as a
         where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped) as columns,
       (select array_agg(a.attname::text order by a.attnum)
          from pg_catalog.pg_index as i
          join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attnum = any(i.indkey)
         where i.indrelid = c.oid and i.indisprimary) as key
  from pg_catalog.pg_class as c
 where c.relnamespace = %s::regnamespace and c.relname = %s
   and c.relkind in ('r', 'p', 'v', 'm', 'f')
"""

_RELATIONS = """
select k.conname::text as name, ours.relname::text as referring_table,
       theirs.relname::text as referred_table,
       (select array_agg(a.attname::text order by n.place)
          from unnest(k.conkey) with ordinality as n (attnum, place)
          join pg_catalog.pg_attribute as a on a.attrelid = k.conrelid and a.attnum = n.attnum
       ) as referring,
       (select array_agg(a.attname::text order by n.place)
          from unnest(k.confkey) with ordinality as n (attnum, place)
          join pg_catalog.pg_attribute as a on a.attrelid = k.confrelid and a.attnum = n.attnum
       ) as referred,
       exists (select from pg_catalog.pg_index as i
                where i.indrelid = k.conrelid and i.indisunique and i.indpred is null
                  and string_to_array(i.indkey::text, ' ')::smallint[] <@ k.conkey
                  and string_to_array(i.indkey::text, ' ')::smallint[] @> k.conkey) as is_unique
  from pg_catalog.pg_constraint as k
  join pg_catalog.pg_class as ours on ours.oid = k.conrelid
  join pg_catalog.pg_class as theirs on theirs.oid = k.confrelid
 where k.contype = 'f' and k.conparentid = 0
   and ours.relnamespace = %(schema)s::regnamespace
   and theirs.relnamespace = %(schema)s::regnamespace
   and %(table)s in (ours.relname, theirs.relname)
"""

_FUNCTIONS = """
select p.proargnames as names, p.proargmodes::text[] as modes, p.pronargdefaults as defaults,
       (select array_agg(array[n.nspname::text, t.typname::text] order by x.place)
          from unnest(p.proargtypes) with ordinality as x (type, place)
          join pg_catalog.pg_type as t on t.oid = x.type
          join pg_catalog.pg_namespace as n on n.oid = t.typnamespace) as types,
       p.provariadic <> 0 as is_variadic, p.proretset as is_set, r.typname = 'void' as is_void,
       r.typtype = 'c' or p.prorettype = 'record'::regtype as is_composite
  from pg_catalog.pg_proc as p
  join pg_catalog.pg_type as r on r.oid = p.prorettype
 where p.pronamespace = %s::regnamespace and p.proname = %s and p.prokind = 'f'
   and p.prorettype <> 'trigger'::regtype
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table or a view."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A foreign key between two tables, as seen from one of them (`ours`)."""

    table: str
    """The other one."""
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    is_to_one: bool


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument that a caller may give."""

    schema: str
    type: str
    is_variadic: bool = False

    @property
    def is_json(self) -> bool:
        """Whether it takes JSON as it is."""
        return self.type in ("json", "jsonb")


@dataclass(frozen=True, slots=True)
class Function:
    """A function, and the shape of what it returns."""

    name: str
    arguments: dict[str, Argument]
    needed: frozenset[str]
    is_set: bool
    is_composite: bool
    is_void: bool
    whole: Argument | None = None
    """Its only argument where that has no name: it is given the whole body."""


async def table_of(connection: Connection, name: str) -> Table:
    """Return a table. Raises `RestRefusalError`."""
    row = await (await connection.execute(_TABLE, [SCHEMA, name])).fetchone()
    if row is None:
        text = f"Could not find the table '{SCHEMA}.{name}' in the schema cache"
        raise RestRefusalError(404, "PGRST205", text)
    return Table(name, tuple(row["columns"] or ()), tuple(row["key"] or ()))


async def relation_of(
    connection: Connection, table: str, target: str, hint: str | None
) -> Relation:
    """Return the one foreign key that a client names by the other table, its column or its name.

    A table's relation to itself is to many by the table's name, and to one by the column's.
    Raises `RestRefusalError`.
    """
    cursor = await connection.execute(_RELATIONS, {"schema": SCHEMA, "table": table})
    found = []
    for row in await cursor.fetchall():
        ours, theirs = tuple(row["referring"]), tuple(row["referred"])
        is_self = row["referring_table"] == row["referred_table"]
        if hint not in (None, row["name"], *ours):
            continue
        names = {row["name"], *ours} | (set() if is_self else {row["referred_table"]})
        if row["referring_table"] == table and target in names:
            found.append(Relation(row["referred_table"], ours, theirs, is_to_one=True))
        if row["referred_table"] == table and target in (row["referring_table"], row["name"]):
            other = row["referring_table"]
            found.append(Relation(other, theirs, ours, is_to_one=row["is_unique"]))
    if not found:
        text = f"Could not find a relationship between '{table}' and '{target}' in the schema cache"
        details = (
            f"Searched for a foreign key relationship between '{table}' and '{target}' in the "
            f"schema '{SCHEMA}', but no matches were found."
        )
        raise RestRefusalError(400, "PGRST200", text, details=details)
    if len(found) > 1:
        text = (
            "Could not embed because more than one relationship was found for "
            f"'{table}' and '{target}'"
        )
        hint = f"Try changing '{target}' to '{target}!' and the name of one of its foreign keys."
        raise RestRefusalError(300, "PGRST201", text, hint=hint)
    return found[0]


async def function_of(
    connection: Connection, name: str, given: frozenset[str] | None, *, has_body: bool
) -> Function:
    """Return the function that takes these named arguments, or a body as its only one.

    `given` is None for a body that names nothing. Raises `RestRefusalError`.
    """
    cursor = await connection.execute(_FUNCTIONS, [SCHEMA, name])
    found = [_function(name, row) for row in await cursor.fetchall()]
    named = [one for one in found if one.whole is None]
    fitting = (
        []
        if given is None
        else [one for one in named if one.needed <= given <= one.arguments.keys()]
    )
    if not fitting and has_body:
        fitting = [one for one in found if one.whole is not None and one.whole.is_json]
    called = f"{SCHEMA}.{name}"
    given = given or frozenset()
    if not fitting:
        names = ", ".join(sorted(given))
        words = f"({names})" if given else " without parameters"
        searched = f" with parameter{'s' * (len(given) > 1)} {names}" if given else words
        raise RestRefusalError(
            404,
            "PGRST202",
            f"Could not find the function {called}{words} in the schema cache",
            details=f"Searched for the function {called}{searched}, "
            "but no matches were found in the schema cache.",
        )
    if len(fitting) > 1:
        text = f"Could not choose the best candidate function between: {len(fitting)} of {called}"
        hint = (
            "Try renaming the parameters or the function itself in the database so function "
            "overloading can be resolved"
        )
        raise RestRefusalError(300, "PGRST203", text, hint=hint)
    return fitting[0]


async def argument_names(connection: Connection, name: str) -> frozenset[str]:
    """Return every name that an argument of a function of this name has."""
    cursor = await connection.execute(_FUNCTIONS, [SCHEMA, name])
    found = [_function(name, row) for row in await cursor.fetchall()]
    return frozenset(argument for one in found for argument in one.arguments)


def _function(name: str, row: dict[str, Any]) -> Function:
    names, modes, types = row["names"] or [], row["modes"], row["types"] or []
    if modes is not None:
        names = [one for one, mode in zip(names, modes, strict=True) if mode in ("i", "b", "v")]
    given = [Argument(*one) for one in types]
    if given and row["is_variadic"]:
        given[-1] = replace(given[-1], is_variadic=True)
    is_named = len(names) == len(given) and all(names)
    optional = names[len(names) - row["defaults"] :] if row["defaults"] else []
    return Function(
        name,
        dict(zip(names, given, strict=True)) if is_named else {},
        frozenset(names) - frozenset(optional),
        row["is_set"],
        row["is_composite"],
        row["is_void"],
        None if is_named else (given[0] if len(given) == 1 else Argument("", "")),
    )
