"""The Supabase objects that migrations expect, put into a plain PostgreSQL database.

The objects themselves are in `bootstrap.sql`; this module runs it. It never touches a hosted
project: there all of it exists, and the role for it (a superuser) does not.
"""

from pathlib import Path

import psycopg
from psycopg import sql

BOOTSTRAP = Path(__file__).with_name("bootstrap.sql")
# Roles belong to the cluster: two databases bootstrapped at once would meet there.
BOOTSTRAP_LOCK = 0x5AB0_0735


def bootstrap(admin_url: str, *, postgres_password: str | None = None) -> None:
    """Make the database of `admin_url`, a superuser's URL, look like a new Supabase project.

    May be called for every database of a cluster, and again for the same one. With a
    `postgres_password`, role `postgres` gets that password. Raises `psycopg.Error`.
    """
    with psycopg.connect(admin_url, dbname="postgres", autocommit=True) as cluster:
        cluster.execute("select pg_advisory_lock(%s)", [BOOTSTRAP_LOCK])
        with psycopg.connect(admin_url) as database:
            database.execute(BOOTSTRAP.read_bytes())
            if postgres_password is not None:
                database.execute(
                    sql.SQL("alter role postgres login password {}").format(postgres_password)
                )
