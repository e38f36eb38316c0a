"""Order a video with supabase-py, wait for it, and sign its URL.

SUPABASE_URL=… SUPABASE_KEY=sb_publishable_… ACCESS_TOKEN=… python generate.py SCENE_ID
"""

import os
import sys
import time
from typing import Any
from uuid import uuid4

from supabase import Client, ClientOptions, PostgrestAPIError, create_client

TASKS = "video_generation_tasks"
ENDED = {"completed", "failed", "cancelled"}


def connect() -> Client:
    """Return a client that acts as the user whose token this is."""
    token = os.environ["ACCESS_TOKEN"]
    options = ClientOptions(headers={"Authorization": f"Bearer {token}"})
    return create_client(os.environ["SUPABASE_URL"], os.environ["SUPABASE_KEY"], options)


def order(supabase: Client, scene_id: str) -> str:
    """Insert the task. An id of our own makes it safe to send twice."""
    task_id = str(uuid4())
    row = {"id": task_id, "scene_id": scene_id}
    supabase.table(TASKS).upsert(row, on_conflict="id", ignore_duplicates=True).execute()
    return task_id


def wait(supabase: Client, task_id: str, pause: float) -> dict[str, Any]:
    """Read the row until it has ended; an async client may watch it with Realtime as well."""
    seen = ""
    while True:
        answer = supabase.table(TASKS).select("*").eq("id", task_id).single().execute()
        task: Any = answer.data
        if task["updated_at"] != seen:
            seen = task["updated_at"]
            print(f"{task['progress']:3.0f} %  {task['current_step']}")
        if task["status"] in ENDED:
            return dict(task)
        time.sleep(pause)


def sign(supabase: Client, task: dict[str, Any]) -> str:
    """Return a URL that is good for an hour from now; `video_path` is what lasts."""
    bucket = supabase.storage.from_(os.environ.get("VIDEOS_BUCKET", "video-files"))
    return str(bucket.create_signed_url(task["video_path"], 3600)["signedURL"])


def main() -> int:
    """Order the scene of the command line."""
    supabase = connect()
    try:
        task_id = order(supabase, sys.argv[1])
    except PostgrestAPIError as error:
        # PT429: a limit is reached. 42501: the scene isn't yours, or doesn't exist.
        print(error.code, error.message, error.hint or "", file=sys.stderr)
        return 1
    try:
        task = wait(supabase, task_id, float(os.environ.get("REFETCH_SECONDS", "3")))
    except KeyboardInterrupt:
        supabase.rpc("cancel_video_generation_task", {"task_id": task_id}).execute()
        return 130
    if task["status"] != "completed":
        print(task["status"], task["error_code"], task["error_message"], file=sys.stderr)
        return 1
    print("still", task["image_url"])
    print("video", sign(supabase, task))
    return 0


if __name__ == "__main__":
    sys.exit(main())
