-- The rest of the limits: what may be under way while nothing good is known of a user, a refusal that one
-- user's input brings about, and what a checkpoint may name.

alter table vidgen.settings alter column schema_version set default '20261130000600';
update vidgen.settings set schema_version = '20261130000600';

alter table vidgen.user_limits add column first_stored_at timestamptz;

comment on column vidgen.user_limits.first_stored_at is
  'When the first stage of his was stored; null: never, so that few submissions of his are under way.';

insert into vidgen.user_limits as u (user_id, first_stored_at)
select t.user_id, min(coalesce(t.completed_at, t.updated_at))
  from public.video_generation_tasks as t
 where t.image_path is not null
 group by t.user_id
    on conflict on constraint user_limits_pkey do update
   set first_stored_at = excluded.first_stored_at;

alter table vidgen.submissions add column met_gate text;

comment on column vidgen.submissions.met_gate is
  'The scope of the gate that its refusal was about: of the key, or of the account.';

-- Few rows: refusals that are about a key or an account.
-- Within the migration's transaction, as every index of ours.
-- squawk-ignore require-concurrent-index-creation
create index submissions_met_gate on vidgen.submissions (user_id, sent_at) where met_gate is not null;

-- squawk-ignore require-concurrent-index-creation
create unique index a_generation_belongs_to_one_submission on vidgen.submissions (generation_id)
 where generation_id is not null;

-- The provider's answer is a fact. Whoever may write answers must not hand the generation of one
-- submission to another: an honest worker would store one user's output as another's.
create function vidgen.generation_is_final() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  raise exception 'submission %: its generation is % and stays so', old.id, old.generation_id
    using errcode = 'insufficient_privilege';
end
$$;

create trigger generation_is_final
  before update of generation_id on vidgen.submissions
  for each row
  when (old.generation_id is not null and new.generation_id is distinct from old.generation_id)
  execute function vidgen.generation_is_final();

-- A checkpoint follows a submission of its own task and stage, from before its answer, and of generations
-- only that submission's. After the statement, as a foreign key is checked: the same statement writes the
-- submission. No foreign key, which would need two more unique indexes on every submission.
create function vidgen.checkpoint_follows_its_own() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not exists (
    select from vidgen.submissions as s
     where s.id = new.submission_id and s.task_id = new.task_id and s.stage = new.stage
       and (new.generation_id is null or s.generation_id = new.generation_id)
       and (
         s.answer is null or (tg_op = 'UPDATE' and new.submission_id = old.submission_id)
         or vidgen.is_operator()
       )
  ) then
    raise exception 'task %, stage %: submission % with generation % is not one that it follows',
      new.task_id, new.stage, new.submission_id, new.generation_id
      using errcode = 'insufficient_privilege';
  end if;
  return null;
end
$$;

create trigger checkpoint_is_born_following_its_own
  after insert on vidgen.checkpoints
  for each row
  execute function vidgen.checkpoint_follows_its_own();

create trigger checkpoint_follows_its_own
  after update of submission_id, generation_id on vidgen.checkpoints
  for each row
  when (
    new.submission_id is distinct from old.submission_id
    or (new.generation_id is not null and new.generation_id is distinct from old.generation_id)
  )
  execute function vidgen.checkpoint_follows_its_own();

-- A request belongs to the submission that sent it: a worker that goes on sends it again. A new
-- submission brings its own. An operator may put one right by hand.
create function vidgen.request_is_its_submissions() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not vidgen.is_operator() then
    raise exception 'task %, stage %: the request of submission % stays as it was sent',
      old.task_id, old.stage, old.submission_id
      using errcode = 'insufficient_privilege';
  end if;
  return new;
end
$$;

create trigger request_is_its_submissions
  before update of request on vidgen.checkpoints
  for each row
  when (new.request is distinct from old.request and new.submission_id = old.submission_id)
  execute function vidgen.request_is_its_submissions();

revoke all on function
  vidgen.generation_is_final(), vidgen.checkpoint_follows_its_own(), vidgen.request_is_its_submissions()
  from public, anon, authenticated, service_role;

-- Whether a submission of this user may begin; null: it may. A function, because each of its statements
-- sees what was committed before it got the lock: of four workers that ask at once each counts what the
-- one before has begun. Its answer says what follows: `rejected` and `ended` end the task, `waits` puts
-- it back for so many seconds.
create or replace function vidgen.refuse_submission(
  of_user uuid, of_task uuid, of_submission uuid, of_provider text, of_model text, of_digest text,
  probe interval
) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s'
as $$
#variable_conflict use_variable
declare
  limits vidgen.settings;
  mine vidgen.user_limits;
  trouble vidgen.user_troubles;
  cost record;
  each_costs numeric;
  under_way bigint;
  rejected timestamptz;
  until_then timestamptz;
  why text;
begin
  if exists (select from vidgen.submissions as s where s.id = of_submission) then
    return null;  -- a repeat of one that has begun
  end if;
  select u.* into mine from vidgen.user_limits as u where u.user_id = of_user for no key update;
  if not found then
    insert into vidgen.user_limits (user_id) values (of_user) on conflict do nothing;
    select u.* into mine from vidgen.user_limits as u where u.user_id = of_user for no key update;
  end if;
  select s.* into limits from vidgen.settings as s;

  select r.rejected_at into rejected
    from vidgen.rejections as r
   where r.user_id = of_user and r.digest = of_digest
     and r.rejected_at > now() - limits.rejection_memory;
  if found then
    return jsonb_build_object('kind', 'rejected', 'details', format(
      'the same input was rejected at %s UTC', to_char(rejected at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
    ));
  end if;
  -- The same input is under way for as many other tasks of his as may be rejected in a row, and has
  -- never gone well: what becomes of it decides for all. Only this task waits, longer each time.
  if (
    select count(*) from vidgen.submissions as s
     where s.user_id = of_user and s.digest = of_digest and s.task_id <> of_task
       and s.sent_at > now() - interval '1 day' and not s.billed and s.cost is distinct from 0
       and s.ended_at is null and (s.answer is null or s.answer = 'generation')
  ) >= limits.rejections_to_slow and not exists (
    select from vidgen.submissions as s
     where s.user_id = of_user and s.digest = of_digest and s.sent_at > now() - interval '1 day'
       and s.ended_state = 'succeeded'
  ) then
    return jsonb_build_object(
      'kind', 'waits', 'details', 'the same input is under way for other tasks',
      'seconds', (
        select 3 * 2 ^ least(t.attempt - 1, 4)
          from public.video_generation_tasks as t where t.id = of_task
      )
    );
  end if;
  if mine.stopped_until > now() then
    return jsonb_build_object('kind', 'ended', 'message', format(
      'The provider''s content rules rejected %s of your scenes in a row, so nothing more is generated '
      'for you before %s UTC. Change what your scenes ask for, and retry then.',
      mine.rejections, to_char(mine.stopped_until at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
    ));
  end if;
  if mine.rejections >= limits.rejections_to_stop then
    -- The stop is over: he begins anew, slowly.
    mine.rejections := limits.rejections_to_slow;
    update vidgen.user_limits as u
       set rejections = mine.rejections, stopped_until = null
     where u.user_id = of_user;
  end if;

  select u.* into cost from vidgen.unbilled(of_user, mine.lifted_at) as u;
  if cost.lost >= limits.max_unbilled_cost_per_user then
    return jsonb_build_object('kind', 'ended', 'message', format(
      'Too much was generated for you without ending in a video: %s of %s provider credits within a '
      'day. Nothing was paid for this task. Retry it after %s UTC.',
      trim_scale(cost.lost), trim_scale(limits.max_unbilled_cost_per_user),
      to_char(cost.opens_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
    ));
  end if;
  if cost.running > 0 then
    -- Whatever is under way may be lost as well.
    if cost.unpriced > 0 then
      select coalesce(max(s.estimated_cost), limits.expected_cost) into each_costs
        from (
          select l.estimated_cost
            from vidgen.submissions as l
           where l.model = of_model
           order by l.sent_at desc
           limit 50
        ) as s;
      cost.open := cost.open + cost.unpriced * each_costs;
    end if;
    if cost.lost + cost.open >= limits.max_unbilled_cost_per_user then
      until_then := now() + interval '5 seconds';
      why := format(
        '%s of %s provider credits are lost or under way', trim_scale(cost.lost + cost.open),
        trim_scale(limits.max_unbilled_cost_per_user)
      );
    end if;
  end if;
  -- No stage of his was ever stored, or rejections are the last that is known of his inputs: all that is
  -- under way may be rejected as well, whatever becomes of its tasks. Together with those in a row it is
  -- no more than slows him down; then one at a time.
  if until_then is null and (mine.first_stored_at is null or mine.rejections > 0) then
    select count(*) into under_way
      from vidgen.submissions as s
     where s.user_id = of_user and s.sent_at > now() - interval '1 day'
       and not s.billed and s.cost is distinct from 0
       and s.ended_at is null and (s.answer is null or s.answer = 'generation');
    if under_way >= greatest(limits.rejections_to_slow - mine.rejections, 1) then
      until_then := now() + interval '5 seconds';
      why := format(
        '%s, and %s generations under way',
        case mine.rejections
          when 0 then 'nothing of his was stored yet' else format('%s rejections in a row', mine.rejections)
        end,
        under_way
      );
    end if;
  end if;
  if mine.rejections >= limits.rejections_to_slow then
    select greatest(
             until_then,
             max(s.sent_at)
             + limits.rejection_pause * 2 ^ least(mine.rejections - limits.rejections_to_slow, 20)
           )
      into until_then
      from (
        select l.sent_at
          from vidgen.submissions as l
         where l.user_id = of_user
         order by l.sent_at desc
         limit 1
      ) as s;
    why := coalesce(why, format('%s rejections in a row', mine.rejections));
  end if;
  select t.* into trouble
    from vidgen.user_troubles as t
   where t.user_id = of_user and t.provider = of_provider and t.model = of_model
     and t.next_at is not null;
  if found and trouble.trial is distinct from of_task and trouble.next_at > now() then
    until_then := greatest(until_then, trouble.next_at);
    why := coalesce(why, format('%s: %s', trouble.reason, trouble.details));
  end if;

  if until_then > now() then
    perform vidgen.pause_user(of_user, until_then, why);
    return jsonb_build_object(
      'kind', 'waits', 'details', why,
      'seconds', extract(epoch from until_then - clock_timestamp())
    );
  end if;
  if trouble.user_id is not null and trouble.trial is distinct from of_task then
    -- As at a gate: one task tries it, the next one twice as long after it.
    update vidgen.user_troubles as t
       set trial = of_task, pauses = t.pauses + 1,
           next_at = now() + least(probe * 2 ^ least(t.pauses + 1, 20), interval '5 minutes')
     where t.user_id = of_user and t.provider = of_provider and t.model = of_model;
  elsif mine.paused_until is not null and trouble.user_id is null
        and mine.rejections < limits.rejections_to_slow then
    update vidgen.user_limits as u set paused_until = null, reason = null where u.user_id = of_user;
  end if;
  return null;
end
$$;

-- A stage is stored: whatever was paid for it is no loss, and nothing of it goes wrong in a row.
create or replace function vidgen.stage_is_stored() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s'
as $$
#variable_conflict use_variable
declare
  paid record;
begin
  update vidgen.submissions as s
     set billed = true
   where s.task_id = new.task_id and s.stage = new.stage and not s.billed
     -- What an earlier life of the task has thrown away stays lost.
     and (s.id = new.submission_id or s.counted);
  select s.user_id, s.provider, s.model into paid
    from vidgen.submissions as s where s.id = new.submission_id;
  perform from vidgen.user_limits as u
    where u.user_id = paid.user_id
      and (u.first_stored_at is null or u.rejections > 0 or u.paused_until is not null
           or exists (select from vidgen.user_troubles as t where t.user_id = u.user_id))
      for no key update;
  if found then
    update vidgen.user_limits as u
       set first_stored_at = now()
     where u.user_id = paid.user_id and u.first_stored_at is null;
    -- A still says nothing about clips: a row of rejected clips would begin anew with each task's still.
    update vidgen.user_limits as u
       set rejections = 0
     where u.user_id = paid.user_id and u.rejections > 0 and new.stage = 'video'
       and (u.stopped_until is null or u.stopped_until <= now());
    delete from vidgen.user_troubles as t
     where t.user_id = paid.user_id and t.provider = paid.provider and t.model = paid.model;
    if not exists (select from vidgen.user_troubles as t where t.user_id = paid.user_id) then
      perform vidgen.unpause_user(paid.user_id);
    end if;
  end if;
  return null;
end
$$;

grant update (met_gate) on vidgen.submissions to vidgen_worker;
