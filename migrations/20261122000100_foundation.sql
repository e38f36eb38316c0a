-- The ground: a private schema, the daemon's role, one row of settings, the application's scenes.
--
-- Written for a `postgres` role that is not a superuser (hosted Supabase), PostgreSQL 15 and later.
-- Nothing of an existing application is changed; what can't be adopted stops the migration here.

do $$
declare
  taken text;
begin
  select string_agg(format('public.%s', name), ', ')
    into taken
    from unnest(array[
           'video_generation_tasks', 'video_generation_gates',
           'credit_prices', 'user_credits', 'credit_entries'
         ]) as name
   where to_regclass(format('public.%I', name)) is not null;
  if taken is not null then
    raise exception 'vidgen-worker needs the table name(s) %, which this database already uses.', taken
      using hint = 'Rename yours (alter table … rename to …), run the migration again, '
                   'then copy what you want to keep. Nothing was changed.';
  end if;
end
$$;

create schema vidgen;

comment on schema vidgen is
  'Private to vidgen-worker: leases, checkpoints, submissions, gates. Not exposed, no rights for clients.';

revoke all on schema vidgen from public;

-- Roles belong to the cluster: another database of it may have made this one already.
do $$
begin
  create role vidgen_worker nologin;
exception
  when duplicate_object then
    raise notice 'role vidgen_worker exists already';
end
$$;

grant usage on schema vidgen to vidgen_worker;

-- At its start the worker looks whether all migrations are there.
do $$
begin
  if to_regclass('supabase_migrations.schema_migrations') is not null then
    grant usage on schema supabase_migrations to vidgen_worker;
    grant select on supabase_migrations.schema_migrations to vidgen_worker;
  end if;
end
$$;

create table vidgen.settings (
  only_row boolean primary key default true,
  images_bucket text not null default 'generated-content',
  videos_bucket text not null default 'video-files',
  max_unfinished_per_user integer not null default 1000,
  max_unbilled_cost_per_user numeric not null default 1000,
  max_retries smallint not null default 3,
  constraint there_is_one_row check (only_row),
  constraint limits_are_positive check (
    max_unfinished_per_user > 0 and max_unbilled_cost_per_user > 0 and max_retries >= 0
  )
);

comment on column vidgen.settings.max_unbilled_cost_per_user is
  'Provider credits that one user may cause in a rolling day for stages that were never charged.';

insert into vidgen.settings default values;

grant select on vidgen.settings to vidgen_worker;
grant update (images_bucket, videos_bucket) on vidgen.settings to vidgen_worker;

-- The application's own tables, made only where they are absent.

do $$
begin
  if to_regclass('public.video_scenarios') is null then
    create table public.video_scenarios (
      id uuid primary key default gen_random_uuid(),
      resolution text not null,
      created_at timestamp default now()
    );
    alter table public.video_scenarios enable row level security;
    revoke all on public.video_scenarios from public, anon, authenticated, service_role;
    create policy "signed-in users read scenarios" on public.video_scenarios
      for select to authenticated using (true);
    grant select on public.video_scenarios to authenticated;
    grant select, insert, update, delete on public.video_scenarios to service_role;
  end if;

  if to_regclass('public.video_scenes') is null then
    create table public.video_scenes (
      id uuid primary key default gen_random_uuid(),
      user_id uuid not null,
      scenario_id uuid not null,
      image_prompt text,
      visual_prompt text,
      product_reference_image_url text,
      duration integer default 5,
      image_url text,
      generated_video_url text,
      status text default 'pending',
      created_at timestamp default now(),
      updated_at timestamp default now()
    );
    alter table public.video_scenes enable row level security;
    revoke all on public.video_scenes from public, anon, authenticated, service_role;
    create index video_scenes_by_user on public.video_scenes (user_id, created_at);
    create policy "owners read their scenes" on public.video_scenes
      for select to authenticated using ((select auth.uid()) = user_id);
    create policy "owners add scenes" on public.video_scenes
      for insert to authenticated with check ((select auth.uid()) = user_id);
    create policy "owners change their scenes" on public.video_scenes
      for update to authenticated
      using ((select auth.uid()) = user_id) with check ((select auth.uid()) = user_id);
    create policy "owners delete their scenes" on public.video_scenes
      for delete to authenticated using ((select auth.uid()) = user_id);
    grant select, delete on public.video_scenes to authenticated;
    grant insert (
      id, user_id, scenario_id, image_prompt, visual_prompt, product_reference_image_url, duration
    ) on public.video_scenes to authenticated;
    grant update (
      scenario_id, image_prompt, visual_prompt, product_reference_image_url, duration, updated_at
    ) on public.video_scenes to authenticated;
    grant select, insert, update, delete on public.video_scenes to service_role;
  end if;
end
$$;

-- Existing scenes need an id to point at and an owner to compare; the rest is read leniently.
do $$
begin
  if not exists (
    select
      from pg_catalog.pg_index as i
      join pg_catalog.pg_attribute as a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
     where i.indrelid = 'public.video_scenes'::regclass
       and i.indisunique and i.indnkeyatts = 1 and i.indpred is null
       and a.attname = 'id' and a.atttypid = 'uuid'::regtype
  ) or not exists (
    select
      from pg_catalog.pg_attribute
     where attrelid = 'public.video_scenes'::regclass
       and attname = 'user_id' and atttypid = 'uuid'::regtype and not attisdropped
  ) then
    raise exception 'public.video_scenes has no unique "id uuid" or no "user_id uuid" column.'
      using hint = 'Add them (alter table public.video_scenes add …), then run the migration again. '
                   'Nothing was changed.';
  end if;
end
$$;

-- Scenes are read and written through these, as their owner: an application's own row level
-- security can't hide a scene from the worker, and vidgen_worker needs no right on the tables.

create function vidgen.read_scene(scene_id uuid, user_id uuid) returns jsonb
language plpgsql stable security definer set search_path = ''
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
  return jsonb_build_object(
    'id', scene -> 'id',
    'image_prompt', scene -> 'image_prompt',
    'visual_prompt', scene -> 'visual_prompt',
    'product_reference_image_url', scene -> 'product_reference_image_url',
    'duration', scene -> 'duration',
    'resolution', scenario -> 'resolution'
  );
end
$$;

-- A function body is one savepoint when it has an exception block: an application's own CHECK,
-- trigger or missing column can refuse this write without undoing the statement around it.
create function vidgen.write_scene(
  scene_id uuid, user_id uuid, status text, image_url text, video_url text
) returns text
language plpgsql security definer set search_path = ''
as $$
begin
  update public.video_scenes as s
     set status = coalesce(write_scene.status, s.status),
         image_url = coalesce(write_scene.image_url, s.image_url),
         generated_video_url = coalesce(write_scene.video_url, s.generated_video_url),
         updated_at = now()
   where s.id = write_scene.scene_id and s.user_id = write_scene.user_id;
  return null;
exception
  when others then
    -- The caller logs it; the paid task goes on.
    return format('%s %s', sqlstate, sqlerrm);
end
$$;

create function vidgen.owns_scene(scene_id uuid) returns boolean
language sql stable security definer set search_path = ''
as $$
  select exists (
    select from public.video_scenes as s
     where s.id = owns_scene.scene_id and s.user_id = (select auth.uid())
  );
$$;

create function vidgen.images_bucket() returns text
language sql stable security definer set search_path = ''
as $$ select s.images_bucket from vidgen.settings as s; $$;

create function vidgen.videos_bucket() returns text
language sql stable security definer set search_path = ''
as $$ select s.videos_bucket from vidgen.settings as s; $$;

revoke all on function vidgen.read_scene(uuid, uuid) from public, anon, authenticated, service_role;
revoke all on function vidgen.write_scene(uuid, uuid, text, text, text)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.owns_scene(uuid) from public, anon, authenticated, service_role;
revoke all on function vidgen.images_bucket() from public, anon, authenticated, service_role;
revoke all on function vidgen.videos_bucket() from public, anon, authenticated, service_role;
grant execute on function vidgen.read_scene(uuid, uuid) to vidgen_worker;
grant execute on function vidgen.write_scene(uuid, uuid, text, text, text) to vidgen_worker;
grant execute on function vidgen.owns_scene(uuid) to authenticated;
grant execute on function vidgen.videos_bucket() to authenticated;
