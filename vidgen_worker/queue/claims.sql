-- Claims: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.

-- claim --
-- Begin an attempt on up to `slots` new tasks by turns: the users who have waited longest, each a
-- share, in their own order of priority, run_after, created_at. Nothing while a task is ready that goes
-- first: `resume` takes those, and then this one comes again and is told so. The row lock on a user's turn
-- makes this the only claim that looks at this user; a client that holds a task's row is skipped. Where the
-- model has a limit, each task whose still is due gets one of its slots here, and no more begin than there
-- are: locked rows, because a count is read in this statement's own snapshot, beside which another claim
-- may commit. The count before them only says how many turns are worth a lock.
-- Each row says what is left, and where nothing began there is one row that says only this. `resumable`: a
-- task is ready that goes first. `mail`: the mailbox isn't empty. `more`: that, or somebody is in the line.
-- `waiting`: this should be repeated soon (another claim may have held that turn, or the slot); not while a
-- gate is closed or no slot is free: then nothing may start, and asking again costs a statement each time.
with
-- use concern --
,
-- use opening --
,
places as materialized (
  select greatest(least(%(slots)s, place.images), 0)::integer as most
    from place, ready, vidgen.workers as me
   -- A worker declared dead claims nothing.
   where me.id = %(worker_id)s and me.dead_at is null and (%(resumed)s or not ready.resumable)
),
line as materialized (
  -- Of a user whose submissions come with pauses one task at a time begins: the others would only be
  -- put back.
  select user_id, waiting_since, arrivals,
         (select u.paused_until is not null from vidgen.user_limits as u
           where u.user_id = turns.user_id) is true as slowed
    from vidgen.turns
   where lane = %(lane)s and waiting_since is not null
   order by waiting_since
   limit coalesce((select least(most, 200) from places), 0)
     for update skip locked
),
share as materialized (
  select ceil((select most from places)::numeric / greatest(count(*), 1))::integer as rows
    from line
),
waiting as materialized (
  select line.user_id, line.waiting_since, line.slowed, due.id, due.rank, begun.tasks,
         coalesce(begun.tasks >= %(max_running_per_user)s::integer, false) as at_cap
    from line
   cross join lateral (
     -- Null where there is no cap.
     select case when %(max_running_per_user)s::integer is not null then
              -- use begun_of_user --
            end as tasks
     offset 0
   ) as begun
   cross join lateral (
     -- use due_of_user --
   ) as due
),
image_slots as materialized (
  select s.id
    from vidgen.slots as s
   where (s.provider, s.account, s.model) = (%(provider)s, %(account)s, %(image_model)s)
     and s.task_id is null
   limit (select least(count(*), (select most from places)) from waiting)
     for update skip locked
),
chosen as materialized (
  select w.id
    from waiting as w
   where w.rank <= (select rows from share) and (w.rank = 1 or not w.slowed)
     and (w.tasks is null or (
       w.rank + w.tasks <= %(max_running_per_user)s::integer
       -- Another claim had this turn after our snapshot: what it began is not in our count.
       and w.waiting_since = (
         select t.waiting_since from vidgen.turns as t where t.user_id = w.user_id and t.lane = %(lane)s
       )
     ))
   order by w.rank, w.waiting_since
   limit (
     select case when free.images is null then most else (select count(*) from image_slots) end
       from places, free
   )
),
begun as materialized (
  -- A row that refuses is set aside, and keeps nobody waiting.
  select *
    from vidgen.begin_attempts(array(select id from chosen), %(worker_id)s, false)
),
reserved as (
  update vidgen.slots as s
     set task_id = given.task_id, taken_at = now()
    from unnest(
           array(
             -- A retried task that has its still submits no image: it takes a clip's slot later.
             select id from begun
              where refused is null and not exists (
                select from vidgen.checkpoints as c
                 where c.task_id = begun.id and c.stage = %(image_stage)s and c.state = 'done'
              )
           ),
           array(select id from image_slots)
         ) as given (task_id, slot_id)
   where s.id = given.slot_id and given.task_id is not null
),
-- use turns --
select c.*, rest.mail, rest.in_line or rest.mail as more,
       extract(epoch from clock_timestamp() - greatest(c.run_after, c.created_at))::float as waited,
       ready.resumable,
       not gate.closed and (
         (ready.clips and free.videos is not null)
         or (coalesce(place.images > 0, true) and (rest.in_line or rest.mail))
       ) as waiting
  from gate cross join free cross join place cross join ready cross join rest
  left join begun as c on true
 order by c.run_after, c.created_at

-- resume --
-- Take up to `slots` waiting tasks that have something to go on from, before anything new: first a
-- suspect (or it would wait for ever under load), which runs alone; else those whose generation lives at
-- the provider or whose clip is stored (they cost nothing), then those past their image, each with one
-- of the video model's slots where it has a limit. What lives goes on behind a closed gate too: the
-- output that is to show that rows are taken again may be among it. It is left to others by a worker
-- behind a gate of its own, which could not read it, or not store it.
with
-- use concern --
,
image_slots as materialized (
  select s.id
    from vidgen.slots as s
   where (s.provider, s.account, s.model) = (%(provider)s, %(account)s, %(image_model)s)
     and s.task_id is null and %(idle)s
     and exists (select from suspect where stage = %(image_stage)s)
   limit 1
     for update skip locked
),
video_slots as materialized (
  select s.id
    from vidgen.slots as s
   where (s.provider, s.account, s.model) = (%(provider)s, %(account)s, %(video_model)s)
     and s.task_id is null and not (select videos from gate)
   -- No more than wait for one, or a submission that goes straight on finds none free. One more than
   -- places: it may be the one that is left for a suspect.
   limit (
     select count(*) from (
       select from vidgen.resumes where lane = %(lane)s and stage = %(video_stage)s limit %(slots)s + 1
     ) as waiting
   )
     for update skip locked
),
alone as materialized (
  -- Here and below each task is taken by its id: a plan made while little waited would rather walk all
  -- that waits. One that refuses takes a place in this claim and none in the next.
  select begun.*, first.stage
    from (
      select suspect.task_id, suspect.stage
        from suspect, gate, free
       where %(idle)s
         and case
               when suspect.stage is null then not gate.aside
               when gate.closed then false
               when suspect.stage = %(video_stage)s
                 then free.videos is null or exists (select from video_slots)
               else free.images is null or exists (select from image_slots)
             end
       order by suspect.run_after
      offset 0
    ) as first
   cross join lateral vidgen.begin_attempts(array[first.task_id], %(worker_id)s, false) as begun
   limit 1
),
living as materialized (
  select begun.*
    from (
      select due.task_id
        from due
       where due.stage is null and not exists (select from alone) and not (select aside from gate)
       order by due.resume_at
      offset 0
    ) as first
   cross join lateral vidgen.begin_attempts(array[first.task_id], %(worker_id)s, false) as begun
   limit %(slots)s
),
clips as materialized (
  select begun.*
    from (
      select due.task_id
        from due
       where due.lane = %(lane)s and due.stage = %(video_stage)s
         and not exists (select from alone) and not (select videos from gate)
       order by due.resume_at
      offset 0
    ) as first
   cross join lateral vidgen.begin_attempts(array[first.task_id], %(worker_id)s, false) as begun
   limit (
     select greatest(least(
              %(slots)s - (select count(*) from living),
              -- One is left for a suspect.
              case when free.videos is not null then (select count(*) from video_slots)
                - (
                  exists (select from suspect where stage = %(video_stage)s) and not gate.images
                )::integer end
            ), 0)
       from free, gate
   )
),
begun as materialized (
  select alone.*, true as alone from alone
  union all select living.*, null, false from living
  union all select clips.*, %(video_stage)s::text, false from clips
),
reserved as (
  update vidgen.slots as s
     set task_id = given.task_id, taken_at = now()
    from (
           select * from unnest(
             array(select id from begun where stage = %(video_stage)s and refused is null),
             array(select id from video_slots)
           ) as of_videos (task_id, slot_id)
           union all
           select alone.id, image_slots.id
             from alone, image_slots
            where alone.stage = %(image_stage)s and alone.refused is null
         ) as given
   where s.id = given.slot_id and given.task_id is not null
)
select c.*,
       extract(epoch from clock_timestamp() - greatest(c.run_after, c.created_at))::float as waited
  from begun as c
 order by c.run_after, c.created_at

-- claim_cancelled --
-- Waiting tasks whose owner asked to cancel while a generation still runs: outside slots, gates and
-- RUNWAYML_ENABLED; one that the provider could not be asked for is left alone for a while.
-- Rows that others hold take no place in the limit.
select begun.*
  from (
    select t.id
      from public.video_generation_tasks as t
     where
       -- use to_cancel --
       and not vidgen.stands_aside(%(worker_id)s)
       -- Only its account can end what lives of it.
       and not exists (
         select
           from vidgen.checkpoints as c
           join vidgen.submissions as s on s.id = c.submission_id
          where c.task_id = t.id and c.state <> 'done' and s.ended_at is null
            and (s.answer is null or s.answer = 'generation')
            and not
              -- use followed_here --
       )
     order by t.cancel_requested_at
    offset 0
  ) as asked
 cross join lateral vidgen.begin_attempts(array[asked.id], %(worker_id)s, true) as begun
 limit 100
