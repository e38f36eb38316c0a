"""Settings from the environment, `.env` and systemd credentials: one line each.

All mistakes are reported at once, each naming the variable and the remedy; secrets are masked.
Numbers that depend on each other are written as arithmetic once, at the end of `Settings`.
"""

import difflib
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from vidgen_worker.gates import ACCOUNT_LABEL, DEFAULT_ACCOUNT
from vidgen_worker.resolution import image_models, video_models

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(value: object) -> object:
    """Read "15s", "2m", "1m30s" or "500ms"; a timedelta passes through.

    Raises ValueError naming the accepted units: a bare number is refused, since it has no unit.
    """
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        msg = f"{value!r} is not a duration; write for example 500ms, 15s, 2m, 1h or 1m30s"
        raise ValueError(msg)
    return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))


def format_duration(value: timedelta) -> str:
    """Write a duration the way `parse_duration` reads it."""
    milliseconds = round(value.total_seconds() * 1000)
    if milliseconds % 1000:
        return f"{milliseconds}ms"
    parts, rest = [], milliseconds // 1000
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if rest >= length:
            parts.append(f"{rest // length}{unit}")
            rest %= length
    return "".join(parts) or "0s"


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


def _positive(longest: timedelta = timedelta(days=1)) -> Any:  # noqa: ANN401 - a pydantic field
    return Field(gt=timedelta(0), le=longest)


class Settings(BaseSettings):
    """Everything that can be set. Field docstrings are the help text."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True, use_attribute_docstrings=True,
        case_sensitive=False, env_ignore_empty=True, hide_input_in_errors=True,
    )  # fmt: skip

    database_url: SecretStr
    """PostgreSQL URL of the Supabase project: the direct or session pooler URL is best"""
    supabase_url: str
    """Project URL, https://<ref>.supabase.co"""
    supabase_service_role_key: SecretStr
    """Secret key of the project: sb_secret_… or the old service_role JWT"""
    runwayml_api_secret: SecretStr
    """Runway API key, key_…"""
    runwayml_enabled: bool = True
    """false: claim nothing, rows stay pending"""
    runwayml_base_url: str = "https://api.dev.runwayml.com"
    """Runway API; only a sandbox changes it"""
    storage_bucket_images: str = "generated-content"
    """Public bucket of the stills"""
    storage_bucket_videos: str = "video-files"
    """Private bucket of the clips"""

    vidgen_account: str = DEFAULT_ACCOUNT
    """A label for the key's Runway account, where workers of one database use several accounts"""
    vidgen_concurrency: int = Field(20, ge=1, le=5000)
    """Tasks at once in this process"""
    vidgen_lease: Annotated[Duration, Field(ge=timedelta(seconds=1), le=timedelta(hours=1))] = (
        timedelta(seconds=15)
    )
    """A worker silent for this long is declared dead"""
    vidgen_poll_interval: Annotated[Duration, _positive()] = timedelta(seconds=6)
    """How often one generation is polled, plus jitter; Runway wants 5s or more"""
    vidgen_queue_poll: Annotated[Duration, _positive()] = timedelta(seconds=2)
    """How often the queue is read when no NOTIFY comes"""
    vidgen_listen: Literal["auto", "on", "off"] = "auto"
    """LISTEN for new rows; off behind a transaction pooler (auto tries it)"""
    vidgen_retry_backoff: Annotated[Duration, _positive()] = timedelta(seconds=5)
    """The first pause after a failure; it doubles"""
    vidgen_retry_backoff_max: Annotated[Duration, _positive()] = timedelta(minutes=10)
    """The longest pause after a failure"""
    vidgen_max_submissions: int = Field(2, ge=1, le=10)
    """Possibly paid submissions per stage and task; 1 never pays twice"""
    vidgen_max_crashes: int = Field(3, ge=1, le=20)
    """Deaths of a worker under one task without progress before WORKER_LOST"""
    vidgen_submit_timeout: Annotated[Duration, Field(ge=timedelta(milliseconds=100))] = timedelta(
        seconds=60
    )
    """How long one paid POST may take"""
    vidgen_stage_deadline: Annotated[Duration, _positive()] = timedelta(minutes=20)
    """After this a generation counts as overdue and is polled slowly"""
    vidgen_stage_hard_deadline: Annotated[Duration, Field(le=timedelta(days=7))] = timedelta(
        hours=2
    )
    """After this an overdue generation is cancelled and the stage retried"""
    vidgen_wait_deadline: Annotated[Duration, _positive(timedelta(days=30))] = timedelta(hours=24)
    """After this a task that only waits, for a service to answer, is ended"""
    vidgen_cancel_deadline: Annotated[Duration, _positive()] = timedelta(minutes=10)
    """After this a cancel ends without the provider's answer; the janitor goes on trying"""
    vidgen_gate_probe: Annotated[Duration, _positive()] = timedelta(seconds=30)
    """First probe of a closed gate; it doubles up to 5m"""
    vidgen_max_running_per_user: int | None = Field(None, ge=1)
    """At most this many tasks of one user begun and not ended"""
    vidgen_image_slots: int | None = Field(None, ge=1)
    """Images at once at the provider, over all workers; unset: what the Runway tier allows"""
    vidgen_video_slots: int | None = Field(None, ge=1)
    """Videos at once at the provider, over all workers; unset: what the Runway tier allows"""
    vidgen_image_model: str = "gen4_image"
    """Runway's text-to-image model"""
    vidgen_video_model: str = "gen4_turbo"
    """Runway's image-to-video model"""
    vidgen_credits: Literal["on", "off"] = "on"
    """off: hold and charge nothing"""
    vidgen_scene_updates: bool = True
    """false: never write status and URLs to video_scenes"""
    vidgen_max_image_bytes: int = Field(50_000_000, ge=1024)
    """Largest still that is stored, in bytes"""
    vidgen_max_video_bytes: int = Field(500_000_000, ge=1024)
    """Largest clip that is stored, in bytes"""
    vidgen_storage_timeout: Annotated[Duration, _positive()] = timedelta(seconds=60)
    """How long a storage request may stand still"""
    vidgen_allow_loopback_assets: bool = False
    """true: accept http://127.0.0.1 pictures; only for the sandbox"""
    vidgen_database_pool: int = Field(6, ge=2, le=100)
    """Connections to PostgreSQL, besides three: LISTEN, claim, heartbeat"""
    vidgen_drain_timeout: Annotated[Duration, _positive()] = timedelta(seconds=90)
    """How long a drain may take before the process gives up"""
    vidgen_keep_private: Annotated[
        Duration, Field(ge=timedelta(days=32), le=timedelta(days=36500))
    ] = timedelta(days=90)
    """How long our private rows of an ended task are kept; task and ledger stay"""
    vidgen_log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged"""
    vidgen_log_format: Literal["auto", "json", "console"] = "auto"
    """auto: readable on a terminal, JSON elsewhere"""
    vidgen_metrics_port: int | None = Field(None, ge=0, le=65535)
    """Loopback port of /metrics, /healthz and /readyz"""

    @model_validator(mode="after")
    def _check(self) -> "Settings":
        problems = []
        for name, kinds in (("image", image_models()), ("video", video_models())):
            model = getattr(self, f"vidgen_{name}_model")
            if model not in kinds:
                close = difflib.get_close_matches(model, kinds, n=1)
                hint = f", did you mean {close[0]}?" if close else f"; one of {', '.join(kinds)}"
                problems.append(
                    f"VIDGEN_{name.upper()}_MODEL: the installed SDK has no {name} model "
                    f"{model!r} that takes a size{hint}"
                )
        for name in ("supabase_url", "runwayml_base_url"):
            parts = urlsplit(getattr(self, name))
            if parts.scheme not in ("http", "https") or not parts.hostname:
                problems.append(f"{name.upper()}: write a full URL such as https://host")
        if not self.database_url.get_secret_value().startswith(("postgres://", "postgresql://")):
            problems.append("DATABASE_URL: write postgresql://user:password@host:5432/postgres")
        if not ACCOUNT_LABEL.fullmatch(self.vidgen_account):
            problems.append("VIDGEN_ACCOUNT: up to 64 letters, digits and - _ . make a label")
        if self.vidgen_stage_hard_deadline < self.vidgen_stage_deadline:
            problems.append("VIDGEN_STAGE_HARD_DEADLINE: it can't be below VIDGEN_STAGE_DEADLINE")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before systemd credentials before `.env`."""
        del file_secret_settings
        return init_settings, env_settings, CredentialsSource(settings_cls), dotenv_settings

    # Numbers that depend on each other.

    @property
    def heartbeat(self) -> timedelta:
        """How often a worker renews its lease."""
        return self.vidgen_lease / 4

    @property
    def lease_margin(self) -> timedelta:
        """Nothing paid is started in the last part of a lease."""
        return self.vidgen_lease / 4

    @property
    def submission_patience(self) -> timedelta:
        """After this an unanswered submission of a lost worker counts as unknown."""
        return self.vidgen_submit_timeout + timedelta(seconds=5)

    @property
    def slot_patience(self) -> timedelta:
        """After this whatever an unanswered submission began is over: generations take minutes."""
        return 3 * self.vidgen_submit_timeout

    @property
    def credits(self) -> bool:
        """Whether users pay with credits."""
        return self.vidgen_credits == "on"


class CredentialsSource(PydanticBaseSettingsSource):
    """Files below $CREDENTIALS_DIRECTORY, as systemd's LoadCredential= lays them out."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ANN401
        """Read one credential; absent files are simply not set."""
        del field
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        for name in (field_name, field_name.upper()) if folder else ():
            path = Path(folder or "") / name
            if path.is_file():
                return path.read_text(encoding="utf-8").strip(), field_name, False
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """All credentials that are present."""
        found = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: value for name, value in found.items() if value is not None}


class SettingsError(Exception):
    """The environment can't be used; `problems` holds one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


REMEDIES: Mapping[str, str] = {
    "database_url": "Supabase dashboard → Connect → Direct connection or Session pooler",
    "supabase_url": "Supabase dashboard → Project Settings → Data API",
    "supabase_service_role_key": "Supabase dashboard → Project Settings → API Keys → secret key",
    "runwayml_api_secret": "dev.runwayml.com → API Keys",
}
"""Where each mandatory setting is found."""


def load(**overrides: object) -> Settings:
    """Read the settings. Raises SettingsError with every mistake at once."""
    problems = unknown_names(os.environ)
    try:
        settings = Settings(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        problems += [line for item in error.errors() for line in _sentences(dict(item))]
    if problems:
        raise SettingsError(problems)
    return settings


def unknown_names(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each VIDGEN_ variable that no setting has, with the likely one."""
    known = [name.upper() for name in Settings.model_fields]
    sentences = []
    for name in environment:
        if name.upper().startswith("VIDGEN_") and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"did you mean {close[0]}?" if close else "see `vidgen-worker check`."
            sentences.append(f"{name}: unknown setting; {hint}")
    return sentences


def _sentences(error: dict[str, Any]) -> list[str]:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "missing":
        remedy = REMEDIES.get(name)
        return [f"{name.upper()}: missing" + (f"; find it in {remedy}" if remedy else "")]
    message = str(error["msg"]).removeprefix("Value error, ")
    if not name:
        return message.splitlines()
    return [f"{name.upper()}: {message[:1].lower()}{message[1:]}"]


def effective(settings: Settings) -> list[tuple[str, str, str]]:
    """Name, value (secrets masked) and help text of every setting, in order."""
    rows = []
    for name, field in type(settings).model_fields.items():
        rows.append((name.upper(), shown(getattr(settings, name)), field.description or ""))
    return rows


def shown(value: object) -> str:
    """A setting's value as text; a secret keeps only its first characters."""
    match value:
        case SecretStr():
            return mask(value.get_secret_value())
        case timedelta():
            return format_duration(value)
        case bool():
            return str(value).lower()
        case None:
            return "–"  # noqa: RUF001 - the dash of the tables
        case _:
            return str(value)


def mask(secret: str) -> str:
    """Enough of a secret to tell two apart, not enough to use it."""
    if "://" in secret:
        parts = urlsplit(secret)
        host = parts.hostname or ""
        return (
            f"{parts.scheme}://{parts.username or ''}:****@{host}:{parts.port or 5432}{parts.path}"
        )
    return f"{secret[:6]}…" if len(secret) > 12 else "****"  # noqa: PLR2004
