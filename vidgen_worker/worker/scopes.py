"""What a worker with these settings is part of, and where it stores. It opens nothing."""

from vidgen_worker.config import Settings
from vidgen_worker.domain.keys import Scopes, machine_of, storage_fingerprint
from vidgen_worker.storage.storage import Bucket

LEAST_IMAGE_BYTES, LEAST_VIDEO_BYTES = 5_000_000, 20_000_000
"""What a bucket must take: a large still, and ten seconds of a rich clip."""


def scopes_of(settings: Settings, key_fingerprint: str, host: str) -> Scopes:
    """What a worker with these settings is part of: the scopes of the gates that concern it."""
    storage_key = settings.supabase_service_role_key.get_secret_value()
    return Scopes(
        account=settings.vidgen_account, key=key_fingerprint,
        storage=storage_fingerprint(settings.supabase_url, storage_key), machine=machine_of(host),
    )  # fmt: skip


def buckets(settings: Settings) -> tuple[Bucket, Bucket]:
    """The two buckets, with their limits, as they are created when missing."""
    return (
        Bucket(
            settings.storage_bucket_images, public=True,
            max_bytes=settings.vidgen_max_image_bytes, media_types=("image/png",),
            least_bytes=LEAST_IMAGE_BYTES,
        ),
        Bucket(
            settings.storage_bucket_videos, public=False,
            max_bytes=settings.vidgen_max_video_bytes, media_types=("video/mp4",),
            least_bytes=LEAST_VIDEO_BYTES,
        ),
    )  # fmt: skip
