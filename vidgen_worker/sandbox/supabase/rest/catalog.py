"""The catalogue of the schema `public`: tables with columns, keys and relations, and functions.

PostgREST keeps this in a cache; here the catalog is asked each time, so that nothing is ever stale.
It reads pg_catalog only.
"""

from dataclasses import dataclass
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
select k.conname::text as name, k.conrelid = o.oid as is_to_one,
       (select array_agg(a.attname::text order by n.place)
          from unnest(k.conkey) with ordinality as n (attnum, place)
          join pg_catalog.pg_attribute as a on a.attrelid = k.conrelid and a.attnum = n.attnum
       ) as referring,
       (select array_agg(a.attname::text order by n.place)
          from unnest(k.confkey) with ordinality as n (attnum, place)
          join pg_catalog.pg_attribute as a on a.attrelid = k.confrelid and a.attnum = n.attnum
       ) as referred
  from pg_catalog.pg_class as o
  join pg_catalog.pg_class as t on t.relnamespace = o.relnamespace
  join pg_catalog.pg_constraint as k on k.contype = 'f'
   and ((k.conrelid = o.oid and k.confrelid = t.oid)
        or (k.conrelid = t.oid and k.confrelid = o.oid))
 where o.relnamespace = %s::regnamespace and o.relname = %s and t.relname = %s
"""

_FUNCTIONS = """
select p.proargnames as names, p.proargmodes::text[] as modes, p.pronargdefaults as defaults,
       (select array_agg(array[n.nspname::text, t.typname::text, t.typcategory::text]
                         order by x.place)
          from unnest(p.proargtypes) with ordinality as x (type, place)
          join pg_catalog.pg_type as t on t.oid = x.type
          join pg_catalog.pg_namespace as n on n.oid = t.typnamespace) as types,
       p.proretset as is_set, r.typname = 'void' as is_void,
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

    is_to_one: bool
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument that a caller may give. `category` is PostgreSQL's: A is an array."""

    schema: str
    type: str
    category: str


@dataclass(frozen=True, slots=True)
class Function:
    """A function, and the shape of what it returns."""

    name: str
    arguments: dict[str, Argument]
    needed: frozenset[str]
    is_set: bool
    is_composite: bool
    is_void: bool


async def table_of(connection: Connection, name: str) -> Table:
    """Return a table. Raises `RestRefusalError`."""
    row = await (await connection.execute(_TABLE, [SCHEMA, name])).fetchone()
    if row is None:
        text = f"Could not find the table '{SCHEMA}.{name}' in the schema cache"
        raise RestRefusalError(404, "PGRST205", text)
    return Table(name, tuple(row["columns"] or ()), tuple(row["key"] or ()))


async def relation_of(connection: Connection, table: str, other: str, hint: str | None) -> Relation:
    """Return the one foreign key between two tables. Raises `RestRefusalError`."""
    cursor = await connection.execute(_RELATIONS, [SCHEMA, table, other])
    rows = [
        row
        for row in await cursor.fetchall()
        if hint is None or hint == row["name"] or hint in row["referring"]
    ]
    if not rows:
        text = f"Could not find a relationship between '{table}' and '{other}' in the schema cache"
        details = (
            f"Searched for a foreign key relationship between '{table}' and '{other}' in the "
            f"schema '{SCHEMA}', but no matches were found."
        )
        raise RestRefusalError(400, "PGRST200", text, details=details)
    if len(rows) > 1:
        text = (
            "Could not embed because more than one relationship was found for "
            f"'{table}' and '{other}'"
        )
        raise RestRefusalError(300, "PGRST201", text)
    (row,) = rows
    sides = (tuple(row["referring"]), tuple(row["referred"]))
    ours, theirs = sides if row["is_to_one"] else sides[::-1]
    return Relation(row["is_to_one"], ours, theirs)


async def function_of(connection: Connection, name: str, given: frozenset[str]) -> Function:
    """Return the function that takes these named arguments. Raises `RestRefusalError`."""
    cursor = await connection.execute(_FUNCTIONS, [SCHEMA, name])
    found = [_function(name, row) for row in await cursor.fetchall()]
    fitting = [one for one in found if one.needed <= given <= one.arguments.keys()]
    called = f"{SCHEMA}.{name}"
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
    names, modes = row["names"] or [], row["modes"]
    if modes is not None:
        names = [one for one, mode in zip(names, modes, strict=True) if mode in ("i", "b", "v")]
    arguments = dict(zip(names, (Argument(*type_) for type_ in row["types"] or ()), strict=False))
    optional = names[len(names) - row["defaults"] :] if row["defaults"] else []
    needed = frozenset(names) - frozenset(optional)
    return Function(name, arguments, needed, row["is_set"], row["is_composite"], row["is_void"])
