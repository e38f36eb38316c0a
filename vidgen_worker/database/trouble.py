"""The kinds of errors of the database: transient or lasting, and our own errors for them.

This is the only place that decides which errors are transient. It runs no statement.
"""

import re
from enum import Enum

import psycopg

from vidgen_worker.domain.foreign_text import printable


class DatabaseUnavailableError(Exception):
    """A statement met a transient error, and was not or no longer repeated.

    `trouble` is the kind of the error, `AWAY` or `PASSING`; `told`, whether it belongs to an outage
    that has its own log line.
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
        "08",  # connection; also most errors of PgBouncer
        "28",  # login: after a first success it is a pooler's, or of a project that wakes up
        "40",  # serialization, deadlock, completion unknown
        "53",  # too few resources
        "57",  # cancelled, shut down, starting
        "58",  # a system error below PostgreSQL
    }
)
PASSING_STATES = frozenset(
    {
        "25P02",  # a transaction that another client left open on this server connection
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
    """The kind of an error, for the statement that met it."""

    AWAY = "away"
    """The database, or the connection to it, fails: so would every statement."""
    PASSING = "passing"
    """This statement fails now: a lock, a deadlock, a time-out."""
    UNKNOWN = "unknown"
    """Anything else: the same statement would most likely fail again."""


def trouble_of(error: BaseException) -> Trouble:
    """Return the kind of an error, by its SQLSTATE class.

    A failure to connect carries no SQLSTATE, whatever the server answered.
    """
    if isinstance(error, TimeoutError | OSError):
        return Trouble.AWAY
    if not isinstance(error, psycopg.Error):
        return Trouble.UNKNOWN
    state = error.sqlstate
    if state is None:
        # Errors of the pool and the driver: no connection, a lost one, an invalid answer.
        lost = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        return Trouble.AWAY if lost else Trouble.UNKNOWN
    of_a_pooler = state == "XX000" and _OF_A_POOLER.search(str(error)) is not None
    if not (of_a_pooler or state[:2] in PASSING_CLASSES or state in PASSING_STATES):
        return Trouble.UNKNOWN
    # A trigger can raise any SQLSTATE. An error that ends the connection is not a trigger's.
    ends_it = of_a_pooler or error.diag.severity_nonlocalized in ("FATAL", "PANIC")
    return Trouble.AWAY if ends_it else Trouble.PASSING


def one_line(error: BaseException) -> str:
    """The class and the text of an error, on one line."""
    return printable(f"{type(error).__name__}: {error}", 500)
