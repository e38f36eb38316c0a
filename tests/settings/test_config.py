"""Settings: where they come from, what is refused, what is shown."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.settings import MANDATORY
from vidgen_worker.config import Settings, cores, effective, load
from vidgen_worker.domain.durations import format_duration, parse_duration
from vidgen_worker.settings.environment import SettingsError
from vidgen_worker.settings.looks import mask


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = {name.upper() for name in Settings.model_fields}
    for name in list(os.environ):
        if name.upper() in known or name.upper().startswith("VIDGEN_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mandatory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in MANDATORY.items():
        monkeypatch.setenv(name, value)


def problems(monkeypatch: pytest.MonkeyPatch, **values: str) -> str:
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load()
    return "\n".join(caught.value.problems)


def test_all_missing_settings_are_named_at_once_with_their_source() -> None:
    with pytest.raises(SettingsError) as caught:
        load()
    assert len(caught.value.problems) == len(MANDATORY)
    for name in MANDATORY:
        assert any(problem.startswith(f"{name}: missing") for problem in caught.value.problems)
    assert "dashboard" in str(caught.value)


@pytest.mark.usefixtures("mandatory")
def test_four_settings_are_enough() -> None:
    settings = load()
    assert settings.vidgen_concurrency == 20
    assert settings.vidgen_lease == timedelta(seconds=15)
    assert settings.heartbeat == settings.vidgen_lease / 4


@pytest.mark.usefixtures("mandatory")
def test_films_are_cut_where_their_extra_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().renders == max(1, cores() // 2)
    monkeypatch.setenv("VIDGEN_RENDERS", "0")
    assert load().renders == 0
    monkeypatch.setitem(sys.modules, "fontTools", None)
    assert load().renders == 0
    said = problems(monkeypatch, VIDGEN_RENDERS="2")
    assert "VIDGEN_RENDERS" in said
    assert "pip install 'vidgen-worker[films]'" in said
    monkeypatch.delenv("VIDGEN_RENDERS")
    assert load().renders == 0


@pytest.mark.usefixtures("mandatory")
def test_a_misspelt_setting_is_refused_with_the_likely_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = problems(monkeypatch, VIDGEN_CONCURENCY="3")
    assert "VIDGEN_CONCURENCY" in said
    assert "did you mean VIDGEN_CONCURRENCY?" in said


@pytest.mark.usefixtures("mandatory")
def test_all_mistakes_are_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said = problems(monkeypatch, VIDGEN_LEASE="15", VIDGEN_CONCURRENCY="0", VIDGEN_LOG_LEVEL="loud")
    assert "VIDGEN_LEASE" in said
    assert "500ms, 15s, 2m" in said
    assert "VIDGEN_CONCURRENCY" in said
    assert "VIDGEN_LOG_LEVEL" in said


@pytest.mark.usefixtures("mandatory")
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "VIDGEN_VIDEO_MODEL",
            "gen3a_turbo",
            "no video model that takes a size and is called 'gen3a_turbo'",
        ),
        ("VIDGEN_IMAGE_MODEL", "gen4_imag", "did you mean gen4_image"),
        ("SUPABASE_URL", "example.supabase.co", "write a full URL"),
        ("DATABASE_URL", "mysql://nope", "postgresql://"),
        ("VIDGEN_STAGE_HARD_DEADLINE", "1m", "can't be below"),
        ("VIDGEN_FONTS", "fonts", "is no whole path"),
        ("VIDGEN_FONTS", "/:/usr/nowhere", "there is no folder or file /usr/nowhere"),
    ],
)
def test_a_value_that_can_not_work_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    assert said in problems(monkeypatch, **{name: value})


@pytest.mark.usefixtures("mandatory")
def test_an_error_never_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    said = problems(monkeypatch, DATABASE_URL="mysql://u:topsecret@h/d", VIDGEN_LEASE="x")
    assert "topsecret" not in said


def test_the_environment_wins_over_credentials_and_these_over_dotenv(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = [f"{name}={value}" for name, value in MANDATORY.items()]
    (tmp_path / ".env").write_text("\n".join([*lines, "VIDGEN_CONCURRENCY=1"]))
    assert load().vidgen_concurrency == 1
    secrets = tmp_path / "credentials"
    secrets.mkdir()
    (secrets / "vidgen_concurrency").write_text("2\n")
    (secrets / "RUNWAYML_API_SECRET").write_text("key_from_systemd\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(secrets))
    assert load().vidgen_concurrency == 2
    assert load().runwayml_api_secret.get_secret_value() == "key_from_systemd"
    monkeypatch.setenv("VIDGEN_CONCURRENCY", "3")
    assert load().vidgen_concurrency == 3


@pytest.mark.usefixtures("mandatory")
def test_the_shown_settings_are_complete_and_hold_no_secret() -> None:
    rows = effective(load())
    assert [name for name, _, _ in rows] == [name.upper() for name in Settings.model_fields]
    assert all(meaning for _, _, meaning in rows)
    shown = "\n".join(value for _, value, _ in rows)
    for secret in ("hunter22", MANDATORY["SUPABASE_SERVICE_ROLE_KEY"], "0123456789abcdef"):
        assert secret not in shown


@pytest.mark.parametrize(
    ("text", "seconds"), [("15s", 15), ("2m", 120), ("1m30s", 90), ("500ms", 0.5), ("1h", 3600)]
)
def test_durations_are_read_and_written(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)
    assert format_duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize("text", ["15", "", "s", "1 fortnight", "-5s", "1m 30s"])
def test_a_duration_without_its_unit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.integers(1, 10**10))
def test_a_written_duration_reads_back_as_the_same_value(milliseconds: int) -> None:
    length = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(length)) == length


def test_a_masked_secret_can_not_be_used() -> None:
    assert mask("postgresql://me:hunter22@h:1/d") == "postgresql://me:****@h:1/d"
    assert mask("sb_secret_0123456789").startswith("sb_sec")
    assert "0123" not in mask("sb_secret_0123456789")
    assert mask("short") == "****"
