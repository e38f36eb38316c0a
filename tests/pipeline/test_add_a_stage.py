"""CONTRIBUTING's "Add a stage", done: a third stage, from its declaration to its charge."""

from collections.abc import Mapping
from uuid import UUID

import psycopg
import pytest

from tests.support.world import World, recorded
from vidgen_worker.config import Settings
from vidgen_worker.domain.resolution import Resolution
from vidgen_worker.domain.task import Scene, StageName
from vidgen_worker.pipeline.stages import IMAGE, PIPELINE, Order, Stage
from vidgen_worker.pipeline.stages.stage import look_at_picture
from vidgen_worker.providers.protocol import Provider
from vidgen_worker.queue.checkpoints import Columns, Step
from vidgen_worker.telemetry import events

CREDITS = 1000
PRICES: Mapping[str, int] = {"image": 5, "video": 25, "poster": 7}


def order(scene: Scene, resolution: Resolution, settings: Settings, provider: Provider) -> Order:
    prompt = f"A poster of this: {scene.visual_prompt}"
    request = provider.still(settings.vidgen_image_model, prompt, resolution.image_ratio, None)
    return Order(request, resolution.image_ratio, 0)


def path(user_id: UUID, upload_id: UUID) -> str:
    return f"generated_images/{user_id}/{upload_id}.png"


POSTER = Stage(
    name=StageName("poster"),
    made_from=IMAGE,
    public=True,
    is_result=False,
    media_type="image/png",
    generating=Step(96, "Creating poster", "Creating the poster"),
    storing=Step(97, "Storing poster", "Storing the poster"),
    stored=Step(98, "Storing poster", "The poster is stored"),
    model=lambda settings: settings.vidgen_image_model,
    bucket=lambda _settings: "posters",
    max_bytes=lambda settings: settings.vidgen_max_image_bytes,
    least_bytes=1_000_000,
    order=order,
    path=path,
    look=look_at_picture,
    shown=lambda _artifact, _url: Columns(),
)


def add_its_row(world: World) -> None:
    world.sql(
        "insert into vidgen.stages (name, place, action, bucket)"
        " values ('poster', 3, 'generate_poster', 'posters')"
    )
    world.stages = (*PIPELINE, POSTER)


def add_its_price(world: World) -> None:
    world.sql("insert into credit_prices values ('generate_poster', %s)", PRICES["poster"])


async def test_a_stage_is_a_row_a_price_and_a_declaration(world: World) -> None:
    add_its_row(world)
    add_its_price(world)
    user = world.user(CREDITS)
    task = world.order(user, world.scene(user))
    with recorded() as heard:
        async with world.worker():
            row = await world.until(task)
    assert (row["status"], row["error_code"]) == ("completed", None)
    assert "/video-files/" in row["video_url"]

    charges = world.sql("select stage, amount from credit_entries where task_id = %s", task)
    assert sorted((one["stage"], -one["amount"]) for one in charges) == sorted(PRICES.items())
    assert world.credits(user) == (CREDITS - sum(PRICES.values()), 0)
    assert world.books_balance()

    stored = world.sql(
        "select stage, state, bucket from vidgen.checkpoints where task_id = %s", task
    )
    assert {one["stage"]: (one["state"], one["bucket"]) for one in stored} == {
        "image": ("done", "generated-content"), "video": ("done", "video-files"),
        "poster": ("done", "posters"),
    }  # fmt: skip
    done = [event.stage for event in heard if isinstance(event, events.StageDone)]
    assert done == ["image", "video", "poster"]
    *_, poster = [one for one in world.runway.requests() if one["path"] == "/v1/text_to_image"]
    assert [one["uri"] for one in poster["body"]["referenceImages"]]


async def test_a_stage_without_a_price_costs_nothing_and_says_so(world: World) -> None:
    add_its_row(world)
    user = world.user(CREDITS)
    task = world.order(user, world.scene(user))
    async with world.worker():
        row = await world.until(task)
    assert (row["status"], row["error_code"]) == ("failed", "PRICE_MISSING")
    assert world.credits(user) == (CREDITS, 0)
    assert world.sql("select id from vidgen.submissions where task_id = %s", task) == []


def test_a_third_stage_can_t_be_one_that_the_claim_reserves_for(world: World) -> None:
    add_its_row(world)
    with pytest.raises(psycopg.errors.CheckViolation, match="the_claim_reserves_for_image_and_vid"):
        world.sql("update vidgen.stages set reserved = true where name = 'poster'")


def test_each_stage_that_a_worker_walks_has_its_row_and_its_price(world: World) -> None:
    rows = world.sql(
        "select s.name from vidgen.stages as s join credit_prices as p on p.action = s.action"
        " order by s.place"
    )
    assert [row["name"] for row in rows] == [stage.name for stage in PIPELINE]
