"""The finding of a check, and its display. Nothing here checks anything."""

from dataclasses import dataclass
from enum import StrEnum

from rich.text import Text

from vidgen_worker.domain.foreign_text import printable


class State(StrEnum):
    """The result of a check."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


MARKS = {
    State.OK: Text("✓", style="bold green"),
    State.NOTE: Text("!", style="bold yellow"),
    State.BAD: Text("✗", style="bold red"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the result; `remedy` is empty where nothing is to be done."""

    what: str
    state: State
    said: str
    remedy: str = ""


def line_of(finding: Finding) -> Text:
    """A finding as `check` prints it."""
    line = Text.assemble(
        MARKS[finding.state], " ", (f"{finding.what}: ", "bold"), printable(finding.said)
    )
    if finding.remedy:
        line.append(f"\n    → {finding.remedy}", style="italic")
    return line
