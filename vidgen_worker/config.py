"""Settings from the environment, `.env` and systemd credentials: one line each.

All mistakes are reported at once, each naming the variable and the remedy; secrets are masked.
Whatever the environment holds ends here as a usable value or a sentence, never as an exception.
Numbers that depend on each other are written as arithmetic once, at the end of `Settings`.
"""

import ast
import base64
import binascii
import difflib
import inspect
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from vidgen_worker.database import database_url
from vidgen_worker.database.database_url import DatabaseUrl, DatabaseUrlError
from vidgen_worker.domain import masking
from vidgen_worker.domain.foreign_text import printable
from vidgen_worker.domain.keys import ACCOUNT_LABEL, DEFAULT_ACCOUNT
from vidgen_worker.domain.resolution import image_models, video_models
from vidgen_worker.providers import proxies

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_HARMLESS = re.compile(r"[\w .,:;+-]{1,30}")
_KEYS = ("sb_", "sbp_", "key_", "eyJ")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(value: object) -> object:
    """Read "15s", "2m", "1m30s" or "500ms"; a timedelta passes through.

    Raises ValueError naming the accepted units: a bare number is refused, since it has no unit.
    """
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    parts = _DURATION.findall(text)
    msg = f"{quoted(value)} is not a duration; write for example 500ms, 15s, 2m, 1h or 1m30s"
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(msg)
    try:
        return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError:
        raise ValueError(msg) from None


def quoted(value: str) -> str:
    """Return a value as a sentence repeats it: not where it may be a secret in the wrong place."""
    harmless = _HARMLESS.fullmatch(value) and not value.startswith(_KEYS)
    return f"'{value}'" if harmless else "what is written there"


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


LONGEST_VALUE = 8192
"""Characters of a setting: the longest that means something is a key of some 2,000."""
MOST = 1_000_000
"""The largest count: it goes into columns that hold no more than twice a billion."""
LARGEST_FILE = 2**40
"""Bytes: more than any file store takes, and within what a process may be limited to."""
_QUOTES = ("'", '"')
_KEY = re.compile(r"[A-Za-z0-9._~+/=-]+")
_BUCKET = re.compile(r"[A-Za-z0-9_!.*'() &$@=;:+,?-]{1,100}")


class Environment(BaseSettings):
    """What worker and clients share: where settings come from, and how each is looked at.

    A value is stripped, also of quotes that an env file put round it; a blank one is not set.
    """

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True,
        case_sensitive=False, env_ignore_empty=True, hide_input_in_errors=True,
        defer_build=True,  # most verbs read three settings: the validator of all takes its time
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, values: Any) -> Any:  # noqa: ANN401 - as pydantic hands it over
        if not isinstance(values, Mapping):
            return values
        cleaned = {
            name: _unwrapped(value) if isinstance(value, str) else value
            for name, value in values.items()
        }
        return {name: value for name, value in cleaned.items() if value != ""}

    @field_validator("*", mode="before")
    @classmethod
    def _look(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - of any setting
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str):
            look = LOOKS.get(info.field_name or "")
            if said := _unfit(text) or (look(text) if look else None):
                raise ValueError(said)
        return value

    @model_validator(mode="after")
    def _look_at_all(self) -> Self:
        if problems := list(self._together()):
            raise ValueError("\n".join(problems))
        return self

    def _together(self) -> Iterator[str]:
        """Sentences about settings that don't go together; each is fine alone."""
        url, key = getattr(self, "supabase_url", None), self._service_key()
        claimed = (_claims(key) or {}).get("ref") if key else None
        project = _project(url) if url else None
        if project and isinstance(claimed, str) and claimed != project:
            yield (
                f"SUPABASE_SERVICE_ROLE_KEY: it is a key of project {quoted(claimed)}, but "
                f"SUPABASE_URL is of {quoted(project)}; {REMEDY_OF_KEY}"
            )

    def _service_key(self) -> str | None:
        key = getattr(self, "supabase_service_role_key", None)
        return key.get_secret_value() if isinstance(key, SecretStr) else None

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

    def secrets(self) -> list[str]:
        """Return everything that must never be shown."""
        values = (getattr(self, name) for name in type(self).model_fields)
        found = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
        url = getattr(self, "database_url", None)
        if isinstance(url, SecretStr):
            found.remove(url.get_secret_value())
            found += database_url.secrets_of(url.get_secret_value())
        return found


class Settings(Environment):
    """Everything that can be set. Field docstrings are the help text."""

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
    vidgen_submit_timeout: Annotated[
        Duration, Field(ge=timedelta(milliseconds=100), le=timedelta(hours=1))
    ] = timedelta(seconds=60)
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
    vidgen_max_running_per_user: int | None = Field(None, ge=1, le=MOST)
    """At most this many tasks of one user begun and not ended"""
    vidgen_image_slots: int | None = Field(None, ge=1, le=MOST)
    """Images at once at the provider, over all workers; unset: what the Runway tier allows"""
    vidgen_video_slots: int | None = Field(None, ge=1, le=MOST)
    """Videos at once at the provider, over all workers; unset: what the Runway tier allows"""
    vidgen_image_model: str = "gen4_image"
    """Runway's text-to-image model"""
    vidgen_video_model: str = "gen4_turbo"
    """Runway's image-to-video model"""
    vidgen_credits: Literal["on", "off"] = "on"
    """off: hold and charge nothing"""
    vidgen_scene_updates: bool = True
    """false: never write status and URLs to video_scenes"""
    vidgen_max_image_bytes: int = Field(50_000_000, ge=1024, le=LARGEST_FILE)
    """Largest still that is stored, in bytes"""
    vidgen_max_video_bytes: int = Field(500_000_000, ge=1024, le=LARGEST_FILE)
    """Largest clip that is stored, in bytes"""
    vidgen_storage_timeout: Annotated[Duration, _positive()] = timedelta(seconds=60)
    """How long a storage request may stand still"""
    vidgen_allow_loopback_assets: bool = False
    """true: accept pictures and outputs from http://127.0.0.1; only for the sandbox"""
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
                    f"VIDGEN_{name.upper()}_MODEL: the installed SDK has no {name} model that "
                    f"takes a size and is called {quoted(model)}{hint}"
                )
        if not ACCOUNT_LABEL.fullmatch(self.vidgen_account):
            problems.append("VIDGEN_ACCOUNT: up to 64 letters, digits and - _ . make a label")
        if self.vidgen_stage_hard_deadline < self.vidgen_stage_deadline:
            problems.append("VIDGEN_STAGE_HARD_DEADLINE: it can't be below VIDGEN_STAGE_DEADLINE")
        if self.storage_bucket_images == self.storage_bucket_videos:
            problems.append(
                "STORAGE_BUCKET_VIDEOS: it can't be the bucket of the stills, which is public"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

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
        """Read one credential; absent files are simply not set. Raises SettingsError."""
        del field
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        for name in (field_name, field_name.upper()) if folder else ():
            path = Path(folder or "") / name
            try:
                if path.is_file():
                    return path.read_text(encoding="utf-8").strip(), field_name, False
            except (OSError, ValueError) as error:
                raise SettingsError([f"{name.upper()}: {_unreadable(path, error)}"]) from None
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """All credentials that are present."""
        found = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: value for name, value in found.items() if value}


def _unreadable(path: Path, error: Exception) -> str:
    """Say why a file of settings can't be read, and nothing of what is in it."""
    reason = "it is no UTF-8 text"
    if isinstance(error, OSError):
        reason = error.strerror or type(error).__name__
    return f"{printable(str(path), 200)} can't be read ({reason}); correct the file"


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
REMEDY_OF_KEY = f"take the secret key: {REMEDIES['supabase_service_role_key']}"


# What is wrong with one value, as a sentence's second half; None where nothing is.


def _unwrapped(text: str) -> str:
    """Strip a value, and the quotes that Docker and systemd leave round it."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES:
        text = text[1:-1].strip()
    return text


def _unfit(text: str) -> str | None:
    if len(text) > LONGEST_VALUE:
        return f"it is {len(text)} characters long; that can't be meant"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "it holds bytes that are no UTF-8 text; write it anew"
    if not text.isprintable():
        return (
            "it holds a line break or another character that can't be seen; write it anew, "
            "on one line"
        )
    return None


def _look_at_key(text: str) -> str | None:
    if not _KEY.fullmatch(text):
        return "it holds a space or a character that no key has; copy the key again"
    return None


def _look_at_database_url(text: str) -> str | None:
    try:
        DatabaseUrl.read(text)
    except DatabaseUrlError as error:
        return str(error)
    return None


def _split(text: str) -> SplitResult | None:
    """Take an http URL apart; None where it is none that can be asked."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:  # UnicodeError is one
        return None
    usable = parts.scheme in ("http", "https") and host and port != 0 and " " not in text
    return parts if usable and not re.search(r"[<>\[\]{}|\\^`\"]", host) else None


def _look_at_url(text: str, *, domain: str) -> str | None:
    """Look at what every service's URL has in common. Our own services answer by https only."""
    parts = _split(text)
    if parts is None:
        return "write a full URL such as https://host"
    if parts.username or parts.password or parts.query or parts.fragment:
        return "it holds more than a host: write only https://host, without user, ? or #"
    if parts.scheme == "http" and f".{parts.hostname}".endswith(domain):
        return f"write https://{parts.hostname}; by http the key would travel unprotected"
    return None


def _look_at_supabase_url(text: str) -> str | None:
    parts = _split(text)
    host = (parts.hostname or "") if parts else ""
    if parts and host in ("supabase.com", "www.supabase.com", "app.supabase.com"):
        found = re.search(r"/project/([a-z0-9]{10,40})(?:/|$)", parts.path)
        ref = found[1] if found else "<ref>"
        return f"this is the dashboard's address; the project's is https://{ref}.supabase.co"
    if said := _look_at_url(text, domain=".supabase.co"):
        return said
    if parts and re.fullmatch(r"db\..+\.supabase\.co", host):
        return f"this is the database's host; write https://{host.removeprefix('db.')}"
    if parts and parts.path.strip("/"):
        return f"write it without a path: {parts.scheme}://{parts.netloc}"
    return None


def _look_at_runway_url(text: str) -> str | None:
    if said := _look_at_url(text, domain=".runwayml.com"):
        return said
    if re.search(r"/v1(?:/|$)", urlsplit(text).path):
        return "write it without /v1: each request adds that itself"
    return None


def _look_at_service_key(text: str) -> str | None:
    """Read whose key it is: only a service's own may store files for others."""
    if text.startswith("sb_publishable_"):
        return f"it is the publishable key, which may store nothing; {REMEDY_OF_KEY}"
    if text.startswith(("sbp_", "key_", "http://", "https://", "postgres")):
        return f"it is no key of a Supabase project; {REMEDY_OF_KEY}"
    if said := _look_at_key(text):
        return said
    claims = _claims(text)
    if claims is not None and claims.get("role") != "service_role":
        role = claims.get("role")
        named = f"the key of role {quoted(role)}" if isinstance(role, str) else "of no role"
        return f"it is {named}, which may store nothing; {REMEDY_OF_KEY}"
    return None


def _claims(key: str) -> dict[str, Any] | None:
    """Read what a JWT says of itself; None where the key is none."""
    parts = key.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - head, claims, signature
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def _project(url: str) -> str | None:
    """Return the project's reference where the URL names one."""
    found = re.fullmatch(r"([a-z0-9]+)\.supabase\.(?:co|in)", urlsplit(url).hostname or "")
    return found[1] if found else None


def _look_at_runway_key(text: str) -> str | None:
    if text.startswith(("sb_", "sbp_", "eyJ", "http://", "https://", "postgres")):
        return f"it is no key of Runway's; find it in {REMEDIES['runwayml_api_secret']}"
    return _look_at_key(text)


def _look_at_bucket(text: str) -> str | None:
    if not _BUCKET.fullmatch(text) or text in (".", ".."):
        return f"{quoted(text)} is no name of a bucket; write letters, digits, - and _, without /"
    return None


LOOKS: Mapping[str, Callable[[str], str | None]] = {
    "database_url": _look_at_database_url,
    "supabase_url": _look_at_supabase_url,
    "supabase_service_role_key": _look_at_service_key,
    "runwayml_api_secret": _look_at_runway_key,
    "runwayml_base_url": _look_at_runway_url,
    "storage_bucket_images": _look_at_bucket,
    "storage_bucket_videos": _look_at_bucket,
}
"""What each setting is looked at for, beyond its type."""

Loaded = TypeVar("Loaded", bound=Environment)


def load(**overrides: object) -> Settings:
    """Read the worker's settings. Raises SettingsError with every mistake at once."""
    return read(Settings, [*unknown_names(os.environ), *proxies.problems()], **overrides)


def read(kind: type[Loaded], known: list[str] | None = None, **overrides: object) -> Loaded:
    """Read settings, beside problems known already. Raises SettingsError.

    From here on their secrets are hidden in whatever this process shows.
    """
    problems = list(known or [])
    settings = None
    try:
        settings = kind(**overrides)  # type: ignore[arg-type]  # pydantic looks at them
    except ValidationError as error:
        problems += [line for item in error.errors() for line in _sentences(dict(item))]
    except SettingsError as error:
        problems += error.problems
    except (OSError, UnicodeError) as error:
        problems.append(f".env: {_unreadable(Path('.env'), error)}")
    if settings is None:
        problems += _blind_spots()
    if settings is None or problems:
        raise SettingsError(problems)
    masking.learn([*settings.secrets(), *proxies.secrets()])
    return settings


def _blind_spots() -> list[str]:
    """Sentences about places that were passed over, for whoever misses a setting."""
    said = []
    if os.path.isdir(".env"):  # noqa: PTH112 - which never raises
        said.append(".env: it is a folder here, not a file, so nothing was read from it")
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and not os.path.isdir(folder):  # noqa: PTH112
        said.append(f"CREDENTIALS_DIRECTORY: {printable(folder, 200)} is no folder")
    return said


def unknown_names(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each VIDGEN_ variable that no setting has, with the likely one."""
    known = [name.upper() for name in Settings.model_fields]
    sentences = []
    for name in environment:
        if name.upper().startswith("VIDGEN_") and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"did you mean {close[0]}?" if close else "see `vidgen-worker check`."
            sentences.append(f"{printable(name, 80)}: unknown setting; {hint}")
    return sentences


def _sentences(error: dict[str, Any]) -> list[str]:
    name = str(error["loc"][0]) if error["loc"] else ""
    if error["type"] == "missing":
        remedy = REMEDIES.get(name)
        return [f"{name.upper()}: missing" + (f"; find it in {remedy}" if remedy else "")]
    message = str(error["msg"])
    if error["type"] == "value_error":  # a sentence of ours
        message = message.removeprefix("Value error, ")
        return [f"{name.upper()}: {message}"] if name else message.splitlines()
    return [f"{name.upper()}: {message[:1].lower()}{message[1:]}"]


def effective(settings: Settings) -> list[tuple[str, str, str]]:
    """Name, value (secrets masked) and help text of every setting, in order."""
    said = meanings()
    return [
        (name.upper(), shown(getattr(settings, name)), said[name]) for name in Settings.model_fields
    ]


def meanings() -> Mapping[str, str]:
    """What each setting means: the docstring below its field.

    Read here and not by pydantic, which would do so at every import: half of what that takes.
    """
    (settings,) = ast.parse(inspect.getsource(Settings)).body
    body = settings.body if isinstance(settings, ast.ClassDef) else []
    found = {}
    for field, text in itertools.pairwise(body):
        match field, text:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(meaning))),
            ):
                found[name] = inspect.cleandoc(meaning)
            case _:
                continue
    return found


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
            return printable(str(value))


def mask(secret: str) -> str:
    """Enough of a secret to tell two apart, not enough to use it."""
    try:
        return printable(DatabaseUrl.read(secret).masked())
    except DatabaseUrlError:
        return f"{secret[:6]}…" if len(secret) > 12 else masking.MASK  # noqa: PLR2004
