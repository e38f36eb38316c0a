-- Waits end. Since when a task has waited without getting any further, and until when a cancel that
-- the provider could not be asked for is left alone.

alter table vidgen.settings alter column schema_version set default '20261125000300';
update vidgen.settings set schema_version = '20261125000300';

alter table vidgen.budgets add column waiting_since timestamptz;
alter table vidgen.budgets add column cancel_after timestamptz;

comment on column vidgen.budgets.waiting_since is
  'Since when the task has only waited for somebody to answer; null once it has come further.';
comment on column vidgen.budgets.cancel_after is
  'Until then no worker asks the provider again to cancel this task''s generation.';

-- Given up: the provider would neither tell how it goes nor end it. What it cost is read later.
create index submissions_given_up on vidgen.submissions (ended_at) where ended_state = 'given up';

-- As before, and waits end with the task: a retry begins anew.
create or replace function vidgen.task_ends() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  update vidgen.budgets as b
     set crashes = 0, waiting_since = null, cancel_after = null
   where b.task_id = new.id
     and (b.crashes > 0 or b.waiting_since is not null or b.cancel_after is not null);
  delete from vidgen.checkpoints as c
   where c.task_id = new.id and c.state in ('submitting', 'generating');
  return null;
end
$$;
