"""What is sent is verified by others: the two libraries that receivers use."""

import json
import shutil
import subprocess
import time
from base64 import b64encode
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from vidgen_worker.webhooks.schedule import PAUSES, pause_after
from vidgen_worker.webhooks.signing import headers

TOOLS = Path(__file__).parents[2] / ".tools" / "node_modules"
BODY = json.dumps({"type": "video.completed", "data": {"reference": "Über 7"}}).encode()
OLD, NEW = b"o" * 32, b"n" * 32


def secret(raw: bytes) -> str:
    return f"whsec_{b64encode(raw).decode()}"


def test_a_receiver_with_either_secret_accepts_a_request() -> None:
    sent = headers(uuid4(), int(time.time()), BODY, [NEW, OLD])
    for known in (OLD, NEW):
        assert Webhook(secret(known)).verify(BODY, sent)["type"] == "video.completed"
    with pytest.raises(WebhookVerificationError):
        Webhook(secret(b"x" * 32)).verify(BODY, sent)


@pytest.mark.parametrize("changed", ["webhook-id", "webhook-timestamp", "body"])
def test_nothing_that_is_signed_can_be_changed(changed: str) -> None:
    sent = headers(uuid4(), int(time.time()), BODY, [NEW])
    other = headers(uuid4(), int(time.time()) - 7, BODY, [NEW])
    body = BODY.replace(b"completed", b"failed") if changed == "body" else BODY
    with pytest.raises(WebhookVerificationError):
        Webhook(secret(NEW)).verify(body, sent | {n: v for n, v in other.items() if n == changed})


@pytest.mark.skipif(
    not (shutil.which("node") and (TOOLS / "standardwebhooks").exists()), reason="make tools"
)
def test_the_package_for_node_accepts_a_request() -> None:
    program = """
      const { Webhook } = require('standardwebhooks')
      const [secret, body, headers] = JSON.parse(require('fs').readFileSync(0, 'utf8'))
      console.log(new Webhook(secret).verify(body, headers).data.reference)
    """
    sent = headers(uuid4(), int(time.time()), BODY, [NEW, OLD])
    done = subprocess.run(
        ["node", "-e", program], input=json.dumps([secret(OLD), BODY.decode(), sent]),
        capture_output=True, text=True, check=False, env={"NODE_PATH": str(TOOLS)},
        executable=shutil.which("node"),
    )  # fmt: skip
    assert done.stdout == "Über 7\n", done.stderr


def test_ten_tries_take_a_little_over_three_days() -> None:
    pauses = [pause_after(tries) for tries in range(1, 10)]
    assert all(
        pause is not None and 0.8 * meant <= pause <= 1.2 * meant
        for pause, meant in zip(pauses, PAUSES, strict=True)
    )
    assert pause_after(10) is None
    assert timedelta(days=3) < sum(PAUSES, timedelta()) < timedelta(days=3.5)


def test_a_receiver_may_ask_for_a_later_try_and_never_for_a_sooner_one() -> None:
    assert pause_after(1, timedelta(hours=1)) == timedelta(hours=1)
    assert pause_after(1, timedelta(days=9)) == timedelta(days=1)
    sooner = pause_after(3, timedelta(seconds=1))
    assert sooner is not None
    assert sooner >= 0.8 * PAUSES[2]
    assert pause_after(10, timedelta(hours=1)) is None
