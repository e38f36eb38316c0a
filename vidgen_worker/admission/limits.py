"""How many generations of a model may be in flight at the provider.

Taking a place is part of a submission's statement; nothing here asks the provider.
"""

from datetime import timedelta
from typing import Any

from vidgen_worker.queue.caller import Caller


class Limits:
    """The limits of the worker's models."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def expect(self) -> None:
        """Say which models' limits are to be read, and what the settings say of them."""
        await self._caller.run("expect_limit", **self._models())
        for model, limit in self.of_settings().items():
            await self._caller.run("set_limit", **self._limit(model, limit))

    async def ask(self, every: timedelta) -> tuple[list[str], bool]:
        """Models whose limits this worker is the one to read now; no other worker is told so.

        Then whether there are others that nobody knows yet.
        """
        rows = await self._caller.once("ask_limits", every=every, **self._caller.key.names())
        return [row["model"] for row in rows if row["mine"]], any(not row["mine"] for row in rows)

    async def set_limit(self, model: str, max_generations: int | None) -> None:
        """Say how many generations of a model may be in flight; None is any number."""
        await self._caller.once("set_limit", **self._limit(model, max_generations))

    def of_settings(self) -> dict[str, int]:
        """The limits that a setting says, by model: these are not read from the provider."""
        said = {
            self._caller.key.image_model: self._caller.settings.vidgen_image_slots,
            self._caller.key.video_model: self._caller.settings.vidgen_video_slots,
        }
        return {model: limit for model, limit in said.items() if limit is not None}

    def _limit(self, model: str, max_generations: int | None) -> dict[str, Any]:
        return {
            **self._caller.key.names(),
            "model": model,
            "max_generations": max_generations,
        }

    def _models(self) -> dict[str, Any]:
        return {
            **self._caller.key.names(),
            "models": [self._caller.key.image_model, self._caller.key.video_model],
        }
