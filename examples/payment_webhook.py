"""A payment provider's webhook that turns payments into credits: on a server, never in a browser.

The payment's id is the reference: providers send an event more than once, and it counts once.
SUPABASE_URL=… SUPABASE_SECRET_KEY=sb_secret_… WEBHOOK_SECRET=… python payment_webhook.py 8000
"""

import hashlib
import hmac
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from supabase import PostgrestAPIError, create_client

CREDITS_PER_CENT = 1
LARGEST_BODY = 100_000


def grant(payment: dict[str, Any]) -> int:
    """Grant what was paid for, once, and return the user's balance."""
    supabase = create_client(os.environ["SUPABASE_URL"], os.environ["SUPABASE_SECRET_KEY"])
    granted: Any = supabase.rpc(
        "grant_video_credits",
        {
            "user_id": payment["user_id"],
            "amount": payment["amount_cents"] * CREDITS_PER_CENT,
            "reference": payment["id"],
        },
    ).execute()
    return int(granted.data["balance"])


def is_authentic(body: bytes, signature: str) -> bool:
    """Whether the payment provider has signed this body with the secret we share."""
    expected = hmac.new(os.environ["WEBHOOK_SECRET"].encode(), body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected.encode(), signature.encode())


class Webhook(BaseHTTPRequestHandler):
    """Answers 2xx once the credits are there; anything else makes the provider send it again."""

    def do_POST(self) -> None:
        """Take one event."""
        body = self.rfile.read(min(int(self.headers.get("content-length", 0)), LARGEST_BODY))
        if not is_authentic(body, self.headers.get("x-signature", "")):
            self.answer(401, {"error": "the signature does not belong to this body"})
            return
        try:
            self.answer(200, {"balance": grant(json.loads(body))})
        except (KeyError, TypeError, ValueError) as error:
            self.answer(400, {"error": f"this is no payment of ours: {error!r}"})
        except PostgrestAPIError as error:
            # PT409: the reference was used for another user or amount. Look at it, don't repeat.
            self.answer(409 if error.code == "PT409" else 503, {"error": error.message})

    def answer(self, status: int, content: dict[str, Any]) -> None:
        """Send JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Webhook).serve_forever()
