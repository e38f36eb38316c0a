-- Brakes: the same trouble in a row stops new paid submits, whatever its name, and keeps what was paid.

alter table vidgen.settings alter column schema_version set default '20261125000400';
update vidgen.settings set schema_version = '20261125000400';

-- A trouble that lasts, shared by all workers: a memory of each would pay for it once per worker. From
-- the first time that it shows, only so many submissions more begin until a stage of this model is
-- stored again: then the row goes. Without any, the table is empty, and asking it costs nothing.
create table vidgen.troubles (
  provider text not null,
  scope text not null,
  part text not null,
  model text not null,
  reason text not null,
  message text not null,
  details text not null,
  since timestamptz not null default now(),
  tasks uuid[] not null,
  proven_users uuid[] not null,
  new_users uuid[] not null,
  remaining smallint,
  primary key (provider, scope, part, model),
  constraint remaining_is_not_negative check (remaining >= 0)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.troubles is
  'What has gone wrong in a row, after money was spent: one row per scope, part of the work and model.';
comment on column vidgen.troubles.scope is 'As in vidgen.gates: what the trouble is about.';
comment on column vidgen.troubles.proven_users is
  'Whose tasks met it, of those for whom this model has worked before; of the others: new_users.';
comment on column vidgen.troubles.remaining is
  'Paid submissions that may still begin; null: any number, because an input may be to blame.';

-- Whoever opens a gate, a probe or an operator: one submission tries it before more are paid for.
create function vidgen.gate_opens() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  update vidgen.troubles as t
     set remaining = 1
   where t.provider = old.provider and t.scope = old.key_fingerprint
     and old.model in ('*', t.model) and t.remaining is not null;
  return null;
end
$$;

create trigger gate_opens
  after delete on vidgen.gates
  for each row execute function vidgen.gate_opens();

revoke all on function vidgen.gate_opens() from public, anon, authenticated, service_role;
revoke all on vidgen.troubles from public, anon, authenticated, service_role;
grant select, insert, update, delete on vidgen.troubles to vidgen_worker;
