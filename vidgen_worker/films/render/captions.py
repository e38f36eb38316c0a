"""Captions laid out for one output and drawn: wrapped, within safe margins, in any script.

HarfBuzz shapes the letters and FriBidi orders them (through Pillow's Raqm). A text whose runs need
several fonts is ordered here, run by run. Which font draws what was chosen before.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from operator import itemgetter

from PIL import Image, ImageDraw, ImageFont, features

from vidgen_worker.films.job import Cue, Job

WIDTH, MARGIN = 0.86, 0.10
"""The widest line, and the distance from the upper and lower edge: shares of width and height."""
HIGHEST = 0.45
"""The highest a caption gets, before its letters become smaller."""
SIZES = {"s": 0.045, "m": 0.06, "l": 0.08}
"""Size of the letters as a share of the shorter side."""
SMALLEST = 8
"""Pixels: letters get no smaller."""
LINE, TALL = 1.3, 0.9
"""Distance of two lines: by the size of the letters, and at least by their fonts' own height."""
WHITE, BLACK, SHADE = (255, 255, 255, 255), (0, 0, 0, 255), (0, 0, 0, 170)
RIGHT_TO_LEFT = frozenset({"R", "AL"})
# Characters that may not begin a line in Chinese and Japanese, or not end one.
CLOSING = frozenset(
    "、。，．・：；？！）］｝」』】〉》〕ー々ぁぃぅぇぉっゃゅょァィゥェォッャュョ,.!?:;)]}”’"  # noqa: RUF001
)
OPENING = frozenset("（［｛「『【〈《〔([{“‘")  # noqa: RUF001 - these are meant

Letters = tuple[tuple[str, str], ...]
"""Characters, each with the file of its font."""
Run = tuple[str, str]


class NoShapingError(Exception):
    """This machine lacks a library without which some scripts come out wrong."""


def drawn(cue: Cue, job: Job) -> tuple[Image.Image, int, int]:
    """Return a caption as an RGBA picture of even size, and where it lies: x, y, both even."""
    if not features.check("raqm") or not features.check("fribidi"):
        raise NoShapingError("letters can't be shaped: FriBidi is missing. Install libfribidi0")
    size = round(min(job.width, job.height) * SIZES[job.letters])
    letters = tuple((letter, font) for text, font in cue.runs for letter in text)
    most = (round(job.width * WIDTH), round(job.height * HIGHEST))
    while True:
        size = max(size, SMALLEST)
        lines = _balanced(letters, size, most[0])
        step = round(max(size * LINE, _height(letters, size) * TALL))
        if size == SMALLEST or (len(lines) * step <= most[1] and _fits(lines, size, most[0])):
            break
        size = round(size * 0.92)
    picture = _picture(lines, size, step, job.look)
    x = (job.width - picture.width) // 2
    return picture, max(0, x) // 2 * 2, max(0, _top(job, picture.height)) // 2 * 2


def _top(job: Job, height: int) -> int:
    margin = round(job.height * MARGIN)
    places = {"top": margin, "middle": (job.height - height) // 2}
    return places.get(job.place, job.height - margin - height)


def _fits(lines: Sequence[Letters], size: int, width: int) -> bool:
    return all(_width(line, size) <= width for line in lines)


# Lines


def _balanced(letters: Letters, size: int, most: int) -> list[Letters]:
    """Wrap a text into as few lines as its width needs, and make these about equally long."""
    lines = _wrapped(letters, size, most)
    narrow, wide = most // 3, most
    while wide - narrow > size:
        middle = (narrow + wide) // 2
        tried = _wrapped(letters, size, middle)
        if len(tried) == len(lines) and _fits(tried, size, middle):
            wide = middle
        else:
            narrow = middle
    return _wrapped(letters, size, wide)


def _wrapped(letters: Letters, size: int, most: int) -> list[Letters]:
    lines: list[Letters] = []
    for paragraph in _paragraphs(letters):
        line: Letters = ()
        for piece in _pieces(paragraph):
            if line and _width(_stripped(line + piece), size) > most:
                lines.append(_stripped(line))
                line = ()
            line += piece
        if _stripped(line):
            lines.append(_stripped(line))
    return lines


def _paragraphs(letters: Letters) -> Iterator[Letters]:
    start = 0
    for number, (letter, _) in enumerate(letters):
        if letter == "\n":
            yield letters[start:number]
            start = number + 1
    yield letters[start:]


def _pieces(letters: Letters) -> Iterator[Letters]:
    """Yield what stays on one line: words with the spaces after them, single ideographs."""
    start = 0
    for number in range(1, len(letters)):
        before, after = letters[number - 1][0], letters[number][0]
        if _may_break(before, after):
            yield letters[start:number]
            start = number
    yield letters[start:]


def _may_break(before: str, after: str) -> bool:
    if after.isspace() or after in CLOSING or before in OPENING:
        return False
    if before.isspace() and before != "\N{NO-BREAK SPACE}":
        return True
    wide = unicodedata.east_asian_width
    if unicodedata.category(after) in ("Mn", "Mc", "Me", "Cf", "Sk"):
        return False
    return wide(before) in ("W", "F") or wide(after) in ("W", "F")


def _stripped(line: Letters) -> Letters:
    start, end = 0, len(line)
    while start < end and line[start][0].isspace():
        start += 1
    while end > start and line[end - 1][0].isspace():
        end -= 1
    return line[start:end]


# Runs


def _runs(line: Letters) -> list[Run]:
    """Return the runs of a line from left to right, one for each font and direction."""
    runs: list[Run] = []
    for letter, font in line:
        if runs and runs[-1][1] == font:
            runs[-1] = (runs[-1][0] + letter, font)
        else:
            runs.append((letter, font))
    # As rule L2 of UAX 9 orders them: neighbours that both read against the line are turned
    # round, and all of a right-to-left line is.
    against = [_way(text) == "rtl" for text, _ in runs]
    ordered = [
        run
        for backward, group in groupby(zip(against, runs, strict=True), key=itemgetter(0))
        for _, run in (reversed(list(group)) if backward else group)
    ]
    if _direction(line) == "rtl":
        flipped = groupby(reversed(list(zip(against, runs, strict=True))), key=itemgetter(0))
        ordered = [
            run
            for backward, group in flipped
            for _, run in (group if backward else reversed(list(group)))
        ]
    return ordered


def _way(text: str) -> str:
    return _direction([(letter, "") for letter in text])


def _direction(letters: Sequence[tuple[str, str]]) -> str:
    """Return the direction of a text: that of its first letter that has one."""
    for letter, _ in letters:
        kind = unicodedata.bidirectional(letter)
        if kind in RIGHT_TO_LEFT:
            return "rtl"
        if kind == "L":
            return "ltr"
    return "ltr"


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.RAQM)


def _width(line: Letters, size: int) -> float:
    way = _direction(line)
    return sum(
        (float(_font(font, size).getlength(text, direction=way)) for text, font in _runs(line)),
        start=0.0,
    )


def _height(letters: Letters, size: int) -> int:
    fonts = {font for _, font in letters}
    return max(_ascent(fonts, size) + _font(font, size).getmetrics()[1] for font in fonts)


def _ascent(fonts: set[str], size: int) -> int:
    return max(_font(font, size).getmetrics()[0] for font in fonts)


# Pictures


def _picture(lines: Sequence[Letters], size: int, step: int, look: str) -> Image.Image:
    stroke = max(1, round(size / 14)) if look == "outline" else 0
    edge = max(2, round(size * 0.35)) if look == "box" else stroke + max(2, size // 10)
    widths = [_width(line, size) for line in lines]
    wide = round(max(widths)) + 2 * edge
    high = step * len(lines) + 2 * edge
    picture = Image.new("RGBA", (wide + wide % 2, high + high % 2), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    if look == "box":
        pen.rounded_rectangle(
            (0, 0, picture.width - 1, picture.height - 1), round(size * 0.25), fill=SHADE
        )
    top = edge + _ascent({font for line in lines for _, font in line}, size)
    placed = [
        ((picture.width - width) / 2, top + number * step, line)
        for number, (line, width) in enumerate(zip(lines, widths, strict=True))
    ]
    off = max(1, size // 20)
    for x, y, line in placed:
        if look == "plain":
            _write(pen, (x + off, y + off), line, size, SHADE, 0)
        elif stroke:
            _write(pen, (x, y), line, size, BLACK, stroke)
    for x, y, line in placed:
        _write(pen, (x, y), line, size, WHITE, 0)
    return picture


def _write(  # noqa: PLR0913, PLR0917 - one line of text
    pen: ImageDraw.ImageDraw, at: tuple[float, float], line: Letters, size: int,
    colour: tuple[int, int, int, int], stroke: int,
) -> None:  # fmt: skip
    x, y = at
    way = _direction(line)
    for text, file in _runs(line):
        font = _font(file, size)
        pen.text(
            (x, y), text, colour, font, "ls", direction=way, stroke_width=stroke, stroke_fill=colour
        )
        x += font.getlength(text, direction=way)
