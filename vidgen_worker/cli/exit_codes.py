"""How a verb ends. It prints nothing, and is imported by what must be quick."""

from enum import IntEnum
from typing import Self


class ExitCode(IntEnum):
    """How a verb ends; `--help` prints this list."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> Self:
        """Make a member that carries its meaning."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        return member

    OK = 0, "done"
    FAILED = 1, "it could not be done, a check is red, or the watched task failed"
    USAGE = 2, "wrong usage, or --yes is missing"
    UNAVAILABLE = 69, "the database can't be reached"
    CONFIGURATION = 78, "the configuration can't be used"
    INTERRUPTED = 130, "interrupted"
    READER_LEFT = 141, "whoever read the output has left"


class ReaderLeftError(BrokenPipeError):
    """Whoever read what is printed has left, as `head` does.

    It has no errno: of a BrokenPipeError with one the parser makes exit code 1, which says that
    something could not be done.
    """
