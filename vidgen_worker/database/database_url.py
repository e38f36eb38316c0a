"""DATABASE_URL as libpq reads it: the one place that takes it apart.

PostgreSQL's own parser decides what a URL means, for settings, connections, error messages and the
log alike; it knows several hosts, sockets and keyword=value strings. A URL that it accepts but that
can never work is refused with a sentence that shows no part of a password. Nothing here connects.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import psycopg
from psycopg.pq import Conninfo

TRANSACTION_POOLER_PORT = 6543
DEFAULT_PORT = "5432"
EXAMPLE = "postgresql://user:password@host:5432/postgres"

_SCHEMES = ("postgres://", "postgresql://")
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://")
_KEYWORD = re.compile(r"\s*[a-z_]+\s*=")
_PARAMETER = re.compile(r'invalid (?:URI query parameter|connection option)[: ]+"([a-z_]{1,40})"')
_PLACEHOLDER = re.compile(r"[<>{}\[\]]|\.\.\.|…")
_BRACKETS = re.compile(r"://[^/@]*:\[[^\]]*\]@")
_PORTS = range(1, 65_536)
_ENCODE = (
    "Percent-encode the special characters of the password: @ is %40, / is %2F, # is %23, "
    "? is %3F, % is %25, a space is %20."
)


class DatabaseUrlError(ValueError):
    """The URL can't be used; the message says why, without a part of it that may be secret."""


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """Hosts, user and database of a URL. `secrets` must never be shown."""

    user: str
    hosts: tuple[str, ...]
    ports: tuple[str, ...]
    database: str
    others: tuple[tuple[str, str], ...]
    secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def read(cls, url: str) -> Self:
        """Parse a URL as libpq does. Raises DatabaseUrlError."""
        found = _parsed(url)
        hosts = tuple(found.pop("host", "").split(","))
        ports = tuple(found.pop("port", "").split(","))
        if len(ports) == 1:
            ports *= len(hosts)
        read = cls(
            found.pop("user", ""), hosts, ports, found.pop("dbname", ""),
            tuple((name, value) for name, value in found.items() if name not in _secret_names()),
            tuple(value for name, value in found.items() if name in _secret_names()),
        )  # fmt: skip
        _refuse_unusable(url, read)
        return read

    @property
    def pooled_by_transaction(self) -> bool:
        """Whether the port is that of Supabase's transaction pooler."""
        return str(TRANSACTION_POOLER_PORT) in self.ports

    def place(self) -> str:
        """User, hosts and database, for a person to compare with the dashboard."""
        addresses = []
        for host, port in zip(self.hosts, self.ports, strict=True):
            name = host or "localhost"
            name = f"[{name}]" if ":" in name else name
            addresses.append(name if name.startswith("/") else f"{name}:{port or DEFAULT_PORT}")
        return f"{self.user}@{','.join(addresses)}/{self.database}"

    def masked(self) -> str:
        """Return a URL that may be shown."""
        user = f"{self.user}:****" if self.secrets else self.user
        others = "&".join(f"{name}={value}" for name, value in self.others)
        return f"postgresql://{user}@{self.place().partition('@')[2]}" + (
            f"?{others}" if others else ""
        )


def place_of(url: str) -> str:
    """Return user, host and database of a URL, never the password."""
    try:
        return DatabaseUrl.read(url).place()
    except DatabaseUrlError:
        return "the address of DATABASE_URL"


def secrets_of(url: str) -> tuple[str, ...]:
    """Return the parts of a URL that must never be shown: all of it where it can't be parsed.

    A password that equals the user's name is left out: the name is shown anyway.
    """
    try:
        read = DatabaseUrl.read(url)
    except DatabaseUrlError:
        return (url.partition("://")[2] or url,)
    return tuple(secret for secret in read.secrets if secret not in (read.user, read.database))


@lru_cache(maxsize=1)
def _secret_names() -> frozenset[str]:
    """The parameters that libpq itself would not show."""
    return frozenset(o.keyword.decode() for o in Conninfo.get_defaults() if o.dispchar == b"*")


def _parsed(url: str) -> dict[str, str]:
    scheme = _SCHEME.match(url)
    if (scheme and f"{scheme[1]}://" not in _SCHEMES) or not (scheme or _KEYWORD.match(url)):
        raise DatabaseUrlError(f"write {EXAMPLE}")
    try:
        options = Conninfo.parse(url.encode())
    except UnicodeEncodeError as error:
        raise DatabaseUrlError(f"it holds bytes that are no UTF-8; write {EXAMPLE}") from error
    except psycopg.Error as error:
        raise DatabaseUrlError(_said(str(error))) from None  # its text repeats the password
    try:
        return {
            option.keyword.decode(): option.val.decode()
            for option in options
            if option.val is not None
        }
    except UnicodeDecodeError as error:
        raise DatabaseUrlError(f"it holds bytes that are no UTF-8; write {EXAMPLE}") from error


def _said(reason: str) -> str:
    """Return the reason why libpq refuses a URL, in our words."""
    if found := _PARAMETER.search(reason):
        return (
            f"PostgreSQL's library knows no parameter {found[1]}: remove {found[1]}=… from it"
            + (" (it is meant for Prisma)" if found[1] == "pgbouncer" else "")
        )
    if "missing key/value separator" in reason or "missing value" in reason:
        return f"what follows the ? is no list of name=value. {_ENCODE}"
    return f"PostgreSQL's library can't read it. {_ENCODE}"


def _refuse_unusable(url: str, read: DatabaseUrl) -> None:
    """Raise DatabaseUrlError for a URL that libpq accepts but that can't be meant."""
    if _BRACKETS.search(url):
        raise DatabaseUrlError(
            "the password stands in square brackets: put the password in the place of "
            "[YOUR-PASSWORD], without the brackets"
        )
    # For libpq an @ or / ends the password; the rest is read as host, port or name.
    if any("@" in part for part in (*read.hosts, *read.ports)) or (
        "@" in read.database and not all(_is_port(port) for port in read.ports)
    ):
        raise DatabaseUrlError(f"its host is not readable. {_ENCODE}")
    if "@" in read.database and not read.user:
        raise DatabaseUrlError(f"user and password are not readable. {_ENCODE}")
    if len(read.hosts) != len(read.ports):
        raise DatabaseUrlError(
            f"it has {len(read.hosts)} hosts and {len(read.ports)} ports: write host1:5432,host2"
        )
    for port in read.ports:
        if not _is_port(port):
            raise DatabaseUrlError(f"its port is no number from 1 to 65535. {_ENCODE}")
    for host in read.hosts:
        _refuse_host(host)


def _is_port(port: str) -> bool:
    return not port or (port.isascii() and port.isdecimal() and int(port[:9]) in _PORTS)


def _refuse_host(host: str) -> None:
    if host.startswith(("/", "@")):  # a socket
        return
    if _PLACEHOLDER.search(host):
        raise DatabaseUrlError(
            "its host holds a placeholder: copy the whole URL from the dashboard"
        )
    try:
        # Python's resolver encodes every name, and its error is not one of psycopg's.
        host.encode("idna")
    except UnicodeError:
        raise DatabaseUrlError("its host is no host name") from None
