-- Accounts and scopes: a gate stops those whom its trouble concerns, and nobody else.

alter table vidgen.settings alter column schema_version set default '20261125000200';
update vidgen.settings set schema_version = '20261125000200';

-- The provider's account that a worker spends from: a label of the operator's, because the provider
-- names none. And the scopes of the gates that concern the worker; null: a worker of the version
-- before, which knows its own key's and the operator's.
alter table vidgen.workers
  add column account text not null default 'default',
  add column scopes text[];

comment on column vidgen.workers.account is
  'The label of the provider''s account (VIDGEN_ACCOUNT) whose key this worker uses.';
comment on column vidgen.workers.scopes is
  'Scopes of the gates that concern this worker; null: ''*'' and its key_fingerprint.';

comment on column vidgen.gates.key_fingerprint is
  'The scope, what the trouble is about: * (all), an account''s label, key:…, storage:…, machine:….';

-- What users are told. A model is paused for them when no living worker may start anything of it: a
-- gate of one machine, or of one key, that others work beside is the operator's business. Without a
-- living worker every gate counts. One at a time, each with a snapshot of its own, so that of two
-- that close at once the second one sees the first: nobody else writes the table, and SELECT is all
-- that anybody may do with it.
create function vidgen.show_gates() returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
  lock table public.video_generation_gates in share row exclusive mode;
  with working as (
    select w.provider, coalesce(w.scopes, array['*', w.key_fingerprint]) as scopes
      from vidgen.workers as w
     where w.dead_at is null and w.concurrency > 0
  ),
  paused as (
    select distinct on (g.model) g.model, g.reason, g.message, g.until
      from vidgen.gates as g
     where not exists (
             select
               from working
              where not exists (
                      select
                        from vidgen.gates as met
                       where met.provider = working.provider
                         and met.key_fingerprint = any (working.scopes)
                         and met.model in (g.model, '*')
                    )
           )
     order by g.model, g.closed_at desc, g.key_fingerprint
  ),
  opened as (
    delete from public.video_generation_gates as shown
     where not exists (select from paused where paused.model = shown.model)
  )
  insert into public.video_generation_gates as shown (model, reason, message, until)
  select model, reason, message, until from paused
      on conflict (model) do update
     set reason = excluded.reason, message = excluded.message, until = excluded.until
   where (shown.reason, shown.message, shown.until)
         is distinct from (excluded.reason, excluded.message, excluded.until);
end
$$;

create or replace function vidgen.show_gate() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform vidgen.show_gates();
  perform pg_notify('vidgen_tasks', 'gate');
  return null;
end
$$;

revoke all on function vidgen.show_gates() from public, anon, authenticated, service_role;

-- A generation is known to the account that made it, and to nobody else. Who may follow one: all that
-- spend from its account, and whoever has its very key, whatever the label is by now. Where another
-- key of the account was told that there is no such generation, the two keys may belong to two
-- accounts: then its own key alone. Anyone, once nobody of these has worked here for an hour.
--
-- The defaults are what a worker of the version before writes, and what is recorded of its running
-- generations: they are the default account's, and their own key's.
alter table vidgen.submissions
  add column account text not null default 'default',
  add column followed_by text not null default 'account',
  -- Not valid: the rows that are there have the default, and need no look at each.
  add constraint followed_by_is_known check (followed_by in ('account', 'key', 'anyone')) not valid;

comment on column vidgen.submissions.account is
  'The label of the account that it was paid from (VIDGEN_ACCOUNT).';
comment on column vidgen.submissions.followed_by is
  'Whose workers follow its generation: the account''s, its own key''s only, or anyone''s.';

-- The scopes whose workers may follow a generation; null: anyone. A worker may when it has one of them.
create function vidgen.followers(account text, key_fingerprint text, followed_by text)
returns text[]
language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select case followed_by
           when 'account' then array[account, 'key:' || key_fingerprint]
           when 'key' then array['key:' || key_fingerprint]
         end
$$;

-- When each key was last heard of here. A worker's row tells while it is there; this one outlives it.
create table vidgen.keys (
  provider text not null,
  key_fingerprint text not null,
  account text not null,
  heard_at timestamptz not null default now(),
  primary key (provider, key_fingerprint)
);

comment on table vidgen.keys is
  'Keys that workers have used here, the account that each was last said to belong to, and the last word of such a worker.';

insert into vidgen.keys (provider, key_fingerprint, account)
select provider, key_fingerprint, 'default' from vidgen.workers
union
select provider, key_fingerprint, 'default' from vidgen.submissions where ended_at is null
union
-- Ended, and still to be stored.
select s.provider, s.key_fingerprint, 'default'
  from vidgen.checkpoints as c
  join vidgen.submissions as s on s.id = c.submission_id
 where c.state in ('generating', 'storing');

-- Who comes or goes may be the one that still worked, or the only one that did not; and it was heard of.
create function vidgen.worker_comes_or_goes() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  it vidgen.workers := case when tg_op = 'DELETE' then old else new end;
begin
  -- Its lock first: then no two of these wait for each other.
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

-- Whether nobody is left who may follow a generation, and nobody has been for so long.
create function vidgen.is_left_alone(
  of_provider text, of_account text, of_key text, followed_by text, since interval
) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select not exists (
           select
             from vidgen.workers as w
            where w.dead_at is null and w.provider = of_provider
              and (w.key_fingerprint = of_key or (followed_by = 'account' and w.account = of_account))
         )
     and not exists (
           select
             from vidgen.keys as k
            where k.provider = of_provider and k.heard_at > now() - since
              and (k.key_fingerprint = of_key or (followed_by = 'account' and k.account = of_account))
         )
$$;

-- Whether a worker stands behind a gate of its own (its key's, file store's or machine's) while another
-- works on: then it leaves to that one what waits to go on, which it could not finish.
create function vidgen.stands_aside(worker_id uuid) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  with behind as (
    select w.id
      from vidgen.workers as w
     where exists (
             select
               from vidgen.gates as g
              where g.provider = w.provider and g.key_fingerprint = any (w.scopes)
                and g.key_fingerprint like any (array['key:%', 'storage:%', 'machine:%'])
           )
  )
  select exists (select from behind where behind.id = worker_id)
     and exists (
           select
             from vidgen.workers as w
            where w.dead_at is null and w.concurrency > 0
              and w.id not in (select behind.id from behind)
         )
$$;

-- Who may take up a waiting task; null: any worker.
alter table vidgen.resumes add column followers text[];
comment on column vidgen.resumes.followers is
  'Scopes whose workers may follow what lives of it at the provider; null: nothing does, or anyone may.';

update vidgen.resumes as r
   set followers = vidgen.followers(s.account, s.key_fingerprint, s.followed_by)
  from vidgen.checkpoints as c
  join vidgen.submissions as s on s.id = c.submission_id
 where c.task_id = r.task_id
   and (
     c.state in ('generating', 'storing')
     or (c.state = 'submitting' and s.ended_at is null and (s.answer is null or s.answer = 'generation'))
   );

create or replace function vidgen.task_moves() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  class smallint;
  followers text[];
begin
  if new.status = 'pending' then
    select of_stage.class, of_stage.followers into class, followers
      from vidgen.checkpoints as c
      join vidgen.submissions as s on s.id = c.submission_id
     cross join lateral (
       select case
                when c.state in ('generating', 'storing') then 0
                when c.state = 'submitting' and s.ended_at is null
                     and (s.answer is null or s.answer = 'generation') then 0
                -- The clip is stored: what is left costs nothing either.
                when c.state = 'done' then case c.stage when 'video' then 0 else 1 end
              end as class,
              case
                when c.state <> 'done'
                then vidgen.followers(s.account, s.key_fingerprint, s.followed_by)
              end as followers
     ) as of_stage
     where c.task_id = new.id and of_stage.class is not null
     order by of_stage.class
     limit 1;
    if old.status in ('failed', 'cancelled') then
      -- Retried by its owner: it waits for its turn, and begins with a clean slate.
      class := null;
      delete from vidgen.refusals as r where r.task_id = new.id;
    end if;
    if class is null then
      delete from vidgen.resumes as r where r.task_id = new.id;
      insert into vidgen.arrivals (user_id, due_at) values (new.user_id, new.run_after);
    else
      insert into vidgen.resumes as r (task_id, user_id, class, resume_at, followers)
      values (new.id, new.user_id, class, new.run_after, followers)
          on conflict (task_id) do update
         set class = excluded.class, resume_at = excluded.resume_at, followers = excluded.followers;
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

-- Limits, and the slots that they have, are an account's: their key_fingerprint holds its label. A
-- worker of the version before has them under its key's fingerprint; either counts what the other has
-- at the provider, again with each reading of the account.
comment on column vidgen.limits.key_fingerprint is
  'The account''s label; of a worker of the version before, its key''s fingerprint.';
comment on column vidgen.slots.key_fingerprint is 'As in limits.';

create or replace function vidgen.set_limit(
  of_provider text, of_key text, of_model text, new_max integer, is_read boolean
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
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
    -- What is in flight without a slot here: begun while the model had no limit, or by a worker that
    -- has the account's slots under another name.
    insert into vidgen.slots (provider, key_fingerprint, model, task_id, submission_id, taken_at)
    select s.provider, of_key, s.model, s.task_id, s.id, s.sent_at
      from vidgen.submissions as s
      left join vidgen.keys as k
        on k.provider = s.provider and k.key_fingerprint = s.key_fingerprint
     where s.ended_at is null
       -- Without an answer for long: given up, or about to be (see free_slots).
       and (s.answer = 'generation' or (s.answer is null and s.sent_at > now() - interval '10 minutes'))
       and s.provider = of_provider and s.model = of_model
       and coalesce(
             (
               select same.account from vidgen.keys as same
                where same.provider = of_provider and same.key_fingerprint = of_key
             ),
             of_key
           ) in (s.account, k.account)
       and not exists (
         select from vidgen.slots as taken
          where taken.submission_id = s.id and taken.key_fingerprint = of_key
       );
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

-- As before, but what is under way is the account's.
create or replace view vidgen.rooms with (security_invoker = true) as
select l.provider, l.key_fingerprint, l.model,
       greatest(
         r.per_slot * l.max_generations
         - (
           select count(*)
             from (
               select
                 from vidgen.resumes
                where class = 1 and resume_at <= now()
                limit r.per_slot * l.max_generations
             ) as waiting
         )
         - (
           select count(*)
             from (
               select
                 from public.video_generation_tasks as t
                 join vidgen.workers as w on w.id = t.worker_id
                where t.status = 'processing'
                  and w.provider = l.provider and l.key_fingerprint in (w.account, w.key_fingerprint)
                  and not exists (
                    select from vidgen.checkpoints as c where c.task_id = t.id and c.stage = 'video'
                  )
                limit r.per_slot * l.max_generations
             ) as under_way
         ),
         0
       )::integer as room
  from vidgen.limits as l
 cross join (values (2)) as r (per_slot)
 where l.max_generations is not null;

revoke all on vidgen.keys from public, anon, authenticated, service_role;
grant select on vidgen.keys to vidgen_worker;
revoke all on function vidgen.followers(text, text, text)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.is_left_alone(text, text, text, text, interval)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.stands_aside(uuid) from public, anon, authenticated, service_role;
grant execute on function vidgen.stands_aside(uuid) to vidgen_worker;
grant execute on function vidgen.followers(text, text, text) to vidgen_worker;
grant execute on function vidgen.is_left_alone(text, text, text, text, interval) to vidgen_worker;
revoke all on function vidgen.worker_comes_or_goes() from public, anon, authenticated, service_role;
