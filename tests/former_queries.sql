-- What only the worker runs: named blocks, one statement each (see db.load_queries).
--
-- The fence is (id, attempt, worker_id, status = 'processing'). A write outside the task's row
-- begins with `mine`, which locks that row (for no key update: `for share` deadlocks when the
-- statement also updates it), and takes its rows from `mine`: a fence in the WHERE of another
-- table's UPDATE would be re-checked against that table only and let a zombie through.
-- Every statement may be sent twice: a lost acknowledgement changes nothing.

-- register_worker --
-- A worker's row, once per id: a repeated INSERT finds its own.
insert into vidgen.workers
  (id, host, pid, version, provider, key_fingerprint, concurrency, lease)
values
  (%(worker_id)s, %(host)s, %(pid)s, %(version)s, %(provider)s, %(key_fingerprint)s,
   %(concurrency)s, %(lease)s)
on conflict (id) do nothing

-- share_buckets --
-- The storage policy reads the buckets' names from here; written only when they differ.
update vidgen.settings
   set images_bucket = %(images_bucket)s, videos_bucket = %(videos_bucket)s
 where (images_bucket, videos_bucket) is distinct from (%(images_bucket)s, %(videos_bucket)s)

-- heartbeat --
-- One row written however many tasks are held. Zero rows of kind 'alive': declared dead. Then the
-- verdict on each held task, and, when `sweep` says that no claim is in flight, the orphans: rows
-- that name this worker but that it doesn't run (a claim whose answer was lost, a coroutine that
-- died) go back at once.
with beat as (
  update vidgen.workers
     set heartbeat_at = now(), running = %(running)s,
         steady_since = case when %(steady)s then coalesce(steady_since, now()) end
   where id = %(worker_id)s and dead_at is null
  returning id
),
held as materialized (
  select * from unnest(%(task_ids)s::uuid[], %(attempts)s::integer[]) as h (task_id, attempt)
),
orphans as materialized (
  select t.id
    from public.video_generation_tasks as t, beat
   where t.worker_id = %(worker_id)s and t.status = 'processing' and %(sweep)s
     and not exists (
       select from held where held.task_id = t.id and held.attempt = t.attempt
     )
   order by t.id
     for no key update of t skip locked
),
handed_back as (
  update public.video_generation_tasks as t
     set status = 'pending', worker_id = null, run_after = now()
    from orphans
   where t.id = orphans.id
  returning t.id
)
select 'alive' as kind, beat.id, null::integer as attempt from beat
union all
select case
         when t.id is null then 'lost'
         else 'cancel'
       end,
       held.task_id, held.attempt
  from held
  left join public.video_generation_tasks as t
    on t.id = held.task_id and t.attempt = held.attempt
       and t.worker_id = %(worker_id)s and t.status = 'processing'
 where t.id is null or t.cancel_requested_at is not null
union all
select 'orphan', handed_back.id, null from handed_back
union all
-- Waiting tasks to be cancelled at the provider: what claim_cancelled takes.
select 'cancel_waiting', null, null
 where exists (
   select
     from public.video_generation_tasks as t
    where t.status = 'pending' and t.cancel_requested_at is not null
 )

-- line_up --
-- Merge the mailbox, and users whose rows for later are due, into the line of turns. Rows are
-- written in user order, so two of these can't deadlock; claims skip what is locked here.
with mail as materialized (
  select ctid, user_id, due_at
    from vidgen.arrivals
   order by id
   limit 2000
     for update skip locked
),
emptied as (
  -- Locked, and never updated: they stay where they are.
  delete from vidgen.arrivals where ctid = any (array(select ctid from mail))
),
due as materialized (
  select user_id, due_at
    from vidgen.turns
   where waiting_since is null and due_at <= now()
   order by due_at
   limit 500
     for update skip locked
)
insert into vidgen.turns as t (user_id, waiting_since, due_at, arrivals)
select user_id, case when min(due_at) <= now() then clock_timestamp() end,
       case when min(due_at) <= now() then 'infinity' else min(due_at) end, 1
  from (select user_id, due_at from mail union all select user_id, due_at from due) as both_of_them
 group by user_id
 order by user_id
on conflict (user_id) do update
   set waiting_since = coalesce(t.waiting_since, excluded.waiting_since),
       due_at = case
                  when excluded.waiting_since is not null then 'infinity'
                  else least(t.due_at, excluded.due_at)
                end,
       arrivals = t.arrivals + 1

-- claim --
-- Begin an attempt on up to `slots` new tasks by turns: the users who have waited longest, each a
-- share, in their own order of priority, run_after, created_at. Work-conserving: `more` says that
-- rows are still waiting. Nothing while a task waits that has something to go on from: `resume` takes
-- those first, and this one comes again and is told so. The row lock on a user's turn makes this the
-- only claim that looks at this user; a client that holds a task's row is skipped.
-- Where the model has a limit, each task gets one of its slots here, and no more are taken than there
-- are: locked rows, because a count would be read in this statement's own snapshot, beside which
-- another claim may commit. The count before them only says how many turns are worth a lock.
with crashed as materialized (
  -- One death below the limit: these run alone. Few; the fence keeps the plan from beginning at what
  -- waits, however little that was when it was made.
  select b.task_id as id, r.class
    from vidgen.budgets as b
   cross join lateral (
     select t.status, t.run_after
       from public.video_generation_tasks as t
      where t.id = b.task_id
     offset 0
   ) as t
    left join vidgen.resumes as r on r.task_id = b.task_id
   where b.crashes > 0 and b.crashes >= %(max_crashes)s - 1
     and t.status = 'pending' and t.run_after <= now()
),
free as materialized (
  -- How many may begin; null: any number. One slot is left for a task that is to run alone, which
  -- needs a slot and an idle worker at once. (Two claims at once may take it all the same; then the
  -- next one that comes free is left.)
  select (
           select greatest(
                    (
                      select count(*)
                        from (
                          select
                            from vidgen.slots as s
                           where s.provider = l.provider and s.key_fingerprint = l.key_fingerprint
                             and s.model = l.model and s.task_id is null
                           limit %(slots)s + 1
                        ) as s
                    ) - exists (select from crashed where class is null)::integer,
                    0
                  )
             from vidgen.limits as l
            where l.provider = %(provider)s and l.key_fingerprint = %(key_fingerprint)s
              and l.model = %(image_model)s and l.max_generations is not null
         ) as images,
         (
           select r.room
             from vidgen.rooms as r
            where r.provider = %(provider)s and r.key_fingerprint = %(key_fingerprint)s
              and r.model = %(video_model)s
         ) as room
    from vidgen.workers as me
   -- A worker declared dead claims nothing.
   where me.id = %(worker_id)s and me.dead_at is null
     and not exists (
       select from vidgen.gates as g
        where g.provider = %(provider)s and g.key_fingerprint in ('*', %(key_fingerprint)s)
          and g.model in ('*', %(image_model)s, %(video_model)s)
     )
     and (
       %(resumed)s
       or not (
         (%(idle)s and exists (select from crashed))
         or exists (
           select from vidgen.resumes as r
            where r.class = 0 and r.resume_at <= now()
              and not exists (select from crashed where crashed.id = r.task_id)
         )
         or (
           exists (
             select from vidgen.resumes as r
              where r.class = 1 and r.resume_at <= now()
                and not exists (select from crashed where crashed.id = r.task_id)
           )
           and (
             -- As in still_waiting: a slot that is left for a suspect keeps nothing new waiting.
             (
               select count(*)
                 from (
                   select
                     from vidgen.slots as s
                    where s.provider = %(provider)s and s.key_fingerprint = %(key_fingerprint)s
                      and s.model = %(video_model)s and s.task_id is null
                    limit 2
                 ) as s
             ) > exists (select from crashed where class = 1)::integer
             or not exists (
               select from vidgen.limits as l
                where l.provider = %(provider)s and l.key_fingerprint = %(key_fingerprint)s
                  and l.model = %(video_model)s and l.max_generations is not null
             )
           )
         )
       )
     )
),
places as materialized (
  select least(%(slots)s, images, room)::integer as most, images is not null as limited from free
),
line as materialized (
  select user_id, waiting_since, arrivals
    from vidgen.turns
   where waiting_since is not null
   order by waiting_since
   limit coalesce((select least(most, 200) from places), 0)
     for update skip locked
),
share as materialized (
  select ceil((select most from places)::numeric / greatest(count(*), 1))::integer as rows
    from line
),
waiting as materialized (
  select line.user_id, line.waiting_since, ready.id, ready.rank, begun.tasks,
         coalesce(begun.tasks >= %(max_running_per_user)s::integer, false) as at_cap,
         coalesce(budget.crashes > 0 and budget.crashes >= %(max_crashes)s - 1, false) as not_here
    from line
   cross join lateral (
     -- What the cap counts: what runs, and what waits to go on.
     select (
              select count(*)
                from public.video_generation_tasks as t
               where t.user_id = line.user_id and t.status = 'processing'
                 and %(max_running_per_user)s::integer is not null
            ) + (
              select count(*)
                from vidgen.resumes as r
               where r.user_id = line.user_id and %(max_running_per_user)s::integer is not null
            ) as tasks
   ) as begun
   cross join lateral (
     -- One probe per priority: rows for later, however many, are never walked.
     select found.id,
            row_number() over (
              order by found.priority desc, found.run_after, found.created_at
            ) as rank
       from generate_series(10, -10, -1) as p (priority)
      cross join lateral (
        select t.id, t.priority, t.run_after, t.created_at
          from public.video_generation_tasks as t
         where t.user_id = line.user_id and t.priority = p.priority
           and t.status = 'pending' and t.run_after <= now()
           and not exists (select from vidgen.resumes as r where r.task_id = t.id)
         order by t.run_after, t.created_at
         limit (select rows + 1 from share)
      ) as found
      order by found.priority desc, found.run_after, found.created_at
      limit (select rows + 1 from share)
   ) as ready
    left join vidgen.budgets as budget on budget.task_id = ready.id
),
image_slots as materialized (
  select s.id
    from vidgen.slots as s
   where s.provider = %(provider)s and s.key_fingerprint = %(key_fingerprint)s
     and s.model = %(image_model)s and s.task_id is null
   limit (select least(count(*), (select most from places)) from waiting)
     for update skip locked
),
chosen as materialized (
  select w.id
    from waiting as w
   where w.rank <= (select rows from share)
     and (%(max_running_per_user)s::integer is null
          or (
            w.rank + w.tasks <= %(max_running_per_user)s::integer
            -- Another claim had this turn after our snapshot: what it began is not in our count.
            and w.waiting_since = (
              select seen.waiting_since from vidgen.turns as seen where seen.user_id = w.user_id
            )
          ))
     and not w.not_here
   order by w.rank, w.waiting_since
   limit (select case when limited then (select count(*) from image_slots) else most end from places)
),
fresh as materialized (
  -- By id, one by one, and looked at again once it is locked: a plan made while little waited would
  -- rather walk all that waits.
  select t.id
    from chosen
   cross join lateral (
     select t.id, t.status, t.run_after
       from public.video_generation_tasks as t
      where t.id = chosen.id
     offset 0
        for no key update skip locked
   ) as t
   where t.status = 'pending' and t.run_after <= now()
),
claimed as (
  update public.video_generation_tasks as t
     set status = 'processing', attempt = t.attempt + 1, worker_id = %(worker_id)s,
         started_at = coalesce(t.started_at, now()), progress = greatest(t.progress, 5),
         current_step = 'Initializing video generation pipeline',
         message = 'Video generation started', stage_progress = null
    from fresh
   where t.id = fresh.id
  returning t.id, t.attempt, t.worker_id, t.user_id, t.scene_id, t.failures, t.max_failures,
            t.progress, t.created_at, t.run_after, t.cancel_requested_at is not null as cancel_requested
),
reserved as (
  update vidgen.slots as s
     set task_id = given.task_id, taken_at = now()
    from unnest(
           array(select id from fresh), array(select id from image_slots)
         ) as given (task_id, slot_id)
   where s.id = given.slot_id and given.task_id is not null
),
left_over as materialized (
  select line.user_id,
         row_number() over (order by line.waiting_since) as place,
         count(*) filter (where waiting.id = any (array(select id from fresh))) as taken,
         -- Rows beyond those taken; or rows that came in after this statement's snapshot.
         count(waiting.id) > count(*) filter (where waiting.id = any (array(select id from fresh)))
         or line.arrivals is distinct from (
           select seen.arrivals from vidgen.turns as seen where seen.user_id = line.user_id
         ) as more,
         bool_or(waiting.at_cap) as at_cap,
         -- Had its turn and could not use it (a client holds the row; not for this worker): it
         -- must not stand in everybody's way.
         bool_or(
           waiting.not_here
           or (waiting.id = any (array(select id from chosen))
               and waiting.id <> all (array(select id from fresh)))
         ) as passed
    from line
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
           else coalesce(
             (
               select min(later.run_after)
                 from generate_series(10, -10, -1) as p (priority)
                cross join lateral (
                  select l.run_after
                    from public.video_generation_tasks as l
                   where l.user_id = o.user_id and l.priority = p.priority
                     and l.status = 'pending' and l.run_after > now()
                   order by l.run_after
                   limit 1
                ) as later
             ),
             'infinity'
           )
         end
    from left_over as o
   where t.user_id = o.user_id
  returning t.waiting_since
)
select c.*, false as alone,
       extract(epoch from clock_timestamp() - greatest(c.run_after, c.created_at))::float as waited,
       exists (select from moved where waiting_since is not null)
       or exists (
         select from vidgen.turns as t
          where t.waiting_since is not null and t.user_id <> all (array(select user_id from line))
       ) as more
  from claimed as c
 order by c.run_after, c.created_at

-- resume --
-- Take up to `slots` waiting tasks that have something to go on from, before anything new: first those
-- whose generation lives at the provider or whose clip is stored (they cost nothing), then those past
-- their image, each with one of the video model's slots where it has a limit.
with gate as materialized (
  select coalesce(bool_or(model in ('*', %(image_model)s)), false) as image_closed,
         coalesce(bool_or(model in ('*', %(video_model)s)), false) as video_closed
    from vidgen.gates
   where provider = %(provider)s and key_fingerprint in ('*', %(key_fingerprint)s)
),
limited as materialized (
  select coalesce(bool_or(l.model = %(image_model)s), false) as images,
         coalesce(bool_or(l.model = %(video_model)s), false) as videos
    from vidgen.limits as l
   where l.provider = %(provider)s and l.key_fingerprint = %(key_fingerprint)s
     and l.max_generations is not null
),
crashed as materialized (
  -- One death below the limit: it runs alone, so that nothing it does, and nothing that others do,
  -- is laid at the wrong door.
  select b.task_id as id, t.run_after, r.class
    from vidgen.budgets as b
   cross join lateral (
     select t.status, t.run_after
       from public.video_generation_tasks as t
      where t.id = b.task_id
     offset 0
   ) as t
    left join vidgen.resumes as r on r.task_id = b.task_id
   where b.crashes > 0 and b.crashes >= %(max_crashes)s - 1
     and t.status = 'pending' and t.run_after <= now()
),
image_slots as materialized (
  select s.id
    from vidgen.slots as s
   where s.provider = %(provider)s and s.key_fingerprint = %(key_fingerprint)s
     and s.model = %(image_model)s and s.task_id is null
     and %(idle)s and exists (select from crashed where class is null)
   limit 1
     for update skip locked
),
video_slots as materialized (
  select s.id
    from vidgen.slots as s
   where s.provider = %(provider)s and s.key_fingerprint = %(key_fingerprint)s
     and s.model = %(video_model)s and s.task_id is null
     and not (select video_closed from gate)
   -- No more than wait for one, or a submission that goes straight on finds none free. One more than
   -- places: it may be the one that is left for a suspect.
   limit (
     select count(*)
       from (
         select from vidgen.resumes where class = 1 and resume_at <= now() limit %(slots)s + 1
       ) as waiting
   )
     for update skip locked
),
free as materialized (
  -- How many generations of each model may begin; null: any number.
  select case when limited.images then (select count(*) from image_slots) end as images,
         case when limited.videos then (select count(*) from video_slots) end as videos
    from limited
),
suspect as materialized (
  -- First of all, or it would wait for ever under load. Here and below each row is locked by its id and
  -- looked at again: a plan made while little waited would rather walk all that waits.
  select t.id, first.class
    from (
      select crashed.id, crashed.class
        from free, crashed
       where %(idle)s
         and not (select image_closed or video_closed from gate)
         and case crashed.class
               when 0 then true
               when 1 then free.videos is distinct from 0
               else free.images is distinct from 0
             end
       order by crashed.run_after
      offset 0
    ) as first
   cross join lateral (
     select t.id, t.status, t.run_after
       from public.video_generation_tasks as t
      where t.id = first.id
     offset 0
        for no key update skip locked
   ) as t
   where t.status = 'pending' and t.run_after <= now()
   limit 1
),
living as materialized (
  select t.id
    from (
      select r.task_id
        from vidgen.resumes as r
       where r.class = 0 and r.resume_at <= now()
         and not exists (select from crashed where crashed.id = r.task_id)
         and not exists (select from suspect)
       order by r.resume_at
      offset 0
    ) as first
   cross join lateral (
     select t.id, t.status
       from public.video_generation_tasks as t
      where t.id = first.task_id
     offset 0
        for no key update skip locked
   ) as t
   where t.status = 'pending'
   limit %(slots)s
),
past_image as materialized (
  select t.id
    from (
      select r.task_id
        from vidgen.resumes as r
       where r.class = 1 and r.resume_at <= now()
         and not (select video_closed from gate)
         and not exists (select from crashed where crashed.id = r.task_id)
         and not exists (select from suspect)
       order by r.resume_at
      offset 0
    ) as first
   cross join lateral (
     select t.id, t.status
       from public.video_generation_tasks as t
      where t.id = first.task_id
     offset 0
        for no key update skip locked
   ) as t
   where t.status = 'pending'
   limit (
     -- One slot is left for a suspect, which needs a slot and an idle worker at once; not while a
     -- gate keeps it from running.
     select greatest(
              least(
                %(slots)s - (select count(*) from living),
                free.videos - (
                  exists (select from crashed where class = 1)
                  and not (select image_closed from gate)
                )::integer
              ),
              0
            )
       from free
   )
),
claimed as (
  update public.video_generation_tasks as t
     set status = 'processing', attempt = t.attempt + 1, worker_id = %(worker_id)s,
         started_at = coalesce(t.started_at, now()), progress = greatest(t.progress, 5),
         current_step = 'Initializing video generation pipeline',
         message = 'Video generation started', stage_progress = null
    from (
           select id from suspect
           union all select id from living
           union all select id from past_image
         ) as picked,
         -- A worker declared dead claims nothing.
         vidgen.workers as me
   where t.id = picked.id and me.id = %(worker_id)s and me.dead_at is null
  returning t.id, t.attempt, t.worker_id, t.user_id, t.scene_id, t.failures, t.max_failures,
            t.progress, t.created_at, t.run_after, t.cancel_requested_at is not null as cancel_requested
),
reserved as (
  update vidgen.slots as s
     set task_id = claimed.id, taken_at = now()
    from (
           select *
             from unnest(
                    array(
                      select id from past_image union all select id from suspect where class = 1
                    ),
                    array(select id from video_slots)
                  ) as of_videos (task_id, slot_id)
           union all
           select suspect.id, image_slots.id from suspect, image_slots where suspect.class is null
         ) as given
    join claimed on claimed.id = given.task_id
   where s.id = given.slot_id
)
select c.*, exists (select from suspect where suspect.id = c.id) as alone,
       extract(epoch from clock_timestamp() - greatest(c.run_after, c.created_at))::float as waited
  from claimed as c
 order by c.run_after, c.created_at

-- still_waiting --
-- Why a claim came back with nothing. `resumable`: a task goes first that has something to go on from
-- (the same condition as in the claim; a closed gate keeps only those waiting that are to submit).
-- `waiting`: it should be repeated soon, somebody is in the line (another claim may have held that
-- user's turn, or the slot), or the mailbox isn't empty. Not while a gate is closed or no slot is free:
-- then nothing may start, and asking again costs a statement each time.
with crashed as materialized (
  select b.task_id as id, r.class
    from vidgen.budgets as b
   cross join lateral (
     select t.status, t.run_after
       from public.video_generation_tasks as t
      where t.id = b.task_id
     offset 0
   ) as t
    left join vidgen.resumes as r on r.task_id = b.task_id
   where b.crashes > 0 and b.crashes >= %(max_crashes)s - 1
     and t.status = 'pending' and t.run_after <= now()
),
gate as materialized (
  select count(*) > 0 as closed,
         coalesce(bool_or(g.model <> %(video_model)s), false) as image_closed,
         coalesce(bool_or(g.model <> %(image_model)s), false) as video_closed
    from vidgen.gates as g
   where g.provider = %(provider)s and g.key_fingerprint in ('*', %(key_fingerprint)s)
     and g.model in ('*', %(image_model)s, %(video_model)s)
),
free as materialized (
  -- Beyond the slot that is left for a task that is to run alone.
  select count(*) filter (where s.model = %(image_model)s)
           > exists (select from crashed where class is null)::integer as images,
         count(*) filter (where s.model = %(video_model)s)
           > (exists (select from crashed where class = 1) and not gate.image_closed)::integer
           as videos
    from gate
    left join vidgen.slots as s
      on s.provider = %(provider)s and s.key_fingerprint = %(key_fingerprint)s
         and s.task_id is null
   group by gate.image_closed
),
limited as materialized (
  select coalesce(bool_or(l.model = %(image_model)s), false) as images,
         coalesce(bool_or(l.model = %(video_model)s), false) as videos
    from vidgen.limits as l
   where l.provider = %(provider)s and l.key_fingerprint = %(key_fingerprint)s
     and l.max_generations is not null
),
past_image as materialized (
  select exists (
           select from vidgen.resumes as r
            where r.class = 1 and r.resume_at <= now()
              and not exists (select from crashed where crashed.id = r.task_id)
         )
         and (free.videos or not limited.videos) and not gate.video_closed as may_go_on
    from free, limited, gate
)
select past_image.may_go_on
       or (%(idle)s and not gate.closed and exists (select from crashed))
       or exists (
         select from vidgen.resumes as r
          where r.class = 0 and r.resume_at <= now()
            and not exists (select from crashed where crashed.id = r.task_id)
       ) as resumable,
       not gate.closed
       and (
         (past_image.may_go_on and limited.videos)
         or (
           (free.images or not limited.images)
           and coalesce(
                 (
                   select r.room
                     from vidgen.rooms as r
                    where r.provider = %(provider)s and r.key_fingerprint = %(key_fingerprint)s
                      and r.model = %(video_model)s
                 ),
                 1
               ) > 0
           and (
             exists (select from vidgen.turns where waiting_since is not null)
             or exists (select from vidgen.arrivals)
           )
         )
       ) as waiting
  from free, limited, gate, past_image

-- clear_line --
-- Users at the head of the line who have nothing due any more (cancelled meanwhile) leave it, many at
-- once: the claim lets go of no more than it has places, and with one place a thousand of them would
-- keep everybody waiting. A row that came in after our snapshot shows in `arrivals`, now or when the
-- mailbox is emptied.
with line as materialized (
  select user_id, arrivals
    from vidgen.turns
   where waiting_since is not null
   order by waiting_since
   limit 500
     for update skip locked
),
idle as materialized (
  select line.user_id
    from line
   where line.arrivals = (
           select seen.arrivals from vidgen.turns as seen where seen.user_id = line.user_id
         )
     and not exists (
       select
         from generate_series(10, -10, -1) as p (priority)
        cross join lateral (
          select
            from public.video_generation_tasks as t
           where t.user_id = line.user_id and t.priority = p.priority
             and t.status = 'pending' and t.run_after <= now()
             and not exists (select from vidgen.resumes as r where r.task_id = t.id)
           order by t.run_after
           limit 1
        ) as due
     )
)
update vidgen.turns as t
   set waiting_since = null,
       due_at = coalesce(
         (
           select min(later.run_after)
             from generate_series(10, -10, -1) as p (priority)
            cross join lateral (
              select l.run_after
                from public.video_generation_tasks as l
               where l.user_id = t.user_id and l.priority = p.priority
                 and l.status = 'pending' and l.run_after > now()
               order by l.run_after
               limit 1
            ) as later
         ),
         'infinity'
       )
  from idle
 where t.user_id = idle.user_id
returning t.user_id

-- claim_cancelled --
-- Waiting tasks whose owner asked to cancel while a generation still runs: outside slots, gates and
-- RUNWAYML_ENABLED.
with asked as materialized (
  select t.id
    from public.video_generation_tasks as t, vidgen.workers as me
   where t.status = 'pending' and t.cancel_requested_at is not null
     and me.id = %(worker_id)s and me.dead_at is null
   order by t.cancel_requested_at
   limit 100
     for no key update of t skip locked
)
update public.video_generation_tasks as t
   set status = 'processing', attempt = t.attempt + 1, worker_id = %(worker_id)s,
       started_at = coalesce(t.started_at, now()), stage_progress = null
  from asked
 where t.id = asked.id
returning t.id, t.attempt, t.worker_id, t.user_id, t.scene_id, t.failures, t.max_failures,
          t.progress, t.created_at, true as cancel_requested, false as alone, 0.0::float as waited

-- take_over --
-- Declare silent workers dead (a write to their own row, so that it and their heartbeat can't both
-- win) and take their tasks. A death counts once for every task in flight there; at the limit the
-- task ends here as WORKER_LOST. What this worker has no slot for goes back to pending, where the
-- claim finds it before anything new; so does a suspect, one death below the limit: the claim gives
-- it to a worker that runs nothing else. A row of kind 'room' asks this worker to become one: it is
-- the one of the fleet to do so, and a suspect waits.
with died as (
  update vidgen.workers as w
     set dead_at = now()
   where w.dead_at is null and w.id <> %(worker_id)s
     and w.heartbeat_at < now() - w.lease and %(steady)s
  returning w.id
),
holders as materialized (
  -- Distinct worker ids of running rows, by skipping through the index.
  with recursive holder as (
    (select worker_id from public.video_generation_tasks
      where status = 'processing' order by worker_id limit 1)
    union all
    select (select t.worker_id from public.video_generation_tasks as t
             where t.status = 'processing' and t.worker_id > holder.worker_id
             order by t.worker_id limit 1)
      from holder where holder.worker_id is not null
  )
  select h.worker_id
    from holder as h
    left join vidgen.workers as w on w.id = h.worker_id
   where h.worker_id is not null and h.worker_id <> %(worker_id)s
     and (w.dead_at is not null or w.id in (select id from died) or (w.id is null and %(steady)s))
),
victims as materialized (
  select t.id, t.user_id, t.scene_id, coalesce(b.crashes, 0) + 1 as crashes
    from holders as h
    join public.video_generation_tasks as t
      on t.worker_id = h.worker_id and t.status = 'processing'
    left join vidgen.budgets as b on b.task_id = t.id
   order by coalesce(b.crashes, 0) desc, t.id
   limit 1000
     for no key update of t skip locked
),
ranked as materialized (
  select v.*, v.crashes < %(max_crashes)s - 1 and row_number() over (
           partition by v.crashes < %(max_crashes)s - 1 order by v.id
         ) <= %(slots)s as mine
    from victims as v
),
counted as (
  insert into vidgen.budgets as b (task_id, crashes)
  select id, crashes from victims order by id
  on conflict (task_id) do update set crashes = excluded.crashes
),
lost as (
  update public.video_generation_tasks as t
     set status = 'failed', worker_id = null, completed_at = now(), stage_progress = null,
         error_code = 'WORKER_LOST', error_message = %(lost_message)s::text, message = %(lost_message)s::text,
         current_step = 'Failed',
         error = jsonb_build_object(
           'error', 'Video generation failed', 'details', %(lost_message)s::text,
           'code', 'WORKER_LOST', 'timestamp', now()
         )
    from victims as v
   where t.id = v.id and v.crashes >= %(max_crashes)s
  returning t.id, t.user_id, t.scene_id
),
released as materialized (
  select l.id, vidgen.release_credits(l.id),
         case when %(scene_updates)s
           then vidgen.write_scene(l.scene_id, l.user_id, 'failed', null, null)
         end as scene_refused
    from lost as l
),
taken as (
  update public.video_generation_tasks as t
     set attempt = t.attempt + 1, worker_id = %(worker_id)s, stage_progress = null
    from ranked as v
   where t.id = v.id and v.mine
  returning t.id, t.attempt, t.worker_id, t.user_id, t.scene_id, t.failures, t.max_failures,
            t.progress, t.created_at, t.cancel_requested_at is not null as cancel_requested,
            false as alone
),
freed as (
  update public.video_generation_tasks as t
     set status = 'pending', worker_id = null, stage_progress = null, run_after = now()
    from ranked as v
   where t.id = v.id and not v.mine and v.crashes < %(max_crashes)s
)
select 'taken' as kind, t.*, 0.0::float as waited from taken as t
union all
select 'room', me.id, 0, me.id, me.id, null, 0, 0, 0, now(), false, false, 0.0
  from vidgen.workers as me
 where me.id = %(worker_id)s and not %(idle)s
   -- The first of those who could take it: none of them behind a closed gate.
   and not exists (
     select from vidgen.workers as w
      where w.id < me.id and w.dead_at is null and w.concurrency > 0
        and w.provider = me.provider and w.key_fingerprint = me.key_fingerprint
   )
   and not exists (
     select from vidgen.gates as g
      where g.provider = me.provider and g.key_fingerprint in ('*', me.key_fingerprint)
   )
   and exists (
     select
       from vidgen.budgets as b
      cross join lateral (
        select t.status, t.run_after
          from public.video_generation_tasks as t
         where t.id = b.task_id
        offset 0
      ) as t
      where b.crashes > 0 and b.crashes >= %(max_crashes)s - 1
        and t.status = 'pending' and t.run_after <= now()
   )
union all
select 'lost', v.id, 0, %(worker_id)s, v.user_id, v.scene_id, 0, 0, 0, now(), false, false, 0.0
  from victims as v
  join released as r on r.id = v.id

-- load_task --
-- What an attempt starts from: the scene as it is, and how far each stage has come.
select t.cancel_requested_at is not null as cancel_requested,
       scene.found as scene, md5(scene.found::text) as inputs,
       c.stage, c.state, c.request, c.submission_id, c.generation_id, c.generation_started_at,
       c.bucket, c.path, c.media_type, c.size, c.sha256,
       s.sent_at, s.answer, s.ended_at, now() as now
  from public.video_generation_tasks as t
 cross join lateral (select vidgen.read_scene(t.scene_id, t.user_id) as found) as scene
  left join vidgen.checkpoints as c on c.task_id = t.id
  left join vidgen.submissions as s on s.id = c.submission_id
 where t.id = %(task_id)s and t.attempt = %(attempt)s and t.worker_id = %(worker_id)s
   and t.status = 'processing'

-- start_task --
-- Hold the user's credits for the stages still to do (prices are read here and copied into the
-- hold), show what was looked up, and tell the scene. Nothing of it when the hold is refused.
with mine as materialized (
  select t.id, t.user_id, t.scene_id
    from public.video_generation_tasks as t
   where t.id = %(task_id)s and t.attempt = %(attempt)s and t.worker_id = %(worker_id)s
     and t.status = 'processing'
     for no key update
),
price as materialized (
  select case when %(image_due)s
           then (select credits from public.credit_prices where action = 'generate_image') else 0
         end as image,
         case when %(video_due)s
           then (select credits from public.credit_prices where action = 'generate_scene') else 0
         end as video
),
hold as materialized (
  select mine.id, mine.user_id, mine.scene_id,
         case
           when not %(credits)s then 'held'
           when price.image is null or price.video is null then 'price_missing'
           when vidgen.hold_credits(mine.id, mine.user_id, price.image, price.video) then 'held'
           else 'refused'
         end as verdict
    from mine, price
),
shown as (
  update public.video_generation_tasks as t
     set resolution = coalesce(%(resolution)s, t.resolution),
         video_ratio = coalesce(%(video_ratio)s, t.video_ratio),
         image_ratio = coalesce(%(image_ratio)s, t.image_ratio),
         progress = greatest(t.progress, 15),
         current_step = 'Fetching scene configuration and prompts',
         message = 'Scene configuration loaded'
    from hold
   where t.id = hold.id and hold.verdict = 'held'
  returning t.id
)
select hold.verdict, price.image as image_price, price.video as video_price,
       case when %(scene_updates)s and hold.verdict = 'held'
         then vidgen.write_scene(hold.scene_id, hold.user_id, 'processing', null, null)
       end as scene_refused
  from hold, price

-- begin_submission --
-- Before a paid POST: the submission row, and the checkpoint `submitting` with the frozen request.
-- Refused (nothing is written) where the stage's possibly paid submissions have reached the cap:
-- unknown, gone, or ended with a cost; where its owner has asked to cancel; behind a closed gate,
-- unless this task is the gate's trial; or where the model has a limit and no slot is free. A repeat
-- finds its own submission and changes nothing.
with mine as materialized (
  select t.id, t.user_id, t.attempt, t.worker_id, t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where t.id = %(task_id)s and t.attempt = %(attempt)s and t.worker_id = %(worker_id)s
     and t.status = 'processing'
     for no key update
),
paid as materialized (
  select count(*) as submissions
    from vidgen.submissions as s, mine
   where s.task_id = mine.id and s.stage = %(stage)s and s.counted and s.id <> %(submission_id)s
     and (s.answer is null or s.answer = 'unknown' or (s.answer = 'generation' and (
           s.ended_at is null or s.ended_state in ('gone', 'cancelled', 'succeeded')
           or coalesce(s.cost, s.estimated_cost, 1) > 0)))
),
gate as materialized (
  select min(g.reason) filter (where g.trial is distinct from %(task_id)s) as reason,
         coalesce(bool_or(g.trial = %(task_id)s), false) as on_trial
    from vidgen.gates as g
   where g.provider = %(provider)s and g.key_fingerprint in ('*', %(key_fingerprint)s)
     and g.model in ('*', %(model)s)
),
own as materialized (
  -- The one that the claim reserved; a claim with an older snapshot may have it locked for a moment.
  select s.id
    from vidgen.slots as s, mine
   where s.provider = %(provider)s and s.key_fingerprint = %(key_fingerprint)s
     and s.model = %(model)s and s.task_id = mine.id
     and coalesce(s.submission_id, %(submission_id)s) = %(submission_id)s
   limit 1
     for update of s
),
other as materialized (
  -- Else a free one: of the video model only while nobody waits who had his image before, else the
  -- first in that line could be passed by for ever.
  select s.id
    from vidgen.slots as s, mine, gate
   where s.provider = %(provider)s and s.key_fingerprint = %(key_fingerprint)s
     and s.model = %(model)s
     and s.task_id is null and not exists (select from own)
     and (
       %(stage)s = 'image' or gate.on_trial
       or not exists (select from vidgen.resumes where class = 1 and resume_at <= now())
     )
   limit 1
     for update of s skip locked
),
slot as materialized (
  select id from own union all select id from other
),
admitted as materialized (
  select mine.id, mine.user_id, mine.attempt, mine.worker_id
    from mine, paid, gate
   where paid.submissions < %(max_submissions)s and not mine.cancel and gate.reason is null
     and (
       exists (select from slot)
       or not exists (
         select from vidgen.limits as l
          where l.provider = %(provider)s and l.key_fingerprint = %(key_fingerprint)s
            and l.model = %(model)s and l.max_generations is not null
       )
     )
),
begun as (
  insert into vidgen.submissions (
    id, task_id, user_id, stage, attempt, worker_id, provider, key_fingerprint, model, fingerprint
  )
  select %(submission_id)s, id, user_id, %(stage)s, attempt, worker_id,
         %(provider)s, %(key_fingerprint)s, %(model)s, %(fingerprint)s
    from admitted
  on conflict (id) do nothing
),
taken as (
  update vidgen.slots as s
     set task_id = admitted.id, submission_id = %(submission_id)s, taken_at = now()
    from slot, admitted
   where s.id = slot.id and s.submission_id is null
),
checkpointed as (
  insert into vidgen.checkpoints as c (task_id, stage, state, request, inputs, submission_id)
  select id, %(stage)s, 'submitting', %(request)s, %(inputs)s, %(submission_id)s
    from admitted
  on conflict (task_id, stage) do update
     set state = 'submitting', request = excluded.request, submission_id = excluded.submission_id,
         generation_id = null, generation_started_at = null, updated_at = now()
   where c.state <> 'done'
     and not exists (
       -- A repeat after the answer was recorded must not take the checkpoint back.
       select from vidgen.submissions as s where s.id = %(submission_id)s and s.answer is not null
     )
  returning c.task_id
),
shown as (
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, %(progress)s), current_step = %(current_step)s,
         message = %(message)s, stage_progress = 0
    from admitted
   where t.id = admitted.id
)
select paid.submissions, mine.cancel, gate.reason as gate,
       not exists (select from admitted) as refused
  from mine, paid, gate

-- answer_submission --
-- The provider's answer is a fact: it goes to the submission row without a fence, so that a late
-- one is never thrown away. The checkpoint follows it only under the fence, and only while it still
-- waits for this submission. `fate` says what became of it: followed, kept (a successor will attach
-- to it), superseded (nobody will: the caller ends it at the provider). An answer that comes after
-- a successor has counted it as unknown is `late`, for good: nobody waits for it any more.
with late as materialized (
  select from vidgen.submissions as s
   where s.id = %(submission_id)s and %(answer)s = 'generation'
     and (s.answer = 'unknown' or s.details like 'late: %%')
),
answered as (
  update vidgen.submissions as s
     set answer = %(answer)s, answered_at = now(), generation_id = %(generation_id)s,
         estimated_cost = %(estimated_cost)s,
         details = case when s.answer = 'unknown' then 'late: ' || coalesce(s.details, '')
                        else %(details)s end,
         ended_at = case when %(answer)s = 'refused' then now() end,
         ended_state = case when %(answer)s = 'refused' then 'refused' end,
         cost = case when %(answer)s = 'refused' then 0 end
   where s.id = %(submission_id)s
     and (s.answer is null or (s.answer = 'unknown' and %(answer)s = 'generation'))
  returning s.id
),
mine as materialized (
  select t.id
    from public.video_generation_tasks as t
   where t.id = %(task_id)s and t.attempt = %(attempt)s and t.worker_id = %(worker_id)s
     and t.status = 'processing'
     for no key update
),
followed as (
  update vidgen.checkpoints as c
     set state = 'generating', generation_id = %(generation_id)s, generation_started_at = now(),
         updated_at = now()
    from mine
   where c.task_id = mine.id and c.stage = %(stage)s and c.submission_id = %(submission_id)s
     and c.state = 'submitting' and %(answer)s = 'generation'
     and not exists (select from late)
  returning c.task_id
),
progressed as (
  -- As in end_generation.
  update vidgen.budgets as b
     set crashes = 0
    from followed
   where b.task_id = followed.task_id and b.crashes > 0
)
select (select count(*) from mine) = 1 as mine,
       case
         when exists (select from late) then 'superseded'
         when exists (select from followed) then 'followed'
         -- A repeat, after the answer to the first one was lost: it is followed already.
         when exists (
           select from vidgen.checkpoints as c
             join mine on mine.id = c.task_id
            where c.stage = %(stage)s and c.submission_id = %(submission_id)s
              and c.generation_id = %(generation_id)s
         ) then 'followed'
         when exists (
           select from vidgen.checkpoints as c
            where c.task_id = %(task_id)s and c.stage = %(stage)s
              and c.submission_id = %(submission_id)s
              and (c.state = 'submitting' or c.generation_id = %(generation_id)s)
         ) then 'kept'
         else 'superseded'
       end as fate

-- paid_submissions --
-- How many submissions of a stage may have been paid for nothing: the number that
-- VIDGEN_MAX_SUBMISSIONS caps. The same rule as in begin_submission.
select count(*) as submissions
  from vidgen.submissions as s
 where s.task_id = %(task_id)s and s.stage = %(stage)s and s.counted
   and (s.answer is null or s.answer = 'unknown' or (s.answer = 'generation' and (
         s.ended_at is null or s.ended_state in ('gone', 'cancelled', 'succeeded')
         or coalesce(s.cost, s.estimated_cost, 1) > 0)))

-- read_submission --
-- What has become of a submission whose answer another worker waits for. `late`: it came after
-- somebody had counted it as unknown, and who recorded it ends its generation.
select s.answer, s.generation_id, s.sent_at, now() as now,
       coalesce(s.details like 'late: %%', false) as late
  from vidgen.submissions as s
 where s.id = %(submission_id)s

-- end_generation --
-- A generation is over: its end and cost are facts (no fence); the checkpoint follows under the
-- fence: to `storing` where there is an output, back to `submitting` where there is none.
with ended as (
  update vidgen.submissions as s
     set ended_at = coalesce(s.ended_at, now()), ended_state = %(ended_state)s,
         cost = coalesce(%(cost)s, s.cost), cost_read_at = now()
   where s.task_id = %(task_id)s and s.generation_id = %(generation_id)s
),
mine as materialized (
  select t.id
    from public.video_generation_tasks as t
   where t.id = %(task_id)s and t.attempt = %(attempt)s and t.worker_id = %(worker_id)s
     and t.status = 'processing'
     for no key update
),
checkpointed as (
  update vidgen.checkpoints as c
     set state = case when %(ended_state)s = 'succeeded' then 'storing' else 'submitting' end,
         generation_id = case when %(ended_state)s = 'succeeded' then c.generation_id end,
         updated_at = now()
    from mine
   where c.task_id = mine.id and c.stage = %(stage)s and c.state in ('generating', 'storing')
     and c.generation_id = %(generation_id)s
),
progressed as (
  -- A checkpoint that advances is a life well spent: deaths are counted from here anew.
  update vidgen.budgets as b
     set crashes = 0
    from mine
   where b.task_id = mine.id and b.crashes > 0 and %(ended_state)s = 'succeeded'
),
shown as (
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, %(progress)s), current_step = %(current_step)s,
         message = %(message)s, stage_progress = 100
    from mine
   where t.id = mine.id and %(ended_state)s = 'succeeded'
)
select id from mine

-- close_generation --
-- The end and cost of a generation that nobody follows any more (late answers, cancels).
update vidgen.submissions as s
   set ended_at = coalesce(s.ended_at, now()), ended_state = coalesce(s.ended_state, %(ended_state)s),
       cost = coalesce(%(cost)s, s.cost), cost_read_at = now()
 where s.task_id = %(task_id)s and s.generation_id = %(generation_id)s

-- finish_stage --
-- The artifact is stored: checkpoint `done`, the user's charge (written first; its primary key lets
-- a stage be charged once), the settle from the hold, the row and the scene. A repeat finds the
-- checkpoint done and charges nothing.
with mine as materialized (
  select t.id, t.user_id, t.scene_id
    from public.video_generation_tasks as t
   where t.id = %(task_id)s and t.attempt = %(attempt)s and t.worker_id = %(worker_id)s
     and t.status = 'processing'
     for no key update
),
open_stage as materialized (
  select c.task_id, c.stage, mine.user_id
    from vidgen.checkpoints as c
    join mine on mine.id = c.task_id
   where c.stage = %(stage)s and c.state <> 'done'
     for no key update of c
),
charged as (
  insert into vidgen.charges (task_id, stage, user_id)
  select task_id, stage, user_id from open_stage where %(credits)s
  returning task_id, stage
),
settled as materialized (
  select vidgen.settle_credits(charged.task_id, charged.stage) from charged
),
done as (
  update vidgen.checkpoints as c
     set state = 'done', bucket = %(bucket)s, path = %(path)s, media_type = %(media_type)s,
         size = %(size)s, sha256 = %(sha256)s, updated_at = now()
    from open_stage
   where c.task_id = open_stage.task_id and c.stage = open_stage.stage
),
shown as (
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, %(progress)s), current_step = %(current_step)s,
         message = %(message)s, stage_progress = null,
         image_path = coalesce(%(image_path)s, t.image_path),
         image_url = coalesce(%(image_url)s, t.image_url),
         video_path = coalesce(%(video_path)s, t.video_path)
    from mine
   where t.id = mine.id
)
select (select count(*) from settled) as settled,
       -- In credits, for the metrics; an application with credits of its own has no holds here.
       coalesce((
         select case %(stage)s when 'image' then h.image_price else h.video_price end
           from settled
           join vidgen.holds as h on h.task_id = %(task_id)s and h.closed_at is null
       ), 0) as charged,
       case when %(scene_updates)s and %(image_url)s::text is not null
         then vidgen.write_scene(mine.scene_id, mine.user_id, null, %(image_url)s, null)
       end as scene_refused
  from mine

-- report --
-- Progress of many tasks in one statement, in id order, never downwards. A row that a client holds
-- is left for the next report: one user's slow DELETE of a scene must not stop everybody's bar.
with reported as materialized (
  select * from unnest(
    %(task_ids)s::uuid[], %(attempts)s::integer[], %(progress)s::float8[],
    %(stage_progress)s::float8[], %(messages)s::text[]
  ) as r (task_id, attempt, progress, stage_progress, message)
),
mine as materialized (
  select t.id, r.progress, r.stage_progress, r.message
    from public.video_generation_tasks as t
    join reported as r on r.task_id = t.id and r.attempt = t.attempt
   where t.worker_id = %(worker_id)s and t.status = 'processing'
   order by t.id
     for no key update of t skip locked
)
update public.video_generation_tasks as t
   set progress = greatest(t.progress, mine.progress), stage_progress = mine.stage_progress,
       message = mine.message
  from mine
 where t.id = mine.id

-- complete --
-- The end of a task that went well: row, scene and whatever is left of the hold, in one statement.
with mine as materialized (
  select t.id, t.user_id, t.scene_id
    from public.video_generation_tasks as t
   where t.id = %(task_id)s and t.attempt = %(attempt)s and t.worker_id = %(worker_id)s
     and t.status = 'processing'
     for no key update
),
ended as (
  update public.video_generation_tasks as t
     set status = 'completed', worker_id = null, completed_at = now(), progress = 100,
         stage_progress = null, current_step = 'Completed',
         message = 'Video generation completed successfully',
         video_url = %(video_url)s, video_url_expires_at = %(expires_at)s
    from mine
   where t.id = mine.id
  returning t.id, t.user_id, t.scene_id,
            extract(epoch from now() - t.started_at)::float as seconds
)
select vidgen.release_credits(ended.id), ended.seconds,
       case when %(scene_updates)s
         then vidgen.write_scene(ended.scene_id, ended.user_id, 'completed', null, %(video_url)s)
       end as scene_refused
  from ended

-- requeue --
-- Not now: back to pending. The hold stays, the checkpoints stay.
update public.video_generation_tasks as t
   set status = 'pending', worker_id = null, stage_progress = null,
       run_after = now() + %(delay)s, message = %(message)s,
       failures = least(t.failures + %(failures)s, 100)::smallint
 where t.id = %(task_id)s and t.attempt = %(attempt)s and t.worker_id = %(worker_id)s
   and t.status = 'processing'
returning t.id

-- fail --
-- The end of a task that can't go on, with the reason in the row; the hold is released.
with mine as materialized (
  select t.id, t.user_id, t.scene_id
    from public.video_generation_tasks as t
   where t.id = %(task_id)s and t.attempt = %(attempt)s and t.worker_id = %(worker_id)s
     and t.status = 'processing'
     for no key update
),
rejected as (
  -- Rejected content is retried only when the scene has changed.
  insert into vidgen.budgets as b (task_id, rejected_inputs)
  select mine.id, (
           select c.inputs from vidgen.checkpoints as c
            where c.task_id = mine.id and c.state <> 'done' order by c.stage desc limit 1
         )
    from mine
   where %(code)s = 'CONTENT_REJECTED'
  on conflict (task_id) do update set rejected_inputs = excluded.rejected_inputs
),
ended as (
  update public.video_generation_tasks as t
     set status = 'failed', worker_id = null, completed_at = now(), stage_progress = null,
         failures = least(t.failures + %(failures)s, 100)::smallint,
         current_step = 'Failed', message = %(message)s,
         error_code = %(code)s, error_message = %(message)s,
         error = jsonb_build_object(
           'error', 'Video generation failed', 'details', %(message)s::text,
           'code', %(code)s::text, 'timestamp', now()
         ) || %(visible)s::jsonb
    from mine
   where t.id = mine.id
  returning t.id, t.user_id, t.scene_id
)
select vidgen.release_credits(ended.id),
       case when %(scene_updates)s
         then vidgen.write_scene(ended.scene_id, ended.user_id, 'failed', null, null)
       end as scene_refused
  from ended

-- cancel --
-- The end its owner asked for: what is stored and settled stays, the rest of the hold goes back.
with mine as materialized (
  select t.id, t.user_id, t.scene_id
    from public.video_generation_tasks as t
   where t.id = %(task_id)s and t.attempt = %(attempt)s and t.worker_id = %(worker_id)s
     and t.status = 'processing'
     for no key update
),
closed as (
  delete from vidgen.checkpoints as c
   using mine
   where c.task_id = mine.id and c.state in ('submitting', 'generating')
),
ended as (
  update public.video_generation_tasks as t
     set status = 'cancelled', worker_id = null, completed_at = now(), stage_progress = null,
         current_step = 'Cancelled', message = 'Video generation cancelled'
    from mine
   where t.id = mine.id
  returning t.id, t.user_id, t.scene_id
)
select vidgen.release_credits(ended.id),
       case when %(scene_updates)s
         then vidgen.write_scene(ended.scene_id, ended.user_id, 'pending', null, null)
       end as scene_refused
  from ended

-- hand_back --
-- This worker stops: its tasks wait for another one, which resumes at their checkpoints.
update public.video_generation_tasks as t
   set status = 'pending', worker_id = null, run_after = now()
  from (
    select id
      from public.video_generation_tasks
     where worker_id = %(worker_id)s and status = 'processing'
       and (%(task_ids)s::uuid[] is null or id = any (%(task_ids)s::uuid[]))
     order by id
       for no key update
  ) as held
 where t.id = held.id
returning t.id

-- leave --
-- The last word of a worker that holds nothing.
delete from vidgen.workers as w
 where w.id = %(worker_id)s
   and not exists (
     select from public.video_generation_tasks as t
      where t.worker_id = w.id and t.status = 'processing'
   )

-- close_gate --
-- Nothing paid of this model starts with this key until a probe or an operator opens it. A gate
-- that is closed already keeps its probes.
insert into vidgen.gates as g
  (provider, key_fingerprint, model, reason, message, details, probe_at, until)
values
  (%(provider)s, %(key_fingerprint)s, %(model)s, %(reason)s, %(message)s, %(details)s,
   now() + %(probe)s::interval, now() + %(probe)s::interval)
on conflict (provider, key_fingerprint, model) do nothing
returning g.model

-- take_probe --
-- One worker probes a closed gate; the next probe is twice as far away, up to five minutes.
update vidgen.gates as g
   set probes = g.probes + 1,
       probe_at = now() + least(%(probe)s::interval * 2 ^ least(g.probes + 1, 20), interval '5 minutes'),
       until = now() + least(%(probe)s::interval * 2 ^ least(g.probes + 1, 20), interval '5 minutes')
  from (
    select provider, key_fingerprint, model
      from vidgen.gates
     where provider = %(provider)s and key_fingerprint = %(key_fingerprint)s and probe_at <= now()
     order by probe_at
     limit 1
       for update skip locked
  ) as due
 where (g.provider, g.key_fingerprint, g.model) = (due.provider, due.key_fingerprint, due.model)
returning g.model, g.reason, g.probes, extract(epoch from now() - g.closed_at)::float as seconds

-- claim_trial --
-- After a storm one waiting task is let through the gate, to try it: under the gate's row lock, by
-- the worker that took this probe, and only while no earlier trial is running. A task past its
-- image first (it tries the clip at once), then the first of a user in the line; rather not one
-- that has failed or has seen a worker die, which would try the task and not the provider.
with gate as materialized (
  select g.provider, g.key_fingerprint, g.model
    from vidgen.gates as g, vidgen.workers as me
   where g.provider = %(provider)s and g.key_fingerprint = %(key_fingerprint)s
     and g.model = %(model)s and g.probes = %(probes)s
     and me.id = %(worker_id)s and me.dead_at is null
     and not exists (
       select from public.video_generation_tasks as t
        where t.id = g.trial and t.status = 'processing'
     )
     for update of g
),
line as materialized (
  select user_id from vidgen.turns where waiting_since is not null order by waiting_since limit 20
),
waiting as materialized (
  (select t.id, t.failures, 1 as place, r.resume_at as since
     from vidgen.resumes as r
     join public.video_generation_tasks as t on t.id = r.task_id
    where r.class = 1 and r.resume_at <= now() and t.status = 'pending'
    order by r.resume_at
    limit 20)
  union all
  (select ready.id, ready.failures, 2, ready.created_at
     from line
    cross join lateral (
      select t.id, t.failures, t.created_at
        from public.video_generation_tasks as t
       where t.user_id = line.user_id and t.status = 'pending' and t.run_after <= now()
       order by t.priority desc, t.run_after, t.created_at
       limit 5
    ) as ready
    -- While the gate is closed no claim begins anything: nothing races with this count.
    where %(max_running_per_user)s::integer is null
       or (
            select count(*) from public.video_generation_tasks as t
             where t.user_id = line.user_id and t.status = 'processing'
          ) + (
            select count(*) from vidgen.resumes as r where r.user_id = line.user_id
          ) < %(max_running_per_user)s::integer)
),
chosen as materialized (
  select t.id
    from gate
    cross join waiting as w
    join public.video_generation_tasks as t on t.id = w.id
    left join vidgen.budgets as b on b.task_id = w.id
   where t.status = 'pending'
   order by coalesce(b.crashes, 0) > 0, w.failures > 0, w.place, w.since
   limit 1
     for no key update of t skip locked
),
claimed as (
  update public.video_generation_tasks as t
     set status = 'processing', attempt = t.attempt + 1, worker_id = %(worker_id)s,
         started_at = coalesce(t.started_at, now()), progress = greatest(t.progress, 5),
         current_step = 'Initializing video generation pipeline',
         message = 'Video generation started', stage_progress = null
    from chosen
   where t.id = chosen.id
  returning t.id, t.attempt, t.worker_id, t.user_id, t.scene_id, t.failures, t.max_failures,
            t.progress, t.created_at, t.run_after, t.cancel_requested_at is not null as cancel_requested
),
marked as (
  update vidgen.gates as g
     set trial = claimed.id
    from gate, claimed
   where (g.provider, g.key_fingerprint, g.model)
       = (gate.provider, gate.key_fingerprint, gate.model)
)
select c.*, false as alone,
       extract(epoch from clock_timestamp() - greatest(c.run_after, c.created_at))::float as waited
  from claimed as c

-- open_gate --
-- A probe went well.
delete from vidgen.gates as g
 where g.provider = %(provider)s and g.key_fingerprint = %(key_fingerprint)s and g.model = %(model)s
returning extract(epoch from now() - g.closed_at)::float as seconds

-- read_gates --
-- What is closed for this key.
select g.model, g.reason, g.message, g.until, g.closed_at, g.probes
  from vidgen.gates as g
 where g.provider = %(provider)s and g.key_fingerprint in ('*', %(key_fingerprint)s)
 order by g.model

-- ask_limits --
-- Whether this worker is the one to read the account's limits now: one of the fleet does, every
-- minute, and sooner while nobody knows them. Of all models that this key was ever used with: tasks
-- that began with another one may still be under way. Those that another worker is asking about, and
-- nobody knows yet, come back as not `mine`: it may die before it says so.
with asked as (
  update vidgen.limits as l
     set asked_at = now()
   where l.provider = %(provider)s and l.key_fingerprint = %(key_fingerprint)s
     and (
       l.asked_at is null
       or l.asked_at < now() - case when l.read_at is null then interval '5 seconds' else %(every)s end
     )
  returning l.model
)
select asked.model, true as mine from asked
union all
select l.model, false
  from vidgen.limits as l
 where l.provider = %(provider)s and l.key_fingerprint = %(key_fingerprint)s
   and l.read_at is null and l.model not in (select asked.model from asked)

-- set_limit --
-- How many generations of a model may be in flight; null: any number.
select vidgen.set_limit(%(provider)s, %(key_fingerprint)s, %(model)s, %(max_generations)s, true)

-- expect_limit --
-- Until somebody has read the account: one at a time, which every tier allows.
select vidgen.set_limit(%(provider)s, %(key_fingerprint)s, m.model, 1, false)
  from unnest(%(models)s::text[]) as m (model)
 where not exists (
   select from vidgen.limits as l
    where l.provider = %(provider)s and l.key_fingerprint = %(key_fingerprint)s
      and l.model = m.model
 )

-- free_slots --
-- Slots that nobody will free: of a submission without a generation to ask about, once whatever it
-- began must be over; of tasks that are gone. Only those taken a while ago: the re-check of a locked
-- row compares its new self with the old rows beside it.
with stale as materialized (
  select s.id, s.model, s.task_id, s.submission_id
    from vidgen.slots as s
    left join vidgen.submissions as sent on sent.id = s.submission_id
    left join public.video_generation_tasks as t on t.id = s.task_id
   where s.taken_at < now() - interval '1 minute'
     and case
           when s.submission_id is null then t.status is distinct from 'processing'
           else sent.id is null or sent.ended_at is not null
                or (sent.answer is distinct from 'generation'
                    and sent.sent_at < now() - %(patience)s::interval)
         end
     for update of s skip locked
),
-- An answer that comes after all finds itself counted, and its generation is ended by its recorder.
given_up as (
  update vidgen.submissions as sent
     set answer = 'unknown', answered_at = now(), details = 'nobody recorded an answer'
    from stale
   where sent.id = stale.submission_id and sent.answer is null
)
select stale.model, vidgen.free_slot(stale.id, stale.task_id, stale.submission_id) from stale

-- sweep_workers --
-- Rows of dead workers that hold nothing any more, an hour after their death.
delete from vidgen.workers as w
 where w.dead_at < now() - interval '1 hour'
   and not exists (
     select from public.video_generation_tasks as t
      where t.worker_id = w.id and t.status = 'processing'
   )
returning w.id

-- sweep_turns --
-- Users who have had no waiting task for long; an arrival that comes in meanwhile makes a new row.
delete from vidgen.turns as t
 where t.waiting_since is null and t.due_at = 'infinity'

-- stray_submissions --
-- Generations that no checkpoint follows and whose end nobody has booked: answers that came too
-- late, tasks that ended by another way.
select s.id, s.task_id, s.generation_id, s.ended_at is not null as ended
  from vidgen.submissions as s
 where s.answer = 'generation' and s.ended_at is null
   and s.answered_at < now() - interval '1 minute'
   and s.provider = %(provider)s and s.key_fingerprint = %(key_fingerprint)s
   and not exists (
     select from vidgen.checkpoints as c
      where c.task_id = s.task_id and c.stage = s.stage and c.submission_id = s.id
        -- A late answer's checkpoint still names it where no other submission followed.
        and not (c.state = 'submitting' and coalesce(s.details like 'late: %%', false))
   )
 order by s.sent_at
 limit 20

-- costs_to_read_again --
-- The provider gives refunds some minutes after a failure: the cost that it tells then is the truth.
select s.task_id, s.generation_id
  from vidgen.submissions as s
 where s.ended_state in ('failed', 'cancelled')
   and s.ended_at between now() - interval '1 day' and now() - interval '5 minutes'
   and s.cost_read_at < s.ended_at + interval '5 minutes'
   and s.provider = %(provider)s and s.key_fingerprint = %(key_fingerprint)s
 order by s.ended_at
 limit 20

-- fleet --
-- For /metrics: what waits, what runs, who works, what is closed, what the provider is full of.
select q.pending as queue_pending, q.scheduled as queue_scheduled, q.processing as queue_processing,
       q.oldest_seconds as queue_oldest_pending_seconds, q.workers_alive, q.workers_steady,
       extract(epoch from now())::float as fleet_read_at_seconds,
       (select coalesce(jsonb_agg(jsonb_build_object('model', g.model, 'reason', g.reason)), '[]')
          from vidgen.gates as g) as gates,
       (select coalesce(jsonb_agg(of_model), '[]')
          from (
            select l.model, sum(l.max_generations) as slots,
                   (select count(*) from vidgen.slots as s
                     where s.model = l.model and s.task_id is not null) as taken
              from vidgen.limits as l
             where l.max_generations is not null
             group by l.model
          ) as of_model) as slots
  from vidgen.queue_health as q

-- discrepancies --
-- For /metrics, seldom: it adds up the whole ledger.
select count(*) as discrepancies from vidgen.credit_discrepancies
