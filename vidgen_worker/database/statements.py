"""The named SQL blocks of this package's files. It reads files and knows no database."""

import re
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import LiteralString

_BLOCK = re.compile(r"^-- ((?:fragment )?\w+) --$", re.MULTILINE)
_USE = re.compile(r"^( *)-- use (\w+) --$", re.MULTILINE)


def load_queries(file: str) -> Mapping[str, LiteralString]:
    """Read the named blocks of a .sql file of this package: `-- name --`, a comment, SQL.

    Comments go to the server too: they cost nothing and show in pg_stat_activity.
    """
    text = resources.files("vidgen_worker").joinpath(file).read_text(encoding="utf-8")
    return read_queries(text, file)


def read_queries(text: str, file: str) -> Mapping[str, LiteralString]:
    """Take the text of such a file apart.

    `-- fragment name --` is a part of statements, and stands for a line `-- use name --` in them.
    It holds no lock: what it reads, it reads in its statement's snapshot.
    """
    parts = _BLOCK.split(text)[1:]
    blocks: dict[str, str] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name in blocks:
            msg = f"{file}: block {name} stands there twice"
            raise ValueError(msg)
        blocks[name] = body.strip().removesuffix(";")

    def use(line: re.Match[str]) -> str:
        indent, name = line.groups()
        return "\n".join(indent + part for part in blocks[f"fragment {name}"].splitlines())

    return MappingProxyType({
        # A literal by the same right as a string in this file: it ships in the package.
        name: _USE.sub(use, body)
        for name, body in blocks.items()
        if not name.startswith("fragment ")
    })  # fmt: skip
