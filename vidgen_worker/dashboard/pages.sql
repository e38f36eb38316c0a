-- The statements of the dashboard's pages beside the client's, one named block each.
--
-- None reads more when more tasks have ended. A page of tasks is found in two steps: an index alone gives
-- the times of its rows, and a second index gives the rows of those times. All rows of one INSERT have the
-- same time, so the second step may find more than it was asked for: the id decides then.

-- waiting_by_lane --
-- The waiting tasks of each lane, and since when they wait: only the index of waiting tasks is read.
select lane, count(*) filter (where run_after <= now()) as due,
       count(*) filter (where run_after > now()) as later,
       min(greatest(run_after, created_at)) filter (where run_after <= now()) as oldest,
       -- A film waits for its parts until then.
       nullif(
         min(run_after) filter (where run_after > now()), '9999-01-01 00:00:00+00'
       ) as next_due
  from public.video_generation_tasks
 where status = 'pending'
 group by lane
 order by lane;

-- what_waits --
-- The reasons of waiting, with the number of tasks and the end of the wait; null: the end is unknown.
select what, stage, number, until
  from (
    select 1 as place, 'users in line' as what, null as stage, count(*) as number,
           null::timestamptz as until
      from vidgen.turns where waiting_since is not null
    union all
    select 2, 'tasks that go on', stage, count(*), null
      from vidgen.resumes where resume_at <= now() group by stage
    union all
    select 3, 'tasks that go on later', stage, count(*), min(resume_at)
      from vidgen.resumes where resume_at > now() group by stage
    union all
    select 4, 'paused users', null, count(*), min(paused_until)
      from vidgen.user_limits where paused_until > now()
    union all
    select 5, 'stopped users', null, count(*), min(stopped_until)
      from vidgen.user_limits where stopped_until > now()
    union all
    select 6, 'tasks set aside', null, count(*), min(until) from vidgen.set_aside
    union all
    select 7, 'cancels', null, count(*), null
      from public.video_generation_tasks
     where status = 'pending' and cancel_requested_at is not null
    union all
    select 8, 'generations at the provider', stage, count(*), null
      from vidgen.submissions where ended_at is null and answer = 'generation' group by stage
    union all
    select 9, 'submissions without an answer', stage, count(*), null
      from vidgen.submissions where ended_at is null and answer is null group by stage
  ) as waits
 where number > 0
 order by place, stage;

-- ended_tasks --
-- The tasks that ended last, of one status and one code where these are given: of the `most` that ended
-- last, however many there are.
with last_ended as materialized (
  select completed_at, status, error_code
    from public.video_generation_tasks
   where completed_at is not null
     and (%(since)s::interval is null or completed_at > now() - %(since)s::interval)
   order by completed_at desc
   limit %(most)s
),
wanted as materialized (
  select completed_at
    from last_ended
   where (%(status)s::text is null or status = %(status)s)
     and (%(code)s::text is null or error_code = %(code)s)
   order by completed_at desc
   limit %(limit)s
)
select t.*
  from (select distinct completed_at from wanted) as w
 -- Row by row, by the index of what ended: no wrong estimate may make it read the table.
 cross join lateral (
   select *
     from public.video_generation_tasks as of_then
    where of_then.completed_at = w.completed_at
      and (%(status)s::text is null or of_then.status = %(status)s)
      and (%(code)s::text is null or of_then.error_code = %(code)s)
    order by of_then.completed_at, of_then.id
    limit %(limit)s
 ) as t
 order by t.completed_at desc, t.id
 limit %(limit)s;

-- waiting_tasks --
-- The tasks that wait, newest first.
with wanted as materialized (
  select user_id, created_at
    from public.video_generation_tasks
   where status = 'pending'
     and (%(since)s::interval is null or created_at > now() - %(since)s::interval)
   order by created_at desc
   limit %(limit)s
)
select t.*
  from (select distinct user_id, created_at from wanted) as w
 cross join lateral (
   select *
     from public.video_generation_tasks as of_then
    where of_then.user_id = w.user_id and of_then.created_at = w.created_at
      and of_then.status = 'pending'
    order by of_then.id
    limit %(limit)s
 ) as t
 order by t.created_at desc, t.id
 limit %(limit)s;

-- running_tasks --
-- The tasks that a worker has, newest first.
select *
  from public.video_generation_tasks
 where status = 'processing'
   and (%(since)s::interval is null or created_at > now() - %(since)s::interval)
 order by created_at desc, id
 limit %(limit)s;

-- tasks_of_user --
-- A user's newest tasks, of one status and one code where these are given: of his `most` newest.
select *
  from (
    select *
      from public.video_generation_tasks
     where user_id = %(user_id)s
       and (%(since)s::interval is null or created_at > now() - %(since)s::interval)
     order by created_at desc
     limit %(most)s
  ) as newest
 where (%(status)s::text is null or status = %(status)s)
   and (%(code)s::text is null or error_code = %(code)s)
 order by created_at desc, id
 limit %(limit)s;

-- order_of_task --
-- The order of a task, as its first stage froze it; else as its scene is now.
select coalesce(
         (
           select c.request
             from vidgen.checkpoints as c
             join vidgen.stages as st on st.name = c.stage
            where c.task_id = t.id
            order by st.place
            limit 1
         ),
         '{}'
       ) as request,
       vidgen.read_scene(t.scene_id, t.user_id) as scene
  from public.video_generation_tasks as t
 where t.id = %(task_id)s;

-- users_now --
-- Users who have something waiting or running, and those for whom something was submitted last.
with waiting as (
  select user_id, count(*) as waiting, min(created_at) as oldest
    from public.video_generation_tasks
   where status = 'pending'
   group by user_id
),
running as (
  select user_id, count(*) as running
    from public.video_generation_tasks
   where status = 'processing'
   group by user_id
),
recent as (
  select user_id, max(sent_at) as last_sent
    from (
      select user_id, sent_at from vidgen.submissions order by sent_at desc limit 1000
    ) as last_submissions
   group by user_id
),
known as (
  select user_id, w.waiting, w.oldest, r.running, s.last_sent
    from waiting as w
    full join running as r using (user_id)
    full join recent as s using (user_id)
   order by coalesce(r.running, 0) desc, coalesce(w.waiting, 0) desc, s.last_sent desc nulls last, user_id
   limit %(limit)s
)
select k.user_id, coalesce(k.waiting, 0) as waiting, k.oldest, coalesce(k.running, 0) as running,
       k.last_sent, c.balance, c.held,
       greatest(l.stopped_until, l.paused_until) > now() as kept_back
  from known as k
  left join public.user_credits as c on c.user_id = k.user_id
  left join vidgen.user_limits as l on l.user_id = k.user_id
 order by coalesce(k.running, 0) desc, coalesce(k.waiting, 0) desc, k.last_sent desc nulls last, k.user_id;

-- usage_of_user --
-- The provider's cost for a user beside the user's charges, by day: the last 31 days.
select day, submissions, provider_cost, credits_charged
  from vidgen.consumption_by_user
 where user_id = %(user_id)s
 order by day desc;

-- ended_by_step --
-- The tasks that ended in a period, by steps of one length, status and code, from the index alone. Step by
-- step, since a planner that is to group by time counts on as many groups as rows, and sorts them all.
select steps.began_at, ended.*
  from generate_series(
         %(since)s::timestamptz, %(until)s::timestamptz - interval '1 microsecond', %(length)s::interval
       ) as steps (began_at)
 cross join lateral (
   select t.status, t.error_code as code, count(*) as tasks, max(t.completed_at) as last
     from public.video_generation_tasks as t
    where t.completed_at >= steps.began_at and t.completed_at < least(steps.began_at + %(length)s::interval, %(until)s)
    group by t.status, t.error_code
 ) as ended;

-- submitted_by_step --
-- The submissions of a period, by steps, stage and model.
select steps.began_at, submitted.*
  from generate_series(
         %(since)s::timestamptz, %(until)s::timestamptz - interval '1 microsecond', %(length)s::interval
       ) as steps (began_at)
 cross join lateral (
   select s.stage, s.model, count(*) as submissions,
          count(*) filter (where s.ended_state = 'failed') as failed,
          count(*) filter (where s.answer = 'unknown') as unknown,
          coalesce(sum(coalesce(s.cost, s.estimated_cost)), 0) as provider_cost
     from vidgen.submissions as s
    where s.sent_at >= steps.began_at and s.sent_at < least(steps.began_at + %(length)s::interval, %(until)s)
    group by s.stage, s.model
 ) as submitted;

-- charged_by_step --
-- The charges of a period, by steps.
select steps.began_at, charged.credits_charged
  from generate_series(
         %(since)s::timestamptz, %(until)s::timestamptz - interval '1 microsecond', %(length)s::interval
       ) as steps (began_at)
 cross join lateral (
   select coalesce(-sum(e.amount), 0)::bigint as credits_charged
     from public.credit_entries as e
    where e.created_at >= steps.began_at and e.created_at < least(steps.began_at + %(length)s::interval, %(until)s)
      and e.kind = 'charge'
 ) as charged;

-- time_to_end --
-- How long the tasks took that were completed since, from their first claim on, in seconds: of the `most`
-- that ended last.
select percentile_cont(array[0.5, 0.95]) within group (order by seconds) as seconds
  from (
    select status, extract(epoch from completed_at - started_at)::float as seconds
      from public.video_generation_tasks
     where completed_at > now() - %(since)s::interval
     order by completed_at desc
     limit %(most)s
  ) as last_ended
 where status = 'completed';

-- time_of_generations --
-- How long the generations took that succeeded since, by stage and model, in seconds: of the `most` that
-- were submitted last.
select stage, model, percentile_cont(array[0.5, 0.95]) within group (order by seconds) as seconds
  from (
    select stage, model, ended_state, extract(epoch from ended_at - answered_at)::float as seconds
      from vidgen.submissions
     where sent_at > now() - %(since)s::interval
     order by sent_at desc
     limit %(most)s
  ) as last_submissions
 where ended_state = 'succeeded'
 group by stage, model;

-- codes_since --
-- Which codes tasks failed with since: of the `most` that ended last.
select distinct error_code as code
  from (
    select error_code
      from public.video_generation_tasks
     where completed_at > now() - %(since)s::interval
     order by completed_at desc
     limit %(most)s
  ) as last_ended
 where error_code is not null
 order by code
 limit 50;

-- consequences --
-- The effect of a cancel or a retry of these tasks: held credits, running generations, stages to pay.
select t.id, t.user_id, t.status, t.error_code, t.progress, coalesce(b.retries, 0) as retries,
       s.max_retries, held.credits as held,
       b.rejected_inputs = vidgen.scene_digest(t.scene_id, t.user_id) as rejected,
       exists (select from vidgen.pruned as p where p.task_id = t.id) as forgotten, running.generations, running.cost as running_cost,
       missing.stages, missing.credits as price, missing.cost as estimated_cost
  from public.video_generation_tasks as t
 cross join vidgen.settings as s
  left join vidgen.budgets as b on b.task_id = t.id
 cross join lateral (
   -- A film takes with it what it has ordered.
   select array(
            select t.id
            union all
            select part.id
              from vidgen.parts as of_film
              join public.video_generation_tasks as part on part.id = of_film.task_id
             where of_film.film_id = t.id and part.film_id = t.id
          ) as ids
 ) as cancelled
 cross join lateral (
   select coalesce(sum(h.amount), 0)::bigint as credits
     from vidgen.holds as h where h.task_id = any(cancelled.ids) and h.closed_at is null
 ) as held
 cross join lateral (
   select count(*) as generations, coalesce(sum(coalesce(u.cost, u.estimated_cost)), 0) as cost
     from vidgen.submissions as u
    where u.task_id = any(cancelled.ids) and u.answer = 'generation' and u.ended_at is null
 ) as running
 cross join lateral (
   -- A film has no stages: its failed and cancelled parts are tried again with it.
   select string_agg(distinct st.name, ', ') as stages, coalesce(sum(p.credits), 0)::bigint as credits,
          -- The cost of the stage for this task before; null where it was never submitted.
          sum(
            (
              select coalesce(u.cost, u.estimated_cost)
                from vidgen.submissions as u
               where u.task_id = reached.id and u.stage = st.name and u.answer = 'generation'
               order by u.sent_at desc
               limit 1
            )
          ) as cost
     from (
       select t.id where t.cut is null
       union all
       select part.id
         from vidgen.parts as of_film
         join public.video_generation_tasks as part on part.id = of_film.task_id
        where of_film.film_id = t.id and part.status in ('failed', 'cancelled')
     ) as reached
    cross join vidgen.stages as st
     left join public.credit_prices as p on p.action = st.action
    where not exists (
      select from vidgen.checkpoints as c
       where c.task_id = reached.id and c.stage = st.name and c.state in ('storing', 'done')
    )
 ) as missing
 where t.id = any(%(task_ids)s::uuid[])
 order by t.created_at desc, t.id;
