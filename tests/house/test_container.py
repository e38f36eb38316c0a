"""The image's recipe, line by line, and the worker as a container's first process.

No image is built here: there may be no Docker. What the first process does with signals is tried in
a PID namespace.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import psutil
import pytest
import yaml
from typer.main import get_command

from tests.support.world import PATIENCE, World
from vidgen_worker.cli import app
from vidgen_worker.config import Settings
from vidgen_worker.telemetry.metrics import Metrics, serving

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "Dockerfile").read_text()
UNSHARE = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]


def instructions() -> list[tuple[str, str]]:
    """Every instruction and what follows it, comments and line ends taken out."""
    text = re.sub(r"^#.*\n", "", RECIPE, flags=re.MULTILINE).replace("\\\n", "")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(word, rest) for word, rest in lines]


def last(word: str) -> str:
    """What the image itself, the last stage, says."""
    return [rest for name, rest in instructions() if name == word][-1]


def probe() -> list[str]:
    """The health check's program, with this Python."""
    command: list[str] = json.loads(last("HEALTHCHECK").partition(" CMD ")[2])
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


def has_compose() -> bool:
    if shutil.which("docker") is None:
        return False
    asked = ["docker", "compose", "version"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def test_the_worker_is_the_first_process_and_no_shell_stands_between() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["vidgen-worker"]
    assert json.loads(last("CMD")) == ["run"]
    assert last("STOPSIGNAL") == "SIGTERM"


def test_it_runs_as_nobody_in_particular() -> None:
    user, _, group = last("USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_no_secret_and_no_registry_is_in_the_recipe() -> None:
    said = [rest for word, rest in instructions() if word in {"ARG", "ENV"}]
    for name, field in Settings.model_fields.items():
        if "SecretStr" in str(field.annotation):
            assert not any(name.upper() in rest for rest in said), name
    for name in re.findall(r"\bVIDGEN_\w+", RECIPE):
        assert name.lower() in Settings.model_fields, name
    base, fonts = (rest for word, rest in instructions() if word == "ARG")
    assert re.fullmatch(r"BASE=[\w:.-]+", base), "a bare name is found wherever one looks"
    assert fonts == 'FONTS="fonts-noto-core"'
    assert all(rest.split()[0] == "${BASE}" for word, rest in instructions() if word == "FROM")


def test_only_what_the_package_asks_for_is_installed() -> None:
    """The lock constrains; a list of it (-r) would bring the developers' tools."""
    pips = re.findall(r"pip (?:--python \S+ )?install (.+?)(?: &&|$)", RECIPE, re.MULTILINE)
    assert pips
    for arguments in pips:
        assert arguments.startswith("--constraint requirements.lock ")
        assert not re.search(r"\[(?!films\])", arguments)


def test_what_is_copied_exists_and_is_let_into_the_build() -> None:
    rules = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]  # fmt: skip
    assert rules[0] == "*"

    def let_in(path: str) -> bool:
        """The last rule that fits decides."""
        found = False
        for rule in rules:
            pattern = rule.removeprefix("!").removeprefix("**/")
            parents = [path, *(str(p) for p in Path(path).parents), Path(path).name]
            if any(fnmatch(part, pattern) for part in parents):
                found = rule.startswith("!")
        return found

    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                one = next((ROOT / source).glob("*.*"), ROOT / source)
                assert let_in(str(one.relative_to(ROOT))), source
    # What the wheel takes from elsewhere: without it the build in the image ends.
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    copied = {source for word, rest in instructions() if word == "COPY" for source in rest.split()}
    assert packaged["targets"]["wheel"]["force-include"].keys() <= copied
    assert let_in("vidgen_worker/queue/claims.sql")
    assert not let_in(".env")
    assert not let_in("vidgen_worker/__pycache__/x.pyc")
    assert not let_in("tests/conftest.py")


def test_the_wheel_is_built_from_what_is_copied_and_from_nothing_else(tmp_path: Path) -> None:
    """The recipe's own command, in a folder that holds what the recipe copies."""
    (build,) = re.findall(r"RUN python (-m pip wheel .+?) && ", RECIPE.replace("\\\n  ", ""))
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, tmp_path / target / ("" if copy is shutil.copy else "."))
    subprocess.run(
        [sys.executable, *build.split()], cwd=tmp_path, check=True, capture_output=True, timeout=120
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    packaged = {
        str(path.relative_to(ROOT)) for path in (ROOT / "vidgen_worker").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }  # fmt: skip
    assert packaged <= held, packaged - held
    assert len([name for name in held if name.endswith(".sql") and "migrations" in name]) == len(
        list((ROOT / "migrations").glob("*.sql"))
    )


def test_compose_migrates_first_and_lets_the_worker_drain() -> None:
    """Read as YAML: there may be no Docker here. With one, Compose reads it as well."""
    text = (ROOT / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    assert services.keys() == {"migrate", "worker"}
    verbs = getattr(get_command(app), "commands", {})
    typed = re.findall(r"docker compose run (?:--\S+ )*(\w+) (\w+)", text)
    assert typed
    for service, verb in [*typed, *((name, services[name].get("command", ["run"])[0])
                                    for name in services)]:  # fmt: skip
        assert service in services
        assert verb in verbs, verb
    for setting in re.findall(r"\b[A-Z]+_[A-Z_]+\b", text):
        assert setting.lower() in Settings.model_fields, setting
    assert services["migrate"]["command"] == ["migrate"]
    assert "command" not in services["worker"], "the image's own: run"
    assert services["worker"]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"}
    }
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    drain = Settings.model_fields["vidgen_drain_timeout"].default.total_seconds()
    assert int(services["worker"]["stop_grace_period"].removesuffix("s")) > drain
    for service in services.values():
        assert service["build"] == ".", "our Dockerfile, beside this file"
        assert service["image"] == "vidgen-worker", "no registry's: it is built here"
        assert "environment" not in service, "secrets come from the file that env_file names"
        assert service["read_only"] is True
        assert service["tmpfs"] == [last("WORKDIR")], "where outputs are kept while they are stored"
        assert "ports" not in service
        assert f"/{service['env_file']}" in ignored, "a file with secrets must not be committed"


@pytest.mark.skipif(not has_compose(), reason="needs Docker Compose")
def test_compose_takes_the_file(tmp_path: Path) -> None:
    for name in ("compose.yaml", "Dockerfile", ".env.example"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".env.example").rename(tmp_path / "worker.env")
    done = subprocess.run(
        ["docker", "compose", "config", "--quiet"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("alive", [True, False])
def test_the_health_check_asks_whether_the_loops_turn(*, alive: bool) -> None:
    with serving(Metrics(), 0, alive=lambda: alive, ready=lambda: True) as port:
        # A proxy in the environment is no way to oneself.
        told = {"VIDGEN_METRICS_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
        done = subprocess.run(probe(), env=told, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if alive else 1), done.stderr


def test_a_worker_that_does_not_answer_is_not_healthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    told = {"VIDGEN_METRICS_PORT": str(port)}
    assert subprocess.run(probe(), env=told, capture_output=True, check=False).returncode != 0


# The first process.


def has_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


first_process = pytest.mark.skipif(not has_namespaces(), reason="needs PID namespaces (unshare)")


@contextmanager
def container(world: World, log: Path, **overrides: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The worker as PID 1 of a namespace; what is given is the process that waits for it."""
    with (
        log.open("ab") as out,
        subprocess.Popen(
            [*UNSHARE, sys.executable, "-m", "vidgen_worker", "run"],
            env={"PATH": os.environ["PATH"], **world.env(**overrides)},
            stdout=out, stderr=out, cwd=log.parent,
        ) as outside,
    ):  # fmt: skip
        try:
            yield outside
        finally:
            if outside.poll() is None:
                outside.kill()


def stop(outside: "subprocess.Popen[bytes]") -> int:
    """What `docker stop` sends first, and what comes of it."""
    (first,) = psutil.Process(outside.pid).children()
    known_as = re.findall(
        r"^NSpid:.*\t(\d+)$", Path(f"/proc/{first.pid}/status").read_text(), re.MULTILINE
    )
    assert known_as == ["1"]
    first.send_signal(signal.SIGTERM)
    return outside.wait(PATIENCE)


@first_process
async def test_sigterm_drains_the_first_process(world: World, tmp_path: Path) -> None:
    world.runway.set(video_seconds=600)
    user = world.user()
    task = world.order(user, world.scene(user))
    with container(world, tmp_path / "log") as outside:
        await world.until(task, "processing")
        await generates(world, task)
        assert stop(outside) == 0
    row = world.task(task)
    assert (row["status"], row["failures"], row["attempt"]) == ("pending", 0, 1)
    assert "handed back" in (tmp_path / "log").read_text()


async def generates(world: World, task: object) -> None:
    """Wait until the clip's generation is under way."""
    generating = (
        "select 1 from vidgen.checkpoints where task_id = %s and stage = 'video'"
        " and state = 'generating'"
    )
    while not world.sql(generating, task):
        await world.beats(1)


@first_process
def test_sigterm_ends_the_first_process_before_it_has_begun(world: World, tmp_path: Path) -> None:
    """The kernel keeps signals without a handler from PID 1: the worker has one from the start."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        port = silent.getsockname()[1]
        url = f"postgresql://postgres:secret@127.0.0.1:{port}/postgres"
        with container(world, tmp_path / "log", DATABASE_URL=url) as outside:
            connection, _ = silent.accept()
            with connection:
                assert stop(outside) == 0
