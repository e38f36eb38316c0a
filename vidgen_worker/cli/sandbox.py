"""`sandbox`: the demo's stack, kept running, with everything needed to point programs at it."""

import shlex
import signal
import sys
from collections.abc import Mapping

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.interrupts import Interrupts
from vidgen_worker.cli.output import console
from vidgen_worker.cli.stack import CREDITS, Seed, running_sandbox, seed
from vidgen_worker.client.database import open_database


def sandbox() -> None:
    """Keep the embedded stack running and print how to use it. Ctrl-C ends it."""
    err = console(stderr=True)
    with Interrupts() as interrupts:
        try:
            err.print("Starting PostgreSQL and the doubles of Runway and Supabase Storage …")
            with running_sandbox(interrupts) as stack:
                environment = stack.environment()
                with open_database(environment["DATABASE_URL"]) as database:
                    seeded = seed(database, stack.product_image_url)
                print(usage(environment, seeded, stack.user_token(seeded.user_id)), flush=True)
                while True:
                    signal.pause()
        except KeyboardInterrupt:
            err.print("Everything is stopped.")
            sys.exit(ExitCode.INTERRUPTED)


def usage(environment: Mapping[str, str], seeded: Seed, user_token: str) -> str:
    """Return lines for another terminal: variables to paste, and what to do with them."""
    variables = {
        **environment,
        "DEMO_USER": str(seeded.user_id),
        "DEMO_SCENE": str(seeded.scene_id),
        "DEMO_USER_TOKEN": user_token,
    }
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())
    return f"""\
# Paste this into another terminal (a user with {CREDITS} credits and a scene are there already):
{exports}

# Then, for instance:
#   vidgen-worker run &
#   vidgen-worker enqueue --scene $DEMO_SCENE --user $DEMO_USER --watch
#   vidgen-worker credits show $DEMO_USER
#   psql $DATABASE_URL -c "select id, status, progress from video_generation_tasks"
#   psql $DATABASE_URL -c "update video_scenes set visual_prompt = 'A bottle [[fail SAFETY]]'"
#   python -c "import os, supabase; print(supabase.create_client(os.environ['SUPABASE_URL'],
#     os.environ['SUPABASE_SERVICE_ROLE_KEY']).storage.list_buckets())"
#
# Ctrl-C here stops everything and deletes it."""  # noqa: S608 - an example to paste
