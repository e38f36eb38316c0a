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
) as verdict

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

-- fragment to_cancel --
-- Task t waits, and its owner has asked to cancel; not one that the provider could not be asked for just now.
t.status = 'pending' and t.cancel_requested_at is not null and t.lane > 0
and not exists (select from vidgen.budgets as b where b.task_id = t.id and b.cancel_after > now())
and not exists (select from vidgen.set_aside as a where a.task_id = t.id)

-- fragment possibly_paid --
-- Submission s of the stage may have been paid: unknown, under way, gone, or ended with a cost.
s.stage = %(stage)s and s.counted
and (s.answer is null or s.answer = 'unknown' or (s.answer = 'generation' and (
      s.ended_at is null or s.ended_state in ('gone', 'cancelled', 'succeeded')
      or coalesce(s.cost, s.estimated_cost, 1) > 0)))

-- fragment followed_here --
-- This worker may follow the generation of submission s.
coalesce(vidgen.followers(s.account, s.key_fingerprint, s.followed_by) && %(scopes)s::text[], true)

-- fragment cost_to_read --
-- The generation of submission s ended some minutes ago, and its cost was not read since.
s.ended_at between now() - interval '1 day' and now() - interval '5 minutes'
and s.cost_read_at < s.ended_at + interval '5 minutes'
and s.provider = %(provider)s and
  -- use followed_here --

-- fragment give_up --
-- Paid POSTs whose answer is lost.
update vidgen.submissions as s
   set answer = 'unknown', answered_at = now(), details = 'nobody recorded an answer'
  from lost
 where s.id = lost.id

-- fragment upload_left --
-- Upload u began long ago, and is neither charged nor removed.
u.removed_at is null and u.since < now() - interval '1 hour'

-- fragment upload --
-- The place of an output, unless the owner of its task has asked to cancel.
insert into vidgen.uploads (id, task_id, user_id, stage, attempt, worker_id, bucket, path)
select %(upload_id)s, mine.id, mine.user_id, %(stage)s, mine.attempt, mine.worker_id, %(bucket)s,
       %(path)s
  from mine
 where not mine.cancel

-- fragment concern --
-- The suspects that this worker may take, the gates that keep it from something, what may go on, and the
-- free slots of the lane's models; null: no limit.
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
),
due as not materialized (
  -- A generation of another account is its workers' to follow: it isn't seen here.
  select r.task_id, r.lane, r.stage, r.resume_at
    from vidgen.due_resumes as r
   where (r.followers is null or r.followers && %(scopes)s::text[])
     and not exists (select from suspect where suspect.task_id = r.task_id)
),
free as materialized (
  select max(f.free) filter (where f.model = %(image_model)s) as images,
         max(f.free) filter (where f.model = %(video_model)s) as videos
    from vidgen.free_slots as f
   where f.provider = %(provider)s and f.account = %(account)s
)

-- fragment opening --
-- What this worker may begin now, and what goes first: docs/claim.md.
alone as materialized (
  select coalesce(bool_or(stage = %(image_stage)s), false) as images,
         coalesce(bool_or(stage = %(video_stage)s), false) as videos,
         coalesce(bool_or(stage is null), false) as living
    from suspect
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
  select going.clips,
         going.clips
         or (not gate.aside and exists (select from due where due.stage is null))
         or (%(idle)s and case
               when alone.living and not gate.aside then true
               -- For a suspect, the slot that is left for it counts.
               when gate.closed then false
               else (alone.images and free.images is distinct from 0)
                    or (alone.videos and free.videos is distinct from 0)
             end) as resumable
    from gate, alone, free, place
   cross join lateral (
     select coalesce(place.videos > 0, true) and exists (
              select from due where due.lane = %(lane)s and due.stage = %(video_stage)s
            ) as clips
     offset 0
   ) as going
)

-- fragment begun_of_user --
-- How many places the user of this line takes (VIDGEN_MAX_RUNNING_PER_USER): what runs, and what waits to go
-- on. A film takes none: its parts do.
((select count(*) from public.video_generation_tasks as t
   where t.user_id = line.user_id and t.status = 'processing' and t.lane > 0)
 + (select count(*) from vidgen.resumes as r where r.user_id = line.user_id and r.lane > 0))

-- fragment due_of_user --
-- What is due of the user of this line, in the user's own order: the rows of one share, and one more. One
-- probe per priority: rows for later, however many, are never walked.
select found.id,
       row_number() over (order by found.priority desc, found.run_after, found.created_at) as rank
  from generate_series(10, -10, -1) as p (priority)
 cross join lateral (
   select t.id, t.priority, t.run_after, t.created_at
     from public.video_generation_tasks as t
    where t.user_id = line.user_id and t.lane = %(lane)s and t.priority = p.priority
      and t.status = 'pending' and t.run_after <= now()
      and not exists (select from vidgen.resumes as r where r.task_id = t.id)
      -- A suspect waits for no turn, and takes none from its user's other tasks. One probe a row.
      and not coalesce((select b.suspect from vidgen.budgets as b where b.task_id = t.id), false)
    order by t.run_after, t.created_at
    limit (select rows + 1 from share)
 ) as found
 order by found.priority desc, found.run_after, found.created_at
 limit (select rows + 1 from share)

-- fragment turns --
-- Who had a turn, and has more, goes to the end of the line; who has no more, leaves it.
taken as materialized (select array(select id from begun where refused is null) as ids),
left_over as materialized (
  select line.user_id, row_number() over (order by line.waiting_since) as place,
         count(*) filter (where waiting.id = any (taken.ids)) as taken,
         -- Rows beyond those taken; or rows that came in after this statement's snapshot.
         count(waiting.id) > count(*) filter (where waiting.id = any (taken.ids))
         or line.arrivals is distinct from (
           select t.arrivals from vidgen.turns as t where t.user_id = line.user_id and t.lane = %(lane)s
         ) as more,
         bool_or(waiting.at_cap) as at_cap,
         -- Had its turn and could not use it (a client holds the row): it must not stand in
         -- everybody's way.
         bool_or(waiting.id = any (array(select id from chosen)) and waiting.id <> all (taken.ids))
           as passed
    from line
   cross join taken
    left join waiting on waiting.user_id = line.user_id
   group by line.user_id, line.waiting_since, line.arrivals
),
moved as (
  update vidgen.turns as t
     set waiting_since = case
           when o.more and o.at_cap then null
           when o.more and o.taken = 0 and o.passed is not true then t.waiting_since
           when o.more then clock_timestamp() + o.place * interval '1 microsecond'
         end,
         due_at = case
           when o.more and o.at_cap then now() + interval '1 second'
           when o.more then 'infinity'
           else
             -- use next_due --
         end
    from left_over as o
   where t.user_id = o.user_id and t.lane = %(lane)s
  returning t.waiting_since
),
rest as materialized (
  select exists (select from moved where waiting_since is not null)
         or exists (
           select from vidgen.turns as t
            where t.lane = %(lane)s and t.waiting_since is not null
              and t.user_id <> all (array(select user_id from line))
         ) as in_line,
         -- Also what line_up left: another claim holds that user's turn.
         exists (select from vidgen.arrivals as a where a.lane = %(lane)s) as mail
)
