"""The same two stages, as one would write them by hand on another library.

The same adapters, requests, looks at the outputs and uploads as our pipeline, and the same pauses
before a poll. No fence, no checkpoint, no submission row, no credits: a crash pays again. One read
of the scene before and one write after.
"""

import asyncio
import os
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from bench.lines import say
from vidgen_worker.config import Settings, load
from vidgen_worker.media import Media
from vidgen_worker.providers import Generation, GenerationState, Request
from vidgen_worker.providers.runway import Runway
from vidgen_worker.providers.runway_inputs import with_frame
from vidgen_worker.queue import scene_of
from vidgen_worker.resolution import look_up
from vidgen_worker.stages import IMAGE, VIDEO
from vidgen_worker.storage import Storage
from vidgen_worker.worker import buckets

BODY = os.environ.get("BENCH_BODY", "pipeline")
CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "20"))
HOUR = timedelta(hours=1)


@dataclass
class ByHand:
    """What a hand-written worker would keep open."""

    settings: Settings
    runway: Runway
    storage: Storage
    media: Media
    pool: AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]]

    async def handle(self, scene_id: str) -> None:
        """One job: nothing at all, a wait, or the two stages."""
        say("started", id=scene_id)
        match BODY.partition(":"):
            case "nothing", _, _:
                pass
            case "hold", _, seconds:
                await asyncio.sleep(float(seconds))
            case _:
                await self.generate(UUID(scene_id))
        say("ended", id=scene_id)

    async def generate(self, scene_id: UUID) -> None:
        """Scene to still to clip, without a guarantee."""
        async with self.pool.connection() as conn:
            cursor = await conn.execute(
                "select s.*, c.resolution from public.video_scenes as s"
                " join public.video_scenarios as c on c.id = s.scenario_id where s.id = %s",
                (scene_id,),
            )
            row = await cursor.fetchone()
        if row is None:
            raise LookupError(f"scene {scene_id} is gone; enqueue scenes that exist")
        scene, user = scene_of(row), UUID(str(row["user_id"]))
        resolution = look_up(scene.resolution)
        image = IMAGE.order(scene, resolution, self.settings, "")
        still = await self.follow(image.request)
        image_path = IMAGE.path(user, still.id)
        bucket = IMAGE.bucket(self.settings)
        with tempfile.TemporaryDirectory(prefix="vidgen-by-hand-") as folder:
            file = Path(folder) / "still"
            await self.media.download(still.outputs[0], file, self.settings.vidgen_max_image_bytes)
            picture = await self.media.check_image(file, image.ratio)
            await self.storage.put(bucket, image_path, picture.file, "image/png")
        video = VIDEO.order(scene, resolution, self.settings, still.outputs[0])
        clip = await self.follow(with_frame(video.request, still.outputs[0]))
        video_path = VIDEO.path(user, clip.id)
        video_bucket = VIDEO.bucket(self.settings)
        with tempfile.TemporaryDirectory(prefix="vidgen-by-hand-") as folder:
            file = Path(folder) / "clip"
            await self.media.download(clip.outputs[0], file, self.settings.vidgen_max_video_bytes)
            checked = await self.media.check_video(file, video.ratio, video.seconds)
            await self.storage.put(video_bucket, video_path, checked.file, "video/mp4")
        signed = await self.storage.sign(video_bucket, video_path, HOUR)
        async with self.pool.connection() as conn:
            await conn.execute(
                "update public.video_scenes set status = 'completed', image_url = %s,"
                " generated_video_url = %s, updated_at = now() where id = %s",
                (self.storage.public_url(bucket, image_path), signed, scene_id),
            )

    async def follow(self, request: Request) -> Generation:
        """Submit, and poll until it has ended."""
        accepted = await self.runway.submit(request)
        interval = self.settings.vidgen_poll_interval.total_seconds()
        while True:
            await asyncio.sleep(interval * random.uniform(1.0, 1.25))  # noqa: S311
            generation = await self.runway.poll(accepted.generation_id)
            if generation.state is GenerationState.SUCCEEDED:
                return generation
            if generation.state.terminal:
                raise RuntimeError(f"generation {generation.id} ended {generation.state}")


@asynccontextmanager
async def open_by_hand() -> AsyncIterator[ByHand]:
    """Open the adapters as our worker opens them."""
    settings = load()
    runway = Runway(
        settings.runwayml_api_secret.get_secret_value(), base_url=settings.runwayml_base_url,
        submit_timeout=settings.vidgen_submit_timeout,
    )  # fmt: skip
    storage = Storage(
        settings.supabase_url, settings.supabase_service_role_key.get_secret_value(),
        buckets=buckets(settings),
    )  # fmt: skip
    media = Media(
        max_image_bytes=settings.vidgen_max_image_bytes,
        max_video_bytes=settings.vidgen_max_video_bytes,
    )
    await storage.ensure_buckets()
    pool: AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]] = AsyncConnectionPool(
        settings.database_url.get_secret_value(), min_size=1, max_size=6, open=False,
        kwargs={"autocommit": True, "row_factory": dict_row},
    )  # fmt: skip
    await pool.open()
    try:
        yield ByHand(settings, runway, storage, media, pool)
    finally:
        await media.aclose()
        await storage.aclose()
        await runway.aclose()
        await pool.close()
