"""Workers that die at a named point: real processes, killed by SIGKILL from their own inside.

Run as a program it is a fork server: it imports the worker once, and forks a mortal for every line
of JSON on its standard input, so that a death costs milliseconds. Production code has no hook for
it: events are heard by subscription, statements and adapters are wrapped here, from outside. A
point is "event NAME", "query NAME before|after" or "call ADAPTER.VERB before|after"; after means
that it was carried out and its answer dropped.
"""

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidgen_worker.config import Settings
from vidgen_worker.database.pool import QUERIES, Database
from vidgen_worker.media.outputs import Media
from vidgen_worker.providers.http_client import certificates
from vidgen_worker.providers.runway.adapter import Runway
from vidgen_worker.providers.runway.submitter import Submitter
from vidgen_worker.storage.storage import Storage
from vidgen_worker.telemetry import bus, events
from vidgen_worker.telemetry.log import configure
from vidgen_worker.worker.serve import assemble

QUICK = {
    "VIDGEN_LEASE": "1s",
    "VIDGEN_SUBMIT_TIMEOUT": "1s",
    "VIDGEN_CONCURRENCY": "1",
    "VIDGEN_RENDERS": "0",
    "VIDGEN_QUEUE_POLL": "50ms",
    "VIDGEN_GATE_PROBE": "50ms",
    "VIDGEN_RETRY_BACKOFF": "10ms",
    # More than there are tasks: each one takes a slot, and none waits for one.
    "VIDGEN_IMAGE_SLOTS": "200",
    "VIDGEN_VIDEO_SLOTS": "200",
}
KILLED = -signal.SIGKILL


CALLS: tuple[tuple[str, type, tuple[str, ...]], ...] = (
    ("provider", Submitter, ("submit",)),
    ("provider", Runway, ("poll", "cancel", "account")),
    ("storage", Storage, ("put", "sign", "prove", "fetch")),
    ("media", Media, ("download", "check_image", "check_video")),
)


def kill_points() -> list[str]:
    """Every point at which a worker can be killed, from the code itself."""
    named = [f"event {kind.__name__}" for kind in events.catalogue()]
    queries = [f"query {name} {when}" for name in QUERIES for when in ("before", "after")]
    calls = [
        f"call {adapter}.{verb} {when}"
        for adapter, _, verbs in CALLS
        for verb in verbs
        for when in ("before", "after")
    ]
    return [*named, *queries, *calls]


# The inside of a mortal.


@dataclass
class Doom:
    """Counts the points that the process comes by; at the named one, the n-th time, it dies."""

    point: str
    occurrence: int
    by: int
    seen: Counter[str]

    def reach(self, point: str) -> None:
        """Come by a point."""
        self.seen[point] += 1
        if point == self.point and self.seen[point] == self.occurrence:
            os.kill(os.getpid(), self.by)

    def hear(self, event: bus.Event) -> None:
        """Subscribe to the events."""
        self.reach(f"event {type(event).__name__}")

    def wrap(self, owner: type, verb: str, names: Callable[..., tuple[str, ...]]) -> None:
        """Put the two points around a method, for each of `names`: they get the call's arguments.

        Of a pair of statements, which is one transaction, nothing lies between the two.
        """
        original = getattr(owner, verb)

        async def mortal(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - any method
            for point in names(*arguments):
                self.reach(f"{point} before")
            answer = await original(*arguments, **named)
            for point in names(*arguments):
                self.reach(f"{point} after")
            return answer

        setattr(owner, verb, mortal)


def live(order: Mapping[str, Any]) -> int:
    """Be a worker until the named point."""
    doom = Doom(order["point"], order["occurrence"], order["by"], Counter())
    bus.subscribe(doom.hear)
    doom.wrap(Database, "once", lambda _self, query: (f"query {query}",))
    doom.wrap(Database, "pair", lambda _self, *both: tuple(f"query {query}" for query in both))
    for adapter, owner, verbs in CALLS:
        for verb in verbs:
            # The name is bound now: the loop moves on.
            def names(*_: object, called: str = f"call {adapter}.{verb}") -> tuple[str, ...]:
                return (called,)

            doom.wrap(owner, verb, names)
    poison = order.get("poison")
    if poison:

        def die_of(event: bus.Event) -> None:
            if isinstance(event, events.ResolutionMapped) and str(event.fence.task_id) == poison:
                os.kill(os.getpid(), signal.SIGKILL)

        bus.subscribe(die_of)
    settings = Settings(_env_file=None, **order["settings"])
    configure(settings.vidgen_log_level, settings.vidgen_log_format, secrets=[])
    with assemble(settings) as (loop, worker):
        return loop.run(worker.run())


def _fork(order: Mapping[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = live(order)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Fork one mortal per line; report its pid, then how it ended (negative: by a signal)."""
    # What else a worker loads when it begins, loaded once for all of them.
    certificates()
    for name in ("anyio._core._sockets", "anyio._backends._asyncio", "httpcore"):
        importlib.import_module(name)
    for line in sys.stdin:
        pid = _fork(json.loads(line))
        print(pid, flush=True)  # noqa: T201 - the protocol
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)  # noqa: T201


# The outside, for tests.


@dataclass
class Mortal:
    """One life: its pid, and how it ended."""

    pid: int
    _server: "subprocess.Popen[bytes]"
    is_over: bool = False

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    async def ended(self) -> int:
        """Wait for its end: the exit status, negative for a signal."""
        status = int(await asyncio.to_thread(_line, self._server))
        self.is_over = True
        return status


def _line(server: "subprocess.Popen[bytes]") -> str:
    if server.stdout is None:
        raise RuntimeError("the fork server has no standard output: start it with a pipe")
    line = server.stdout.readline().decode()
    if not line:
        raise RuntimeError("the fork server ended; its standard error says why")
    return line


class ForkServer:
    """Forks one mortal at a time; started by the first, as its imports take two seconds of CPU."""

    def __init__(self, errors: Path, temporary: Path | None = None) -> None:
        """Its standard error goes to `errors`; `temporary` is its TMPDIR."""
        self._errors = errors
        self._temporary = temporary
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def mortals(self, log: Path) -> Iterator["Mortals"]:
        """Mortals that write to `log`. None outlives the block, nor the server one that would."""
        mortals = Mortals(self, log)
        try:
            yield mortals
        finally:
            if not mortals.last_is_over:
                self.close()

    def process(self) -> "subprocess.Popen[bytes]":
        """The process, started unless it runs."""
        if self._process is None:
            environment = {k: v for k, v in os.environ.items() if not k.startswith("VIDGEN_")}
            if self._temporary is not None:
                environment["TMPDIR"] = str(self._temporary)
            with self._errors.open("ab") as errors:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "tests.support.mortal"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                    cwd=Path(__file__).parents[2], env=environment, start_new_session=True,
                )  # fmt: skip
        return self._process

    def close(self) -> None:
        """Kill it with its mortal. Any number of calls is fine; the next mortal starts another."""
        if self._process is None:
            return
        # The group: a mortal that should have died and did not is no test's to leave behind.
        os.killpg(self._process.pid, signal.SIGKILL)
        with self._process:  # waits, and closes the pipes
            self._process = None


class Mortals:
    """The mortals of one test, one after another."""

    def __init__(self, server: ForkServer, log: Path) -> None:
        self._server = server
        self._last: Mortal | None = None
        self.log = log

    @property
    def last_is_over(self) -> bool:
        """Whether no mortal lives that anybody knows of."""
        return self._last is None or self._last.is_over

    async def start(
        self, settings: Mapping[str, str], point: str = "", occurrence: int = 1, *,
        by: int = signal.SIGKILL, poison: str = "",
    ) -> Mortal:  # fmt: skip
        """Start a worker that dies at the point (`by` SIGSTOP: sleeps), or of the task `poison`."""
        order = {
            "settings": {name.lower(): value for name, value in settings.items()},
            "point": point, "occurrence": occurrence, "by": by, "poison": poison,
            "log": str(self.log),
        }  # fmt: skip
        process = self._server.process()
        if process.stdin is None:
            raise RuntimeError("the fork server has no standard input: start it with a pipe")
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
        self._last = Mortal(int(await asyncio.to_thread(_line, process)), process)
        return self._last


@contextmanager
def mortals(log: Path, temporary: Path | None = None) -> Iterator[Mortals]:
    """Mortals of a fork server of their own, which ends with the block."""
    with closing(ForkServer(log, temporary)) as server, server.mortals(log) as some:
        yield some


if __name__ == "__main__":
    main()
