"""The ground that all contenders stand on: a durable PostgreSQL, and doubles that answer at once.

Each run gets a fresh database from one migrated template and doubles of its own. fsync and
synchronous_commit are on. Statements are counted by pg_stat_statements, those of the worker's role
alone: the Storage double uses another one. Nothing here measures.
"""

import re
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString, Self
from uuid import UUID, uuid4

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from vidgen_worker.database.migrate import migrate
from vidgen_worker.database.pool import QUERIES
from vidgen_worker.sandbox.control import RunwayControl, StorageControl
from vidgen_worker.sandbox.postgres.server import EmbeddedPostgres
from vidgen_worker.sandbox.runway.double import RunwayDouble, RunwaySettings
from vidgen_worker.sandbox.runway.generations import Generation
from vidgen_worker.sandbox.runway.outputs import Output, Outputs
from vidgen_worker.sandbox.serving import BackgroundServer
from vidgen_worker.sandbox.supabase.bootstrap import bootstrap
from vidgen_worker.sandbox.supabase.storage import StorageDouble

ROOT = Path(__file__).parents[1]
TEMPLATE = "bench_template"
PLENTY = 10**9
LARGEST_BYTES = 500_000_000
"""What the store takes: VIDGEN_MAX_VIDEO_BYTES, as a project of the Pro plan may be set."""

Row = dict[str, Any]


@dataclass
class Ground:
    """One server for the whole bench. `start` makes one."""

    postgres: EmbeddedPostgres
    folder: Path

    @classmethod
    def start(cls) -> Self:
        """Start PostgreSQL with pg_stat_statements, and migrate the template."""
        postgres = EmbeddedPostgres.start(durable=True)
        try:
            with psycopg.connect(postgres.admin_url(), autocommit=True) as conn:
                conn.execute("alter system set shared_preload_libraries = 'pg_stat_statements'")
                # Rarely enough that no run is the one that pays for it.
                conn.execute("alter system set checkpoint_timeout = '15min'")
            postgres.restart()
            bootstrap(postgres.admin_url())
            with psycopg.connect(postgres.admin_url(), autocommit=True) as conn:
                conn.execute("create extension if not exists pg_stat_statements")
                conn.execute(
                    sql.SQL("create database {} owner postgres").format(sql.Identifier(TEMPLATE))
                )
            bootstrap(postgres.admin_url(TEMPLATE))
            migrate(postgres.url(TEMPLATE))
        except BaseException:
            postgres.stop()
            raise
        return cls(postgres, Path(tempfile.mkdtemp(prefix="vidgen-bench-")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.postgres.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def site(
        self, *, clip_bytes: int = 0, **runway: Any,  # noqa: ANN401 - RunwaySettings' own
    ) -> Iterator["Site"]:  # fmt: skip
        """A fresh database and doubles; `runway` changes the settings of Runway's double.

        `clip_bytes` makes every clip so much larger.
        """
        name = f"bench_{uuid4().hex[:12]}"
        admin = self.postgres.admin_url
        with ExitStack() as stack:
            with psycopg.connect(admin(), autocommit=True) as conn:
                conn.execute(
                    sql.SQL("create database {} template {} owner postgres").format(
                        sql.Identifier(name), sql.Identifier(TEMPLATE)
                    )
                )
            stack.callback(self._drop, name)
            folder = self.folder / name
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            instant = {"image_seconds": 0, "video_seconds": 0, "render": "cached"}
            double = RunwayDouble(
                folder / "runway", RunwaySettings(**{**instant, "unlimited": True, **runway})
            )
            if clip_bytes:
                double._outputs = _Padded(folder / "runway", double.generations.all, clip_bytes)  # noqa: SLF001 - the sandbox itself has no use for it
            storage = StorageDouble(folder / "storage", admin(name), largest_bytes=LARGEST_BYTES)
            http = stack.enter_context(BackgroundServer(double.app))
            store = stack.enter_context(BackgroundServer(storage.app))
            control = RunwayControl(http.url, double.key)
            control.set(credit_balance=PLENTY)
            yield Site(
                self, name, control, StorageControl(store.url, storage.keys),
                self.postgres.url(name), admin(name), folder,
            )  # fmt: skip

    def _drop(self, name: str) -> None:
        with psycopg.connect(self.postgres.admin_url(), autocommit=True) as conn:
            conn.execute(
                sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
            )


class _Padded(Outputs):
    """Clips that end with a box of nothing: players skip it, whoever moves the file doesn't."""

    def __init__(self, folder: Path, generations: Mapping[str, Generation], padding: int) -> None:
        super().__init__(folder, generations)
        # ISO/IEC 14496-12: size, type, and what a `free` box holds is ignored.
        self._box = struct.pack(">I4s", padding, b"free") + bytes(padding - 8)

    async def get(self, generation: Generation, *, is_plain: bool) -> Output:
        """As ever, and the box."""
        output = await super().get(generation, is_plain=is_plain)
        if generation.kind == "image":
            return output
        return Output(output.content + self._box, output.media_type)


@dataclass
class Site:
    """One run's database and doubles."""

    ground: Ground
    name: str
    runway: RunwayControl
    storage: StorageControl
    url: str = field(repr=False)
    admin_url: str = field(repr=False)
    folder: Path

    def environment(self, **overrides: str) -> dict[str, str]:
        """What a worker of ours, and a contender, is told by."""
        return {
            "DATABASE_URL": self.url,
            "SUPABASE_URL": self.storage.url,
            "SUPABASE_SERVICE_ROLE_KEY": self.storage.keys.service_role,
            "RUNWAYML_API_SECRET": self.runway.key,
            "RUNWAYML_BASE_URL": self.runway.url,
            "VIDGEN_ALLOW_LOOPBACK_ASSETS": "true",
            "VIDGEN_POLL_INTERVAL": "10ms",
            "VIDGEN_LOG_LEVEL": "warning",
            **overrides,
        }

    def sql(self, statement: LiteralString, *parameters: object) -> list[Row]:
        """Run one statement as superuser, in autocommit."""
        with psycopg.connect(self.admin_url, autocommit=True, row_factory=dict_row) as conn:
            cursor = conn.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def users(self, count: int) -> list[UUID]:
        """Make users with plenty of credits, for whom a stage was stored before."""
        users = [uuid4() for _ in range(count)]
        self.sql(
            "insert into vidgen.user_limits (user_id, first_stored_at)"
            " select u, now() from unnest(%s::uuid[]) as u",
            users,
        )
        self.sql(
            "select public.grant_video_credits(u, %s, u::text) from unnest(%s::uuid[]) as u",
            10**8, users,
        )  # fmt: skip
        return users

    def scenes(self, count: int, users: list[UUID], words: str = "") -> list[UUID]:
        """Make scenes of two seconds, in one scenario, the users in turn."""
        scenario = uuid4()
        self.sql(
            "insert into public.video_scenarios (id, resolution) values (%s, '1280:720')", scenario
        )
        scenes = [uuid4() for _ in range(count)]
        self.sql(
            "insert into public.video_scenes"
            " (id, user_id, scenario_id, image_prompt, visual_prompt, duration)"
            " select id, user_id, %s, 'A bottle on a stone ' || id,"
            " 'The camera moves around it ' || id || %s, 2"
            " from unnest(%s::uuid[], %s::uuid[]) as n (id, user_id)",
            scenario, words, scenes, [users[n % len(users)] for n in range(count)],
        )  # fmt: skip
        return scenes

    def forget_statements(self) -> None:
        """Begin to count anew."""
        with psycopg.connect(self.ground.postgres.admin_url(), autocommit=True) as conn:
            conn.execute("select pg_stat_statements_reset()")

    def statements(self) -> list[Row]:
        """What role `postgres` ran in this database: query, calls, seconds; the longest first."""
        with psycopg.connect(
            self.ground.postgres.admin_url(), autocommit=True, row_factory=dict_row
        ) as conn:
            rows = conn.execute(
                "select s.query, s.calls, s.total_exec_time / 1000 as seconds, s.wal_bytes"
                "  from pg_stat_statements as s"
                " where s.dbid = (select oid from pg_database where datname = %s)"
                "   and s.userid = 'postgres'::regrole"
                " order by s.total_exec_time desc",
                (self.name,),
            ).fetchall()
        return [{**row, "name": statement_name(row["query"])} for row in rows]


def statement_name(text: str) -> str:
    """The name of the block that a statement is, or how the statement begins.

    The block with which it has the longest beginning in common, once comments and values are gone:
    pg_stat_statements drops the one and replaces the other, and not always in the same places.
    """
    shape = _shape(text)
    best = max(_SHAPES, key=lambda name: _common(_SHAPES[name], shape))
    if _common(_SHAPES[best], shape) >= ALIKE * len(_SHAPES[best]):
        return best
    return " ".join(text.split())[:60]


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _shape(text: str) -> str:
    bare = re.sub(r"--[^\n]*|/\*.*?\*/", "", text)
    values = re.sub(
        r"%\(\w+\)s|\$\d+|'[^']*'|(?<![\w$])-?\d+(?:\.\d+)?\b|\b(?:true|false|null|epoch)\b",
        "?",
        bare,
    )
    # PostgreSQL 18 shows a list of values as its first one.
    return re.sub(r"\?(?:,\?)+", "?", re.sub(r"\s+", "", values))


ALIKE = 0.6
"""The share of a block that a statement must have in common with it to be it."""
_SHAPES = {name: _shape(body) for name, body in QUERIES.items()}
