-- One row that can't be changed costs that row, and nothing lives on behind a task that has ended.
--
-- A foreign error (an application's trigger, check, key, policy or lock on our tables) used to undo
-- the whole statement, and with it what the statement did for all other tasks. So each statement that
-- changes several tasks changes each of them in a function of its own with an exception block, which
-- is one savepoint: the row that refuses is noted in `refusals` and left alone for a while.

alter table vidgen.settings
  add column max_refusals smallint not null default 8,
  add column refusal_pause interval not null default '5 seconds';
-- One row.
-- squawk-ignore constraint-missing-not-valid
alter table vidgen.settings add constraint refusals_are_bounded check (
  max_refusals > 0 and refusal_pause > interval '0'
);
alter table vidgen.settings alter column schema_version set default '20261125000100';
update vidgen.settings set schema_version = '20261125000100';

comment on column vidgen.settings.max_refusals is
  'After so many refused changes a task ends as ROW_REFUSED, where its row lets it end.';
comment on column vidgen.settings.refusal_pause is
  'The first pause of a task whose row refused a change; it doubles, up to 10 minutes.';

-- No foreign key: its check would take a lock on the very row that is in trouble.
create table vidgen.refusals (
  task_id uuid primary key,
  tries integer not null default 1,
  since timestamptz not null default now(),
  until timestamptz,
  statement text not null,
  error text not null,
  verdict jsonb,
  constraint tries_are_positive check (tries > 0)
);

comment on table vidgen.refusals is
  'Tasks that are set aside: their row refused a change of ours. Nothing happens to them before `until`; null: it is over.';
comment on column vidgen.refusals.verdict is
  'How the task was to end when its row refused: it is written again later, nothing is paid again.';

grant select, insert, update, delete on vidgen.refusals to vidgen_worker;

-- What is left alone now: those whose pause is not over, and those that have refused too often, which
-- nobody but the janitor meets again.
create view vidgen.set_aside with (security_invoker = true) as
select r.task_id, r.until
  from vidgen.refusals as r
 where r.until > now()
    or (r.until is not null and r.tries >= (select s.max_refusals from vidgen.settings as s));

revoke all on vidgen.set_aside, vidgen.refusals from public, anon, authenticated, service_role;
grant select on vidgen.set_aside to vidgen_worker;

-- What the provider's answer about a generation means for the task, kept with the checkpoint: a
-- restart between that answer and the task's end must not pay for the same input again.
alter table vidgen.checkpoints add column verdict jsonb;

-- A worker that has left although rows of its own refused to be handed back: its tasks are taken over
-- at once, and nobody counts a death.
alter table vidgen.workers add column left_at timestamptz;

-- Which worker looks at a generation that nobody follows: one at a time, and never two looks at one
-- generation within the provider's five seconds.
alter table vidgen.submissions add column looked_at timestamptz;

-- 2 = set aside before anything began: the claim leaves it alone until the janitor puts it back. A
-- wider constraint takes no guarantee away, and only tasks that wait and have begun are in the table.
-- squawk-ignore ban-drop-constraint
alter table vidgen.resumes drop constraint class_is_known;
-- squawk-ignore constraint-missing-not-valid
alter table vidgen.resumes add constraint class_is_known check (class in (0, 1, 2));

create function vidgen.note_refusal(
  of_task uuid, of_statement text, of_error text, of_verdict jsonb
) returns vidgen.refusals
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  noted vidgen.refusals;
begin
  insert into vidgen.refusals as r (task_id, until, statement, error, verdict)
  select of_task, clock_timestamp() + s.refusal_pause, of_statement, left(of_error, 1000), of_verdict
    from vidgen.settings as s
      on conflict (task_id) do update
     set tries = r.tries + 1, statement = excluded.statement, error = excluded.error,
         verdict = coalesce(excluded.verdict, r.verdict),
         until = clock_timestamp() + (
           select case
                    when of_statement = 'end' then interval '1 hour'
                    else least(s.refusal_pause * 2 ^ least(r.tries, 20), interval '10 minutes')
                  end
             from vidgen.settings as s
         )
  returning r.* into noted;
  return noted;
end
$$;

-- OTHERS alone leaves out an application's ASSERT, and a trigger that runs until the statement is
-- cancelled: both would end the statement for all other tasks, again and again.

-- Begin an attempt at a waiting task; no row where it is not waiting any more, or a client holds it.
-- Locked and changed in one savepoint: a lock of the statement outside would make a multixact of each.
create function vidgen.begin_attempt(of_task uuid, for_worker uuid, to_cancel boolean)
returns table (
  id uuid, attempt integer, worker_id uuid, user_id uuid, scene_id uuid, failures smallint,
  max_failures smallint, progress double precision, created_at timestamptz, run_after timestamptz,
  cancel_requested boolean, refused text
)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  task record;
  noted vidgen.refusals;
begin
  update public.video_generation_tasks as t
     set status = 'processing', attempt = t.attempt + 1, worker_id = for_worker,
         started_at = coalesce(t.started_at, now()), stage_progress = null,
         progress = case when to_cancel then t.progress else greatest(t.progress, 5) end,
         current_step = case
           when to_cancel then t.current_step else 'Initializing video generation pipeline'
         end,
         message = case when to_cancel then t.message else 'Video generation started' end
    from (
      select l.id
        from public.video_generation_tasks as l
       where l.id = of_task and l.status = 'pending' and (to_cancel or l.run_after <= now())
         for no key update skip locked
    ) as waiting
   where t.id = waiting.id
     -- A worker declared dead claims nothing.
     and exists (select from vidgen.workers as me where me.id = for_worker and me.dead_at is null)
  returning t.id, t.attempt, t.worker_id, t.user_id, t.scene_id, t.failures, t.max_failures,
            t.progress, t.created_at, t.run_after, t.cancel_requested_at is not null as cancel_requested
       into task;
  -- Not before here: what RETURN QUERY has returned, an exception does not take back.
  if found then
    return query select task.id, task.attempt, task.worker_id, task.user_id, task.scene_id,
                        task.failures, task.max_failures, task.progress, task.created_at,
                        task.run_after, task.cancel_requested, null::text;
  end if;
exception
  when others or assert_failure or query_canceled then
    noted := vidgen.note_refusal(of_task, 'claim', format('%s %s', sqlstate, sqlerrm), null);
    -- What the claim skips and what is resumed later are rows of one table: no new condition there.
    insert into vidgen.resumes as r (task_id, user_id, class, resume_at)
    select t.id, t.user_id, 2, noted.until
      from public.video_generation_tasks as t
     where t.id = of_task
        on conflict (task_id) do update set resume_at = excluded.resume_at;
    return query select of_task, 0, for_worker, null::uuid, null::uuid, 0::smallint, 0::smallint,
                        0::double precision, now(), now(), false, noted.error;
end
$$;

-- Give one task back; no row where this worker doesn't hold that attempt (null: any) or a client
-- holds the row, which is then left to the lease.
create function vidgen.hand_back_task(of_task uuid, from_worker uuid, of_attempt integer)
returns table (id uuid, refused text)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  noted vidgen.refusals;
begin
  update public.video_generation_tasks as t
     set status = 'pending', worker_id = null, run_after = now()
    from (
      select l.id
        from public.video_generation_tasks as l
       where l.id = of_task and l.worker_id = from_worker and l.status = 'processing'
         and (of_attempt is null or l.attempt = of_attempt)
         for no key update skip locked
    ) as held
   where t.id = held.id;
  if found then
    return query select of_task, null::text;
  end if;
exception
  when others or assert_failure or query_canceled then
    noted := vidgen.note_refusal(of_task, 'hand back', format('%s %s', sqlstate, sqlerrm), null);
    return query select of_task, noted.error;
end
$$;

-- Take a task over from a dead worker: for this worker (`may_take`), else back to pending; at the
-- limit of deaths it ends here. A death counts only together with the change of the row.
create function vidgen.take_over_task(
  of_task uuid, from_worker uuid, to_worker uuid, max_crashes integer, may_take boolean,
  lost_message text, scene_updates boolean
) returns table (
  kind text, id uuid, attempt integer, worker_id uuid, user_id uuid, scene_id uuid,
  failures smallint, max_failures smallint, progress double precision, created_at timestamptz,
  cancel_requested boolean, refused text
)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  died smallint;
  task record;
  noted vidgen.refusals;
begin
  select t.id, t.user_id, t.scene_id into task
    from public.video_generation_tasks as t
   where t.id = of_task and t.worker_id = from_worker and t.status = 'processing'
     for no key update skip locked;
  if not found then
    return;
  end if;
  select coalesce(
           (select b.crashes from vidgen.budgets as b where b.task_id = of_task), 0
         ) + (
           select count(*) = 0 from vidgen.workers as w
            where w.id = from_worker and w.left_at is not null
         )::integer
    into died;
  insert into vidgen.budgets as b (task_id, crashes) values (of_task, died)
      on conflict (task_id) do update set crashes = excluded.crashes;

  if died >= max_crashes then
    update public.video_generation_tasks as t
       set status = 'failed', worker_id = null, completed_at = now(), stage_progress = null,
           error_code = 'WORKER_LOST', error_message = lost_message, message = lost_message,
           current_step = 'Failed',
           error = jsonb_build_object(
             'error', 'Video generation failed', 'details', lost_message,
             'code', 'WORKER_LOST', 'timestamp', now()
           )
     where t.id = of_task;
    perform vidgen.release_credits(of_task);
    if scene_updates then
      perform vidgen.write_scene(task.scene_id, task.user_id, 'failed', null, null);
    end if;
    return query select 'lost', of_task, 0, to_worker, task.user_id, task.scene_id, 0::smallint,
                        0::smallint, 0::double precision, now(), false, null::text;
  elsif may_take and died < max_crashes - 1 then
    update public.video_generation_tasks as t
       set attempt = t.attempt + 1, worker_id = to_worker, stage_progress = null
     where t.id = of_task
    returning t.id, t.attempt, t.worker_id, t.user_id, t.scene_id, t.failures, t.max_failures,
              t.progress, t.created_at, t.cancel_requested_at is not null as cancel_requested
         into task;
    return query select 'taken', task.id, task.attempt, task.worker_id, task.user_id, task.scene_id,
                        task.failures, task.max_failures, task.progress, task.created_at,
                        task.cancel_requested, null::text;
  else
    update public.video_generation_tasks as t
       set status = 'pending', worker_id = null, stage_progress = null, run_after = now()
     where t.id = of_task;
  end if;
exception
  when others or assert_failure or query_canceled then
    noted := vidgen.note_refusal(of_task, 'take over', format('%s %s', sqlstate, sqlerrm), null);
    return query select 'refused', of_task, 0, to_worker, null::uuid, null::uuid, 0::smallint,
                        0::smallint, 0::double precision, now(), false, noted.error;
end
$$;

-- The end of a task whose row has refused too often; whether its row took it.
create function vidgen.end_refused(of_task uuid, of_message text, scene_updates boolean)
returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  ended record;
begin
  update public.video_generation_tasks as t
     set status = 'failed', worker_id = null, completed_at = now(), stage_progress = null,
         error_code = 'ROW_REFUSED', error_message = of_message, message = of_message,
         current_step = 'Failed',
         error = jsonb_build_object(
           'error', 'Video generation failed', 'details', of_message,
           'code', 'ROW_REFUSED', 'timestamp', now()
         )
    from (
      select l.id
        from public.video_generation_tasks as l
       where l.id = of_task and l.status in ('pending', 'processing')
         for no key update skip locked
    ) as open
   where t.id = open.id
  returning t.id, t.user_id, t.scene_id into ended;
  if not found then
    return false;
  end if;
  perform vidgen.release_credits(of_task);
  if scene_updates then
    perform vidgen.write_scene(ended.scene_id, ended.user_id, 'failed', null, null);
  end if;
  return true;
exception
  when others or assert_failure or query_canceled then
    return false;
end
$$;

-- An attempt that can't be concluded, because the row refuses: noted, and back to pending until the
-- pause is over, or ended where it was refused too often. `became` is the status that the row has now;
-- 'processing' is a row that takes no change at all. No row: the lease is lost, nothing is noted.
create function vidgen.set_aside_task(
  of_task uuid, of_attempt integer, of_worker uuid, of_statement text, of_error text,
  of_verdict jsonb, end_message text, scene_updates boolean
) returns table (tries integer, pause interval, became text)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  noted vidgen.refusals;
begin
  -- The fence is looked at under the row's lock: who has lost the task notes nothing about it.
  perform from public.video_generation_tasks as t
    where t.id = of_task and t.attempt = of_attempt and t.worker_id = of_worker
      and t.status = 'processing'
      for no key update;
  if not found then
    return;
  end if;
  noted := vidgen.note_refusal(of_task, of_statement, of_error, of_verdict);
  tries := noted.tries;
  pause := noted.until - clock_timestamp();
  became := 'processing';
  if noted.tries >= (select s.max_refusals from vidgen.settings as s)
     and vidgen.end_refused(of_task, end_message, scene_updates) then
    became := 'failed';
  else
    begin
      update public.video_generation_tasks as t
         set status = 'pending', worker_id = null, stage_progress = null, run_after = noted.until,
             message = 'Set aside: the application''s database refuses to change this task'
        from (
          select l.id
            from public.video_generation_tasks as l
           where l.id = of_task and l.attempt = of_attempt and l.worker_id = of_worker
             and l.status = 'processing'
             for no key update skip locked
        ) as mine
       where t.id = mine.id;
      became := case when found then 'pending' else 'processing' end;
    exception
      when others or assert_failure or query_canceled then
        became := 'processing';
    end;
  end if;
  return next;
end
$$;

-- When the pause is over: what was set aside before anything began goes back into the line, and what
-- has refused too often ends here. Anything else is met again by who holds it.
create function vidgen.retry_refused(of_task uuid, end_message text, scene_updates boolean)
returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
  task record;
  refusal vidgen.refusals;
begin
  select r.* into refusal from vidgen.refusals as r where r.task_id = of_task for update skip locked;
  if not found or refusal.until is null or refusal.until > now() then
    return null;
  end if;
  select t.status, t.user_id, t.run_after into task
    from public.video_generation_tasks as t where t.id = of_task;
  if not found then
    delete from vidgen.refusals as r where r.task_id = of_task;
    return 'gone';
  end if;
  if refusal.tries >= (select s.max_refusals from vidgen.settings as s)
     and task.status in ('pending', 'processing') then
    if not vidgen.end_refused(of_task, end_message, scene_updates) then
      refusal := vidgen.note_refusal(of_task, 'end', refusal.error, null);
      update vidgen.resumes as r set resume_at = refusal.until where r.task_id = of_task;
      return 'kept';
    end if;
    task.status := 'failed';
  end if;
  update vidgen.refusals as r set until = null where r.task_id = of_task;
  delete from vidgen.resumes as r where r.task_id = of_task and r.class = 2;
  if found and task.status = 'pending' then
    insert into vidgen.arrivals (user_id, due_at) values (task.user_id, task.run_after);
    perform pg_notify('vidgen_tasks', '');
  end if;
  return task.status;
end
$$;

-- A task that ends has nothing under way any more, whatever ended it: what still lives at the provider
-- belongs to nobody then, and the janitor's strays end it there, book it and free its slot.
create or replace function vidgen.task_ends() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  update vidgen.budgets as b set crashes = 0 where b.task_id = new.id and b.crashes > 0;
  delete from vidgen.checkpoints as c
   where c.task_id = new.id and c.state in ('submitting', 'generating');
  return null;
end
$$;

delete from vidgen.checkpoints as c
 using public.video_generation_tasks as t
 where t.id = c.task_id and t.status in ('completed', 'failed', 'cancelled')
   and c.state in ('submitting', 'generating');

do $$
declare
  ours regprocedure;
begin
  foreach ours in array array[
    'vidgen.note_refusal(uuid, text, text, jsonb)'::regprocedure,
    'vidgen.begin_attempt(uuid, uuid, boolean)'::regprocedure,
    'vidgen.hand_back_task(uuid, uuid, integer)'::regprocedure,
    'vidgen.take_over_task(uuid, uuid, uuid, integer, boolean, text, boolean)'::regprocedure,
    'vidgen.end_refused(uuid, text, boolean)'::regprocedure,
    'vidgen.set_aside_task(uuid, integer, uuid, text, text, jsonb, text, boolean)'::regprocedure,
    'vidgen.retry_refused(uuid, text, boolean)'::regprocedure
  ] loop
    execute format('revoke all on function %s from public, anon, authenticated, service_role', ours);
    execute format('grant execute on function %s to vidgen_worker', ours);
  end loop;
end
$$;
