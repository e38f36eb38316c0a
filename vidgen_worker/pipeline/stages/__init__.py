"""The paid steps, in order: `PIPELINE` is what a worker walks.

A stage is a declaration: what the row says while it runs, what to ask the provider for, how an
output is looked at and where it goes. It knows nothing of attempts, leases or money.
"""

from vidgen_worker.pipeline.stages.image import IMAGE
from vidgen_worker.pipeline.stages.stage import Order, Stage
from vidgen_worker.pipeline.stages.video import VIDEO

PIPELINE: tuple[Stage, ...] = (IMAGE, VIDEO)

__all__ = ["IMAGE", "PIPELINE", "VIDEO", "Order", "Stage"]
