#!/usr/bin/env bash
# Order a video with curl against the REST API, wait for it, and sign its URL.
#   SUPABASE_URL=… SUPABASE_KEY=sb_publishable_… ACCESS_TOKEN=… ./generate.sh SCENE_ID
set -euo pipefail

: "${SUPABASE_URL:?}" "${SUPABASE_KEY:?}" "${ACCESS_TOKEN:?}"
scene=${1:?usage: generate.sh SCENE_ID}
bucket=${VIDEOS_BUCKET:-video-files}

call() { # METHOD PATH [curl arguments]
  local method=$1 path=$2
  shift 2
  local answer
  answer=$(curl --silent --show-error --fail-with-body -X "$method" "$SUPABASE_URL$path" \
    -H "apikey: $SUPABASE_KEY" -H "Authorization: Bearer $ACCESS_TOKEN" \
    -H 'Content-Type: application/json' "$@") || { echo "$answer" >&2; return 1; }
  echo "$answer"
}

field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

one='Accept: application/vnd.pgrst.object+json'
task=$(call POST /rest/v1/video_generation_tasks -H 'Prefer: return=representation' -H "$one" \
  -d "{\"scene_id\": \"$scene\"}")
id=$(field id <<<"$task")
trap 'call POST /rest/v1/rpc/cancel_video_generation_task -d "{\"task_id\": \"$id\"}"; exit 130' INT

while :; do
  task=$(call GET "/rest/v1/video_generation_tasks?id=eq.$id&select=*" -H "$one")
  case $(field status <<<"$task") in
    completed) break ;;
    failed | cancelled) field error_message <<<"$task" >&2; exit 1 ;;
  esac
  sleep "${REFETCH_SECONDS:-3}"
done

path=$(field video_path <<<"$task")
signed=$(call POST "/storage/v1/object/sign/$bucket/$path" -d '{"expiresIn": 3600}')
echo "video $SUPABASE_URL/storage/v1$(field signedURL <<<"$signed")"
