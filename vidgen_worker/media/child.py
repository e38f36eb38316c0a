"""The child process in which libav reads files from outside: look at one, conform it if needed.

Started by `children.py` as a script of its own. It reads one job a line as JSON on standard input,
answers one line on standard output, and ends with its input, that is with its parent, also in the
middle of a job. libav sees each file in a process forked for it, with limits of memory, CPU and
file size, no rights, no secrets, and only the file's own folder (`walls.py`): even where a file
takes libav over, only its own job fails. It never talks to a network.
"""

import errno
import faulthandler
import gc
import hashlib
import json
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import av.logging
import av.subtitles.stream  # av.open imports it: here once, and not in each process of a job
from av.error import FFmpegError

from vidgen_worker.media.clip import check_video
from vidgen_worker.media.formats import NoOutputError, TooLargeError, UndecodableError
from vidgen_worker.media.plain_png import plain_png
from vidgen_worker.media.still import check_image
from vidgen_worker.media.walls import give_up_rights, raise_walls
from vidgen_worker.media.warm_up import warm_up

MEMORY_BYTES = 2 * 2**30
"""Address space of a child: 720p needs a fifth of it, a decompression bomb more."""
CPU_SECONDS = 120
"""CPU time of one job; conforming ten seconds of 720p takes about a tenth."""
LONGEST_ANSWER = 32 * 1024
"""Bytes of an answer; the longest honest one is a traceback."""
REAP_SECONDS = 10
"""How long a process that has closed its pipe may take to end."""
READ_AT_ONCE = 64 * 1024
"""Bytes that are hashed at once: each page of a buffer costs a new process a page fault."""
GARBAGE = 20_000
"""Objects after which garbage is looked for: most jobs end before."""
# Errors of the machine, not of the file; EIO is left out: libav also reports a damaged file so.
_OURS = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS,
    errno.EMFILE, errno.ENFILE, errno.ENOTDIR, errno.ESTALE, errno.EAGAIN,
}  # fmt: skip

JOBS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "image": check_image,
    "video": check_video,
}


def _stored(job: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Describe the file that is to be stored."""
    file = Path(found["file"])
    size = file.stat().st_size
    if size > job["max_bytes"]:
        raise TooLargeError(f"{size} bytes are more than {job['max_bytes']}")
    digest, buffer = hashlib.sha256(), bytearray(READ_AT_ONCE)
    with file.open("rb", buffering=0) as content:
        while length := content.readinto(buffer):
            digest.update(memoryview(buffer)[:length])
    return found | {"size": size, "sha256": digest.hexdigest()}


def answer(job: dict[str, Any], status: int | None) -> dict[str, Any]:  # noqa: PLR0911 - one per verdict
    """Do one job. Everything that can happen to it becomes an answer.

    `status` is a descriptor of this process's own file of the kernel, from before it could open no
    other.
    """
    _limit(resource.RLIMIT_CPU, CPU_SECONDS)
    try:
        return {"found": _stored(job, JOBS[job["kind"]](job))}
    except NoOutputError as error:
        return {"no_output": str(error)}
    except UndecodableError as error:
        return {"undecodable": str(error)}
    except TooLargeError as error:
        return {"too_large": str(error)}
    except MemoryError:
        return _out_of_memory(status)
    except (FFmpegError, OSError) as error:
        if error.errno == errno.ENOMEM:
            return _out_of_memory(status)
        return _judged(error, job)
    except (ArithmeticError, LookupError, ValueError):
        # PyAV, or our own check, could not make sense of a header.
        return {"undecodable": f"it can't be read: {traceback.format_exc(limit=-3)}"}
    except Exception:  # noqa: BLE001 - the parent raises it, with this traceback
        return {"failed": traceback.format_exc()}


def _judged(error: FFmpegError | OSError, job: dict[str, Any]) -> dict[str, Any]:
    """Tell faults of the file from faults of this machine."""
    if error.errno == errno.EFBIG:
        return {"too_large": f"conformed, it is more than {job['max_bytes']} bytes"}
    if isinstance(error, FFmpegError) and error.errno not in _OURS:
        return {"undecodable": f"libav says: {error}"}
    return {"short": f"{error}. Make room in its folder, or set TMPDIR to another one"}


def _out_of_memory(status: int | None) -> dict[str, Any]:
    """Tell a file that needs more than our own limit from a machine that has less than that."""
    if status is not None and _peak_memory(status) > MEMORY_BYTES // 2:
        return {"undecodable": f"it needs more than {MEMORY_BYTES} bytes of memory"}
    return {"short": "the machine has no memory left for it"}


def _peak_memory(status: int) -> int:
    """Return the largest address space that this process has had, in bytes."""
    for line in os.read(status, LONGEST_ANSWER).splitlines():
        if line.startswith(b"VmPeak:"):
            return int(line.split()[1]) * 1024
    return 0


def _limit(kind: int, soft: int) -> None:
    """Lower a limit; never above what is already set for this process."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(kind, (soft, hard))


def _own_status() -> int | None:
    try:
        return os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # another system's, or not mounted: then a lack of memory is the machine's
        return None


def _look(job: dict[str, Any], answers: int, template: int) -> NoReturn:
    """Run as the process of one job: raise the walls, do the job, answer, end."""
    try:
        status = _own_status()
        raise_walls(Path(job["path"]).parent, template)
        said = json.dumps(answer(job, status)).encode()
    except BaseException:  # noqa: BLE001 - the parent raises it, with this traceback
        said = json.dumps({"failed": traceback.format_exc()}).encode()
    _write(answers, said + b"\n")
    os._exit(0)


def _write(descriptor: int, said: bytes) -> None:
    left = memoryview(said)
    while left:
        left = left[os.write(descriptor, left) :]


class _Template:
    """Has all code loaded, and has seen no foreign file: it forks a process for each one."""

    def __init__(self, jobs: int, answers: int) -> None:
        self._jobs = jobs
        self._answers = answers
        self._arrived = b""
        self._nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def serve(self) -> None:
        """Answer job after job; the end of the input is the end of the parent."""
        self._say({"ready": True, "lacking": self._lacking()})
        while True:
            while b"\n" not in self._arrived:
                self._read_on()
            line, _, self._arrived = self._arrived.partition(b"\n")
            self._say(self._looked_at(json.loads(line)))

    def _say(self, what: dict[str, Any]) -> None:
        _write(self._answers, json.dumps(what).encode() + b"\n")

    def _read_on(self) -> None:
        data = os.read(self._jobs, LONGEST_ANSWER)
        if not data:
            os._exit(0)  # and with it, by the kernel, the process of a job
        self._arrived += data

    def _lacking(self) -> list[str]:
        """Try the walls in a process of their own, since a process behind them may not fork."""
        pid, answers = self._forked(lambda out: _try_walls(out, os.getppid()))
        found = self._answer_of(pid, answers)
        lacking: list[str] = found.get("lacking", [f"no wall could be tried: {found}"])
        return lacking

    def _looked_at(self, job: dict[str, Any]) -> dict[str, Any]:
        if job["kind"] == "image" and (found := plain_png(job)):
            return {"found": found}
        template = os.getpid()
        try:
            pid, answers = self._forked(lambda out: _look(job, out, template))
        except OSError as error:
            return {"short": f"no process can be started for it: {error.strerror}"}
        return self._answer_of(pid, answers)

    def _forked(self, work: Callable[[int], NoReturn]) -> tuple[int, int]:
        """Start a process; return its id and where its answer will come from."""
        answers, out = os.pipe()
        pid = os.fork()
        if pid == 0:
            # Out of reach: who could answer in the template's name could answer for other jobs.
            os.dup2(self._nothing, self._jobs)
            os.dup2(self._nothing, self._answers)
            os.close(answers)
            work(out)
        os.close(out)
        return pid, answers

    def _answer_of(self, pid: int, answers: int) -> dict[str, Any]:
        """Wait for an answer and for the end of its process; end in the same way as that."""
        said = b""
        waiting = select.poll()
        for descriptor in (answers, self._jobs):
            waiting.register(descriptor, select.POLLIN)
        while len(said) <= LONGEST_ANSWER and not said.endswith(b"\n"):
            ready = [descriptor for descriptor, _ in waiting.poll()]
            if self._jobs in ready:
                self._read_on()
            if answers in ready:
                piece = os.read(answers, LONGEST_ANSWER)
                if not piece:
                    break
                said += piece
        os.close(answers)
        if len(said) > LONGEST_ANSWER or said.endswith(b"\n"):
            # From here on it can't change the file that it made.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return _read(said)
        signal.alarm(REAP_SECONDS)  # it closed its pipe: it is ending, or only pretends to
        _, status = os.waitpid(pid, 0)
        return _die_likewise(os.waitstatus_to_exitcode(status))


def _read(said: bytes) -> dict[str, Any]:
    """Read an answer; a process that a file has hijacked may answer anything."""
    try:
        found = json.loads(said)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"undecodable": "it broke the process reading it"}


def _try_walls(answers: int, template: int) -> NoReturn:
    """Say which walls do not hold here."""
    try:
        said = {"lacking": raise_walls(None, template)}
    except Exception as error:  # noqa: BLE001 - reported; files are still read
        said = {"lacking": [f"{type(error).__name__}: {error}"]}
    os.write(answers, json.dumps(said).encode() + b"\n")
    os._exit(0)


def _die_likewise(code: int) -> NoReturn:
    """End as the process of a job did, for the parent to judge."""
    if code < 0:
        faulthandler.disable()  # the process of the job has printed its traceback
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code or 1)


def main(max_bytes: int) -> None:
    """Serve jobs until standard input ends."""
    # Ctrl-C and a service's SIGTERM go to the whole group; the parent decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG instead
    faulthandler.enable()
    av.logging.set_level(None)
    # Answers get a descriptor of their own, so that nothing libav prints can mix with them.
    answers = os.dup(1)
    os.dup2(2, 1)
    give_up_rights()
    if sys.platform == "linux":
        _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_FSIZE, max_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    warm_up()
    gc.freeze()  # what is loaded stays: a process of a job then shares its memory
    gc.set_threshold(GARBAGE)
    _Template(0, answers).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
