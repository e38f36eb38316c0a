"""Whether what is paid for can be kept: the file store and this machine have proven it.

The janitor proves, the claim loop reads. Nothing here looks at either of them.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Proofs:
    """The proofs of this worker so far."""

    storage: bool = False
    machine: bool = False
    machine_closed: bool = False
    """A gate says that this machine can't."""

    def proven(self) -> bool:
        """Whether the store has said so once, and the machine says so now."""
        return self.storage and self.machine and not self.machine_closed
