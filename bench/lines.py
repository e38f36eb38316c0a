"""How the bench and the processes that it measures talk: one JSON object per line.

Times are CLOCK_MONOTONIC in seconds, which all processes of a machine share. Nothing here measures.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

Line = dict[str, Any]

PATIENCE = 300.0
"""Seconds after which a line that should come has not: only ever reached when something broke."""


def say(what: str, **more: object) -> None:
    """Tell the bench that something happens now."""
    line = json.dumps({"what": what, "at": time.monotonic(), **more})
    # One write: the lines of several threads don't mix.
    os.write(sys.stdout.fileno(), line.encode() + b"\n")


class BrokenError(RuntimeError):
    """A process that is measured ended, or fell silent."""


class Process:
    """A process that tells what it does; its standard error goes to `log`."""

    def __init__(
        self, command: list[str], environment: Mapping[str, str], log: Path, cwd: Path
    ) -> None:
        self.log = log
        self.heard: list[Line] = []
        self._lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        with log.open("ab") as errors:
            self.popen = subprocess.Popen(  # noqa: S603 - our own programs
                command, env=dict(environment), cwd=cwd, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    def _read(self) -> None:
        if self.popen.stdout is None:
            return
        for line in self.popen.stdout:
            if line.startswith(b'{"what"'):
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def ask(self, question: Mapping[str, object]) -> None:
        """Write a line to it."""
        if self.popen.stdin is None:
            raise BrokenError(f"{self.popen.args!r} has no standard input; start it with one")
        self.popen.stdin.write(json.dumps(question).encode() + b"\n")
        self.popen.stdin.flush()

    def until(self, what: str, count: int = 1, *, patience: float = PATIENCE) -> list[Line]:
        """Wait for so many lines of a kind, and return them. Raises BrokenError."""
        found: list[Line] = []
        deadline = time.monotonic() + patience
        while len(found) < count:
            try:
                line = self._lines.get(timeout=max(deadline - time.monotonic(), 0.001))
            except queue.Empty:
                line = None
            if line is None or line["what"] == "failed":
                raise BrokenError(
                    f"{len(found)} of {count} lines {what!r} came from {self.log.stem} "
                    f"(exit status {self.popen.poll()}, {line}). Its log: {self._tail()}"
                )
            self.heard.append(line)
            if line["what"] == what:
                found.append(line)
        return found

    def rest(self) -> list[Line]:
        """What a process that has ended said beyond what was heard."""
        found: list[Line] = []
        while (line := self._lines.get(timeout=PATIENCE)) is not None:
            found.append(line)
        return found

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def cpu_seconds(self) -> float:
        """CPU time of it and its living and buried children, in seconds."""
        return sum(map(cpu_seconds, family(self.pid)))

    def resident_bytes(self) -> int:
        """Resident memory of the process itself, without its children."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        kilobytes = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(kilobytes.split()[1]) * 1024

    def stop(self) -> None:
        """End it, kindly first."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            self.popen.wait(15)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()


def family(pid: int) -> list[int]:
    """A process and its descendants that live now."""
    pids = [pid]
    for one in pids:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            pids += [int(child) for child in children.read_text().split()]
    return pids


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its buried children so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    # utime, stime, and those of buried children: fields 14 to 17 of proc(5).
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
