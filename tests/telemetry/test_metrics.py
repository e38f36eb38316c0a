"""Metrics and health: what a scrape finds after a real task."""

import asyncio
import re
from pathlib import Path

import httpx

from tests.support.hands import IMAGE_PRICE, VIDEO_PRICE
from tests.support.watching import until_true, watch
from tests.support.world import World, recorded
from vidgen_worker.telemetry import events
from vidgen_worker.telemetry.metrics import Metrics, serving


async def scraped(url: str) -> dict[str, float]:
    """Read /metrics: name with labels → value."""
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{url}/metrics")).raise_for_status().text
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def test_a_scrape_shows_the_events_of_a_task(world: World) -> None:
    user = world.user()
    with recorded() as heard:
        async with world.worker(VIDGEN_METRICS_PORT="0"):
            await world.until(world.order(user, world.scene(user)))
            (served,) = [e for e in heard if isinstance(e, events.MetricsServed)]
            url = f"http://127.0.0.1:{served.port}"
            found = await scraped(url)
            async with httpx.AsyncClient() as http:
                live, ready = await http.get(f"{url}/healthz"), await http.get(f"{url}/readyz")
                lost = await http.get(f"{url}/nothing")
    assert found['vidgen_tasks_total{code="",outcome="completed"}'] == 1
    assert found['vidgen_submissions_total{answer="generation",stage="image"}'] == 1
    assert found['vidgen_submissions_total{answer="generation",stage="video"}'] == 1
    clip = 'model="gen4_turbo",stage="video"'
    still = 'model="gen4_image",stage="image"'
    for of in (clip, still):
        assert found[f'vidgen_generation_seconds_count{{{of},state="succeeded"}}'] == 1.0
    booked = world.one(
        "select sum(cost) filter (where stage = 'image') as image,"
        " sum(cost) filter (where stage = 'video') as video from vidgen.submissions"
    )
    assert found[f"vidgen_generation_cost_credits_total{{{still}}}"] == booked["image"] > 0
    assert found[f"vidgen_generation_cost_credits_total{{{clip}}}"] == booked["video"] > 0
    assert found['vidgen_charged_credits_total{stage="image"}'] == IMAGE_PRICE
    assert found['vidgen_charged_credits_total{stage="video"}'] == VIDEO_PRICE
    sizes = world.one("select sum(size) as bytes from vidgen.checkpoints where stage = 'video'")
    assert found['vidgen_stored_bytes_total{stage="video"}'] == sizes["bytes"] > 1000
    assert found['vidgen_upload_seconds_count{stage="video"}'] == 1
    assert found["vidgen_pickup_seconds_count"] == 1
    assert found["vidgen_claim_seconds_count"] >= 1
    assert found["vidgen_running"] == 0
    assert found["vidgen_concurrency"] == 20
    assert found["vidgen_lease_age_seconds"] < 3
    assert (live.status_code, ready.status_code, lost.status_code) == (200, 200, 404)


async def test_a_cost_is_counted_once_however_often_its_generation_is_read(world: World) -> None:
    """Storage refuses the key once: the next attempt reads the same generation again."""
    user = world.user()
    world.storage.fail("upload", times=1, status=403)
    with recorded() as heard:
        async with world.worker(VIDGEN_METRICS_PORT="0"):
            await world.until(world.order(user, world.scene(user)))
            (served,) = [e for e in heard if isinstance(e, events.MetricsServed)]
            found = await scraped(f"http://127.0.0.1:{served.port}")
    ended = [e for e in heard if isinstance(e, events.GenerationEnded) and e.stage == "image"]
    assert [e.repeated for e in ended] == [None, True]
    of = 'model="gen4_image",stage="image"'
    assert found[f"vidgen_generation_cost_credits_total{{{of}}}"] == ended[0].cost
    assert found[f'vidgen_generation_seconds_count{{{of},state="succeeded"}}'] == 1


async def test_without_credits_nothing_is_counted_as_charged(world: World) -> None:
    user = world.user()
    with recorded() as heard:
        async with world.worker(VIDGEN_METRICS_PORT="0", VIDGEN_CREDITS="off"):
            await world.until(world.order(user, world.scene(user)))
            (served,) = [e for e in heard if isinstance(e, events.MetricsServed)]
            found = await scraped(f"http://127.0.0.1:{served.port}")
    assert found['vidgen_charged_credits_total{stage="video"}'] == 0


async def test_health_is_a_status_code() -> None:
    """The request of a load balancer or Docker."""
    with serving(Metrics(), 0, alive=lambda: False, ready=lambda: True) as port:
        async with httpx.AsyncClient() as http:
            answers = await asyncio.gather(
                http.get(f"http://127.0.0.1:{port}/healthz"),
                http.get(f"http://127.0.0.1:{port}/readyz"),
            )
    assert [answer.status_code for answer in answers] == [503, 200]


def test_without_a_port_nothing_listens() -> None:
    with serving(Metrics(), None, alive=lambda: True, ready=lambda: True) as port:
        assert port is None


async def test_a_scrape_shows_the_whole_fleet(world: World) -> None:
    """Queue, workers, gates and ledger come from the database, whichever worker wrote them."""
    watch(world)
    user = world.user()
    world.sql("update user_credits set balance = balance + 1 where user_id = %s", user)
    world.sql(
        "insert into vidgen.gates (provider, scope, model, reason, message)"
        " values ('runway', '*', '*', 'OPERATOR', 'Paused.')"
    )
    task = world.order(user, world.scene(user))
    with recorded() as heard:
        more = {"VIDGEN_METRICS_PORT": "0", "VIDGEN_IMAGE_SLOTS": "3", "VIDGEN_VIDEO_SLOTS": "2"}
        async with world.worker(**more) as worker:
            await world.beats(1)
            await worker.janitor.count()
            # The worker's own first audit may be running: one runs at a time.
            await until_true(world, "select audited_at is not null from vidgen.audited")
            await worker.janitor.audit()
            (served,) = [e for e in heard if isinstance(e, events.MetricsServed)]
            found = await scraped(f"http://127.0.0.1:{served.port}")
    assert world.task(task)["status"] == "pending"
    assert found['vidgen_gate_closed{code="OPERATOR",model="*",scope="*"}'] == 1
    assert found["vidgen_queue_pending"] == 1
    assert found["vidgen_queue_oldest_pending_seconds"] > 0
    assert found["vidgen_workers_alive"] == 1
    assert found["vidgen_ledger_discrepancies"] == 1
    assert found['vidgen_provider_slots{model="gen4_image"}'] == 3
    assert found['vidgen_provider_slots_taken{model="gen4_turbo"}'] == 0


def test_every_alert_reads_metrics_that_exist_and_is_in_the_runbook() -> None:
    docs = Path(__file__).parents[2] / "docs"
    rules = (docs / "alerts.yml").read_text()
    worker_s = {"running", "concurrency", "lease_age_seconds"}  # named in worker/worker.py
    served = {sample.name for metric in Metrics().registry.collect() for sample in metric.samples}
    served |= {metric.name for metric in Metrics().registry.collect()}
    served |= {f"{name}_total" for name in served} | {f"vidgen_{name}" for name in worker_s}
    named = set(re.findall(r"\bvidgen_\w+", rules))
    assert named
    assert named <= served
    runbook = (docs / "operations.md").read_text()
    for alert in re.findall(r"alert: (\w+)", rules):
        assert f"**{alert}**" in runbook, alert
