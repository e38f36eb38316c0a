"""The processes that look at files: started when first needed, one job at a time each.

libav runs there, with limits, so that a file that crashes it fails one task, and the event loop
never waits for it. A child's answer is believed only where a false one does no harm.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import stat
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, Self

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.resolution import size
from vidgen_worker.media.scratch import discard, scratch_fault
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import MediaWallsLacking

JOB_SECONDS = 300.0
"""Wall-clock limit of one look at a file; the child's own limit is of CPU time."""
JOBS_PER_CHILD = 500
"""After this many files a child is replaced, so that a leak in libav stays small."""
JOB_TRIES = 2
"""A child's death may be the machine's fault; that of a second one over the same file is not."""
LONGEST_SECONDS = 86_400.0
"""No clip that anybody asked for is longer."""

_SHA256 = re.compile("[0-9a-f]{64}")
_CHILD = Path(__file__).with_name("child.py")
# The environment of a child: it reads foreign files, so that it gets no secret of ours.
_CHILD_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")


def child_environment() -> dict[str, str]:
    """Return what a child knows of this process's environment."""
    known = {name: os.environ[name] for name in _CHILD_ENVIRONMENT if name in os.environ}
    ours = [str(_CHILD.parents[2]), known.get("PYTHONPATH", "")]
    known["PYTHONPATH"] = os.pathsep.join(filter(None, ours))
    # Large pages where the kernel has them: a frame takes few page faults then, and not 1,500.
    known["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    return known


def job_of(kind: str, path: Path, ratio: str, target: str, max_bytes: int) -> dict[str, Any]:
    """An order for a child: check `path`, and write `target` where it must be corrected."""
    width, height = size(ratio)
    return {
        "kind": kind, "path": str(path.absolute()), "target": str(Path(target).absolute()),
        "width": width, "height": height, "max_bytes": max_bytes,
    }  # fmt: skip


class Children:
    """A few child processes, started when first needed, one job at a time each."""

    def __init__(self, count: int, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._slots = asyncio.Semaphore(count)
        self._idle: list[_Child] = []
        self._living: set[_Child] = set()
        self._closed = False
        self._lacking: tuple[str, ...] | None = None

    @property
    def lacking(self) -> tuple[str, ...] | None:
        """The walls that do not hold here, a phrase each; None: no child has come up yet."""
        return self._lacking

    @property
    def pids(self) -> tuple[int, ...]:
        """The children that live now, busy ones included."""
        return tuple(child.pid for child in self._living)

    async def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Have one file looked at. Raises Fault."""
        async with self._slots:
            deaths: list[_ChildDiedError] = []
            while len(deaths) < JOB_TRIES:
                try:
                    async with self._child() as child:
                        return _judged(job, await child.ask(job))
                except _ChildDiedError as error:
                    discard(Path(job["target"]))
                    deaths.append(error)
        details = f"{job['path']}: looking at it ended {' and again '.join(map(str, deaths))}"
        if all(death.by_machine for death in deaths):
            raise Fault(
                FaultName.SCRATCH_UNAVAILABLE, details=f"{details}. Is there memory and CPU left?"
            )
        raise Fault(FaultName.OUTPUT_UNDECODABLE, details=details)

    async def prove(self) -> None:
        """Lend a child and give it back; one that has come up is enough. Raises Fault."""
        if not any(child.came_up for child in self._living):
            async with self._slots, self._child():
                pass

    async def aclose(self) -> None:
        """End all children, busy ones too."""
        self._closed = True
        self._idle.clear()
        for child in tuple(self._living):
            await self._end(child)

    @contextlib.asynccontextmanager
    async def _child(self) -> AsyncIterator["_Child"]:
        """Lend a child; one that does not finish its job is ended, because nobody reads on."""
        if self._closed:
            raise Fault(
                FaultName.DRAINING, details="no file is looked at any more: this worker stops"
            )
        child = self._idle.pop() if self._idle else await _Child.start(self._max_bytes)
        self._living.add(child)
        try:
            self._note(await child.ready())
            yield child
        finally:
            if child.usable and child in self._living:
                self._idle.append(child)
            else:
                await self._end(child)

    def _note(self, lacking: tuple[str, ...]) -> None:
        """Say once which walls a child lacks here: it is the same for all of them."""
        if self._lacking is None and lacking:
            emit(MediaWallsLacking(lacking="; ".join(lacking)))
        self._lacking = lacking

    async def _end(self, child: "_Child") -> None:
        child.kill()
        self._living.discard(child)
        await child.gone()


def _judged(job: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    match answer:
        case {"found": dict() as found}:
            return _kept(job, found)
        case {"undecodable": reason}:
            raise Fault(FaultName.OUTPUT_UNDECODABLE, details=f"{job['path']}: {reason}")
        case {"no_output": reason}:
            raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=f"{job['path']}: {reason}")
        case {"short": reason}:
            raise Fault(FaultName.SCRATCH_UNAVAILABLE, details=f"{job['path']}: {reason}")
        case {"too_large": reason}:
            raise _too_large(f"{job['path']}: {reason}")
        case _:
            details = f"{job['path']} could not be looked at: {answer.get('failed', answer)}"
            raise Fault(FaultName.INTERNAL_ERROR, details=details)


def _kept(job: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Check a child's answer: a file may have taken the child over.

    What is stored is the file that was given to it or the one it was to write, and no link.
    Raises Fault `output_undecodable`.
    """
    try:
        file = Path(found["file"])
        known = os.lstat(file)
        ours = str(file) in (job["path"], job["target"]) and stat.S_ISREG(known.st_mode)
        digest = _SHA256.fullmatch(found["sha256"])
        seconds = 0 <= float(found.get("seconds", 0)) <= LONGEST_SECONDS
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise _broken(job) from error
    if not (ours and digest and seconds and known.st_nlink == 1):
        raise _broken(job)
    if known.st_size > job["max_bytes"]:
        raise _too_large(f"{job['path']}: {known.st_size} bytes")
    return found | {"size": known.st_size}


def _broken(job: Mapping[str, Any]) -> Fault:
    details = f"{job['path']}: it broke the process reading it"
    return Fault(FaultName.OUTPUT_UNDECODABLE, details=details)


def _too_large(details: str) -> Fault:
    return Fault(FaultName.OUTPUT_TOO_LARGE, details=details)


class _ChildDiedError(Exception):
    """A child ended, or was ended, before it answered.

    `by_machine`: a file can't cause it. The kernel kills a process when memory is short, and the
    limit of CPU time ends a file's job before the limit of wall-clock time.
    """

    def __init__(self, how: str, *, by_machine: bool) -> None:
        super().__init__(how)
        self.by_machine = by_machine


class _Child:
    """One process; `usable` while it can take another job."""

    def __init__(self, process: Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise ValueError("a child without pipes can't be talked to; start it with PIPE")
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._jobs = 0
        self._ready = False
        self._answered = False
        self._lacking: tuple[str, ...] = ()

    @classmethod
    async def start(cls, max_bytes: int) -> Self:
        """Start a process in a session of its own, so that the terminal's Ctrl-C misses it.

        Raises Fault `scratch_unavailable`.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", str(_CHILD), str(max_bytes),
                stdin=PIPE, stdout=PIPE, env=child_environment(), start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            # Too little memory, too many processes or open files: this machine's trouble.
            raise scratch_fault(error, f"starting {_CHILD.name}") from error
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def came_up(self) -> bool:
        return self._ready and self._process.returncode is None

    @property
    def usable(self) -> bool:
        return self._answered and self._process.returncode is None and self._jobs < JOBS_PER_CHILD

    async def ready(self) -> tuple[str, ...]:
        """Return, once it takes jobs, the walls that do not hold for it.

        Raises Fault `scratch_unavailable` if it does not come up.
        """
        if self._ready:
            return self._lacking
        line = await self._stdout.readline()
        if not line:
            # No file has been looked at: this is about the machine, not about a file.
            details = f"{_CHILD.name} can't start: it ended {await self._death()}"
            raise Fault(FaultName.SCRATCH_UNAVAILABLE, details=f"{details}. Is there memory left?")
        self._lacking = tuple(json.loads(line)["lacking"])
        self._ready = self._answered = True
        return self._lacking

    async def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Hand over one job and await its answer. Raises `_ChildDiedError`."""
        self._jobs, self._answered = self._jobs + 1, False
        try:
            async with asyncio.timeout(JOB_SECONDS):
                self._stdin.write(json.dumps(dict(job)).encode() + b"\n")
                await self._stdin.drain()
                line = await self._stdout.readline()
        except TimeoutError as error:
            how = f"without an answer after {JOB_SECONDS:g} s"
            raise _ChildDiedError(how, by_machine=True) from error
        except ConnectionError as error:
            raise await self._died() from error
        if not line.endswith(b"\n"):
            raise await self._died()
        self._answered = True
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def _died(self) -> _ChildDiedError:
        how = await self._death()
        return _ChildDiedError(how, by_machine=self._process.returncode == -signal.SIGKILL)

    async def _death(self) -> str:
        code = await self._process.wait()
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"

    def kill(self) -> None:
        """End it now; any number of calls is fine."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def gone(self) -> None:
        """Return once the process has ended and was waited for."""
        await self._process.wait()
        self._stdin.close()
