-- Order, watch, cancel and retry in plain SQL: as postgres or service_role (then name the user), for
-- many scenes at once, and for operators. psql -v scene=… -v owner=… -f generate.sql

-- One video. As a trusted writer no limit applies; user_id must be the scene's owner.
insert into public.video_generation_tasks (scene_id, user_id, priority)
values (:'scene', :'owner', 5)
returning id as task \gset

-- What it does now.
select status, progress, stage_progress, current_step, error_code, error_message
  from public.video_generation_tasks
 where id = :'task';

-- Not any more. At once where nothing runs at the provider, else within a heartbeat.
select status, cancel_requested_at from public.cancel_video_generation_task(:'task');

-- Or once again: finished stages are kept and not paid again.
select status, progress from public.retry_video_generation_task(:'task');

-- All scenes of a scenario, tonight, after everything else of this user's.
insert into public.video_generation_tasks (scene_id, user_id, priority, run_after)
select s.id, s.user_id, -10, date_trunc('day', now()) + interval '1 day'
  from public.video_scenes as s
 where s.scenario_id = (select scenario_id from public.video_scenes where id = :'scene')
   and s.id <> :'scene'
returning id, run_after;

-- What a user has and has spent.
select balance, held, balance - held as available
  from public.user_credits where user_id = :'owner';
select created_at, kind, amount, task_id, stage, reference
  from public.credit_entries where user_id = :'owner' order by created_at desc limit 20;
