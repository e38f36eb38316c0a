"""The way from the start of the process to the line that pays: short, and written down."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support.frames import HAND_OFF
from tests.support.world import World

ROOT = Path(__file__).parents[2]
MOST_FRAMES, MOST_HAND_OFFS = 10, 4  # the event loop's own start is one of the hand-offs


def test_the_way_to_the_paid_line_is_short_and_written_down(world: World) -> None:
    user = world.user()
    world.order(user, world.scene(user))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VIDGEN_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.frames"],
        env=environment | world.env() | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    way = [line for line in done.stdout.splitlines() if re.fullmatch(r"[\w.<>]+|\|", line)]
    frames = [line for line in way if line != HAND_OFF]
    assert frames, done.stdout + done.stderr
    assert len(frames) <= MOST_FRAMES, way
    assert way.count(HAND_OFF) <= MOST_HAND_OFFS, way
    text = (ROOT / "docs" / "architecture.md").read_text()
    written = re.findall(r"^\d+\. `([\w.]+)`", text, re.MULTILINE)
    assert written == frames
