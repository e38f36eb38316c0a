"""The state that all loops of a worker share: adapters, connections, held tasks, the life.

Nothing here runs by itself.
"""

import asyncio
import contextlib
import socket
from datetime import timedelta
from typing import TYPE_CHECKING

from vidgen_worker.config import Settings
from vidgen_worker.database.listener import Listener
from vidgen_worker.database.pool import Databases
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.keys import Key
from vidgen_worker.media.outputs import Media
from vidgen_worker.media.scratch import Scratch
from vidgen_worker.pipeline.stages import Stage
from vidgen_worker.providers.protocol import Provider
from vidgen_worker.storage.storage import Storage
from vidgen_worker.telemetry.metrics import Metrics
from vidgen_worker.telemetry.turns import Turns
from vidgen_worker.worker.held import Held
from vidgen_worker.worker.life import Life
from vidgen_worker.worker.scopes import scopes_of
from vidgen_worker.worker.wakes import Wakes

if TYPE_CHECKING:
    from vidgen_worker.films.fonts import Fonts


class Process:
    """One process of one worker. `life` is replaced when the worker starts over."""

    scratch: Scratch
    """The folder for downloads, while the worker runs."""

    fonts: "Fonts | None" = None
    """What captions of films are drawn with; None: no film is cut here."""

    def __init__(
        self, settings: Settings, provider: Provider, storage: Storage, media: Media,
        stages: tuple[Stage, ...],
    ) -> None:  # fmt: skip
        self.settings = settings
        self.stages = stages
        self.provider = provider
        self.storage = storage
        self.media = media
        url = settings.database_url.get_secret_value()
        self.databases = Databases(url, settings.vidgen_database_pool, settings.heartbeat)
        self.key = Key(
            provider.name, settings.vidgen_image_model, settings.vidgen_video_model,
            scopes_of(settings, provider.key_fingerprint, socket.gethostname()),
        )  # fmt: skip
        self.wakes = Wakes()
        self.listener = Listener(url, self.wakes.heard, self.databases.outage)
        self.held = Held()
        self.turns = Turns()
        self.metrics = Metrics()
        self.stopping = asyncio.Event()
        self.renewed = asyncio.Event()
        """The lease was renewed since somebody waited for it."""
        self.drain_deadline: float | None = None
        self.life = self.new_life()

    def new_life(self) -> Life:
        """A life under a new id."""
        return Life.begin(self.databases, self.settings, self.key, self._gives_up)

    def _gives_up(self) -> bool:
        return self.drain_deadline is not None and boot_time() > self.drain_deadline

    async def license(self) -> None:
        """Return once something paid may be started: the lease is held, beyond its margin.

        It never returns while draining: a POST that begins then would be cut.
        """
        while not self.life.lease.may_spend() or self.stopping.is_set():
            self.renewed.clear()
            await self.renewed.wait()

    async def machine_works(self, room: int) -> None:
        """Prove, for free, that outputs can be kept and looked at here. Raises Fault.

        `room` is in bytes.
        """
        await asyncio.to_thread(self.scratch.prove, room)
        await self.media.prove()

    async def sleep(self, pause: timedelta) -> None:
        """Sleep, but not through a stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause.total_seconds()):
                await self.stopping.wait()

    def status(self) -> str:
        """One line for systemd."""
        doing = "draining" if self.stopping.is_set() else "working"
        tasks = f"{len(self.held)} of {self.settings.vidgen_concurrency} tasks"
        lease = "" if self.life.lease.held() else ", no heartbeat accepted: is the database away?"
        return f"STATUS={doing}, {tasks}{lease}"
