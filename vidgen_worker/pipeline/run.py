"""One attempt in memory: what it has found out, what it works with, how it hears of a cancel.

It is gone with the process: what must not be lost is in Postgres before it is here. Nothing here
decides anything.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from vidgen_worker.admission.gates import Gates
from vidgen_worker.config import Settings
from vidgen_worker.domain.keys import Gate
from vidgen_worker.domain.resolution import Resolution
from vidgen_worker.domain.task import Completed, StageName, Task
from vidgen_worker.media.outputs import Media
from vidgen_worker.media.scratch import Scratch
from vidgen_worker.pipeline.stages import Order, Stage
from vidgen_worker.providers.protocol import Provider
from vidgen_worker.queue.checkpoints import Reported
from vidgen_worker.queue.errors import CancelAskedError
from vidgen_worker.queue.queue import Queue
from vidgen_worker.storage.storage import Storage
from vidgen_worker.telemetry.turns import Turns

if TYPE_CHECKING:
    from vidgen_worker.films.fonts import Fonts

T = TypeVar("T")


@dataclass(slots=True)
class Run:
    """The mutable side of one attempt, shared with the worker that holds the lease."""

    task: Task
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    trial: Gate | None = None
    """The gate that this task was let through, to try whether a storm has passed."""
    posting: "asyncio.Task[UUID] | None" = None
    """The paid POST in flight with its records: never cut, not even by a drain."""
    orders: Mapping[StageName, Order] = field(default_factory=dict)
    """The order of each stage, once it is known."""
    resolution: Resolution | None = None
    """What was looked up for the stages that have not begun; None: all have begun."""
    submitted: set[StageName] = field(default_factory=set)
    """Stages whose generation this attempt itself has submitted."""
    generations: dict[StageName, UUID] = field(default_factory=dict)
    cancel_read: asyncio.Event = field(default_factory=asyncio.Event)
    """The task was read for its cancel: a POST in flight may ask now which generations it found."""
    cancelling: set[UUID] = field(default_factory=set)
    """The generations that this read found: the attempt ends them, and the POST any other."""
    done: set[StageName] = field(default_factory=set)
    outputs: dict[StageName, tuple[str, ...]] = field(default_factory=dict)
    """Output URLs as this attempt read them: minutes old, and good for a day."""
    inputs: str | None = None
    """The digest of the scene when the last stage ended: whether the next one reads it anew."""
    completed: Completed | None = None
    """The end, where it was written with the last stage."""
    alone: bool = False
    """Whether nothing else may run beside it now; not while its generation is only polled."""
    polling: bool = False
    """Its generation is only polled: the task may be given back at any moment, at no cost."""
    concluding: bool = False
    """The end is being written: the verdict "lost" of a heartbeat may come from our own write."""

    async def pause(self, pause: timedelta) -> None:
        """Sleep, but wake when the owner asks to cancel. Raises CancelAskedError."""
        try:
            async with asyncio.timeout(pause.total_seconds()):
                await self.cancel.wait()
        except TimeoutError:
            return
        raise CancelAskedError

    async def unless_cancelled(self, work: Awaitable[T]) -> T:
        """Do this, but stop it when the owner asks to cancel. Raises CancelAskedError."""
        working = asyncio.ensure_future(work)
        asked = asyncio.create_task(self.cancel.wait())
        try:
            await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
        finally:
            asked.cancel()
            if not working.done():
                working.cancel()
                await asyncio.wait({working})
        raise CancelAskedError


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools of an attempt. `license` returns when a paid submission may begin."""

    settings: Settings
    queue: Queue
    gates: Gates
    provider: Provider
    storage: Storage
    media: Media
    license: Callable[[], Awaitable[None]]
    report: Callable[[Reported], None]
    turns: Turns
    scratch: Scratch
    stages: tuple[Stage, ...]
    """The stages of an attempt, in this order."""
    fonts: "Fonts | None"
    """What captions are drawn with; None: no film is cut here."""
