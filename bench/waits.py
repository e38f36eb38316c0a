"""What a user waits beyond the provider's own time, for the polls that see the ends.

Simulated: our policy is pure, and the SDK's waiting is a schedule (`wait_for_task_output`: 6 s and
1.5 s more or less between two looks), so both are held against the same random lengths. Real: our
worker by its defaults and the SDK by its own waiting, at a double whose generations take as long as
their prompts say.
"""

import asyncio
import math
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from runwayml import AsyncRunwayML
from runwayml.lib.polling import POLL_JITTER, POLL_TIME

from bench.contenders import OURS
from bench.ground import Ground, Site
from bench.lines import BrokenError
from vidgen_worker.config import Settings
from vidgen_worker.domain.polling import KEPT, Ended, Pace, Seen

Progress = Callable[[float], float] | None
"""What the provider says at a share of the whole time, both 0 to 1; None: nothing."""
STAGES = {"image": (41.0, 0.15), "video": (64.0, 0.15)}
"""Median seconds, and spread (of their logarithm): what ComfyUI expects of Runway's."""
REAL = {"image": (15.0, 0.1), "video": (24.0, 0.1)}
"""Shorter ones, so that a real run ends."""
SLOW = re.compile(r"\[\[slow ([\d.]+)s\]\]")


@dataclass(frozen=True, slots=True)
class Found:
    """What each generation of a time line waited for its poll, in seconds, and its polls."""

    waits: list[float] = field(default_factory=list)
    polls: list[int] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def add(self, other: "Found") -> None:
        """Add another time line."""
        self.waits.extend(other.waits)
        self.polls.extend(other.polls)
        self.pauses.extend(other.pauses)

    @property
    def mean(self) -> float:
        """Seconds, in the mean."""
        return statistics.mean(self.waits)

    @property
    def p50(self) -> float:
        """Seconds of the one in the middle."""
        return statistics.median(self.waits)

    @property
    def p95(self) -> float:
        """Seconds that one of twenty waits for longer."""
        return statistics.quantiles(self.waits, n=20)[-1]

    @property
    def polls_each(self) -> float:
        """Polls of a generation, in the mean."""
        return statistics.mean(self.polls)


def interval() -> float:
    """Seconds of VIDGEN_POLL_INTERVAL, by default."""
    return float(Settings.model_fields["vidgen_poll_interval"].default.total_seconds())


def lengths(median: float, spread: float, count: int, lots: random.Random) -> list[float]:
    """Draw so many generations' seconds."""
    return [median * math.exp(lots.gauss(0, spread)) for _ in range(count)]


def ours(
    times: Iterable[float], history: list[Ended], says: Progress, lots: random.Random
) -> Found:
    """Follow generations of these lengths, one after the other; the history learns."""
    pace, found = Pace.of(interval()), Found()
    for seconds in times:
        at, before, polls, seen = 0.0, 0.0, 0, list[Seen]()
        while at < seconds:
            if polls and says:
                seen.append(Seen(at, says(at / seconds)))
            before, polls = at, polls + 1
            found.pauses.append(pace.pause(history, seen, at, lots.random()))
            at += found.pauses[-1]
        history[:] = [Ended(before, at), *history[: KEPT - 1]]
        found.waits.append(at - seconds)
        found.polls.append(polls)
    return found


def steady(times: Iterable[float], least: float, most: float, lots: random.Random) -> Found:
    """Follow them with pauses between these two, whatever is known."""
    found = Found()
    for seconds in times:
        at, polls = 0.0, 0
        while at < seconds:
            at += lots.uniform(least, most)
            polls += 1
        found.waits.append(at - seconds)
        found.polls.append(polls)
    return found


def simulated(count: int) -> dict[str, Any]:
    """So many tasks of two stages, after a history of as many as are kept."""
    lots = random.Random(1)  # noqa: S311 - the same lengths in every run
    found: dict[str, dict[str, Found]] = {"ours": {}, "sdk": {}}
    for stage, (median, spread) in STAGES.items():
        history: list[Ended] = []
        ours(lengths(median, spread, KEPT, lots), history, None, lots)
        times = lengths(median, spread, count, lots)
        found["ours"][stage] = ours(times, history, None, lots)
        found["sdk"][stage] = steady(
            times, POLL_TIME - POLL_JITTER / 2, POLL_TIME + POLL_JITTER / 2, lots
        )
    return {who: _summed(stages) for who, stages in found.items()}


def _summed(stages: dict[str, Found]) -> dict[str, Any]:
    """By stage and for the whole task."""
    waits = [sum(both) for both in zip(*(one.waits for one in stages.values()), strict=True)]
    polls = [sum(both) for both in zip(*(one.polls for one in stages.values()), strict=True)]
    return {
        name: {
            "p50": round(one.p50, 2),
            "p95": round(one.p95, 2),
            "polls": round(one.polls_each, 2),
        }
        for name, one in {**stages, "task": Found(waits, polls)}.items()
    }


def real(ground: Ground, tasks: int, rounds: int) -> dict[str, Any]:
    """Real generations, real pauses: the last of `rounds` rounds, after which all is learnt."""
    with ground.site(render="cached") as site:
        users, lots = site.users(tasks), random.Random(3)  # noqa: S311 - as above
        more = {
            "VIDGEN_CONCURRENCY": str(tasks), "VIDGEN_POLL_INTERVAL": f"{interval():g}s",
        }  # fmt: skip
        with OURS.start("work", site, os.environ, **more) as worker:
            worker.until("ready")
            for _ in range(rounds):
                scenes = site.scenes(tasks, users)
                _say_lengths(site, scenes, lots)
                site.sql("delete from public.video_generation_tasks where status = 'completed'")
                site.sql(
                    "insert into public.video_generation_tasks (user_id, scene_id)"
                    " select user_id, id from public.video_scenes where id = any (%s)", scenes,
                )  # fmt: skip
                _until_ended(site)
        waits = _waits_of_ours(site)
    with ground.site(render="cached") as site:
        theirs = asyncio.run(_by_the_sdk(site, tasks))
    return {"tasks": tasks, "ours": waits, "sdk": theirs}


def _say_lengths(site: Site, scenes: list[UUID], lots: random.Random) -> None:
    """Let each generation take its own time: the double reads it in the prompt."""
    site.sql(
        "update public.video_scenes"
        "   set image_prompt = image_prompt || format(' [[slow %%ss]]', s.image),"
        "       visual_prompt = visual_prompt || format(' [[slow %%ss]]', s.video)"
        "  from unnest(%s::uuid[], %s::float8[], %s::float8[]) as s (id, image, video)"
        " where video_scenes.id = s.id",
        scenes, *[[round(one, 1) for one in lengths(*REAL[kind], len(scenes), lots)]
                  for kind in ("image", "video")],
    )  # fmt: skip


def _until_ended(site: Site) -> None:
    deadline = time.monotonic() + 300
    while site.sql(
        "select id from public.video_generation_tasks where status in ('pending', 'processing')"
    ):
        if time.monotonic() > deadline:
            raise BrokenError("the tasks have not ended within five minutes")
        time.sleep(0.5)


def _ends(site: Site) -> dict[str, tuple[str, float]]:
    """Stage and the second of the clock in which each generation has ended at the double."""
    found = {}
    for one in site.runway.generations():
        slow = SLOW.search(one["body"]["promptText"])
        if slow:
            began = datetime.fromisoformat(one["createdAt"]).timestamp()
            found[one["id"]] = (str(one["kind"]), began + float(slow[1]))
    return found


def _waits_of_ours(site: Site) -> dict[str, Any]:
    rows = site.sql(
        "select s.generation_id::text as id, extract(epoch from s.ended_at)::float as seen"
        "  from vidgen.submissions as s"
        "  join public.video_generation_tasks as t on t.id = s.task_id"
    )
    return _percentiles(_ends(site), {row["id"]: row["seen"] for row in rows})


async def _by_the_sdk(site: Site, tasks: int) -> dict[str, Any]:
    """As many generations by hand, waited for by the SDK's own `wait_for_task_output`."""
    seen: dict[str, float] = {}
    lots = random.Random(2)  # noqa: S311 - the same lengths in every run
    async with AsyncRunwayML(api_key=site.runway.key, base_url=site.runway.url) as runway:

        async def task(image_seconds: float, video_seconds: float) -> None:
            image = await runway.text_to_image.create(
                model="gen4_image", ratio="1920:1080",
                prompt_text=f"A bottle [[slow {image_seconds:.1f}s]]",
            )  # fmt: skip
            done: Any = await image.wait_for_task_output()
            seen[image.id] = time.time()
            video = await runway.image_to_video.create(
                model="gen4_turbo", ratio="1280:720", duration=2, prompt_image=done.output[0],
                prompt_text=f"The camera moves [[slow {video_seconds:.1f}s]]",
            )  # fmt: skip
            await video.wait_for_task_output()
            seen[video.id] = time.time()

        drawn = [lengths(*REAL[kind], tasks, lots) for kind in ("image", "video")]
        await asyncio.gather(*map(task, *drawn))
    return _percentiles(_ends(site), seen)


def _percentiles(ends: dict[str, tuple[str, float]], seen: dict[str, float]) -> dict[str, Any]:
    waits: dict[str, list[float]] = {"image": [], "video": []}
    for generation, at in seen.items():
        kind, end = ends[generation]
        waits[kind].append(at - end)
    return {
        kind: {
            "p50": round(statistics.median(found), 2),
            "p95": round(statistics.quantiles(found, n=20)[-1], 2),
        }
        for kind, found in waits.items()
    }
