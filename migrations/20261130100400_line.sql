-- The line: users' turns, newly arrived tasks, and tasks that have begun.

set local search_path = '';

-- Turns: users with waiting tasks take turns, however many rows each has. Each lane (a pair of models) has
-- its own line, so that a full lane does not delay another. `waiting_since` is the user's place in the line;
-- null: no task is due before `due_at`. `arrivals` tells a claim that a row was inserted after its snapshot,
-- so that the claim does not remove the user from the line.
create table vidgen.turns (
  user_id uuid not null,
  lane smallint not null,
  waiting_since timestamptz,
  due_at timestamptz not null default 'infinity',
  arrivals bigint not null default 0,
  primary key (user_id, lane)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.05);

create index turns_in_line on vidgen.turns (lane, waiting_since) where waiting_since is not null;
create index turns_later on vidgen.turns (due_at) where waiting_since is null;

-- The mailbox of the line: an INSERT of a client only appends here, so that it never waits for another
-- transaction, can't deadlock, and costs one row per user and statement. (A counter per user in a row
-- trigger would make one INSERT of 100,000 rows quadratic.)
create table vidgen.arrivals (
  id bigint generated always as identity primary key,
  user_id uuid not null,
  lane smallint not null,
  due_at timestamptz not null
) with (autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);

-- Films. What a film is made of, in this order: each part is a task. No foreign key to that one: a part
-- that is deleted is found missing, by its film's next attempt.
create table vidgen.parts (
  film_id uuid not null references public.video_generation_tasks (id) on delete cascade,
  position smallint not null,
  task_id uuid not null,
  primary key (film_id, position),
  constraint positions_begin_with_1 check (position > 0)
);

comment on table vidgen.parts is 'The tasks that a film is made of; one may be a part of several films.';

create index parts_by_task on vidgen.parts (task_id);

create table vidgen.films (
  film_id uuid primary key references public.video_generation_tasks (id) on delete cascade,
  ordered_at timestamptz not null default now(),
  -- What its outputs cost, as it was when they were ordered: a later price changes no order.
  seconds integer not null default 0,
  second_credits jsonb not null default '{}',
  constraint seconds_are_from_0_to_180 check (seconds between 0 and 180),
  constraint second_credits_are_an_object check (jsonb_typeof(second_credits) = 'object')
);

comment on table vidgen.films is
  'Films whose parts are ordered: each is completed, or was begun with its credits held. A retry deletes the row.';

comment on column vidgen.films.seconds is
  'The most seconds that are charged for an output: the ordered length of the parts and of the end card.';
comment on column vidgen.films.second_credits is
  'Credits for each second of an output, by its name. An output that is not named costs nothing.';

-- The mailbox of films: a part's end only ever appends here, so it never waits for a film's row, runs no
-- trigger of an application's on it, and can't deadlock. No foreign key: its check would lock the film.
create table vidgen.endings (
  id bigint generated always as identity primary key,
  film_id uuid not null
) with (autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);

create index endings_of_film on vidgen.endings (film_id);

comment on table vidgen.endings is 'Films of which a part has ended, or that have begun to wait.';

-- Completed tasks of which a film is to be ordered (vidgen.settings.auto_cut). The end of a task only writes
-- here: whatever refuses the film never meets that end.
create table vidgen.wanted_films (
  task_id uuid primary key,
  tries integer not null default 0,
  due_at timestamptz not null default now(),
  constraint tries_are_not_negative check (tries >= 0)
) with (autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.wanted_films is
  'Completed tasks of which a film with the outputs of vidgen.settings.auto_cut is to be ordered.';
comment on column vidgen.wanted_films.tries is
  'How often the insert of the film was refused; after vidgen.settings.max_refusals it is given up.';

create index wanted_films_due on vidgen.wanted_films (due_at);

-- Leave word that a film is to be ordered of a completed task, where the operator wants one of each.
create function vidgen.want_film(of_task uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  insert into vidgen.wanted_films (task_id)
  select of_task from vidgen.settings as s where s.auto_cut is not null
      on conflict do nothing;
  if found then
    perform vidgen.wake('vidgen_tasks', 'film');
  end if;
end
$$;

-- Order the films that completed tasks are owed, for their owners: each once, because its id follows from the
-- task's. An application's trigger may refuse one: it is tried again after a pause that doubles, and given up
-- after max_refusals. A row names a task whose film was refused.
create function vidgen.order_wanted_films(batch integer)
returns table (task_id uuid, refused text)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_variable
declare
  until timestamptz := statement_timestamp() + interval '2 seconds';
  limits vidgen.settings;
  wanted record;
begin
  select s.* into limits from vidgen.settings as s;
  for wanted in
    select w.task_id as id, w.tries
      from vidgen.wanted_films as w
     where w.due_at <= now()
       -- Else they would wait among their owners' unfinished tasks, up to the limit of those.
       and exists (select from vidgen.workers as alive where alive.dead_at is null and alive.renders > 0)
     order by w.due_at
     limit batch
       for update skip locked
  loop
    exit when clock_timestamp() > until;
    begin
      insert into public.video_generation_tasks (id, user_id, cut, priority)
      select md5('film of ' || t.id)::uuid, t.user_id,
             limits.auto_cut || jsonb_build_object('parts', jsonb_build_array(jsonb_build_object('task', t.id))),
             t.priority
        from public.video_generation_tasks as t
       where t.id = wanted.id and limits.auto_cut is not null
          on conflict (id) do nothing;
      set constraints all immediate;
      delete from vidgen.wanted_films as w where w.task_id = wanted.id;
    exception
      when others or assert_failure or query_canceled then
        task_id := wanted.id;
        refused := format('%s %s', sqlstate, left(sqlerrm, 500));
        if wanted.tries + 1 >= limits.max_refusals then
          refused := refused || '; no film is ordered of it any more';
          delete from vidgen.wanted_films as w where w.task_id = wanted.id;
        else
          update vidgen.wanted_films as w
             set tries = wanted.tries + 1,
                 due_at = clock_timestamp()
                          + least(limits.refusal_pause * 2 ^ least(wanted.tries, 20), interval '10 minutes')
           where w.task_id = wanted.id;
        end if;
        return next;
    end;
  end loop;
end
$$;

-- Whether an unfinished film has this task as a part; another one than `but_of`.
create function vidgen.is_needed(of_task uuid, but_of uuid) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  return exists (
    select
      from vidgen.parts as p
      join public.video_generation_tasks as film on film.id = p.film_id
     where p.task_id = of_task and p.film_id is distinct from but_of
       and film.status in ('pending', 'processing')
  );
end
$$;

-- The tasks that cuts name whose parts are not ordered yet. A cut is any JSON of a client's: only what is a
-- UUID counts, and only a task of the film's owner, or anybody could keep it. Two parts, one for each partial
-- index: no look at what has ended.
create view vidgen.named_tasks with (security_invoker = true) as
select t.id as task_id, film.id as film_id
  from (
    select w.id, w.user_id, w.cut
      from public.video_generation_tasks as w
     where w.status = 'pending' and w.lane <= 0
    union all
    select r.id, r.user_id, r.cut
      from public.video_generation_tasks as r
     where r.status = 'processing' and r.lane <= 0
  ) as film
 cross join lateral jsonb_path_query(
   film.cut,
   '$.parts[*].task ? (@ like_regex "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$" flag "i")'
 ) as named (id)
  join public.video_generation_tasks as t
    on t.id = (named.id #>> '{}')::uuid and t.user_id = film.user_id
 where not exists (select from vidgen.films as f where f.film_id = film.id);

comment on view vidgen.named_tasks is
  'Tasks that unfinished films name as their parts and have not ordered yet.';

-- Tell the films of a task that it has ended, or is gone. Whoever orders it as a part locks its row first:
-- this sees that film, or the film's own look at its parts sees the end.
create function vidgen.tell_films(of_task uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  insert into vidgen.endings (film_id)
  select distinct p.film_id
    from vidgen.parts as p
    join public.video_generation_tasks as film on film.id = p.film_id
   where p.task_id = of_task and film.status in ('pending', 'processing');
  if found then
    perform vidgen.wake_lane(0);
  end if;
end
$$;

-- Waiting tasks that do not wait for their user's turn. `stage` is the next stage with a slot that the claim
-- reserves. Null: no slot is reserved, because a generation runs at the provider, the next stage needs no
-- reserved slot, or all stages are done. 'video': the still is done. Both go on before new tasks begin.
-- 'image': the task was set aside before an attempt began.
create table vidgen.resumes (
  task_id uuid primary key references public.video_generation_tasks (id) on delete cascade,
  lane smallint not null,
  stage text,
  resume_at timestamptz not null,
  -- VIDGEN_MAX_RUNNING_PER_USER counts the tasks that a user has begun and not ended, whether they run or
  -- wait. So a resume can't exceed the cap, and only the claim, which holds the user's turn, can begin more.
  -- A retried task waits for its user's turn again, even where a stage of it is done: else a user could pass
  -- the cap and the line by retrying many tasks.
  user_id uuid not null,
  -- The scopes whose workers may take a waiting task; null: any worker.
  followers text[],
  constraint stage_is_known foreign key (stage) references vidgen.stages (name)
) with (fillfactor = 70, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.05);

comment on column vidgen.resumes.followers is
  'Scopes whose workers may follow the task''s generation; null: it has none, or every worker may.';

create index resumes_in_order on vidgen.resumes (stage, resume_at);
create index resumes_by_user on vidgen.resumes (user_id);

-- A waiting task may reserve something: a suspect one slot, a task whose image is done some room. While its
-- row is locked no worker can begin it, so that it reserves nothing for a while. This is a separate table
-- without a foreign key: an owner who cancels in an open transaction locks the task's row and the rows that
-- its triggers write, but no row of this table.
create table vidgen.passed_over (
  task_id uuid primary key,
  times smallint not null default 1,
  until timestamptz not null,
  constraint times_are_positive check (times > 0)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.passed_over is
  'Waiting tasks whose rows a claim found locked: they reserve nothing before `until`.';
comment on column vidgen.passed_over.times is
  'The number of times in a row, by which the pause grows; it restarts after a minute without one.';

create index passed_over_by_age on vidgen.passed_over (until);

create view vidgen.passed_now with (security_invoker = true) as
select p.task_id
  from vidgen.passed_over as p
 -- Later than the longest pause allows: the clock was set back.
 where p.until > now() and p.until <= now() + interval '31 seconds';

comment on view vidgen.passed_now is 'Those that reserve nothing now.';

create view vidgen.due_resumes with (security_invoker = true) as
select r.task_id, r.user_id, r.lane, r.stage, r.resume_at, r.followers
  from vidgen.resumes as r
 where r.resume_at <= now()
   and not exists (select from vidgen.passed_now as p where p.task_id = r.task_id);

comment on view vidgen.due_resumes is
  'Tasks that may go on now, without those whose rows were found locked.';

-- Note that a task's row was found locked: it reserves nothing for a pause that grows from three seconds
-- (longer than the pause between two polls of the queue) to half a minute. Where another claim holds the
-- row, that claim begins the task, and this note has no effect. Where another transaction notes the same
-- task at this moment, its note is enough.
create function vidgen.pass_over(of_task uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  first_pause constant interval := interval '3 seconds';
  longest_pause constant interval := interval '30 seconds';
begin
  if not exists (select from vidgen.resumes as r where r.task_id = of_task)
     and not exists (
       select from vidgen.budgets as b where b.task_id = of_task and b.suspect
     ) then
    return;  -- it keeps no place: the next turn of its user meets it
  end if;
  if exists (select from vidgen.passed_over as p where p.task_id = of_task) then
    update vidgen.passed_over as p
       set times = counted.times,
           until = clock_timestamp()
                   + least(first_pause * 2 ^ (counted.times - 1), longest_pause)
      from (
        select case
                 when o.until < now() - interval '1 minute' then 1 else least(o.times + 1, 10)
               end as times
          from vidgen.passed_over as o
         where o.task_id = of_task
           -- As in passed_now, of the row that is locked: another claim may have just counted.
           and (o.until <= now() or o.until > now() + interval '31 seconds')
           for update skip locked
      ) as counted
     where p.task_id = of_task;
  else
    insert into vidgen.passed_over (task_id, until)
    values (of_task, clock_timestamp() + first_pause)
        on conflict do nothing;
  end if;
exception
  when lock_not_available then
    null;  -- another claim has just inserted it
end
$$;

-- Wake the workers for a lane: films have a claim of their own.
create function vidgen.wake_lane(lane integer) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform vidgen.wake('vidgen_tasks', case when lane <= 0 then 'film' else '' end);
end
$$;

-- New rows: one arrival per user and lane, and one NOTIFY per statement; none for rows that are due later.
create function vidgen.tasks_arrive() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  due boolean;
  films_due boolean;
begin
  with arrived as (
    insert into vidgen.arrivals (user_id, lane, due_at)
    select user_id, lane, min(run_after) from inserted group by user_id, lane
    returning lane, due_at
  )
  select bool_or(due_at <= now() and lane > 0), bool_or(due_at <= now() and lane <= 0)
    into due, films_due
    from arrived;
  if due then
    perform vidgen.wake_lane(1);
  end if;
  if films_due then
    perform vidgen.wake_lane(0);
  end if;
  return null;
end
$$;

create trigger tasks_arrive
  after insert on public.video_generation_tasks
  referencing new table as inserted
  for each statement execute function vidgen.tasks_arrive();

-- Rows that become pending again, or no longer are, by any statement.
create function vidgen.task_moves() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  goes_on boolean := false;
  stage text;
  followers text[];
begin
  if old.status = 'pending' and old.attempt = 0 and new.status = 'processing' then
    return null;  -- what has never begun and begins is in no resumes: the claim leaves out what is
  end if;
  if new.status <> 'pending' and old.status <> 'pending' then
    return null;
  end if;
  if new.status = 'pending' then
    if old.status = 'processing' then
      -- A claim that met the lock of this one has recorded the row as passed over: the record is deleted.
      delete from vidgen.passed_over as p
       using (
         select o.task_id from vidgen.passed_over as o where o.task_id = new.id
            for update skip locked
       ) as old_one
       where p.task_id = old_one.task_id;
    end if;
    -- The last stage with a checkpoint decides: it is followed further, or the stage after it is next.
    select true,
           case
             when c.state = 'done' then (
               select next.name
                 from vidgen.stages as next
                where next.place > of_stage.place and next.reserved
                  and not exists (
                    select from vidgen.stages as other
                     where other.place > of_stage.place and other.place < next.place
                  )
             )
           end,
           case
             when c.state <> 'done' then vidgen.followers(s.account, s.key_fingerprint, s.followed_by)
           end
      into goes_on, stage, followers
      from vidgen.checkpoints as c
      join vidgen.stages as of_stage on of_stage.name = c.stage
      left join vidgen.submissions as s on s.id = c.submission_id
     where c.task_id = new.id
       and (
         c.state <> 'submitting'
         or (s.ended_at is null and (s.answer is null or s.answer = 'generation'))
       )
     order by of_stage.place desc
     limit 1;
    if old.status in ('failed', 'cancelled') then
      -- Retried by its owner: the task waits for the owner's turn, and begins with new budgets.
      goes_on := false;
      delete from vidgen.refusals as r where r.task_id = new.id;
    end if;
    if goes_on is not true then
      delete from vidgen.resumes as r where r.task_id = new.id;
      insert into vidgen.arrivals (user_id, lane, due_at)
      values (new.user_id, new.lane, new.run_after);
    else
      insert into vidgen.resumes as r (task_id, user_id, lane, stage, resume_at, followers)
      values (new.id, new.user_id, new.lane, stage, new.run_after, followers)
          on conflict (task_id) do update
         set stage = excluded.stage, resume_at = excluded.resume_at, followers = excluded.followers;
    end if;
    if new.run_after <= now() then
      perform vidgen.wake_lane(new.lane);
    end if;
  else
    delete from vidgen.resumes as r where r.task_id = new.id;
  end if;
  return null;
end
$$;

create trigger task_moves
  after update on public.video_generation_tasks
  for each row
  when (old.status <> new.status or old.run_after <> new.run_after)
  execute function vidgen.task_moves();

-- Waiting tasks under which so many workers died that they run alone. `stage` is as in resumes. Rows are
-- few: the optimization fence makes every plan begin with them, and never with all waiting tasks.
create view vidgen.suspects with (security_invoker = true) as
select b.task_id, t.lane, t.run_after, r.followers,
       case when r.task_id is null then 'image' else r.stage end as stage
  from vidgen.budgets as b
 cross join lateral (
   select t.status, t.lane, t.run_after
     from public.video_generation_tasks as t
    where t.id = b.task_id
   offset 0
 ) as t
  left join vidgen.resumes as r on r.task_id = b.task_id
 where b.suspect and t.status = 'pending' and coalesce(r.resume_at, t.run_after) <= now()
   and not exists (select from vidgen.passed_now as p where p.task_id = b.task_id);

-- Whether no worker that may follow a generation has been alive within the time `since`.
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

-- Whether something in a lane of films may be due.
create function vidgen.is_lane_due(of_lane smallint) returns boolean
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select exists (select from vidgen.turns as n where n.lane = of_lane and n.waiting_since is not null)
      or exists (
        select from vidgen.turns as n
         where n.lane = of_lane and n.waiting_since is null and n.due_at <= now()
      )
      or exists (select from vidgen.arrivals as a where a.lane = of_lane)
      or exists (select from vidgen.suspects as s where s.lane = of_lane)
$$;

-- Take the mail of films, and look at the parts of each: how many have ended shows in its progress, and a
-- film that waits for nothing more is due now. The look comes after the mail was taken, in a snapshot of
-- its own: it sees the end that the mail is about. Of two workers that have mail of one film, one holds its
-- row; the other leaves its mail where it is. The mail of a film that is at work is of no use: its attempt
-- ends with mail of its own (see wait_for_parts). A row that refuses is noted, and its mail waits for the end
-- of the pause. Completed tasks that are owed a film get theirs first. A row says which film became due, or
-- which task's row refused; the last one, without either, whether there is more mail that may be taken now,
-- and whether a film without outputs, and one with outputs, is due.
create function vidgen.wake_films(batch integer)
returns table (film_id uuid, refused text, more boolean, due boolean, renders_due boolean)
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
-- Each row is found by its id, also by a plan that was made while the table was empty, and is kept.
set enable_seqscan = off
as $$
#variable_conflict use_variable
declare
  until timestamptz := statement_timestamp() + interval '2 seconds';
  mail bigint[];
  films uuid[];
  film uuid;
  waits record;
  parts record;
  looked uuid[] := '{}';
  locked uuid[] := '{}';
  noted vidgen.refusals;
begin
  for film_id, refused in select w.task_id, w.refused from vidgen.order_wanted_films(batch) as w loop
    return next;
  end loop;
  -- All mail of the films that have waited longest: one look at a film answers all of it.
  mail := array(
    select e.id
      from vidgen.endings as e
     where e.film_id in (
       select oldest.film_id
         from (
           select o.film_id
             from vidgen.endings as o
            where not exists (select from vidgen.set_aside as a where a.task_id = o.film_id)
            order by o.id
            limit batch
         ) as oldest
     )
       for update of e skip locked
  );
  films := array(
    select distinct e.film_id from vidgen.endings as e where e.id = any (mail) order by e.film_id
  );
  foreach film in array films loop
    exit when clock_timestamp() > until;
    begin
      select t.status, t.run_after, t.lane into waits
        from public.video_generation_tasks as t
       where t.id = film
         for no key update skip locked;
      if not found
         and exists (select from public.video_generation_tasks as t where t.id = film) then
        locked := locked || film;
        continue;
      end if;
      if waits.status = 'pending' and waits.run_after = '9999-01-01 00:00:00+00' then
        select count(*) as all_of_them,
               count(*) filter (where t.status in ('pending', 'processing')) as unfinished
          into parts
          from vidgen.parts as p
          left join public.video_generation_tasks as t on t.id = p.task_id
         where p.film_id = film;
        update public.video_generation_tasks as t
           set progress = greatest(
                 t.progress,
                 5 + 65.0 * (parts.all_of_them - parts.unfinished) / greatest(parts.all_of_them, 1)
               ),
               message = format(
                 'Scenes ready: %s of %s', parts.all_of_them - parts.unfinished, parts.all_of_them
               ),
               current_step = case
                 when parts.unfinished = 0 and waits.lane = -1 then 'Waiting to be rendered'
                 else t.current_step
               end,
               run_after = case when parts.unfinished = 0 then now() else t.run_after end
         where t.id = film;
        perform vidgen.check_taken(film, 'pending', null);
        if parts.unfinished = 0 then
          if not exists (
            select from public.video_generation_tasks as t where t.id = film and t.run_after <= now()
          ) then
            perform vidgen.row_stays(film);
          end if;
          film_id := film;
          refused := null;
          return next;
        end if;
      end if;
      looked := looked || film;
    exception
      when others or assert_failure or query_canceled then
        noted := vidgen.note_refusal(film, 'wake', format('%s %s', sqlstate, sqlerrm), null);
        film_id := film;
        refused := noted.error;
        return next;
    end;
  end loop;
  delete from vidgen.endings as e where e.id = any (mail) and e.film_id = any (looked);
  -- A locked film goes to the end of the line: its mail keeps no other film waiting.
  with moved as (
    delete from vidgen.endings as e where e.id = any (mail) and e.film_id = any (locked)
    returning e.film_id
  )
  insert into vidgen.endings (film_id) select distinct moved.film_id from moved;
  film_id := null;
  refused := null;
  more := exists (
    select from vidgen.endings as e
     where e.film_id <> all (locked)
       and not exists (select from vidgen.set_aside as a where a.task_id = e.film_id)
  ) or exists (select from vidgen.wanted_films as w where w.due_at <= now());
  due := vidgen.is_lane_due(0::smallint);
  renders_due := vidgen.is_lane_due((-1)::smallint);
  return next;
end
$$;

-- Rights.

call vidgen.revoke_from_strangers();

revoke all on function
  vidgen.is_needed(uuid, uuid), vidgen.pass_over(uuid), vidgen.wake_lane(integer), vidgen.tasks_arrive(),
  vidgen.task_moves(), vidgen.tell_films(uuid), vidgen.wake_films(integer),
  vidgen.is_left_alone(text, text, text, text, interval), vidgen.is_lane_due(smallint),
  vidgen.want_film(uuid), vidgen.order_wanted_films(integer)
  from public, anon, authenticated, service_role;

grant insert (user_id, lane, waiting_since, due_at, arrivals) on vidgen.turns to vidgen_worker;
grant update (waiting_since, due_at, arrivals) on vidgen.turns to vidgen_worker;
grant select, delete on
  vidgen.arrivals, vidgen.endings, vidgen.passed_over, vidgen.resumes, vidgen.turns
  to vidgen_worker;
grant select on vidgen.films, vidgen.parts, vidgen.wanted_films to vidgen_worker;
grant insert (film_id) on vidgen.endings to vidgen_worker;
grant update (film_id) on vidgen.endings to vidgen_worker;
grant select on vidgen.passed_now, vidgen.suspects to vidgen_worker;
grant insert (user_id, lane, due_at) on vidgen.arrivals to vidgen_worker;
grant update (due_at) on vidgen.arrivals to vidgen_worker;
grant insert (task_id, lane, stage, resume_at, user_id) on vidgen.resumes to vidgen_worker;
grant update (resume_at, followers) on vidgen.resumes to vidgen_worker;
grant insert (task_id, until) on vidgen.passed_over to vidgen_worker;
grant update (times, until) on vidgen.passed_over to vidgen_worker;
grant select on vidgen.due_resumes to vidgen_worker;
grant execute on function
  vidgen.pass_over(uuid), vidgen.wake_lane(integer), vidgen.wake_films(integer),
  vidgen.is_lane_due(smallint), vidgen.order_wanted_films(integer),
  vidgen.is_left_alone(text, text, text, text, interval)
  to vidgen_worker;

update vidgen.settings set schema_version = '20261130100400', oldest_program = '20261130100400';
