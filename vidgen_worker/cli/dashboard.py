"""`dashboard`: the operator's pages in a browser, on this machine's loopback.

The server needs packages of its own (the extra `dashboard`), so that they are imported here, when
somebody asks for it. It ends with Ctrl-C.
"""

import contextlib
import importlib.util
import os
import signal
import sys
import webbrowser
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidgen_worker.cli.exit_codes import ExitCode
from vidgen_worker.cli.interrupts import Interrupts
from vidgen_worker.cli.output import console, fail
from vidgen_worker.client.database import ClientSettings, load_client_settings

if TYPE_CHECKING:
    from vidgen_worker.dashboard.server import DashboardServer

PORT = 8470
PACKAGES = ("starlette", "uvicorn", "jinja2", "pygal")
INSTALL = "pip install 'vidgen-worker[dashboard]'"
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
"""Without one of these a browser would run in the terminal, in place of the dashboard."""


def dashboard(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where; 0 is any free one.")] = PORT,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Show everything, let nothing be changed.")
    ] = False,
    no_open: Annotated[
        bool, typer.Option("--no-open", help="Only print the link, open no browser.")
    ] = False,
) -> None:
    """Show the queue, every task's story, users and numbers in a browser. Ctrl-C ends it."""
    _need_packages()
    settings = load_client_settings()
    err = console(stderr=True)
    with Interrupts() as interrupts:
        try:
            with contextlib.ExitStack() as stack:
                with interrupts.hold():
                    server = stack.enter_context(
                        running_dashboard(settings, port=port, read_only=read_only)
                    )
                print(server.link, flush=True)
                err.print(
                    "Open this link in a browser of this machine. Whoever has it may do what you "
                    "can. Ctrl-C ends the dashboard.",
                    soft_wrap=True,
                )
                if not no_open and _has_browser():
                    webbrowser.open(server.link_for_once)
                while True:
                    signal.pause()
        except KeyboardInterrupt:
            err.print("The dashboard is stopped.")
            sys.exit(ExitCode.INTERRUPTED)


@contextlib.contextmanager
def running_dashboard(
    settings: ClientSettings, *, port: int = 0, read_only: bool = False
) -> Iterator["DashboardServer"]:
    """Provide a dashboard that runs in a thread. Raises PortError."""
    from vidgen_worker.dashboard.server import DashboardServer  # noqa: PLC0415 - the extra

    with DashboardServer(settings, port, read_only=read_only) as server:
        yield server


@contextlib.contextmanager
def dashboard_beside(environment: Mapping[str, str]) -> Iterator[str | None]:
    """Provide the link of a dashboard beside a stack; None where its packages are not installed.

    `environment` holds the stack's settings, as `Sandbox.environment()` gives them.
    """
    if missing_packages():
        yield None
        return
    known: dict[str, Any] = {
        name: environment[name.upper()]
        for name in ClientSettings.model_fields
        if name.upper() in environment
    }
    with running_dashboard(ClientSettings(_env_file=None, **known)) as server:
        yield server.link


def missing_packages() -> list[str]:
    """Return the packages of the extra that are not installed."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def _need_packages() -> None:
    if missing := missing_packages():
        fail(
            ExitCode.CONFIGURATION,
            f"The dashboard needs packages that are not installed: {', '.join(missing)}.",
            f"Install them: {INSTALL}",
        )


def _has_browser() -> bool:
    return sys.stdout.isatty() and any(os.environ.get(name) for name in DISPLAYS)
