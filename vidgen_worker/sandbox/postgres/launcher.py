"""The small process between us and the embedded PostgreSQL server.

It runs as a script of its own (`python -I -S launcher.py PLAN`), in its own session, so that the
terminal's Ctrl-C does not reach the server. Its standard input is a pipe that the program holds:
`stop MODE` there shuts the server down, `finish MODE` also deletes the folders named in the plan,
and so does the end of the pipe, by whatever kind of death. If the launcher itself is killed, Linux
tells the server (PR_SET_PDEATHSIG). It reports `ready PID` or `failed`, and ends with the server.

It never decides anything about the cluster, and imports nothing but the standard library.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
IPC_RMID = 0
SHUTDOWNS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# A fast shutdown that takes longer than this is stuck; recovery at the next start costs less.
PATIENCE_SECONDS = 15.0
STATUS_LINE = 7
SHARED_MEMORY_LINE = 6


@dataclass(frozen=True, slots=True)
class Plan:
    """The commands: `initdb` (empty for an existing cluster), then `server`, as `account`.

    `initdb` works in `making`, which becomes `data` once it is whole.
    """

    initdb: list[str]
    server: list[str]
    making: str
    data: str
    account: tuple[int, int] | None
    log: str
    sweep: list[str]


def dies_with_its_parent() -> Callable[[], None]:
    """Return what to call in the child, after its change of user (which clears the setting)."""
    if sys.platform != "linux":
        return lambda: None
    libc = ctypes.CDLL(None, use_errno=True)
    launcher = os.getpid()

    def after_setuid() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
        if os.getppid() != launcher:
            os._exit(1)

    return after_setuid


class Launcher:
    """One child at a time: `initdb`, then the server."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.child: subprocess.Popen[bytes] | None = None
        self.stopping_since: float | None = None
        self.is_alone = False
        self.sweeps = False
        self.buffer = b""
        self.wakeup, ringer = os.pipe()
        os.set_blocking(ringer, False)
        signal.set_wakeup_fd(ringer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self.shut_down("fast"))

    def spawn(self, command: list[str]) -> None:
        """Start `command` as the plan's account, in a process group of its own."""
        user, group = self.plan.account or (None, None)
        with Path(self.plan.log).open("ab") as log:
            self.child = subprocess.Popen(  # noqa: S603 - the command is our own
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                preexec_fn=dies_with_its_parent(),  # noqa: PLW1509 - this process has one thread
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )

    def shut_down(self, mode: str) -> None:
        """Ask the child to end, and remember when it was asked first."""
        if self.stopping_since is None:
            self.stopping_since = time.monotonic()
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(SHUTDOWNS[mode])

    def listen(self, seconds: float | None) -> None:
        """Wait for a command, the end of our parent, the end of the child, or `seconds`."""
        watched = [self.wakeup] if self.is_alone else [self.wakeup, 0]
        readable, _, _ = select.select(watched, [], [], seconds)
        if self.wakeup in readable:
            os.read(self.wakeup, 4096)
        if 0 not in readable:
            return
        received = os.read(0, 4096)
        if not received:
            self.is_alone = self.sweeps = True
            self.shut_down("fast")
        *lines, self.buffer = (self.buffer + received).split(b"\n")
        for line in lines:
            verb, mode = line.decode().split()
            self.sweeps = self.sweeps or verb == "finish"
            self.shut_down(mode)

    def await_child(self, *, until_ready: bool = False) -> int | None:
        """Serve commands until the child has ended (its exit status) or is ready (None)."""
        assert self.child is not None  # noqa: S101 - for the type checker
        while (status := self.child.poll()) is None:
            if until_ready and self.is_ready():
                return None
            overdue = (
                self.stopping_since is not None
                and time.monotonic() - self.stopping_since > PATIENCE_SECONDS
            )
            if overdue:
                os.killpg(self.child.pid, signal.SIGKILL)
            busy = until_ready or self.stopping_since is not None
            self.listen(0.01 if busy else None)
        return status

    def is_ready(self) -> bool:
        """Whether the server accepts connections: it writes so into its pid file."""
        lines = self.pid_file()
        return (
            self.child is not None
            and len(lines) > STATUS_LINE
            and lines[0] == str(self.child.pid)
            and lines[STATUS_LINE].strip() == "ready"
        )

    def pid_file(self) -> list[str]:
        """Return the lines of `postmaster.pid`; none while there is no such file."""
        try:
            return (Path(self.plan.data) / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def run(self) -> int:
        """Create the cluster if asked, run the server to its end, clean up."""
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            return self.create_and_serve()
        finally:
            bury()
            if self.sweeps:
                self.sweep()

    def create_and_serve(self) -> int:
        """Return 0 when the server ended in order."""
        for command, serves in ((self.plan.initdb, False), (self.plan.server, True)):
            if not command:
                continue
            self.spawn(command)
            if self.stopping_since is not None:
                self.shut_down("fast")
            status = self.await_child(until_ready=serves)
            if status is None and self.child is not None:
                tell(f"ready {self.child.pid}")
                return self.await_child() or 0
            if status != 0 or serves:
                tell("failed")
                return status or 1
            Path(self.plan.making).rename(self.plan.data)
        return 0

    def sweep(self) -> None:
        """Delete what the dead program would have deleted, shared memory included."""
        lines = self.pid_file()
        if len(lines) > SHARED_MEMORY_LINE and len(lines[SHARED_MEMORY_LINE].split()) > 1:
            # Only a killed server leaves its pid file, and with it a few bytes of System V memory.
            memory_id = int(lines[SHARED_MEMORY_LINE].split()[1])
            ctypes.CDLL(None).shmctl(memory_id, IPC_RMID, None)
        for folder in self.plan.sweep:
            shutil.rmtree(folder, ignore_errors=True)


def bury() -> None:
    """Wait for the children of a killed server: the next server can start only after them."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def tell(line: str) -> None:
    """Report to the program, which may be gone."""
    try:
        os.write(1, line.encode() + b"\n")
    except BrokenPipeError:
        signal.raise_signal(signal.SIGCHLD)  # the loop finds the end of its input next


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    account = given.pop("account")
    sys.exit(Launcher(Plan(**given, account=tuple(account) if account else None)).run())
