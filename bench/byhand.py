"""The same two stages, as a competent developer writes them by hand on another library.

The official SDKs as their documentation has them: `runwayml` with its own retries, `supabase` for
the uploads and the signed URL, `httpx` for the downloads, and one shared client of each with pooled
connections. The same requests as our pipeline and the same pauses before a poll; one read of the
scene before, one write of it after. Outputs stay in memory, and are looked at before they are
stored: PyAV in a thread decodes the picture, reads the clip to its end and decodes its key frames,
and both must have the size that was asked for. No fence, no checkpoint, no submission row, no
credits, no progress: a crash pays again. No child process, no limits and no conforming either: an
output of another size fails the job, and one that crashes libav ends the worker.
"""

import asyncio
import io
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import av
import httpx
import psycopg
from av.container import InputContainer
from av.video.stream import VideoStream
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from runwayml import AsyncRunwayML
from supabase import AsyncClient, AsyncClientOptions, acreate_client

from bench.lines import say
from vidgen_worker.config import load
from vidgen_worker.domain.resolution import RATIOS

BODY = os.environ.get("BENCH_BODY", "pipeline")
CONCURRENCY = int(os.environ.get("BENCH_CONCURRENCY", "20"))
HOUR = 3600
IMAGES, VIDEOS = "generated-content", "video-files"
SECONDS = 5
"""Of a clip whose scene names no duration."""


@dataclass
class ByHand:
    """What a hand-written worker keeps open."""

    runway: AsyncRunwayML
    supabase: AsyncClient
    http: httpx.AsyncClient
    pool: AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]]
    poll_interval: timedelta

    async def handle(self, scene_id: str) -> None:
        """One job: nothing at all, a wait, or the two stages."""
        say("started", id=scene_id)
        try:
            match BODY.partition(":"):
                case "nothing", _, _:
                    pass
                case "hold", _, seconds:
                    await asyncio.sleep(float(seconds))
                case _:
                    await self.generate(scene_id)
        except Exception as error:
            # The library keeps it to itself; the bench would wait for an end that never comes.
            say("failed", id=scene_id, error=f"{type(error).__name__}: {error}")
            raise
        say("ended", id=scene_id)

    async def generate(self, scene_id: str) -> None:
        """Scene to still to clip, without a guarantee."""
        async with self.pool.connection() as conn:
            cursor = await conn.execute(
                "select s.*, c.resolution from public.video_scenes as s"
                " join public.video_scenarios as c on c.id = s.scenario_id where s.id = %s",
                (scene_id,),
            )
            scene = await cursor.fetchone()
        if scene is None:
            raise LookupError(f"scene {scene_id} is gone; enqueue scenes that exist")
        video_ratio, image_ratio = RATIOS[scene["resolution"]]
        image: Any = await self.runway.text_to_image.create(
            model="gen4_image", prompt_text=scene["image_prompt"], ratio=image_ratio
        )  # type: ignore[call-overload]
        still = await self.follow(image.id)
        picture = await self.download(still)
        await asyncio.to_thread(check_picture, picture, image_ratio)
        image_path = f"generated_images/{scene['user_id']}/{image.id}.png"
        await self.upload(picture, IMAGES, image_path, "image/png")
        video: Any = await self.runway.image_to_video.create(
            model="gen4_turbo", prompt_image=still, prompt_text=scene["visual_prompt"],
            ratio=video_ratio, duration=scene["duration"] or SECONDS,
        )  # type: ignore[call-overload] # fmt: skip
        clip = await self.download(await self.follow(video.id))
        await asyncio.to_thread(check_clip, clip, video_ratio)
        video_path = f"video-files/{scene['user_id']}/{video.id}.mp4"
        await self.upload(clip, VIDEOS, video_path, "video/mp4")
        signed = await self.supabase.storage.from_(VIDEOS).create_signed_url(video_path, HOUR)
        public = await self.supabase.storage.from_(IMAGES).get_public_url(image_path)
        async with self.pool.connection() as conn:
            await conn.execute(
                "update public.video_scenes set status = 'completed', image_url = %s,"
                " generated_video_url = %s, updated_at = now() where id = %s",
                (public, signed["signedURL"], scene_id),
            )

    async def follow(self, generation_id: str) -> str:
        """Poll until it has ended; return the URL of its output."""
        while True:
            await asyncio.sleep(self.poll_interval.total_seconds() * random.uniform(1.0, 1.25))  # noqa: S311
            generation = await self.runway.tasks.retrieve(generation_id)
            match generation.status:
                case "SUCCEEDED":
                    return generation.output[0]
                case "FAILED" | "CANCELLED":
                    raise RuntimeError(f"generation {generation_id} ended {generation.status}")

    async def download(self, url: str) -> bytes:
        """An output, in memory."""
        response = await self.http.get(url)
        response.raise_for_status()
        return response.content

    async def upload(self, content: bytes, bucket: str, path: str, media_type: str) -> None:
        """Store an output."""
        await self.supabase.storage.from_(bucket).upload(
            path, content, {"content-type": media_type, "upsert": "true"}
        )


class OutputError(ValueError):
    """An output is not what was asked for, and is not stored."""


def check_picture(content: bytes, ratio: str) -> None:
    """Decode a picture; `ratio` is "width:height" in pixels. Raises OutputError."""
    try:
        with av.open(io.BytesIO(content), "r") as container:
            stream = _video_stream(container)
            sizes = {f"{frame.width}:{frame.height}" for frame in container.decode(stream)}
    except av.FFmpegError as error:
        raise OutputError(f"the picture does not decode: {error}") from error
    if sizes != {ratio}:
        raise OutputError(f"the picture is {_said(sizes)}, not {ratio}")


def check_clip(content: bytes, ratio: str) -> None:
    """Read a clip to its end and decode its key frames, as above. Raises OutputError."""
    sizes, packets = set(), 0
    try:
        with av.open(io.BytesIO(content), "r") as container:
            stream = _video_stream(container)
            stream.codec_context.skip_frame = "NONKEY"
            stated = stream.frames
            for packet in container.demux(stream):
                packets += packet.size > 0
                sizes |= {f"{frame.width}:{frame.height}" for frame in packet.decode()}
    except av.FFmpegError as error:
        raise OutputError(f"the clip does not decode: {error}") from error
    if packets < stated:
        raise OutputError(f"the clip is cut short: {packets} of {stated} frames are there")
    if sizes != {ratio}:
        raise OutputError(f"the clip is {_said(sizes)}, not {ratio}")


def _video_stream(container: InputContainer) -> VideoStream:
    if not container.streams.video:
        raise OutputError("there is neither picture nor film in the output")
    stream = container.streams.video[0]
    # Twenty jobs are busy at once: threads within each would only cost more.
    stream.codec_context.thread_count = 1
    return stream


def _said(sizes: set[str]) -> str:
    return " and ".join(sorted(sizes)) or "without a picture"


@asynccontextmanager
async def open_by_hand() -> AsyncIterator[ByHand]:
    """Open one client of each kind, and make the buckets."""
    settings = load()
    pool: AsyncConnectionPool[psycopg.AsyncConnection[dict[str, Any]]] = AsyncConnectionPool(
        settings.database_url.get_secret_value(), min_size=1, max_size=6, open=False,
        kwargs={"autocommit": True, "row_factory": dict_row},
    )  # fmt: skip
    async with (
        httpx.AsyncClient(timeout=60) as http,
        AsyncRunwayML(
            api_key=settings.runwayml_api_secret.get_secret_value(),
            base_url=settings.runwayml_base_url,
        ) as runway,
        pool,
    ):
        supabase = await acreate_client(
            settings.supabase_url, settings.supabase_service_role_key.get_secret_value(),
            AsyncClientOptions(httpx_client=http),
        )  # fmt: skip
        there = {bucket.name for bucket in await supabase.storage.list_buckets()}
        for name, public in ((IMAGES, True), (VIDEOS, False)):
            if name not in there:
                await supabase.storage.create_bucket(name, options={"public": public})
        yield ByHand(runway, supabase, http, pool, settings.vidgen_poll_interval)
