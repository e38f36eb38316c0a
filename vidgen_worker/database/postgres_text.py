"""How psycopg sends our text and JSON: as PostgreSQL can take it, whatever is in it.

Every connection of ours is made with `context=STORABLE`. Programs that use psycopg beside us keep
their own way: nothing here changes what is global.
"""

import json
from typing import Any

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import AdaptersMap, Dumper
from psycopg.types import string
from psycopg.types.json import set_json_dumps

from vidgen_worker.domain.foreign_text import storable, storable_value

# In psycopg's own order: the last one is taken where nothing else is asked for.
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
    """Return a dumper that sends text without what PostgreSQL refuses, else as `base` does."""

    def dump(self: Dumper, obj: str) -> Buffer | None:
        return base.dump(self, storable(obj))

    return type(base.__name__, (base,), {"dump": dump})


def _json(value: Any) -> str:  # noqa: ANN401 - whatever is to be JSON
    return json.dumps(storable_value(value))


def _storable() -> AdaptContext:
    adapters = AdaptersMap(psycopg.adapters)
    for dumper in _DUMPERS:
        adapters.register_dumper(str, _made_storable(dumper))
    set_json_dumps(_json, adapters)
    return adapters


STORABLE = _storable()
