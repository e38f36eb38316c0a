-- The line of turns: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.

-- line_up --
-- Merge the mailbox, and users whose rows for later are due, into the line of turns. Rows are
-- written in user order, so two of these can't deadlock; claims skip what is locked here. A user whom
-- his own limit keeps waiting is not in the line until his pause is over. A turn that a claim holds keeps
-- nobody waiting: that user's mail stays where it is for the next one. (Only for a user's first turn, while
-- it is being inserted, does this wait.)
with front as materialized (
  select ctid as place, user_id, lane, due_at
    from vidgen.arrivals
   order by id
   limit 2000
     for update skip locked
),
free as materialized (
  select who.user_id, who.lane
    from (select distinct user_id, lane from front) as who
   cross join lateral (
     select from vidgen.turns as t
      where t.user_id = who.user_id and t.lane = who.lane
        for update skip locked
   ) as turn
),
mail as materialized (
  select front.place, front.user_id, front.lane, front.due_at
    from front
    left join free on free.user_id = front.user_id and free.lane = front.lane
   where free.user_id is not null
      or not exists (
        select from vidgen.turns as t where t.user_id = front.user_id and t.lane = front.lane
      )
),
emptied as (
  -- Locked, and never updated: they stay where they are.
  delete from vidgen.arrivals where ctid = any (array(select place from mail))
),
due as materialized (
  select user_id, lane, due_at
    from vidgen.turns
   where waiting_since is null and due_at <= now()
   order by due_at
   limit 500
     for update skip locked
)
insert into vidgen.turns as t (user_id, lane, waiting_since, due_at, arrivals)
select user_id, lane, case when due_at <= now() then clock_timestamp() end,
       case when due_at <= now() then 'infinity' else due_at end, 1
  from (
    select b.user_id, b.lane, greatest(min(b.due_at), min(u.paused_until)) as due_at
      from (
        select user_id, lane, due_at from mail union all select user_id, lane, due_at from due
      ) as b
      left join vidgen.user_limits as u on u.user_id = b.user_id
     group by b.user_id, b.lane
  ) as comes
 order by user_id, lane
on conflict (user_id, lane) do update
   set waiting_since = coalesce(t.waiting_since, excluded.waiting_since),
       due_at = case
                  when excluded.waiting_since is not null then 'infinity'
                  else least(t.due_at, excluded.due_at)
                end,
       arrivals = t.arrivals + 1

-- clear_line --
-- Users at the head of the line who have nothing due any more (cancelled meanwhile) leave it, many at
-- once: the claim lets go of no more than it has places, and with one place a thousand of them would
-- keep everybody waiting. A row that came in after our snapshot shows in `arrivals`, now or when the
-- mailbox is emptied.
with line as materialized (
  select user_id, lane, arrivals
    from vidgen.turns
   where lane = %(lane)s and waiting_since is not null
   order by waiting_since
   limit 500
     for update skip locked
),
idle as materialized (
  select line.user_id, line.lane
    from line
   where line.arrivals = (
           select seen.arrivals
             from vidgen.turns as seen
            where seen.user_id = line.user_id and seen.lane = line.lane
         )
     and not exists (
       select
         from generate_series(10, -10, -1) as p (priority)
        cross join lateral (
          select
            from public.video_generation_tasks as t
           where t.user_id = line.user_id and t.lane = line.lane and t.priority = p.priority
             and t.status = 'pending' and t.run_after <= now()
             and not exists (select from vidgen.resumes as r where r.task_id = t.id)
           order by t.run_after
           limit 1
        ) as due
     )
)
update vidgen.turns as t
   set waiting_since = null,
       due_at =
         -- use next_due --
  from idle
 where t.user_id = idle.user_id and t.lane = idle.lane
returning t.user_id
