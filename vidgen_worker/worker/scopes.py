"""The scopes and buckets of a worker, from its settings. Nothing here opens a connection."""

from vidgen_worker.config import Settings
from vidgen_worker.domain.keys import Scopes, machine_of, storage_fingerprint
from vidgen_worker.films.assets import ASSETS
from vidgen_worker.films.presets import FORMATS
from vidgen_worker.pipeline.stages import PIPELINE, Stage
from vidgen_worker.storage.buckets import Bucket


def scopes_of(settings: Settings, key_fingerprint: str, host: str) -> Scopes:
    """The scopes of the gates that concern a worker with these settings."""
    storage_key = settings.supabase_service_role_key.get_secret_value()
    return Scopes(
        account=settings.vidgen_account, key=key_fingerprint,
        storage=storage_fingerprint(settings.supabase_url, storage_key), machine=machine_of(host),
    )  # fmt: skip


def buckets(settings: Settings, stages: tuple[Stage, ...] = PIPELINE) -> tuple[Bucket, ...]:
    """The bucket of each stage, with its limits, as it is created when missing.

    Where films are cut, the one of their assets comes last.
    """
    films = tuple(dict.fromkeys(form.media_type for form in FORMATS.values()))
    of_stages = tuple(
        Bucket(
            stage.bucket(settings), public=stage.public, max_bytes=stage.max_bytes(settings),
            media_types=(stage.media_type,), least_bytes=stage.least_bytes,
            further_types=films if stage.is_result else (), for_films=settings.renders > 0,
        )
        for stage in stages
    )  # fmt: skip
    return (*of_stages, ASSETS) if settings.renders else of_stages
