"""The crash matrix: killed at every event, statement and call, another worker ends the task well.

The kill points are generated (`tests/support/mortal.py`); one without a case, and without a
written reason, fails. Per scenario all deaths come first, each a real process and a task of its
own, then one ordinary worker takes everything over, and the books are compared.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, LiteralString
from uuid import UUID, uuid4

import pytest
from psycopg.types.json import Jsonb

from tests.support.mortal import KILLED, QUICK, ForkServer, Mortal, Mortals, kill_points
from tests.support.watching import until_true, watch
from tests.support.world import PATIENCE, World

pytestmark = pytest.mark.slow

CREDITS, PRICE, IMAGE_PRICE = 1000, 30, 5


@dataclass(frozen=True)
class Case:
    """One death: of which scenario, at which point, and its task."""

    point: str
    occurrence: int
    user: UUID
    scene: UUID
    task: UUID


Act = Callable[[World, UUID, Mortal], Coroutine[Any, Any, None]]
Prepare = Callable[[World, UUID, Mortals, Mapping[str, str]], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Scenario:
    """A way through the worker, and the points that are met on it, with their occurrences."""

    points: Mapping[str, tuple[int, ...]]
    words: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    prepare: Prepare | None = None
    act: Act | None = None
    sql: str = ""
    """Run once in the scenario's database."""
    mend: LiteralString = ""
    """Run after each death."""
    ends: str = "completed"
    generations: int = 1
    """Per stage, where nothing is left in doubt."""
    film: Mapping[str, Any] | None = None
    """Ordered as the only part of a film, which is to end as its part does; the rest of its cut."""
    renditions: int = 0
    """How many files the film is to have."""
    price: int = PRICE


# What happens besides the worker's own doings.


async def _generating(world: World, task: UUID) -> None:
    await until_true(
        world, "select exists (select from vidgen.checkpoints where task_id = %s "
        "and state = 'generating')", task,
    )  # fmt: skip


async def _terminate(world: World, task: UUID, mortal: Mortal) -> None:
    await _generating(world, task)
    mortal.signal(signal.SIGTERM)


async def _cancel(world: World, task: UUID, _mortal: Mortal) -> None:
    await _generating(world, task)
    user = world.task(task)["user_id"]
    world.as_user(user, "select public.cancel_video_generation_task(%s)", task)


async def _steal(world: World, task: UUID, _mortal: Mortal) -> None:
    await _generating(world, task)
    _hand_back(world, task)


async def _declare_dead(world: World, task: UUID, _mortal: Mortal) -> None:
    await _generating(world, task)
    world.sql("update vidgen.workers set dead_at = now() where dead_at is null")


async def _orphan(world: World, task: UUID, _mortal: Mortal) -> None:
    await _generating(world, task)
    # As after a claim whose answer was lost: the row is this worker's, and it doesn't know.
    world.sql("update video_generation_tasks set attempt = attempt + 1 where id = %s", task)


async def _refuse_once(world: World, _task: UUID, mortal: Mortal) -> None:
    del mortal
    world.runway.set(key_disabled=True)
    await until_true(world, "select exists (select from vidgen.gates where probes > 1)")
    world.runway.set(key_disabled=False)


def _hand_back(world: World, task: UUID) -> None:
    world.sql(
        "update video_generation_tasks set status = 'pending', worker_id = null, run_after = now() "
        "where id = %s and status = 'processing'", task,
    )  # fmt: skip


async def _die_before(
    world: World, task: UUID, dying: Mortals, settings: Mapping[str, str], point: str
) -> None:
    """A first life that ends at `point`; the task waits to be resumed."""
    mortal = await dying.start(settings, point)
    assert await mortal.ended() == KILLED
    _hand_back(world, task)


async def _generation_runs(
    world: World, task: UUID, dying: Mortals, settings: Mapping[str, str]
) -> None:
    await _die_before(world, task, dying, settings, "event SubmissionRecorded")


async def _request_is_unreadable(
    world: World, task: UUID, dying: Mortals, settings: Mapping[str, str]
) -> None:
    await _generation_runs(world, task, dying, settings)
    world.sql(
        "update vidgen.checkpoints set request = jsonb_build_object('unreadable', request) "
        "where task_id = %s", task,
    )  # fmt: skip


async def _answer_is_missing(
    world: World, task: UUID, dying: Mortals, settings: Mapping[str, str]
) -> None:
    await _die_before(world, task, dying, settings, "query begin_submission after")


async def _worker_is_dead(
    world: World, task: UUID, dying: Mortals, settings: Mapping[str, str]
) -> None:
    mortal = await dying.start(settings, "event GenerationEnded")
    assert await mortal.ended() == KILLED
    world.sql(
        "update vidgen.workers set dead_at = now() where id = "
        "(select worker_id from video_generation_tasks where id = %s)", task,
    )  # fmt: skip


def _both(name: str, *occurrences: int) -> dict[str, tuple[int, ...]]:
    return {f"{name} before": occurrences or (1,), f"{name} after": occurrences or (1,)}


def _on_every(table: str, event: str, sqlstate: str, when: str = "true") -> str:
    """A trigger that raises an error once per task (nextval survives the rollback)."""
    return f"""
        create sequence public.errors_of_{sqlstate.lower()};
        create function public.raise_{sqlstate.lower()}() returns trigger language plpgsql
        security definer as $$
        begin
          if {when} and nextval('public.errors_of_{sqlstate.lower()}') = 1 then
            raise exception 'an error made by the test' using errcode = '{sqlstate}';
          end if;
          return new;
        end $$;
        create trigger raise_{sqlstate.lower()} before {event} on {table}
          for each row execute function public.raise_{sqlstate.lower()}();
    """


SCENARIOS: Mapping[str, Scenario] = {
    # Each stage once: the first occurrence is the image's, the second the video's.
    "events of a task": Scenario({
        "event WorkerStarted": (1,), "event ListenChanged": (1,), "event TaskStarted": (1,),
        "event ResolutionMapped": (1,), "event TaskCompleted": (1,),
        **{f"event {name}": (1, 2) for name in (
            "SubmissionBegun", "SubmissionAnswered", "SubmissionRecorded", "GenerationEnded",
            "OutputFetched", "UploadBegun", "OutputUploaded", "StageDone",
        )},
    }),
    "statements of a worker": Scenario({
        **_both("query register_worker"), **_both("query share_buckets"),
        **_both("query expect_limit"), **_both("query set_limit", 1, 2),
        **_both("query ask_limits"),
        **_both("query heartbeat", 1, 2), **_both("query line_up"), **_both("query claim"),
        **_both("query heartbeats"), **_both("query take_over"),
        **_both("query start_task"),
        **_both("query generation_times"),
    }),
    "statements of a stage": Scenario({
        **_both("query begin_submission", 1, 2), **_both("query answer_submission", 1, 2),
        **_both("query end_generation", 1, 2), **_both("query finish_stage", 1, 2),
    }),
    "calls of a stage": Scenario({
        **_both("call provider.submit", 1, 2), **_both("call provider.poll", 1, 2, 3),
        **_both("call media.download", 1, 2), **_both("call storage.put", 1, 2),
        **_both("call media.check_image"), **_both("call media.check_video"),
        **_both("call storage.sign"),
    }),
    "resumed": Scenario(
        {"event StageResumed": (1,), **_both("query resume"), "query start_task after": (1,),
         "query end_generation before": (1, 2),
         "call provider.poll after": (1,)},
        prepare=_generation_runs,
    ),
    "an answer is missing": Scenario(
        {**_both("query read_submission"), "event StageResumed": (1,)}, prepare=_answer_is_missing,
    ),
    "taken over": Scenario(
        {"query take_over after": (1,), "event TaskStarted": (1,), "event StageResumed": (1,)},
        prepare=_worker_is_dead,
    ),
    "slow": Scenario(
        {"event Progressed": (1,), "event PollFailed": (1,), "event GenerationOverdue": (1,),
         **_both("query report")},
        words="[[slow 4s]] [[poll-500 x1]]",
        environment={"VIDGEN_STAGE_DEADLINE": "100ms", "VIDGEN_POLL_INTERVAL": "100ms"},
    ),
    "a film": Scenario(
        {**_both("query wake_films"), **_both("query claim_films"),
         **_both("query load_film"), **_both("query order_parts"),
         **_both("query wait_for_parts"), "event FilmWaits": (1,), "event FilmWoken": (1,)},
        film={},
    ),
    "a film with outputs": Scenario(
        {**_both("query seconds_of_parts"), "event FilmChecked": (1,), "event PartsOrdered": (1,),
         **_both("query begin_rendering"), **_both("call storage.fetch"),
         **_both("query begin_rendition"), **_both("query finish_rendition"),
         "event RenditionStored": (1, 2)},
        film={"outputs": [
            {"preset": "preview", "format": "mp4"}, {"preset": "poster", "format": "jpeg"},
        ]},
        # None of its deaths is about a POST: a slow one is not to be paid again.
        environment={"VIDGEN_RENDERS": "1", "VIDGEN_SUBMIT_TIMEOUT": "5s"},
        sql="update public.video_presets set film_second_credits = 2 where name = 'preview'",
        renditions=2, price=PRICE + 2 * 1,
    ),
    "conformed": Scenario({"event OutputConformed": (1, 2)}, words="[[wrong-size]]"),
    "drained": Scenario(
        {"event WorkerDraining": (1,), **_both("query hand_back"), **_both("query leave"),
         "event TaskHandedBack": (1,), "event WorkerStopped": (1,)},
        words="[[slow 800ms]]", act=_terminate,
    ),
    "cancelled": Scenario(
        {**_both("call provider.cancel"), **_both("query close_generation"),
         **_both("query cancel"), "event TaskCancelled": (1,)},
        words="[[stall]]", act=_cancel, ends="cancelled",
    ),
    "busy": Scenario(
        {**_both("query requeue"), "event TaskRequeued": (1,)}, words="[[busy]]",
    ),
    "refused": Scenario(
        {**_both("query fail"), "event TaskFailed": (1,)},
        words="[[400 promptText]]", ends="failed", generations=0,
    ),
    "unknown": Scenario(
        {"event SubmissionUnknown": (1,), **_both("query paid_submissions"),
         **_both("query note_trouble")},
        words="[[drop-after-accept]]", generations=2,
    ),
    "gate": Scenario(
        {**_both("query close_gate"), "event GateClosed": (1,), **_both("call provider.account"),
         **_both("query open_gate"), "event GateOpened": (1,), **_both("query take_probe")},
        words="[[denied]]",
    ),
    "gate stays closed": Scenario(
        {"event GateProbed": (1,)}, words="[[denied]]", act=_refuse_once,
    ),
    "stolen": Scenario({"event LeaseLost": (1,)}, words="[[slow 800ms]]", act=_steal),
    "declared dead": Scenario(
        {"event WorkerDeclaredDead": (1,)}, words="[[slow 800ms]]", act=_declare_dead,
    ),
    "orphaned": Scenario(
        {"event OrphansHandedBack": (1,)}, words="[[slow 800ms]]", act=_orphan,
    ),
    "deadlock": Scenario(
        {"event DatabaseTrouble": (1,)},
        sql=_on_every("vidgen.checkpoints", "update", "40P01", "new.state = 'done'"),
    ),
    "unexpected": Scenario(
        {"event UnexpectedError": (1,)},
        # What a statement raises is the row's doing, and no error of ours.
        prepare=_request_is_unreadable,
        mend="update vidgen.checkpoints set request = request -> 'unreadable'"
        " where request ? 'unreadable'",
    ),
    "the row refuses": Scenario(
        {**_both("query set_aside"), "event RowRefused": (1,)},
        sql=_on_every("vidgen.holds", "insert", "P0001"),
        mend="update vidgen.refusals set until = now() where until > now()",
    ),
    "the row refuses to show an end": Scenario(
        {**_both("query begin_upload")},
        sql=_on_every("public.video_generation_tasks", "update", "P0001", "new.progress = 40"),
    ),
    "the row refuses to end with its last stage": Scenario(
        {**_both("query complete")},
        sql=_on_every(
            "public.video_generation_tasks", "update", "P0001", "new.status = 'completed'"
        ),
    ),
    "a loop fails": Scenario(
        {"event LoopFailed": (1,)}, sql=_on_every("vidgen.workers", "update", "P0001"),
    ),
    "the scene refuses": Scenario(
        {"event SceneWriteRefused": (1, 2)},
        sql="alter table video_scenes add constraint own check (status = 'pending')",
    ),
}  # fmt: skip

WITHOUT_A_CASE: Mapping[str, str] = {
    "event ClaimsDisabled": "a worker that is switched off has no task to lose",
    "event LateAnswer": "its worker has lost the task already; the janitor's strays repeat it",
    "event MediaWallsLacking": "said of a process before it has seen a file",
    "event StorageUnproven": "nothing is claimed before the proof: there is nothing to lose yet",
    "event MachineUnproven": "likewise",
    "event BucketNoted": "said beside all work; the next look says it again",
    "query try_kept": "the janitor's, about a pause in our own table; the next probe repeats it",
    "event MetricsServed": "before the first statement: there is nothing to lose yet",
    "event GenerationLeftRunning": "the last words of a drain without Postgres: nothing follows",
    "event CancelGivenUp": "the end of a cancel without the provider: the fenced write follows",
    "query waited": "a SELECT before a requeue",
    "event DatabaseAway": "as DatabaseTrouble, once for all statements together",
    "event DatabaseBack": "likewise",
    "event AnswerUnrecorded": "the id is in memory and log only: a death here is one in doubt",
    "query relieve": "after the charge: a death leaves a trouble to the next stage that goes well",
    "query claim_trial": "as claim, for one task after a storm; read beside it by test_gate",
    "query costs_to_read_again": "the janitor's, and a SELECT",
    "event StrayGeneration": "the janitor's, once a minute; the next sweep meets the row again",
    "event GenerationNotOurs": "needs two accounts over one database; test_accounts plays it",
    "query stands_aside": "needs two workers with two keys; a SELECT",
    "query is_gone": "likewise; whoever takes the task up asks again",
    "event GenerationLeftAlone": "the janitor's: said of rows that are written already",
    "query let_anyone_follow": "the janitor's: one statement, and the next sweep's again",
    "call storage.prove": "nothing is claimed before the proof: there is nothing to lose yet",
    "event LimitRead": "said beside all work; one of the fleet reads the limits again and again",
    "event LimitsUnread": "likewise",
    "event UserLimited": "nothing was written; the fenced write of the outcome follows",
    "event UserBraked": "said of a row that is written already",
    "query meet_gate": "a note beside the refusal; a repeat of the attempt is refused again",
    "query sweep_limits": "the janitor's: rows of no use any more; the next sweep's again",
    "query free_slots": "the janitor's, about slots that nobody uses; the next one frees them",
    "query sweep_workers": "the janitor's: one statement about rows that nobody uses any more",
    "query sweep_gates": "likewise",
    "query sweep_turns": "likewise",
    "query sweep_passed": "likewise",
    "query stray_submissions": "likewise, and a SELECT",
    "query give_up_submissions": "likewise: one statement, and the next sweep's again",
    "query retry_refused": "the janitor's: each task in a transaction; the next turn goes on",
    "query is_troubled": "the janitor's, and a SELECT",
    "query try_rows": "likewise: what it changes is taken back in the same statement",
    "query owed_scenes": "the janitor's, and a SELECT",
    "query write_owed_scene": "the janitor's: one statement for each scene; the next turn goes on",
    "event OwedSceneRefused": "likewise, said when it is dropped",
    "query clear_line": "of users who have nothing due: whoever comes next lets them go again",
    "query claim_cancelled": "as claim, where a heartbeat asks for it; the next one asks again",
    "query fleet": "for the metrics: a SELECT",
    "query take_uploads": "the janitor's: what it took and did not remove is taken again",
    "query uploads_removed": "likewise: an object that is gone is removed again",
    "query uploads_left": "the janitor's, and a SELECT",
    "event UploadsRemoved": "the janitor's: said of rows that are written already",
    "event UploadsKept": "likewise",
    "event UploadsLeft": "likewise: said again at the next audit",
    "query take_duty": "the janitor's: the next turn comes minutes later, whoever takes it",
    "query forget_tasks": "the janitor's: one statement about tasks of long ago",
    "query forget_holds": "likewise",
    "event TasksForgotten": "likewise",
    "query audit_entries": "the janitor's: one statement, and its mark in the same transaction",
    "query audit_users": "likewise: a comparison, and totals that are summed anew",
    "query note_audit": "likewise",
    "query read_audit": "for the metrics: a SELECT",
    "event BooksDisagree": "the janitor's: said again at the next audit",
    "query load_task": "for a cancel alone: a SELECT",
    "query take_deliveries": "tests/webhooks kills in between: a lease brings it back",
    "query book_delivery": "likewise",
    "query return_deliveries": "a drain's: without it the lease runs out",
    "query forget_deliveries": "the janitor's: one statement about deliveries of long ago",
    "event DeliverySent": "after the statement that books it",
    "event DeliveryFailed": "likewise",
    "event WebhookDisabled": "likewise",
    "query read_gates": "for `check` and the metrics: a SELECT",
}
# The provider has accepted, and nobody has written it down: the only deaths that may cost twice.
IN_DOUBT = (
    "call provider.submit after", "event SubmissionAnswered", "query answer_submission before",
)  # fmt: skip


def test_every_kill_point_has_a_case() -> None:
    """A new event, statement or call needs a case here, or a reason why it can have none."""
    covered = {point for scenario in SCENARIOS.values() for point in scenario.points}
    points = set(kill_points())
    excused = {
        point for point in points
        if point in WITHOUT_A_CASE or point.rpartition(" ")[0] in WITHOUT_A_CASE
    }  # fmt: skip
    assert points - covered - excused == set()
    assert covered - points == set()
    assert covered & excused == set()


@pytest.mark.parametrize("name", SCENARIOS)
async def test_death_at_every_point(
    world: World, tmp_path: Path, fork_server: ForkServer, name: str
) -> None:
    """SIGKILL, another worker, the same books."""
    scenario = SCENARIOS[name]
    watch(world)
    _note_falls(world)
    if scenario.sql:
        with world.admin() as conn:
            conn.execute(scenario.sql.encode())
    environment = {**QUICK, **scenario.environment}
    cases: list[Case] = []
    with fork_server.mortals(tmp_path / "mortal.log") as dying:
        for point, occurrences in scenario.points.items():
            for occurrence in occurrences:
                case = _order(world, point, occurrence, scenario)
                await _kill(world, dying, scenario, case, world.env(**environment))
                if scenario.mend:
                    world.sql(scenario.mend)
                _park(world)
                cases.append(case)
    world.sql("update video_generation_tasks set run_after = now() where status = 'pending'")
    # Ten POSTs at once take seconds on a busy machine: one that counts as lost is paid again.
    heir = environment | {"VIDGEN_CONCURRENCY": "10", "VIDGEN_SUBMIT_TIMEOUT": "5s"}
    async with world.worker(**heir) as worker:
        await until_true(
            world, "select not exists (select from video_generation_tasks "
            "where status in ('pending', 'processing'))",
        )  # fmt: skip
        # Whatever a dead worker has uploaded and nobody has charged goes in one round.
        await worker.janitor.remove_uploads()
    if scenario.film is not None:
        cases = [_of_its_part(world, case) for case in cases]
    problems = [
        problem for case in cases for problem in await asyncio.to_thread(_audit, world, name, case)
    ]
    assert problems == [], (tmp_path / "mortal.log").read_text()[-5000:]
    assert world.books_balance()
    assert world.sql("select * from falls") == []
    assert world.sql("select * from vidgen.holds where closed_at is null") == []
    assert world.sql("select * from vidgen.resumes") == []
    # An unanswered submission may be in flight: its slot is freed when that must be over.
    assert (
        world.sql(
            "select * from vidgen.slots as s left join vidgen.submissions as sent"
            "    on sent.id = s.submission_id"
            " where s.task_id is not null and sent.answer is distinct from 'unknown'"
            "   and not (sent.answer = 'generation' and sent.ended_at is null)"
        )
        == []
    )


def _order(world: World, point: str, occurrence: int, scenario: Scenario) -> Case:
    words = scenario.words
    user = world.user(CREDITS)
    scene = world.scene(user)
    world.sql(
        "update video_scenes set image_prompt = %s || image_prompt, "
        "visual_prompt = %s || visual_prompt where id = %s", words, words, scene,
    )  # fmt: skip
    if scenario.film is None:
        return Case(point, occurrence, user, scene, world.order(user, scene))
    film = uuid4()
    world.as_user(
        user, "insert into public.video_generation_tasks (id, user_id, cut) values (%s, %s, %s)",
        film, user, Jsonb(_cut_of(scene, scenario.film)),
    )  # fmt: skip
    return Case(point, occurrence, user, scene, film)


def _cut_of(scene: UUID, rest: Mapping[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = {"scene": str(scene)}
    return {"parts": [part | ({"to": 1} if rest else {})], **rest}


def _of_its_part(world: World, case: Case) -> Case:
    """The same case by the task that its film ordered: once, whatever died."""
    film = world.task(case.task)
    assert (film["status"], film["error"]) == ("completed", None), f"{case.point}: {film}"
    (part,) = world.sql(
        "select id from video_generation_tasks where film_id = %s", case.task
    )  # fmt: skip
    return replace(case, task=part["id"])


async def _kill(
    world: World, dying: Mortals, scenario: Scenario, case: Case, settings: Mapping[str, str]
) -> None:
    """Let a worker die at the case's point. Fails when it lives past the end of its task."""
    if "errors_of" in scenario.sql:
        for row in world.sql("select sequencename as name from pg_sequences "
                             "where sequencename like 'errors_of%%'"):  # fmt: skip
            world.sql("select setval(%s::text::regclass, 1, false)", row["name"])
    if scenario.prepare:
        await scenario.prepare(world, case.task, dying, settings)
    mortal = await dying.start(settings, case.point, case.occurrence)
    death = asyncio.create_task(mortal.ended())
    acting: asyncio.Task[None] | None = None
    if scenario.act:
        acting = asyncio.create_task(scenario.act(world, case.task, mortal))
    try:
        async with asyncio.timeout(PATIENCE / 3):
            status = await death
    except TimeoutError:
        mortal.signal(signal.SIGKILL)
        pytest.fail(f"{case.point} ({case.occurrence}) was not reached: {world.task(case.task)}")
    finally:
        if acting:
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)
    assert status == KILLED, f"{case.point}: it ended by itself, with {status}"


def _park(world: World) -> None:
    """Keep the next mortal away from this task; open the gates for the next one."""
    world.sql(
        "update video_generation_tasks set run_after = now() + interval '1 hour' "
        "where status = 'pending'"
    )
    world.sql("delete from vidgen.gates")
    world.runway.set(key_disabled=False)


def _note_falls(world: World) -> None:
    """Note every time that a user's bar goes back."""
    with world.admin() as conn:
        conn.execute("""
            create table public.falls (task_id uuid, was float8, became float8);
            create function public.note_a_fall() returns trigger language plpgsql
            security definer as $$
            begin
              insert into public.falls values (new.id, old.progress, new.progress);
              return null;
            end $$;
            create trigger note_a_fall after update on public.video_generation_tasks
              for each row when (new.progress < old.progress)
              execute function public.note_a_fall();
        """)


def _audit(world: World, name: str, case: Case) -> list[str]:
    """Everything that is not as it should be about one task."""
    scenario = SCENARIOS[name]
    row = world.task(case.task)
    said = f"{name}, {case.point} ({case.occurrence})"
    problems = []
    if row["status"] != scenario.ends:
        problems.append(f"{said}: {row['status']} {row['error_code']} {row['error_message']}")
        return problems
    problems += _audit_generations(world, scenario, case)
    charged = world.sql("select stage from vidgen.charges where task_id = %s", case.task)
    due = {"completed": scenario.price, "failed": 0, "cancelled": 0}[scenario.ends]
    if world.credits(case.user) != (CREDITS - due, 0) or len(charged) != (2 if due else 0):
        problems.append(f"credits {world.credits(case.user)}, charges {charged}")
    if scenario.ends == "completed":
        problems += _audit_objects(world, scenario, case, row)
    return [problem if problem.startswith(said) else f"{said}: {problem}" for problem in problems]


def _audit_generations(world: World, scenario: Scenario, case: Case) -> list[str]:
    problems = []
    for number, stage in enumerate(("image", "video"), start=1):
        mine = [g for g in world.runway.generations(kind=stage) if str(case.scene) in str(g)]
        expected = scenario.generations
        if scenario.ends == "cancelled":
            expected = 1 if stage == "image" else 0
            if any(g["state"] in ("THROTTLED", "PENDING", "RUNNING") for g in mine):
                problems.append(f"a generation still runs: {mine}")
        elif case.point in IN_DOUBT and case.occurrence == number:
            expected = 2
        if len(mine) != expected:
            problems.append(f"{len(mine)} {stage} generations instead of {expected}")
        recorded = world.sql(
            "select answer from vidgen.submissions where task_id = %s and stage = %s "
            "and answer is distinct from 'refused'",
            case.task, stage,
        )  # fmt: skip
        if len(recorded) < len(mine):
            problems.append(f"{len(mine)} {stage} generations and {len(recorded)} submissions")
    return problems


def _audit_objects(
    world: World, scenario: Scenario, case: Case, row: Mapping[str, Any]
) -> list[str]:
    stored = {o["name"] for o in world.storage.objects() if str(case.user) in o["name"]}
    followed = {
        c["path"]
        for c in world.sql("select path from vidgen.checkpoints where task_id = %s", case.task)
    }
    made = {
        r["path"]
        for r in world.sql("select path from public.video_renditions where user_id = %s", case.user)
    }
    wrong = followed != {row["image_path"], row["video_path"]} or len(made) != scenario.renditions
    if wrong or stored != followed | made:
        return [f"objects {stored}, checkpoints {followed}, renditions {made}"]
    return []
