-- Parts of statements, which use them by a line `-- use name --`. None holds a lock.

-- fragment fence --
-- Task t is run by this very attempt.
t.id = %(task_id)s and t.attempt = %(attempt)s and t.worker_id = %(worker_id)s
and t.status = 'processing'

-- fragment known --
-- How far task t has come, a row for each stage that has begun, or one without a stage.
t.cancel_requested_at is not null as cancel_requested,
extract(epoch from now() - t.cancel_requested_at)::float as cancel_age,
scene.found as scene, md5(scene.found::text) as inputs,
c.stage, c.state, c.request, c.submission_id, c.generation_id, c.generation_started_at,
c.bucket, c.path, c.media_type, c.size, c.sha256,
s.sent_at, s.answer, s.ended_at, s.account, now() as now,
coalesce(
  case
    when refusal.attempt is null or refusal.attempt = t.attempt - 1 then refusal.verdict
  end,
  c.verdict
) as verdict,
coalesce(
  vidgen.followers(s.account, s.key_fingerprint, s.followed_by) && %(scopes)s::text[], true
) as followed_here

-- fragment known_from --
-- `offset 0`: it is read once, though it is named twice.
cross join lateral (select vidgen.read_scene(t.scene_id, t.user_id) as found offset 0) as scene
left join vidgen.refusals as refusal on refusal.task_id = t.id
left join vidgen.checkpoints as c on c.task_id = t.id
left join vidgen.submissions as s on s.id = c.submission_id

-- fragment next_due --
-- When turn t has something due again; 'infinity': nothing waits for later. One probe per priority.
coalesce((
  select min(later.run_after)
    from generate_series(10, -10, -1) as p (priority)
   cross join lateral (
     select l.run_after
       from public.video_generation_tasks as l
      where l.user_id = t.user_id and l.lane = t.lane and l.priority = p.priority
        and l.status = 'pending' and l.run_after > now()
      order by l.run_after
      limit 1
   ) as later
), 'infinity')

-- fragment concern --
-- The suspects that this worker may take, and the gates that keep it from something.
suspect as materialized (
  select s.task_id, s.run_after, s.stage
    from vidgen.suspects as s
   where (s.stage is null or s.lane = %(lane)s)
     and (s.followers is null or s.followers && %(scopes)s::text[])
),
gate as materialized (
  select count(*) > 0 as closed,
         coalesce(bool_or(g.model in ('*', %(image_model)s)), false) as images,
         coalesce(bool_or(g.model in ('*', %(video_model)s)), false) as videos,
         count(*) > 0 and vidgen.stands_aside(%(worker_id)s) as aside
    from vidgen.gates as g
   where g.provider = %(provider)s and g.scope = any (%(scopes)s::text[])
     and g.model in ('*', %(image_model)s, %(video_model)s)
)

-- fragment opening --
-- What this worker may begin now, and what goes first: docs/claim.md.
alone as materialized (
  select coalesce(bool_or(stage = 'image'), false) as images,
         coalesce(bool_or(stage = 'video'), false) as videos,
         coalesce(bool_or(stage is null), false) as living
    from suspect
),
free as materialized (
  -- Free slots; null: no limit.
  select max(f.free) filter (where f.model = %(image_model)s) as images,
         max(f.free) filter (where f.model = %(video_model)s) as videos
    from vidgen.free_slots as f
   where f.provider = %(provider)s and f.account = %(account)s
),
place as materialized (
  -- How many new tasks and how many clips may begin; null: any number. One slot of a model is left for
  -- a suspect, which needs a slot and an idle worker at once; not while a gate keeps it from running.
  -- (Two claims at once may take it all the same; then the next one that comes free is left.)
  select case when gate.closed then 0 else least(
           free.images - alone.images::integer,
           case when free.videos is not null
             then vidgen.room_before(%(provider)s, %(account)s, %(video_model)s) end
         ) end as images,
         case when gate.videos then 0
              else free.videos - (alone.videos and not gate.images)::integer end as videos
    from gate, alone, free
),
ready as materialized (
  -- A generation of another account is its workers' to follow: it isn't seen here.
  select %(idle)s and case
           when alone.living and not gate.aside then true
           -- For a suspect, the slot that is left for it counts.
           when gate.closed then false
           else (alone.images and free.images is distinct from 0)
                or (alone.videos and free.videos is distinct from 0)
         end as suspects,
         not gate.aside and exists (
           select from vidgen.due_resumes as r
            where r.stage is null and (r.followers is null or r.followers && %(scopes)s::text[])
              and not exists (select from suspect where suspect.task_id = r.task_id)
         ) as living,
         coalesce(place.videos > 0, true) and exists (
           select from vidgen.due_resumes as r
            where r.lane = %(lane)s and r.stage = 'video'
              and not exists (select from suspect where suspect.task_id = r.task_id)
         ) as clips
    from gate, alone, free, place
)
