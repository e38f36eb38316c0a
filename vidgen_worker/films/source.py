"""What a look at a file has found, before anything is made of it: clips, sounds and pictures."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any


@dataclass(frozen=True, slots=True)
class Source:
    """A file that can be read to its end.

    `file` is its name in the folder of the render. Width and height are as a viewer sees them; a
    sound has none. `fps` is 0 where nothing moves, `seconds` is 0 for a picture.
    """

    file: str
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    fps: Fraction = Fraction(0)
    sound: bool = False
    codec: str = ""
    plain: bool = False
    """An H.264 film that every player shows as it is stored: it may be copied."""
    size: int = 0
    """Bytes."""

    @classmethod
    def found(cls, file: str, said: Mapping[str, Any]) -> "Source":
        """Make one of the render child's answer to a look."""
        known = {name: said[name] for name in ("width", "height", "seconds", "codec", "plain")}
        return cls(
            file, fps=Fraction(*said["fps"]), sound=said["sound"], size=said["size"], **known
        )
