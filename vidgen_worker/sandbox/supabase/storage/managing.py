"""Looking at objects, listing, copying, moving and removing them.

It never decides who may: the database does, under the caller's role.
"""

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vidgen_worker.sandbox.supabase.callers import Caller
from vidgen_worker.sandbox.supabase.storage import refusals
from vidgen_worker.sandbox.supabase.storage.bodies import (
    body_of,
    bucket_in,
    name_in,
    names_in,
    one_of,
    text,
    whole,
)
from vidgen_worker.sandbox.supabase.storage.buckets import moment
from vidgen_worker.sandbox.supabase.storage.connections import SUPERUSER
from vidgen_worker.sandbox.supabase.storage.downloads import Downloads
from vidgen_worker.sandbox.supabase.storage.objects import ObjectStore

SORTED_BY = ("name", "updated_at", "created_at", "last_accessed_at")
MOST_LISTED = 1500


class Managing:
    """The handlers."""

    def __init__(self, store: ObjectStore, downloads: Downloads) -> None:
        self._store = store
        self._downloads = downloads

    async def info(self, request: Request, caller: Caller) -> Response:
        """Say what is known of an object that the caller may see."""
        return _info(await self._downloads.visible(request, caller))

    async def info_public(self, request: Request, _caller: Caller) -> Response:
        """Say what is known of an object of a public bucket."""
        return _info(await self._downloads.open_to_all(request))

    async def copy(self, request: Request, caller: Caller) -> Response:
        """Copy an object."""
        source, target = _places(await _two_names(request))
        made = await self._store.copy(caller, source, target)
        return JSONResponse({"Key": "/".join(target), "Id": made})

    async def move(self, request: Request, caller: Caller) -> Response:
        """Give an object another name."""
        source, target = _places(await _two_names(request))
        moved = await self._store.move(caller, source, target)
        return JSONResponse({"message": "Successfully moved", "Id": moved})

    async def list(self, request: Request, caller: Caller) -> Response:
        """List what is in a folder; a search is the beginning of a name, in any case."""
        body = await body_of(request, "prefix")
        prefix = text("body", body, "prefix").strip("/")
        folder = f"{prefix}/" if prefix else ""
        search = text("body", body, "search").lower()
        sort_by = body.get("sortBy") or {}
        if not isinstance(sort_by, dict):
            raise refusals.invalid("body/sortBy must be object")
        column = one_of("body/sortBy", sort_by, "column", SORTED_BY)
        is_descending = one_of("body/sortBy", sort_by, "order", ("asc", "desc")) == "desc"
        offset = whole("body", body, "offset", least=0) or 0
        limit = min(whole("body", body, "limit", least=1) or 100, MOST_LISTED)
        entries: dict[str, dict[str, Any]] = {}
        for row in await self._store.below(caller, bucket_in(request), folder):
            head, is_below, _ = row["name"].removeprefix(folder).partition("/")
            if head.lower().startswith(search):
                entries.setdefault(head, _folder(head) if is_below else as_json(row, head))
        found = sorted(
            entries.values(), key=lambda entry: str(entry[column] or ""), reverse=is_descending
        )
        if column != "name":  # folders have no times, and come first
            found.sort(key=lambda entry: entry["id"] is not None)
        return JSONResponse(found[offset : offset + limit])

    async def remove(self, request: Request, caller: Caller) -> Response:
        """Remove those objects that the caller may."""
        names = names_in(await body_of(request, "prefixes"), "prefixes")
        removed = await self._store.remove(caller, bucket_in(request), names)
        return JSONResponse([as_json(row, row["name"]) for row in removed])

    async def remove_one(self, request: Request, caller: Caller) -> Response:
        """Remove an object; one that the caller may not is refused, not passed over."""
        bucket, name = bucket_in(request), name_in(request)
        await self._store.find(SUPERUSER, bucket, name)
        if not await self._store.remove(caller, bucket, [name]):
            raise refusals.denied("Access denied")
        return JSONResponse({"message": "Successfully deleted"})


async def _two_names(request: Request) -> dict[str, Any]:
    return await body_of(request, "bucketId", "sourceKey", "destinationKey")


def _places(body: Mapping[str, Any]) -> tuple[tuple[str, str], tuple[str, str]]:
    bucket = str(body["bucketId"])
    target = str(body.get("destinationBucket") or bucket)
    return (bucket, str(body["sourceKey"])), (target, str(body["destinationKey"]))


def _info(row: Mapping[str, Any]) -> Response:
    metadata = row["metadata"]
    return JSONResponse(
        {
            "id": str(row["id"]),
            "name": row["name"],
            "version": row["version"],
            "bucket_id": row["bucket_id"],
            "size": metadata["size"],
            "content_type": metadata["mimetype"],
            "cache_control": metadata["cacheControl"],
            "etag": metadata["eTag"],
            "metadata": row["user_metadata"] or {},
            "last_modified": moment(row["updated_at"]),
            "created_at": moment(row["created_at"]),
        }
    )


def _folder(name: str) -> dict[str, Any]:
    nothing = ("id", "updated_at", "created_at", "last_accessed_at", "metadata")
    return {"name": name, **dict.fromkeys(nothing)}


def as_json(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object as a list of Storage's shows it."""
    return {
        "name": name,
        "id": str(row["id"]),
        "bucket_id": row["bucket_id"],
        "owner_id": row["owner_id"],
        "version": row["version"],
        "created_at": moment(row["created_at"]),
        "updated_at": moment(row["updated_at"]),
        "last_accessed_at": moment(row["last_accessed_at"]),
        "metadata": row["metadata"],
        "user_metadata": row["user_metadata"] or {},
    }
