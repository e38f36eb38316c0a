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

drop index public.video_generation_tasks_by_scene;
create index video_generation_tasks_by_scene on public.video_generation_tasks
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
