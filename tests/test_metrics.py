"""Metrics and health: what a scrape finds after a real task."""

import asyncio

import httpx

from tests.world import World, recorded
from vidgen_worker import events
from vidgen_worker.metrics import Metrics, serving


async def scraped(url: str) -> dict[str, float]:
    """Read /metrics: name with labels → value."""
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{url}/metrics")).raise_for_status().text
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


async def test_a_scrape_tells_what_a_task_did(world: World) -> None:
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
    assert found['vidgen_generation_seconds_count{stage="video",state="succeeded"}'] == 1
    assert found['vidgen_generation_cost_credits_total{stage="video"}'] > 0
    assert found['vidgen_stored_bytes_total{stage="video"}'] > 1000
    assert found["vidgen_pickup_seconds_count"] == 1
    assert found["vidgen_lease_age_seconds"] < 3
    assert (live.status_code, ready.status_code, lost.status_code) == (200, 200, 404)


async def test_health_is_a_status_code() -> None:
    """What a load balancer or Docker asks."""
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
