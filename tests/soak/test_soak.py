"""The short form of `make soak`: the same code, smaller and with more faults per task."""

import os
from pathlib import Path

import pytest

from tests.soak.faults import PROVIDER_FAULTS
from tests.soak.plan import Plan
from tests.soak.run import soak
from vidgen_worker.sandbox.runway.words import WORDS

SEED = int(os.environ.get("SOAK_SEED", "1"))


def test_every_prompt_word_is_soaked() -> None:
    """A new word of the double has a place in the soak."""
    assert {fault.words.partition(" ")[0] for fault in PROVIDER_FAULTS} == set(WORDS)


@pytest.mark.slow
async def test_a_short_soak(tmp_path: Path) -> None:
    """Two workers, kills, two restarts of PostgreSQL, every kind of fault: every promise holds."""
    plan = Plan(
        SEED,
        tasks=150,
        users=10,
        workers=2,
        storage_share=0.1,
        cancel_share=0.1,
        patience=150,
        disk_full_seconds=5,
    )
    report = await soak(plan, tmp_path, print)
    report.show()
    assert report.violations == [], f"SOAK_SEED={SEED}"
