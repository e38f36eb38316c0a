"""Users, sessions and refresh tokens: rows of the schema `auth`, as `supabase_auth_admin`.

A refresh token is good once; within seconds of its use it gives its successor again, later it ends
the session, because then two parties have it. Passwords are bcrypt hashes. It never speaks HTTP.
"""

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from psycopg import AsyncConnection, errors
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool

from vidgen_worker.sandbox.supabase.auth.passwords import hashed, is_password
from vidgen_worker.sandbox.supabase.auth.refusals import (
    ADDRESS_TAKEN,
    ALREADY_THERE,
    BAD_CREDENTIALS,
    BANNED,
    NO_REFRESH_TOKEN,
    NO_USER,
    NOT_CONFIRMED,
    SAME_PASSWORD,
    USED_REFRESH_TOKEN,
)

Connection = AsyncConnection[dict[str, Any]]
Row = dict[str, Any]

CONNECT_SECONDS = 10.0
REUSE_SECONDS = 10
PROVIDER = {"provider": "email", "providers": ["email"]}


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in user: who, in which session, and what renews it."""

    user: Row
    id: UUID
    refresh_token: str


class Users:
    """The schema `auth`. `lifespan` keeps its connections."""

    def __init__(self, admin_url: str) -> None:
        """Use the database of `admin_url`, a superuser's URL."""
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            admin_url,
            connection_class=AsyncConnection[dict[str, Any]],
            min_size=0,
            max_size=4,
            timeout=CONNECT_SECONDS,
            check=AsyncConnectionPool.check_connection,
            configure=_log_in,
            open=False,
            kwargs={"row_factory": dict_row},
        )

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Keep connections for the length of the block."""
        await self._pool.open(wait=False)
        yield
        await self._pool.close(timeout=1)

    async def create(
        self,
        email: str,
        password: str,
        user_metadata: Mapping[str, Any],
        user_id: UUID | None = None,
        *,
        is_confirmed: bool = True,
    ) -> Row:
        """Create a user; without a password nobody signs in. Raises `AuthRefusalError`."""
        secret = await hashed(password) if password else None
        try:
            return await self._one(
                """
                insert into auth.users
                  (instance_id, id, aud, role, email, encrypted_password, email_confirmed_at,
                   raw_app_meta_data, raw_user_meta_data, created_at, updated_at)
                values ('00000000-0000-0000-0000-000000000000', %s, 'authenticated',
                        'authenticated', %s, %s, case when %s then now() end, %s, %s, now(), now())
                returning *
                """,
                user_id or uuid4(),
                email.strip().lower(),
                secret,
                is_confirmed,
                Jsonb(PROVIDER),
                Jsonb(dict(user_metadata)),
            )
        except errors.UniqueViolation as error:
            raise ALREADY_THERE from error

    async def by_id(self, user_id: str) -> Row:
        """Return a user. Raises `AuthRefusalError`."""
        return await self._one("select * from auth.users where id::text = %s", user_id)

    async def named(self, name: str) -> Row:
        """Return the user with this id or address. Raises `AuthRefusalError`."""
        found = "select * from auth.users where id::text = lower(%s) or email = lower(%s)"
        return await self._one(found, name, name)

    async def page(self, number: int, rows: int) -> tuple[list[Row], int]:
        """Return a page of users, the newest first, and how many there are."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "select * from auth.users order by created_at desc, id limit %s offset %s",
                [rows, (number - 1) * rows],
            )
            found = await cursor.fetchall()
            counted = await connection.execute("select count(*) as n from auth.users")
            return found, int((await counted.fetchone() or {"n": 0})["n"])

    async def change(
        self, user_id: str, body: Mapping[str, Any], session: str | None = None
    ) -> Row:
        """Change a user's address, password or metadata; a null there takes a name away.

        A new password ends all sessions but the one it was changed in. Raises `AuthRefusalError`.
        """
        email, password = body.get("email"), str(body.get("password") or "")
        secret = None
        if password:
            known = (await self.by_id(user_id))["encrypted_password"]
            if session is not None and await is_password(password, known):
                raise SAME_PASSWORD
            secret = await hashed(password)
        try:
            user = await self._one(
                """
                update auth.users
                   set email = coalesce(%s, email),
                       encrypted_password = coalesce(%s, encrypted_password),
                       email_confirmed_at = case when %s then coalesce(email_confirmed_at, now())
                         else email_confirmed_at end,
                       raw_user_meta_data = (coalesce(raw_user_meta_data, '{}') || %s) - %s::text[],
                       raw_app_meta_data = (coalesce(raw_app_meta_data, '{}') || %s) - %s::text[],
                       banned_until = case when %s::text is null then banned_until
                         when %s = 'none' then null else now() + %s::interval end,
                       updated_at = now()
                 where id::text = %s
                returning *
                """,
                None if not email else str(email).strip().lower(),
                secret,
                bool(body.get("email_confirm")),
                *_changes_of(body.get("data") or {}),
                *_changes_of(body.get("app_metadata") or {}),
                *_ban_of(body),
                user_id,
            )
        except errors.UniqueViolation as error:
            raise ADDRESS_TAKEN from error
        if password:
            await self.sign_out(user_id, session or "", "others")
        return user

    async def delete(self, user_id: str) -> Row:
        """Delete a user, and what refers to it as the foreign keys say."""
        return await self._one("delete from auth.users where id::text = %s returning *", user_id)

    async def sign_in(self, email: str, password: str) -> Session:
        """Return a new session of a user whose password this is. Raises `AuthRefusalError`."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "select *, coalesce(banned_until > now(), false) as is_banned"
                " from auth.users where email = %s",
                [email.strip().lower()],
            )
            user = await cursor.fetchone()
        is_right = await is_password(password, (user or {}).get("encrypted_password"))
        if user is None or not is_right:
            raise BAD_CREDENTIALS
        if user["is_banned"]:
            raise BANNED
        if user["email_confirmed_at"] is None:
            raise NOT_CONFIRMED
        return await self.begin(str(user["id"]))

    async def begin(self, user_id: str) -> Session:
        """Begin a session. Raises `AuthRefusalError`."""
        user = await self._one(
            "update auth.users set last_sign_in_at = now() where id::text = %s returning *", user_id
        )
        session, token = uuid4(), secrets.token_urlsafe(12)
        async with self._pool.connection() as connection:
            await connection.execute(
                "insert into auth.sessions (id, user_id, created_at, updated_at, aal)"
                " values (%s, %s, now(), now(), 'aal1')",
                [session, user["id"]],
            )
            await _add_token(connection, token, user["id"], session, None)
        return Session(user, session, token)

    async def refresh(self, token: str) -> Session:
        """Return the session of a refresh token, with its successor. Raises `AuthRefusalError`."""
        stolen: UUID | None = None
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                """
                select t.*, t.updated_at < now() - make_interval(secs => %s) as is_old,
                       (select n.token from auth.refresh_tokens as n
                         where n.parent = t.token order by n.id limit 1) as successor
                  from auth.refresh_tokens as t where t.token = %s for update of t
                """,
                [REUSE_SECONDS, token],
            )
            row = await cursor.fetchone()
            if row is None:
                raise NO_REFRESH_TOKEN
            new: str | None = row["successor"]
            if row["revoked"] and (row["is_old"] or new is None):
                stolen = row["session_id"]
                await connection.execute("delete from auth.sessions where id = %s", [stolen])
            elif new is None:
                new = secrets.token_urlsafe(12)
                await connection.execute(
                    "update auth.refresh_tokens set revoked = true, updated_at = now()"
                    " where id = %s",
                    [row["id"]],
                )
                await _add_token(connection, new, row["user_id"], row["session_id"], token)
        if stolen is not None or new is None:
            raise USED_REFRESH_TOKEN
        return Session(await self.by_id(row["user_id"]), row["session_id"], new)

    async def has_session(self, session_id: str) -> bool:
        """Whether a session has not ended."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(
                "select from auth.sessions where id::text = %s", [session_id]
            )
            return await cursor.fetchone() is not None

    async def sign_out(self, user_id: str, session_id: str, scope: str) -> None:
        """End this session (`local`), the others, or all of the user's (`global`)."""
        async with self._pool.connection() as connection:
            await connection.execute(
                "delete from auth.sessions where user_id::text = %s and"
                " case %s when 'local' then id::text = %s when 'others' then id::text <> %s"
                " else true end",
                [user_id, scope, session_id, session_id],
            )

    async def _one(self, statement: str, *values: object) -> Row:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(statement.encode(), values)
            row = await cursor.fetchone()
        if row is None:
            raise NO_USER
        return row


def as_json(user: Row) -> dict[str, Any]:
    """Return a user as GoTrue shows it."""

    def moment(name: str) -> str | None:
        value = user[name]
        return None if value is None else value.isoformat().replace("+00:00", "Z")

    shown = {
        "id": str(user["id"]),
        "aud": user["aud"],
        "role": user["role"],
        "email": user["email"],
        "email_confirmed_at": moment("email_confirmed_at"),
        "phone": user["phone"] or "",
        "confirmed_at": moment("email_confirmed_at"),
        "last_sign_in_at": moment("last_sign_in_at"),
        "app_metadata": user["raw_app_meta_data"] or {},
        "user_metadata": user["raw_user_meta_data"] or {},
        "identities": [_identity(user, moment)],
        "created_at": moment("created_at"),
        "updated_at": moment("updated_at"),
        "is_anonymous": user["is_anonymous"],
    }
    return (
        shown if user["banned_until"] is None else {**shown, "banned_until": moment("banned_until")}
    )


async def _log_in(connection: Connection) -> None:
    """Be who GoTrue is: triggers on its tables run as that role."""
    await connection.execute("set session authorization supabase_auth_admin")
    await connection.commit()


async def _add_token(
    connection: Connection, token: str, user_id: object, session: UUID, parent: str | None
) -> None:
    await connection.execute(
        "insert into auth.refresh_tokens"
        " (token, user_id, revoked, created_at, updated_at, session_id, parent)"
        " values (%s, %s, false, now(), now(), %s, %s)",
        [token, str(user_id), session, parent],
    )


def _changes_of(metadata: Mapping[str, Any]) -> tuple[Jsonb, list[str]]:
    """Return what is to be written of it, and the names that are to go."""
    gone = [name for name, value in metadata.items() if value is None]
    return Jsonb(dict(metadata)), gone


def _ban_of(body: Mapping[str, Any]) -> tuple[str | None, str | None, str | None]:
    """Return a ban's length (`24h`, or `none`) as often as the statement asks for it."""
    given = body.get("ban_duration")
    said = None if given is None else str(given)
    return said, said, None if said == "none" else said


def _identity(user: Row, moment: Callable[[str], str | None]) -> dict[str, Any]:
    """Return how the user signs in. Applications take a user without any for one there already."""
    said = {"email": user["email"], "email_verified": False, "sub": str(user["id"])}
    return {
        "identity_id": str(user["id"]),
        "id": str(user["id"]),
        "user_id": str(user["id"]),
        "identity_data": {**said, "phone_verified": False},
        "provider": "email",
        "last_sign_in_at": moment("created_at"),
        "created_at": moment("created_at"),
        "updated_at": moment("created_at"),
        "email": user["email"],
    }
