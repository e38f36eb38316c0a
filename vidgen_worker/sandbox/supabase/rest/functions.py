"""Calls of functions: POST and GET of `/rest/v1/rpc/FUNCTION`, with named arguments.

It runs inside the caller's transaction, in the caller's role, and never opens one.
"""

from starlette.requests import Request

from vidgen_worker.sandbox.supabase.rest import statements
from vidgen_worker.sandbox.supabase.rest.catalog import Connection, argument_names, function_of
from vidgen_worker.sandbox.supabase.rest.exchange import (
    Answer,
    Preferences,
    accepted,
    body_of,
    content_range,
    is_object,
    paged,
    rows_of,
    status_of_page,
)
from vidgen_worker.sandbox.supabase.rest.parsing import check_flat, parse
from vidgen_worker.sandbox.supabase.rest.refusals import RestRefusalError, not_one


async def call(connection: Connection, request: Request, preferences: Preferences) -> Answer:
    """Call a function and answer what it returns, in its shape. Raises `RestRefusalError`."""
    name = request.path_params["name"]
    items = request.query_params.multi_items()
    if request.method == "POST":
        content = await request.body()
        rows = rows_of(await body_of(request)) if content.strip() else [{}]
        if len(rows) != 1:
            raise RestRefusalError(400, "PGRST102", "Empty or invalid json")
        (arguments,) = rows
        query = parse(items)
    else:
        query = parse(items, await argument_names(connection, name))
        arguments = dict(query.arguments)
    check_flat(query)
    query = paged(query, request)
    function = await function_of(connection, name, frozenset(arguments))
    statement = statements.call(function, arguments, query)
    row = await (await connection.execute(statement)).fetchone()
    if row is None:
        raise RestRefusalError(500, "PGRSTX00", "The statement gave no row")
    found = int(row["n"])
    total = found if preferences.count is not None else None
    header = content_range(query.offset, found, total)
    if function.is_void:
        return Answer(204, "", (header,))
    status = status_of_page(query.offset, found, total)
    if request.method == "HEAD":
        return Answer(status, "", (header,))
    if function.is_set and is_object(accepted(request)) and found != 1:
        raise not_one(found)
    is_one = not function.is_set or is_object(accepted(request))
    return Answer(status, (row["one"] or "null") if is_one else row["body"], (header,))
