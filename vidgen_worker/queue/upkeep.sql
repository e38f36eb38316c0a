-- Sweeps, duties, audits, uploads, counts: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.

-- sweep_workers --
-- Rows of dead workers that hold nothing any more, an hour after their death.
delete from vidgen.workers as w
 where w.dead_at < now() - interval '1 hour'
   and not exists (
     select from public.video_generation_tasks as t
      where t.worker_id = w.id and t.status = 'processing'
   )
returning w.id

-- sweep_gates --
-- Gates of keys, file stores and machines that no worker has had for an hour: nobody would probe them.
delete from vidgen.gates as g
 where g.closed_at < now() - interval '1 hour'
   and g.scope like any (array['key:%%', 'storage:%%', 'machine:%%'])
   and not exists (select from vidgen.workers as w where g.scope = any (w.scopes))

-- sweep_turns --
-- Users who have had no waiting task for long; an arrival that comes in meanwhile makes a new row.
delete from vidgen.turns as t
 using (
   select user_id, lane
     from vidgen.turns
    where waiting_since is null and due_at = 'infinity'
      for update skip locked
 ) as idle
 where t.user_id = idle.user_id and t.lane = idle.lane

-- sweep_limits --
-- Rejections that are old enough to be forgotten, and troubles of users that nobody met again.
select vidgen.sweep_limits()

-- sweep_passed --
-- Tasks that were found locked once, an hour later.
delete from vidgen.passed_over as p
 using (
   select o.task_id
     from vidgen.passed_over as o
    where o.until < now() - interval '1 hour'
      for update skip locked
 ) as old
 where p.task_id = old.task_id

-- free_slots --
-- Slots that nobody will free: of a submission without a generation to ask about, once whatever it
-- began must be over; of tasks that are gone. Only those taken a while ago: the re-check of a locked
-- row compares its new self with the old rows beside it.
with stale as materialized (
  select s.id, s.model, s.task_id, s.submission_id
    from vidgen.slots as s
    left join vidgen.submissions as sent on sent.id = s.submission_id
    left join public.video_generation_tasks as t on t.id = s.task_id
   where s.taken_at < now() - interval '1 minute'
     and case
           -- Or its task is set aside, and its row takes no other status; it finds another slot.
           when s.submission_id is null then t.status is distinct from 'processing'
                or exists (select from vidgen.set_aside as a where a.task_id = s.task_id)
           else sent.id is null or sent.ended_at is not null
                or (sent.answer is distinct from 'generation'
                    and sent.sent_at < now() - %(patience)s::interval)
         end
     for update of s skip locked
),
lost as materialized (
  -- A row that its user's own call holds is left, with its slot, to the next sweep.
  select sent.id
    from vidgen.submissions as sent
   where sent.id in (select stale.submission_id from stale) and sent.answer is null
   order by sent.id
     for no key update of sent skip locked
),
-- An answer that comes after this is late: the worker that records it ends the generation.
given_up as (
  -- use give_up --
)
select stale.model, vidgen.free_slot(stale.id, stale.task_id, stale.submission_id)
  from stale
 where not exists (
   select from vidgen.submissions as sent
    where sent.id = stale.submission_id and sent.answer is null
      and sent.id not in (select lost.id from lost)
 )

-- give_up_submissions --
-- Paid POSTs whose answer nobody recorded and nobody waits for any more: they count as possibly paid.
-- An answer that comes after this is late: the worker that records it ends the generation. A row that its
-- user's own call holds is left to the next sweep.
with lost as materialized (
  select s.id
    from vidgen.submissions as s
   where s.answer is null and s.ended_at is null and s.sent_at < now() - %(patience)s::interval
     and not exists (
       select
         from vidgen.checkpoints as c
         join public.video_generation_tasks as t on t.id = c.task_id
        where c.task_id = s.task_id and c.stage = s.stage and c.submission_id = s.id
          and t.status in ('pending', 'processing')
     )
   order by s.id
     for no key update of s skip locked
)
-- use give_up --

-- fleet --
-- For /metrics: what waits, what runs, who works, what is closed, what the provider is full of.
select q.pending as queue_pending, q.scheduled as queue_scheduled, q.processing as queue_processing,
       q.oldest_seconds as queue_oldest_pending_seconds, q.workers_alive, q.workers_steady,
       extract(epoch from now())::float as fleet_read_at_seconds,
       (select count(*) from vidgen.set_aside) as tasks_set_aside,
       (
         select count(*) from vidgen.uploads as u
          where
            -- use upload_left --
       ) as uploads_left,
       (select coalesce(jsonb_agg(jsonb_build_object(
                 'scope', g.scope, 'model', g.model, 'reason', g.reason
               )), '[]')
          from vidgen.gates as g) as gates,
       (select coalesce(jsonb_agg(of_model), '[]')
          from (
            -- Of accounts that have a worker.
            select l.model, sum(l.max_generations) as slots,
                   sum((select count(*) from vidgen.slots as s
                         where (s.provider, s.account, s.model)
                             = (l.provider, l.account, l.model)
                           and s.task_id is not null)) as taken
              from vidgen.limits as l
             where l.max_generations is not null
               and exists (
                 select from vidgen.workers as w
                  where w.dead_at is null and w.provider = l.provider
                    and w.account = l.account
               )
             group by l.model
          ) as of_model) as slots
  from vidgen.queue_health as q

-- take_duty --
-- Whether this worker is the one of the fleet to do this now. A turn that began in the future was
-- written before the clock stepped back.
insert into vidgen.duties as d (name, began_at)
values (%(duty)s, now())
on conflict (name) do update
   set began_at = excluded.began_at
 where d.began_at not between now() - %(every)s::interval and now()
returning d.name

-- take_uploads --
-- Objects to be removed from Storage, of uploads that nobody has charged or will (see the function).
select taken.upload_id, taken.of_bucket as bucket, taken.of_path as path, taken.first_time
  from vidgen.take_uploads(%(batch)s) as taken

-- uploads_removed --
-- They are gone from Storage; they are looked for again for a while (see the function).
select vidgen.uploads_removed(%(upload_ids)s)

-- uploads_left --
-- Uploads of more than an hour ago that are neither charged nor removed, and the age of the oldest.
select count(*) as uploads,
       coalesce(extract(epoch from now() - min(u.since)), 0)::float as oldest_seconds
  from vidgen.uploads as u
 where
   -- use upload_left --

-- forget_tasks --
-- Remove the private rows of a batch of tasks that ended long ago (see the function).
select tasks, through from vidgen.forget_tasks(%(keep)s::interval, %(after)s::timestamptz, %(batch)s)

-- forget_holds --
-- Remove a batch of holds that were closed long ago.
select vidgen.forget_holds(%(keep)s::interval, %(batch)s) as holds

-- audit_entries --
-- Add the next entries of the ledger to their users' totals.
select vidgen.audit_entries(%(batch)s) as entries

-- audit_users --
-- Compare the next users' totals with their balances and holds.
select discrepancies, through from vidgen.audit_users(%(after)s::uuid, %(batch)s)

-- note_audit --
-- What the audit has found, for every worker's metrics.
select vidgen.note_audit(%(discrepancies)s)

-- read_audit --
-- What the last audit of the fleet has found.
select coalesce(a.discrepancies, 0) as discrepancies from vidgen.audited as a
