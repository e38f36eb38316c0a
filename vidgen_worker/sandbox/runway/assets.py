"""Fetching the pictures that a request to Runway names, as strictly as Runway does.

A URL must answer HEAD and GET with 200, without a redirect, with a known image type and a length,
and the picture must decode and have a shape the model takes. It never accepts what Runway would
refuse, save that loopback URLs may be plain http where the double was told so.
"""

import base64
import io
from dataclasses import dataclass

import httpx
from PIL import Image, UnidentifiedImageError

from vidgen_worker.providers.http_client import certificates
from vidgen_worker.sandbox.runway.contract import ASPECTS, Path

MEDIA_TYPES = frozenset({"image/jpeg", "image/jpg", "image/png", "image/webp"})
LARGEST_BYTES = 16 * 1024 * 1024
USER_AGENT = "RunwayML API/1.0 (vidgen-worker sandbox)"
FETCH_SECONDS = 10.0


class AssetRefusedError(ValueError):
    """A picture that Runway would answer 400 for."""


@dataclass(frozen=True, slots=True)
class Assets:
    """Fetches pictures; `remote` says whether hosts other than this machine are asked at all."""

    client: httpx.AsyncClient
    remote: bool

    @classmethod
    def fetcher(cls, *, remote: bool) -> "Assets":
        """Return one with a client of its own, which the caller closes."""
        client = httpx.AsyncClient(
            timeout=FETCH_SECONDS,
            follow_redirects=False,
            headers={"User-Agent": USER_AGENT},
            verify=certificates(),
        )
        return cls(client, remote)

    async def fetch(self, path: Path, uri: str) -> bytes:
        """Return the bytes of a picture. Raises `AssetRefusedError`."""
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition(",")[2])
        try:
            head = await self.client.head(uri)
            _check_answer(path, head)
            answer = await self.client.get(uri)
            _check_answer(path, answer)
        except httpx.TimeoutException as error:
            raise AssetRefusedError(refusal(path, "Timeout while fetching asset.")) from error
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise AssetRefusedError(refusal(path, "Failed to fetch asset.")) from error
        return answer.content


def refusal(path: Path, problem: str) -> str:
    """Return the error text that names the field, `referenceImages[0].uri` for instance."""
    name = ""
    for step in path:
        name += f"[{step}]" if isinstance(step, int) else f".{step}" if name else step
    return f"{name}: {problem}"


def check_picture(path: Path, model: str, picture: bytes) -> None:
    """Check that bytes are a picture the model takes. Raises `AssetRefusedError`."""
    try:
        with Image.open(io.BytesIO(picture), formats=["JPEG", "PNG", "WEBP"]) as image:
            size = image.size
    except (UnidentifiedImageError, OSError) as error:
        raise AssetRefusedError(refusal(path, "Invalid asset: not a valid image.")) from error
    check_aspect(path, model, size)


def check_aspect(path: Path, model: str, size: tuple[int, int]) -> None:
    """Check the shape of a first frame. Raises `AssetRefusedError`."""
    if path[0] != "promptImage" or model not in ASPECTS:
        return
    least, most = ASPECTS[model]
    aspect = size[0] / size[1]
    if least <= aspect <= most:
        return
    bound = f"at least {least}" if aspect < least else f"at most {most}"
    problem = f"Invalid asset aspect ratio. width / height ratio must be {bound}. Got {aspect:.3f}."
    raise AssetRefusedError(refusal(path, problem))


def _check_answer(path: Path, answer: httpx.Response) -> None:
    if answer.status_code != httpx.codes.OK:
        problem = f"Failed to fetch asset. Received HTTP status {answer.status_code}."
        raise AssetRefusedError(refusal(path, problem))
    media_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in MEDIA_TYPES:
        problem = f'Unsupported Content-Type response header: "{media_type}".'
        raise AssetRefusedError(refusal(path, problem))
    length = answer.headers.get("content-length", "")
    if not length.isdigit():
        problem = "Missing Content-Length response header."
        raise AssetRefusedError(refusal(path, problem))
    if int(length) > LARGEST_BYTES:
        raise AssetRefusedError(refusal(path, "Asset is larger than 16 MB."))
