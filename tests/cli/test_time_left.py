"""The time left, in words: rough, and never up and down with each look."""

from datetime import UTC, datetime, timedelta

from vidgen_worker.cli.time_left import TimeLeft

NOW = datetime(2026, 11, 30, tzinfo=UTC)


def said(left: TimeLeft, expected: float | None, now: float) -> str:
    at = None if expected is None else NOW + timedelta(seconds=expected)
    return left.words({"expected_at": at}, NOW + timedelta(seconds=now))


def test_it_goes_down_in_steps_and_small_moves_of_the_estimate_change_nothing() -> None:
    left = TimeLeft()
    looks = [said(left, 23 + (2 if second % 2 else 0), second / 5) for second in range(120)]
    assert sorted(set(looks), key=looks.index) == [
        "about 25 s left", "about 20 s left", "about 15 s left", "about 10 s left",
        "about 5 s left", "nearly there",
    ]  # fmt: skip
    assert looks == sorted(looks, key=looks.index)


def test_it_is_rougher_the_longer_it_takes_and_silent_where_nobody_knows() -> None:
    left = TimeLeft()
    assert said(left, None, 0) == ""
    assert said(left, 95, 0) == "about 2 min left"
    assert said(left, 91, 0) == "about 2 min left"
    assert said(left, 85, 5) == "about 1 min 30 s left"
    assert said(TimeLeft(), 4000, 0) == "about 67 min left"
