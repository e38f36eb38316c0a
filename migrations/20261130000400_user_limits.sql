-- Limits of one user that no statement passes: looked at where the money is spent, under a lock whose
-- key nobody can guess, and quotas of rows.
--
-- Two rows of a user are locked, and never by the same side. `user_locks` is what his own statements
-- wait for (inserts, cancels, retries): he may hold it as long as he likes, so no worker waits for it.
-- `user_limits` is what workers wait for, for the length of one short statement: no client can lock it,
-- so that wait may be longer than those for rows that clients hold.

alter table vidgen.settings
  add column max_inserts_per_hour integer not null default 2000,
  add column max_changes_per_hour integer not null default 2000,
  add column max_tasks_per_scene integer not null default 200,
  add column max_scenes_per_user integer not null default 10000,
  add column expected_cost numeric not null default 10,
  add column rejections_to_slow smallint not null default 3,
  add column rejections_to_stop smallint not null default 10,
  add column rejection_pause interval not null default '1 minute',
  add column rejection_stop interval not null default '1 day',
  add column rejection_memory interval not null default '1 day';
-- One row.
-- squawk-ignore constraint-missing-not-valid
alter table vidgen.settings add constraint quotas_are_positive check (
  max_inserts_per_hour > 0 and max_changes_per_hour > 0 and max_tasks_per_scene > 0
  and max_scenes_per_user > 0 and expected_cost >= 0
);
-- squawk-ignore constraint-missing-not-valid
alter table vidgen.settings add constraint rejections_slow_before_they_stop check (
  rejections_to_slow > 0 and rejections_to_stop > rejections_to_slow
  and rejection_pause >= interval '0' and rejection_stop > interval '0'
  and rejection_memory >= interval '0'
);
alter table vidgen.settings alter column schema_version set default '20261130000400';
update vidgen.settings set schema_version = '20261130000400';

comment on column vidgen.settings.max_inserts_per_hour is
  'Tasks that one signed-in user may insert within an hour.';
comment on column vidgen.settings.max_changes_per_hour is
  'Cancels and retries of one signed-in user within an hour.';
comment on column vidgen.settings.max_tasks_per_scene is
  'Tasks of one scene, ended ones too: deleting the scene changes each of their rows.';
comment on column vidgen.settings.max_scenes_per_user is
  'Scenes of one signed-in user, in a table video_scenes that our migrations made.';
comment on column vidgen.settings.expected_cost is
  'What a generation counts for, in provider credits, until anybody knows what its model costs.';
comment on column vidgen.settings.rejections_to_slow is
  'After so many rejections by content rules in a row a user''s submissions come with growing pauses.';
comment on column vidgen.settings.rejections_to_stop is
  'After so many in a row they stop, for rejection_stop or until an operator lifts it.';
comment on column vidgen.settings.rejection_memory is
  'For so long an input that content rules rejected is not sent again for the same user.';

create table vidgen.user_locks (
  user_id uuid primary key,
  hour_began timestamptz not null default now(),
  inserts integer not null default 0,
  changes integer not null default 0
) with (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.05);

comment on table vidgen.user_locks is
  'What a user''s own statements wait for, one after the other, and what he did in the current hour.';

create table vidgen.user_limits (
  user_id uuid primary key,
  rejections smallint not null default 0,
  rejected_at timestamptz,
  stopped_until timestamptz,
  paused_until timestamptz,
  reason text,
  lifted_at timestamptz,
  constraint rejections_are_not_negative check (rejections >= 0)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.05);

comment on table vidgen.user_limits is
  'What keeps a user''s submissions back: rejections in a row, a pause, a stop. Workers lock it shortly.';
comment on column vidgen.user_limits.rejections is
  'Rejections by content rules since the last stage that was stored and charged.';
comment on column vidgen.user_limits.paused_until is
  'Nothing of his is submitted before; null where nothing keeps him back.';
comment on column vidgen.user_limits.lifted_at is
  'When an operator lifted his limits: what was lost before no longer counts.';

create table vidgen.rejections (
  user_id uuid not null,
  digest text not null,
  task_id uuid not null,
  rejected_at timestamptz not null default now(),
  primary key (user_id, digest)
);

comment on table vidgen.rejections is
  'Inputs that the provider''s content rules rejected, by the digest of the whole request.';

create index rejections_by_age on vidgen.rejections (rejected_at);

-- A trouble of one user: it brakes him alone, also where nobody else works beside him.
create table vidgen.user_troubles (
  user_id uuid not null,
  provider text not null,
  model text not null,
  reason text not null,
  details text not null,
  since timestamptz not null default now(),
  results uuid[] not null,
  next_at timestamptz,
  pauses integer not null default 0,
  trial uuid,
  primary key (user_id, provider, model)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.user_troubles is
  'What has gone wrong in a row for one user and model; it goes when a stage of his is stored.';
comment on column vidgen.user_troubles.results is 'The submissions that ended so, ten at the most.';
comment on column vidgen.user_troubles.trial is
  'The one task that tries whether it has passed, as at a gate.';

revoke all on vidgen.user_locks, vidgen.user_limits, vidgen.rejections, vidgen.user_troubles
  from public, anon, authenticated, service_role, vidgen_worker;
-- Written by the functions below only: a worker can't lift anybody's limit.
grant select on vidgen.user_locks, vidgen.user_limits, vidgen.rejections, vidgen.user_troubles
  to vidgen_worker;

alter table vidgen.submissions
  add column digest text,
  add column rejected boolean not null default false,
  add column billed boolean not null default false;

comment on column vidgen.submissions.digest is
  'Of all that is sent (model, prompt, pictures, size); a clip''s still counts by its stored bytes.';
comment on column vidgen.submissions.rejected is 'The provider''s content rules rejected its input.';
comment on column vidgen.submissions.billed is
  'Its stage was stored, and charged where there are credits: it is no loss.';

update vidgen.submissions as s
   set billed = true
 where s.sent_at > now() - interval '25 hours'
   and (
     exists (select from vidgen.charges as c where c.task_id = s.task_id and c.stage = s.stage)
     or exists (
       select from vidgen.checkpoints as c
        where c.task_id = s.task_id and c.stage = s.stage and c.state = 'done'
     )
   );

-- A user with a hundred thousand charged stages a day has few that were not.
-- Within the migration's transaction, as every index of ours.
-- squawk-ignore require-concurrent-index-creation
create index submissions_unbilled on vidgen.submissions (user_id, sent_at)
 where not billed and cost is distinct from 0;

-- The user's own statements, one after the other. A wait has an end: another statement of the same
-- user may be as slow as he likes.
create function vidgen.lock_user(owner uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s'
as $$
#variable_conflict use_variable
begin
  insert into vidgen.user_locks (user_id) values (owner) on conflict do nothing;
  perform from vidgen.user_locks as l where l.user_id = owner for no key update;
exception
  when lock_not_available then
    raise exception 'another request of yours is still under way'
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = 'Wait until it has ended, then try again.';
end
$$;

-- Count what a user does in an hour, and refuse what is too much. What is rolled back has not happened.
create function vidgen.count_user(owner uuid, more_inserts bigint, more_changes bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  limits vidgen.settings;
  counted vidgen.user_locks;
begin
  select s.* into limits from vidgen.settings as s;
  perform vidgen.lock_user(owner);
  select l.* into counted from vidgen.user_locks as l where l.user_id = owner;
  -- By the clock, and not by this transaction's begin: an older one would find an hour of the future and
  -- begin it anew. An hour that is in the future all the same was written before the clock stepped back.
  if counted.hour_began not between clock_timestamp() - interval '1 hour' and clock_timestamp() then
    counted.hour_began := clock_timestamp();
    counted.inserts := 0;
    counted.changes := 0;
  end if;
  if more_inserts > 0 and counted.inserts + more_inserts > limits.max_inserts_per_hour then
    raise exception 'limit reached: % new tasks an hour, % of them used', limits.max_inserts_per_hour,
      counted.inserts
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = format(
        'Nothing was inserted. Try again after %s UTC, or insert fewer.',
        to_char((counted.hour_began + interval '1 hour') at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
      );
  end if;
  if more_changes > 0 and counted.changes + more_changes > limits.max_changes_per_hour then
    raise exception 'limit reached: % cancels and retries an hour', limits.max_changes_per_hour
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = format(
        'Nothing was changed. Try again after %s UTC.',
        to_char((counted.hour_began + interval '1 hour') at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
      );
  end if;
  update vidgen.user_locks as l
     set hour_began = counted.hour_began, inserts = counted.inserts + more_inserts,
         changes = counted.changes + more_changes
   where l.user_id = owner;
end
$$;

-- Provider credits of a rolling day that brought this user nothing. `lost`: failed, rejected, cancelled
-- in any state, thrown away. `open`: under way for a task that nobody has asked to cancel; it may yet
-- end in a video. `running`: how many of those the provider still works on; `unpriced`: how many of
-- those have no price yet; `opens_at`: when enough of what is lost is a day old; null: nothing is over.
create function vidgen.unbilled(owner uuid, since timestamptz)
returns table (
  lost numeric, open numeric, running bigint, unpriced bigint, opens_at timestamptz
)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  with paid as materialized (
    select s.sent_at, s.ended_at,
           coalesce(
             s.cost, s.estimated_cost,
             -- One that has ended and whose cost nobody tells is not for free.
             case when s.ended_at is not null and s.answer = 'generation' then (
               select l.expected_cost from vidgen.settings as l
             ) end
           ) as cost,
           (s.ended_at is null or s.ended_state = 'succeeded')
           and exists (
             select from public.video_generation_tasks as t
              where t.id = s.task_id and t.status in ('pending', 'processing')
                and t.cancel_requested_at is null
           ) as is_open
      from vidgen.submissions as s
     where s.user_id = unbilled.owner
       and s.sent_at > greatest(now() - interval '1 day', unbilled.since)
       and not s.billed and s.cost is distinct from 0
  ),
  lost as (
    select u.sent_at, sum(u.cost) over (order by u.sent_at desc) as since_then
      from paid as u
     where not u.is_open and u.cost > 0
  )
  select coalesce(sum(u.cost) filter (where not u.is_open), 0),
         coalesce(sum(u.cost) filter (where u.is_open), 0),
         count(*) filter (where u.is_open and u.ended_at is null),
         count(*) filter (where u.is_open and u.cost is null),
         (
           select max(l.sent_at) + interval '1 day'
             from lost as l
            where l.since_then >= (select s.max_unbilled_cost_per_user from vidgen.settings as s)
         )
    from paid as u;
$$;

create or replace function vidgen.unbilled_cost(owner uuid) returns numeric
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select u.lost
    from vidgen.unbilled(
           unbilled_cost.owner,
           (select l.lifted_at from vidgen.user_limits as l where l.user_id = unbilled_cost.owner)
         ) as u;
$$;

-- Keep a user's tasks out of the line until then: his turn, and what could go on with his next clip.
-- What a claim holds just now is skipped; each of those meets its limit by itself.
create function vidgen.pause_user(of_user uuid, until_then timestamptz, of_reason text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  update vidgen.user_limits as u
     set paused_until = until_then, reason = of_reason
   where u.user_id = of_user;
  update vidgen.resumes as r
     set resume_at = until_then
    from (
      select w.task_id
        from vidgen.resumes as w
       where w.user_id = of_user and w.class = 1 and w.resume_at < until_then
         for update skip locked
    ) as waiting
   where r.task_id = waiting.task_id;
  update vidgen.turns as t
     set waiting_since = null, due_at = until_then
    from (
      select w.user_id
        from vidgen.turns as w
       where w.user_id = of_user
         for update skip locked
    ) as turn
   where t.user_id = turn.user_id;
end
$$;

-- Nothing keeps him back any more: what waits comes at once.
create function vidgen.unpause_user(of_user uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  was timestamptz;
begin
  select u.paused_until into was from vidgen.user_limits as u where u.user_id = of_user for no key update;
  if was is null then
    return;
  end if;
  update vidgen.user_limits as u set paused_until = null, reason = null where u.user_id = of_user;
  if was > now() then
    update vidgen.resumes as r
       set resume_at = now()
      from (
        select w.task_id
          from vidgen.resumes as w
         where w.user_id = of_user and w.class = 1 and w.resume_at = was
           for update skip locked
      ) as waiting
     where r.task_id = waiting.task_id;
    insert into vidgen.arrivals (user_id, due_at) values (of_user, now());
    perform pg_notify('vidgen_tasks', '');
  end if;
end
$$;

-- Whether a submission of this user may begin; null: it may. A function, because each of its statements
-- sees what was committed before it got the lock: of four workers that ask at once each counts what the
-- one before has begun. Its answer says what follows: `rejected` and `ended` end the task, `waits` puts
-- it back for so many seconds.
create function vidgen.refuse_submission(
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
    elsif mine.rejections > 0 and mine.rejections + cost.running >= limits.rejections_to_stop then
      until_then := now() + interval '5 seconds';
      why := format('%s rejections in a row, and %s generations under way', mine.rejections, cost.running);
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
create function vidgen.stage_is_stored() returns trigger
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
      and (u.rejections > 0 or u.paused_until is not null
           or exists (select from vidgen.user_troubles as t where t.user_id = u.user_id))
      for no key update;
  if found then
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

create trigger stage_is_stored
  after update of state on vidgen.checkpoints
  for each row
  when (new.state = 'done' and old.state <> 'done')
  execute function vidgen.stage_is_stored();

-- An input was rejected, whatever has become of its task: a cancel in time hides nothing.
create function vidgen.submission_is_rejected() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s'
as $$
#variable_conflict use_variable
begin
  insert into vidgen.rejections as r (user_id, digest, task_id)
  values (new.user_id, coalesce(new.digest, new.fingerprint), new.task_id)
      on conflict on constraint rejections_pkey do update
     set task_id = excluded.task_id, rejected_at = excluded.rejected_at;
  insert into vidgen.user_limits as u (user_id, rejections, rejected_at)
  values (new.user_id, 1, now())
      on conflict on constraint user_limits_pkey do update
     set rejections = least(u.rejections + 1, 1000)::smallint, rejected_at = now(),
         stopped_until = (
           select case
                    when u.rejections + 1 >= s.rejections_to_stop then now() + s.rejection_stop
                    else u.stopped_until
                  end
             from vidgen.settings as s
         );
  return null;
end
$$;

create trigger submission_is_rejected
  after update of rejected on vidgen.submissions
  for each row
  when (new.rejected and not old.rejected)
  execute function vidgen.submission_is_rejected();

-- A trouble after money was spent, of one task: how many tasks have met it in a row, and how many
-- users. `weighed` are the same users, those together as one for whom this model has never worked
-- (while it has for somebody: a new account could send anything). The same task again counts once. From
-- the third user on only `allowance` submissions more begin. Beside it the user's own: three results
-- in a row pause him, and one task of his after the other tries whether it has passed. `braked`: from
-- now on.
create function vidgen.note_trouble(
  of_provider text, of_scope text, of_part text, of_model text, of_reason text, of_message text,
  of_details text, of_task uuid, of_user uuid, allowance integer, probe interval
) returns table (tasks integer, users integer, weighed integer, braked boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '5s'
as $$
#variable_conflict use_variable
declare
  in_a_row constant integer := 3;
  proven boolean;
  delivered boolean;
  noted vidgen.troubles;
  sent uuid;
  own vidgen.user_troubles;
begin
  proven := exists (
    select from vidgen.submissions as s
     where s.user_id = of_user and s.model = of_model and s.ended_state = 'succeeded'
  );
  delivered := exists (
    select from public.video_generation_tasks as t where t.status = 'completed'
  );
  -- An array never grows beyond what is asked of it.
  insert into vidgen.troubles as t (
    provider, scope, part, model, reason, message, details, tasks, proven_users, new_users
  )
  values (
    of_provider, of_scope, of_part, of_model, of_reason, of_message, of_details, array[of_task],
    case when proven then array[of_user] else '{}' end,
    case when proven then '{}' else array[of_user] end
  )
      on conflict on constraint troubles_pkey do update
     set reason = excluded.reason, message = excluded.message, details = excluded.details,
         tasks = case when excluded.tasks <@ t.tasks or cardinality(t.tasks) >= 10
                      then t.tasks else t.tasks || excluded.tasks end,
         proven_users = case when excluded.proven_users <@ t.proven_users
                                  or cardinality(t.proven_users) >= 10
                             then t.proven_users else t.proven_users || excluded.proven_users end,
         new_users = case when excluded.new_users <@ t.new_users
                               or cardinality(t.new_users) >= 10
                          then t.new_users else t.new_users || excluded.new_users end
  returning t.* into noted;
  tasks := cardinality(noted.tasks);
  select count(distinct one.id) into users
    from unnest(noted.proven_users || noted.new_users) as one (id);
  weighed := cardinality(noted.proven_users)
             + least(cardinality(noted.new_users), case when delivered then 1 else 10 end);
  if users >= in_a_row and allowance is not null and noted.remaining is null then
    update vidgen.troubles as t
       set remaining = allowance
     where t.provider = of_provider and t.scope = of_scope and t.part = of_part and t.model = of_model;
  end if;

  braked := false;
  select s.id into sent
    from vidgen.submissions as s
   where s.task_id = of_task
   order by s.sent_at desc
   limit 1;
  if sent is not null then
    insert into vidgen.user_limits (user_id) values (of_user) on conflict do nothing;
    perform from vidgen.user_limits as u where u.user_id = of_user for no key update;
    insert into vidgen.user_troubles as t (user_id, provider, model, reason, details, results)
    values (of_user, of_provider, of_model, of_reason, left(of_details, 500), array[sent])
        on conflict on constraint user_troubles_pkey do update
       set reason = excluded.reason, details = excluded.details,
           results = case when excluded.results <@ t.results or cardinality(t.results) >= 10
                          then t.results else t.results || excluded.results end
    returning t.* into own;
    if cardinality(own.results) >= in_a_row and own.next_at is null then
      update vidgen.user_troubles as t
         set next_at = now() + probe
       where t.user_id = of_user and t.provider = of_provider and t.model = of_model;
      perform vidgen.pause_user(of_user, now() + probe, format('%s: %s', of_reason, left(of_details, 500)));
      braked := true;
    end if;
  end if;
  return next;
end
$$;

-- What is of no use any more. Rows of `user_locks` and `user_limits` stay, one per user: whoever is about
-- to lock one must find it.
create function vidgen.sweep_limits() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  delete from vidgen.rejections as r
   where r.rejected_at < now() - (select s.rejection_memory from vidgen.settings as s);
  delete from vidgen.user_troubles as t
   where greatest(t.since, t.next_at) < now() - interval '1 day';
end
$$;

-- An operator's hand: the user begins anew, and what waits comes at once.
create function vidgen.lift_limits(of_user uuid) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  known boolean;
begin
  update vidgen.user_locks as l
     set hour_began = now(), inserts = 0, changes = 0
   where l.user_id = of_user;
  known := found;
  perform from vidgen.user_limits as u where u.user_id = of_user for no key update;
  known := known or found;
  perform vidgen.unpause_user(of_user);
  delete from vidgen.user_troubles as t where t.user_id = of_user;
  insert into vidgen.user_limits as u (user_id, lifted_at)
  select of_user, now() where known
      on conflict on constraint user_limits_pkey do update
     set rejections = 0, stopped_until = null, lifted_at = excluded.lifted_at;
  -- What has begun and was put back waits in its own row.
  update public.video_generation_tasks as t
     set run_after = now()
    from (
      select w.id
        from public.video_generation_tasks as w
       where w.user_id = of_user and w.status = 'pending' and w.attempt > 0 and w.run_after > now()
         for no key update skip locked
    ) as waiting
   where t.id = waiting.id;
  return known;
end
$$;

-- As before, under a lock that nobody else can take, and with the sums in the sentence.
create or replace function vidgen.check_limits(owner uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  limits vidgen.settings;
  unfinished bigint;
  stopped timestamptz;
  lifted timestamptz;
  cost record;
begin
  perform vidgen.lock_user(owner);
  select s.* into limits from vidgen.settings as s;
  select count(*) into unfinished
    from (
      -- The order keeps the planner from reading the whole table in the hope of finding enough.
      (select from public.video_generation_tasks as t
        where t.user_id = owner and t.status = 'pending'
        order by t.priority desc
        limit limits.max_unfinished_per_user + 1)
      union all
      (select from public.video_generation_tasks as t
        where t.user_id = owner and t.status = 'processing'
        limit limits.max_unfinished_per_user + 1)
    ) as unfinished_tasks;
  if unfinished > limits.max_unfinished_per_user then
    raise exception 'limit reached: % unfinished tasks', limits.max_unfinished_per_user
      using errcode = 'PT429', detail = 'USER_LIMIT',
            hint = 'Wait until some have ended, or cancel some.';
  end if;
  select u.stopped_until, u.lifted_at into stopped, lifted
    from vidgen.user_limits as u where u.user_id = owner;
  if stopped > now() then
    raise exception 'limit reached: the provider''s content rules rejected % of your scenes in a row',
      limits.rejections_to_stop
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = format(
        'Change what your scenes ask for, and try again after %s UTC.',
        to_char(stopped at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
      );
  end if;
  select u.* into cost from vidgen.unbilled(owner, lifted) as u;
  if cost.lost > limits.max_unbilled_cost_per_user then
    raise exception 'limit reached: too much was generated for you today without ending in a video '
                    '(% of % provider credits)',
      trim_scale(cost.lost), trim_scale(limits.max_unbilled_cost_per_user)
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = format(
        'Try again tomorrow, after %s UTC.',
        to_char(cost.opens_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
      );
  end if;
end
$$;

create or replace function vidgen.limit_inserts() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  limits vidgen.settings;
  of_user record;
  crowded uuid;
begin
  select s.* into limits from vidgen.settings as s;
  for of_user in select i.user_id, count(*) as rows from inserted as i group by i.user_id order by i.user_id
  loop
    perform vidgen.count_user(of_user.user_id, of_user.rows, 0);
    perform vidgen.check_limits(of_user.user_id);
  end loop;
  -- Under the lock of their owner: nobody else may order videos of them.
  select mine.scene_id into crowded
    from (select distinct i.scene_id from inserted as i where i.scene_id is not null) as mine
   where (
     select count(*)
       from (
         select
           from public.video_generation_tasks as t
          where t.scene_id = mine.scene_id
          limit limits.max_tasks_per_scene + 1
       ) as tasks
   ) > limits.max_tasks_per_scene
   limit 1;
  if crowded is not null then
    raise exception 'limit reached: scene % has % tasks', crowded, limits.max_tasks_per_scene
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = 'Make a copy of the scene and use that.';
  end if;
  return null;
end
$$;

-- Beyond the limit nothing more is even written: 100,000 rows would be inserted and checked first, for
-- seconds. Only a short cut: whoever forges this number meets the exact count after the statement.
create function vidgen.begin_to_count() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform set_config(
    'vidgen.rows_left', (select s.max_inserts_per_hour::text from vidgen.settings as s), true
  );
  return null;
end
$$;

create function vidgen.count_row() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  rows_left integer := coalesce(nullif(current_setting('vidgen.rows_left', true), ''), '1')::integer - 1;
begin
  if rows_left < 0 then
    raise exception 'limit reached: too many new tasks in one statement'
      using errcode = 'PT429', detail = 'USER_LIMIT', hint = 'Nothing was inserted. Insert fewer.';
  end if;
  perform set_config('vidgen.rows_left', rows_left::text, true);
  return new;
end
$$;

create trigger begin_to_count
  before insert on public.video_generation_tasks
  for each statement
  when (row_security_active('public.video_generation_tasks'))
  execute function vidgen.begin_to_count();

create trigger count_row
  before insert on public.video_generation_tasks
  for each row
  when (row_security_active('public.video_generation_tasks'))
  execute function vidgen.count_row();

-- Scenes, where the table is ours; an application's own is its own affair.
create function vidgen.limit_scenes() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  most integer;
  owner uuid;
begin
  select s.max_scenes_per_user into most from vidgen.settings as s;
  for owner in select distinct i.user_id from inserted as i order by i.user_id loop
    perform vidgen.lock_user(owner);
    if (
      select count(*)
        from (select from public.video_scenes as s where s.user_id = owner limit most + 1) as scenes
    ) > most then
      raise exception 'limit reached: % scenes', most
        using errcode = 'PT429', detail = 'USER_LIMIT', hint = 'Delete some that you no longer need.';
    end if;
  end loop;
  return null;
end
$$;

do $$
begin
  if exists (
    select from pg_catalog.pg_policies as p
     where p.schemaname = 'public' and p.tablename = 'video_scenes'
       and p.policyname = 'owners add scenes'
  ) then
    create trigger limit_scenes
      after insert on public.video_scenes
      referencing new table as inserted
      for each statement
      when (row_security_active('public.video_scenes'))
      execute function vidgen.limit_scenes();
  end if;
end
$$;

-- As before; the role decides whom the limits bind, each cancel counts, and what a cancel would throw
-- away is looked at in every state: an output that waits to be stored was paid for, too.
create or replace function vidgen.cancel_task(task_id uuid) returns public.video_generation_tasks
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  task public.video_generation_tasks;
  bound boolean := not vidgen.acts_for_all();
  changed boolean := false;
begin
  select t.* into task from public.video_generation_tasks as t where t.id = task_id;
  if task.id is null or not vidgen.may_act_on(task.user_id) then
    raise exception 'there is no task % of yours', task_id using errcode = 'PT404';
  end if;
  if bound then
    perform vidgen.lock_user(task.user_id);
  end if;
  select t.* into task
    from public.video_generation_tasks as t where t.id = task_id
     for no key update;
  if task.id is null then
    raise exception 'there is no task % of yours', task_id using errcode = 'PT404';
  end if;
  if task.status in ('completed', 'failed', 'cancelled') then
    return task;
  end if;
  if task.status = 'pending' and not exists (
    -- Something may live at the provider: only a worker can end it there.
    select
      from vidgen.checkpoints as c
      join vidgen.submissions as s on s.id = c.submission_id
     where c.task_id = task.id
       and c.state <> 'done' and s.ended_at is null and s.answer is distinct from 'refused'
  ) then
    update public.video_generation_tasks as t
       set status = 'cancelled', completed_at = now(),
           cancel_requested_at = coalesce(t.cancel_requested_at, now()),
           current_step = 'Cancelled', message = 'Video generation cancelled', stage_progress = null
     where t.id = task.id
    returning t.* into task;
    perform vidgen.release_credits(task.id);
    if task.attempt > 0 then
      perform vidgen.write_scene(task.scene_id, task.user_id, 'pending', null, null);
    end if;
    changed := true;
  elsif task.cancel_requested_at is null then
    update public.video_generation_tasks as t
       set cancel_requested_at = now()
     where t.id = task.id
    returning t.* into task;
    perform pg_notify('vidgen_tasks', 'cancel');
    changed := true;
  end if;
  if bound and changed then
    perform vidgen.count_user(task.user_id, 0, 1);
    -- Else one insert of many tasks, each cancelled as soon as it runs, would pass the limit that
    -- the next insert meets.
    if exists (
      select from vidgen.submissions as s
       where s.task_id = task.id and not s.billed and s.cost is distinct from 0
         and s.answer is distinct from 'refused'
         and (s.ended_at is null or s.ended_state = 'succeeded')
    ) and vidgen.unbilled_cost(task.user_id)
          > (select s.max_unbilled_cost_per_user from vidgen.settings as s) then
      raise exception 'limit reached: task % runs at the provider already and can''t be cancelled', task_id
        using errcode = 'PT429', detail = 'USER_LIMIT',
              hint = 'Too much was generated for you today without ending in a video. '
                     'Let this one end, or try again tomorrow.';
    end if;
  end if;
  return task;
end
$$;

create or replace function vidgen.retry_task(task_id uuid) returns public.video_generation_tasks
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  task public.video_generation_tasks;
  budget vidgen.budgets;
  allowed smallint;
  bound boolean := not vidgen.acts_for_all();
begin
  select t.* into task from public.video_generation_tasks as t where t.id = task_id;
  if task.id is null or not vidgen.may_act_on(task.user_id) then
    raise exception 'there is no task % of yours', task_id using errcode = 'PT404';
  end if;
  if bound then
    perform vidgen.lock_user(task.user_id);
  end if;
  select t.* into task
    from public.video_generation_tasks as t where t.id = task_id
     for no key update;
  if task.id is null then
    raise exception 'there is no task % of yours', task_id using errcode = 'PT404';
  end if;
  if task.status not in ('failed', 'cancelled') then
    raise exception 'task % is %: only a failed or cancelled task can be retried', task_id, task.status
      using errcode = 'PT409';
  end if;
  select s.max_retries into allowed from vidgen.settings as s;
  select b.* into budget from vidgen.budgets as b where b.task_id = task.id for update;
  if coalesce(budget.retries, 0) >= allowed then
    raise exception 'task % was retried % times already', task_id, allowed
      using errcode = 'PT409', hint = 'Insert a new task.';
  end if;
  if budget.rejected_inputs is not null
     and budget.rejected_inputs = vidgen.scene_digest(task.scene_id, task.user_id) then
    raise exception 'task %: the provider''s content rules rejected this scene, and it is unchanged', task_id
      using errcode = 'PT409', hint = 'Change the scene''s prompt or picture first.';
  end if;

  -- Finished stages are kept, and so is a finished generation whose output waits to be stored. A
  -- stage that ended otherwise begins anew, from the scene as it is.
  delete from vidgen.checkpoints as c
   using vidgen.submissions as s
   where c.task_id = task.id and c.submission_id = s.id and c.state not in ('done', 'storing')
     and (s.ended_at is not null or s.answer = 'refused' or s.answer = 'unknown');
  update vidgen.submissions as s set counted = false where s.task_id = task.id and s.counted;
  insert into vidgen.budgets as b (task_id, retries) values (task.id, 1)
      on conflict on constraint budgets_pkey do update
     set retries = b.retries + 1, crashes = 0, rejected_inputs = null;

  update public.video_generation_tasks as t
     set status = 'pending', worker_id = null, failures = 0, cancel_requested_at = null,
         error_code = null, error_message = null, error = null, completed_at = null,
         progress = 0, stage_progress = null, run_after = now(),
         current_step = 'Initializing', message = 'Video generation task started'
   where t.id = task.id
  returning t.* into task;
  if bound then
    perform vidgen.count_user(task.user_id, 0, 1);
    perform vidgen.check_limits(task.user_id);
  end if;
  return task;
end
$$;

do $$
declare
  ours regprocedure;
begin
  foreach ours in array array[
    'vidgen.lock_user(uuid)'::regprocedure,
    'vidgen.count_user(uuid, bigint, bigint)'::regprocedure,
    'vidgen.unbilled(uuid, timestamptz)'::regprocedure,
    'vidgen.pause_user(uuid, timestamptz, text)'::regprocedure,
    'vidgen.unpause_user(uuid)'::regprocedure,
    'vidgen.refuse_submission(uuid, uuid, uuid, text, text, text, interval)'::regprocedure,
    'vidgen.stage_is_stored()'::regprocedure,
    'vidgen.submission_is_rejected()'::regprocedure,
    'vidgen.note_trouble(text, text, text, text, text, text, text, uuid, uuid, integer, interval)'::regprocedure,
    'vidgen.sweep_limits()'::regprocedure,
    'vidgen.lift_limits(uuid)'::regprocedure,
    'vidgen.begin_to_count()'::regprocedure,
    'vidgen.count_row()'::regprocedure,
    'vidgen.limit_scenes()'::regprocedure
  ] loop
    execute format('revoke all on function %s from public, anon, authenticated, service_role', ours);
  end loop;
end
$$;
grant execute on function
  vidgen.unbilled(uuid, timestamptz), vidgen.sweep_limits(),
  vidgen.refuse_submission(uuid, uuid, uuid, text, text, text, interval),
  vidgen.note_trouble(text, text, text, text, text, text, text, uuid, uuid, integer, interval)
  to vidgen_worker;
grant insert (digest), update (rejected) on vidgen.submissions to vidgen_worker;
-- Troubles are noted by a function now; what a statement still writes is how many more may begin.
revoke insert, update on vidgen.troubles from vidgen_worker;
grant update (remaining) on vidgen.troubles to vidgen_worker;
