"""The double's answers against those recorded of the real server (storage_answers.json).

Each line: where it was seen, what it is, the request, what is sent, the status, and what the body
holds. In a body `…` stands for any text, and `"ABSENT"` for no such field. One server for all: the
lines are read in their order.
"""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg
import pytest

from tests.conftest import Database, PostgresServer, database_of
from vidgen_worker.sandbox.serving import BackgroundServer
from vidgen_worker.sandbox.supabase.storage import StorageDouble

ANSWERS = json.loads(Path(__file__).with_name("storage_answers.json").read_text())


class Bench:
    """The double with what the recorded requests speak of, and their words filled in."""

    def __init__(self, http: httpx.Client, double: StorageDouble) -> None:
        self.http = http
        keys, now = double.keys, int(time.time())

        def token(**claims: object) -> str:
            return jwt.encode({"exp": now + 60, **claims}, keys.jwt_secret, "HS256")

        self.words = {
            "ANON": keys.anon,
            "USER": keys.user_token(uuid.uuid4()),
            "EXPIRED": keys.user_token(uuid.uuid4(), seconds=-5),
            "FORGED": jwt.encode({"role": "anon"}, "x" * 32, "HS256"),
            "NO_ROLE": token(sub=str(uuid.uuid4())),
            "UNKNOWN_ROLE": token(role="nobody_knows"),
            "LONG101": "x" * 101,
            "SIX_BYTES": "123456",
        }
        self.service = keys.service_role
        self._prepare()

    def _prepare(self) -> None:
        self.send("POST /bucket", {"json": {"name": "films"}})
        self.send("POST /bucket", {"json": {"name": "open", "public": True}})
        limited = {"name": "stills", "file_size_limit": 5, "allowed_mime_types": ["image/png"]}
        self.send("POST /bucket", {"json": limited})
        self.send("POST /object/films/a.mp4", {"body": "x"})
        png = {"body": "x", "headers": {"content-type": "image/png"}}
        self.send("POST /object/open/a.png", png)
        self.words["ETAG"] = self.send("GET /object/public/open/a.png", {}).headers["etag"]
        signed = self.send("POST /object/sign/films/a.mp4", {"json": {"expiresIn": 60}})
        self.words["SIGNED"] = signed.json()["signedURL"]
        self.words["SIGNED_OTHER"] = self.words["SIGNED"].replace("a.mp4", "b.mp4")
        leave = self.send("POST /object/upload/sign/films/left.mp4", {})
        self.words["LEAVE"] = leave.json()["url"]

    def send(self, request: str, sent: dict[str, Any]) -> httpx.Response:
        verb, _, path = request.partition(" ")
        for word in ("SIGNED_OTHER", "SIGNED", "LEAVE"):
            path = path.replace(word, self.words.get(word, word))
        text = json.dumps(sent)
        for word in ("ANON", "LONG101", "SIX_BYTES"):
            text = text.replace(f'"{word}"', json.dumps(self.words[word]))
        given = json.loads(text.replace('"ETAG"', json.dumps(self.words.get("ETAG", ""))))
        headers = dict(given.get("headers", {}))
        name = sent.get("auth", "SERVICE")
        if name is not None:
            token = self.service if name == "SERVICE" else self.words.get(name, name)
            headers["authorization"] = f"Bearer {token}"
        return self.http.request(
            verb, path, headers=headers, json=given.get("json"), content=given.get("body")
        )


@pytest.fixture(scope="module")
def bench(
    postgres_server: PostgresServer, bare_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    """Provide one double for the whole table."""
    with database_of(postgres_server, "answers", bare_template) as database:
        double = StorageDouble(tmp_path_factory.mktemp("storage"), database.admin_url)
        with (
            BackgroundServer(double.app) as server,
            httpx.Client(base_url=f"{server.url}/storage/v1") as http,
        ):
            yield Bench(http, double)


def test_every_recorded_answer_is_the_doubles(bench: Bench) -> None:
    wrong = []
    for seen, what, request, sent, status, body in ANSWERS:
        answer = bench.send(request, sent)
        if answer.status_code != status or not fits(shown(answer, body), body):
            wrong.append((seen, what, answer.status_code, answer.text[:300]))
    assert wrong == []


def shown(answer: httpx.Response, body: Any) -> object:  # noqa: ANN401 - any JSON
    """What the line speaks of: the headers it names, or the body."""
    if isinstance(body, dict) and "headers" in body:
        return {"headers": {name: answer.headers.get(name) for name in body["headers"]}}
    return None if body is None else answer.json()


def fits(got: object, expected: object) -> bool:
    match expected:
        case dict():
            return isinstance(got, dict) and all(
                name not in got if value == "ABSENT" else name in got and fits(got[name], value)
                for name, value in expected.items()
            )
        case list():
            return (
                isinstance(got, list)
                and len(got) == len(expected)
                and all(map(fits, got, expected))
            )
        case str() if "…" in expected:
            return isinstance(got, str) and got.endswith(expected.partition("…")[2])
        case _:
            return got == expected


def test_control_a_wrong_answer_is_found() -> None:
    assert fits({"a": [{"b": "xZ"}]}, {"a": [{"b": "…Z", "c": "ABSENT"}]})
    wrong: tuple[object, ...] = (
        {"a": [{"b": "x"}]}, {"a": []}, {"a": [{"b": "xZ", "c": 1}]}, {}, None,
    )  # fmt: skip
    for got in wrong:
        assert not fits(got, {"a": [{"b": "…Z", "c": "ABSENT"}]})


def test_a_body_of_megabytes_that_is_refused_is_not_read_to_its_end(bench: Bench) -> None:
    with pytest.raises(httpx.TransportError):
        bench.send("POST /object/none/big.mp4", {"body": "x" * (4 * 1024 * 1024)})
    assert bench.send("GET /bucket/films", {}).status_code == 200


def test_a_role_without_connections_or_login_is_a_database_error(
    postgres_server: PostgresServer, bare_template: str, tmp_path: Path
) -> None:
    """And once that is over, the next request is served."""
    role = f"limited_{uuid.uuid4().hex[:8]}"
    with (
        database_of(postgres_server, "refused", bare_template) as database,
        psycopg.connect(database.admin_url, autocommit=True) as admin,
    ):
        admin.execute(f"create role {role} superuser login password 'x'".encode())
        url = url_of(database, role)
        double = StorageDouble(tmp_path, url)
        try:
            with BackgroundServer(double.app) as server:
                said = []
                for change in ("nologin", "login connection limit 0", "connection limit -1"):
                    nosuper = "nosuperuser" if "0" in change else "superuser"
                    admin.execute(f"alter role {role} {nosuper} {change}".encode())
                    answer = httpx.get(
                        f"{server.url}/storage/v1/bucket",
                        headers={"authorization": f"Bearer {double.keys.service_role}"},
                    )
                    body = answer.json()
                    said.append((answer.status_code, body and body["message"]))
        finally:
            admin.execute(f"drop role {role}".encode())
    assert said == [
        (500, "database error, code: 28000"), (500, "database error, code: 53300"), (200, []),
    ]  # fmt: skip


def url_of(database: Database, role: str) -> str:
    return psycopg.conninfo.make_conninfo(database.admin_url, user=role, password="x")
