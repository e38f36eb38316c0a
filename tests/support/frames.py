"""Run as a program it is a worker that writes our frames at its first paid POST, and ends there.

A task's frames begin where it was made: the stack goes over each hand-off, which stands as "|".
Each frame is "module.function", in the order of the calls; a comprehension is none.
"""

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

import runwayml

import vidgen_worker
from vidgen_worker.__main__ import main

if TYPE_CHECKING:
    from types import FrameType

PACKAGE = Path(vidgen_worker.__file__).parent
HAND_OFF = "|"


class Remembering(asyncio.DefaultEventLoopPolicy):
    """Its tasks remember the frames that made them."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        loop = super().new_event_loop()
        loop.set_task_factory(_make)  # type: ignore[arg-type]
        return loop


_made: dict["asyncio.Task[Any]", list[str]] = {}


def _make(
    loop: asyncio.AbstractEventLoop,
    coro: Coroutine[Any, Any, Any],
    **options: Any,  # noqa: ANN401 - the loop's own
) -> "asyncio.Task[Any]":
    frames = frames_here()
    task = asyncio.Task(coro, loop=loop, **options)
    _made[task] = [*frames, HAND_OFF] if frames else []
    return task


def frames_here() -> list[str]:
    """Our frames from the start of the process to here."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    here: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and not frame.f_code.co_name.startswith("<"):
            module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            here.append(f"{module}.{frame.f_code.co_qualname}")
        frame = frame.f_back
    here.reverse()
    if task is None or not _made.get(task):
        return here
    # The frames that started the loop are below every task of it.
    begun = _made[task]
    below = [a == b for a, b in zip(here, begun, strict=False)]
    return [*begun, *here[(*below, False).index(False) :]]


def _tell(*_: object, **__: object) -> Never:
    sys.stdout.write("\n".join(frames_here()))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    asyncio.set_event_loop_policy(Remembering())
    runwayml.AsyncRunwayML.post = _tell  # type: ignore[method-assign]
    sys.argv = ["vidgen-worker", "run"]
    main()
