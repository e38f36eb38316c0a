"""A sandbox as people start it: `vidgen-worker sandbox`, a process with a file of settings."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".tools" / "node_modules"


@dataclass(frozen=True)
class Running:
    """The process, what it has printed, and the settings among that."""

    process: "subprocess.Popen[str]"
    said: str
    settings: dict[str, str]


def settings_of(said: str) -> dict[str, str]:
    """The `NAME=value` lines of a text, as a shell reads them."""
    found = {}
    for line in said.splitlines():
        name, is_one, value = line.partition("=")
        if is_one and name.isidentifier() and name.isupper():
            (found[name],) = shlex.split(value) or [""]
    return found


def fresh(**more: str) -> dict[str, str]:
    """The environment of a shell that knows nothing of us but where the sources are."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


@contextmanager
def sandbox(folder: Path, *arguments: str) -> Iterator[Running]:
    """A sandbox that has said all it says, ended by Ctrl-C with the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "vidgen_worker", "sandbox", *arguments],
        cwd=folder, env=fresh(TMPDIR=str(folder)), stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("# Ctrl-C here"):
                break
        try:
            yield Running(process, said, settings_of(said))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            process.wait(60)
