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
