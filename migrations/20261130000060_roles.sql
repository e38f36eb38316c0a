-- Who asks is told by the role and never by a claim alone; the worker's role does what its statements
-- do and no more; an application's rows are read column by column, whatever their size.

alter table vidgen.settings alter column schema_version set default '20261130000060';
update vidgen.settings set schema_version = '20261130000060';

-- Who asks. The one place that decides it.
--
-- PostgREST logs in as `authenticator`, sets the role of the token by SET LOCAL ROLE and its claims in
-- `request.jwt.claims`. Whoever has SQL may set claims of any content; what he can't do is to log in
-- as another role, or to take a role that his login is no member of. Inside a definer function
-- current_user is its owner, but `role` and session_user still say who asks.

-- Whether the caller acts for every user: service_role, the worker, the owner of the tables. Of a
-- request through PostgREST, role and claim say the same, or it is none.
create function vidgen.acts_for_all() returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select (session_user <> 'authenticator' or coalesce(auth.role() = asks.name, false))
     and (
       pg_has_role(asks.name, 'service_role', 'usage')
       or pg_has_role(asks.name, 'vidgen_worker', 'usage')
       or pg_has_role(asks.name, t.relowner, 'usage')
     )
    from (
           select coalesce(nullif(current_setting('role', true), 'none'), session_user)::name as name
         ) as asks,
         pg_class as t
   where t.oid = 'public.video_generation_tasks'::regclass
$$;

-- The signed-in user; null: nobody. Claims are believed of a login that may itself become
-- service_role: PostgREST's, Storage's, Realtime's, an operator's. What these set by hand gives them
-- nothing that they don't have; any other login has a role, and no user.
create function vidgen.signed_in_user() returns uuid
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select case
           when session_user = 'authenticator' or pg_has_role(session_user, 'service_role', 'member')
           then auth.uid()
         end
$$;

revoke all on function vidgen.acts_for_all() from public, anon, authenticated, service_role;
revoke all on function vidgen.signed_in_user() from public, anon, authenticated, service_role;
-- Policies ask it.
grant execute on function vidgen.signed_in_user() to authenticated;

create or replace function vidgen.may_act_on(owner uuid) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select vidgen.acts_for_all() or coalesce(vidgen.signed_in_user() = may_act_on.owner, false)
$$;

create or replace function vidgen.owns_scene(scene_id uuid) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from public.video_scenes as s
     where s.id = owns_scene.scene_id and s.user_id = (select vidgen.signed_in_user())
  )
$$;

-- Our policies ask the same. Those that an application has changed stay as they are.
do $$
declare
  ours record;
begin
  for ours in
    select p.policyname, p.tablename, p.qual, p.with_check
      from pg_catalog.pg_policies as p
     where p.schemaname = 'public'
       and p.tablename in ('video_generation_tasks', 'user_credits', 'credit_entries', 'video_scenes')
       and p.policyname in (
         'owners see their tasks', 'owners order videos of their scenes',
         'owners see their balance', 'owners see their entries', 'owners read their scenes',
         'owners add scenes', 'owners change their scenes', 'owners delete their scenes'
       )
  loop
    execute format('alter policy %I on public.%I', ours.policyname, ours.tablename)
      || coalesce(' using (' || replace(ours.qual, 'auth.uid()', 'vidgen.signed_in_user()') || ')', '')
      || coalesce(
           ' with check (' || replace(ours.with_check, 'auth.uid()', 'vidgen.signed_in_user()') || ')',
           ''
         );
  end loop;
end
$$;

-- Cancel and retry: whom the limits bind is asked of the role, too.
do $$
declare
  ours record;
begin
  for ours in
    select pg_get_functiondef(p.oid) as definition
      from pg_catalog.pg_proc as p
     where p.oid in ('vidgen.cancel_task(uuid)'::regprocedure, 'vidgen.retry_task(uuid)'::regprocedure)
       and position('auth.role() <> ''service_role''' in p.prosrc) > 0
  loop
    execute replace(
      ours.definition, 'auth.role() <> ''service_role''', 'not vidgen.acts_for_all()'
    );
  end loop;
end
$$;

-- Tasks that ended begin again when retry_video_generation_task says so, which counts how often, or
-- an operator: the worker's role can't have them done, and charged, once more.
create function vidgen.retry_is_asked_for() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if pg_has_role(current_user, 'vidgen_worker', 'usage')
     and not pg_has_role(current_user, 'service_role', 'usage')
     and not pg_has_role(
       current_user, (select c.relowner from pg_class as c where c.oid = tg_relid), 'usage'
     ) then
    raise exception 'task %: it has ended (%), and a worker does not begin it again', old.id, old.status
      using errcode = 'insufficient_privilege',
            hint = 'Try again with retry_video_generation_task(id).';
  end if;
  return new;
end
$$;

create trigger retry_is_asked_for
  before update on public.video_generation_tasks
  for each row
  when (old.status in ('failed', 'cancelled') and new.status = 'pending')
  execute function vidgen.retry_is_asked_for();

revoke all on function vidgen.retry_is_asked_for() from public, anon, authenticated, service_role;

-- Buckets. The storage policy goes by them, so only an operator changes them: a worker's role could
-- show every file of the project. Its grant stays for workers of the version before, whose statement
-- asks for the right also where there is nothing to change; the next release takes it back.

create function vidgen.is_operator() returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select pg_has_role(current_user, c.relowner, 'usage')
    from pg_class as c
   where c.oid = 'vidgen.settings'::regclass
$$;

create function vidgen.settings_change() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not vidgen.is_operator() then
    raise exception 'role % may not change the settings of vidgen-worker', current_user
      using errcode = 'insufficient_privilege',
            hint = 'The buckets are set by `vidgen-worker migrate`, with STORAGE_BUCKET_IMAGES and '
                   'STORAGE_BUCKET_VIDEOS as the workers have them.';
  end if;
  return new;
end
$$;

create trigger settings_change
  before update on vidgen.settings
  for each row
  when (old is distinct from new)
  execute function vidgen.settings_change();

-- Whether the buckets are these; an operator's role makes them so.
create function vidgen.share_buckets(images text, videos text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if exists (
    select from vidgen.settings as s where s.images_bucket = images and s.videos_bucket = videos
  ) then
    return true;
  end if;
  if not vidgen.is_operator() then
    return false;
  end if;
  update vidgen.settings as s set images_bucket = images, videos_bucket = videos;
  return true;
end
$$;

revoke all on function vidgen.is_operator() from public, anon, authenticated, service_role;
revoke all on function vidgen.settings_change() from public, anon, authenticated, service_role;
revoke all on function vidgen.share_buckets(text, text) from public, anon, authenticated, service_role;
grant execute on function vidgen.is_operator() to vidgen_worker;
grant execute on function vidgen.share_buckets(text, text) to vidgen_worker;

-- Credits. Whoever has the worker's role can call what moves them, so each of these looks at the task
-- itself. An application that has replaced the three begins its own with the same checks.

-- Which charges were taken from a hold: each once. Those that are there were.
alter table vidgen.charges add column settled_at timestamptz default now();
-- It was for the rows that are there; a new one is not settled yet.
-- squawk-ignore ban-drop-default
alter table vidgen.charges alter column settled_at drop default;

comment on column vidgen.charges.settled_at is
  'When vidgen.settle_credits took it from the hold; an application''s own leaves it null.';

-- Raises unless a worker is at work on this task of this user.
create function vidgen.check_running(of_task uuid, of_user uuid) returns void
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not exists (
    select from public.video_generation_tasks as t
     where t.id = of_task and t.user_id = of_user and t.status = 'processing'
  ) then
    raise exception 'task %: no worker is at work on it for user %, so no credits move for it',
      of_task, of_user
      using errcode = 'VG001';
  end if;
end
$$;

-- What a hold may be for: a running task, at the listed prices, and nothing for a stage that is stored.
create function vidgen.check_hold(of_task uuid, of_user uuid, image integer, video integer)
returns void
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  wrong text;
begin
  perform vidgen.check_running(of_task, of_user);
  select asked.stage into wrong
    from (
      values ('image', 'generate_image', image), ('video', 'generate_scene', video)
    ) as asked (stage, action, price)
    left join public.credit_prices as p on p.action = asked.action
   where asked.price is distinct from p.credits
     and not (
       asked.price = 0
       and exists (
         select from vidgen.checkpoints as c
          where c.task_id = of_task and c.stage = asked.stage and c.state = 'done'
       )
     )
   limit 1;
  if wrong is not null then
    raise exception 'task %: % and % credits are not what its image and video cost now',
      of_task, image, video
      using errcode = 'VG002', hint = 'See public.credit_prices.';
  end if;
end
$$;

-- Take the charge of a stage, once: it was written for this user's running task, and not settled yet.
create function vidgen.take_charge(of_task uuid, of_stage text, of_user uuid) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform vidgen.check_running(of_task, of_user);
  update vidgen.charges as c
     set settled_at = clock_timestamp()
   where c.task_id = of_task and c.stage = of_stage and c.user_id = of_user and c.settled_at is null;
  if not found then
    raise exception 'task %: its % is not charged, or was settled before', of_task, of_stage
      using errcode = 'VG004';
  end if;
end
$$;

-- What is held for a task goes back when it has ended, and not before.
create function vidgen.check_release(of_task uuid) returns void
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if exists (
    select from public.video_generation_tasks as t
     where t.id = of_task and t.status in ('pending', 'processing')
  ) then
    raise exception 'task %: it has not ended, so what is held for it is not released', of_task
      using errcode = 'VG005', hint = 'Cancel it with cancel_video_generation_task(id).';
  end if;
end
$$;

-- A charge is for a stage that was generated, of a running task of this user: whatever an application
-- replaces, this is looked at when the charge is written.
create function vidgen.charge_is_due() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform vidgen.check_running(new.task_id, new.user_id);
  if not exists (
    select from vidgen.checkpoints as c
     where c.task_id = new.task_id and c.stage = new.stage and c.generation_id is not null
  ) then
    raise exception 'task %: nothing was generated for its %, so it is not charged',
      new.task_id, new.stage
      using errcode = 'VG003';
  end if;
  return new;
end
$$;

create trigger charge_is_due
  before insert on vidgen.charges
  for each row execute function vidgen.charge_is_due();

-- A submission is of a running task of this user, whoever records it with the worker's role: what it
-- costs counts against the user's limit.
create function vidgen.submission_is_due() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not vidgen.is_operator() then
    perform vidgen.check_running(new.task_id, new.user_id);
  end if;
  return new;
end
$$;

create trigger submission_is_due
  before insert on vidgen.submissions
  for each row execute function vidgen.submission_is_due();

revoke all on function vidgen.submission_is_due() from public, anon, authenticated, service_role;
revoke all on function vidgen.check_running(uuid, uuid)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.check_hold(uuid, uuid, integer, integer)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.take_charge(uuid, text, uuid)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.check_release(uuid) from public, anon, authenticated, service_role;
revoke all on function vidgen.charge_is_due() from public, anon, authenticated, service_role;
-- The trigger asks as whoever writes the charge.
grant execute on function vidgen.check_running(uuid, uuid) to vidgen_worker;

-- Replaced only where they are still ours: an application's own stay whose they are.
do $migration$
declare
  ours text;
begin
  select md5(p.prosrc) into ours
    from pg_catalog.pg_proc as p
   where p.oid = 'vidgen.hold_credits(uuid, uuid, integer, integer)'::regprocedure;
  if ours = '92b88cba9f35c9bcc022f4406ed51a6a' then
    create or replace function vidgen.hold_credits(
      task_id uuid, user_id uuid, image integer, video integer
    )
    returns boolean
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    #variable_conflict use_variable
    begin
      -- Idempotent: an open hold stands, with the prices it was opened with.
      perform from vidgen.holds as h
        where h.task_id = hold_credits.task_id and h.closed_at is null;
      if found then
        return true;
      end if;
      perform vidgen.check_hold(hold_credits.task_id, hold_credits.user_id, image, video);
      if image + video > 0 then
        update public.user_credits as u
           set held = u.held + image + video, updated_at = now()
         where u.user_id = hold_credits.user_id and u.balance - u.held >= image + video;
        if not found then
          return false;
        end if;
      end if;
      insert into vidgen.holds (task_id, user_id, image_price, video_price, amount)
      values (hold_credits.task_id, hold_credits.user_id, image, video, image + video);
      return true;
    end
    $$;
  end if;

  select md5(p.prosrc) into ours
    from pg_catalog.pg_proc as p
   where p.oid = 'vidgen.settle_credits(uuid, text)'::regprocedure;
  if ours = '407341f89a6d8e79e6b7bc54a4ac3a19' then
    create or replace function vidgen.settle_credits(task_id uuid, stage text) returns void
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    #variable_conflict use_variable
    declare
      hold vidgen.holds;
      price integer;
      covered boolean := false;
    begin
      select h.* into hold
        from vidgen.holds as h
       where h.task_id = settle_credits.task_id and h.closed_at is null
         for update;
      if not found then
        raise exception 'task %: no open hold to settle its % from',
          settle_credits.task_id, settle_credits.stage
          using errcode = 'VG003';
      end if;
      perform vidgen.take_charge(settle_credits.task_id, settle_credits.stage, hold.user_id);
      price := case settle_credits.stage when 'image' then hold.image_price else hold.video_price end;
      -- The balance before the hold and the ledger: what is gone is restored from both.
      if price > 0 then
        update public.user_credits as u
           set balance = u.balance - price, held = u.held - price, updated_at = now()
         where u.user_id = hold.user_id and u.held >= price;
        covered := found;
      end if;
      update vidgen.holds as h set amount = h.amount - price where h.id = hold.id;
      insert into public.credit_entries (user_id, kind, amount, task_id, stage)
      values (hold.user_id, 'charge', -price, settle_credits.task_id, settle_credits.stage);
      if price > 0 and not covered then
        perform vidgen.try_to_restore_credits(hold.user_id);
      end if;
    end
    $$;
  end if;

  select md5(p.prosrc) into ours
    from pg_catalog.pg_proc as p
   where p.oid = 'vidgen.release_credits(uuid)'::regprocedure;
  if ours = '53aed2b7b32007de07e230f7bbe5d701' then
    create or replace function vidgen.release_credits(task_id uuid) returns void
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    #variable_conflict use_variable
    declare
      hold vidgen.holds;
      covered boolean := true;
    begin
      perform vidgen.check_release(release_credits.task_id);
      select h.* into hold
        from vidgen.holds as h
       where h.task_id = release_credits.task_id and h.closed_at is null
         for update;
      if not found then
        return;
      end if;
      if hold.amount > 0 then
        update public.user_credits as u
           set held = u.held - hold.amount, updated_at = now()
         where u.user_id = hold.user_id and u.held >= hold.amount;
        covered := found;
      end if;
      update vidgen.holds as h set amount = 0, closed_at = now() where h.id = hold.id;
      if not covered then
        perform vidgen.try_to_restore_credits(hold.user_id);
      end if;
    end
    $$;
  end if;
end
$migration$;

-- Scenes, column by column. Three texts of 40 MB cost a backend 1.4 GB when the row was made JSON of
-- before it was cut. The size of a text is known without reading it, so what is larger than 40,000
-- bytes is never read: it is named under `unreadable`, with its size, and so is a column whose reading
-- raises. In its place stands a text that is longer than anything that fits, for a worker of the
-- version before, which refuses it by its length.

-- One column of one row, of whatever type; null where there is no such column or row.
create function vidgen.read_column(
  of_table regclass, column_name name, key_name name, key_type regtype, key text
) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  size text;
  most integer;
  value jsonb;
  bytes integer;
begin
  -- A text's size is that of what it holds; another type's is that of what is stored, which may be
  -- compressed: less of it is read.
  select case
           when t.typlen > 0 then '0'
           when t.typcategory = 'S' then format('octet_length(r.%I)', a.attname)
           else format('pg_column_size(r.%I)', a.attname)
         end,
         case when t.typcategory = 'S' then 40000 else 4000 end
    into size, most
    from pg_attribute as a
    join pg_type as t on t.oid = a.atttypid
   where a.attrelid = of_table and a.attname = column_name and a.attnum > 0 and not a.attisdropped;
  if size is null then
    return null;
  end if;
  execute format(
    'select %1$s, case when %1$s <= %6$s then to_jsonb(r.%2$I) end from %3$s as r'
    ' where r.%4$I::%5$s = $1::%5$s limit 1',
    size, column_name, of_table, key_name, key_type, most
  ) into bytes, value using key;
  if bytes > most then
    return jsonb_build_object('bytes', bytes, 'most', most);
  elsif octet_length(value #>> '{}') > 40000 then
    return jsonb_build_object('bytes', octet_length(value #>> '{}'), 'most', 40000);
  end if;
  return jsonb_build_object('value', value);
exception
  -- Out of memory, too large, a generated column that divides by zero: it is about this row.
  when others or assert_failure then
    return jsonb_build_object('error', format('%s %s', sqlstate, left(sqlerrm, 200)));
end
$$;

create or replace function vidgen.read_scene(scene_id uuid, user_id uuid) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  columns jsonb;
  found_scene jsonb;
  unreadable jsonb;
  scenario_key text;
  key_type regtype;
begin
  if (
    -- The shape that the migrations make, and most applications have: one statement, planned once.
    select bool_and(exists (
             select from pg_attribute as a
              where a.attrelid = shape.of_table and a.attname = shape.name
                and a.atttypid = shape.type and a.attgenerated = '' and not a.attisdropped
           ))
      from (values
             ('public.video_scenes'::regclass, 'image_prompt', 'text'::regtype),
             ('public.video_scenes'::regclass, 'visual_prompt', 'text'::regtype),
             ('public.video_scenes'::regclass, 'product_reference_image_url', 'text'::regtype),
             ('public.video_scenes'::regclass, 'duration', 'integer'::regtype),
             ('public.video_scenes'::regclass, 'scenario_id', 'uuid'::regtype),
             (to_regclass('public.video_scenarios'), 'id', 'uuid'::regtype),
             (to_regclass('public.video_scenarios'), 'resolution', 'text'::regtype)
           ) as shape (of_table, name, type)
  ) then
    select jsonb_build_object(
             'id', s.id, 'image_prompt', s.image_prompt, 'visual_prompt', s.visual_prompt,
             'product_reference_image_url', s.product_reference_image_url,
             'duration', s.duration, 'resolution', c.resolution
           )
      into found_scene
      from public.video_scenes as s
      left join public.video_scenarios as c on c.id = s.scenario_id
     where s.id = read_scene.scene_id and s.user_id = read_scene.user_id
       and coalesce(greatest(
             octet_length(s.image_prompt), octet_length(s.visual_prompt),
             octet_length(s.product_reference_image_url), octet_length(c.resolution)
           ), 0) <= 40000;
    if found then
      return found_scene;
    end if;
  end if;

  perform from public.video_scenes as s
    where s.id = read_scene.scene_id and s.user_id = read_scene.user_id;
  if not found then
    return null;
  end if;
  select jsonb_object_agg(
           f.name,
           vidgen.read_column(
             'public.video_scenes', f.name, 'id', 'uuid', read_scene.scene_id::text
           )
         )
    into columns
    from unnest(array[
           'image_prompt', 'visual_prompt', 'product_reference_image_url', 'duration'
         ]::name[]) as f (name);
  scenario_key := vidgen.read_column(
    'public.video_scenes', 'scenario_id', 'id', 'uuid', read_scene.scene_id::text
  ) ->> 'value';
  -- Two columns of different types are compared as texts.
  select case when k.atttypid = r.atttypid then k.atttypid else 'text'::regtype end
    into key_type
    from pg_attribute as k, pg_attribute as r
   where k.attrelid = to_regclass('public.video_scenarios') and k.attname = 'id'
     and r.attrelid = 'public.video_scenes'::regclass and r.attname = 'scenario_id'
     and not k.attisdropped and not r.attisdropped;
  if scenario_key is not null and key_type is not null then
    columns := columns || jsonb_build_object(
      'resolution',
      vidgen.read_column('public.video_scenarios', 'resolution', 'id', key_type, scenario_key)
    );
  end if;

  select jsonb_object_agg(
           f.name, case when f.found ? 'value' then f.found -> 'value' else to_jsonb(repeat('?', 10000)) end
         ) filter (where f.found <> 'null'),
         jsonb_object_agg(f.name, f.found) filter (where f.found ?| array['bytes', 'error'])
    into found_scene, unreadable
    from jsonb_each(columns) as f (name, found);
  found_scene := '{"image_prompt": null, "visual_prompt": null, "product_reference_image_url": null,
                   "duration": null, "resolution": null}'
                 || coalesce(found_scene, '{}')
                 || jsonb_build_object('id', read_scene.scene_id);
  if unreadable is not null then
    found_scene := found_scene || jsonb_build_object('unreadable', unreadable);
  end if;
  return found_scene;
end
$$;

revoke all on function vidgen.read_column(regclass, name, name, regtype, text)
  from public, anon, authenticated, service_role;

-- What the tables that we made take: texts of up to 40,000 bytes. Not valid: rows that are there stay
-- as they are, until they are changed.
do $$
begin
  -- Ours, or an application's own of the same name?
  if exists (
    select from pg_catalog.pg_policies as p
     where p.schemaname = 'public' and p.tablename = 'video_scenes' and p.policyname = 'owners add scenes'
  ) then
    alter table public.video_scenes
      add constraint texts_are_at_most_40000_bytes check (
        octet_length(image_prompt) <= 40000 and octet_length(visual_prompt) <= 40000
        and octet_length(product_reference_image_url) <= 40000 and octet_length(image_url) <= 40000
        and octet_length(generated_video_url) <= 40000 and octet_length(status) <= 40000
      ) not valid;
  end if;
  if exists (
    select from pg_catalog.pg_policies as p
     where p.schemaname = 'public' and p.tablename = 'video_scenarios'
       and p.policyname = 'signed-in users read scenarios'
  ) then
    alter table public.video_scenarios
      add constraint resolution_is_at_most_40000_bytes
      check (octet_length(resolution) <= 40000) not valid;
  end if;
end
$$;

alter table public.video_generation_tasks
  add constraint texts_are_at_most_40000_bytes check (
    octet_length(current_step) <= 40000 and octet_length(message) <= 40000
    and octet_length(error_code) <= 40000 and octet_length(error_message) <= 40000
    and octet_length(resolution) <= 40000 and octet_length(video_ratio) <= 40000
    and octet_length(image_ratio) <= 40000 and octet_length(image_path) <= 40000
    and octet_length(image_url) <= 40000 and octet_length(video_path) <= 40000
    and octet_length(video_url) <= 40000 and pg_column_size(error) <= 40000
  ) not valid;

alter table public.credit_entries
  add constraint texts_are_at_most_40000_bytes check (
    octet_length(reference) <= 40000 and octet_length(stage) <= 40000
  ) not valid;

-- The worker's role: what its statements write, column by column, and no more. Whose a task is, what
-- it costs and when it was made is in none of them. (tests/statements.py reads the list from the
-- statements of this version and of the one before.)

revoke insert, update, delete on
  public.video_generation_tasks, vidgen.account_readings, vidgen.arrivals, vidgen.budgets,
  vidgen.charges, vidgen.checkpoints, vidgen.duties, vidgen.gates, vidgen.limits, vidgen.refusals,
  vidgen.resumes, vidgen.slots, vidgen.submissions, vidgen.troubles, vidgen.turns, vidgen.workers
  from vidgen_worker;
grant insert (
  credit_balance, key_fingerprint, outlay, provider
) on vidgen.account_readings to vidgen_worker;
grant insert (due_at, user_id) on vidgen.arrivals to vidgen_worker;
grant insert (
  cancel_after, crashes, rejected_inputs, task_id, waiting_since
) on vidgen.budgets to vidgen_worker;
grant insert (stage, task_id, user_id) on vidgen.charges to vidgen_worker;
grant insert (
  inputs, request, stage, state, submission_id, task_id
) on vidgen.checkpoints to vidgen_worker;
grant insert (began_at, name) on vidgen.duties to vidgen_worker;
grant insert (
  details, key_fingerprint, message, model, probe_at, provider, reason, until
) on vidgen.gates to vidgen_worker;
grant insert (
  key_fingerprint, max_generations, model, provider, read_at
) on vidgen.limits to vidgen_worker;
grant insert (error, statement, task_id, until, verdict) on vidgen.refusals to vidgen_worker;
grant insert (class, resume_at, task_id, user_id) on vidgen.resumes to vidgen_worker;
grant insert (
  key_fingerprint, model, provider, submission_id, taken_at, task_id
) on vidgen.slots to vidgen_worker;
grant insert (
  account, attempt, fingerprint, id, key_fingerprint, model, provider, stage, task_id, user_id,
  worker_id
) on vidgen.submissions to vidgen_worker;
grant insert (
  details, message, model, new_users, part, proven_users, provider, reason, remaining, scope,
  tasks
) on vidgen.troubles to vidgen_worker;
grant insert (arrivals, due_at, user_id, waiting_since) on vidgen.turns to vidgen_worker;
grant insert (
  account, concurrency, host, id, key_fingerprint, lease, pid, provider, scopes, version
) on vidgen.workers to vidgen_worker;
grant update (
  attempt, completed_at, current_step, error, error_code, error_message, failures, image_path,
  image_ratio, image_url, message, progress, resolution, run_after, stage_progress, started_at,
  status, video_path, video_ratio, video_url, video_url_expires_at, worker_id
) on public.video_generation_tasks to vidgen_worker;
grant update (due_at) on vidgen.arrivals to vidgen_worker;
grant update (
  cancel_after, crashes, rejected_inputs, waiting_since
) on vidgen.budgets to vidgen_worker;
grant update (
  bucket, generation_id, generation_started_at, media_type, path, request, sha256, size, state,
  submission_id, updated_at, verdict
) on vidgen.checkpoints to vidgen_worker;
grant update (began_at) on vidgen.duties to vidgen_worker;
grant update (details, message, probe_at, probes, trial, until) on vidgen.gates to vidgen_worker;
grant update (asked_at, max_generations, read_at) on vidgen.limits to vidgen_worker;
grant update (error, statement, tries, until, verdict) on vidgen.refusals to vidgen_worker;
grant update (followers, resume_at) on vidgen.resumes to vidgen_worker;
grant update (submission_id, taken_at, task_id) on vidgen.slots to vidgen_worker;
grant update (
  answer, answered_at, cost, cost_read_at, details, ended_at, ended_state, estimated_cost,
  followed_by, generation_id, looked_at
) on vidgen.submissions to vidgen_worker;
grant update (
  details, message, new_users, proven_users, reason, remaining, tasks
) on vidgen.troubles to vidgen_worker;
grant update (arrivals, due_at, waiting_since) on vidgen.turns to vidgen_worker;
grant update (
  dead_at, heartbeat_at, left_at, running, steady_since
) on vidgen.workers to vidgen_worker;
grant delete on vidgen.arrivals to vidgen_worker;
grant delete on vidgen.checkpoints to vidgen_worker;
grant delete on vidgen.gates to vidgen_worker;
grant delete on vidgen.refusals to vidgen_worker;
grant delete on vidgen.resumes to vidgen_worker;
grant delete on vidgen.slots to vidgen_worker;
grant delete on vidgen.troubles to vidgen_worker;
grant delete on vidgen.turns to vidgen_worker;
grant delete on vidgen.workers to vidgen_worker;
