-- Admission: everything that says "not now".
--
-- Gates stop new paid submissions for those whom a trouble concerns. Slots keep the generations in
-- flight at the provider within its limit, however many workers there are: a model with a limit has
-- that many rows in `slots`, and a statement locks a row to get one, so that it reads no count that another
-- transaction may be changing. The claim reserves a slot for its task. The slot then goes to the submission,
-- and so belongs to the generation, whether the worker lives or dies.
--
-- A user's limits are checked where the money is spent. A user has two rows for locks. The user's own
-- statements (inserts, cancels, retries) lock `user_locks`: a user may hold that lock for any time, so that
-- no worker waits for it. Workers lock `user_limits` for one short statement: no client can lock it.

set local search_path = '';

-- A closed gate: no paid submission of this model begins in this scope. No row means open; model '*' means
-- all models, scope '*' concerns every worker (an operator closed it).
create table vidgen.gates (
  provider text not null,
  scope text not null,
  model text not null,
  reason text not null,
  message text not null,
  details text not null default '',
  closed_at timestamptz not null default now(),
  probe_at timestamptz,
  probes integer not null default 0,
  until timestamptz,
  trial uuid,
  primary key (provider, scope, model)
);

comment on column vidgen.gates.trial is
  'The one task that is let through after a storm, to try whether it has passed.';
comment on column vidgen.gates.scope is
  'The scope of the trouble: * (all), an account''s label, key:…, storage:…, machine:….';

-- Readings of the provider's account, each with the cost in our records at that time: the difference of two
-- readings shows credits that we can't explain.
create table vidgen.account_readings (
  id bigint generated always as identity primary key,
  provider text not null,
  account text not null,
  read_at timestamptz not null default now(),
  credit_balance numeric not null,
  outlay numeric not null
);

comment on column vidgen.account_readings.outlay is
  'Provider credits of all our generations so far: their cost, or the estimate while it is open.';

create index account_readings_by_account
  on vidgen.account_readings (provider, account, read_at desc);

create table public.video_generation_gates (
  model text primary key,
  reason text not null,
  message text not null,
  until timestamptz
);

alter table public.video_generation_gates enable row level security;

comment on table public.video_generation_gates is
  'A row while video generation is paused for a model (* = all), with a sentence for the user.';

-- Troubles that last, for all workers: if each worker counted alone, each would pay for the trouble. After
-- its first appearance only a limited number of further submissions begin, until a stage of this model is
-- stored, which deletes the row.
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
  'Troubles in a row after money was spent: one row per scope, part of the work and model.';
comment on column vidgen.troubles.scope is 'The scope of the trouble, as in vidgen.gates.';
comment on column vidgen.troubles.proven_users is
  'The users whose tasks met it and for whom this model has worked before; the others are in new_users.';
comment on column vidgen.troubles.remaining is
  'Paid submissions that may still begin; null: any number, because an input may be to blame.';

create table vidgen.limits (
  provider text not null,
  account text not null,
  model text not null,
  max_generations integer,
  read_at timestamptz,
  asked_at timestamptz,
  primary key (provider, account, model),
  constraint max_generations_is_not_negative check (max_generations >= 0)
) with (fillfactor = 50);

comment on table vidgen.limits is
  'The limit of generations of a model in flight for an account; max_generations null: no limit.';
comment on column vidgen.limits.read_at is
  'The time when the provider or a setting gave the limit; null: unknown yet, and one at a time is safe.';
comment on column vidgen.limits.account is
  'The account''s label (VIDGEN_ACCOUNT).';

create table vidgen.slots (
  id bigint generated always as identity primary key,
  provider text not null,
  account text not null,
  model text not null,
  task_id uuid,
  submission_id uuid,
  taken_at timestamptz,
  constraint taken_by_a_task check ((task_id is null) = (taken_at is null)),
  constraint a_submission_has_its_task check (submission_id is null or task_id is not null),
  constraint slots_are_of_a_limited_model foreign key (provider, account, model)
    references vidgen.limits (provider, account, model)
) with (fillfactor = 30, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.slots is
  'A place for one generation at the provider: free, reserved for a task, or taken by a submission.';
comment on column vidgen.slots.taken_at is
  'The time since which it is reserved or taken. After the limit went down, more slots than the limit may be taken.';
comment on column vidgen.slots.account is 'As in limits.';

-- Few rows that change all the time: no index on the changing columns, so that updates stay HOT.
create index slots_by_model on vidgen.slots (provider, account, model);

create table vidgen.user_locks (
  user_id uuid primary key,
  hour_began timestamptz not null default now(),
  inserts integer not null default 0,
  changes integer not null default 0
) with (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.05);

comment on table vidgen.user_locks is
  'The lock for a user''s own statements, one after the other, and the user''s counts of the current hour.';

create table vidgen.user_limits (
  user_id uuid primary key,
  rejections smallint not null default 0,
  rejected_at timestamptz,
  stopped_until timestamptz,
  paused_until timestamptz,
  reason text,
  lifted_at timestamptz,
  first_stored_at timestamptz,
  constraint rejections_are_not_negative check (rejections >= 0)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.05);

comment on table vidgen.user_limits is
  'The limits of a user''s submissions: rejections in a row, a pause, a stop. Workers lock it for a short time.';
comment on column vidgen.user_limits.rejections is
  'Rejections by content rules since the last stage that was stored and charged.';
comment on column vidgen.user_limits.paused_until is
  'No submission of the user begins before this time; null: none is stopped.';
comment on column vidgen.user_limits.lifted_at is
  'The time when an operator lifted the limits: earlier losses no longer count.';
comment on column vidgen.user_limits.first_stored_at is
  'The time of the user''s first stored stage; null: none, so that few submissions may be under way.';

create table vidgen.rejections (
  user_id uuid not null,
  digest text not null,
  task_id uuid not null,
  rejected_at timestamptz not null default now(),
  primary key (user_id, digest)
);

comment on table vidgen.rejections is
  'Inputs that the provider''s content rules rejected, by the digest of the whole request.';

create index rejections_by_age on vidgen.rejections (rejected_at);

-- A trouble of one user: it brakes only that user, also where no other user is active.
create table vidgen.user_troubles (
  user_id uuid not null,
  provider text not null,
  model text not null,
  reason text not null,
  details text not null,
  since timestamptz not null default now(),
  results uuid[] not null,
  next_at timestamptz,
  pauses integer not null default 0,
  trial uuid,
  primary key (user_id, provider, model)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.user_troubles is
  'Troubles in a row of one user and model; a stored stage of the user deletes the row.';
comment on column vidgen.user_troubles.results is 'The submissions that met the trouble, ten at the most.';
comment on column vidgen.user_troubles.trial is
  'The one task that tries whether the trouble has passed, as at a gate.';

-- The pauses that users are shown. A model is paused for them when no living worker may begin a submission of
-- it: a gate of one machine or one key, beside which others work, concerns only the operator. Without a living
-- worker every gate counts. Only one transaction at a time runs this, each with its own snapshot, so that of
-- two gates that close at once the second sees the first: no other statement writes the table, and clients
-- have only SELECT.
create function vidgen.show_gates() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  lock table public.video_generation_gates in share row exclusive mode;
  with working as (
    select w.provider, w.scopes
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
                         and met.scope = any (working.scopes)
                         and met.model in (g.model, '*')
                    )
           )
     order by g.model, g.closed_at desc, g.scope
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

create function vidgen.show_gate() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform vidgen.show_gates();
  perform vidgen.wake('vidgen_tasks', 'gate');
  return null;
end
$$;

create trigger show_gate
  after insert or update or delete on vidgen.gates
  for each row execute function vidgen.show_gate();

-- After a gate has opened, by a probe or an operator, one submission tries it before others are paid.
create function vidgen.gate_opens() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  update vidgen.troubles as t
     set remaining = 1
   where t.provider = old.provider and t.scope = old.scope
     and old.model in ('*', t.model) and t.remaining is not null;
  return null;
end
$$;

create trigger gate_opens
  after delete on vidgen.gates
  for each row execute function vidgen.gate_opens();

create view vidgen.free_slots with (security_invoker = true) as
select l.provider, l.account, l.model, slots.free
  from vidgen.limits as l
 cross join lateral (
   select count(*) as free
     from vidgen.slots as s
    where s.provider = l.provider and s.account = l.account
      and s.model = l.model and s.task_id is null
 ) as slots
 where l.max_generations is not null;

comment on view vidgen.free_slots is 'Models with a limit, and the number of their free slots.';

-- No image begins while far more tasks wait for a video slot than there are slots: per account, at most twice
-- as many tasks as slots may be on the way to a clip. Rows for later don't count, nor do tasks of other keys
-- that need no slot of this key. The count stops at the limit.
-- This is a function, so that a claim without a limit does not plan it. It is 0 for a model without a limit.
create function vidgen.room_before(of_provider text, of_account text, of_model text) returns integer
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  most integer := (
    select 2 * l.max_generations
      from vidgen.limits as l
     where l.provider = of_provider and l.account = of_account and l.model = of_model
  );
begin
  return greatest(
    most
    - (
      select count(*)
        from (select from vidgen.due_resumes where stage = 'video' limit most) as waiting
    )
    - (
      select count(*)
        from (
          select
            from public.video_generation_tasks as t
            join vidgen.workers as w on w.id = t.worker_id
           where t.status = 'processing' and t.lane > 0
             and w.provider = of_provider and w.account = of_account
             and not exists (
               select from vidgen.checkpoints as c where c.task_id = t.id and c.stage = 'video'
             )
             -- A row that accepts no change stays 'processing', and gets no clip.
             and not exists (
               select from vidgen.refusals as f where f.task_id = t.id and f.until is not null
             )
           limit most
        ) as under_way
    ),
    0
  );
end
$$;

-- Whether a gate of this worker alone (of its key, file store or machine) is closed while another worker of
-- its account goes on. Then this worker leaves waiting tasks that have begun to the other one: it could not
-- finish them. A worker of another account may not follow them.
create function vidgen.stands_aside(worker_id uuid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  with behind as (
    select w.id, w.provider, w.account
      from vidgen.workers as w
     where exists (
             select
               from vidgen.gates as g
              where g.provider = w.provider and g.scope = any (w.scopes)
                and g.scope like any (array['key:%', 'storage:%', 'machine:%'])
           )
  )
  select exists (
    select
      from behind as me
      join vidgen.workers as w on w.provider = me.provider and w.account = me.account
     where me.id = worker_id and w.dead_at is null and w.concurrency > 0
       and w.id not in (select behind.id from behind)
  )
$$;

-- In a SQL function a bare name means the column: so the function's name qualifies parameters.
create function vidgen.count_slots(of_provider text, of_account text, of_model text)
returns integer
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  select count(*)::integer
    from vidgen.slots as s
   where s.provider = count_slots.of_provider and s.account = count_slots.of_account
     and s.model = count_slots.of_model
$$;

-- Slots are created and free ones deleted only here. A volatile function takes a new snapshot for each of its
-- statements, so that a statement after a lock sees the changes that it waited for.
create function vidgen.set_limit(
  of_provider text, of_account text, of_model text, new_max integer, is_read boolean
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  missing integer;
begin
  -- Only one transaction at a time: the lock on this row lasts until its end.
  insert into vidgen.limits as l (provider, account, model, max_generations, read_at)
  values (of_provider, of_account, of_model, new_max, case when is_read then now() end)
      on conflict (provider, account, model) do update
     set max_generations = excluded.max_generations, read_at = excluded.read_at;

  if new_max is not null then
    -- Generations in flight without a slot: they began while the model had no limit, or while the key had
    -- another account's label.
    insert into vidgen.slots (provider, account, model, task_id, submission_id, taken_at)
    select s.provider, of_account, s.model, s.task_id, s.id, s.sent_at
      from vidgen.submissions as s
      left join vidgen.keys as k
        on k.provider = s.provider and k.key_fingerprint = s.key_fingerprint
     where s.ended_at is null
       -- A submission without an answer for long is given up, or soon will be (see free_slots).
       and (s.answer = 'generation' or (s.answer is null and s.sent_at > now() - interval '10 minutes'))
       and s.provider = of_provider and s.model = of_model
       and of_account in (s.account, k.account)
       and not exists (
         select from vidgen.slots as taken
          where taken.submission_id = s.id and taken.account = of_account
       );
  end if;

  missing := coalesce(new_max, 0) - vidgen.count_slots(of_provider, of_account, of_model);
  if missing < 0 then
    -- Free slots go first, then reserved ones, whose tasks return to waiting. A generation in flight keeps its
    -- slot until it has ended.
    delete from vidgen.slots as s
     using (
       select id from vidgen.slots
        where provider = of_provider and account = of_account and model = of_model
          and submission_id is null
        order by task_id is not null, taken_at desc
        limit -missing
          for update
     ) as free
     where s.id = free.id;
  elsif missing > 0 then
    insert into vidgen.slots (provider, account, model)
    select of_provider, of_account, of_model from generate_series(1, missing);
    perform vidgen.wake_lane(1);
  end if;
end
$$;

-- Free a slot, or delete it where there are more than the limit. The lock on the limit makes set_limit wait,
-- so that there is never a slot too many. Two calls at once may both delete theirs: then one slot is missing
-- until the limit is set again a minute later. The function frees only the slot that its caller saw.
--
-- Workers are woken only where a task waits: with an idle queue each end of a generation would make the whole
-- fleet claim. The next poll finds a task that arrives after this check.
create function vidgen.free_slot(slot_id bigint, of_task uuid, of_submission uuid)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  slots integer;
begin
  select coalesce(l.max_generations, 0) into slots
    from vidgen.slots as s
    join vidgen.limits as l using (provider, account, model)
   where s.id = slot_id
     for share of l;
  delete from vidgen.slots as s
   where s.id = slot_id and s.task_id = of_task
     and s.submission_id is not distinct from of_submission
     and vidgen.count_slots(s.provider, s.account, s.model) > slots;
  if not found then
    update vidgen.slots as s
       set task_id = null, submission_id = null, taken_at = null
     where s.id = slot_id and s.task_id = of_task
       and s.submission_id is not distinct from of_submission;
  end if;
  if exists (select from vidgen.turns where waiting_since is not null)
     or exists (select from vidgen.turns where waiting_since is null and due_at <= now())
     or exists (select from vidgen.arrivals)
     or exists (select from vidgen.resumes where resume_at <= now()) then
    perform vidgen.wake_lane(1);
  end if;
end
$$;

-- Free the slot when the end of a generation is booked, by any statement. After a refusal the slot stays
-- reserved while the task runs: the provider may refuse the still at one address and accept it at the next,
-- and the task must not wait behind all others again.
create function vidgen.submission_ends() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if new.ended_state = 'refused' then
    update vidgen.slots as s
       set submission_id = null, taken_at = now()
      from public.video_generation_tasks as t
     where s.submission_id = new.id and t.id = s.task_id and t.status = 'processing';
  end if;
  perform vidgen.free_slot(s.id, s.task_id, s.submission_id)
     from vidgen.slots as s
    where s.submission_id = new.id;
  return null;
end
$$;

create trigger submission_ends
  after update on vidgen.submissions
  for each row
  when (old.ended_at is null and new.ended_at is not null)
  execute function vidgen.submission_ends();

-- A task that stops running before a submission frees its reserved slot.
create function vidgen.task_leaves() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if old.status <> 'processing' then
    return null;
  end if;
  perform vidgen.free_slot(s.id, s.task_id, s.submission_id)
     from vidgen.slots as s
    where s.task_id = new.id and s.submission_id is null;
  return null;
end
$$;

create trigger task_leaves
  after update on public.video_generation_tasks
  for each row
  when (old.status <> new.status)
  execute function vidgen.task_leaves();

-- The user's own statements run one after the other.
create function vidgen.take_user_lock(owner uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  insert into vidgen.user_locks (user_id) values (owner) on conflict do nothing;
  perform from vidgen.user_locks as l where l.user_id = owner for no key update;
end
$$;

-- The same for a client. The wait is limited, because another statement of the same user may take any time.
create function vidgen.lock_user(owner uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s'
as $$
#variable_conflict use_variable
begin
  perform vidgen.take_user_lock(owner);
exception
  when lock_not_available then
    raise exception 'another request of yours is still under way'
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = 'Wait until it has ended, then try again.';
end
$$;

-- Lock a user's limits.
create function vidgen.take_limits_lock(of_user uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform from vidgen.user_limits as u where u.user_id = of_user for no key update;
  if not found then
    insert into vidgen.user_limits (user_id) values (of_user) on conflict do nothing;
    perform from vidgen.user_limits as u where u.user_id = of_user for no key update;
  end if;
end
$$;

-- The same for the statement that will check them. The statement calls this before it locks rows of other
-- users: an application's slow trigger on this user's task may hold the lock, and other users must not wait
-- for that. The wait ends after a moment and the statement is repeated: a worker has few connections.
create function vidgen.lock_limits(of_user uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '50ms'
as $$
#variable_conflict use_variable
begin
  perform vidgen.take_limits_lock(of_user);
end
$$;

-- Count a user's actions in an hour, and refuse those above the limit. A rollback undoes the count.
create function vidgen.count_user(owner uuid, more_inserts bigint, more_changes bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  limits vidgen.settings;
  counted vidgen.user_locks;
begin
  select s.* into limits from vidgen.settings as s;
  perform vidgen.lock_user(owner);
  select l.* into counted from vidgen.user_locks as l where l.user_id = owner;
  -- The clock decides, not this transaction's begin: an older transaction would find an hour of the future and
  -- reset it. An hour that is still in the future was written before the clock stepped back.
  if counted.hour_began not between clock_timestamp() - interval '1 hour' and clock_timestamp() then
    counted.hour_began := clock_timestamp();
    counted.inserts := 0;
    counted.changes := 0;
  end if;
  if more_inserts > 0 and counted.inserts + more_inserts > limits.max_inserts_per_hour then
    raise exception 'limit reached: % new tasks an hour, % of them used', limits.max_inserts_per_hour,
      counted.inserts
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = format(
        'Nothing was inserted. Try again after %s UTC, or insert fewer.',
        to_char((counted.hour_began + interval '1 hour') at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
      );
  end if;
  if more_changes > 0 and counted.changes + more_changes > limits.max_changes_per_hour then
    raise exception 'limit reached: % cancels and retries an hour', limits.max_changes_per_hour
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = format(
        'Nothing was changed. Try again after %s UTC.',
        to_char((counted.hour_began + interval '1 hour') at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
      );
  end if;
  update vidgen.user_locks as l
     set hour_began = counted.hour_began, inserts = counted.inserts + more_inserts,
         changes = counted.changes + more_changes
   where l.user_id = owner;
end
$$;

-- Provider credits of a rolling day without a result for this user. `lost`: failed, rejected, cancelled in
-- any state, discarded. `open`: under way for a task without a cancel, which may still end in a video.
-- `running`: how many of those the provider still works on; `unpriced`: how many of those have no price yet;
-- `opens_at`: the time when enough of `lost` is a day old; null: the limit is not exceeded.
create function vidgen.unbilled(owner uuid, since timestamptz)
returns table (
  lost numeric, open numeric, running bigint, unpriced bigint, opens_at timestamptz
)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  with paid as materialized (
    select s.sent_at, s.ended_at,
           coalesce(
             s.cost, s.estimated_cost,
             -- A generation that has ended, or may have begun, with an unknown cost is not free.
             case when s.answer = 'unknown' or (s.ended_at is not null and s.answer = 'generation') then (
               select l.expected_cost from vidgen.settings as l
             ) end
           ) as cost,
           (s.ended_at is null or s.ended_state = 'succeeded')
           and exists (
             select from public.video_generation_tasks as t
              where t.id = s.task_id and t.status in ('pending', 'processing')
                and t.cancel_requested_at is null
           ) as is_open
      from vidgen.submissions as s
     where s.user_id = unbilled.owner
       and s.sent_at > greatest(now() - interval '1 day', unbilled.since)
       and not s.billed and s.cost is distinct from 0
  ),
  lost as (
    select u.sent_at, sum(u.cost) over (order by u.sent_at desc) as since_then
      from paid as u
     where not u.is_open and u.cost > 0
  )
  select coalesce(sum(u.cost) filter (where not u.is_open), 0),
         coalesce(sum(u.cost) filter (where u.is_open), 0),
         count(*) filter (where u.is_open and u.ended_at is null),
         count(*) filter (where u.is_open and u.cost is null),
         (
           select max(l.sent_at) + interval '1 day'
             from lost as l
            where l.since_then >= (select s.max_unbilled_cost_per_user from vidgen.settings as s)
         )
    from paid as u;
$$;

-- Provider credits of a rolling day without a result for this user: neither charged nor stored (without
-- credits nothing is ever charged). A generation of a task without a cancel may still end in a video, and
-- does not count.
create function vidgen.unbilled_cost(owner uuid) returns numeric
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select u.lost
    from vidgen.unbilled(
           unbilled_cost.owner,
           (select l.lifted_at from vidgen.user_limits as l where l.user_id = unbilled_cost.owner)
         ) as u;
$$;

-- Pause a user until then: the user's turn in the line, and the user's tasks that wait for a clip. Rows that
-- a claim has locked are skipped; those tasks meet the limit when they submit.
create function vidgen.pause_user(of_user uuid, until_then timestamptz, of_reason text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  update vidgen.user_limits as u
     set paused_until = until_then, reason = of_reason
   where u.user_id = of_user;
  update vidgen.resumes as r
     set resume_at = until_then
    from (
      select w.task_id
        from vidgen.resumes as w
       where w.user_id = of_user and w.stage = 'video' and w.resume_at < until_then
         for update skip locked
    ) as waiting
   where r.task_id = waiting.task_id;
  update vidgen.turns as t
     set waiting_since = null, due_at = until_then
    from (
      select w.user_id, w.lane
        from vidgen.turns as w
       where w.user_id = of_user
         for update skip locked
    ) as turn
   where (t.user_id, t.lane) = (turn.user_id, turn.lane);
end
$$;

-- End a user's pause: the user's waiting tasks are due at once.
create function vidgen.unpause_user(of_user uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  was timestamptz;
begin
  select u.paused_until into was from vidgen.user_limits as u where u.user_id = of_user for no key update;
  if was is null then
    return;
  end if;
  update vidgen.user_limits as u set paused_until = null, reason = null where u.user_id = of_user;
  if was > now() then
    update vidgen.resumes as r
       set resume_at = now()
      from (
        select w.task_id
          from vidgen.resumes as w
         where w.user_id = of_user and w.stage = 'video' and w.resume_at = was
           for update skip locked
      ) as waiting
     where r.task_id = waiting.task_id;
    insert into vidgen.arrivals (user_id, lane, due_at)
    select t.user_id, t.lane, now() from vidgen.turns as t where t.user_id = of_user;
    perform vidgen.wake_lane(1);
    if exists (select from vidgen.turns as t where t.user_id = of_user and t.lane = 0) then
      perform vidgen.wake_lane(0);
    end if;
  end if;
end
$$;

-- Whether a submission of this user may begin; null: it may. A function, because each of its statements
-- sees what was committed before it got the lock: of four workers that call it at once, each counts the
-- submission of the one before. The answers `rejected` and `ended` end the task, `waits` returns it to the
-- queue for some seconds.
create function vidgen.refuse_submission(
  of_user uuid, of_task uuid, of_submission uuid, of_provider text, of_model text, of_digest text,
  probe interval
) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s'
as $$
#variable_conflict use_variable
declare
  limits vidgen.settings;
  mine vidgen.user_limits;
  trouble vidgen.user_troubles;
  cost record;
  each_costs numeric;
  under_way bigint;
  has_begun boolean;
  rejected timestamptz;
  same_input bigint;
  until_then timestamptz;
  why text;
begin
  perform vidgen.take_limits_lock(of_user);
  select u.* into mine from vidgen.user_limits as u where u.user_id = of_user;
  select s.* into limits from vidgen.settings as s;

  select exists (select from vidgen.submissions as s where s.id = of_submission),
         (
           select r.rejected_at
             from vidgen.rejections as r
            where r.user_id = of_user and r.digest = of_digest
              and r.rejected_at > now() - limits.rejection_memory
         ),
         (
           select count(*) from vidgen.submissions as s
            where s.user_id = of_user and s.digest = of_digest and s.task_id <> of_task
              and s.sent_at > now() - interval '1 day' and not s.billed and s.cost is distinct from 0
              and s.ended_at is null and (s.answer is null or s.answer = 'generation')
         )
    into has_begun, rejected, same_input;
  if has_begun then
    return null;  -- a repeat
  end if;
  if rejected is not null then
    return jsonb_build_object('kind', 'rejected', 'details', format(
      'the same input was rejected at %s UTC', to_char(rejected at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
    ));
  end if;
  -- The same input, which has never gone well, is under way for as many other tasks of this user as may be
  -- rejected in a row: their results decide. Only this task waits, longer each time.
  if same_input >= limits.rejections_to_slow and not exists (
    select from vidgen.submissions as s
     where s.user_id = of_user and s.digest = of_digest and s.sent_at > now() - interval '1 day'
       and s.ended_state = 'succeeded'
  ) then
    return jsonb_build_object(
      'kind', 'waits', 'details', 'the same input is under way for other tasks',
      'seconds', (
        select 3 * 2 ^ least(t.attempt - 1, 4)
          from public.video_generation_tasks as t where t.id = of_task
      )
    );
  end if;
  if mine.stopped_until > now() then
    return jsonb_build_object('kind', 'ended', 'message', format(
      'The provider''s content rules rejected %s of your scenes in a row, so nothing more is generated '
      'for you before %s UTC. Change what your scenes ask for, and retry then.',
      mine.rejections, to_char(mine.stopped_until at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
    ));
  end if;
  if mine.rejections >= limits.rejections_to_stop then
    -- The stop is over: the user begins anew, slowly.
    mine.rejections := limits.rejections_to_slow;
    update vidgen.user_limits as u
       set rejections = mine.rejections, stopped_until = null
     where u.user_id = of_user;
  end if;

  select u.* into cost from vidgen.unbilled(of_user, mine.lifted_at) as u;
  if cost.lost >= limits.max_unbilled_cost_per_user then
    return jsonb_build_object('kind', 'ended', 'message', format(
      'Too much was generated for you without ending in a video: %s of %s provider credits within a '
      'day. Nothing was paid for this task. Retry it after %s UTC.',
      trim_scale(cost.lost), trim_scale(limits.max_unbilled_cost_per_user),
      to_char(cost.opens_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
    ));
  end if;
  if cost.open > 0 or cost.unpriced > 0 then
    -- Generations under way and outputs that wait for storage may be lost as well.
    if cost.unpriced > 0 then
      select coalesce(max(s.estimated_cost), limits.expected_cost) into each_costs
        from (
          select l.estimated_cost
            from vidgen.submissions as l
           where l.model = of_model
           order by l.sent_at desc
           limit 50
        ) as s;
      cost.open := cost.open + cost.unpriced * each_costs;
    end if;
    if cost.lost + cost.open >= limits.max_unbilled_cost_per_user then
      until_then := now() + interval '5 seconds';
      why := format(
        '%s of %s provider credits are lost or under way', trim_scale(cost.lost + cost.open),
        trim_scale(limits.max_unbilled_cost_per_user)
      );
    end if;
  end if;
  -- No stage of this user was ever stored, or the last results were rejections: all generations under way may
  -- be rejected as well. Together with the rejections in a row they must not exceed the limit that slows the
  -- user down; after that, one submission at a time begins.
  if until_then is null and (mine.first_stored_at is null or mine.rejections > 0) then
    select count(*) into under_way
      from vidgen.submissions as s
     where s.user_id = of_user and s.sent_at > now() - interval '1 day'
       and not s.billed and s.cost is distinct from 0
       and s.ended_at is null and (s.answer is null or s.answer = 'generation');
    if under_way >= greatest(limits.rejections_to_slow - mine.rejections, 1) then
      until_then := now() + interval '5 seconds';
      why := format(
        '%s, and %s generations under way',
        case mine.rejections
          when 0 then 'nothing of his was stored yet' else format('%s rejections in a row', mine.rejections)
        end,
        under_way
      );
    end if;
  end if;
  if mine.rejections >= limits.rejections_to_slow then
    select greatest(
             until_then,
             max(s.sent_at)
             + limits.rejection_pause * 2 ^ least(mine.rejections - limits.rejections_to_slow, 20)
           )
      into until_then
      from (
        select l.sent_at
          from vidgen.submissions as l
         where l.user_id = of_user
         order by l.sent_at desc
         limit 1
      ) as s;
    why := coalesce(why, format('%s rejections in a row', mine.rejections));
  end if;
  select t.* into trouble
    from vidgen.user_troubles as t
   where t.user_id = of_user and t.provider = of_provider and t.model = of_model
     and t.next_at is not null;
  if found and trouble.trial is distinct from of_task and trouble.next_at > now() then
    until_then := greatest(until_then, trouble.next_at);
    why := coalesce(why, format('%s: %s', trouble.reason, trouble.details));
  end if;

  if until_then > now() then
    perform vidgen.pause_user(of_user, until_then, why);
    return jsonb_build_object(
      'kind', 'waits', 'details', why,
      'seconds', extract(epoch from until_then - clock_timestamp())
    );
  end if;
  if trouble.user_id is not null and trouble.trial is distinct from of_task then
    -- As at a gate: one task tries it, and the pause before the next one doubles.
    update vidgen.user_troubles as t
       set trial = of_task, pauses = t.pauses + 1,
           next_at = now() + least(probe * 2 ^ least(t.pauses + 1, 20), interval '5 minutes')
     where t.user_id = of_user and t.provider = of_provider and t.model = of_model;
  elsif mine.paused_until is not null and trouble.user_id is null
        and mine.rejections < limits.rejections_to_slow then
    update vidgen.user_limits as u set paused_until = null, reason = null where u.user_id = of_user;
  end if;
  return null;
end
$$;

-- A stage is stored: its cost is no loss, and it ends the failures in a row. The wait for the user's row is
-- short, because this statement holds locks on rows of others.
create function vidgen.stage_is_stored() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'
as $$
#variable_conflict use_variable
declare
  paid record;
begin
  -- One statement: for most users there is nothing else to write.
  with billed as (
    update vidgen.submissions as s
       set billed = true
     where s.task_id = new.task_id and s.stage = new.stage and not s.billed
       -- Costs that the task had lost before a retry stay lost.
       and (s.id = new.submission_id or s.counted)
  )
  select s.user_id, s.provider, s.model into paid
    from vidgen.submissions as s
    join vidgen.user_limits as u on u.user_id = s.user_id
   where s.id = new.submission_id
     and (u.first_stored_at is null or u.rejections > 0 or u.paused_until is not null
          or exists (select from vidgen.user_troubles as t where t.user_id = u.user_id));
  if found then
    perform from vidgen.user_limits as u where u.user_id = paid.user_id for no key update;
    update vidgen.user_limits as u
       set first_stored_at = now()
     where u.user_id = paid.user_id and u.first_stored_at is null;
    -- A still says nothing about clips: else each task's still would reset the count of rejected clips.
    update vidgen.user_limits as u
       set rejections = 0
     where u.user_id = paid.user_id and u.rejections > 0 and new.stage = 'video'
       and (u.stopped_until is null or u.stopped_until <= now());
    delete from vidgen.user_troubles as t
     where t.user_id = paid.user_id and t.provider = paid.provider and t.model = paid.model;
    if not exists (select from vidgen.user_troubles as t where t.user_id = paid.user_id) then
      perform vidgen.unpause_user(paid.user_id);
    end if;
  end if;
  return null;
end
$$;

create trigger stage_is_stored
  after update of state on vidgen.checkpoints
  for each row
  when (new.state = 'done' and old.state <> 'done')
  execute function vidgen.stage_is_stored();

-- An input was rejected. The rejection counts for every end of its task: a cancel does not hide it.
create function vidgen.submission_is_rejected() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'
as $$
#variable_conflict use_variable
begin
  insert into vidgen.rejections as r (user_id, digest, task_id)
  values (new.user_id, coalesce(new.digest, new.fingerprint), new.task_id)
      on conflict on constraint rejections_pkey do update
     set task_id = excluded.task_id, rejected_at = excluded.rejected_at;
  insert into vidgen.user_limits as u (user_id, rejections, rejected_at)
  values (new.user_id, 1, now())
      on conflict on constraint user_limits_pkey do update
     set rejections = least(u.rejections + 1, 1000)::smallint, rejected_at = now(),
         stopped_until = (
           select case
                    when u.rejections + 1 >= s.rejections_to_stop then now() + s.rejection_stop
                    else u.stopped_until
                  end
             from vidgen.settings as s
         );
  return null;
end
$$;

create trigger submission_is_rejected
  after update of rejected on vidgen.submissions
  for each row
  when (new.rejected and not old.rejected)
  execute function vidgen.submission_is_rejected();

-- Record a trouble that a task met after money was spent. Returns the numbers of tasks and users that have
-- met it in a row; a task counts once. `weighed` is the number of users, where all users for whom this model
-- has never worked count as one as soon as any task is completed: a new account could send any input. From the
-- third user on only `allowance` further submissions begin. The user's own trouble is counted separately:
-- three results in a row pause the user (`braked`: from now on), then one task after the other tries whether
-- the trouble has passed. The user's row is locked first, then the trouble's row, which concerns all.
create function vidgen.note_trouble(
  of_provider text, of_scope text, of_part text, of_model text, of_reason text, of_message text,
  of_details text, of_task uuid, of_user uuid, allowance integer, probe interval
) returns table (tasks integer, users integer, weighed integer, braked boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '200ms'
as $$
#variable_conflict use_variable
declare
  in_a_row constant integer := 3;
  proven boolean;
  delivered boolean;
  noted vidgen.troubles;
  sent uuid;
  own vidgen.user_troubles;
begin
  select s.id into sent
    from vidgen.submissions as s
   where s.task_id = of_task
   order by s.sent_at desc
   limit 1;
  if sent is not null then
    perform vidgen.lock_limits(of_user);
  end if;
  proven := exists (
    select from vidgen.submissions as s
     where s.user_id = of_user and s.model = of_model and s.ended_state = 'succeeded'
  );
  delivered := exists (
    select from public.video_generation_tasks as t where t.status = 'completed'
  );
  -- The arrays are cut at the length that is needed.
  insert into vidgen.troubles as t (
    provider, scope, part, model, reason, message, details, tasks, proven_users, new_users
  )
  values (
    of_provider, of_scope, of_part, of_model, of_reason, of_message, of_details, array[of_task],
    case when proven then array[of_user] else '{}' end,
    case when proven then '{}' else array[of_user] end
  )
      on conflict on constraint troubles_pkey do update
     set reason = excluded.reason, message = excluded.message, details = excluded.details,
         tasks = case when excluded.tasks <@ t.tasks or cardinality(t.tasks) >= 10
                      then t.tasks else t.tasks || excluded.tasks end,
         proven_users = case when excluded.proven_users <@ t.proven_users
                                  or cardinality(t.proven_users) >= 10
                             then t.proven_users else t.proven_users || excluded.proven_users end,
         new_users = case when excluded.new_users <@ t.new_users
                               or cardinality(t.new_users) >= 10
                          then t.new_users else t.new_users || excluded.new_users end
  returning t.* into noted;
  tasks := cardinality(noted.tasks);
  select count(distinct one.id) into users
    from unnest(noted.proven_users || noted.new_users) as one (id);
  weighed := cardinality(noted.proven_users)
             + least(cardinality(noted.new_users), case when delivered then 1 else 10 end);
  if users >= in_a_row and allowance is not null and noted.remaining is null then
    update vidgen.troubles as t
       set remaining = allowance
     where t.provider = of_provider and t.scope = of_scope and t.part = of_part and t.model = of_model;
  end if;

  braked := false;
  if sent is not null then
    insert into vidgen.user_troubles as t (user_id, provider, model, reason, details, results)
    values (of_user, of_provider, of_model, of_reason, left(of_details, 500), array[sent])
        on conflict on constraint user_troubles_pkey do update
       set reason = excluded.reason, details = excluded.details,
           results = case when excluded.results <@ t.results or cardinality(t.results) >= 10
                          then t.results else t.results || excluded.results end
    returning t.* into own;
    if cardinality(own.results) >= in_a_row and own.next_at is null then
      update vidgen.user_troubles as t
         set next_at = now() + probe
       where t.user_id = of_user and t.provider = of_provider and t.model = of_model;
      perform vidgen.pause_user(of_user, now() + probe, format('%s: %s', of_reason, left(of_details, 500)));
      braked := true;
    end if;
  end if;
  return next;
end
$$;

-- Delete rows that are no longer needed. Rows of `user_locks` and `user_limits` stay, one per user: a
-- statement that wants the lock must find its row.
create function vidgen.sweep_limits() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  delete from vidgen.rejections as r
   where r.rejected_at < now() - (select s.rejection_memory from vidgen.settings as s);
  delete from vidgen.user_troubles as t
   where greatest(t.since, t.next_at) < now() - interval '1 day';
end
$$;

-- Lift a user's limits, for an operator: the user begins anew, and the user's waiting tasks are due at once.
create function vidgen.lift_limits(of_user uuid) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  known boolean;
begin
  update vidgen.user_locks as l
     set hour_began = now(), inserts = 0, changes = 0
   where l.user_id = of_user;
  known := found;
  perform from vidgen.user_limits as u where u.user_id = of_user for no key update;
  known := known or found;
  perform vidgen.unpause_user(of_user);
  delete from vidgen.user_troubles as t where t.user_id = of_user;
  insert into vidgen.user_limits as u (user_id, lifted_at)
  select of_user, now() where known
      on conflict on constraint user_limits_pkey do update
     set rejections = 0, stopped_until = null, lifted_at = excluded.lifted_at;
  -- A task that has begun waits in its own row.
  update public.video_generation_tasks as t
     set run_after = now()
    from (
      select w.id
        from public.video_generation_tasks as w
       where w.user_id = of_user and w.status = 'pending' and w.attempt > 0 and w.run_after > now()
         for no key update skip locked
    ) as waiting
   where t.id = waiting.id;
  return known;
end
$$;

-- Rights.

call vidgen.revoke_from_strangers();

revoke all on
  public.video_generation_gates
  from public, anon, authenticated, service_role, vidgen_worker;

revoke all on function
  vidgen.show_gates(), vidgen.show_gate(), vidgen.gate_opens(), vidgen.stands_aside(uuid),
  vidgen.room_before(text, text, text), vidgen.count_slots(text, text, text),
  vidgen.set_limit(text, text, text, integer, boolean),
  vidgen.free_slot(bigint, uuid, uuid), vidgen.submission_ends(), vidgen.task_leaves(),
  vidgen.take_user_lock(uuid), vidgen.lock_user(uuid), vidgen.take_limits_lock(uuid),
  vidgen.lock_limits(uuid), vidgen.count_user(uuid, bigint, bigint),
  vidgen.unbilled(uuid, timestamptz), vidgen.unbilled_cost(uuid),
  vidgen.pause_user(uuid, timestamptz, text), vidgen.unpause_user(uuid),
  vidgen.refuse_submission(uuid, uuid, uuid, text, text, text, interval),
  vidgen.stage_is_stored(), vidgen.submission_is_rejected(),
  vidgen.note_trouble(text, text, text, text, text, text, text, uuid, uuid, integer, interval),
  vidgen.sweep_limits(), vidgen.lift_limits(uuid)
  from public, anon, authenticated, service_role;

grant select on public.video_generation_gates to authenticated;
grant select on public.video_generation_gates to service_role;
grant select, delete on vidgen.gates, vidgen.slots, vidgen.troubles to vidgen_worker;
grant insert (
  provider, scope, model, reason, message, details, probe_at, until
) on vidgen.gates to vidgen_worker;
grant update (message, details, probe_at, probes, until, trial) on vidgen.gates to vidgen_worker;
grant insert (
  provider, account, credit_balance, outlay
) on vidgen.account_readings to vidgen_worker;
grant select on
  public.video_generation_gates, vidgen.account_readings, vidgen.free_slots, vidgen.limits,
  vidgen.rejections, vidgen.user_limits, vidgen.user_locks, vidgen.user_troubles
  to vidgen_worker;
grant update (remaining) on vidgen.troubles to vidgen_worker;
grant insert (
  provider, account, model, max_generations, read_at
) on vidgen.limits to vidgen_worker;
grant update (max_generations, read_at, asked_at) on vidgen.limits to vidgen_worker;
grant insert (
  provider, account, model, task_id, submission_id, taken_at
) on vidgen.slots to vidgen_worker;
grant update (task_id, submission_id, taken_at) on vidgen.slots to vidgen_worker;
grant execute on function
  vidgen.stands_aside(uuid), vidgen.room_before(text, text, text),
  vidgen.count_slots(text, text, text),
  vidgen.set_limit(text, text, text, integer, boolean), vidgen.free_slot(bigint, uuid, uuid),
  vidgen.lock_limits(uuid), vidgen.unbilled(uuid, timestamptz),
  vidgen.refuse_submission(uuid, uuid, uuid, text, text, text, interval),
  vidgen.note_trouble(text, text, text, text, text, text, text, uuid, uuid, integer, interval),
  vidgen.sweep_limits()
  to vidgen_worker;

create policy "signed-in users see closed gates" on public.video_generation_gates
  for select to authenticated using (true);
create policy "the worker sees closed gates" on public.video_generation_gates
  for select to vidgen_worker using (true);

update vidgen.settings set schema_version = '20261130100500', oldest_program = '20261130100500';
