"""Ids as people write them: whole, or their first letters; and names that are nearly right.

Every mistake ends with a sentence that says what was meant, or how to find it.
"""

import difflib
import re
from collections.abc import Iterable
from uuid import UUID

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.output import fail
from vidgen_worker.client.database import Database
from vidgen_worker.domain.foreign_text import printable

FEWEST_LETTERS = 4
KINDS = {
    "task": ("tasks_between", " Look: vidgen-worker tasks list"),
    "user": ("users_between", ""),
    "webhook": ("webhooks_between", " Look: vidgen-worker webhooks list"),
    "worker": ("workers_between", " Look: vidgen-worker workers"),
}
"""For each kind of id: the statement that finds it, and the remedy where it finds none."""
_LETTERS = re.compile(r"[0-9a-f-]*")


def find_id(database: Database, kind: str, text: str) -> UUID:
    """Return the id of a task, user, webhook or worker (`kind`) that `text` is, or begins.

    A whole id is returned as it is, known or not. Otherwise ends the process with a sentence.
    """
    written = text.strip().lower()
    try:
        return UUID(written)
    except ValueError:
        letters = written.replace("-", "")
    if not _LETTERS.fullmatch(written) or len(letters) < FEWEST_LETTERS or len(letters) > 31:  # noqa: PLR2004
        fail(
            ExitCode.USAGE,
            f"{printable(text, 80)!r} is no {kind}'s id: write it whole, or at least its first "
            f"{FEWEST_LETTERS} letters (0-9, a-f).",
        )
    bounds = {"first": UUID(letters.ljust(32, "0")), "last": UUID(letters.ljust(32, "f"))}
    statement, hint = KINDS[kind]
    found = database.rows(statement, bounds)
    if not found:
        fail(ExitCode.FAILED, f"There is no {kind} whose id begins with {letters}.{hint}")
    if len(found) > 1:
        several = ", ".join(str(row["id"]) for row in found)
        fail(ExitCode.USAGE, f"Several {kind}s begin with {letters}: {several}. Write more of it.")
    one: UUID = found[0]["id"]
    return one


def check_user(database: Database, user_id: UUID) -> None:
    """End the process where nobody of this id has signed up, as far as this role may know."""
    row = database.row("signed_up", {"user_id": user_id})
    if row is not None and row["known"] is False:
        fail(
            ExitCode.FAILED,
            f"There is no user {user_id} in this project's Auth. Check the id; nothing was done.",
        )


def check_name(name: str, known: Iterable[str], what: str) -> None:
    """End the process where a name is none of the known ones, with the likely one."""
    names = sorted(known)
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=1) or difflib.get_close_matches(
        name.upper(), names, n=1
    )
    hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(names)}."
    fail(ExitCode.USAGE, f"There is no {what} {printable(name, 80)!r}. {hint}")
