"""Attempts in this process: begun for what a claim took, and their slots freed.

The claim decides which task is next, the pipeline what becomes of it.
"""

import asyncio
import traceback
from collections.abc import Callable, Iterable

from vidgen_worker.database.trouble import DatabaseUnavailableError
from vidgen_worker.domain.keys import Gate
from vidgen_worker.domain.task import Task
from vidgen_worker.pipeline.attempt import attempt
from vidgen_worker.pipeline.run import Run, Tools
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import LoopFailed, TaskStarted
from vidgen_worker.worker.process import Process
from vidgen_worker.worker.reports import Reports


class Attempts:
    """`freed` is called when a slot is free again."""

    def __init__(self, process: Process, reports: Reports, freed: Callable[[], None]) -> None:
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
            self._process.held.tasks[task.id] = (run, asyncio.create_task(self._attempt(run)))

    async def _attempt(self, run: Run) -> None:
        """Run one attempt and free its slot, whatever happened."""
        task, process = run.task, self._process
        tools = Tools(
            settings=process.settings, queue=process.life.queue, gates=process.life.gates,
            provider=process.provider, storage=process.storage, media=process.media,
            license=process.license, report=self._reports.add, turns=process.turns,
            scratch=process.scratch, stages=process.stages,
        )  # fmt: skip
        try:
            await attempt(tools, run)
        except DatabaseUnavailableError as error:
            # Only while giving up: the drain's deadline has passed, or this life is over.
            emit(LoopFailed(loop=f"task {task.id}", error=str(error), traceback=""))
        except Exception as error:  # noqa: BLE001 - said, and left to the sweep of orphans
            emit(LoopFailed(
                loop=f"task {task.id}", error=f"{type(error).__name__}: {error}"[:500],
                traceback=traceback.format_exc(),
            ))  # fmt: skip
        finally:
            process.held.keep_posting(run)
            self._reports.forget(task.id)
            process.held.free(run)
            self._freed()
