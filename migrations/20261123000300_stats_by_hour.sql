-- stats_hourly, hour by hour.
--
-- It looks at one hour at a time, each by an index range, so that `where hour > …` reads those hours
-- and no others; before, the last hour cost as much as all seven days. Columns and meaning stay.

create or replace view vidgen.stats_hourly with (security_invoker = true) as
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
  'The last seven days, by hour; costs are booked when submitted. Filter by hour: then only those are read.';

alter table vidgen.settings alter column schema_version set default '20261123000300';
update vidgen.settings set schema_version = '20261123000300';
