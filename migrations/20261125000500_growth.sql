-- New columns, the books when an application deletes what it shouldn't, two tasks of one scene.

alter table vidgen.settings alter column schema_version set default '20261125000500';
update vidgen.settings set schema_version = '20261125000500';

-- A new column of ours, or of the application's own, must break nothing.
--
-- `select *` in a parsed body freezes the columns of that day, and after the next one the call is
-- refused (42P13). One value of the row's own type follows the table, whatever it gains or loses.

create or replace function public.cancel_video_generation_task(task_id uuid)
returns public.video_generation_tasks
language sql volatile security invoker set search_path = pg_catalog, pg_temp
begin atomic
  select vidgen.cancel_task(cancel_video_generation_task.task_id);
end;

create or replace function public.retry_video_generation_task(task_id uuid)
returns public.video_generation_tasks
language sql volatile security invoker set search_path = pg_catalog, pg_temp
begin atomic
  select vidgen.retry_task(retry_video_generation_task.task_id);
end;

create or replace function public.grant_video_credits(user_id uuid, amount integer, reference text)
returns public.user_credits
language sql volatile security invoker set search_path = pg_catalog, pg_temp
begin atomic
  select vidgen.grant_credits(
    grant_video_credits.user_id, grant_video_credits.amount, grant_video_credits.reference
  );
end;

-- What has ended keeps our columns, and ours only: an application's own may change (a title, whether
-- the clip was seen), and a generated one has no value yet when this trigger compares.
create or replace function vidgen.task_changes() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
  if new.attempt < old.attempt then
    raise exception 'task %: attempt never goes down (% to %)', old.id, old.attempt, new.attempt
      using errcode = 'check_violation';
  end if;

  if old.status <> new.status then
    if not (case old.status
      when 'pending' then
        (new.status = 'processing' and new.attempt = old.attempt + 1)
        or new.status in ('cancelled', 'failed')
      when 'processing' then new.status in ('completed', 'failed', 'cancelled', 'pending')
      when 'failed' then new.status = 'pending'
      when 'cancelled' then new.status = 'pending'
      else false
    end) then
      raise exception 'task %: status can''t change from % to %', old.id, old.status, new.status
        using errcode = 'check_violation',
              hint = 'Cancel with cancel_video_generation_task(id), '
                     'try again with retry_video_generation_task(id).';
    end if;
  elsif old.status in ('completed', 'failed', 'cancelled') then
    -- But for a scene that goes away and a URL signed again.
    if (
      new.id, new.user_id, new.priority, new.failures, new.max_failures, new.attempt, new.progress,
      new.stage_progress, new.current_step, new.message, new.error_code, new.error_message, new.error,
      new.resolution, new.video_ratio, new.image_ratio, new.image_path, new.image_url, new.video_path,
      new.worker_id, new.cancel_requested_at, new.run_after, new.created_at, new.started_at,
      new.completed_at
    ) is distinct from (
      old.id, old.user_id, old.priority, old.failures, old.max_failures, old.attempt, old.progress,
      old.stage_progress, old.current_step, old.message, old.error_code, old.error_message, old.error,
      old.resolution, old.video_ratio, old.image_ratio, old.image_path, old.image_url, old.video_path,
      old.worker_id, old.cancel_requested_at, old.run_after, old.created_at, old.started_at,
      old.completed_at
    ) then
      raise exception 'task %: it has ended (%) and can''t be changed', old.id, old.status
        using errcode = 'check_violation',
              hint = 'Try again with retry_video_generation_task(id), or insert a new task.';
    end if;
  end if;

  if old.status in ('pending', 'processing') and new.status in ('pending', 'processing') then
    -- A late or resumed writer must not pull the bar back before the user's eyes.
    new.progress := greatest(new.progress, old.progress);
  end if;
  new.updated_at := now();
  return new;
end
$$;

-- Two tasks of one scene: the scene says what its newest task says that runs or has brought a clip,
-- and shows that clip. One that failed, or comes late, takes nothing away.

create index video_generation_tasks_of_scene on public.video_generation_tasks
  (scene_id, created_at desc);

create or replace function vidgen.write_scene(
  scene_id uuid, user_id uuid, status text, image_url text, video_url text
) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  update public.video_scenes as s
     set status = coalesce(
           case when write_scene.status is not null then (
             select t.status
               from public.video_generation_tasks as t
              where t.scene_id = write_scene.scene_id and t.user_id = write_scene.user_id
                and t.status in ('processing', 'completed')
              order by t.created_at desc, t.id desc
              limit 1
           ) end,
           write_scene.status, s.status
         ),
         -- Of the still's task the row doesn't show it yet: it is the newest that runs without one.
         image_url = case
           when write_scene.image_url is null or (
             select t.image_url is not null
               from public.video_generation_tasks as t
              where t.scene_id = write_scene.scene_id and t.user_id = write_scene.user_id
                and (t.image_url is not null or t.status = 'processing')
              order by t.created_at desc, t.id desc
              limit 1
           ) then s.image_url
           else write_scene.image_url
         end,
         generated_video_url = case
           when write_scene.video_url is null then s.generated_video_url
           else coalesce(
             (
               select t.video_url
                 from public.video_generation_tasks as t
                where t.scene_id = write_scene.scene_id and t.user_id = write_scene.user_id
                  and t.status = 'completed' and t.video_url is not null
                order by t.created_at desc, t.id desc
                limit 1
             ),
             write_scene.video_url
           )
         end,
         updated_at = now()
   where s.id = write_scene.scene_id and s.user_id = write_scene.user_id;
  return null;
exception
  when others then
    -- The caller logs it; the paid task goes on.
    return format('%s %s', sqlstate, sqlerrm);
end
$$;

-- An id that was used once can't be used again, whoever removed the task, and by what: its
-- submissions and charges are still in the books, and a stage is charged once for an id.
-- After the statement, so that its own snapshot sees what it waited for.
create or replace function vidgen.refuse_pruned_ids() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
  used_id uuid;
begin
  select i.id into used_id
    from inserted as i
   where exists (select from vidgen.pruned as p where p.task_id = i.id)
      or exists (select from vidgen.submissions as s where s.task_id = i.id)
      or exists (select from vidgen.charges as c where c.task_id = i.id)
   limit 1;
  if used_id is not null then
    raise exception 'the id % was a task''s that has been pruned or deleted', used_id
      using errcode = 'PT409', hint = 'Insert a new task with an id of its own.';
  end if;
  return null;
end
$$;

-- A balance is the running total of a user's ledger. Where its row is gone, or was made anew without
-- what is held (an application cascades from its users, or tidies up), a settle or a release can't
-- take anything from it: then the row is made again from the ledger and the open holds.
create function vidgen.restore_credits(owner_id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  insert into public.user_credits as u (user_id) values (owner_id)
      on conflict (user_id) do update set updated_at = now();
  -- The row is locked: whoever changes the ledger of this user waits, and is not in the sum, or has
  -- ended, and this statement's own snapshot sees it.
  update public.user_credits as u
     set balance = greatest(books.entries, 0),
         held = least(books.holds, greatest(books.entries, 0)),
         updated_at = now()
    from (
      select coalesce((
               select sum(e.amount) from public.credit_entries as e where e.user_id = owner_id
             ), 0) as entries,
             coalesce((
               select sum(h.amount)
                 from vidgen.holds as h
                where h.user_id = owner_id and h.closed_at is null
             ), 0) as holds
    ) as books
   where u.user_id = owner_id;
end
$$;

-- Where the application's own rule refuses the row (its user is deleted), the paid task goes on: the
-- charge stands in the ledger, and the audit names this user.
create function vidgen.try_to_restore_credits(owner_id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  perform vidgen.restore_credits(owner_id);
exception
  when integrity_constraint_violation or raise_exception or insufficient_privilege then
    raise warning 'the balance of user % could not be restored: % %', owner_id, sqlstate, sqlerrm;
end
$$;

revoke all on function vidgen.try_to_restore_credits(uuid)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.restore_credits(uuid) from public, anon, authenticated, service_role;

-- Replaced only where they are still ours: an application's own stay whose they are.
do $migration$
declare
  ours text;
begin
  select md5(p.prosrc) into ours
    from pg_catalog.pg_proc as p
   where p.oid = 'vidgen.settle_credits(uuid, text)'::regprocedure;
  if ours = 'b1dc3fb467036f201dc5216be6c91c76' then
    create or replace function vidgen.settle_credits(task_id uuid, stage text) returns void
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    #variable_conflict use_variable
    declare
      hold vidgen.holds;
      price integer;
      covered boolean := false;
    begin
      select h.* into hold
        from vidgen.holds as h
       where h.task_id = settle_credits.task_id and h.closed_at is null
         for update;
      if not found then
        raise exception 'task %: no open hold to settle its % from',
          settle_credits.task_id, settle_credits.stage;
      end if;
      price := case settle_credits.stage when 'image' then hold.image_price else hold.video_price end;
      -- The balance before the hold and the ledger: what is gone is restored from both.
      if price > 0 then
        update public.user_credits as u
           set balance = u.balance - price, held = u.held - price, updated_at = now()
         where u.user_id = hold.user_id and u.held >= price;
        covered := found;
      end if;
      update vidgen.holds as h set amount = h.amount - price where h.id = hold.id;
      insert into public.credit_entries (user_id, kind, amount, task_id, stage)
      values (hold.user_id, 'charge', -price, settle_credits.task_id, settle_credits.stage);
      if price > 0 and not covered then
        perform vidgen.try_to_restore_credits(hold.user_id);
      end if;
    end
    $$;
  end if;

  select md5(p.prosrc) into ours
    from pg_catalog.pg_proc as p
   where p.oid = 'vidgen.release_credits(uuid)'::regprocedure;
  if ours = '3759c2dd8e86b0316463e4a847bd2dbe' then
    create or replace function vidgen.release_credits(task_id uuid) returns void
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    #variable_conflict use_variable
    declare
      hold vidgen.holds;
      covered boolean := true;
    begin
      select h.* into hold
        from vidgen.holds as h
       where h.task_id = release_credits.task_id and h.closed_at is null
         for update;
      if not found then
        return;
      end if;
      if hold.amount > 0 then
        update public.user_credits as u
           set held = u.held - hold.amount, updated_at = now()
         where u.user_id = hold.user_id and u.held >= hold.amount;
        covered := found;
      end if;
      update vidgen.holds as h set amount = 0, closed_at = now() where h.id = hold.id;
      if not covered then
        perform vidgen.try_to_restore_credits(hold.user_id);
      end if;
    end
    $$;
  end if;

  select md5(p.prosrc) into ours
    from pg_catalog.pg_proc as p
   where p.oid = 'vidgen.hold_credits(uuid, uuid, integer, integer)'::regprocedure;
  if ours = 'a7cb1dfefabf079af054bf5f89047813' then
    create or replace function vidgen.hold_credits(
      task_id uuid, user_id uuid, image integer, video integer
    )
    returns boolean
    language plpgsql security definer set search_path = pg_catalog, pg_temp
    as $$
    #variable_conflict use_variable
    begin
      -- Idempotent: an open hold stands, with the prices it was opened with.
      perform from vidgen.holds as h
        where h.task_id = hold_credits.task_id and h.closed_at is null;
      if found then
        return true;
      end if;
      if image + video > 0 then
        update public.user_credits as u
           set held = u.held + image + video, updated_at = now()
         where u.user_id = hold_credits.user_id and u.balance - u.held >= image + video;
        if not found then
          return false;
        end if;
      end if;
      insert into vidgen.holds (task_id, user_id, image_price, video_price, amount)
      values (hold_credits.task_id, hold_credits.user_id, image, video, image + video);
      return true;
    end
    $$;
  end if;
end
$migration$;

-- A grant to a user whose row is gone: all of the ledger, not only this entry. Else the row would
-- look right and hold too little for ever.
create or replace function vidgen.grant_credits(user_id uuid, amount integer, reference text)
returns public.user_credits
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  credits public.user_credits;
  earlier public.credit_entries;
  entry_id bigint;
begin
  if user_id is null or coalesce(amount, 0) <= 0 or coalesce(btrim(reference), '') = ''
     or length(reference) > 500 then
    raise exception 'grant_video_credits needs a user_id, an amount above 0 and a reference of 1 to 500 characters'
      using errcode = 'PT400',
            hint = 'The reference makes the call idempotent: pass your payment''s id.';
  end if;
  -- No conflict target: its column would be read as the variable. The ledger has no other.
  insert into public.credit_entries (user_id, kind, amount, reference)
  values (user_id, 'grant', amount, reference)
      on conflict do nothing
  returning id into entry_id;
  if entry_id is not null then
    update public.user_credits as u
       set balance = u.balance + grant_credits.amount, updated_at = now()
     where u.user_id = grant_credits.user_id;
    if not found then
      perform vidgen.restore_credits(grant_credits.user_id);
    end if;
  else
    select e.* into earlier
      from public.credit_entries as e
     where e.reference = grant_credits.reference and e.kind = 'grant';
    if (earlier.user_id, earlier.amount) is distinct from (grant_credits.user_id, grant_credits.amount) then
      raise exception 'reference % was used for another grant', reference
        using errcode = 'PT409', hint = 'Use one reference per payment.';
    end if;
  end if;
  select u.* into credits from public.user_credits as u where u.user_id = grant_credits.user_id;
  return credits;
end
$$;

-- Growth. Of a task that ended long ago, the worker's private rows are of no use: they go, some time
-- after its end, with what must be known for ever kept: that its id was used and what it was charged
-- (the ledger), and what the provider's credits add up to. Tasks and ledger stay: they are the user's.

-- A BRIN finds old rows only while the table grows at its end; where rows go, new ones take their
-- place, and each range comes to hold every age.
create index submissions_by_sent_at on vidgen.submissions (sent_at);
create index holds_closed on vidgen.holds (closed_at) where closed_at is not null;

create table vidgen.forgotten_outlays (
  provider text not null,
  account text not null,
  outlay numeric not null default 0,
  primary key (provider, account)
);

comment on table vidgen.forgotten_outlays is
  'Provider credits of generations whose submissions are gone: a sum per account, for `reconcile`.';

comment on table vidgen.pruned is
  'Ids of tasks whose private rows are gone, with the task or before it, and the files of deleted ones.';

-- Turns of the fleet: what one worker does for all of them, now and then. No advisory lock: any role
-- may take those.
create table vidgen.duties (
  name text primary key,
  began_at timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.duties is 'When a worker of the fleet last began what one of them does for all.';

revoke all on vidgen.forgotten_outlays, vidgen.duties
  from public, anon, authenticated, service_role, vidgen_worker;
grant select on vidgen.forgotten_outlays to vidgen_worker;
grant select, insert, update on vidgen.duties to vidgen_worker;

-- One batch: tasks that were submitted before then, and have ended before then or are deleted. Never
-- younger than what the views and the limits look at, whoever asks. `through` is where the next batch
-- begins; null: there is no more.
create function vidgen.forget_tasks(older_than interval, after timestamptz, batch integer)
returns table (tasks bigint, through timestamptz)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  before timestamptz := now() - greatest(older_than, interval '32 days');
begin
  return query
  with old as materialized (
    select s.task_id, s.sent_at
      from vidgen.submissions as s
     where s.sent_at < before and s.sent_at > coalesce(after, '-infinity')
     order by s.sent_at
     limit batch
  ),
  ended as materialized (
    select t.id
      from public.video_generation_tasks as t
     where t.id in (select old.task_id from old)
       and t.status in ('completed', 'failed', 'cancelled') and t.completed_at < before
       -- A retry or a deletion that is under way decides for itself.
       for no key update skip locked
  ),
  deleted as materialized (
    select distinct old.task_id as id
      from old
     where not exists (select from public.video_generation_tasks as t where t.id = old.task_id)
       and not exists (
         select from vidgen.submissions as s where s.task_id = old.task_id and s.sent_at >= before
       )
  ),
  forgotten as materialized (
    select ended.id from ended union select deleted.id from deleted
  ),
  kept as (
    insert into vidgen.pruned (task_id)
    select f.id from forgotten as f order by f.id
        on conflict do nothing
  ),
  checkpoints as (
    delete from vidgen.checkpoints as c using forgotten as f where c.task_id = f.id
  ),
  submissions as (
    delete from vidgen.submissions as s using forgotten as f where s.task_id = f.id
    returning s.provider, s.account, s.answer, coalesce(s.cost, s.estimated_cost, 0) as outlay
  ),
  summed as (
    insert into vidgen.forgotten_outlays as o (provider, account, outlay)
    select s.provider, s.account, sum(s.outlay)
      from submissions as s
     where s.answer = 'generation'
     group by s.provider, s.account
     order by s.provider, s.account
        on conflict on constraint forgotten_outlays_pkey do update
       set outlay = o.outlay + excluded.outlay
  ),
  charges as (
    delete from vidgen.charges as c using forgotten as f where c.task_id = f.id
  ),
  budgets as (
    delete from vidgen.budgets as b using forgotten as f where b.task_id = f.id
  ),
  refusals as (
    delete from vidgen.refusals as r using forgotten as f where r.task_id = f.id
  )
  select (select count(*) from forgotten),
         (select max(old.sent_at) from old having count(*) >= batch);
end
$$;

-- Closed holds: what they held is in the ledger or was given back.
create function vidgen.forget_holds(older_than interval, batch integer) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  before timestamptz := now() - greatest(older_than, interval '32 days');
  gone bigint;
begin
  with old as materialized (
    select h.id
      from vidgen.holds as h
     where h.closed_at < before
     order by h.closed_at
     limit batch
       for update skip locked
  )
  delete from vidgen.holds as h using old where h.id = old.id;
  get diagnostics gone = row_count;
  return gone;
end
$$;

-- What of a forgotten task could be tried again would be paid again.
create function vidgen.refuse_forgotten_retries() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if exists (select from vidgen.pruned as p where p.task_id = new.id) then
    raise exception 'task % ended on %: it is too long ago to be retried', new.id,
      to_char(old.completed_at at time zone 'UTC', 'YYYY-MM-DD')
      using errcode = 'PT409', hint = 'Insert a new task.';
  end if;
  return new;
end
$$;

create trigger refuse_forgotten_retries
  before update of status on public.video_generation_tasks
  for each row
  when (old.status in ('failed', 'cancelled') and new.status = 'pending')
  execute function vidgen.refuse_forgotten_retries();

-- The audit, a part at a time. `credit_discrepancies` adds up the whole ledger (a second at five
-- million entries); this one adds each entry once, to its user's total.

create table vidgen.audited (
  only_row boolean primary key default true,
  through_id bigint not null default 0,
  discrepancies bigint,
  audited_at timestamptz,
  constraint there_is_one_row check (only_row)
);

comment on column vidgen.audited.through_id is
  'Entries up to this one are in the totals. Only entries an hour old: whoever wrote a lower number has '
  'ended by then; one that came later all the same is found when its user is summed anew.';

insert into vidgen.audited default values;

create table vidgen.audited_totals (
  user_id uuid primary key,
  total bigint not null,
  summed_at timestamptz
) with (fillfactor = 70);

comment on column vidgen.audited_totals.summed_at is
  'When all entries of this user were last added up, because the total did not fit the balance.';

revoke all on vidgen.audited, vidgen.audited_totals
  from public, anon, authenticated, service_role, vidgen_worker;
grant select on vidgen.audited, vidgen.audited_totals to vidgen_worker;

-- Add the next entries to the totals; how many there were. One at a time: the row is locked.
create function vidgen.audit_entries(batch integer) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  begins bigint;
  ends bigint;
  entries bigint;
begin
  select a.through_id into begins from vidgen.audited as a for update skip locked;
  if begins is null then
    return 0;
  end if;
  select max(next.id), count(*) into ends, entries
    from (
      select e.id, e.created_at
        from public.credit_entries as e
       where e.id > begins
       order by e.id
       limit batch
    ) as next
   where next.created_at < now() - interval '1 hour';
  if entries > 0 then
    insert into vidgen.audited_totals as t (user_id, total)
    select e.user_id, sum(e.amount)
      from public.credit_entries as e
     where e.id > begins and e.id <= ends
     group by e.user_id
     order by e.user_id
        on conflict on constraint audited_totals_pkey do update
       set total = t.total + excluded.total;
    update vidgen.audited as a set through_id = ends;
  end if;
  return entries;
end
$$;

-- Compare the next users, in the order of their ids: total and entries since beside the balance, open
-- holds beside what is held. Who doesn't fit is summed anew before he counts, once a day at the most.
-- `through` is where the next part begins; null: that was the last.
create function vidgen.audit_users(after uuid, batch integer)
returns table (discrepancies bigint, through uuid)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  return query
  with mark as materialized (
    select a.through_id from vidgen.audited as a
  ),
  part as materialized (
    select users.user_id
      from (
        (select c.user_id from public.user_credits as c
          where after is null or c.user_id > after order by c.user_id limit batch)
        union
        (select t.user_id from vidgen.audited_totals as t
          where after is null or t.user_id > after order by t.user_id limit batch)
        union
        (select h.user_id from vidgen.holds as h
          where h.closed_at is null and (after is null or h.user_id > after)
          order by h.user_id limit batch)
      ) as users
     order by users.user_id
     limit batch
  ),
  since as materialized (
    select e.user_id, sum(e.amount) as total
      from mark, public.credit_entries as e
     where e.id > mark.through_id
     group by e.user_id
  ),
  holds as materialized (
    select h.user_id, sum(h.amount) as total
      from vidgen.holds as h
     where h.closed_at is null
     group by h.user_id
  ),
  compared as materialized (
    select part.user_id, coalesce(c.balance, 0) as balance, coalesce(c.held, 0) as held,
           coalesce(since.total, 0) as since, coalesce(t.total, 0) as total,
           coalesce(holds.total, 0) as holds, t.summed_at
      from part
      left join public.user_credits as c on c.user_id = part.user_id
      left join vidgen.audited_totals as t on t.user_id = part.user_id
      left join since on since.user_id = part.user_id
      left join holds on holds.user_id = part.user_id
  ),
  summed as (
    insert into vidgen.audited_totals as t (user_id, total, summed_at)
    select wrong.user_id, coalesce(entries.total, 0), now()
      from compared as wrong, mark
     cross join lateral (
       select sum(e.amount) as total
         from public.credit_entries as e
        where e.user_id = wrong.user_id and e.id <= mark.through_id
     ) as entries
     where wrong.balance <> wrong.total + wrong.since
       and (wrong.summed_at is null or wrong.summed_at not between now() - interval '1 day' and now())
     order by wrong.user_id
        on conflict on constraint audited_totals_pkey do update
       set total = excluded.total, summed_at = excluded.summed_at
    returning t.user_id, t.total
  )
  select count(*) filter (
           where compared.balance <> coalesce(summed.total, compared.total) + compared.since
              or compared.held <> compared.holds
         ),
         case when count(*) >= batch
           then (array_agg(compared.user_id order by compared.user_id desc))[1]
         end
    from compared
    left join summed on summed.user_id = compared.user_id;
end
$$;

create function vidgen.note_audit(found_now bigint) returns void
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$ update vidgen.audited as a set discrepancies = note_audit.found_now, audited_at = now() $$;

revoke all on function vidgen.forget_tasks(interval, timestamptz, integer)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.forget_holds(interval, integer)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.refuse_forgotten_retries()
  from public, anon, authenticated, service_role;
revoke all on function vidgen.audit_entries(integer) from public, anon, authenticated, service_role;
revoke all on function vidgen.audit_users(uuid, integer)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.note_audit(bigint) from public, anon, authenticated, service_role;
grant execute on function vidgen.forget_tasks(interval, timestamptz, integer) to vidgen_worker;
grant execute on function vidgen.forget_holds(interval, integer) to vidgen_worker;
grant execute on function vidgen.audit_entries(integer) to vidgen_worker;
grant execute on function vidgen.audit_users(uuid, integer) to vidgen_worker;
grant execute on function vidgen.note_audit(bigint) to vidgen_worker;

-- What the two new indexes replace; last, because nobody reads these tables from here to the commit.
-- squawk-ignore require-concurrent-index-deletion
drop index public.video_generation_tasks_by_scene;
-- squawk-ignore require-concurrent-index-deletion
drop index vidgen.submissions_by_time;
