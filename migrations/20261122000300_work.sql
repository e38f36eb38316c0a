-- What the workers know and the clients never see: leases, checkpoints, submissions, turns, gates.

create table vidgen.workers (
  id uuid primary key,
  host text not null,
  pid integer not null,
  version text not null,
  provider text not null,
  key_fingerprint text not null,
  concurrency integer not null,
  lease interval not null,
  running integer not null default 0,
  started_at timestamptz not null default now(),
  heartbeat_at timestamptz not null default now(),
  steady_since timestamptz,
  dead_at timestamptz,
  constraint lease_is_positive check (lease > interval '0')
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.workers is
  'One row per worker process: its heartbeat extends the lease of all its tasks. Ids are never reused.';
comment on column vidgen.workers.steady_since is
  'Since when all its heartbeats were answered in time; null while it may not declare others dead.';

-- Append-only: one row per paid POST, written before it and completed after it. No foreign key: it
-- is the record of money and outlives the task.
create table vidgen.submissions (
  id uuid primary key,
  task_id uuid not null,
  user_id uuid not null,
  stage text not null,
  attempt integer not null,
  worker_id uuid not null,
  provider text not null,
  key_fingerprint text not null,
  model text not null,
  fingerprint text not null,
  sent_at timestamptz not null default now(),
  answer text,
  answered_at timestamptz,
  details text,
  generation_id uuid,
  estimated_cost numeric,
  ended_state text,
  ended_at timestamptz,
  cost numeric,
  cost_read_at timestamptz,
  counted boolean not null default true,
  constraint stage_is_known check (stage in ('image', 'video')),
  constraint answer_is_known check (answer in ('generation', 'refused', 'unknown')),
  constraint answer_has_its_time check ((answer is null) = (answered_at is null)),
  constraint a_generation_has_an_id check (answer is distinct from 'generation' or generation_id is not null)
) with (fillfactor = 80);

comment on column vidgen.submissions.counted is
  'Whether it counts against VIDGEN_MAX_SUBMISSIONS; retry_video_generation_task clears it.';

create index submissions_by_task on vidgen.submissions (task_id, stage, sent_at);
create index submissions_by_user on vidgen.submissions (user_id, sent_at);
-- Generations whose end nobody has booked yet.
create index submissions_open on vidgen.submissions (sent_at) where ended_at is null;
-- Costs to be read again: refunds come some minutes after a failure.
create index submissions_failed on vidgen.submissions (ended_at)
  where ended_state in ('failed', 'cancelled');

create table vidgen.checkpoints (
  task_id uuid not null references public.video_generation_tasks (id) on delete cascade,
  stage text not null,
  state text not null,
  request jsonb not null,
  inputs text not null,
  submission_id uuid not null references vidgen.submissions (id),
  generation_id uuid,
  generation_started_at timestamptz,
  bucket text,
  path text,
  media_type text,
  size bigint,
  sha256 text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  primary key (task_id, stage),
  constraint stage_is_known check (stage in ('image', 'video')),
  constraint state_is_known check (state in ('submitting', 'generating', 'storing', 'done')),
  constraint a_generation_is_followed_by_id check (state = 'submitting' or generation_id is not null),
  constraint done_has_an_artifact check (
    (state = 'done') = (path is not null) and (path is null) = (bucket is null)
    and (path is null) = (sha256 is null) and (path is null) = (size is null)
  )
) with (fillfactor = 70);

comment on column vidgen.checkpoints.inputs is
  'Digest of the scene that the frozen request was made from: a rejected scene is retried only when it differs.';

create index checkpoints_by_submission on vidgen.checkpoints (submission_id);

-- Budgets that are nobody's business but ours.
create table vidgen.budgets (
  task_id uuid primary key references public.video_generation_tasks (id) on delete cascade,
  crashes smallint not null default 0,
  retries smallint not null default 0,
  rejected_inputs text,
  constraint crashes_are_not_negative check (crashes >= 0 and retries >= 0)
);

-- Turns: users with waiting tasks take turns, however many rows each has. `waiting_since` is the
-- user's place in the line; null means nothing is due before `due_at`. `arrivals` tells a claim
-- that a new row came in after its snapshot, so that it doesn't send the user away.
create table vidgen.turns (
  user_id uuid primary key,
  waiting_since timestamptz,
  due_at timestamptz not null default 'infinity',
  arrivals bigint not null default 0
) with (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.05);

create index turns_in_line on vidgen.turns (waiting_since) where waiting_since is not null;
create index turns_later on vidgen.turns (due_at) where waiting_since is null;

-- The mailbox of the line: an INSERT of a client only ever appends here, so it never waits for
-- another transaction, can't deadlock, and costs one row per user and statement. (A counter per
-- user kept by a row trigger makes one INSERT of 100,000 rows quadratic.)
create table vidgen.arrivals (
  id bigint generated always as identity primary key,
  user_id uuid not null,
  due_at timestamptz not null
) with (autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);

-- Waiting tasks that have something to go on from: 0 = nothing is left to pay for now (a generation
-- lives at the provider, or the clip is stored), 1 = the still is done. They are claimed before new ones, in this order.
create table vidgen.resumes (
  task_id uuid primary key references public.video_generation_tasks (id) on delete cascade,
  class smallint not null,
  resume_at timestamptz not null,
  constraint class_is_known check (class in (0, 1))
) with (fillfactor = 70, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.05);

create index resumes_in_order on vidgen.resumes (class, resume_at);

-- A closed gate: nothing paid of this model starts with this key. No row means open; model '*' is
-- all models, key_fingerprint '*' all keys (an operator's hand).
create table vidgen.gates (
  provider text not null,
  key_fingerprint text not null,
  model text not null,
  reason text not null,
  message text not null,
  details text not null default '',
  closed_at timestamptz not null default now(),
  probe_at timestamptz,
  probes integer not null default 0,
  until timestamptz,
  trial uuid,
  primary key (provider, key_fingerprint, model)
);

comment on column vidgen.gates.trial is
  'After a storm: the one task that is let through to try whether it has passed.';

-- What the provider said of its account, beside what our records had cost by then: two readings
-- tell how many credits went that we can't explain.
create table vidgen.account_readings (
  id bigint generated always as identity primary key,
  provider text not null,
  key_fingerprint text not null,
  read_at timestamptz not null default now(),
  credit_balance numeric not null,
  outlay numeric not null
);

comment on column vidgen.account_readings.outlay is
  'Provider credits of all our generations so far: their cost, or the estimate while it is open.';

create index account_readings_by_key
  on vidgen.account_readings (provider, key_fingerprint, read_at desc);

create table public.video_generation_gates (
  model text primary key,
  reason text not null,
  message text not null,
  until timestamptz
);

alter table public.video_generation_gates enable row level security;
comment on table public.video_generation_gates is
  'A row while video generation is paused for a model (* = all), with a sentence for the user.';
revoke all on public.video_generation_gates
  from public, anon, authenticated, service_role, vidgen_worker;
grant select on public.video_generation_gates to authenticated, service_role, vidgen_worker;
create policy "signed-in users see closed gates" on public.video_generation_gates
  for select to authenticated using (true);
create policy "the worker sees closed gates" on public.video_generation_gates
  for select to vidgen_worker using (true);

create function vidgen.show_gate() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
  shown text := coalesce(new.model, old.model);
begin
  -- Several keys may be closed for one model: the public row stands while any of them is.
  insert into public.video_generation_gates as g (model, reason, message, until)
  select model, reason, message, until
    from vidgen.gates where model = shown order by closed_at desc limit 1
      on conflict (model) do update
     set reason = excluded.reason, message = excluded.message, until = excluded.until
   where (g.reason, g.message, g.until) is distinct from (excluded.reason, excluded.message, excluded.until);
  if not found then
    delete from public.video_generation_gates as g
     where g.model = shown and not exists (select from vidgen.gates where model = shown);
  end if;
  perform pg_notify('vidgen_tasks', 'gate');
  return null;
end
$$;

create trigger show_gate
  after insert or update or delete on vidgen.gates
  for each row execute function vidgen.show_gate();

-- New rows: one arrival per user and one NOTIFY per statement, none for rows that are for later.
create function vidgen.tasks_arrive() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
  due boolean;
begin
  with arrived as (
    insert into vidgen.arrivals (user_id, due_at)
    select user_id, min(run_after) from inserted group by user_id
    returning due_at
  )
  select bool_or(due_at <= now()) into due from arrived;
  if due then
    perform pg_notify('vidgen_tasks', '');
  end if;
  return null;
end
$$;

create trigger tasks_arrive
  after insert on public.video_generation_tasks
  referencing new table as inserted
  for each statement execute function vidgen.tasks_arrive();

-- Rows that become pending again, or stop being so, whoever did it.
create function vidgen.task_moves() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
  class smallint;
begin
  if new.status = 'pending' then
    select min(case
             when c.state in ('generating', 'storing') then 0
             when c.state = 'submitting' and s.ended_at is null
                  and (s.answer is null or s.answer = 'generation') then 0
             -- The clip is stored: what is left costs nothing either.
             when c.state = 'done' then case c.stage when 'video' then 0 else 1 end
           end)
      into class
      from vidgen.checkpoints as c
      join vidgen.submissions as s on s.id = c.submission_id
     where c.task_id = new.id;
    if class is null then
      delete from vidgen.resumes as r where r.task_id = new.id;
      insert into vidgen.arrivals (user_id, due_at) values (new.user_id, new.run_after);
    else
      insert into vidgen.resumes as r (task_id, class, resume_at)
      values (new.id, class, new.run_after)
          on conflict (task_id) do update
         set class = excluded.class, resume_at = excluded.resume_at;
    end if;
    if new.run_after <= now() then
      perform pg_notify('vidgen_tasks', '');
    end if;
  else
    delete from vidgen.resumes as r where r.task_id = new.id;
  end if;
  return null;
end
$$;

create trigger task_moves
  after update on public.video_generation_tasks
  for each row
  when (
    (new.status = 'pending' and (old.status <> 'pending' or old.run_after <> new.run_after))
    or (old.status = 'pending' and new.status <> 'pending' and old.attempt > 0)
  )
  execute function vidgen.task_moves();

revoke all on function vidgen.show_gate() from public, anon, authenticated, service_role;
revoke all on function vidgen.tasks_arrive() from public, anon, authenticated, service_role;
revoke all on function vidgen.task_moves() from public, anon, authenticated, service_role;

grant select, insert, update, delete on
  vidgen.workers, vidgen.turns, vidgen.arrivals, vidgen.resumes, vidgen.gates, vidgen.checkpoints,
  vidgen.budgets
  to vidgen_worker;
grant select, insert, update on vidgen.submissions to vidgen_worker;
grant select, insert on vidgen.account_readings to vidgen_worker;
