"""From the JSON of a cut to its value and back: the one place that knows the keys.

Every refusal is a `CutError` with the pointer of the offender. What needs the clips (times within
a part, fonts) is refused by `timeline.py` and `plan.py`. Nothing here does I/O.
"""

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

from vidgen_worker.films.cut import (
    LONGEST_FILM,
    LONGEST_TEXT,
    MOST_BYTES,
    MOST_CAPTIONS,
    MOST_OUTPUTS,
    MOST_PARTS,
    MOST_PARTS_OF_A_BATCH,
    MOST_VOICES,
    Caption,
    CaptionStyle,
    Corner,
    Cut,
    CutError,
    EndCard,
    Fit,
    LetterSize,
    Logo,
    Look,
    Music,
    OnFailure,
    Output,
    Part,
    Place,
    Sound,
    Target,
    Voice,
)  # fmt: skip
from vidgen_worker.films.presets import FORMATS, PRESETS, Kind, files_of
from vidgen_worker.films.values import At

LONGEST_NAME = 40
"""Characters of an output's name, which is part of its object's path."""
LONGEST_PATH = 300


def read(value: object) -> Cut:
    """Make a cut from what its JSON says. Raises CutError."""
    try:
        size = len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    except (RecursionError, TypeError, ValueError) as error:
        raise CutError(
            "", "it can't be written as JSON", "Send an object of plain values"
        ) from error
    if size > MOST_BYTES:
        raise CutError("", f"{size} bytes are more than {MOST_BYTES}", "Order several films")
    at = At("", value).object(
        "parts", "scenario", "captions", "caption_style", "sound", "logo", "end", "outputs",
        "on_failure",
    )  # fmt: skip
    outputs = _outputs(at)
    cut = Cut(
        parts=_parts(at, with_outputs=bool(outputs)),
        scenario=at["scenario"].row_id() if "scenario" in at else None,
        captions=tuple(_caption(one) for one in at["captions"].list(MOST_CAPTIONS)),
        style=_style(at["caption_style"]),
        sound=_sound(at["sound"]) if "sound" in at else None,
        logo=_logo(at["logo"]) if "logo" in at else None,
        end=_end(at["end"]) if "end" in at else None,
        outputs=outputs,
        on_failure=at["on_failure"].one_of(OnFailure, OnFailure.FAIL),
    )
    texts = len(cut.captions) + sum(part.caption is not None for part in cut.parts)
    if texts > MOST_CAPTIONS:
        raise CutError("/captions", f"{texts} captions are too many, those of parts counted",
                       f"Keep {MOST_CAPTIONS}")  # fmt: skip
    return cut


def _parts(at: At, *, with_outputs: bool) -> tuple[Part, ...]:
    if ("parts" in at) == ("scenario" in at):
        raise CutError("/parts", "a film needs either parts or a scenario",
                       'Name parts, as [{"scene": "…"}], or a scenario')  # fmt: skip
    if "parts" not in at:
        return ()
    most = MOST_PARTS if with_outputs else MOST_PARTS_OF_A_BATCH
    parts = tuple(_part(one) for one in at["parts"].list(most))
    if not parts:
        raise CutError("/parts", "there is no part", "Name one scene or task at least")
    return parts


def _part(at: At) -> Part:
    at.object("scene", "task", "from", "to", "transition", "caption")
    if ("scene" in at) == ("task" in at):
        raise at.wrong("a part is either a scene or a task", 'Name one, as {"scene": "…"}')
    start, end = at["from"].seconds(0.0), at["to"].seconds() if "to" in at else None
    if end is not None and end <= start:
        raise at["to"].wrong(f"it ends at {end:g} s, before it begins at {start:g} s",
                             "Let it end later")  # fmt: skip
    return Part(
        scene=at["scene"].uuid() if "scene" in at else None,
        task=at["task"].uuid() if "task" in at else None,
        start=start, end=end,
        fade=_fade(at["transition"]) if "transition" in at else 0.0,
        caption=_text(at["caption"]) if "caption" in at else None,
    )  # fmt: skip


def _fade(at: At) -> float:
    at.object("kind", "seconds")
    if at["kind"].text() != "fade":
        raise at["kind"].wrong("there is no such transition", 'The one there is is "fade"')
    seconds = at["seconds"].seconds(0.5)
    if seconds == 0:
        raise at["seconds"].wrong("a fade takes time", "Leave the transition out for a plain cut")
    return seconds


def _caption(at: At) -> Caption:
    at.object("from", "to", "text")
    start, end = at["from"].seconds(), at["to"].seconds()
    if end <= start:
        raise at["to"].wrong(f"it ends at {end:g} s, before it begins at {start:g} s",
                             "Let it end later")  # fmt: skip
    return Caption(start, end, _text(at["text"]))


def _text(at: At) -> str:
    text = at.text()
    if len(text) > LONGEST_TEXT:
        raise at.wrong(f"{len(text)} characters are more than {LONGEST_TEXT}", "Say less")
    if not text.strip():
        raise at.wrong("there is nothing to read", "Leave the caption out")
    for letter in text:
        if unicodedata.category(letter) in ("Cc", "Cs", "Cn", "Co") and letter != "\n":
            raise at.wrong(f"U+{ord(letter):04X} can't be written", "Take it out")
    return text


def _style(at: At) -> CaptionStyle:
    if at.missing:
        return CaptionStyle()
    at.object("look", "place", "size")
    return CaptionStyle(
        at["look"].one_of(Look, Look.OUTLINE),
        at["place"].one_of(Place, Place.BOTTOM),
        at["size"].one_of(LetterSize, LetterSize.MEDIUM),
    )


def _sound(at: At) -> Sound:
    at.object("music", "voice", "keep_clips", "loudness")
    usual = Sound()
    loudness = usual.loudness
    if "loudness" in at:
        loudness = None if at["loudness"].value is None else at["loudness"].number(-40, -5)
    return Sound(
        music=_music(at["music"]) if "music" in at else None,
        voice=tuple(_voice(one) for one in at["voice"].list(MOST_VOICES)),
        keep_clips=at["keep_clips"].flag(usual=True),
        loudness=loudness,
    )


def _music(at: At) -> Music:
    at.object("asset", "gain")
    return Music(_asset(at["asset"]), at["gain"].number(-60, 20, 0.0))


def _voice(at: At) -> Voice:
    at.object("asset", "at")
    return Voice(_asset(at["asset"]), at["at"].seconds(0.0))


def _logo(at: At) -> Logo:
    at.object("asset", "corner", "width")
    return Logo(
        _asset(at["asset"]),
        at["corner"].one_of(Corner, Corner.TOP_RIGHT),
        at["width"].number(0.02, 0.5, 0.12),
    )


def _end(at: At) -> EndCard:
    at.object("asset", "seconds")
    return EndCard(_asset(at["asset"]), at["seconds"].number(0.1, 30, 2.0))


def _asset(at: At) -> str:
    """Read a path in the owner's own folder of the bucket: no address, no way out of it."""
    path = at.text()
    if len(path) > LONGEST_PATH:
        raise at.wrong(f"{len(path)} characters are more than {LONGEST_PATH}", "Name it shorter")
    outside = (
        "\\" in path or ":" in path or any(name in ("", ".", "..") for name in path.split("/"))
    )
    if outside or any(unicodedata.category(letter)[0] == "C" for letter in path):
        raise at.wrong(
            "it is no path within your own folder of the bucket film-assets",
            'Upload the file there, and write its path without the folder, as "music/warm.mp3"',
        )
    return path


def _outputs(at: At) -> tuple[Output, ...]:
    outputs: list[Output] = []
    taken: set[str] = set()
    for one in at["outputs"].list(MOST_OUTPUTS):
        output = _output(one)
        if double := sorted(taken & set(files_of(output))):
            raise one.wrong(f"there is another file {double[0]!r}",
                            'Name one of them, as {"preset": "web", "name": "film-2"}')  # fmt: skip
        taken |= set(files_of(output))
        outputs.append(output)
    if not outputs and "outputs" in at:
        raise at["outputs"].wrong("there is no output", 'Name one, as "outputs": ["web"]')
    return tuple(outputs)


def _output(at: At) -> Output:
    if isinstance(at.value, str):
        return Output(_preset(at), at.value)
    at.object("preset", "name", "fit", "target", "format", "at")
    name = _preset(at["preset"])
    preset = PRESETS[name]
    form = at["format"].choice(preset.formats) if "format" in at else None
    kinds = {FORMATS[made].kind for made in preset.formats.values()}
    _only(at, "fit", preset.shape, name)
    _only(at, "target", Kind.FILM in kinds and name != "prores", name)
    _only(at, "at", Kind.STILL in kinds, name)
    return Output(
        preset=name,
        name=_name(at["name"]) if "name" in at else name,
        fit=at["fit"].one_of(Fit) if "fit" in at else None,
        target=at["target"].one_of(Target) if "target" in at else None,
        format=form,
        at=at["at"].number(0, LONGEST_FILM) if "at" in at else None,
    )


def _only(at: At, key: str, allowed: bool, preset: str) -> None:  # noqa: FBT001 - it is the question
    if key in at and not allowed:
        raise at[key].wrong(f"the preset {preset!r} has no {key}", "Leave it out")


def _preset(at: At) -> str:
    return at.choice(PRESETS)


def _name(at: At) -> str:
    name = at.text()
    plain = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    if not plain or len(name) > LONGEST_NAME:
        raise at.wrong("it is no name for a file",
                       f"Write {LONGEST_NAME} letters, digits, - and _ at most")  # fmt: skip
    return name


def written(cut: Cut) -> dict[str, Any]:
    """Write a cut as JSON values; what is as usual is left out. `read` makes the same cut of it."""
    said: dict[str, Any] = {
        "scenario": cut.scenario,
        "parts": [_part_written(part) for part in cut.parts],
        "captions": [{"from": c.start, "to": c.end, "text": c.text} for c in cut.captions],
        "caption_style": vars_of(cut.style) if cut.style != CaptionStyle() else None,
        "sound": _sound_written(cut.sound) if cut.sound else None,
        "logo": vars_of(cut.logo) if cut.logo else None,
        "end": vars_of(cut.end) if cut.end else None,
        "outputs": [_given(vars_of(output)) for output in cut.outputs],
        "on_failure": str(cut.on_failure) if cut.on_failure is not OnFailure.FAIL else None,
    }
    return {key: one for key, one in said.items() if one not in (None, [])}


def _part_written(part: Part) -> dict[str, Any]:
    return _given(
        {
            "scene": part.scene and str(part.scene), "task": part.task and str(part.task),
            "from": part.start or None, "to": part.end,
            "transition": {"kind": "fade", "seconds": part.fade} if part.fade else None,
            "caption": part.caption,
        }
    )  # fmt: skip


def _sound_written(sound: Sound) -> dict[str, Any]:
    said = {
        "music": vars_of(sound.music) if sound.music else None,
        "voice": [vars_of(voice) for voice in sound.voice] or None,
        "keep_clips": None if sound.keep_clips else False,
    }
    return _given(said) | {"loudness": sound.loudness}


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def vars_of(value: Any) -> dict[str, Any]:  # noqa: ANN401 - any of the cut's dataclasses
    """Return the fields of one of the cut's values as JSON has them."""
    return {name: getattr(value, name) for name in value.__slots__}
