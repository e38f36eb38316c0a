"""How alike two films look to a person: an estimate of VMAF, which the wheel does not have.

VMAF (Netflix, model 0.6.1) is a regression over what a viewer misses in each frame: detail that is
gone (ADM), information that is left (VIF), and how much moves. The three are computed here by
Pillow: ADM whole, VIF at an eighth of the size only. The weights are fitted by
`bench/calibration.py`; docs/benchmark.md says how well. No frame is kept.
"""

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageChops, ImageFilter, ImageMath, ImageStat

LEVELS = 4
"""Of ADM, each of half the size of the one before."""
WAVELET = (0.482962913145, 0.836516303738, 0.224143868042, -0.129409522551)
"""Daubechies' of four taps."""
AMPLITUDES = ((0.62171, 0.72709), (0.34537, 0.49428), (0.18004, 0.28688), (0.091401, 0.15214))
"""Of a wavelet's step at each level, straight and diagonal (Watson et al. 1997, table 5)."""
LINES = 3 * 1080 * math.pi / 180
"""Lines of a degree of sight, at three heights of a 1080p picture: where VMAF's viewers sat."""
SAME_WAY = math.cos(math.radians(1)) ** 2
"""Two edges that differ by less in their direction are one edge, stronger or weaker."""
FLOOR = 1 / 32
"""What each pixel adds to both sums, so that an empty picture is not divided by zero."""
NOISE = 2.0
"""Variance of the eye's own noise (VIF's sigma_nsq)."""
TAPS = (0.166378, 0.667244, 0.166378)
"""A Gaussian window of three pixels."""
SOFT = (0.0306, 0.2361, 0.4666, 0.2361, 0.0306)
"""At a quarter of the size: with the mean of 16 pixels, what libvmaf's windows blur up to there."""
BLUR = ImageFilter.Kernel((3, 3), [a * b for a in (1, 8.6, 1) for b in (1, 8.6, 1)])
"""At half the size: with the mean of four pixels, what libvmaf blurs before it looks at motion."""
SMALLEST = 64
"""Pixels: a film with a shorter side has no level that small."""
LEAST_LOST = 0.2
"""VMAF."""
MOST_MOTION = 16.0
"""Brightness: between two scenes everything changes."""
Bands = tuple[Image.Image, Image.Image, Image.Image]
"""Differences of rows, of columns, and diagonal ones."""


@dataclass(frozen=True, slots=True)
class Features:
    """What is measured of a frame: detail and information that is left, 0 to 1, and its motion.

    Motion is the mean change of brightness to the neighbour that is more alike, 0 to 255.
    """

    detail: float
    information: float
    motion: float


WEIGHTS = Features(226.7, 118.3, 1.304)
CONSTANT = -248.1


@dataclass(frozen=True, slots=True)
class Estimate:
    """The VMAF of a film, 0 to 100: that of the original itself (`whole`) less what is `lost`.

    Neither of the two is cut off at 100.
    """

    whole: float
    lost: float

    @property
    def vmaf(self) -> float:
        """As libvmaf would say it."""
        return min(100.0, max(0.0, self.whole - self.lost))

    def to_lose(self, vmaf: float) -> float:
        """Return what may be lost for a VMAF: more than nothing, whatever is asked for."""
        return max(LEAST_LOST, self.whole - vmaf)


def estimated(frames: Sequence[Features]) -> Estimate:
    """Estimate the VMAF of a film by samples of its frames."""
    detail, information, motion = (
        math.fsum(getattr(frame, name) for frame in frames) / len(frames)
        for name in ("detail", "information", "motion")
    )
    lost = WEIGHTS.detail * (1 - detail) + WEIGHTS.information * (1 - information)
    whole = WEIGHTS.detail + WEIGHTS.information + WEIGHTS.motion * motion + CONSTANT
    return Estimate(whole, max(LEAST_LOST, lost))


def features(
    original: Image.Image, made: Image.Image, neighbours: Sequence[Image.Image]
) -> Features:
    """Measure one frame; `neighbours` are those of the original. All are planes of brightness."""
    one, other = original.convert("F"), made.convert("F")
    information = _information(_eighth(one), _eighth(other))
    kept = whole = 0.0
    for level in range(LEVELS):
        one, bands = _bands(one)
        other, bands_made = _bands(other)
        left, all_ = _detail(bands, bands_made, level)
        kept, whole = kept + left, whole + all_
    return Features(kept / whole, information, _motion(original, neighbours))


def _motion(frame: Image.Image, neighbours: Sequence[Image.Image]) -> float:
    small = frame.reduce(2).filter(BLUR)
    changes = (
        ImageStat.Stat(ImageChops.difference(small, one.reduce(2).filter(BLUR))).mean[0]
        for one in neighbours
    )
    return min(min(changes, default=0.0), MOST_MOTION)


def _of(what: Any, **pictures: Image.Image) -> Image.Image:  # noqa: ANN401 - Pillow's own type is private
    made = ImageMath.lambda_eval(what, **pictures)
    assert isinstance(made, Image.Image)  # noqa: S101 - pictures in, a picture out
    return made


def _mean(picture: Image.Image) -> float:
    mean = picture.reduce(picture.size).getpixel((0, 0))
    assert isinstance(mean, float)  # noqa: S101 - of one channel
    return mean


# Detail: ADM


def _split(picture: Image.Image, *, rows: bool) -> tuple[Image.Image, Image.Image]:
    """Take one step of the wavelets along one axis: what is coarse, and what is fine."""
    wide, high = picture.size
    size = (wide, high // 2 - 1) if rows else (wide // 2 - 1, high)
    step = (1, 0, 0, 0, 2) if rows else (2, 0)
    taps = {}
    for number, name in enumerate("abcd"):
        # The middle of the wanted pixel: transform() asks for the one at twice the place, and half.
        way = (*step, number - 1) if rows else (*step, number - 1, 0, 1, 0)
        taps[name] = picture.transform(
            size, Image.Transform.AFFINE, way, Image.Resampling.NEAREST
        )  # fmt: skip
    one, two, three, four = WAVELET
    return (
        _of(lambda p: p["a"] * one + p["b"] * two + p["c"] * three + p["d"] * four, **taps),
        _of(lambda p: p["a"] * four - p["b"] * three + p["c"] * two - p["d"] * one, **taps),
    )


def _bands(picture: Image.Image) -> tuple[Image.Image, Bands]:
    """Take one step of the wavelets: the picture at half the size, and what is gone from it."""
    coarse, fine = _split(picture, rows=True)
    half, columns = _split(coarse, rows=False)
    rows, diagonal = _split(fine, rows=False)
    return half, (rows, columns, diagonal)


def _detail(original: Bands, made: Bands, level: int) -> tuple[float, float]:
    """Return how much detail is left of one level, and how much there was."""
    weights = [_visible(level, diagonal=band == 2) for band in range(3)]  # noqa: PLR2004
    left = _restored(original, made)
    masked = _masking(left, made, weights)
    kept = whole = 0.0
    for band, weight in enumerate(weights):
        seen = _of(
            lambda p, w=weight: p["max"](abs(p["left"]) * w - p["masked"], 0.0),
            left=_inner(left[band]), masked=masked,
        )  # fmt: skip
        there = _of(lambda p, w=weight: abs(p["all"]) * w, all=_inner(original[band]))
        area = seen.width * seen.height
        kept += _strength(seen, area)
        whole += _strength(there, area)
    return kept, whole


def _visible(level: int, *, diagonal: bool) -> float:
    """Return the weight of a band: one over the smallest step that is seen (Watson et al. 1997)."""
    gain = 0.534 if diagonal else 1.0
    off = math.log10(2 ** (level + 1) * 0.401 * gain / LINES)
    step = 2 * 0.495 * 10 ** (0.466 * off * off) / AMPLITUDES[level][diagonal]
    return float(1 / step)


def _restored(original: Bands, made: Bands) -> list[Image.Image]:
    """Return what of a frame's bands is the original's; the rest was added."""
    ways = {"a": original[0], "b": original[1], "c": made[0], "d": made[1]}
    both = _of(lambda p: p["a"] * p["c"] + p["b"] * p["d"], **ways)
    most = _of(
        lambda p: (p["a"] * p["a"] + p["b"] * p["b"]) * (p["c"] * p["c"] + p["d"] * p["d"]), **ways
    )
    same = _of(lambda p: (p["s"] >= 0.0) * (p["s"] * p["s"] >= p["m"] * SAME_WAY), s=both, m=most)
    share = same.convert("F")
    return [
        _of(
            lambda p: p["share"] * p["made"] + (1.0 - p["share"]) * p["max"](
                p["min"](p["made"], p["max"](p["all"], 0.0)), p["min"](p["all"], 0.0)
            ),
            share=share, made=other, all=one,
        )
        for one, other in zip(original, made, strict=True)
    ]  # fmt: skip


def _masking(left: Sequence[Image.Image], made: Bands, weights: Sequence[float]) -> Image.Image:
    """Return how much of each pixel's detail is hidden by what was added around it."""
    added = [
        _of(lambda p, w=weight: abs(p["made"] - p["left"]) * (w / 30), made=one, left=other)
        for one, other, weight in zip(made, left, weights, strict=True)
    ]
    around = _of(lambda p: p["a"] + p["b"] + p["c"], a=added[0], b=added[1], c=added[2])
    centre = _inner(around)
    return _of(
        lambda p: p["around"] + p["centre"], around=_window(around, (1, 1, 1)), centre=centre
    )


def _strength(band: Image.Image, area: int) -> float:
    cubes = _mean(_of(lambda p: p["x"] * p["x"] * p["x"], x=band)) * area
    return float(max(0.0, cubes) ** (1 / 3) + (FLOOR * area) ** (1 / 3))


def _inner(picture: Image.Image) -> Image.Image:
    return picture.crop((1, 1, picture.width - 1, picture.height - 1))


def _window(picture: Image.Image, taps: tuple[float, ...]) -> Image.Image:
    """Weigh each pixel's neighbours in both directions; nothing is made up beyond the edges."""
    lost = len(taps) - 1
    width, height = picture.width - lost, picture.height - lost
    across = (picture.crop((n, 0, n + width, picture.height)) for n in range(len(taps)))
    row = _weighed(across, taps)
    return _weighed((row.crop((0, n, width, n + height)) for n in range(len(taps))), taps)


def _weighed(pictures: Iterable[Image.Image], taps: tuple[float, ...]) -> Image.Image:
    made: Image.Image | None = None
    for picture, tap in zip(pictures, taps, strict=True):
        if made is None:
            made = _of(lambda p, t=tap: p["a"] * t, a=picture)
        else:
            made = _of(lambda p, t=tap: p["sum"] + p["a"] * t, sum=made, a=picture)
    assert made is not None  # noqa: S101 - there are taps
    return made


# Information: VIF


def _information(one: Image.Image, other: Image.Image) -> float:
    """Return how much of a picture's information is left in another one, 0 to 1."""
    mean, mean_made = _window(one, TAPS), _window(other, TAPS)
    variance = _spread(one, one, mean, mean)
    variance_made = _spread(other, other, mean_made, mean_made)
    both = _spread(one, other, mean, mean_made)
    gain = _of(
        lambda p: p["max"](p["both"], 0.0) / (p["max"](p["all"], 0.0) + 1e-6),
        both=both, all=variance,
    )  # fmt: skip
    left = _of(
        lambda p: 1.0 + p["gain"] * p["gain"] * p["max"](p["all"], 0.0) / (
            p["max"](p["made"] - p["gain"] * p["both"], 0.0) + NOISE
        ),
        gain=gain, all=variance, made=variance_made, both=both,
    )  # fmt: skip
    there = _of(lambda p: 1.0 + p["max"](p["all"], 0.0) / NOISE, all=variance)
    # As in libvmaf, a place with less than the eye's own noise counts as one that is seen whole.
    flat = _of(lambda p: p["float"](p["all"] < NOISE), all=variance)
    left, there = (
        _of(lambda p: p["flat"] * 2.0 + (1.0 - p["flat"]) * p["bits"], flat=flat, bits=bits)
        for bits in (left, there)
    )
    kept, whole = (sum(map(math.log2, array("f", p.tobytes()))) for p in (left, there))
    return (kept + FLOOR) / (whole + FLOOR)


def _eighth(picture: Image.Image) -> Image.Image:
    soft = _window(picture.reduce(4), SOFT)
    size = (soft.width // 2, soft.height // 2)
    return soft.transform(
        size, Image.Transform.AFFINE, (2, 0, -1, 0, 2, -1), Image.Resampling.NEAREST
    )


def _spread(
    one: Image.Image, other: Image.Image, mean: Image.Image, mean_other: Image.Image
) -> Image.Image:
    product = _window(_of(lambda p: p["a"] * p["b"], a=one, b=other), TAPS)
    return _of(lambda p: p["c"] - p["a"] * p["b"], a=mean, b=mean_other, c=product)
