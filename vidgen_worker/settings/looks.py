"""The checks of each setting's text, and the way in which a setting is shown.

Each check returns the second half of a sentence, with the remedy, and repeats no secret. Nothing
here reads a setting, or looks at anything else of the machine but whether a folder of fonts exists.
"""

import base64
import binascii
import json
import os
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import SplitResult, urlsplit

from pydantic import SecretStr

from vidgen_worker.database.database_url import DatabaseUrl, DatabaseUrlError
from vidgen_worker.domain import masking
from vidgen_worker.domain.durations import format_duration
from vidgen_worker.domain.foreign_text import printable, quoted
from vidgen_worker.domain.keys import ACCOUNT_LABEL

LONGEST_VALUE = 8192
"""The most characters of a setting: the longest valid one is a key of some 2,000."""
_QUOTES = ("'", '"')
_KEY = re.compile(r"[A-Za-z0-9._~+/=-]+")
_BUCKET = re.compile(r"[A-Za-z0-9_!.*'() &$@=;:+,?-]{1,100}")
REMEDIES: Mapping[str, str] = {
    "database_url": "Supabase dashboard → Connect → Direct connection or Session pooler",
    "supabase_url": "Supabase dashboard → Project Settings → Data API",
    "supabase_service_role_key": "Supabase dashboard → Project Settings → API Keys → secret key",
    "runwayml_api_secret": "dev.runwayml.com → API Keys",
}
"""The place where a person finds each mandatory setting."""
REMEDY_OF_KEY = f"take the secret key: {REMEDIES['supabase_service_role_key']}"


# The fault of one value, as the second half of a sentence; None for a valid value.


def unwrapped(text: str) -> str:
    """Strip a value, and the quotes that Docker and systemd leave around it."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES:
        text = text[1:-1].strip()
    return text


def unfit(text: str) -> str | None:
    """Return the reason why a text can be no setting at all."""
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
    """Parse an http URL; None where it is not usable."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:  # UnicodeError is a ValueError
        return None
    usable = parts.scheme in ("http", "https") and host and port != 0 and " " not in text
    return parts if usable and not re.search(r"[<>\[\]{}|\\^`\"]", host) else None


def _look_at_url(text: str, *, domain: str) -> str | None:
    """Check a service's URL. Our own services answer by https only."""
    parts = _split(text)
    if parts is None:
        return "write a full URL such as https://host"
    # An empty query or fragment too: what follows it would be no path.
    if parts.username or parts.password or "?" in text or "#" in text or "//" in parts.path:
        return "it holds more than a host: write only https://host, without user, ?, # or //"
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
    """Check the kind of a Supabase key: only a secret key may store files for others."""
    if text.startswith("sb_publishable_"):
        return f"it is the publishable key, which may store nothing; {REMEDY_OF_KEY}"
    if text.startswith(("sbp_", "key_", "http://", "https://", "postgres")):
        return f"it is no key of a Supabase project; {REMEDY_OF_KEY}"
    if said := _look_at_key(text):
        return said
    claims = claims_of(text)
    if claims is not None and claims.get("role") != "service_role":
        role = claims.get("role")
        named = f"the key of role {quoted(role)}" if isinstance(role, str) else "of no role"
        return f"it is {named}, which may store nothing; {REMEDY_OF_KEY}"
    return None


def claims_of(key: str) -> dict[str, Any] | None:
    """Return the payload of a JWT; None where the key is no JWT."""
    parts = key.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - head, claims, signature
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def project_of(url: str) -> str | None:
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


def _look_at_account(text: str) -> str | None:
    if not ACCOUNT_LABEL.fullmatch(text):
        return "up to 64 letters, digits and - _ . make a label"
    return None


def _look_at_fonts(text: str) -> str | None:
    for place in text.split(":"):
        if not place.startswith("/"):
            return f"{quoted(place)} is no whole path; write /folder/of/fonts:/a/single/font.ttf"
        if not os.path.exists(place):  # noqa: PTH110 - which never raises
            return (
                f"there is no folder or file {printable(place, 200)}; correct it, or leave it out "
                "for the system's fonts"
            )
    return None


LOOKS: Mapping[str, Callable[[str], str | None]] = {
    "database_url": _look_at_database_url,
    "supabase_url": _look_at_supabase_url,
    "supabase_service_role_key": _look_at_service_key,
    "runwayml_api_secret": _look_at_runway_key,
    "runwayml_base_url": _look_at_runway_url,
    "storage_bucket_images": _look_at_bucket,
    "storage_bucket_videos": _look_at_bucket,
    "vidgen_account": _look_at_account,
    "vidgen_fonts": _look_at_fonts,
}
"""The check of each setting, beyond its type."""


def shown(value: object) -> str:
    """A setting's value as text; of a secret only the first characters are shown."""
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
    """The first characters of a secret: enough to tell two apart, too few to use it."""
    try:
        return printable(DatabaseUrl.read(secret).masked())
    except DatabaseUrlError:
        return f"{secret[:6]}…" if len(secret) > 12 else masking.MASK  # noqa: PLR2004
