-- An attempt on its way: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.
--
-- The fence is (id, attempt, worker_id, status = 'processing'). A write outside the task's row
-- begins with `mine`, which locks that row (for no key update: `for share` deadlocks when the
-- statement also updates it), and takes its rows from `mine`: a fence in the WHERE of another
-- table's UPDATE would be re-checked against that table only and let a zombie through.

-- load_task --
-- How far a task has come, for its cancel: no lock of a client keeps that from what runs at the provider.
select
  -- use known --
  ,
  -- use followed_here --
  as followed_here
  from public.video_generation_tasks as t
  -- use known_from --
 where
   -- use fence --

-- start_task --
-- What an attempt starts from: the scene as it is, how far each stage has come, and how the task is to
-- end where that is known already. Else, and where its owner has not asked to cancel, hold the user's credits
-- for the stages that are not stored yet (prices are read here and copied into the hold), show the step,
-- and tell the scene. Nothing of that when the hold is refused.
with mine as materialized (
  select t.id, t.user_id, t.scene_id, t.attempt, t.cancel_requested_at
    from public.video_generation_tasks as t
   where
     -- use fence --
     for no key update
),
known as materialized (
  select
    -- use known --
    ,
    -- use followed_here --
    as followed_here
    from mine as t
    -- use known_from --
),
due as materialized (
  select mine.id, mine.user_id, mine.scene_id, d.prices, d.missing
    from mine
   cross join lateral vidgen.due_prices(mine.id) as d
   where not exists (select from known where known.cancel_requested or known.verdict is not null)
),
hold as materialized (
  select due.id, due.user_id, due.scene_id,
         case
           when not %(credits)s then 'held'
           -- It has its own prices: one that has gone from the table meanwhile ends no running task.
           when exists (
             select from vidgen.holds as h where h.task_id = due.id and h.closed_at is null
           ) then 'held'
           when due.missing then 'price_missing'
           when vidgen.hold_credits(due.id, due.user_id, due.prices) then 'held'
           else 'refused'
         end as funding
    from due
),
shown as (
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, 15),
         current_step = 'Fetching scene configuration and prompts',
         message = 'Scene configuration loaded'
    from hold
   where t.id = hold.id and hold.funding = 'held'
),
told as materialized (
  select vidgen.write_scene(hold.scene_id, hold.user_id, 'processing', null, null) as refused
    from hold
   where %(scene_updates)s and hold.funding = 'held'
)
select known.*, (select hold.funding from hold) as funding, (select told.refused from told) as scene_refused
  from known

-- begin_upload --
-- Before an upload: its place in Storage, so that what is not charged after all is removed there. It is
-- not begun where the task's owner has asked to cancel. Of its own only where the task's row refused to
-- show that the generation has ended: else end_generation records it.
with mine as materialized (
  select t.id, t.user_id, t.attempt, t.worker_id, t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     for no key update
),
begun as (
  -- use upload --
  on conflict (id) do nothing
)
select mine.cancel from mine

-- finish_stage --
-- The artifact is stored: checkpoint `done`, the user's charge for what was paid (written first; its
-- primary key lets a stage be charged once), the settle from the hold, the row and the scene. A repeat finds the
-- checkpoint done and charges nothing. From here on the owner may read the object, and it is no upload
-- any more that somebody has to remove. With `signed_url` it is the last stage, and the task is completed.
with mine as materialized (
  select t.id, t.user_id, t.scene_id
    from public.video_generation_tasks as t
   where
     -- use fence --
     for no key update
),
open_stage as materialized (
  select c.task_id, c.stage, c.submission_id, mine.user_id
    from vidgen.checkpoints as c
    join mine on mine.id = c.task_id
   where c.stage = %(stage)s and c.state <> 'done'
     for no key update of c
),
charged as (
  insert into vidgen.charges (task_id, stage, user_id)
  select task_id, stage, user_id from open_stage where %(credits)s and submission_id is not null
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
kept as (
  delete from vidgen.uploads as u
   using open_stage
   where u.id = %(upload_id)s and u.task_id = open_stage.task_id
),
progressed as (
  update vidgen.budgets as b
     set waiting_since = null
    from open_stage
   where b.task_id = open_stage.task_id and b.waiting_since is not null
     -- The end of the task forgets it, in this same statement: a row is updated once.
     and %(signed_url)s::text is null
),
shown as (
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, %(progress)s), current_step = %(current_step)s,
         message = %(message)s, stage_progress = null,
         -- What is paid for stays where it is.
         image_path = coalesce(t.image_path, %(image_path)s),
         image_url = coalesce(t.image_url, %(image_url)s),
         video_path = coalesce(t.video_path, %(video_path)s)
    from mine
   where t.id = mine.id and %(signed_url)s::text is null
  returning t.image_path, t.video_path
)
select (select count(*) from settled) as settled,
       -- Charged, and not in the row, its owner could not read it.
       case when %(signed_url)s::text is null and not exists (
         select from shown
          where (shown.image_path is not null or %(image_path)s::text is null)
            and (shown.video_path is not null or %(video_path)s::text is null)
       ) then vidgen.row_stays(mine.id) end as stays,
       -- In credits, for the metrics; an application with credits of its own has no holds here.
       coalesce((
         select (h.prices ->> %(stage)s)::integer
           from settled
           join vidgen.holds as h on h.task_id = %(task_id)s and h.closed_at is null
       ), 0) as charged,
       -- Of the scene as it is now: what a stage not begun is made from.
       case when %(signed_url)s::text is null
         then md5(vidgen.read_scene(mine.scene_id, mine.user_id)::text)
       end as inputs,
       exists (
         select from vidgen.troubles as t
          where t.provider = %(provider)s and t.scope = any (%(scopes)s::text[]) and t.model = %(model)s
       ) as troubled,
       case when %(scene_updates)s and %(image_url)s::text is not null
         then vidgen.write_scene(mine.scene_id, mine.user_id, null, %(image_url)s, null)
       end as scene_refused,
       -- After the charge, which is a running task's.
       case when %(signed_url)s::text is not null and (select count(*) from settled) >= 0
         then vidgen.complete_task(
           mine.id, %(signed_url)s, %(good_for)s, %(scene_updates)s, %(video_path)s, %(progress)s,
           %(current_step)s, %(message)s
         )
       end as completed
  from mine

-- report --
-- Progress of many tasks in one statement, in id order, never downwards. A row that a client holds
-- is left for the next report: one user's slow DELETE of a scene must not stop everybody's bar.
with reported as materialized (
  select * from unnest(
    %(task_ids)s::uuid[], %(attempts)s::integer[], %(progress)s::float8[],
    %(stage_progress)s::float8[], %(messages)s::text[], %(seconds_left)s::float8[]
  ) as r (task_id, attempt, progress, stage_progress, message, seconds_left)
),
mine as materialized (
  select t.id, r.progress, r.stage_progress, r.message, r.seconds_left
    from public.video_generation_tasks as t
    join reported as r on r.task_id = t.id and r.attempt = t.attempt
   where t.worker_id = %(worker_id)s and t.status = 'processing'
   order by t.id
     for no key update of t skip locked
)
update public.video_generation_tasks as t
   set progress = greatest(t.progress, mine.progress), stage_progress = mine.stage_progress,
       message = mine.message, expected_at = now() + mine.seconds_left * interval '1 second'
  from mine
 where t.id = mine.id

-- relieve --
-- A stage of this model went well from end to end: nothing about it goes wrong in a row any more, and a
-- gate that closed for it is probed at once. Not a part of finish_stage, which an application's slow
-- trigger may keep: everybody whose submissions are counted would wait for these rows. Who has one just
-- now relieves it, or the next stage that goes well does.
with over as materialized (
  select t.provider, t.scope, t.part, t.model
    from vidgen.troubles as t
   where t.provider = %(provider)s and t.scope = any (%(scopes)s::text[]) and t.model = %(model)s
     for update of t skip locked
),
relieved as (
  delete from vidgen.troubles as t
   using over
   where (t.provider, t.scope, t.part, t.model) = (over.provider, over.scope, over.part, over.model)
  returning t.scope
)
-- Also a gate that seems due: a probe may be under way that still saw the trouble, and has put the next
-- one off.
update vidgen.gates as g
   set probe_at = now(), until = now()
 where g.provider = %(provider)s and g.scope in (select scope from relieved)
   and g.probe_at is not null
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
-- How an attempt ends: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.
-- `mine` is the fence: see checkpoints.sql.

-- complete --
-- The end of a task that went well (vidgen.complete_task), where it did not come with its last stage.
with mine as materialized (
  select t.id
    from public.video_generation_tasks as t
   where
     -- use fence --
     for no key update
)
select vidgen.complete_task(
         mine.id, %(video_url)s, %(good_for)s, %(scene_updates)s, null, null, null, null
       ) as completed
  from mine

-- requeue --
-- Not now: back to pending. The hold stays, the checkpoints stay. `waiting`: it waits for somebody to
-- answer, which is counted from the first time on (true); it waits for its turn, or for an operator,
-- which is no such waiting (false); neither (null).
with mine as materialized (
  select t.id, now() + %(delay)s as run_after, t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     for no key update
),
put_back as (
  update public.video_generation_tasks as t
     set status = 'pending', worker_id = null, stage_progress = null,
         run_after = mine.run_after, message = %(message)s,
         failures = least(t.failures + %(failures)s, 100)::smallint
    from mine
   where t.id = mine.id
  returning t.id, t.status
),
counted as (
  insert into vidgen.budgets as b (task_id, waiting_since, cancel_after)
  select mine.id, case when %(waiting)s then now() end, case when mine.cancel then mine.run_after end
    from mine
   where %(waiting)s or mine.cancel
      or exists (
        select from vidgen.budgets as w where w.task_id = mine.id and w.waiting_since is not null
      )
  on conflict (task_id) do update
     set waiting_since = case
           when %(waiting)s then coalesce(b.waiting_since, excluded.waiting_since)
           when %(waiting)s is null then b.waiting_since
         end,
         cancel_after = excluded.cancel_after
)
select mine.id,
       case when put_back.status is distinct from 'pending' then vidgen.row_stays(mine.id) end as stays,
       vidgen.note_event(
         mine.id, 'requeued', %(attempt)s, %(code)s, %(details)s, mine.run_after
       ) as noted
  from mine
  left join put_back on put_back.id = mine.id

-- waited --
-- How long a task has only waited by now, in seconds; no row: not at all.
select extract(epoch from now() - b.waiting_since)::float as seconds
  from vidgen.budgets as b
 where b.task_id = %(task_id)s and b.waiting_since is not null

-- fail --
-- The end of a task that can't go on, with the reason in the row; the hold is released.
with mine as materialized (
  select t.id
    from public.video_generation_tasks as t
   where
     -- use fence --
     for no key update
)
select vidgen.fail_task(
         mine.id, %(code)s, %(message)s, %(failures)s, %(visible)s, %(scene_updates)s
       ) as scene_refused,
       vidgen.note_event(mine.id, 'failed', %(attempt)s, %(code)s, %(details)s, null) as noted
  from mine

-- cancel --
-- The end its owner asked for: what is stored and settled stays, the rest of the hold goes back.
with mine as materialized (
  select t.id, t.user_id, t.scene_id
    from public.video_generation_tasks as t
   where
     -- use fence --
     for no key update
),
ended as (
  update public.video_generation_tasks as t
     set status = 'cancelled', worker_id = null, completed_at = now(), stage_progress = null,
         current_step = 'Cancelled', message = 'Video generation cancelled'
    from mine
   where t.id = mine.id
  returning t.id, t.status
)
select case when ended.status is distinct from 'cancelled' then vidgen.row_stays(mine.id) end as stays,
       vidgen.release_credits(mine.id),
       case when %(scene_updates)s
         then vidgen.write_scene(mine.scene_id, mine.user_id, 'pending', null, null)
       end as scene_refused
  from mine
  left join ended on ended.id = mine.id

-- set_aside --
-- An attempt that can't be concluded, because the task's row refuses what is to be written.
select tries, pause, became
  from vidgen.set_aside_task(
         %(task_id)s, %(attempt)s, %(worker_id)s, %(statement)s, %(error)s, %(verdict)s,
         %(message)s, %(scene_updates)s
       )

-- retry_refused --
-- Tasks that were set aside and whose pause is over: back into the line, or ended at the limit.
select r.task_id, vidgen.retry_refused(r.task_id, %(message)s, %(scene_updates)s) as became,
       r.tries, r.statement, r.error
  from vidgen.refusals as r
 where r.until <= now()
 order by r.until
 limit 100

-- owed_scenes --
-- Scenes with owed writes that are due, the oldest of each user first: one user's many scenes keep
-- nobody else's waiting.
select owed.scene_id
  from (
    select w.scene_id, min(w.due_at) as due_at,
           row_number() over (partition by w.user_id order by min(w.due_at)) as turn
      from vidgen.scene_writes as w
     group by w.scene_id, w.user_id
    having min(w.due_at) <= now()
  ) as owed
 order by owed.turn, owed.due_at
 limit 100

-- write_owed_scene --
-- Make the owed writes of one scene, where its lock has gone.
select vidgen.write_owed_scene(%(scene_id)s) as refused
-- Deliveries: named blocks, one statement each (see database/statements.py).

-- take_deliveries --
-- Take what is due, webhooks by turns; each row is leased to this worker (see the function). It is sent once:
-- what a lost answer has taken comes back after its lease.
select webhook_id, id, try, event, url, body, secrets, waited, at
  from vidgen.take_deliveries(%(worker_id)s, %(places)s, %(lease)s)

-- book_delivery --
-- What came of one try (see the function).
select vidgen.book_delivery(
         %(webhook_id)s, %(id)s, %(try_number)s::smallint, %(worker_id)s, %(arrived)s, %(status)s::smallint, %(error)s,
         %(pause)s, %(gone)s
       ) as follows

-- return_deliveries --
-- The leases of a worker that stops: another one may send at once.
select vidgen.return_deliveries(%(worker_id)s, %(ids)s::uuid[])

-- forget_deliveries --
-- One batch of deliveries that ended long ago.
select vidgen.forget_deliveries(%(batch)s) as deliveries
-- Films: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.
-- `mine` is the fence: see checkpoints.sql.

-- wake_films --
-- Take the mail about parts that have ended: films that wait for nothing more are due (see the function).
select film_id, refused, more, due, renders_due from vidgen.wake_films(1000)

-- claim_films --
-- Begin an attempt on up to `most` films of one lane by turns, as `claim` does for tasks of lane 1: no model,
-- slot or gate concerns a film. A suspect runs alone, on an idle worker, before anything else. Each row says whether there
-- is more; where nothing began there is one row that says only this.
with me as materialized (
  -- A worker declared dead claims nothing.
  select w.id from vidgen.workers as w where w.id = %(worker_id)s and w.dead_at is null
),
alone as materialized (
  select begun.*
    from (
      select s.task_id
        from me, vidgen.suspects as s
       where s.lane = %(lane)s and %(idle)s
       order by s.run_after
      offset 0
    ) as first
   cross join lateral vidgen.begin_attempts(array[first.task_id], %(worker_id)s, false) as begun
   limit 1
),
line as materialized (
  select user_id, waiting_since, arrivals
    from vidgen.turns
   where lane = %(lane)s and waiting_since is not null
     and exists (select from me) and not exists (select from alone)
   order by waiting_since
   limit %(most)s
     for update skip locked
),
share as materialized (
  -- Orders of one user wait for his lock, one after the other: more of his at once would only wait.
  select least(ceil(%(most)s::numeric / greatest(count(*), 1)), 4)::integer as rows from line
),
waiting as materialized (
  select line.user_id, line.waiting_since, false as at_cap, due.id, due.rank
    from line
   cross join lateral (
     -- use due_of_user --
   ) as due
),
chosen as materialized (
  select w.id from waiting as w
   where w.rank <= (select rows from share)
   order by w.rank, w.waiting_since
   limit %(most)s
),
begun as materialized (
  select b.*, false as alone
    from vidgen.begin_attempts(array(select id from chosen), %(worker_id)s, false) as b
  union all
  select alone.*, true from alone
),
-- use turns --
select c.*, rest.in_line as more, true as film, %(lane)s = -1 as renders,
       extract(epoch from clock_timestamp() - greatest(c.run_after, c.created_at))::float as waited
  from rest
  left join begun as c on true
 order by c.run_after, c.created_at

-- load_film --
-- What an attempt at a film starts from: its cut, how many of its parts there are and how many have not
-- ended, the first that ended without a clip, and how the film is to end where that is known already. Of a
-- film with outputs also the clip of each part, and the renditions that are stored.
select t.cut, t.user_id, t.cancel_requested_at is not null as cancel_requested,
       exists (select from vidgen.films as f where f.film_id = t.id) as ordered,
       counted.parts, counted.unfinished, counted.completed,
       bad.position as bad_position, bad.task_id as bad_task, bad.code as bad_code,
       case
         when refusal.attempt is null or refusal.attempt = t.attempt - 1 then refusal.verdict
       end as verdict,
       coalesce(clips.found, '[]') as clips,
       coalesce((
         select jsonb_object_agg(r.name, r.path) from public.video_renditions as r where r.film_id = t.id
       ), '{}') as stored
  from public.video_generation_tasks as t
 cross join lateral (
   select count(*) as parts,
          count(*) filter (where part.status in ('pending', 'processing')) as unfinished,
          count(*) filter (where part.status = 'completed') as completed
     from vidgen.parts as p
    cross join lateral (
      select (
        select one.status from public.video_generation_tasks as one where one.id = p.task_id
      ) as status
      offset 0
    ) as part
    where p.film_id = t.id
 ) as counted
  left join lateral (
    select p.position, p.task_id,
           case
             when part.status is null then 'DELETED'
             else coalesce(part.error_code, upper(part.status))
           end as code
      from vidgen.parts as p
      left join public.video_generation_tasks as part on part.id = p.task_id
     where p.film_id = t.id and part.status is distinct from 'completed'
       and coalesce(part.status not in ('pending', 'processing'), true)
     order by p.position
     limit 1
  ) as bad on true
  left join lateral (
    select jsonb_agg(clip.found order by p.position) as found
      from vidgen.parts as p
     cross join lateral (
       select (
         -- The checkpoint of a task of long ago is gone: then nobody knows its size and digest.
         select jsonb_build_object(
                  'bucket', coalesce(c.bucket, s.videos_bucket), 'path', one.video_path, 'size', c.size,
                  'sha256', c.sha256
                )
           from public.video_generation_tasks as one
          cross join vidgen.settings as s
           left join vidgen.checkpoints as c on c.task_id = one.id and c.path = one.video_path
          where one.id = p.task_id and one.status = 'completed' and one.video_path is not null
       ) as found
       offset 0
     ) as clip
     where p.film_id = t.id
  ) as clips on t.lane = -1
  left join vidgen.refusals as refusal on refusal.task_id = t.id
 where
   -- use fence --

-- order_parts --
-- Order the parts of a film, all or none, with their credits held (see the function).
select refused, said, field
  from vidgen.order_parts(%(task_id)s, %(attempt)s, %(worker_id)s, %(credits)s)

-- seconds_of_parts --
-- The ordered seconds of each part, before they are ordered too (see the function).
with mine as materialized (
  select t.id
    from public.video_generation_tasks as t
   where
     -- use fence --
     and t.lane = -1
)
select coalesce(array_agg(part.seconds::float order by part.place), '{}') as seconds
  from mine
  left join lateral vidgen.seconds_of_parts(mine.id) as part on true
having count(*) > 0

-- wait_for_parts --
-- The end of an attempt whose film waits for its parts: pending, and due when the last of them ends. It leaves
-- mail of its own: a part may have ended after this attempt looked, and its mail was of no use while the
-- film was at work. Not where its owner has asked to cancel.
with mine as materialized (
  select t.id, t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     and t.cut is not null
     for no key update
),
put_back as (
  update public.video_generation_tasks as t
     set status = 'pending', worker_id = null, stage_progress = null,
         run_after = '9999-01-01 00:00:00+00', current_step = 'Waiting for scenes',
         message = %(message)s
    from mine
   where t.id = mine.id and not mine.cancel
  returning t.id, t.status
),
further as (
  -- It has come further than where workers died.
  update vidgen.budgets as b
     set crashes = 0, suspect = false, waiting_since = null
    from mine
   where b.task_id = mine.id
),
mailed as (
  insert into vidgen.endings (film_id) select mine.id from mine where not mine.cancel
)
select mine.cancel,
       case when not mine.cancel and put_back.status is distinct from 'pending'
         then vidgen.row_stays(mine.id)
       end as stays,
       case when not mine.cancel then vidgen.wake('vidgen_tasks', 'film') end as woken
  from mine
  left join put_back on put_back.id = mine.id

-- begin_rendering --
-- All parts have ended, and the film's files are made: its row says so. Not where its owner has asked to
-- cancel.
with mine as materialized (
  select t.id, t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     and t.lane = -1
     for no key update
),
shown as (
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, %(progress)s), current_step = %(current_step)s,
         message = %(message)s, stage_progress = null
    from mine
   where t.id = mine.id and not mine.cancel
)
select mine.cancel from mine

-- begin_rendition --
-- Before the upload of a rendition: its place in Storage, so that what is not recorded after all is removed
-- there. The place follows from what is in the file, so a later attempt comes to the same one: it takes over
-- the earlier record, unless the object is being removed just now (`busy`). Not where the film's owner has
-- asked to cancel.
with mine as materialized (
  select t.id, t.user_id, t.attempt, t.worker_id, t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     and t.lane = -1
     for no key update
),
begun as (
  insert into vidgen.uploads as u (id, task_id, user_id, attempt, worker_id, bucket, path)
  select gen_random_uuid(), mine.id, mine.user_id, mine.attempt, mine.worker_id, %(bucket)s, %(path)s
    from mine
   where not mine.cancel
  on conflict on constraint a_place_is_used_once do update
     set attempt = excluded.attempt, worker_id = excluded.worker_id, taken_at = null, removed_at = null
   where u.task_id = excluded.task_id
     and (u.taken_at is null or u.taken_at not between now() - interval '5 minutes' and now())
  returning u.id
)
select mine.cancel, not mine.cancel and not exists (select from begun) as busy
  from mine

-- finish_rendition --
-- A rendition is stored: its row, the charge of the output that it is (written first; its primary key lets an
-- output be charged once), the settle from the film's hold, and the film's row. A repeat finds the rendition
-- and charges nothing. One that was made before of other clips or assets is replaced, and its object left to
-- whoever removes uploads. Not where the upload was removed meanwhile: `recorded` is false then.
with mine as materialized (
  select t.id, t.user_id, t.attempt, t.worker_id
    from public.video_generation_tasks as t
   where
     -- use fence --
     and t.lane = -1
     for no key update
),
uploaded as materialized (
  select u.id
    from vidgen.uploads as u
    join mine on mine.id = u.task_id
     and u.attempt = mine.attempt and u.worker_id = mine.worker_id
   where u.bucket = %(bucket)s and u.path = %(path)s
     and u.taken_at is null and u.removed_at is null
     for update of u
),
before as materialized (
  select r.bucket, r.path
    from public.video_renditions as r
    join mine on mine.id = r.film_id
   where r.name = %(rendition)s
),
stored as (
  insert into public.video_renditions as r (
    film_id, name, user_id, position, preset, media_type, bucket, path, size, width, height, seconds, sha256,
    quality
  )
  select mine.id, %(rendition)s, mine.user_id, %(position)s, %(preset)s, %(media_type)s, %(bucket)s, %(path)s,
         %(size)s, %(width)s, %(height)s, %(seconds)s, %(sha256)s, %(quality)s
    from mine, uploaded
  on conflict (film_id, name) do update
     set position = excluded.position, preset = excluded.preset, media_type = excluded.media_type,
         bucket = excluded.bucket, path = excluded.path, size = excluded.size, width = excluded.width,
         height = excluded.height, seconds = excluded.seconds, sha256 = excluded.sha256,
         quality = excluded.quality, public_url = null
  returning r.film_id, r.user_id, r.name
),
charged as (
  insert into vidgen.charges (task_id, stage, user_id)
  select stored.film_id, 'render:' || stored.name, stored.user_id
    from stored
    join vidgen.films as f on f.film_id = stored.film_id and f.second_credits ? stored.name
   where %(credits)s
     and not exists (
       select from vidgen.charges as c
        where c.task_id = stored.film_id and c.stage = 'render:' || stored.name
     )
  returning task_id
),
settled as materialized (
  select vidgen.settle_render(charged.task_id, %(rendition)s) as credits from charged
),
kept as (
  delete from vidgen.uploads as u using uploaded, stored where u.id = uploaded.id
),
left_behind as (
  insert into vidgen.uploads (id, task_id, user_id, attempt, worker_id, bucket, path)
  select gen_random_uuid(), mine.id, mine.user_id, mine.attempt, mine.worker_id, before.bucket, before.path
    from mine, before, stored
   where before.path <> %(path)s
  on conflict on constraint a_place_is_used_once do nothing
),
further as (
  -- It has come further than where workers died.
  update vidgen.budgets as b
     set crashes = 0, suspect = false, waiting_since = null
    from stored
   where b.task_id = stored.film_id
),
shown as (
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, %(progress)s), message = %(message)s, stage_progress = null
    from mine
   where t.id = mine.id
)
select coalesce((select settled.credits from settled), 0) as charged,
       exists (select from stored)
       or exists (select from before where before.path = %(path)s) as recorded
  from mine
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
-- The leases of workers: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.

-- register_worker --
-- A worker's row, once per id: a repeated INSERT finds its own.
insert into vidgen.workers
  (id, host, pid, version, provider, key_fingerprint, account, scopes, concurrency, lease, renders)
values
  (%(worker_id)s, %(host)s, %(pid)s, %(version)s, %(provider)s, %(key_fingerprint)s, %(account)s,
   %(scopes)s::text[], %(concurrency)s, %(lease)s, %(renders)s)
on conflict (id) do nothing

-- share_buckets --
-- The storage policy reads the buckets' names from here. An operator's role writes them where they
-- differ; the worker's own may not, and is told so.
select vidgen.share_buckets(%(images_bucket)s, %(videos_bucket)s) as shared

-- heartbeat --
-- One row written however many tasks are held; no task's row is written or locked, so that the lease
-- depends on none of them. No row of kind 'alive': declared dead. Then the verdict on each held
-- task ('lost' or 'cancel'), and, when `sweep` says that no claim is in flight, the orphans: rows that name this worker but
-- that it doesn't run (a claim whose answer was lost, a coroutine that died, a row that refused to be
-- handed back and whose pause is over).
with beat as (
  update vidgen.workers
     set heartbeat_at = now(), running = %(running)s,
         steady_since = case when %(steady)s then coalesce(steady_since, now()) end
   where id = %(worker_id)s and dead_at is null
  returning id
),
held as materialized (
  select * from unnest(%(task_ids)s::uuid[], %(attempts)s::integer[]) as h (task_id, attempt)
)
select 'alive' as kind, null::uuid as task_id, null::integer as attempt from beat
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
select 'orphan', t.id, t.attempt
  from public.video_generation_tasks as t
 where t.worker_id = %(worker_id)s and t.status = 'processing' and %(sweep)s
   and not exists (
     select from held where held.task_id = t.id and held.attempt = t.attempt
   )
   and not exists (select from vidgen.set_aside as a where a.task_id = t.id)
union all
-- Waiting tasks to be cancelled at the provider: what claim_cancelled takes.
select 'cancel_waiting', null, null
 where exists (
   select
     from public.video_generation_tasks as t
    where
      -- use to_cancel --
 )

-- heartbeats --
-- What an observer compares with what it saw before (see lease.Observer): the last heartbeat of every
-- other worker, and its age by the one clock that wrote it.
select w.id, w.heartbeat_at, extract(epoch from now() - w.heartbeat_at)::float as age,
       extract(epoch from w.lease)::float as lease
  from vidgen.workers as w
 where w.dead_at is null and w.id <> %(worker_id)s

-- take_over --
-- Declare silent workers dead (a write to their own row, so that it and their heartbeat can't both
-- win: it is dead only while its heartbeat is still the one that was seen) and take their tasks, each
-- on its own: a row that refuses is set aside. A death counts once for every task in flight there, none
-- where the worker had left; at the limit the task ends as WORKER_LOST. What this worker has no slot
-- for goes back to pending, where the claim finds it before anything new; so does what another
-- account's workers have to follow, what a worker behind a gate of its own could not finish, and a
-- suspect, one death below the limit: the claim gives it to a worker that runs nothing else. The row
-- 'suspect waits' names no task: it asks this worker, one of the fleet, to become idle for a suspect.
with died as (
  update vidgen.workers as w
     set dead_at = now()
    from unnest(%(silent_ids)s::uuid[], %(silent_beats)s::timestamptz[]) as silent (id, beat)
   where w.id = silent.id and w.heartbeat_at = silent.beat
     and w.dead_at is null and w.id <> %(worker_id)s and %(steady)s
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
  select t.id, t.worker_id, coalesce(b.crashes, 0) + 1 as crashes,
         -- Something of it lives, or waits to be fetched, at another account.
         exists (
           select
             from vidgen.checkpoints as c
             join vidgen.submissions as s on s.id = c.submission_id
            where c.task_id = t.id
              and (
                c.state in ('generating', 'storing')
                or (c.state = 'submitting' and s.ended_at is null
                    and (s.answer is null or s.answer = 'generation'))
              )
              and not
                -- use followed_here --
         ) as elsewhere
    from holders as h
    join public.video_generation_tasks as t
      on t.worker_id = h.worker_id and t.status = 'processing'
    left join vidgen.budgets as b on b.task_id = t.id
   where not exists (select from vidgen.set_aside as a where a.task_id = t.id)
   order by coalesce(b.crashes, 0) desc, t.id
   limit 1000
),
ranked as materialized (
  select v.*, v.may_be and row_number() over (partition by v.may_be order by v.id) <= %(slots)s as mine
    from (
      select victims.*, crashes < %(max_crashes)s - 1 and not elsewhere and not here.aside as may_be
        from victims
       cross join (select vidgen.stands_aside(%(worker_id)s) as aside) as here
    ) as v
),
asked as materialized (
  -- Whether it is asked for a film with outputs, which not every worker renders, or for any other task.
  select me.id, kind.renders
    from vidgen.workers as me
   cross join (values (false), (true)) as kind (renders)
   where me.id = %(worker_id)s and not %(idle)s and (me.renders > 0 or not kind.renders)
     -- The first of those who could take it: none of them behind a closed gate.
     and not exists (
       select from vidgen.workers as w
        where w.id < me.id and w.dead_at is null and w.concurrency > 0
          and (w.renders > 0 or not kind.renders)
          and w.provider = me.provider and w.key_fingerprint = me.key_fingerprint
          and not exists (
            select from vidgen.gates as g
             where g.provider = w.provider
               and g.scope = any (w.scopes)
          )
     )
     and not exists (
       select from vidgen.gates as g
        where g.provider = me.provider and g.scope = any (%(scopes)s::text[])
     )
),
suspects as materialized (
  -- One that another transaction holds empties no worker, nor does one that would submit something
  -- while its user is paused.
  select s.task_id
    from asked
   cross join vidgen.suspects as s
   cross join lateral (
     select
       from public.video_generation_tasks as t
      where t.id = s.task_id and t.status = 'pending'
        and (
          s.stage is null
          or not exists (
            select from vidgen.user_limits as u
             where u.user_id = t.user_id and u.paused_until > now()
          )
        )
        for no key update of t skip locked
   ) as t
   where (s.followers is null or s.followers && %(scopes)s::text[]) and asked.renders = (s.lane = -1)
   limit 1
),
moved as materialized (
  -- One by one, each locked and looked at again in a savepoint of its own.
  select one.*
    from ranked as v
   cross join lateral vidgen.take_over_task(
     v.id, v.worker_id, %(worker_id)s, %(max_crashes)s, v.mine, %(lost_message)s, %(scene_updates)s
   ) as one
)
select m.* from moved as m
union all
select 'suspect waits', null, null, null, null, null, null, null, null, null, null, null
 where exists (select from suspects)

-- hand_back --
-- Tasks of this worker (null: all) wait for another one, which resumes at their checkpoints. Each on its
-- own: a row that refuses, or that a client holds, is left to the lease and keeps no other waiting.
select back.id, back.attempt, back.refused
  from (
    select t.id, given.attempt
      from public.video_generation_tasks as t
      left join unnest(%(task_ids)s::uuid[], %(attempts)s::integer[]) as given (id, attempt)
        on given.id = t.id
     where t.worker_id = %(worker_id)s and t.status = 'processing'
       and (%(task_ids)s::uuid[] is null or given.id is not null)
     order by t.id
  ) as held
 cross join lateral vidgen.hand_back_task(held.id, %(worker_id)s, held.attempt) as back

-- leave --
-- The last word of a worker: its row goes, or, where it still names tasks (they could not be handed
-- back), says so, and they are taken over at once, without a death being counted.
with gone as (
  delete from vidgen.workers as w
   where w.id = %(worker_id)s
     and not exists (
       select from public.video_generation_tasks as t
        where t.worker_id = w.id and t.status = 'processing'
     )
  returning w.id
)
update vidgen.workers as w
   set dead_at = coalesce(w.dead_at, now()), left_at = now()
 where w.id = %(worker_id)s and not exists (select from gone)
-- The line of turns: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.

-- line_up --
-- Merge the mailbox, and users whose rows for later are due, into the line of turns. Rows are
-- written in user order, so two of these can't deadlock; claims skip what is locked here. A user whom
-- his own limit keeps waiting is not in the line until his pause is over. A turn that a claim holds keeps
-- nobody waiting: that user's mail stays where it is for the next one. (Only for a user's first turn, while
-- it is being inserted, does this wait.)
with front as materialized (
  select ctid as place, user_id, lane, due_at
    from vidgen.arrivals
   order by id
   limit 2000
     for update skip locked
),
free as materialized (
  select who.user_id, who.lane
    from (select distinct user_id, lane from front) as who
   cross join lateral (
     select from vidgen.turns as t
      where t.user_id = who.user_id and t.lane = who.lane
        for update skip locked
   ) as turn
),
mail as materialized (
  select front.place, front.user_id, front.lane, front.due_at
    from front
    left join free on free.user_id = front.user_id and free.lane = front.lane
   where free.user_id is not null
      or not exists (
        select from vidgen.turns as t where t.user_id = front.user_id and t.lane = front.lane
      )
),
emptied as (
  -- Locked, and never updated: they stay where they are.
  delete from vidgen.arrivals where ctid = any (array(select place from mail))
),
due as materialized (
  select user_id, lane, due_at
    from vidgen.turns
   where waiting_since is null and due_at <= now()
   order by due_at
   limit 500
     for update skip locked
)
insert into vidgen.turns as t (user_id, lane, waiting_since, due_at, arrivals)
select user_id, lane, case when due_at <= now() then clock_timestamp() end,
       case when due_at <= now() then 'infinity' else due_at end, 1
  from (
    select b.user_id, b.lane, greatest(min(b.due_at), min(u.paused_until)) as due_at
      from (
        select user_id, lane, due_at from mail union all select user_id, lane, due_at from due
      ) as b
      left join vidgen.user_limits as u on u.user_id = b.user_id
     group by b.user_id, b.lane
  ) as comes
 order by user_id, lane
on conflict (user_id, lane) do update
   set waiting_since = coalesce(t.waiting_since, excluded.waiting_since),
       due_at = case
                  when excluded.waiting_since is not null then 'infinity'
                  else least(t.due_at, excluded.due_at)
                end,
       arrivals = t.arrivals + 1

-- clear_line --
-- Users at the head of the line who have nothing due any more (cancelled meanwhile) leave it, many at
-- once: the claim lets go of no more than it has places, and with one place a thousand of them would
-- keep everybody waiting. A row that came in after our snapshot shows in `arrivals`, now or when the
-- mailbox is emptied.
with line as materialized (
  select user_id, lane, arrivals
    from vidgen.turns
   where lane = %(lane)s and waiting_since is not null
   order by waiting_since
   limit 500
     for update skip locked
),
idle as materialized (
  select line.user_id, line.lane
    from line
   where line.arrivals = (
           select seen.arrivals
             from vidgen.turns as seen
            where seen.user_id = line.user_id and seen.lane = line.lane
         )
     and not exists (
       select
         from generate_series(10, -10, -1) as p (priority)
        cross join lateral (
          select
            from public.video_generation_tasks as t
           where t.user_id = line.user_id and t.lane = line.lane and t.priority = p.priority
             and t.status = 'pending' and t.run_after <= now()
             and not exists (select from vidgen.resumes as r where r.task_id = t.id)
           order by t.run_after
           limit 1
        ) as due
     )
)
update vidgen.turns as t
   set waiting_since = null,
       due_at =
         -- use next_due --
  from idle
 where t.user_id = idle.user_id and t.lane = idle.lane
returning t.user_id
-- Paid POSTs and what they brought: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.
-- `mine` is the fence: see checkpoints.sql.
-- Up to 600 lines: the record of money, whose statements lock the same rows in one order.

-- begin_submission --
-- Before a paid POST: the submission row, and the checkpoint `submitting` with the frozen request.
-- Refused (nothing is written) where the stage's possibly paid submissions have reached the cap:
-- unknown, gone, or ended with a cost; where its owner has asked to cancel; behind a closed gate,
-- unless this task is the gate's trial; where a trouble shows that has let through as many as it may;
-- where the model has a limit and no slot is free; or by a limit of its user, which is asked last: it
-- then counts what begins here. A repeat finds its own submission and changes nothing.
with mine as materialized (
  select t.id, t.user_id, t.lane, t.attempt, t.worker_id,
         t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     for no key update
),
paid as materialized (
  select count(*) as submissions
    from vidgen.submissions as s, mine
   where s.task_id = mine.id and s.id <> %(submission_id)s and
     -- use possibly_paid --
),
gate as materialized (
  select min(g.reason) filter (where g.trial is distinct from %(task_id)s) as reason,
         coalesce(bool_or(g.trial = %(task_id)s), false) as on_trial
    from vidgen.gates as g
   where g.provider = %(provider)s and g.scope = any (%(scopes)s::text[])
     and g.model in ('*', %(model)s)
),
own as materialized (
  -- The one that the claim reserved; a claim with an older snapshot may have it locked for a moment.
  select s.id
    from vidgen.slots as s, mine
   where s.provider = %(provider)s and s.account = %(account)s
     and s.model = %(model)s and s.task_id = mine.id
     and coalesce(s.submission_id, %(submission_id)s) = %(submission_id)s
   limit 1
     for update of s
),
user_lock as materialized (
  -- From here on one statement of this user runs at a time. A statement that waits here has locked nothing
  -- that other users wait for.
  select vidgen.lock_limits(mine.user_id) from mine
),
other as materialized (
  -- Else a free slot. A slot of the video model only while no task waits whose image is done: else that
  -- task could wait for ever.
  select s.id
    from vidgen.slots as s, mine, gate, user_lock
   where s.provider = %(provider)s and s.account = %(account)s
     and s.model = %(model)s
     and s.task_id is null and not exists (select from own)
     and (
       %(stage)s = 'image' or gate.on_trial
       or not exists (
         select from vidgen.due_resumes as r
          where r.lane = mine.lane and r.stage = 'video'
       )
     )
   limit 1
     for update of s skip locked
),
slot as materialized (
  select id from own union all select id from other
),
braking as materialized (
  -- A trouble was noted: the submissions that may still begin are counted under its row's lock, a repeat
  -- once. `nowait`: where another statement counts at this moment, this one fails, holds no lock, and is
  -- sent again.
  select t.scope, t.part, t.model, t.reason, t.message, t.details, t.remaining
    from vidgen.troubles as t, mine, gate, user_lock
   where t.provider = %(provider)s and t.scope = any (%(scopes)s::text[])
     and t.remaining is not null and (t.part in ('storage', 'machine') or t.model = %(model)s)
     and not gate.on_trial
     and not exists (select from vidgen.submissions as s where s.id = %(submission_id)s)
   order by t.scope, t.part, t.model
     for update of t nowait
),
input as materialized (
  -- What it is made from counts by its bytes: its signed URL is another one at each reading.
  select %(digest)s || coalesce(
           (
             select ':' || c.sha256
               from vidgen.checkpoints as c
              where c.task_id = mine.id and c.stage = %(made_from)s::text and c.state = 'done'
           ),
           ''
         ) as digest
    from mine
),
candidate as materialized (
  select mine.id, mine.user_id, mine.attempt, mine.worker_id
    from mine, paid, gate
   where paid.submissions < %(max_submissions)s and not mine.cancel and gate.reason is null
     and not exists (select from braking where remaining = 0)
     and (
       exists (select from slot)
       or not exists (
         select from vidgen.limits as l
          where l.provider = %(provider)s and l.account = %(account)s
            and l.model = %(model)s and l.max_generations is not null
       )
     )
),
limited as materialized (
  select candidate.*, input.digest,
         vidgen.refuse_submission(
           candidate.user_id, candidate.id, %(submission_id)s, %(provider)s, %(model)s,
           input.digest, %(probe)s
         ) as verdict
    from candidate, input
),
admitted as materialized (
  select id, user_id, attempt, worker_id, digest from limited where verdict is null
),
begun as (
  insert into vidgen.submissions (
    id, task_id, user_id, stage, attempt, worker_id, provider, account, key_fingerprint, model,
    fingerprint, digest
  )
  select %(submission_id)s, id, user_id, %(stage)s, attempt, worker_id,
         %(provider)s, %(account)s, %(key_fingerprint)s, %(model)s, %(fingerprint)s, digest
    from admitted
  on conflict (id) do nothing
),
spent as (
  update vidgen.troubles as t
     set remaining = greatest(t.remaining - 1, 0)
    from braking, admitted
   where t.provider = %(provider)s
     and (t.scope, t.part, t.model) = (braking.scope, braking.part, braking.model)
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
  -- Not while a trouble's row is locked: an application's slow trigger on this row would keep it locked,
  -- and other statements count by it. The next report shows the progress, the next stage what was looked up.
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, %(progress)s), current_step = %(current_step)s,
         message = %(message)s, stage_progress = 0,
         resolution = coalesce(%(resolution)s, t.resolution),
         video_ratio = coalesce(%(video_ratio)s, t.video_ratio),
         image_ratio = coalesce(%(image_ratio)s, t.image_ratio),
         expected_at = now() + %(seconds_left)s::float8 * interval '1 second'
    from admitted
   where t.id = admitted.id and not exists (select from braking)
)
select paid.submissions, mine.cancel, gate.reason as gate,
       (
         select jsonb_build_object(
                  'scope', b.scope, 'model', b.model, 'part', b.part, 'reason', b.reason,
                  'message', b.message, 'details', b.details
                )
           from braking as b where b.remaining = 0 limit 1
       ) as braked,
       (select verdict from limited) as limited,
       not exists (select from admitted) as refused
  from mine, paid, gate

-- answer_submission --
-- The provider's answer is a fact: it goes to the submission row without a fence, so that a late
-- one is never thrown away. The checkpoint follows it only under the fence, and only while it still
-- waits for this submission. `fate` says what became of it: followed, kept (a successor will attach
-- to it), superseded (nobody will: the caller ends it at the provider). An answer that comes after
-- a successor has counted it as unknown is `late`, for good: nobody waits for it any more. `follow` is
-- false where another transaction holds the task's row: then only the fact is written.
with late as materialized (
  select from vidgen.submissions as s
   where s.id = %(submission_id)s and %(answer)s = 'generation'
     and (s.answer = 'unknown' or s.late_at is not null)
),
answered as (
  update vidgen.submissions as s
     set answer = %(answer)s, answered_at = now(), generation_id = %(generation_id)s,
         estimated_cost = %(estimated_cost)s,
         late_at = case when s.answer = 'unknown' then now() end,
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
   where
     -- use fence --
     and %(follow)s
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
     set crashes = 0, suspect = false, waiting_since = null
    from followed
   where b.task_id = followed.task_id and (b.crashes > 0 or b.waiting_since is not null)
),
over as materialized (
  -- The provider accepts submissions: the trouble is over. A row that another statement holds is skipped,
  -- because a fact waits for no lock; that statement or the next answer deletes it.
  select t.provider, t.scope, t.part, t.model
    from vidgen.troubles as t, vidgen.submissions as s
   where s.id = %(submission_id)s and %(answer)s = 'generation' and t.part = 'submit'
     and t.provider = s.provider and t.model = s.model and t.scope = any (%(scopes)s::text[])
     for update of t skip locked
),
relieved as (
  delete from vidgen.troubles as t
   using over
   where (t.provider, t.scope, t.part, t.model) = (over.provider, over.scope, over.part, over.model)
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
-- VIDGEN_MAX_SUBMISSIONS caps.
select count(*) as submissions
  from vidgen.submissions as s
 where s.task_id = %(task_id)s and
   -- use possibly_paid --

-- read_submission --
-- What has become of a submission whose answer another worker waits for. `late`: it came after
-- somebody had counted it as unknown, and who recorded it ends its generation.
select s.answer, s.generation_id, s.sent_at, now() as now,
       s.late_at is not null as late
  from vidgen.submissions as s
 where s.id = %(submission_id)s

-- end_generation --
-- A generation is over: its end and cost are facts (no fence); the checkpoint follows under the
-- fence: to `storing` where there is an output, back to `submitting` where there is none, with the
-- verdict where that is how the task must end. `show` is false in a repeat, after the row refused to
-- show it: a fact is written whatever the row says. Where it is known how long it took, the fleet learns
-- that: between `ended_after` and `ended_by` seconds. Where an output is to be stored, `upload_id` records
-- its place, as begin_upload does.
with ended as (
  update vidgen.submissions as s
     set ended_at = coalesce(s.ended_at, now()), ended_state = %(ended_state)s,
         cost = coalesce(%(cost)s, s.cost), cost_read_at = now(),
         rejected = s.rejected or %(rejected)s
   where s.task_id = %(task_id)s and s.generation_id = %(generation_id)s
),
mine as materialized (
  select t.id, t.user_id, t.attempt, t.worker_id, t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     for no key update
),
timed as materialized (
  -- As it was before this statement: a repeat teaches nothing.
  select s.provider, s.model, %(clip_seconds)s::smallint as seconds
    from vidgen.submissions as s
    join mine on mine.id = s.task_id
   where s.generation_id = %(generation_id)s and s.ended_at is null
     and %(ended_by)s::real is not null
),
times as materialized (
  -- A fact waits for no lock: while another statement teaches the same, this one teaches nothing.
  select g.provider, g.model, g.seconds
    from vidgen.generation_times as g
    join timed using (provider, model, seconds)
     for no key update of g skip locked
),
taught as (
  update vidgen.generation_times as g
     set ended_after = (array[%(ended_after)s::real] || g.ended_after)[:24],
         ended_by = (array[%(ended_by)s::real] || g.ended_by)[:24]
    from times
   where (g.provider, g.model, g.seconds) = (times.provider, times.model, times.seconds)
),
first_taught as (
  -- Two first ends of a kind at once: an INSERT would wait for the other's.
  insert into vidgen.generation_times (provider, model, seconds, ended_after, ended_by)
  select timed.provider, timed.model, timed.seconds, array[%(ended_after)s::real],
         array[%(ended_by)s::real]
    from timed
   where not exists (
     select from vidgen.generation_times as g
      where (g.provider, g.model, g.seconds) = (timed.provider, timed.model, timed.seconds)
   )
     and pg_try_advisory_xact_lock(
       hashtextextended(
         format('generation_times %%s %%s %%s', timed.provider, timed.model, timed.seconds), 0
       )
     )
  on conflict (provider, model, seconds) do nothing
),
checkpointed as (
  update vidgen.checkpoints as c
     set state = case when %(ended_state)s = 'succeeded' then 'storing' else 'submitting' end,
         generation_id = case when %(ended_state)s = 'succeeded' then c.generation_id end,
         verdict = %(verdict)s::jsonb, updated_at = now()
    from mine
   where c.task_id = mine.id and c.stage = %(stage)s and c.state in ('generating', 'storing')
     and c.generation_id = %(generation_id)s
),
progressed as (
  -- The checkpoint advances, so deaths and the time of waiting are counted from zero again. Not when a
  -- later attempt books the same end again before it stores the output: workers may die of that file.
  update vidgen.budgets as b
     set crashes = 0, suspect = false,
         waiting_since = case
           when not exists (
             select from vidgen.checkpoints as c
              where c.task_id = b.task_id and c.stage = %(stage)s and c.state = 'generating'
           ) then b.waiting_since
         end
    from mine
    join vidgen.checkpoints as c on c.task_id = mine.id
   where b.task_id = mine.id and (b.crashes > 0 or b.waiting_since is not null)
     and %(ended_state)s = 'succeeded'
     and c.stage = %(stage)s and c.generation_id = %(generation_id)s and c.state = 'generating'
),
shown as (
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, %(progress)s), current_step = %(current_step)s,
         message = %(message)s, stage_progress = 100
    from mine
   where t.id = mine.id and %(ended_state)s = 'succeeded' and %(show)s
),
begun as (
  -- use upload --
  and %(upload_id)s::uuid is not null and %(ended_state)s = 'succeeded'
  on conflict (id) do nothing
)
select mine.cancel from mine

-- generation_times --
-- How long the last generations of each kind took: newest first.
select g.model, g.seconds, g.ended_after, g.ended_by
  from vidgen.generation_times as g
 where g.provider = %(provider)s

-- close_generation --
-- The end and cost of a generation that nobody follows any more (late answers, cancels).
update vidgen.submissions as s
   set ended_at = coalesce(s.ended_at, now()), ended_state = coalesce(s.ended_state, %(ended_state)s),
       cost = coalesce(%(cost)s, s.cost), cost_read_at = now(), rejected = s.rejected or %(rejected)s
 where s.task_id = %(task_id)s and s.generation_id = %(generation_id)s

-- is_gone --
-- The provider knows no such generation under this worker's key. It is gone where that is the key
-- which made it, and where nobody is left who may know better. Else the two keys may belong to two
-- accounts: from now on only workers with its own key follow it.
with asked as materialized (
  select s.id, s.key_fingerprint = %(key_fingerprint)s or s.followed_by = 'anyone' as gone
    from vidgen.submissions as s
   where s.task_id = %(task_id)s and s.generation_id = %(generation_id)s
     for no key update
),
left_to_its_key as (
  update vidgen.submissions as s
     set followed_by = 'key'
    from asked
   where s.id = asked.id and not asked.gone and s.followed_by <> 'key'
)
select coalesce(bool_and(gone), true) as gone from asked

-- let_anyone_follow --
-- Generations whose account, or only key, has had no worker for so long: anyone may ask for them now,
-- and a 404 is the end of it. Else their tasks would wait, and their slots be taken, for good.
with left_alone as materialized (
  select s.id
    from vidgen.submissions as s
   where s.ended_at is null and s.followed_by <> 'anyone' and s.sent_at < now() - %(absence)s::interval
     and (s.answer is null or s.answer = 'generation')
     and vidgen.is_left_alone(
           s.provider, s.account, s.key_fingerprint, s.followed_by, %(absence)s::interval
         )
  union
  select s.id
    from vidgen.resumes as r
    join vidgen.checkpoints as c on c.task_id = r.task_id and c.state <> 'done'
    join vidgen.submissions as s on s.id = c.submission_id
   where r.followers is not null and s.followed_by <> 'anyone'
     and vidgen.is_left_alone(
           s.provider, s.account, s.key_fingerprint, s.followed_by, %(absence)s::interval
         )
),
-- Rows that their user's own call holds are left to the next run, here and below.
unheld as materialized (
  select s.id
    from vidgen.submissions as s
   where s.id in (select left_alone.id from left_alone)
   order by s.id
     for no key update of s skip locked
),
free as (
  update vidgen.submissions as s
     set followed_by = 'anyone'
    from unheld
   where s.id = unheld.id
  returning s.id, s.task_id, s.generation_id, s.account, s.key_fingerprint
),
waiting as (
  -- Also tasks that an earlier run missed, because they changed at that moment.
  update vidgen.resumes as r
     set followers = null
    from (
      select w.task_id
        from vidgen.resumes as w
        join vidgen.checkpoints as c on c.task_id = w.task_id and c.state <> 'done'
        join vidgen.submissions as s on s.id = c.submission_id
       where w.followers is not null
         and (s.followed_by = 'anyone' or s.id in (select left_alone.id from left_alone))
       order by w.task_id
         for no key update of w skip locked
    ) as left_to_anyone
   where r.task_id = left_to_anyone.task_id
)
select id, task_id, generation_id, account, key_fingerprint from free

-- stray_submissions --
-- Generations that nobody follows and whose end nobody has booked: answers that came too late, and
-- whatever a task has left behind by the way it ended. `kept`: its task only waits, or is set aside; it
-- is read, so that its slot is free once it is over, and not ended. One worker looks at a time.
with strays as materialized (
  select s.id, coalesce(follower.waits, false) as kept
    from vidgen.submissions as s
    left join lateral (
      select exists (
               select from vidgen.resumes as r
                where r.task_id = t.id and r.resume_at > now() and t.status = 'pending'
             )
             or exists (select from vidgen.set_aside as a where a.task_id = t.id) as waits
        from vidgen.checkpoints as c
        join public.video_generation_tasks as t on t.id = c.task_id
       where c.task_id = s.task_id and c.stage = s.stage and c.submission_id = s.id
         and t.status in ('pending', 'processing')
         -- A late answer's checkpoint still names it where no other submission followed.
         and not (c.state = 'submitting' and s.late_at is not null)
    ) as follower on true
   where s.answer = 'generation' and s.ended_at is null
     and coalesce(follower.waits, true)
     -- The worker that records a late answer ends its generation itself; and the provider wants 5 s between
     -- two polls.
     and greatest(s.answered_at, s.looked_at) < now() - interval '10 seconds'
     and s.provider = %(provider)s and
       -- use followed_here --
   order by s.looked_at nulls first, s.sent_at
   limit 50
     for no key update of s skip locked
)
update vidgen.submissions as s
   set looked_at = now()
  from strays
 where s.id = strays.id
returning s.id, s.task_id, s.generation_id, strays.kept,
          extract(epoch from now() - s.answered_at)::float as age

-- costs_to_read_again --
-- The provider gives refunds some minutes after a failure: the cost that it tells then is the truth.
-- What was given up may live on: it is looked for again, and ended, for a day. Rows that others hold
-- take no place in the limits.
with failed as materialized (
  select s.task_id, s.generation_id, false as given_up
    from vidgen.submissions as s
   where s.ended_state in ('failed', 'cancelled')
     and
       -- use cost_to_read --
   order by s.ended_at
   limit 20
     for no key update of s skip locked
),
given_up as materialized (
  select s.task_id, s.generation_id, true as given_up
    from vidgen.submissions as s
   where s.ended_state = 'given up'
     and
       -- use cost_to_read --
   order by random()
   limit 20
     for no key update of s skip locked
)
select * from failed union all select * from given_up
-- Sweeps, duties, audits, uploads, counts: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.

-- sweep_workers --
-- Rows of dead workers that hold nothing any more, an hour after their death.
delete from vidgen.workers as w
 where w.dead_at < now() - interval '1 hour'
   and not exists (
     select from public.video_generation_tasks as t
      where t.worker_id = w.id and t.status = 'processing'
   )
returning w.id

-- sweep_gates --
-- Gates of keys, file stores and machines that no worker has had for an hour: nobody would probe them.
delete from vidgen.gates as g
 where g.closed_at < now() - interval '1 hour'
   and g.scope like any (array['key:%%', 'storage:%%', 'machine:%%'])
   and not exists (select from vidgen.workers as w where g.scope = any (w.scopes))

-- sweep_turns --
-- Users who have had no waiting task for long; an arrival that comes in meanwhile makes a new row.
delete from vidgen.turns as t
 using (
   select user_id, lane
     from vidgen.turns
    where waiting_since is null and due_at = 'infinity'
      for update skip locked
 ) as idle
 where t.user_id = idle.user_id and t.lane = idle.lane

-- sweep_limits --
-- Rejections that are old enough to be forgotten, and troubles of users that nobody met again.
select vidgen.sweep_limits()

-- sweep_passed --
-- Tasks that were found locked once, an hour later.
delete from vidgen.passed_over as p
 using (
   select o.task_id
     from vidgen.passed_over as o
    where o.until < now() - interval '1 hour'
      for update skip locked
 ) as old
 where p.task_id = old.task_id

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
           -- Or its task is set aside, and its row takes no other status; it finds another slot.
           when s.submission_id is null then t.status is distinct from 'processing'
                or exists (select from vidgen.set_aside as a where a.task_id = s.task_id)
           else sent.id is null or sent.ended_at is not null
                or (sent.answer is distinct from 'generation'
                    and sent.sent_at < now() - %(patience)s::interval)
         end
     for update of s skip locked
),
lost as materialized (
  -- A row that its user's own call holds is left, with its slot, to the next sweep.
  select sent.id
    from vidgen.submissions as sent
   where sent.id in (select stale.submission_id from stale) and sent.answer is null
   order by sent.id
     for no key update of sent skip locked
),
-- An answer that comes after this is late: the worker that records it ends the generation.
given_up as (
  -- use give_up --
)
select stale.model, vidgen.free_slot(stale.id, stale.task_id, stale.submission_id)
  from stale
 where not exists (
   select from vidgen.submissions as sent
    where sent.id = stale.submission_id and sent.answer is null
      and sent.id not in (select lost.id from lost)
 )

-- give_up_submissions --
-- Paid POSTs whose answer nobody recorded and nobody waits for any more: they count as possibly paid.
-- An answer that comes after this is late: the worker that records it ends the generation. A row that its
-- user's own call holds is left to the next sweep.
with lost as materialized (
  select s.id
    from vidgen.submissions as s
   where s.answer is null and s.ended_at is null and s.sent_at < now() - %(patience)s::interval
     and not exists (
       select
         from vidgen.checkpoints as c
         join public.video_generation_tasks as t on t.id = c.task_id
        where c.task_id = s.task_id and c.stage = s.stage and c.submission_id = s.id
          and t.status in ('pending', 'processing')
     )
   order by s.id
     for no key update of s skip locked
)
-- use give_up --

-- fleet --
-- For /metrics: what waits, what runs, who works, what is closed, what the provider is full of.
select q.pending as queue_pending, q.scheduled as queue_scheduled, q.processing as queue_processing,
       q.oldest_seconds as queue_oldest_pending_seconds, q.workers_alive, q.workers_steady,
       extract(epoch from now())::float as fleet_read_at_seconds,
       (select count(*) from vidgen.set_aside) as tasks_set_aside,
       (
         select count(*) from vidgen.uploads as u
          where
            -- use upload_left --
       ) as uploads_left,
       (select coalesce(jsonb_agg(jsonb_build_object(
                 'scope', g.scope, 'model', g.model, 'reason', g.reason
               )), '[]')
          from vidgen.gates as g) as gates,
       (select coalesce(jsonb_agg(of_model), '[]')
          from (
            -- Of accounts that have a worker.
            select l.model, sum(l.max_generations) as slots,
                   sum((select count(*) from vidgen.slots as s
                         where (s.provider, s.account, s.model)
                             = (l.provider, l.account, l.model)
                           and s.task_id is not null)) as taken
              from vidgen.limits as l
             where l.max_generations is not null
               and exists (
                 select from vidgen.workers as w
                  where w.dead_at is null and w.provider = l.provider
                    and w.account = l.account
               )
             group by l.model
          ) as of_model) as slots
  from vidgen.queue_health as q

-- take_duty --
-- Whether this worker is the one of the fleet to do this now. A turn that began in the future was
-- written before the clock stepped back.
insert into vidgen.duties as d (name, began_at)
values (%(duty)s, now())
on conflict (name) do update
   set began_at = excluded.began_at
 where d.began_at not between now() - %(every)s::interval and now()
returning d.name

-- take_uploads --
-- Objects to be removed from Storage, of uploads that nobody has charged or will (see the function).
select taken.upload_id, taken.of_bucket as bucket, taken.of_path as path, taken.first_time
  from vidgen.take_uploads(%(batch)s) as taken

-- uploads_removed --
-- They are gone from Storage; they are looked for again for a while (see the function).
select vidgen.uploads_removed(%(upload_ids)s)

-- uploads_left --
-- Uploads of more than an hour ago that are neither charged nor removed, and the age of the oldest.
select count(*) as uploads,
       coalesce(extract(epoch from now() - min(u.since)), 0)::float as oldest_seconds
  from vidgen.uploads as u
 where
   -- use upload_left --

-- forget_tasks --
-- Remove the private rows of a batch of tasks that ended long ago (see the function).
select tasks, through from vidgen.forget_tasks(%(keep)s::interval, %(after)s::timestamptz, %(batch)s)

-- forget_holds --
-- Remove a batch of holds that were closed long ago.
select vidgen.forget_holds(%(keep)s::interval, %(batch)s) as holds

-- audit_entries --
-- Add the next entries of the ledger to their users' totals.
select vidgen.audit_entries(%(batch)s) as entries

-- audit_users --
-- Compare the next users' totals with their balances and holds.
select discrepancies, through from vidgen.audit_users(%(after)s::uuid, %(batch)s)

-- note_audit --
-- What the audit has found, for every worker's metrics.
select vidgen.note_audit(%(discrepancies)s)

-- read_audit --
-- What the last audit of the fleet has found.
select coalesce(a.discrepancies, 0) as discrepancies from vidgen.audited as a
-- Gates: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.

-- close_gate --
-- Nothing paid of this model starts in this scope until a probe or an operator opens it. A gate
-- that is closed already keeps its probes.
insert into vidgen.gates as g
  (provider, scope, model, reason, message, details, probe_at, until)
values
  (%(provider)s, %(scope)s, %(model)s, %(reason)s, %(message)s, %(details)s,
   now() + %(probe)s::interval, now() + %(probe)s::interval)
on conflict (provider, scope, model) do nothing
returning g.model

-- meet_gate --
-- A submission was refused for a reason that may be everybody's, or its input's alone. `again`: its user
-- had met the same before it was sent, within a day, and nothing stands still for it now. `price` is the
-- most that a generation of this model was to cost lately.
with mine as materialized (
  select s.id, s.sent_at
    from vidgen.submissions as s
   where s.task_id = %(task_id)s
   order by s.sent_at desc
   limit 1
),
unsaid as materialized (
  -- Where another transaction has the row, the next refusal says it.
  select s.id
    from vidgen.submissions as s, mine
   where s.id = mine.id and s.met_gate is null
     for no key update of s skip locked
),
met as (
  update vidgen.submissions as s set met_gate = %(scope)s from unsaid where s.id = unsaid.id
)
select exists (
         select
           from vidgen.submissions as s, mine
          where s.user_id = %(user_id)s and s.met_gate = %(scope)s and s.id <> mine.id
            and s.answered_at < mine.sent_at
            and s.sent_at > greatest(
                  now() - interval '1 day',
                  (select u.lifted_at from vidgen.user_limits as u where u.user_id = %(user_id)s)
                )
       )
       and not exists (
         select from vidgen.gates as g
          where g.provider = %(provider)s and g.scope = %(scope)s
       ) as again,
       (
         select coalesce(max(s.estimated_cost), (select l.expected_cost from vidgen.settings as l))
           from (
             select l.estimated_cost
               from vidgen.submissions as l
              where l.model = %(model)s
              order by l.sent_at desc
              limit 50
           ) as s
       )::float as price

-- note_trouble --
-- A trouble after money was spent, of one task, that may be the first of many (see the function).
select tasks, users, weighed, braked
  from vidgen.note_trouble(
         %(provider)s, %(scope)s, %(part)s, %(model)s, %(reason)s, %(message)s, %(details)s,
         %(task_id)s, %(user_id)s, %(allowance)s, %(probe)s
       )

-- is_troubled --
-- Whether what closed a gate has shown, without a stage that went well since.
select exists (
  select from vidgen.troubles as t
   where t.provider = %(provider)s and t.scope = %(scope)s and t.reason = %(reason)s
) as troubled

-- fragment first_of_user --
-- The first of what is due of the user of this line.
select t.id, t.failures, t.created_at
  from public.video_generation_tasks as t
 where t.user_id = line.user_id and t.lane = line.lane
   and t.status = 'pending' and t.run_after <= now()
   and not exists (select from vidgen.resumes as r where r.task_id = t.id)
 order by t.priority desc, t.run_after, t.created_at
 limit 1

-- try_rows --
-- Is it all rows that refuse? A waiting task of up to six users, of whom none is set aside, says so for
-- free (vidgen.try_row). `refusing` is of how many users tasks are set aside now, of those
-- that were so for the first time in the last half hour: one that never takes its end keeps no gate
-- closed. A lock passes, and says nothing of the row.
with aside as materialized (
  select distinct t.user_id, r.since > now() - interval '30 minutes' and r.error not like '55P03%%' as of_late
    from vidgen.set_aside as a
    join vidgen.refusals as r on r.task_id = a.task_id
    join public.video_generation_tasks as t on t.id = a.task_id
),
waiting as materialized (
  -- At random: nobody's rows stand in front at every probe.
  select of_user.user_id, of_user.task_id
    from (
      select distinct on (r.user_id) r.user_id, r.task_id
        from vidgen.resumes as r
       where r.stage = 'video' and r.resume_at <= now()
         and r.user_id not in (select aside.user_id from aside)
       order by r.user_id, r.resume_at
    ) as of_user
   order by random()
   limit 3
),
line as materialized (
  select n.user_id, n.lane
    from vidgen.turns as n
   where n.lane > 0 and n.waiting_since is not null and n.user_id not in (select aside.user_id from aside)
     and n.user_id not in (select waiting.user_id from waiting)
   order by random()
   limit 3
),
chosen as materialized (
  select waiting.user_id, waiting.task_id from waiting
  union all
  select line.user_id, first.id
    from line
   cross join lateral (
     -- use first_of_user --
   ) as first
),
tried as materialized (
  select vidgen.try_row(chosen.task_id, %(worker_id)s) as refused from chosen
)
select (select count(*) from tried where refused is distinct from '') as tried,
       (select count(*) from tried where refused is null) as taken,
       (select min(refused) from tried where refused <> '') as refused,
       (select count(distinct aside.user_id) from aside where aside.of_late) as refusing

-- fragment shows_a_trouble --
-- The output of checkpoint c is of a model with a trouble in this scope.
exists (
  select from vidgen.troubles as tr
   where tr.provider = %(provider)s and tr.scope = %(scope)s and tr.model = c.request ->> 'model'
)

-- try_kept --
-- Before a gate opens that closed while outputs are kept: does one of those try it? Storing it costs
-- nothing, and its row of vidgen.troubles goes when that went well. The one that has waited longest is
-- due now; it is taken up behind a closed gate too. One that is being stored just now tries it as well.
-- One that is set aside tells nothing: its row may refuse for ever. Nor does one that this worker may not
-- follow, one that another transaction holds, or one that a worker outside the scope is storing.
with kept as materialized (
  select r.task_id
    from vidgen.resumes as r
    join vidgen.checkpoints as c on c.task_id = r.task_id and c.state = 'storing'
   where r.stage is null
     and (r.followers is null or r.followers && %(scopes)s::text[])
     and not exists (select from vidgen.set_aside as a where a.task_id = r.task_id)
     and not exists (select from vidgen.passed_now as p where p.task_id = r.task_id)
     and
       -- use shows_a_trouble --
   order by r.resume_at
   limit 1
     for update of r skip locked
),
due as (
  update vidgen.resumes as r
     set resume_at = now()
    from kept
   where r.task_id = kept.task_id and r.resume_at > now()
)
select exists (select from kept)
       or exists (
         select
           from public.video_generation_tasks as t
           join vidgen.checkpoints as c on c.task_id = t.id and c.state = 'storing'
           join vidgen.workers as w on w.id = t.worker_id and %(scope)s = any (w.scopes)
          where t.status = 'processing'
            and not exists (select from vidgen.set_aside as a where a.task_id = t.id)
            and
              -- use shows_a_trouble --
       ) as kept

-- take_probe --
-- One worker that it concerns probes a closed gate; the next probe is twice as far away, up to five minutes.
update vidgen.gates as g
   set probes = g.probes + 1,
       probe_at = now() + least(%(probe)s::interval * 2 ^ least(g.probes + 1, 20), interval '5 minutes'),
       until = now() + least(%(probe)s::interval * 2 ^ least(g.probes + 1, 20), interval '5 minutes')
  from (
    select provider, scope, model
      from vidgen.gates
     where provider = %(provider)s and scope = any (%(scopes)s::text[])
       and probe_at <= now()
     order by probe_at
     limit 1
       for update skip locked
  ) as due
 where (g.provider, g.scope, g.model) = (due.provider, due.scope, due.model)
returning g.scope, g.model, g.reason, g.probes,
          extract(epoch from now() - g.closed_at)::float as seconds

-- claim_trial --
-- After a storm one waiting task is let through the gate, to try it: under the gate's row lock, by
-- the worker that took this probe, and only while no earlier trial is running. A task past its
-- image first (it tries the clip at once), then one of a user in the line, at random: nobody's tasks are
-- tried again and again. Rather not one that has failed, has seen a worker die, whose row refuses or
-- whose user can't pay, which would try the task and not the provider.
with gate as materialized (
  select g.provider, g.scope, g.model
    from vidgen.gates as g, vidgen.workers as me
   where g.provider = %(provider)s and g.scope = %(scope)s
     and g.model = %(model)s and g.probes = %(probes)s
     and me.id = %(worker_id)s and me.dead_at is null
     and not exists (
       select from public.video_generation_tasks as t
        where t.id = g.trial and t.status = 'processing'
     )
     for update of g
),
line as materialized (
  select user_id, lane
    from vidgen.turns
   where lane = %(lane)s and waiting_since is not null
   order by waiting_since
   limit 20
),
clips as materialized (
  -- Locked before the limit: rows that others hold take no place in it.
  select t.id, t.failures, r.resume_at
    from vidgen.resumes as r
    join public.video_generation_tasks as t on t.id = r.task_id
   where r.lane = %(lane)s and r.stage = 'video' and r.resume_at <= now() and t.status = 'pending'
     and exists (select from gate)
   order by r.resume_at
   limit 20
     for no key update of t skip locked
),
waiting as materialized (
  select clips.id, clips.failures, 1 as place, clips.resume_at as since from clips
  union all
  (select ready.id, ready.failures, 2, ready.created_at
     from line
    cross join lateral (
      -- use first_of_user --
    ) as ready
    -- While the gate is closed no claim begins anything: nothing races with this count.
    where %(max_running_per_user)s::integer is null or
          -- use begun_of_user --
          < %(max_running_per_user)s::integer)
),
begun as materialized (
  select attempt.*
    from (
      select t.id
        from gate
       cross join waiting as w
        join public.video_generation_tasks as t on t.id = w.id
        left join vidgen.budgets as b on b.task_id = w.id
       order by exists (select from vidgen.refusals as r where r.task_id = w.id),
                coalesce(b.crashes, 0) > 0, w.failures > 0,
                -- Only a hint: an application may have credits of its own.
                w.place = 2 and exists (select from public.user_credits) and not exists (
                  select from public.user_credits as u
                   where u.user_id = t.user_id
                     and u.balance - u.held >= (select sum(p.credits) from public.credit_prices as p)
                ),
                -- Whoever's input may be to blame comes last.
                exists (
                  select from vidgen.troubles as tr
                   where tr.provider = gate.provider and tr.scope = gate.scope
                     and tr.model = gate.model
                     and t.user_id = any (tr.proven_users || tr.new_users)
                ),
                w.place, case w.place when 1 then w.since end, random()
      offset 0
    ) as first
   cross join lateral vidgen.begin_attempts(array[first.id], %(worker_id)s, false) as attempt
   limit 1
),
marked as (
  update vidgen.gates as g
     set trial = begun.id
    from gate, begun
   where begun.refused is null
     and (g.provider, g.scope, g.model)
       = (gate.provider, gate.scope, gate.model)
)
select c.*,
       extract(epoch from clock_timestamp() - greatest(c.run_after, c.created_at))::float as waited
  from begun as c

-- open_gate --
-- A probe went well. The troubles first, as whoever stores a stage locks them: the gate's trigger
-- changes them.
with troubles as materialized (
  select t.model
    from vidgen.troubles as t
   where t.provider = %(provider)s and t.scope = %(scope)s
   order by t.scope, t.part, t.model
     for update
)
delete from vidgen.gates as g
 where g.provider = %(provider)s and g.scope = %(scope)s and g.model = %(model)s
   and (select count(*) from troubles) >= 0
returning extract(epoch from now() - g.closed_at)::float as seconds

-- read_gates --
-- What is closed for this worker.
select g.scope, g.model, g.reason, g.message, g.until, g.closed_at, g.probes
  from vidgen.gates as g
 where g.provider = %(provider)s and g.scope = any (%(scopes)s::text[])
 order by g.model

-- stands_aside --
-- Whether this worker is behind a gate of its own while another one of its account works on.
select vidgen.stands_aside(%(worker_id)s) as aside
-- Limits of a model at the provider: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.

-- ask_limits --
-- Whether this worker is the one to read the account's limits now: one of the fleet does, every
-- minute, and sooner while nobody knows them. Of all models that this account was ever used with: tasks
-- that began with another one may still be under way. Those that another worker is asking about, and
-- nobody knows yet, come back as not `mine`: it may die before it says so.
with asked as (
  update vidgen.limits as l
     set asked_at = now()
   where l.provider = %(provider)s and l.account = %(account)s
     and (
       l.asked_at is null or l.asked_at > now()
       or l.asked_at < now() - case when l.read_at is null then interval '5 seconds' else %(every)s end
     )
  returning l.model
)
select asked.model, true as mine from asked
union all
select l.model, false
  from vidgen.limits as l
 where l.provider = %(provider)s and l.account = %(account)s
   and l.read_at is null and l.model not in (select asked.model from asked)

-- set_limit --
-- How many generations of a model may be in flight; null: any number.
select vidgen.set_limit(%(provider)s, %(account)s, %(model)s, %(max_generations)s, true)

-- expect_limit --
-- Until somebody has read the account: one at a time, which every tier allows.
select vidgen.set_limit(%(provider)s, %(account)s, m.model, 1, false)
  from unnest(%(models)s::text[]) as m (model)
 where not exists (
   select from vidgen.limits as l
    where l.provider = %(provider)s and l.account = %(account)s
      and l.model = m.model
 )
