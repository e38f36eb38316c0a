"""A Supabase project and a Runway account that run on this machine, for demos and tests.

Reading order: `stack` (what starts), `postgres` and `supabase.sql` (the database), `runway` with
`contract`, `words` and `generations`, `storage` with `objects`. Only the command line and the tests
import this package; the worker does not know that it exists.
"""

from vidgen_worker.sandbox.control import RunwayControl, StorageControl
from vidgen_worker.sandbox.generations import RunwaySettings
from vidgen_worker.sandbox.keys import StorageKeys
from vidgen_worker.sandbox.postgres import EmbeddedPostgres, PostgresError
from vidgen_worker.sandbox.stack import Sandbox
from vidgen_worker.sandbox.supabase import bootstrap
from vidgen_worker.sandbox.words import WORDS, Word

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
