"""Buckets: rows of `storage.buckets`, and what Storage admits as one.

Source of the rules: the real server's answers, and its `limits.ts`. It never speaks HTTP.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from psycopg import errors

from vidgen_worker.sandbox.supabase.callers import Caller
from vidgen_worker.sandbox.supabase.storage import refusals
from vidgen_worker.sandbox.supabase.storage.bodies import one_of, whole
from vidgen_worker.sandbox.supabase.storage.connections import Connections, DictConnection
from vidgen_worker.sandbox.supabase.storage.refusals import StorageRefusalError

UNITS = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3}
SORTED_BY = ("id", "name", "created_at", "updated_at")
NAME = re.compile(r"[A-Za-z0-9_!\-.*'() &$@=;:+,?]{1,100}")
LIMIT = re.compile(r"(\d+(?:\.\d+)?)(GB|MB|KB|B)", re.IGNORECASE)


class BucketStore:
    """Buckets under the callers' roles. No bucket admits more than `largest_bytes`."""

    def __init__(self, connections: Connections, largest_bytes: int) -> None:
        self._connections = connections
        self._largest_bytes = largest_bytes

    async def create(self, caller: Caller, body: Mapping[str, Any]) -> str:
        """Create a bucket and return its name. Raises `StorageRefusalError`."""
        if not isinstance(body.get("name"), str):
            missing = "name" not in body
            raise refusals.invalid(
                "body must have required property 'name'" if missing else "body/name must be string"
            )
        check_settings(body)
        name = body["name"]
        if name != name.strip() or not NAME.fullmatch(name):
            raise refusals.BAD_BUCKET_NAME
        async with self._connections.acting_as(caller) as connection:
            await connection.execute(
                """
                insert into storage.buckets
                    (id, name, public, file_size_limit, allowed_mime_types, owner_id)
                values (%s, %s, %s, %s, %s, %s)
                """,
                [
                    body.get("id") or name,
                    name,
                    body.get("public") in (True, "true"),
                    self._limit(body.get("file_size_limit")),
                    _media_types(body.get("allowed_mime_types")),
                    caller.user_id,
                ],
            )
        return str(name)

    async def all(self, caller: Caller, wanted: Mapping[str, str]) -> list[dict[str, Any]]:
        """Return the buckets that the caller may see, as far as they are wanted.

        Raises `StorageRefusalError`.
        """
        limit = whole("querystring", wanted, "limit", least=1)
        offset = whole("querystring", wanted, "offset", least=0) or 0
        column = one_of("querystring", wanted, "sortColumn", SORTED_BY)
        is_descending = one_of("querystring", wanted, "sortOrder", ("asc", "desc")) == "desc"
        search = wanted.get("search", "").lower()
        async with self._connections.acting_as(caller) as connection:
            rows = await connection.execute("select * from storage.buckets order by id")
            found = [row for row in await rows.fetchall() if search in row["name"].lower()]
        found.sort(key=lambda row: row[column], reverse=is_descending)
        shown = found[offset:] if limit is None else found[offset : offset + limit]
        return [{**as_json(row), "type": "STANDARD"} for row in shown]

    async def find(self, caller: Caller, name: str) -> dict[str, Any]:
        """Return a bucket's row. Raises `StorageRefusalError`."""
        async with self._connections.acting_as(caller) as connection:
            return await row_of(connection, name)

    async def update(self, caller: Caller, name: str, body: Mapping[str, Any]) -> None:
        """Change what `body` names. Raises `StorageRefusalError`."""
        check_settings(body)
        async with self._connections.acting_as(caller) as connection:
            before = await row_of(connection, name)
            await connection.execute(
                """
                update storage.buckets
                set public = %s, file_size_limit = %s, allowed_mime_types = %s
                where id = %s
                """,
                [
                    body.get("public", before["public"]) in (True, "true"),
                    self._limit(body.get("file_size_limit", before["file_size_limit"])),
                    _media_types(body.get("allowed_mime_types", before["allowed_mime_types"])),
                    name,
                ],
            )

    async def delete(self, caller: Caller, name: str) -> None:
        """Delete an empty bucket. Raises `StorageRefusalError`."""
        async with self._connections.acting_as(caller) as connection:
            await row_of(connection, name)
            await allow_deletes(connection)
            try:
                await connection.execute("delete from storage.buckets where id = %s", [name])
            except errors.ForeignKeyViolation as error:
                raise refusals.NOT_EMPTY from error

    def _limit(self, given: object) -> int | None:
        """Return a size limit in bytes; it may come as a number or as text, "50MB"."""
        if given is None:
            return None
        if isinstance(given, int):
            limit = given
        else:
            found = LIMIT.fullmatch(str(given))
            if found is None:
                text = "Invalid file size format, hint: use 20GB / 20MB / 30KB / 3B"
                raise StorageRefusalError(400, "InvalidRequest", text, code="InvalidRequest")
            limit = round(float(found[1]) * UNITS[found[2].upper()])
        if limit > self._largest_bytes:
            raise refusals.TOO_LARGE
        return limit


async def row_of(connection: DictConnection, name: str) -> dict[str, Any]:
    """Return a bucket's row, if the connection's role sees it. Raises `StorageRefusalError`."""
    rows = await connection.execute("select * from storage.buckets where id = %s", [name])
    row = await rows.fetchone()
    if row is None:
        raise refusals.NO_BUCKET
    return row


async def allow_deletes(connection: DictConnection) -> None:
    """Let this transaction delete rows, which SQL of anybody else may not."""
    await connection.execute("select set_config('storage.allow_delete_query', 'true', true)")


def as_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a bucket as Storage shows it."""
    names = ("id", "name", "public", "file_size_limit", "allowed_mime_types")
    return {
        **{name: row[name] for name in names},
        "owner": row["owner_id"] or "",
        "created_at": moment(row["created_at"]),
        "updated_at": moment(row["updated_at"]),
    }


def moment(value: datetime) -> str:
    """Return a time as JavaScript writes it."""
    return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def check_settings(body: Mapping[str, Any]) -> None:
    """Refuse settings of another type than the schema's. Raises `StorageRefusalError`."""
    if body.get("public") not in (None, True, False, "true", "false"):
        raise refusals.invalid("body/public must be boolean")
    limit = body.get("file_size_limit")
    is_number = isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0
    if limit is not None and not is_number and not LIMIT.fullmatch(str(limit)):
        raise refusals.invalid(
            'body/file_size_limit must match pattern "^[0-9]+(?:\\.[0-9]+)?'
            '(?:[gG][bB]|[mM][bB]|[kK][bB]|[bB])$"'
        )
    types = body.get("allowed_mime_types")
    if types is not None and not isinstance(types, list):
        raise refusals.invalid("body/allowed_mime_types must be array")


def _media_types(given: list[str] | None) -> list[str] | None:
    for one in given or ():
        if not re.fullmatch(r"[^/\s]+/[^/\s]+.*", str(one)):
            raise refusals.bad_type(str(one))
    return given
