"""Sessions that stay open between the statements of one test: a new one costs 10 ms.

Only for statements that leave nothing behind in their session; whoever holds a transaction or a
lock opens a session of his own.
"""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import dict_row

Row = dict[str, Any]


class Sessions:
    """Open sessions with one URL, in autocommit. Any thread may take one."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: list[psycopg.Connection[Row]] = []

    @contextmanager
    def one(self) -> Iterator[psycopg.Connection[Row]]:
        """Provide a session for the block alone. One that met an error is closed."""
        conn = self._idle_one() or self._new()
        try:
            yield conn
        except BaseException:
            conn.close()
            raise
        self._idle.append(conn)

    def close(self) -> None:
        """Close what is idle. Any number of calls is fine."""
        while self._idle:
            self._idle.pop().close()

    def _idle_one(self) -> psycopg.Connection[Row] | None:
        while True:
            try:
                conn = self._idle.pop()
            except IndexError:
                return None
            # An idle server says only one thing: that it has ended the session.
            if not select.select([conn.fileno()], [], [], 0)[0]:
                return conn
            conn.close()

    def _new(self) -> psycopg.Connection[Row]:
        # Nothing is prepared: tests change tables between two runs of one statement.
        return psycopg.connect(
            self._url, autocommit=True, row_factory=dict_row, prepare_threshold=None
        )
