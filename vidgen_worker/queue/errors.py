"""The errors that the queue's verbs raise. Nothing here decides what follows from them."""

from datetime import timedelta
from enum import StrEnum

import psycopg

from vidgen_worker.database.trouble import LockedError
from vidgen_worker.domain.keys import Gate


class LeaseLostError(Exception):
    """A fenced write hit no row: another worker has this task, or it was taken back."""


class RowRefusedError(Exception):
    """The task's row, or its scene's, refused a statement: the cause is in the application.

    `statement` names the query. The database's error is the `__cause__`. `locked` says that another
    transaction held the row for too long, which passes.
    """

    def __init__(self, statement: str, error: psycopg.Error | LockedError) -> None:
        self.statement = statement
        self.locked = isinstance(error, LockedError)
        if isinstance(error, psycopg.Error):
            state = error.sqlstate or type(error).__name__
            self.error = f"{state} {error.diag.message_primary or error}"
        else:
            self.error = LOCKED
        super().__init__(f"{statement}: {self.error}")


class CancelAskedError(Exception):
    """The task's owner has asked to cancel it."""


class SubmissionCapError(Exception):
    """The stage's possibly paid submissions have reached the cap."""


class GateClosedError(Exception):
    """A gate forbids paid submissions of this model now; the text is the gate's reason."""


class BrakedError(Exception):
    """A trouble lasts, and all submissions that it allows have begun: its gate must close."""

    def __init__(self, gate: Gate, reason: str, message: str, details: str) -> None:
        self.gate = gate
        self.reason = reason
        self.message = message
        self.details = details
        super().__init__(reason)


class LimitKind(StrEnum):
    """The effect of a user's limit on a task: the values of `vidgen.refuse_submission`."""

    REJECTED = "rejected"
    """The task ends: the same input was rejected before."""
    ENDED = "ended"
    """The task ends: a limit is reached, and the message names it."""
    WAITS = "waits"
    """The task waits for the delay."""


class UserLimitedError(Exception):
    """A limit of the task's user forbids this submission; nothing was written."""

    def __init__(self, kind: LimitKind, message: str, details: str, delay: timedelta) -> None:
        self.kind = kind
        self.message = message
        self.details = details
        self.delay = delay
        super().__init__(details or message)


class NoSlotError(Exception):
    """No slot of this model is free: the provider's tier allows no more generations."""


class BucketsNotSharedError(Exception):
    """The storage policy is set to other buckets, and this role may not change it."""


class NotOursError(Exception):
    """A generation that only workers with another account, or another key, may follow."""


LOCKED = "55P03 locked by another transaction"
"""The text for `vidgen.note_refusal`, which recognizes a lock by its SQLSTATE."""
