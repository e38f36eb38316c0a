-- Locks that are left: what a claim meets locked gives its place up, and what an application's slow
-- trigger holds is waited for by nobody for long.

alter table vidgen.settings alter column schema_version set default '20261130000700';
update vidgen.settings set schema_version = '20261130000700';

-- A task that waits to go on keeps a place: a suspect one generation, a task past its image room before
-- the clips. Where its row is locked nobody can begin it, so the place goes to the next one for a while.
-- A table of its own, without a foreign key: an owner who cancels in an open transaction holds his task's
-- row and what its triggers write, and no row of this one.
create table vidgen.passed_over (
  task_id uuid primary key,
  times smallint not null default 1,
  until timestamptz not null,
  constraint times_are_positive check (times > 0)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.passed_over is
  'Tasks that wait to go on and whose rows a claim found locked: they keep no place before `until`.';
comment on column vidgen.passed_over.times is
  'How often in a row, which the pause grows with; begun anew where a minute has passed since the last.';

create index passed_over_by_age on vidgen.passed_over (until);

create view vidgen.due_resumes with (security_invoker = true) as
select r.task_id, r.user_id, r.class, r.resume_at, r.followers
  from vidgen.resumes as r
 where r.resume_at <= now()
   and not exists (
     select from vidgen.passed_over as p where p.task_id = r.task_id and p.until > now()
   );

comment on view vidgen.due_resumes is
  'Tasks that may go on now; not those whose rows another transaction was found to hold.';

revoke all on vidgen.passed_over, vidgen.due_resumes
  from public, anon, authenticated, service_role, vidgen_worker;
grant select, insert (task_id, until), update (times, until), delete on vidgen.passed_over
  to vidgen_worker;
grant select on vidgen.due_resumes to vidgen_worker;

-- No image starts while far more tasks wait for a video slot than there are: twice as many as slots
-- may be under way to one. What waits for later waits for no slot, and what is locked keeps no room.
create or replace view vidgen.rooms with (security_invoker = true) as
select l.provider, l.key_fingerprint, l.model,
       greatest(
         r.per_slot * l.max_generations
         - (
           select count(*)
             from (
               select
                 from vidgen.due_resumes
                where class = 1
                limit r.per_slot * l.max_generations
             ) as waiting
         )
         - (
           select count(*)
             from (
               select
                 from public.video_generation_tasks as t
                 join vidgen.workers as w on w.id = t.worker_id
                where t.status = 'processing'
                  and w.provider = l.provider and l.key_fingerprint in (w.account, w.key_fingerprint)
                  and not exists (
                    select from vidgen.checkpoints as c where c.task_id = t.id and c.stage = 'video'
                  )
                limit r.per_slot * l.max_generations
             ) as under_way
         ),
         0
       )::integer as room
  from vidgen.limits as l
 cross join (values (2)) as r (per_slot)
 where l.max_generations is not null;

-- A task that keeps a place and whose row is locked gives it up, for a pause that grows from three
-- seconds, which is longer than workers leave between two looks, to half a minute. What holds the row may also be another claim, which then begins the task:
-- that costs nothing, it waits no more. Whoever notes the same task just now does it for this one too.
create function vidgen.pass_over(of_task uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  first_pause constant interval := interval '3 seconds';
  longest_pause constant interval := interval '30 seconds';
begin
  if not exists (select from vidgen.resumes as r where r.task_id = of_task)
     and not exists (
       select from vidgen.budgets as b where b.task_id = of_task and b.crashes > 0
     ) then
    return;  -- it keeps no place: the next turn of its user meets it
  end if;
  if exists (select from vidgen.passed_over as p where p.task_id = of_task) then
    update vidgen.passed_over as p
       set times = counted.times,
           until = clock_timestamp()
                   + least(first_pause * 2 ^ (counted.times - 1), longest_pause)
      from (
        select case
                 when o.until < now() - interval '1 minute' then 1 else least(o.times + 1, 10)
               end as times
          from vidgen.passed_over as o
         where o.task_id = of_task and o.until <= now()
           for update skip locked
      ) as counted
     where p.task_id = of_task;
  else
    insert into vidgen.passed_over (task_id, until)
    values (of_task, clock_timestamp() + first_pause)
        on conflict do nothing;
  end if;
exception
  when lock_not_available then
    null;  -- another claim has just inserted it
end
$$;

revoke all on function vidgen.pass_over(uuid) from public, anon, authenticated, service_role;
grant execute on function vidgen.pass_over(uuid) to vidgen_worker;

-- Begin an attempt at a waiting task; no row where it is not waiting any more, or another transaction
-- holds it. Locked and changed in one savepoint: a lock of the statement outside would make a multixact
-- of each.
create or replace function vidgen.begin_attempt(of_task uuid, for_worker uuid, to_cancel boolean)
returns table (
  id uuid, attempt integer, worker_id uuid, user_id uuid, scene_id uuid, failures smallint,
  max_failures smallint, progress double precision, created_at timestamptz, run_after timestamptz,
  cancel_requested boolean, refused text
)
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_variable
declare
  task record;
  noted vidgen.refusals;
begin
  -- Rows with slow triggers: those that are left are left to the next statement.
  if clock_timestamp() > statement_timestamp() + interval '2 seconds' then
    return;
  end if;
  perform from public.video_generation_tasks as t
    where t.id = of_task and t.status = 'pending'
      -- What is due earlier than its row says (an output that is to try a gate) begins.
      and (to_cancel or t.run_after <= now() or exists (
        select from vidgen.resumes as r where r.task_id = t.id and r.resume_at <= now()
      ))
      for no key update skip locked;
  if not found then
    if not to_cancel and exists (
      select from public.video_generation_tasks as t where t.id = of_task and t.status = 'pending'
    ) then
      perform vidgen.pass_over(of_task);
    end if;
    return;
  end if;

  update public.video_generation_tasks as t
     set status = 'processing', attempt = t.attempt + 1, worker_id = for_worker,
         started_at = coalesce(t.started_at, now()), stage_progress = null,
         progress = case when to_cancel then t.progress else greatest(t.progress, 5) end,
         current_step = case
           when to_cancel then t.current_step else 'Initializing video generation pipeline'
         end,
         message = case when to_cancel then t.message else 'Video generation started' end
   where t.id = of_task
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

-- When the pause is over: what was set aside before anything began goes back into the line, and what
-- has refused too often ends here. Anything else is met again by who holds it. Each in a savepoint: a
-- row that another transaction holds is met again after a pause, and keeps no other waiting. Null:
-- nothing was done. An application's slow trigger may take a second for each: after two seconds the
-- rows that are left are left to the next statement.
create or replace function vidgen.retry_refused(
  of_task uuid, end_message text, scene_updates boolean
) returns text
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_variable
declare
  task record;
  refusal vidgen.refusals;
begin
  if clock_timestamp() > statement_timestamp() + interval '2 seconds' then
    return null;
  end if;
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
    perform from public.video_generation_tasks as t where t.id = of_task
        for no key update skip locked;
    if not found then
      refusal := vidgen.note_refusal(of_task, refusal.statement, '55P03', null);
      update vidgen.resumes as r set resume_at = refusal.until where r.task_id = of_task;
      return 'locked';
    end if;
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
exception
  when lock_not_available then
    return 'locked';  -- held by its owner's call: the next turn meets it
end
$$;

-- Lock what limits a user, for the statement that is to look at it. Asked for before anything of others
-- is locked: a user's own statement may hold it as long as an application's trigger on his task takes,
-- and who waits for him must keep nobody else waiting. Refused after a moment, to come again: a worker's
-- few connections are not for waiting.
create function vidgen.lock_limits(of_user uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '50ms'
as $$
#variable_conflict use_variable
begin
  perform from vidgen.user_limits as u where u.user_id = of_user for no key update;
  if not found then
    insert into vidgen.user_limits (user_id) values (of_user) on conflict do nothing;
    perform from vidgen.user_limits as u where u.user_id = of_user for no key update;
  end if;
end
$$;

revoke all on function vidgen.lock_limits(uuid) from public, anon, authenticated, service_role;
grant execute on function vidgen.lock_limits(uuid) to vidgen_worker;

-- A stage is stored: whatever was paid for it is no loss, and nothing of it goes wrong in a row. A wait
-- for the user's row is short: this statement holds rows of others.
create or replace function vidgen.stage_is_stored() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'
as $$
#variable_conflict use_variable
declare
  paid record;
begin
  update vidgen.submissions as s
     set billed = true
   where s.task_id = new.task_id and s.stage = new.stage and not s.billed
     -- What an earlier life of the task has thrown away stays lost.
     and (s.id = new.submission_id or s.counted);
  select s.user_id, s.provider, s.model into paid
    from vidgen.submissions as s where s.id = new.submission_id;
  perform from vidgen.user_limits as u
    where u.user_id = paid.user_id
      and (u.first_stored_at is null or u.rejections > 0 or u.paused_until is not null
           or exists (select from vidgen.user_troubles as t where t.user_id = u.user_id))
      for no key update;
  if found then
    update vidgen.user_limits as u
       set first_stored_at = now()
     where u.user_id = paid.user_id and u.first_stored_at is null;
    -- A still says nothing about clips: a row of rejected clips would begin anew with each task's still.
    update vidgen.user_limits as u
       set rejections = 0
     where u.user_id = paid.user_id and u.rejections > 0 and new.stage = 'video'
       and (u.stopped_until is null or u.stopped_until <= now());
    delete from vidgen.user_troubles as t
     where t.user_id = paid.user_id and t.provider = paid.provider and t.model = paid.model;
    if not exists (select from vidgen.user_troubles as t where t.user_id = paid.user_id) then
      perform vidgen.unpause_user(paid.user_id);
    end if;
  end if;
  return null;
end
$$;

-- An input was rejected, whatever has become of its task: a cancel in time hides nothing.
create or replace function vidgen.submission_is_rejected() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'
as $$
#variable_conflict use_variable
begin
  insert into vidgen.rejections as r (user_id, digest, task_id)
  values (new.user_id, coalesce(new.digest, new.fingerprint), new.task_id)
      on conflict on constraint rejections_pkey do update
     set task_id = excluded.task_id, rejected_at = excluded.rejected_at;
  insert into vidgen.user_limits as u (user_id, rejections, rejected_at)
  values (new.user_id, 1, now())
      on conflict on constraint user_limits_pkey do update
     set rejections = least(u.rejections + 1, 1000)::smallint, rejected_at = now(),
         stopped_until = (
           select case
                    when u.rejections + 1 >= s.rejections_to_stop then now() + s.rejection_stop
                    else u.stopped_until
                  end
             from vidgen.settings as s
         );
  return null;
end
$$;

-- A trouble after money was spent, of one task: how many tasks have met it in a row, and how many
-- users. `weighed` are the same users, those together as one for whom this model has never worked
-- (while it has for somebody: a new account could send anything). The same task again counts once. From
-- the third user on only `allowance` submissions more begin. Beside it the user's own: three results
-- in a row pause him, and one task of his after the other tries whether it has passed. `braked`: from
-- now on. His own row is locked first, and the trouble's, which concerns all, after it.
create or replace function vidgen.note_trouble(
  of_provider text, of_scope text, of_part text, of_model text, of_reason text, of_message text,
  of_details text, of_task uuid, of_user uuid, allowance integer, probe interval
) returns table (tasks integer, users integer, weighed integer, braked boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'
as $$
#variable_conflict use_variable
declare
  in_a_row constant integer := 3;
  proven boolean;
  delivered boolean;
  noted vidgen.troubles;
  sent uuid;
  own vidgen.user_troubles;
begin
  select s.id into sent
    from vidgen.submissions as s
   where s.task_id = of_task
   order by s.sent_at desc
   limit 1;
  if sent is not null then
    perform vidgen.lock_limits(of_user);
  end if;
  proven := exists (
    select from vidgen.submissions as s
     where s.user_id = of_user and s.model = of_model and s.ended_state = 'succeeded'
  );
  delivered := exists (
    select from public.video_generation_tasks as t where t.status = 'completed'
  );
  -- An array never grows beyond what is asked of it.
  insert into vidgen.troubles as t (
    provider, scope, part, model, reason, message, details, tasks, proven_users, new_users
  )
  values (
    of_provider, of_scope, of_part, of_model, of_reason, of_message, of_details, array[of_task],
    case when proven then array[of_user] else '{}' end,
    case when proven then '{}' else array[of_user] end
  )
      on conflict on constraint troubles_pkey do update
     set reason = excluded.reason, message = excluded.message, details = excluded.details,
         tasks = case when excluded.tasks <@ t.tasks or cardinality(t.tasks) >= 10
                      then t.tasks else t.tasks || excluded.tasks end,
         proven_users = case when excluded.proven_users <@ t.proven_users
                                  or cardinality(t.proven_users) >= 10
                             then t.proven_users else t.proven_users || excluded.proven_users end,
         new_users = case when excluded.new_users <@ t.new_users
                               or cardinality(t.new_users) >= 10
                          then t.new_users else t.new_users || excluded.new_users end
  returning t.* into noted;
  tasks := cardinality(noted.tasks);
  select count(distinct one.id) into users
    from unnest(noted.proven_users || noted.new_users) as one (id);
  weighed := cardinality(noted.proven_users)
             + least(cardinality(noted.new_users), case when delivered then 1 else 10 end);
  if users >= in_a_row and allowance is not null and noted.remaining is null then
    update vidgen.troubles as t
       set remaining = allowance
     where t.provider = of_provider and t.scope = of_scope and t.part = of_part and t.model = of_model;
  end if;

  braked := false;
  if sent is not null then
    insert into vidgen.user_troubles as t (user_id, provider, model, reason, details, results)
    values (of_user, of_provider, of_model, of_reason, left(of_details, 500), array[sent])
        on conflict on constraint user_troubles_pkey do update
       set reason = excluded.reason, details = excluded.details,
           results = case when excluded.results <@ t.results or cardinality(t.results) >= 10
                          then t.results else t.results || excluded.results end
    returning t.* into own;
    if cardinality(own.results) >= in_a_row and own.next_at is null then
      update vidgen.user_troubles as t
         set next_at = now() + probe
       where t.user_id = of_user and t.provider = of_provider and t.model = of_model;
      perform vidgen.pause_user(of_user, now() + probe, format('%s: %s', of_reason, left(of_details, 500)));
      braked := true;
    end if;
  end if;
  return next;
end
$$;
