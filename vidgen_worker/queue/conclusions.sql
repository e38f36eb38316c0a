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
