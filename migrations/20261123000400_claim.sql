-- The claim in two: tasks that go on (`resume`) and new ones by turns (`claim`), so that the second,
-- which a user waits for, is planned and carried out without what the first one needs.

alter table vidgen.settings alter column schema_version set default '20261123000400';
update vidgen.settings set schema_version = '20261123000400';

-- Suspects are few: an idle worker finds them without a look at what waits.
create index budgets_crashed on vidgen.budgets (crashes) where crashes > 0;

-- And they stay few: deaths count while a task may still run. What it ended by is in its row.
create function vidgen.task_ends() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
  update vidgen.budgets as b set crashes = 0 where b.task_id = new.id and b.crashes > 0;
  return null;
end
$$;

create trigger task_ends
  after update on public.video_generation_tasks
  for each row
  when (
    old.status in ('pending', 'processing') and new.status in ('completed', 'failed', 'cancelled')
  )
  execute function vidgen.task_ends();

revoke all on function vidgen.task_ends() from public, anon, authenticated, service_role;

update vidgen.budgets as b
   set crashes = 0
  from public.video_generation_tasks as t
 where t.id = b.task_id and b.crashes > 0
   and t.status in ('completed', 'failed', 'cancelled');

-- No image starts while far more tasks wait for a video slot than there are: twice as many as slots
-- may be under way to one. What waits for later waits for no slot, and what other keys run needs none
-- of this key's. Nothing is counted beyond the number that decides.
create view vidgen.rooms with (security_invoker = true) as
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
                  and w.provider = l.provider and w.key_fingerprint = l.key_fingerprint
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

comment on view vidgen.rooms is
  'For how many new tasks there is room before a limited model, were it the one that makes the clips.';

-- The same rule for workers of the version before.
create or replace function vidgen.room_before_videos(of_provider text, of_key text, of_model text)
returns integer
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select r.room
    from vidgen.rooms as r
   where r.provider = of_provider and r.key_fingerprint = of_key and r.model = of_model
$$;

revoke all on vidgen.rooms from public, anon, authenticated, service_role;
grant select on vidgen.rooms to vidgen_worker;

-- As before, but workers are woken only where somebody waits: with an idle queue each generation that
-- ended made the whole fleet claim. Who arrives between this look and our commit, and is looked for
-- before it, waits for the next poll.
create or replace function vidgen.free_slot(slot_id bigint, of_task uuid, of_submission uuid)
returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
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
  if exists (select from vidgen.turns where waiting_since is not null)
     or exists (select from vidgen.turns where waiting_since is null and due_at <= now())
     or exists (select from vidgen.arrivals)
     or exists (select from vidgen.resumes where resume_at <= now()) then
    perform pg_notify('vidgen_tasks', '');
  end if;
end
$$;
