-- The interface of clients, and the limits that protect them from each other: RPCs, quotas, the storage
-- policy, Realtime.

set local search_path = '';

-- Cancel one task whose row the caller holds; whether that changed anything. A repeated cancel writes nothing
-- and wakes no worker.
create function vidgen.cancel_locked(of_task uuid) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  task record;
begin
  select t.status, t.attempt, t.scene_id, t.user_id, t.cancel_requested_at into task
    from public.video_generation_tasks as t
   where t.id = of_task;
  if task.status = 'pending' and not exists (
    -- Something may live at the provider: only a worker can end it there.
    select
      from vidgen.checkpoints as c
      join vidgen.submissions as s on s.id = c.submission_id
     where c.task_id = of_task
       and c.state <> 'done' and s.ended_at is null and s.answer is distinct from 'refused'
  ) then
    update public.video_generation_tasks as t
       set status = 'cancelled', completed_at = now(),
           cancel_requested_at = coalesce(t.cancel_requested_at, now()),
           current_step = 'Cancelled', message = 'Video generation cancelled', stage_progress = null
     where t.id = of_task;
    perform vidgen.release_credits(of_task);
    if task.attempt > 0 then
      perform vidgen.write_scene(task.scene_id, task.user_id, 'pending', null, null);
    end if;
    return true;
  elsif task.status in ('pending', 'processing') and task.cancel_requested_at is null then
    update public.video_generation_tasks as t set cancel_requested_at = now() where t.id = of_task;
    perform vidgen.wake('vidgen_tasks', 'cancel');
    return true;
  end if;
  return false;
end
$$;

-- Cancel and retry. A call for another user's task neither takes nor waits for the row's lock. The user's
-- own lock is taken before the row's, so that nobody waits long for a row. The caller's role decides whether
-- the limits apply; each cancel counts. What a cancel would throw away is checked in every state: an output
-- that waits to be stored was paid for as well.
--
-- A film's row is locked first, then those of its parts by id, all of them before the first one changes: in
-- that order they are locked wherever both are. It takes along what it has ordered, unless another
-- unfinished film needs that as well: whether one does is asked after the locks, since an order of that film
-- may have held them.
create function vidgen.cancel_task(task_id uuid) returns public.video_generation_tasks
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  task public.video_generation_tasks;
  bound boolean := not vidgen.acts_for_all();
  parts uuid[] := '{}';
  changed boolean;
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
  if task.cut is not null then
    parts := array(
      select t.id
        from public.video_generation_tasks as t
       where t.id in (
               select p.task_id from vidgen.parts as p where p.film_id = task.id
               union all
               select o.id from public.video_generation_tasks as o where o.film_id = task.id
             )
         and t.status in ('pending', 'processing')
       order by t.id
         for no key update of t
    );
    -- What it has ordered, and what a film had ordered that is cancelled by now.
    parts := array(
      select t.id
        from public.video_generation_tasks as t
       where t.id = any (parts)
         and (
           t.film_id = task.id
           or exists (
             select from public.video_generation_tasks as first
              where first.id = t.film_id and first.status = 'cancelled'
           )
         )
         and not vidgen.is_needed(t.id, task.id)
       order by t.id
    );
  end if;
  changed := vidgen.cancel_locked(task.id);
  if changed then
    perform vidgen.cancel_locked(part.id) from unnest(parts) as part (id);
  end if;
  if bound and changed then
    perform vidgen.count_user(task.user_id, 0, 1);
    -- Else a user could insert many tasks in one statement and cancel each as soon as it runs: only the next
    -- insert would meet the limit.
    if exists (
      select from vidgen.submissions as s
       where s.task_id = any (task.id || parts) and not s.billed and s.cost is distinct from 0
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
  select t.* into task from public.video_generation_tasks as t where t.id = task_id;
  return task;
end
$$;

-- Try one failed or cancelled task again whose row the caller holds. Raises PT409 where it can't be.
create function vidgen.retry_locked(of_task uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  task record;
  budget vidgen.budgets;
  allowed smallint;
begin
  select t.status, t.attempt, t.scene_id, t.user_id into task
    from public.video_generation_tasks as t
   where t.id = of_task;
  if task.status not in ('failed', 'cancelled') then
    raise exception 'task % is %: only a failed or cancelled task can be retried', of_task, task.status
      using errcode = 'PT409';
  end if;
  select s.max_retries into allowed from vidgen.settings as s;
  select b.* into budget from vidgen.budgets as b where b.task_id = of_task for update;
  if coalesce(budget.retries, 0) >= allowed then
    raise exception 'task % was retried % times already', of_task, allowed
      using errcode = 'PT409', hint = 'Insert a new task.';
  end if;
  if budget.rejected_inputs is not null
     and budget.rejected_inputs = vidgen.scene_digest(task.scene_id, task.user_id) then
    raise exception 'task %: the provider''s content rules rejected this scene, and it is unchanged', of_task
      using errcode = 'PT409', hint = 'Change the scene''s prompt or picture first.';
  end if;

  -- Finished stages are kept, and so is a finished generation whose output waits to be stored. A
  -- stage that ended otherwise begins anew, from the scene as it is.
  delete from vidgen.checkpoints as c
   using vidgen.submissions as s
   where c.task_id = of_task and c.submission_id = s.id and c.state not in ('done', 'storing')
     and (s.ended_at is not null or s.answer = 'refused' or s.answer = 'unknown');
  update vidgen.submissions as s set counted = false where s.task_id = of_task and s.counted;
  insert into vidgen.budgets as b (task_id, retries) values (of_task, 1)
      on conflict on constraint budgets_pkey do update
     set retries = b.retries + 1, crashes = 0, suspect = false, rejected_inputs = null;
  perform vidgen.note_event(of_task, 'retried', task.attempt, null, null, null);
  -- A film orders again what it lacks.
  delete from vidgen.films as f where f.film_id = of_task;

  update public.video_generation_tasks as t
     set status = 'pending', worker_id = null, failures = 0, cancel_requested_at = null,
         error_code = null, error_message = null, error = null, completed_at = null,
         progress = 0, stage_progress = null, run_after = now(),
         current_step = 'Initializing', message = 'Video generation task started'
   where t.id = of_task;
end
$$;

create function vidgen.retry_task(task_id uuid) returns public.video_generation_tasks
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  task public.video_generation_tasks;
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
  perform vidgen.retry_locked(task.id);
  if bound then
    perform vidgen.count_user(task.user_id, 0, 1);
    perform vidgen.check_limits(task.user_id);
  end if;
  select t.* into task from public.video_generation_tasks as t where t.id = task_id;
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

-- Raises where one of these scenes has too many tasks. The caller holds the lock of the scenes' owner: no
-- other user may order videos of them.
create function vidgen.check_scenes(scenes uuid[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  most integer := (select s.max_tasks_per_scene from vidgen.settings as s);
  crowded uuid;
begin
  select scene.id into crowded
    from (select distinct one.id from unnest(scenes) as one (id) where one.id is not null) as scene
   where (
     select count(*)
       from (
         select from public.video_generation_tasks as t where t.scene_id = scene.id limit most + 1
       ) as tasks
   ) > most
   limit 1;
  if found then
    raise exception 'limit reached: scene % has % tasks', crowded, most
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = 'Make a copy of the scene and use that.';
  end if;
end
$$;

create function vidgen.limit_inserts() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  of_user record;
begin
  for of_user in select i.user_id, count(*) as rows from inserted as i group by i.user_id order by i.user_id
  loop
    perform vidgen.count_user(of_user.user_id, of_user.rows, 0);
    perform vidgen.check_limits(of_user.user_id);
  end loop;
  perform vidgen.check_scenes(array(select i.scene_id from inserted as i));
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

-- Films: their parts are ordered here, since the worker's role may insert no task.

-- Scenes of a scenario, in the order in which they were made; 501 at the most. An application's own table
-- may have other columns, of other types.
create function vidgen.scenes_of(owner uuid, of_scenario text) returns uuid[]
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if (
    select count(*) = 2
      from pg_attribute as a
     where a.attrelid = 'public.video_scenes'::regclass and a.attname in ('scenario_id', 'created_at')
       and a.attgenerated = '' and not a.attisdropped
  ) then
    return array(
      select s.id
        from public.video_scenes as s
       where s.user_id = owner and s.scenario_id::text in (of_scenario, lower(of_scenario))
       order by s.created_at, s.id
       limit 501
    );
  end if;
  return array(
    select s.id
      from public.video_scenes as s
     where s.user_id = owner
       and vidgen.read_column('public.video_scenes', 'scenario_id', 'id', 'uuid', s.id::text) ->> 'value'
           in (of_scenario, lower(of_scenario))
     order by vidgen.read_column('public.video_scenes', 'created_at', 'id', 'uuid', s.id::text) ->> 'value',
              s.id
     limit 501
  );
end
$$;

-- What a cut asks for: each position with its scene, and the task that is there already: the one that the cut
-- names, or that this film has ordered before. A scene that the cut names twice is ordered once. A task that
-- was deleted is ordered anew.
create function vidgen.wanted_parts(of_film uuid, owner uuid, cut jsonb)
returns table (place smallint, of_scene uuid, of_task uuid)
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  with named as materialized (
    select one.place::smallint as place, (one.part ->> 'scene')::uuid as of_scene,
           (one.part ->> 'task')::uuid as of_task
      from jsonb_array_elements(wanted_parts.cut -> 'parts') with ordinality as one (part, place)
    union all
    select one.place::smallint, one.id, null
      from unnest(
             vidgen.scenes_of(wanted_parts.owner, wanted_parts.cut ->> 'scenario')
           ) with ordinality as one (id, place)
     where wanted_parts.cut ? 'scenario'
  ),
  before as materialized (
    select p.position, p.task_id, t.scene_id
      from vidgen.parts as p
      join public.video_generation_tasks as t on t.id = p.task_id
     where p.film_id = wanted_parts.of_film
  )
  select named.place, named.of_scene,
         coalesce(
           named.of_task,
           -- A list stays as it is; a scenario may have got other scenes.
           (
             select b.task_id
               from before as b
              where case when wanted_parts.cut ? 'parts' then b.position = named.place
                         else b.scene_id = named.of_scene end
              limit 1
           )
         )
    from named
   order by named.place
$$;

-- The outputs that a cut asks for, each with its number from 0 on.
create function vidgen.wanted_outputs(cut jsonb) returns table (number bigint, name text, preset text)
language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select one.place - 1,
         case jsonb_typeof(one.output)
           when 'string' then one.output #>> '{}'
           else coalesce(one.output ->> 'name', one.output ->> 'preset')
         end,
         case jsonb_typeof(one.output)
           when 'string' then one.output #>> '{}' else one.output ->> 'preset'
         end
    from jsonb_array_elements(wanted_outputs.cut -> 'outputs') with ordinality as one (output, place)
$$;

-- How many seconds a clip is ordered for: as its request was frozen, or as its scene says now. Null: nobody
-- can know, because the scene is gone or says no number.
create function vidgen.ordered_seconds(of_task uuid, of_scene uuid, owner uuid) returns numeric
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  scene jsonb;
  frozen text := (
    select c.request ->> 'seconds'
      from vidgen.checkpoints as c
     where c.task_id = of_task and c.request ->> 'seconds' <> '0'
     limit 1
  );
begin
  if frozen is null then
    scene := vidgen.read_scene(
      coalesce(
        of_scene, (select t.scene_id from public.video_generation_tasks as t where t.id = of_task)
      ),
      owner
    );
    frozen := coalesce(scene ->> 'duration', case when scene is not null then '5' end);
  end if;
  return case when frozen ~ '^[0-9]{1,3}$' then frozen::numeric end;
end
$$;

-- The ordered seconds of each part of a film, before it is ordered too.
create function vidgen.seconds_of_parts(of_film uuid) returns table (place smallint, seconds numeric)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  film record;
begin
  select t.user_id, t.cut into film
    from public.video_generation_tasks as t where t.id = of_film and t.cut is not null;
  if exists (select from vidgen.films as f where f.film_id = of_film) then
    return query
      select p.position, vidgen.ordered_seconds(p.task_id, null, film.user_id)
        from vidgen.parts as p
       where p.film_id = of_film
       order by p.position;
  else
    return query
      select w.place, vidgen.ordered_seconds(w.of_task, w.of_scene, film.user_id)
        from vidgen.wanted_parts(of_film, film.user_id, film.cut) as w;
  end if;
end
$$;

-- Raises what keeps a film from being ordered: as a value it comes out of order_parts, which takes back
-- everything that was done before.
create function vidgen.refuse_film(of_code text, of_field text, of_message text) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  raise exception '%', of_message
    using errcode = 'VG007', detail = of_code, column = coalesce(of_field, '');
end
$$;

-- Try the parts again that have ended without a clip. Returns how many. Those that can't be are left as they
-- are where the cut says so (`on_failure`), else nothing is ordered.
create function vidgen.retry_parts(tasks uuid[], skips boolean) returns integer
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  part record;
  retried integer := 0;
begin
  for part in
    select t.id, t.error_code, min(w.place) as place
      from unnest(tasks) with ordinality as w (id, place)
      join public.video_generation_tasks as t on t.id = w.id
     where t.status in ('failed', 'cancelled')
     group by t.id
     order by t.id
  loop
    begin
      perform vidgen.retry_locked(part.id);
      retried := retried + 1;
    exception
      when sqlstate 'PT409' then
        if not skips then
          perform vidgen.refuse_film(
            'PART_FAILED', format('/parts/%s', part.place - 1),
            format('Part %s ended before (%s) and can''t be tried again: %s.',
                   part.place, coalesce(part.error_code, 'CANCELLED'), sqlerrm)
          );
        end if;
    end;
  end loop;
  return retried;
end
$$;

-- Hold the credits of all parts that are not completed. One that its own worker has held them for keeps that
-- hold.
create function vidgen.hold_parts(of_film uuid, owner uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  part record;
begin
  for part in
    select one.task_id as id, due.prices, due.missing
      from (select distinct p.task_id from vidgen.parts as p where p.film_id = of_film) as one
     cross join lateral (
       -- One probe each: no plan reads all tasks or all open holds.
       select (
                select t.status from public.video_generation_tasks as t where t.id = one.task_id
              ) as status,
              (
                select h.id from vidgen.holds as h where h.task_id = one.task_id and h.closed_at is null
              ) as hold
       offset 0
     ) as found
     cross join lateral vidgen.due_prices(one.task_id) as due
     where found.status in ('pending', 'processing') and found.hold is null
     order by one.task_id
  loop
    if part.missing then
      perform vidgen.refuse_film(
        'PRICE_MISSING', null,
        'This film has no price yet, so it can''t be charged. '
        'The operator sets it in credit_prices, then retry.'
      );
    elsif not vidgen.hold_credits(part.id, owner, part.prices) then
      perform vidgen.refuse_film(
        'INSUFFICIENT_CREDITS', null,
        'There are not enough credits for all scenes of this film, so none was begun. '
        'Add credits, then retry.'
      );
    end if;
  end loop;
end
$$;

-- Note what the outputs of a film cost, and hold it: for each of them the whole length of the film, as its
-- parts and its end card are ordered. The prices stay with the order.
create function vidgen.order_outputs(of_film uuid, owner uuid, cut jsonb, with_credits boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  longest constant integer := 180;  -- seconds: no film is longer
  wrong record;
  length numeric;
  prices jsonb;
begin
  select w.number, w.preset into wrong
    from vidgen.wanted_outputs(cut) as w
   where not exists (
     select from public.video_presets as p
      where p.name = w.preset and p.kind = 'output' and p.retired_at is null
   )
   order by w.number
   limit 1;
  if found then
    perform vidgen.refuse_film(
      'INVALID_REQUEST', format('/outputs/%s', wrong.number),
      format('/outputs/%s: the preset %s is not offered here', wrong.number, wrong.preset)
    );
  end if;
  select sum(greatest(
           coalesce((part.one ->> 'to')::numeric, s.seconds, longest)
           - coalesce((part.one ->> 'from')::numeric, 0), 0
         )) + coalesce((cut -> 'end' ->> 'seconds')::numeric, case when cut ? 'end' then 2 end, 0)
    into length
    from vidgen.seconds_of_parts(of_film) as s
    left join jsonb_array_elements(cut -> 'parts') with ordinality as part (one, place)
      on part.place = s.place;
  update vidgen.films as f
     set seconds = least(ceil(length), longest)::integer,
         second_credits = (
           select coalesce(jsonb_object_agg(w.name, p.film_second_credits), '{}')
             from vidgen.wanted_outputs(cut) as w
             join public.video_presets as p on p.name = w.preset
            where p.film_second_credits > 0 and with_credits
         )
   where f.film_id = of_film;
  prices := vidgen.render_prices(of_film);
  if prices <> '{}' and not vidgen.hold_credits(of_film, owner, prices) then
    perform vidgen.refuse_film(
      'INSUFFICIENT_CREDITS', null,
      'There are not enough credits for all scenes and outputs of this film, so none was begun. '
      'Add credits, then retry.'
    );
  end if;
end
$$;

-- Make every part of a cut be completed, or unfinished with its credits held; else raises VG007 or PT429.
-- Parts that are there already are locked by id before one of them changes: the end of one of them is
-- seen here, or meets the row that names this film.
create function vidgen.order_wanted(
  of_film uuid, owner uuid, cut jsonb, of_priority smallint, with_credits boolean
) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  most constant integer := case when cut ? 'outputs' then 50 else 500 end;
  places smallint[];
  scenes uuid[];
  tasks uuid[];
  wrong record;
  retried integer;
  made uuid[];
begin
  select coalesce(array_agg(w.place), '{}'), array_agg(w.of_scene), array_agg(w.of_task)
    into places, scenes, tasks
    from vidgen.wanted_parts(of_film, owner, cut) as w;
  if cardinality(places) = 0 then
    perform vidgen.refuse_film(
      'INVALID_REQUEST', '/scenario',
      format('/scenario: there is no scene of yours in scenario %s', cut ->> 'scenario')
    );
  elsif cardinality(places) > most then
    perform vidgen.refuse_film(
      'INVALID_REQUEST', '/scenario',
      format('/scenario: it has more than %s scenes, the most of a film', most)
    );
  end if;
  perform from public.video_generation_tasks as t
    where t.id = any (tasks) and t.user_id = owner order by t.id for no key update;
  -- A part that is being cancelled ends soon, and is retried then: the order comes again.
  if exists (
    select from public.video_generation_tasks as t
     where t.id = any (tasks) and t.user_id = owner and t.cancel_requested_at is not null
       and t.status in ('pending', 'processing')
  ) then
    raise lock_not_available using message = 'a part of this film is being cancelled';
  end if;

  select format('/parts/%s/%s', w.place - 1, case when w.scene is null then 'task' else 'scene' end) as field,
         case when w.scene is null then 'task' else 'scene' end as kind, coalesce(w.scene, w.task) as id
    into wrong
    from unnest(places, scenes, tasks) as w (place, scene, task)
   where case
           when w.task is not null then not exists (
             select from public.video_generation_tasks as t
              where t.id = w.task and t.user_id = owner and t.cut is null
           )
           else not exists (
             select from public.video_scenes as s where s.id = w.scene and s.user_id = owner
           )
         end
   order by w.place
   limit 1;
  if found then
    perform vidgen.refuse_film(
      'INVALID_REQUEST', wrong.field,
      format('%s: there is no %s %s of yours', wrong.field, wrong.kind, wrong.id)
    );
  end if;

  retried := vidgen.retry_parts(tasks, coalesce(cut ->> 'on_failure' = 'skip', false));
  delete from vidgen.parts as p where p.film_id = of_film;
  with ordered as (
    insert into public.video_generation_tasks (user_id, scene_id, priority, film_id, created_at)
    -- In the order of the film, which its owner's line keeps.
    select owner, w.scene, of_priority, of_film, now() + min(w.place) * interval '1 microsecond'
      from unnest(places, scenes, tasks) as w (place, scene, task)
     where w.task is null
     group by w.scene
    returning id, scene_id
  ),
  named as (
    insert into vidgen.parts (film_id, position, task_id)
    select of_film, w.place, coalesce(w.task, ordered.id)
      from unnest(places, scenes, tasks) as w (place, scene, task)
      left join ordered on w.task is null and ordered.scene_id = w.scene
  )
  select coalesce(array_agg(ordered.scene_id), '{}') into made from ordered;
  if retried + cardinality(made) > 0 then
    -- As limit_inserts and retry_task, whoever inserted the film.
    perform vidgen.count_user(owner, cardinality(made), retried);
    perform vidgen.check_limits(owner);
    perform vidgen.check_scenes(made);
  end if;
  if with_credits then
    perform vidgen.hold_parts(of_film, owner);
  end if;
  insert into vidgen.films (film_id) values (of_film);
  if cut ? 'outputs' then
    perform vidgen.order_outputs(of_film, owner, cut, with_credits);
  end if;
end
$$;

-- Order the parts of a film that is at work: all of them, or nothing. No row: this worker does not hold that
-- attempt. `refused`: why nothing was ordered, as an error code ('CANCELLED': its owner asked to cancel);
-- null: they are ordered, now or before. The owner's lock comes first, as in his own calls; he may hold it for
-- as long as he likes, so the wait is short, and whoever asks comes again.
create function vidgen.order_parts(
  of_film uuid, of_attempt integer, of_worker uuid, with_credits boolean
) returns table (refused text, said text, field text)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
-- Each row is found by its id, also by a plan that was made while the table was empty, and is kept.
set enable_seqscan = off
as $$
#variable_conflict use_variable
declare
  owner uuid;
  film record;
  hint text;
begin
  select t.user_id into owner
    from public.video_generation_tasks as t
   where t.id = of_film and t.attempt = of_attempt and t.worker_id = of_worker
     and t.status = 'processing' and t.cut is not null;
  if owner is null then
    return;
  end if;
  perform vidgen.take_user_lock(owner);
  select t.cut, t.priority, t.cancel_requested_at into film
    from public.video_generation_tasks as t
   where t.id = of_film and t.attempt = of_attempt and t.worker_id = of_worker
     and t.status = 'processing' and t.cut is not null
     for no key update;
  if not found then
    return;
  end if;
  if film.cancel_requested_at is not null then
    refused := 'CANCELLED';
  elsif not exists (select from vidgen.films as f where f.film_id = of_film) then
    begin
      perform vidgen.order_wanted(of_film, owner, film.cut, film.priority, with_credits);
    exception
      when sqlstate 'VG007' or sqlstate 'PT429' then
        get stacked diagnostics
          refused = pg_exception_detail, said = message_text, field = column_name,
          hint = pg_exception_hint;
        said := concat_ws('. ', said, nullif(hint, ''));
        -- An application's own quota, which raises PT429 as ours does.
        refused := coalesce(nullif(refused, ''), 'USER_LIMIT');
    end;
  end if;
  return next;
end
$$;

-- Scenes, where the table is ours; an application's own is its own affair.
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
         )
      or exists (
           select
             from public.video_renditions as r
            where r.path = is_paid.of_path and r.bucket = is_paid.of_bucket
              and r.user_id = (select vidgen.signed_in_user())
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
  vidgen.check_limits(uuid), vidgen.check_scenes(uuid[]), vidgen.limit_inserts(), vidgen.begin_to_count(), vidgen.count_row(),
  vidgen.limit_scenes(), vidgen.is_paid(text, text), vidgen.is_unpaid(text, text),
  vidgen.cancel_locked(uuid), vidgen.retry_locked(uuid), vidgen.scenes_of(uuid, text),
  vidgen.wanted_parts(uuid, uuid, jsonb), vidgen.refuse_film(text, text, text),
  vidgen.retry_parts(uuid[], boolean), vidgen.hold_parts(uuid, uuid), vidgen.wanted_outputs(jsonb),
  vidgen.ordered_seconds(uuid, uuid, uuid), vidgen.seconds_of_parts(uuid),
  vidgen.order_outputs(uuid, uuid, jsonb, boolean),
  vidgen.order_wanted(uuid, uuid, jsonb, smallint, boolean),
  vidgen.order_parts(uuid, integer, uuid, boolean)
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
  public.retry_video_generation_task(uuid), vidgen.order_parts(uuid, integer, uuid, boolean),
  vidgen.seconds_of_parts(uuid)
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
    -- What the owners of films bring (music, voices, logos, end cards): each in a folder of his own.
    create policy "owners keep the assets of their films" on storage.objects
      for all to authenticated
      using (
        bucket_id = 'film-assets'
        and split_part(name, '/', 1) = (select vidgen.signed_in_user())::text
      )
      with check (
        bucket_id = 'film-assets'
        and split_part(name, '/', 1) = (select vidgen.signed_in_user())::text
      );
    -- An application's policy may let users read or write all buckets.
    create policy "nobody else touches the assets of a film" on storage.objects
      as restrictive for all to public
      using (
        bucket_id <> 'film-assets'
        or split_part(name, '/', 1) = (select vidgen.signed_in_user())::text
      )
      with check (
        bucket_id <> 'film-assets'
        or split_part(name, '/', 1) = (select vidgen.signed_in_user())::text
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
    alter publication supabase_realtime add table public.video_renditions;
  end if;
end
$$;

update vidgen.settings set schema_version = '20261130100700', oldest_program = '20261130100700';
