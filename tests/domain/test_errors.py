"""The table of faults, and what is read from it."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vidgen_worker
from vidgen_worker.domain.faults import (
    FAULTS,
    Disposition,
    Fault,
    FaultName,
    Hold,
    Probe,
    backoff,
    failure_fault,
    probe_of,
)


@pytest.mark.parametrize(
    ("failure_code", "name"),
    [
        ("SAFETY.INPUT.TEXT", "content_rejected"),
        ("SAFETY.OUTPUT.VIDEO", "content_rejected"),
        ("INPUT_PREPROCESSING.SAFETY.TEXT", "content_rejected"),
        ("ASSET.INVALID", "asset_invalid"),
        ("THIRD_PARTY.INPUT_VALIDATION", "asset_invalid"),
        ("THIRD_PARTY.UNAVAILABLE", "generation_unavailable"),
        ("INPUT_PREPROCESSING.INTERNAL", "generation_unavailable"),
        ("INTERNAL.BAD_OUTPUT.CODE01", "generation_failed"),
        ("INTERNAL", "generation_failed"),
        ("SOMETHING.NEW", "generation_failed"),
        (None, "generation_failed"),
    ],
)
def test_a_failure_code_names_its_fault(failure_code: str | None, name: str) -> None:
    fault = failure_fault(failure_code, "details", cost=5)
    assert fault.name == name
    assert fault.generation_cost == 5


def test_rejected_content_is_never_sent_again() -> None:
    assert FAULTS[FaultName.CONTENT_REJECTED].disposition is Disposition.FAIL
    assert FAULTS[FaultName.CONTENT_REJECTED].hold is Hold.RELEASE


def test_nothing_is_decided_by_a_faults_name() -> None:
    """All differences between faults are columns of the table."""
    package = Path(vidgen_worker.__file__).parent
    found = [
        f"{file.name}: {line.strip()}"
        for file in sorted(package.rglob("*.py"))
        for line in file.read_text().splitlines()
        if re.search(
            r"\bname (?:==|!=|is|is not|in|not in) [^:]*FaultName"
            r"|\b(?:fault|error)\.name (?:==|!=|is|is not|in|not in) ",
            line,
        )
    ]
    assert found == []


def test_every_row_of_the_table_is_in_it() -> None:
    assert list(FAULTS) == list(FaultName)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_a_brake_or_a_reason_to_have_none(name: FaultName) -> None:
    rule = FAULTS[name]
    assert (rule.brake is None) == bool(rule.unbraked)


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_a_sentence_for_the_user(name: FaultName) -> None:
    rule = FAULTS[name]
    assert rule.message.endswith(".")
    assert rule.message[0].isupper()
    assert "runway" not in rule.message.lower()


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_that_fails_a_task_has_a_code(name: FaultName) -> None:
    rule = FAULTS[name]
    if rule.disposition is Disposition.FAIL:
        assert rule.code
        assert rule.hold in (Hold.RELEASE, Hold.NONE)


def test_a_gate_keeps_the_users_hold() -> None:
    gates = [rule for rule in FAULTS.values() if rule.disposition is Disposition.GATE]
    assert gates
    assert all(rule.hold is Hold.KEPT for rule in gates)


def test_a_fault_that_closes_a_gate_says_for_whom() -> None:
    closing = {name for name, rule in FAULTS.items() if rule.disposition is Disposition.GATE}
    assert closing == {name for name, rule in FAULTS.items() if rule.gate is not None}


def test_each_reason_of_a_gate_has_one_probe() -> None:
    closing = [(r.code, r.probe) for r in FAULTS.values() if r.gate is not None]
    closing += [(r.brake.reason, r.brake.probe) for r in FAULTS.values() if r.brake is not None]
    assert len({reason for reason, _ in closing}) == len(set(closing))
    for reason, probe in closing:
        assert reason is not None
        assert probe is probe_of(reason)
    assert {probe for _, probe in closing} == set(Probe)


def test_only_the_field_of_a_fault_is_visible_to_the_user() -> None:
    fault = Fault(FaultName.SCENE_INVALID, details="secret words of the provider", field="duration")
    assert fault.visible() == {"field": "duration"}
    assert "secret" not in fault.message


def test_details_are_cut() -> None:
    details = Fault(FaultName.INTERNAL_ERROR, details="x" * 100_000).details
    assert len(details) == 4000
    assert details.endswith("… (100000 characters)")


def test_an_unknown_fault_is_a_bug() -> None:
    with pytest.raises(KeyError):
        Fault("no_such_fault", details="")  # type: ignore[arg-type]


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(100, 10_000))
def test_backoff_doubles_up_to_its_longest(count: int, first: float, longest: float) -> None:
    pause = backoff(
        timedelta(seconds=first), count, longest=timedelta(seconds=longest)
    ).total_seconds()
    wanted = min(first * 2 ** min(count, 30), longest)
    assert wanted - 1e-6 <= pause <= wanted * 1.5 + 1e-6
