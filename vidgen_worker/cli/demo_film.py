"""`demo --film`: three scenes become one film, with captions and music, in four formats.

Everything is done as an application would do it for its user: the music is uploaded into the
user's folder, the film is one inserted row, and its files are signed as their owner.
"""

from pathlib import PurePosixPath
from typing import Any
from uuid import UUID, uuid4

from psycopg.types.json import Jsonb
from rich.text import Text

from vidgen_worker.cli.check_films import EXTRA, FONTS, FRIBIDI
from vidgen_worker.cli.demo_running import DOWNLOAD_SECONDS, Running
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.output import fail
from vidgen_worker.client.database import user_claims
from vidgen_worker.config import can_render

LONGEST_SECONDS = 600.0
SECONDS = 3
"""Of each scene's clip."""
FADE = 0.5
SCENES = (
    ("The bottle on a marble table, soft morning light", "Meet Lumen"),
    ("The bottle among lemons, drops of cold water on the glass", "Sparkling citrus, no sugar"),
    ("The bottle in the evening sun, friends in the background", "From today in your shop"),
)
"""What each scene shows, and its caption."""
MUSIC = "music/warm.m4a"
OUTPUTS = ["web", {"preset": "vertical", "fit": "blur"}, "poster", "preview"]

Row = dict[str, Any]


def need_films() -> None:
    """End the process where this machine can't draw the film's captions, with the remedy."""
    if not can_render():
        fail(ExitCode.CONFIGURATION, "Films need the extra `films`.", EXTRA)
    from vidgen_worker.films.fonts import Fonts, shapes_letters  # noqa: PLC0415 - the extra's

    if not shapes_letters():
        fail(ExitCode.CONFIGURATION, "The film's captions need FriBidi.", FRIBIDI)
    if not Fonts().files:
        fail(ExitCode.CONFIGURATION, "The film's captions need a font.", FONTS)


def play(running: Running) -> None:
    """Order a film as its user, and save all its files. Raises DemoError or httpx.HTTPError."""
    before = running.balance()
    client = _Client(running)
    client.upload(MUSIC)
    scenes = [_scene(running, prompt) for prompt, _ in SCENES]
    running.out.print(
        f"Inserting a film of {len(scenes)} scenes as its user; worker {running.worker.pid} orders "
        "the scenes, waits for their clips, and cuts them together.",
        soft_wrap=True,
    )
    film = {
        "id": uuid4(), "user_id": running.seeded.user_id, "cut": Jsonb(cut_of(scenes)),
        "priority": 0, "run_after": None, "delay": None,
    }  # fmt: skip
    (inserted,) = running.database.rows("insert_film", film, user_claims(running.seeded.user_id))
    row = running.follow(inserted["id"], LONGEST_SECONDS)
    made = running.database.rows("renditions_of_film", {"task_id": row["id"]})
    files = [
        (one, running.save(client.signed(one["bucket"], one["path"]), _name(one))) for one in made
    ]
    running.report(
        row, before, [(_said(one), Text(str(file), style="bold")) for one, file in files]
    )


def cut_of(scenes: list[UUID]) -> dict[str, Any]:
    """The film: all scenes, each with its caption, music below, in every format of the demo."""
    fade = {"transition": {"kind": "fade", "seconds": FADE}}
    return {
        "parts": [
            {"scene": str(scene), "caption": caption} | fade
            for scene, (_, caption) in zip(scenes, SCENES, strict=True)
        ],
        "caption_style": {"look": "box", "size": "m"},
        "sound": {"music": {"asset": MUSIC}},
        "outputs": OUTPUTS,
    }


def _scene(running: Running, prompt: str) -> UUID:
    scene, seeded = uuid4(), running.seeded
    running.database.rows(
        "add_scene",
        {
            "id": scene, "user_id": seeded.user_id, "scenario_id": seeded.scenario_id,
            "image_prompt": prompt, "visual_prompt": "The camera moves slowly around the bottle",
            "reference": running.sandbox.product_image_url, "duration": SECONDS,
        },
    )  # fmt: skip
    return scene


class _Client:
    """Storage as the signed-in user sees it, as supabase-js would ask it."""

    def __init__(self, running: Running) -> None:
        self._url = f"{running.sandbox.url}/storage/v1"
        self._folder = str(running.seeded.user_id)
        self._headers = {
            "apikey": running.sandbox.keys.anon,
            "authorization": f"Bearer {running.sandbox.user_token(running.seeded.user_id)}",
        }

    def upload(self, path: str) -> None:
        """Bring the music into the user's own folder."""
        from vidgen_worker.sandbox.music import music  # noqa: PLC0415 - the extra's

        self._post(f"object/film-assets/{self._folder}/{path}", content=music(), kind="audio/mp4")

    def signed(self, bucket: str, path: str) -> str:
        """Return an address of a file, good for an hour."""
        said = self._post(
            f"object/sign/{bucket}/{path}", content=b'{"expiresIn": 3600}', kind="application/json"
        )
        return f"{self._url}{said['signedURL']}"

    def _post(self, path: str, *, content: bytes, kind: str) -> dict[str, Any]:
        import httpx  # noqa: PLC0415 - a tenth of a second that the other verbs need not wait for

        answer = httpx.post(
            f"{self._url}/{path}", content=content, timeout=DOWNLOAD_SECONDS, trust_env=False,
            headers={**self._headers, "content-type": kind},
        )  # fmt: skip
        said: dict[str, Any] = answer.raise_for_status().json()
        return said


def _name(rendition: Row) -> str:
    return f"film-{rendition['name']}{PurePosixPath(rendition['path']).suffix}"


def _said(rendition: Row) -> str:
    size = f" {rendition['width']}x{rendition['height']}" if rendition["width"] else ""
    return f"{rendition['name']}{size}"
