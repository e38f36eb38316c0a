"""Passwords as bcrypt hashes, made and tried in a thread. They are kept nowhere else."""

import asyncio
import functools
import secrets

import bcrypt

ROUNDS = 10
"""bcrypt's cost, the same as GoTrue's."""
LONGEST_BYTES = 72


def _bytes_of(password: str) -> bytes:
    # bcrypt looks at so many bytes and refuses more.
    return password.encode()[:LONGEST_BYTES]


async def hashed(password: str) -> str:
    """Return a password's hash."""
    salt = bcrypt.gensalt(ROUNDS)
    return (await asyncio.to_thread(bcrypt.hashpw, _bytes_of(password), salt)).decode()


async def is_password(password: str, known: str | None) -> bool:
    """Whether a password is the one of a hash; without one it takes as long, and is not."""
    kept = known.encode() if known else _no_hash()
    return await asyncio.to_thread(bcrypt.checkpw, _bytes_of(password), kept) and bool(known)


@functools.cache
def _no_hash() -> bytes:
    """Return what is tried where there is no user, so that the answer takes as long."""
    return bcrypt.hashpw(secrets.token_bytes(16), bcrypt.gensalt(ROUNDS))
