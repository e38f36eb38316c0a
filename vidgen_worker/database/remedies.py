"""The reason why a connection to PostgreSQL failed, and the remedy, in one paragraph.

The only source is libpq's text. No password is shown.
"""

import os

from vidgen_worker.database.database_url import place_of
from vidgen_worker.domain.foreign_text import printable

# psycopg reports every failure to connect without an SQLSTATE: only the text tells them apart.
CONNECT_REMEDIES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (
            "invalid sslmode value",
            "invalid channel_binding value",
            "invalid target_session_attrs value",
            "invalid integer value",
            "definition of service",
            "root certificate file",
            "could not read certificate file",
        ),
        "A parameter of the connection can't be used: correct it, or leave it out.",
    ),
    (
        ("cannot execute", "read-only transaction"),
        "This is a standby, or the database was made read-only: use the primary's URL.",
    ),
    (
        ("password authentication failed", "SASL authentication failed"),
        (
            "The password or the user name is wrong. Copy the URL again (dashboard → Connect), or "
            "reset the password (Project Settings → Database). A project that is just waking up "
            "from a pause answers like this too: look at it in the dashboard."
        ),
    ),
    (
        ("Tenant or user not found", "tenant/user"),
        (
            "The pooler doesn't know this project. Its user name is postgres.<project ref>, and "
            "its host must be the one of your project's region (dashboard → Connect)."
        ),
    ),
    (
        (
            "could not translate host name",
            "Name or service not known",
            "nodename nor servname",
            "failed to resolve host",
            "Temporary failure in name resolution",
            "No address associated with hostname",
            "Address family for hostname not supported",
        ),
        (
            "The host name can't be resolved. Check it for typing errors; db.<ref>.supabase.co "
            "has only an IPv6 address, so on a machine without IPv6 take the Session pooler's URL."
        ),
    ),
    (
        ("Network is unreachable", "Cannot assign requested address", "No route to host"),
        (
            "This machine can't reach the address, most likely because it is an IPv6 one: take the "
            "Session pooler's URL (dashboard → Connect), which has IPv4."
        ),
    ),
    (
        (
            "server closed the connection",
            "terminating connection",
            "the connection is lost",
            "connection reset",
            "the connection is closed",
        ),
        (
            "The server, or a pooler before it, ended the connection: it restarts, or somebody "
            "ended it. The worker connects again by itself; if it stays so, look at the project "
            "in the dashboard."
        ),
    ),
    (
        ("Connection refused",),
        (
            "Nothing listens there. Check host and port (5432 direct and session pooler, 6543 "
            "transaction pooler), and that the server runs."
        ),
    ),
    (
        ("timeout expired", "timed out", "Connection timed out"),
        (
            "No answer. A firewall or the project's network restrictions may be in the way, or the "
            "project is paused (dashboard)."
        ),
    ),
    (
        (
            "MaxClientsInSessionMode",
            "Max client connections",
            "too many clients",
            "remaining connection",
        ),
        (
            "All connections are taken. Lower VIDGEN_DATABASE_POOL, stop what else is connected, "
            "or raise the pool size (Project Settings → Database)."
        ),
    ),
    (
        (
            "invalid response to SSL negotiation",
            "unexpected response from server",
            "expected authentication request",
        ),
        "Another program than PostgreSQL answers there. Check host and port of DATABASE_URL.",
    ),
    (
        ("no pg_hba.conf entry", "SSL", "certificate"),
        "The server wants another kind of connection. Add ?sslmode=require to the URL.",
    ),
    (
        ("does not exist",),
        (
            "The server is there, but not this database or role. Supabase's are both called "
            "postgres."
        ),
    ),
    (
        ("starting up", "shutting down", "not yet accepting", "in recovery mode"),
        "The server is starting or stopping. Try again in a moment.",
    ),
)

LIBPQ_VARIABLES = (
    "PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE",
    "PGSERVICE", "PGSERVICEFILE", "PGSYSCONFDIR", "PGOPTIONS", "PGSSLMODE", "PGSSLCERT", "PGSSLKEY",
    "PGSSLROOTCERT", "PGSSLCRL", "PGSSLCRLDIR", "PGSSLNEGOTIATION", "PGSSLMINPROTOCOLVERSION",
    "PGSSLMAXPROTOCOLVERSION", "PGREQUIRESSL", "PGREQUIREAUTH", "PGREQUIREPEER", "PGGSSENCMODE",
    "PGCHANNELBINDING", "PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS", "PGCLIENTENCODING",
    "PGMINPROTOCOLVERSION", "PGMAXPROTOCOLVERSION",
)  # fmt: skip
"""The variables of libpq that affect a connection and that may be set on a machine."""


def explain_connect(said: str, url: str) -> str:
    """Return one paragraph: the failure, the host, the probable cause and the remedy."""
    remedy = "Check DATABASE_URL."
    for needles, sentence in CONNECT_REMEDIES:
        if any(needle.lower() in said.lower() for needle in needles):
            remedy = sentence
            break
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = printable(lines[0].removeprefix("connection failed: ")) if lines else "no reason given"
    return f"Can't connect to the database at {place_of(url)}: {reason}. {remedy}{_others()}"


def _others() -> str:
    """Name the variables that libpq has read beside the URL: its errors do not mention them."""
    names = sorted(name for name in os.environ if name in LIBPQ_VARIABLES)
    return f" PostgreSQL's library also reads {', '.join(names)} here." if names else ""
