"""What is over is read before somebody looks: a page of numbers then reads the running hour only.

A thread of the dashboard reads the past of each span when it starts, and again before those answers
are too old to be shown. Nothing here is shown: a page reads by itself what is not there yet, and
says what is wrong with the database.
"""

import logging
import threading

from vidgen_worker.client.database import ClientError
from vidgen_worker.dashboard.numbers import read_ahead
from vidgen_worker.dashboard.reads import Reads

log = logging.getLogger("vidgen_worker.dashboard")

EVERY_SECONDS = 300.0
"""Between two rounds. A round sends a statement only for what is new or soon too old."""


class Ahead:
    """The thread, from `start` until `stop`. `has_read` is set after its first round."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._over = threading.Event()
        self.has_read = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dashboard-ahead", daemon=True)

    def start(self) -> None:
        """Begin the first round."""
        self._thread.start()

    def stop(self) -> None:
        """End after the statement that runs now, which has a short time-out."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                for _ in read_ahead(self._reads):
                    if self._over.is_set():
                        return
            except ClientError as error:
                log.debug("The past was not read ahead: %s", error)
            self.has_read.set()
            self._over.wait(EVERY_SECONDS)
