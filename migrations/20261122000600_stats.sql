-- Numbers for operators, and what pruning leaves behind.
--
-- The views cost what their window holds, never what the tables hold. Nothing here is for clients.

-- Every later migration that changes something sets `schema_version` to its own version, and
-- `oldest_program` where an older program would do harm: a program whose newest migration is older
-- than that refuses to start.
alter table vidgen.settings
  add column schema_version text not null default '20261122000600',
  add column oldest_program text not null default '20261122000600';

-- What ended when: a partial index, since running rows have nothing in it. Progress writes stay
-- HOT, because none of these columns changes with them.
create index video_generation_tasks_ended on public.video_generation_tasks (completed_at)
  include (status, error_code, started_at) where completed_at is not null;

-- Both tables grow at their end only: a BRIN costs nothing to keep and finds the last days.
create index submissions_by_time on vidgen.submissions using brin (sent_at)
  with (pages_per_range = 16, autosummarize = on);
create index credit_entries_by_time on public.credit_entries using brin (created_at)
  with (pages_per_range = 16, autosummarize = on);

create view vidgen.queue_health with (security_invoker = true) as
select waiting.due as pending, waiting.later as scheduled, waiting.oldest_seconds,
       running.tasks as processing,
       workers.alive as workers_alive, workers.silent as workers_silent,
       workers.steady as workers_steady, workers.slots,
       gates.closed as gates_closed
  from (
    select count(*) filter (where t.run_after <= now()) as due,
           count(*) filter (where t.run_after > now()) as later,
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
  'One row: what waits and for how long, what runs, who works, what is closed.';
comment on column vidgen.queue_health.workers_steady is
  'Workers that have lived one whole lease in good order: only they take over from the dead.';

create view vidgen.stats_hourly with (security_invoker = true) as
select hour, coalesce(t.completed, 0) as completed, coalesce(t.failed, 0) as failed,
       coalesce(t.cancelled, 0) as cancelled, t.seconds_median, t.seconds_p95,
       coalesce(s.submissions, 0) as submissions, coalesce(s.unknown, 0) as unknown_submissions,
       coalesce(s.cost, 0) as provider_cost, coalesce(e.credits, 0) as credits_charged
  from (
    select date_trunc('hour', completed_at) as hour,
           count(*) filter (where status = 'completed') as completed,
           count(*) filter (where status = 'failed') as failed,
           count(*) filter (where status = 'cancelled') as cancelled,
           percentile_cont(0.5) within group (order by extract(epoch from completed_at - started_at))
             filter (where status = 'completed') as seconds_median,
           percentile_cont(0.95) within group (order by extract(epoch from completed_at - started_at))
             filter (where status = 'completed') as seconds_p95
      from public.video_generation_tasks
     where completed_at > now() - interval '7 days'
     group by 1
  ) as t
  full join (
    select date_trunc('hour', sent_at) as hour, count(*) as submissions,
           count(*) filter (where answer = 'unknown') as unknown,
           sum(coalesce(cost, estimated_cost, 0)) as cost
      from vidgen.submissions
     where sent_at > now() - interval '7 days'
     group by 1
  ) as s using (hour)
  full join (
    select date_trunc('hour', created_at) as hour, -sum(amount) as credits
      from public.credit_entries
     where created_at > now() - interval '7 days' and kind = 'charge'
     group by 1
  ) as e using (hour);

comment on view vidgen.stats_hourly is 'The last seven days, by hour; costs are booked when submitted.';

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
  'The last 31 days, by user and day: what the provider costs us beside what the user was charged.';

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

grant select on vidgen.queue_health, vidgen.stats_hourly, vidgen.consumption_by_user,
  vidgen.consumption_by_model to vidgen_worker;

-- Tombstones. A charge is unique per task and stage and outlives the task: an id that came back
-- would be a task that can't be charged. `objects` is what the task had stored, until it is deleted.
create table vidgen.pruned (
  task_id uuid primary key,
  pruned_at timestamptz not null default now(),
  objects jsonb
);

comment on table vidgen.pruned is
  'Ids of pruned tasks, which can''t be used again, and the files they left in Storage.';

create index pruned_with_objects on vidgen.pruned (pruned_at) where objects is not null;

grant select on vidgen.pruned to vidgen_worker;

-- After the statement, so that its own snapshot sees a tombstone whose deletion it waited for.
create function vidgen.refuse_pruned_ids() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
  used uuid;
begin
  select i.id into used
    from inserted as i
   where exists (select from vidgen.pruned as p where p.task_id = i.id)
   limit 1;
  if used is not null then
    raise exception 'the id % was a task''s that has been pruned', used
      using errcode = 'PT409', hint = 'Insert a new task with an id of its own.';
  end if;
  return null;
end
$$;

create trigger refuse_pruned_ids
  after insert on public.video_generation_tasks
  referencing new table as inserted
  for each statement execute function vidgen.refuse_pruned_ids();

revoke all on function vidgen.refuse_pruned_ids() from public, anon, authenticated, service_role;
