-- Accounts and scopes: a gate stops those whom its trouble concerns, and nobody else.

alter table vidgen.settings alter column schema_version set default '20261125000200';
update vidgen.settings set schema_version = '20261125000200';

-- The provider's account that a worker spends from: a label of the operator's, because the provider
-- names none. And the scopes of the gates that concern the worker; null: a worker of the version
-- before, which knows its own key's and the operator's.
alter table vidgen.workers
  add column account text not null default 'default',
  add column scopes text[];

comment on column vidgen.workers.account is
  'The label of the provider''s account (VIDGEN_ACCOUNT) whose key this worker uses.';
comment on column vidgen.workers.scopes is
  'Scopes of the gates that concern this worker; null: ''*'' and its key_fingerprint.';

comment on column vidgen.gates.key_fingerprint is
  'The scope, what the trouble is about: * (all), an account''s label, key:…, storage:…, machine:….';

-- What users are told. A model is paused for them when no living worker may start anything of it: a
-- gate of one machine, or of one key, that others work beside is the operator's business. Without a
-- living worker every gate counts. One at a time, each with a snapshot of its own, so that of two
-- that close at once the second one sees the first: nobody else writes the table, and SELECT is all
-- that anybody may do with it.
create function vidgen.show_gates() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  lock table public.video_generation_gates in share row exclusive mode;
  with working as (
    select w.provider, coalesce(w.scopes, array['*', w.key_fingerprint]) as scopes
      from vidgen.workers as w
     where w.dead_at is null and w.concurrency > 0
  ),
  paused as (
    select distinct on (g.model) g.model, g.reason, g.message, g.until
      from vidgen.gates as g
     where not exists (
             select
               from working
              where not exists (
                      select
                        from vidgen.gates as met
                       where met.provider = working.provider
                         and met.key_fingerprint = any (working.scopes)
                         and met.model in (g.model, '*')
                    )
           )
     order by g.model, g.closed_at desc, g.key_fingerprint
  ),
  opened as (
    delete from public.video_generation_gates as shown
     where not exists (select from paused where paused.model = shown.model)
  )
  insert into public.video_generation_gates as shown (model, reason, message, until)
  select model, reason, message, until from paused
      on conflict (model) do update
     set reason = excluded.reason, message = excluded.message, until = excluded.until
   where (shown.reason, shown.message, shown.until)
         is distinct from (excluded.reason, excluded.message, excluded.until);
end
$$;

create or replace function vidgen.show_gate() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform vidgen.show_gates();
  perform pg_notify('vidgen_tasks', 'gate');
  return null;
end
$$;

-- Who comes or goes may be the one that still worked, or the only one that did not.
create function vidgen.worker_comes_or_goes() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform vidgen.show_gates();
  return null;
end
$$;

create trigger worker_comes_or_goes
  after insert or delete on vidgen.workers
  for each statement execute function vidgen.worker_comes_or_goes();
create trigger worker_dies
  after update on vidgen.workers
  for each row
  when (old.dead_at is null and new.dead_at is not null)
  execute function vidgen.worker_comes_or_goes();

revoke all on function vidgen.show_gates() from public, anon, authenticated, service_role;
revoke all on function vidgen.worker_comes_or_goes() from public, anon, authenticated, service_role;
