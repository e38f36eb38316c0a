"""What an error of the database says: what passes, and what is raised instead.

The one place that tells transient from lasting. It runs no statement.
"""

import re
from enum import Enum

import psycopg

from vidgen_worker.domain.foreign_text import printable


class DatabaseUnavailableError(Exception):
    """A statement failed in a transient way and its patience ran out, or there was none.

    `trouble` is what the error said, `AWAY` or `PASSING`; `told`, whether it is part of an outage
    that has its own line.
    """

    def __init__(self, text: str, trouble: "Trouble", *, told: bool = False) -> None:
        self.trouble = trouble
        self.told = told
        super().__init__(text)


class LockedError(DatabaseUnavailableError):
    """A statement wanted a lock that another transaction holds, and did not wait for it."""


class StatementStuckError(Exception):
    """One statement failed again and again while the database answered others."""


PASSING_CLASSES = frozenset(
    {
        "08",  # connection; also most of what PgBouncer has to say
        "28",  # login: once we were in, it is a pooler's own, or of a project that wakes up
        "40",  # serialization, deadlock, completion unknown
        "53",  # too few resources
        "57",  # cancelled, shut down, starting
        "58",  # a system error below PostgreSQL
    }
)
PASSING_STATES = frozenset(
    {
        "25P02",  # a transaction that somebody else left behind on this server connection
        "25P03", "25P04",  # idle_in_transaction_session_timeout, transaction_timeout
        "25006",  # read-only: a failover in progress
        "3D000",  # no such database, on a connection to it: it is being restored
        "42P05", "26000",  # prepared statements behind a transaction pooler
        "55P03",  # lock_timeout
    }
)  # fmt: skip
# https://github.com/supabase/supavisor, lib/supavisor/errors: all of them are XX000, and their text
# begins with a name such as (ECHECKOUTTIMEOUT), (EDBHANDLEREXITED) or (EMAXCONNSESSION); before it
# had names it said "Internal error (authenticated): …", and still does where it has none.
_OF_A_POOLER = re.compile(
    r"\(E[A-Z]{3,}\)|Internal error \((handshake|authenticated)\)|DbHandler exited"
    r"|unable to check ?out|check ?out timed out|connection to database closed|pool.{0,20}terminat"
    r"|[Mm]ax ?[Cc]lients? ?(connections|[Ii]n)",
)


class Trouble(Enum):
    """What an error says of the statement that met it."""

    AWAY = "away"
    """The database, or the way to it: every statement would fail."""
    PASSING = "passing"
    """This statement, now: a lock, a deadlock, a time-out."""
    UNKNOWN = "unknown"
    """Anything else: the same statement would most likely fail again."""


def trouble_of(error: BaseException) -> Trouble:
    """Tell by the class of an error, never by a list of the ones that were seen.

    The one place that decides what passes. Connect failures carry no SQLSTATE whatever the server
    said.
    """
    if isinstance(error, TimeoutError | OSError):
        return Trouble.AWAY
    if not isinstance(error, psycopg.Error):
        return Trouble.UNKNOWN
    state = error.sqlstate
    if state is None:
        # The pool's and the driver's own: no connection, a lost one, an answer without sense.
        lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return Trouble.AWAY if lost else Trouble.UNKNOWN
    of_a_pooler = state == "XX000" and _OF_A_POOLER.search(str(error)) is not None
    if not (of_a_pooler or state[:2] in PASSING_CLASSES or state in PASSING_STATES):
        return Trouble.UNKNOWN
    # An error that ends the connection is not about the statement; a trigger can raise any state.
    ends_it = of_a_pooler or error.diag.severity_nonlocalized in ("FATAL", "PANIC")
    return Trouble.AWAY if ends_it else Trouble.PASSING


def one_line(error: BaseException) -> str:
    """Kind and words of an error, on one line."""
    return printable(f"{type(error).__name__}: {error}", 500)
