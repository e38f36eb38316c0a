"""Secrets are hidden in whatever spelling they turn up, and nothing else is."""

import base64
import json
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidgen_worker.domain.masking import MASK, Secrets

JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
    "eyJpc3MiOiJzdXBhYmFzZSIsInJvbGUiOiJzZXJ2aWNlX3JvbGUiLCJpYXQiOjE3MDAwMDAwMDB9."
    "abcDEF-ghi_JKLmnoPQRstuVWXyz0123456789abcdEF"
)
PASSWORD = 'p@ss/w#rd:1%"x'
SHORT = "hunter22"
SECRETS = (JWT, PASSWORD, SHORT, "sb_secret_0123456789abcdef")


def masked(text: str) -> str:
    secrets = Secrets()
    secrets.learn(SECRETS)
    return secrets.masked(text)


def every_byte(secret: str, form: str) -> str:
    return "".join(form.format(ord(character)) for character in secret)


def broken(secret: str, with_what: str) -> str:
    half = len(secret) // 2
    return secret[:half] + with_what + secret[half:]


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": lambda s: s,
    "quoted": lambda s: f'"{s}"',
    "as Python writes it": repr,
    "as Python writes bytes": lambda s: repr(s.encode()),
    "with a line end": lambda s: repr(s.encode() + b"\n"),
    "as JSON": json.dumps,
    "as JSON in JSON": lambda s: json.dumps(json.dumps(s)),
    "percent-encoded": lambda s: quote(s, safe=""),
    "percent-encoded twice": lambda s: quote(quote(s, safe=""), safe=""),
    "percent-encoded in small letters": lambda s: every_byte(s, "%{:02x}"),
    "of a form": quote_plus,
    "hexadecimal": lambda s: s.encode().hex(),
    "escaped byte by byte": lambda s: every_byte(s, "\\x{:02x}"),
    "escaped character by character": lambda s: every_byte(s, "\\u{:04x}"),
    "as entities": lambda s: every_byte(s, "&#{};"),
    "broken by a line end": lambda s: broken(s, "\n    "),
    "broken by an escaped line end": lambda s: broken(s, "\\n"),
    "broken by quotes": lambda s: broken(s, "'\n  '"),
    "Base64": lambda s: base64.b64encode(s.encode()).decode(),
    "Base64 behind a name": lambda s: base64.b64encode(f"u:{s}".encode()).decode(),
    "Base64 of URLs": lambda s: base64.urlsafe_b64encode(f"ab:{s}".encode()).decode(),
}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_secret_is_hidden_in_every_spelling(secret: str, spelling: str) -> None:
    spelled = SPELLINGS[spelling](secret)
    said = masked(f"zzz {spelled} zzz")
    assert MASK in said, said
    assert said.startswith("zzz ")
    assert said.endswith(" zzz")
    # Less than a quarter of it is left.
    assert len(said.replace(MASK, "")) - len("zzz  zzz") < max(len(spelled) / 4, 8), said


@pytest.mark.parametrize("part", JWT.split("."))
def test_each_part_of_a_token_is_hidden(part: str) -> None:
    assert masked(f"Bearer {part}") == f"Bearer {MASK}"


def test_a_token_that_is_not_ours_can_be_copied() -> None:
    """The signed address of a clip: its token begins as every token of its project does."""
    header, claims, signature = JWT.split(".")
    address = f"https://x.supabase.co/clip.mp4?token={header}.{claims}.{'Zq3' * 14}"
    assert masked(f"{JWT} {address} {JWT}") == f"{MASK} {address} {MASK}"
    # With a part of our signature it is ours.
    assert signature[:24] not in masked(f"{header}.{claims}.{signature[:24]}")


@given(st.integers(0, len(JWT) - 16), st.integers(16, 60))
def test_a_piece_of_a_long_secret_is_hidden(start: int, length: int) -> None:
    piece = JWT[start : start + length]
    assert piece not in masked(f"cut: {piece}…")


@pytest.mark.parametrize(
    "text",
    [
        "sb_secret_… or the old service_role JWT",
        "Video generation failed",
        "100 % done; 50%25 of C:\\new\\tables",
        "hunter 2 hunted",
        "",
        "f47ac10b-58cc-4372-a567-0e02b2c3d479",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


@given(st.text())
def test_any_text_can_be_searched_for_secrets(text: str) -> None:
    assert JWT not in masked(text + JWT + text)


def test_a_value_too_short_for_a_secret_hides_nothing() -> None:
    secrets = Secrets()
    secrets.learn(["", "a", "abc"])
    assert secrets.masked("abcabc a") == "abcabc a"
