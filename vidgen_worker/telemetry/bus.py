"""The bus: delivers events to subscribers: always to the log, also to metrics and tests.

An event is a frozen dataclass: its fields become the fields of the log line, `sentence` its text
and `level` its level. A subscriber must not raise; an error of one is logged and does not stop the
work. Nothing here does I/O except for calling the subscribers.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import structlog

from vidgen_worker.domain.task import Fence, StageName
from vidgen_worker.telemetry.late_log import settle


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One happening in this process."""

    sentence: ClassVar[str]
    level: ClassVar[int] = logging.INFO
    told_elsewhere: ClassVar[frozenset[str]] = frozenset()
    """Fields that are left out, because the text, another line or a row has them."""

    def importance(self) -> int:
        """The log line's level."""
        return self.level

    def text(self) -> str:
        """The log line's text."""
        return self.sentence

    def fields(self) -> dict[str, Any]:
        """The other fields of the log line; a None is left out."""
        fields = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in self.told_elsewhere
        }
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent(Event):
    """An event about a task: `task` and `attempt` are in every line about it."""

    fence: Fence

    def fields(self) -> dict[str, Any]:
        """Task and attempt first."""
        rest = Event.fields(self)
        rest.pop("fence")
        return {"task": str(self.fence.task_id), "attempt": self.fence.attempt, **rest}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvent(TaskEvent):
    """An event in a stage."""

    stage: StageName


Subscriber = Callable[[Event], None]


def log(event: Event) -> None:
    """Write an event to the log. This subscriber is always present."""
    settle()
    structlog.get_logger("video_generation").log(event.importance(), event.text(), **event.fields())


_subscribers: list[Subscriber] = [log]


def emit(event: Event) -> None:
    """Deliver an event to every subscriber. An error of one is logged and stops nothing."""
    for subscriber in tuple(_subscribers):
        try:
            subscriber(event)
        except Exception:
            logging.getLogger("video_generation").exception(
                "an event subscriber failed on %s", type(event).__name__
            )


def subscribe(subscriber: Subscriber) -> None:
    """Deliver every event to `subscriber` from now on, in the order of subscription."""
    _subscribers.append(subscriber)


@contextmanager
def subscribed(subscriber: Subscriber) -> Iterator[None]:
    """Deliver every event inside the block to `subscriber`."""
    _subscribers.append(subscriber)
    try:
        yield
    finally:
        _subscribers.remove(subscriber)
