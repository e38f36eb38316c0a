-- Nothing is readable before it is paid, and an upload that began ends charged or removed.
--
-- An upload has a place of its own in Storage, that nobody knows or guesses, and a row here before it
-- begins. The statement that charges takes the row away and shows the place in the task's row, which
-- is what the policy asks for. Every other row is an object to be removed, by any worker's janitor.

alter table vidgen.settings alter column schema_version set default '20261130000100';
update vidgen.settings set schema_version = '20261130000100';

-- No foreign key: an object must not be forgotten with its task.
create table vidgen.uploads (
  id uuid primary key,
  task_id uuid not null,
  user_id uuid not null,
  stage text not null,
  attempt integer not null,
  worker_id uuid not null,
  bucket text not null,
  path text not null,
  since timestamptz not null default now(),
  look_at timestamptz not null default now(),
  taken_at timestamptz,
  removed_at timestamptz,
  constraint stage_is_known check (stage in ('image', 'video')),
  constraint a_place_is_used_once unique (bucket, path),
  -- Whoever may write here has the janitor delete nothing of an application's.
  constraint path_is_in_its_users_folder check (
    path ~ ('^(generated_images|video-files)/' || user_id::text || '/[-.0-9A-Za-z]{1,100}$')
  )
) with (fillfactor = 70, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.05);

comment on table vidgen.uploads is
  'What may lie in Storage uncharged: uploads that have begun and are neither charged nor removed.';
comment on column vidgen.uploads.taken_at is 'Since when a worker removes the object.';
comment on column vidgen.uploads.removed_at is
  'When it was removed first. It is looked for again for a day: an upload of a worker that was frozen '
  'or cut off may arrive late.';

revoke all on vidgen.uploads from public, anon, authenticated, service_role, vidgen_worker;
grant select, delete on vidgen.uploads to vidgen_worker;
grant insert (id, task_id, user_id, stage, attempt, worker_id, bucket, path)
  on vidgen.uploads to vidgen_worker;

-- Whose object is it? One probe each. Hash: a path is only ever asked for as a whole, and an index of
-- its 90 characters would be as large as the table's.
create index video_generation_tasks_by_video on public.video_generation_tasks using hash (video_path)
  where video_path is not null;
create index video_generation_tasks_by_image on public.video_generation_tasks using hash (image_path)
  where image_path is not null;

-- Uploads of the version before had no row: of what was being stored the place is known. Such a worker
-- may still be at it, so it is looked for a day later; what it has charged by then is left alone.
insert into vidgen.uploads
  (id, task_id, user_id, stage, attempt, worker_id, bucket, path, since, look_at)
select gen_random_uuid(), c.task_id, t.user_id, c.stage, t.attempt,
       coalesce(t.worker_id, '00000000-0000-0000-0000-000000000000'),
       case c.stage when 'image' then s.images_bucket else s.videos_bucket end,
       case c.stage
         when 'image' then 'generated_images/' || t.user_id::text || '/' || c.generation_id::text || '.png'
         else 'video-files/' || t.user_id::text || '/' || c.generation_id::text || '.mp4'
       end,
       now(), now() + interval '1 day'
  from vidgen.checkpoints as c
  join public.video_generation_tasks as t on t.id = c.task_id
 cross join vidgen.settings as s
 where c.state = 'storing';

-- What policies ask. As the owner, because no client reads what is private; about the caller only, or
-- about a place that the caller has named. The most expensive condition: asked last.

create function vidgen.our_buckets() returns text[]
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$ select array[s.images_bucket, s.videos_bucket] from vidgen.settings as s $$;

-- Whether a task has been charged for this object, whoever's.
create function vidgen.is_charged(of_path text) returns boolean
language sql stable security definer cost 1000 set search_path = pg_catalog, pg_temp
as $$
  select exists (
           select from public.video_generation_tasks as t where t.video_path = is_charged.of_path
         )
      or exists (
           select from public.video_generation_tasks as t where t.image_path = is_charged.of_path
         );
$$;

-- Whether it is the caller's. A path is in his task's row only once the same statement has charged it.
create function vidgen.is_paid(of_bucket text, of_path text) returns boolean
language sql stable security definer cost 1000 set search_path = pg_catalog, pg_temp
as $$
  select exists (
           select
             from public.video_generation_tasks as t
            cross join vidgen.settings as s
            where t.video_path = is_paid.of_path and t.user_id = (select vidgen.signed_in_user())
              and s.videos_bucket = is_paid.of_bucket
         )
      or exists (
           select
             from public.video_generation_tasks as t
            cross join vidgen.settings as s
            where t.image_path = is_paid.of_path and t.user_id = (select vidgen.signed_in_user())
              and s.images_bucket = is_paid.of_bucket
         );
$$;

create function vidgen.is_unpaid(of_bucket text, of_path text) returns boolean
language sql stable security definer cost 1000 set search_path = pg_catalog, pg_temp
as $$
  select exists (
           select from vidgen.uploads as u
            where u.bucket = is_unpaid.of_bucket and u.path = is_unpaid.of_path
         )
     and not vidgen.is_charged(is_unpaid.of_path);
$$;

revoke all on function vidgen.our_buckets() from public, anon, authenticated, service_role;
revoke all on function vidgen.is_charged(text) from public, anon, authenticated, service_role;
revoke all on function vidgen.is_paid(text, text) from public, anon, authenticated, service_role;
revoke all on function vidgen.is_unpaid(text, text) from public, anon, authenticated, service_role;
grant execute on function vidgen.is_charged(text) to vidgen_worker;
grant execute on function vidgen.our_buckets() to anon, authenticated;
grant execute on function vidgen.is_paid(text, text) to authenticated;
grant execute on function vidgen.is_unpaid(text, text) to anon, authenticated;

do $$
begin
  if to_regclass('storage.objects') is not null then
    drop policy if exists "owners read their generated videos" on storage.objects;
    create policy "owners read what they have paid for" on storage.objects
      for select to authenticated
      using (
        bucket_id = any ((select vidgen.our_buckets())::text[])
        and split_part(name, '/', 2) = (select vidgen.signed_in_user())::text
        and vidgen.is_paid(bucket_id, name)
      );
    -- An application may let users read the whole bucket, or their whole folder.
    create policy "nobody reads what is not paid for" on storage.objects
      as restrictive for select to anon, authenticated
      using (
        bucket_id <> all ((select vidgen.our_buckets())::text[])
        or not vidgen.is_unpaid(bucket_id, name)
      );
  else
    raise notice 'no storage schema here: clients can''t sign their own video_path';
  end if;
end
$$;

-- The paths in a task's row are what opens an object to its owner. They lie in his own folder, and once
-- they are there they stay, whoever writes.
create function vidgen.path_stays() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if (old.image_path is not null and new.image_path is distinct from old.image_path)
     or (old.video_path is not null and new.video_path is distinct from old.video_path) then
    raise exception 'task %: its stored files stay where they are', old.id
      using errcode = 'check_violation';
  end if;
  if not starts_with(new.image_path, 'generated_images/' || new.user_id::text || '/')
     or not starts_with(new.video_path, 'video-files/' || new.user_id::text || '/') then
    raise exception 'task %: its files lie in its user''s folder', old.id
      using errcode = 'check_violation';
  end if;
  return new;
end
$$;

create trigger path_stays
  before update of user_id, image_path, video_path on public.video_generation_tasks
  for each row
  when (
    new.image_path is distinct from old.image_path or new.video_path is distinct from old.video_path
    or new.user_id <> old.user_id
  )
  execute function vidgen.path_stays();

-- Whoever may write here has the janitor remove nothing but what this attempt is about to store.
create function vidgen.upload_is_due() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not vidgen.is_operator() and not exists (
    select
      from public.video_generation_tasks as t
     cross join vidgen.settings as s
     where t.id = new.task_id and t.user_id = new.user_id and t.attempt = new.attempt
       and t.worker_id = new.worker_id and t.status = 'processing'
       and new.bucket in (s.images_bucket, s.videos_bucket)
  ) then
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

revoke all on function vidgen.upload_is_due() from public, anon, authenticated, service_role;

-- A batch of objects to be removed now: of attempts that are over. An attempt that is over stays so:
-- its number is not used again, so that no charge of it can follow. What has been charged has no row,
-- or (uploads of the version before) loses it here. One worker at a time, for five minutes.
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

-- They are removed. Looked for again a minute later, then after twice the time, and so on for a day.
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

revoke all on function vidgen.path_stays() from public, anon, authenticated, service_role;
revoke all on function vidgen.take_uploads(integer) from public, anon, authenticated, service_role;
revoke all on function vidgen.uploads_removed(uuid[]) from public, anon, authenticated, service_role;
grant execute on function vidgen.take_uploads(integer) to vidgen_worker;
grant execute on function vidgen.uploads_removed(uuid[]) to vidgen_worker;
