"""Prometheus metrics and two health checks, on a loopback port with its own thread.

The metrics subscribe to the events and count them, and read numbers that the worker has anyway.
`/metrics` is Prometheus text, `/healthz` says whether the loops turn, `/readyz` whether the lease
is held. The janitor passes the numbers of the fleet: nothing here calls database or provider.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from vidgen_worker.telemetry import bus, events
from vidgen_worker.telemetry.bus import Event
from vidgen_worker.telemetry.loopback_http import (
    LOOPBACK,
    Answer,
    LoopbackServer,
    PortError,
    reason_of,
)

_QUICK = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 15, 60, 300)
_SLOW = (1, 2, 5, 10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 1200, 3600)

FLEET = {
    "queue_pending": "Due tasks that wait",
    "queue_scheduled": "Tasks for later",
    "queue_processing": "Tasks that run anywhere",
    "queue_oldest_pending_seconds": "How long the oldest due task has waited",
    "workers_alive": "Workers with a lease",
    "workers_steady": "Workers that may take over from the dead",
    "tasks_set_aside": "Tasks whose row refuses a change of ours",
    "uploads_left": "Uploads that are neither charged nor removed after an hour",
    "ledger_discrepancies": "Balances that disagree with ledger or holds",
    "fleet_read_at_seconds": "When these numbers were read, Unix time",
}

Health = Callable[[], bool]


class Metrics:
    """The metrics of one worker, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._ended = self._counter("tasks_total", "Attempts by how they ended", "outcome", "code")
        self._claims = self._histogram("claim_seconds", "What one claim takes", _QUICK)
        self._waited = self._histogram("pickup_seconds", "From due to claimed", _QUICK)
        self._took = self._histogram("task_seconds", "From the first claim to completed", _SLOW)
        self._generation = self._histogram(
            "generation_seconds", "At the provider", _SLOW, "stage", "model", "state"
        )
        self._cost = self._counter(
            "generation_cost_credits_total", "Provider's credits", "stage", "model"
        )
        self._charged = self._counter("charged_credits_total", "Users' credits", "stage")
        self._submissions = self._counter("submissions_total", "Paid POSTs", "stage", "answer")
        self._stored = self._counter("stored_bytes_total", "Uploaded to Storage", "stage")
        self._upload = self._histogram("upload_seconds", "Upload to Storage", _QUICK, "stage")
        self._polls = self._counter("polls_failed_total", "Reads that said nothing", "stage")
        self._database = self._counter("database_trouble_total", "Transient errors", "query")
        self._refusals = self._counter(
            "rows_refused_total", "Changes that a task's row refused", "statement"
        )
        self._loops = self._counter("loop_failures_total", "Unexpected errors of a loop", "loop")
        self._gates = Gauge(
            "vidgen_gate_closed", "1 while closed", ("scope", "model", "code"),
            registry=self.registry,
        )  # fmt: skip
        self._slots = Gauge(
            "vidgen_provider_slots", "Generations that the tier allows at once", ("model",),
            registry=self.registry,
        )  # fmt: skip
        self._taken = Gauge(
            "vidgen_provider_slots_taken", "Those in flight or about to be", ("model",),
            registry=self.registry,
        )  # fmt: skip
        # Numbers of the whole fleet, from the database: every worker shows the same.
        self._fleet = {
            name: Gauge(f"vidgen_{name}", help_, registry=self.registry)
            for name, help_ in FLEET.items()
        }

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(f"vidgen_{name}", help_, labels, registry=self.registry)

    def _histogram(
        self, name: str, help_: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"vidgen_{name}", help_, labels, buckets=buckets, registry=self.registry)

    def gauge(self, name: str, help_: str, read: Callable[[], float]) -> None:
        """Add a number that is read when Prometheus asks."""
        Gauge(f"vidgen_{name}", help_, registry=self.registry).set_function(read)

    def claimed(self, seconds: float) -> None:
        """Count a claim: most of them find nothing, so that they have no event."""
        self._claims.observe(seconds)

    def audited(self, discrepancies: float) -> None:
        """Set the result of the ledger's audit, which is read less often than the rest."""
        self._fleet["ledger_discrepancies"].set(discrepancies)

    def show(
        self,
        numbers: Mapping[str, float],
        closed: Iterable[tuple[str, str, str]],
        slots: Iterable[tuple[str, int, int]],
    ) -> None:
        """Set the fleet's numbers: one for each of `FLEET`, closed gates, slots."""
        for name, value in numbers.items():
            self._fleet[name].set(value)
        self._gates.clear()
        for scope, model, code in closed:
            self._gates.labels(scope, model, code).set(1)
        self._slots.clear()
        self._taken.clear()
        for model, limit, taken in slots:
            self._slots.labels(model).set(limit)
            self._taken.labels(model).set(taken)

    def hear(self, event: Event) -> None:  # noqa: C901, PLR0912 - one line per kind of event
        """Count an event."""
        match event:
            case events.TaskStarted():
                self._waited.observe(event.waited_seconds)
            case events.TaskCompleted():
                self._ended.labels("completed", "").inc()
                self._took.observe(event.seconds)
            case events.TaskFailed():
                self._ended.labels("failed", event.code).inc()
            case events.TaskRequeued():
                self._ended.labels("requeued", event.code).inc()
            case events.TaskCancelled():
                self._ended.labels("cancelled", "").inc()
            case events.TaskHandedBack():
                self._ended.labels("handed_back", "").inc()
            case events.LeaseLost():
                self._ended.labels("abandoned", "").inc()
            case events.SubmissionAnswered():
                self._submissions.labels(event.stage, "generation").inc()
            case events.SubmissionUnknown():
                self._submissions.labels(event.stage, "unknown").inc()
            case events.GenerationEnded() if not event.repeated:
                of = (event.stage, event.model)
                self._generation.labels(*of, event.state).observe(event.seconds)
                self._cost.labels(*of).inc(event.cost or 0)
            case events.StageDone():
                self._charged.labels(event.stage).inc(event.charged)
            case events.OutputUploaded():
                self._stored.labels(event.stage).inc(event.size)
                self._upload.labels(event.stage).observe(event.seconds)
            case events.PollFailed():
                self._polls.labels(event.stage).inc()
            case events.GateClosed():
                self._gates.labels(event.scope, event.model, event.code).set(1)
            case events.GateOpened():
                self._gates.labels(event.scope, event.model, event.code).set(0)
            case events.DatabaseTrouble():
                self._database.labels(event.query).inc()
            case events.RowRefused():
                self._refusals.labels(event.statement).inc()
            case events.LoopFailed():
                self._loops.labels(event.loop.split(" ", 1)[0]).inc()
            case _:
                return


@contextmanager
def serving(
    metrics: Metrics, port: int | None, *, alive: Health, ready: Health
) -> Iterator[int | None]:
    """Count events inside the block, and answer on the loopback port if there is one.

    Yields the port (0 asks for a free one). Raises PortError.
    """
    if port is None:
        yield None
        return
    questions = {"/healthz": alive, "/readyz": ready}

    def answer(path: str, accept: str) -> Answer:
        if path == "/metrics":
            encode, media_type = choose_encoder(accept)
            return Answer(HTTPStatus.OK, encode(metrics.registry), media_type)
        question = questions.get(path)
        if question is None:
            return Answer(HTTPStatus.NOT_FOUND, b"try /metrics, /healthz or /readyz\n")
        if question():
            return Answer(HTTPStatus.OK, b"yes\n")
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"no\n")

    try:
        server = LoopbackServer(port, answer, name="metrics")
    except OSError as error:
        raise PortError(
            f"VIDGEN_METRICS_PORT: port {port} of {LOOPBACK} can't be used ({reason_of(error)}). "
            "Stop what else listens there, choose another port, or unset it."
        ) from error
    with server, bus.subscribed(metrics.hear):
        yield server.port
