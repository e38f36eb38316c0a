"""The address by which the owner of a completed task reads its result, for a while."""

from datetime import timedelta

from vidgen_worker.domain.clock import boot_time
from vidgen_worker.domain.task import Completed
from vidgen_worker.storage.storage import Storage

SIGNED_FOR = timedelta(hours=1)


async def completed(storage: Storage, bucket: str, path: str) -> Completed:
    """Sign the address of what a task was ordered for. Raises Fault."""
    good_until = boot_time() + SIGNED_FOR.total_seconds()
    return Completed(await storage.sign(bucket, path, SIGNED_FOR), good_until)
