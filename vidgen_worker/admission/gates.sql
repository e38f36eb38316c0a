-- Gates: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.

-- close_gate --
-- Nothing paid of this model starts in this scope until a probe or an operator opens it. A gate
-- that is closed already keeps its probes.
insert into vidgen.gates as g
  (provider, scope, model, reason, message, details, probe_at, until)
values
  (%(provider)s, %(scope)s, %(model)s, %(reason)s, %(message)s, %(details)s,
   now() + %(probe)s::interval, now() + %(probe)s::interval)
on conflict (provider, scope, model) do nothing
returning g.model

-- meet_gate --
-- A submission was refused for a reason that may be everybody's, or its input's alone. `again`: its user
-- had met the same before it was sent, within a day, and nothing stands still for it now. `price` is the
-- most that a generation of this model was to cost lately.
with mine as materialized (
  select s.id, s.sent_at
    from vidgen.submissions as s
   where s.task_id = %(task_id)s
   order by s.sent_at desc
   limit 1
),
unsaid as materialized (
  -- Where another transaction has the row, the next refusal says it.
  select s.id
    from vidgen.submissions as s, mine
   where s.id = mine.id and s.met_gate is null
     for no key update of s skip locked
),
met as (
  update vidgen.submissions as s set met_gate = %(scope)s from unsaid where s.id = unsaid.id
)
select exists (
         select
           from vidgen.submissions as s, mine
          where s.user_id = %(user_id)s and s.met_gate = %(scope)s and s.id <> mine.id
            and s.answered_at < mine.sent_at
            and s.sent_at > greatest(
                  now() - interval '1 day',
                  (select u.lifted_at from vidgen.user_limits as u where u.user_id = %(user_id)s)
                )
       )
       and not exists (
         select from vidgen.gates as g
          where g.provider = %(provider)s and g.scope = %(scope)s
       ) as again,
       (
         select coalesce(max(s.estimated_cost), (select l.expected_cost from vidgen.settings as l))
           from (
             select l.estimated_cost
               from vidgen.submissions as l
              where l.model = %(model)s
              order by l.sent_at desc
              limit 50
           ) as s
       )::float as price

-- note_trouble --
-- A trouble after money was spent, of one task, that may be the first of many (see the function).
select tasks, users, weighed, braked
  from vidgen.note_trouble(
         %(provider)s, %(scope)s, %(part)s, %(model)s, %(reason)s, %(message)s, %(details)s,
         %(task_id)s, %(user_id)s, %(allowance)s, %(probe)s
       )

-- is_troubled --
-- Whether what closed a gate has shown, without a stage that went well since.
select exists (
  select from vidgen.troubles as t
   where t.provider = %(provider)s and t.scope = %(scope)s and t.reason = %(reason)s
) as troubled

-- fragment first_of_user --
-- The first of what is due of the user of this line.
select t.id, t.failures, t.created_at
  from public.video_generation_tasks as t
 where t.user_id = line.user_id and t.lane = line.lane
   and t.status = 'pending' and t.run_after <= now()
   and not exists (select from vidgen.resumes as r where r.task_id = t.id)
 order by t.priority desc, t.run_after, t.created_at
 limit 1

-- try_rows --
-- Is it all rows that refuse? A waiting task of up to six users, of whom none is set aside, says so for
-- free (vidgen.try_row). `refusing` is of how many users tasks are set aside now, of those
-- that were so for the first time in the last half hour: one that never takes its end keeps no gate
-- closed. A lock passes, and says nothing of the row.
with aside as materialized (
  select distinct t.user_id, r.since > now() - interval '30 minutes' and r.error not like '55P03%%' as of_late
    from vidgen.set_aside as a
    join vidgen.refusals as r on r.task_id = a.task_id
    join public.video_generation_tasks as t on t.id = a.task_id
),
waiting as materialized (
  -- At random: nobody's rows stand in front at every probe.
  select of_user.user_id, of_user.task_id
    from (
      select distinct on (r.user_id) r.user_id, r.task_id
        from vidgen.resumes as r
       where r.stage = 'video' and r.resume_at <= now()
         and r.user_id not in (select aside.user_id from aside)
       order by r.user_id, r.resume_at
    ) as of_user
   order by random()
   limit 3
),
line as materialized (
  select n.user_id, n.lane
    from vidgen.turns as n
   where n.lane > 0 and n.waiting_since is not null and n.user_id not in (select aside.user_id from aside)
     and n.user_id not in (select waiting.user_id from waiting)
   order by random()
   limit 3
),
chosen as materialized (
  select waiting.user_id, waiting.task_id from waiting
  union all
  select line.user_id, first.id
    from line
   cross join lateral (
     -- use first_of_user --
   ) as first
),
tried as materialized (
  select vidgen.try_row(chosen.task_id, %(worker_id)s) as refused from chosen
)
select (select count(*) from tried where refused is distinct from '') as tried,
       (select count(*) from tried where refused is null) as taken,
       (select min(refused) from tried where refused <> '') as refused,
       (select count(distinct aside.user_id) from aside where aside.of_late) as refusing

-- fragment shows_a_trouble --
-- The output of checkpoint c is of a model with a trouble in this scope.
exists (
  select from vidgen.troubles as tr
   where tr.provider = %(provider)s and tr.scope = %(scope)s and tr.model = c.request ->> 'model'
)

-- try_kept --
-- Before a gate opens that closed while outputs are kept: does one of those try it? Storing it costs
-- nothing, and its row of vidgen.troubles goes when that went well. The one that has waited longest is
-- due now; it is taken up behind a closed gate too. One that is being stored just now tries it as well.
-- One that is set aside tells nothing: its row may refuse for ever. Nor does one that this worker may not
-- follow, one that another transaction holds, or one that a worker outside the scope is storing.
with kept as materialized (
  select r.task_id
    from vidgen.resumes as r
    join vidgen.checkpoints as c on c.task_id = r.task_id and c.state = 'storing'
   where r.stage is null
     and (r.followers is null or r.followers && %(scopes)s::text[])
     and not exists (select from vidgen.set_aside as a where a.task_id = r.task_id)
     and not exists (select from vidgen.passed_now as p where p.task_id = r.task_id)
     and
       -- use shows_a_trouble --
   order by r.resume_at
   limit 1
     for update of r skip locked
),
due as (
  update vidgen.resumes as r
     set resume_at = now()
    from kept
   where r.task_id = kept.task_id and r.resume_at > now()
)
select exists (select from kept)
       or exists (
         select
           from public.video_generation_tasks as t
           join vidgen.checkpoints as c on c.task_id = t.id and c.state = 'storing'
           join vidgen.workers as w on w.id = t.worker_id and %(scope)s = any (w.scopes)
          where t.status = 'processing'
            and not exists (select from vidgen.set_aside as a where a.task_id = t.id)
            and
              -- use shows_a_trouble --
       ) as kept

-- take_probe --
-- One worker that it concerns probes a closed gate; the next probe is twice as far away, up to five minutes.
update vidgen.gates as g
   set probes = g.probes + 1,
       probe_at = now() + least(%(probe)s::interval * 2 ^ least(g.probes + 1, 20), interval '5 minutes'),
       until = now() + least(%(probe)s::interval * 2 ^ least(g.probes + 1, 20), interval '5 minutes')
  from (
    select provider, scope, model
      from vidgen.gates
     where provider = %(provider)s and scope = any (%(scopes)s::text[])
       and probe_at <= now()
     order by probe_at
     limit 1
       for update skip locked
  ) as due
 where (g.provider, g.scope, g.model) = (due.provider, due.scope, due.model)
returning g.scope, g.model, g.reason, g.probes,
          extract(epoch from now() - g.closed_at)::float as seconds

-- claim_trial --
-- After a storm one waiting task is let through the gate, to try it: under the gate's row lock, by
-- the worker that took this probe, and only while no earlier trial is running. A task past its
-- image first (it tries the clip at once), then one of a user in the line, at random: nobody's tasks are
-- tried again and again. Rather not one that has failed, has seen a worker die, whose row refuses or
-- whose user can't pay, which would try the task and not the provider.
with gate as materialized (
  select g.provider, g.scope, g.model
    from vidgen.gates as g, vidgen.workers as me
   where g.provider = %(provider)s and g.scope = %(scope)s
     and g.model = %(model)s and g.probes = %(probes)s
     and me.id = %(worker_id)s and me.dead_at is null
     and not exists (
       select from public.video_generation_tasks as t
        where t.id = g.trial and t.status = 'processing'
     )
     for update of g
),
line as materialized (
  select user_id, lane
    from vidgen.turns
   where lane = %(lane)s and waiting_since is not null
   order by waiting_since
   limit 20
),
clips as materialized (
  -- Locked before the limit: rows that others hold take no place in it.
  select t.id, t.failures, r.resume_at
    from vidgen.resumes as r
    join public.video_generation_tasks as t on t.id = r.task_id
   where r.lane = %(lane)s and r.stage = 'video' and r.resume_at <= now() and t.status = 'pending'
     and exists (select from gate)
   order by r.resume_at
   limit 20
     for no key update of t skip locked
),
waiting as materialized (
  select clips.id, clips.failures, 1 as place, clips.resume_at as since from clips
  union all
  (select ready.id, ready.failures, 2, ready.created_at
     from line
    cross join lateral (
      -- use first_of_user --
    ) as ready
    -- While the gate is closed no claim begins anything: nothing races with this count.
    where %(max_running_per_user)s::integer is null or
          -- use begun_of_user --
          < %(max_running_per_user)s::integer)
),
begun as materialized (
  select attempt.*
    from (
      select t.id
        from gate
       cross join waiting as w
        join public.video_generation_tasks as t on t.id = w.id
        left join vidgen.budgets as b on b.task_id = w.id
       order by exists (select from vidgen.refusals as r where r.task_id = w.id),
                coalesce(b.crashes, 0) > 0, w.failures > 0,
                -- Only a hint: an application may have credits of its own.
                w.place = 2 and exists (select from public.user_credits) and not exists (
                  select from public.user_credits as u
                   where u.user_id = t.user_id
                     and u.balance - u.held >= (select sum(p.credits) from public.credit_prices as p)
                ),
                -- Whoever's input may be to blame comes last.
                exists (
                  select from vidgen.troubles as tr
                   where tr.provider = gate.provider and tr.scope = gate.scope
                     and tr.model = gate.model
                     and t.user_id = any (tr.proven_users || tr.new_users)
                ),
                w.place, case w.place when 1 then w.since end, random()
      offset 0
    ) as first
   cross join lateral vidgen.begin_attempts(array[first.id], %(worker_id)s, false) as attempt
   limit 1
),
marked as (
  update vidgen.gates as g
     set trial = begun.id
    from gate, begun
   where begun.refused is null
     and (g.provider, g.scope, g.model)
       = (gate.provider, gate.scope, gate.model)
)
select c.*,
       extract(epoch from clock_timestamp() - greatest(c.run_after, c.created_at))::float as waited
  from begun as c

-- open_gate --
-- A probe went well. The troubles first, as whoever stores a stage locks them: the gate's trigger
-- changes them.
with troubles as materialized (
  select t.model
    from vidgen.troubles as t
   where t.provider = %(provider)s and t.scope = %(scope)s
   order by t.scope, t.part, t.model
     for update
)
delete from vidgen.gates as g
 where g.provider = %(provider)s and g.scope = %(scope)s and g.model = %(model)s
   and (select count(*) from troubles) >= 0
returning extract(epoch from now() - g.closed_at)::float as seconds

-- read_gates --
-- What is closed for this worker.
select g.scope, g.model, g.reason, g.message, g.until, g.closed_at, g.probes
  from vidgen.gates as g
 where g.provider = %(provider)s and g.scope = any (%(scopes)s::text[])
 order by g.model

-- stands_aside --
-- Whether this worker is behind a gate of its own while another one of its account works on.
select vidgen.stands_aside(%(worker_id)s) as aside
