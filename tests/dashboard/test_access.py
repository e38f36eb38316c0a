"""Who gets in, from where, and with which headers: over real HTTP."""

import httpx
import pytest

from tests.support.panel import (
    Panel,
    browser,
    cookie_of,
    dashboard_of,
    form_token,
    panel,
    sentence_of,
)
from vidgen_worker.dashboard.access import LONGEST_FORM

__all__ = ["browser", "panel"]

PAGES = ("/", "/tasks", "/users", "/numbers", "/act?action=cancel&task=x", "/gate", "/nowhere")


def test_the_link_s_token_becomes_a_cookie_that_no_script_and_no_other_site_uses(
    panel: Panel,
) -> None:
    answer = httpx.get(panel.link)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    (cookie,) = cookie_of(answer).values()
    assert (cookie["httponly"], cookie["samesite"], cookie["path"]) == (True, "strict", "/")
    assert cookie.value not in panel.link
    assert panel.url.rpartition(":")[2] in cookie.key


@pytest.mark.parametrize("path", PAGES)
def test_without_the_cookie_no_page_says_anything(panel: Panel, path: str) -> None:
    for cookies in ({}, {"vidgen_dashboard_1": "x"}):
        answer = httpx.get(panel.url + path, cookies=cookies)
        assert answer.status_code == 401
        assert "Open the link" in sentence_of(answer)
        assert "/tasks" not in answer.text


def test_a_wrong_token_opens_nothing(panel: Panel) -> None:
    answer = httpx.get(f"{panel.link}x")
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("host", ["attacker.example", "127.0.0.1.attacker.example", "", "[::2]:1"])
def test_a_name_that_resolves_to_this_machine_is_refused(
    panel: Panel, browser: httpx.Client, host: str
) -> None:
    for path in ("/", "/static/dashboard.js", panel.link.removeprefix(panel.url)):
        answer = browser.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", [*PAGES, "/static/dashboard.css"])
def test_every_answer_carries_a_strict_policy(
    panel: Panel, browser: httpx.Client, path: str
) -> None:
    answer = browser.get(path)
    policy = dict(
        part.strip().partition(" ")[::2]
        for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == policy["media-src"] == f"'self' {panel.world.storage.url}"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["form-action"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "unsafe" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("headers", "with_token"),
    [
        ({"origin": "https://attacker.example"}, True),
        ({"origin": "null"}, True),
        ({"origin": "http://127.0.0.1:1"}, True),
        ({}, True),
        ({"origin": "own"}, False),
    ],
)
@pytest.mark.parametrize("path", ["/act", "/gate"])
def test_a_form_of_another_site_changes_nothing(
    panel: Panel, browser: httpx.Client, path: str, headers: dict[str, str], with_token: bool
) -> None:
    form = {"action": "cancel" if path == "/act" else "close", "model": "*", "scope": ""}
    form["task"] = str(panel.waiting)
    token = form_token(browser.get("/gate?action=close&model=*").text)
    form["token"] = token if with_token else token[::-1]
    sent = {name: panel.url if value == "own" else value for name, value in headers.items()}
    before = panel.world.sql("select * from vidgen.gates"), panel.world.task(panel.waiting)
    answer = browser.post(path, data=form, headers=sent)
    assert answer.status_code == 403
    assert "Nothing was changed" in sentence_of(answer)
    assert (
        panel.world.sql("select * from vidgen.gates"),
        panel.world.task(panel.waiting),
    ) == before


def test_an_action_is_a_post_and_a_page_is_not(panel: Panel, browser: httpx.Client) -> None:
    for path in ("/", "/tasks", "/numbers"):
        answer = browser.post(path, headers=panel.origin)
        assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (
            405,
            {"GET", "HEAD"},
        )
    for method in ("PUT", "DELETE", "PATCH"):
        assert browser.request(method, "/act", headers=panel.origin).status_code == 405
    status = panel.world.task(panel.waiting)["status"]
    browser.get("/act", params={"action": "cancel", "task": str(panel.waiting)})
    assert panel.world.task(panel.waiting)["status"] == status == "pending"


def test_a_form_without_end_is_not_read_to_it(panel: Panel, browser: httpx.Client) -> None:
    answer = browser.post("/act", content=b"x" * (LONGEST_FORM + 1), headers=panel.origin)
    assert answer.status_code == 413


def test_to_read_only_means_that_there_is_no_action(panel: Panel) -> None:
    with dashboard_of(panel.world, read_only=True) as link:
        url = link.partition("/?")[0]
        with httpx.Client(base_url=url, follow_redirects=True) as client:
            page = client.get(link).text
            assert "read only" in page
            assert "Close the gate" not in page
            assert "Cancel" not in client.get(f"/tasks/{panel.waiting}").text
            assert 'name="task"' not in client.get("/tasks").text
            for path in ("/act", "/gate"):
                for answer in (
                    client.get(path, params={"action": "cancel", "task": str(panel.waiting)}),
                    client.post(path, headers={"origin": url}),
                ):
                    assert answer.status_code == 403
                    assert "--read-only" in sentence_of(answer)
