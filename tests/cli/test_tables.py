"""Every table of the command line, on terminals of 80 and 120 columns: no word is broken."""

import asyncio
import re
import sys
from datetime import timedelta
from uuid import uuid4

import pytest

from tests.support.commands import Cli, cli, complete, connected
from tests.support.hands import STAGE, Ground
from tests.support.world import World

__all__ = ["cli", "complete", "connected"]

RENDERED = ("begin_rendering", "begin_rendition", "finish_rendition", "complete")
LONG_MESSAGE = "Maintenance of the provider: video generation goes on at about four o'clock"


def on_a_terminal(
    cli: Cli, verb: list[object], columns: int, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Run a verb in this process as on a terminal of that width; return its lines."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", cli(*verb).out).splitlines()


def words_of(lines: list[str]) -> set[str]:
    """Words, with a sign for each number: ages and balances go on between two looks."""
    words = {re.sub(r"\d+", "#", word) for line in lines for word in line.split()}
    return {word for word in words if set(word) - set("─━")}


def look(cli: Cli, verb: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(on_a_terminal(cli, verb, 1000, monkeypatch))
    assert len(words) > 3, verb
    for columns in (80, 120):
        lines = on_a_terminal(cli, verb, columns, monkeypatch)
        assert not words_of(lines) - words, (verb, columns)
    # A phone's terminal breaks words, but leaves nothing out.
    narrow = "".join("".join(on_a_terminal(cli, verb, 20, monkeypatch)).split())
    words = words_of(on_a_terminal(cli, verb, 80, monkeypatch))
    missing = {word for word in words if word not in re.sub(r"\d+", "#", narrow)}
    assert not missing, (verb, missing)


def test_a_list_says_how_long_a_task_still_takes_and_when_a_later_one_is_due(
    connected: Cli, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.held(ground.worker(), "start_task", *STAGE[:2])
    ground.sql("alter table public.video_generation_tasks disable trigger user")
    ground.sql(
        "update public.video_generation_tasks set expected_at = now() + interval '45 minutes'"
    )
    ground.order(due=timedelta(hours=2, minutes=30))
    listed = "\n".join(on_a_terminal(connected, ["tasks", "list"], 80, monkeypatch))
    assert re.search("processing .*, ~45m left", listed)
    assert re.search("pending .*For later, in 2h(29|30)m", listed)


def test_a_film_shows_its_parts_and_its_files_at_every_width(
    connected: Cli, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = ground.worker()
    film = ground.cut_film(hand, *RENDERED)
    path = hand.place_of_rendition(film, "web")["path"]
    verbs: list[list[object]] = [
        ["tasks", "list"], ["tasks", "show", film.id], ["tasks", "watch", film.id],
    ]  # fmt: skip
    for verb in verbs:
        look(connected, verb, monkeypatch)
    for columns in (80, 120):
        listed = on_a_terminal(connected, ["tasks", "list"], columns, monkeypatch)
        kinds = [line.split()[1] for line in listed if "completed" in line]
        assert sorted(kinds) == ["film", "scene", "scene"]
        for name in ("show", "watch"):
            shown = on_a_terminal(connected, ["tasks", name, film.id], columns, monkeypatch)
            assert f"web: video-files/{path}" in shown, "in one piece, to be copied"
            said = "\n".join(shown)
            assert re.search(r"web +video/mp4 +1280x720 +\d+\.\d\d +100\b", said)
            assert ("Parts" in said) == (name == "show")


def test_a_film_that_nobody_cuts_is_said_to_wait_for_a_worker_that_does(
    connected: Cli, ground: Ground
) -> None:
    film = ground.film(ground.user(), outputs=["web"])
    assert "Waits: no worker cuts films" in connected("tasks", "show", film).out
    ground.worker()
    assert "no worker cuts" not in connected("tasks", "show", film).out


def test_no_table_breaks_a_word(
    complete: Cli, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, poor = world.user(), world.user(0)
    scenes = [
        world.scene(user),
        world.scene(user, image_prompt=f"[[fail SAFETY.INPUT.TEXT]] {uuid4()}"),
    ]
    done, rejected = [world.order(user, scene) for scene in scenes]
    unpaid = world.order(poor, world.scene(poor))

    async def worked() -> None:
        async with world.worker():
            for task in (done, rejected, unpaid):
                await world.until(task)

    asyncio.run(worked())
    later = world.order(user, world.scene(user))
    world.sql(
        "update video_generation_tasks set run_after = now() + interval '1 day' where id = %s",
        later,
    )
    look(complete, ["check"], monkeypatch)
    world.sql(
        "insert into vidgen.workers"
        " (id, host, pid, version, provider, key_fingerprint, account, scopes, concurrency, lease)"
        " values (gen_random_uuid(), 'worker-7d9f8b6c5-x2v4q', 4711, '0.1.0', 'runway', 'k',"
        " 'default', '{*}', 1, interval '1 h')"
    )
    complete("gate", "close", "gen4_turbo", "--message", LONG_MESSAGE, "--yes")
    complete("reconcile")  # the first reading has nothing to be compared with
    complete("webhooks", "add", "http://127.0.0.1:9/hook", "--event", "video.*")
    world.sql("update public.video_webhooks set enabled = true, disabled_reason = null")
    world.sql("select vidgen.deliver('video.failed', null, null, 'one', '{}')")
    world.sql(
        "update public.video_webhooks set enabled = false, disabled_reason = 'It answered 410.'"
    )
    verbs: list[list[object]] = [
        ["webhooks", "list"], ["webhooks", "deliveries"],
        ["tasks", "list"], ["tasks", "show", done], ["tasks", "show", rejected],
        ["tasks", "show", later], ["stats"],
        ["workers"], ["gate", "list"], ["credits", "show", user], ["limits", "list"],
        ["limits", "show", user], ["reconcile"],
    ]  # fmt: skip
    for verb in verbs:
        look(complete, verb, monkeypatch)
