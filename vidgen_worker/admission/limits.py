"""The number of generations of a model that may be in flight at the provider.

The statement that begins a submission takes the slot; nothing here calls the provider.
"""

from datetime import timedelta
from typing import Any

from vidgen_worker.queue.caller import Caller


class Limits:
    """The limits of the worker's models."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def expect(self) -> None:
        """Announce the worker's models, and the limits that the settings give for them."""
        await self._caller.run("expect_limit", **self._models())
        for model, limit in self.of_settings().items():
            await self._caller.run("set_limit", **self._limit(model, limit))

    async def ask(self, every: timedelta) -> tuple[list[str], bool]:
        """Return the models whose limits this worker must read now; each goes to one worker only.

        The second value says whether other models have no known limit yet.
        """
        rows = await self._caller.once("ask_limits", every=every, **self._caller.key.names())
        return [row["model"] for row in rows if row["mine"]], any(not row["mine"] for row in rows)

    async def set_limit(self, model: str, max_generations: int | None) -> None:
        """Set the number of generations of a model that may be in flight; None means no limit."""
        await self._caller.once("set_limit", **self._limit(model, max_generations))

    def of_settings(self) -> dict[str, int]:
        """The limits from the settings, by model: these are not read from the provider."""
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
