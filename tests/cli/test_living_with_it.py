"""What an operator does with many tasks, and what the command line tells about one."""

import os
import pty
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import typer

from tests.support.commands import Cli, cli, complete, connected
from tests.support.hands import STAGE, Ground
from tests.support.world import World
from vidgen_worker import __main__
from vidgen_worker.cli.changes import _change_all
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.client.database import ClientError, open_database
from vidgen_worker.domain.faults import FAULTS, USERS_OWN

__all__ = ["cli", "complete", "connected"]


def story(cli: Cli, task: object) -> list[tuple[str, str]]:
    told = cli("tasks", "show", task, "--json").json
    return [(step["what"], step["details"] or "") for step in told["story"]]


async def test_a_story_tells_the_providers_own_reason_and_each_return(
    ground: Ground, world: World, complete: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    user = world.user()
    rejected = world.order(user, world.scene(user, image_prompt="[[fail SAFETY.INPUT.TEXT]]"))
    async with world.worker():
        await world.until(rejected)
    capsys.readouterr()  # the worker's own log
    what, details = story(complete, rejected)[-1]
    assert what == "failed"
    assert details.startswith("CONTENT_REJECTED: The provider's content rules")
    assert "SAFETY.INPUT.TEXT" in details

    hand = ground.worker()
    held = ground.held(hand, "start_task", *STAGE[:1])
    hand.about(
        held, "requeue", delay=timedelta(minutes=5), code="PROVIDER_BUSY", details="503: busy"
    )
    (back,) = [details for what, details in story(complete, held.id) if what == "requeued"]
    assert re.fullmatch(r"PROVIDER_BUSY: 503: busy, not before \d\d:\d\d:\d\d UTC", back)
    waits = complete("tasks", "show", str(held.id)[:8], "--json").json["waits"]
    assert waits[0].startswith("until ")

    # The newest fifty are kept, whatever happens to a task.
    ground.sql(
        "select vidgen.note_event(%s, 'requeued', n, 'PROVIDER_BUSY', n::text, null)"
        " from generate_series(1, 60) as n", held.id,
    )  # fmt: skip
    kept = ground.sql(
        "select details from vidgen.events where task_id = %s order by number", held.id
    )
    assert [row["details"] for row in kept] == [str(n) for n in range(11, 61)]


def test_many_tasks_are_cancelled_and_retried_at_once(ground: Ground, connected: Cli) -> None:
    user = ground.user()
    ground.orders(user, 3)
    ground.order()
    asked = connected("tasks", "cancel", "--user", str(user)[:8])
    assert asked.code == ExitCode.USAGE
    assert "Cancel 3 task(s) (3 pending; of 1 user(s))" in asked.err
    assert connected("tasks", "cancel").code == ExitCode.USAGE
    done = connected("tasks", "cancel", "--user", user, "--yes")
    assert (done.code, done.out) == (ExitCode.OK, "Cancelled: 3 of 3 task(s).\n"), done.err
    plan = connected("tasks", "retry", "--status", "cancelled", "--since", "1h")
    assert "Retry 3 task(s)" in plan.err
    assert "pay up to 90 credits" in plan.err
    told = connected("tasks", "retry", "--status", "cancelled", "--yes", "--json").json
    assert (len(told["changed"]), told["refused"]) == (3, [])
    one = told["changed"][0]
    again = connected("tasks", "retry", one)
    assert again.code == ExitCode.FAILED
    assert "is pending: only a failed or cancelled task" in again.err
    assert "costs money" not in again.err
    assert connected("tasks", "cancel", one, "--yes").code == ExitCode.OK
    watched = connected("tasks", "watch", one[:8])
    assert watched.code == ExitCode.FAILED
    assert "cancelled" in watched.out


def test_many_are_changed_only_as_far_as_was_asked_for_and_is_said(
    ground: Ground, connected: Cli, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    user = ground.user()
    hand = ground.worker()
    failed, running = (ground.held(hand, "start_task", user_id=user) for _ in range(2))
    hand.about(failed, "fail")
    ground.orders(user, 1)
    # A variable that is not set lets nobody else's tasks through, and an id goes with no filter.
    for arguments in (["--status", "pending", "--user", ""], ["", "--user", user],
                      [running.id, "--user", user]):  # fmt: skip
        refused = connected("tasks", "cancel", *arguments, "--yes")
        assert refused.code == ExitCode.USAGE, arguments
    assert connected("tasks", "list", "--user", "").code == ExitCode.USAGE
    assert connected("tasks", "list", "--status", "cancelled").out == "No tasks.\n"

    rows = ground.sql("select id from video_generation_tasks order by created_at")
    with open_database(database_url) as database, pytest.raises(typer.Exit):
        _change_all(database, "cancel_task", rows, "Cancelled", json=False)
    said = capsys.readouterr()
    assert said.out == ("Cancelled: 2 of 3 task(s). Their workers were asked to end 1 of them.\n")
    assert said.err == f"{str(failed.id)[:8]}: it had ended already: failed.\n"
    with open_database("postgresql://nobody@127.0.0.1:1/x") as away, pytest.raises(ClientError):
        _change_all(away, "retry_task", rows, "Retried", json=False)
    assert capsys.readouterr().err == "Retried before this: 0 of 3 task(s).\n"


def test_a_person_at_a_terminal_is_asked_yes_or_no(ground: Ground, database_url: str) -> None:
    task = ground.order()
    for answer, status in ((b"n\n", "pending"), (b"y\n", "cancelled")):
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [sys.executable, "-m", "vidgen_worker", "tasks", "cancel", str(task)],
            env={**os.environ, "DATABASE_URL": database_url},
            stdin=theirs, stdout=theirs, stderr=theirs,
        ) as process:  # fmt: skip
            said = b""
            while b"[y/N]" not in said:
                said += os.read(ours, 1000)
            os.write(ours, answer)
            process.wait(60)
        os.close(ours)
        os.close(theirs)
        assert ground.one("select status from video_generation_tasks") == {"status": status}


NEARLY = {
    "gate close gen4_trubo --yes": "There is no model 'gen4_trubo'. Did you mean gen4_turbo?",
    "tasks list --code CONTENT_REJECT": "Did you mean CONTENT_REJECTED?",
    "tasks list --status pendng": "pending",
    "tasks shw x": "Did you mean 'show'?",
    "tasks show zz": "is no task's id",
    "tasks show abcdef": "There is no task whose id begins with abcdef",
    "tasks cancel --since yesterday": "is not a duration",
    "gate close --until 2020-01-01 --yes": "is over",
    "gate close --until 999999999d --yes": "is longer than a hundred years",
    "gate close --until 9999-12-31T23:59:59-14:00 --yes": "is neither a time",
    "tasks list --since 999999999d": "is longer than a hundred years",
    "prune --older-than 999999999d --yes": "is longer than a hundred years",
    "credits grant abcdef 3000000000 --yes": "less than or equal to 2147483647",
    "credits grant abcdef 5 --yes --reference=": "It is empty",
}


def test_a_name_that_is_nearly_right_is_refused_with_the_right_one(connected: Cli) -> None:
    for verb, said in NEARLY.items():
        done = connected(*verb.split())
        assert done.code in (ExitCode.USAGE, ExitCode.FAILED), verb
        assert said in " ".join(done.err.split()), verb


@pytest.mark.parametrize(
    "arguments",
    [
        ["tasks", "list", "--user", ""], ["tasks", "list", "--user="], ["tasks", "show", " "],
        ["sandbox", "--data", ""], ["sandbox", "--env-file="], ["init", "--file", ""],
        ["gate", "close", "gen4_turbo", "--message", "", "--yes"],
        ["credits", "grant", "11111111-2222-4333-8444-555555555555", "5", "--reference", ""],
    ],
)  # fmt: skip
def test_a_variable_that_is_not_set_is_no_value(connected: Cli, arguments: list[str]) -> None:
    done = connected(*arguments)
    assert done.code == ExitCode.USAGE
    assert "It is empty, perhaps of a variable that is not set." in " ".join(done.err.split())


def test_a_gate_can_be_closed_until_a_moment(ground: Ground, connected: Cli) -> None:
    done = connected("gate", "close", "gen4_turbo", "--until", "2h", "--message", "Soon", "--yes")
    assert done.code == ExitCode.OK, done.err
    (gate,) = connected("gate", "list", "--json").json
    assert gate["message"] == "Soon"
    assert 7100 < gate["next_in"] <= 7200
    assert ground.one("select probe_at = until as probed from vidgen.gates") == {"probed": True}


def test_codes_for_which_the_user_is_responsible_exist() -> None:
    assert {rule.code for rule in FAULTS.values()} >= USERS_OWN


def test_a_file_of_settings_is_written_once_and_for_its_owner(cli: Cli, tmp_path: Path) -> None:
    assert "Fill in DATABASE_URL" in cli("init").out
    written = tmp_path / ".env"
    assert written.read_text() == (Path(__main__.__file__).parents[1] / ".env.example").read_text()
    assert written.stat().st_mode & 0o777 == 0o600
    again = cli("init")
    assert again.code == ExitCode.FAILED
    assert "is there already" in again.err
    # A disk that takes nothing any more.
    command = f"ulimit -f 0; exec {sys.executable} -m vidgen_worker init --file another"
    full = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert full.returncode == ExitCode.FAILED
    assert "can't be written" in full.stderr
    assert not (tmp_path / "another").exists()


COMPLETE = """
eval "$(_VIDGEN_WORKER_COMPLETE=source_bash vidgen-worker)"
offer() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _vidgen_worker_completion vidgen-worker
          echo "${COMPREPLY[@]}"; }
offer vidgen-worker ga
offer vidgen-worker tasks list --st
offer vidgen-worker tasks list --status pe
"""


@pytest.fixture
def on_the_path(tmp_path: Path) -> str:
    """Provide a PATH with the program on it."""
    program = tmp_path / "vidgen-worker"
    program.write_text(f"#!{sys.executable}\nfrom vidgen_worker.__main__ import main\nmain()\n")
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


FISH = """
_VIDGEN_WORKER_COMPLETE=source_fish vidgen-worker | source
complete --do-complete 'vidgen-worker ga'
complete --do-complete 'vidgen-worker tasks list --st'
complete --do-complete 'vidgen-worker tasks list --status pe'
"""
ZSH = """
compdef() { }
_arguments() { print -r -- "$*" }
eval "$(_VIDGEN_WORKER_COMPLETE=source_zsh vidgen-worker)"
offer() { words=("$@") CURRENT=$#; _vidgen_worker_completion }
offer vidgen-worker ga
offer vidgen-worker tasks list --st
offer vidgen-worker tasks list --status pe
"""


@pytest.mark.parametrize(("shell", "script"), [("fish", FISH), ("zsh", ZSH)])
def test_other_shells_complete_the_same(on_the_path: str, shell: str, script: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here: apt-get install {shell}")
    done = subprocess.run(
        [shell, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": on_the_path},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.stderr == ""
    for line, offered in zip(lines, ("gate", "--status", "pending"), strict=True):
        assert offered in line


def test_bash_completes_verbs_options_and_values(on_the_path: str) -> None:
    """As a shell does it, with the script that the program prints."""
    done = subprocess.run(
        ["bash", "-c", COMPLETE], capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": on_the_path},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["gate", "--status", "pending"], done.stderr
