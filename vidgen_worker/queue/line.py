"""The line of turns: users take turns, however many tasks each has. Nothing here takes a task."""

from vidgen_worker.queue.caller import Caller


class Line:
    """The line from which claims take users."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def line_up(self) -> None:
        """Merge new and newly due rows into the line of turns."""
        await self._caller.claims.once("line_up")
