"""Calls of functions: POST and GET of `/rest/v1/rpc/FUNCTION`, with named arguments.

It runs inside the caller's transaction, in the caller's role, and never opens one.
"""

from starlette.requests import Request

from vidgen_worker.sandbox.supabase.rest import statements
from vidgen_worker.sandbox.supabase.rest.catalog import Connection, argument_names, function_of
from vidgen_worker.sandbox.supabase.rest.exchange import (
    CSV_TYPE,
    Answer,
    Preferences,
    accepted,
    body_of,
    content_range,
    is_object,
    paged,
    shape_of,
    status_of_page,
)
from vidgen_worker.sandbox.supabase.rest.parsing import check_flat, parse
from vidgen_worker.sandbox.supabase.rest.refusals import RestRefusalError, not_one


async def call(connection: Connection, request: Request, preferences: Preferences) -> Answer:
    """Call a function and answer what it returns, in its shape. Raises `RestRefusalError`."""
    name = request.path_params["name"]
    items = request.query_params.multi_items()
    if request.method == "POST":
        arguments = await body_of(request) if (await request.body()).strip() else {}
        query = parse(items)
    else:
        query = parse(items, await argument_names(connection, name))
        arguments = dict(query.arguments)
    check_flat(query)
    query = paged(query, request)
    names = frozenset(arguments) if isinstance(arguments, dict) else None
    function = await function_of(connection, name, names, has_body=request.method == "POST")
    media = accepted(request)
    statement = statements.call(
        function, arguments, query, shape_of(media), is_text=request.method != "POST"
    )
    row = await (await connection.execute(statement)).fetchone()
    if row is None:
        raise RestRefusalError(500, "PGRSTX00", "The statement gave no row")
    found = int(row["n"])
    total = int(row["total"]) if preferences.count is not None else None
    header = content_range(query.offset, found, total)
    if function.is_void:
        return Answer(204, "", (header,))
    status = status_of_page(query.offset, found, total)
    if request.method == "HEAD":
        return Answer(status, "", (header,))
    if function.is_set and is_object(media) and found != 1:
        raise not_one(found)
    is_one = not media.startswith(CSV_TYPE) and (not function.is_set or is_object(media))
    return Answer(status, (row["one"] or "null") if is_one else row["body"], (header,))
