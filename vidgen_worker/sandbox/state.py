"""The state that a sandbox keeps in its folder over restarts: keys, ports, and the demo's user.

The database and Storage's bytes lie beside it. Nobody else may read the file.
"""

import json
import socket
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from vidgen_worker.sandbox.supabase.keys import StorageKeys

FILE = "project.json"


class StateError(RuntimeError):
    """The folder holds a file that is not a sandbox's; the message says what to do."""


@dataclass(frozen=True, slots=True)
class State:
    """The content of the file. Ports are those of the last time."""

    keys: StorageKeys = field(default_factory=StorageKeys.generate)
    runway_key: str | None = None
    port: int = 0
    postgres_port: int = 0
    demo: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Return what the folder keeps, a new project's where it is new. Raises `StateError`."""
        file = folder / FILE
        try:
            given = json.loads(file.read_text())
            state = cls(**{**given, "keys": StorageKeys(**given["keys"])})
            state._check()
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise StateError(
                f"{file} can't be used as a sandbox's: {error}. Give another folder, or delete it."
            ) from error
        return state

    def save(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        new = folder / f"{FILE}.new"
        new.touch(mode=0o600)
        new.write_text(json.dumps(asdict(self)))
        new.replace(folder / FILE)

    def _check(self) -> None:
        """Raise TypeError for values that can't be."""
        texts = [*asdict(self.keys).values(), *self.demo.values(), self.runway_key or ""]
        if not all(isinstance(one, str) for one in texts):
            raise TypeError("a key in it is no text")
        if not all(isinstance(one, int) for one in (self.port, self.postgres_port)):
            raise TypeError("a port in it is no number")

    def with_demo(self, **demo: str) -> Self:
        """Return the same with the demo's user and scene."""
        return replace(self, demo=demo)


def free(*wanted: int) -> int:
    """Return the first of these ports of 127.0.0.1 that is free; 0, any, where none is."""
    for port in wanted:
        if not port:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    return 0
