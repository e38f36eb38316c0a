"""Brings what a film is made of into one folder: its owner's assets, and the clips of its parts.

Each file is downloaded from our own Storage within its limits, then looked at by a child. What is
wrong with an asset is the cut's fault; what is wrong with a clip is its part's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from vidgen_worker.domain.faults import Fault, FaultName
from vidgen_worker.films.assets import ASSETS, place_of
from vidgen_worker.films.cut import LARGEST_ASSET, LARGEST_SUM, Cut, CutError
from vidgen_worker.films.source import Source
from vidgen_worker.films.studio import Studio, looked_at
from vidgen_worker.queue.films import Clip
from vidgen_worker.storage.fetching import AbsentError, Fetched, TooLargeError


@dataclass(slots=True)
class Brought:
    """What is in the folder: assets by their paths in the cut, and the sha256 of each file."""

    assets: dict[str, Source] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    size: int = 0
    """Bytes of all of it."""


async def bring_assets(studio: Studio, folder: Path, owner: UUID, cut: Cut) -> Brought:
    """Bring the assets. Raises CutError for the first that can't be used, and Fault."""
    brought = Brought()
    for number, (path, pointer) in enumerate(cut.assets.items()):
        file, place = f"asset-{number}", place_of(owner, path)
        try:
            fetched = await studio.storage.fetch(
                ASSETS.name, place, folder / file, most=LARGEST_ASSET
            )
        except AbsentError as error:
            raise CutError(
                pointer, f"there is no {path!r} in your folder of the bucket {ASSETS.name}",
                "Upload it first",
            ) from error  # fmt: skip
        except TooLargeError as error:
            raise CutError(
                pointer, f"it has more than {LARGEST_ASSET} bytes", "Upload a smaller file"
            ) from error

        def unusable(reason: str, pointer: str = pointer) -> CutError:
            return CutError(pointer, f"it can't be used: {reason}",
                            "Upload a PNG, JPEG or WebP, an MP3, M4A, WAV or FLAC")  # fmt: skip

        brought.assets[path] = await looked_at(folder, file, unusable)
        brought.digests[file] = fetched.sha256
        brought.size += fetched.size
    return brought


async def bring_clips(
    studio: Studio, folder: Path, clips: Sequence[Clip | None], brought: Brought
) -> tuple[Source | None, ...]:
    """Bring the clips of all parts that have one, each once, beside what is there.

    Raises Fault `part_unusable`, and what the file store or this machine meets.
    """
    known: dict[str, Source] = {}
    found: list[Source | None] = []
    for number, clip in enumerate(clips, start=1):
        if clip is None:
            found.append(None)
            continue
        if clip.path not in known:
            known[clip.path] = await _bring_clip(studio, folder, clip, number, brought)
        found.append(known[clip.path])
    return tuple(found)


async def _bring_clip(
    studio: Studio, folder: Path, clip: Clip, number: int, brought: Brought
) -> Source:
    def unusable(reason: str) -> Fault:
        return Fault(
            FaultName.PART_UNUSABLE, details=f"{clip.bucket}/{clip.path}: {reason}",
            field=f"/parts/{number - 1}",
            message=f"The clip of part {number} can't be used. Order its scene again, "
            "then a new film.",
        )  # fmt: skip

    file = f"clip-{number}.mp4"
    left = LARGEST_SUM - brought.size
    try:
        fetched = await studio.storage.fetch(clip.bucket, clip.path, folder / file, most=left)
    except AbsentError as error:
        raise unusable("there is no such object any more") from error
    except TooLargeError as error:
        raise CutError(
            "/parts", f"clips and assets have more than {LARGEST_SUM} bytes",
            "Make several films of it",
        ) from error  # fmt: skip
    if changed := _changed(clip, fetched):
        raise unusable(changed)
    brought.digests[file] = fetched.sha256
    brought.size += fetched.size
    return await looked_at(folder, file, unusable)


def _changed(clip: Clip, fetched: Fetched) -> str | None:
    """Say in what an object differs from what was stored and paid for."""
    if clip.sha256 is None or clip.sha256 == fetched.sha256:
        return None
    return f"its sha256 is {fetched.sha256}, but {clip.sha256} was stored"
