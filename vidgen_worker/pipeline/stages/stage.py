"""A stage: the declaration of one paid step.

Nothing outside this folder asks which stage it has before it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional
from uuid import UUID

from vidgen_worker.config import Settings
from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.resolution import Resolution
from vidgen_worker.domain.task import Artifact, Scene, StageName
from vidgen_worker.media.outputs import Clip, Media, Picture
from vidgen_worker.providers.protocol import Provider, Request
from vidgen_worker.queue.checkpoints import Columns, Step

DEFAULT_DURATION = 5
"""Seconds of a clip whose scene names none."""


@dataclass(frozen=True, slots=True)
class Order:
    """The order of one stage, frozen when it first goes to `submitting`.

    `ratio` is the exact size that the user gets (the request's own may be the nearest that the
    model takes), `seconds` the duration of a clip.
    """

    request: Request
    ratio: str
    seconds: int

    def frozen(self) -> dict[str, Any]:
        """Return the order in the form of a checkpoint."""
        return {
            "endpoint": self.request.endpoint,
            "model": self.request.model,
            "body": dict(self.request.body),
            "source": self.request.source,
            "ratio": self.ratio,
            "seconds": self.seconds,
        }

    @classmethod
    def thawed(cls, frozen: Mapping[str, Any]) -> "Order":
        """Return the order from the form of a checkpoint."""
        request = Request(
            frozen["endpoint"], frozen["model"], frozen["body"], frozen["source"]
        )  # fmt: skip
        return cls(request, frozen["ratio"], frozen["seconds"])


@dataclass(frozen=True, slots=True)
class Looked:
    """An output that decodes and is what was asked for.

    `file`, of `size` bytes and with this hex `sha256`, is what is to be stored. `whole`: the
    delivered file is known to lack nothing. `conformed` says what it was and what it is now, where
    that differs.
    """

    file: Path
    size: int
    sha256: str
    whole: bool
    conformed: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Stage:
    """One paid step: what the row says meanwhile, what is asked for, where the output goes.

    Its row of `vidgen.stages` says the same to the database: its place in the line of stages and
    the action whose price it has.
    """

    name: StageName
    made_from: Optional["Stage"]
    """The stage whose output it is made from."""
    public: bool
    """Whether anybody may read its outputs; else they are signed."""
    is_result: bool
    """Whether its output is what the task was ordered for."""
    media_type: str
    generating: Step
    storing: Step
    stored: Step
    model: Callable[[Settings], str]
    bucket: Callable[[Settings], str]
    max_bytes: Callable[[Settings], int]
    least_bytes: int
    """A large output of the stage, which its bucket must accept."""
    order: Callable[[Scene, Resolution, Settings, Provider], Order]
    """Returns the order. Raises Fault naming the scene's field at fault."""
    path: Callable[[UUID, UUID], str]
    """Returns the place of a user's upload."""
    look: Callable[[Media, Path, Order], Awaitable[Looked]]
    """Decode an output, in a process of its own, and bring it to what was asked for."""
    shown: Callable[[Artifact, str | None], Columns]
    """The task's columns that its stored output fills; the text is its public address."""


async def look_at_picture(media: Media, file: Path, order: Order) -> Looked:
    """Look at a still."""
    found: Picture = await media.check_image(file, order.ratio)
    was = f"{found.format} {found.width}:{found.height}"
    return Looked(
        found.file, found.size, found.sha256, found.whole,
        (was, order.ratio) if found.conformed else None,
    )  # fmt: skip


async def look_at_clip(media: Media, file: Path, order: Order) -> Looked:
    """Look at a clip."""
    found: Clip = await media.check_video(file, order.ratio, order.seconds)
    was = f"{found.codec} {found.width}:{found.height} {found.seconds:.2f} s"
    return Looked(
        found.file, found.size, found.sha256, found.whole,
        (was, f"{order.ratio} {order.seconds} s")
        if found.conformed or not found.right_duration else None,
    )  # fmt: skip


def seconds_of(scene: Scene) -> int:
    """The clip's duration; null means 5. Raises Fault when it is no whole number."""
    duration: object = scene.duration
    if duration is None:
        return DEFAULT_DURATION
    if isinstance(duration, float) and duration.is_integer():
        return int(duration)  # an application's own column may be numeric
    if isinstance(duration, bool) or not isinstance(duration, int):
        message = (
            f"The field duration is {str(duration)[:40]!r}; it must be a whole number of seconds. "
            "Correct it, then retry."
        )
        raise Fault(FaultName.SCENE_INVALID, field="duration", message=message, details=message)
    return duration
