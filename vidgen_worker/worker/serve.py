"""The worker of a process: its real adapters, its event loop and its signals.

The one place that builds them together. It runs nothing.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

from vidgen_worker.config import Settings
from vidgen_worker.media.outputs import Media, hide_environment
from vidgen_worker.pipeline.stages import PIPELINE, Stage
from vidgen_worker.providers.runway.adapter import Runway
from vidgen_worker.storage.storage import Storage
from vidgen_worker.worker.ending import EXIT_FORCED
from vidgen_worker.worker.scopes import buckets
from vidgen_worker.worker.worker import Worker


def build_worker(settings: Settings, stages: tuple[Stage, ...] = PIPELINE) -> Worker:
    """Build a worker with the real adapters, as the settings name them."""
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
    worker = Worker(settings, provider, storage, media, stages)
    if settings.renders:
        # Here, because they need the extra `films`.
        from vidgen_worker.films import checking, cutting  # noqa: F401, PLC0415 - loaded at the start
        from vidgen_worker.films.fonts import Fonts  # noqa: PLC0415

        worker.process.fonts = Fonts(settings.fonts)
    return worker


@contextlib.contextmanager
def assemble(settings: Settings) -> Iterator[tuple[asyncio.Runner, Worker]]:
    """Give this process a worker, and the event loop for it.

    SIGTERM and SIGINT stop the worker; a second one ends the process at once.
    """
    hide_environment()
    worker = build_worker(settings)
    asked = 0

    def on_signal() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            worker.stop()
        else:
            # Forced: the lease runs out and another worker takes over, as after kill -9.
            os._exit(EXIT_FORCED)

    with asyncio.Runner() as runner:
        for number in (signal.SIGTERM, signal.SIGINT):
            runner.get_loop().add_signal_handler(number, on_signal)
        try:
            yield runner, worker
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                runner.get_loop().remove_signal_handler(number)
