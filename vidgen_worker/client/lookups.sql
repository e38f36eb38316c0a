-- The lookups of the command line, for its arguments and for a waiting task: named blocks.

-- tasks_between --
-- Ids of tasks that begin with the same letters, by a range.
select id from public.video_generation_tasks
 where id between %(first)s and %(last)s order by id limit 3;

-- users_between --
-- The same for known users: users with rows of ours, and users with tasks.
select id
  from (
    (select user_id as id from public.user_credits
      where user_id between %(first)s and %(last)s order by user_id limit 3)
    union
    (select user_id from vidgen.user_limits
      where user_id between %(first)s and %(last)s order by user_id limit 3)
    union
    (select user_id from public.video_generation_tasks
      where user_id between %(first)s and %(last)s order by user_id limit 3)
  ) as met
 order by id
 limit 3;

-- workers_between --
-- The same for workers.
select id from vidgen.workers where id between %(first)s and %(last)s order by id limit 3;

-- signed_up --
-- Whether the project's Auth or our rows know a user; null where this role may not read Auth's users.
select case
         when exists (select from public.user_credits where user_id = %(user_id)s) then true
         when has_table_privilege(current_user, 'auth.users', 'select')
              and not row_security_active('auth.users')
           then exists (select from auth.users where id = %(user_id)s)
       end as known;

-- find_tasks --
-- The newest tasks that match every given filter.
select *, now() as database_now, now() - created_at as age,
       coalesce(completed_at, now()) - started_at as took
  from public.video_generation_tasks
 where (%(user_id)s::uuid is null or user_id = %(user_id)s)
   and (%(scene_id)s::uuid is null or scene_id = %(scene_id)s)
   and (%(worker_id)s::uuid is null or worker_id = %(worker_id)s)
   and (%(status)s::text is null or status = %(status)s)
   and (%(code)s::text is null or error_code = %(code)s)
   and (%(since)s::interval is null or created_at > now() - %(since)s::interval)
 order by created_at desc, id
 limit %(limit)s;

-- tasks_to_change --
-- Tasks that match every filter, the oldest first, with the users' price of the stages that are not done.
select t.id, t.user_id, t.status, t.error_code, t.current_step,
       (
         select coalesce(sum(p.credits::integer), 0)::bigint
           from vidgen.due_prices(t.id) as due
          cross join lateral jsonb_each_text(due.prices) as p (stage, credits)
          -- A film has no price of its own: its parts are listed beside it.
          where t.lane > 0
       ) as credits
  from public.video_generation_tasks as t
 where t.status = any(%(statuses)s::text[])
   and (%(user_id)s::uuid is null or t.user_id = %(user_id)s)
   and (%(code)s::text is null or t.error_code = %(code)s)
   and (%(since)s::interval is null or t.created_at > now() - %(since)s::interval)
 order by t.created_at, t.id
 limit %(limit)s;

-- budget_of_task --
-- The counts of a task's budgets, where there are any.
select crashes, suspect, retries, waiting_since from vidgen.budgets where task_id = %(task_id)s;

-- suspects --
-- The number of suspects that wait for an idle worker.
select count(*) as tasks from vidgen.suspects;

-- codes --
-- The error codes of recently ended tasks.
select distinct error_code as code
  from public.video_generation_tasks
 where completed_at > now() - interval '30 days' and error_code is not null;

-- clock --
-- The database's clock.
select now() as now;

-- insert_film --
-- Insert a film; a second insert with the same id returns the row that is there.
with made as (
  insert into public.video_generation_tasks (id, user_id, cut, priority, run_after)
  values (
    %(id)s, %(user_id)s, %(cut)s, %(priority)s,
    coalesce(%(run_after)s::timestamptz, now() + %(delay)s::interval, now())
  )
  on conflict (id) do nothing
  returning *
)
select * from made
union all
select * from public.video_generation_tasks
 where id = %(id)s and not exists (select from made);

-- parts_of_film --
-- The tasks that a film is made of, in their order; one that was deleted has no status.
select p.position, p.task_id, t.scene_id, t.status, t.progress, t.current_step, t.error_code
  from vidgen.parts as p
  left join public.video_generation_tasks as t on t.id = p.task_id
 where p.film_id = %(task_id)s
 order by p.position;

-- renditions_of_film --
-- The files that a film became, in the order of its cut.
select name, preset, media_type, bucket, path, size, width, height, seconds, sha256, quality, public_url, created_at
  from public.video_renditions
 where film_id = %(task_id)s
 order by position, name;

-- gates_of_task --
-- The closed gates that a task may meet: in a scope of a living worker, and of all models or of the model of a
-- stage that it has still to submit. That is the model of the task's own submission, else of the last one of this
-- stage by any task; any model where there is none. A film submits nothing: its parts do.
with missing as (
  select coalesce(own.model, latest.model) as model
    from public.video_generation_tasks as t
   cross join vidgen.stages as st
    left join lateral (
      select s.model
        from vidgen.submissions as s
       where s.task_id = t.id and s.stage = st.name
       order by s.sent_at desc
       limit 1
    ) as own on true
    left join lateral (
      select s.model from vidgen.submissions as s where s.stage = st.name order by s.sent_at desc limit 1
    ) as latest on own.model is null
   where t.id = %(task_id)s and t.lane > 0
     and not exists (
       select from vidgen.checkpoints as c
        where c.task_id = t.id and c.stage = st.name and c.state in ('generating', 'storing', 'done')
     )
),
working as (
  select w.provider, w.scopes from vidgen.workers as w where w.dead_at is null
)
select g.model, g.reason, g.scope, g.message, g.until
  from vidgen.gates as g
 where (
         g.model = '*' and exists (
           select from public.video_generation_tasks as t where t.id = %(task_id)s and t.lane > 0
         )
         or exists (select from missing as m where m.model is null or m.model = g.model)
       )
   and (
         not exists (select from working)
         or exists (
           select from working as w where w.provider = g.provider and g.scope = any (w.scopes)
         )
       )
 order by g.closed_at;

-- films_to_cut --
-- Whether films with outputs wait for a worker, and whether one that lives cuts any.
select exists (select from vidgen.turns as n where n.lane = -1 and n.waiting_since is not null)
       or exists (select from vidgen.arrivals as a where a.lane = -1 and a.due_at <= now()) as waiting,
       exists (select from vidgen.workers as w where w.renders > 0 and w.dead_at is null) as cut;
