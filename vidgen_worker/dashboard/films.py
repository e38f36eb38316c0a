"""What the page of a film shows beside a task's: its parts, its files, and the one that plays.

It reads what a film became; nothing here knows how one is made.
"""

from collections.abc import Mapping
from typing import Any

from vidgen_worker.dashboard.reads import Reads, Row

PLAYED = ("video/mp4", "image/", "audio/")
"""Media types, or their beginnings, that a browser shows in a page. It plays no ProRes."""


def film_of(reads: Reads, row: Row, asked: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what is known of a film, `shown` in its player; None for a task of a scene."""
    if row["cut"] is None:
        return None
    files = reads.rows("renditions_of_film", task_id=row["id"])
    playable = [file for file in files if file["media_type"].startswith(PLAYED)]
    wanted = asked.get("show", "")
    named = [file for file in playable if file["name"] == wanted]
    # Otherwise what the row calls its video; of a film that is being cut, the first that is there.
    video = [file for file in playable if file["path"] == row["video_path"]]
    shown = next(iter([*named, *video, *playable]), None)
    return {
        "parts": reads.rows("parts_of_film", task_id=row["id"]),
        "files": files,
        "playable": {file["name"] for file in playable},
        "shown": shown,
        "poster": _poster_of(shown, playable),
    }


def _poster_of(shown: Row | None, files: list[Row]) -> str | None:
    """Return the name of the still that a video is shown with before it plays: one of its size."""
    return next(
        (
            file["name"]
            for file in files
            if shown is not None and file["media_type"] == "image/jpeg"
            and (file["width"], file["height"]) == (shown["width"], shown["height"])
        ),
        None,
    )  # fmt: skip


def place_of_file(reads: Reads, task_id: object, name: str) -> tuple[str, str] | None:
    """Return bucket and path of a film's file; None: it has no file of this name."""
    files = reads.rows("renditions_of_film", task_id=task_id)
    return next(((file["bucket"], file["path"]) for file in files if file["name"] == name), None)
