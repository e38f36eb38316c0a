-- The interface of clients, and the limits that protect them from each other: RPCs, quotas, the storage
-- policy, Realtime.

set local search_path = '';

-- Cancel and retry. A call for another user's task neither takes nor waits for the row's lock. The user's own
-- lock is taken before the row's, so that no statement waits long for a row. A repeated cancel writes nothing
-- and wakes no worker. The caller's role decides whether the limits apply; each cancel counts. The cost that a
-- cancel would lose is checked in every state: an output that waits for storage was paid as well.
create function vidgen.cancel_task(task_id uuid) returns public.video_generation_tasks
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  task public.video_generation_tasks;
  bound boolean := not vidgen.acts_for_all();
  changed boolean := false;
begin
  select t.* into task from public.video_generation_tasks as t where t.id = task_id;
  if task.id is null or not vidgen.may_act_on(task.user_id) then
    raise exception 'there is no task % of yours', task_id using errcode = 'PT404';
  end if;
  if bound then
    perform vidgen.lock_user(task.user_id);
  end if;
  select t.* into task
    from public.video_generation_tasks as t where t.id = task_id
     for no key update;
  if task.id is null then
    raise exception 'there is no task % of yours', task_id using errcode = 'PT404';
  end if;
  if task.status in ('completed', 'failed', 'cancelled') then
    return task;
  end if;
  if task.status = 'pending' and not exists (
    -- A generation may run at the provider: only a worker can end it there.
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
    changed := true;
  elsif task.cancel_requested_at is null then
    update public.video_generation_tasks as t
       set cancel_requested_at = now()
     where t.id = task.id
    returning t.* into task;
    perform vidgen.wake('vidgen_tasks', 'cancel');
    changed := true;
  end if;
  if bound and changed then
    perform vidgen.count_user(task.user_id, 0, 1);
    -- Else a user could insert many tasks in one statement and cancel each as soon as it runs: only the next
    -- insert would meet the limit.
    if exists (
      select from vidgen.submissions as s
       where s.task_id = task.id and not s.billed and s.cost is distinct from 0
         and s.answer is distinct from 'refused'
         and (s.ended_at is null or s.ended_state = 'succeeded')
    ) and vidgen.unbilled_cost(task.user_id)
          > (select s.max_unbilled_cost_per_user from vidgen.settings as s) then
      raise exception 'limit reached: task % runs at the provider already and can''t be cancelled', task_id
        using errcode = 'PT429', detail = 'USER_LIMIT',
              hint = 'Too much was generated for you today without ending in a video. '
                     'Let this one end, or try again tomorrow.';
    end if;
  end if;
  return task;
end
$$;

create function vidgen.retry_task(task_id uuid) returns public.video_generation_tasks
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  task public.video_generation_tasks;
  budget vidgen.budgets;
  allowed smallint;
  bound boolean := not vidgen.acts_for_all();
begin
  select t.* into task from public.video_generation_tasks as t where t.id = task_id;
  if task.id is null or not vidgen.may_act_on(task.user_id) then
    raise exception 'there is no task % of yours', task_id using errcode = 'PT404';
  end if;
  if bound then
    perform vidgen.lock_user(task.user_id);
  end if;
  select t.* into task
    from public.video_generation_tasks as t where t.id = task_id
     for no key update;
  if task.id is null then
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

  -- Finished stages are kept, and so is a finished generation whose output waits for storage. A stage that
  -- ended otherwise begins anew, from the present scene.
  delete from vidgen.checkpoints as c
   using vidgen.submissions as s
   where c.task_id = task.id and c.submission_id = s.id and c.state not in ('done', 'storing')
     and (s.ended_at is not null or s.answer = 'refused' or s.answer = 'unknown');
  update vidgen.submissions as s set counted = false where s.task_id = task.id and s.counted;
  insert into vidgen.budgets as b (task_id, retries) values (task.id, 1)
      on conflict on constraint budgets_pkey do update
     set retries = b.retries + 1, crashes = 0, suspect = false, rejected_inputs = null;
  perform vidgen.note_event(task.id, 'retried', task.attempt, null, null, null);

  update public.video_generation_tasks as t
     set status = 'pending', worker_id = null, failures = 0, cancel_requested_at = null,
         error_code = null, error_message = null, error = null, completed_at = null,
         progress = 0, stage_progress = null, run_after = now(),
         current_step = 'Initializing', message = 'Video generation task started'
   where t.id = task.id
  returning t.* into task;
  if bound then
    perform vidgen.count_user(task.user_id, 0, 1);
    perform vidgen.check_limits(task.user_id);
  end if;
  return task;
end
$$;

-- A new column of ours, or of the application's own, must break nothing.
--
-- `select *` in a parsed body freezes the present columns, and a call fails (42P13) after a new one is added.
-- One value of the row's own type follows every change of the table.
create function public.cancel_video_generation_task(task_id uuid)
returns public.video_generation_tasks
language sql volatile security invoker set search_path = pg_catalog, pg_temp
begin atomic
  select vidgen.cancel_task(cancel_video_generation_task.task_id);
end;

comment on function public.cancel_video_generation_task(uuid) is
  'Cancel a task of yours: at once where no generation runs at the provider, else within a heartbeat.';

create function public.retry_video_generation_task(task_id uuid)
returns public.video_generation_tasks
language sql volatile security invoker set search_path = pg_catalog, pg_temp
begin atomic
  select vidgen.retry_task(retry_video_generation_task.task_id);
end;

comment on function public.retry_video_generation_task(uuid) is
  'Try a failed or cancelled task of yours again. Finished stages are kept and not paid again.';

create function public.grant_video_credits(user_id uuid, amount integer, reference text)
returns public.user_credits
language sql volatile security invoker set search_path = pg_catalog, pg_temp
begin atomic
  select vidgen.grant_credits(
    grant_video_credits.user_id, grant_video_credits.amount, grant_video_credits.reference
  );
end;

comment on function public.grant_video_credits(uuid, integer, text) is
  'For a payment webhook (service_role): add credits, once per reference.';

-- Limits for browsers, exact under overlapping transactions: the count runs after the lock, in its own
-- snapshot, and sees the rows that the previous transaction committed. A count without the lock would let two
-- transactions pass.
create function vidgen.check_limits(owner uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  limits vidgen.settings;
  unfinished bigint;
  stopped timestamptz;
  lifted timestamptz;
  cost record;
begin
  perform vidgen.lock_user(owner);
  select s.* into limits from vidgen.settings as s;
  select count(*) into unfinished
    from (
      -- The order keeps the planner from reading the whole table in the hope of finding enough.
      (select from public.video_generation_tasks as t
        where t.user_id = owner and t.status = 'pending'
        order by t.lane, t.priority desc
        limit limits.max_unfinished_per_user + 1)
      union all
      (select from public.video_generation_tasks as t
        where t.user_id = owner and t.status = 'processing'
        limit limits.max_unfinished_per_user + 1)
    ) as unfinished_tasks;
  if unfinished > limits.max_unfinished_per_user then
    raise exception 'limit reached: % unfinished tasks', limits.max_unfinished_per_user
      using errcode = 'PT429', detail = 'USER_LIMIT',
            hint = 'Wait until some have ended, or cancel some.';
  end if;
  select u.stopped_until, u.lifted_at into stopped, lifted
    from vidgen.user_limits as u where u.user_id = owner;
  if stopped > now() then
    raise exception 'limit reached: the provider''s content rules rejected % of your scenes in a row',
      limits.rejections_to_stop
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = format(
        'Change what your scenes ask for, and try again after %s UTC.',
        to_char(stopped at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
      );
  end if;
  select u.* into cost from vidgen.unbilled(owner, lifted) as u;
  if cost.lost > limits.max_unbilled_cost_per_user then
    raise exception 'limit reached: too much was generated for you today without ending in a video '
                    '(% of % provider credits)',
      trim_scale(cost.lost), trim_scale(limits.max_unbilled_cost_per_user)
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = format(
        'Try again tomorrow, after %s UTC.',
        to_char(cost.opens_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
      );
  end if;
end
$$;

create function vidgen.limit_inserts() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  limits vidgen.settings;
  of_user record;
  crowded uuid;
begin
  select s.* into limits from vidgen.settings as s;
  for of_user in select i.user_id, count(*) as rows from inserted as i group by i.user_id order by i.user_id
  loop
    perform vidgen.count_user(of_user.user_id, of_user.rows, 0);
    perform vidgen.check_limits(of_user.user_id);
  end loop;
  -- The lock is that of the scenes' owner: no other user may order videos of them.
  select mine.scene_id into crowded
    from (select distinct i.scene_id from inserted as i where i.scene_id is not null) as mine
   where (
     select count(*)
       from (
         select
           from public.video_generation_tasks as t
          where t.scene_id = mine.scene_id
          limit limits.max_tasks_per_scene + 1
       ) as tasks
   ) > limits.max_tasks_per_scene
   limit 1;
  if crowded is not null then
    raise exception 'limit reached: scene % has % tasks', crowded, limits.max_tasks_per_scene
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = 'Make a copy of the scene and use that.';
  end if;
  return null;
end
$$;

create trigger limit_inserts
  after insert on public.video_generation_tasks
  referencing new table as inserted
  for each statement
  -- For roles that row level security binds, the application's own too; not for its bulk writers.
  when (row_security_active('public.video_generation_tasks'))
  execute function vidgen.limit_inserts();

-- Rows beyond the limit are not written: else 100,000 rows would be inserted and checked first, for seconds.
-- This only saves time: a user who forges this number meets the exact count at the end.
create function vidgen.begin_to_count() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform set_config(
    'vidgen.rows_left', (select s.max_inserts_per_hour::text from vidgen.settings as s), true
  );
  return null;
end
$$;

create trigger begin_to_count
  before insert on public.video_generation_tasks
  for each statement
  when (row_security_active('public.video_generation_tasks'))
  execute function vidgen.begin_to_count();

create function vidgen.count_row() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  rows_left integer := coalesce(nullif(current_setting('vidgen.rows_left', true), ''), '1')::integer - 1;
begin
  if rows_left < 0 then
    raise exception 'limit reached: too many new tasks in one statement'
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = 'Nothing was inserted. Insert fewer.';
  end if;
  perform set_config('vidgen.rows_left', rows_left::text, true);
  return new;
end
$$;

create trigger count_row
  before insert on public.video_generation_tasks
  for each row
  when (row_security_active('public.video_generation_tasks'))
  execute function vidgen.count_row();

-- Limits for scenes, where the table is ours; an application limits its own table itself.
create function vidgen.limit_scenes() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  most integer;
  owner uuid;
begin
  select s.max_scenes_per_user into most from vidgen.settings as s;
  for owner in select distinct i.user_id from inserted as i order by i.user_id loop
    perform vidgen.lock_user(owner);
    if (
      select count(*)
        from (select from public.video_scenes as s where s.user_id = owner limit most + 1) as scenes
    ) > most then
      raise exception 'limit reached: % scenes', most
        using errcode = 'PT429', detail = 'USER_LIMIT', hint = 'Delete some that you no longer need.';
    end if;
  end loop;
  return null;
end
$$;

do $$
begin
  if exists (
    select from pg_catalog.pg_policies as p
     where p.schemaname = 'public' and p.tablename = 'video_scenes'
       and p.policyname = 'owners add scenes'
  ) then
    create trigger limit_scenes
      after insert on public.video_scenes
      referencing new table as inserted
      for each statement
      when (row_security_active('public.video_scenes'))
      execute function vidgen.limit_scenes();
  end if;
end
$$;

-- Whether a stored file is the caller's. The statement that writes its path into the task's row also charges
-- for it.
create function vidgen.is_paid(of_bucket text, of_path text) returns boolean
language sql stable security definer cost 1000 set search_path = pg_catalog, pg_temp
as $$
  select exists (
           select
             from public.video_generation_tasks as t
            cross join vidgen.settings as s
            where t.video_path = is_paid.of_path and t.user_id = (select vidgen.signed_in_user())
              and s.videos_bucket = is_paid.of_bucket
         )
      or exists (
           select
             from public.video_generation_tasks as t
            cross join vidgen.settings as s
            where t.image_path = is_paid.of_path and t.user_id = (select vidgen.signed_in_user())
              and s.images_bucket = is_paid.of_bucket
         );
$$;

create function vidgen.is_unpaid(of_bucket text, of_path text) returns boolean
language sql stable security definer cost 1000 set search_path = pg_catalog, pg_temp
as $$
  select exists (
           select from vidgen.uploads as u
            where u.bucket = is_unpaid.of_bucket and u.path = is_unpaid.of_path
         )
     and not vidgen.is_charged(is_unpaid.of_path);
$$;

-- Rights.

call vidgen.revoke_from_strangers();

revoke all on function
  vidgen.cancel_task(uuid), vidgen.retry_task(uuid), public.cancel_video_generation_task(uuid),
  public.retry_video_generation_task(uuid), public.grant_video_credits(uuid, integer, text),
  vidgen.check_limits(uuid), vidgen.limit_inserts(), vidgen.begin_to_count(), vidgen.count_row(),
  vidgen.limit_scenes(), vidgen.is_paid(text, text), vidgen.is_unpaid(text, text)
  from public, anon, authenticated, service_role;

-- This policy restricts every role that an application's own policies let read storage.objects.
grant execute on function vidgen.our_buckets(), vidgen.is_unpaid(text, text) to public;
grant execute on function
  vidgen.cancel_task(uuid), vidgen.retry_task(uuid), public.cancel_video_generation_task(uuid),
  public.retry_video_generation_task(uuid), vidgen.is_paid(text, text)
  to authenticated;
grant execute on function
  vidgen.cancel_task(uuid), vidgen.retry_task(uuid), public.cancel_video_generation_task(uuid),
  public.retry_video_generation_task(uuid), public.grant_video_credits(uuid, integer, text)
  to service_role;
grant execute on function
  vidgen.cancel_task(uuid), vidgen.retry_task(uuid), public.cancel_video_generation_task(uuid),
  public.retry_video_generation_task(uuid)
  to vidgen_worker;

-- Owners sign their own files. Only policies: `alter table storage.objects` fails on hosted Supabase.
do $$
begin
  if to_regclass('storage.objects') is not null then
    create policy "owners read what they have paid for" on storage.objects
      for select to authenticated
      using (
        bucket_id = any ((select vidgen.our_buckets())::text[])
        and split_part(name, '/', 2) = (select vidgen.signed_in_user())::text
        and vidgen.is_paid(bucket_id, name)
      );
    -- An application's policy may let users read the whole bucket, or their whole folder.
    create policy "nobody reads what is not paid for" on storage.objects
      as restrictive for select to public
      using (
        bucket_id <> all ((select vidgen.our_buckets())::text[])
        or not vidgen.is_unpaid(bucket_id, name)
      );
  else
    raise notice 'no storage schema here: clients can''t sign their own video_path';
  end if;
end
$$;

-- Realtime, where it doesn't publish all tables, or all of schema public.
do $$
begin
  if exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime') and not exists (
    select
      from pg_catalog.pg_publication_tables
     where pubname = 'supabase_realtime' and schemaname = 'public'
       and tablename = 'video_generation_tasks'
  ) then
    alter publication supabase_realtime add table public.video_generation_tasks;
    alter publication supabase_realtime add table public.video_generation_gates;
  end if;
end
$$;

update vidgen.settings set schema_version = '20261130100700', oldest_program = '20261130100700';
