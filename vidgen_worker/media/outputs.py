"""Outputs on their way from the provider to the store: download, look at, conform.

The bytes decide what they are, never a header. A file counts only after a child process has
decoded it. A wrong type or size is put right, a wrong duration is accepted and reported. Nothing
here stores a file, or decides whether another one is paid for.
"""

import ctypes
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vidgen_worker.media.children import Children, job_of
from vidgen_worker.media.downloads import Downloaded, Downloads

CONFORMED = (".conformed.png", ".conformed.mp4")
"""Endings of a file that was put right, beside the one that was delivered."""
DURATION_TOLERANCE = 0.5
"""A clip this many seconds longer or shorter than asked for still has the right duration."""
_PR_SET_DUMPABLE = 4


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

    A download comes from https at public addresses only, also after redirects; `allow_loopback`
    lets it come from this machine's loopback too, as in a sandbox.
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
        self._downloads = Downloads(
            allow_loopback=allow_loopback, idle_timeout=idle_timeout, total_timeout=total_timeout
        )
        self._children = Children(children, max(max_image_bytes, max_video_bytes))

    async def aclose(self) -> None:
        """Close the connections and end the children."""
        await self._downloads.aclose()
        await self._children.aclose()

    async def prove(self) -> None:
        """Prove that files can be decoded: that a child process starts. Raises Fault."""
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

        Raises Fault `output_unavailable`, `output_too_large` and `scratch_unavailable`.
        """
        return await self._downloads.fetch(url, target, max_bytes)

    async def check_image(self, path: Path, ratio: str) -> Picture:
        """Decode a picture and make it a PNG of `ratio`, "width:height" in pixels.

        Raises Fault `output_undecodable`, or `output_too_large` for what it would become.
        """
        job = job_of("image", path, ratio, f"{path}{CONFORMED[0]}", self.max_image_bytes)
        found = await self._children.run(job)
        return Picture(**found | {"file": Path(found["file"])})

    async def check_video(self, path: Path, ratio: str, duration: int) -> Clip:
        """Read a clip to its end and make it an H.264 MP4 of `ratio`, "width:height" in pixels.

        `duration` is in seconds. Raises Fault `output_undecodable`, or `output_too_large` for what
        it would become.
        """
        job = job_of("video", path, ratio, f"{path}{CONFORMED[1]}", self.max_video_bytes)
        found = await self._children.run(job)
        right = abs(found["seconds"] - duration) <= DURATION_TOLERANCE
        return Clip(**found | {"file": Path(found["file"]), "right_duration": right})


def hide_environment() -> None:
    """Keep this process's environment and memory, secrets and all, from its children.

    They run as the same user. The kernel opens a process that is not dumpable only to a
    process with a capability for it, and the children give theirs up.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
