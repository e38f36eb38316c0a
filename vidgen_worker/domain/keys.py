"""What a gate is about: its scope, so that a trouble stops those whom it concerns and nobody else.

A worker knows the scopes that concern it (`Scopes`), a row of the fault table the kind of its own
(`Scope`), and a gate is known by the text of its scope and its model (`Gate`). Nothing here does
input or output, or decides when a gate closes.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

ALL_MODELS = "*"
OPERATOR = "*"
"""The scope of an operator's hand: it concerns everybody."""
DEFAULT_ACCOUNT = "default"
ACCOUNT_LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What VIDGEN_ACCOUNT may be: no colon, which tells the other scopes from accounts."""


class Scope(StrEnum):
    """What a trouble is about, and so for whom its gate closes."""

    ACCOUNT = "account"
    """The provider's account: everybody who spends from it."""
    MODEL = "model"
    """One model of the provider's account."""
    KEY = "key"
    """One key at the provider; another key of the same account may be good."""
    STORAGE = "storage"
    """One file store with one key for it."""
    MACHINE = "machine"
    """One machine, with its folder for downloads."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Which gate: `scope` as its row says it, and the model (* is all of them)."""

    scope: str
    model: str


@dataclass(frozen=True, slots=True)
class Scopes:
    """What a worker is part of.

    `key` is the fingerprint of its key at the provider, `storage` that of the file store's address
    and key, `machine` names host and folder.
    """

    account: str
    key: str
    storage: str
    machine: str

    def gate(self, scope: Scope, model: str) -> Gate:
        """The gate that a trouble of this kind closes; `model` counts for `Scope.MODEL` only."""
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
    """Tell secrets apart without telling them."""
    return hashlib.sha256(secret.encode()).hexdigest()[:12]


def storage_fingerprint(url: str, key: str) -> str:
    """Tell file stores, and keys for them, apart without telling the key."""
    return fingerprint(f"{url.rstrip('/')}\n{key}")


def machine_of(host: str) -> str:
    """Name this machine: containers share folders without sharing host names, and the reverse."""
    return f"{host}:{os.environ.get('TMPDIR', '/tmp')}"  # noqa: S108 - a name, nothing is opened


@dataclass(frozen=True, slots=True)
class Key:
    """Which key at which provider, the models it is used for, and whom gates close for."""

    provider: str
    image_model: str
    video_model: str
    scopes: Scopes

    @property
    def fingerprint(self) -> str:
        """Tells keys apart without telling the key."""
        return self.scopes.key

    def names(self) -> dict[str, Any]:
        """Who the worker is, as the queries name it."""
        return {
            "provider": self.provider,
            "account": self.scopes.account,
            "key_fingerprint": self.scopes.key,
            "scopes": self.scopes.all(),
        }
