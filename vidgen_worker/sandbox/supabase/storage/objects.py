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
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vidgen_worker.sandbox.supabase.callers import Caller
from vidgen_worker.sandbox.supabase.storage import refusals
from vidgen_worker.sandbox.supabase.storage.buckets import allow_deletes, row_of
from vidgen_worker.sandbox.supabase.storage.connections import SUPERUSER, Connections

KEY = re.compile(r"[A-Za-z0-9_/!\-.*'() &$@=;:+,?]+")
KEY_CHARACTERS = 1024


@dataclass(frozen=True, slots=True)
class Incoming:
    """A received file, in its temporary place."""

    file: Path
    media_type: str
    cache_control: str
    user_metadata: Mapping[str, Any] | None = None


class ObjectStore:
    """Objects without their HTTP. `open` before use."""

    def __init__(self, folder: Path, connections: Connections, *, largest_bytes: int) -> None:
        self.blobs = folder / "blobs"
        self.incoming = folder / "incoming"
        self._largest_bytes = largest_bytes
        self._acting_as = connections.acting_as

    def open(self) -> None:
        """Make the folders; the database may still be away."""
        for folder in (self.blobs.parent, self.blobs, self.incoming):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)  # earlier versions let everybody in

    async def check_upload(
        self, caller: Caller, bucket: str, name: str, media_type: str, *, upsert: bool
    ) -> int:
        """Refuse an upload that is not allowed; return how many bytes it may have.

        As in the real server the permission is tested with a row that is rolled back. Two uploads
        at once may both pass this, and the later one wins. Raises `StorageRefusalError`.
        """
        check_key(name)
        async with self._acting_as(SUPERUSER) as connection:
            row = await row_of(connection, bucket)
        await self.check_permission(caller, bucket, name, upsert=upsert)
        allowed = row["allowed_mime_types"]
        if allowed and not any(_matches(media_type, pattern) for pattern in allowed):
            raise refusals.bad_type(media_type)
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
                    json.dumps(incoming.user_metadata or {}),
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
            raise refusals.NO_OBJECT from error
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
            raise refusals.NO_OBJECT
        return str(row["id"])

    async def find(self, caller: Caller, bucket: str, name: str) -> dict[str, Any]:
        """Return an object's row, if the caller may see it. Raises `StorageRefusalError`."""
        async with self._acting_as(caller) as connection:
            rows = await connection.execute(
                "select * from storage.objects where bucket_id = %s and name = %s", [bucket, name]
            )
            row = await rows.fetchone()
        if row is None:
            raise refusals.NO_OBJECT
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
            await allow_deletes(connection)
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


def check_key(name: str) -> None:
    """Refuse a name that Storage does not take. Raises `StorageRefusalError`."""
    if len(name) > KEY_CHARACTERS:
        raise refusals.INTERNAL
    if not KEY.fullmatch(name) or ".." in name.split("/"):
        raise refusals.bad_key(name)


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


def _matches(media_type: str, pattern: str) -> bool:
    """Whether a media type is one of the bucket's; to the letter, as in the real server."""
    kind, _, subtype = pattern.partition("/")
    return media_type == pattern or (subtype == "*" and media_type.startswith(f"{kind}/"))


def _digest(algorithm: str, file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def _is_uuid(text: str | None) -> bool:
    return text is not None and re.fullmatch(r"[0-9a-fA-F-]{36}", text) is not None
