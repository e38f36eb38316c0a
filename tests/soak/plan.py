"""What a soak consists of: its sizes, and the tasks that a seed makes of them. No I/O."""

import random
from dataclasses import dataclass
from uuid import UUID

from tests.soak.faults import PROVIDER_FAULTS, ProviderFault
from vidgen_worker.domain.task import StageName


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run. Shares are of 1."""

    seed: int
    tasks: int = 2000
    users: int = 50
    workers: int = 4
    concurrency: int = 10
    kill_every: float = 3.0
    provider_share: float = 0.10
    storage_share: float = 0.05
    cancel_share: float = 0.05
    refusal_share: float = 0.04
    """Tasks whose row an application's trigger refuses to change, at some moment."""
    deletion_share: float = 0.04
    """Tasks whose scene its owner deletes while they wait or run."""
    pooler_share: float = 0.005
    """Writes to our private tables that a pooler's own error (XX000) meets."""
    disk_full_seconds: float = 60.0
    """How long the first worker's machine has no room for a file."""
    patience: float = 600.0
    restarts: tuple[float, ...] = (0.3, 0.65)
    """PostgreSQL is restarted when this share of the tasks has ended: stopped, then killed."""


@dataclass(frozen=True, slots=True)
class Order:
    """One task to be inserted, and what goes wrong with it."""

    task_id: UUID
    scene_id: UUID
    user_id: UUID
    fault: ProviderFault | None
    stage: StageName
    cancel: bool
    refuses: str | None = None
    """What the row refuses to become, until the application mends its trigger."""
    deletes_scene: bool = False

    def prompt(self, stage: StageName) -> str:
        """The prompt of a stage: its own for each task, because words count by prompt."""
        words = f" [[{self.fault.words}]]" if self.fault and stage == self.stage else ""
        return f"{stage} of {self.task_id}{words}"


REFUSALS = ("processing", "pending", "completed", "still", "clip", "progress", "anything")
"""What a row refuses: a status, an output, a milestone, any change."""


def orders_of(plan: Plan) -> list[Order]:
    """All tasks of a run. The first task of each fault is not cancelled, so that it fires."""
    chance = random.Random(plan.seed)
    users = [_uuid(chance) for _ in range(plan.users)]
    count = max(round(plan.tasks * plan.provider_share), len(PROVIDER_FAULTS))
    faulty = dict(zip(chance.sample(range(plan.tasks), count), range(count), strict=True))
    orders = []
    for number in range(plan.tasks):
        turn = faulty.get(number)
        fault = None if turn is None else PROVIDER_FAULTS[turn % len(PROVIDER_FAULTS)]
        first = turn is not None and turn < len(PROVIDER_FAULTS)
        stages = (StageName("image"),) if fault is None else fault.stages
        refuses = fault is None and chance.random() < plan.refusal_share
        orders.append(Order(
            _uuid(chance), _uuid(chance), chance.choice(users), fault,
            stages[0] if first else chance.choice(stages),
            cancel=not first and not refuses and chance.random() < plan.cancel_share,
            refuses=chance.choice(REFUSALS) if refuses else None,
            deletes_scene=not first and not refuses and chance.random() < plan.deletion_share,
        ))  # fmt: skip
    return orders


def _uuid(chance: random.Random) -> UUID:
    return UUID(int=chance.getrandbits(128), version=4)
