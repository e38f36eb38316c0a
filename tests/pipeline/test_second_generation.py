"""A stage that begins anew starts with a clean slate: found by the soak."""

from tests.support.world import World


async def test_a_second_generation_does_not_inherit_the_age_of_the_first(world: World) -> None:
    """Else it is cancelled at the first look, and a third one is paid."""
    user_id = world.user()
    prompt = "[[fail INTERNAL x1]] [[slow 500ms]] a bottle"
    task_id = world.order(user_id, world.scene(user_id, image_prompt=prompt))
    async with world.worker(VIDGEN_RETRY_BACKOFF="1m"):
        await world.until(task_id, "pending", attempt=1)
        world.sql(
            "update vidgen.checkpoints set generation_started_at = now() - interval '3 hours' "
            "where task_id = %s", task_id,
        )  # fmt: skip
        world.sql("update video_generation_tasks set run_after = now() where id = %s", task_id)
        row = await world.until(task_id)
    assert row["status"] == "completed"
    ends = [generation["state"] for generation in world.runway.generations(kind="image")]
    assert ends == ["FAILED", "SUCCEEDED"]
