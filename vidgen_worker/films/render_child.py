"""The child process that renders: it looks at one file or makes one output, answers, and ends.

Started by `rendering.py` as a script of its own. It reads one job as a line of JSON on standard
input and answers lines on standard output: `{"progress": 0.42}` while it works, then one verdict.
It has limits of memory, CPU and file size, no rights, no secrets, no network, and one folder.
"""

import errno
import faulthandler
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import av.logging
import av.subtitles.stream  # av.open imports it: before the walls stand
from av.error import FFmpegError
from PIL import Image, features

from vidgen_worker.films.job import from_json
from vidgen_worker.films.render.captions import NoShapingError
from vidgen_worker.films.render.look import look
from vidgen_worker.films.render.outputs import make
from vidgen_worker.media.formats import NoOutputError, TooLargeError, UndecodableError
from vidgen_worker.media.libav import MAX_PIXELS
from vidgen_worker.media.walls import give_up_rights, raise_walls

TELL_SHARE = 0.01
"""Progress is told whenever it has grown by so much."""
# Errors of the machine, not of the file; EIO is left out: libav also reports a damaged file so.
_OURS = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS,
    errno.EMFILE, errno.ENFILE, errno.ENOTDIR, errno.ESTALE, errno.EAGAIN, errno.ENOMEM,
}  # fmt: skip


def answer(job: dict[str, Any], tell: "Progress") -> dict[str, Any]:  # noqa: PLR0911 - one per verdict
    """Do one job. Everything that can happen to it becomes an answer."""
    folder = Path(job["folder"])
    try:
        if "look" in job:
            return {"found": look(folder / job["look"])}
        asked = from_json(job["render"])
        tell.frames = asked.frames
        return {"found": make(asked, folder, folder / job["file"], tell)}
    except (NoOutputError, UndecodableError) as error:
        return {"unusable": str(error)}
    except TooLargeError as error:
        return {"too_large": str(error)}
    except NoShapingError as error:
        return {"short": str(error)}
    except MemoryError:
        return {"short": "there is no memory left for it"}
    except (FFmpegError, OSError) as error:
        return _judged(error)
    except Exception as error:  # noqa: BLE001 - the parent tells it, with this traceback
        if "look" in job and isinstance(error, ArithmeticError | LookupError | ValueError):
            # What a header says made no sense to PyAV, or to our own reading of it.
            return {"unusable": f"it can't be read: {error}"}
        return {"failed": traceback.format_exc()}


def _judged(error: FFmpegError | OSError) -> dict[str, Any]:
    """Tell faults of a file from faults of this machine."""
    if error.errno == errno.EFBIG:
        return {"too_large": "the output is larger than a file may be"}
    if isinstance(error, FFmpegError) and error.errno not in _OURS:
        return {"unusable": f"libav says: {error}"}
    return {"short": f"{error}. Make room in its folder, or set TMPDIR to another one"}


class Progress:
    """Says how much of a job is done, in steps that a person sees."""

    def __init__(self, answers: int) -> None:
        self.frames = 0
        self._answers = answers
        self._told = 0.0

    def __call__(self, frames: int) -> None:
        """Note how many frames are done; a second pass over them tells nothing new."""
        share = frames / max(1, self.frames)
        if share - self._told >= TELL_SHARE:
            self._told = share
            say(self._answers, {"progress": round(share, 3)})


def say(answers: int, what: dict[str, Any]) -> None:
    """Write one line to the parent."""
    said = memoryview(json.dumps(what).encode() + b"\n")
    while said:
        said = said[os.write(answers, said) :]


def _limit(kind: int, most: int) -> None:
    """Lower a limit; never above what is already set for this process."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (most, hard))


def main() -> None:
    """Serve one job."""
    # Ctrl-C and a service's SIGTERM go to the whole group; the parent decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG instead
    faulthandler.enable()
    av.logging.set_level(None)
    Image.init()  # its modules are loaded before the walls stand
    features.check("fribidi")
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    # Answers get a descriptor of their own, so that nothing libav prints can mix with them.
    answers = os.dup(1)
    os.dup2(2, 1)
    parent = os.getppid()
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    give_up_rights()
    limits = job["limits"]
    if sys.platform == "linux":
        _limit(resource.RLIMIT_AS, limits["memory"])
    _limit(resource.RLIMIT_FSIZE, limits["bytes"])
    _limit(resource.RLIMIT_CPU, limits["cpu"])
    _limit(resource.RLIMIT_CORE, 0)
    fonts = [Path(font) for font in job.get("fonts", ())]
    # Which walls don't hold here the media child has said: they are the same.
    raise_walls(Path(job["folder"]), parent, fonts)
    say(answers, answer(job, Progress(answers)))


if __name__ == "__main__":
    main()
