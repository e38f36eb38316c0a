"""Buckets and objects: rows in `storage.buckets` and `storage.objects`, bytes in a folder.

Every question of who may do what is PostgreSQL's: the statements run under the caller's role and
claims, so that real row level security answers. Bytes are written beside their place and moved
there when the row is known; an upload that breaks off leaves nothing. It never speaks HTTP.
"""

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import AsyncConnection, errors
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from vidgen_worker.sandbox.supabase.callers import Caller

DictConnection = AsyncConnection[dict[str, Any]]

KEY = re.compile(r"[A-Za-z0-9_/!\-.*'() &$@=;:+,?]+")
KEY_CHARACTERS = 1024
UNITS = {"": 1, "B": 1, "KB": 1024, "MB": 1024**2, "GB": 1024**3}


class StorageRefusalError(Exception):
    """An error answer of Storage. `http` is what travels, `status` what stands in the body."""

    def __init__(self, status: int, code: str, message: str, http: int = 400) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.http = http

    @property
    def body(self) -> dict[str, str]:
        """The answer's body."""
        return {"statusCode": str(self.status), "error": self.code, "message": self.message}


NO_BUCKET = StorageRefusalError(404, "Bucket not found", "Bucket not found")
NO_OBJECT = StorageRefusalError(404, "not_found", "Object not found")
DUPLICATE = StorageRefusalError(409, "Duplicate", "The resource already exists")
TOO_LARGE = StorageRefusalError(
    413, "Payload too large", "The object exceeded the maximum allowed size"
)
NO_RELATION = StorageRefusalError(404, "Not found", "The related resource does not exist")
REFUSED_BY_POLICY = StorageRefusalError(
    403, "Unauthorized", "new row violates row-level security policy"
)
INTERNAL = StorageRefusalError(500, "Internal", "Internal Server Error", http=500)
TIMED_OUT = StorageRefusalError(
    544, "DatabaseTimeout", "The connection to the database timed out", http=544
)


SUPERUSER = Caller("supabase_storage_admin", {})


@dataclass(frozen=True, slots=True)
class Incoming:
    """A received file, in its temporary place."""

    file: Path
    media_type: str
    cache_control: str
    user_metadata: Mapping[str, Any] | None = None


class ObjectStore:
    """Storage without its HTTP. `open` before use, `close` after."""

    def __init__(
        self,
        folder: Path,
        admin_url: str,
        *,
        largest_bytes: int,
        timeout_seconds: float,
        connect_seconds: float,
    ) -> None:
        self.blobs = folder / "blobs"
        self.incoming = folder / "incoming"
        self._largest_bytes = largest_bytes
        milliseconds = round(timeout_seconds * 1000)
        self._pool: AsyncConnectionPool[DictConnection] = AsyncConnectionPool(
            admin_url,
            min_size=0,
            max_size=10,
            timeout=connect_seconds,
            check=AsyncConnectionPool.check_connection,
            open=False,
            kwargs={"row_factory": dict_row, "options": f"-c statement_timeout={milliseconds}"},
        )

    async def open(self) -> None:
        """Make the folders and open the pool; the database may still be away."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        self.incoming.mkdir(parents=True, exist_ok=True)
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close(timeout=1)

    # Buckets --------------------------------------------------------------------------------

    async def create_bucket(self, caller: Caller, body: Mapping[str, Any]) -> None:
        """Create a bucket. Raises `StorageRefusalError`."""
        async with self._acting_as(caller) as connection:
            await connection.execute(
                """
                insert into storage.buckets
                    (id, name, public, file_size_limit, allowed_mime_types, owner_id)
                values (%s, %s, %s, %s, %s, %s)
                """,
                [
                    body["id"],
                    body.get("name") or body["id"],
                    bool(body.get("public", False)),
                    _bytes_of(body.get("file_size_limit")),
                    body.get("allowed_mime_types"),
                    caller.user_id,
                ],
            )

    async def buckets(self, caller: Caller) -> list[dict[str, Any]]:
        """Return all buckets that the caller may see."""
        async with self._acting_as(caller) as connection:
            rows = await connection.execute("select * from storage.buckets order by id")
            return [_bucket_json(row) for row in await rows.fetchall()]

    async def bucket(self, caller: Caller, name: str) -> dict[str, Any]:
        """Return one bucket. Raises `StorageRefusalError`."""
        async with self._acting_as(caller) as connection:
            return _bucket_json(await _bucket_row(connection, name))

    async def update_bucket(self, caller: Caller, name: str, body: Mapping[str, Any]) -> None:
        """Change what `body` names. Raises `StorageRefusalError`."""
        async with self._acting_as(caller) as connection:
            before = await _bucket_row(connection, name)
            await connection.execute(
                """
                update storage.buckets
                set public = %s, file_size_limit = %s, allowed_mime_types = %s
                where id = %s
                """,
                [
                    body.get("public", before["public"]),
                    _bytes_of(body.get("file_size_limit", before["file_size_limit"])),
                    body.get("allowed_mime_types", before["allowed_mime_types"]),
                    name,
                ],
            )

    async def delete_bucket(self, caller: Caller, name: str) -> None:
        """Delete an empty bucket. Raises `StorageRefusalError`."""
        async with self._acting_as(caller) as connection:
            await _bucket_row(connection, name)
            await _allow_deletes(connection)
            try:
                await connection.execute("delete from storage.buckets where id = %s", [name])
            except errors.ForeignKeyViolation as error:
                raise StorageRefusalError(
                    409,
                    "ResourceNotEmpty",
                    "The bucket you tried to delete is not empty. Please empty the bucket first.",
                ) from error

    # Objects --------------------------------------------------------------------------------

    async def check_upload(
        self, caller: Caller, bucket: str, name: str, media_type: str, *, upsert: bool
    ) -> int:
        """Refuse an upload that is not allowed; return how many bytes it may have.

        As in the real server the permission is tested with a row that is rolled back. Two uploads
        at once may both pass this, and the later one wins. Raises `StorageRefusalError`.
        """
        check_key(name)
        async with self._acting_as(SUPERUSER) as connection:
            row = await _bucket_row(connection, bucket)
        await self.check_permission(caller, bucket, name, upsert=upsert)
        allowed = row["allowed_mime_types"]
        if allowed and not any(_matches(media_type, pattern) for pattern in allowed):
            raise StorageRefusalError(
                415, "invalid_mime_type", f"mime type {media_type} is not supported"
            )
        return min(self._largest_bytes, row["file_size_limit"] or self._largest_bytes)

    async def check_permission(
        self, caller: Caller, bucket: str, name: str, *, upsert: bool
    ) -> None:
        """Write the object's row under the caller's role and take it back.

        Raises `StorageRefusalError`.
        """
        async with self._acting_as(caller) as connection:
            await connection.execute(
                _insert(upsert=upsert), [bucket, name, caller.user_id, None, None, None, None]
            )
            await connection.rollback()

    async def put(self, caller: Caller, bucket: str, name: str, incoming: Incoming) -> str:
        """Make a received file the object; return the object's id. Raises `StorageRefusalError`."""
        version = secrets.token_hex(16)
        content = incoming.file.stat().st_size
        metadata = {
            "eTag": f'"{_digest("md5", incoming.file)}"',
            "size": content,
            "mimetype": incoming.media_type,
            "cacheControl": incoming.cache_control,
            "lastModified": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "contentLength": content,
            "httpStatusCode": 200,
        }
        place = self.blobs / version
        incoming.file.rename(place)
        try:
            async with self._acting_as(SUPERUSER) as connection:
                rows = await connection.execute(
                    """
                    select version from storage.objects
                    where bucket_id = %s and name = %s for update
                    """,
                    [bucket, name],
                )
                before = await rows.fetchone()
                values = [
                    bucket,
                    name,
                    caller.user_id,
                    json.dumps(metadata),
                    version,
                    None if incoming.user_metadata is None else json.dumps(incoming.user_metadata),
                    caller.user_id if _is_uuid(caller.user_id) else None,
                ]
                rows = await connection.execute(_insert(upsert=True), values)
                row = await rows.fetchone()
        except BaseException:
            place.unlink(missing_ok=True)
            raise
        if before is not None and before["version"]:
            (self.blobs / before["version"]).unlink(missing_ok=True)
        return str(row["id"]) if row else ""

    async def copy(self, caller: Caller, source: tuple[str, str], target: tuple[str, str]) -> str:
        """Copy an object that the caller may see to where he may upload; return the copy's id.

        Raises `StorageRefusalError`.
        """
        row = await self.find(caller, *source)
        check_key(target[1])
        await self.check_permission(caller, *target, upsert=False)
        metadata = row["metadata"]
        temporary = self.incoming / secrets.token_hex(16)
        try:
            shutil.copyfile(self.file_of(row), temporary)
        except FileNotFoundError as error:
            raise NO_OBJECT from error
        incoming = Incoming(
            temporary, metadata["mimetype"], metadata["cacheControl"], row["user_metadata"]
        )
        return await self.put(caller, *target, incoming)

    async def move(self, caller: Caller, source: tuple[str, str], target: tuple[str, str]) -> str:
        """Give an object another name, as far as the caller may; return its id.

        Raises `StorageRefusalError`.
        """
        check_key(target[1])
        async with self._acting_as(caller) as connection:
            rows = await connection.execute(
                """
                update storage.objects set bucket_id = %s, name = %s
                where bucket_id = %s and name = %s returning id
                """,
                [*target, *source],
            )
            row = await rows.fetchone()
        if row is None:
            raise NO_OBJECT
        return str(row["id"])

    async def find(self, caller: Caller, bucket: str, name: str) -> dict[str, Any]:
        """Return an object's row, if the caller may see it. Raises `StorageRefusalError`."""
        async with self._acting_as(caller) as connection:
            rows = await connection.execute(
                "select * from storage.objects where bucket_id = %s and name = %s", [bucket, name]
            )
            row = await rows.fetchone()
        if row is None:
            raise NO_OBJECT
        return row

    async def visible(self, caller: Caller, bucket: str, names: list[str]) -> set[str]:
        """Return which of these objects the caller may see."""
        async with self._acting_as(caller) as connection:
            rows = await connection.execute(
                "select name from storage.objects where bucket_id = %s and name = any(%s)",
                [bucket, names],
            )
            return {row["name"] for row in await rows.fetchall()}

    async def below(self, caller: Caller, bucket: str, prefix: str) -> list[dict[str, Any]]:
        """Return the objects below a folder that the caller may see, by name."""
        async with self._acting_as(caller) as connection:
            rows = await connection.execute(
                """
                select * from storage.objects
                where bucket_id = %s and starts_with(name, %s) order by name
                """,
                [bucket, prefix],
            )
            return await rows.fetchall()

    async def remove(self, caller: Caller, bucket: str, names: list[str]) -> list[dict[str, Any]]:
        """Delete objects; return those that the caller was allowed to delete."""
        async with self._acting_as(caller) as connection:
            await _allow_deletes(connection)
            rows = await connection.execute(
                """
                delete from storage.objects where bucket_id = %s and name = any(%s)
                returning *
                """,
                [bucket, names],
            )
            removed = await rows.fetchall()
        for row in removed:
            self.file_of(row).unlink(missing_ok=True)
        return removed

    def file_of(self, row: Mapping[str, Any]) -> Path:
        """Return where the bytes of an object are."""
        return self.blobs / str(row["version"])

    async def everything(self) -> list[dict[str, Any]]:
        """Return every object with the hash of its bytes, for tests."""
        async with self._acting_as(SUPERUSER) as connection:
            rows = await connection.execute(
                "select * from storage.objects order by bucket_id, name"
            )
            found = await rows.fetchall()
        return [
            {
                "bucket": row["bucket_id"],
                "name": row["name"],
                "media_type": row["metadata"]["mimetype"],
                "bytes": row["metadata"]["size"],
                "cache_control": row["metadata"]["cacheControl"],
                "sha256": _digest("sha256", self.file_of(row)),
                "owner_id": row["owner_id"],
                "version": row["version"],
            }
            for row in found
            if row["metadata"] is not None
        ]

    @asynccontextmanager
    async def _acting_as(self, caller: Caller) -> AsyncIterator[DictConnection]:
        """Open a transaction in the caller's role, and put PostgreSQL's refusals in our words."""
        try:
            async with self._pool.connection() as connection:
                if caller is not SUPERUSER:
                    await connection.execute(
                        """
                        select set_config('role', %s, true),
                               set_config('request.jwt.claims', %s, true)
                        """,
                        [caller.role, json.dumps(caller.claims)],
                    )
                yield connection
        except errors.UniqueViolation as error:
            raise DUPLICATE from error
        except errors.InsufficientPrivilege as error:
            raise REFUSED_BY_POLICY from error
        except errors.ForeignKeyViolation as error:
            raise NO_RELATION from error
        except (errors.QueryCanceled, errors.LockNotAvailable) as error:
            raise TIMED_OUT from error
        except (psycopg.OperationalError, PoolTimeout) as error:
            raise INTERNAL from error


def check_key(name: str) -> None:
    """Refuse a name that Storage does not take. Raises `StorageRefusalError`."""
    if len(name) > KEY_CHARACTERS:
        raise INTERNAL
    if not KEY.fullmatch(name):
        raise StorageRefusalError(400, "InvalidKey", f"Invalid key: {name}")


def _insert(*, upsert: bool) -> str:
    """Return the statement that writes an object's row."""
    conflict = """
        on conflict (bucket_id, name) do update set
            owner_id = excluded.owner_id, metadata = excluded.metadata,
            version = excluded.version, user_metadata = excluded.user_metadata,
            owner = excluded.owner
    """
    return f"""
        insert into storage.objects
            (bucket_id, name, owner_id, metadata, version, user_metadata, owner)
        values (%s, %s, %s, %s, %s, %s, %s)
        {conflict if upsert else ""}
        returning id
    """  # noqa: S608 - two fixed texts


async def _bucket_row(connection: DictConnection, name: str) -> dict[str, Any]:
    rows = await connection.execute("select * from storage.buckets where id = %s", [name])
    row = await rows.fetchone()
    if row is None:
        raise NO_BUCKET
    return row


async def _allow_deletes(connection: DictConnection) -> None:
    await connection.execute("select set_config('storage.allow_delete_query', 'true', true)")


def _bucket_json(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "name", "public", "file_size_limit", "allowed_mime_types")
    return {
        **{name: row[name] for name in names},
        "owner": row["owner_id"] or "",
        "created_at": row["created_at"].isoformat(),
        "updated_at": row["updated_at"].isoformat(),
        "type": "STANDARD",
    }


def _bytes_of(limit: object) -> int | None:
    """Return a size limit in bytes; it may come as a number or as text, "50MB"."""
    if limit is None:
        return None
    found = re.fullmatch(r"(\d+)\s*([KMG]?B)?", str(limit).upper())
    if found is None:
        raise StorageRefusalError(400, "Error", f"Invalid file_size_limit: {limit}")
    return int(found[1]) * UNITS[found[2] or ""]


def _matches(media_type: str, pattern: str) -> bool:
    given = media_type.partition(";")[0].strip().lower()
    kind, _, subtype = pattern.partition("/")
    return given == f"{kind}/{subtype}" or (subtype == "*" and given.startswith(f"{kind}/"))


def _digest(algorithm: str, file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def _is_uuid(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"[0-9a-fA-F-]{36}", text) is not None
