"""Films in the queue: woken by the ends of their parts, claimed, their parts ordered, put to wait.

And their renditions, each recorded with its charge. What a film's attempt does with that is decided
in `films`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.task import Artifact, Cancelled, Failed, Fence, Task
from vidgen_worker.queue.caller import Caller
from vidgen_worker.queue.checkpoints import Step, shown
from vidgen_worker.queue.claims import taken_of
from vidgen_worker.queue.errors import CancelAskedError
from vidgen_worker.queue.verdicts import verdict_of
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import FilmWoken, RowRefused


class Lane(IntEnum):
    """The lines of films, beside those of pairs of models."""

    RENDERS = -1
    """Films with outputs: only workers that render take them, for both of their attempts."""
    BATCHES = 0
    """Films without outputs: every worker takes them."""


@dataclass(frozen=True, slots=True)
class Woken:
    """What is left after the mail was taken: `more` of it, and in which lane a film is due."""

    more: bool
    due: bool
    renders_due: bool


@dataclass(frozen=True, slots=True)
class Clip:
    """The stored clip of a part. `size` in bytes; None: nobody knows, its checkpoint is gone."""

    bucket: str
    path: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Rendition:
    """A file of a film that is stored. `position` is its place among the files of the cut.

    `name` is the file's; it is charged where that is the name of an output of the cut, so that an
    output of two files is charged once. `seconds` is how long it plays, None for a still.
    """

    name: str
    position: int
    preset: str
    artifact: Artifact
    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    quality: Mapping[str, Any] | None = None


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
    user_id: UUID
    cancel_requested: bool
    ordered: bool
    parts: int
    unfinished: int
    completed: int
    bad: BadPart | None
    """The first that ended without a clip."""
    verdict: Failed | Cancelled | None
    """How the film is to end, where that was found out before and could not be written."""
    clips: tuple[Clip | None, ...]
    """Of an ordered film with outputs, in the order of its parts; None: that part has no clip."""
    stored: Mapping[str, str]
    """Its renditions: the path of each by its name. The path says what the file was made of."""


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

    async def wake(self) -> Woken:
        """Take the mail of films: those that wait for nothing more are due."""
        *films, left = await self._caller.claims.once("wake_films")
        for row in films:
            if row["refused"]:
                emit(RowRefused(
                    task=str(row["film_id"]), statement="wake", error=row["refused"]
                ))  # fmt: skip
            else:
                emit(FilmWoken(task=str(row["film_id"])))
        return Woken(left["more"], left["due"], left["renders_due"])

    async def take(
        self, *, idle: bool, lane: Lane, most: int
    ) -> tuple[list[tuple[Task, float]], bool]:
        """Take up to so many films that are due, each with how long it was; whether more are."""
        rows = await self._caller.claims.pair(
            "line_up", "claim_films", worker_id=self._caller.worker_id, idle=idle, lane=int(lane),
            most=most,
        )  # fmt: skip
        taken = taken_of(rows)
        return taken, bool(taken and rows[0]["more"])

    async def load(self, fence: Fence) -> LoadedFilm:
        """Read a film's cut, and how far its parts have come. Raises LeaseLostError."""
        row = (await self._caller.fenced("load_film", fence))[0]
        position = row["bad_position"]
        return LoadedFilm(
            cut=row["cut"], user_id=row["user_id"], cancel_requested=row["cancel_requested"],
            ordered=row["ordered"], parts=row["parts"], unfinished=row["unfinished"],
            completed=row["completed"],
            bad=BadPart(position, row["bad_task"], row["bad_code"]) if position else None,
            verdict=verdict_of(row["verdict"]) if row["verdict"] else None,
            clips=tuple(Clip(**clip) if clip else None for clip in row["clips"]),
            stored=row["stored"],
        )  # fmt: skip

    async def lengths(self, fence: Fence) -> tuple[float | None, ...]:
        """How many seconds the clip of each part is ordered for, also before the parts are.

        None: nobody can know. The film has outputs, and its cut was read. Raises LeaseLostError.
        """
        return tuple((await self._caller.fenced("seconds_of_parts", fence))[0]["seconds"])

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

    async def begin_rendering(self, fence: Fence, step: Step) -> None:
        """Show that the outputs of a film are made now.

        Raises CancelAskedError or LeaseLostError.
        """
        if (await self._caller.fenced("begin_rendering", fence, **shown(step)))[0]["cancel"]:
            raise CancelAskedError

    async def begin_rendition(self, fence: Fence, bucket: str, path: str) -> None:
        """Record the place of a rendition, before its upload begins.

        Raises CancelAskedError, LeaseLostError, or a Fault to wait: what an earlier attempt had
        uploaded there is being removed just now.
        """
        rows = await self._caller.fenced("begin_rendition", fence, bucket=bucket, path=path)
        if rows[0]["cancel"]:
            raise CancelAskedError
        if rows[0]["busy"]:
            raise _removed(path)

    async def finish_rendition(
        self, fence: Fence, rendition: Rendition, progress: float, message: str
    ) -> int:
        """Record a rendition that is uploaded, with its charge; returns the credits charged.

        `progress` is 0 to 100 of the whole film.

        Raises LeaseLostError, RowRefusedError, or a Fault to wait: the upload was removed.
        """
        artifact = rendition.artifact
        rows = await self._caller.fenced(
            "finish_rendition", fence, paid=True, rendition=rendition.name,
            position=rendition.position, preset=rendition.preset, media_type=artifact.media_type,
            bucket=artifact.bucket, path=artifact.path, size=artifact.size, sha256=artifact.sha256,
            width=rendition.width, height=rendition.height, seconds=rendition.seconds,
            quality=None if rendition.quality is None else Jsonb(dict(rendition.quality)),
            credits=self._caller.settings.credits, progress=progress, message=message,
        )  # fmt: skip
        if not rows[0]["recorded"]:
            raise _removed(artifact.path)
        return int(rows[0]["charged"])


def _removed(path: str) -> Fault:
    return Fault(
        FaultName.STORAGE_UNAVAILABLE,
        details=f"the janitor removes {path}, which an earlier attempt had uploaded",
    )
