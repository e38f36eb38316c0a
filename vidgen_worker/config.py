"""Settings from the environment, `.env` and systemd credentials: one line each.

All mistakes are reported at once, each with its variable and its remedy; secrets are masked. Every
text of the environment becomes a usable value or a sentence, never another exception. Numbers that
depend on each other are computed at the end of `Settings`.
"""

import ast
import difflib
import importlib.util
import inspect
import itertools
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from vidgen_worker.domain import masking
from vidgen_worker.domain.durations import parse_duration
from vidgen_worker.domain.foreign_text import printable, quoted
from vidgen_worker.domain.keys import DEFAULT_ACCOUNT
from vidgen_worker.domain.resolution import image_models, video_models
from vidgen_worker.providers import proxies
from vidgen_worker.settings.environment import Environment, SettingsError, unreadable
from vidgen_worker.settings.looks import REMEDIES, shown

Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


def _positive(longest: timedelta = timedelta(days=1)) -> Any:  # noqa: ANN401 - a pydantic field
    return Field(gt=timedelta(0), le=longest)


MOST = 1_000_000
"""The largest count: the columns hold at most 2,147,483,647."""
RUNWAY_URL = "https://api.dev.runwayml.com"
LARGEST_FILE = 2**40
"""The most bytes: above the limit of any file store, within the range of a process limit."""


class Settings(Environment):
    """All settings. The docstrings of the fields are the help text."""

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
    runwayml_base_url: str = RUNWAY_URL
    """Runway API; only a sandbox changes it"""
    storage_bucket_images: str = "generated-content"
    """Public bucket of the stills"""
    storage_bucket_videos: str = "video-files"
    """Private bucket of the clips"""

    vidgen_account: str = DEFAULT_ACCOUNT
    """A label for the key's Runway account, where workers of one database use several accounts"""
    vidgen_concurrency: int = Field(20, ge=1, le=5000)
    """Tasks at once in this process"""
    vidgen_renders: int | None = Field(None, ge=0, le=100)
    """Films cut at once in this process; unset: half of the cores, with the extra films; 0: none"""
    vidgen_lease: Annotated[Duration, Field(ge=timedelta(seconds=1), le=timedelta(hours=1))] = (
        timedelta(seconds=15)
    )
    """A worker silent for this long is declared dead"""
    vidgen_poll_interval: Annotated[Duration, _positive()] = timedelta(seconds=12)
    """The longest pause between two polls of a generation; Runway wants 5s or more"""
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
    """The most tasks of one user that have begun and not ended"""
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
    vidgen_fonts: str | None = None
    """Fonts of captions: folders or files with : between them; unset: the system's folders"""
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
    vidgen_webhook_proxy: SecretStr | None = None
    """Proxy (http://host:port) for webhooks, which then decides what they may reach"""
    vidgen_webhook_allow_loopback: bool = False
    """true: webhooks may lead to this machine, by http and to any port; only for the sandbox"""
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
        if self.vidgen_stage_hard_deadline < self.vidgen_stage_deadline:
            problems.append("VIDGEN_STAGE_HARD_DEADLINE: it can't be below VIDGEN_STAGE_DEADLINE")
        proxy = self.vidgen_webhook_proxy
        if proxy and (said := proxies.wrong_with(proxy.get_secret_value())):
            problems.append(f"VIDGEN_WEBHOOK_PROXY: {said}")
        if self.storage_bucket_images == self.storage_bucket_videos:
            problems.append(
                "STORAGE_BUCKET_VIDEOS: it can't be the bucket of the stills, which is public"
            )
        if self.vidgen_renders and not can_render():
            problems.append(
                "VIDGEN_RENDERS: films can't be cut here, because an extra is not installed: "
                "pip install 'vidgen-worker[films]', or leave this setting out"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    # Numbers that depend on each other.

    @property
    def heartbeat(self) -> timedelta:
        """The time between two heartbeats of a worker."""
        return self.vidgen_lease / 4

    @property
    def lease_margin(self) -> timedelta:
        """The last part of a lease, in which nothing paid begins."""
        return self.vidgen_lease / 4

    @property
    def submission_patience(self) -> timedelta:
        """The time after which an unanswered submission of a lost worker counts as unknown."""
        return self.vidgen_submit_timeout + timedelta(seconds=5)

    @property
    def slot_patience(self) -> timedelta:
        """The time after which a generation of an unanswered submission must have ended."""
        return 3 * self.vidgen_submit_timeout

    @property
    def renders(self) -> int:
        """How many films are cut at once in this process."""
        if self.vidgen_renders is not None:
            return self.vidgen_renders
        return max(1, cores() // 2) if can_render() else 0

    @property
    def credits(self) -> bool:
        """Whether users pay with credits."""
        return self.vidgen_credits == "on"

    @property
    def fonts(self) -> tuple[Path, ...] | None:
        """The places where fonts are looked for, in their order; None: the system's folders."""
        places = self.vidgen_fonts
        return tuple(map(Path, places.split(":"))) if places is not None else None


def can_render() -> bool:
    """Whether what films are cut with is installed: the extra `films`."""
    return all(importlib.util.find_spec(name) is not None for name in ("PIL", "fontTools"))


def cores() -> int:
    """The cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(allowed(0)) if allowed else os.cpu_count() or 1


Loaded = TypeVar("Loaded", bound=Environment)


def load(**overrides: object) -> Settings:
    """Read the worker's settings. Raises SettingsError with every mistake at once."""
    return read(Settings, [*unknown_names(os.environ), *proxies.problems()], **overrides)


def read(kind: type[Loaded], known: list[str] | None = None, **overrides: object) -> Loaded:
    """Read the settings; `problems` are known already. Raises SettingsError.

    From now on their secrets are hidden in all output of this process.
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
        problems.append(f".env: {unreadable(Path('.env'), error)}")
    if settings is None:
        problems += _blind_spots()
    if settings is None or problems:
        raise SettingsError(problems)
    masking.learn([*settings.secrets(), *proxies.secrets()])
    return settings


def _blind_spots() -> list[str]:
    """Sentences about places that were skipped, for a person who misses a setting."""
    said = []
    if os.path.isdir(".env"):  # noqa: PTH112 - which never raises
        said.append(".env: it is a folder here, not a file, so nothing was read from it")
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and not os.path.isdir(folder):  # noqa: PTH112
        said.append(f"CREDENTIALS_DIRECTORY: {printable(folder, 200)} is no folder")
    return said


def unknown_names(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each unknown VIDGEN_ variable, with the likely setting."""
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
    """The name, value (secrets masked) and help text of every setting, in order."""
    said = meanings()
    return [
        (name.upper(), shown(getattr(settings, name)), said[name]) for name in Settings.model_fields
    ]


def meanings() -> Mapping[str, str]:
    """The help text of each setting: the docstring below its field.

    Pydantic would read them at every import, which would double the time of the import.
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
