"""How statements are sent: parameters as the server takes them, and two in one transaction."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.support.hands import USUAL, Ground, Hand
from vidgen_worker.database.pool import Database, Rows
from vidgen_worker.database.statements import Block
from vidgen_worker.database.trouble import DatabaseUnavailableError


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(url, size=1, lock_timeout=timedelta(milliseconds=100))
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def claim(database: Database, hand: Hand, **parameters: object) -> Rows:
    values: dict[str, Any] = {**USUAL, "worker_id": hand.worker_id, "slots": 20, **parameters}
    return await database.pair("line_up", "claim", **values)


async def test_the_second_of_a_pair_sees_what_the_first_wrote(ground: Ground) -> None:
    user = ground.user()
    task = ground.order(user)
    worker = ground.worker()
    async with opened(ground.database.url) as database:
        for _ in range(2):  # prepared at once, then known
            rows = await claim(database, worker)
            assert [row["id"] for row in rows] == [task]
            assert rows.sent > 0
            task = ground.order(user)


async def test_a_pair_is_one_transaction(ground: Ground) -> None:
    """The claim fails after the line was written: the mail lies in its box as before."""
    ground.order(ground.user())
    worker = ground.worker()
    async with opened(ground.database.url) as database:
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            await claim(database, worker, slots="many")
        assert ground.one("select count(*) as n from vidgen.arrivals")["n"] == 1
        assert ground.none("select from vidgen.turns")
        assert len(await claim(database, worker)) == 1


async def test_behind_a_transaction_pooler_a_pair_is_one_transaction_too(ground: Ground) -> None:
    ground.order(ground.user())
    worker = ground.worker()
    async with opened(ground.database.url) as database:
        database._prepare = False
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            await claim(database, worker, slots="many")
        assert ground.one("select count(*) as n from vidgen.arrivals")["n"] == 1
        assert len(await claim(database, worker)) == 1


@pytest.mark.parametrize("locked", ["vidgen.arrivals", "vidgen.gates"])
async def test_an_error_in_either_of_a_pair_is_raised_as_it_is(ground: Ground, locked: str) -> None:
    """By the error that it was, and not as a pipeline that was aborted; then the line is free."""
    ground.order(ground.user())
    worker = ground.worker()
    async with opened(ground.database.url) as database:
        with ground.hand().holding() as other:
            other.conn.execute(f"lock table {locked} in access exclusive mode")
            with pytest.raises(DatabaseUnavailableError, match="LockNotAvailable"):
                await claim(database, worker)
        assert len(await claim(database, worker)) == 1


@pytest.mark.parametrize("prepared", [True, False])
async def test_an_error_at_the_end_of_a_pair_is_raised_as_it_is(
    ground: Ground, prepared: bool
) -> None:
    """An application's deferred trigger refuses the line when its transaction ends."""
    ground.order(ground.user())
    worker = ground.worker()
    ground.sql(
        "create function vidgen.refuse() returns trigger language plpgsql"
        " as $$ begin raise 'not today' using errcode = '23514'; end $$"
    )
    ground.sql(
        "create constraint trigger refuse after insert on vidgen.turns"
        " deferrable initially deferred for each row execute function vidgen.refuse()"
    )
    async with opened(ground.database.url) as database:
        database._prepare = prepared
        with pytest.raises(psycopg.errors.CheckViolation, match="not today"):
            await claim(database, worker)
        ground.sql("drop trigger refuse on vidgen.turns")
        assert len(await claim(database, worker)) == 1


def test_a_claim_that_finds_nothing_writes_nothing(ground: Ground) -> None:
    """A transaction without an id of its own is not flushed to the disk."""
    worker = ground.worker()
    with worker.holding():
        assert worker.claim() == []
        assert worker.conn.execute(
            "select pg_current_xact_id_if_assigned() is null as nothing"
        ).fetchone() == {"nothing": True}


def test_parameters_get_numbers_by_their_first_place() -> None:
    block = Block.read("select %(b)s, %(a)s, %(b)s::text like 'x%%'")
    assert block.text == "select $1, $2, $1::text like 'x%'"
    assert block.values({"a": 1, "b": 2, "c": 3}) == [2, 1]
    with pytest.raises(KeyError, match="a"):
        block.values({"b": 2})
