-- What a migration finds on hosted Supabase, on a plain PostgreSQL 15 to 18.
--
-- Run by a superuser that is not called postgres, once per database; roles belong to the whole
-- cluster, so every statement about them may find its work done. Sources: the migrations of
-- supabase/postgres (roles), supabase/auth (auth.*) and supabase/storage (storage.*), 2026-08.
-- It never creates anything of vidgen-worker's own: that is what migrations/ is for.

-- Roles ---------------------------------------------------------------------------------------

do $$
declare
  wanted record;
begin
  for wanted in
    select * from (values
      ('postgres', 'login createrole createdb bypassrls replication'),
      ('anon', 'nologin inherit'),
      ('authenticated', 'nologin inherit'),
      ('service_role', 'nologin inherit bypassrls'),
      ('authenticator', 'login noinherit'),
      ('supabase_auth_admin', 'login noinherit nocreaterole'),
      ('supabase_storage_admin', 'login noinherit createrole'),
      ('dashboard_user', 'nologin createrole createdb replication')
    ) as roles (name, attributes)
  loop
    if exists (select from pg_catalog.pg_roles where rolname = wanted.name) then
      execute format('alter role %I %s', wanted.name, wanted.attributes);
    else
      execute format('create role %I %s', wanted.name, wanted.attributes);
    end if;
  end loop;

  if (select rolsuper from pg_catalog.pg_roles where rolname = 'postgres') then
    raise exception 'The role "postgres" of this server is a superuser, on Supabase it is none'
      using hint = 'Create the cluster with another superuser: initdb --username=supabase_admin.';
  end if;
end
$$;

grant anon, authenticated, service_role to authenticator;
do $$
begin
  if current_setting('server_version_num')::integer >= 160000 then
    grant anon, authenticated, service_role to postgres with admin option;
  else
    grant anon, authenticated, service_role to postgres;
  end if;
end
$$;
grant authenticator, anon, authenticated, service_role to supabase_storage_admin;

alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
alter role authenticator set lock_timeout = '8s';
alter role postgres set search_path = "$user", public, extensions;

do $$
begin
  execute format('alter database %I owner to postgres', current_database());
end
$$;

-- Schema public ---------------------------------------------------------------------------------
-- postgres owns it by owning the database (pg_database_owner). Since 2026-10-30 a new table,
-- sequence or function gets no grant at all for anon, authenticated and service_role: so there is
-- deliberately no ALTER DEFAULT PRIVILEGES here, and PUBLIC's EXECUTE on functions stays.

grant usage on schema public to anon, authenticated, service_role;

create schema if not exists extensions authorization postgres;
grant usage on schema extensions to anon, authenticated, service_role;

-- Schema auth -------------------------------------------------------------------------------------

create schema if not exists auth authorization supabase_auth_admin;
grant usage on schema auth to postgres, anon, authenticated, service_role;

create table if not exists auth.users (
  instance_id uuid,
  id uuid primary key,
  aud character varying(255),
  role character varying(255),
  email character varying(255),
  encrypted_password character varying(255),
  email_confirmed_at timestamp with time zone,
  last_sign_in_at timestamp with time zone,
  raw_app_meta_data jsonb,
  raw_user_meta_data jsonb,
  is_super_admin boolean,
  created_at timestamp with time zone,
  updated_at timestamp with time zone,
  phone text unique,
  banned_until timestamp with time zone,
  is_sso_user boolean not null default false,
  deleted_at timestamp with time zone,
  is_anonymous boolean not null default false
);
create unique index if not exists users_email_partial_key on auth.users (email)
  where is_sso_user = false;
alter table auth.users owner to supabase_auth_admin;
alter table auth.users enable row level security;
grant all on auth.users to postgres;

create table if not exists auth.sessions (
  id uuid primary key,
  user_id uuid not null constraint sessions_user_id_fkey
    references auth.users (id) on delete cascade,
  created_at timestamp with time zone,
  updated_at timestamp with time zone,
  aal text
);
create index if not exists sessions_user_id_idx on auth.sessions (user_id);
alter table auth.sessions owner to supabase_auth_admin;
alter table auth.sessions enable row level security;
grant all on auth.sessions to postgres;

create table if not exists auth.refresh_tokens (
  id bigserial primary key,
  instance_id uuid,
  token character varying(255) constraint refresh_tokens_token_unique unique,
  user_id character varying(255),
  revoked boolean,
  created_at timestamp with time zone,
  updated_at timestamp with time zone,
  parent character varying(255),
  session_id uuid constraint refresh_tokens_session_id_fkey
    references auth.sessions (id) on delete cascade
);
create index if not exists refresh_tokens_session_id_idx on auth.refresh_tokens (session_id);
alter table auth.refresh_tokens owner to supabase_auth_admin;
alter table auth.refresh_tokens enable row level security;
grant all on auth.refresh_tokens to postgres;

create or replace function auth.uid() returns uuid
language sql stable
as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.sub', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
  )::uuid
$$;

create or replace function auth.role() returns text
language sql stable
as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.role', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'role')
  )::text
$$;

create or replace function auth.email() returns text
language sql stable
as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim.email', true), ''),
    (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'email')
  )::text
$$;

create or replace function auth.jwt() returns jsonb
language sql stable
as $$
  select coalesce(
    nullif(current_setting('request.jwt.claim', true), ''),
    nullif(current_setting('request.jwt.claims', true), '')
  )::jsonb
$$;

alter function auth.uid() owner to supabase_auth_admin;
alter function auth.role() owner to supabase_auth_admin;
alter function auth.email() owner to supabase_auth_admin;
alter function auth.jwt() owner to supabase_auth_admin;

-- Schema storage ------------------------------------------------------------------------------------

create schema if not exists storage authorization supabase_storage_admin;
grant usage on schema storage to anon, authenticated, service_role;
grant usage on schema storage to postgres with grant option;

create table if not exists storage.buckets (
  id text primary key,
  name text not null,
  owner uuid,
  created_at timestamp with time zone default now(),
  updated_at timestamp with time zone default now(),
  public boolean default false,
  avif_autodetection boolean default false,
  file_size_limit bigint,
  allowed_mime_types text[],
  owner_id text
);
create unique index if not exists bname on storage.buckets (name);

create table if not exists storage.objects (
  id uuid primary key default gen_random_uuid(),
  bucket_id text constraint "objects_bucketId_fkey" references storage.buckets (id),
  name text,
  owner uuid,
  created_at timestamp with time zone default now(),
  updated_at timestamp with time zone default now(),
  last_accessed_at timestamp with time zone default now(),
  metadata jsonb,
  path_tokens text[] generated always as (string_to_array(name, '/')) stored,
  version text,
  owner_id text,
  user_metadata jsonb
);
create unique index if not exists bucketid_objname on storage.objects (bucket_id, name);
create index if not exists name_prefix_search on storage.objects (name text_pattern_ops);

alter table storage.buckets owner to supabase_storage_admin;
alter table storage.objects owner to supabase_storage_admin;
alter table storage.buckets enable row level security;
alter table storage.objects enable row level security;
grant all on storage.buckets, storage.objects to anon, authenticated, service_role;
grant all on storage.buckets, storage.objects to postgres with grant option;

create or replace function storage.foldername(name text) returns text[]
language plpgsql immutable
as $$
declare
  _parts text[];
begin
  select string_to_array(name, '/') into _parts;
  return _parts[1 : array_length(_parts, 1) - 1];
end
$$;

create or replace function storage.filename(name text) returns text
language plpgsql immutable
as $$
declare
  _parts text[];
begin
  select string_to_array(name, '/') into _parts;
  return _parts[array_length(_parts, 1)];
end
$$;

create or replace function storage.extension(name text) returns text
language plpgsql immutable
as $$
declare
  _parts text[];
  _filename text;
begin
  select string_to_array(name, '/') into _parts;
  select _parts[array_length(_parts, 1)] into _filename;
  return reverse(split_part(reverse(_filename), '.', 1));
end
$$;

create or replace function storage.update_updated_at_column() returns trigger
language plpgsql
as $$
begin
  new.updated_at = now();
  return new;
end
$$;

create or replace function storage.protect_delete() returns trigger
language plpgsql
as $$
begin
  if coalesce(current_setting('storage.allow_delete_query', true), 'false') <> 'true' then
    raise exception 'Direct deletion from storage tables is not allowed. Use the Storage API instead.'
      using errcode = '42501',
        hint = 'This prevents accidental data loss from orphaned objects.';
  end if;
  return null;
end
$$;

create or replace trigger update_objects_updated_at before update on storage.objects
  for each row execute function storage.update_updated_at_column();
create or replace trigger protect_buckets_delete before delete on storage.buckets
  for each statement execute function storage.protect_delete();
create or replace trigger protect_objects_delete before delete on storage.objects
  for each statement execute function storage.protect_delete();

alter function storage.foldername(text) owner to supabase_storage_admin;
alter function storage.filename(text) owner to supabase_storage_admin;
alter function storage.extension(text) owner to supabase_storage_admin;
alter function storage.update_updated_at_column() owner to supabase_storage_admin;
alter function storage.protect_delete() owner to supabase_storage_admin;

-- What postgres may do in auth and storage ----------------------------------------------------------
-- On hosted Supabase the extension supautils lets postgres create policies on tables that it does not
-- own, and nothing else. Plain PostgreSQL knows no such right: CREATE POLICY asks for the owner.
-- So postgres inherits the owner here, and an event trigger takes back everything that comes with
-- that and is no policy, trigger, comment or grant, with the error that hosted Supabase gives.

grant supabase_auth_admin, supabase_storage_admin to postgres;

create schema if not exists sandbox;

create or replace function sandbox.refuse_change_of_supabase_schemas() returns event_trigger
language plpgsql
set search_path = ''
as $$
declare
  touched record;
begin
  if current_user <> 'postgres' then
    return;
  end if;
  if tg_event = 'sql_drop' then
    select o.schema_name, o.object_identity as name, o.object_type into touched
      from pg_catalog.pg_event_trigger_dropped_objects() o
      where o.original and o.schema_name in ('auth', 'storage') limit 1;
  else
    select c.schema_name, c.object_identity as name, c.object_type into touched
      from pg_catalog.pg_event_trigger_ddl_commands() c
      where c.schema_name in ('auth', 'storage') limit 1;
  end if;
  if found then
    raise exception 'must be owner of % %', touched.object_type, touched.name
      using errcode = '42501';
  end if;
end
$$;

drop event trigger if exists supabase_schemas_are_not_ours_to_change;
create event trigger supabase_schemas_are_not_ours_to_change on ddl_command_end
  when tag in (
    'ALTER TABLE', 'CREATE TABLE', 'CREATE TABLE AS', 'SELECT INTO', 'CREATE INDEX', 'ALTER INDEX',
    'CREATE FUNCTION', 'ALTER FUNCTION', 'CREATE PROCEDURE', 'CREATE VIEW', 'ALTER VIEW',
    'CREATE MATERIALIZED VIEW', 'CREATE SEQUENCE', 'ALTER SEQUENCE', 'CREATE TYPE', 'ALTER TYPE',
    'ALTER SCHEMA'
  )
  execute function sandbox.refuse_change_of_supabase_schemas();

drop event trigger if exists supabase_schemas_are_not_ours_to_drop;
create event trigger supabase_schemas_are_not_ours_to_drop on sql_drop
  when tag in ('DROP TABLE', 'DROP INDEX', 'DROP FUNCTION', 'DROP VIEW', 'DROP TYPE', 'DROP SEQUENCE')
  execute function sandbox.refuse_change_of_supabase_schemas();

-- Realtime -------------------------------------------------------------------------------------------

do $$
begin
  if not exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime') then
    create publication supabase_realtime;
  end if;
end
$$;
alter publication supabase_realtime owner to postgres;
