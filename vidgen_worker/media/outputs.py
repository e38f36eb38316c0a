"""Outputs on their way from the provider to the store: download, look at, conform.

A download streams into a file and says what arrived. The bytes decide what they are, never a
header. A file counts only after a child process has decoded it: libav runs there, with limits, so
that a file that crashes it fails one task, and the event loop never waits for it. A wrong type or
size is put right, a wrong duration is accepted and reported. Nothing here stores a file, or
decides whether another one is paid for.
"""

import asyncio
import contextlib
import ctypes
import hashlib
import json
import os
import re
import signal
import stat
import sys
import zlib
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import httpx
from httpx import codes

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.domain.resolution import size
from vidgen_worker.media.public_address import (
    NotPublicError,
    only_public,
    public_sockets,
    refusal,
)
from vidgen_worker.media.scratch import SHORT, scratch_fault
from vidgen_worker.providers.free_client import FreeClient
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import MediaWallsLacking

CONNECT_SECONDS = 10.0
"""How long a connection to the provider's file server may take."""
CONNECTIONS = 100
"""The most downloads at once; others wait for a place."""
IDLE_CONNECTIONS = 20
"""Kept open between downloads where httpx's own transport is used, which looks at each of them."""
MAX_REDIRECTS = 5
"""A download is led on at most so often."""
GZIP = b"\x1f\x8b\x08"
"""No picture or clip begins like this: a server that compressed it did so on its way."""
CONFORMED = (".conformed.png", ".conformed.mp4")
"""Endings of a file that was put right, beside the one that was delivered."""
JOB_SECONDS = 300.0
"""Wall-clock limit of one look at a file; the child's own limit is of CPU time."""
JOBS_PER_CHILD = 500
"""After this many files a child is replaced, so that a leak in libav stays small."""
JOB_TRIES = 2
"""A child's death may be the machine's fault; that of a second one over the same file is not."""
LONGEST_SECONDS = 86_400.0
"""No clip that anybody asked for is longer."""
DURATION_TOLERANCE = 0.5
"""A clip this many seconds longer or shorter than asked for still has the right duration."""

UNPACKED_AT_ONCE = 2**20
"""Bytes that a packed file may grow to in one step: a bomb is counted, not held in memory."""

_PR_SET_DUMPABLE = 4
_SHA256 = re.compile("[0-9a-f]{64}")
_CONTENT_RANGE = re.compile(r"bytes 0-(\d+)/(\d+)")
_CHILD = Path(__file__).with_name("child.py")
# What a child inherits: it reads files from outside, so it knows no secret of ours.
_CHILD_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What arrived. `size` is in bytes, `sha256` the hex digest of those bytes.

    `doubt` says what the transport holds against their being all; only decoding tells.
    """

    size: int
    sha256: str
    content_type: str | None
    doubt: str | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that decodes: format as delivered, width and height as a viewer shows it.

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
    whole: bool
    """Its format proves that no byte of it is missing."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that decodes: codec as delivered; size and length in seconds as a viewer shows it.

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
    whole: bool
    """Its format proves that no byte of it is missing."""
    right_duration: bool


class Media:
    """Downloads and checks outputs; `children` files are looked at at once.

    A download comes from https at a public address only, wherever it is led; `allow_loopback` lets
    it come from this machine's loopback too, as in a sandbox.
    """

    def __init__(  # noqa: PLR0913 - one value each, all by keyword
        self,
        *,
        children: int = 2,
        max_image_bytes: int,
        max_video_bytes: int,
        allow_loopback: bool = False,
        idle_timeout: timedelta = timedelta(seconds=30),
        total_timeout: timedelta = timedelta(minutes=10),
    ) -> None:
        self.max_image_bytes = max_image_bytes
        self.max_video_bytes = max_video_bytes
        self._allow_loopback = allow_loopback
        self._total_seconds = total_timeout.total_seconds()
        idle = idle_timeout.total_seconds()
        self._http = FreeClient(
            timeout=httpx.Timeout(
                idle, connect=min(CONNECT_SECONDS, idle), pool=self._total_seconds
            ),
            # What is compressed already would only be compressed again.
            headers={"accept-encoding": "identity"},
            limits=httpx.Limits(
                max_connections=CONNECTIONS, max_keepalive_connections=IDLE_CONNECTIONS
            ),
            sockets=public_sockets(allow_loopback=allow_loopback),
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
    def lacking(self) -> tuple[str, ...]:
        """The walls round a child that do not hold here, once one has come up: a phrase each."""
        return self._children.lacking or ()

    @property
    def child_pids(self) -> tuple[int, ...]:
        """The children that live now, busy ones included."""
        return self._children.pids

    async def download(self, url: str, target: Path, max_bytes: int) -> Downloaded:
        """Stream `url` into `target`, which is absent again if that fails.

        Whatever stops before its stated end is kept with a doubt. Raises Fault
        `output_unavailable`, `output_too_large` and `scratch_unavailable`.
        """
        # A signed URL is a key: only its path is said.
        what = f"downloading {url.partition('?')[0]}"
        try:
            async with asyncio.timeout(self._total_seconds):
                return await self._stream(url, target, max_bytes, what)
        except BaseException as error:
            _discard(target)
            match error:
                case TimeoutError():
                    details = f"{what}: not finished within {self._total_seconds:g} s"
                case httpx.HTTPError() | httpx.InvalidURL():
                    short = _shortage(error)
                    if short is not None:
                        raise scratch_fault(short, what) from error
                    details = f"{what}: {type(error).__name__}: {error}"
                case OSError():
                    raise scratch_fault(error, target.parent) from error
                case _:
                    raise
            raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=details) from error

    async def _stream(self, url: str, target: Path, max_bytes: int, what: str) -> Downloaded:
        async with self._answer(url, what) as response:
            doubt: str | None = None
            # Pieces of some 100 KB: written and hashed in well under a millisecond, and constant
            # memory however many downloads run.
            with target.open("wb", buffering=0) as file:
                arriving = _Arriving(file.fileno(), max_bytes, what)
                try:
                    async for piece in response.aiter_raw():
                        arriving.take(piece)
                except httpx.TransportError as error:
                    # The stated length may be wrong, and the bytes all there.
                    doubt = f"{what}: {type(error).__name__}: {error}"
                arriving.end()
                if not arriving.packed_end:
                    doubt = doubt or f"{what}: packed, and cut short"
            if not arriving.size:
                raise Fault(
                    FaultName.OUTPUT_UNAVAILABLE, details=doubt or f"{what}: no byte arrived"
                )
            content_type = response.headers.get("content-type")
            return Downloaded(arriving.size, arriving.sha256, content_type, doubt)

    @contextlib.asynccontextmanager
    async def _answer(self, url: str, what: str) -> AsyncIterator[httpx.Response]:
        """Ask for a file, and follow where the answer leads. Raises Fault unless one comes."""
        request = self._http.build_request("GET", url)
        for _ in range(MAX_REDIRECTS + 1):
            await self._public_only(request, what)
            try:
                response = await self._http.send(request, stream=True)
            except (NotPublicError, httpx.ConnectError) as error:
                astray = _first(error, lambda cause: isinstance(cause, NotPublicError))
                if astray is None:
                    raise
                raise _led_astray(what, str(astray)) from error
            try:
                if response.next_request is None:
                    if not _is_whole(response):
                        details = f"{what}: answered {response.status_code}"
                        raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=details)
                    yield response
                    return
                request = response.next_request
            finally:
                await response.aclose()
        details = f"{what}: led on more than {MAX_REDIRECTS} times"
        raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=details)

    async def _public_only(self, request: httpx.Request, what: str) -> None:
        """Let a request go to a public address, now and when it connects. Raises Fault."""
        refused = await refusal(request.url, allow_loopback=self._allow_loopback)
        if refused:
            raise _led_astray(what, refused)
        trace = only_public(request.url, allow_loopback=self._allow_loopback)
        request.extensions = {**request.extensions, "trace": trace}

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


def hide_environment() -> None:
    """Keep this process's environment and memory, secrets and all, from its children.

    They run as the same user. A process that is not dumpable is opened by the kernel to nobody who
    has no capability for it, and the children give theirs up.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _is_whole(response: httpx.Response) -> bool:
    """Whether all of a file is to come: some servers call that a part."""
    match response.status_code:
        case codes.OK | codes.NON_AUTHORITATIVE_INFORMATION:
            return True
        case codes.PARTIAL_CONTENT:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            return found is not None and int(found[1]) + 1 == int(found[2])
        case _:
            return False


def _shortage(error: BaseException) -> OSError | None:
    """Return what this machine lacked for a connection, where that was the trouble."""
    return _first(error, lambda cause: cause.errno in SHORT)


def _first(error: BaseException, fits: Callable[[OSError], bool]) -> OSError | None:
    """Return the first that fits of an error, its cause, the cause of that, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and fits(cause):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None


class _Arriving:
    """Writes, counts and hashes what arrives; unpacks it where a server has packed it."""

    def __init__(self, descriptor: int, max_bytes: int, what: str) -> None:
        self._descriptor = descriptor
        self._max_bytes = max_bytes
        self._what = what
        self._digest = hashlib.sha256()
        self._head = b""
        self._unpacker: zlib._Decompress | None = None
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def take(self, piece: bytes) -> None:
        """Take the next bytes. Raises Fault `output_too_large`, and OSError."""
        if not self.size and self._unpacker is None:
            piece = self._head + piece
            if len(piece) < len(GZIP):
                self._head = piece
                return
            self._head = b""
            if piece.startswith(GZIP):
                self._unpacker = zlib.decompressobj(wbits=31)
        if self._unpacker is None:
            self._write(piece)
            return
        while not self._unpacker.eof:
            try:
                unpacked = self._unpacker.decompress(piece, UNPACKED_AT_ONCE)
            except zlib.error as error:
                details = f"{self._what}: packed, and it can't be unpacked: {error}"
                raise Fault(FaultName.OUTPUT_UNAVAILABLE, details=details) from error
            self._write(unpacked)
            piece = self._unpacker.unconsumed_tail
            if not piece and len(unpacked) < UNPACKED_AT_ONCE:
                return

    @property
    def packed_end(self) -> bool:
        """Whether a packed file came to its end; one that was not packed always did."""
        return self._unpacker is None or self._unpacker.eof

    def end(self) -> None:
        """Write what was too short to tell."""
        if self._head:
            self._write(self._head)
            self._head = b""

    def _write(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size > self._max_bytes:
            raise _too_large(f"{self._what}: more than the {self._max_bytes} bytes that are stored")
        self._digest.update(piece)
        view = memoryview(piece)
        while view:
            view = view[os.write(self._descriptor, view) :]


def _led_astray(what: str, refused: str) -> Fault:
    details = f"{what}: led to {refused}; VIDGEN_ALLOW_LOOPBACK_ASSETS allows this machine's own"
    return Fault(FaultName.OUTPUT_UNAVAILABLE, details=details)


def _too_large(details: str) -> Fault:
    return Fault(FaultName.OUTPUT_TOO_LARGE, details=details)


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
        self._lacking: tuple[str, ...] | None = None

    @property
    def lacking(self) -> tuple[str, ...] | None:
        return self._lacking

    @property
    def pids(self) -> tuple[int, ...]:
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
                    _discard(Path(job["target"]))
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


def _discard(half_written: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that is gone or read-only is the next one's find
        half_written.unlink(missing_ok=True)


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
    """Believe a child only what it can't turn against us: a file may have taken it over.

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
    details = f"{job['path']}: it broke what looked at it"
    return Fault(FaultName.OUTPUT_UNDECODABLE, details=details)


class _ChildDiedError(Exception):
    """A child ended, or was ended, before it answered.

    `by_machine`: no file does that. The kernel kills where memory is short, and a file's own CPU
    time ends before the wall clock's limit.
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
        environment = {name: os.environ[name] for name in _CHILD_ENVIRONMENT if name in os.environ}
        ours = [str(_CHILD.parents[2]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, ours))
        # Large pages where the kernel has them: a frame takes few page faults then, and not 1,500.
        environment["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", str(_CHILD), str(max_bytes),
                stdin=PIPE, stdout=PIPE, env=environment, start_new_session=True,
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
        """Return once the process is buried."""
        await self._process.wait()
        self._stdin.close()
