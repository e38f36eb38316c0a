"""Things that run until they are stopped, as context managers. Nothing here starts anything."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class ServingError(RuntimeError):
    """A server could not be started; the message says where its log is."""


class Stoppable(ABC):
    """A thing that runs; the end of its context stops it."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it. Any number of calls is fine."""

    def __enter__(self) -> Self:
        """Return the running thing."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it."""
        self.stop()
