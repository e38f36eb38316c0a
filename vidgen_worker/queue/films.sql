-- Films: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.
-- `mine` is the fence: see checkpoints.sql.

-- wake_films --
-- Take the mail about parts that have ended: films that wait for nothing more are due (see the function).
select film_id, refused, more, due, renders_due from vidgen.wake_films(1000)

-- claim_films --
-- Begin an attempt on up to `most` films of one lane by turns, as `claim` does for tasks of lane 1: no model,
-- slot or gate concerns a film. A suspect runs alone, on an idle worker, before anything else. Each row says whether there
-- is more; where nothing began there is one row that says only this.
with me as materialized (
  -- A worker declared dead claims nothing.
  select w.id from vidgen.workers as w where w.id = %(worker_id)s and w.dead_at is null
),
alone as materialized (
  select begun.*
    from (
      select s.task_id
        from me, vidgen.suspects as s
       where s.lane = %(lane)s and %(idle)s
       order by s.run_after
      offset 0
    ) as first
   cross join lateral vidgen.begin_attempts(array[first.task_id], %(worker_id)s, false) as begun
   limit 1
),
line as materialized (
  select user_id, waiting_since, arrivals
    from vidgen.turns
   where lane = %(lane)s and waiting_since is not null
     and exists (select from me) and not exists (select from alone)
   order by waiting_since
   limit %(most)s
     for update skip locked
),
share as materialized (
  -- Orders of one user wait for his lock, one after the other: more of his at once would only wait.
  select least(ceil(%(most)s::numeric / greatest(count(*), 1)), 4)::integer as rows from line
),
waiting as materialized (
  select line.user_id, line.waiting_since, false as at_cap, due.id, due.rank
    from line
   cross join lateral (
     -- use due_of_user --
   ) as due
),
chosen as materialized (
  select w.id from waiting as w
   where w.rank <= (select rows from share)
   order by w.rank, w.waiting_since
   limit %(most)s
),
begun as materialized (
  select b.*, false as alone
    from vidgen.begin_attempts(array(select id from chosen), %(worker_id)s, false) as b
  union all
  select alone.*, true from alone
),
-- use turns --
select c.*, rest.in_line as more, true as film, %(lane)s = -1 as renders,
       extract(epoch from clock_timestamp() - greatest(c.run_after, c.created_at))::float as waited
  from rest
  left join begun as c on true
 order by c.run_after, c.created_at

-- load_film --
-- What an attempt at a film starts from: its cut, how many of its parts there are and how many have not
-- ended, the first that ended without a clip, and how the film is to end where that is known already. Of a
-- film with outputs also the clip of each part, and the renditions that are stored.
select t.cut, t.user_id, t.cancel_requested_at is not null as cancel_requested,
       exists (select from vidgen.films as f where f.film_id = t.id) as ordered,
       counted.parts, counted.unfinished, counted.completed,
       bad.position as bad_position, bad.task_id as bad_task, bad.code as bad_code,
       case
         when refusal.attempt is null or refusal.attempt = t.attempt - 1 then refusal.verdict
       end as verdict,
       coalesce(clips.found, '[]') as clips,
       coalesce((
         select jsonb_object_agg(r.name, r.path) from public.video_renditions as r where r.film_id = t.id
       ), '{}') as stored
  from public.video_generation_tasks as t
 cross join lateral (
   select count(*) as parts,
          count(*) filter (where part.status in ('pending', 'processing')) as unfinished,
          count(*) filter (where part.status = 'completed') as completed
     from vidgen.parts as p
    cross join lateral (
      select (
        select one.status from public.video_generation_tasks as one where one.id = p.task_id
      ) as status
      offset 0
    ) as part
    where p.film_id = t.id
 ) as counted
  left join lateral (
    select p.position, p.task_id,
           case
             when part.status is null then 'DELETED'
             else coalesce(part.error_code, upper(part.status))
           end as code
      from vidgen.parts as p
      left join public.video_generation_tasks as part on part.id = p.task_id
     where p.film_id = t.id and part.status is distinct from 'completed'
       and coalesce(part.status not in ('pending', 'processing'), true)
     order by p.position
     limit 1
  ) as bad on true
  left join lateral (
    select jsonb_agg(clip.found order by p.position) as found
      from vidgen.parts as p
     cross join lateral (
       select (
         -- The checkpoint of a task of long ago is gone: then nobody knows its size and digest.
         select jsonb_build_object(
                  'bucket', coalesce(c.bucket, s.videos_bucket), 'path', one.video_path, 'size', c.size,
                  'sha256', c.sha256
                )
           from public.video_generation_tasks as one
          cross join vidgen.settings as s
           left join vidgen.checkpoints as c on c.task_id = one.id and c.path = one.video_path
          where one.id = p.task_id and one.status = 'completed' and one.video_path is not null
       ) as found
       offset 0
     ) as clip
     where p.film_id = t.id
  ) as clips on t.lane = -1
  left join vidgen.refusals as refusal on refusal.task_id = t.id
 where
   -- use fence --

-- order_parts --
-- Order the parts of a film, all or none, with their credits held (see the function).
select refused, said, field
  from vidgen.order_parts(%(task_id)s, %(attempt)s, %(worker_id)s, %(credits)s)

-- seconds_of_parts --
-- The ordered seconds of each part, before they are ordered too (see the function).
with mine as materialized (
  select t.id
    from public.video_generation_tasks as t
   where
     -- use fence --
     and t.lane = -1
)
select coalesce(array_agg(part.seconds::float order by part.place), '{}') as seconds
  from mine
  left join lateral vidgen.seconds_of_parts(mine.id) as part on true
having count(*) > 0

-- wait_for_parts --
-- The end of an attempt whose film waits for its parts: pending, and due when the last of them ends. It leaves
-- mail of its own: a part may have ended after this attempt looked, and its mail was of no use while the
-- film was at work. Not where its owner has asked to cancel.
with mine as materialized (
  select t.id, t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     and t.cut is not null
     for no key update
),
put_back as (
  update public.video_generation_tasks as t
     set status = 'pending', worker_id = null, stage_progress = null,
         run_after = '9999-01-01 00:00:00+00', current_step = 'Waiting for scenes',
         message = %(message)s
    from mine
   where t.id = mine.id and not mine.cancel
  returning t.id, t.status
),
further as (
  -- It has come further than where workers died.
  update vidgen.budgets as b
     set crashes = 0, suspect = false, waiting_since = null
    from mine
   where b.task_id = mine.id
),
mailed as (
  insert into vidgen.endings (film_id) select mine.id from mine where not mine.cancel
)
select mine.cancel,
       case when not mine.cancel and put_back.status is distinct from 'pending'
         then vidgen.row_stays(mine.id)
       end as stays,
       case when not mine.cancel then vidgen.wake('vidgen_tasks', 'film') end as woken
  from mine
  left join put_back on put_back.id = mine.id

-- begin_rendering --
-- All parts have ended, and the film's files are made: its row says so. Not where its owner has asked to
-- cancel.
with mine as materialized (
  select t.id, t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     and t.lane = -1
     for no key update
),
shown as (
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, %(progress)s), current_step = %(current_step)s,
         message = %(message)s, stage_progress = null
    from mine
   where t.id = mine.id and not mine.cancel
)
select mine.cancel from mine

-- begin_rendition --
-- Before the upload of a rendition: its place in Storage, so that what is not recorded after all is removed
-- there. The place follows from what is in the file, so a later attempt comes to the same one: it takes over
-- the earlier record, unless the object is being removed just now (`busy`). Not where the film's owner has
-- asked to cancel.
with mine as materialized (
  select t.id, t.user_id, t.attempt, t.worker_id, t.cancel_requested_at is not null as cancel
    from public.video_generation_tasks as t
   where
     -- use fence --
     and t.lane = -1
     for no key update
),
begun as (
  insert into vidgen.uploads as u (id, task_id, user_id, attempt, worker_id, bucket, path)
  select gen_random_uuid(), mine.id, mine.user_id, mine.attempt, mine.worker_id, %(bucket)s, %(path)s
    from mine
   where not mine.cancel
  on conflict on constraint a_place_is_used_once do update
     set attempt = excluded.attempt, worker_id = excluded.worker_id, taken_at = null, removed_at = null
   where u.task_id = excluded.task_id
     and (u.taken_at is null or u.taken_at not between now() - interval '5 minutes' and now())
  returning u.id
)
select mine.cancel, not mine.cancel and not exists (select from begun) as busy
  from mine

-- finish_rendition --
-- A rendition is stored: its row, the charge of the output that it is (written first; its primary key lets an
-- output be charged once), the settle from the film's hold, and the film's row. A repeat finds the rendition
-- and charges nothing. One that was made before of other clips or assets is replaced, and its object left to
-- whoever removes uploads. Not where the upload was removed meanwhile: `recorded` is false then.
with mine as materialized (
  select t.id, t.user_id, t.attempt, t.worker_id
    from public.video_generation_tasks as t
   where
     -- use fence --
     and t.lane = -1
     for no key update
),
uploaded as materialized (
  select u.id
    from vidgen.uploads as u
    join mine on mine.id = u.task_id
     and u.attempt = mine.attempt and u.worker_id = mine.worker_id
   where u.bucket = %(bucket)s and u.path = %(path)s
     and u.taken_at is null and u.removed_at is null
     for update of u
),
before as materialized (
  select r.bucket, r.path
    from public.video_renditions as r
    join mine on mine.id = r.film_id
   where r.name = %(rendition)s
),
stored as (
  insert into public.video_renditions as r (
    film_id, name, user_id, position, preset, media_type, bucket, path, size, width, height, seconds, sha256,
    quality
  )
  select mine.id, %(rendition)s, mine.user_id, %(position)s, %(preset)s, %(media_type)s, %(bucket)s, %(path)s,
         %(size)s, %(width)s, %(height)s, %(seconds)s, %(sha256)s, %(quality)s
    from mine, uploaded
  on conflict (film_id, name) do update
     set position = excluded.position, preset = excluded.preset, media_type = excluded.media_type,
         bucket = excluded.bucket, path = excluded.path, size = excluded.size, width = excluded.width,
         height = excluded.height, seconds = excluded.seconds, sha256 = excluded.sha256,
         quality = excluded.quality, public_url = null
  returning r.film_id, r.user_id, r.name
),
charged as (
  insert into vidgen.charges (task_id, stage, user_id)
  select stored.film_id, 'render:' || stored.name, stored.user_id
    from stored
    join vidgen.films as f on f.film_id = stored.film_id and f.second_credits ? stored.name
   where %(credits)s
     and not exists (
       select from vidgen.charges as c
        where c.task_id = stored.film_id and c.stage = 'render:' || stored.name
     )
  returning task_id
),
settled as materialized (
  select vidgen.settle_render(charged.task_id, %(rendition)s) as credits from charged
),
kept as (
  delete from vidgen.uploads as u using uploaded, stored where u.id = uploaded.id
),
left_behind as (
  insert into vidgen.uploads (id, task_id, user_id, attempt, worker_id, bucket, path)
  select gen_random_uuid(), mine.id, mine.user_id, mine.attempt, mine.worker_id, before.bucket, before.path
    from mine, before, stored
   where before.path <> %(path)s
  on conflict on constraint a_place_is_used_once do nothing
),
further as (
  -- It has come further than where workers died.
  update vidgen.budgets as b
     set crashes = 0, suspect = false, waiting_since = null
    from stored
   where b.task_id = stored.film_id
),
shown as (
  update public.video_generation_tasks as t
     set progress = greatest(t.progress, %(progress)s), message = %(message)s, stage_progress = null
    from mine
   where t.id = mine.id
)
select coalesce((select settled.credits from settled), 0) as charged,
       exists (select from stored)
       or exists (select from before where before.path = %(path)s) as recorded
  from mine
