"""Whether the database is away, said once when it goes and once when it is back.

It never connects by itself.
"""

from vidgen_worker.database.remedies import explain_connect
from vidgen_worker.database.trouble import Trouble, one_line, trouble_of
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import DatabaseAway, DatabaseBack


class Outage:
    """Whether the database is away, as all connections of a process see it together.

    One line when it goes, which says what to do, and one when it is back.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._since: float | None = None
        self._failed_at = 0.0
        self.passed = 0
        """How many statements went well so far."""

    @property
    def away(self) -> bool:
        """Whether nothing was answered since it went."""
        return self._since is not None

    def met(self, error: BaseException) -> None:
        """Note that the database, or the way to it, failed."""
        self._failed_at = boot_time()
        if self._since is None:
            self._since = self._failed_at
            said = "timed out" if isinstance(error, TimeoutError) else str(error)
            away = trouble_of(error) is Trouble.AWAY
            emit(DatabaseAway(
                error=explain_connect(said, self._url) if away else one_line(error)
            ))  # fmt: skip

    def answered(self, sent: float, *, well: bool = True) -> None:
        """Note an answer to a statement that was sent then: a good one, or an error of its own."""
        self.passed += well
        if self._since is not None and sent > self._failed_at:
            emit(DatabaseBack(seconds=round(boot_time() - self._since, 1)))
            self._since = None
