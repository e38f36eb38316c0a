"""The daemon: slots, claim loop, heartbeat, progress, drain.

One process holds many tasks and one lease, renewed by one row. Loops never end by an error of the
database or the provider; they say so and go on. Nothing here knows what a stage is.
"""

import asyncio
import contextlib
import functools
import os
import random
import socket
import traceback
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

from vidgen_worker import __version__
from vidgen_worker.admission.gates import Gates
from vidgen_worker.admission.limits import Limits
from vidgen_worker.config import Settings
from vidgen_worker.database.listener import Listener
from vidgen_worker.database.pool import STATEMENT_DEADLINE, Databases
from vidgen_worker.database.trouble import DatabaseUnavailableError, LockedError, one_line
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.faults import Fault
from vidgen_worker.domain.keys import Gate, Key
from vidgen_worker.domain.task import Fence, Task
from vidgen_worker.media.outputs import Media
from vidgen_worker.media.scratch import scratch
from vidgen_worker.pipeline.attempt import attempt
from vidgen_worker.pipeline.run import Run, Tools
from vidgen_worker.providers.protocol import Provider
from vidgen_worker.queue.caller import Caller
from vidgen_worker.queue.checkpoints import Reported
from vidgen_worker.queue.errors import (
    BrakedError,
    CancelAskedError,
    GateClosedError,
    LeaseLostError,
    NoSlotError,
    RowRefusedError,
    SubmissionCapError,
)
from vidgen_worker.queue.queue import Queue
from vidgen_worker.storage.storage import Storage
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import (
    ClaimsDisabled,
    GenerationLeftRunning,
    LeaseLost,
    LoopFailed,
    MetricsServed,
    OrphansHandedBack,
    TaskFailed,
    TaskHandedBack,
    TaskStarted,
    WorkerDeclaredDead,
    WorkerDraining,
    WorkerStarted,
    WorkerStopped,
)
from vidgen_worker.telemetry.metrics import Metrics, serving
from vidgen_worker.telemetry.turns import Turns
from vidgen_worker.worker.ending import EXIT_OK, LOOPS_END, end_all
from vidgen_worker.worker.janitor import Janitor
from vidgen_worker.worker.lease import Lease, Observer
from vidgen_worker.worker.scopes import scopes_of
from vidgen_worker.worker.systemd import sd_notify, watchdog_pace

REPORT_EVERY = timedelta(seconds=1)
CLAIM_AGAIN = timedelta(milliseconds=30)
CLAIM_STATEMENTS = 8
"""Statements in one turn of the claim loop at the most, and a heartbeat's to wait for."""
ROOM_EVERY = 60.0
"""Seconds between two times that tasks are given back for one that is to run alone."""
STATUS_EVERY = timedelta(seconds=10)
MOST_EMPTY_CLAIMS = 10
SOONEST_BEAT = 0.05
"""Seconds between two heartbeats at least: a burst of cancels is one beat."""
IDLE_DRAIN = 5.0
"""Seconds that the drain of a worker without a task may take."""
LAST_TRY = 1.0
"""Seconds that each step of a drain gets even after its time-out."""
EXPECTED_OF_A_POST = (
    Fault, LeaseLostError, CancelAskedError, GateClosedError, BrakedError, NoSlotError,
    SubmissionCapError, RowRefusedError, DatabaseUnavailableError,
)  # fmt: skip
REGISTER_SELDOM = 60.0
"""Seconds between two tries to register at the most."""


class Worker:
    """One process. `run` returns its exit status."""

    def __init__(
        self, settings: Settings, provider: Provider, storage: Storage, media: Media
    ) -> None:
        self.settings = settings
        self.provider = provider
        self.storage = storage
        self.media = media
        url = settings.database_url.get_secret_value()
        self.databases = Databases(url, settings.vidgen_database_pool, settings.heartbeat)
        self.db = self.databases.work
        self.key = Key(
            provider.name, settings.vidgen_image_model, settings.vidgen_video_model,
            scopes_of(settings, provider.key_fingerprint, socket.gethostname()),
        )  # fmt: skip
        self.lease = Lease(settings)
        self.observer = Observer()
        self._new_life()
        self.listener = Listener(url, self._woken, self.databases.outage)
        self.janitor = Janitor(self)
        self.running: dict[UUID, tuple[Run, asyncio.Task[None]]] = {}
        self.posting: set[asyncio.Task[UUID]] = set()
        self.stopping = asyncio.Event()
        self._wake = asyncio.Event()
        self._cancel_wake = asyncio.Event()
        self.gates_heard = True
        """A gate may have closed or opened since the janitor looked."""
        self._beat_wake = asyncio.Event()
        self.turns = Turns()
        self.metrics = Metrics()
        self._said_ready = False
        self._claiming = asyncio.Lock()
        self._renewed = asyncio.Event()
        self._reports: dict[UUID, Reported] = {}
        self._more = True
        self._making_room = False
        """Claim nothing until idle: a task waits that is to run alone."""
        self._sweep_due = 0.0
        self._room_due = 0.0
        self._returning: asyncio.Task[None] | None = None
        """The hand-back of orphans, where one is under way."""
        self._drain_deadline: float | None = None

    # From start to stop.

    async def run(self) -> int:
        """Work until told to stop, then drain."""
        with contextlib.ExitStack() as stack:
            self._scratch = stack.enter_context(scratch())
            port = stack.enter_context(serving(
                self._metrics(), self.settings.vidgen_metrics_port,
                alive=self.alive, ready=self._ready,
            ))  # fmt: skip
            if port is not None:
                emit(MetricsServed(port=port))
            await self.databases.open()
            loops: list[asyncio.Task[None]] = []
            try:
                if not await self._or_stop(self._begin()):
                    return EXIT_OK
                loops = [
                    asyncio.create_task(self._turning(name, loop, drain=drain), name=name)
                    for name, loop, drain in self._loops()
                ]
                if self.settings.vidgen_listen != "off":
                    listen = functools.partial(self.listener.run, self.queue.worker_id)
                    loops.append(asyncio.create_task(self._turning("listen", listen, drain=True)))
                await self.stopping.wait()
                return await self._drain(loops)
            finally:
                await end_all({*loops, *filter(None, [self._returning])}, LOOPS_END)
                await self.media.aclose()
                await self.storage.aclose()
                await self.provider.aclose()
                await self.databases.close()

    def alive(self) -> bool:
        """Whether the loops turn; says nothing of Postgres, which may be away for good reasons."""
        return not self.turns.stuck()

    # Asked through the worker, because a new life has a new lease.

    def _ready(self) -> bool:
        return self.lease.held()

    def _lease_age(self) -> float:
        return self.lease.age()

    def _metrics(self) -> Metrics:
        metrics, concurrency = self.metrics, self.settings.vidgen_concurrency
        metrics.gauge("running", "Tasks in this process", lambda: len(self.running))
        metrics.gauge("concurrency", "Slots of this process", lambda: concurrency)
        metrics.gauge("lease_age_seconds", "Since the last accepted heartbeat", self._lease_age)
        return metrics

    def _new_life(self) -> None:
        caller = Caller(self.databases, self.settings, self.key, self._gives_up)
        self.queue, self.gates, self.limits = Queue(caller), Gates(caller), Limits(caller)

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    async def machine_works(self, room: int) -> None:
        """Prove, for free, that outputs can be kept and looked at here. Raises Fault.

        `room` is in bytes.
        """
        await asyncio.to_thread(self._scratch.prove, room)
        await self.media.prove()

    def stop(self) -> None:
        """Begin to drain."""
        self.stopping.set()
        self._wake.set()

    async def _begin(self) -> None:
        tries = 0
        while True:
            try:
                await self._register()
                break
            except Exception as error:  # noqa: BLE001 - a worker that ends serves nobody
                tries += 1
                emit(LoopFailed(
                    loop="register", error=one_line(error), traceback=traceback.format_exc()
                ))  # fmt: skip
            await self._sleep(timedelta(seconds=min(2.0 ** min(tries, 10), REGISTER_SELDOM)))
        emit(WorkerStarted(
            worker=self.queue.worker_id, concurrency=self.settings.vidgen_concurrency,
            enabled=self.settings.runwayml_enabled,
            listening=self.settings.vidgen_listen != "off",
        ))  # fmt: skip
        if not self.settings.runwayml_enabled:
            emit(ClaimsDisabled())

    async def _register(self) -> None:
        sent = boot_time()
        await self.queue.leases.register(socket.gethostname(), os.getpid(), __version__)
        await self.limits.expect()
        self.lease.renewed(sent, boot_time())
        self._renewed.set()

    async def _or_stop(self, work: Awaitable[None]) -> bool:
        """Do this, unless told to stop meanwhile."""
        working = asyncio.ensure_future(work)
        stopped = asyncio.create_task(self.stopping.wait())
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if working.done():
            working.result()
            return True
        await end_all({working}, LOOPS_END)
        return False

    def _loops(self) -> list[tuple[str, Callable[[], Awaitable[None]], bool]]:
        """Name and loop of everything that turns, and whether it does so while draining too."""
        return [
            ("claim", self._claim_loop, False),
            ("report", self._report_loop, False),
            ("heartbeat", self._heartbeat_loop, True),
            ("watchdog", self._watchdog_loop, True),
            *(
                (f"janitor {duty.name}", functools.partial(self.janitor.keep, duty), False)
                for duty in self.janitor.duties()
            ),
        ]

    async def _turning(
        self, name: str, loop: Callable[[], Awaitable[None]], *, drain: bool
    ) -> None:
        """Keep a loop turning: what nobody expected is said, and the loop goes on.

        `drain` says that it turns on while the worker drains, until it is cancelled.
        """
        while drain or not self.stopping.is_set():
            try:
                await loop()
            except LockedError:
                # It waited for the lock already, and whoever holds it here holds it shortly.
                await self._sleep(timedelta(seconds=random.uniform(0.1, 0.3)))  # noqa: S311
            except DatabaseUnavailableError:
                # Said once per statement by the database layer; the next turn tries again.
                await self._sleep(timedelta(seconds=random.uniform(0.5, 1.5)))  # noqa: S311
            except Exception as error:  # noqa: BLE001 - a loop that dies is a worker that hangs
                emit(LoopFailed(
                    loop=name, error=f"{type(error).__name__}: {error}"[:500],
                    traceback=traceback.format_exc(),
                ))  # fmt: skip
                await self._sleep(timedelta(seconds=1))

    # Claiming.

    def _woken(self, payload: str) -> None:
        if payload == "gate":
            self.gates_heard = True
        if payload == "cancel":
            # A waiting task is cancelled by a claim, one that runs here by a heartbeat's verdict.
            self._cancel_wake.set()
            self._beat_wake.set()
        self._wake.set()

    async def _claim_loop(self) -> None:
        """One claim, then wait for a reason for the next: NOTIFY, a free slot, the poll."""
        empty = 0
        due = 0.0
        longest = self.settings.vidgen_queue_poll * 1.1 + CLAIM_STATEMENTS * STATEMENT_DEADLINE
        while not self.stopping.is_set():
            self.turns.turned("claim", longest)
            self._wake.clear()
            polled = boot_time() >= due
            if polled:
                poll = self.settings.vidgen_queue_poll.total_seconds()
                due = boot_time() + poll * random.uniform(0.9, 1.1)  # noqa: S311
            if self._cancel_wake.is_set():
                self._cancel_wake.clear()
                async with self._claiming:
                    self._start(await self.queue.claims.take_cancelled())
            if polled:
                await self._take_over()
            progress = await self._claim()
            empty = 0 if progress else empty + 1
            if self._more and self._slots() > 0 and empty <= MOST_EMPTY_CLAIMS:
                await self._sleep(CLAIM_AGAIN * random.uniform(0.5, 1.5) * (0 if progress else 1))  # noqa: S311
                continue
            if not progress:
                # A flood of NOTIFY, which any role may send, is answered at this pace.
                await self._sleep(CLAIM_AGAIN * random.uniform(0.5, 1.5))  # noqa: S311
            empty = 0
            await self._wait_for_wake(max(due - boot_time(), 0.0))

    async def _wait_for_wake(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _claims(self) -> bool:
        """Whether this worker claims at all now.

        Not before the file store and this machine have proven that they can keep what is paid for,
        and not while a gate says that this machine can't.
        """
        enabled = self.settings.runwayml_enabled and self.janitor.proven()
        return enabled and not self.stopping.is_set() and self.lease.held()

    def _slots(self) -> int:
        """How many tasks may be claimed now."""
        if not self._claims():
            return 0
        if any(run.alone for run, _ in self.running.values()):
            return 0
        if self._making_room and self.running:
            return 0
        return max(self.settings.vidgen_concurrency - len(self.running), 0)

    async def _claim(self) -> bool:
        """Claim once; whether it got anywhere, so that the next one may do so at once."""
        slots = self._slots()
        if slots == 0:
            return False
        async with self._claiming:
            began = boot_time()
            claimed = await self.queue.claims.take(slots, idle=not self.running)
            self.metrics.claimed(boot_time() - began)
            self._start(claimed.tasks)
        self._more = claimed.more
        return bool(claimed.tasks or claimed.cleared)

    async def _take_over(self) -> None:
        """Take the tasks of the dead; once per lease even without a free slot, for others to take.

        A worker under load has no free slot whenever it looks: the dead must not wait for one.
        """
        slots = self._slots()
        if slots == 0 and (boot_time() < self._sweep_due or not self._claims()):
            return
        self._sweep_due = boot_time() + self.settings.vidgen_lease.total_seconds()
        async with self._claiming:
            sent = boot_time()
            self.observer.look(await self.queue.leases.heartbeats(), sent, boot_time())
            taken, lost, self._making_room = await self.queue.leases.take_over(
                slots, self.observer.silent(), idle=not self.running, steady=self.lease.steady()
            )
            self._start(taken)
        if self._making_room:
            await self._make_room()
        for task, _ in lost:
            emit(TaskFailed(
                fence=task.fence, code="WORKER_LOST", message="The worker died several times",
                details=f"{self.settings.vidgen_max_crashes} deaths without progress",
            ))  # fmt: skip

    async def _make_room(self) -> None:
        """Give back what is only polled, which may take hours: a task waits that is to run alone.

        Now and then only: without a slot for that task, this worker takes them again.
        """
        polled = {task_id: held for task_id, held in self.running.items() if held[0].polling}
        if not polled or boot_time() < self._room_due:
            return
        self._room_due = boot_time() + ROOM_EVERY
        async with self._claiming:
            await end_all({working for _, working in polled.values()}, LOOPS_END)
            given = await self.queue.leases.hand_back(
                [(task_id, run.task.fence.attempt) for task_id, (run, _) in polled.items()]
            )
        for task_id in given:
            emit(TaskHandedBack(fence=polled[task_id][0].task.fence))

    async def try_gate(self, gate: Gate, probes: int) -> bool:
        """Let one task through a gate, beyond the slots; whether there was one to try it."""
        if not self.lease.held() or self.stopping.is_set():
            return False
        async with self._claiming:
            await self.queue.line.line_up()
            claimed = await self.gates.claim_trial(gate, probes)
            self._start(claimed, trial=gate)
        return bool(claimed)

    def _start(self, claimed: list[tuple[Task, float]], trial: Gate | None = None) -> None:
        for task, waited in claimed:
            run = Run(task, trial=trial, alone=task.alone)
            if task.cancel_requested:
                run.cancel.set()
            emit(TaskStarted(
                fence=task.fence, user=task.user_id, waited_seconds=round(waited, 3)
            ))  # fmt: skip
            self.running[task.id] = (run, asyncio.create_task(self._attempt(run)))

    async def _attempt(self, run: Run) -> None:
        """Run one attempt and free its slot, whatever happened."""
        task = run.task
        tools = Tools(
            settings=self.settings, queue=self.queue, gates=self.gates, provider=self.provider,
            storage=self.storage, media=self.media, license=self._license, report=self._report,
            turns=self.turns, scratch=self._scratch,
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
            self._keep_posting(run)
            self._reports.pop(task.id, None)
            held = self.running.get(task.id)
            if held is not None and held[0] is run:
                del self.running[task.id]
            if self._more:
                self._wake.set()

    def _keep_posting(self, run: Run) -> None:
        """A POST in flight outlives its attempt: keep it until its answer is recorded."""
        posting = run.posting
        if posting is not None:
            self.posting.add(posting)
            posting.add_done_callback(self._posted)

    def _posted(self, posting: "asyncio.Task[UUID]") -> None:
        self.posting.discard(posting)
        error = None if posting.cancelled() else posting.exception()
        # Nobody awaits it any more; what is expected has said itself as an event.
        if error is not None and not isinstance(error, EXPECTED_OF_A_POST):
            emit(LoopFailed(
                loop="the answer to a paid POST", error=one_line(error),
                traceback="".join(traceback.format_exception(error)),
            ))  # fmt: skip

    async def _license(self) -> None:
        """Return once something paid may be started: the lease is held, beyond its margin.

        It never returns while draining: a POST that begins then would be cut.
        """
        while not self.lease.may_spend() or self.stopping.is_set():
            self._renewed.clear()
            await self._renewed.wait()

    # Progress.

    def _report(self, report: Reported) -> None:
        self._reports[report.fence.task_id] = report

    async def _report_loop(self) -> None:
        """One statement a second for all tasks whose progress has changed."""
        last: dict[UUID, Reported] = {}
        refusing: set[Fence] = set()
        while not self.stopping.is_set():
            await self._sleep(REPORT_EVERY)
            pending, self._reports = self._reports, {}
            changed = [
                r for r in pending.values()
                if last.get(r.fence.task_id) != r and r.fence not in refusing
            ]  # fmt: skip
            if changed:
                refused = set(await self.queue.checkpoints.report(changed))
                # Said once per attempt: the next report would be refused as well.
                refusing |= {r.fence for r in changed if r.fence.task_id in refused}
            refusing &= {run.task.fence for run, _ in self.running.values()}
            last = {t: r for t, r in (last | pending).items() if t in self.running}

    # The lease.

    async def _heartbeat_loop(self) -> None:
        """Renew the lease; act on what comes back. It never waits for a claim or a task."""
        while True:
            began = boot_time()
            # One pause, and one statement that is given up after as long.
            self.turns.turned("heartbeat", self.settings.heartbeat * 2)
            self._beat_wake.clear()
            with contextlib.suppress(DatabaseUnavailableError):
                await self._beat()
                self._say_ready()
            await asyncio.sleep(SOONEST_BEAT)
            rest = self.settings.heartbeat.total_seconds() - (boot_time() - began)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(rest, 0.0)):
                    await self._beat_wake.wait()

    def _say_ready(self) -> None:
        """Tell systemd once that a heartbeat was accepted."""
        if not self._said_ready and not self.stopping.is_set():
            self._said_ready = sd_notify("READY=1", self._status())

    def _status(self) -> str:
        doing = "draining" if self.stopping.is_set() else "working"
        tasks = f"{len(self.running)} of {self.settings.vidgen_concurrency} tasks"
        lease = "" if self.lease.held() else ", no heartbeat accepted: is the database away?"
        return f"STATUS={doing}, {tasks}{lease}"

    async def _watchdog_loop(self) -> None:
        """Tell systemd that claim, heartbeat and poll loops turn, never that Postgres answers."""
        pace = watchdog_pace()
        while True:
            if not self.turns.stuck():
                sd_notify("WATCHDOG=1", self._status())
            await asyncio.sleep((pace or STATUS_EVERY).total_seconds())

    async def _beat(self) -> None:
        held = [run.task.fence for run, _ in self.running.values()]
        sent = boot_time()
        # Orphans are told apart only while no claim is in flight: then every row that names this
        # worker is one that it knows of. The lock keeps a new claim away meanwhile, not this beat.
        # While draining, rows without a runner are what the drain itself is about to hand back.
        sweep = not self._claiming.locked() and not self.stopping.is_set()
        async with self._claiming if sweep else contextlib.nullcontext():
            try:
                verdict = await self.queue.leases.heartbeat(
                    held, len(held), sweep=sweep, steady=self.lease.unbroken
                )
            except DatabaseUnavailableError:
                self.lease.missed()
                raise
        if not verdict.alive:
            await self._start_over()
            return
        self.lease.renewed(sent, boot_time())
        self._renewed.set()
        for task_id, number in verdict.lost:
            self._drop(task_id, number)
        for task_id, number in verdict.cancel:
            run = self._held(task_id, number)
            if run:
                run.cancel.set()
        if verdict.cancel_waiting:
            self._cancel_wake.set()
            self._wake.set()
        if verdict.orphans and (self._returning is None or self._returning.done()):
            # Beside the heartbeat: the lease waits for no task's row.
            self._returning = asyncio.create_task(self._return(verdict.orphans))

    async def _return(self, orphans: list[tuple[UUID, int]]) -> None:
        """Give rows back that nobody runs; what fails is an orphan of the next heartbeat too."""
        try:
            back = await self.queue.leases.hand_back(orphans)
        except DatabaseUnavailableError:
            return  # said once per statement by the database layer
        except Exception as error:  # noqa: BLE001 - said, and met again
            emit(LoopFailed(
                loop="orphans", error=one_line(error), traceback=traceback.format_exc()
            ))  # fmt: skip
            return
        if back:
            emit(OrphansHandedBack(tasks=[str(task_id) for task_id in back]))

    def _held(self, task_id: UUID, number: int) -> Run | None:
        held = self.running.get(task_id)
        return held[0] if held and held[0].task.fence.attempt == number else None

    def _drop(self, task_id: UUID, number: int) -> None:
        """The task is somebody else's: stop working on it, write nothing."""
        run = self._held(task_id, number)
        if run is not None and not run.concluding:
            _, working = self.running.pop(task_id)
            emit(LeaseLost(fence=run.task.fence))
            working.cancel()

    async def _start_over(self) -> None:
        """Declared dead: drop everything and begin a new life under a new id."""
        dropped = list(self.running.values())
        emit(WorkerDeclaredDead(worker=self.queue.worker_id, dropped=len(dropped)))
        self.running.clear()
        for run, working in dropped:
            self._keep_posting(run)
            working.cancel()
        self._new_life()
        self.lease = Lease(self.settings)
        # Nothing turns until the database has taken the new row, however long it is away.
        self.turns.all_rest()
        await self._register()
        self._wake.set()

    # The end.

    def _gives_up(self) -> bool:
        return self._drain_deadline is not None and boot_time() > self._drain_deadline

    async def _drain(self, loops: list[asyncio.Task[None]]) -> int:
        """Stop claiming, let submits in flight end, hand back; generations go on."""
        patience = self.settings.vidgen_drain_timeout.total_seconds()
        if not self.running and not self.posting:
            # Nothing to hand back; and without a database nobody to hear of it.
            patience = 0.0 if self.databases.outage.away else min(patience, IDLE_DRAIN)
        self._drain_deadline = boot_time() + patience
        emit(WorkerDraining(worker=self.queue.worker_id, running=len(self.running)))
        sd_notify("STOPPING=1", self._status())
        self.turns.rests("claim")
        with contextlib.suppress(TimeoutError):
            # The claim in flight; no other begins.
            async with asyncio.timeout(self._drain_left()), self._claiming:
                pass
        posting = self.posting | {
            run.posting for run, _ in self.running.values() if run.posting is not None
        }
        if posting:
            await asyncio.wait(posting, timeout=self._drain_left())
        held = dict(self.running)
        await end_all({working for _, working in held.values()}, self._drain_left())
        handed_back: list[UUID] = []
        try:
            async with asyncio.timeout(self._drain_left()):
                await self._flush_reports()
                handed_back = await self.queue.leases.hand_back()
                await self.queue.leases.leave()
        except (DatabaseUnavailableError, TimeoutError):
            for run, _ in held.values():
                for stage, generation in run.generations.items():
                    if stage not in run.done:
                        emit(GenerationLeftRunning(
                            fence=run.task.fence, stage=stage, generation=generation
                        ))  # fmt: skip
        for task_id in handed_back:
            fence = Fence(task_id, 0, self.queue.worker_id)
            if task_id in held:
                fence = held[task_id][0].task.fence
            emit(TaskHandedBack(fence=fence))
        for loop in loops:
            loop.cancel()
        emit(WorkerStopped(worker=self.queue.worker_id, handed_back=len(handed_back)))
        return EXIT_OK

    def _drain_left(self) -> float:
        """Seconds that the drain may still take; never too few for one try at Postgres."""
        deadline = self._drain_deadline or 0.0
        return max(deadline - boot_time(), LAST_TRY)

    async def _flush_reports(self) -> None:
        if self._reports:
            with contextlib.suppress(DatabaseUnavailableError):
                await self.queue.checkpoints.report(list(self._reports.values()))

    async def _sleep(self, pause: timedelta) -> None:
        """Sleep, but not through a stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause.total_seconds()):
                await self.stopping.wait()
