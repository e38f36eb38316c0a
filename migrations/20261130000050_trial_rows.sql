-- A row that would take what a task writes in its life, found out for free.
--
-- Rows that refuse (an application's trigger, check or key) close a gate, because after three in a
-- row it may be all rows. Whether it is can't be told by those that are set aside: they may refuse for
-- ever. So a task that waits is walked to its end in a savepoint, which is then taken back.

alter table vidgen.settings alter column schema_version set default '20261130000050';
update vidgen.settings set schema_version = '20261130000050';

-- Returns what the row refused, null where it takes everything, nothing ('') where nothing was learned:
-- a client holds it. Triggers run as they would, and what they did in this database is taken back.
create function vidgen.try_row(of_task uuid, for_worker uuid) returns text
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  -- Slow triggers: the statement tries what it can in two seconds.
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

revoke all on function vidgen.try_row(uuid, uuid) from public, anon, authenticated, service_role;
grant execute on function vidgen.try_row(uuid, uuid) to vidgen_worker;
