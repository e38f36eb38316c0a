"""Outputs on their way from the provider to the store: download, look at, conform.

A download streams into a file and says what arrived. A file counts only after a child process has
decoded it: libav runs there, with limits, so that a file that crashes it fails one task, and the
event loop never waits for it. A wrong type or size is put right, a wrong duration is accepted and
reported. Nothing here stores a file, or decides whether another one is paid for.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import httpx
from httpx import codes

from vidgen_worker.errors import Fault
from vidgen_worker.http_client import HttpClient
from vidgen_worker.resolution import size

CONNECT_SECONDS = 10.0
"""How long a connection to the provider's file server may take."""
CONFORMED = (".conformed.png", ".conformed.mp4")
"""Endings of a file that was put right, beside the one that was delivered."""
JOB_SECONDS = 300.0
"""Wall-clock limit of one look at a file; the child's own limit is of CPU time."""
JOBS_PER_CHILD = 500
"""After this many files a child is replaced, so that a leak in libav stays small."""
JOB_TRIES = 2
"""A child's death may be the machine's fault; that of a second one over the same file is not."""
DURATION_TOLERANCE = 0.5
"""A clip this many seconds longer or shorter than asked for still has the right duration."""

_CHILD = Path(__file__).with_name("media_child.py")
# What a child inherits: it reads files from outside, so it knows no secret of ours.
_CHILD_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What arrived. `size` is in bytes, `sha256` the hex digest of those bytes."""

    size: int
    sha256: str
    content_type: str | None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that decodes: width, height and format as delivered.

    `file` is what is to be stored: a PNG of the exact size, of `size` bytes and with this hex
    `sha256`. It is the delivered file, or, if `conformed`, a new one beside it.
    """

    width: int
    height: int
    format: str
    file: Path
    size: int
    sha256: str
    conformed: bool


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that decodes: width, height, codec and length in seconds as delivered.

    `file` is what is to be stored: an H.264 MP4 of the exact size, of `size` bytes and with this
    hex `sha256`. It is the delivered file, or, if `conformed`, a new one beside it.
    `right_duration` says whether the clip is as long as was asked for.
    """

    width: int
    height: int
    seconds: float
    codec: str
    file: Path
    size: int
    sha256: str
    conformed: bool
    right_duration: bool


class Media:
    """Downloads and checks outputs; `children` files are looked at at once."""

    def __init__(
        self,
        *,
        children: int = 2,
        max_image_bytes: int,
        max_video_bytes: int,
        idle_timeout: timedelta = timedelta(seconds=30),
        total_timeout: timedelta = timedelta(minutes=10),
    ) -> None:
        self.max_image_bytes = max_image_bytes
        self.max_video_bytes = max_video_bytes
        self._total_seconds = total_timeout.total_seconds()
        idle = idle_timeout.total_seconds()
        self._http = HttpClient(
            follow_redirects=True,
            timeout=httpx.Timeout(
                idle, connect=min(CONNECT_SECONDS, idle), pool=self._total_seconds
            ),
            # Compressed, a length would say nothing about what is to arrive.
            headers={"accept-encoding": "identity"},
        )
        self._children = _Children(children, max(max_image_bytes, max_video_bytes))

    async def aclose(self) -> None:
        """Close the connections and end the children."""
        await self._http.aclose()
        await self._children.aclose()

    async def prove(self) -> None:
        """Prove that files can be looked at: that a child comes up. Raises Fault."""
        await self._children.prove()

    @property
    def child_pids(self) -> tuple[int, ...]:
        """The children that live now, busy ones included."""
        return self._children.pids

    async def download(self, url: str, target: Path, max_bytes: int) -> Downloaded:
        """Stream `url` into `target`, which is absent again if that fails.

        Raises Fault `output_unavailable`, also for a file cut short, and `output_too_large`.
        """
        # A signed URL is a key: only its path is said.
        what = f"downloading {url.partition('?')[0]}"
        try:
            async with asyncio.timeout(self._total_seconds):
                return await self._stream(url, target, max_bytes, what)
        except BaseException as error:
            target.unlink(missing_ok=True)  # noqa: ASYNC240 - who is cancelled awaits nothing
            match error:
                case TimeoutError():
                    details = f"{what}: not finished within {self._total_seconds:g} s"
                case httpx.HTTPError() | httpx.InvalidURL():
                    details = f"{what}: {type(error).__name__}: {error}"
                case _:
                    raise
            raise Fault("output_unavailable", details=details) from error

    async def _stream(self, url: str, target: Path, max_bytes: int, what: str) -> Downloaded:
        async with self._http.stream("GET", url) as response:
            stated = _stated_length(response, what)
            if stated is not None and stated > max_bytes:
                raise _too_large(f"{what}: {stated} bytes, at most {max_bytes} are stored")
            digest, received = hashlib.sha256(), 0
            # httpx hands out pieces of at most 64 KiB: written and hashed in well under a
            # millisecond, and constant memory however many downloads run.
            with target.open("wb", buffering=0) as file:
                async for piece in response.aiter_raw():
                    received += len(piece)
                    if received > max_bytes:
                        raise _too_large(f"{what}: more than the {max_bytes} bytes that are stored")
                    digest.update(piece)
                    _write(file.fileno(), piece)
            if not received or (stated is not None and stated != received):
                details = f"{what}: {received} of {stated} bytes arrived"
                raise Fault("output_unavailable", details=details)
            content_type = response.headers.get("content-type")
            return Downloaded(received, digest.hexdigest(), content_type)

    async def check_image(self, path: Path, ratio: str) -> Picture:
        """Decode a picture and make it a PNG of `ratio`, "width:height" in pixels.

        Raises Fault `output_undecodable`, or `output_too_large` for what it would become.
        """
        job = _job("image", path, ratio, f"{path}{CONFORMED[0]}", self.max_image_bytes)
        found = await self._children.run(job)
        return Picture(**found | {"file": Path(found["file"])})

    async def check_video(self, path: Path, ratio: str, duration: int) -> Clip:
        """Read a clip to its end and make it an H.264 MP4 of `ratio`, "width:height" in pixels.

        `duration` is in seconds. Raises Fault `output_undecodable`, or `output_too_large` for what
        it would become.
        """
        job = _job("video", path, ratio, f"{path}{CONFORMED[1]}", self.max_video_bytes)
        found = await self._children.run(job)
        right = abs(found["seconds"] - duration) <= DURATION_TOLERANCE
        return Clip(**found | {"file": Path(found["file"]), "right_duration": right})


def _stated_length(response: httpx.Response, what: str) -> int | None:
    """Return Content-Length, None where there is none. Raises Fault unless a file is to come."""
    if response.status_code != codes.OK:
        raise Fault("output_unavailable", details=f"{what}: answered {response.status_code}")
    encoding = response.headers.get("content-encoding", "identity")
    if encoding != "identity":
        details = f"{what}: sent as {encoding}, which was not asked for"
        raise Fault("output_unavailable", details=details)
    stated = response.headers.get("content-length", "")
    return int(stated) if stated.isdecimal() else None


def _write(descriptor: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _too_large(details: str) -> Fault:
    return Fault("output_too_large", details=details)


def _job(kind: str, path: Path, ratio: str, target: str, max_bytes: int) -> dict[str, Any]:
    width, height = size(ratio)
    return {
        "kind": kind, "path": str(path.absolute()), "target": str(Path(target).absolute()),
        "width": width, "height": height, "max_bytes": max_bytes,
    }  # fmt: skip


class _Children:
    """A few child processes, started when first needed, one job at a time each."""

    def __init__(self, count: int, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._slots = asyncio.Semaphore(count)
        self._idle: list[_Child] = []
        self._living: set[_Child] = set()
        self._closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        return tuple(child.pid for child in self._living)

    async def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Have one file looked at. Raises Fault."""
        async with self._slots:
            deaths: list[str] = []
            while len(deaths) < JOB_TRIES:
                try:
                    async with self._child() as child:
                        return _judged(job, await child.ask(job))
                except _ChildDiedError as error:
                    _discard(job["target"])
                    deaths.append(str(error))
        details = f"{job['path']}: looking at it ended {' and again '.join(deaths)}"
        raise Fault("output_undecodable", details=details)

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
            raise Fault("draining", details="no file is looked at any more: this worker stops")
        child = self._idle.pop() if self._idle else await _Child.start(self._max_bytes)
        self._living.add(child)
        try:
            await child.ready()
            yield child
        finally:
            if child.usable and child in self._living:
                self._idle.append(child)
            else:
                await self._end(child)

    async def _end(self, child: "_Child") -> None:
        child.kill()
        self._living.discard(child)
        await child.gone()


def _discard(half_written: str) -> None:
    Path(half_written).unlink(missing_ok=True)


def _judged(job: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    match answer:
        case {"found": dict() as found}:
            return found
        case {"undecodable": reason}:
            raise Fault("output_undecodable", details=f"{job['path']}: {reason}")
        case {"too_large": reason}:
            raise _too_large(f"{job['path']}: {reason}")
        case _:
            details = f"{job['path']} could not be looked at: {answer.get('failed', answer)}"
            raise Fault("internal_error", details=details)


class _ChildDiedError(Exception):
    """A child ended, or was ended, before it answered."""


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

    @classmethod
    async def start(cls, max_bytes: int) -> Self:
        """Start a process in a session of its own, so that the terminal's Ctrl-C misses it."""
        environment = {name: os.environ[name] for name in _CHILD_ENVIRONMENT if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", str(_CHILD), str(max_bytes),
            stdin=PIPE, stdout=PIPE, env=environment, start_new_session=True,
        )  # fmt: skip
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

    async def ready(self) -> None:
        """Return once it takes jobs. Raises Fault `internal_error` if it does not come up."""
        if self._ready:
            return
        if not await self._stdout.readline():
            # No file has been looked at: this is about the installation, not about a file.
            details = f"{_CHILD.name} can't start: it ended {await self._death()}"
            raise Fault("internal_error", details=details)
        self._ready = self._answered = True

    async def ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Hand over one job and await its answer. Raises `_ChildDiedError`."""
        self._jobs, self._answered = self._jobs + 1, False
        try:
            async with asyncio.timeout(JOB_SECONDS):
                self._stdin.write(json.dumps(dict(job)).encode() + b"\n")
                await self._stdin.drain()
                line = await self._stdout.readline()
        except TimeoutError as error:
            raise _ChildDiedError(f"without an answer after {JOB_SECONDS:g} s") from error
        except ConnectionError as error:
            raise _ChildDiedError(await self._death()) from error
        if not line.endswith(b"\n"):
            raise _ChildDiedError(await self._death())
        self._answered = True
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def _death(self) -> str:
        code = await self._process.wait()
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"

    def kill(self) -> None:
        """End it now; any number of calls is fine."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def gone(self) -> None:
        """Return once the process is buried."""
        await self._process.wait()
        self._stdin.close()
