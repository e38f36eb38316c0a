"""The queue's verbs together, as one life of a worker calls them.

Each part decides what the rows that it reads mean; the caller decides what follows.
"""

from vidgen_worker.queue.caller import Caller
from vidgen_worker.queue.checkpoints import Checkpoints
from vidgen_worker.queue.claims import Claims
from vidgen_worker.queue.conclusions import Conclusions
from vidgen_worker.queue.deliveries import Deliveries
from vidgen_worker.queue.films import Films
from vidgen_worker.queue.leases import Leases
from vidgen_worker.queue.line import Line
from vidgen_worker.queue.submissions import Submissions
from vidgen_worker.queue.times import Times
from vidgen_worker.queue.upkeep import Upkeep


class Queue:
    """One worker's view of the queue."""

    def __init__(self, caller: Caller) -> None:
        self.key = caller.key
        self.worker_id = caller.worker_id
        self.leases = Leases(caller)
        self.line = Line(caller)
        self.claims = Claims(caller)
        self.checkpoints = Checkpoints(caller)
        self.submissions = Submissions(caller)
        self.films = Films(caller)
        self.deliveries = Deliveries(caller)
        self.times = Times(caller)
        self.conclusions = Conclusions(caller)
        self.upkeep = Upkeep(caller)
