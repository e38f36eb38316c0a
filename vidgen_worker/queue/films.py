"""Films in the queue: woken by the ends of their parts, claimed, their parts ordered, put to wait.

What a film's attempt does with that is decided in `films`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from vidgen_worker.domain.task import Cancelled, Failed, Fence, Task
from vidgen_worker.queue.caller import Caller
from vidgen_worker.queue.claims import taken_of
from vidgen_worker.queue.errors import CancelAskedError
from vidgen_worker.queue.verdicts import verdict_of
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import FilmWoken, RowRefused

LANE = 0
"""The lane of films."""


@dataclass(frozen=True, slots=True)
class BadPart:
    """A part that ended without a clip: its position, from 1 on, its task, and why it ended."""

    position: int
    task_id: UUID
    code: str


@dataclass(frozen=True, slots=True)
class LoadedFilm:
    """What an attempt at a film starts from. `parts` and `unfinished` count what is ordered."""

    cut: Mapping[str, Any]
    cancel_requested: bool
    ordered: bool
    parts: int
    unfinished: int
    completed: int
    bad: BadPart | None
    """The first that ended without a clip."""
    verdict: Failed | Cancelled | None
    """How the film is to end, where that was found out before and could not be written."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a film's parts were not ordered: an error code, and a sentence for its owner.

    `field` points at what is wrong in the cut, where it is the cut (RFC 6901).
    """

    code: str
    message: str
    field: str | None


class Films:
    """What a worker does about films, between their claim and their end."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def wake(self) -> tuple[bool, bool]:
        """Take the mail of films; whether there is more of it, and whether a film is due."""
        *films, left = await self._caller.claims.once("wake_films")
        for row in films:
            if row["refused"]:
                emit(RowRefused(
                    task=str(row["film_id"]), statement="wake", error=row["refused"]
                ))  # fmt: skip
            else:
                emit(FilmWoken(task=str(row["film_id"])))
        return bool(left["more"]), bool(left["due"])

    async def take(self, *, idle: bool) -> tuple[list[tuple[Task, float]], bool]:
        """Take films that are due, each with how long it was; whether there are more."""
        rows = await self._caller.claims.pair(
            "line_up", "claim_films", worker_id=self._caller.worker_id, idle=idle, lane=LANE
        )
        taken = taken_of(rows)
        return taken, bool(taken and rows[0]["more"])

    async def load(self, fence: Fence) -> LoadedFilm:
        """Read a film's cut, and how far its parts have come. Raises LeaseLostError."""
        row = (await self._caller.fenced("load_film", fence))[0]
        position = row["bad_position"]
        return LoadedFilm(
            cut=row["cut"], cancel_requested=row["cancel_requested"], ordered=row["ordered"],
            parts=row["parts"], unfinished=row["unfinished"], completed=row["completed"],
            bad=BadPart(position, row["bad_task"], row["bad_code"]) if position else None,
            verdict=verdict_of(row["verdict"]) if row["verdict"] else None,
        )  # fmt: skip

    async def order(self, fence: Fence) -> Refused | None:
        """Order all parts of a film, with their credits held; or none, and why.

        Raises CancelAskedError or LeaseLostError.
        """
        rows = await self._caller.fenced(
            "order_parts", fence, credits=self._caller.settings.credits
        )
        row = rows[0]
        if row["refused"] is None:
            return None
        if row["refused"] == "CANCELLED":
            raise CancelAskedError
        return Refused(row["refused"], row["said"], row["field"] or None)

    async def wait_for_parts(self, fence: Fence, message: str) -> None:
        """Conclude this attempt: pending until the parts have ended.

        Raises CancelAskedError (nothing is written then) or LeaseLostError.
        """
        rows = await self._caller.fenced("wait_for_parts", fence, message=message)
        if rows[0]["cancel"]:
            raise CancelAskedError
