-- The ground: a private schema, the worker's role, one row of settings, the identity of a caller, and
-- the application's scenes.
--
-- Written for a `postgres` role that is not a superuser (hosted Supabase), PostgreSQL 15 and later.
-- An existing application's objects are not changed; an object that can't be adopted stops the migration
-- here.

-- Views, policies and defaults keep the meaning that a name has here. Where users may create functions in
-- schema public, one of theirs could match better than PostgreSQL's own: so each file has an empty search
-- path.
set local search_path = '';

do $$
declare
  taken text;
begin
  select string_agg(format('public.%s', name), ', ')
    into taken
    from unnest(array[
           'video_generation_tasks', 'video_generation_gates', 'video_presets', 'video_renditions',
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

-- Roles belong to the cluster: another database of it may have created this one already.
do $$
begin
  create role vidgen_worker nologin;
exception
  when duplicate_object then
    raise notice 'role vidgen_worker exists already';
end
$$;

grant usage on schema vidgen to vidgen_worker;

-- An application's default privileges (`alter default privileges … grant … to …`) apply to every object
-- that a file creates, in every schema and for any role. Each file calls this before it grants: only the
-- roles named here keep anything. The last file drops it, so that a later migration leaves alone what an
-- operator has granted since then. PUBLIC's EXECUTE on functions is revoked by each file, function by function.
create procedure vidgen.revoke_from_strangers()
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  our_clients constant text[] := array['anon', 'authenticated', 'service_role', 'vidgen_worker'];
  given record;
begin
  for given in
    with ours (kind, name, acl, owner, known) as (
      select 'schema', n.nspname::text, n.nspacl, n.nspowner, array['vidgen_worker']
        from pg_namespace as n
       where n.nspname = 'vidgen'
      union all
      select case c.relkind when 'S' then 'sequence' else 'table' end, c.oid::regclass::text,
             c.relacl, c.relowner,
             case c.relnamespace when 'public'::regnamespace then our_clients
                                 else array['vidgen_worker'] end
        from pg_class as c
       where c.relkind in ('r', 'v', 'S')
         and (
           c.relnamespace = 'vidgen'::regnamespace
           or c.oid = any (array[
             to_regclass('public.video_generation_tasks'),
             to_regclass('public.video_generation_gates'), to_regclass('public.video_presets'),
             to_regclass('public.video_renditions'), to_regclass('public.credit_prices'),
             to_regclass('public.user_credits'), to_regclass('public.credit_entries'),
             to_regclass('public.credit_entries_id_seq'), to_regclass('public.video_webhooks')
           ])
           -- These two only where they are ours, as their policies show.
           or c.oid in (
             select format('%I.%I', p.schemaname, p.tablename)::regclass
               from pg_policies as p
              where p.schemaname = 'public'
                and (p.tablename, p.policyname) in (
                  ('video_scenes', 'owners add scenes'),
                  ('video_scenarios', 'signed-in users read scenarios')
                )
           )
         )
      union all
      select 'routine', p.oid::regprocedure::text, p.proacl, p.proowner, our_clients || 'public'::text
        from pg_proc as p
       where p.pronamespace = 'vidgen'::regnamespace
          or p.oid = any (array[
            to_regprocedure('public.delete_video_scene(uuid)'),
            to_regprocedure('public.cancel_video_generation_task(uuid)'),
            to_regprocedure('public.retry_video_generation_task(uuid)'),
            to_regprocedure('public.grant_video_credits(uuid, integer, text)'),
            to_regprocedure('public.create_video_webhook(text, text[])'),
            to_regprocedure('public.rotate_video_webhook_secret(uuid)'),
            to_regprocedure('public.test_video_webhook(uuid)'),
            to_regprocedure('public.resend_video_deliveries(uuid, timestamptz)'),
            to_regprocedure('public.delete_video_webhook(uuid)')
          ])
    )
    select distinct ours.kind, ours.name, coalesce(quote_ident(r.rolname), 'public') as grantee
      from ours
     cross join aclexplode(ours.acl) as a
      left join pg_roles as r on r.oid = a.grantee
     where a.grantee <> ours.owner and coalesce(r.rolname, 'public') <> all (ours.known)
  loop
    execute format('revoke all on %s %s from %s', given.kind, given.name, given.grantee);
  end loop;
end
$$;

-- The worker checks at its start whether all migrations have been applied.
do $$
begin
  if to_regclass('supabase_migrations.schema_migrations') is not null then
    grant usage on schema supabase_migrations to vidgen_worker;
    -- Without `statements`: an application's own migrations may hold secrets.
    grant select (version) on supabase_migrations.schema_migrations to vidgen_worker;
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
  -- Every later migration that changes something sets `schema_version` to its own version, and
  -- `oldest_program` where an older program would do damage: a program whose newest migration is older
  -- than that refuses to start.
  schema_version text not null,
  oldest_program text not null,
  max_refusals smallint not null default 8,
  refusal_pause interval not null default '5 seconds',
  max_inserts_per_hour integer not null default 2000,
  max_changes_per_hour integer not null default 2000,
  max_tasks_per_scene integer not null default 200,
  max_scenes_per_user integer not null default 10000,
  expected_cost numeric not null default 10,
  rejections_to_slow smallint not null default 3,
  rejections_to_stop smallint not null default 10,
  rejection_pause interval not null default '1 minute',
  rejection_stop interval not null default '1 day',
  rejection_memory interval not null default '1 day',
  auto_cut jsonb,
  user_webhooks boolean not null default false,
  keep_deliveries interval not null default '30 days',
  constraint there_is_one_row check (only_row),
  constraint limits_are_positive check (
    max_unfinished_per_user > 0 and max_unbilled_cost_per_user > 0 and max_retries >= 0
  ),
  constraint refusals_are_bounded check (
    max_refusals > 0 and refusal_pause > interval '0'
  ),
  constraint quotas_are_positive check (
    max_inserts_per_hour > 0 and max_changes_per_hour > 0 and max_tasks_per_scene > 0
    and max_scenes_per_user > 0 and expected_cost >= 0
  ),
  constraint rejections_slow_before_they_stop check (
    rejections_to_slow > 0 and rejections_to_stop > rejections_to_slow
    and rejection_pause >= interval '0' and rejection_stop > interval '0'
    and rejection_memory >= interval '0'
  ),
  -- Its part is the completed task. 32,000 bytes: with that part it is still a cut.
  constraint auto_cut_has_outputs_and_no_parts check (
    case
      when auto_cut is null then true
      when jsonb_typeof(auto_cut) <> 'object' then false
      when jsonb_typeof(auto_cut -> 'outputs') is distinct from 'array' then false
      else jsonb_array_length(auto_cut -> 'outputs') > 0
           and not auto_cut ?| array['parts', 'scenario'] and octet_length(auto_cut::text) <= 32000
    end
  ),
  constraint deliveries_are_kept_for_a_day check (keep_deliveries >= interval '1 day')
);

comment on column vidgen.settings.max_unbilled_cost_per_user is
  'Provider credits that one user may cause in a rolling day for stages that were never charged.';
comment on column vidgen.settings.max_refusals is
  'After this many refused changes a task ends as ROW_REFUSED, if its row accepts the end.';
comment on column vidgen.settings.refusal_pause is
  'The first pause of a task whose row refused a change; it doubles, up to 10 minutes.';
comment on column vidgen.settings.max_inserts_per_hour is
  'Tasks that one signed-in user may insert within an hour.';
comment on column vidgen.settings.max_changes_per_hour is
  'Cancels and retries of one signed-in user within an hour.';
comment on column vidgen.settings.max_tasks_per_scene is
  'Tasks of one scene, ended ones too: a deletion of the scene changes each of their rows.';
comment on column vidgen.settings.max_scenes_per_user is
  'Scenes of one signed-in user, where our migrations created the table video_scenes.';
comment on column vidgen.settings.expected_cost is
  'The assumed cost of a generation, in provider credits, until the cost of its model is known.';
comment on column vidgen.settings.rejections_to_slow is
  'After this many rejections by content rules in a row a user''s submissions get growing pauses.';
comment on column vidgen.settings.rejections_to_stop is
  'After this many rejections in a row they stop, for rejection_stop or until an operator lifts the limit.';
comment on column vidgen.settings.rejection_memory is
  'The time for which an input that content rules rejected is not sent again for the same user.';
comment on column vidgen.settings.auto_cut is
  'A cut without parts: a film with these outputs is ordered of each completed clip, for its owner. Null: none is.';
comment on column vidgen.settings.user_webhooks is
  'Whether signed-in users may have webhooks of their own, for their own tasks.';
comment on column vidgen.settings.keep_deliveries is
  'The time for which a delivery that has ended can be sent again.';

insert into vidgen.settings (schema_version, oldest_program) values ('20261130100100', '20261130100100');

-- The paid steps. A stage is a row here and a declaration in vidgen_worker/pipeline/stages/.
-- A foreign key to this table locks a stage's row FOR KEY SHARE at each INSERT. Eight connections that
-- only insert were no slower by it than by a CHECK of the names; it took about one multixact per insert.
create table vidgen.stages (
  name text primary key,
  place smallint not null,
  action text not null,
  reserved boolean not null default false,
  bucket text,
  constraint a_place_has_one_stage unique (place),
  constraint an_action_is_the_price_of_one_stage unique (action),
  -- A lane is a pair of models, and the claim knows only the stages of these two.
  constraint the_claim_reserves_for_image_and_video check (not reserved or name in ('image', 'video'))
);

comment on column vidgen.stages.place is 'A task walks the stages in this order.';
comment on column vidgen.stages.action is 'The action of credit_prices with the price of the stage.';
comment on column vidgen.stages.reserved is
  'The claim reserves a slot for the stage; for another stage a task takes a free slot by itself.';
comment on column vidgen.stages.bucket is
  'The bucket of its outputs; null: one of the two buckets of vidgen.settings.';

insert into vidgen.stages (name, place, action, reserved) values
  ('image', 1, 'generate_image', true),
  ('video', 2, 'generate_scene', true);

-- Duties of the fleet: work that one worker does for all, at intervals. An advisory lock would not do: any
-- role may take it.
create table vidgen.duties (
  name text primary key,
  began_at timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.duties is 'The last begin of each duty that one worker does for the fleet.';

-- Wake the listeners. This is only a hint: a listener that misses it finds the row at its next poll. The
-- cluster has one queue of notifications, and a session that listens in an open transaction keeps it from
-- being emptied: when it is full, every COMMIT with a NOTIFY fails, of clients too.
create function vidgen.wake(channel text, payload text) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if pg_notification_queue_usage() < 0.5 then
    perform pg_notify(channel, payload);
  end if;
end
$$;

-- The identity of a caller is decided only here.
--
-- PostgREST logs in as `authenticator`, sets the role of the token by SET LOCAL ROLE and its claims in
-- `request.jwt.claims`. A caller with SQL may set claims of any content, but can't log in as
-- another role, or take a role of which the login is not a member. Inside a definer function
-- current_user is its owner, but `role` and session_user still name the caller.

-- Whether the caller acts for every user: service_role, the worker, the owner of the tables. In a request
-- through PostgREST role and claim must agree.
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
   where t.oid = 'vidgen.settings'::regclass
$$;

-- The signed-in user, or null. Claims are trusted from a login that may itself become service_role: that of
-- PostgREST, Storage, Realtime or an operator. Claims that these set by hand give them no right that they
-- lack; any other login has a role, but no user.
create function vidgen.signed_in_user() returns uuid
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select case
           when session_user = 'authenticator' or pg_has_role(session_user, 'service_role', 'member')
           then auth.uid()
         end
$$;

-- The application's own tables, created only where they are absent.
do $$
begin
  if to_regclass('public.video_scenarios') is null then
    create table public.video_scenarios (
      id uuid primary key default gen_random_uuid(),
      resolution text not null,
      created_at timestamp default now(),
      constraint resolution_is_at_most_40000_bytes check (octet_length(resolution) <= 40000)
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
      updated_at timestamp default now(),
      constraint texts_are_at_most_40000_bytes check (
        octet_length(image_prompt) <= 40000 and octet_length(visual_prompt) <= 40000
        and octet_length(product_reference_image_url) <= 40000 and octet_length(image_url) <= 40000
        and octet_length(generated_video_url) <= 40000 and octet_length(status) <= 40000
      )
    );
    alter table public.video_scenes enable row level security;
    revoke all on public.video_scenes from public, anon, authenticated, service_role;
    create index video_scenes_by_user on public.video_scenes (user_id, created_at);
    create policy "owners read their scenes" on public.video_scenes
      for select to authenticated using ((select vidgen.signed_in_user()) = user_id);
    create policy "owners add scenes" on public.video_scenes
      for insert to authenticated with check ((select vidgen.signed_in_user()) = user_id);
    create policy "owners change their scenes" on public.video_scenes
      for update to authenticated
      using ((select vidgen.signed_in_user()) = user_id)
      with check ((select vidgen.signed_in_user()) = user_id);
    grant select on public.video_scenes to authenticated;
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

-- Existing scenes need an id for a foreign key and an owner; every other column may be missing.
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

-- A trigger runs with the rights of the role that writes the row, and we write scenes as their owner. So a
-- role that may create a trigger there has the owner's rights. `grant all on all tables` includes that.
do $$
declare
  scenes regclass;
begin
  foreach scenes in array array['public.video_scenes', 'public.video_scenarios']::regclass[] loop
    -- We can't revoke another owner's grants: `vidgen-worker check` names them.
    if (
      select pg_catalog.pg_has_role(current_user, c.relowner, 'usage')
        from pg_catalog.pg_class as c
       where c.oid = scenes
    ) then
      execute format('revoke trigger on %s from public, anon, authenticated', scenes);
    end if;
  end loop;
end
$$;

-- The needs of later files on other owners' objects are checked here, before anything is changed. The
-- migrating role owns the functions that read and write scenes, so that it must see all of them.
do $$
declare
  hidden text;
  owner text;
begin
  if not (
    has_table_privilege('public.video_scenes', 'select')
    and has_column_privilege('public.video_scenes', 'id', 'references')
    and has_table_privilege('public.video_scenarios', 'select')
  ) then
    raise exception 'role % may not read public.video_scenes and public.video_scenarios, '
                    'or point a foreign key at scenes.', current_user
      using errcode = 'insufficient_privilege', hint = format(
        'Run as their owner: grant select, update, references on public.video_scenes to %1$I; '
        'grant select on public.video_scenarios to %1$I. Then run the migration again. '
        'Nothing was changed.', current_user
      );
  end if;

  select c.oid::regclass::text into hidden
    from pg_catalog.pg_class as c
   where c.oid in ('public.video_scenes'::regclass, 'public.video_scenarios'::regclass)
     and row_security_active(c.oid)
     and not exists (
       select
         from pg_catalog.pg_policy as p
        where p.polrelid = c.oid and p.polpermissive and p.polcmd = '*'
          and current_user::regrole = any (p.polroles)
     )
   order by c.relname desc
   limit 1;
  if hidden is not null then
    raise exception 'row level security hides the rows of % from role %, which would own our functions.',
      hidden, current_user
      using errcode = 'insufficient_privilege', hint = format(
        'Run as its owner: create policy "vidgen-worker sees all" on %s to %I using (true); '
        'or migrate as a role with BYPASSRLS. Then run the migration again. Nothing was changed.',
        hidden, current_user
      );
  end if;

  select r.rolname into owner
    from pg_catalog.pg_publication as p
    join pg_catalog.pg_roles as r on r.oid = p.pubowner
   where p.pubname = 'supabase_realtime' and not p.puballtables
     and not pg_has_role(current_user, p.pubowner, 'usage')
     and not exists (
       select
         from pg_catalog.pg_publication_namespace as n
        where n.pnpubid = p.oid and n.pnnspid = 'public'::regnamespace
     );
  if owner is not null then
    raise exception 'role % may not add tables to the publication supabase_realtime, which belongs to %.',
      current_user, owner
      using errcode = 'insufficient_privilege', hint = format(
        'Run as a superuser: alter publication supabase_realtime owner to %I; '
        'then run the migration again. Nothing was changed.', current_user
      );
  end if;

  -- Tried, not looked up: on hosted Supabase postgres may create policies there without being the owner.
  if to_regclass('storage.objects') is not null then
    begin
      create policy "vidgen-worker may create policies" on storage.objects for select using (false);
      drop policy "vidgen-worker may create policies" on storage.objects;
    exception
      when insufficient_privilege then
        select r.rolname into owner
          from pg_catalog.pg_class as c
          join pg_catalog.pg_roles as r on r.oid = c.relowner
         where c.oid = to_regclass('storage.objects');
        raise exception 'role % may not create policies on storage.objects, which belongs to %.',
          current_user, owner
          using errcode = 'insufficient_privilege', hint = format(
            'On hosted Supabase migrate as postgres; elsewhere run as a superuser: grant %I to %I; '
            'then run the migration again. Nothing was changed.', owner, current_user
          );
    end;
  end if;
end
$$;

-- Buckets. The storage policy depends on them, so that only an operator changes them: otherwise a worker's
-- role could show every file of the project.
create function vidgen.is_operator() returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select pg_has_role(current_user, c.relowner, 'usage')
    from pg_class as c
   where c.oid = 'vidgen.settings'::regclass
$$;

-- The caller's role. Behind PostgREST the claims decide. A direct connection has no claims: there the login
-- role decides, and PostgREST's own (authenticator) has no rights.
create function vidgen.may_act_on(owner uuid) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select vidgen.acts_for_all() or coalesce(vidgen.signed_in_user() = may_act_on.owner, false)
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

-- Set the buckets; false where they differ and this role may not change them.
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

-- The functions of the policies. They run as the owner, because no client reads private tables. They answer
-- only about the caller, or about a place that the caller has named. The most expensive condition comes last.
-- In plpgsql, which keeps its plan: triggers and policies call it for each row.
create function vidgen.our_buckets() returns text[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  return (
    select array[s.images_bucket, s.videos_bucket]
           || array(select st.bucket from vidgen.stages as st where st.bucket is not null)
      from vidgen.settings as s
  );
end
$$;

-- Scenes are read column by column. A row with three texts of 40 MB costs a backend 1.4 GB as JSON. The
-- size of a text is known without reading it, so that a text above 40,000 bytes is never read: `unreadable`
-- names its column, with the size. It also names a column whose read raises an error.

-- One column of one row, of any type; null where the column or the row does not exist.
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
  -- The size of a text is that of its content. The size of another type is that of its stored form, which
  -- may be compressed: so less of it is read.
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
  -- Out of memory, too large, a generated column that divides by zero: the cause is in this row.
  when others or assert_failure then
    return jsonb_build_object('error', format('%s %s', sqlstate, left(sqlerrm, 200)));
end
$$;

-- A worker gets at most the length of a long prompt or URL, because a few prompts of hundreds of megabytes
-- would fill its memory and stop all tasks. A text that is cut here is far beyond every limit, so that it is
-- refused as too long anyway.
create function vidgen.read_scene(scene_id uuid, user_id uuid) returns jsonb
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
    -- The columns of our own table, which most applications have too: one statement, planned once.
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

-- What a scene shows of its tasks: the status of the newest that runs or has stored a clip, and the clip of
-- the newest that has one.
create function vidgen.shown_status(of_scene uuid, owner uuid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  return (
    select t.status
      from public.video_generation_tasks as t
     where t.scene_id = of_scene and t.user_id = owner and t.status in ('processing', 'completed')
     order by t.created_at desc, t.id desc
     limit 1
  );
end
$$;

create function vidgen.shown_clip(of_scene uuid, owner uuid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  return (
    select t.video_url
      from public.video_generation_tasks as t
     where t.scene_id = of_scene and t.user_id = owner
       and t.status = 'completed' and t.video_url is not null
     order by t.created_at desc, t.id desc
     limit 1
  );
end
$$;

-- Owe a write to a scene that another transaction holds. A write that is owed already is not added: else
-- each attempt would add a row for a locked scene.
create function vidgen.owe_scene(
  scene_id uuid, user_id uuid, status text, image_url text, video_url text
) returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  insert into vidgen.scene_writes (scene_id, user_id, status, image_url, video_url)
  select owe_scene.scene_id, owe_scene.user_id, owe_scene.status, owe_scene.image_url,
         owe_scene.video_url
   where not exists (
     select
       from (
         select w.status, w.image_url, w.video_url
           from vidgen.scene_writes as w
          where w.scene_id = owe_scene.scene_id
          order by w.id desc
          limit 1
       ) as newest
      where newest.status is not distinct from owe_scene.status
        and newest.image_url is not distinct from owe_scene.image_url
        and newest.video_url is not distinct from owe_scene.video_url
   );
  return '55P03 locked by another transaction: it is written later';
exception
  when others or assert_failure or query_canceled then
    return format('%s %s', sqlstate, sqlerrm);
end
$$;

-- A function body is one savepoint when it has an exception block: an application's own CHECK, trigger
-- or missing column can refuse this write without undoing the statement around it. The function waits once
-- for a lock, for at most a tenth of a second. While a write to a scene is owed, later writes are owed too,
-- so that they keep their order and no statement waits for the lock again.
create function vidgen.write_scene(
  scene_id uuid, user_id uuid, status text, image_url text, video_url text
) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_variable
begin
  if scene_id is null then
    return null;  -- a film's, or the scene is gone
  end if;
  if exists (
    select from vidgen.scene_writes as w where w.scene_id = write_scene.scene_id
  ) then
    return vidgen.owe_scene(scene_id, user_id, status, image_url, video_url);
  end if;
  update public.video_scenes as s
     set status = coalesce(
           case when write_scene.status is not null then vidgen.shown_status(s.id, s.user_id) end,
           write_scene.status, s.status
         ),
         -- The row of the still's task may show the still already. If not, that task is the newest that
         -- runs without a still.
         image_url = case
           when write_scene.image_url is null or (
             select t.image_url <> write_scene.image_url
               from public.video_generation_tasks as t
              where t.scene_id = write_scene.scene_id and t.user_id = write_scene.user_id
                and (t.image_url is not null or t.status = 'processing')
              order by t.created_at desc, t.id desc
              limit 1
           ) then s.image_url
           else write_scene.image_url
         end,
         generated_video_url = case
           when write_scene.video_url is null then s.generated_video_url
           else coalesce(vidgen.shown_clip(s.id, s.user_id), write_scene.video_url)
         end,
         updated_at = now()
   where s.id = write_scene.scene_id and s.user_id = write_scene.user_id
     -- Whoever has the worker's role writes to scenes that have a task, and to no other.
     and exists (
       select from public.video_generation_tasks as t
        where t.scene_id = write_scene.scene_id and t.user_id = write_scene.user_id
     );
  -- Deferred constraints of the application are checked here, not at the caller's COMMIT.
  set constraints all immediate;
  return null;
exception
  when lock_not_available then
    return vidgen.owe_scene(scene_id, user_id, status, image_url, video_url);
  when others or assert_failure or query_canceled then
    -- The caller logs it; the paid task goes on.
    return format('%s %s', sqlstate, sqlerrm);
end
$$;

create function vidgen.owns_scene(scene_id uuid) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select from public.video_scenes as s
     where s.id = owns_scene.scene_id and s.user_id = (select vidgen.signed_in_user())
  )
$$;

-- A role that may DELETE from a table may run LOCK TABLE in any mode, and so block the scenes of all users.
-- On the table that we created (it has our four policies), owners delete through a function instead; an
-- application's own table keeps its rights.
create function vidgen.delete_scene(scene_id uuid) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  delete from public.video_scenes as s
   where s.id = delete_scene.scene_id and s.user_id = (select vidgen.signed_in_user());
  return found;
end
$$;

create function public.delete_video_scene(scene_id uuid) returns boolean
language sql volatile security invoker set search_path = pg_catalog, pg_temp
begin atomic
  select vidgen.delete_scene(delete_video_scene.scene_id);
end;

comment on function public.delete_video_scene(uuid) is
  'Delete a scene of yours; its tasks stay. False: you have no such scene.';

create function vidgen.scene_digest(scene_id uuid, user_id uuid) returns text
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$ select md5(vidgen.read_scene(scene_digest.scene_id, scene_digest.user_id)::text); $$;

-- Rights.

call vidgen.revoke_from_strangers();

revoke all on function
  vidgen.wake(text, text),
  vidgen.acts_for_all(), vidgen.signed_in_user(), vidgen.is_operator(), vidgen.may_act_on(uuid),
  vidgen.settings_change(), vidgen.share_buckets(text, text), vidgen.our_buckets(),
  vidgen.read_column(regclass, name, name, regtype, text), vidgen.read_scene(uuid, uuid),
  vidgen.shown_status(uuid, uuid), vidgen.shown_clip(uuid, uuid),
  vidgen.owe_scene(uuid, uuid, text, text, text),
  vidgen.write_scene(uuid, uuid, text, text, text), vidgen.owns_scene(uuid),
  vidgen.delete_scene(uuid), public.delete_video_scene(uuid), vidgen.scene_digest(uuid, uuid)
  from public, anon, authenticated, service_role;

grant update (images_bucket, videos_bucket) on vidgen.settings to vidgen_worker;
grant select on vidgen.duties, vidgen.settings, vidgen.stages to vidgen_worker;
grant insert (name, began_at) on vidgen.duties to vidgen_worker;
grant update (began_at) on vidgen.duties to vidgen_worker;
grant execute on function vidgen.owns_scene(uuid) to authenticated;
-- A policy that restricts every role asks it.
grant execute on function vidgen.signed_in_user() to public;
grant execute on function
  vidgen.wake(text, text), vidgen.is_operator(), vidgen.share_buckets(text, text),
  vidgen.our_buckets(), vidgen.read_scene(uuid, uuid),
  vidgen.write_scene(uuid, uuid, text, text, text), vidgen.scene_digest(uuid, uuid)
  to vidgen_worker;

-- An application's own table keeps its own rules for DELETE.
do $$
begin
  if exists (
    select from pg_catalog.pg_policies as p
     where p.schemaname = 'public' and p.tablename = 'video_scenes' and p.policyname = 'owners add scenes'
  ) then
    grant execute on function vidgen.delete_scene(uuid) to authenticated;
    grant execute on function public.delete_video_scene(uuid) to authenticated;
  end if;
end
$$;
