"""The Runway adapter against its double, and against a server that answers any bytes at all."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidgen_worker.domain.faults import FAULTS, Fault, FaultName
from vidgen_worker.domain.resolution import image_models, video_models
from vidgen_worker.providers.protocol import GenerationState, ModelLimits, Provider, Request
from vidgen_worker.providers.runway.adapter import (
    Runway,
    check_asset_url,
    check_duration,
    check_prompt,
    image_request,
    video_request,
)
from vidgen_worker.providers.runway.inputs import TEXT_TO_IMAGE, body_of
from vidgen_worker.sandbox.control import RunwayControl

GEN4_IMAGE = image_models()["gen4_image"]
GEN4_TURBO = video_models()["gen4_turbo"]
FRAME = "https://cdn.example.com/frame.png"
IMAGE = image_request(GEN4_IMAGE, "a bottle", "1920:1080", None)
VIDEO = replace(video_request(GEN4_TURBO, "it turns", "1280:720", 5), source=FRAME)
GENERATION = UUID("17f20503-6c24-4c16-946b-35dbbce2af2f")
OTHER = "355e42da-4d6a-4f4a-8d1e-6a2c3f6d1b0a"
CREATED = "2026-11-22T10:00:00.000Z"

# What the server does with one request: it has the writer, and the connection ends afterwards.
Act = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Wire:
    """A server of bare sockets: plays one act per request, the last one again and again."""

    acts: list[Act]
    url: str = ""
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            method, path, _ = first.split(" ")
            act = self.acts[min(len(self.requests), len(self.acts) - 1)]
            self.requests.append((method, path, headers, body))
            self.arrived.set()
            await act(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.transport.abort()
        finally:
            writer.close()

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, _, body in self.requests]


@asynccontextmanager
async def wire(*acts: Act) -> AsyncIterator[Wire]:
    served = Wire(list(acts))
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        server.close()
        await server.wait_closed()


def says(status: int, body: object = None, **headers: str) -> Act:
    """Answer in full: JSON of `body`, or `body` itself if it is bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"content-length: {len(content)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)
        await writer.drain()

    act.__name__ = f"{status}:{content[-40:].decode('ascii', 'replace')}"
    return act


async def drops(writer: asyncio.StreamWriter) -> None:
    """Reset the connection without a byte."""
    writer.transport.abort()


async def closes(writer: asyncio.StreamWriter) -> None:
    """End the connection in order, without a byte."""
    writer.close()


async def breaks_off(writer: asyncio.StreamWriter) -> None:
    """Promise more bytes than come."""
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{"id"')
    await writer.drain()


async def babbles(writer: asyncio.StreamWriter) -> None:
    """Speak something else than HTTP."""
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    await writer.drain()


async def hangs(writer: asyncio.StreamWriter) -> None:
    """Never answer; ends when the client hangs up."""
    await writer.wait_closed()


@asynccontextmanager
async def adapter(
    url: str, *, submit: float = 5.0, poll: float = 5.0, key: str = "key_x"
) -> AsyncIterator[Runway]:
    adapter = Runway(
        key,
        base_url=url,
        submit_timeout=timedelta(seconds=submit),
        poll_timeout=timedelta(seconds=poll),
    )
    try:
        yield adapter
    finally:
        await adapter.aclose()


async def submit_fault(act: Act, request: Request = IMAGE, *, seconds: float = 5.0) -> Fault:
    """Submit once to a server that plays `act`, and check that it saw one POST."""
    async with wire(act) as server, adapter(server.url, submit=seconds) as runway:
        with pytest.raises(Fault) as raised:
            await runway.submit(request)
        assert [method for method, *_ in server.requests] == ["POST"]
        assert server.bodies == [body_of(request)]
    return raised.value


# Submit


async def test_submit_sends_the_declared_body_and_returns_the_generation() -> None:
    answer = {"id": str(GENERATION), "estimatedCost": {"credits": 8}}
    async with wire(says(200, answer)) as server, adapter(server.url, key="key_abc") as runway:
        accepted = await runway.submit(IMAGE)
    [(method, path, headers, body)] = server.requests
    assert (accepted.generation_id, accepted.estimated_cost) == (GENERATION, 8.0)
    assert (method, path) == ("POST", "/v1/text_to_image")
    assert headers["authorization"] == "Bearer key_abc"
    assert headers["x-runway-version"] == "2024-11-06"
    assert headers["x-stainless-retry-count"] == "0"
    expected = {"model": "gen4_image", "promptText": "a bottle", "ratio": "1920:1080"}
    assert json.loads(body) == expected


async def test_a_clip_goes_to_image_to_video() -> None:
    async with wire(says(200, {"id": str(GENERATION)})) as server, adapter(server.url) as runway:
        accepted = await runway.submit(VIDEO)
    assert accepted.estimated_cost is None
    assert server.requests[0][1] == "/v1/image_to_video"
    assert server.bodies == [
        {
            "model": "gen4_turbo",
            "promptImage": FRAME,
            "promptText": "it turns",
            "ratio": "1280:720",
            "duration": 5,
        }
    ]


UNFUNDED = {
    "error": "You do not have enough credits to run this task.",
    "docUrl": "https://docs.dev.runwayml.com/api",
}
DAILY = {"error": "Your daily task limit has been reached."}
ISSUES = {"error": "Validation of body failed", "issues": [{"path": ["promptText"]}]}
FRAME_ISSUE = {"error": "Validation of body failed", "issues": [{"path": ["promptImage", 0]}]}
BOTH_ISSUES = {"error": "x", "issues": [*FRAME_ISSUE["issues"], *ISSUES["issues"]]}
FRAME_TEXT = {"error": 'promptImage: Unsupported Content-Type response header: "text/html".'}
HTML = b"<html><body>Bad Gateway</body></html>"


@pytest.mark.parametrize(
    ("status", "body", "request_", "fault"),
    [
        (400, ISSUES, IMAGE, "request_refused"),
        (400, {"error": "Invalid ratio"}, IMAGE, "request_refused"),
        (400, ISSUES, VIDEO, "request_refused"),
        (400, BOTH_ISSUES, VIDEO, "request_refused"),
        (400, {"error": "Failed to fetch asset"}, IMAGE, "request_refused"),
        (400, HTML, IMAGE, "request_refused"),
        (400, FRAME_ISSUE, VIDEO, "frame_refused"),
        (400, FRAME_TEXT, VIDEO, "frame_refused"),
        (400, {"error": "Failed to fetch asset"}, VIDEO, "frame_refused"),
        (400, {"error": "Invalid asset aspect ratio."}, VIDEO, "frame_refused"),
        (404, {"error": "no"}, IMAGE, "request_refused"),
        (405, {"error": "no"}, IMAGE, "request_refused"),
        (410, {"error": "no"}, IMAGE, "request_refused"),
        (413, HTML, VIDEO, "request_refused"),
        (422, {"error": "no"}, IMAGE, "request_refused"),
        (400, UNFUNDED, IMAGE, "provider_unfunded"),
        (400, UNFUNDED, VIDEO, "provider_unfunded"),
        (402, {"message": "Payment Required"}, IMAGE, "provider_unfunded"),
        (401, {"error": "Unauthorized"}, IMAGE, "provider_denied"),
        (403, HTML, IMAGE, "provider_denied"),
        (429, DAILY, IMAGE, "provider_quota"),
        (429, {"error": "You have exceeded the rate limit"}, IMAGE, "provider_busy"),
        (429, b"", IMAGE, "provider_busy"),
        (301, HTML, IMAGE, "provider_unreachable"),
        (407, HTML, IMAGE, "provider_unreachable"),
        (408, {"error": "slow"}, IMAGE, "submission_unknown"),
        (409, {"error": "conflict"}, IMAGE, "submission_unknown"),
        (500, {"error": "oops"}, IMAGE, "submission_unknown"),
        (502, HTML, IMAGE, "submission_unknown"),
        (503, {"message": "Service Unavailable"}, VIDEO, "submission_unknown"),
        (504, b"", IMAGE, "submission_unknown"),
        (200, HTML, IMAGE, "submission_unknown"),
        (200, {}, IMAGE, "submission_unknown"),
        (200, b"", IMAGE, "submission_unknown"),
        (200, b'{"id": "17f2', IMAGE, "submission_unknown"),
        (200, b"[" * 100_000, IMAGE, "submission_unknown"),
        (200, b"\xff\xfe\x00", IMAGE, "submission_unknown"),
        (200, [1], IMAGE, "submission_unknown"),
        (200, {"id": 17}, IMAGE, "submission_unknown"),
        (200, {"id": "../organization"}, IMAGE, "submission_unknown"),
        (200, {"id": f"{{{GENERATION}}}"}, IMAGE, "submission_unknown"),
        (204, b"", IMAGE, "submission_unknown"),
    ],
)
async def test_every_answer_to_a_submit_has_its_fault_and_one_post(
    status: int, body: object, request_: Request, fault: str
) -> None:
    raised = await submit_fault(says(status, body, apigw_requestid="Abc123="), request_)
    assert raised.name == fault
    assert str(status) in raised.details
    assert "Abc123=" in raised.details


ODD_TEXTS = [f"text/html; charset={name}" for name in ("utf-16", "undefined", "zlib")]
"""What a proxy may claim: an error of decoding is none of sending, and never means "not paid"."""


@pytest.mark.parametrize("claimed", ODD_TEXTS)
@pytest.mark.parametrize(
    ("status", "fault"),
    [(504, "submission_unknown"), (200, "submission_unknown"), (429, "provider_busy")],
)
async def test_the_encoding_that_an_answer_claims_changes_no_fault(
    status: int, fault: str, claimed: str
) -> None:
    body = "<html>\u00fc".encode()
    assert (await submit_fault(says(status, body, content_type=claimed))).name == fault
    for read in (500, 200):
        assert (await poll_fault(says(read, body, content_type=claimed)))[0].name == "poll_failed"


@pytest.mark.parametrize("act", [drops, closes, breaks_off, babbles])
async def test_an_answer_that_gets_lost_is_unknown_and_not_sent_again(act: Act) -> None:
    assert (await submit_fault(act)).name == "submission_unknown"


async def test_a_submit_without_an_answer_is_unknown_after_the_submit_time_out() -> None:
    raised = await submit_fault(hangs, seconds=0.2)
    assert raised.name == "submission_unknown"
    assert "0.2 s" in raised.details


async def test_an_answer_that_drips_is_cut_off_at_the_submit_time_out() -> None:
    async def drips(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"1\r\n \r\n")
            await writer.drain()
            await asyncio.sleep(0)

    assert (await submit_fault(drips, seconds=0.3)).name == "submission_unknown"


async def test_a_body_that_is_no_json_is_refused_before_it_is_sent() -> None:
    async with wire(drops) as server, adapter(server.url) as runway:
        with pytest.raises(Fault) as raised:
            await runway.submit(Request(TEXT_TO_IMAGE, "gen4_image", {"promptText": "\ud83d"}))
    assert (raised.value.name, server.requests) == ("request_refused", [])


async def test_a_server_that_is_not_there_is_unreachable_after_three_tries(
    unused_tcp_port: int,
) -> None:
    async with adapter(f"http://127.0.0.1:{unused_tcp_port}") as runway:
        with pytest.raises(Fault) as raised:
            await runway.submit(IMAGE)
    assert raised.value.name == "provider_unreachable"
    assert "ConnectError" in raised.value.details


async def test_a_server_that_comes_up_between_the_tries_gets_one_post(
    unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Wire([says(200, {"id": str(GENERATION)})])
    connect = asyncio.get_running_loop().create_connection
    servers: list[asyncio.Server] = []
    refused: list[OSError] = []

    async def start_after_the_first_refusal(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        try:
            return await connect(*args, **kwargs)
        except OSError as error:
            refused.append(error)
            servers.append(await asyncio.start_server(served.serve, "127.0.0.1", unused_tcp_port))
            raise

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "create_connection", start_after_the_first_refusal)
    async with adapter(f"http://127.0.0.1:{unused_tcp_port}") as runway:
        accepted = await runway.submit(IMAGE)
    assert (accepted.generation_id, len(refused), len(served.requests)) == (GENERATION, 1, 1)
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_a_full_pool_is_unreachable_and_sends_nothing_more() -> None:
    async with wire(hangs) as server:
        runway = Runway(
            "key_x",
            base_url=server.url,
            submit_timeout=timedelta(seconds=1),
            max_connections=1,
        )
        first = asyncio.create_task(runway.submit(IMAGE))
        await server.arrived.wait()
        with pytest.raises(Fault) as raised:
            await runway.submit(IMAGE)
        assert (raised.value.name, len(server.requests)) == ("provider_unreachable", 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await runway.aclose()


async def test_a_closed_adapter_sends_nothing() -> None:
    async with wire(drops) as server:
        async with adapter(server.url) as runway:
            pass
        with pytest.raises(Fault) as raised:
            await runway.submit(IMAGE)
    assert (raised.value.name, server.requests) == ("provider_unreachable", [])


async def test_cancelling_a_submit_passes_through() -> None:
    async with wire(hangs) as server, adapter(server.url) as runway:
        submit = asyncio.create_task(runway.submit(IMAGE))
        await server.arrived.wait()
        submit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submit
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("0", None),
        ("-3", None),
        ("99999", None),
        ("soon", None),
        ("nan", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", None),
    ],
)
async def test_only_a_sane_retry_after_is_believed(header: str, seconds: float | None) -> None:
    raised = await submit_fault(says(429, {"error": "slow down"}, retry_after=header))
    wait = timedelta(seconds=seconds) if seconds is not None else None
    assert (raised.name, raised.retry_after) == ("provider_busy", wait)


async def test_the_providers_words_are_for_the_operator_only_and_cut() -> None:
    raised = await submit_fault(says(400, {"error": "secret " * 1000}))
    assert "secret" in raised.details
    assert len(raised.details) < 1200
    assert raised.message == FAULTS[FaultName.REQUEST_REFUSED].message


async def test_paid_posts_never_ride_on_a_used_connection() -> None:
    connections: list[asyncio.StreamWriter] = []

    async def stays(writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        body = json.dumps({"id": str(GENERATION)}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()

    async with wire(stays) as server, adapter(server.url) as runway:
        await runway.submit(IMAGE)
        await runway.submit(IMAGE)
    assert len(connections) == 2


# Poll


def state(status: str, **fields: object) -> dict[str, object]:
    return {"id": str(GENERATION), "createdAt": CREATED, "status": status, **fields}


async def polled(*acts: Act) -> Any:  # noqa: ANN401 - a generation, or what the test expects
    async with wire(*acts) as server, adapter(server.url) as runway:
        found = await runway.poll(GENERATION)
    assert {(method, path) for method, path, *_ in server.requests} == {
        ("GET", f"/v1/tasks/{GENERATION}")
    }
    return found


async def poll_fault(*acts: Act, poll: float = 5.0) -> tuple[Fault, int]:
    async with wire(*acts) as server, adapter(server.url, poll=poll) as runway:
        with pytest.raises(Fault) as raised:
            await runway.poll(GENERATION)
        return raised.value, len(server.requests)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("THROTTLED", GenerationState.THROTTLED),
        ("PENDING", GenerationState.PENDING),
        ("RUNNING", GenerationState.RUNNING),
        ("FAILED", GenerationState.FAILED),
        ("CANCELLED", GenerationState.CANCELLED),
        ("WEIRD", GenerationState.UNKNOWN),
        ("UNKNOWN", GenerationState.UNKNOWN),
    ],
)
async def test_the_status_decides_even_when_every_other_field_is_absent(
    status: str, expected: GenerationState
) -> None:
    found = await polled(says(200, state(status)))
    assert found.state is expected
    assert (found.progress, found.outputs, found.cost, found.estimated_cost) == (
        None,
        (),
        None,
        None,
    )


async def test_a_finished_generation_has_outputs_and_cost() -> None:
    found = await polled(says(200, state("SUCCEEDED", output=["https://x/a"], cost={"credits": 5})))
    assert (found.id, found.outputs, found.cost) == (GENERATION, ("https://x/a",), 5.0)


@pytest.mark.parametrize("name", ["failureCode", "failure_code"])
async def test_a_failed_generation_says_why(name: str) -> None:
    fields = {"failure": "flagged", name: "SAFETY.INPUT.IMAGE", "cost": {"credits": 0}}
    found = await polled(says(200, state("FAILED", **fields)))
    assert found.failure == "flagged"
    assert (found.failure_code, found.cost) == ("SAFETY.INPUT.IMAGE", 0.0)


async def test_fields_of_odd_types_are_as_good_as_absent() -> None:
    odd = state("RUNNING", progress="half", estimatedCost=[1], output={"a": 1}, failure=7)
    found = await polled(says(200, odd | {"cost": {"credits": "many"}, "failureCode": None}))
    assert (found.state, found.progress, found.cost) == (GenerationState.RUNNING, None, None)
    assert (found.outputs, found.failure, found.failure_code) == ((), None, None)


@pytest.mark.parametrize(("said", "progress"), [(0.25, 0.25), (7, 1.0), (-1, 0.0), (True, None)])
async def test_progress_is_between_0_and_1(said: object, progress: float | None) -> None:
    assert (await polled(says(200, state("RUNNING", progress=said)))).progress == progress


async def test_a_cost_without_its_object_is_read_too() -> None:
    assert (await polled(says(200, state("CANCELLED", cost=3)))).cost == 3.0


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize(
    "act",
    [
        says(500, {"error": "x"}),
        says(503, HTML),
        says(408, {}),
        says(200, HTML),
        says(200, {}),
        says(200, state("SUCCEEDED")),
        says(200, state("SUCCEEDED", output=[])),
        says(200, state("RUNNING") | {"id": OTHER}),
        drops,
        breaks_off,
    ],
)
async def test_a_poll_that_fails_is_not_repeated_in_place(act: Act) -> None:
    """Runway wants five seconds between two of one generation: who follows it asks again."""
    fault, requests = await poll_fault(act)
    assert (fault.name, requests) == ("poll_failed", 1)


@pytest.mark.usefixtures("transport")
@pytest.mark.parametrize(
    ("act", "name"),
    [
        (says(404, {"error": "gone"}), "generation_gone"),
        (says(401, {"error": "key"}), "poll_denied"),
        (says(403, HTML), "poll_denied"),
        (says(429, {"error": "slow"}, retry_after="9"), "poll_failed"),
        (says(400, {"error": "bad"}), "poll_failed"),
        (says(302, b"", location="https://example.com"), "poll_failed"),
    ],
)
async def test_a_poll_that_is_refused_is_not_repeated(act: Act, name: str) -> None:
    fault, requests = await poll_fault(act)
    assert (fault.name, requests) == (name, 1)


async def test_a_poll_ends_at_its_own_time_out_and_is_not_repeated() -> None:
    fault, requests = await poll_fault(hangs, poll=0.2)
    assert (fault.name, requests) == ("poll_failed", 1)


async def test_an_id_that_is_no_uuid_reaches_no_other_endpoint() -> None:
    async with wire(drops) as server, adapter(server.url) as runway:
        with pytest.raises(ValueError, match="badly formed"):
            await runway.poll("../organization")  # type: ignore[arg-type]
    assert server.requests == []


# Cancel and account


@pytest.mark.parametrize("status", [204, 200, 404])
async def test_a_cancel_deletes_and_an_absent_generation_is_fine(status: int) -> None:
    async with wire(says(status, b"")) as server, adapter(server.url) as runway:
        await runway.cancel(GENERATION)
    assert [request[:2] for request in server.requests] == [("DELETE", f"/v1/tasks/{GENERATION}")]


@pytest.mark.parametrize(
    ("act", "name"), [(says(401, {}), "poll_denied"), (says(500, {}), "poll_failed")]
)
async def test_a_cancel_that_fails_says_so(act: Act, name: str) -> None:
    async with wire(act) as server, adapter(server.url) as runway:
        with pytest.raises(Fault) as raised:
            await runway.cancel(GENERATION)
    assert raised.value.name == name


async def test_the_account_has_limits_where_the_tier_has_them() -> None:
    body = {
        "creditBalance": 120,
        "tier": {
            "maxMonthlyCreditSpend": 10_000,
            "models": {
                "gen4_turbo": {"maxConcurrentGenerations": 1, "maxDailyGenerations": 50},
                "gen4_image": {"maxConcurrentGenerations": None, "maxDailyGenerations": None},
            },
        },
        "usage": {
            "models": {"gen4_turbo": {"dailyGenerations": 7}, "old": {"dailyGenerations": 1}}
        },
    }
    async with wire(says(200, body)) as server, adapter(server.url) as runway:
        account = await runway.account()
    assert account.credit_balance == 120
    assert account.models == {
        "gen4_turbo": ModelLimits(1, 50, 7),
        "gen4_image": ModelLimits(None, None, 0),
        "old": ModelLimits(None, None, 1),
    }


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (says(200, {"tier": 1}), "poll_failed"),
        (says(200, HTML), "poll_failed"),
        (says(403, {}), "poll_denied"),
    ],
)
async def test_an_account_that_can_not_be_read_is_a_fault(act: Act, name: str) -> None:
    async with wire(act) as server, adapter(server.url) as runway:
        with pytest.raises(Fault) as raised:
            await runway.account()
    assert raised.value.name == name


def test_the_fingerprint_tells_keys_apart_and_not_addresses() -> None:
    def fingerprint(key: str, url: str) -> str:
        runway: Provider = Runway(key, base_url=url, submit_timeout=timedelta(seconds=1))
        return runway.key_fingerprint

    assert fingerprint("key_a", "http://a.example") == fingerprint("key_a", "http://b.example")
    assert fingerprint("key_a", "http://a.example") != fingerprint("key_b", "http://a.example")
    assert len(fingerprint("key_a", "http://a.example")) == 12


@pytest.mark.parametrize("key", ["", "key_x\n", "key_ü"])
def test_a_key_that_no_header_can_hold_is_refused_at_once(key: str) -> None:
    with pytest.raises(ValueError, match="RUNWAYML_API_SECRET"):
        Runway(key, base_url="http://a.example", submit_timeout=timedelta(seconds=1))


# What the models take


@pytest.mark.parametrize("text", [None, "", " \n\t"])
def test_a_blank_prompt_counts_as_absent(text: str | None) -> None:
    assert check_prompt("image_prompt", text) is None


@pytest.mark.parametrize("text", ["a" * 1000, "😀" * 500, "é" * 1000, "a" * 998 + "😀"])
def test_a_prompt_of_1000_utf16_units_is_sent_as_it_is(text: str) -> None:
    assert check_prompt("image_prompt", text) == text


@pytest.mark.parametrize("text", ["a" * 1001, "😀" * 500 + "a", "a" * 999 + "😀"])
def test_a_prompt_of_1001_utf16_units_is_refused_and_names_the_field(text: str) -> None:
    with pytest.raises(Fault) as raised:
        check_prompt("visual_prompt", text)
    assert (raised.value.name, raised.value.field) == ("scene_invalid", "visual_prompt")
    assert raised.value.message == (
        "The field visual_prompt has 1001 characters as Runway counts them (UTF-16 units); "
        "at most 1000 are accepted. Shorten it, then retry."
    )


@pytest.mark.parametrize("text", ["\ud83d", "a\ude00b"])
def test_half_an_emoji_is_refused(text: str) -> None:
    with pytest.raises(Fault, match="broken character"):
        check_prompt("image_prompt", text)


@given(st.text(max_size=1100))
def test_prompts_are_counted_as_javascript_counts_them(text: str) -> None:
    units = sum(2 if ord(character) > 0xFFFF else 1 for character in text)
    if not text.strip():
        assert check_prompt("image_prompt", text) is None
    elif units <= 1000:
        assert check_prompt("image_prompt", text) == text
    else:
        with pytest.raises(Fault):
            check_prompt("image_prompt", text)


@pytest.mark.parametrize("seconds", [2, 5, 10])
def test_a_duration_of_the_model_is_accepted(seconds: int) -> None:
    assert check_duration("duration", seconds, GEN4_TURBO) == seconds


@pytest.mark.parametrize(
    ("model", "seconds"), [("gen4_turbo", 1), ("gen4_turbo", 11), ("veo3.1", 5)]
)
def test_another_duration_is_refused_with_the_accepted_ones(model: str, seconds: int) -> None:
    with pytest.raises(Fault) as raised:
        check_duration("duration", seconds, video_models()[model])
    assert raised.value.field == "duration"
    assert f"{seconds} seconds" in raised.value.message
    assert "8" in raised.value.message


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.png",
        "https://example.com:8443/a.png?token=x#y",
        "https://bücher.example/a.png",
        "https://xn--bcher-kva.example/a.png",
        "https://a_b.example.com./a.png",
        "https://1.2.3.4.example.com/a.png",
        "https://example.com/" + "a" * 2028,
    ],
)
def test_an_https_url_with_a_host_name_is_accepted(url: str) -> None:
    assert check_asset_url("product_reference_image_url", url, allow_loopback=False) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a",
        "http://example.com/a.png",
        "HTTP://example.com/a.png",
        "ftp://example.com/a.png",
        "data:image/png;base64,AAAA",
        "file:///etc/passwd",
        "//example.com/a.png",
        "https:///a.png/long/enough",
        "https://localhost/a.png",
        "https://user@example.com/a.png",
        "https://user:pass@example.com/a.png",
        "https://@example.com/a.png",
        "https://example.com\\@evil.example/a.png",
        "https://exa mple.com/a.png",
        "https://example.com/a b.png",
        "https://example.com/a\u00a0b.png",
        "https://example.com/a\tb.png",
        "https://example.com/a\nb.png",
        "https://example.com/a\x00b.png",
        "https://example.com/a\ud83d.png",
        "https://127.0.0.1/a.png",
        "https://127.0.0.1./a.png",
        "https://10.0.0.8:8443/a.png",
        "https://[::1]/a.png",
        "https://[fe80::1%25eth0]/a.png",
        "https://[::ffff:127.0.0.1]/a.png",
        "https://2130706433/a.png",
        "https://0x7f000001/a.png",
        "https://0x7f.0.0.1/a.png",
        "https://0177.0.0.1/a.png",
        "https://127.1/a.png",
        "https://1.2.3/a.png",
        "https://example.0x1f/a.png",
        "https://\uff11\uff12\uff17.0.0.1/a.png",
        "https://127\u30020\u30020\u30021/a.png",
        "https://a..example.com/a.png",
        "https://.example.com/a.png",
        "https://-a.example.com/a.png",
        "https://a%2eb.example.com/a.png",
        "https://" + "a" * 64 + ".example.com/a.png",
        "https://example.com:99999/a.png",
        "https://example.com:0/a.png",
        "https://example.com:x/a.png",
        "https://[bad/a.png/long",
        "https://example.com/" + "a" * 2029,
        "http://127.0.0.1:8000/a.png",
    ],
)
def test_any_other_url_is_refused_and_names_the_field(url: str) -> None:
    with pytest.raises(Fault) as raised:
        check_asset_url("product_reference_image_url", url, allow_loopback=False)
    assert raised.value.name == "scene_invalid"
    assert raised.value.field == "product_reference_image_url"
    assert raised.value.message.startswith("The field product_reference_image_url is ")
    assert raised.value.message.endswith("then retry.")


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/a.png", "https://example.com/a.png"])
def test_a_sandbox_may_use_loopback_too(url: str) -> None:
    assert check_asset_url("f", url, allow_loopback=True) == url


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/a.png", "http://u@127.0.0.1:8000/a.png", "http://127.0.0.2:8000/a.png"],
)
def test_loopback_means_one_address_with_a_port(url: str) -> None:
    with pytest.raises(Fault):
        check_asset_url("f", url, allow_loopback=True)


def test_the_product_reference_is_tagged_where_the_model_has_tags() -> None:
    url = "https://example.com/p.png"
    tagged = image_request(GEN4_IMAGE, "p", "1920:1080", url).body["referenceImages"]
    assert tagged == [{"uri": url, "tag": "product"}]
    bria = image_models()["bria_fibo_1_5"]
    assert image_request(bria, "p", bria.ratios[0], url).body["referenceImages"] == [{"uri": url}]


def test_a_field_that_the_model_does_not_list_is_not_sent() -> None:
    recraft = image_models()["recraft_v4_1_flash"]
    body = image_request(recraft, "p", recraft.ratios[0], "https://example.com/p.png").body
    assert set(body) == {"model", "promptText", "ratio"}


def test_a_model_that_needs_a_reference_says_so() -> None:
    with pytest.raises(Fault) as raised:
        image_request(image_models()["gen4_image_turbo"], "p", "1280:720", None)
    assert raised.value.field == "product_reference_image_url"


def test_a_prompt_is_optional_for_gen4_turbo_and_not_for_gen45() -> None:
    assert "promptText" not in video_request(GEN4_TURBO, None, "1280:720", 5).body
    with pytest.raises(Fault) as raised:
        video_request(video_models()["gen4.5"], " ", "1280:720", 5)
    assert raised.value.field == "visual_prompt"


def test_a_still_without_a_prompt_is_refused() -> None:
    with pytest.raises(Fault) as raised:
        image_request(GEN4_IMAGE, None, "1920:1080", None)
    assert raised.value.field == "image_prompt"


def test_a_ratio_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(Fault) as raised:
        video_request(GEN4_TURBO, "p", "1280:768", 5)
    assert raised.value.name == "resolution_unsupported"


def test_a_source_is_put_where_the_endpoint_takes_it() -> None:
    assert body_of(VIDEO) == {**VIDEO.body, "promptImage": FRAME}
    assert body_of(IMAGE) == IMAGE.body
    referring = image_request(GEN4_IMAGE, "p", "1920:1080", "https://example.com/p.png")
    assert body_of(replace(referring, source=FRAME))["referenceImages"] == [
        {"uri": "https://example.com/p.png", "tag": "product"}, {"uri": FRAME},
    ]  # fmt: skip


def test_a_digest_says_nothing_of_the_source_and_a_fingerprint_does() -> None:
    other = replace(VIDEO, source="https://other.example/f.png")
    assert other.digest() == VIDEO.digest()
    assert other.fingerprint() != VIDEO.fingerprint()
    assert len({IMAGE.digest(), VIDEO.digest()}) == 2


# Against the double


async def test_the_double_walks_from_submit_to_an_output(runway: RunwayControl) -> None:
    async with adapter(runway.url, key=runway.key) as provider:
        still = await provider.submit(IMAGE)
        found = await provider.poll(still.generation_id)
        assert found.state is GenerationState.SUCCEEDED
        frame = found.outputs[0]
        clip = await provider.submit(
            replace(video_request(GEN4_TURBO, None, "1280:720", 5), source=frame)
        )
        assert (await provider.poll(clip.generation_id)).cost == clip.estimated_cost == 25.0
        await provider.cancel(clip.generation_id)
        await provider.cancel(clip.generation_id)
        with pytest.raises(Fault) as raised:
            await provider.poll(clip.generation_id)
        assert raised.value.name == "generation_gone"
        assert (await provider.account()).models["gen4_turbo"].daily_generations == 1
    assert runway.requests()[0]["body"] == IMAGE.body


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("drop-after-accept", "submission_unknown"),
        ("503-after-accept", "submission_unknown"),
        ("html-200", "submission_unknown"),
        ("empty-200", "submission_unknown"),
        ("broken-json-200", "submission_unknown"),
        ("bad-id-200", "submission_unknown"),
        ("no-credits", "provider_unfunded"),
        ("daily-limit", "provider_quota"),
        ("busy", "provider_busy"),
        ("denied", "provider_denied"),
        ("forbidden", "provider_denied"),
        ("payment", "provider_unfunded"),
        ("400 promptText", "request_refused"),
    ],
)
async def test_the_doubles_words_reach_the_table_with_one_post(
    runway: RunwayControl, words: str, fault: str
) -> None:
    request = image_request(GEN4_IMAGE, f"a bottle [[{words}]]", "1920:1080", None)
    async with adapter(runway.url, key=runway.key) as provider:
        with pytest.raises(Fault) as raised:
            await provider.submit(request)
    assert raised.value.name == fault
    assert [seen["body"] for seen in runway.requests()] == [dict(request.body)]
