"""Runway's double against the real SDK, against Runway's own contract, and word by word."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import av
import httpx
import jsonschema
import pytest
import runwayml
from PIL import Image
from runwayml import AsyncRunwayML, DefaultAsyncHttpxClient

from vidgen_worker.providers.http_client import certificates
from vidgen_worker.sandbox.control import RunwayControl
from vidgen_worker.sandbox.runway import contract
from vidgen_worker.sandbox.runway.double import RunwayDouble, RunwaySettings
from vidgen_worker.sandbox.runway.words import (
    WORDS,
    Moment,
    UnknownWordError,
    Word,
    spoken_in,
    without_words,
)
from vidgen_worker.sandbox.serving import BackgroundServer

CONTRACT = Path(__file__).parents[3] / "shared/contracts/runway-openapi-excerpt.json"
IMAGE: dict[str, Any] = {"model": "gen4_image", "promptText": "A bottle", "ratio": "1280:720"}
VIDEO: dict[str, Any] = {
    "model": "gen4_turbo",
    "promptText": "It turns",
    "promptImage": "https://example.com/frame.png",
    "ratio": "1280:720",
    "duration": 5,
}


Json = Any  # a document that somebody else wrote


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def slow(tmp_path: Path, clock: Clock) -> Iterator[RunwayControl]:
    """A double whose generations take 10 s of our own clock."""
    settings = RunwaySettings(image_seconds=10, video_seconds=10, render="cached")
    double = RunwayDouble(tmp_path, settings, clock=clock)
    with BackgroundServer(double.app) as server:
        yield RunwayControl(server.url, double.key)


async def _client(runway: RunwayControl) -> AsyncIterator[AsyncRunwayML]:
    async with AsyncRunwayML(
        api_key=runway.key,
        base_url=runway.url,
        max_retries=0,
        _strict_response_validation=True,
        http_client=DefaultAsyncHttpxClient(verify=certificates()),
    ) as client:
        yield client


@pytest.fixture
async def sdk(runway: RunwayControl) -> AsyncIterator[AsyncRunwayML]:
    async for client in _client(runway):
        yield client


@pytest.fixture
async def slow_sdk(slow: RunwayControl) -> AsyncIterator[AsyncRunwayML]:
    async for client in _client(slow):
        yield client


@pytest.fixture
async def http(runway: RunwayControl) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {runway.key}", "X-Runway-Version": "2024-11-06"}
    async with httpx.AsyncClient(
        base_url=runway.url, headers=headers, timeout=30, verify=certificates()
    ) as client:
        yield client


async def image(client: AsyncRunwayML, prompt: str = "A bottle") -> str:
    created = await client.text_to_image.create(
        model="gen4_image", prompt_text=prompt, ratio="1280:720"
    )
    return created.id


async def status(client: AsyncRunwayML, generation: str) -> str:
    return (await client.tasks.retrieve(generation)).status


async def output(client: AsyncRunwayML, generation: str) -> str:
    found = await client.tasks.retrieve(generation)
    assert found.status == "SUCCEEDED"
    return found.output[0]


# The whole way -----------------------------------------------------------------------------------


async def test_a_still_and_a_clip_are_real_files(tmp_path: Path) -> None:
    double = RunwayDouble(tmp_path, RunwaySettings(image_seconds=0, video_seconds=0))
    with BackgroundServer(double.app) as server:
        runway = RunwayControl(server.url, double.key)
        async for client in _client(runway):
            still = await client.text_to_image.create(
                model="gen4_image",
                prompt_text="A bottle on a table",
                ratio="720:1280",
                reference_images=[{"uri": f"{runway.url}/sandbox/product.png", "tag": "product"}],
            )
            frame_url = await output(client, still.id)
            clip = await client.image_to_video.create(
                model="gen4_turbo",
                prompt_text="It turns",
                prompt_image=frame_url,
                ratio="720:1280",
                duration=2,
            )
            clip_url = await output(client, clip.id)
            async with httpx.AsyncClient(timeout=30) as http:
                frame, film = await http.get(frame_url), await http.get(clip_url)
    assert frame.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(frame.content)) as picture:
        assert (picture.format, picture.size) == ("PNG", (720, 1280))
    assert film.headers["content-type"] == "video/mp4"
    assert film.content.index(b"moov") < film.content.index(b"mdat")
    with av.open(io.BytesIO(film.content), "r") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (720, 1280)
        assert stream.average_rate == 24
        assert len(list(container.decode(video=0))) == 2 * 24


async def test_a_generation_walks_through_its_states(slow_sdk: AsyncRunwayML, clock: Clock) -> None:
    generation = await image(slow_sdk, "A bottle [[throttle 5s]]")
    seen = []
    for seconds in (0, 4.9, 5.1, 6.6, 10, 15.1):
        clock.now = 1000.0 + seconds
        seen.append(await status(slow_sdk, generation))
    assert seen == ["THROTTLED", "THROTTLED", "PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]


async def test_progress_grows(slow_sdk: AsyncRunwayML, clock: Clock) -> None:
    generation = await image(slow_sdk)
    progress = []
    for seconds in (2, 5, 9):
        clock.now = 1000.0 + seconds
        found = await slow_sdk.tasks.retrieve(generation)
        assert found.status == "RUNNING"
        progress.append(found.progress)
    assert progress == sorted(progress)
    assert 0 < progress[0] < progress[-1] < 1


async def test_beyond_the_concurrency_generations_wait_in_order(
    slow: RunwayControl, slow_sdk: AsyncRunwayML, clock: Clock
) -> None:
    slow.set(concurrency=1)
    first, second, third = [await image(slow_sdk, f"Bottle {number}") for number in range(3)]
    assert await status(slow_sdk, second) == "THROTTLED"
    clock.now += 10.5
    # The second took the slot when it became free, though nobody looked then.
    assert await status(slow_sdk, first) == "SUCCEEDED"
    assert await status(slow_sdk, second) == "PENDING"
    assert await status(slow_sdk, third) == "THROTTLED"
    await slow_sdk.tasks.delete(second)
    assert await status(slow_sdk, third) == "PENDING"


async def test_another_model_has_a_queue_of_its_own(
    slow: RunwayControl, slow_sdk: AsyncRunwayML
) -> None:
    slow.set(concurrency=1)
    await image(slow_sdk)
    clip = await slow_sdk.image_to_video.create(
        model="gen4_turbo",
        prompt_image="https://example.com/frame.png",
        ratio="1280:720",
        duration=5,
    )
    assert await status(slow_sdk, clip.id) == "PENDING"


# Credits and limits ------------------------------------------------------------------------------


async def test_credits_are_taken_at_the_post_and_given_back_after_a_failure(
    slow: RunwayControl, slow_sdk: AsyncRunwayML, clock: Clock
) -> None:
    slow.set(credit_balance=100)
    await image(slow_sdk, "[[fail INTERNAL.BAD_OUTPUT.CODE01]]")
    assert (await slow_sdk.organization.retrieve()).credit_balance == 95
    clock.now += 11
    assert (await slow_sdk.organization.retrieve()).credit_balance == 100


async def test_moderated_generations_cost_the_full_price(
    runway: RunwayControl, sdk: AsyncRunwayML
) -> None:
    runway.set(credit_balance=100)
    found = await sdk.tasks.retrieve(await image(sdk, "[[fail SAFETY.INPUT.TEXT]]"))
    assert found.status == "FAILED"
    assert (found.failure_code, found.cost.credits) == ("SAFETY.INPUT.TEXT", 5)
    assert (await sdk.organization.retrieve()).credit_balance == 95


async def test_a_stated_cost_is_what_remains_charged(sdk: AsyncRunwayML) -> None:
    found = await sdk.tasks.retrieve(await image(sdk, "[[fail cost 3]]"))
    assert found.status == "FAILED"
    assert (found.failure_code, found.cost.credits) == (None, 3)


async def test_without_credits_nothing_is_created(
    runway: RunwayControl, sdk: AsyncRunwayML
) -> None:
    runway.set(credit_balance=4)
    with pytest.raises(runwayml.BadRequestError, match="not have enough credits"):
        await image(sdk)
    assert runway.generations() == []
    assert (await sdk.organization.retrieve()).credit_balance == 4


async def test_beyond_the_daily_limit_nothing_is_created(
    runway: RunwayControl, sdk: AsyncRunwayML
) -> None:
    runway.set(daily_limit=1)
    await image(sdk)
    with pytest.raises(runwayml.RateLimitError, match="daily task limit") as caught:
        await image(sdk)
    assert "retry-after" not in caught.value.response.headers
    assert len(runway.generations()) == 1
    used = (await sdk.organization.retrieve()).usage.models
    assert used["gen4_image"].daily_generations == 1


@pytest.mark.parametrize(
    ("body", "price"),
    [
        (IMAGE, 5),
        (IMAGE | {"ratio": "1920:1080"}, 8),
        (IMAGE | {"model": "gen4_image_turbo"}, 2),
        (VIDEO, 25),
        (VIDEO | {"model": "gen4.5", "duration": 10}, 120),
        (VIDEO | {"model": "veo3.1", "duration": 8}, 320),
        (VIDEO | {"model": "veo3.1_fast", "duration": 4, "audio": False}, 40),
    ],
)
def test_prices_are_the_documented_ones(body: dict[str, Any], price: int) -> None:
    assert contract.cost("video" if "promptImage" in body else "image", body) == price


# Cancelling and deleting -------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "left"), [(0, 100), (1, 100), (5, 95), (11, 95)])
async def test_deleting_refunds_only_what_has_not_begun(
    slow: RunwayControl, slow_sdk: AsyncRunwayML, clock: Clock, seconds: float, left: int
) -> None:
    slow.set(credit_balance=100)
    generation = await image(slow_sdk)
    clock.now += seconds
    await slow_sdk.tasks.delete(generation)
    assert (await slow_sdk.organization.retrieve()).credit_balance == left
    with pytest.raises(runwayml.NotFoundError):
        await slow_sdk.tasks.retrieve(generation)
    with pytest.raises(runwayml.NotFoundError):
        await slow_sdk.tasks.delete(generation)


async def test_deleting_a_finished_generation_destroys_its_output(
    sdk: AsyncRunwayML, http: httpx.AsyncClient
) -> None:
    generation = await image(sdk)
    url = await output(sdk, generation)
    assert (await http.get(url)).status_code == 200
    await sdk.tasks.delete(generation)
    assert (await http.get(url)).status_code == 403


# Keys, headers, outages --------------------------------------------------------------------------


async def test_a_bad_key_is_refused_everywhere(runway: RunwayControl) -> None:
    async for client in _client(RunwayControl(runway.url, "key_wrong")):
        for call in (image(client), client.organization.retrieve(), client.tasks.retrieve("x")):
            with pytest.raises(runwayml.AuthenticationError):
                await call


async def test_another_version_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/text_to_image", json=IMAGE, headers={"X-Runway-Version": "2023"})
    assert answer.status_code == 400


async def test_an_outage_answers_503_to_everything(
    runway: RunwayControl, sdk: AsyncRunwayML
) -> None:
    runway.set(outage=True)
    with pytest.raises(runwayml.InternalServerError):
        await image(sdk)
    runway.set(outage=False)
    await image(sdk)


def test_an_unknown_setting_names_the_known_ones(runway: RunwayControl) -> None:
    with pytest.raises(ValueError, match="credit_balance, tier"):
        runway.set(colour="blue")


# Prompt words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "error", "created"),
    [
        ("no-credits", runwayml.BadRequestError, 0),
        ("payment", runwayml.APIStatusError, 0),
        ("denied", runwayml.AuthenticationError, 0),
        ("forbidden", runwayml.PermissionDeniedError, 0),
        ("daily-limit", runwayml.RateLimitError, 0),
        ("busy", runwayml.RateLimitError, 0),
        ("400 ratio", runwayml.BadRequestError, 0),
        ("500-before-accept", runwayml.InternalServerError, 0),
        ("drop-before-accept", runwayml.APIConnectionError, 0),
        ("drop-after-accept", runwayml.APIConnectionError, 1),
        ("hang-after-accept 1ms", runwayml.APIConnectionError, 1),
        ("500-after-accept", runwayml.InternalServerError, 1),
        ("503-after-accept", runwayml.InternalServerError, 1),
        ("504-after-accept", runwayml.InternalServerError, 1),
        ("html-200", runwayml.APIResponseValidationError, 1),
        ("empty-200", runwayml.APIResponseValidationError, 1),
        ("broken-json-200", json.JSONDecodeError, 1),
    ],
)
async def test_a_post_goes_wrong_as_told(
    runway: RunwayControl,
    sdk: AsyncRunwayML,
    word: str,
    error: type[Exception],
    created: int,
) -> None:
    prompt = f"A bottle [[{word} x1]]"
    with pytest.raises(error):
        await image(sdk, prompt)
    assert len(runway.generations()) == created
    assert runway.generations(delivered=True) == []
    again = await image(sdk, prompt)
    assert [one["id"] for one in runway.generations(delivered=True)] == [again]


async def test_a_client_sees_that_the_connection_was_cut(http: httpx.AsyncClient) -> None:
    body = IMAGE | {"promptText": "[[drop-after-accept]]"}
    with pytest.raises(httpx.RemoteProtocolError):
        await http.post("/v1/text_to_image", json=body)


async def test_an_answer_may_hold_an_id_that_is_no_uuid(
    runway: RunwayControl, sdk: AsyncRunwayML
) -> None:
    assert await image(sdk, "[[bad-id-200]]") == "../organization"
    assert len(runway.generations()) == 1


async def test_an_answer_may_be_late(runway: RunwayControl, sdk: AsyncRunwayML) -> None:
    with pytest.raises(runwayml.APITimeoutError):
        await image(sdk.with_options(timeout=1), "[[late 20s]]")
    assert [one["delivered"] for one in runway.generations()] == [False]


async def test_words_fire_as_often_as_they_say(sdk: AsyncRunwayML) -> None:
    for _ in range(3):
        with pytest.raises(runwayml.RateLimitError):
            await image(sdk, "[[busy x3]]")
    await image(sdk, "[[busy x3]]")


async def test_lasting_words_fire_for_every_generation(sdk: AsyncRunwayML) -> None:
    for _ in range(3):
        assert await status(sdk, await image(sdk, "[[fail INTERNAL]]")) == "FAILED"


async def test_an_unknown_word_is_refused_with_the_known_ones(sdk: AsyncRunwayML) -> None:
    with pytest.raises(runwayml.BadRequestError, match="drop-after-accept"):
        await image(sdk, "[[explode]]")


async def test_a_generation_goes_wrong_as_told(sdk: AsyncRunwayML) -> None:
    with pytest.raises(runwayml.NotFoundError):
        await status(sdk, await image(sdk, "[[gone]]"))
    assert await status(sdk, await image(sdk, "[[cancelled]]")) == "CANCELLED"
    assert await status(sdk, await image(sdk, "[[stall]]")) == "RUNNING"
    assert await status(sdk, await image(sdk, "[[slow 1m]]")) == "PENDING"


async def test_a_poll_goes_wrong_as_told(sdk: AsyncRunwayML, http: httpx.AsyncClient) -> None:
    generation = await image(sdk, "[[poll-500]]")
    with pytest.raises(runwayml.InternalServerError):
        await status(sdk, generation)
    assert await status(sdk, generation) == "SUCCEEDED"
    generation = await image(sdk, "[[poll-html]]")
    assert "<html>" in (await http.get(f"/v1/tasks/{generation}")).text
    assert await status(sdk, generation) == "SUCCEEDED"
    generation = await image(sdk, "[[weird-status]]")
    assert (await http.get(f"/v1/tasks/{generation}")).json()["status"] == "PAUSED"


async def test_the_cost_may_be_missing(http: httpx.AsyncClient) -> None:
    body = IMAGE | {"promptText": "[[no-cost]]"}
    created = (await http.post("/v1/text_to_image", json=body)).json()
    assert list(created) == ["id"]
    assert "cost" not in (await http.get(f"/v1/tasks/{created['id']}")).json()


async def test_expired_urls_are_replaced_at_the_next_poll(
    sdk: AsyncRunwayML, http: httpx.AsyncClient
) -> None:
    generation = await image(sdk, "[[expire-urls]]")
    dead, alive = await output(sdk, generation), await output(sdk, generation)
    assert (await http.get(dead)).status_code == 403
    assert (await http.get(alive)).status_code == 200


async def test_a_download_goes_wrong_as_told(sdk: AsyncRunwayML, http: httpx.AsyncClient) -> None:
    url = await output(sdk, await image(sdk, "[[truncate-download]] [[zero-bytes x2]]"))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        await http.get(url)
    assert (await http.get(url)).content == b""
    assert (await http.get(url)).content[:4] == b"\x89PNG"


async def test_a_page_comes_under_the_media_type_of_the_file(
    sdk: AsyncRunwayML, http: httpx.AsyncClient
) -> None:
    url = await output(sdk, await image(sdk, "[[page-download]] [[odd-encoding]]"))
    answer = await http.get(url)
    assert answer.headers["content-type"] == "image/png"
    assert answer.content.startswith(b"<html>")
    assert answer.headers["content-encoding"] == "aws-chunked"
    assert (await http.get(url)).content[:4] == b"\x89PNG"


async def test_garbage_is_other_garbage_each_time_unless_told(
    sdk: AsyncRunwayML, http: httpx.AsyncClient
) -> None:
    url = await output(sdk, await image(sdk, "[[garbage]]"))
    assert (await http.get(url)).content != (await http.get(url)).content
    url = await output(sdk, await image(sdk, "[[garbage same]]"))
    assert (await http.get(url)).content == (await http.get(url)).content


async def test_an_output_is_of_the_wrong_kind_as_told(
    sdk: AsyncRunwayML, http: httpx.AsyncClient
) -> None:
    answer = await http.get(await output(sdk, await image(sdk, "[[wrong-type]] [[wrong-size]]")))
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (640, 360))
    created = await http.post(
        "/v1/image_to_video",
        json=VIDEO | {"promptText": "[[wrong-type]] [[wrong-duration]]", "duration": 2},
    )
    answer = await http.get(await output(sdk, created.json()["id"]))
    with av.open(io.BytesIO(answer.content), "r") as container:
        assert "webm" in container.format.name
        assert len(list(container.decode(video=0))) == 3 * 24


def test_words_are_left_out_of_the_caption() -> None:
    assert without_words("A [[slow 3s]] bottle [[busy x2]]") == "A bottle"


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(UnknownWordError, match=r"\[\[explode\]\]"):
        spoken_in("[[explode]]")


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
def test_every_word_says_what_it_does(word: Word) -> None:
    assert word.help
    assert word.moment in Moment
    assert spoken_in(f"[[{word.name}]]")[0].word is word
    assert word.usage.startswith(f"[[{word.name}")


# Assets ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/sandbox/nothing.png", "promptImage: Failed to fetch asset. Received HTTP status 404."),
        (
            "/sandbox/settings",
            'promptImage: Unsupported Content-Type response header: "application',
        ),
        ("/outputs/x.png", "promptImage: Failed to fetch asset. Received HTTP status 403."),
    ],
)
async def test_an_asset_that_is_no_picture_is_refused(
    runway: RunwayControl, http: httpx.AsyncClient, path: str, problem: str
) -> None:
    body = VIDEO | {"promptImage": runway.url + path}
    answer = await http.post("/v1/image_to_video", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(problem)
    assert "issues" not in answer.json()


async def test_a_first_frame_of_a_wrong_shape_is_refused(
    runway: RunwayControl, sdk: AsyncRunwayML
) -> None:
    still = await sdk.text_to_image.create(
        model="gen4_image", prompt_text="A bottle", ratio="2112:912"
    )
    with pytest.raises(runwayml.BadRequestError, match=r"must be at most 2.0. Got 2.316"):
        await sdk.image_to_video.create(
            model="gen4.5",
            prompt_text="It turns",
            prompt_image=await output(sdk, still.id),
            ratio="1280:720",
            duration=5,
        )
    assert runway.generations(kind="video") == []


async def test_loopback_assets_are_refused_unless_allowed(tmp_path: Path) -> None:
    double = RunwayDouble(tmp_path, allow_loopback_assets=False)
    with BackgroundServer(double.app) as server:
        async for client in _client(RunwayControl(server.url, double.key)):
            with pytest.raises(runwayml.BadRequestError, match="only HTTPS"):
                await client.image_to_video.create(
                    model="gen4_turbo",
                    prompt_image=f"{server.url}/sandbox/product.png",
                    ratio="1280:720",
                    duration=5,
                )


# What it saw -------------------------------------------------------------------------------------


async def test_every_post_is_kept_with_its_answer(
    runway: RunwayControl, http: httpx.AsyncClient
) -> None:
    await http.post("/v1/text_to_image", json=IMAGE)
    await http.post("/v1/text_to_image", json=IMAGE | {"audio": True})
    first, second = runway.requests()
    assert (first["body"], first["status"]) == (IMAGE, 200)
    assert first["generation"] == runway.generations()[0]["id"]
    assert (second["status"], second["generation"]) == (400, None)


# Runway's own contract ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paths() -> Json:
    if not CONTRACT.exists():
        pytest.skip(f"{CONTRACT} is not there")
    return json.loads(CONTRACT.read_text())["paths"]


def request_schema(paths: Json, path: str) -> Json:
    return paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def closed(schema: Json) -> Json:
    """Forbid fields that the contract does not name: the API refuses them, the document is mute."""
    match schema:
        case dict():
            forbids = {"additionalProperties": False} if "properties" in schema else {}
            return {name: closed(part) for name, part in schema.items()} | forbids
        case list():
            return [closed(part) for part in schema]
        case _:
            return schema


def test_prompts_are_counted_in_utf16_units() -> None:
    assert contract.check("image", IMAGE | {"promptText": "😀" * 500}) == []
    [issue] = contract.check("image", IMAGE | {"promptText": "😀" * 501})
    assert (issue.code, issue.path) == ("too_big", ("promptText",))


def check_answer(paths: Json, path: str, verb: str, answer: httpx.Response) -> None:
    described = paths[path][verb]["responses"][str(answer.status_code)]
    jsonschema.validate(answer.json(), described["content"]["application/json"]["schema"])


CHANGES: list[dict[str, Any]] = [
    {},
    {"audio": True},
    {"model": "gen3a_turbo"},
    {"ratio": "1280:768"},
    {"ratio": None},
    {"promptText": ""},
    {"promptText": "x" * 1000},
    {"promptText": "x" * 1001},
    {"promptText": 5},
    {"seed": 7},
    {"seed": -1},
    {"seed": 2**32},
    {"seed": True},
    {"contentModeration": {"publicFigureThreshold": "low"}},
    {"contentModeration": {"publicFigureThreshold": "high"}},
    {"contentModeration": {"else": 1}},
]
IMAGE_CHANGES: list[dict[str, Any]] = [
    {"referenceImages": []},
    {"referenceImages": [{"uri": "https://example.com/a.png", "tag": "product"}]},
    {"referenceImages": [{"uri": "https://example.com/a.png", "tag": "p"}]},
    {"referenceImages": [{"uri": "https://example.com/a.png", "tag": "Product"}]},
    {"referenceImages": [{"uri": "https://example.com/a.png", "weight": 1}]},
    {"referenceImages": [{"tag": "product"}]},
    {"referenceImages": [{"uri": "https://example.com/a.png"}] * 4},
    {"referenceImages": "https://example.com/a.png"},
    {"model": "gen4_image_turbo"},
]
VIDEO_CHANGES: list[dict[str, Any]] = [
    {"duration": 1},
    {"duration": 10},
    {"duration": 11},
    {"duration": "5"},
    {"model": "gen4.5"},
    {"model": "veo3.1"},
    {"model": "veo3.1", "duration": 8},
    {"model": "veo3.1", "duration": 8, "audio": False},
    {"promptImage": None},
    {"promptImage": "http://example.com/a.png"},
    {"promptImage": "https://example.com/" + "a" * 2048},
    {"promptImage": [{"uri": "https://example.com/a.png", "position": "first"}]},
    {"promptImage": [{"uri": "https://example.com/a.png", "position": "last"}]},
    {"promptImage": [{"uri": "https://example.com/a.png", "position": "first"}] * 2},
    {"promptImage": "data:image/png;base64,AAAA"},
    {"promptImage": "runway://" + "a" * 100},
]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(("/v1/text_to_image", IMAGE | change) for change in CHANGES + IMAGE_CHANGES),
        *(("/v1/image_to_video", VIDEO | change) for change in CHANGES + VIDEO_CHANGES),
        *(
            (path, {name: value for name, value in body.items() if name != left_out})
            for path, body in (("/v1/text_to_image", IMAGE), ("/v1/image_to_video", VIDEO))
            for left_out in body
        ),
    ],
)
def test_the_double_takes_and_refuses_what_the_contract_does(
    paths: Json, path: str, body: dict[str, Any]
) -> None:
    validator = jsonschema.Draft202012Validator(closed(request_schema(paths, path)))
    refused = contract.check("image" if path == "/v1/text_to_image" else "video", body)
    assert bool(refused) == (not validator.is_valid(body)), refused


async def test_answers_to_posts_are_as_the_contract_says(
    paths: Json, http: httpx.AsyncClient
) -> None:
    for path, body in (("/v1/text_to_image", IMAGE), ("/v1/image_to_video", VIDEO)):
        for words in ("", "[[no-credits]]", "[[busy]]", "[[400 ratio]]"):
            answer = await http.post(path, json=body | {"promptText": f"A bottle {words}"})
            check_answer(paths, path, "post", answer)
        check_answer(paths, path, "post", await http.post(path, json=body | {"audio": True}))


async def test_every_state_looks_as_the_contract_says(
    paths: Json, slow: RunwayControl, clock: Clock
) -> None:
    headers = {"Authorization": f"Bearer {slow.key}", "X-Runway-Version": "2024-11-06"}
    async with httpx.AsyncClient(base_url=slow.url, headers=headers) as http:
        seen = set()
        for words in ("[[throttle 1s]]", "[[fail]]", "[[fail INTERNAL]]", "[[cancelled]]"):
            body = IMAGE | {"promptText": words}
            created = (await http.post("/v1/text_to_image", json=body)).json()
            for seconds in (0, 1.5, 5, 20):
                clock.now += seconds
                answer = await http.get(f"/v1/tasks/{created['id']}")
                check_answer(paths, "/v1/tasks/{id}", "get", answer)
                seen.add(answer.json()["status"])
        assert seen == {"THROTTLED", "PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"}
        missing = await http.get("/v1/tasks/17f20503-6c24-4c16-946b-35dbbce2af2f")
        check_answer(paths, "/v1/tasks/{id}", "get", missing)


async def test_the_organization_looks_as_the_contract_says(
    paths: Json, http: httpx.AsyncClient
) -> None:
    answer = (await http.get("/v1/organization")).json()
    described = paths["/v1/organization"]["get"]["responses"]["200"]
    schema = deepcopy(described["content"]["application/json"]["schema"])
    # The contract is older than the SDK and does not know its newest models.
    for part in (schema["properties"]["tier"], schema["properties"]["usage"]):
        del part["properties"]["models"]["propertyNames"]
    jsonschema.validate(answer, schema)


# Speed -------------------------------------------------------------------------------------------


async def test_a_hundred_plain_outputs_take_less_than_ten_seconds(sdk: AsyncRunwayML) -> None:
    await output(sdk, await image(sdk))
    began = time.perf_counter()
    generations = await asyncio.gather(*(image(sdk, f"Bottle {number}") for number in range(100)))
    await asyncio.gather(*(output(sdk, generation) for generation in generations))
    assert time.perf_counter() - began < 10
