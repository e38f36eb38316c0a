"""A Supabase project on a test's database, and what a test waits for of it."""

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import Database
from vidgen_worker.sandbox.control import StorageControl
from vidgen_worker.sandbox.serving import BackgroundServer
from vidgen_worker.sandbox.supabase.project import SupabaseProject

PATIENCE = 60.0


@dataclass
class Heard:
    """What the project tells: `read` tables, changes `sent` and `withheld`, who is `subscribed`."""

    sent: list[Any] = field(default_factory=list)
    _queues: dict[str, "queue.SimpleQueue[Any]"] = field(default_factory=dict)

    def __call__(self, what: str, of: object) -> None:
        """Take word; from the server's thread."""
        if what == "sent":
            self.sent.append(of)
        self._queue(what).put(of)

    def next(self, what: str) -> Any:  # noqa: ANN401 - whatever was told
        """Wait for the next word of a kind."""
        return self._queue(what).get(timeout=PATIENCE)

    def _queue(self, what: str) -> "queue.SimpleQueue[Any]":
        return self._queues.setdefault(what, queue.SimpleQueue())


@dataclass(frozen=True)
class Served:
    """A running project: where, with which keys, and what it has told."""

    project: SupabaseProject
    storage: StorageControl
    heard: Heard

    @property
    def url(self) -> str:
        """SUPABASE_URL."""
        return self.storage.url


@contextmanager
def served(database: Database, folder: Path) -> Iterator[Served]:
    """A project on this database, for the length of the block."""
    heard = Heard()
    project = SupabaseProject(folder / "storage", database.admin_url, tell=heard)
    with BackgroundServer(project.app, websockets=True) as server:
        yield Served(project, StorageControl(server.url, project.keys), heard)
