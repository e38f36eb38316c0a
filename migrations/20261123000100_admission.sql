-- Admission: never more generations in flight at the provider than its tier allows, however many
-- workers there are. What waits for a slot waits here, where it stays fair, cancellable and free.
--
-- A model with a limit has that many rows in `slots`, and who wants one locks a row: no count is
-- read that another transaction may be changing. A slot is reserved by the claim for its task, goes
-- over to the submission, and so belongs to the generation, whoever lives or dies meanwhile.

alter table vidgen.settings alter column schema_version set default '20261123000100';
update vidgen.settings set schema_version = '20261123000100';

create table vidgen.limits (
  provider text not null,
  key_fingerprint text not null,
  model text not null,
  max_generations integer,
  read_at timestamptz,
  asked_at timestamptz,
  primary key (provider, key_fingerprint, model),
  constraint max_generations_is_not_negative check (max_generations >= 0)
) with (fillfactor = 50);

comment on table vidgen.limits is
  'How many generations of a model may be in flight with a key; max_generations null: any number.';
comment on column vidgen.limits.read_at is
  'When the provider or a setting said so; null: nobody knows yet, and one at a time is safe.';

create table vidgen.slots (
  id bigint generated always as identity primary key,
  provider text not null,
  key_fingerprint text not null,
  model text not null,
  task_id uuid,
  submission_id uuid,
  taken_at timestamptz,
  constraint taken_by_a_task check ((task_id is null) = (taken_at is null)),
  constraint a_submission_has_its_task check (submission_id is null or task_id is not null),
  constraint slots_are_of_a_limited_model foreign key (provider, key_fingerprint, model)
    references vidgen.limits (provider, key_fingerprint, model)
) with (fillfactor = 30, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

-- A few rows that change all the time: no index on what changes, so that updates stay HOT.
create index slots_by_model on vidgen.slots (provider, key_fingerprint, model);

comment on table vidgen.slots is
  'A place for one generation at the provider: free, reserved for a task, or taken by a submission.';
comment on column vidgen.slots.taken_at is
  'Since when it is reserved or taken. Taken ones may be more than the limit after it went down.';

create function vidgen.count_slots(of_provider text, of_key text, of_model text) returns integer
language sql volatile set search_path = ''
as $$
  select count(*)::integer
    from vidgen.slots
   where provider = of_provider and key_fingerprint = of_key and model = of_model
$$;

-- The one place where slots are made, and free ones taken away. A volatile function takes a new
-- snapshot for each of its statements, so each sees what the one before it has waited for.
create function vidgen.set_limit(
  of_provider text, of_key text, of_model text, new_max integer, is_read boolean
) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  missing integer;
begin
  -- One at a time: the lock on this row is held until the end.
  insert into vidgen.limits as l (provider, key_fingerprint, model, max_generations, read_at)
  values (of_provider, of_key, of_model, new_max, case when is_read then now() end)
      on conflict (provider, key_fingerprint, model) do update
     set max_generations = excluded.max_generations, read_at = excluded.read_at;

  if new_max is not null then
    -- Generations that began while the model had no limit have slots as well.
    insert into vidgen.slots (provider, key_fingerprint, model, task_id, submission_id, taken_at)
    select s.provider, s.key_fingerprint, s.model, s.task_id, s.id, s.sent_at
      from vidgen.submissions as s
     where s.ended_at is null
       -- Without an answer for long: given up, or about to be (see free_slots).
       and (s.answer = 'generation' or (s.answer is null and s.sent_at > now() - interval '10 minutes'))
       and s.provider = of_provider and s.key_fingerprint = of_key and s.model = of_model
       and not exists (select from vidgen.slots as taken where taken.submission_id = s.id);
  end if;

  missing := coalesce(new_max, 0) - vidgen.count_slots(of_provider, of_key, of_model);
  if missing < 0 then
    -- Free ones, then reserved ones, whose tasks go back to wait. What is in flight keeps its slot
    -- until it has ended.
    delete from vidgen.slots as s
     using (
       select id from vidgen.slots
        where provider = of_provider and key_fingerprint = of_key and model = of_model
          and submission_id is null
        order by task_id is not null, taken_at desc
        limit -missing
          for update
     ) as free
     where s.id = free.id;
  elsif missing > 0 then
    insert into vidgen.slots (provider, key_fingerprint, model)
    select of_provider, of_key, of_model from generate_series(1, missing);
    perform pg_notify('vidgen_tasks', '');
  end if;
end
$$;

-- Free a slot, or take it away where there are more than the limit. The lock on the limit keeps
-- set_limit away until this has ended, so there is never one too many. Of two at once both may go:
-- one too few, until the limit is set again a minute later. It frees only what its caller saw.
create function vidgen.free_slot(slot_id bigint, of_task uuid, of_submission uuid) returns void
language plpgsql volatile set search_path = ''
as $$
declare
  slots integer;
begin
  select coalesce(l.max_generations, 0) into slots
    from vidgen.slots as s
    join vidgen.limits as l using (provider, key_fingerprint, model)
   where s.id = slot_id
     for share of l;
  delete from vidgen.slots as s
   where s.id = slot_id and s.task_id = of_task
     and s.submission_id is not distinct from of_submission
     and vidgen.count_slots(s.provider, s.key_fingerprint, s.model) > slots;
  if not found then
    update vidgen.slots as s
       set task_id = null, submission_id = null, taken_at = null
     where s.id = slot_id and s.task_id = of_task
       and s.submission_id is not distinct from of_submission;
  end if;
  perform pg_notify('vidgen_tasks', '');
end
$$;

-- No image starts while far more tasks wait for a video slot than there are: twice as many as slots
-- may be under way to one. Null where videos have no limit. What waits for later waits for no slot,
-- and what other keys run needs none of this key's.
create function vidgen.room_before_videos(of_provider text, of_key text, of_model text)
returns integer
language plpgsql stable set search_path = ''
as $$
declare
  slots integer;
begin
  select max_generations into slots
    from vidgen.limits
   where provider = of_provider and key_fingerprint = of_key and model = of_model;
  if slots is null then
    return null;
  end if;
  return greatest(
    2 * slots
    - (select count(*) from vidgen.resumes where class = 1 and resume_at <= now())
    - (
      select count(*)
        from public.video_generation_tasks as t
        join vidgen.workers as w on w.id = t.worker_id
       where t.status = 'processing'
         and w.provider = of_provider and w.key_fingerprint = of_key
         and not exists (
           select from vidgen.checkpoints as c where c.task_id = t.id and c.stage = 'video'
         )
    ),
    0
  );
end
$$;

-- A slot is free again: whoever books the end of a generation, and by whatever statement. After a
-- refusal it stays reserved while the task runs: the still may be refused by one address and taken by
-- the next, which must not stand behind everybody else again.
create function vidgen.submission_ends() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
  if new.ended_state = 'refused' then
    update vidgen.slots as s
       set submission_id = null, taken_at = now()
      from public.video_generation_tasks as t
     where s.submission_id = new.id and t.id = s.task_id and t.status = 'processing';
  end if;
  perform vidgen.free_slot(s.id, s.task_id, s.submission_id)
     from vidgen.slots as s
    where s.submission_id = new.id;
  return null;
end
$$;

create trigger submission_ends
  after update on vidgen.submissions
  for each row
  when (old.ended_at is null and new.ended_at is not null)
  execute function vidgen.submission_ends();

-- A task that stops running before anything was submitted gives its reservation back.
create function vidgen.task_leaves() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
  perform vidgen.free_slot(s.id, s.task_id, s.submission_id)
     from vidgen.slots as s
    where s.task_id = new.id and s.submission_id is null;
  return null;
end
$$;

create trigger task_leaves
  after update on public.video_generation_tasks
  for each row
  when (old.status = 'processing' and new.status <> 'processing')
  execute function vidgen.task_leaves();

-- VIDGEN_MAX_RUNNING_PER_USER counts what a user has begun and not ended: what runs, and what waits
-- to go on. So nothing that goes on can break the cap, and only the claim, which holds the user's
-- turn, can begin more. A task that is retried waits for its turn again, whatever it has to go on
-- from: else retrying many would go around the cap, and past everybody in the line.
alter table vidgen.resumes add column user_id uuid;
update vidgen.resumes as r
   set user_id = t.user_id
  from public.video_generation_tasks as t
 where t.id = r.task_id;
-- Only waiting tasks that have begun are in it: a few rows, read in no time.
-- squawk-ignore adding-not-nullable-field
alter table vidgen.resumes alter column user_id set not null;
create index resumes_by_user on vidgen.resumes (user_id);

create or replace function vidgen.task_moves() returns trigger
language plpgsql security definer set search_path = ''
as $$
declare
  class smallint;
begin
  if new.status = 'pending' then
    select min(case
             when c.state in ('generating', 'storing') then 0
             when c.state = 'submitting' and s.ended_at is null
                  and (s.answer is null or s.answer = 'generation') then 0
             -- The clip is stored: what is left costs nothing either.
             when c.state = 'done' then case c.stage when 'video' then 0 else 1 end
           end)
      into class
      from vidgen.checkpoints as c
      join vidgen.submissions as s on s.id = c.submission_id
     where c.task_id = new.id;
    if class is null or old.status in ('failed', 'cancelled') then
      delete from vidgen.resumes as r where r.task_id = new.id;
      insert into vidgen.arrivals (user_id, due_at) values (new.user_id, new.run_after);
    else
      insert into vidgen.resumes as r (task_id, user_id, class, resume_at)
      values (new.id, new.user_id, class, new.run_after)
          on conflict (task_id) do update
         set class = excluded.class, resume_at = excluded.resume_at;
    end if;
    if new.run_after <= now() then
      perform pg_notify('vidgen_tasks', '');
    end if;
  else
    delete from vidgen.resumes as r where r.task_id = new.id;
  end if;
  return null;
end
$$;

revoke all on function vidgen.set_limit(text, text, text, integer, boolean)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.count_slots(text, text, text)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.free_slot(bigint, uuid, uuid) from public, anon, authenticated, service_role;
revoke all on function vidgen.room_before_videos(text, text, text)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.submission_ends() from public, anon, authenticated, service_role;
revoke all on function vidgen.task_leaves() from public, anon, authenticated, service_role;

grant select, insert, update, delete on vidgen.limits, vidgen.slots to vidgen_worker;
grant execute on function vidgen.set_limit(text, text, text, integer, boolean) to vidgen_worker;
grant execute on function vidgen.count_slots(text, text, text) to vidgen_worker;
grant execute on function vidgen.free_slot(bigint, uuid, uuid) to vidgen_worker;
grant execute on function vidgen.room_before_videos(text, text, text) to vidgen_worker;
