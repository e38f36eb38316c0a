"""What systemd sees of a worker, over a real datagram socket; and what it says of our units."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.proxy import proxy
from tests.support.world import PATIENCE, World
from vidgen_worker.config import Settings
from vidgen_worker.telemetry.turns import SLACK, Turns
from vidgen_worker.worker.heartbeat import Heartbeat
from vidgen_worker.worker.systemd import sd_notify, watchdog_pace
from vidgen_worker.worker.worker import Worker

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE = (UNITS / "vidgen-worker.service").read_text()
TEMPLATE = (UNITS / "vidgen-worker@.service").read_text()
EXPOSURE = 1.5


class Systemd:
    """The end of NOTIFY_SOCKET that systemd holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE)

    def heard(self) -> dict[str, str]:
        """Wait for the next datagram: name → value."""
        lines = self._socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def until(self, name: str) -> dict[str, str]:
        """Wait for a datagram that says this."""
        while name not in (said := self.heard()):
            pass
        return said

    def waiting(self) -> list[dict[str, str]]:
        """Take what has come and was not read yet."""
        found = []
        self._socket.setblocking(False)
        try:
            while True:
                found.append(self.heard())
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(PATIENCE)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    listening = Systemd(tmp_path / "notify")
    yield listening
    listening.close()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, systemd: Systemd) -> Systemd:
    """This process's own worker has a watchdog that wants to hear it every 50 ms."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.path))
    monkeypatch.setenv("WATCHDOG_USEC", "150000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    return systemd


# The protocol.


def test_a_worker_says_when_it_is_ready_works_and_stops(
    world: World, systemd: Systemd, tmp_path: Path
) -> None:
    socket_of = {"NOTIFY_SOCKET": str(systemd.path), "WATCHDOG_USEC": "300000"}
    with world.process(tmp_path / "log", **socket_of) as process:
        ready = systemd.until("READY")
        row = world.one("select heartbeat_at > started_at as beaten from vidgen.workers")
        assert row["beaten"], "READY came before the first heartbeat"
        assert ready["STATUS"] == "working, 0 of 20 tasks"
        assert systemd.until("WATCHDOG")["WATCHDOG"] == "1"
        process.send_signal(signal.SIGTERM)
        assert systemd.until("STOPPING")["STATUS"].startswith("draining")
        assert process.wait(PATIENCE) == 0
    assert not [said for said in systemd.waiting() if "READY" in said]


async def test_nothing_is_ready_before_a_heartbeat_was_accepted(
    world: World, told: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, held, beat = asyncio.Event(), asyncio.Event(), Heartbeat.beat

    async def slowly(heartbeat: Heartbeat) -> None:
        inside.set()
        await held.wait()
        await beat(heartbeat)

    monkeypatch.setattr(Heartbeat, "beat", slowly)
    async with world.worker():
        await asyncio.wait_for(inside.wait(), PATIENCE)
        said: dict[str, str] = {}
        while "WATCHDOG" not in said:
            said = await asyncio.to_thread(told.heard)
            early = "READY" in said
            if early:
                break
        held.set()
        assert not early
        await asyncio.to_thread(told.until, "READY")


async def test_the_status_counts_what_runs(world: World, told: Systemd) -> None:
    user = world.user()
    async with world.worker():
        scene = world.scene(user, image_prompt="[[throttle 30s]] A bottle")
        task = world.order(user, scene)
        await world.until(task, "processing")
        await world.beats(1)
        told.waiting()
        said = await asyncio.to_thread(told.until, "STATUS")
        assert said["STATUS"] == "working, 1 of 20 tasks"


async def test_the_watchdog_falls_silent_when_the_claim_loop_is_stuck(
    world: World, told: Systemd
) -> None:
    """And speaks again when it turns again; /healthz says the same."""
    async with world.worker() as worker:
        await asyncio.to_thread(told.until, "WATCHDOG")
        while not worker.janitor.probing.proofs.proven():  # before that it claims nothing
            await world.beats(1)
        async with worker.claiming.lock:  # as a claim that never comes back holds it
            await world.beats(1)
            late(worker, "claim")
            await silent(told)
            assert worker.process.turns.stuck() == ["claim"]
            assert not worker.alive()
            await world.beats(2)
            assert told.waiting() == []
        await asyncio.to_thread(told.until, "WATCHDOG")
        assert worker.alive()


async def test_the_watchdog_falls_silent_when_the_heartbeat_loop_is_stuck(
    world: World, told: Systemd
) -> None:
    async with world.worker() as worker:
        await asyncio.to_thread(told.until, "WATCHDOG")
        inside, held = asyncio.Event(), asyncio.Event()

        async def hang() -> None:
            inside.set()
            await held.wait()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker.heartbeat, "beat", hang)
            await asyncio.wait_for(inside.wait(), PATIENCE)
            late(worker, "heartbeat")
            await silent(told)
            assert worker.process.turns.stuck() == ["heartbeat"]
            assert not worker.alive()
        held.set()
        await asyncio.to_thread(told.until, "WATCHDOG")


async def test_a_database_that_does_not_answer_is_no_reason_to_be_killed(
    world: World, told: Systemd
) -> None:
    async with (
        proxy(world.database.url) as between,
        world.worker(DATABASE_URL=between.url, VIDGEN_LEASE="1s") as worker,
    ):
        await asyncio.to_thread(told.until, "READY")
        between.freeze()
        said = await asyncio.to_thread(told.until, "WATCHDOG")
        while "is the database away?" not in said["STATUS"]:
            said = await asyncio.to_thread(told.until, "WATCHDOG")
        assert worker.alive()
        between.mend()
        while "away" in said["STATUS"]:
            said = await asyncio.to_thread(told.until, "WATCHDOG")


def late(worker: Worker, loop: str) -> None:
    """Let the loop's next turn have been due long ago."""
    worker.process.turns._due[loop] -= 1000


async def silent(systemd: Systemd) -> None:
    """Take what was on its way when the loop got stuck."""
    await asyncio.sleep(0)
    systemd.waiting()


def test_a_turn_that_is_overdue_is_stuck_and_one_that_rests_is_not() -> None:
    turns = Turns()
    turns.turned("claim", timedelta(0))
    turns.turned(("poll", 1), -2 * SLACK)
    assert turns.stuck() == [("poll", 1)]
    turns.rests(("poll", 1))
    turns.rests("never heard of")
    assert turns.stuck() == []
    turns.turned("heartbeat", -2 * SLACK)
    turns.all_rest()
    assert turns.stuck() == []


def test_the_watchdogs_pace_is_a_third_of_systemds_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert watchdog_pace() is None
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    assert watchdog_pace() == timedelta(seconds=20)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert watchdog_pace() is None, "it is another process that is watched"


def test_without_systemd_or_with_one_that_is_away_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    sd_notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    sd_notify("READY=1")


def test_a_systemd_that_does_not_read_does_not_stop_the_worker(told: Systemd) -> None:
    """Its queue is full: the line is left out, and said to be."""
    while sd_notify("WATCHDOG=1"):
        pass
    assert told.waiting()
    assert sd_notify("WATCHDOG=1")


def test_the_abstract_namespace_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"vidgen-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        sd_notify("READY=1", "STATUS=x")
        assert listening.recv(100) == b"READY=1\nSTATUS=x"


# The units.

analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def directives(unit: str) -> list[tuple[str, str]]:
    return re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE)


def test_the_template_is_the_service_with_names() -> None:
    one = [d for d in directives(SERVICE) if d[0] != "Description"]
    many = [d for d in directives(TEMPLATE) if d[0] != "Description"]
    own = ("EnvironmentFile", "-/etc/vidgen-worker/%i.env")
    assert many.index(own) == many.index(("EnvironmentFile", "-/etc/vidgen-worker/env")) + 1
    many.remove(own)
    assert many == one


def test_the_numbers_of_the_unit_fit_the_workers() -> None:
    values = dict(directives(SERVICE))
    drain = Settings.model_fields["vidgen_drain_timeout"].default.total_seconds()
    assert float(values["TimeoutStopSec"].removesuffix("s")) > drain
    assert values["Restart"] == "always"
    assert values["RestartPreventExitStatus"] == "78"
    assert values["StartLimitIntervalSec"] == "0"
    credentials = {v.split(":")[0] for k, v in directives(SERVICE) if k == "LoadCredential"}
    # A unit does not start without a credential that it names: the mandatory ones alone.
    secret = {
        n for n, f in Settings.model_fields.items()
        if "SecretStr" in str(f.annotation) and f.is_required()
    }  # fmt: skip
    assert credentials == secret
    assert "RestartMaxDelaySec=60s" in (UNITS / "backoff.conf").read_text()


def test_the_example_of_the_environment_file_holds_settings_and_no_secret() -> None:
    names = dict(directives((UNITS / "vidgen-worker.env").read_text()))
    for name in names:
        assert name.lower() in Settings.model_fields
        assert "SecretStr" not in str(Settings.model_fields[name.lower()].annotation)


@analyze
@pytest.mark.parametrize("unit", ["vidgen-worker.service", "vidgen-worker@.service"])
def test_the_unit_is_hardened(unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(UNITS / unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"exposure level for .*?: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE


@contextmanager
def installed(tmp_path: Path, unit: str) -> Iterator[Path]:
    """The unit, with a program that exists on this machine."""
    text = (UNITS / unit).read_text()
    program = re.search(r"^ExecStart=(\S+)", text, re.MULTILINE)
    assert program
    path = tmp_path / unit.replace("@.", "@one.")
    path.write_text(text.replace(program[1], shutil.which("true") or "/bin/true"))
    yield path


@analyze
@pytest.mark.parametrize("unit", ["vidgen-worker.service", "vidgen-worker@.service"])
def test_systemd_understands_every_line_of_the_unit(unit: str, tmp_path: Path) -> None:
    with installed(tmp_path, unit) as path:
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
