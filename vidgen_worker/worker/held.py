"""The tasks that this process works on, and the paid POSTs that outlive their attempts.

It starts no attempt and writes nothing.
"""

import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vidgen_worker.database.trouble import (
    DatabaseUnavailableError,
    StatementStuckError,
    one_line,
)
from vidgen_worker.domain.faults import Fault
from vidgen_worker.domain.task import Fence, Outcome
from vidgen_worker.pipeline.run import Run
from vidgen_worker.queue.errors import (
    BrakedError,
    CancelAskedError,
    GateClosedError,
    LeaseLostError,
    NoSlotError,
    RowRefusedError,
    SubmissionCapError,
    UserLimitedError,
)
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import LeaseLost, LoopFailed

if TYPE_CHECKING:
    import asyncio
    from uuid import UUID

EXPECTED_OF_A_POST = (
    Fault, LeaseLostError, CancelAskedError, GateClosedError, BrakedError, NoSlotError,
    SubmissionCapError, RowRefusedError, StatementStuckError, UserLimitedError,
    DatabaseUnavailableError,
)  # fmt: skip

Working = tuple[Run, "asyncio.Task[Outcome]"]


class Held:
    """Tasks by id, each with its run and the coroutine that works on it."""

    def __init__(self) -> None:
        self.tasks: dict[UUID, Working] = {}
        self.posting: set[asyncio.Task[UUID]] = set()

    def __len__(self) -> int:
        """How many slots are taken."""
        return len(self.tasks)

    def runs(self) -> Iterable[Run]:
        """The runs of all of them."""
        return [run for run, _ in self.tasks.values()]

    def fences(self) -> list[Fence]:
        """The fences of all of them."""
        return [run.task.fence for run in self.runs()]

    def find(self, fence: Fence) -> Run | None:
        """The run of this very attempt."""
        held = self.tasks.get(fence.task_id)
        return held[0] if held and held[0].task.fence.attempt == fence.attempt else None

    def drop(self, fence: Fence) -> None:
        """The task belongs to another worker now: stop working on it, write nothing."""
        run = self.find(fence)
        if run is not None and not run.concluding:
            _, working = self.tasks.pop(fence.task_id)
            emit(LeaseLost(fence=run.task.fence))
            working.cancel()

    def drop_all(self) -> None:
        """All of them belong to other workers now."""
        dropped = list(self.tasks.values())
        self.tasks.clear()
        for run, working in dropped:
            self.keep_posting(run)
            working.cancel()

    def free(self, run: Run) -> None:
        """Its attempt has ended."""
        held = self.tasks.get(run.task.id)
        if held is not None and held[0] is run:
            del self.tasks[run.task.id]

    def keep_posting(self, run: Run) -> None:
        """A POST in flight outlives its attempt: keep it until its answer is recorded."""
        posting = run.posting
        if posting is not None:
            self.posting.add(posting)
            posting.add_done_callback(self._posted)

    def _posted(self, posting: "asyncio.Task[UUID]") -> None:
        self.posting.discard(posting)
        error = None if posting.cancelled() else posting.exception()
        # Nobody awaits it any more; expected errors were emitted as events.
        if error is not None and not isinstance(error, EXPECTED_OF_A_POST):
            emit(LoopFailed(
                loop="the answer to a paid POST", error=one_line(error),
                traceback="".join(traceback.format_exception(error)),
            ))  # fmt: skip
