"""A receiver of the worker's webhooks: verifies each request, and does its work once.

The same event may come more than once, always under the same webhook-id; events may come in any
order. pip install standardwebhooks, then WEBHOOK_SECRET=whsec_… python webhook_receiver.py 8000
"""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

LARGEST_BODY = 100_000
done: set[str] = set()
"""The ids of events that were handled. A real receiver keeps them in its database."""


def handle(event: dict[str, Any]) -> None:
    """Do what this application does when a video is ready or has failed."""
    data = event["data"]
    match event["type"]:
        case "video.completed" | "film.completed":
            print(f"{data['reference'] or data['task_id']}: ready, {data['video_path']}")
        case "video.failed" | "film.failed":
            print(f"{data['reference'] or data['task_id']}: failed, {data['error_code']}")
        case other:
            print(other)
    sys.stdout.flush()


class Receiver(BaseHTTPRequestHandler):
    """Answers 2xx once an event is handled; anything else has it sent again later."""

    def do_POST(self) -> None:
        """Take one event."""
        body = self.rfile.read(min(int(self.headers.get("content-length", 0)), LARGEST_BODY))
        try:
            # It refuses a wrong signature, and a time that is more than five minutes away.
            event = Webhook(os.environ["WEBHOOK_SECRET"]).verify(body, dict(self.headers.items()))
        except WebhookVerificationError:
            self.answer(401)
            return
        if self.headers["webhook-id"] not in done:
            handle(event)
            done.add(self.headers["webhook-id"])
        self.answer(204)

    def answer(self, status: int) -> None:
        """Send a status: nobody reads more of it."""
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
