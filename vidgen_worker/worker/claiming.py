"""The claim loop: takes waiting tasks, tasks of the dead, and tasks that are to be cancelled.

One claim at a time; `lock` is held while one is in flight. Nothing here runs an attempt.
"""

import asyncio
import contextlib
import random
from datetime import timedelta

from vidgen_worker.database.pool import STATEMENT_DEADLINE
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.keys import Gate
from vidgen_worker.pipeline.run import Run
from vidgen_worker.queue.claims import Claimed
from vidgen_worker.queue.films import Lane
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import TaskFailed, TaskHandedBack
from vidgen_worker.worker.attempts import Attempts
from vidgen_worker.worker.ending import LOOPS_END, end_all
from vidgen_worker.worker.lease import Observer
from vidgen_worker.worker.process import Process
from vidgen_worker.worker.proofs import Proofs
from vidgen_worker.worker.reports import Reports
from vidgen_worker.worker.rounds import guarded

CLAIM_AGAIN = timedelta(milliseconds=30)
CLAIM_TOGETHER = timedelta(milliseconds=40)
"""Slots that come free within so long are filled by one claim, which costs no more for many."""
CLAIM_STATEMENTS = 11
"""The most statements in one round of the claim loop, with a heartbeat that it waits for."""
BECOME_IDLE_EVERY = 60.0
"""Seconds between two times that tasks are given back for a suspect."""
MOST_FILMS = 20
"""So many films of one worker are looked at together; each takes a few statements."""
MOST_EMPTY_CLAIMS = 10
"""The most claims without a row while rows are left, before a pause; halved after each pause."""


class Claiming:
    """When this worker claims, and how much."""

    def __init__(self, process: Process, proofs: Proofs, reports: Reports) -> None:
        self._process = process
        self._proofs = proofs
        self._attempts = Attempts(process, reports, self._freed)
        self._observer = Observer()
        self.lock = asyncio.Lock()
        self._more = True
        """The last claim left rows."""
        self._more_films = False
        """The last look at films left some without outputs."""
        self._more_renders = False
        """It met films with outputs: the end of a render is a reason to look again."""
        self._empty, self._patience = 0, MOST_EMPTY_CLAIMS
        """Claims in a row that brought nothing, and how many are allowed before a pause."""
        self._suspect_waits = False
        """Claim nothing until idle: a suspect runs alone."""
        self._together: asyncio.TimerHandle | None = None
        """The claim for slots that have come free, about to come."""
        self._sweep_due = 0.0
        self._become_idle_due = 0.0

    async def loop(self) -> None:
        """One claim, then wait for a reason for the next: NOTIFY, a free slot, the poll."""
        process, wakes = self._process, self._process.wakes
        poll = process.settings.vidgen_queue_poll
        longest = poll * 1.1 + CLAIM_STATEMENTS * STATEMENT_DEADLINE
        due = 0.0
        while not process.stopping.is_set():
            async with guarded("claim", process):
                process.turns.turned("claim", longest)
                wakes.claim.clear()
                polled = boot_time() >= due
                wakes.mail |= polled
                if wakes.cancel.is_set():
                    await self._take_cancelled()
                if polled:
                    await self._take_over()
                    due = boot_time() + poll.total_seconds() * random.uniform(0.9, 1.1)  # noqa: S311
                if wakes.films.is_set() or polled:
                    await self._take_films()
                progress = False
                if (slots := self._slots()) > 0:
                    async with self.lock:
                        claimed = await self._take(slots)
                        self._attempts.start(claimed.tasks)
                    self._more = claimed.more
                    progress = bool(claimed.tasks or claimed.cleared)
                await self._rest(due, progress=progress)

    async def _rest(self, due: float, *, progress: bool) -> None:
        """Wait until there is a reason for the next claim, `due` at the latest.

        After `progress`, something was taken or cleared, it comes at once where rows were left.
        """
        process = self._process
        self._empty = 0 if progress else self._empty + 1
        if progress or not self._more:
            self._patience = MOST_EMPTY_CLAIMS
        spent = self._empty > self._patience
        if self._more and self._slots() > 0 and not spent:
            await process.sleep(
                CLAIM_AGAIN * random.uniform(0.5, 1.5) * (0 if progress else 1)  # noqa: S311
            )
            return
        if spent:
            # Waiting rows may stay locked for hours.
            self._patience = max(self._patience // 2, 1)
        if not progress:
            # A flood of NOTIFY, which any role may send, is answered at this pace.
            await process.sleep(CLAIM_AGAIN * random.uniform(0.5, 1.5))  # noqa: S311
        self._empty = 0
        await self._wait_for_wake(max(due - boot_time(), 0.0))

    async def _wait_for_wake(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._process.wakes.claim.wait()

    async def try_gate(self, gate: Gate, probes: int) -> bool:
        """Let one task through a gate, beyond the slots; whether there was one to try it."""
        process = self._process
        if not process.life.lease.held() or process.stopping.is_set():
            return False
        async with self.lock:
            await process.life.queue.line.line_up()
            claimed = await process.life.gates.claim_trial(gate, probes)
            self._attempts.start(claimed, trial=gate)
        return bool(claimed)

    def _freed(self, run: Run) -> None:
        """A slot is free: where rows were left, claim with those that come free meanwhile."""
        renders = self._more_renders and run.task.renders
        if renders or self._more_films or self._suspect_waits:
            self._process.wakes.films.set()
            self._process.wakes.claim.set()
        if self._more and self._together is None:
            seconds = CLAIM_TOGETHER.total_seconds() if self._process.held else 0.0
            self._together = asyncio.get_running_loop().call_later(seconds, self._claim_together)

    def _claim_together(self) -> None:
        self._together = None
        self._process.wakes.claim.set()

    def _claims(self) -> bool:
        """Whether this worker claims at all now.

        Not before the file store and this machine have proven that they can keep what is paid for,
        and not while a gate says that this machine can't.
        """
        process = self._process
        enabled = process.settings.runwayml_enabled and self._proofs.proven()
        return enabled and not process.stopping.is_set() and process.life.lease.held()

    def _begins(self) -> bool:
        """Whether anything may begin here now: nothing does beside a suspect."""
        held = self._process.held
        if any(run.alone for run in held.runs()) or (self._suspect_waits and held):
            return False
        return self._claims()

    def _slots(self) -> int:
        """How many tasks may be claimed now."""
        if not self._begins():
            return 0
        # A film is beyond the slots: its owner may hold a lock that its order waits for.
        taken = sum(not run.task.film for run in self._process.held.runs())
        return max(self._process.settings.vidgen_concurrency - taken, 0)

    async def _take(self, slots: int) -> Claimed:
        """Claim once, and measure it."""
        process = self._process
        began = boot_time()
        line_up, process.wakes.mail = process.wakes.mail, False
        try:
            claimed = await process.life.queue.claims.take(
                slots, idle=not process.held, line_up=line_up
            )
        except BaseException:
            process.wakes.mail = True
            raise
        process.wakes.mail |= claimed.mail
        process.metrics.claimed(boot_time() - began)
        return claimed

    async def _take_cancelled(self) -> None:
        """Take the tasks whose owners ask to cancel: beyond the slots, nothing is paid for them."""
        self._process.wakes.cancel.clear()
        async with self.lock:
            cancelled = await self._process.life.queue.claims.take_cancelled()
            self._attempts.start((task, 0.0) for task in cancelled)

    async def _take_films(self) -> None:
        """Wake the films whose parts have ended, and take those that are due: beyond the slots.

        They need none, since nothing of a film itself runs at the provider. One with outputs needs
        a render place.
        """
        films = self._process.life.queue.films
        self._process.wakes.films.clear()
        if not self._begins():
            return
        async with self.lock:
            woken = await films.wake()
            batches = MOST_FILMS - self._films(renders=False)
            renders = self._process.settings.renders - self._films(renders=True)
            self._more_films = await self._take_lane(Lane.BATCHES, batches, due=woken.due)
            await self._take_lane(Lane.RENDERS, renders, due=woken.renders_due)
            self._more_renders = woken.renders_due
        if woken.more:
            self._process.wakes.films.set()
            self._process.wakes.claim.set()

    async def _take_lane(self, lane: Lane, places: int, *, due: bool) -> bool:
        """Take films of a lane for so many places; whether there are more of them."""
        if not due or places <= 0 or not self._begins():
            return due
        films, idle = self._process.life.queue.films, not self._process.held
        taken, more = await films.take(idle=idle, lane=lane, most=min(places, MOST_FILMS))
        self._attempts.start(taken)
        return more

    def _films(self, *, renders: bool) -> int:
        """How many films are held that are cut here, or that need no place."""
        runs = self._process.held.runs()
        return sum(run.task.film and run.task.renders == renders for run in runs)

    async def _take_over(self) -> None:
        """Take the tasks of the dead; once per lease even without a free slot, for others to take.

        A worker under load may never have a free slot: tasks of the dead must not wait for one.
        """
        process = self._process
        slots = self._slots()
        if slots == 0 and (boot_time() < self._sweep_due or not self._claims()):
            return
        self._sweep_due = boot_time() + process.settings.vidgen_lease.total_seconds()
        async with self.lock:
            sent = boot_time()
            beats = await process.life.queue.leases.heartbeats()
            self._observer.look(beats, sent, boot_time())
            found = await process.life.queue.leases.take_over(
                slots, self._observer.silent(), idle=not process.held,
                steady=process.life.lease.steady(),
            )  # fmt: skip
            self._suspect_waits = found.suspect_waits
            # They were at work: none of them has waited to be claimed.
            self._attempts.start((task, 0.0) for task in found.taken)
        if self._suspect_waits:
            await self._become_idle()
        for fence in found.lost:
            emit(TaskFailed(
                fence=fence, code="WORKER_LOST", message="The worker died several times",
                details=f"{process.settings.vidgen_max_crashes} deaths without progress",
            ))  # fmt: skip

    async def _become_idle(self) -> None:
        """Give back what is lasting or cut, for hours perhaps: a suspect waits for an idle worker.

        Now and then only: without a slot for the suspect, this worker takes them again.
        """
        process = self._process
        lasting = [
            held for held in process.held.tasks.values() if held[0].polling or held[0].task.renders
        ]
        if not lasting or boot_time() < self._become_idle_due:
            return
        self._become_idle_due = boot_time() + BECOME_IDLE_EVERY
        async with self.lock:
            await end_all({working for _, working in lasting}, LOOPS_END)
            given = await process.life.queue.leases.hand_back(
                [run.task.fence for run, _ in lasting]
            )
        for fence in given:
            emit(TaskHandedBack(fence=fence))
