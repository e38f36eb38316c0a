"""The events that wake loops early: a NOTIFY, a free slot, a verdict of the heartbeat.

Nothing here looks anything up.
"""

import asyncio


class Wakes:
    """One event for each loop that can be woken."""

    def __init__(self) -> None:
        self.claim = asyncio.Event()
        self.cancel = asyncio.Event()
        """A waiting task is to be cancelled: a claim of its own does that."""
        self.films = asyncio.Event()
        """A film may be due, or a part of one has ended: a claim of their own looks."""
        self.deliveries = asyncio.Event()
        """A webhook is to be told of something, or a request to one has ended."""
        self.beat = asyncio.Event()
        self.mail = True
        """Somebody may have come for the line since a claim looked."""
        self.gates = True
        """A gate may have closed or opened since the janitor looked."""

    def heard(self, payload: str) -> None:
        """Take in a NOTIFY."""
        if payload == "webhook":
            self.deliveries.set()
            return
        if payload == "gate":
            self.gates = True
        if payload == "cancel":
            # A waiting task is cancelled by a claim, one that runs here by a heartbeat's verdict.
            self.cancel.set()
            self.beat.set()
        if payload == "film":
            self.films.set()
        else:
            self.mail = True
        self.claim.set()
