"""The scope of a gate: a trouble stops the workers that it concerns, and no others.

A worker has its scopes (`Scopes`), a row of the fault table names the kind of a scope (`Scope`),
and the text of a scope together with a model identifies a gate (`Gate`). Nothing here does input or
output, or decides when a gate closes.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

ALL_MODELS = "*"
OPERATOR = "*"
"""The scope of a gate that an operator closes: it concerns every worker."""
DEFAULT_ACCOUNT = "default"
ACCOUNT_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""The form of VIDGEN_ACCOUNT: without a colon, which marks the scopes that are no account."""


class Scope(StrEnum):
    """The kind of thing that a trouble concerns: its gate closes for all who use that thing."""

    ACCOUNT = "account"
    """The provider's account."""
    MODEL = "model"
    """One model of the provider's account."""
    KEY = "key"
    """One key at the provider; another key of the same account may still work."""
    STORAGE = "storage"
    """One file store with one key for it."""
    MACHINE = "machine"
    """One machine, with its folder for downloads."""


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate: the text of its scope as in its row, and the model (* means all models)."""

    scope: str
    model: str


@dataclass(frozen=True, slots=True)
class Scopes:
    """The scopes of one worker.

    `key` is the fingerprint of its key at the provider, `storage` that of the file store's address
    and key, `machine` names host and folder.
    """

    account: str
    key: str
    storage: str
    machine: str

    def gate(self, scope: Scope, model: str) -> Gate:
        """The gate that a trouble of this kind closes; only `Scope.MODEL` uses `model`."""
        match scope:
            case Scope.ACCOUNT:
                return Gate(self.account, ALL_MODELS)
            case Scope.MODEL:
                return Gate(self.account, model)
            case Scope.KEY:
                return Gate(f"key:{self.key}", ALL_MODELS)
            case Scope.STORAGE:
                return Gate(f"storage:{self.storage}", ALL_MODELS)
            case Scope.MACHINE:
                return Gate(f"machine:{self.machine}", ALL_MODELS)

    def all(self) -> list[str]:
        """Every scope whose gates concern this worker."""
        return sorted({self.gate(scope, ALL_MODELS).scope for scope in Scope} | {OPERATOR})


def fingerprint(secret: str) -> str:
    """Return a short digest that tells secrets apart and does not reveal them."""
    return hashlib.sha256(secret.encode()).hexdigest()[:12]


def storage_fingerprint(url: str, key: str) -> str:
    """Return a short digest that tells file stores and their keys apart."""
    return fingerprint(f"{url.rstrip('/')}\n{key}")


def machine_of(host: str) -> str:
    """Name this machine: containers share folders without sharing host names, and the reverse."""
    return f"{host}:{os.environ.get('TMPDIR', '/tmp')}"  # noqa: S108 - a name, nothing is opened


@dataclass(frozen=True, slots=True)
class Key:
    """A key at a provider, the two models that it is used for, and the worker's scopes."""

    provider: str
    image_model: str
    video_model: str
    scopes: Scopes

    @property
    def fingerprint(self) -> str:
        """A digest that tells keys apart and does not reveal the key."""
        return self.scopes.key

    def names(self) -> dict[str, Any]:
        """The parameters by which queries identify this worker's account, key and scopes."""
        return {
            "provider": self.provider,
            "account": self.scopes.account,
            "key_fingerprint": self.scopes.key,
            "scopes": self.scopes.all(),
        }
