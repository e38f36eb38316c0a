"""The preferences of a request, and the form of its answer on the wire.

The headers are PostgREST's: `Prefer`, `Accept`, `Range`, `Content-Range`, `Preference-Applied`. It
never looks at the database.
"""

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Self

from starlette.requests import Request
from starlette.responses import Response

from vidgen_worker.sandbox.supabase.rest.catalog import SCHEMA
from vidgen_worker.sandbox.supabase.rest.parsing import Query
from vidgen_worker.sandbox.supabase.rest.refusals import RestRefusalError
from vidgen_worker.sandbox.supabase.rest.statements import Shape

JSON_TYPE = "application/json"
OBJECT_TYPE = "application/vnd.pgrst.object"
ARRAY_TYPE = "application/vnd.pgrst.array"
CSV_TYPE = "text/csv"
MAX_ROWS = 1000
"""As on a hosted project: no answer has more rows."""
PREFERENCES = {
    "return": ("representation", "minimal", "headers-only"),
    "count": ("exact", "planned", "estimated"),
    "resolution": ("merge-duplicates", "ignore-duplicates"),
    "missing": ("default", "null"),
    "tx": ("commit", "rollback"),
    "handling": ("strict", "lenient"),
}
PARTIAL, OUT_OF_RANGE = 206, 416


@dataclass(frozen=True, slots=True)
class Preferences:
    """The header `Prefer`, taken apart."""

    values: dict[str, str]
    max_affected: int | None = None

    @classmethod
    def of(cls, request: Request) -> Self:
        """Read them. Raises `RestRefusalError` for an unknown one with `handling=strict`."""
        words = [
            word.strip() for line in request.headers.getlist("prefer") for word in line.split(",")
        ]
        values: dict[str, str] = {}
        unknown = []
        most = None
        for word in filter(None, words):
            name, _, value = word.partition("=")
            if name == "max-affected" and value.isdecimal():
                most = int(value)
            elif value in PREFERENCES.get(name, ()):
                values.setdefault(name, value)
            else:
                unknown.append(word)
        is_strict = values.get("handling") == "strict"
        if unknown and is_strict:
            details = f"Invalid preferences: {', '.join(unknown)}"
            text = "Invalid preferences given with handling=strict"
            raise RestRefusalError(400, "PGRST122", text, details=details)
        return cls(values, most if is_strict else None)

    @property
    def returns(self) -> str:
        """The content of the answer to a change: `representation`, `headers-only` or `minimal`."""
        return self.values.get("return", "minimal")

    @property
    def count(self) -> str | None:
        """How the rows are to be counted, None for not at all."""
        return self.values.get("count")

    def check(self, affected: int) -> None:
        """Refuse a change of more rows than the client allowed. Raises `RestRefusalError`."""
        if self.max_affected is not None and affected > self.max_affected:
            text = "Query result exceeds max-affected preference constraint"
            details = f"The query affects {affected} rows"
            raise RestRefusalError(400, "PGRST124", text, details=details)


@dataclass(frozen=True, slots=True)
class Answer:
    """The content of an answer, before the client's preferences: rows as JSON, and their number."""

    status: int
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def response(self, preferences: Preferences, accepted: str) -> Response:
        """Return the answer on the wire."""
        headers = dict(self.headers)
        applied = ", ".join(f"{name}={value}" for name, value in preferences.values.items())
        if applied:
            headers["preference-applied"] = applied
        media = accepted if self.body else None
        return Response(self.body, self.status, headers, media)


def accepted(request: Request) -> str:
    """Return the media type of the answer. Raises `RestRefusalError` where there is none."""
    wanted = request.headers.get("accept") or "*/*"
    for one in wanted.split(","):
        name, _, rest = one.partition(";")
        name, kind = name.strip(), name.strip().removesuffix("+json")
        if kind in (OBJECT_TYPE, ARRAY_TYPE):
            stripped = "; nulls=stripped" if "nulls=stripped" in rest else ""
            return f"{kind}+json{stripped}; charset=utf-8"
        if name == CSV_TYPE:
            return f"{CSV_TYPE}; charset=utf-8"
        if name in ("*/*", "application/*", JSON_TYPE):
            return f"{JSON_TYPE}; charset=utf-8"
    text = f"None of these media types are available: {wanted}"
    raise RestRefusalError(406, "PGRST107", text)


def is_object(media: str) -> bool:
    """Whether the client wants one object in place of an array."""
    return media.startswith(OBJECT_TYPE)


def shape_of(media: str) -> Shape:
    """Return how rows are written for a media type."""
    if media.startswith(CSV_TYPE):
        return "csv"
    return "stripped" if "nulls=stripped" in media else "json"


def check_schema(request: Request) -> None:
    """Refuse another schema than the one that is exposed. Raises `RestRefusalError`."""
    reads = request.method in ("GET", "HEAD")
    name = request.headers.get("accept-profile" if reads else "content-profile", SCHEMA)
    if name != SCHEMA:
        hint = f"Only the following schemas are exposed: {SCHEMA}"
        raise RestRefusalError(406, "PGRST106", f"Invalid schema: {name}", hint=hint)


def paged(query: Query, request: Request) -> Query:
    """Return the query with the rows that its Range header asks for, and no more than allowed."""
    found = re.fullmatch(r"(?:items=)?(\d+)-(\d*)", request.headers.get("range", ""))
    if found and request.method == "GET":
        begin = int(found[1])
        limit = int(found[2]) - begin + 1 if found[2] else None
        if limit is not None and limit < 1:
            details = (
                "The lower boundary must be lower than or equal to the upper boundary in the "
                "Range header."
            )
            text = "Requested range not satisfiable"
            raise RestRefusalError(OUT_OF_RANGE, "PGRST103", text, details=details)
        limits = [one for one in (limit, query.limit) if one is not None]
        query = replace(query, offset=query.offset + begin, limit=min(limits, default=None))
    limit = MAX_ROWS if query.limit is None else min(query.limit, MAX_ROWS)
    return replace(query, limit=limit)


def content_range(offset: int, rows: int, total: int | None) -> tuple[str, str]:
    """Return the header that says which of how many rows these are."""
    shown = f"{offset}-{offset + rows - 1}" if rows else "*"
    return "content-range", f"{shown}/{'*' if total is None else total}"


def status_of_page(offset: int, rows: int, total: int | None) -> int:
    """Return 200 for all rows, 206 for a part. Raises `RestRefusalError` beyond the last one."""
    if total is None:
        return 200
    if offset > total:
        details = f"An offset of {offset} was requested, but there are only {total} rows."
        text = "Requested range not satisfiable"
        raise RestRefusalError(OUT_OF_RANGE, "PGRST103", text, details=details)
    return PARTIAL if rows < total else 200


async def body_of(request: Request) -> Any:  # noqa: ANN401 - JSON
    """Return the request's JSON. Raises `RestRefusalError`."""
    content = await request.body()
    try:
        return json.loads(content)
    except ValueError as error:
        raise RestRefusalError(400, "PGRST102", "Empty or invalid json") from error


def rows_of(body: object) -> list[dict[str, Any]]:
    """Return the objects of a body, one or many. Raises `RestRefusalError`."""
    given = body if isinstance(body, list) else [body]
    rows = [row for row in given if isinstance(row, dict)]
    if len(rows) != len(given):
        raise RestRefusalError(400, "PGRST102", "Empty or invalid json")
    return rows
