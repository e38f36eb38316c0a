"""What films need of this machine, as `check` sees it: the extra, FriBidi, and fonts.

It reads only, and draws nothing. The packages of the extra are imported where they are used.
"""

from collections.abc import Iterator

from vidgen_worker.cli.finding import Finding, State
from vidgen_worker.config import Settings, can_render

EXTRA = "Install it: pip install 'vidgen-worker[films]'"
FRIBIDI = "Install it: apt-get install libfribidi0"
FONTS = (
    "Install more (Debian: fonts-noto-core, and fonts-noto-cjk for Chinese, Japanese and Korean), "
    "or name their folders in VIDGEN_FONTS."
)


def check_films(settings: Settings) -> Iterator[Finding]:
    """Say whether films are cut here, and in which scripts captions can be written."""
    if not can_render():
        said = "none is cut here: the extra is not installed"
        yield Finding("Render", State.NOTE, said, EXTRA)
        return
    if not settings.renders:
        yield Finding("Render", State.NOTE, "no film is cut here: VIDGEN_RENDERS is 0")
        return
    yield Finding("Render", State.OK, f"{settings.renders} film(s) at once")
    yield _letters()
    yield _fonts(settings)


def _letters() -> Finding:
    """Look at what shapes letters and orders them from right to left."""
    from PIL import features  # noqa: PLC0415 - the extra's

    from vidgen_worker.films.fonts import shapes_letters  # noqa: PLC0415 - likewise

    if shapes_letters():
        return Finding("Captions", State.OK, f"FriBidi {features.version('fribidi')}")
    said = "FriBidi is not installed: films with captions wait for a machine that has it"
    return Finding("Captions", State.NOTE, said, FRIBIDI)


def _fonts(settings: Settings) -> Finding:
    """Look for a font for each script."""
    from vidgen_worker.films.fonts import Fonts  # noqa: PLC0415 - the extra's

    fonts = Fonts(settings.fonts)
    where = settings.vidgen_fonts or "the system's folders"
    covered = fonts.scripts()
    has, lacks = (
        ", ".join(name for name, found in covered.items() if found is wanted)
        for wanted in (True, False)
    )
    said = f"{len(fonts.files)} file(s) in {where} cover {has or 'no script'}"
    if not lacks:
        return Finding("Fonts", State.OK, said)
    said = f"{said}; captions in {lacks} are refused" if has else f"{said}: captions are refused"
    return Finding("Fonts", State.NOTE, said, FONTS)
