"""A worker with the real adapters, from SIGTERM or SIGINT to its exit status.

The one place that builds them together.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

from vidgen_worker.config import Settings
from vidgen_worker.media.outputs import Media, hide_environment
from vidgen_worker.pipeline.stages import PIPELINE, Stage
from vidgen_worker.providers.runway.adapter import Runway
from vidgen_worker.storage.storage import Storage
from vidgen_worker.worker.ending import EXIT_FORCED
from vidgen_worker.worker.scopes import buckets
from vidgen_worker.worker.worker import Worker


@contextlib.asynccontextmanager
async def open_worker(
    settings: Settings, stages: tuple[Stage, ...] = PIPELINE
) -> AsyncIterator[Worker]:
    """A worker with the real adapters, as the settings name them."""
    provider = Runway(
        settings.runwayml_api_secret.get_secret_value(),
        base_url=settings.runwayml_base_url,
        submit_timeout=settings.vidgen_submit_timeout,
        allow_loopback_assets=settings.vidgen_allow_loopback_assets,
    )
    storage = Storage(
        settings.supabase_url,
        settings.supabase_service_role_key.get_secret_value(),
        buckets=buckets(settings, stages),
        timeout=settings.vidgen_storage_timeout,
    )
    media = Media(
        max_image_bytes=settings.vidgen_max_image_bytes,
        max_video_bytes=settings.vidgen_max_video_bytes,
        allow_loopback=settings.vidgen_allow_loopback_assets,
    )
    yield Worker(settings, provider, storage, media, stages)


async def serve(settings: Settings) -> int:
    """Run a worker until SIGTERM or SIGINT; a second one forces. Returns the exit status."""
    hide_environment()
    async with open_worker(settings) as worker:
        loop = asyncio.get_running_loop()
        asked = 0

        def on_signal() -> None:
            nonlocal asked
            asked += 1
            if asked == 1:
                worker.stop()
            else:
                # Forced: the lease runs out and another worker takes over, as after kill -9.
                os._exit(EXIT_FORCED)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal)
        try:
            return await worker.run()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
