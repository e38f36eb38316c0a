"""The weights of the estimated VMAF: `python -m bench.calibration`, some half an hour.

Encodes the clips that are to be fitted on at several rate factors with both encoders, asks libvmaf
and `likeness` about each, and prints the weights of least squares; then how far the estimate by the
weights that stand in `likeness.py` is from libvmaf, on both halves of the clips.
"""

import argparse
import math
import sys
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

import av

from bench import tools
from bench.clips import FITTED, TESTED, Clip, write
from bench.films import WITHIN, encoded
from vidgen_worker.films.render.likeness import Features, estimated
from vidgen_worker.films.render.quality import EVERY, looked_at

RATE_FACTORS = {"mp4": (16, 20, 24, 28, 32), "av1": (20, 30, 38, 46, 54, 61)}
LEAST, MOST = 84.0, 97.0
"""The VMAF between which the estimate is meant to hold: about the three targets."""


@dataclass(frozen=True, slots=True)
class Point:
    """One encode: its mean features, and what libvmaf says."""

    name: str
    features: Features
    vmaf: float


def points(clips: tuple[Clip, ...], folder: Path) -> list[Point]:
    """Encode and measure clips at all rate factors; those far from every target are left out."""
    found = []
    for clip in clips:
        original = write(clip, tools.films(), folder)
        for form, rate_factors in RATE_FACTORS.items():
            for crf in rate_factors:
                made = encoded(clip, form, crf, folder)
                vmaf = tools.vmaf(made, original)
                if LEAST <= vmaf <= MOST:
                    name = f"{clip.name} {form} {crf}"
                    found.append(Point(name, _mean(_looks(original, made)), vmaf))
                made.unlink()
    return found


def _looks(original: Path, made: Path) -> list[Features]:
    found: list[Features] = []
    with av.open(str(original)) as one, av.open(str(made)) as other:
        for _ in looked_at(one.decode(video=0), other.decode(video=0), EVERY, found):
            pass
    return found


def _mean(found: list[Features]) -> Features:
    detail, information, motion = (
        math.fsum(column) / len(found) for column in zip(*map(astuple, found), strict=True)
    )
    return Features(detail, information, motion)


def fitted(found: list[Point]) -> list[float]:
    """Return the weights of detail, information and motion, and the constant, of least squares."""
    rows = [(*astuple(point.features), 1.0) for point in found]
    size = range(4)
    matrix = [
        [math.fsum(row[i] * row[j] for row in rows) for j in size]
        + [math.fsum(row[i] * point.vmaf for row, point in zip(rows, found, strict=True))]
        for i in size
    ]
    for i in size:  # Gauss and Jordan; the sums of squares on the diagonal are never zero
        matrix[i] = [value / matrix[i][i] for value in matrix[i]]
        for j in size:
            if j != i:
                share = matrix[j][i]
                matrix[j] = [a - share * b for a, b in zip(matrix[j], matrix[i], strict=True)]
    return [row[4] for row in matrix]


def told(name: str, found: list[Point]) -> str:
    """Say how far the estimate is from libvmaf."""
    off = {point.name: estimated([point.features]).vmaf - point.vmaf for point in found}
    spread = math.sqrt(math.fsum(value * value for value in off.values()) / len(off))
    near = sum(abs(value) <= WITHIN for value in off.values())
    worst = max(off, key=lambda name: abs(off[name]))
    return (
        f"{name}: {near} of {len(off)} within {WITHIN}, {spread:.2f} in the mean (squares),"
        f" at most {off[worst]:+.1f} ({worst})\n"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=len(FITTED), help="of each half")
    given = parser.parse_args()
    tools.install()
    with tempfile.TemporaryDirectory(prefix="vidgen-bench-") as folder:
        fit, test = (points(clips[: given.clips], Path(folder)) for clips in (FITTED, TESTED))
    *weights, constant = fitted(fit)
    shown = ", ".join(f"{weight:.4g}" for weight in weights)
    sys.stdout.write(f"WEIGHTS = Features({shown})\nCONSTANT = {constant:.1f}\n")
    sys.stdout.write(told("fitted on", fit) + told("tested with", test))


if __name__ == "__main__":
    main()
