"""Attempts in this process: begun for what a claim took, and their slots freed.

The claim decides which task is next; the pipeline decides what becomes of it.
"""

import asyncio
import functools
import traceback
from collections.abc import Callable, Iterable

from vidgen_worker.database.trouble import DatabaseUnavailableError
from vidgen_worker.domain.keys import Gate
from vidgen_worker.domain.task import Outcome, Task
from vidgen_worker.pipeline.attempt import attempt
from vidgen_worker.pipeline.run import Run, Tools
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import LoopFailed, TaskStarted
from vidgen_worker.worker.process import Process
from vidgen_worker.worker.reports import Reports


class Attempts:
    """`freed` is called when a slot is free again."""

    def __init__(self, process: Process, reports: Reports, freed: Callable[[Run], None]) -> None:
        self._process = process
        self._reports = reports
        self._freed = freed

    def start(self, claimed: Iterable[tuple[Task, float]], trial: Gate | None = None) -> None:
        """Begin to work on what was claimed, and has waited so long.

        `trial` is the gate that a task is let through.
        """
        for task, waited in claimed:
            run = Run(task, trial=trial, alone=task.alone)
            if task.cancel_requested:
                run.cancel.set()
            emit(TaskStarted(
                fence=task.fence, user=task.user_id, waited_seconds=round(waited, 3)
            ))  # fmt: skip
            working = asyncio.create_task(attempt(self._tools(), run))
            working.add_done_callback(functools.partial(self._ended, run))
            self._process.held.tasks[task.id] = (run, working)

    def _tools(self) -> Tools:
        process = self._process
        return Tools(
            settings=process.settings, queue=process.life.queue, gates=process.life.gates,
            provider=process.provider, storage=process.storage, media=process.media,
            license=process.license, report=self._reports.add, turns=process.turns,
            scratch=process.scratch, stages=process.stages, fonts=process.fonts,
        )  # fmt: skip

    def _ended(self, run: Run, working: "asyncio.Task[Outcome]") -> None:
        """Free the slot of an attempt, however it ended; report an unexpected error.

        Its task is left to the sweep of orphans then.
        """
        task, held = run.task, self._process.held
        error = None if working.cancelled() else working.exception()
        match error:
            case None:
                pass
            case DatabaseUnavailableError():
                # Only while giving up: the drain's deadline has passed, or this life is over.
                emit(LoopFailed(loop=f"task {task.id}", error=str(error), traceback=""))
            case _:
                emit(LoopFailed(
                    loop=f"task {task.id}", error=f"{type(error).__name__}: {error}"[:500],
                    traceback="".join(traceback.format_exception(error)),
                ))  # fmt: skip
        held.keep_posting(run)
        self._reports.forget(task.id)
        held.free(run)
        self._freed(run)
