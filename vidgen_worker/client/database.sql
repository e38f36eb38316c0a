-- The statements of the Python service and the command line, one named block each.
-- Up to 770 lines: a catalogue of short statements, which are independent of each other.

-- act_as --
-- Take the identity that PostgREST would give these claims, for the rest of the transaction.
select set_config('role', %(role)s, true), set_config('request.jwt.claims', %(claims)s, true);

-- insert_task --
-- Insert a task; a second insert with the same id returns the existing row.
with made as (
  insert into public.video_generation_tasks (id, scene_id, user_id, priority, run_after)
  values (
    %(id)s, %(scene_id)s, %(user_id)s, %(priority)s,
    coalesce(%(run_after)s::timestamptz, now() + %(delay)s::interval, now())
  )
  on conflict (id) do nothing
  returning *
)
select * from made
union all
select * from public.video_generation_tasks
 where id = %(id)s and not exists (select from made);

-- task --
-- One task by its id.
select * from public.video_generation_tasks where id = %(task_id)s;

-- task_and_clock --
-- One task by its id, with the database's clock, which its times are compared with.
select *, now() as database_now from public.video_generation_tasks where id = %(task_id)s;

-- tasks --
-- The newest tasks, of one user and one status where these are given.
select *
  from public.video_generation_tasks
 where (%(user_id)s::uuid is null or user_id = %(user_id)s)
   and (%(status)s::text is null or status = %(status)s)
 order by created_at desc, id
 limit %(limit)s;

-- cancel_task --
-- Cancel a task, or ask its worker to.
select * from public.cancel_video_generation_task(%(task_id)s);

-- retry_task --
-- Put a failed or cancelled task back into the queue.
select * from public.retry_video_generation_task(%(task_id)s);

-- scenario_resolution --
-- The resolution of a scene's scenario; no row when the scene is absent.
select s.id, c.resolution
  from public.video_scenes as s
  left join public.video_scenarios as c on c.id = s.scenario_id
 where s.id = %(scene_id)s;

-- checkpoints_of_task --
-- How far each stage of a task has come.
select stage, state, generation_id, path, size, updated_at
  from vidgen.checkpoints
 where task_id = %(task_id)s
 order by created_at;

-- submissions_of_task --
-- Every paid POST of a task, oldest first.
select stage, attempt, model, account, key_fingerprint as key, sent_at, answer, generation_id,
       estimated_cost, ended_state, cost
  from vidgen.submissions
 where task_id = %(task_id)s
 order by sent_at;

-- refusal_of_task --
-- The reason and the end of a task's pause; null: the task is no longer set aside.
select tries, since, until, statement, error
  from vidgen.refusals
 where task_id = %(task_id)s;

-- tasks_set_aside --
-- The number of tasks that are set aside because their row refuses a change.
select count(*) as tasks from vidgen.set_aside;

-- limited_users --
-- Users who are stopped by one of their limits, or near it: stopped users first.
select u.user_id, u.rejections, u.rejected_at,
       case when u.stopped_until > now() then u.stopped_until end as stopped_until,
       case when u.paused_until > now() then u.paused_until end as paused_until,
       case when u.paused_until > now() then u.reason end as reason
  from vidgen.user_limits as u
 where u.stopped_until > now() or u.paused_until > now() or u.rejections > 0
 order by (u.stopped_until > now()) desc nulls last, u.rejections desc, u.user_id
 limit %(limit)s;

-- limits_of_user --
-- The use of each limit by a user, and the limits that stop the user; one row for any user.
select who.user_id,
       coalesce(u.rejections, 0) as rejections, s.rejections_to_slow, s.rejections_to_stop,
       case when u.stopped_until > now() then u.stopped_until end as stopped_until,
       case when u.paused_until > now() then u.paused_until end as paused_until,
       case when u.paused_until > now() then u.reason end as reason,
       cost.lost, cost.open, cost.running, s.max_unbilled_cost_per_user as most_lost, cost.opens_at,
       (
         -- Two counts: for one the planner would read all tasks that the user ever ordered.
         (select count(*) from public.video_generation_tasks as t
           where t.user_id = who.user_id and t.status = 'pending')
         + (select count(*) from public.video_generation_tasks as t
             where t.user_id = who.user_id and t.status = 'processing')
       ) as unfinished,
       s.max_unfinished_per_user as most_unfinished,
       case when hour.is_now then l.inserts else 0 end as inserts, s.max_inserts_per_hour,
       case when hour.is_now then l.changes else 0 end as changes, s.max_changes_per_hour,
       u.lifted_at
  from (select %(user_id)s::uuid as user_id) as who
 cross join vidgen.settings as s
  left join vidgen.user_limits as u on u.user_id = who.user_id
  left join vidgen.user_locks as l on l.user_id = who.user_id
 cross join lateral vidgen.unbilled(who.user_id, u.lifted_at) as cost
 cross join lateral (
   select coalesce(l.hour_began between now() - interval '1 hour' and now(), false) as is_now
 ) as hour;

-- rejections_of_user --
-- The inputs of a user that are not sent again, newest first.
select r.task_id, r.rejected_at, r.rejected_at + s.rejection_memory as forgotten_at
  from vidgen.rejections as r
 cross join vidgen.settings as s
 where r.user_id = %(user_id)s and r.rejected_at > now() - s.rejection_memory
 order by r.rejected_at desc
 limit %(limit)s;

-- lift_limits --
-- Lift a user's limits; false: the user had no counts.
select vidgen.lift_limits(%(user_id)s) as known;

-- users_limited --
-- The number of users who are stopped by one of their limits now.
select count(*) filter (where u.stopped_until > now()) as stopped,
       count(*) filter (where u.paused_until > now()) as paused
  from vidgen.user_limits as u
 where u.stopped_until > now() or u.paused_until > now();

-- grant_credits --
-- Add to a user's balance, once per reference.
select * from public.grant_video_credits(%(user_id)s, %(amount)s, %(reference)s);

-- user_credits --
-- A user's balance and the held part of it; no row for a user who never had a balance.
select balance, held from public.user_credits where user_id = %(user_id)s;

-- credit_entries_of_user --
-- The newest entries of a user's ledger.
select id, task_id, kind, amount, reference, created_at
  from public.credit_entries
 where user_id = %(user_id)s
 order by created_at desc, id desc
 limit %(limit)s;

-- credit_prices --
-- The price of each action.
select action, credits from public.credit_prices order by action;

-- add_scenario --
-- A scenario for the demo.
insert into public.video_scenarios (id, resolution)
values (%(id)s, %(resolution)s)
on conflict (id) do update set resolution = excluded.resolution
returning id;

-- add_scene --
-- A scene for the demo.
insert into public.video_scenes (
  id, user_id, scenario_id, image_prompt, visual_prompt, product_reference_image_url, duration
)
values (
  %(id)s, %(user_id)s, %(scenario_id)s, %(image_prompt)s, %(visual_prompt)s, %(reference)s,
  %(duration)s
)
on conflict (id) do update set product_reference_image_url = excluded.product_reference_image_url
returning id;

-- server --
-- The facts about the server that `check` needs, in one round trip.
select current_setting('server_version_num')::integer as version,
       current_setting('server_version') as version_text,
       current_user as role,
       current_database() as database,
       pg_is_in_recovery() as is_standby,
       -- A session may have its own value. A value of the database or the role has a reason too: Supabase
       -- sets one when the disk is full.
       current_setting('transaction_read_only')::boolean
         or exists (
           select from (
             select lower(split_part(pair, '=', 2)) as value
               from pg_catalog.pg_db_role_setting as setting
              cross join unnest(setting.setconfig) as pair
              where pair like 'default_transaction_read_only=%%'
                and setting.setdatabase in
                    (0, (select oid from pg_catalog.pg_database where datname = current_database()))
                and setting.setrole in
                    (0, (select oid from pg_catalog.pg_roles where rolname = current_user))
              -- PostgreSQL's own order: role in database, role, database.
              order by setting.setrole = 0, setting.setdatabase = 0
              limit 1
           ) as strongest
            where strongest.value in ('on', 'true', 'yes', '1')
         ) as read_only,
       clock_timestamp() as clock,
       to_regclass('public.video_generation_tasks') is not null as has_tasks,
       exists (
         select from pg_catalog.pg_publication_tables
          where pubname = 'supabase_realtime' and tablename = 'video_generation_tasks'
       ) as published;

-- worker_rights --
-- The rights that a worker needs, by name; null where the object is absent.
select what, granted
  from (values
    ('update public.video_generation_tasks',
     has_any_column_privilege(to_regclass('public.video_generation_tasks'), 'UPDATE')),
    ('insert into vidgen.workers',
     case when has_schema_privilege('vidgen', 'USAGE')
          then has_any_column_privilege(to_regclass('vidgen.workers'), 'INSERT') end),
    ('insert into vidgen.submissions',
     case when has_schema_privilege('vidgen', 'USAGE')
          then has_any_column_privilege(to_regclass('vidgen.submissions'), 'INSERT') end)
  ) as rights (what, granted);

-- trigger_rights --
-- The clients that may create a trigger on a table that we write with greater rights than theirs: their
-- function would run with our rights. The catalogue is read, because a worker's role may not use schema
-- storage.
select format('%%I.%%I', n.nspname, c.relname) as name,
       string_agg(distinct coalesce(r.rolname, 'public'), ', ') as roles
  from pg_catalog.pg_class as c
  join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
 cross join pg_catalog.aclexplode(c.relacl) as a
  left join pg_catalog.pg_roles as r on r.oid = a.grantee
 where n.nspname = 'public' and c.relname in ('video_scenes', 'video_generation_tasks')
   and a.privilege_type = 'TRIGGER' and coalesce(r.rolname, 'public') in ('public', 'anon', 'authenticated')
 group by 1
 order by 1;

-- storage_trigger_logins --
-- The same for storage.objects, which Supabase itself grants to its clients. Only a login with SQL could use
-- it that is not Supabase's own; those may become service_role or the owner anyway.
select string_agg(distinct login.rolname, ', ') as logins, owner.rolname as owner,
       string_agg(distinct coalesce(quote_ident(r.rolname), 'public'), ', ') as roles
  from pg_catalog.pg_class as c
  join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
  join pg_catalog.pg_roles as owner on owner.oid = c.relowner
 cross join pg_catalog.aclexplode(c.relacl) as a
  left join pg_catalog.pg_roles as r on r.oid = a.grantee
  join pg_catalog.pg_roles as login
    on login.rolcanlogin and not login.rolsuper
   and (a.grantee = 0 or pg_has_role(login.oid, a.grantee, 'member'))
   and not pg_has_role(login.oid, c.relowner, 'member')
   and not pg_has_role(login.oid, 'service_role', 'member')
 where n.nspname = 'storage' and c.relname = 'objects' and a.privilege_type = 'TRIGGER'
   -- An operator's login, or the worker's.
   and not pg_has_role(
     login.oid, (select t.relowner from pg_catalog.pg_class as t
                  where t.oid = 'public.video_generation_tasks'::regclass), 'member'
   )
 group by owner.rolname;

-- creators_in_public --
-- The clients that may create functions in schema public, where our sessions search names too.
select string_agg(distinct coalesce(r.rolname, 'public'), ', ') as roles
  from pg_catalog.pg_namespace as n
 cross join pg_catalog.aclexplode(n.nspacl) as a
  left join pg_catalog.pg_roles as r on r.oid = a.grantee
 where n.nspname = 'public' and a.privilege_type = 'CREATE'
   and coalesce(r.rolname, 'public') in ('public', 'anon', 'authenticated')
having count(*) > 0;

-- hidden_scenes --
-- Whether row level security hides scenes from the owner of the functions that read and write them; the
-- first migration refuses the same.
select c.oid::regclass::text as name, quote_ident(owner.rolname) as owner
  from pg_catalog.pg_class as c
  join pg_catalog.pg_class as ours on ours.oid = 'public.video_generation_tasks'::regclass
  join pg_catalog.pg_roles as owner on owner.oid = ours.relowner
 where c.oid in (to_regclass('public.video_scenes'), to_regclass('public.video_scenarios'))
   and c.relrowsecurity and not owner.rolsuper and not owner.rolbypassrls
   and (c.relforcerowsecurity or not pg_has_role(owner.oid, c.relowner, 'usage'))
   and not exists (
     select
       from pg_catalog.pg_policy as p
      where p.polrelid = c.oid and p.polpermissive and p.polcmd = '*' and owner.oid = any (p.polroles)
   )
 order by 1;

-- live_workers --
-- Workers that are not declared dead, with the time of their last heartbeat.
select id, host, pid, version, running, account, key_fingerprint, heartbeat_at,
       now() - heartbeat_at as silence
  from vidgen.workers
 where dead_at is null
 order by started_at;

-- notify --
-- The NOTIFY for a LISTEN: it arrives only where the listening connection has a session of its own.
select pg_notify(%(channel)s, '');

-- credit_audit --
-- Users whose balance, holds and ledger do not agree; must be empty.
select user_id, balance, held, entries_total, holds_total
  from vidgen.credit_discrepancies
 order by user_id;

-- submissions_of_account --
-- One account's last 24 hours in our records, by model: generations, possibly paid submissions.
select model,
       count(*) filter (where answer = 'generation') as generations,
       count(*) filter (where answer = 'unknown'
                           or (answer is null and sent_at < now() - interval '5 minutes')) as unknown,
       count(*) filter (where answer is null
                          and sent_at >= now() - interval '5 minutes') as in_flight
  from vidgen.submissions
 where provider = %(provider)s and (account = %(account)s or key_fingerprint = %(key_fingerprint)s)
   and sent_at > now() - interval '24 hours'
 group by model
 order by model;

-- outlay_of_account --
-- Provider credits of all our generations of one account, and the reading before this one.
select coalesce(sum(coalesce(s.cost, s.estimated_cost)), 0)
       + coalesce(
           (
             select o.outlay
               from vidgen.forgotten_outlays as o
              where o.provider = %(provider)s and o.account = %(account)s
           ),
           0
         ) as outlay,
       (select to_jsonb(r) from vidgen.account_readings as r
         where r.provider = %(provider)s and r.account = %(account)s
         order by r.read_at desc limit 1) as reading
  from vidgen.submissions as s
 where s.provider = %(provider)s
   and (s.account = %(account)s or s.key_fingerprint = %(key_fingerprint)s)
   and s.answer = 'generation';

-- possibly_paid --
-- Paid POSTs without an answer since a given time, and their highest possible cost: that of the dearest
-- generation of each model. `unpriced`: the number of those whose model has no known cost.
select count(*) as submissions, coalesce(sum(dearest.cost), 0) as credits,
       count(*) filter (where dearest.cost is null) as unpriced
  from vidgen.submissions as s
  left join lateral (
    select max(coalesce(k.cost, k.estimated_cost)) as cost
      from vidgen.submissions as k
     where k.provider = s.provider and k.model = s.model and k.answer = 'generation'
       and k.sent_at > now() - interval '7 days'
  ) as dearest on true
 where s.provider = %(provider)s
   and (s.account = %(account)s or s.key_fingerprint = %(key_fingerprint)s)
   and s.answer = 'unknown' and s.sent_at > %(since)s::timestamptz;

-- add_account_reading --
-- Store a reading for the next comparison.
insert into vidgen.account_readings (provider, account, credit_balance, outlay)
values (%(provider)s, %(account)s, %(credit_balance)s, %(outlay)s)
returning id;

-- provider_slots --
-- The slots and the taken ones, by account and model; for a model without a limit, the open generations.
-- Only accounts with a worker or a generation in flight are listed.
select account, model, slots, taken
  from (
    select l.account as account, l.model, l.max_generations as slots,
           case
             when l.max_generations is null then (
               select count(*)
                 from vidgen.submissions as s
                where s.ended_at is null and s.answer is distinct from 'unknown'
                  and s.provider = l.provider and s.model = l.model
                  and s.account = l.account
             )
             else (
               select count(*)
                 from vidgen.slots as s
                where s.task_id is not null
                  and (s.provider, s.account, s.model)
                    = (l.provider, l.account, l.model)
             )
           end::integer as taken,
           exists (
             select from vidgen.workers as w
              where w.dead_at is null and w.provider = l.provider
                and w.account = l.account
           ) as works
      from vidgen.limits as l
  ) as of_account
 where works or taken > 0
 order by model, account;

-- gates --
-- Every closed gate. An open gate has no row.
select provider, scope, model, reason, message, details, closed_at, until, probes,
       now() - closed_at as closed_for, until - now() as next_in
  from vidgen.gates
 order by closed_at;

-- close_gate --
-- Close a gate for all keys, as an operator. Without `until` only an operator opens it; with `until` the
-- first probe after that time opens it.
insert into vidgen.gates (provider, scope, model, reason, message, details, probe_at, until)
values ('runway', '*', %(model)s, 'OPERATOR', %(message)s, %(details)s, %(until)s, %(until)s)
on conflict (provider, scope, model) do update
   set message = excluded.message, details = excluded.details, probe_at = excluded.probe_at,
       until = excluded.until
returning model;

-- open_gate --
-- Open the gates of a model, of one scope or of all, even those that workers closed. A trouble that lasts
-- closes them again.
delete from vidgen.gates
 where model = %(model)s and (%(scope)s::text is null or scope = %(scope)s)
returning scope, reason;

-- fragment holds_of_task --
-- The open hold of a task, or the one that closed in the transaction of its end, each by its index. An index
-- by task_id would cost every claim one more page.
select h.opened_at, h.closed_at, h.prices, h.amount
  from vidgen.holds as h
 where h.task_id = %(task_id)s and h.closed_at is null
union all
select h.opened_at, h.closed_at, h.prices, h.amount
  from public.video_generation_tasks as of_task
  join vidgen.holds as h on h.closed_at = of_task.completed_at and h.task_id = of_task.id
 where of_task.id = %(task_id)s;

-- fragment charges_of_task --
-- The charges of a task. They lie between its order and its end, so that only this part of the user's ledger
-- is read.
select e.stage, e.amount, e.created_at
  from public.video_generation_tasks as of_task
  join public.credit_entries as e
    on e.user_id = of_task.user_id and e.task_id = of_task.id and e.kind = 'charge'
   and e.created_at between least(of_task.created_at, of_task.started_at)
                        and coalesce(of_task.completed_at, now())
 where of_task.id = %(task_id)s;

-- story_of_task --
-- The whole recorded history of a task, in the order of its events.
select at, what, stage, attempt, details
  from (
    select 1 as place, created_at as at, 'ordered' as what, null::text as stage,
           null::integer as attempt, null::text as details
      from public.video_generation_tasks where id = %(task_id)s
    union all
    select 2, started_at, 'first claimed', null, 1, null
      from public.video_generation_tasks where id = %(task_id)s and started_at is not null
    union all
    select 3, opened_at, 'credits held', null, null,
           (
             select string_agg(format('%%s for the %%s', p.credits, p.stage), ', ' order by st.place)
               from jsonb_each_text(h.prices) as p (stage, credits)
               left join vidgen.stages as st on st.name = p.stage
           )
      from (
        -- use holds_of_task --
      ) as h
    union all
    select 4, sent_at, 'submitted', stage, attempt, format('%%s with key %%s of account %%s, by worker %%s', model, key_fingerprint, account,
                  worker_id)
      from vidgen.submissions where task_id = %(task_id)s
    union all
    select 5, answered_at,
           case answer when 'generation' then 'accepted' when 'refused' then 'refused'
             else 'counted as possibly paid' end,
           stage, attempt,
           case answer
             when 'generation' then format('generation %%s, estimated cost %%s', generation_id,
                                           coalesce(estimated_cost::text, 'unknown'))
             else details end
      from vidgen.submissions where task_id = %(task_id)s and answer is not null
    union all
    select 6, ended_at, 'generation ' || ended_state, stage, attempt,
           format('cost %%s', coalesce(cost::text, 'not told'))
      from vidgen.submissions
     where task_id = %(task_id)s and ended_at is not null and answer is distinct from 'refused'
    union all
    select 7, updated_at, 'stored', stage, null,
           format('%%s bytes in bucket %%s', size, bucket)
      from vidgen.checkpoints where task_id = %(task_id)s and state = 'done'
    union all
    select 7, created_at, 'stored', null, null, format('%%s, %%s bytes in bucket %%s', name, size, bucket)
      from public.video_renditions where film_id = %(task_id)s
    union all
    select 8, created_at, 'charged', stage, null, format('%%s credits', -amount)
      from (
        -- use charges_of_task --
      ) as charges
    union all
    select 9, closed_at, 'rest of the hold released', null, null, null
      from (
        -- use holds_of_task --
      ) as h
     where closed_at is not null
    union all
    select 10, cancel_requested_at, 'cancel asked', null, null, null
      from public.video_generation_tasks
     where id = %(task_id)s and cancel_requested_at is not null
    union all
    select 11, since, 'set aside', null, null,
           format('%%s refused %%s time(s): %%s', statement, tries, error)
      from vidgen.refusals where task_id = %(task_id)s
    union all
    select 12, e.at, e.what, null, e.attempt,
           concat_ws(
             ', ', nullif(concat_ws(': ', e.code, e.details), ''),
             case when e.until > e.at + interval '1 second'
               then format('not before %%s UTC', to_char(e.until at time zone 'UTC', 'HH24:MI:SS')) end
           )
      from vidgen.events as e
     where e.task_id = %(task_id)s
       and not exists (
         select from public.video_generation_tasks as t
          where t.id = e.task_id and t.completed_at = e.at
       )
    union all
    -- The task's end, with our message for the user and the provider's text for the operator.
    select 13, t.completed_at, t.status, null, t.attempt,
           coalesce(concat_ws(' — ', t.error_code || ': ' || t.error_message, e.details), t.video_path)
      from public.video_generation_tasks as t
      left join vidgen.events as e on e.task_id = t.id and e.at = t.completed_at
     where t.id = %(task_id)s and t.completed_at is not null
  ) as story
 order by at, place;

-- money_of_task --
-- The user's price of a task beside its cost at the provider.
select (
         select coalesce(-sum(charges.amount), 0)::bigint
           from (
             -- use charges_of_task --
           ) as charges
       ) as charged,
       (select coalesce(sum(h.amount), 0)::bigint
          from vidgen.holds as h where h.task_id = t.id and h.closed_at is null) as held,
       (select coalesce(sum(coalesce(s.cost, s.estimated_cost)), 0)
          from vidgen.submissions as s where s.task_id = t.id) as provider_cost,
       coalesce(b.crashes, 0) as crashes, coalesce(b.retries, 0) as retries
  from public.video_generation_tasks as t
  left join vidgen.budgets as b on b.task_id = t.id
 where t.id = %(task_id)s;

-- queue_health --
-- One row: the waiting and running tasks, the longest wait, the workers.
select * from vidgen.queue_health;

-- in_flight_by_stage --
-- The running tasks by stage and state of the checkpoint, and when the last of them is
-- expected to be completed.
select coalesce(c.stage, '') as stage, coalesce(c.state, 'starting') as state, count(*) as tasks,
       max(t.expected_at) as expected_at
  from public.video_generation_tasks as t
  left join lateral (
    select c.stage, c.state
      from vidgen.checkpoints as c
      join vidgen.stages as st on st.name = c.stage
     where c.task_id = t.id order by st.place desc limit 1
  ) as c on true
 where t.status = 'processing'
 group by 1, 2
 order by 1, 2;

-- throughput --
-- The last hour and the last day, from the hourly numbers.
select label,
       coalesce(sum(completed), 0)::bigint as completed, coalesce(sum(failed), 0)::bigint as failed,
       coalesce(sum(cancelled), 0)::bigint as cancelled,
       coalesce(sum(submissions), 0)::bigint as submissions,
       coalesce(sum(unknown_submissions), 0)::bigint as unknown_submissions,
       coalesce(sum(provider_cost), 0) as provider_cost,
       coalesce(sum(credits_charged), 0)::bigint as credits_charged,
       (
         select count(*) from public.video_generation_tasks as t
          where t.completed_at >= date_trunc('hour', now()) - span.length
            and t.status = 'failed' and t.error_code = any(%(users_own)s::text[])
       ) as failed_by_users
  from (values ('this hour', interval '0'), ('24 hours', interval '23 hours'),
               ('7 days', interval '7 days')) as span (label, length)
  left join vidgen.stats_hourly as h on h.hour >= date_trunc('hour', now()) - span.length
 group by label, length
 order by length;

-- failures_by_code --
-- The reasons of failed tasks in the last day.
select error_code as code, count(*) as tasks, max(completed_at) as last
  from public.video_generation_tasks
 where completed_at > now() - interval '1 day' and status = 'failed'
 group by error_code
 order by tasks desc, code;

-- workers --
-- Every worker with a row, including dead ones until they are swept.
select id, host, pid, version, concurrency, running, started_at, heartbeat_at,
       now() - heartbeat_at as silence, steady_since, account, key_fingerprint,
       case
         when dead_at is not null then 'dead'
         when heartbeat_at < now() - lease then 'silent'
         when steady_since < now() - lease then 'steady'
         else 'settling'
       end as state
  from vidgen.workers
 order by dead_at nulls first, started_at;

-- prunable --
-- The rows that pruning would remove: tasks that ended before then, by status, and files of earlier runs.
select coalesce(t.tasks, 0) as tasks, coalesce(t.completed, 0) as completed,
       coalesce(t.failed, 0) as failed, coalesce(t.cancelled, 0) as cancelled, now() - %(age)s::interval as before,
       (select count(*) from vidgen.pruned where objects is not null) as tombstones_with_files
  from (
    select count(*) as tasks, count(*) filter (where status = 'completed') as completed,
           count(*) filter (where status = 'failed') as failed,
           count(*) filter (where status = 'cancelled') as cancelled
      from public.video_generation_tasks
     where completed_at < now() - %(age)s::interval
       and status in ('completed', 'failed', 'cancelled')
  ) as t;

-- fragment prunable --
-- The tasks t that may be removed, the oldest first.
where t.completed_at < %(before)s and t.status in ('completed', 'failed', 'cancelled')
  and t.id <> all (%(left)s::uuid[])
  -- A film that has not ended needs its parts, and what it names as such.
  and not vidgen.is_needed(t.id, null)
  and not exists (select from named as n where n.task_id = t.id)
  -- A generation that still runs is ended first, by a worker that finds its row.
  and not exists (
    select from vidgen.submissions as s
     where s.task_id = t.id and s.answer = 'generation' and s.ended_at is null
  )
order by t.completed_at

-- prune_tasks --
-- Remove a batch of tasks that ended before then, with their checkpoints; leave a tombstone that
-- names their files. Submissions, charges and holds stay until the janitor forgets them; the ledger is
-- permanent. For a forgotten task the row itself names the files. Locked rows are skipped, and so are those of
-- `left`, whose deletion was refused.
with named as materialized (select n.task_id from vidgen.named_tasks as n),
old as materialized (
  select t.id, t.image_path, t.video_path
    from public.video_generation_tasks as t
   -- use prunable --
   limit %(batch)s
     for update skip locked
),
buried as (
  insert into vidgen.pruned (task_id, objects)
  select old.id, coalesce(
           (
             -- Of a film not the files of its parts, which are tasks of their own.
             select jsonb_agg(jsonb_build_object('bucket', f.bucket, 'path', f.path) order by f.name)
               from (
                 select c.bucket, c.path, c.stage as name from vidgen.checkpoints as c where c.task_id = old.id
                 union all
                 select r.bucket, r.path, r.name from public.video_renditions as r where r.film_id = old.id
               ) as f
              where f.path is not null
           ),
           (
             select jsonb_agg(jsonb_build_object('bucket', f.bucket, 'path', f.path))
               from (
                 select s.images_bucket as bucket, old.image_path as path from vidgen.settings as s
                 union all
                 select s.videos_bucket, old.video_path from vidgen.settings as s
               ) as f
              where f.path is not null
           )
         )
    from old
  on conflict (task_id) do update set objects = excluded.objects
),
gone as (
  delete from public.video_generation_tasks as t using old where t.id = old.id
  returning t.id
)
select count(*) as tasks from gone;

-- next_to_prune --
-- The task that the next batch of one would take.
with named as materialized (select n.task_id from vidgen.named_tasks as n)
select t.id
  from public.video_generation_tasks as t
 -- use prunable --
 limit 1
   for no key update skip locked;

-- pruned_objects --
-- Files of pruned tasks that are still in Storage, a batch of tasks at a time, without files that an existing
-- task names.
select p.task_id,
       coalesce(
         (
           select jsonb_agg(f.file)
             from jsonb_array_elements(p.objects) as f (file)
            where not vidgen.is_charged(f.file ->> 'path')
         ),
         '[]'
       ) as objects
  from vidgen.pruned as p
 where p.objects is not null
 order by p.pruned_at
 limit %(batch)s;

-- objects_removed --
-- Record that the files are gone; the tombstones stay.
update vidgen.pruned set objects = null
 where task_id = any(%(task_ids)s::uuid[]) and objects is not null
returning task_id;

-- take_uploads --
-- Take uploads that are not charged and never will be, as the janitor does.
select taken.upload_id, taken.of_bucket as bucket, taken.of_path as path
  from vidgen.take_uploads(%(batch)s) as taken;

-- uploads_removed --
-- Record that these uploads are gone from Storage.
select vidgen.uploads_removed(%(upload_ids)s::uuid[]);

-- schema_version --
-- The database's migration, and the oldest program that may work on it; null where the database is older
-- than both columns.
select to_jsonb(s) ->> 'schema_version' as schema_version,
       to_jsonb(s) ->> 'oldest_program' as oldest_program
  from vidgen.settings as s;

-- share_buckets --
-- Set the buckets of the storage policy; null keeps a bucket. False where this role may not change them.
select vidgen.share_buckets(
         coalesce(%(images_bucket)s, s.images_bucket), coalesce(%(videos_bucket)s, s.videos_bucket)
       ) as shared
  from vidgen.settings as s;

-- buckets_of_the_policy --
-- The buckets of the storage policy.
select unnest(vidgen.our_buckets()) as bucket;
