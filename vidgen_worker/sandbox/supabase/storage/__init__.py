"""Supabase Storage's double: buckets, objects, signed addresses, and faults on demand.

Reading order: `server` (HTTP), `objects` and `buckets` (rows and bytes), `refusals`, `faults`. What
it answers is what the real server was seen to answer. It has no image transformation and no
resumable uploads.
"""

from vidgen_worker.sandbox.supabase.storage.faults import Kind, StorageFault
from vidgen_worker.sandbox.supabase.storage.server import StorageDouble

__all__ = ["Kind", "StorageDouble", "StorageFault"]
