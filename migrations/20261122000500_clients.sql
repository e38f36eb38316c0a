-- What clients call and what keeps one of them from hurting the others: RPCs, limits, storage
-- policy, Realtime.

-- Who asks? Behind PostgREST the claims decide. A direct connection has no claims: there it is the
-- login role, and PostgREST's own (authenticator) counts as nobody.
create function vidgen.may_act_on(owner uuid) returns boolean
language sql stable security definer set search_path = ''
as $$
  select case
    when auth.role() is not null
      then auth.role() = 'service_role' or coalesce(auth.uid() = owner, false)
    else session_user <> 'authenticator'
         and has_table_privilege(session_user, 'public.video_generation_tasks', 'update')
  end;
$$;

-- Provider credits of a rolling day that brought this user nothing: neither charged nor stored
-- (without credits nothing is ever charged). What runs for a task that nobody has asked to cancel
-- may yet end in a video and doesn't count.
create function vidgen.unbilled_cost(owner uuid) returns numeric
language sql stable security definer set search_path = ''
as $$
  select coalesce(sum(coalesce(s.cost, s.estimated_cost)), 0)
    from vidgen.submissions as s
   where s.user_id = unbilled_cost.owner and s.sent_at > now() - interval '1 day'
     and not exists (
       select from vidgen.charges as c where c.task_id = s.task_id and c.stage = s.stage
     )
     and not exists (
       select from vidgen.checkpoints as c
        where c.task_id = s.task_id and c.stage = s.stage and c.state = 'done'
     )
     and not exists (
       select from public.video_generation_tasks as t
        where t.id = s.task_id and t.status in ('pending', 'processing')
          and t.cancel_requested_at is null
          and (s.ended_at is null or s.ended_state = 'succeeded')
     );
$$;

create function vidgen.cancel_task(task_id uuid) returns public.video_generation_tasks
language plpgsql security definer set search_path = ''
as $$
declare
  task public.video_generation_tasks;
begin
  select t.* into task
    from public.video_generation_tasks as t where t.id = task_id
     for no key update;
  if task.id is null or not vidgen.may_act_on(task.user_id) then
    raise exception 'there is no task % of yours', task_id using errcode = 'PT404';
  end if;
  if task.status in ('completed', 'failed', 'cancelled') then
    return task;
  end if;
  if task.status = 'pending' and not exists (
    -- Something may live at the provider: only a worker can end it there.
    select
      from vidgen.checkpoints as c
      join vidgen.submissions as s on s.id = c.submission_id
     where c.task_id = task.id
       and c.state <> 'done' and s.ended_at is null and s.answer is distinct from 'refused'
  ) then
    update public.video_generation_tasks as t
       set status = 'cancelled', completed_at = now(),
           cancel_requested_at = coalesce(t.cancel_requested_at, now()),
           current_step = 'Cancelled', message = 'Video generation cancelled', stage_progress = null
     where t.id = task.id
    returning t.* into task;
    perform vidgen.release_credits(task.id);
    if task.attempt > 0 then
      perform vidgen.write_scene(task.scene_id, task.user_id, 'pending', null, null);
    end if;
  else
    update public.video_generation_tasks as t
       set cancel_requested_at = coalesce(t.cancel_requested_at, now())
     where t.id = task.id
    returning t.* into task;
    -- Else one insert of many tasks, each cancelled as soon as it runs, would pass the limit that
    -- the next insert meets.
    if auth.role() <> 'service_role' and exists (
      select from vidgen.submissions as s
       where s.task_id = task.id and s.ended_at is null and s.answer is distinct from 'refused'
    ) then
      perform pg_advisory_xact_lock(hashtextextended('vidgen limits ' || task.user_id::text, 0));
      if vidgen.unbilled_cost(task.user_id)
         > (select s.max_unbilled_cost_per_user from vidgen.settings as s) then
        raise exception 'limit reached: task % runs at the provider already and can''t be cancelled', task_id
          using errcode = 'PT429',
                hint = 'Too much was generated for you today without ending in a video. '
                       'Let this one end, or try again tomorrow.';
      end if;
    end if;
    perform pg_notify('vidgen_tasks', 'cancel');
  end if;
  return task;
end
$$;

create function vidgen.retry_task(task_id uuid) returns public.video_generation_tasks
language plpgsql security definer set search_path = ''
as $$
declare
  task public.video_generation_tasks;
  budget vidgen.budgets;
  allowed smallint;
begin
  select t.* into task
    from public.video_generation_tasks as t where t.id = task_id
     for no key update;
  if task.id is null or not vidgen.may_act_on(task.user_id) then
    raise exception 'there is no task % of yours', task_id using errcode = 'PT404';
  end if;
  if task.status not in ('failed', 'cancelled') then
    raise exception 'task % is %: only a failed or cancelled task can be retried', task_id, task.status
      using errcode = 'PT409';
  end if;
  select s.max_retries into allowed from vidgen.settings as s;
  select b.* into budget from vidgen.budgets as b where b.task_id = task.id for update;
  if coalesce(budget.retries, 0) >= allowed then
    raise exception 'task % was retried % times already', task_id, allowed
      using errcode = 'PT409', hint = 'Insert a new task.';
  end if;
  if budget.rejected_inputs is not null
     and budget.rejected_inputs = vidgen.scene_digest(task.scene_id, task.user_id) then
    raise exception 'task %: the provider''s content rules rejected this scene, and it is unchanged', task_id
      using errcode = 'PT409', hint = 'Change the scene''s prompt or picture first.';
  end if;

  -- Finished stages are kept, and so is a finished generation whose output waits to be stored. A
  -- stage that ended otherwise begins anew, from the scene as it is.
  delete from vidgen.checkpoints as c
   using vidgen.submissions as s
   where c.task_id = task.id and c.submission_id = s.id and c.state not in ('done', 'storing')
     and (s.ended_at is not null or s.answer = 'refused' or s.answer = 'unknown');
  update vidgen.submissions as s set counted = false where s.task_id = task.id and s.counted;
  insert into vidgen.budgets as b (task_id, retries) values (task.id, 1)
      on conflict on constraint budgets_pkey do update
     set retries = b.retries + 1, crashes = 0, rejected_inputs = null;

  update public.video_generation_tasks as t
     set status = 'pending', worker_id = null, failures = 0, cancel_requested_at = null,
         error_code = null, error_message = null, error = null, completed_at = null,
         progress = 0, stage_progress = null, run_after = now(),
         current_step = 'Initializing', message = 'Video generation task started'
   where t.id = task.id
  returning t.* into task;
  if auth.role() <> 'service_role' then
    perform vidgen.check_limits(task.user_id);
  end if;
  return task;
end
$$;

create function vidgen.scene_digest(scene_id uuid, user_id uuid) returns text
language sql stable security definer set search_path = ''
as $$ select md5(vidgen.read_scene(scene_digest.scene_id, scene_digest.user_id)::text); $$;

revoke all on function vidgen.may_act_on(uuid) from public, anon, authenticated, service_role;
revoke all on function vidgen.unbilled_cost(uuid) from public, anon, authenticated, service_role;
revoke all on function vidgen.cancel_task(uuid) from public, anon, authenticated, service_role;
revoke all on function vidgen.retry_task(uuid) from public, anon, authenticated, service_role;
revoke all on function vidgen.scene_digest(uuid, uuid) from public, anon, authenticated, service_role;
grant execute on function vidgen.cancel_task(uuid) to authenticated, service_role, vidgen_worker;
grant execute on function vidgen.retry_task(uuid) to authenticated, service_role, vidgen_worker;
grant execute on function vidgen.scene_digest(uuid, uuid) to vidgen_worker;

-- The wrappers' bodies are parsed now (begin atomic), so a caller needs no USAGE on vidgen.

create function public.cancel_video_generation_task(task_id uuid)
returns public.video_generation_tasks
language sql volatile security invoker set search_path = ''
begin atomic
  select * from vidgen.cancel_task(cancel_video_generation_task.task_id);
end;

create function public.retry_video_generation_task(task_id uuid)
returns public.video_generation_tasks
language sql volatile security invoker set search_path = ''
begin atomic
  select * from vidgen.retry_task(retry_video_generation_task.task_id);
end;

create function public.grant_video_credits(user_id uuid, amount integer, reference text)
returns public.user_credits
language sql volatile security invoker set search_path = ''
begin atomic
  select * from vidgen.grant_credits(
    grant_video_credits.user_id, grant_video_credits.amount, grant_video_credits.reference
  );
end;

comment on function public.cancel_video_generation_task(uuid) is
  'Cancel a task of yours. At once where nothing runs at the provider, else within a heartbeat.';
comment on function public.retry_video_generation_task(uuid) is
  'Try a failed or cancelled task of yours again. Finished stages are kept and not paid again.';
comment on function public.grant_video_credits(uuid, integer, text) is
  'For a payment webhook (service_role): add credits, once per reference.';

revoke all on function public.cancel_video_generation_task(uuid)
  from public, anon, authenticated, service_role;
revoke all on function public.retry_video_generation_task(uuid)
  from public, anon, authenticated, service_role;
revoke all on function public.grant_video_credits(uuid, integer, text)
  from public, anon, authenticated, service_role;
grant execute on function public.cancel_video_generation_task(uuid)
  to authenticated, service_role, vidgen_worker;
grant execute on function public.retry_video_generation_task(uuid)
  to authenticated, service_role, vidgen_worker;
grant execute on function public.grant_video_credits(uuid, integer, text) to service_role;

-- Limits for browsers, exact under overlapping transactions: after the lock, the count's own
-- snapshot sees whatever the one before it committed. A bare count lets two transactions through.

create function vidgen.check_limits(owner uuid) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  limits vidgen.settings;
  unfinished bigint;
begin
  perform pg_advisory_xact_lock(hashtextextended('vidgen limits ' || owner::text, 0));
  select s.* into limits from vidgen.settings as s;
  select count(*) into unfinished
    from (
      -- The order keeps the planner from reading the whole table in the hope of finding enough.
      (select from public.video_generation_tasks as t
        where t.user_id = owner and t.status = 'pending'
        order by t.priority desc
        limit limits.max_unfinished_per_user + 1)
      union all
      (select from public.video_generation_tasks as t
        where t.user_id = owner and t.status = 'processing'
        limit limits.max_unfinished_per_user + 1)
    ) as unfinished_tasks;
  if unfinished > limits.max_unfinished_per_user then
    raise exception 'limit reached: % unfinished tasks', limits.max_unfinished_per_user
      using errcode = 'PT429', hint = 'Wait until some have ended, or cancel some.';
  end if;
  if vidgen.unbilled_cost(owner) > limits.max_unbilled_cost_per_user then
    raise exception 'limit reached: too much was generated for you today without ending in a video'
      using errcode = 'PT429', hint = 'Try again tomorrow.';
  end if;
end
$$;

create function vidgen.limit_inserts() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
  owner uuid;
begin
  for owner in select distinct user_id from inserted order by user_id loop
    perform vidgen.check_limits(owner);
  end loop;
  return null;
end
$$;

create trigger limit_inserts
  after insert on public.video_generation_tasks
  referencing new table as inserted
  for each statement
  -- Whom row level security binds, also a role of the application's own; not its bulk writers.
  when (row_security_active('public.video_generation_tasks'))
  execute function vidgen.limit_inserts();

revoke all on function vidgen.check_limits(uuid) from public, anon, authenticated, service_role;
revoke all on function vidgen.limit_inserts() from public, anon, authenticated, service_role;

-- Owners sign their own clips. Only policies: `alter table storage.objects` fails on hosted Supabase.
do $$
begin
  if to_regclass('storage.objects') is not null then
    create policy "owners read their generated videos" on storage.objects
      for select to authenticated
      using (
        bucket_id = (select vidgen.videos_bucket())
        and (storage.foldername(name))[1] = 'video-files'
        and (storage.foldername(name))[2] = (select auth.uid())::text
      );
  else
    raise notice 'no storage schema here: clients can''t sign their own video_path';
  end if;
end
$$;

-- Realtime.
do $$
begin
  if exists (
    select from pg_catalog.pg_publication where pubname = 'supabase_realtime' and not puballtables
  ) then
    alter publication supabase_realtime add table public.video_generation_tasks;
    alter publication supabase_realtime add table public.video_generation_gates;
  end if;
end
$$;
