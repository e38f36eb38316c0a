"""The messages of PostgreSQL's output plug-in `pgoutput`, protocol version 1, as changes of rows.

Source: "Logical Replication Message Formats" of PostgreSQL's manual. It never talks to a database.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
VERBS: dict[bytes, Literal["INSERT", "UPDATE", "DELETE"]] = {
    b"I": "INSERT",
    b"U": "UPDATE",
    b"D": "DELETE",
}

Values = dict[str, str | None]
"""Columns in PostgreSQL's text format. A value stored apart that did not change is absent."""


@dataclass(frozen=True, slots=True)
class Change:
    """One row that was written."""

    schema: str
    table: str
    verb: Literal["INSERT", "UPDATE", "DELETE"]
    new: Values
    """The row as it is now; empty for a DELETE."""
    old: Values
    """The former identity of the row: its key, or all of it with REPLICA IDENTITY FULL."""
    committed: datetime


@dataclass(frozen=True, slots=True)
class _Relation:
    schema: str
    table: str
    columns: tuple[str, ...]
    key: frozenset[str]


class _Reader:
    """Takes a message apart from the left."""

    def __init__(self, message: bytes) -> None:
        self._rest = message

    def take(self, length: int) -> bytes:
        taken, self._rest = self._rest[:length], self._rest[length:]
        return taken

    def number(self, form: str) -> int:
        (value,) = struct.unpack(f">{form}", self.take(struct.calcsize(f">{form}")))
        return int(value)

    def text(self) -> str:
        value, _, self._rest = self._rest.partition(b"\0")
        return value.decode()


def changes(messages: Iterable[bytes]) -> Iterator[Change]:
    """Return the changes among the messages of one or more whole transactions."""
    relations: dict[int, _Relation] = {}
    committed = EPOCH
    for message in messages:
        reader = _Reader(message)
        kind = reader.take(1)
        if kind == b"B":
            reader.number("Q")
            committed = EPOCH + timedelta(microseconds=reader.number("q"))
        elif kind == b"R":
            number = reader.number("I")
            relations[number] = _relation(reader)
        elif kind in VERBS:
            relation = relations[reader.number("I")]
            old, new = _rows(reader, relation)
            if not old:
                old = {name: value for name, value in new.items() if name in relation.key}
            # UPDATE and DELETE say what was there, INSERT has nothing before it.
            yield Change(
                relation.schema,
                relation.table,
                VERBS[kind],
                new,
                {} if kind == b"I" else old,
                committed,
            )


def _relation(reader: _Reader) -> _Relation:
    schema, table = reader.text(), reader.text()
    reader.take(1)  # the replica identity
    names, key = [], set()
    for _ in range(reader.number("H")):
        is_key, name = reader.number("B") & 1, reader.text()
        reader.take(8)  # type and modifier: the catalog says them by name
        names.append(name)
        if is_key:
            key.add(name)
    return _Relation(schema, table, tuple(names), frozenset(key))


def _rows(reader: _Reader, relation: _Relation) -> tuple[Values, Values]:
    """Return the old row, as far as it was sent, and the new one."""
    old: Values = {}
    new: Values = {}
    while part := reader.take(1):
        row = _row(reader, relation)
        if part == b"N":
            new = row
        elif part == b"K":
            old = {name: value for name, value in row.items() if name in relation.key}
        else:
            old = row
    return old, new


def _row(reader: _Reader, relation: _Relation) -> Values:
    row: Values = {}
    for name in relation.columns[: reader.number("H")]:
        kind = reader.take(1)
        if kind == b"n":
            row[name] = None
        elif kind == b"t":
            row[name] = reader.take(reader.number("I")).decode()
    return row
