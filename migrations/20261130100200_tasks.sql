-- The contract with clients: public.video_generation_tasks.
--
-- Everything here may be seen by the row's owner. Realtime sends an event for every UPDATE, so
-- leases, heartbeats, checkpoints, submissions and gates never touch this table.

set local search_path = '';

-- The two longest CHECKs of a task's row call functions: each statement that writes the table parses the
-- text of every CHECK anew, but a function only once per session. Every role that may write the table calls
-- them, an application's own role too.
create function vidgen.times_can_be_read(
  run_after timestamptz, expected_at timestamptz, created_at timestamptz, started_at timestamptz,
  completed_at timestamptz, cancel_requested_at timestamptz, video_url_expires_at timestamptz
) returns boolean
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  -- Most programs can't read years above 9999: one such row makes every list with it fail.
  return greatest(
           run_after, expected_at, created_at, started_at, completed_at, cancel_requested_at,
           video_url_expires_at
         ) < '9999-01-02 00:00:00+00'
     and least(
           run_after, expected_at, created_at, started_at, completed_at, cancel_requested_at,
           video_url_expires_at
         ) > '1900-01-01 00:00:00+00';
end
$$;

create function vidgen.texts_are_at_most_40000_bytes(
  current_step text, message text, error_code text, error_message text, resolution text,
  video_ratio text, image_ratio text, image_path text, image_url text, video_path text,
  video_url text, error jsonb
) returns boolean
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  return greatest(
           octet_length(current_step), octet_length(message), octet_length(error_code),
           octet_length(error_message), octet_length(resolution), octet_length(video_ratio),
           octet_length(image_ratio), octet_length(image_path), octet_length(image_url),
           octet_length(video_path), octet_length(video_url), pg_column_size(error)
         ) <= 40000;
end
$$;

create table public.video_generation_tasks (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null default auth.uid(),
  scene_id uuid references public.video_scenes (id) on delete set null,
  status text not null default 'pending',
  lane smallint not null default 1,
  priority smallint not null default 0,
  failures smallint not null default 0,
  max_failures smallint not null default 3,
  attempt integer not null default 0,
  progress double precision not null default 0,
  stage_progress double precision,
  current_step text not null default 'Initializing',
  message text not null default 'Video generation task started',
  error_code text,
  error_message text,
  error jsonb,
  resolution text,
  video_ratio text,
  image_ratio text,
  image_path text,
  image_url text,
  video_path text,
  video_url text,
  video_url_expires_at timestamptz,
  worker_id uuid,
  cancel_requested_at timestamptz,
  run_after timestamptz not null default now(),
  expected_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  started_at timestamptz,
  completed_at timestamptz,
  cut jsonb,
  film_id uuid references public.video_generation_tasks (id) on delete set null,
  reference text,

  constraint status_is_known
    check (status in ('pending', 'processing', 'completed', 'failed', 'cancelled')),
  constraint priority_is_from_minus_10_to_10 check (priority between -10 and 10),
  constraint failures_are_within_their_limit
    check (failures >= 0 and max_failures between 1 and 100),
  constraint attempt_is_not_negative check (attempt >= 0),
  constraint progress_is_a_percentage check (progress between 0 and 100),
  constraint stage_progress_is_a_percentage check (stage_progress between 0 and 100),
  constraint only_a_running_task_is_expected check (expected_at is null or status = 'processing'),
  constraint processing_has_a_worker check (status <> 'processing' or worker_id is not null),
  constraint waiting_has_no_worker check (status <> 'pending' or worker_id is null),
  constraint completed_has_a_video_path_or_is_a_film
    check (status <> 'completed' or video_path is not null or cut is not null),
  constraint completed_is_at_100_percent check (status <> 'completed' or progress = 100),
  constraint failed_has_an_error_code check ((status = 'failed') = (error_code is not null)),
  constraint error_goes_with_its_code check (
    (error_code is null) = (error is null) and (error_code is null) = (error_message is null)
  ),
  constraint ended_has_completed_at check (
    (status in ('completed', 'failed', 'cancelled')) = (completed_at is not null)
  ),
  constraint a_film_has_no_scene check (cut is null or scene_id is null),
  constraint a_cut_is_an_object_of_32_kilobytes
    check (jsonb_typeof(cut) = 'object' and octet_length(cut::text) <= 32768),
  -- Then no statement about the models of lane 1 ever meets a film, and only workers that render meet one
  -- that has outputs.
  constraint a_film_has_lane_0_or_with_outputs_minus_1 check (
    (cut is not null) = (lane <= 0) and coalesce(cut ? 'outputs', false) = (lane = -1) and lane >= -1
  ),
  constraint a_reference_has_at_most_200_characters check (length(reference) <= 200),
  constraint claimed_has_started_at check (attempt = 0 or started_at is not null),
  constraint times_can_be_read check (
    vidgen.times_can_be_read(
      run_after, expected_at, created_at, started_at, completed_at, cancel_requested_at,
      video_url_expires_at
    )
  ),
  constraint texts_are_at_most_40000_bytes check (
    vidgen.texts_are_at_most_40000_bytes(
      current_step, message, error_code, error_message, resolution, video_ratio, image_ratio,
      image_path, image_url, video_path, video_url, error
    )
  )
) with (
  -- Progress updates the row: free space allows HOT updates, and vacuum runs before dead rows accumulate.
  fillfactor = 70,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_threshold = 500,
  autovacuum_analyze_scale_factor = 0.02,
  autovacuum_analyze_threshold = 500,
  autovacuum_vacuum_cost_delay = 1
);

alter table public.video_generation_tasks enable row level security;

comment on table public.video_generation_tasks is
  'One order of one user for one video of one scene, or for a film of several. Insert a row, then watch it.';
comment on column public.video_generation_tasks.lane is
  'Which pair of models makes it; 0: none, it is a film; -1: a film with outputs.';
comment on column public.video_generation_tasks.cut is
  'A film: which scenes it is made of. Null: the task of one scene. It never changes.';
comment on column public.video_generation_tasks.reference is
  'The application''s own word for this order, an order number for example. The worker only repeats it.';
comment on column public.video_generation_tasks.film_id is
  'The film that ordered this task: filter Realtime by it.';
comment on column public.video_generation_tasks.expected_at is
  'The probable time of completion; null while that is unknown. No promise.';
comment on column public.video_generation_tasks.video_path is
  'Object name in the videos bucket: the permanent reference. Sign it again when video_url has expired.';

-- A user's waiting tasks of a lane in their order. The claim probes the index with (user, lane, priority)
-- and run_after up to now, so that it never reads rows for later.
create index video_generation_tasks_waiting on public.video_generation_tasks
  (user_id, lane, priority desc, run_after, created_at) where status = 'pending';
-- The tasks of a worker, for take-over, heartbeat and drain.
create index video_generation_tasks_running on public.video_generation_tasks
  (worker_id) where status = 'processing';
-- Cancels that wait for a worker to end something at the provider.
create index video_generation_tasks_to_cancel on public.video_generation_tasks
  (cancel_requested_at) where status = 'pending' and cancel_requested_at is not null;
-- The owner's list, newest first; its first column is the policy's.
create index video_generation_tasks_by_user on public.video_generation_tasks
  (user_id, created_at desc);
-- Unfinished tasks of a user: limits.
create index video_generation_tasks_unfinished on public.video_generation_tasks
  (user_id) where status = 'processing';
-- Ended tasks by the time of their end: a partial index, because running rows have none. Progress writes stay
-- HOT, because none of these columns changes with them.
create index video_generation_tasks_ended on public.video_generation_tasks (completed_at)
  include (status, error_code, started_at, lane) where completed_at is not null;
-- A scene may have several tasks: it shows the status and the clip of its newest task that runs or has
-- stored a clip. A task that failed, or that ends late, removes nothing.
create index video_generation_tasks_of_scene on public.video_generation_tasks
  (scene_id, created_at desc);
-- What a film has ordered.
create index video_generation_tasks_of_film on public.video_generation_tasks (film_id)
  where film_id is not null;
-- The owner of an object, by one probe each. The index is a hash: only whole paths are looked up, and a
-- B-tree of their 90 characters would be as large as the table.
create index video_generation_tasks_by_video on public.video_generation_tasks using hash (video_path)
  where video_path is not null;
create index video_generation_tasks_by_image on public.video_generation_tasks using hash (image_path)
  where image_path is not null;

-- A row is born pending with attempt 0, whatever role inserts it, and can't be due in the past: else it
-- would go ahead of its owner's other tasks. Most programs can't read 'infinity' or the year 294276 (Python
-- ends at 9999): one such row makes every list with it fail, an operator's too.
create function vidgen.task_is_born() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if new.status <> 'pending' or new.attempt <> 0 or new.worker_id is not null then
    raise exception 'a task is born pending, with attempt 0 and without a worker (status %, attempt %)',
      new.status, new.attempt
      using errcode = 'check_violation',
            hint = 'Insert id, scene_id or cut, user_id, priority and run_after only.';
  end if;
  if new.cut is not null then
    new.lane := case when new.cut ? 'outputs' then -1 else 0 end;
    if new.lane = -1 then
      new.message := 'Waiting for a worker that cuts films';
    end if;
  end if;
  new.run_after := least(greatest(new.run_after, now()), '9999-01-01 00:00:00+00');
  return new;
end
$$;

create trigger task_is_born
  before insert on public.video_generation_tasks
  for each row
  when (
    new.status <> 'pending' or new.attempt <> 0 or new.worker_id is not null
    or new.run_after < now() or new.run_after > '9999-01-01 00:00:00+00' or new.cut is not null
  )
  execute function vidgen.task_is_born();

-- Every legal change of a status, for every role, service_role too. A task that has ended keeps our columns,
-- and only ours: an application's own columns may change (a title, whether the clip was seen), and a
-- generated column has no value yet when this trigger compares.
create function vidgen.task_changes() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  tenth interval := (old.expected_at - now()) / 10;
begin
  if new.attempt < old.attempt then
    raise exception 'task %: attempt never goes down (% to %)', old.id, old.attempt, new.attempt
      using errcode = 'check_violation';
  end if;
  if new.cut is distinct from old.cut then
    raise exception 'task %: its cut stays as it was ordered', old.id
      using errcode = 'check_violation', hint = 'Insert a new task with the other cut.';
  end if;
  if new.film_id is not null and new.film_id is distinct from old.film_id then
    raise exception 'task %: no other film has ordered it', old.id using errcode = 'check_violation';
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
    -- Two exceptions: a scene that is deleted, and a URL that is signed again.
    if (
      new.id, new.user_id, new.lane, new.priority, new.failures, new.max_failures, new.attempt, new.progress,
      new.stage_progress, new.current_step, new.message, new.error_code, new.error_message, new.error,
      new.resolution, new.video_ratio, new.image_ratio, new.image_path, new.image_url, new.video_path,
      new.worker_id, new.cancel_requested_at, new.run_after, new.expected_at, new.created_at,
      new.started_at, new.completed_at, new.reference
    ) is distinct from (
      old.id, old.user_id, old.lane, old.priority, old.failures, old.max_failures, old.attempt, old.progress,
      old.stage_progress, old.current_step, old.message, old.error_code, old.error_message, old.error,
      old.resolution, old.video_ratio, old.image_ratio, old.image_path, old.image_url, old.video_path,
      old.worker_id, old.cancel_requested_at, old.run_after, old.expected_at, old.created_at,
      old.started_at, old.completed_at, old.reference
    ) then
      raise exception 'task %: it has ended (%) and can''t be changed', old.id, old.status
        using errcode = 'check_violation',
              hint = 'Try again with retry_video_generation_task(id), or insert a new task.';
    end if;
  end if;

  -- Apart, because the question for the roles reads a catalog: most writes change no status.
  if old.status <> new.status and (
       new.status in ('completed', 'failed', 'cancelled') or old.status in ('failed', 'cancelled')
     ) then
    if not pg_has_role(current_user, 'service_role', 'usage')
       and not pg_has_role(
         current_user, (select c.relowner from pg_class as c where c.oid = tg_relid), 'usage'
       ) then
      if new.status <> 'pending' then
        -- A worker's role can't set an end in the past, so that a task is not pruned too early.
        new.completed_at := now();
      elsif pg_has_role(current_user, 'vidgen_worker', 'usage') then
        -- Only retry_video_generation_task, which counts retries, or an operator may restart a task that has
        -- ended: the worker's role can't cause a second charge.
        raise exception 'task %: it has ended (%), and a worker does not begin it again',
          old.id, old.status
          using errcode = 'insufficient_privilege',
                hint = 'Try again with retry_video_generation_task(id).';
      end if;
    end if;
  end if;
  if old.status in ('pending', 'processing') and new.status in ('pending', 'processing') then
    -- A late or resumed writer must not move a visible progress bar backwards.
    new.progress := greatest(new.progress, old.progress);
  end if;
  if new.status <> 'processing' then
    new.expected_at := null;
  elsif new.expected_at is not null and old.expected_at is not null then
    -- The shown estimate must not jump: one write moves it by at most a tenth of the time left. When that
    -- time is over, the estimate is unknown until the next write.
    new.expected_at := case
      when tenth > interval '0' then
        least(greatest(new.expected_at, old.expected_at - tenth), old.expected_at + tenth)
    end;
  end if;
  -- Clients keep the row with the greater one: two writes of one transaction must not look like one.
  new.updated_at := greatest(now(), old.updated_at + interval '1 microsecond');
  return new;
end
$$;

create trigger task_changes
  before update on public.video_generation_tasks
  for each row execute function vidgen.task_changes();

-- The paths in a task's row open an object to its owner. They must be in the owner's folder, and no role can
-- change them once they are set.
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

-- Presets: what an output costs and looks like, by name. Of kind 'output' each is made as the worker's own
-- table says (vidgen_worker/films/presets.py): its row shows that, and sets the price.
create table public.video_presets (
  name text primary key,
  kind text not null,
  title text not null,
  description text not null,
  spec jsonb not null,
  image_credits integer,
  second_credits integer,
  film_second_credits integer,
  position smallint not null,
  retired_at timestamptz,
  constraint kind_is_known check (kind in ('clip', 'output')),
  constraint spec_is_an_object check (jsonb_typeof(spec) = 'object'),
  constraint prices_go_with_the_kind check (
    case kind
      when 'clip' then film_second_credits is null
      else film_second_credits is not null and image_credits is null and second_credits is null
    end
  ),
  constraint prices_are_from_0_to_100000 check (
    image_credits between 0 and 100000 and second_credits between 0 and 100000
    and film_second_credits between 0 and 100000
  )
);

alter table public.video_presets enable row level security;

comment on table public.video_presets is
  'Named specifications with their prices: of clips, and of the outputs of films.';
comment on column public.video_presets.film_second_credits is
  'Credits for each second of an output; a begun second and a still count as one.';
comment on column public.video_presets.retired_at is
  'Since when it is no longer offered; what was ordered before is still made.';

insert into public.video_presets (name, kind, title, description, spec, film_second_credits, position) values
  ('web', 'output', 'Web', 'MP4 for every player, as filmed',
   '{"formats": [{"name": "mp4", "media_type": "video/mp4"}], "usual": 1}', 0, 1),
  ('av1', 'output', 'Web, AV1', 'AV1 for a second <source>',
   '{"formats": [{"name": "mp4", "media_type": "video/mp4"}], "usual": 1, "target": "good"}', 0, 2),
  ('vertical', 'output', 'Vertical', '9:16, cropped',
   '{"formats": [{"name": "mp4", "media_type": "video/mp4"}],
     "usual": 1, "box": [1080, 1920], "fit": "cover", "target": "good"}', 0, 3),
  ('square', 'output', 'Square', '1:1, cropped',
   '{"formats": [{"name": "mp4", "media_type": "video/mp4"}],
     "usual": 1, "box": [1080, 1080], "fit": "cover", "target": "good"}', 0, 4),
  ('story', 'output', 'Story', '9:16, whole, before a blurred picture of itself',
   '{"formats": [{"name": "mp4", "media_type": "video/mp4"}],
     "usual": 1, "box": [1080, 1920], "fit": "blur", "target": "good"}', 0, 5),
  ('small', 'output', 'Small', 'MP4 of 2 MB at most, for chat and mail',
   '{"formats": [{"name": "mp4", "media_type": "video/mp4"}],
     "usual": 1, "box": [854, 854], "target": "small", "most_bytes": 2000000}', 0, 6),
  ('poster', 'output', 'Poster', 'Still for the <video> tag',
   '{"formats": [{"name": "jpeg", "media_type": "image/jpeg"}, {"name": "avif", "media_type": "image/avif"}],
     "usual": 2, "overlays": false}', 0, 7),
  ('preview', 'output', 'Preview', 'Three silent seconds',
   '{"formats": [{"name": "mp4", "media_type": "video/mp4"}, {"name": "avif", "media_type": "image/avif"},
                 {"name": "gif", "media_type": "image/gif"}],
     "usual": 2, "box": [480, 480], "most_fps": 12, "seconds": 3, "silent": true, "target": "good"}', 0, 8),
  ('captions', 'output', 'Captions', 'WebVTT',
   '{"formats": [{"name": "vtt", "media_type": "text/vtt"}], "usual": 1}', 0, 9),
  ('audio', 'output', 'Audio', 'The sound alone, as AAC',
   '{"formats": [{"name": "m4a", "media_type": "audio/mp4"}], "usual": 1}', 0, 10),
  ('prores', 'output', 'ProRes', 'ProRes 422 for editors',
   '{"formats": [{"name": "mov", "media_type": "video/quicktime"}], "usual": 1}', 0, 11);

-- The stored outputs of films. An object never changes: its path has a part of its content's key in it.
create table public.video_renditions (
  film_id uuid not null references public.video_generation_tasks (id) on delete cascade,
  name text not null,
  -- The film's: neither a policy nor Realtime has to look it up.
  user_id uuid not null,
  position smallint not null,
  preset text not null,
  media_type text not null,
  bucket text not null,
  path text not null,
  size bigint not null,
  width integer,
  height integer,
  seconds double precision,
  sha256 text not null,
  quality jsonb,
  public_url text,
  created_at timestamptz not null default now(),
  primary key (film_id, name),
  constraint a_place_has_one_rendition unique (path, bucket),
  constraint numbers_are_not_negative check (
    position >= 0 and size >= 0 and width > 0 and height > 0 and seconds >= 0
  ),
  -- The path opens an object to its owner, and names what is deleted with the film.
  constraint path_is_in_the_film_s_folder check (
    starts_with(path, 'video-files/' || user_id || '/' || film_id || '/' || name || '-')
    and length(path) <= 300
    and translate(
      split_part(path, '/', 4), '-_.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz', ''
    ) = ''
    and split_part(path, '/', 5) = ''
  )
);

alter table public.video_renditions enable row level security;

comment on table public.video_renditions is
  'The stored outputs of a film, in the order of its cut. Sign `path` in the videos bucket.';
comment on column public.video_renditions.seconds is 'How long it plays; null: a still.';
comment on column public.video_renditions.quality is
  'What was measured where the output has a target of quality; else null.';

-- Only a worker's attempt at the film records one, and only in the videos bucket: the objects are signed for
-- the film's owner and removed with the film, with the service key.
create function vidgen.rendition_is_ours() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not exists (
    select
      from public.video_generation_tasks as t
     cross join vidgen.settings as s
     where t.id = new.film_id and t.user_id = new.user_id and t.status = 'processing' and t.lane = -1
       and s.videos_bucket = new.bucket
  ) and not vidgen.is_operator() then
    raise exception 'film %: no worker is about to record % in bucket %', new.film_id, new.path, new.bucket
      using errcode = 'insufficient_privilege';
  end if;
  return new;
end
$$;

create trigger rendition_is_ours
  before insert or update on public.video_renditions
  for each row execute function vidgen.rendition_is_ours();

-- Rights.

call vidgen.revoke_from_strangers();

grant execute on function
  vidgen.times_can_be_read(
    timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz, timestamptz
  ),
  vidgen.texts_are_at_most_40000_bytes(
    text, text, text, text, text, text, text, text, text, text, text, jsonb
  )
  to public;

revoke all on
  public.video_generation_tasks, public.video_presets, public.video_renditions
  from public, anon, authenticated, service_role, vidgen_worker;

revoke all on function
  vidgen.task_is_born(), vidgen.task_changes(), vidgen.path_stays(), vidgen.rendition_is_ours()
  from public, anon, authenticated, service_role;

grant select on
  public.video_generation_tasks, public.video_presets, public.video_renditions
  to authenticated;
grant insert (
  id, user_id, scene_id, cut, priority, run_after, reference
) on public.video_generation_tasks to authenticated;
grant select, insert, update, delete on
  public.video_generation_tasks, public.video_presets
  to service_role;
grant select on public.video_renditions to service_role;
grant select on
  public.video_generation_tasks, public.video_presets, public.video_renditions
  to vidgen_worker;
grant insert (
  film_id, name, user_id, position, preset, media_type, bucket, path, size, width, height, seconds, sha256,
  quality
) on public.video_renditions to vidgen_worker;
grant update (
  position, preset, media_type, bucket, path, size, width, height, seconds, sha256, quality, public_url
) on public.video_renditions to vidgen_worker;
grant update (
  status, failures, attempt, progress, stage_progress, current_step, message, error_code,
  error_message, error, resolution, video_ratio, image_ratio, image_path, image_url, video_path,
  video_url, video_url_expires_at, worker_id, run_after, expected_at, started_at, completed_at
) on public.video_generation_tasks to vidgen_worker;

create policy "owners see their tasks" on public.video_generation_tasks
  for select to authenticated using ((select vidgen.signed_in_user()) = user_id);
-- owns_scene, because a subquery or the foreign key would tell a stranger which scenes exist.
create policy "owners order videos of their scenes" on public.video_generation_tasks
  for insert to authenticated
  with check (
    (select vidgen.signed_in_user()) = user_id and (cut is not null or vidgen.owns_scene(scene_id))
  );
create policy "signed-in users see presets" on public.video_presets
  for select to authenticated using (true);
create policy "owners see their renditions" on public.video_renditions
  for select to authenticated using ((select vidgen.signed_in_user()) = user_id);
create policy "the worker sees all presets" on public.video_presets
  for select to vidgen_worker using (true);
create policy "the worker sees all renditions" on public.video_renditions
  for select to vidgen_worker using (true);
create policy "the worker records renditions" on public.video_renditions
  for insert to vidgen_worker with check (true);
create policy "the worker records renditions anew" on public.video_renditions
  for update to vidgen_worker using (true) with check (true);
create policy "the worker sees all tasks" on public.video_generation_tasks
  for select to vidgen_worker using (true);
create policy "the worker writes all tasks" on public.video_generation_tasks
  for update to vidgen_worker using (true) with check (true);

update vidgen.settings set schema_version = '20261130100200', oldest_program = '20261130100200';
