"""How soon a webhook is told, alone and beside a dead one with thousands of deliveries."""

import os
import queue
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psycopg

from bench.contenders import OURS
from bench.ground import Ground, Site

LONGEST = 60.0
"""Seconds after which a request that should have come has not."""
BETWEEN = 0.02
"""Seconds between two events: each finds the worker idle."""


def webhooks(ground: Ground, events: int, waiting: int) -> dict[str, Any]:
    """Milliseconds from the statement that commits an event to the request, p50 and p99.

    Then the same while another webhook, which takes requests and answers none, has so many
    deliveries due.
    """
    more = {"VIDGEN_WEBHOOK_ALLOW_LOOPBACK": "true"}
    with (
        ground.site() as site, _receiver() as (alive, arrivals), _silent() as dead,
        OURS.start("work", site, os.environ, **more) as worker,
    ):  # fmt: skip
        worker.until("ready")
        _enabled(site, alive, "video.completed")
        _enabled(site, dead, "video.failed")
        alone = _told(site, arrivals, events)
        site.sql(
            "select vidgen.deliver('video.failed', null, null, n::text, '{}')"
            " from generate_series(1, %s) as n", waiting,
        )  # fmt: skip
        beside = _told(site, arrivals, events)
    return {"events": events, "waiting": waiting, "alone": alone, "beside_a_dead_one": beside}


def _told(site: Site, arrivals: "queue.Queue[float]", events: int) -> dict[str, float]:
    taken = []
    with psycopg.connect(site.admin_url, autocommit=True) as conn:
        for number in range(events):
            began = time.monotonic()
            conn.execute(
                "select vidgen.deliver('video.completed', null, null, %s, '{}')",
                (f"{time.monotonic_ns()} {number}",),
            )
            taken.append((arrivals.get(timeout=LONGEST) - began) * 1000)
            time.sleep(BETWEEN)
    return {
        "p50": round(statistics.median(taken), 1),
        "p99": round(statistics.quantiles(taken, n=100)[98], 1),
    }


def _enabled(site: Site, url: str, event: str) -> None:
    """Add a webhook that needs no test."""
    site.sql("select public.create_video_webhook(%s, array[%s])", url, event)
    site.sql("delete from vidgen.deliveries where event = 'webhook.test'")
    site.sql("update public.video_webhooks set enabled = true, disabled_reason = null")


@contextmanager
def _receiver() -> Iterator[tuple[str, "queue.Queue[float]"]]:
    """A server that answers at once; the times of the requests."""
    arrivals: queue.Queue[float] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            arrivals.put(time.monotonic())
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing: thousands of requests."""

    with _served(Handler) as url:
        yield url, arrivals


@contextmanager
def _silent() -> Iterator[str]:
    """A server that answers nothing, until it is closed."""
    closed = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            closed.wait()

        def log_message(self, *_: object) -> None:
            """Nothing: it is silent."""

    with _served(Handler) as url:
        try:
            yield url
        finally:
            closed.set()


@contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
