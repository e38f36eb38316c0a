-- No lock of a client's holds us: what could be waited for is skipped, or waited for a moment and
-- then met again.

alter table vidgen.settings alter column schema_version set default '20261130000200';
update vidgen.settings set schema_version = '20261130000200';

-- Writes to scenes that are owed, because another transaction held the scene: its owner can, for as
-- long as his statement runs. A row for each write, never changed but for its next turn: whoever owes
-- one waits for nobody. No foreign key: its check would take a lock on the very scene.
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

create index scene_writes_of_scene on vidgen.scene_writes (scene_id, id);

comment on table vidgen.scene_writes is
  'Writes to video_scenes that another transaction''s lock kept from being made: the janitor makes them.';

revoke all on vidgen.scene_writes from public, anon, authenticated, service_role, vidgen_worker;
grant select on vidgen.scene_writes to vidgen_worker;

-- As before, but it never waits: a tenth of a second at the most, once. While a write to a scene is
-- owed, the next ones are owed too, so that they keep their order and nobody waits for it again.
create or replace function vidgen.write_scene(
  scene_id uuid, user_id uuid, status text, image_url text, video_url text
) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_variable
begin
  begin
    if not exists (
      select from vidgen.scene_writes as w where w.scene_id = write_scene.scene_id
    ) then
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
    end if;
  exception
    when lock_not_available then
      null;  -- owed below
  end;
  -- Not what is owed already: a scene that stays locked would owe a row for every attempt at its tasks.
  insert into vidgen.scene_writes (scene_id, user_id, status, image_url, video_url)
  select write_scene.scene_id, write_scene.user_id, write_scene.status, write_scene.image_url,
         write_scene.video_url
   where not exists (
     select
       from (
         select w.status, w.image_url, w.video_url
           from vidgen.scene_writes as w
          where w.scene_id = write_scene.scene_id
          order by w.id desc
          limit 1
       ) as newest
      where newest.status is not distinct from write_scene.status
        and newest.image_url is not distinct from write_scene.image_url
        and newest.video_url is not distinct from write_scene.video_url
   );
  return '55P03 locked by another transaction: it is written later';
exception
  when others or assert_failure or query_canceled then
    -- The caller logs it; the paid task goes on.
    return format('%s %s', sqlstate, sqlerrm);
end
$$;

-- Make the owed writes of one scene, all at once. 'written', 'gone' (the scene), 'locked' (still, and
-- met again after a pause that grows to a minute), or what the application's own rules said to it.
-- What the scene says comes from its tasks as they are now: an owed write is never older than they are.
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
  became text := 'written';
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
    return 'gone';
  end if;

  begin
    perform from public.video_scenes as s
      where s.id = of_scene and s.user_id = owner
        for no key update skip locked;
    if found then
      update public.video_scenes as s
         set status = coalesce(
               case when owed_status is not null then (
                 select t.status
                   from public.video_generation_tasks as t
                  where t.scene_id = of_scene and t.user_id = owner
                    and t.status in ('processing', 'completed')
                  order by t.created_at desc, t.id desc
                  limit 1
               ) end,
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
             generated_video_url = case when owed_video is null then s.generated_video_url else coalesce(
               (
                 select t.video_url
                   from public.video_generation_tasks as t
                  where t.scene_id = of_scene and t.user_id = owner
                    and t.status = 'completed' and t.video_url is not null
                  order by t.created_at desc, t.id desc
                  limit 1
               ),
               owed_video
             ) end,
             updated_at = now()
       where s.id = of_scene and s.user_id = owner;
    elsif exists (
      select from public.video_scenes as s where s.id = of_scene and s.user_id = owner
    ) then
      became := 'locked';
    else
      became := 'gone';
    end if;
  exception
    when lock_not_available then
      became := 'locked';
    when others or assert_failure or query_canceled then
      -- The application's rule: it would refuse again.
      became := format('%s %s', sqlstate, sqlerrm);
  end;

  if became = 'locked' then
    update vidgen.scene_writes as w
       set due_at = now()
                    + least(greatest(now() - w.since, interval '1 second'), interval '1 minute')
     where w.id = any (ids);
  else
    delete from vidgen.scene_writes as w where w.id = any (ids);
  end if;
  return became;
end
$$;

revoke all on function vidgen.write_owed_scene(uuid) from public, anon, authenticated, service_role;
grant execute on function vidgen.write_owed_scene(uuid) to vidgen_worker;

-- As before; and a lock passes, so it counts for nothing: its pause grows with the time that it has
-- lasted, up to half a minute, and it never ends a task.
create or replace function vidgen.note_refusal(
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

-- One row after another, and for each a moment: else the rows of one user, each held somewhere by a
-- transaction of his (what an application's trigger looks at), would hold up the claim of all others.
alter function vidgen.begin_attempt(uuid, uuid, boolean) set lock_timeout = '100ms';
alter function vidgen.hand_back_task(uuid, uuid, integer) set lock_timeout = '100ms';
alter function vidgen.take_over_task(uuid, uuid, uuid, integer, boolean, text, boolean)
  set lock_timeout = '100ms';
alter function vidgen.end_refused(uuid, text, boolean) set lock_timeout = '100ms';

alter table vidgen.refusals add column attempt integer;
grant update (attempt) on vidgen.refusals to vidgen_worker;

comment on column vidgen.refusals.attempt is
  'The attempt that reached the verdict while the task''s row was locked, and so its fence was not proven: only the next attempt believes it. Null: any.';

-- As before, but it waits for nobody's lock: a row that another transaction holds is noted as such,
-- and stays with this worker until the pause is over. (What holds it may be a take-over: then the note
-- keeps nothing but the next take-over away for that pause, and says how only the next attempt ends.)
create or replace function vidgen.set_aside_task(
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
  -- The fence is looked at under the row's lock: who has lost the task notes nothing about it.
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
      became := case when found then 'pending' else 'processing' end;
    exception
      when others or assert_failure or query_canceled then
        became := 'processing';
    end;
  end if;
  return next;
end
$$;

-- As before, each in a savepoint: a row that another transaction holds is met again after a pause,
-- and keeps no other waiting.
create or replace function vidgen.retry_refused(
  of_task uuid, end_message text, scene_updates boolean
) returns text
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '100ms'
as $$
#variable_conflict use_variable
declare
  task record;
  refusal vidgen.refusals;
begin
  select r.* into refusal from vidgen.refusals as r where r.task_id = of_task for update skip locked;
  if not found or refusal.until is null or refusal.until > now() then
    return null;
  end if;
  select t.status, t.user_id, t.run_after into task
    from public.video_generation_tasks as t where t.id = of_task;
  if not found then
    delete from vidgen.refusals as r where r.task_id = of_task;
    return 'gone';
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
  delete from vidgen.resumes as r where r.task_id = of_task and r.class = 2;
  if found and task.status = 'pending' then
    insert into vidgen.arrivals (user_id, due_at) values (task.user_id, task.run_after);
    perform pg_notify('vidgen_tasks', '');
  end if;
  return task.status;
exception
  when lock_not_available then
    return 'locked';  -- held by its owner's call: the next turn meets it
end
$$;

-- LOCK TABLE takes any mode from who may DELETE from the whole table, and with it everybody else's
-- scenes. On the table that we made (it has our four policies), its owners delete through a function
-- instead; an application's own table keeps the rights that it was given.
create function vidgen.delete_scene(scene_id uuid) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  delete from public.video_scenes as s
   where s.id = delete_scene.scene_id and s.user_id = (select vidgen.signed_in_user());
  return found;
end
$$;

create function public.delete_video_scene(scene_id uuid) returns boolean
language sql volatile security invoker set search_path = pg_catalog, pg_temp
begin atomic
  select vidgen.delete_scene(delete_video_scene.scene_id);
end;

comment on function public.delete_video_scene(uuid) is
  'Delete a scene of yours; its tasks stay. False: there is no such scene of yours.';

revoke all on function vidgen.delete_scene(uuid) from public, anon, authenticated, service_role;
revoke all on function public.delete_video_scene(uuid) from public, anon, authenticated, service_role;

do $$
begin
  if (
    select count(*) = 4
      from pg_catalog.pg_policy as p
     where p.polrelid = 'public.video_scenes'::regclass
       and p.polname in (
         'owners read their scenes', 'owners add scenes', 'owners change their scenes',
         'owners delete their scenes'
       )
  ) then
    revoke delete on public.video_scenes from authenticated;
    drop policy "owners delete their scenes" on public.video_scenes;
    grant execute on function vidgen.delete_scene(uuid) to authenticated;
    grant execute on function public.delete_video_scene(uuid) to authenticated;
  end if;
end
$$;
