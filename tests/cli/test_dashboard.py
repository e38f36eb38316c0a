"""`dashboard`: the verb, and the one function that starts it beside a stack."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.support.clocks import moved_clock
from tests.support.commands import Cli, cli, connected
from tests.support.world import World, vidgen
from vidgen_worker.cli import dashboard
from vidgen_worker.cli.dashboard import dashboard_beside
from vidgen_worker.sandbox.control import StorageControl

__all__ = ["cli", "connected"]


@contextmanager
def running(
    database_url: str, *arguments: str, **more: str
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The verb as a process, and the link that it prints; `more` is of its environment."""
    environment = {"PATH": os.environ["PATH"], "DATABASE_URL": database_url, **more}
    with subprocess.Popen(
        [sys.executable, "-m", "vidgen_worker", "dashboard", "--port", "0", *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            if process.poll() is None:
                process.kill()


def test_it_prints_its_link_serves_and_ends_with_ctrl_c(database_url: str) -> None:
    with running(database_url, "--read-only") as (process, link):
        with httpx.Client(follow_redirects=True) as client:
            page = client.get(link)
        assert page.status_code == 200
        assert "read only" in page.text
        assert "SUPABASE_URL" not in page.text
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (130, "")
        assert "Whoever has it may do what you can" in err
        assert "The dashboard is stopped." in err
        assert "Traceback" not in err


@pytest.mark.parametrize("hours", [-5, 5])
def test_ages_are_by_the_databases_clock_where_this_machines_is_wrong(
    world: World, tmp_path: Path, hours: int
) -> None:
    user = world.user()
    world.order(user, world.scene(user))
    wrong = moved_clock(tmp_path, hours)
    listed = vidgen(world, "tasks", "list", **wrong)
    assert re.search(r"pending +0 +\d+[sm]", listed.stdout), listed.stdout + listed.stderr
    with (
        running(world.database.url, **wrong) as (_, link),
        httpx.Client(follow_redirects=True) as client,
    ):
        client.get(link)
        url = link.partition("/?")[0]
        page = client.get(f"{url}/tasks").text
        now = world.one("select now() as now")["now"]
        read_at = re.findall(r'id="read-at" data-live datetime="([^"]+)"', page)
        hour = re.findall(r'<td class="key">(.+?)</td>', client.get(f"{url}/numbers").text)
    assert re.search(r">(now|\d+ [sm] ago)</time>", page), page
    assert abs(datetime.fromisoformat(read_at[0]) - now) < timedelta(hours=1)
    assert f"{now - timedelta(minutes=2):%Y-%m-%d %H:00}" in hour


def test_the_link_that_a_browser_is_started_with_is_of_no_use_to_who_sees_it(
    database_url: str, tmp_path: Path
) -> None:
    """Everybody on the machine sees the arguments of a browser, for as long as it runs."""
    told = tmp_path / "told"
    os.mkfifo(told)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {told}\n')
    browser.chmod(0o755)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "vidgen_worker", "dashboard", "--port", "0"],
        env={"PATH": os.environ["PATH"], "DATABASE_URL": database_url, "DISPLAY": ":0",
             "BROWSER": f"{browser} %s"},
        stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        opened = told.read_text().strip()
        assert [httpx.get(opened).status_code for _ in range(3)] == [303, 403, 403]
        printed = os.read(ours, 1000).split()[0].decode()
        assert opened != printed
        assert [httpx.get(printed).status_code for _ in range(2)] == [303, 303]
        process.send_signal(signal.SIGINT)
        process.wait(30)
    os.close(ours)
    os.close(theirs)


def test_a_port_that_is_taken_is_reported_in_one_sentence(connected: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = connected("dashboard", "--no-open", "--port", taken.getsockname()[1])
    assert result.code == 1
    assert "--port 0 takes a free one" in result.err


def test_without_its_packages_it_says_which_and_how_to_get_them(
    connected: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard, "PACKAGES", ("jinja2", "no_such_package"))
    result = connected("dashboard")
    assert result.code == 78
    assert "not installed: no_such_package" in result.err
    assert "pip install 'vidgen-worker[dashboard]'" in result.err
    with dashboard_beside({}) as link:
        assert link is None


def test_it_is_started_beside_a_running_stack(world: World, storage: StorageControl) -> None:
    with dashboard_beside(world.env()) as link:
        assert link is not None
        with httpx.Client(follow_redirects=True) as client:
            answer = client.get(link)
        assert answer.status_code == 200
        assert storage.url in answer.headers["content-security-policy"]
        assert storage.keys.service_role not in answer.text
    with pytest.raises(httpx.ConnectError):
        httpx.get(link)
