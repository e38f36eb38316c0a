-- Attempts: workers and their leases, submissions, checkpoints, uploads, and the change of one task by
-- one attempt.
--
-- An application's error (of its trigger, check, key, policy or lock on our tables) must not undo the work
-- of a statement for other tasks. So each statement that changes several tasks changes each of them in a
-- function with an exception block, which is one savepoint: a row that refuses is recorded in `refusals` and
-- left alone for a while.

set local search_path = '';

create table vidgen.workers (
  id uuid primary key,
  host text not null,
  pid integer not null,
  version text not null,
  provider text not null,
  key_fingerprint text not null,
  concurrency integer not null,
  lease interval not null,
  running integer not null default 0,
  started_at timestamptz not null default now(),
  heartbeat_at timestamptz not null default now(),
  steady_since timestamptz,
  dead_at timestamptz,
  -- The worker has left, but some of its rows refused the hand-back: its tasks are taken over at once, and
  -- no death is counted.
  left_at timestamptz,
  -- The provider's account that a worker spends from: a label of the operator's, because the provider
  -- names none. And the scopes of the gates that concern the worker.
  account text not null default 'default',
  scopes text[] not null,
  renders smallint not null default 0,
  constraint renders_are_not_negative check (renders >= 0),
  constraint lease_is_positive check (lease > interval '0'),
  constraint times_can_be_read check (
    greatest(started_at, heartbeat_at, steady_since, dead_at, left_at) < '9999-01-02 00:00:00+00'
    and least(started_at, heartbeat_at, steady_since, dead_at, left_at) > '1900-01-01 00:00:00+00'
  )
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.workers is
  'One row per worker process: its heartbeat extends the lease of all its tasks. Ids are never reused.';
comment on column vidgen.workers.steady_since is
  'The time since which all heartbeats were answered in time; null while it may not declare others dead.';
comment on column vidgen.workers.account is
  'The label of the provider''s account (VIDGEN_ACCOUNT) whose key this worker uses.';
comment on column vidgen.workers.scopes is
  'Scopes of the gates that concern this worker.';
comment on column vidgen.workers.renders is
  'How many films with outputs it works on at once (VIDGEN_RENDERS); 0: none.';

-- The last sign of life of each key. A worker's row says it while the row exists; this row outlives it.
create table vidgen.keys (
  provider text not null,
  key_fingerprint text not null,
  account text not null,
  heard_at timestamptz not null default now(),
  primary key (provider, key_fingerprint)
);

comment on table vidgen.keys is
  'Keys that workers have used here, with the last account label of each and the last sign of life.';

-- Append-only: one row per paid POST, written before it and completed after it. Without a foreign key,
-- because this record of money outlives the task.
create table vidgen.submissions (
  id uuid primary key,
  task_id uuid not null,
  user_id uuid not null,
  stage text not null,
  attempt integer not null,
  worker_id uuid not null,
  provider text not null,
  key_fingerprint text not null,
  model text not null,
  fingerprint text not null,
  sent_at timestamptz not null default now(),
  answer text,
  answered_at timestamptz,
  details text,
  generation_id uuid,
  estimated_cost numeric,
  ended_state text,
  ended_at timestamptz,
  cost numeric,
  cost_read_at timestamptz,
  counted boolean not null default true,
  -- The worker that reads a stray: one at a time, and never two reads of one generation within the
  -- provider's five seconds.
  looked_at timestamptz,
  -- Only the account that made a generation knows it. All workers with its account may follow it, and so
  -- may workers with the same key under another label. Where another key of the account got a 404, the two
  -- keys may belong to two accounts: then only workers with the same key may. If none of these has been
  -- alive for an hour, any worker may.
  account text not null default 'default',
  followed_by text not null default 'account',
  digest text,
  rejected boolean not null default false,
  billed boolean not null default false,
  met_gate text,
  late_at timestamptz,
  constraint stage_is_known foreign key (stage) references vidgen.stages (name),
  constraint answer_is_known check (answer in ('generation', 'refused', 'unknown')),
  constraint answer_has_its_time check ((answer is null) = (answered_at is null)),
  constraint a_generation_has_an_id check (answer is distinct from 'generation' or generation_id is not null),
  -- 'refused' is the end of a submission that began no generation.
  constraint ended_state_is_known check (
    ended_state in (
      'succeeded', 'failed', 'cancelled', 'gone', 'undecodable', 'given up', 'refused'
    )
  ),
  constraint only_a_generation_is_late check (late_at is null or answer = 'generation'),
  constraint followed_by_is_known check (followed_by in ('account', 'key', 'anyone'))
) with (fillfactor = 80);

comment on column vidgen.submissions.counted is
  'Whether the submission counts for VIDGEN_MAX_SUBMISSIONS; retry_video_generation_task clears it.';
comment on column vidgen.submissions.account is
  'The label of the account that paid it (VIDGEN_ACCOUNT).';
comment on column vidgen.submissions.followed_by is
  'The workers that may follow its generation: those of the account, of its own key only, or all.';
comment on column vidgen.submissions.digest is
  'Digest of the whole request (model, prompt, pictures, size); a clip''s still counts by its stored bytes.';
comment on column vidgen.submissions.rejected is 'The provider''s content rules rejected the input.';
comment on column vidgen.submissions.billed is
  'The stage was stored, and charged where there are credits: the cost is no loss.';
comment on column vidgen.submissions.met_gate is
  'The scope of the gate for its refusal: of the key, or of the account.';

comment on column vidgen.submissions.late_at is
  'The time of a late answer, after a worker had counted it as unknown: no task follows its generation.';

-- The history of generations for the whole fleet: one row per kind (a model, and the seconds of the clip; 0
-- for a still), with its last 24 ends. A poll sees an end after it happened. So each end has two
-- times, in seconds since the provider accepted the generation: the last poll before the end, and the first
-- after it. There are as many rows as models and durations in use, 200 at the most.
create table vidgen.generation_times (
  provider text not null,
  model text not null,
  seconds smallint not null,
  ended_after real[] not null,
  ended_by real[] not null,
  primary key (provider, model, seconds),
  constraint a_kind_is_short_and_of_seconds check (
    octet_length(provider) <= 200 and octet_length(model) <= 200 and seconds between 0 and 3600
  ),
  constraint the_last_24_are_kept check (
    cardinality(ended_after) = cardinality(ended_by) and cardinality(ended_by) between 1 and 24
  ),
  -- The whole fleet computes with them: NULL, NaN or Infinity would stop its polls.
  constraint times_are_seconds_of_a_day check (
    array_ndims(ended_after) = 1 and array_ndims(ended_by) = 1
    and array_position(ended_after, null) is null and array_position(ended_by, null) is null
    and 0 <= all (ended_after) and 0 <= all (ended_by)
    and 86400 >= all (ended_after) and 86400 >= all (ended_by)
  )
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.generation_times is
  'The durations of the last generations of each kind, newest first, for polls and the expected end of tasks.';

create index submissions_by_task on vidgen.submissions (task_id, stage, sent_at);
create index submissions_by_user on vidgen.submissions (user_id, sent_at);
-- Generations whose end has not been booked yet.
create index submissions_open on vidgen.submissions (sent_at) where ended_at is null;
-- Costs to be read again: refunds come some minutes after a failure.
create index submissions_failed on vidgen.submissions (ended_at)
  where ended_state in ('failed', 'cancelled');
-- Given up: the provider neither reported its state nor ended it. Its cost is read later.
create index submissions_given_up on vidgen.submissions (ended_at) where ended_state = 'given up';
-- Not BRIN: new rows take the place of deleted ones, so that each range would hold rows of every age.
create index submissions_by_sent_at on vidgen.submissions (sent_at);
-- Few rows, even of a user with a hundred thousand charged stages a day.
create index submissions_unbilled on vidgen.submissions (user_id, sent_at)
 where not billed and cost is distinct from 0;
-- Few rows: refusals that are about a key or an account.
create index submissions_met_gate on vidgen.submissions (user_id, sent_at) where met_gate is not null;
-- squawk-ignore require-concurrent-index-creation
create unique index a_generation_belongs_to_one_submission on vidgen.submissions (generation_id)
 where generation_id is not null;

create table vidgen.checkpoints (
  task_id uuid not null references public.video_generation_tasks (id) on delete cascade,
  stage text not null,
  state text not null,
  request jsonb not null,
  inputs text not null,
  submission_id uuid references vidgen.submissions (id),
  generation_id uuid,
  generation_started_at timestamptz,
  bucket text,
  path text,
  media_type text,
  size bigint,
  sha256 text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  primary key (task_id, stage),
  -- The effect of the provider's answer on the task is kept with the checkpoint: a restart between that
  -- answer and the task's end must not pay for the same input again.
  verdict jsonb,
  constraint stage_is_known foreign key (stage) references vidgen.stages (name),
  constraint state_is_known check (state in ('submitting', 'generating', 'storing', 'done')),
  constraint a_generation_is_followed_by_id check (
    state = 'submitting' or generation_id is not null or submission_id is null
  ),
  constraint without_a_submission_nothing_is_generated check (
    submission_id is not null or (generation_id is null and state in ('storing', 'done'))
  ),
  constraint done_has_an_artifact check (
    (state = 'done') = (path is not null) and (path is null) = (bucket is null)
    and (path is null) = (sha256 is null) and (path is null) = (size is null)
  )
) with (fillfactor = 70);

comment on column vidgen.checkpoints.inputs is
  'Digest of the scene of the frozen request: a rejected scene is retried only when it differs.';

comment on column vidgen.checkpoints.submission_id is
  'The paid submission; null: the output was made here, and is not charged.';

create index checkpoints_by_submission on vidgen.checkpoints (submission_id);

-- The counts of a task's budgets. No client reads them.
create table vidgen.budgets (
  task_id uuid primary key references public.video_generation_tasks (id) on delete cascade,
  crashes smallint not null default 0,
  suspect boolean not null default false,
  retries smallint not null default 0,
  rejected_inputs text,
  waiting_since timestamptz,
  cancel_after timestamptz,
  constraint crashes_are_not_negative check (crashes >= 0 and retries >= 0),
  constraint a_suspect_has_crashed check (crashes > 0 or not suspect)
);

comment on column vidgen.budgets.suspect is
  'One death below VIDGEN_MAX_CRASHES: the task runs alone, so that its next death counts for no other task.';
comment on column vidgen.budgets.waiting_since is
  'The time since which the task has only waited for a service; null after progress.';
comment on column vidgen.budgets.cancel_after is
  'Before this time no worker tries again to cancel this task''s generation at the provider.';

-- Suspects are few: an idle worker finds them without reading all waiting tasks.
create index budgets_suspect on vidgen.budgets (task_id) where suspect;

-- The reasons why a task went back or ended, for operators: its other private rows do not say them.
create table vidgen.events (
  task_id uuid not null references public.video_generation_tasks (id) on delete cascade,
  number integer not null,
  at timestamptz not null default now(),
  what text not null,
  attempt integer,
  code text,
  details text,
  until timestamptz,
  primary key (task_id, number),
  constraint what_is_known check (what in ('requeued', 'failed', 'handed back', 'worker lost', 'retried'))
);

comment on table vidgen.events is
  'The newest 50 returns and ends of a task. Submissions, outputs and charges are in other tables.';
comment on column vidgen.events.details is
  'For the operator: the provider''s own code and text, or the database''s error.';
comment on column vidgen.events.until is 'The task did not begin again before this time.';

-- Whether an object lies in this user's folder, under a name of letters, digits, dots and hyphens. No
-- regular expression: one with the user's id in it is compiled anew for each user, and matching a hundred
-- characters costs more than the row.
create function vidgen.is_in_folder(path text, owner uuid) returns boolean
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  name text := split_part(path, '/', 3);
  in_film text := split_part(path, '/', 4);
begin
  return (
           path in ('generated_images/' || owner || '/' || name, 'video-files/' || owner || '/' || name)
           -- A rendition, in the folder of its film.
           or (in_film <> '' and path = 'video-files/' || owner || '/' || name || '/' || in_film)
         )
         and length(name) between 1 and 100 and length(in_film) <= 100
         -- Storage may take `..` for the folder above: an application's own files are there.
         and not starts_with(name, '.') and not starts_with(in_film, '.')
         and translate(
           name || in_film, '-_.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz', ''
         ) = '';
end
$$;

-- Without a foreign key, because the object must be removed even when its task is deleted.
create table vidgen.uploads (
  id uuid primary key,
  task_id uuid not null,
  user_id uuid not null,
  stage text,
  attempt integer not null,
  worker_id uuid not null,
  bucket text not null,
  path text not null,
  since timestamptz not null default now(),
  look_at timestamptz not null default now(),
  taken_at timestamptz,
  removed_at timestamptz,
  constraint stage_is_known foreign key (stage) references vidgen.stages (name),
  constraint a_place_is_used_once unique (bucket, path),
  -- The janitor deletes the named objects: a worker's role must not name an application's file.
  constraint path_is_in_its_users_folder check (vidgen.is_in_folder(path, user_id))
) with (fillfactor = 70, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.05);

comment on table vidgen.uploads is
  'Uploads that have begun and are neither charged nor removed: their objects may be in Storage.';
comment on column vidgen.uploads.stage is 'Null: a rendition.';
comment on column vidgen.uploads.taken_at is 'The time since which a worker removes the object.';
comment on column vidgen.uploads.removed_at is
  'The first removal. The janitor looks for the object again for a day: an upload of a worker that was frozen '
  'or cut off may arrive late.';

-- Writes to scenes that could not be made because another transaction held the scene. (Its owner can hold
-- it for as long as his statement runs.) Each write is a row, so the worker that adds one waits for no
-- lock; only `due_at` changes. No foreign key: its check would take a lock on the same scene.
create table vidgen.scene_writes (
  id bigint generated always as identity primary key,
  scene_id uuid not null,
  user_id uuid not null,
  status text,
  image_url text,
  video_url text,
  since timestamptz not null default now(),
  due_at timestamptz not null default now()
);

comment on table vidgen.scene_writes is
  'Writes to video_scenes that another transaction''s lock prevented: the janitor makes them.';

create index scene_writes_of_scene on vidgen.scene_writes (scene_id, id);

-- No foreign key: its check would take a lock on the very row that is in trouble.
create table vidgen.refusals (
  task_id uuid primary key,
  tries integer not null default 1,
  since timestamptz not null default now(),
  until timestamptz,
  statement text not null,
  error text not null,
  verdict jsonb,
  attempt integer,
  constraint tries_are_positive check (tries > 0)
);

comment on table vidgen.refusals is
  'Tasks that are set aside, because their row refused a change, until `until`; null: the pause is over.';
comment on column vidgen.refusals.verdict is
  'The end that the task''s row refused: it is written later, and nothing is paid again.';
comment on column vidgen.refusals.attempt is
  'The attempt that reached the verdict while the row was locked, without a check of its fence: only the next attempt accepts it. Null: every attempt does.';

-- Tasks that are set aside now: their pause is not over, or their row has refused too often. Only the
-- janitor takes up the latter again.
create view vidgen.set_aside with (security_invoker = true) as
select r.task_id, r.until
  from vidgen.refusals as r
 where r.until > now()
    or (r.until is not null and r.tries >= (select s.max_refusals from vidgen.settings as s));

-- A worker that comes or goes changes the gates that users are shown: it may be the only one that can still
-- work, or the only one that can't. The trigger also notes a sign of life of its key.
create function vidgen.worker_comes_or_goes() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  it vidgen.workers := case when tg_op = 'DELETE' then old else new end;
begin
  -- The lock comes first, so that two of these triggers can't deadlock.
  perform vidgen.show_gates();
  insert into vidgen.keys as k (provider, key_fingerprint, account, heard_at)
  values (it.provider, it.key_fingerprint, it.account, it.heartbeat_at)
      on conflict (provider, key_fingerprint) do update
     set heard_at = greatest(k.heard_at, excluded.heard_at),
         account = case when tg_op = 'INSERT' then excluded.account else k.account end;
  return null;
end
$$;

create trigger worker_comes_or_goes
  after insert or delete on vidgen.workers
  for each row execute function vidgen.worker_comes_or_goes();

create trigger worker_dies
  after update on vidgen.workers
  for each row
  when (old.dead_at is null and new.dead_at is not null)
  execute function vidgen.worker_comes_or_goes();

-- The scopes whose workers may follow a generation; null: every worker may. One common scope is enough.
create function vidgen.followers(account text, key_fingerprint text, followed_by text)
returns text[]
language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select case followed_by
           when 'account' then array[account, 'key:' || key_fingerprint]
           when 'key' then array['key:' || key_fingerprint]
         end
$$;

-- Raises unless a worker runs this task of this user.
create function vidgen.check_running(of_task uuid, of_user uuid) returns void
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not exists (
    select from public.video_generation_tasks as t
     where t.id = of_task and t.user_id = of_user and t.status = 'processing'
  ) then
    raise exception 'task %: no worker is at work on it for user %, so no credits move for it',
      of_task, of_user
      using errcode = 'VG001';
  end if;
end
$$;

-- A submission belongs to a running task of this user, even if the worker's role is stolen: its cost counts
-- against the user's limit.
create function vidgen.submission_is_due() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not vidgen.is_operator() then
    perform vidgen.check_running(new.task_id, new.user_id);
  end if;
  return new;
end
$$;

create trigger submission_is_due
  before insert on vidgen.submissions
  for each row execute function vidgen.submission_is_due();

-- Kinds are few, even if the worker's role is stolen: the whole fleet reads them. Beyond that a new one is
-- left out, since the end of a generation is a fact that must be written.
create function vidgen.kinds_are_few() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if (select count(*) from vidgen.generation_times) >= 200 then
    return null;
  end if;
  return new;
end
$$;

create trigger kinds_are_few
  before insert on vidgen.generation_times
  for each row execute function vidgen.kinds_are_few();

-- The provider's answer never changes. A stolen worker role must not give the generation of one submission
-- to another: an honest worker would store one user's output as another's.
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

-- A checkpoint names a submission of its own task and stage, even before the answer, and only that
-- submission's generation. The check comes after the statement, like that of a foreign key, because the same
-- statement writes the submission. A foreign key would need two more unique indexes on every submission.
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
  when (new.submission_id is not null)
  execute function vidgen.checkpoint_follows_its_own();

create trigger checkpoint_follows_its_own
  after update of submission_id, generation_id on vidgen.checkpoints
  for each row
  when (
    new.submission_id is distinct from old.submission_id
    or (new.generation_id is not null and new.generation_id is distinct from old.generation_id)
  )
  execute function vidgen.checkpoint_follows_its_own();

-- A request belongs to its submission: a worker that resumes may send it again. A new submission has its own
-- request. An operator may correct one by hand.
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

-- The object of a checkpoint is signed for its task's owner and removed with its task, with the service key.
-- So the worker's role must not name an application's files.
create function vidgen.artifact_is_ours() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not exists (
    select
      from public.video_generation_tasks as t
     where t.id = new.task_id and new.bucket = any (vidgen.our_buckets())
       and vidgen.is_in_folder(new.path, t.user_id)
  ) and not vidgen.is_operator() then
    raise exception 'task %: % in bucket % is no place of its files', new.task_id, new.path, new.bucket
      using errcode = 'insufficient_privilege';
  end if;
  return new;
end
$$;

create trigger artifact_is_ours
  before update of bucket, path on vidgen.checkpoints
  for each row
  when (
    new.path is not null
    and (new.path is distinct from old.path or new.bucket is distinct from old.bucket)
  )
  execute function vidgen.artifact_is_ours();

create trigger artifact_is_born_ours
  before insert on vidgen.checkpoints
  for each row
  when (new.path is not null)
  execute function vidgen.artifact_is_ours();

-- The janitor deletes the named objects: an attempt may name only the object that it is about to store.
create function vidgen.upload_is_due() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not exists (
    select
      from public.video_generation_tasks as t
     where t.id = new.task_id and t.user_id = new.user_id and t.attempt = new.attempt
       and t.worker_id = new.worker_id and t.status = 'processing'
       and new.bucket = any (vidgen.our_buckets())
  ) and not vidgen.is_operator() then
    raise exception 'task %: no worker is about to store % in bucket %', new.task_id, new.path, new.bucket
      using errcode = 'insufficient_privilege';
  end if;
  return new;
end
$$;

create trigger upload_is_due
  before insert on vidgen.uploads
  for each row
  execute function vidgen.upload_is_due();

-- Whether any task has been charged for this object.
create function vidgen.is_charged(of_path text) returns boolean
language sql stable security definer cost 1000 set search_path = pg_catalog, pg_temp
as $$
  select exists (
           select from public.video_generation_tasks as t where t.video_path = is_charged.of_path
         )
      or exists (
           select from public.video_generation_tasks as t where t.image_path = is_charged.of_path
         )
      or exists (
           select from public.video_renditions as r where r.path = is_charged.of_path
         );
$$;

-- A batch of objects to be removed now: of attempts that are over. An attempt that is over stays so:
-- its number is not used again, so that no charge of it can follow. One worker at a time, for five
-- minutes.
create function vidgen.take_uploads(batch integer)
returns table (upload_id uuid, of_bucket text, of_path text, first_time boolean)
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
  with over as materialized (
    select u.id,
           vidgen.is_charged(u.path)
           or exists (
             select from vidgen.checkpoints as c
              where c.task_id = u.task_id and c.state = 'done' and c.path = u.path
           ) as charged
      from vidgen.uploads as u
     where u.look_at <= now()
       and (u.taken_at is null or u.taken_at not between now() - interval '5 minutes' and now())
       and not exists (
         select from public.video_generation_tasks as t
          where t.id = u.task_id and t.attempt = u.attempt and t.worker_id = u.worker_id
            and t.status = 'processing'
       )
     order by u.look_at
     limit take_uploads.batch
       for update of u skip locked
  ),
  kept as (
    delete from vidgen.uploads as u using over where u.id = over.id and over.charged
  )
  update vidgen.uploads as u
     set taken_at = now()
    from over
   where u.id = over.id and not over.charged
  returning u.id, u.bucket, u.path, u.removed_at is null;
$$;

-- Record that the objects were removed. The janitor looks for them again a minute later, then after twice
-- the time, and so on for a day.
create function vidgen.uploads_removed(upload_ids uuid[]) returns void
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
  delete from vidgen.uploads as u
   where u.id = any (uploads_removed.upload_ids) and u.taken_at is not null
     and u.removed_at < now() - interval '1 day';
  update vidgen.uploads as u
     set taken_at = null, removed_at = coalesce(u.removed_at, now()),
         look_at = now() + least(
           greatest(now() - coalesce(u.removed_at, now()), interval '1 minute'), interval '6 hours'
         )
   where u.id = any (uploads_removed.upload_ids) and u.taken_at is not null;
$$;

-- Make the owed writes of one scene, all at once. The values come from the scene's tasks as they are now,
-- so that an owed write takes back nothing newer. Returns the error where an application's own rule refused
-- the write. Null: the scene was written, was deleted, or is still locked; then its writes are due again
-- after a pause that grows to a minute.
create function vidgen.write_owed_scene(of_scene uuid) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_variable
declare
  ids bigint[];
  owner uuid;
  owed_status text;
  owed_image text;
  owed_video text;
  locked boolean := false;
  refused text;
begin
  with owed as (
    select w.id, w.user_id, w.status, w.image_url, w.video_url
      from vidgen.scene_writes as w
     where w.scene_id = of_scene
     order by w.id
       for update skip locked
  )
  select array_agg(owed.id),
         (array_agg(owed.user_id order by owed.id desc))[1],
         (array_agg(owed.status order by owed.id desc) filter (where owed.status is not null))[1],
         (array_agg(owed.image_url order by owed.id desc)
            filter (where owed.image_url is not null))[1],
         (array_agg(owed.video_url order by owed.id desc)
            filter (where owed.video_url is not null))[1]
    into ids, owner, owed_status, owed_image, owed_video
    from owed;
  if ids is null then
    return null;
  end if;

  begin
    perform from public.video_scenes as s
      where s.id = of_scene and s.user_id = owner
        for no key update skip locked;
    if found then
      update public.video_scenes as s
         set status = coalesce(
               case when owed_status is not null then vidgen.shown_status(of_scene, owner) end,
               owed_status, s.status
             ),
             image_url = case when owed_image is null then s.image_url else coalesce(
               (
                 select t.image_url
                   from public.video_generation_tasks as t
                  where t.scene_id = of_scene and t.user_id = owner and t.image_url is not null
                  order by t.created_at desc, t.id desc
                  limit 1
               ),
               owed_image
             ) end,
             generated_video_url = case
               when owed_video is null then s.generated_video_url
               else coalesce(vidgen.shown_clip(of_scene, owner), owed_video)
             end,
             updated_at = now()
       where s.id = of_scene and s.user_id = owner;
      set constraints all immediate;
    else
      locked := exists (
        select from public.video_scenes as s where s.id = of_scene and s.user_id = owner
      );
    end if;
  exception
    when lock_not_available then
      locked := true;
    when others or assert_failure or query_canceled then
      -- An application's rule would refuse the write again.
      refused := format('%s %s', sqlstate, sqlerrm);
  end;

  if locked then
    update vidgen.scene_writes as w
       set due_at = now()
                    + least(greatest(now() - w.since, interval '1 second'), interval '1 minute')
     where w.id = any (ids);
  else
    delete from vidgen.scene_writes as w where w.id = any (ids);
  end if;
  return refused;
end
$$;

-- Record a refused change, with a pause that doubles. A lock passes, so that it is not counted and never
-- ends a task; its pause grows with the duration of the lock, up to half a minute.
create function vidgen.note_refusal(
  of_task uuid, of_statement text, of_error text, of_verdict jsonb
) returns vidgen.refusals
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  locked boolean := of_error like '55P03%';
  noted vidgen.refusals;
begin
  insert into vidgen.refusals as r (task_id, until, statement, error, verdict)
  select of_task, clock_timestamp() + s.refusal_pause, of_statement,
         case when locked then '55P03 locked by another transaction' else left(of_error, 1000) end,
         of_verdict
    from vidgen.settings as s
      on conflict (task_id) do update
     set tries = r.tries + (not locked)::integer, statement = excluded.statement,
         error = excluded.error, verdict = coalesce(excluded.verdict, r.verdict),
         until = clock_timestamp() + (
           select case
                    when locked then greatest(
                      s.refusal_pause,
                      least((clock_timestamp() - r.since) / 2, interval '30 seconds')
                    )
                    when of_statement = 'end' then interval '1 hour'
                    else least(s.refusal_pause * 2 ^ least(r.tries, 20), interval '10 minutes')
                  end
             from vidgen.settings as s
         )
  returning r.* into noted;
  return noted;
end
$$;

-- Raise an error: the row did not accept a change, although nothing refused it.
create function vidgen.row_stays(of_task uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  raise exception 'task %: its row stays as it is, although nothing was refused', of_task
    using errcode = 'VG006', hint = 'Does a trigger of the application return OLD or NULL?';
end
$$;

-- Raise unless the row accepted the change: an application's trigger may keep it as it is, without an error.
-- Deferred constraints of the application are checked here, inside the caller's savepoint, and not at the
-- COMMIT of a statement about many rows.
create function vidgen.check_taken(of_task uuid, by_status text, by_worker uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  set constraints all immediate;
  if not exists (
    select from public.video_generation_tasks as t
     where t.id = of_task and t.status = by_status and t.worker_id is not distinct from by_worker
  ) then
    perform vidgen.row_stays(of_task);
  end if;
end
$$;

-- The end of a task that went well: row, what is left of the hold, and scene. Returns `seconds` since its
-- first claim, and `scene_refused`. The caller holds its row, and has checked the fence. With `stored_path`
-- the clip was stored just now: its row shows the step first, and a trigger sees both in their order.
create function vidgen.complete_task(
  of_task uuid, signed_url text, good_for interval, scene_updates boolean,
  stored_path text, at_progress double precision, at_step text, at_message text
) returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  ended record;
  scene_refused text;
begin
  if stored_path is not null then
    update public.video_generation_tasks as t
       set progress = greatest(t.progress, at_progress), current_step = at_step, message = at_message,
           stage_progress = null, video_path = coalesce(t.video_path, stored_path)
     where t.id = of_task;
  end if;
  update public.video_generation_tasks as t
     set status = 'completed', worker_id = null, completed_at = now(), progress = 100,
         stage_progress = null, current_step = 'Completed',
         message = 'Video generation completed successfully',
         video_url = signed_url, video_url_expires_at = now() + good_for,
         -- Of a film: its first rendition that plays as a video, or else its first.
         video_path = coalesce(t.video_path, (
           select r.path
             from public.video_renditions as r
            where r.film_id = of_task
            order by starts_with(r.media_type, 'video/') desc, r.position
            limit 1
         ))
   where t.id = of_task
  returning t.status, t.user_id, t.scene_id, extract(epoch from now() - t.started_at)::float as seconds
       into ended;
  if ended.status is distinct from 'completed' then
    perform vidgen.row_stays(of_task);
  end if;
  perform vidgen.release_credits(of_task);
  if scene_updates then
    scene_refused := vidgen.write_scene(
      ended.scene_id, ended.user_id, 'completed', null, signed_url
    );
  end if;
  return jsonb_build_object('seconds', ended.seconds, 'scene_refused', scene_refused);
end
$$;

-- The end of a task that can't go on: row, hold and scene. Returns the scene's error. The caller holds its
-- row, and has checked the fence. Rejected content is retried only when the scene has changed.
create function vidgen.fail_task(
  of_task uuid, code text, of_message text, more_failures integer, visible jsonb, scene_updates boolean
) returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  ended record;
begin
  if code = 'CONTENT_REJECTED' then
    insert into vidgen.budgets as b (task_id, rejected_inputs)
    values (of_task, (
      select c.inputs
        from vidgen.checkpoints as c
        join vidgen.stages as st on st.name = c.stage
       where c.task_id = of_task and c.state <> 'done'
       order by st.place desc
       limit 1
    ))
        on conflict (task_id) do update set rejected_inputs = excluded.rejected_inputs;
  end if;
  update public.video_generation_tasks as t
     set status = 'failed', worker_id = null, completed_at = now(), stage_progress = null,
         failures = least(t.failures + more_failures, 100)::smallint,
         current_step = 'Failed', message = of_message, error_code = code, error_message = of_message,
         error = jsonb_build_object(
           'error', 'Video generation failed', 'details', of_message, 'code', code, 'timestamp', now()
         ) || visible
   where t.id = of_task
  returning t.user_id, t.scene_id into ended;
  perform vidgen.check_taken(of_task, 'failed', null);
  perform vidgen.release_credits(of_task);
  if scene_updates then
    return vidgen.write_scene(ended.scene_id, ended.user_id, 'failed', null, null);
  end if;
  return null;
end
$$;

-- Begin an attempt at each of these waiting tasks. No row: the task no longer waits, or another transaction
-- holds it. The rows are locked and changed in one savepoint: a lock of the calling statement would make a
-- multixact of each row. One savepoint serves all rows where the application has no trigger; otherwise, and
-- after a refusal, each row has its own.
-- The begun tasks are returned at the end, because a savepoint does not undo RETURN QUERY.
create function vidgen.begin_attempts(of_tasks uuid[], for_worker uuid, to_cancel boolean)
returns table (
  id uuid, attempt integer, worker_id uuid, user_id uuid, scene_id uuid, failures smallint,
  max_failures smallint, progress double precision, created_at timestamptz, run_after timestamptz,
  cancel_requested boolean, refused text
)
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
-- Each row is found by its id, even by a cached plan from the time when the table was empty.
set enable_seqscan = off
as $$
#variable_conflict use_variable
declare
  place integer := 1;  -- of the one that is begun now; 0: all together
  batch uuid[];
  waiting uuid[];
  begun uuid[] := '{}';
  until timestamptz := statement_timestamp() + interval '2 seconds';
  noted vidgen.refusals;
begin
  if cardinality(of_tasks) > 1 and not exists (
    select
      from pg_trigger as g
     where g.tgrelid = 'public.video_generation_tasks'::regclass and not g.tgisinternal
       and g.tgfoid::regproc::text not like 'vidgen.%'
  ) then
    place := 0;
  end if;
  while place <= cardinality(of_tasks) loop
    -- Rows with slow triggers: after two seconds the next statement takes the rows that are left. A trigger
    -- of four seconds on forty rows of one user would hold the turns of all users for minutes.
    exit when clock_timestamp() > until;
    batch := case when place = 0 then of_tasks else array[of_tasks[place]] end;
    begin
      waiting := array(
        select t.id
          from public.video_generation_tasks as t
          -- A worker that was declared dead claims no task.
          join vidgen.workers as me on me.id = for_worker and me.dead_at is null
         -- Not `=`: a cached plan would scan a partial index, whose rows are few now and many later.
         where t.id = any (batch) and t.status is not distinct from 'pending'
           -- An output that must try a gate begins before its row is due.
           and (to_cancel or t.run_after <= now() or exists (
             select from vidgen.resumes as r where r.task_id = t.id and r.resume_at <= now()
           ))
           for no key update of t skip locked
      );
      if cardinality(waiting) < cardinality(batch) and not to_cancel then
        perform vidgen.pass_over(t.id)
           from public.video_generation_tasks as t
           join vidgen.workers as me on me.id = for_worker and me.dead_at is null
          where t.id = any (batch) and t.id <> all (waiting)
            and t.status is not distinct from 'pending';
      end if;
      if cardinality(waiting) > 0 then
        update public.video_generation_tasks as t
           set status = 'processing', attempt = t.attempt + 1, worker_id = for_worker,
               started_at = coalesce(t.started_at, now()), stage_progress = null,
               progress = case when to_cancel then t.progress else greatest(t.progress, 5) end,
               current_step = case
                 when to_cancel or t.lane <= 0 then t.current_step
                 else 'Initializing video generation pipeline'
               end,
               message = case
                 when to_cancel or t.lane <= 0 then t.message else 'Video generation started'
               end
         where t.id = any (waiting);
        set constraints all immediate;
        -- As check_taken.
        if (
          select count(*) filter (where t.status = 'processing' and t.worker_id = for_worker)
            from public.video_generation_tasks as t
           where t.id = any (waiting)
        ) < cardinality(waiting) then
          perform vidgen.row_stays(waiting[1]);
        end if;
        if place = 0 then
          begun := waiting;
        else
          begun := begun || waiting;
        end if;
      end if;
      exit when place = 0;
    exception
      when others or assert_failure or query_canceled then
        if place = 0 then
          -- Two seconds anew: else slow rows, of which one refuses, would never begin.
          until := clock_timestamp() + interval '2 seconds';
        else
          noted := vidgen.note_refusal(
            batch[1], 'claim', format('%s %s', sqlstate, sqlerrm), null
          );
          -- The claim skips the rows of this table, so that it needs no condition for refusals.
          insert into vidgen.resumes as r (task_id, user_id, lane, stage, resume_at)
          select t.id, t.user_id, t.lane, 'image', noted.until
            from public.video_generation_tasks as t
           where t.id = batch[1]
              on conflict (task_id) do update set resume_at = excluded.resume_at;
          id := batch[1];
          refused := noted.error;
          return next;
        end if;
    end;
    place := place + 1;
  end loop;
  if cardinality(begun) > 0 then
    return query
      select t.id, t.attempt, t.worker_id, t.user_id, t.scene_id, t.failures, t.max_failures,
             t.progress, t.created_at, t.run_after, t.cancel_requested_at is not null, null::text
        from public.video_generation_tasks as t
       where t.id = any (begun);
  end if;
end
$$;

-- Record an event of a task. The caller holds the task's row, so that no other statement numbers its events.
create function vidgen.note_event(
  of_task uuid, what text, attempt integer, code text, details text, until timestamptz
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  next integer;
begin
  select coalesce(max(e.number), 0) + 1 into next from vidgen.events as e where e.task_id = of_task;
  insert into vidgen.events (task_id, number, what, attempt, code, details, until)
  values (of_task, next, what, attempt, code, left(details, 500), until);
  delete from vidgen.events as e where e.task_id = of_task and e.number <= next - 50;
end
$$;

-- Hand one task back. No row: this worker doesn't hold that attempt (null: any attempt), or a client has
-- locked the row; then the task is taken over when this worker's lease ends.
create function vidgen.hand_back_task(of_task uuid, from_worker uuid, of_attempt integer)
returns table (id uuid, attempt integer, refused text)
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_variable
declare
  task record;
  noted vidgen.refusals;
begin
  -- Rows with slow triggers: the next statement takes the rows that are left (see begin_attempts).
  if clock_timestamp() > statement_timestamp() + interval '2 seconds' then
    return;
  end if;
  perform from public.video_generation_tasks as t
    where t.id = of_task and t.worker_id = from_worker and t.status = 'processing'
      and (of_attempt is null or t.attempt = of_attempt)
      for no key update skip locked;
  if not found then
    return;
  end if;
  update public.video_generation_tasks as t
     set status = 'pending', worker_id = null, run_after = now()
   where t.id = of_task
  returning t.id, t.attempt into task;
  perform vidgen.check_taken(of_task, 'pending', null);
  perform vidgen.note_event(of_task, 'handed back', task.attempt, null, null, null);
  -- Only now, because an exception does not undo RETURN NEXT.
  id := task.id;
  attempt := task.attempt;
  return next;
exception
  when others or assert_failure or query_canceled then
    noted := vidgen.note_refusal(of_task, 'hand back', format('%s %s', sqlstate, sqlerrm), null);
    id := of_task;
    refused := noted.error;
    return next;
end
$$;

-- Take a task over from a dead worker: for this worker (`may_take`), else return it to pending; at the
-- limit of deaths the task ends. A death is counted only together with the change of the row. The result is
-- 'taken' (all columns but `refused`), 'lost' (the attempt that ended and its worker) or 'refused'.
create function vidgen.take_over_task(
  of_task uuid, from_worker uuid, to_worker uuid, max_crashes integer, may_take boolean,
  lost_message text, scene_updates boolean
) returns table (
  kind text, id uuid, attempt integer, worker_id uuid, user_id uuid, scene_id uuid,
  failures smallint, max_failures smallint, progress double precision, created_at timestamptz,
  cancel_requested boolean, refused text
)
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_variable
declare
  died smallint;
  task record;
  noted vidgen.refusals;
begin
  -- Rows with slow triggers: the next statement takes the rows that are left (see begin_attempts).
  if clock_timestamp() > statement_timestamp() + interval '2 seconds' then
    return;
  end if;
  select t.id, t.attempt, t.lane into task
    from public.video_generation_tasks as t
   where t.id = of_task and t.worker_id = from_worker and t.status = 'processing'
     for no key update skip locked;
  if not found then
    return;
  end if;
  select coalesce(
           (select b.crashes from vidgen.budgets as b where b.task_id = of_task), 0
         ) + (
           select count(*) = 0 from vidgen.workers as w
            where w.id = from_worker and w.left_at is not null
         )::integer
    into died;
  insert into vidgen.budgets as b (task_id, crashes, suspect)
  values (of_task, died, died >= max_crashes - 1)
      on conflict (task_id) do update set crashes = excluded.crashes, suspect = excluded.suspect;
  perform vidgen.note_event(
    of_task, 'worker lost', task.attempt, case when died >= max_crashes then 'WORKER_LOST' end,
    format('worker %s fell silent; crashes counted: %s of %s', from_worker, died, max_crashes), null
  );

  if died >= max_crashes then
    perform vidgen.fail_task(of_task, 'WORKER_LOST', lost_message, 0, '{}', scene_updates);
    kind := 'lost';
    id := of_task;
    attempt := task.attempt;
    worker_id := from_worker;
    return next;
  elsif may_take and died < max_crashes - 1 and task.lane > 0 then  -- films have a claim of their own
    update public.video_generation_tasks as t
       set attempt = t.attempt + 1, worker_id = to_worker, stage_progress = null
     where t.id = of_task
    returning t.id, t.attempt, t.worker_id, t.user_id, t.scene_id, t.failures, t.max_failures,
              t.progress, t.created_at, t.cancel_requested_at is not null as cancel_requested
         into task;
    perform vidgen.check_taken(of_task, 'processing', to_worker);
    return query select 'taken', task.id, task.attempt, task.worker_id, task.user_id, task.scene_id,
                        task.failures, task.max_failures, task.progress, task.created_at,
                        task.cancel_requested, null::text;
  else
    update public.video_generation_tasks as t
       set status = 'pending', worker_id = null, stage_progress = null, run_after = now()
     where t.id = of_task;
    perform vidgen.check_taken(of_task, 'pending', null);
  end if;
exception
  when others or assert_failure or query_canceled then
    noted := vidgen.note_refusal(of_task, 'take over', format('%s %s', sqlstate, sqlerrm), null);
    kind := 'refused';
    id := of_task;
    refused := noted.error;
    return next;
end
$$;

-- End a task whose row has refused too often. False: the row refuses this change too.
create function vidgen.end_refused(of_task uuid, of_message text, scene_updates boolean)
returns boolean
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_variable
begin
  perform from public.video_generation_tasks as t
    where t.id = of_task and t.status in ('pending', 'processing')
      for no key update skip locked;
  if not found then
    return false;
  end if;
  perform vidgen.fail_task(of_task, 'ROW_REFUSED', of_message, 0, '{}', scene_updates);
  return true;
exception
  when others or assert_failure or query_canceled then
    return false;
end
$$;

-- Set a task aside whose row refuses the end of an attempt. The refusal is noted; the task waits in
-- 'pending' until its pause is over, or ends where it was refused too often. `became` is the status that
-- the row has now; 'processing': the row takes no change at all. No row: the lease is lost, and nothing
-- is noted.
--
-- This function waits for no lock. A locked row stays with this worker until the pause is over. Where a
-- take-over has the lock, the record only delays the next take-over by that pause, and only the next attempt
-- accepts its verdict.
create function vidgen.set_aside_task(
  of_task uuid, of_attempt integer, of_worker uuid, of_statement text, of_error text,
  of_verdict jsonb, end_message text, scene_updates boolean
) returns table (tries integer, pause interval, became text)
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_variable
declare
  noted vidgen.refusals;
  held boolean;
begin
  -- The fence is checked under the row's lock: a worker that has lost the task notes nothing about it.
  perform from public.video_generation_tasks as t
    where t.id = of_task and t.attempt = of_attempt and t.worker_id = of_worker
      and t.status = 'processing'
      for no key update skip locked;
  held := found;
  if not held and not exists (
    select from public.video_generation_tasks as t
     where t.id = of_task and t.attempt = of_attempt and t.worker_id = of_worker
       and t.status = 'processing'
  ) then
    return;
  end if;
  noted := vidgen.note_refusal(of_task, of_statement, of_error, of_verdict);
  update vidgen.refusals as r
     set attempt = case when not held then of_attempt end
   where r.task_id = of_task and of_verdict is not null;
  tries := noted.tries;
  pause := noted.until - clock_timestamp();
  became := 'processing';
  if held and of_error not like '55P03%'
     and noted.tries >= (select s.max_refusals from vidgen.settings as s)
     and vidgen.end_refused(of_task, end_message, scene_updates) then
    became := 'failed';
  elsif held then
    begin
      update public.video_generation_tasks as t
         set status = 'pending', worker_id = null, stage_progress = null, run_after = noted.until,
             message = case
               when of_error like '55P03%' then 'Set aside: another transaction holds this task'
               else 'Set aside: the application''s database refuses to change this task'
             end
       where t.id = of_task and t.attempt = of_attempt and t.worker_id = of_worker
         and t.status = 'processing';
      perform vidgen.check_taken(of_task, 'pending', null);
      became := 'pending';
    exception
      when others or assert_failure or query_canceled then
        became := 'processing';
    end;
  end if;
  return next;
end
$$;

-- Take up a task when the pause of its refusal is over. A task that was set aside before an attempt began
-- returns to the line. A task that has refused too often ends. Any other task goes on with its next claim or
-- take-over. Each row has a savepoint: one that another transaction holds gets another pause.
create function vidgen.retry_refused(
  of_task uuid, end_message text, scene_updates boolean
) returns text
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_variable
declare
  task record;
  refusal vidgen.refusals;
begin
  if clock_timestamp() > statement_timestamp() + interval '2 seconds' then
    return null;
  end if;
  select r.* into refusal from vidgen.refusals as r where r.task_id = of_task for update skip locked;
  if not found or refusal.until is null or refusal.until > now() then
    return null;
  end if;
  select t.status, t.user_id, t.lane, t.run_after into task
    from public.video_generation_tasks as t where t.id = of_task;
  if not found then
    delete from vidgen.refusals as r where r.task_id = of_task;
    return 'deleted';
  end if;
  if task.status = 'processing' and refusal.error like '55P03%' then
    -- During the lock the worker can neither continue the task nor hand it back: it stays set aside.
    perform from public.video_generation_tasks as t where t.id = of_task
        for no key update skip locked;
    if not found then
      refusal := vidgen.note_refusal(of_task, refusal.statement, '55P03', null);
      return 'locked';
    end if;
  end if;
  if refusal.tries >= (select s.max_refusals from vidgen.settings as s)
     and task.status in ('pending', 'processing') then
    perform from public.video_generation_tasks as t where t.id = of_task
        for no key update skip locked;
    if not found then
      refusal := vidgen.note_refusal(of_task, refusal.statement, '55P03', null);
      update vidgen.resumes as r set resume_at = refusal.until where r.task_id = of_task;
      return 'locked';
    end if;
    if not vidgen.end_refused(of_task, end_message, scene_updates) then
      refusal := vidgen.note_refusal(of_task, 'end', refusal.error, null);
      update vidgen.resumes as r set resume_at = refusal.until where r.task_id = of_task;
      return 'kept';
    end if;
    task.status := 'failed';
  end if;
  update vidgen.refusals as r set until = null where r.task_id = of_task;
  delete from vidgen.resumes as r where r.task_id = of_task and r.stage = 'image';
  if found and task.status = 'pending' then
    insert into vidgen.arrivals (user_id, lane, due_at)
    values (task.user_id, task.lane, task.run_after);
    perform vidgen.wake_lane(task.lane);
  end if;
  return task.status;
exception
  when lock_not_available then
    return 'locked';  -- its owner's call holds it: the next run of this duty takes it up
end
$$;

-- A task that has ended has no checkpoint under way, in whatever way it ended. A generation that still runs
-- at the provider is a stray from now on: the janitor ends it there, books its cost and frees its slot.
-- Deaths and waits are deleted: a retry begins with new budgets.
create function vidgen.task_ends() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if old.status not in ('pending', 'processing') or new.status in ('pending', 'processing') then
    return null;
  end if;
  update vidgen.budgets as b
     set crashes = 0, suspect = false, waiting_since = null, cancel_after = null
   where b.task_id = new.id
     and (b.crashes > 0 or b.waiting_since is not null or b.cancel_after is not null);
  delete from vidgen.checkpoints as c
   where c.task_id = new.id and c.state in ('submitting', 'generating');
  perform vidgen.tell_films(new.id);
  if new.status = 'completed' and new.cut is null and new.film_id is null then
    perform vidgen.want_film(new.id);
  end if;
  return null;
end
$$;

-- Its WHEN is short, here and in task_moves and task_leaves: see times_can_be_read.
create trigger task_ends
  after update on public.video_generation_tasks
  for each row
  when (old.status <> new.status)
  execute function vidgen.task_ends();

-- Try whether a row accepts the changes of an attempt, and undo them. Returns the error; null: the row
-- accepts all; '': unknown, because a client has locked the row. An application's triggers run; their
-- writes in this database are undone.
create function vidgen.try_row(of_task uuid, for_worker uuid) returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  -- Rows with slow triggers: the statement tries as many rows as it can in two seconds.
  if clock_timestamp() > statement_timestamp() + interval '2 seconds' then
    return '';
  end if;
  perform from public.video_generation_tasks as t
    where t.id = of_task and t.status = 'pending' and t.run_after <= now()
      for no key update skip locked;
  if not found then
    return '';
  end if;
  update public.video_generation_tasks as t
     set status = 'processing', attempt = t.attempt + 1, worker_id = for_worker,
         started_at = coalesce(t.started_at, now()), progress = greatest(t.progress, 5)
   where t.id = of_task;
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, 40), stage_progress = 50, message = 'Image stored',
         image_path = coalesce(t.image_path, 'generated_images/' || t.user_id || '/' || t.id || '.png'),
         image_url = coalesce(t.image_url, 'https://example.invalid/' || t.id || '.png')
   where t.id = of_task;
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, 90), stage_progress = null, message = 'Video stored',
         video_path = coalesce(t.video_path, 'video-files/' || t.user_id || '/' || t.id || '.mp4')
   where t.id = of_task;
  update public.video_generation_tasks as t
     set status = 'completed', worker_id = null, progress = 100, completed_at = now(),
         video_url = 'https://example.invalid/' || t.id || '.mp4',
         video_url_expires_at = now() + interval '1 hour'
   where t.id = of_task;
  perform vidgen.check_taken(of_task, 'completed', null);
  raise exception using errcode = 'VG001', message = 'taken back';
exception
  when sqlstate 'VG001' then
    return null;
  when lock_not_available then
    return '';
  when others or assert_failure or query_canceled then
    return format('%s %s', sqlstate, sqlerrm);
end
$$;

-- Rights.

call vidgen.revoke_from_strangers();

revoke all on function
  vidgen.is_in_folder(text, uuid), vidgen.worker_comes_or_goes(), vidgen.followers(text, text, text),
  vidgen.check_running(uuid, uuid), vidgen.kinds_are_few(), vidgen.submission_is_due(), vidgen.generation_is_final(),
  vidgen.checkpoint_follows_its_own(), vidgen.request_is_its_submissions(),
  vidgen.artifact_is_ours(), vidgen.upload_is_due(), vidgen.is_charged(text),
  vidgen.take_uploads(integer), vidgen.uploads_removed(uuid[]), vidgen.write_owed_scene(uuid),
  vidgen.note_refusal(uuid, text, text, jsonb), vidgen.row_stays(uuid), vidgen.check_taken(uuid, text, uuid),
  vidgen.complete_task(
    uuid, text, interval, boolean, text, double precision, text, text
  ),
  vidgen.fail_task(uuid, text, text, integer, jsonb, boolean),
  vidgen.begin_attempts(uuid[], uuid, boolean),
  vidgen.note_event(uuid, text, integer, text, text, timestamptz),
  vidgen.hand_back_task(uuid, uuid, integer),
  vidgen.take_over_task(uuid, uuid, uuid, integer, boolean, text, boolean),
  vidgen.end_refused(uuid, text, boolean),
  vidgen.set_aside_task(uuid, integer, uuid, text, text, jsonb, text, boolean),
  vidgen.retry_refused(uuid, text, boolean), vidgen.task_ends(), vidgen.try_row(uuid, uuid)
  from public, anon, authenticated, service_role;

grant insert (
  id, host, pid, version, provider, key_fingerprint, concurrency, lease, account, scopes, renders
) on vidgen.workers to vidgen_worker;
grant update (
  running, heartbeat_at, steady_since, dead_at, left_at
) on vidgen.workers to vidgen_worker;
grant insert (
  id, task_id, user_id, stage, attempt, worker_id, provider, key_fingerprint, model, fingerprint,
  account, digest
) on vidgen.submissions to vidgen_worker;
grant update (
  answer, answered_at, details, generation_id, estimated_cost, ended_state, ended_at, cost,
  cost_read_at, looked_at, followed_by, rejected, met_gate, late_at
) on vidgen.submissions to vidgen_worker;
grant select, delete on
  vidgen.refusals, vidgen.uploads, vidgen.workers
  to vidgen_worker;
grant insert (
  task_id, stage, state, request, inputs, submission_id
) on vidgen.checkpoints to vidgen_worker;
grant update (
  state, request, submission_id, generation_id, generation_started_at, bucket, path, media_type,
  size, sha256, updated_at, verdict
) on vidgen.checkpoints to vidgen_worker;
grant insert (
  provider, model, seconds, ended_after, ended_by
) on vidgen.generation_times to vidgen_worker;
grant update (ended_after, ended_by) on vidgen.generation_times to vidgen_worker;
grant select on
  vidgen.budgets, vidgen.checkpoints, vidgen.events, vidgen.generation_times, vidgen.keys,
  vidgen.scene_writes, vidgen.set_aside,
  vidgen.submissions
  to vidgen_worker;
grant insert (
  task_id, crashes, suspect, rejected_inputs, waiting_since, cancel_after
) on vidgen.budgets to vidgen_worker;
grant update (
  crashes, suspect, rejected_inputs, waiting_since, cancel_after
) on vidgen.budgets to vidgen_worker;
grant insert (
  id, task_id, user_id, stage, attempt, worker_id, bucket, path
) on vidgen.uploads to vidgen_worker;
grant update (attempt, worker_id, taken_at, removed_at) on vidgen.uploads to vidgen_worker;
grant insert (task_id, until, statement, error, verdict) on vidgen.refusals to vidgen_worker;
grant update (
  tries, until, statement, error, verdict, attempt
) on vidgen.refusals to vidgen_worker;
grant execute on function
  vidgen.is_in_folder(text, uuid), vidgen.followers(text, text, text), vidgen.check_running(uuid, uuid), vidgen.is_charged(text),
  vidgen.take_uploads(integer), vidgen.uploads_removed(uuid[]), vidgen.write_owed_scene(uuid),
  vidgen.note_refusal(uuid, text, text, jsonb), vidgen.row_stays(uuid), vidgen.check_taken(uuid, text, uuid),
  vidgen.complete_task(
    uuid, text, interval, boolean, text, double precision, text, text
  ),
  vidgen.fail_task(uuid, text, text, integer, jsonb, boolean),
  vidgen.begin_attempts(uuid[], uuid, boolean),
  vidgen.note_event(uuid, text, integer, text, text, timestamptz),
  vidgen.hand_back_task(uuid, uuid, integer),
  vidgen.take_over_task(uuid, uuid, uuid, integer, boolean, text, boolean),
  vidgen.end_refused(uuid, text, boolean),
  vidgen.set_aside_task(uuid, integer, uuid, text, text, jsonb, text, boolean),
  vidgen.retry_refused(uuid, text, boolean), vidgen.try_row(uuid, uuid)
  to vidgen_worker;

update vidgen.settings set schema_version = '20261130100300', oldest_program = '20261130100300';
