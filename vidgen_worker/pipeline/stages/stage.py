"""What a stage is: a declaration with two pure functions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from vidgen_worker.config import Settings
from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.resolution import Resolution
from vidgen_worker.domain.task import Scene, StageName
from vidgen_worker.providers.protocol import Request
from vidgen_worker.queue.checkpoints import Step

DEFAULT_DURATION = 5
"""Seconds of a clip whose scene names none."""


@dataclass(frozen=True, slots=True)
class Order:
    """What one stage asks for, frozen when it first goes to `submitting`.

    `ratio` is the exact size that the user gets (the request's own may be the nearest that the
    model takes), `seconds` the duration of a clip.
    """

    request: Request
    ratio: str
    seconds: int

    def frozen(self) -> dict[str, Any]:
        """As the checkpoint keeps it."""
        return {
            "model": self.request.model,
            "body": dict(self.request.body),
            "ratio": self.ratio,
            "seconds": self.seconds,
        }

    @classmethod
    def thawed(cls, stage: StageName, frozen: Mapping[str, Any]) -> "Order":
        """As the checkpoint kept it."""
        return cls(
            Request(stage, frozen["model"], frozen["body"]), frozen["ratio"], frozen["seconds"]
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """One paid step.

    `order` says what to ask for; its last argument is the URL of the first frame, which only the
    video stage reads. `path` is where an upload of a user's is stored.
    """

    name: StageName
    generating: Step
    storing: Step
    stored: Step
    media_type: str
    order: Callable[[Scene, Resolution, Settings, str], Order]
    path: Callable[[UUID, UUID], str]

    def bucket(self, settings: Settings) -> str:
        """The bucket of this stage's outputs."""
        if self.name is StageName.IMAGE:
            return settings.storage_bucket_images
        return settings.storage_bucket_videos

    def max_bytes(self, settings: Settings) -> int:
        """The largest output of this stage, in bytes."""
        if self.name is StageName.IMAGE:
            return settings.vidgen_max_image_bytes
        return settings.vidgen_max_video_bytes


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
