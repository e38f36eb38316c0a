"""What the SQL of this project says of itself: for cases that are generated from the code."""

import re
from pathlib import Path

from vidgen_worker.database.pool import QUERIES

MIGRATIONS = Path(__file__).parents[2] / "migrations"
_FUNCTION = re.compile(r"create (?:or replace )?function (vidgen\.\w+)(.*?\$\$.*?\$\$;)", re.DOTALL)


def doers(pattern: re.Pattern[str]) -> tuple[set[str], set[str]]:
    """The named queries, and the functions, with the pattern in their text, or that call such."""
    text = "\n".join(file.read_text() for file in sorted(MIGRATIONS.glob("*.sql")))
    bodies = _FUNCTION.findall(text)
    functions = {name for name, body in bodies if pattern.search(body)}
    while more := {
        name
        for name, body in bodies
        if name not in functions and any(f"{one}(" in body for one in functions)
    }:
        functions |= more
    queries = {
        name
        for name, body in QUERIES.items()
        if pattern.search(body) or any(f"{one}(" in body for one in functions)
    }
    return queries, functions


def numbered(query: str) -> tuple[str, list[str]]:
    """The query with $1, $2, … and the names they stand for."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[0] == "%%":
            return "%"
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return re.sub(r"%%|%\((\w+)\)s", number, query), names
