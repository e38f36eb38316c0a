"""The sandbox's still pictures: what a newcomer sees instead of a generated image.

Everything is drawn with Pillow and its own font, from the prompt and the product's picture alone,
so the same request gives the same picture on every machine. It never reads a URL.
"""

import colorsys
import hashlib
import io
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

SIGNATURE = "vidgen-worker sandbox"
WHITE = (255, 255, 255)
MIDDLE_GREY = 127
# Latin letters with their accents, dashes, quotes and the ellipsis: what Pillow's own font draws.
DRAWABLE = frozenset(map(chr, (*range(0x250), *range(0x2010, 0x2027))))
Colour = tuple[int, int, int]
Size = tuple[int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours that go together, chosen by a prompt."""

    top: Colour
    bottom: Colour
    glow: Colour
    accent: Colour


def palette_of(text: str) -> Palette:
    """Return the palette of a prompt: the same text, the same colours."""
    hue = hashlib.sha256(text.encode(errors="replace")).digest()[0] / 256
    return Palette(
        top=_hsl(hue, 0.26, 0.55),
        bottom=_hsl(hue + 0.12, 0.12, 0.55),
        glow=_hsl(hue - 0.07, 0.50, 0.48),
        accent=_hsl(hue + 0.47, 0.68, 0.85),
    )


def still(size: Size, prompt: str, subtitle: str, product: Image.Image | None) -> Image.Image:
    """Draw a still of exactly this size: the framed product (or a landscape) and the prompt."""
    width, height = size
    palette = palette_of(prompt)
    picture = _background(size, palette)
    unit = min(width, height) / 100
    margin = round(7 * unit)
    upright = height >= width * 0.95
    if upright:
        side = round(min(width - 2 * margin, height * 0.52))
        corner = ((width - side) // 2, round(height * (0.09 if height > width * 1.2 else 0.06)))
        text_box = (margin, corner[1] + side + round(5 * unit), width - margin, height - margin)
    else:
        side = round(min(height - 2 * margin, width * 0.44))
        corner = (margin, (height - side) // 2)
        text_box = (corner[0] + side + round(6 * unit), corner[1], width - margin, height - margin)
    _frame(picture, product or _landscape(side, palette), corner, side, unit)
    pen = ImageDraw.Draw(picture)
    left, _, _, bottom = text_box
    _footer(pen, (left, bottom), subtitle, palette, unit)
    _caption(pen, text_box, prompt, palette, unit)
    return picture


def plain(size: Size) -> Image.Image:
    """Draw the plainest picture of this size, for loads of thousands."""
    return Image.new("RGB", size, (38, 70, 83))


@cache
def product() -> bytes:
    """Draw a product as a shop would photograph it, a bottle of lemonade, as a PNG."""
    side, factor = 1024, 2
    large = side * factor
    picture = Image.linear_gradient("L").resize((large, large))
    picture = ImageOps.colorize(picture, (250, 246, 238), (226, 217, 203))
    shadow = Image.new("L", (large, large), 0)
    ImageDraw.Draw(shadow).ellipse(_scaled((300, 860, 740, 950), factor), fill=110)
    shadow = shadow.filter(ImageFilter.GaussianBlur(26 * factor))
    picture.paste((92, 76, 58), mask=shadow)
    outline = Image.new("L", (large, large), 0)
    pen = ImageDraw.Draw(outline)
    pen.rounded_rectangle(_scaled((382, 390, 642, 912), factor), 60 * factor, fill=255)
    pen.rounded_rectangle(_scaled((462, 150, 562, 470), factor), 24 * factor, fill=255)
    pen.polygon(
        [
            (x * factor, y * factor)
            for x, y in ((462, 300), (562, 300), (640, 450), (640, 480), (384, 480), (384, 450))
        ],
        fill=255,
    )
    outline = outline.filter(ImageFilter.GaussianBlur(9 * factor)).point(
        lambda value: 255 if value > MIDDLE_GREY else 0
    )
    liquid = ImageOps.colorize(
        Image.linear_gradient("L").rotate(90).resize((large, large)),
        (196, 92, 22),
        (255, 178, 46),
        (240, 138, 28),
    )
    picture.paste(liquid, mask=outline)
    shine = Image.new("L", (large, large), 0)
    pen = ImageDraw.Draw(shine)
    pen.rounded_rectangle(_scaled((408, 470, 430, 880), factor), 11 * factor, fill=150)
    pen.rounded_rectangle(_scaled((476, 205, 488, 330), factor), 6 * factor, fill=150)
    picture.paste(WHITE, mask=shine.filter(ImageFilter.GaussianBlur(4 * factor)))
    pen = ImageDraw.Draw(picture)
    pen.rounded_rectangle(_scaled((452, 108, 572, 190), factor), 16 * factor, fill=(38, 70, 83))
    for groove in range(462, 572, 14):
        pen.line(_scaled((groove, 120, groove, 178), factor), fill=(58, 96, 110), width=4 * factor)
    pen.rectangle(_scaled((382, 560, 642, 770), factor), fill=(253, 250, 243))
    pen.line(_scaled((382, 576, 642, 576), factor), fill=(231, 111, 81), width=5 * factor)
    pen.line(_scaled((382, 754, 642, 754), factor), fill=(231, 111, 81), width=5 * factor)
    for text, line, points, colour in (
        ("Lumen", 640, 62, (38, 70, 83)),
        ("SPARKLING CITRUS", 704, 22, (231, 111, 81)),
    ):
        pen.text((512 * factor, line * factor), text, colour, _font(points * factor), anchor="mm")
    return encoded(picture.resize((side, side), Image.Resampling.LANCZOS), "PNG")


def encoded(picture: Image.Image, kind: str) -> bytes:
    """Return the picture as a file of this kind: PNG, JPEG, GIF."""
    file = io.BytesIO()
    # A fast compression: nobody keeps these files.
    picture.save(file, kind, **({"compress_level": 1} if kind == "PNG" else {}))
    return file.getvalue()


def _background(size: Size, palette: Palette) -> Image.Image:
    """A gradient with three soft lights, computed small and enlarged."""
    small = (max(2, size[0] // 8), max(2, size[1] // 8))
    slope = Image.linear_gradient("L").resize(small)
    picture = ImageOps.colorize(slope, palette.top, palette.bottom)
    reach = max(small)
    for x, y, radius, strength in (
        (0.9, 0.05, 0.5, 150),
        (0.05, 0.95, 0.45, 110),
        (0.6, 0.7, 0.3, 60),
    ):
        light = Image.new("L", small, 0)
        centre, r = (x * small[0], y * small[1]), radius * reach
        ImageDraw.Draw(light).ellipse(
            (centre[0] - r / 2, centre[1] - r / 2, centre[0] + r / 2, centre[1] + r / 2),
            fill=strength,
        )
        light = light.filter(ImageFilter.GaussianBlur(reach / 9))
        picture.paste(palette.glow, mask=light)
    return picture.resize(size, Image.Resampling.BICUBIC)


def _frame(
    picture: Image.Image, content: Image.Image, corner: Size, side: int, unit: float
) -> None:
    """Put `content` on a white card with round corners and a shadow."""
    x, y = corner
    radius, border = round(3.2 * unit), round(1.1 * unit)
    reach = round(4 * unit)
    scale = 4
    shade = Image.new("L", ((side + 4 * reach) // scale, (side + 4 * reach) // scale), 0)
    ImageDraw.Draw(shade).rounded_rectangle(
        (
            2 * reach // scale,
            2 * reach // scale,
            (2 * reach + side) // scale,
            (2 * reach + side) // scale,
        ),
        radius // scale,
        fill=120,
    )
    shade = shade.filter(ImageFilter.GaussianBlur(reach / scale / 1.6))
    shade = shade.resize((side + 4 * reach, side + 4 * reach), Image.Resampling.BILINEAR)
    picture.paste((0, 0, 0), (x - 2 * reach, y - 2 * reach + reach // 2), shade)
    picture.paste(WHITE, corner, _rounded(side, radius))
    inner = side - 2 * border
    fitted = ImageOps.fit(content.convert("RGB"), (inner, inner), Image.Resampling.BICUBIC)
    picture.paste(fitted, (x + border, y + border), _rounded(inner, radius - border))


def _footer(
    pen: ImageDraw.ImageDraw, corner: Size, subtitle: str, palette: Palette, unit: float
) -> None:
    """Write who made the picture, and as what, in one small line above `corner`."""
    left, bottom = corner
    font = _font(max(11, round(2.5 * unit)), SIGNATURE + subtitle)
    pen.text((left, bottom), SIGNATURE, WHITE, font, anchor="ld")
    left += round(pen.textlength(SIGNATURE, font) + 2 * unit)
    pen.text((left, bottom), subtitle, _mixed(WHITE, palette.top, 0.45), font, anchor="ld")


def _caption(
    pen: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    prompt: str,
    palette: Palette,
    unit: float,
) -> None:
    """Write the prompt as large as it fits, below a short line and above the footer."""
    left, top, right, bottom = box
    bar = max(2, round(0.9 * unit))
    pen.rounded_rectangle((left, top, left + round(11 * unit), top + bar), bar, fill=palette.accent)
    top += round(4 * unit)
    space = bottom - top - round(6 * unit)
    words = prompt.split()
    for points in range(round(6.4 * unit), round(2.2 * unit), -1):
        font = _font(max(11, points), prompt)
        lines = _wrapped(words, font, right - left)
        step = round(points * 1.28)
        if len(lines) * step <= space or points <= round(2.2 * unit) + 1:
            break
    fitting = lines[: max(1, space // step)]
    if len(fitting) < len(lines):
        fitting[-1] = fitting[-1].rstrip(".,") + " …"
    for number, line in enumerate(fitting):
        pen.text((left, top + number * step), line, WHITE, font)


def _wrapped(words: list[str], font: Font, width: int) -> list[str]:
    lines: list[str] = []
    for word in words:
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        rest = word
        while font.getlength(rest) > width and len(rest) > 1:
            cut = max(1, int(len(rest) * width / font.getlength(rest)))
            lines.append(rest[:cut])
            rest = rest[cut:]
        lines.append(rest)
    return lines


def _landscape(side: int, palette: Palette) -> Image.Image:
    """Draw a sun over hills, for a scene without a product."""
    picture = ImageOps.colorize(
        Image.linear_gradient("L").resize((side, side)), palette.glow, palette.accent
    )
    pen = ImageDraw.Draw(picture)
    pen.ellipse([side * f for f in (0.56, 0.2, 0.8, 0.44)], fill=(255, 247, 224))
    for left, top, width, colour in (
        (-0.3, 0.58, 1.2, _mixed(palette.glow, palette.top, 0.5)),
        (0.35, 0.66, 1.1, _mixed(palette.glow, palette.top, 0.75)),
        (-0.2, 0.78, 1.5, palette.bottom),
    ):
        box = (left * side, top * side, (left + width) * side, (top + width * 0.8) * side)
        pen.ellipse(box, fill=colour)
    return picture


def _rounded(side: int, radius: int) -> Image.Image:
    mask = Image.new("L", (side * 2, side * 2), 0)
    ImageDraw.Draw(mask).rounded_rectangle(
        (0, 0, side * 2 - 1, side * 2 - 1), max(0, radius) * 2, fill=255
    )
    return mask.resize((side, side), Image.Resampling.BILINEAR)


@cache
def _built_in_font(points: int) -> Font:
    return ImageFont.load_default(points)


def _font(points: int, text: str = "") -> Font:
    """Pillow's own font; for other alphabets than the Latin one the system's, where it has one."""
    if DRAWABLE.issuperset(text):
        return _built_in_font(points)
    try:
        return ImageFont.truetype("DejaVuSans.ttf", points)
    except OSError:
        return _built_in_font(points)


def _hsl(hue: float, lightness: float, saturation: float) -> Colour:
    red, green, blue = colorsys.hls_to_rgb(hue % 1, lightness, saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _scaled(box: tuple[float, ...], factor: int) -> list[float]:
    return [edge * factor for edge in box]
