"""Whether the database is away: one log line when it goes, and one when it is back.

Nothing here connects.
"""

from vidgen_worker.database.remedies import explain_connect
from vidgen_worker.database.trouble import Trouble, one_line, trouble_of
from vidgen_worker.domain.clock import boot_time
from vidgen_worker.telemetry.bus import emit
from vidgen_worker.telemetry.events import DatabaseAway, DatabaseBack


class Outage:
    """Whether the database is away, for all connections of a process together.

    The log line at its beginning says what to do.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._since: float | None = None
        self._failed_at = 0.0
        self._back_at = 0.0
        self.passed = 0
        """The number of statements that were answered so far."""

    @property
    def away(self) -> bool:
        """Whether no statement was answered since the outage began."""
        return self._since is not None

    def told(self, begun: float) -> bool:
        """Whether a failure of what began at `begun` belongs to an outage that was logged.

        That outage lasts, or is over. A connection that has answered nothing since the end of an
        outage may have broken in it, and whoever uses it next finds it broken: `begun` is the time
        of its last answer. In a new outage, the next connection fails as well.
        """
        return self.away or begun <= self._back_at

    def met(self, error: BaseException, *, begun: float) -> None:
        """Note a failure of a connection, or of a try to make one, that began at `begun`."""
        if not self.away and self.told(begun):
            return
        self._failed_at = boot_time()
        if self._since is None:
            self._since = self._failed_at
            said = "timed out" if isinstance(error, TimeoutError) else str(error)
            away = trouble_of(error) is Trouble.AWAY
            emit(DatabaseAway(
                error=explain_connect(said, self._url) if away else one_line(error)
            ))  # fmt: skip

    def answered(self, sent: float, *, well: bool = True) -> None:
        """Note the answer to a statement that was sent at `sent`: rows, or an error of its own."""
        self.passed += well
        if self._since is not None and sent > self._failed_at:
            self._back_at = boot_time()
            emit(DatabaseBack(seconds=round(self._back_at - self._since, 1)))
            self._since = None
