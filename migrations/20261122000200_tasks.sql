-- The contract with clients: public.video_generation_tasks.
--
-- Everything here may be seen by the row's owner. Realtime sends an event for every UPDATE, so
-- leases, heartbeats, checkpoints, submissions and gates never touch this table.

create table public.video_generation_tasks (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null default auth.uid(),
  scene_id uuid references public.video_scenes (id) on delete set null,
  status text not null default 'pending',
  priority smallint not null default 0,
  failures smallint not null default 0,
  max_failures smallint not null default 3,
  attempt integer not null default 0,
  progress double precision not null default 0,
  stage_progress double precision,
  current_step text not null default 'Initializing',
  message text not null default 'Video generation task started',
  error_code text,
  error_message text,
  error jsonb,
  resolution text,
  video_ratio text,
  image_ratio text,
  image_path text,
  image_url text,
  video_path text,
  video_url text,
  video_url_expires_at timestamptz,
  worker_id uuid,
  cancel_requested_at timestamptz,
  run_after timestamptz not null default now(),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  started_at timestamptz,
  completed_at timestamptz,

  constraint status_is_known
    check (status in ('pending', 'processing', 'completed', 'failed', 'cancelled')),
  constraint priority_is_from_minus_10_to_10 check (priority between -10 and 10),
  constraint failures_are_within_their_limit
    check (failures >= 0 and max_failures between 1 and 100),
  constraint attempt_is_not_negative check (attempt >= 0),
  constraint progress_is_a_percentage check (progress between 0 and 100),
  constraint stage_progress_is_a_percentage check (stage_progress between 0 and 100),
  constraint processing_has_a_worker check (status <> 'processing' or worker_id is not null),
  constraint waiting_has_no_worker check (status <> 'pending' or worker_id is null),
  constraint completed_has_a_video_path check (status <> 'completed' or video_path is not null),
  constraint completed_is_at_100_percent check (status <> 'completed' or progress = 100),
  constraint failed_has_an_error_code check ((status = 'failed') = (error_code is not null)),
  constraint error_goes_with_its_code check (
    (error_code is null) = (error is null) and (error_code is null) = (error_message is null)
  ),
  constraint ended_has_completed_at check (
    (status in ('completed', 'failed', 'cancelled')) = (completed_at is not null)
  ),
  constraint claimed_has_started_at check (attempt = 0 or started_at is not null)
) with (
  -- Progress is written in place: room for HOT updates, and vacuum before the dead rows pile up.
  fillfactor = 70,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_threshold = 500,
  autovacuum_analyze_scale_factor = 0.02,
  autovacuum_analyze_threshold = 500,
  autovacuum_vacuum_cost_delay = 1
);

alter table public.video_generation_tasks enable row level security;

comment on table public.video_generation_tasks is
  'One order of one user for one video of one scene. Insert a row, then watch it.';
comment on column public.video_generation_tasks.video_path is
  'Object name in the videos bucket: the lasting reference. Sign it again when video_url is over.';

-- A user's own waiting tasks in their order. The claim probes it with (user, priority) and
-- run_after up to now, so rows for later are never walked.
create index video_generation_tasks_waiting on public.video_generation_tasks
  (user_id, priority desc, run_after, created_at) where status = 'pending';
-- What a worker holds: takeover, heartbeat verdicts, drain.
create index video_generation_tasks_running on public.video_generation_tasks
  (worker_id) where status = 'processing';
-- Cancels that wait for a worker to end something at the provider.
create index video_generation_tasks_to_cancel on public.video_generation_tasks
  (cancel_requested_at) where status = 'pending' and cancel_requested_at is not null;
-- The owner's list, newest first; its first column is the policy's.
create index video_generation_tasks_by_user on public.video_generation_tasks
  (user_id, created_at desc);
-- Unfinished tasks of a user: limits.
create index video_generation_tasks_unfinished on public.video_generation_tasks
  (user_id) where status = 'processing';
create index video_generation_tasks_by_scene on public.video_generation_tasks (scene_id);

-- A row is born pending with attempt 0, whoever inserts it, and can't be due in the past (else it
-- would jump its owner's queue). The WHEN keeps an ordinary bulk insert free of this call.

create function vidgen.task_is_born() returns trigger
language plpgsql set search_path = ''
as $$
begin
  if new.status <> 'pending' or new.attempt <> 0 or new.worker_id is not null then
    raise exception 'a task is born pending, with attempt 0 and without a worker (status %, attempt %)',
      new.status, new.attempt
      using errcode = 'check_violation',
            hint = 'Insert id, scene_id, user_id, priority and run_after only.';
  end if;
  new.run_after := greatest(new.run_after, now());
  return new;
end
$$;

create trigger task_is_born
  before insert on public.video_generation_tasks
  for each row
  when (
    new.status <> 'pending' or new.attempt <> 0 or new.worker_id is not null
    or new.run_after < now()
  )
  execute function vidgen.task_is_born();

-- Every legal change of a status, for every role, service_role too.

create function vidgen.task_changes() returns trigger
language plpgsql set search_path = ''
as $$
begin
  if new.attempt < old.attempt then
    raise exception 'task %: attempt never goes down (% to %)', old.id, old.attempt, new.attempt
      using errcode = 'check_violation';
  end if;

  if old.status <> new.status then
    if not (case old.status
      when 'pending' then
        (new.status = 'processing' and new.attempt = old.attempt + 1)
        or new.status in ('cancelled', 'failed')
      when 'processing' then new.status in ('completed', 'failed', 'cancelled', 'pending')
      when 'failed' then new.status = 'pending'
      when 'cancelled' then new.status = 'pending'
      else false
    end) then
      raise exception 'task %: status can''t change from % to %', old.id, old.status, new.status
        using errcode = 'check_violation',
              hint = 'Cancel with cancel_video_generation_task(id), '
                     'try again with retry_video_generation_task(id).';
    end if;
  elsif old.status in ('completed', 'failed', 'cancelled') then
    -- What has ended stays as it is, but for a scene that goes away and a URL signed again.
    if to_jsonb(new) - array['scene_id', 'video_url', 'video_url_expires_at', 'updated_at']
       <> to_jsonb(old) - array['scene_id', 'video_url', 'video_url_expires_at', 'updated_at'] then
      raise exception 'task %: it has ended (%) and can''t be changed', old.id, old.status
        using errcode = 'check_violation',
              hint = 'Try again with retry_video_generation_task(id), or insert a new task.';
    end if;
  end if;

  if old.status in ('pending', 'processing') and new.status in ('pending', 'processing') then
    -- A late or resumed writer must not pull the bar back before the user's eyes.
    new.progress := greatest(new.progress, old.progress);
  end if;
  new.updated_at := now();
  return new;
end
$$;

create trigger task_changes
  before update on public.video_generation_tasks
  for each row execute function vidgen.task_changes();

revoke all on function vidgen.task_is_born() from public, anon, authenticated, service_role;
revoke all on function vidgen.task_changes() from public, anon, authenticated, service_role;

-- Grants. Since 2026-10-30 a new public table has none at all; an older or self-hosted project may
-- still give everything away by default, so that is taken back first. By column for INSERT.

revoke all on public.video_generation_tasks
  from public, anon, authenticated, service_role, vidgen_worker;
grant select on public.video_generation_tasks to authenticated;
grant insert (id, scene_id, user_id, priority, run_after)
  on public.video_generation_tasks to authenticated;
grant select, insert, update, delete on public.video_generation_tasks to service_role;
grant select, update on public.video_generation_tasks to vidgen_worker;

create policy "owners see their tasks" on public.video_generation_tasks
  for select to authenticated using ((select auth.uid()) = user_id);
-- owns_scene, not a subquery or the foreign key: neither tells a stranger which scenes exist.
create policy "owners order videos of their scenes" on public.video_generation_tasks
  for insert to authenticated
  with check ((select auth.uid()) = user_id and vidgen.owns_scene(scene_id));
create policy "the worker sees all tasks" on public.video_generation_tasks
  for select to vidgen_worker using (true);
create policy "the worker writes all tasks" on public.video_generation_tasks
  for update to vidgen_worker using (true) with check (true);
