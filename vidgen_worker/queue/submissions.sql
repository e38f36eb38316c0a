-- Paid POSTs and what they brought: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.
-- `mine` is the fence: see checkpoints.sql.
-- Up to 600 lines: the record of money, whose statements lock the same rows in one order.

-- begin_submission --
-- Before a paid POST: the submission row, and the checkpoint `submitting` with the frozen request.
-- Refused (nothing is written) where the stage's possibly paid submissions have reached the cap:
-- unknown, gone, or ended with a cost; where its owner has asked to cancel; behind a closed gate,
-- unless this task is the gate's trial; where a trouble shows that has let through as many as it may;
-- where the model has a limit and no slot is free; or by a limit of its user, which is asked last: it
-- then counts what begins here. A repeat finds its own submission and changes nothing.
with mine as materialized (
  select t.id, t.user_id, t.lane, t.attempt, t.worker_id,
         t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     for no key update
),
paid as materialized (
  select count(*) as submissions
    from vidgen.submissions as s, mine
   where s.task_id = mine.id and s.id <> %(submission_id)s and
     -- use possibly_paid --
),
gate as materialized (
  select min(g.reason) filter (where g.trial is distinct from %(task_id)s) as reason,
         coalesce(bool_or(g.trial = %(task_id)s), false) as on_trial
    from vidgen.gates as g
   where g.provider = %(provider)s and g.scope = any (%(scopes)s::text[])
     and g.model in ('*', %(model)s)
),
own as materialized (
  -- The one that the claim reserved; a claim with an older snapshot may have it locked for a moment.
  select s.id
    from vidgen.slots as s, mine
   where s.provider = %(provider)s and s.account = %(account)s
     and s.model = %(model)s and s.task_id = mine.id
     and coalesce(s.submission_id, %(submission_id)s) = %(submission_id)s
   limit 1
     for update of s
),
user_lock as materialized (
  -- From here on one statement of this user runs at a time. A statement that waits here has locked nothing
  -- that other users wait for.
  select vidgen.lock_limits(mine.user_id) from mine
),
other as materialized (
  -- Else a free slot. A slot of the video model only while no task waits whose image is done: else that
  -- task could wait for ever.
  select s.id
    from vidgen.slots as s, mine, gate, user_lock
   where s.provider = %(provider)s and s.account = %(account)s
     and s.model = %(model)s
     and s.task_id is null and not exists (select from own)
     and (
       %(stage)s = 'image' or gate.on_trial
       or not exists (
         select from vidgen.due_resumes as r
          where r.lane = mine.lane and r.stage = 'video'
       )
     )
   limit 1
     for update of s skip locked
),
slot as materialized (
  select id from own union all select id from other
),
braking as materialized (
  -- A trouble was noted: the submissions that may still begin are counted under its row's lock, a repeat
  -- once. `nowait`: where another statement counts at this moment, this one fails, holds no lock, and is
  -- sent again.
  select t.scope, t.part, t.model, t.reason, t.message, t.details, t.remaining
    from vidgen.troubles as t, mine, gate, user_lock
   where t.provider = %(provider)s and t.scope = any (%(scopes)s::text[])
     and t.remaining is not null and (t.part in ('storage', 'machine') or t.model = %(model)s)
     and not gate.on_trial
     and not exists (select from vidgen.submissions as s where s.id = %(submission_id)s)
   order by t.scope, t.part, t.model
     for update of t nowait
),
input as materialized (
  -- What it is made from counts by its bytes: its signed URL is another one at each reading.
  select %(digest)s || coalesce(
           (
             select ':' || c.sha256
               from vidgen.checkpoints as c
              where c.task_id = mine.id and c.stage = %(made_from)s::text and c.state = 'done'
           ),
           ''
         ) as digest
    from mine
),
candidate as materialized (
  select mine.id, mine.user_id, mine.attempt, mine.worker_id
    from mine, paid, gate
   where paid.submissions < %(max_submissions)s and not mine.cancel and gate.reason is null
     and not exists (select from braking where remaining = 0)
     and (
       exists (select from slot)
       or not exists (
         select from vidgen.limits as l
          where l.provider = %(provider)s and l.account = %(account)s
            and l.model = %(model)s and l.max_generations is not null
       )
     )
),
limited as materialized (
  select candidate.*, input.digest,
         vidgen.refuse_submission(
           candidate.user_id, candidate.id, %(submission_id)s, %(provider)s, %(model)s,
           input.digest, %(probe)s
         ) as verdict
    from candidate, input
),
admitted as materialized (
  select id, user_id, attempt, worker_id, digest from limited where verdict is null
),
begun as (
  insert into vidgen.submissions (
    id, task_id, user_id, stage, attempt, worker_id, provider, account, key_fingerprint, model,
    fingerprint, digest
  )
  select %(submission_id)s, id, user_id, %(stage)s, attempt, worker_id,
         %(provider)s, %(account)s, %(key_fingerprint)s, %(model)s, %(fingerprint)s, digest
    from admitted
  on conflict (id) do nothing
),
spent as (
  update vidgen.troubles as t
     set remaining = greatest(t.remaining - 1, 0)
    from braking, admitted
   where t.provider = %(provider)s
     and (t.scope, t.part, t.model) = (braking.scope, braking.part, braking.model)
),
taken as (
  update vidgen.slots as s
     set task_id = admitted.id, submission_id = %(submission_id)s, taken_at = now()
    from slot, admitted
   where s.id = slot.id and s.submission_id is null
),
checkpointed as (
  insert into vidgen.checkpoints as c (task_id, stage, state, request, inputs, submission_id)
  select id, %(stage)s, 'submitting', %(request)s, %(inputs)s, %(submission_id)s
    from admitted
  on conflict (task_id, stage) do update
     set state = 'submitting', request = excluded.request, submission_id = excluded.submission_id,
         generation_id = null, generation_started_at = null, updated_at = now()
   where c.state <> 'done'
     and not exists (
       -- A repeat after the answer was recorded must not take the checkpoint back.
       select from vidgen.submissions as s where s.id = %(submission_id)s and s.answer is not null
     )
  returning c.task_id
),
shown as (
  -- Not while a trouble's row is locked: an application's slow trigger on this row would keep it locked,
  -- and other statements count by it. The next report shows the progress, the next stage what was looked up.
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, %(progress)s), current_step = %(current_step)s,
         message = %(message)s, stage_progress = 0,
         resolution = coalesce(%(resolution)s, t.resolution),
         video_ratio = coalesce(%(video_ratio)s, t.video_ratio),
         image_ratio = coalesce(%(image_ratio)s, t.image_ratio),
         expected_at = now() + %(seconds_left)s::float8 * interval '1 second'
    from admitted
   where t.id = admitted.id and not exists (select from braking)
)
select paid.submissions, mine.cancel, gate.reason as gate,
       (
         select jsonb_build_object(
                  'scope', b.scope, 'model', b.model, 'part', b.part, 'reason', b.reason,
                  'message', b.message, 'details', b.details
                )
           from braking as b where b.remaining = 0 limit 1
       ) as braked,
       (select verdict from limited) as limited,
       not exists (select from admitted) as refused
  from mine, paid, gate

-- answer_submission --
-- The provider's answer is a fact: it goes to the submission row without a fence, so that a late
-- one is never thrown away. The checkpoint follows it only under the fence, and only while it still
-- waits for this submission. `fate` says what became of it: followed, kept (a successor will attach
-- to it), superseded (nobody will: the caller ends it at the provider). An answer that comes after
-- a successor has counted it as unknown is `late`, for good: nobody waits for it any more. `follow` is
-- false where another transaction holds the task's row: then only the fact is written.
with late as materialized (
  select from vidgen.submissions as s
   where s.id = %(submission_id)s and %(answer)s = 'generation'
     and (s.answer = 'unknown' or s.late_at is not null)
),
answered as (
  update vidgen.submissions as s
     set answer = %(answer)s, answered_at = now(), generation_id = %(generation_id)s,
         estimated_cost = %(estimated_cost)s,
         late_at = case when s.answer = 'unknown' then now() end,
         details = case when s.answer = 'unknown' then 'late: ' || coalesce(s.details, '')
                        else %(details)s end,
         ended_at = case when %(answer)s = 'refused' then now() end,
         ended_state = case when %(answer)s = 'refused' then 'refused' end,
         cost = case when %(answer)s = 'refused' then 0 end
   where s.id = %(submission_id)s
     and (s.answer is null or (s.answer = 'unknown' and %(answer)s = 'generation'))
  returning s.id
),
mine as materialized (
  select t.id
    from public.video_generation_tasks as t
   where
     -- use fence --
     and %(follow)s
     for no key update
),
followed as (
  update vidgen.checkpoints as c
     set state = 'generating', generation_id = %(generation_id)s, generation_started_at = now(),
         updated_at = now()
    from mine
   where c.task_id = mine.id and c.stage = %(stage)s and c.submission_id = %(submission_id)s
     and c.state = 'submitting' and %(answer)s = 'generation'
     and not exists (select from late)
  returning c.task_id
),
progressed as (
  -- As in end_generation.
  update vidgen.budgets as b
     set crashes = 0, suspect = false, waiting_since = null
    from followed
   where b.task_id = followed.task_id and (b.crashes > 0 or b.waiting_since is not null)
),
over as materialized (
  -- The provider accepts submissions: the trouble is over. A row that another statement holds is skipped,
  -- because a fact waits for no lock; that statement or the next answer deletes it.
  select t.provider, t.scope, t.part, t.model
    from vidgen.troubles as t, vidgen.submissions as s
   where s.id = %(submission_id)s and %(answer)s = 'generation' and t.part = 'submit'
     and t.provider = s.provider and t.model = s.model and t.scope = any (%(scopes)s::text[])
     for update of t skip locked
),
relieved as (
  delete from vidgen.troubles as t
   using over
   where (t.provider, t.scope, t.part, t.model) = (over.provider, over.scope, over.part, over.model)
)
select (select count(*) from mine) = 1 as mine,
       case
         when exists (select from late) then 'superseded'
         when exists (select from followed) then 'followed'
         -- A repeat, after the answer to the first one was lost: it is followed already.
         when exists (
           select from vidgen.checkpoints as c
             join mine on mine.id = c.task_id
            where c.stage = %(stage)s and c.submission_id = %(submission_id)s
              and c.generation_id = %(generation_id)s
         ) then 'followed'
         when exists (
           select from vidgen.checkpoints as c
            where c.task_id = %(task_id)s and c.stage = %(stage)s
              and c.submission_id = %(submission_id)s
              and (c.state = 'submitting' or c.generation_id = %(generation_id)s)
         ) then 'kept'
         else 'superseded'
       end as fate

-- paid_submissions --
-- How many submissions of a stage may have been paid for nothing: the number that
-- VIDGEN_MAX_SUBMISSIONS caps.
select count(*) as submissions
  from vidgen.submissions as s
 where s.task_id = %(task_id)s and
   -- use possibly_paid --

-- read_submission --
-- What has become of a submission whose answer another worker waits for. `late`: it came after
-- somebody had counted it as unknown, and who recorded it ends its generation.
select s.answer, s.generation_id, s.sent_at, now() as now,
       s.late_at is not null as late
  from vidgen.submissions as s
 where s.id = %(submission_id)s

-- end_generation --
-- A generation is over: its end and cost are facts (no fence); the checkpoint follows under the
-- fence: to `storing` where there is an output, back to `submitting` where there is none, with the
-- verdict where that is how the task must end. `show` is false in a repeat, after the row refused to
-- show it: a fact is written whatever the row says. Where it is known how long it took, the fleet learns
-- that: between `ended_after` and `ended_by` seconds. Where an output is to be stored, `upload_id` records
-- its place, as begin_upload does.
with ended as (
  update vidgen.submissions as s
     set ended_at = coalesce(s.ended_at, now()), ended_state = %(ended_state)s,
         cost = coalesce(%(cost)s, s.cost), cost_read_at = now(),
         rejected = s.rejected or %(rejected)s
   where s.task_id = %(task_id)s and s.generation_id = %(generation_id)s
),
mine as materialized (
  select t.id, t.user_id, t.attempt, t.worker_id, t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     for no key update
),
timed as materialized (
  -- As it was before this statement: a repeat teaches nothing.
  select s.provider, s.model, %(clip_seconds)s::smallint as seconds
    from vidgen.submissions as s
    join mine on mine.id = s.task_id
   where s.generation_id = %(generation_id)s and s.ended_at is null
     and %(ended_by)s::real is not null
),
times as materialized (
  -- A fact waits for no lock: while another statement teaches the same, this one teaches nothing.
  select g.provider, g.model, g.seconds
    from vidgen.generation_times as g
    join timed using (provider, model, seconds)
     for no key update of g skip locked
),
taught as (
  update vidgen.generation_times as g
     set ended_after = (array[%(ended_after)s::real] || g.ended_after)[:24],
         ended_by = (array[%(ended_by)s::real] || g.ended_by)[:24]
    from times
   where (g.provider, g.model, g.seconds) = (times.provider, times.model, times.seconds)
),
first_taught as (
  -- Two first ends of a kind at once: an INSERT would wait for the other's.
  insert into vidgen.generation_times (provider, model, seconds, ended_after, ended_by)
  select timed.provider, timed.model, timed.seconds, array[%(ended_after)s::real],
         array[%(ended_by)s::real]
    from timed
   where not exists (
     select from vidgen.generation_times as g
      where (g.provider, g.model, g.seconds) = (timed.provider, timed.model, timed.seconds)
   )
     and pg_try_advisory_xact_lock(
       hashtextextended(
         format('generation_times %%s %%s %%s', timed.provider, timed.model, timed.seconds), 0
       )
     )
  on conflict (provider, model, seconds) do nothing
),
checkpointed as (
  update vidgen.checkpoints as c
     set state = case when %(ended_state)s = 'succeeded' then 'storing' else 'submitting' end,
         generation_id = case when %(ended_state)s = 'succeeded' then c.generation_id end,
         verdict = %(verdict)s::jsonb, updated_at = now()
    from mine
   where c.task_id = mine.id and c.stage = %(stage)s and c.state in ('generating', 'storing')
     and c.generation_id = %(generation_id)s
),
progressed as (
  -- The checkpoint advances, so deaths and the time of waiting are counted from zero again. Not when a
  -- later attempt books the same end again before it stores the output: workers may die of that file.
  update vidgen.budgets as b
     set crashes = 0, suspect = false,
         waiting_since = case
           when not exists (
             select from vidgen.checkpoints as c
              where c.task_id = b.task_id and c.stage = %(stage)s and c.state = 'generating'
           ) then b.waiting_since
         end
    from mine
    join vidgen.checkpoints as c on c.task_id = mine.id
   where b.task_id = mine.id and (b.crashes > 0 or b.waiting_since is not null)
     and %(ended_state)s = 'succeeded'
     and c.stage = %(stage)s and c.generation_id = %(generation_id)s and c.state = 'generating'
),
shown as (
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, %(progress)s), current_step = %(current_step)s,
         message = %(message)s, stage_progress = 100
    from mine
   where t.id = mine.id and %(ended_state)s = 'succeeded' and %(show)s
),
begun as (
  -- use upload --
  and %(upload_id)s::uuid is not null and %(ended_state)s = 'succeeded'
  on conflict (id) do nothing
)
select mine.cancel from mine

-- generation_times --
-- How long the last generations of each kind took: newest first.
select g.model, g.seconds, g.ended_after, g.ended_by
  from vidgen.generation_times as g
 where g.provider = %(provider)s

-- close_generation --
-- The end and cost of a generation that nobody follows any more (late answers, cancels).
update vidgen.submissions as s
   set ended_at = coalesce(s.ended_at, now()), ended_state = coalesce(s.ended_state, %(ended_state)s),
       cost = coalesce(%(cost)s, s.cost), cost_read_at = now(), rejected = s.rejected or %(rejected)s
 where s.task_id = %(task_id)s and s.generation_id = %(generation_id)s

-- is_gone --
-- The provider knows no such generation under this worker's key. It is gone where that is the key
-- which made it, and where nobody is left who may know better. Else the two keys may belong to two
-- accounts: from now on only workers with its own key follow it.
with asked as materialized (
  select s.id, s.key_fingerprint = %(key_fingerprint)s or s.followed_by = 'anyone' as gone
    from vidgen.submissions as s
   where s.task_id = %(task_id)s and s.generation_id = %(generation_id)s
     for no key update
),
left_to_its_key as (
  update vidgen.submissions as s
     set followed_by = 'key'
    from asked
   where s.id = asked.id and not asked.gone and s.followed_by <> 'key'
)
select coalesce(bool_and(gone), true) as gone from asked

-- let_anyone_follow --
-- Generations whose account, or only key, has had no worker for so long: anyone may ask for them now,
-- and a 404 is the end of it. Else their tasks would wait, and their slots be taken, for good.
with left_alone as materialized (
  select s.id
    from vidgen.submissions as s
   where s.ended_at is null and s.followed_by <> 'anyone' and s.sent_at < now() - %(absence)s::interval
     and (s.answer is null or s.answer = 'generation')
     and vidgen.is_left_alone(
           s.provider, s.account, s.key_fingerprint, s.followed_by, %(absence)s::interval
         )
  union
  select s.id
    from vidgen.resumes as r
    join vidgen.checkpoints as c on c.task_id = r.task_id and c.state <> 'done'
    join vidgen.submissions as s on s.id = c.submission_id
   where r.followers is not null and s.followed_by <> 'anyone'
     and vidgen.is_left_alone(
           s.provider, s.account, s.key_fingerprint, s.followed_by, %(absence)s::interval
         )
),
-- Rows that their user's own call holds are left to the next run, here and below.
unheld as materialized (
  select s.id
    from vidgen.submissions as s
   where s.id in (select left_alone.id from left_alone)
   order by s.id
     for no key update of s skip locked
),
free as (
  update vidgen.submissions as s
     set followed_by = 'anyone'
    from unheld
   where s.id = unheld.id
  returning s.id, s.task_id, s.generation_id, s.account, s.key_fingerprint
),
waiting as (
  -- Also tasks that an earlier run missed, because they changed at that moment.
  update vidgen.resumes as r
     set followers = null
    from (
      select w.task_id
        from vidgen.resumes as w
        join vidgen.checkpoints as c on c.task_id = w.task_id and c.state <> 'done'
        join vidgen.submissions as s on s.id = c.submission_id
       where w.followers is not null
         and (s.followed_by = 'anyone' or s.id in (select left_alone.id from left_alone))
       order by w.task_id
         for no key update of w skip locked
    ) as left_to_anyone
   where r.task_id = left_to_anyone.task_id
)
select id, task_id, generation_id, account, key_fingerprint from free

-- stray_submissions --
-- Generations that nobody follows and whose end nobody has booked: answers that came too late, and
-- whatever a task has left behind by the way it ended. `kept`: its task only waits, or is set aside; it
-- is read, so that its slot is free once it is over, and not ended. One worker looks at a time.
with strays as materialized (
  select s.id, coalesce(follower.waits, false) as kept
    from vidgen.submissions as s
    left join lateral (
      select exists (
               select from vidgen.resumes as r
                where r.task_id = t.id and r.resume_at > now() and t.status = 'pending'
             )
             or exists (select from vidgen.set_aside as a where a.task_id = t.id) as waits
        from vidgen.checkpoints as c
        join public.video_generation_tasks as t on t.id = c.task_id
       where c.task_id = s.task_id and c.stage = s.stage and c.submission_id = s.id
         and t.status in ('pending', 'processing')
         -- A late answer's checkpoint still names it where no other submission followed.
         and not (c.state = 'submitting' and s.late_at is not null)
    ) as follower on true
   where s.answer = 'generation' and s.ended_at is null
     and coalesce(follower.waits, true)
     -- The worker that records a late answer ends its generation itself; and the provider wants 5 s between
     -- two polls.
     and greatest(s.answered_at, s.looked_at) < now() - interval '10 seconds'
     and s.provider = %(provider)s and
       -- use followed_here --
   order by s.looked_at nulls first, s.sent_at
   limit 50
     for no key update of s skip locked
)
update vidgen.submissions as s
   set looked_at = now()
  from strays
 where s.id = strays.id
returning s.id, s.task_id, s.generation_id, strays.kept,
          extract(epoch from now() - s.answered_at)::float as age

-- costs_to_read_again --
-- The provider gives refunds some minutes after a failure: the cost that it tells then is the truth.
-- What was given up may live on: it is looked for again, and ended, for a day. Rows that others hold
-- take no place in the limits.
with failed as materialized (
  select s.task_id, s.generation_id, false as given_up
    from vidgen.submissions as s
   where s.ended_state in ('failed', 'cancelled')
     and
       -- use cost_to_read --
   order by s.ended_at
   limit 20
     for no key update of s skip locked
),
given_up as materialized (
  select s.task_id, s.generation_id, true as given_up
    from vidgen.submissions as s
   where s.ended_state = 'given up'
     and
       -- use cost_to_read --
   order by random()
   limit 20
     for no key update of s skip locked
)
select * from failed union all select * from given_up
