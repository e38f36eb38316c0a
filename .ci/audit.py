"""`make audit`: whether a locked version has a known vulnerability, where that can be asked.

pip-audit lives in an environment of its own, so that it neither shares nor pins what it looks at:
it would bring fifteen packages into the lock. It asks the package index's vulnerability service. A
machine without network, or an index without that service, is told so in one line and is no failure;
a vulnerability is one.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = "pip-audit==2.10.1"
ROOT = Path(__file__).parents[1]
HOME = ROOT / ".tools" / "audit"
LOCK = ROOT / "requirements.lock"
SECONDS = "10"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came out: a process's exit status, and the line that explains it."""

    status: int
    said: str


def main(arguments: Sequence[str]) -> int:
    """Audit the lock; `arguments` is another pip-audit than our own, for the tests."""
    verdict = audit(list(arguments) or [str(HOME / "bin" / "pip-audit")], install=not arguments)
    (sys.stderr if verdict.status else sys.stdout).write(f"{verdict.said}\n")
    return verdict.status


def audit(program: list[str], *, install: bool) -> Verdict:
    """Run pip-audit on the lock."""
    if install and not Path(program[0]).exists() and (problem := installed()):
        return Verdict(0, f"Not audited: pip-audit can't be installed here ({problem})")
    done = subprocess.run(  # noqa: S603 - a program that was named
        [
            *program, "--requirement", str(LOCK), "--no-deps", "--disable-pip", "--format", "json",
            "--progress-spinner", "off", "--timeout", SECONDS,
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        return read(json.loads(done.stdout))
    except ValueError:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        return Verdict(0, f"Not audited: the vulnerability service can't be asked ({lines[-1]})")


def installed() -> str:
    """Install pip-audit; return why not, or nothing."""
    python = str(HOME / "bin" / "python")
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", str(HOME)],
        [
            sys.executable, "-m", "pip", "--python", python, "install", "--quiet",
            "--retries", "1", "--timeout", SECONDS, PROGRAM,
        ],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    return ""


def read(found: dict[str, Any]) -> Verdict:
    """Judge what pip-audit found. One that was skipped was not looked at, whatever its status."""
    looked = [one for one in found["dependencies"] if "skip_reason" not in one]
    skipped = len(found["dependencies"]) - len(looked)
    if not looked:
        return Verdict(0, f"Not audited: the package index knows none of {skipped} packages")
    bad = [
        f"{one['name']} {one['version']}: {vulnerability['id']}, mended in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version yet'}"
        for one in looked
        for vulnerability in one["vulns"]
    ]
    if bad:
        head = f"{len(bad)} known vulnerabilities in requirements.lock; renew it with `make lock`:"
        return Verdict(1, "\n  ".join([head, *bad]))
    rest = f"; {skipped} could not be looked up" if skipped else ""
    return Verdict(0, f"No known vulnerability in {len(looked)} locked packages{rest}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
