"""Pictures that a film's owner uploaded: a logo, an end card. PNG, JPEG and WebP only."""

from pathlib import Path

from PIL import Image, ImageOps

from vidgen_worker.media.formats import UndecodableError
from vidgen_worker.media.libav import MAX_PIXELS

KINDS = ("PNG", "JPEG", "WEBP")


def picture(file: Path) -> Image.Image:
    """Return an asset in RGBA, the way up that a viewer sees. Raises UndecodableError."""
    try:
        with Image.open(file, formats=KINDS) as found:
            if found.width * found.height > MAX_PIXELS:
                raise UndecodableError(
                    f"{file.name}: {found.width}x{found.height} is more than {MAX_PIXELS} pixels"
                )
            return ImageOps.exif_transpose(found).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UndecodableError(
            f"{file.name}: it is no picture that can be read: {error}"
        ) from error
