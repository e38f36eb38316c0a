"""Polling: the rules for all histories, and its figures beside a poll every six seconds."""

import random
import statistics
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.waits import Found, Progress, interval, lengths, ours, steady
from vidgen_worker.domain.polling import KEPT, LEAST, Ended, Pace, Seen, left

SAYS: dict[str, Progress] = {
    "linear": lambda share: max(0.0, (share - 0.1) / 0.9),
    "stalling": lambda share: min(share, 0.42) if share < 0.8 else share,
    "jumping": lambda share: 0.0 if share < 0.5 else 0.6 if share < 0.8 else 0.95,
    "lying, too fast": lambda share: min(0.99, 2 * share),
    "lying, too slow": lambda share: 0.4 * share**2,
    "absent": None,
}


def every_six_seconds(times: Iterable[float], lots: random.Random) -> Found:
    """The former policy: 6 s and up to a quarter more between two polls."""
    return steady(times, 6.0, 7.5, lots)


ENDS = st.builds(
    lambda after, took: Ended(after, after + took), st.floats(0, 4000), st.floats(0, 4000)
)
SEEN = st.builds(Seen, st.floats(0, 4000), st.floats(-1, 2))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    interval=st.floats(0.01, 3600), history=st.lists(ENDS, max_size=KEPT),
    seen=st.lists(SEEN, max_size=5), elapsed=st.floats(0, 5000), lot=st.floats(0, 1),
)  # fmt: skip
def test_no_pause_is_below_five_seconds_or_above_the_setting(
    interval: float, history: list[Ended], seen: list[Seen], elapsed: float, lot: float
) -> None:
    pause = Pace.of(interval).pause(history, seen, elapsed, lot)
    assert min(LEAST, 0.95 * interval) <= pause <= interval
    assert interval < LEAST or pause >= LEAST


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    history=st.lists(ENDS, max_size=KEPT), seen=st.lists(SEEN, max_size=5),
    elapsed=st.floats(0, 5000),
)  # fmt: skip
def test_the_time_left_is_unknown_or_within_a_day(
    history: list[Ended], seen: list[Seen], elapsed: float
) -> None:
    rest = left(history, seen, elapsed)
    assert rest is None or 0 <= rest <= 86_400


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    median=st.floats(10, 240), spread=st.floats(0.02, 0.3), says=st.sampled_from(sorted(SAYS)),
    seed=st.integers(0, 10_000),
)  # fmt: skip
def test_on_no_time_line_the_mean_wait_is_longer_than_with_a_poll_every_six_seconds(
    median: float, spread: float, says: str, seed: int
) -> None:
    lots = random.Random(seed)
    times = lengths(median, spread, 80, lots)
    found = ours(times, [], SAYS[says], lots)
    assert all(LEAST <= pause <= interval() for pause in found.pauses)
    assert found.mean <= every_six_seconds(times, lots).mean


@pytest.mark.parametrize("says", SAYS)
@pytest.mark.parametrize(("median", "spread"), [(41, 0.15), (64, 0.15), (64, 0.3)])
def test_with_a_history_the_wait_is_short_and_the_polls_are_fewer(
    median: float, spread: float, says: str
) -> None:
    """41 s and 64 s: what ComfyUI expects of a still and of a clip."""
    lots = random.Random(7)
    history: list[Ended] = []
    ours(lengths(median, spread, KEPT, lots), history, SAYS[says], lots)
    times = lengths(median, spread, 120, lots)
    holds(ours(times, history, SAYS[says], lots), every_six_seconds(times, lots))


def holds(found: Found, before: Found) -> None:
    assert found.p50 <= 3.0
    assert found.p95 <= 6.0
    assert found.mean < before.mean
    assert found.polls_each < before.polls_each


def fleets(
    median: float, history: Callable[[random.Random], Sequence[Ended]], says: Progress
) -> tuple[Found, Found]:
    """Eight fleets with twenty generations each, from this history on."""
    lots = random.Random(11)
    found, before = Found(), Found()
    for _ in range(8):
        times = lengths(median, 0.15, 20, lots)
        found.add(ours(times, list(history(lots)), says, lots))
        before.add(every_six_seconds(times, lots))
    return found, before


@pytest.mark.parametrize("says", ["linear", "absent"])
@pytest.mark.parametrize("median", [41, 64])
def test_a_fleet_that_knows_nothing_yet_learns_within_twenty_generations(
    median: float, says: str
) -> None:
    holds(*fleets(median, lambda _: [], SAYS[says]))


def known(lots: random.Random) -> Sequence[Ended]:
    """The history of a clip of 64 s."""
    history: list[Ended] = []
    ours(lengths(64, 0.15, KEPT, lots), history, None, lots)
    return history


@pytest.mark.parametrize("says", ["linear", "absent"])
def test_polls_adapt_to_a_provider_that_is_suddenly_twice_as_slow(says: str) -> None:
    holds(*fleets(128, known, SAYS[says]))


def test_polls_adapt_to_a_provider_that_is_suddenly_twice_as_fast() -> None:
    found, before = fleets(32, known, None)
    assert (found.p50 <= 3.0, found.mean < before.mean) == (True, True)
    assert found.polls_each < before.polls_each


def test_the_very_first_generation_of_a_kind_waits_no_longer_than_the_others() -> None:
    lots = random.Random(3)
    times = lengths(41, 0.15, 400, lots)
    first = [ours([seconds], [], None, lots) for seconds in times]
    waits = [found.waits[0] for found in first]
    assert statistics.median(waits) <= 3.0
    assert statistics.quantiles(waits, n=20)[-1] <= 6.0
    polls = statistics.mean(found.polls[0] for found in first)
    assert polls < 1.1 * every_six_seconds(times, lots).polls_each


def test_the_time_left_comes_from_the_history_and_from_progress() -> None:
    history = [Ended(36.0, 40.0)] * 5
    assert left([], (), 0.0) is None
    assert left(history, (), 0.0) == 40.0
    assert left(history, (), 30.0) == 10.0
    assert left(history, (), 50.0) is None
    linear = [Seen(at, at / 100) for at in (20.0, 30.0, 40.0)]
    assert left([], linear, 40.0) == pytest.approx(66.0)
    assert left([], [*linear, Seen(50.0, 0.4)], 50.0) is None
