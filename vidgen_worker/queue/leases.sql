-- The leases of workers: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.

-- register_worker --
-- A worker's row, once per id: a repeated INSERT finds its own.
insert into vidgen.workers
  (id, host, pid, version, provider, key_fingerprint, account, scopes, concurrency, lease, renders)
values
  (%(worker_id)s, %(host)s, %(pid)s, %(version)s, %(provider)s, %(key_fingerprint)s, %(account)s,
   %(scopes)s::text[], %(concurrency)s, %(lease)s, %(renders)s)
on conflict (id) do nothing

-- share_buckets --
-- The storage policy reads the buckets' names from here. An operator's role writes them where they
-- differ; the worker's own may not, and is told so.
select vidgen.share_buckets(%(images_bucket)s, %(videos_bucket)s) as shared

-- heartbeat --
-- One row written however many tasks are held; no task's row is written or locked, so that the lease
-- depends on none of them. No row of kind 'alive': declared dead. Then the verdict on each held
-- task ('lost' or 'cancel'), and, when `sweep` says that no claim is in flight, the orphans: rows that name this worker but
-- that it doesn't run (a claim whose answer was lost, a coroutine that died, a row that refused to be
-- handed back and whose pause is over).
with beat as (
  update vidgen.workers
     set heartbeat_at = now(), running = %(running)s,
         steady_since = case when %(steady)s then coalesce(steady_since, now()) end
   where id = %(worker_id)s and dead_at is null
  returning id
),
held as materialized (
  select * from unnest(%(task_ids)s::uuid[], %(attempts)s::integer[]) as h (task_id, attempt)
)
select 'alive' as kind, null::uuid as task_id, null::integer as attempt from beat
union all
select case
         when t.id is null then 'lost'
         else 'cancel'
       end,
       held.task_id, held.attempt
  from held
  left join public.video_generation_tasks as t
    on t.id = held.task_id and t.attempt = held.attempt
       and t.worker_id = %(worker_id)s and t.status = 'processing'
 where t.id is null or t.cancel_requested_at is not null
union all
select 'orphan', t.id, t.attempt
  from public.video_generation_tasks as t
 where t.worker_id = %(worker_id)s and t.status = 'processing' and %(sweep)s
   and not exists (
     select from held where held.task_id = t.id and held.attempt = t.attempt
   )
   and not exists (select from vidgen.set_aside as a where a.task_id = t.id)
union all
-- Waiting tasks to be cancelled at the provider: what claim_cancelled takes.
select 'cancel_waiting', null, null
 where exists (
   select
     from public.video_generation_tasks as t
    where
      -- use to_cancel --
 )

-- heartbeats --
-- What an observer compares with what it saw before (see lease.Observer): the last heartbeat of every
-- other worker, and its age by the one clock that wrote it.
select w.id, w.heartbeat_at, extract(epoch from now() - w.heartbeat_at)::float as age,
       extract(epoch from w.lease)::float as lease
  from vidgen.workers as w
 where w.dead_at is null and w.id <> %(worker_id)s

-- take_over --
-- Declare silent workers dead (a write to their own row, so that it and their heartbeat can't both
-- win: it is dead only while its heartbeat is still the one that was seen) and take their tasks, each
-- on its own: a row that refuses is set aside. A death counts once for every task in flight there, none
-- where the worker had left; at the limit the task ends as WORKER_LOST. What this worker has no slot
-- for goes back to pending, where the claim finds it before anything new; so does what another
-- account's workers have to follow, what a worker behind a gate of its own could not finish, and a
-- suspect, one death below the limit: the claim gives it to a worker that runs nothing else. The row
-- 'suspect waits' names no task: it asks this worker, one of the fleet, to become idle for a suspect.
with died as (
  update vidgen.workers as w
     set dead_at = now()
    from unnest(%(silent_ids)s::uuid[], %(silent_beats)s::timestamptz[]) as silent (id, beat)
   where w.id = silent.id and w.heartbeat_at = silent.beat
     and w.dead_at is null and w.id <> %(worker_id)s and %(steady)s
  returning w.id
),
holders as materialized (
  -- Distinct worker ids of running rows, by skipping through the index.
  with recursive holder as (
    (select worker_id from public.video_generation_tasks
      where status = 'processing' order by worker_id limit 1)
    union all
    select (select t.worker_id from public.video_generation_tasks as t
             where t.status = 'processing' and t.worker_id > holder.worker_id
             order by t.worker_id limit 1)
      from holder where holder.worker_id is not null
  )
  select h.worker_id
    from holder as h
    left join vidgen.workers as w on w.id = h.worker_id
   where h.worker_id is not null and h.worker_id <> %(worker_id)s
     and (w.dead_at is not null or w.id in (select id from died) or (w.id is null and %(steady)s))
),
victims as materialized (
  select t.id, t.worker_id, coalesce(b.crashes, 0) + 1 as crashes,
         -- Something of it lives, or waits to be fetched, at another account.
         exists (
           select
             from vidgen.checkpoints as c
             join vidgen.submissions as s on s.id = c.submission_id
            where c.task_id = t.id
              and (
                c.state in ('generating', 'storing')
                or (c.state = 'submitting' and s.ended_at is null
                    and (s.answer is null or s.answer = 'generation'))
              )
              and not
                -- use followed_here --
         ) as elsewhere
    from holders as h
    join public.video_generation_tasks as t
      on t.worker_id = h.worker_id and t.status = 'processing'
    left join vidgen.budgets as b on b.task_id = t.id
   where not exists (select from vidgen.set_aside as a where a.task_id = t.id)
   order by coalesce(b.crashes, 0) desc, t.id
   limit 1000
),
ranked as materialized (
  select v.*, v.may_be and row_number() over (partition by v.may_be order by v.id) <= %(slots)s as mine
    from (
      select victims.*, crashes < %(max_crashes)s - 1 and not elsewhere and not here.aside as may_be
        from victims
       cross join (select vidgen.stands_aside(%(worker_id)s) as aside) as here
    ) as v
),
asked as materialized (
  -- Whether it is asked for a film with outputs, which not every worker renders, or for any other task.
  select me.id, kind.renders
    from vidgen.workers as me
   cross join (values (false), (true)) as kind (renders)
   where me.id = %(worker_id)s and not %(idle)s and (me.renders > 0 or not kind.renders)
     -- The first of those who could take it: none of them behind a closed gate.
     and not exists (
       select from vidgen.workers as w
        where w.id < me.id and w.dead_at is null and w.concurrency > 0
          and (w.renders > 0 or not kind.renders)
          and w.provider = me.provider and w.key_fingerprint = me.key_fingerprint
          and not exists (
            select from vidgen.gates as g
             where g.provider = w.provider
               and g.scope = any (w.scopes)
          )
     )
     and not exists (
       select from vidgen.gates as g
        where g.provider = me.provider and g.scope = any (%(scopes)s::text[])
     )
),
suspects as materialized (
  -- One that another transaction holds empties no worker, nor does one that would submit something
  -- while its user is paused.
  select s.task_id
    from asked
   cross join vidgen.suspects as s
   cross join lateral (
     select
       from public.video_generation_tasks as t
      where t.id = s.task_id and t.status = 'pending'
        and (
          s.stage is null
          or not exists (
            select from vidgen.user_limits as u
             where u.user_id = t.user_id and u.paused_until > now()
          )
        )
        for no key update of t skip locked
   ) as t
   where (s.followers is null or s.followers && %(scopes)s::text[]) and asked.renders = (s.lane = -1)
   limit 1
),
moved as materialized (
  -- One by one, each locked and looked at again in a savepoint of its own.
  select one.*
    from ranked as v
   cross join lateral vidgen.take_over_task(
     v.id, v.worker_id, %(worker_id)s, %(max_crashes)s, v.mine, %(lost_message)s, %(scene_updates)s
   ) as one
)
select m.* from moved as m
union all
select 'suspect waits', null, null, null, null, null, null, null, null, null, null, null
 where exists (select from suspects)

-- hand_back --
-- Tasks of this worker (null: all) wait for another one, which resumes at their checkpoints. Each on its
-- own: a row that refuses, or that a client holds, is left to the lease and keeps no other waiting.
select back.id, back.attempt, back.refused
  from (
    select t.id, given.attempt
      from public.video_generation_tasks as t
      left join unnest(%(task_ids)s::uuid[], %(attempts)s::integer[]) as given (id, attempt)
        on given.id = t.id
     where t.worker_id = %(worker_id)s and t.status = 'processing'
       and (%(task_ids)s::uuid[] is null or given.id is not null)
     order by t.id
  ) as held
 cross join lateral vidgen.hand_back_task(held.id, %(worker_id)s, held.attempt) as back

-- leave --
-- The last word of a worker: its row goes, or, where it still names tasks (they could not be handed
-- back), says so, and they are taken over at once, without a death being counted.
with gone as (
  delete from vidgen.workers as w
   where w.id = %(worker_id)s
     and not exists (
       select from public.video_generation_tasks as t
        where t.worker_id = w.id and t.status = 'processing'
     )
  returning w.id
)
update vidgen.workers as w
   set dead_at = coalesce(w.dead_at, now()), left_at = now()
 where w.id = %(worker_id)s and not exists (select from gone)
