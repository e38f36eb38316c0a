"""What the worker's statements ask of the tables: columns to insert, columns to update, deletes.

Read from the statements themselves (this release's, those of the release before, and the functions
that run with the caller's rights), so that the grants of `vidgen_worker` can be held against them.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.hands import Ground
from vidgen_worker.client.database import QUERIES as CLIENT_QUERIES
from vidgen_worker.database.pool import QUERIES
from vidgen_worker.database.statements import read_queries

FORMER = Path(__file__).parents[1] / "database" / "former_queries.sql"
OPERATORS = ("close_gate", "open_gate", "add_account_reading")
"""What the command line writes with the worker's login: gates, and readings of the account."""
ONLY_LOCKED = {"vidgen.arrivals": "due_at", "vidgen.endings": "film_id"}
"""FOR UPDATE asks for UPDATE of a column: of these tables no statement writes one."""

_INSERT = re.compile(r"\binsert into ((?:public|vidgen)\.\w+)(?: as (\w+))?\s*\(")
_UPDATE = re.compile(r"\bupdate ((?:public|vidgen)\.\w+)(?: as \w+)?\s+set\s")
_DELETE = re.compile(r"\bdelete from ((?:public|vidgen)\.\w+)")
_ON_CONFLICT = re.compile(r"\bdo update\s+set\s")
_END_OF_SET = re.compile(r"\b(?:from|where|returning)\b|;")


@dataclass
class Needs:
    """Columns by table, and tables that rows are deleted from."""

    insert: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    update: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    delete: set[str] = field(default_factory=set)


def outside_parentheses(text: str) -> Iterator[tuple[int, str]]:
    """Characters at depth 0, up to the parenthesis that closes what the text begins in."""
    depth, quoted = 0, False
    for place, character in enumerate(text):
        if character == "'":
            quoted = not quoted
        elif not quoted and character == "(":
            depth += 1
        elif not quoted and character == ")":
            depth -= 1
            if depth < 0:
                return
        if depth == 0:
            yield place, " " if quoted or character == ")" else character


def assigned(text: str) -> set[str]:
    """The columns on the left of a SET list's equal signs."""
    flat = "".join(character for _, character in outside_parentheses(text))
    if end := _END_OF_SET.search(flat):
        flat = flat[: end.start()]
    return {part.partition("=")[0].strip() for part in flat.split(",")}


def listed(text: str) -> set[str]:
    """The names in a list that ends with a closing parenthesis."""
    return {name.strip() for name in text.partition(")")[0].split(",")}


def read(needs: Needs, statement: str) -> None:
    """Add what one statement, or one function's body, needs."""
    text = re.sub(r"--[^\n]*", "", statement)
    for found in _INSERT.finditer(text):
        rest = text[found.end() :]
        needs.insert[found[1]] |= listed(rest)
        # Its ON CONFLICT comes before the next statement of the same text.
        others = [
            m.start() for m in re.finditer(r"\b(?:insert into|update \w+\.|delete from)", rest)
        ]
        if conflict := _ON_CONFLICT.search(rest[: min(others, default=len(rest))]):
            needs.update[found[1]] |= assigned(rest[conflict.end() :])
    for found in _UPDATE.finditer(text):
        needs.update[found[1]] |= assigned(text[found.end() :])
    needs.delete |= {found[1] for found in _DELETE.finditer(text)}


def needs_of_the_worker(ground: Ground) -> Needs:
    """Everything that the worker's role must be able to write."""
    needs = Needs()
    former = read_queries(FORMER.read_text(), FORMER.name)
    operators = (CLIENT_QUERIES[name] for name in OPERATORS)
    for body in (*QUERIES.values(), *former.values(), *operators):
        read(needs, body)
    for table, column in ONLY_LOCKED.items():
        needs.update[table].add(column)
    functions = ground.sql(
        "select coalesce(p.prosrc, '') as body from pg_proc as p"
        " where p.pronamespace = 'vidgen'::regnamespace and not p.prosecdef"
        "   and has_function_privilege('vidgen_worker', p.oid, 'execute')"
    )
    for row in functions:
        read(needs, row["body"])
    return needs


def grants(needs: Needs) -> list[str]:
    """The statements that give exactly that."""
    said = [
        f"grant {verb} ({', '.join(sorted(columns))}) on {table} to vidgen_worker;"
        for verb, tables in (("insert", needs.insert), ("update", needs.update))
        for table, columns in sorted(tables.items())
    ]
    return [
        *said,
        *(f"grant delete on {table} to vidgen_worker;" for table in sorted(needs.delete)),
    ]
