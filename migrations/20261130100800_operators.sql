-- Numbers for operators, and the tombstones of pruned tasks.
--
-- The cost of a view depends on its time window, never on the size of the tables. Nothing here is for
-- clients.

set local search_path = '';

-- Tombstones. A charge is unique per task and stage and outlives the task: a second task with the same id
-- could not be charged. `objects` names the task's files, until they are deleted.
create table vidgen.pruned (
  task_id uuid primary key,
  pruned_at timestamptz not null default now(),
  objects jsonb
);

comment on table vidgen.pruned is
  'Ids of tasks whose private rows are gone, with the task or before it, and the files of deleted ones.';

create index pruned_with_objects on vidgen.pruned (pruned_at) where objects is not null;

create table vidgen.forgotten_outlays (
  provider text not null,
  account text not null,
  outlay numeric not null default 0,
  primary key (provider, account)
);

comment on table vidgen.forgotten_outlays is
  'Provider credits of generations whose submissions are gone: a sum per account, for `reconcile`.';

create view vidgen.queue_health with (security_invoker = true) as
select waiting.due as pending, waiting.later as scheduled, waiting.oldest_seconds,
       running.tasks as processing,
       workers.alive as workers_alive, workers.silent as workers_silent,
       workers.steady as workers_steady, workers.slots,
       gates.closed as gates_closed
  from (
    select count(*) filter (where t.run_after <= now()) as due,
           -- Not the films that wait for their parts.
           count(*) filter (
             where t.run_after > now() and t.run_after < '9999-01-01 00:00:00+00'
           ) as later,
           coalesce(extract(epoch from now() - min(greatest(t.run_after, t.created_at))
             filter (where t.run_after <= now())), 0)::float as oldest_seconds
      from public.video_generation_tasks as t
     where t.status = 'pending'
  ) as waiting,
  (select count(*) as tasks from public.video_generation_tasks as t where t.status = 'processing')
    as running,
  (
    select count(*) filter (where w.heartbeat_at >= now() - w.lease) as alive,
           count(*) filter (where w.heartbeat_at < now() - w.lease) as silent,
           count(*) filter (
             where w.heartbeat_at >= now() - w.lease and w.steady_since < now() - w.lease
           ) as steady,
           coalesce(sum(w.concurrency) filter (where w.heartbeat_at >= now() - w.lease), 0) as slots
      from vidgen.workers as w
     where w.dead_at is null
  ) as workers,
  (select count(*) as closed from vidgen.gates) as gates;

comment on view vidgen.queue_health is
  'One row: waiting and running tasks, the longest wait, workers and closed gates.';
comment on column vidgen.queue_health.workers_steady is
  'Workers whose heartbeats were in time for one whole lease: only they take over from the dead.';

create view vidgen.stats_hourly with (security_invoker = true) as
select hours.hour, t.completed, t.failed, t.cancelled, t.seconds_median, t.seconds_p95,
       s.submissions, s.unknown as unknown_submissions,
       coalesce(s.cost, 0) as provider_cost, coalesce(e.credits, 0) as credits_charged
  from generate_series(
         date_trunc('hour', now() - interval '7 days'), date_trunc('hour', now()), interval '1 hour'
       ) as hours (hour)
 cross join lateral (
    select count(*) filter (where status = 'completed') as completed,
           count(*) filter (where status = 'failed') as failed,
           count(*) filter (where status = 'cancelled') as cancelled,
           percentile_cont(0.5) within group (order by extract(epoch from completed_at - started_at))
             filter (where status = 'completed') as seconds_median,
           percentile_cont(0.95) within group (order by extract(epoch from completed_at - started_at))
             filter (where status = 'completed') as seconds_p95
      from public.video_generation_tasks
     where completed_at >= hours.hour and completed_at < hours.hour + interval '1 hour'
       and lane > 0  -- films are made of tasks that are counted already
  ) as t
 cross join lateral (
    select count(*) as submissions, count(*) filter (where answer = 'unknown') as unknown,
           sum(coalesce(cost, estimated_cost, 0)) as cost
      from vidgen.submissions
     where sent_at >= hours.hour and sent_at < hours.hour + interval '1 hour'
  ) as s
 cross join lateral (
    select -sum(amount) as credits
      from public.credit_entries
     where created_at >= hours.hour and created_at < hours.hour + interval '1 hour'
       and kind = 'charge'
  ) as e
 where t.completed + t.failed + t.cancelled + s.submissions > 0 or e.credits is not null;

comment on view vidgen.stats_hourly is
  'The last seven days, by hour; costs are booked when submitted. With a filter by hour only those are read.';

-- Filter by user_id: then only that user's rows are read.
create view vidgen.consumption_by_user with (security_invoker = true) as
select user_id, day, sum(submissions)::bigint as submissions, sum(provider_cost) as provider_cost,
       sum(credits)::bigint as credits_charged
  from (
    select user_id, date_trunc('day', sent_at) as day, count(*) as submissions,
           sum(coalesce(cost, estimated_cost, 0)) as provider_cost, 0::bigint as credits
      from vidgen.submissions
     where sent_at > now() - interval '31 days'
     group by 1, 2
    union all
    select user_id, date_trunc('day', created_at), 0, 0, -sum(amount)
      from public.credit_entries
     where created_at > now() - interval '31 days' and kind = 'charge'
     group by 1, 2
  ) as both_of_them
 group by user_id, day;

comment on view vidgen.consumption_by_user is
  'The last 31 days, by user and day: the provider''s cost beside the user''s charges.';

create view vidgen.consumption_by_model with (security_invoker = true) as
select date_trunc('day', sent_at) as day, provider, model, stage, count(*) as submissions,
       count(*) filter (where ended_state = 'succeeded') as succeeded,
       count(*) filter (where ended_state = 'failed') as failed,
       count(*) filter (where answer = 'unknown') as unknown,
       sum(coalesce(cost, estimated_cost, 0)) as provider_cost,
       (percentile_cont(0.5) within group (order by extract(epoch from ended_at - answered_at))
         filter (where ended_state = 'succeeded'))::float as seconds_median
  from vidgen.submissions
 where sent_at > now() - interval '7 days'
 group by 1, 2, 3, 4;

comment on view vidgen.consumption_by_model is 'The last seven days, by day, model and stage.';

-- An id can't be used again, in whatever way the task was removed: its submissions and charges are still in
-- the books, and a stage is charged once for an id.
-- The trigger runs after the statement, so that its snapshot sees the rows that it waited for.
create function vidgen.refuse_pruned_ids() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  used_id uuid;
begin
  select i.id into used_id
    from inserted as i
   where exists (select from vidgen.pruned as p where p.task_id = i.id)
      or exists (select from vidgen.submissions as s where s.task_id = i.id)
      or exists (select from vidgen.charges as c where c.task_id = i.id)
   limit 1;
  if used_id is not null then
    raise exception 'the id % was a task''s that has been pruned or deleted', used_id
      using errcode = 'PT409', hint = 'Insert a new task with an id of its own.';
  end if;
  return null;
end
$$;

create trigger refuse_pruned_ids
  after insert on public.video_generation_tasks
  referencing new table as inserted
  for each statement execute function vidgen.refuse_pruned_ids();

-- One batch: tasks that were submitted before then, and have ended before then or are deleted; never tasks
-- that the views and the limits still read. The next batch begins at `through`; null: this was the last.
create function vidgen.forget_tasks(older_than interval, after timestamptz, batch integer)
returns table (tasks bigint, through timestamptz)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  before timestamptz := now() - greatest(older_than, interval '32 days');
begin
  return query
  with named as materialized (
    select n.task_id from vidgen.named_tasks as n
  ),
  old as materialized (
    select o.task_id, o.sent_at
      from (
        (select s.task_id, s.sent_at
           from vidgen.submissions as s
          where s.sent_at < before and s.sent_at > coalesce(after, '-infinity')
          order by s.sent_at
          limit batch)
        union all
        -- Films: they have charges, and no submissions.
        (select c.task_id, c.charged_at
           from vidgen.charges as c
          where starts_with(c.stage, 'render:')
            and c.charged_at < before and c.charged_at > coalesce(after, '-infinity')
          order by c.charged_at
          limit batch)
      ) as o
     order by o.sent_at
     limit batch
  ),
  ended as materialized (
    select t.id
      from public.video_generation_tasks as t
     where t.id in (select old.task_id from old)
       and t.status in ('completed', 'failed', 'cancelled') and t.completed_at < before
       and not vidgen.is_needed(t.id, null)
       and not exists (select from named as n where n.task_id = t.id)
       -- A retry or a deletion may hold the row: a later batch takes it.
       for no key update skip locked
  ),
  deleted as materialized (
    select distinct old.task_id as id
      from old
     where not exists (select from public.video_generation_tasks as t where t.id = old.task_id)
       and not exists (
         select from vidgen.submissions as s where s.task_id = old.task_id and s.sent_at >= before
       )
  ),
  forgotten as materialized (
    select ended.id from ended union select deleted.id from deleted
  ),
  kept as (
    insert into vidgen.pruned (task_id)
    select f.id from forgotten as f order by f.id
        on conflict do nothing
  ),
  checkpoints as (
    delete from vidgen.checkpoints as c using forgotten as f where c.task_id = f.id
  ),
  submissions as (
    delete from vidgen.submissions as s using forgotten as f where s.task_id = f.id
    returning s.provider, s.account, s.answer, coalesce(s.cost, s.estimated_cost, 0) as outlay
  ),
  summed as (
    insert into vidgen.forgotten_outlays as o (provider, account, outlay)
    select s.provider, s.account, sum(s.outlay)
      from submissions as s
     where s.answer = 'generation'
     group by s.provider, s.account
     order by s.provider, s.account
        on conflict on constraint forgotten_outlays_pkey do update
       set outlay = o.outlay + excluded.outlay
  ),
  charges as (
    delete from vidgen.charges as c using forgotten as f where c.task_id = f.id
  ),
  budgets as (
    delete from vidgen.budgets as b using forgotten as f where b.task_id = f.id
  ),
  events as (
    delete from vidgen.events as e using forgotten as f where e.task_id = f.id
  ),
  refusals as (
    delete from vidgen.refusals as r using forgotten as f where r.task_id = f.id
  )
  select (select count(*) from forgotten),
         (select max(old.sent_at) from old having count(*) >= batch);
end
$$;

-- A forgotten task has no checkpoints: a retry would pay again for stored outputs.
create function vidgen.refuse_forgotten_retries() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if old.status in ('failed', 'cancelled') and new.status = 'pending'
     and exists (select from vidgen.pruned as p where p.task_id = new.id) then
    raise exception 'task % ended on %: it is too long ago to be retried', new.id,
      to_char(old.completed_at at time zone 'UTC', 'YYYY-MM-DD')
      using errcode = 'PT409', hint = 'Insert a new task.';
  end if;
  return new;
end
$$;

create trigger refuse_forgotten_retries
  before update of status on public.video_generation_tasks
  for each row
  when (old.status <> new.status)
  execute function vidgen.refuse_forgotten_retries();

-- Rights.

call vidgen.revoke_from_strangers();

revoke all on function
  vidgen.refuse_pruned_ids(), vidgen.forget_tasks(interval, timestamptz, integer),
  vidgen.refuse_forgotten_retries()
  from public, anon, authenticated, service_role;

grant select on
  vidgen.consumption_by_model, vidgen.consumption_by_user, vidgen.forgotten_outlays,
  vidgen.pruned, vidgen.queue_health, vidgen.stats_hourly
  to vidgen_worker;
grant execute on function vidgen.forget_tasks(interval, timestamptz, integer) to vidgen_worker;

update vidgen.settings set schema_version = '20261130100800', oldest_program = '20261130100800';
