"""The paid steps, in order: `PIPELINE` is what the pipeline walks.

A stage is a pure declaration: what the row says while it runs, what to ask the provider for, where
its output goes. It does no I/O and knows nothing of attempts, leases or money.
"""

from vidgen_worker.pipeline.stages.image import IMAGE
from vidgen_worker.pipeline.stages.stage import Order, Stage
from vidgen_worker.pipeline.stages.video import VIDEO

PIPELINE: tuple[Stage, ...] = (IMAGE, VIDEO)

__all__ = ["IMAGE", "PIPELINE", "VIDEO", "Order", "Stage"]
