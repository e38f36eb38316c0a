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
        self._back_at = 0.0
        self.passed = 0
        """How many statements went well so far."""

    @property
    def away(self) -> bool:
        """Whether nothing was answered since it went."""
        return self._since is not None

    def told(self, begun: float) -> bool:
        """Whether the failure of what was begun then has been said: its outage lasts, or is over.

        A connection that was made before the database was back may have broken in that outage, and
        is met broken whenever it is next used. In another one, the next connection fails as well.
        """
        return self.away or begun <= self._back_at

    def met(self, error: BaseException, *, begun: float) -> None:
        """Note that a connection of then, or a try at one, failed on the way to the database."""
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
        """Note an answer to a statement that was sent then: a good one, or an error of its own."""
        self.passed += well
        if self._since is not None and sent > self._failed_at:
            self._back_at = boot_time()
            emit(DatabaseBack(seconds=round(self._back_at - self._since, 1)))
            self._since = None
