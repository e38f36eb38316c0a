"""The sources of settings: the environment, systemd credentials and `.env`, in this order.

Each text becomes a usable value or a sentence about it, never another exception.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from vidgen_worker.database import database_url
from vidgen_worker.domain.foreign_text import printable, quoted
from vidgen_worker.settings.looks import (
    LOOKS,
    REMEDY_OF_KEY,
    claims_of,
    project_of,
    unfit,
    unwrapped,
)


class SettingsError(Exception):
    """The environment can't be used; `problems` holds one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class Environment(BaseSettings):
    """The common base of the settings of workers and clients: their sources and checks.

    A value is stripped, also of quotes from an env file; a blank one counts as not set.
    """

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", frozen=True,
        case_sensitive=False, env_ignore_empty=True, hide_input_in_errors=True,
        defer_build=True,  # most verbs read three settings; the validator of all is slow
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, values: Any) -> Any:  # noqa: ANN401 - as pydantic hands it over
        if not isinstance(values, Mapping):
            return values
        cleaned = {
            name: unwrapped(value) if isinstance(value, str) else value
            for name, value in values.items()
        }
        return {name: value for name, value in cleaned.items() if value != ""}

    @field_validator("*", mode="before")
    @classmethod
    def _look(cls, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - of any setting
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str):
            look = LOOKS.get(info.field_name or "")
            if said := unfit(text) or (look(text) if look else None):
                raise ValueError(said)
        return value

    @model_validator(mode="after")
    def _look_at_all(self) -> Self:
        if problems := list(self._together()):
            raise ValueError("\n".join(problems))
        return self

    def _together(self) -> Iterator[str]:
        """Sentences about settings that contradict each other; each is valid alone."""
        url, key = getattr(self, "supabase_url", None), self._service_key()
        claimed = (claims_of(key) or {}).get("ref") if key else None
        project = project_of(url) if url else None
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
        """The order: environment, systemd credentials, `.env`."""
        del file_secret_settings
        return init_settings, env_settings, CredentialsSource(settings_cls), dotenv_settings

    def secrets(self) -> list[str]:
        """Return all secrets among the settings."""
        values = (getattr(self, name) for name in type(self).model_fields)
        found = [value.get_secret_value() for value in values if isinstance(value, SecretStr)]
        url = getattr(self, "database_url", None)
        if isinstance(url, SecretStr):
            found.remove(url.get_secret_value())
            found += database_url.secrets_of(url.get_secret_value())
        return found


class CredentialsSource(PydanticBaseSettingsSource):
    """The files in $CREDENTIALS_DIRECTORY, as systemd's LoadCredential= creates them."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:  # noqa: ANN401
        """Read one credential; an absent file means not set. Raises SettingsError."""
        del field
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        for name in (field_name, field_name.upper()) if folder else ():
            path = Path(folder or "") / name
            try:
                if path.is_file():
                    return path.read_text(encoding="utf-8").strip(), field_name, False
            except (OSError, ValueError) as error:
                raise SettingsError([f"{name.upper()}: {unreadable(path, error)}"]) from None
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        """Read all credentials that are present."""
        found = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: value for name, value in found.items() if value}


def unreadable(path: Path, error: Exception) -> str:
    """Return the reason why a settings file can't be read, without any of its content."""
    reason = "it is no UTF-8 text"
    if isinstance(error, OSError):
        reason = error.strerror or type(error).__name__
    return f"{printable(str(path), 200)} can't be read ({reason}); correct the file"
