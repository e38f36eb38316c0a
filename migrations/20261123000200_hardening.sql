-- What an attack on our own surface found (tests/test_abuse.py plays each of them).

alter table vidgen.settings alter column schema_version set default '20261123000200';
update vidgen.settings set schema_version = '20261123000200';

-- With an empty search_path the session's own temporary schema is still searched first for types: a
-- user who may run SQL could make a domain pg_temp.uuid with a CHECK of its own, and have it run as
-- the owner of a definer function by any cast to uuid in it, or in auth.uid(), which it calls. Named
-- last it is never reached. https://www.postgresql.org/docs/current/sql-createfunction.html
do $$
declare
  ours regprocedure;
begin
  for ours in
    select p.oid
      from pg_catalog.pg_proc as p
     where (p.pronamespace = 'vidgen'::regnamespace
            or p.oid in (
              'public.cancel_video_generation_task(uuid)'::regprocedure,
              'public.retry_video_generation_task(uuid)'::regprocedure,
              'public.grant_video_credits(uuid, integer, text)'::regprocedure
            ))
       and 'search_path=""' = any(p.proconfig)
       -- An application's own credit functions stay whose they are.
       and pg_has_role(p.proowner, 'usage')
  loop
    execute format('alter function %s set search_path = pg_catalog, pg_temp', ours);
  end loop;
end
$$;

-- The daemon is given what fits any prompt or URL, not what fits a text column: a few prompts of
-- hundreds of megabytes would fill its memory and stop everybody's tasks. What is cut here is far
-- beyond every limit, so it is refused as too long all the same.
create or replace function vidgen.read_scene(scene_id uuid, user_id uuid) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
declare
  scene jsonb;
  scenario jsonb;
begin
  -- to_jsonb: an adopted table may lack a column that we only read.
  select to_jsonb(s) into scene
    from public.video_scenes as s
   where s.id = read_scene.scene_id and s.user_id = read_scene.user_id;
  if scene is null then
    return null;
  end if;
  if to_regclass('public.video_scenarios') is not null then
    select to_jsonb(c) into scenario
      from public.video_scenarios as c
     where c.id::text = scene ->> 'scenario_id';
  end if;
  return (
    select jsonb_object_agg(
             f.key,
             case
               when length(f.value #>> '{}') > 10000 then to_jsonb(left(f.value #>> '{}', 10000))
               else f.value
             end
           )
      from jsonb_each(jsonb_build_object(
             'id', scene -> 'id',
             'image_prompt', scene -> 'image_prompt',
             'visual_prompt', scene -> 'visual_prompt',
             'product_reference_image_url', scene -> 'product_reference_image_url',
             'duration', scene -> 'duration',
             'resolution', scenario -> 'resolution'
           )) as f
  );
end
$$;

-- A row for 'infinity' or the year 294276 can't be read by most programs (Python ends at 9999): one
-- of them made every list that shows it fail, an operator's too.
create or replace function vidgen.task_is_born() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if new.status <> 'pending' or new.attempt <> 0 or new.worker_id is not null then
    raise exception 'a task is born pending, with attempt 0 and without a worker (status %, attempt %)',
      new.status, new.attempt
      using errcode = 'check_violation',
            hint = 'Insert id, scene_id, user_id, priority and run_after only.';
  end if;
  new.run_after := least(greatest(new.run_after, now()), '9999-01-01 00:00:00+00');
  return new;
end
$$;

drop trigger task_is_born on public.video_generation_tasks;
create trigger task_is_born
  before insert on public.video_generation_tasks
  for each row
  when (
    new.status <> 'pending' or new.attempt <> 0 or new.worker_id is not null
    or new.run_after < now() or new.run_after > '9999-01-01 00:00:00+00'
  )
  execute function vidgen.task_is_born();

update public.video_generation_tasks
   set run_after = '9999-01-01 00:00:00+00'
 where status = 'pending' and run_after > '9999-01-01 00:00:00+00';

-- Cancel and retry: a stranger's call neither waits for the row's lock nor makes anybody wait for
-- it; the user's own lock comes before the row's, so that nobody waits long behind a row; and a
-- cancel that was asked for already writes nothing and wakes nobody, however often it is repeated.

create or replace function vidgen.cancel_task(task_id uuid) returns public.video_generation_tasks
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  task public.video_generation_tasks;
begin
  select t.* into task from public.video_generation_tasks as t where t.id = task_id;
  if task.id is null or not vidgen.may_act_on(task.user_id) then
    raise exception 'there is no task % of yours', task_id using errcode = 'PT404';
  end if;
  if auth.role() <> 'service_role' then
    perform pg_advisory_xact_lock(hashtextextended('vidgen limits ' || task.user_id::text, 0));
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
  elsif task.cancel_requested_at is null then
    update public.video_generation_tasks as t
       set cancel_requested_at = now()
     where t.id = task.id
    returning t.* into task;
    -- Else one insert of many tasks, each cancelled as soon as it runs, would pass the limit that
    -- the next insert meets.
    if auth.role() <> 'service_role' and exists (
      select from vidgen.submissions as s
       where s.task_id = task.id and s.ended_at is null and s.answer is distinct from 'refused'
    ) then
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

create or replace function vidgen.retry_task(task_id uuid) returns public.video_generation_tasks
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  task public.video_generation_tasks;
  budget vidgen.budgets;
  allowed smallint;
begin
  select t.* into task from public.video_generation_tasks as t where t.id = task_id;
  if task.id is null or not vidgen.may_act_on(task.user_id) then
    raise exception 'there is no task % of yours', task_id using errcode = 'PT404';
  end if;
  if auth.role() <> 'service_role' then
    perform pg_advisory_xact_lock(hashtextextended('vidgen limits ' || task.user_id::text, 0));
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
