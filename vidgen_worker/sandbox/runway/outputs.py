"""The files that generations leave behind: rendered at the first download, kept in a folder.

Rendering happens in a thread. Which words make an output go wrong is decided here, the connection
that is cut half-way is not. It never looks at credits.
"""

import asyncio
import hashlib
import io
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jwt
from PIL import Image

from vidgen_worker.sandbox.runway import drawing, film
from vidgen_worker.sandbox.runway.contract import DEFAULT_SECONDS
from vidgen_worker.sandbox.runway.generations import Generation
from vidgen_worker.sandbox.runway.words import without_words

NOISE_BYTES = 50_000


@dataclass(frozen=True, slots=True)
class Output:
    """A file as it is served."""

    content: bytes
    media_type: str


class Outputs:
    """Renders and keeps outputs below `folder`."""

    def __init__(self, folder: Path, generations: Mapping[str, Generation]) -> None:
        self.folder = folder
        self.generations = generations
        self._secret = secrets.token_hex(32)
        self._rendering: dict[str, asyncio.Task[bytes]] = {}
        # One clip at a time: two would only slow each other, and the daemon beside them.
        self._turn = asyncio.Semaphore(1)

    def signed(self, generation: Generation, seconds: float) -> str:
        """Name and token of an output, good for so many seconds."""
        name = f"{generation.id}.{'png' if generation.kind == 'image' else 'mp4'}"
        claims = {"name": name, "exp": time.time() + seconds, "jti": secrets.token_hex(8)}
        return f"{name}?_jwt={jwt.encode(claims, self._secret, 'HS256')}"

    def whose(self, name: str, token: str) -> Generation | None:
        """Whose output this is; None when the token is not, or no longer, good."""
        try:
            claims = jwt.decode(token, self._secret, ["HS256"])
        except jwt.InvalidTokenError:
            return None
        generation = self.generations.get(name.partition(".")[0])
        if claims.get("name") != name or generation is None or generation.deleted:
            return None
        return generation

    async def get(self, generation: Generation, *, is_plain: bool) -> Output:
        """Return the output of a generation as its words will have it."""
        if "garbage" in generation.words:
            return Output(_noise(generation), _media_type(generation))
        if is_plain:
            return Output(_plain(generation), _media_type(generation))
        if generation.id not in self._rendering:
            self._rendering[generation.id] = asyncio.create_task(self._render(generation))
        # A client that leaves must not take the rendering with it.
        await asyncio.shield(self._rendering[generation.id])
        content = await asyncio.to_thread(self._file(generation).read_bytes)
        return Output(content, _media_type(generation))

    async def aclose(self) -> None:
        """End what is being rendered."""
        for task in self._rendering.values():
            task.cancel()
        await asyncio.gather(*self._rendering.values(), return_exceptions=True)

    async def _render(self, generation: Generation) -> bytes:
        async with self._turn:
            picture = await self._picture_for(generation)
            content = await asyncio.to_thread(_drawn, generation, picture)
            file = self._file(generation)
            await asyncio.to_thread(file.parent.mkdir, parents=True, exist_ok=True)
            await asyncio.to_thread(file.write_bytes, content)
        return content

    async def _picture_for(self, generation: Generation) -> bytes | None:
        """Return the first picture that the generation was given."""
        if not generation.inputs:
            return None
        match generation.inputs[0]:
            case bytes(content):
                return content or None
            case str(source):
                frame = self.generations[source]
                file = self._file(frame)
                if await asyncio.to_thread(file.exists):
                    return await asyncio.to_thread(file.read_bytes)
                return await asyncio.to_thread(_drawn, frame, await self._picture_for(frame))

    def _file(self, generation: Generation) -> Path:
        return self.folder / f"{generation.id}.{'png' if generation.kind == 'image' else 'mp4'}"


def _drawn(generation: Generation, picture: bytes | None) -> bytes:
    """Draw the output of a generation from its prompt and the picture it was given."""
    given = Image.open(io.BytesIO(picture)) if picture else None
    prompt = without_words(generation.prompt) or "A scene without words"
    if generation.kind == "image":
        subtitle = f"{generation.model}   {generation.body.get('ratio', '')}"
        image = drawing.still(_size(generation), prompt, subtitle, given)
        return drawing.encoded(image, "JPEG" if "wrong-type" in generation.words else "PNG")
    first_frame = given or drawing.still(_size(generation), prompt, generation.model, None)
    return film.clip(first_frame, _size(generation), _seconds(generation), _container(generation))


def _plain(generation: Generation) -> bytes:
    if generation.kind == "image":
        return _plain_picture(_size(generation), "wrong-type" in generation.words)
    return film.plain_clip(_size(generation), _seconds(generation), _container(generation))


@cache
def _plain_picture(size: drawing.Size, is_jpeg: bool) -> bytes:  # noqa: FBT001 - a cache's key
    return drawing.encoded(drawing.plain(size), "JPEG" if is_jpeg else "PNG")


def _noise(generation: Generation) -> bytes:
    """Return bytes that no decoder takes: others every time, unless the prompt wants the same."""
    if "same" in generation.words["garbage"].arguments:
        return hashlib.shake_256(generation.id.encode()).digest(NOISE_BYTES)
    return os.urandom(NOISE_BYTES)


def _size(generation: Generation) -> drawing.Size:
    width, height = generation.size
    if "wrong-size" in generation.words:
        # H.264 wants even numbers.
        return width // 4 * 2, height // 4 * 2
    return width, height


def _seconds(generation: Generation) -> int:
    asked = int(generation.body.get("duration", DEFAULT_SECONDS))
    return asked + 1 if "wrong-duration" in generation.words else asked


def _container(generation: Generation) -> film.Container:
    return "webm" if "wrong-type" in generation.words else "mp4"


def _media_type(generation: Generation) -> str:
    is_wrong = "wrong-type" in generation.words
    if generation.kind == "image":
        return "image/jpeg" if is_wrong else "image/png"
    return "video/webm" if is_wrong else "video/mp4"
