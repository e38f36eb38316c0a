"""`sandbox`: a Supabase project and a Runway account, kept running, for programs to point at.

What it prints can be pasted: the settings first, as `NAME=value`, then commands for another
terminal. `sandbox token` asks a running one for a user's access token.
"""

import secrets
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from vidgen_worker.cli.dashboard import INSTALL, dashboard_beside
from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.interrupts import Interrupts
from vidgen_worker.cli.output import console, fail
from vidgen_worker.cli.stack import (
    CREDITS,
    Place,
    Seed,
    need_packages,
    prepare_page,
    running_sandbox,
    seed,
)
from vidgen_worker.client.database import load_client_settings, open_database

if TYPE_CHECKING:
    from vidgen_worker.sandbox.stack import Sandbox

DEMO_EMAIL = "demo@example.com"
HEAD = "# Settings of a sandbox, written by vidgen-worker sandbox. It is renewed at each start."
TOKEN_SECONDS = 30.0

verbs = typer.Typer(name="sandbox", invoke_without_command=True)


@verbs.callback()
def sandbox(
    context: typer.Context,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Its port; without it 54321, or a free one.")
    ] = 0,
    data: Annotated[
        Path | None, typer.Option(help="Keep database, users, objects and keys in this folder.")
    ] = None,
    env_file: Annotated[
        Path | None, typer.Option(help="Write the settings to this file as well.")
    ] = None,
) -> None:
    """Keep a Supabase project and a Runway account running here. Ctrl-C ends them."""
    if context.invoked_subcommand is not None:
        return
    err = console(stderr=True)
    if env_file is not None:
        _check_ours(env_file)
    with Interrupts() as interrupts:
        try:
            err.print("Starting PostgreSQL and the doubles of Supabase and Runway …")
            place = Place(data, port)
            with running_sandbox(interrupts, place) as stack:
                settings = prepare(stack)
                if env_file is not None:
                    _write(env_file, settings)
                with dashboard_beside(settings) as link:
                    said = usage(settings, env_file, keeps=data is not None, link=link)
                    print(said, flush=True)
                    while True:
                        signal.pause()
        except KeyboardInterrupt:
            err.print("Everything is stopped.")
            sys.exit(ExitCode.INTERRUPTED)


@verbs.command()
def token(
    user: Annotated[str, typer.Argument(help="The user's id or address.", metavar="USER")],
) -> None:
    """Print a new access token of a user of the sandbox that SUPABASE_URL names."""
    need_packages()
    import httpx  # noqa: PLC0415 - a tenth of a second that the other verbs need not wait for

    from vidgen_worker.sandbox.visitors import is_of_this_machine  # noqa: PLC0415 - the extra's

    settings = load_client_settings()
    url, key = settings.supabase_url, settings.supabase_service_role_key
    if url is None or key is None or not is_of_this_machine(url):
        fail(
            ExitCode.CONFIGURATION,
            "SUPABASE_URL and SUPABASE_SERVICE_ROLE_KEY are not those of a sandbox on this "
            "machine: no other project makes tokens of its users.",
            "Set what `vidgen-worker sandbox` has printed.",
        )
    secret = key.get_secret_value()
    try:
        answer = httpx.post(
            f"{url.rstrip('/')}/sandbox/token",
            json={"user": user},
            headers={"apikey": secret, "authorization": f"Bearer {secret}"},
            timeout=TOKEN_SECONDS,
            trust_env=False,
        )
        said = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        fail(
            ExitCode.UNAVAILABLE,
            f"There is no sandbox at {url}: {error}.",
            "Start one: vidgen-worker sandbox",
        )
    made = said if isinstance(said, dict) else {}
    if "access_token" not in made:  # another service of this machine may have answered, too
        fail(ExitCode.FAILED, f"{url} made no token: {made.get('error', said)}")
    print(made["access_token"])


def prepare(stack: "Sandbox") -> dict[str, str]:
    """Give the sandbox its demo's user and scene, and return every setting."""
    demo = stack.state.demo
    if not demo:
        ids = {name: str(value) for name, value in asdict(Seed.new()).items()}
        demo = {
            **ids, "email": DEMO_EMAIL, "password": secrets.token_urlsafe(9),
            "webhook": secrets.token_hex(16),
        }  # fmt: skip
        # Before there is such a user: whatever ends this in between, the next start makes him.
        stack.keep(stack.state.with_demo(**demo))
    made = Seed(UUID(demo["user_id"]), UUID(demo["scenario_id"]), UUID(demo["scene_id"]))
    stack.add_user(made.user_id, demo["email"], demo["password"])
    environment = stack.environment()
    with open_database(environment["DATABASE_URL"]) as database:
        seed(database, stack.product_image_url, made)
    prepare_page(environment["DATABASE_URL"])
    return {
        **environment,
        "SUPABASE_PUBLISHABLE_KEY": stack.keys.publishable,
        "SUPABASE_SECRET_KEY": stack.keys.secret,
        "SUPABASE_KEY": stack.keys.publishable,
        "ACCESS_TOKEN": stack.user_token(demo["user_id"]),
        "WEBHOOK_SECRET": demo["webhook"],
        "DEMO_EMAIL": demo["email"],
        "DEMO_PASSWORD": demo["password"],
        "DEMO_USER_ID": demo["user_id"],
        "DEMO_SCENE_ID": demo["scene_id"],
    }


def usage(
    settings: Mapping[str, str],
    env_file: Path | None = None,
    *,
    keeps: bool = False,
    link: str | None = None,
) -> str:
    """Return what another terminal needs, every line of it to be pasted.

    `link` opens the dashboard; None: its packages are not installed.
    """
    lines = _lines(settings)
    if env_file is not None:
        lines += ["", "# The same lines are in a file. In another terminal:"]
        lines += [f"  set -a; . {shlex.quote(str(env_file.absolute()))}; set +a"]
    else:
        lines = ["# Paste these lines into another terminal.", "set -a", *lines, "set +a"]
    lines += [
        "",
        f"# Then, one by one. {DEMO_EMAIL} can sign in, and has {CREDITS} credits and a scene.",
        *(f"  {command}" for command in commands()),
        "",
        f"# See it in a browser: {link or INSTALL}",
        "# Ctrl-C here stops everything" + (" and keeps it." if keeps else " and deletes it."),
    ]
    return "\n".join(lines)


def commands() -> list[str]:
    """Return the commands to try, as far as this machine has what they need."""
    us = our_command()
    found = [
        f"{us} run &",
        f'{us} enqueue --scene "$DEMO_SCENE_ID" --user "$DEMO_USER_ID" --watch',
        f'{us} credits show "$DEMO_USER_ID"',
        f'ACCESS_TOKEN=$({us} sandbox token "$DEMO_EMAIL")',
    ]
    if shutil.which("curl"):
        found.append(
            'curl -sS "$SUPABASE_URL/rest/v1/video_generation_tasks?select=status,progress"'
            ' -H "apikey: $SUPABASE_KEY" -H "Authorization: Bearer $ACCESS_TOKEN"'
        )
    if shutil.which("psql"):
        found.append(
            'psql "$DATABASE_URL" -c "select status, progress from video_generation_tasks"'
        )
    example = Path(__file__).parents[2] / "examples" / "generate.py"
    if example.exists():
        words = shlex.join([sys.executable, str(example)])
        found.append(f'{words} "$DEMO_SCENE_ID"')
    return found


def our_command() -> str:
    """Return how a fresh shell starts this program."""
    beside = Path(sys.executable).with_name("vidgen-worker")
    on_path = shutil.which("vidgen-worker")
    if on_path and beside.exists() and Path(on_path).samefile(beside):
        return "vidgen-worker"
    if beside.exists():
        return shlex.quote(str(beside))
    return shlex.join([sys.executable, "-m", "vidgen_worker"])


def _lines(settings: Mapping[str, str]) -> list[str]:
    return [f"{name}={shlex.quote(value)}" for name, value in settings.items()]


def _check_ours(file: Path) -> None:
    """Refuse to overwrite a file that is somebody's own."""
    try:
        first = file.read_text().partition("\n")[0]
    except FileNotFoundError:
        if file.absolute().parent.is_dir():
            return
        fail(
            ExitCode.CONFIGURATION, f"--env-file {file} can't be written: there is no such folder."
        )
    except (OSError, ValueError) as error:
        fail(ExitCode.CONFIGURATION, f"--env-file {file} can't be used: {error}.")
    if first != HEAD:
        fail(
            ExitCode.CONFIGURATION,
            f"--env-file {file} is there and was not written by a sandbox.",
            "Give another name, for instance .env.sandbox, or delete the file.",
        )


def _write(file: Path, settings: Mapping[str, str]) -> None:
    """Write the settings, whole or not at all, for nobody else to read; a link stays one."""
    file = file.resolve()
    new = file.with_name(f"{file.name}.new")
    try:
        new.unlink(missing_ok=True)
        new.touch(mode=0o600, exist_ok=False)  # nobody else's, put there in between
        new.write_text("\n".join([HEAD, *_lines(settings), ""]))
        new.replace(file)
    except OSError as error:
        fail(ExitCode.FAILED, f"--env-file {file} can't be written: {error}.")
