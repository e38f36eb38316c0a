"""`make audit`: a vulnerability fails, a service that can't be asked is said in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AUDIT = Path(__file__).parents[2] / ".ci" / "audit.py"
GOOD = {"name": "httpx", "version": "0.28.1", "vulns": []}
BAD = {
    "name": "urllib3", "version": "1.0",
    "vulns": [{"id": "PYSEC-2023-192", "fix_versions": ["1.26.17"]}],
}  # fmt: skip
SKIPPED = {"name": "anyio", "skip_reason": "Dependency not found"}


def audited(tmp_path: Path, printed: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run it with a pip-audit that prints this, and says on stderr what it was asked."""
    program = tmp_path / "pip-audit"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nprint({printed!r})\n"
        f"print('asked', *sys.argv[1:], file=sys.stderr)\nsys.exit({status})\n"
    )
    program.chmod(0o755)
    return subprocess.run(
        [sys.executable, str(AUDIT), str(program)],
        env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip


def found(*dependencies: dict[str, Any]) -> str:
    return json.dumps({"dependencies": dependencies, "fixes": []})


def test_a_known_vulnerability_fails(tmp_path: Path) -> None:
    done = audited(tmp_path, found(GOOD, BAD, SKIPPED), status=1)
    assert done.returncode == 1
    assert "urllib3 1.0: PYSEC-2023-192, mended in 1.26.17" in done.stderr
    assert "make lock" in done.stderr


@pytest.mark.parametrize(
    ("printed", "status", "said"),
    [
        (found(GOOD, SKIPPED), 0, "No known vulnerability in 1 locked packages; 1 could not"),
        (found(SKIPPED, SKIPPED), 0, "Not audited: the package index knows none of 2 packages"),
        ("", 1, "Not audited: the vulnerability service can't be asked (asked --requirement"),
    ],
)
def test_what_is_no_failure_is_said_in_one_line(
    tmp_path: Path, printed: str, status: int, said: str
) -> None:
    """Above all that nothing was looked at: pip-audit calls that 'no known vulnerabilities'."""
    done = audited(tmp_path, printed, status)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(said)
    assert len(done.stdout.splitlines()) == 1
