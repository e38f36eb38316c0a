"""The bucket of what the owners of films bring: each in a folder of his own, named by his id."""

from uuid import UUID

from vidgen_worker.films.cut import LARGEST_ASSET
from vidgen_worker.storage.buckets import Bucket

ASSETS = Bucket(
    "film-assets", public=False, max_bytes=LARGEST_ASSET, media_types=("image/*", "audio/*"),
    vital=False,
)  # fmt: skip
"""Its name is in the policies of a migration, so that it is no setting."""


def place_of(owner: UUID, asset: str) -> str:
    """Return an asset's place in the bucket, from its path as a cut names it."""
    return f"{owner}/{asset}"
