"""Renders in child processes: looks at files, makes outputs, tells progress, ends them on demand.

What a child did wrong comes back as a value. It chooses nothing that a job doesn't say, and never
opens a file from outside itself.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
import stat
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from vidgen_worker.films.job import Job, to_json
from vidgen_worker.films.presets import FORMATS
from vidgen_worker.films.source import Source
from vidgen_worker.media.children import child_environment
from vidgen_worker.media.scratch import discard

CHILD = Path(__file__).with_name("render_child.py")
LONGEST_LINE = 64 * 1024
GIGABYTE = 2**30
LARGEST_OUTPUT = 2 * GIGABYTE
"""Bytes: three minutes of ProRes in 720p are 1.5 GB."""
LOOK_CPU = 120
PIXEL_CPU = 4e-7
"""CPU seconds for a pixel of a frame, several times what the slowest encoder takes."""
MEMORY_FOR_A_PIXEL = 1_200
"""Bytes of address space for a pixel of an output, beside the least; SVT-AV1 takes most."""
WALL_FOR_CPU = 8
"""A child may take so many times its limit of CPU time: it is nice, and others work."""
NICE = 10
"""What is paid for goes first: the children are this much nicer than the worker."""
TRIES = 2
"""A child's death may be the machine's fault; that of a second one over the same job is not."""
_SHA256 = re.compile("[0-9a-f]{64}")
Tell = Callable[[float], None]
"""Is told the share of the work that is done, from 0 to 1."""


class Trouble(StrEnum):
    """What can go wrong; the values are the codes that a film fails with, but for the last one."""

    PART_UNUSABLE = "PART_UNUSABLE"
    RENDER_FAILED = "RENDER_FAILED"
    MACHINE = "WAIT"
    """This machine has no room or no memory, or stopped the work: another time, it can be made."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing was made: why, for an operator."""

    trouble: Trouble
    details: str

    @property
    def by_machine(self) -> bool:
        """Whether it could be made another time, or elsewhere."""
        return self.trouble is Trouble.MACHINE


@dataclass(frozen=True, slots=True)
class Made:
    """An output that was looked at: its file, bytes, hex sha256 and measured quality."""

    job: Job
    file: Path
    size: int
    sha256: str
    quality: Mapping[str, float] | None
    media_type: str


class _DiedError(Exception):
    def __init__(self, how: str, *, by_machine: bool) -> None:
        super().__init__(how)
        self.by_machine = by_machine


async def look(folder: Path, file: str) -> Source | Failed:
    """Look at a clip or an asset, a file in a folder of an absolute path: read it to its end."""
    job = {"look": file, "limits": _limits(2 * GIGABYTE, 0, LOOK_CPU)}
    answer = await _run(folder, job, lambda _: None)
    return answer if isinstance(answer, Failed) else Source.found(file, answer)


async def render(job: Job, folder: Path, tell: Tell) -> Made | Failed:
    """Make one output from the files in a folder of an absolute path, beside them.

    Cancelled, it ends the child and leaves no file.
    """
    form = FORMATS[job.format]
    # No name of a clip or an asset begins so: an output may have any name.
    file = folder / f"output-{job.name}.{form.extension}"
    asked = {
        "render": to_json(job), "file": file.name, "fonts": job.fonts,
        "limits": _limits(_memory(job), LARGEST_OUTPUT, _cpu(job)),
    }  # fmt: skip
    answer: dict[str, Any] | Failed | None = None
    try:
        answer = await _run(folder, asked, tell)
        if isinstance(answer, Failed):
            return answer
        return _made(job, file, answer)
    finally:
        if not isinstance(answer, dict):
            discard(file)


def _made(job: Job, file: Path, answer: Mapping[str, Any]) -> Made | Failed:
    """Believe an answer only where a false one does no harm: a file may have taken it over."""
    broken = Failed(Trouble.RENDER_FAILED, f"{job.name}: the answer of its process makes no sense")
    try:
        known = os.lstat(file)
        digest = str(answer["sha256"])
        quality = answer["quality"]
        sane = quality is None or all(isinstance(value, int | float) for value in quality.values())
    except (KeyError, AttributeError, OSError):
        return broken
    ours = stat.S_ISREG(known.st_mode) and known.st_nlink == 1 and known.st_size > 0
    if not (ours and sane and _SHA256.fullmatch(digest)):
        discard(file)
        return broken
    return Made(job, file, known.st_size, digest, quality, FORMATS[job.format].media_type)


def _cpu(job: Job) -> int:
    """Seconds of CPU time that an output may take."""
    return round(LOOK_CPU + PIXEL_CPU * 3 * job.width * job.height * job.frames)


def _memory(job: Job) -> int:
    return 2 * GIGABYTE + MEMORY_FOR_A_PIXEL * max(0, job.width * job.height - 1280 * 720)


def _limits(memory: int, size: int, cpu: int) -> dict[str, int]:
    return {"memory": memory, "bytes": size, "cpu": cpu}


async def _run(folder: Path, job: Mapping[str, Any], tell: Tell) -> dict[str, Any] | Failed:
    """Have a job done; a second child tries it where the first one died."""
    deaths: list[_DiedError] = []
    while len(deaths) < TRIES:
        try:
            return _judged(await _asked(folder, job, tell))
        except _DiedError as error:
            deaths.append(error)
    details = f"its process ended {' and again '.join(map(str, deaths))}"
    if all(death.by_machine for death in deaths):
        return Failed(Trouble.MACHINE, f"{details}. Is there memory and CPU left?")
    if "look" in job:
        return Failed(Trouble.PART_UNUSABLE, f"{job['look']}: {details}")
    return Failed(Trouble.RENDER_FAILED, details)


def _judged(answer: Mapping[str, Any]) -> dict[str, Any] | Failed:
    match answer:
        case {"found": dict() as found}:
            return found
        case {"unusable": reason}:
            return Failed(Trouble.PART_UNUSABLE, str(reason))
        case {"short": reason}:
            return Failed(Trouble.MACHINE, str(reason))
        case _:
            reason = answer.get("too_large") or answer.get("failed") or answer
            return Failed(Trouble.RENDER_FAILED, str(reason))


async def _asked(folder: Path, job: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Start a child, hand the job over, and await its verdict. Raises _DiedError."""
    asked = dict(job) | {"folder": str(folder)}
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", str(CHILD), stdin=PIPE, stdout=PIPE, stderr=DEVNULL,
            env=child_environment() | {"SVT_LOG": "0"}, start_new_session=True, limit=LONGEST_LINE,
        )  # fmt: skip
    except OSError as error:
        return {"short": f"no process can be started: {error.strerror}"}
    # Here and not in the child: its imports alone take a good part of a second.
    with contextlib.suppress(ProcessLookupError):  # it has died already: see below
        os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + NICE)
    try:
        async with asyncio.timeout(WALL_FOR_CPU * job["limits"]["cpu"]):
            return await _talk(process, json.dumps(asked).encode() + b"\n", tell)
    except TimeoutError as error:
        raise _DiedError("without an answer in time", by_machine=True) from error
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _talk(process: Process, said: bytes, tell: Tell) -> dict[str, Any]:
    assert process.stdin is not None  # noqa: S101 - it was started with pipes
    assert process.stdout is not None  # noqa: S101 - … both
    try:
        process.stdin.write(said)
        await process.stdin.drain()
    except ConnectionError:
        raise await _death(process) from None
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError as error:  # longer than any honest one
            raise _DiedError("with an answer without end", by_machine=False) from error
        if not line.endswith(b"\n"):
            raise await _death(process)
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise _DiedError("with an answer that is none", by_machine=False) from error
        match answer:
            case {"progress": float() | int() as share}:
                tell(min(max(float(share), 0.0), 1.0))
            case dict():
                return answer
            case _:
                raise _DiedError("with an answer that is none", by_machine=False)


async def _death(process: Process) -> _DiedError:
    code = await process.wait()
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
    return _DiedError(how, by_machine=code == -signal.SIGKILL)
