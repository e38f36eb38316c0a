"""What a look at a clip takes: memory and CPU of who decodes it, and of who conforms it.

A small process of its own hands the clip to the worker's own media child, and reads from the kernel
how much the largest of its descendants had resident: a large one would itself be the largest,
because a child is a copy of it before it is another program.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Result = dict[str, Any]

ROOT = Path(__file__).parents[1]
CHILD = ROOT / "vidgen_worker" / "media" / "child.py"
LARGEST = 500_000_000
"""Bytes of a clip, as by default."""


def clip_memory(width: int, height: int, seconds: int) -> Result:
    """Megabytes and CPU seconds of a look at a clip, as it is and conformed to half its size."""
    # Here, because the small process must stay small.
    from vidgen_worker.media.children import child_environment  # noqa: PLC0415
    from vidgen_worker.sandbox.runway.film import plain_clip  # noqa: PLC0415

    def asked(size: tuple[int, int]) -> Result:
        command = [sys.executable, "-m", "bench.looks", str(clip), *map(str, size)]
        said = subprocess.run(  # noqa: S603 - our own words
            command, cwd=ROOT, env=child_environment(), check=True, stdout=subprocess.PIPE
        )
        found: Result = json.loads(said.stdout)
        return found

    with tempfile.TemporaryDirectory(prefix="vidgen-bench-") as folder:
        clip = Path(folder) / "clip.mp4"
        clip.write_bytes(plain_clip((width, height), seconds))
        return {
            "width": width, "height": height, "seconds": seconds,
            "as_it_is": asked((width, height)), "conformed": asked((width // 2, height // 2)),
        }  # fmt: skip


def _told(child: "subprocess.Popen[bytes]", job: bytes) -> tuple[bytes, bytes]:
    assert child.stdin is not None  # noqa: S101 - a pipe, as asked for
    assert child.stdout is not None  # noqa: S101 - as above
    child.stdin.write(job)
    child.stdin.flush()
    return child.stdout.readline(), child.stdout.readline()


def main() -> int:
    """Look at one clip, and say what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("width", type=int)
    parser.add_argument("height", type=int)
    given = parser.parse_args()
    job = {
        "kind": "video", "path": str(given.clip), "target": f"{given.clip}.conformed.mp4",
        "width": given.width, "height": given.height, "max_bytes": LARGEST,
    }  # fmt: skip
    began = time.monotonic()
    command = [sys.executable, "-P", str(CHILD), str(LARGEST)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:  # noqa: S603 - our own words
        # The end of what it is told would be the end of it, so that waits for the answer.
        _ready, answer = _told(child, json.dumps(job).encode() + b"\n")
    taken = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {
        "conformed": json.loads(answer)["found"]["conformed"],
        "mb": round(used.ru_maxrss * 1024 / 1e6, 1),  # kilobytes, by getrusage(2)
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "seconds": round(taken, 2),
    }
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
