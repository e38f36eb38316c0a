-- What the Python service and the command line ask, one named block each.

-- act_as --
-- For the rest of the transaction, be who PostgREST would make of these claims.
select set_config('role', %(role)s, true), set_config('request.jwt.claims', %(claims)s, true);

-- insert_task --
-- Insert a task; a second insert with the same id returns the row that is there.
with made as (
  insert into public.video_generation_tasks (id, scene_id, user_id, priority, run_after)
  values (
    %(id)s, %(scene_id)s, %(user_id)s, %(priority)s,
    coalesce(%(run_after)s::timestamptz, now())
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
-- What the scenario of a scene says; no row when the scene is absent.
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
select stage, attempt, model, sent_at, answer, generation_id, estimated_cost, ended_state, cost
  from vidgen.submissions
 where task_id = %(task_id)s
 order by sent_at;

-- grant_credits --
-- Add to a user's balance, once per reference.
select * from public.grant_video_credits(%(user_id)s, %(amount)s, %(reference)s);

-- user_credits --
-- A user's balance and what of it is held; no row for a user who never had any.
select balance, held from public.user_credits where user_id = %(user_id)s;

-- credit_entries_of_user --
-- The newest entries of a user's ledger.
select id, task_id, kind, amount, reference, created_at
  from public.credit_entries
 where user_id = %(user_id)s
 order by created_at desc, id desc
 limit %(limit)s;

-- credit_prices --
-- What each action costs.
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
-- What `check` wants to know of the server, in one round trip.
select current_setting('server_version_num')::integer as version,
       current_setting('server_version') as version_text,
       current_user as role,
       current_database() as database,
       pg_is_in_recovery() as read_only,
       clock_timestamp() as clock,
       to_regclass('public.video_generation_tasks') is not null as has_tasks;

-- worker_rights --
-- The rights that a worker can't do without, by name; null where the object is absent.
select what, granted
  from (values
    ('update public.video_generation_tasks',
     has_table_privilege(to_regclass('public.video_generation_tasks'), 'UPDATE')),
    ('insert into vidgen.workers',
     case when has_schema_privilege('vidgen', 'USAGE')
          then has_table_privilege(to_regclass('vidgen.workers'), 'INSERT') end),
    ('insert into vidgen.submissions',
     case when has_schema_privilege('vidgen', 'USAGE')
          then has_table_privilege(to_regclass('vidgen.submissions'), 'INSERT') end)
  ) as rights (what, granted);

-- live_workers --
-- Workers that are not declared dead, and when each was last heard of.
select id, host, pid, version, running, heartbeat_at, now() - heartbeat_at as silence
  from vidgen.workers
 where dead_at is null
 order by started_at;

-- notify --
-- The other half of a LISTEN: it arrives only where that connection is a session of its own.
select pg_notify(%(channel)s, '');

-- credit_audit --
-- Balances, holds and ledger that don't agree; must be empty.
select user_id, balance, held, entries_total, holds_total
  from vidgen.credit_discrepancies
 order by user_id;

-- submissions_of_key --
-- What our records say of one key's last 24 hours, by model: generations, possibly paid ones.
select model,
       count(*) filter (where answer = 'generation') as generations,
       count(*) filter (where answer = 'unknown'
                           or (answer is null and sent_at < now() - interval '5 minutes')) as unknown,
       count(*) filter (where answer is null
                          and sent_at >= now() - interval '5 minutes') as in_flight
  from vidgen.submissions
 where provider = %(provider)s and key_fingerprint = %(key_fingerprint)s
   and sent_at > now() - interval '24 hours'
 group by model
 order by model;

-- outlay_of_key --
-- Provider credits of all our generations with one key, and the reading before this one.
select coalesce(sum(coalesce(s.cost, s.estimated_cost)), 0) as outlay,
       (select to_jsonb(r) from vidgen.account_readings as r
         where r.provider = %(provider)s and r.key_fingerprint = %(key_fingerprint)s
         order by r.read_at desc limit 1) as reading
  from vidgen.submissions as s
 where s.provider = %(provider)s and s.key_fingerprint = %(key_fingerprint)s
   and s.answer = 'generation';

-- add_account_reading --
-- Keep a reading, for the next comparison.
insert into vidgen.account_readings (provider, key_fingerprint, credit_balance, outlay)
values (%(provider)s, %(key_fingerprint)s, %(credit_balance)s, %(outlay)s)
returning id;

-- gates --
-- Every closed gate: a row is a gate that is closed.
select provider, key_fingerprint, model, reason, message, details, closed_at, until, probes
  from vidgen.gates
 order by closed_at;

-- close_gate --
-- An operator's hand: for all keys, without a probe, so that only an operator opens it again.
insert into vidgen.gates (provider, key_fingerprint, model, reason, message, details)
values ('runway', '*', %(model)s, 'OPERATOR', %(message)s, %(details)s)
on conflict (provider, key_fingerprint, model) do update
   set message = excluded.message, details = excluded.details
returning model;

-- open_gate --
-- Open every gate of a model, whoever closed it; a trouble that lasts closes it again.
delete from vidgen.gates
 where model = %(model)s
returning key_fingerprint, reason;
