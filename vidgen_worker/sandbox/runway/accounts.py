"""The double's accounts and their keys: an account's generations are 404 under any other's key."""

import secrets
from collections import ChainMap
from collections.abc import Callable, ItemsView

from vidgen_worker.sandbox.runway.generations import Generations, RunwaySettings

STARTING_CREDITS = 100_000
FIRST_ACCOUNT = "first"


class Accounts:
    """Every account by its name, with the one settings that all of them share."""

    def __init__(
        self, clock: Callable[[], float], settings: RunwaySettings, key: str | None
    ) -> None:
        self.first = Generations(clock, STARTING_CREDITS)
        self.first.settings = settings
        self.key = key or new_key()
        """The first account's first key."""
        self._accounts = {FIRST_ACCOUNT: self.first}
        self._account_of_key = {self.key: FIRST_ACCOUNT}
        self.all = ChainMap(self.first.all)
        """The generations of all accounts, by their ids."""

    @property
    def settings(self) -> RunwaySettings:
        """The settings in force."""
        return self.first.settings

    @settings.setter
    def settings(self, settings: RunwaySettings) -> None:
        for account in self._accounts.values():
            account.settings = settings

    def items(self) -> ItemsView[str, Generations]:
        """Name and generations of each account."""
        return self._accounts.items()

    def of_key(self, key: str) -> Generations | None:
        """The account that a key belongs to."""
        name = self._account_of_key.get(key)
        return None if name is None else self._accounts[name]

    def make_key(self, name: str) -> str:
        """Make a key of an account; an account that is not there yet comes with it."""
        if name not in self._accounts:
            account = Generations(self.first.clock, STARTING_CREDITS)
            account.settings = self.settings
            self._accounts[name] = account
            self.all.maps.append(account.all)
        key = new_key()
        self._account_of_key[key] = name
        return key

    def revoke_key(self, key: str) -> bool:
        """From now on the key is refused; False where there is no such key."""
        return self._account_of_key.pop(key, None) is not None


def new_key() -> str:
    """Return a key in Runway's shape."""
    return f"key_{secrets.token_hex(64)}"
