"""A film as an operator has it: the verb that orders one, and the fonts of the worker."""

import asyncio
import json
import re
from pathlib import Path
from uuid import uuid4

from psycopg.types.json import Jsonb

from tests.support.world import World, vidgen


async def test_an_order_that_is_watched_ends_with_the_files_of_the_film(
    world: World, tmp_path: Path
) -> None:
    world.environment = {"VIDGEN_RENDERS": "1"}
    user = world.user()
    cut = {
        "parts": [{"scene": str(world.scene(user)), "to": 1}],
        "outputs": [{"preset": "preview", "format": "mp4"}, {"preset": "poster", "format": "jpeg"}],
    }
    file = tmp_path / "cut.json"
    file.write_text(json.dumps(cut))
    order = ("enqueue", "--user", str(user), "--cut", str(file), "--watch")
    async with world.worker():
        done = await asyncio.to_thread(vidgen, world, *order)
    assert done.returncode == 0, done.stderr
    files = done.stdout.partition("Files")[2]
    assert re.search(r"preview +video/mp4 +480x270 +1\.00 +[\d,]+\n", files)
    assert re.search(r"poster +image/jpeg +1280x720 +– +[\d,]+\n", files)  # noqa: RUF001
    rows = world.sql("select name, bucket, path from public.video_renditions order by position")
    assert [row["name"] for row in rows] == ["preview", "poster"]
    for row in rows:
        assert f"{row['name']}: {row['bucket']}/{row['path']}\n" in files


async def test_a_worker_draws_captions_with_the_fonts_of_its_settings_alone(
    world: World, tmp_path: Path
) -> None:
    """An empty folder has no letter: the film is refused by its caption, and costs nothing."""
    user = world.user()
    film = uuid4()
    cut = {
        "parts": [{"scene": str(world.scene(user)), "caption": "Lamp"}],
        "outputs": ["poster"],
    }
    world.as_user(
        user, "insert into public.video_generation_tasks (id, user_id, cut) values (%s, %s, %s)",
        film, user, Jsonb(cut),
    )  # fmt: skip
    async with world.worker(VIDGEN_RENDERS="1", VIDGEN_FONTS=str(tmp_path)):
        row = await world.until(film)
    assert (row["error_code"], row["error"]["field"]) == ("INVALID_REQUEST", "/parts/0/caption")
    assert "VIDGEN_FONTS" in row["error_message"]
    assert world.credits(user) == (1000, 0)
