"""Bars over time, drawn here as SVG: no script, and its colours come from the style sheet.

pygal draws. Of its drawing only shapes and texts are kept: its style and script elements would need
exceptions in the Content-Security-Policy, and its colours do not adapt to a dark page. It knows
nothing of tasks.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from xml.etree import ElementTree as ET

import pygal
from markupsafe import Markup

from vidgen_worker.dashboard.shown import number

# pygal leaves an importer of plugins behind: Python 3.12 and newer never ask it, and 3.11 warns
# of it at every later import, whoever makes it.
sys.meta_path[:] = [one for one in sys.meta_path if not isinstance(one, pygal.PluginImportFixer)]

WIDE, HALF, NARROW = (1120, 200), (540, 180), (340, 170)
"""Width and height in pixels: for a desk, half of it, and a telephone. The page shows one."""
LABEL_WIDTH = 85
"""Pixels that a label of an hour or a day takes, with the room around it."""
_KEPT_TAGS = ("g", "path", "rect", "text", "desc")
_DROPPED = {"titles", "plot overlay", "plot text-overlay", "plot tooltip-overlay", "background"}


@dataclass(frozen=True, slots=True)
class Series:
    """One kind of bar: its name, its colour's class in the style sheet, a value per label."""

    name: str
    tone: str
    values: tuple[float, ...]


@lru_cache(maxsize=64)
def bars(
    title: str, labels: tuple[str, ...], series: tuple[Series, ...], *, half: bool = False
) -> Markup:
    """Return stacked bars in two sizes. `title` is what a screen reader says of them.

    To draw takes longer than to read: the same numbers are drawn once.
    """
    # The texts are escaped by the serializer: what comes out is markup as a whole.
    return Markup("").join(
        Markup(_drawn(title, labels, series, size, kind))  # noqa: S704
        for size, kind in ((HALF if half else WIDE, "wide"), (NARROW, "narrow"))
    )


def _drawn(
    title: str,
    labels: Sequence[str],
    series: Sequence[Series],
    size: tuple[int, int],
    kind: str,
) -> str:
    totals = [sum(column) for column in zip(*(one.values for one in series), strict=True)]
    chart = pygal.StackedBar(
        width=size[0], height=size[1], js=[], css=[], show_legend=False, margin=2, spacing=6,
        x_labels_major_every=max(1, len(labels) * LABEL_WIDTH // size[0]), truncate_label=-1,
        show_minor_x_labels=False, value_formatter=_axis, max_scale=5, min_scale=2,
        range=(0, max(1.0, *totals)),  # of an empty chart as well
    )  # fmt: skip
    chart.x_labels = list(labels)
    for one in series:
        chart.add(one.name, [float(value) for value in one.values])
    root = chart.render_tree()
    _clean(root)
    for one, group in zip(series, _series(root), strict=True):
        group.set("class", f"series {one.tone}")
        _name_bars(group, one, labels)
    root.attrib.pop("id", None)
    root.set("class", f"chart {kind}")
    root.set("role", "img")
    root.set("aria-label", title)
    return ET.tostring(root, encoding="unicode")


def _clean(element: ET.Element) -> None:
    element.attrib.pop("style", None)
    for part in list(element):
        # The tag of a comment is no text.
        if part.tag in _KEPT_TAGS and part.get("class") not in _DROPPED:
            _clean(part)
        else:
            element.remove(part)


def _series(root: ET.Element) -> list[ET.Element]:
    return [part for part in root.iter("g") if (part.get("class") or "").startswith("series ")]


def _name_bars(group: ET.Element, series: Series, labels: Sequence[str]) -> None:
    """Give each bar a title, shown when a pointer is over it."""
    drawn = [part for part in group.iter("g") if part.get("class") == "bar"]
    for bar, label, value in zip(drawn, labels, series.values, strict=True):
        for part in bar.findall("desc"):
            bar.remove(part)
        ET.SubElement(bar, "title").text = f"{label}: {number(value)} {series.name}"


def _axis(value: float) -> str:
    """A number at the axis: short."""
    if value >= 10_000:  # noqa: PLR2004
        return f"{value / 1000:,.0f}k"
    return f"{value:g}"
