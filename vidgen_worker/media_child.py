"""The child process in which libav reads files from outside: look at one, conform it if needed.

Started by `media.py` as a script of its own. It reads one job a line as JSON on standard input,
answers one line on standard output, and ends with its input, that is with its parent, also in the
middle of a job. It has limits of memory, CPU and file size, no rights and no secrets: whatever a
file makes of libav, one job fails. It never talks to a network.
"""

import ctypes
import errno
import faulthandler
import hashlib
import json
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av.logging
from av.error import FFmpegError

from vidgen_worker.media_clip import check_video
from vidgen_worker.media_formats import NoOutputError, TooLargeError, UndecodableError
from vidgen_worker.media_still import check_image

MEMORY_BYTES = 2 * 2**30
"""Address space of a child: 720p needs a fifth of it, a bomb of a picture more."""
CPU_SECONDS = 120
"""CPU time of one job; conforming ten seconds of 720p takes about a tenth."""
# The machine's troubles are ours, not the file's; EIO is what libav also says of a damaged file.
_OURS = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS,
    errno.EMFILE, errno.ENFILE, errno.ENOTDIR, errno.ESTALE, errno.EAGAIN,
}  # fmt: skip
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CAPABILITY_VERSION_3 = 0x20080522

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
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return found | {"size": size, "sha256": digest}


def answer(job: dict[str, Any]) -> dict[str, Any]:  # noqa: PLR0911 - one per verdict
    """Do one job. Everything that can happen to it becomes an answer."""
    _limit_cpu()
    try:
        return {"found": _stored(job, JOBS[job["kind"]](job))}
    except NoOutputError as error:
        return {"no_output": str(error)}
    except UndecodableError as error:
        return {"undecodable": str(error)}
    except TooLargeError as error:
        return {"too_large": str(error)}
    except MemoryError:
        return _out_of_memory()
    except (FFmpegError, OSError) as error:
        return _judged(error, job)
    except (ArithmeticError, LookupError, ValueError):
        # What a header says made no sense to PyAV, or to our own reading of it.
        return {"undecodable": f"it can't be read: {traceback.format_exc(limit=-3)}"}
    except Exception:  # noqa: BLE001 - the parent raises it, with this traceback
        return {"failed": traceback.format_exc()}


def _judged(error: FFmpegError | OSError, job: dict[str, Any]) -> dict[str, Any]:
    """Tell the file's faults from ours."""
    if error.errno == errno.EFBIG:
        return {"too_large": f"conformed, it is more than {job['max_bytes']} bytes"}
    if error.errno == errno.ENOMEM:
        return _out_of_memory()
    if isinstance(error, FFmpegError) and error.errno not in _OURS:
        return {"undecodable": f"libav says: {error}"}
    return {"short": f"{error}. Make room in its folder, or set TMPDIR to another one"}


def _out_of_memory() -> dict[str, Any]:
    """Tell a file that needs more than our own limit from a machine that has less than that."""
    if sys.platform == "linux" and _peak_memory() > MEMORY_BYTES // 2:
        return {"undecodable": f"it needs more than {MEMORY_BYTES} bytes of memory"}
    return {"short": "the machine has no memory left for it"}


def _peak_memory() -> int:
    """Return the largest address space that this process has had, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmPeak:"):
            return int(line.split()[1]) * 1024
    return 0


def _give_up_rights() -> None:
    """Give up what a hijacked libav could use: other users' rights, this process's memory.

    Without capabilities even root reads the environment of no process that is not dumpable, as the
    worker is not. Where the kernel refuses one of these, the others hold.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    libc.capset(header, nothing)


def _limit(kind: int, soft: int) -> None:
    """Lower a limit; never above what is already set for this process."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(kind, (soft, hard))


def _limit_cpu() -> None:
    """Give the next job its own CPU time: the system counts it over the whole life."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, round(usage.ru_utime + usage.ru_stime) + CPU_SECONDS)


def _read_jobs(jobs: "queue.SimpleQueue[dict[str, Any]]") -> None:
    """Pass jobs on; the end of the input is the end of the parent, whatever runs just then."""
    for line in sys.stdin.buffer:
        jobs.put(json.loads(line))
    os._exit(0)


def main(max_bytes: int) -> None:
    """Serve jobs until standard input ends."""
    # Ctrl-C and a service's SIGTERM go to the whole group; the parent decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG instead
    faulthandler.enable()
    av.logging.set_level(None)
    # Answers get a descriptor of their own, so that nothing libav prints can mix with them.
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    if sys.platform == "linux":
        _give_up_rights()
        _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_FSIZE, max_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    answers.write(b'{"ready": true}\n')
    while True:
        answers.write(json.dumps(answer(jobs.get())).encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
