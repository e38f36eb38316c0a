"""When a generation is polled next, and when its task is expected to end.

From what the fleet has learnt of such generations and what the provider says of this one. It asks
nobody and writes nothing; what it doesn't know it doesn't say.
"""

import random
from collections.abc import Sequence

from vidgen_worker.domain import polling
from vidgen_worker.domain.polling import Ended, Pace, Seen
from vidgen_worker.pipeline.run import Run, Tools
from vidgen_worker.pipeline.stages import Stage
from vidgen_worker.providers.protocol import Generation, GenerationState
from vidgen_worker.queue.submissions import Took

STORING_SECONDS = 3.0
"""The time of a stage beyond its generation: the output is fetched, checked and stored."""


class Sight:
    """The polls of one generation, in seconds since the provider accepted it."""

    def __init__(self, tools: Tools, run: Run, stage: Stage) -> None:
        self._tools = tools
        self._run = run
        self._stage = stage
        self._seen: list[Seen] = []
        self._running_at: float | None = 0.0 if stage.name in run.submitted else None
        """When it was last seen not to have ended; None: by another attempt, nobody knows when."""
        self._throttled_at = 0.0
        """When it was last seen to wait for a place at the provider: it begins after that."""
        self.pace = Pace.of(tools.settings.vidgen_poll_interval.total_seconds())

    def note(self, generation: Generation, seconds: float) -> None:
        """Note what a poll has seen: it has not ended yet, unless the poll failed."""
        if generation.state is not GenerationState.UNKNOWN:
            self._running_at = seconds
        if generation.state is GenerationState.THROTTLED:
            self._throttled_at = seconds
            self._seen.clear()
        elif generation.state is GenerationState.RUNNING and generation.progress is not None:
            self._seen.append(Seen(seconds - self._throttled_at, generation.progress))

    def took(self, seconds: float) -> Took | None:
        """Return when it ended, as seen now; None where that is of no use for the history.

        It is of no use where nobody had looked for long, where it had to wait for its place, and
        where the database's clock was set while it ran: the history takes no such times.
        """
        since = self._running_at
        if since is None or self._throttled_at or seconds - since > 2 * self.pace.longest:
            return None
        if not 0 <= since <= seconds <= polling.LONGEST_LEFT:
            return None
        return Took(self._run.orders[self._stage.name].seconds, Ended(since, seconds))

    def next_poll(self, seconds: float) -> float:
        """Seconds from now until the next poll."""
        known = history(self._tools, self._run, self._stage)
        lot = random.random()  # noqa: S311
        return self.pace.pause(known, self._seen, seconds - self._throttled_at, lot)

    def seconds_left(self, seconds: float) -> float | None:
        """Seconds until the task is expected to end; None while that is unknown."""
        elapsed = seconds - self._throttled_at
        return seconds_left(self._tools, self._run, self._stage, self._seen, elapsed)


def history(tools: Tools, run: Run, stage: Stage) -> Sequence[Ended]:
    """The last ends of such generations, newest first."""
    order = run.orders[stage.name]
    return tools.queue.times.of(order.request.model, order.seconds)


def seconds_left(
    tools: Tools, run: Run, stage: Stage, seen: Sequence[Seen], elapsed: float
) -> float | None:
    """Seconds until the task is expected to end, `elapsed` after this stage's began.

    None while that is unknown of this stage or of a later one.
    """
    at = tools.stages.index(stage)
    rest = [polling.left(history(tools, run, stage), seen, elapsed)] + [
        polling.left(history(tools, run, later), (), 0.0) for later in tools.stages[at + 1 :]
    ]
    known = [seconds for seconds in rest if seconds is not None]
    return sum(known) + STORING_SECONDS * len(rest) if len(known) == len(rest) else None
