"""The two receivers of examples/, told by a worker's own signatures."""

import json
import os
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from vidgen_worker.sandbox.postgres.places import free_port
from vidgen_worker.webhooks.signing import headers

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
TOOLS = ROOT / ".tools" / "node_modules"
SECRET = b"s" * 32
WHSEC = f"whsec_{b64encode(SECRET).decode()}"
BODY = json.dumps({
    "type": "video.completed", "timestamp": "2026-12-01T12:00:00.000000Z",
    "data": {"task_id": str(uuid4()), "user_id": str(uuid4()), "status": "completed",
             "reference": "order 7", "error_code": None, "video_path": "video-files/a/b.mp4"},
}).encode()  # fmt: skip


def test_the_receiver_handles_an_event_once_and_refuses_a_forged_one() -> None:
    port, delivery, now = free_port(), uuid4(), int(time.time())
    signed = headers(delivery, now, BODY, [SECRET])
    with (
        subprocess.Popen(
            [sys.executable, EXAMPLES / "webhook_receiver.py", str(port)],
            env=os.environ | {"WEBHOOK_SECRET": WHSEC}, stdout=subprocess.PIPE, text=True,
        ) as server,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=6)
        ) as http,
    ):  # fmt: skip
        try:
            answers = [
                http.post("/", content=BODY, headers=given).status_code
                for given in (
                    signed, signed, headers(delivery, now, BODY, [b"x" * 32]),
                    headers(delivery, now - 3600, BODY, [SECRET]), {},
                )
            ]  # fmt: skip
        finally:
            server.terminate()
        assert server.stdout is not None
        said = server.stdout.read()
    assert answers == [204, 204, 401, 401, 401]
    assert said == "order 7: ready, video-files/a/b.mp4\n"


DENO = """
declare const Deno: {
  env: { get(name: string): string | undefined }
  serve(handler: (request: Request) => Response | Promise<Response>): void
}
"""
DRIVER = """
import { readFileSync } from 'node:fs'
import WebSocket from 'ws' // Node 20 has none of its own, Deno has
globalThis.WebSocket = WebSocket
const [body, signed, forged] = JSON.parse(readFileSync(0, 'utf8'))
const rows = new Set()
globalThis.fetch = async (url, options) => {
  if (options.method === 'GET') {
    const id = new URL(url).searchParams.get('id').slice('eq.'.length)
    return Response.json(rows.has(id) ? [{ id }] : [])
  }
  rows.add(JSON.parse(options.body).id)
  return new Response(null, { status: 201 })
}
let handle
const env = { ...process.env }
globalThis.Deno = { env: { get: (name) => env[name] }, serve: (given) => { handle = given } }
await import('./function.mjs')
const statuses = []
for (const headers of [signed, signed, forged, {}]) {
  const request = new Request('http://x/', { method: 'POST', body, headers })
  statuses.push((await handle(request)).status)
}
console.log(JSON.stringify(statuses))
"""


@pytest.mark.skipif(
    not (shutil.which("node") and (TOOLS / "standardwebhooks").exists()), reason="make tools"
)
def test_the_edge_function_has_its_types_and_handles_an_event_once(tmp_path: Path) -> None:
    """Where Supabase runs it with Deno; there is none here, so that Node stands in for it."""
    (tmp_path / "node_modules").symlink_to(TOOLS)
    (tmp_path / "deno.d.ts").write_text(DENO)
    source = (EXAMPLES / "webhook_function.ts").read_text()
    for name in ("@supabase/supabase-js@2", "standardwebhooks@1"):
        assert f"npm:{name}'" in source
        source = source.replace(f"npm:{name}'", f"{name.rsplit('@', 1)[0]}'")
    (tmp_path / "function.mts").write_text(source)
    checked = subprocess.run(
        [TOOLS / ".bin/tsc", "--strict", "--module", "nodenext", "--target", "es2022", "--lib",
         "es2022,dom,dom.iterable", "--types", "node", "--skipLibCheck", "function.mts",
         "deno.d.ts"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (checked.returncode, checked.stdout) == (0, "")
    (tmp_path / "driver.mjs").write_text(DRIVER)
    delivery, now = uuid4(), int(time.time())
    said = [
        BODY.decode(), headers(delivery, now, BODY, [SECRET]),
        headers(delivery, now, BODY, [b"x" * 32]),
    ]  # fmt: skip
    done = subprocess.run(
        ["node", "driver.mjs"], cwd=tmp_path, input=json.dumps(said), capture_output=True,
        text=True, check=False, executable=shutil.which("node"),
        env={"WEBHOOK_SECRET": WHSEC, "SUPABASE_URL": "http://127.0.0.1:9",
             "SUPABASE_SERVICE_ROLE_KEY": "key"},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "[204,204,401,401]"
    assert done.stdout.count("video.completed order 7 completed") == 1
