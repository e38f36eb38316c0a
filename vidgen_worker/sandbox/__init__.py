"""A Supabase project and a Runway account that run on this machine, for demos and tests.

Reading order: `stack` (what starts), `postgres/`, `supabase/` (a project), `runway/`, `state` (what
is kept).
Only the command line and the tests import it; the worker does not know that it exists.
"""

from vidgen_worker.sandbox.control import RunwayControl, StorageControl
from vidgen_worker.sandbox.postgres.server import EmbeddedPostgres
from vidgen_worker.sandbox.postgres.software import PostgresError
from vidgen_worker.sandbox.runway.generations import RunwaySettings
from vidgen_worker.sandbox.runway.words import WORDS, Word
from vidgen_worker.sandbox.stack import Sandbox
from vidgen_worker.sandbox.supabase.bootstrap import bootstrap
from vidgen_worker.sandbox.supabase.keys import StorageKeys

__all__ = [
    "WORDS",
    "EmbeddedPostgres",
    "PostgresError",
    "RunwayControl",
    "RunwaySettings",
    "Sandbox",
    "StorageControl",
    "StorageKeys",
    "Word",
    "bootstrap",
]
