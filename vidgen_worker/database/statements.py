"""The named SQL blocks of this package's files. Nothing here connects to a database."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import LiteralString, Self

_BLOCK = re.compile(r"^-- ((?:fragment )?\w+) --$", re.MULTILINE)
_USE = re.compile(r"^( *)-- use (\w+) --$", re.MULTILINE)


def load_queries(*boxes: str) -> Mapping[str, LiteralString]:
    """Read the named blocks of all .sql files of these boxes: `-- name --`, a comment, SQL.

    Comments are sent to the server too: they cost nothing, and pg_stat_activity shows them.
    """
    files = [
        file
        for box in boxes
        for file in resources.files("vidgen_worker").joinpath(box).iterdir()
        if file.name.endswith(".sql")
    ]
    files.sort(key=lambda file: file.name)
    texts = [file.read_text(encoding="utf-8") for file in files]
    # The text above the first block describes the file.
    blocks = [text[found.start() :] for text in texts if (found := _BLOCK.search(text))]
    return read_queries("\n".join(blocks), ", ".join(boxes))


def read_queries(text: str, file: str) -> Mapping[str, LiteralString]:
    """Parse the text of such a file.

    A block `-- fragment name --` replaces each line `-- use name --` of the statements and of other
    fragments. A fragment takes no lock, and reads in its statement's snapshot.
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
        text = _USE.sub(use, blocks[f"fragment {name}"])
        return "\n".join(indent + part for part in text.splitlines())

    return MappingProxyType({
        # As safe as a literal in this file: the text ships in the package.
        name: _USE.sub(use, body)
        for name, body in blocks.items()
        if not name.startswith("fragment ")
    })  # fmt: skip


_PARAMETER = re.compile(r"%\((\w+)\)s|%%")


@dataclass(frozen=True, slots=True)
class Block:
    """A named query with numbered parameters: `$1` is the first of `names`.

    It is translated once. The driver would do so at every call, in a tenth of a millisecond for the
    claim, because it caches only statements below 4 KiB.
    """

    text: LiteralString
    names: tuple[str, ...]

    @classmethod
    def read(cls, text: LiteralString) -> Self:
        """Translate a query with parameters `%(name)s`, and `%%` for one percent sign."""
        names: list[str] = []

        def numbered(found: re.Match[str]) -> str:
            name = found[1]
            if name is None:
                return "%"
            if name not in names:
                names.append(name)
            return f"${names.index(name) + 1}"

        return cls(_PARAMETER.sub(numbered, text), tuple(names))

    def values(self, parameters: Mapping[str, object]) -> list[object]:
        """The parameters in the order of their numbers; a function is asked now, for each try."""
        values = (parameters[name] for name in self.names)
        return [value() if callable(value) else value for value in values]
