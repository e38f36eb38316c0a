-- Films: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.
-- `mine` is the fence: see checkpoints.sql.

-- wake_films --
-- Take the mail about parts that have ended: films that wait for nothing more are due (see the function).
select film_id, refused, more, due from vidgen.wake_films(1000)

-- claim_films --
-- Begin an attempt on up to 20 films by turns, as `claim` does for tasks of lane 1: no model, slot or gate
-- concerns a film. A suspect runs alone, on an idle worker, before anything else. Each row says whether there
-- is more; where nothing began there is one row that says only this.
with me as materialized (
  -- A worker declared dead claims nothing.
  select w.id from vidgen.workers as w where w.id = %(worker_id)s and w.dead_at is null
),
alone as materialized (
  select begun.*
    from (
      select s.task_id
        from me, vidgen.suspects as s
       where s.lane = %(lane)s and %(idle)s
       order by s.run_after
      offset 0
    ) as first
   cross join lateral vidgen.begin_attempts(array[first.task_id], %(worker_id)s, false) as begun
   limit 1
),
line as materialized (
  select user_id, waiting_since, arrivals
    from vidgen.turns
   where lane = %(lane)s and waiting_since is not null
     and exists (select from me) and not exists (select from alone)
   order by waiting_since
   limit 20
     for update skip locked
),
share as materialized (
  -- Orders of one user wait for his lock, one after the other: more of his at once would only wait.
  select least(ceil(20::numeric / greatest(count(*), 1)), 4)::integer as rows from line
),
waiting as materialized (
  select line.user_id, line.waiting_since, false as at_cap, due.id, due.rank
    from line
   cross join lateral (
     -- use due_of_user --
   ) as due
),
chosen as materialized (
  select w.id from waiting as w
   where w.rank <= (select rows from share)
   order by w.rank, w.waiting_since
   limit 20
),
begun as materialized (
  select b.*, false as alone
    from vidgen.begin_attempts(array(select id from chosen), %(worker_id)s, false) as b
  union all
  select alone.*, true from alone
),
-- use turns --
select c.*, rest.in_line as more, true as film,
       extract(epoch from clock_timestamp() - greatest(c.run_after, c.created_at))::float as waited
  from rest
  left join begun as c on true
 order by c.run_after, c.created_at

-- load_film --
-- What an attempt at a film starts from: its cut, how many of its parts there are and how many have not
-- ended, the first that ended without a clip, and how the film is to end where that is known already.
select t.cut, t.cancel_requested_at is not null as cancel_requested,
       exists (select from vidgen.films as f where f.film_id = t.id) as ordered,
       counted.parts, counted.unfinished, counted.completed,
       bad.position as bad_position, bad.task_id as bad_task, bad.code as bad_code,
       case
         when refusal.attempt is null or refusal.attempt = t.attempt - 1 then refusal.verdict
       end as verdict
  from public.video_generation_tasks as t
 cross join lateral (
   select count(*) as parts,
          count(*) filter (where part.status in ('pending', 'processing')) as unfinished,
          count(*) filter (where part.status = 'completed') as completed
     from vidgen.parts as p
    cross join lateral (
      select (
        select one.status from public.video_generation_tasks as one where one.id = p.task_id
      ) as status
      offset 0
    ) as part
    where p.film_id = t.id
 ) as counted
  left join lateral (
    select p.position, p.task_id,
           case
             when part.status is null then 'DELETED'
             else coalesce(part.error_code, upper(part.status))
           end as code
      from vidgen.parts as p
      left join public.video_generation_tasks as part on part.id = p.task_id
     where p.film_id = t.id and part.status is distinct from 'completed'
       and coalesce(part.status not in ('pending', 'processing'), true)
     order by p.position
     limit 1
  ) as bad on true
  left join vidgen.refusals as refusal on refusal.task_id = t.id
 where
   -- use fence --

-- order_parts --
-- Order the parts of a film, all or none, with their credits held (see the function).
select refused, said, field
  from vidgen.order_parts(%(task_id)s, %(attempt)s, %(worker_id)s, %(credits)s)

-- wait_for_parts --
-- The end of an attempt whose film waits for its parts: pending, and due when the last of them ends. It leaves
-- mail of its own: a part may have ended after this attempt looked, and its mail was of no use while the
-- film was at work. Not where its owner has asked to cancel.
with mine as materialized (
  select t.id, t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     and t.cut is not null
     for no key update
),
put_back as (
  update public.video_generation_tasks as t
     set status = 'pending', worker_id = null, stage_progress = null,
         run_after = '9999-01-01 00:00:00+00', current_step = 'Waiting for scenes',
         message = %(message)s
    from mine
   where t.id = mine.id and not mine.cancel
  returning t.id, t.status
),
further as (
  -- It has come further than where workers died.
  update vidgen.budgets as b
     set crashes = 0, suspect = false, waiting_since = null
    from mine
   where b.task_id = mine.id
),
mailed as (
  insert into vidgen.endings (film_id) select mine.id from mine where not mine.cancel
)
select mine.cancel,
       case when not mine.cancel and put_back.status is distinct from 'pending'
         then vidgen.row_stays(mine.id)
       end as stays,
       case when not mine.cancel then vidgen.wake('vidgen_tasks', 'film') end as woken
  from mine
  left join put_back on put_back.id = mine.id
