"""Text and JSON that psycopg sends and reads: PostgreSQL accepts each value, and each can be read.

Every connection of ours is made with `context=STORABLE`. Nothing global changes, so that other code
in the process that uses psycopg is not affected.
"""

import json
from typing import Any

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Dumper
from psycopg.types import string
from psycopg.types.json import set_json_dumps, set_json_loads

from vidgen_worker.domain.foreign_text import storable, storable_value

UNREADABLE = "JSON that is nested too deeply"
"""The value of JSON that Python can't read. A client can write it, and PostgreSQL keeps it."""
LONGEST_INTEGER = 400
"""Digits. Python refuses to read an integer of some thousands; PostgreSQL prints 131,072."""
# The order is psycopg's own: the last one is the default.
_DUMPERS = (
    string.StrBinaryDumperName,
    string.StrBinaryDumperVarchar,
    string.StrBinaryDumper,
    string.StrDumperName,
    string.StrDumperVarchar,
    string.StrDumper,
    string.StrDumperUnknown,
)


def _made_storable(base: type[Dumper]) -> type[Dumper]:
    """Return a dumper like `base` whose text holds no character that PostgreSQL refuses."""

    def dump(self: Dumper, obj: str) -> Buffer | None:
        return base.dump(self, storable(obj))

    return type(base.__name__, (base,), {"dump": dump})


def _json(value: Any) -> str:  # noqa: ANN401 - whatever is to be JSON
    return json.dumps(storable_value(value))


def _loads(text: str | bytes) -> Any:  # noqa: ANN401 - whatever it is
    try:
        return json.loads(text, parse_int=_number)
    except RecursionError:
        return UNREADABLE


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST_INTEGER else float(digits)


def _storable() -> AdaptContext:
    adapters = AdaptersMap(psycopg.adapters)
    for dumper in _DUMPERS:
        adapters.register_dumper(str, _made_storable(dumper))
    set_json_dumps(_json, adapters)
    set_json_loads(_loads, adapters)
    return adapters


STORABLE = _storable()
