-- Two bounds: of the time that one statement spends on rows that are slow, and of the places that a
-- checkpoint may name.

alter table vidgen.settings alter column schema_version set default '20261130000500';
update vidgen.settings set schema_version = '20261130000500';

-- Each of these changes one row of many and survives the end of its statement's time: a trigger of four
-- seconds on forty rows of one user would hold a claim, and everybody's turns, for minutes. After two
-- seconds the rows that are left are left to the next statement.
--
-- And what is due earlier than its row says (an output that is to try a gate) begins: a claim that finds
-- it due and can't begin it would come again and again.
do $$
declare
  ours record;
begin
  for ours in
    select pg_get_functiondef(p.oid) as definition
      from pg_catalog.pg_proc as p
     where p.oid in (
       'vidgen.begin_attempt(uuid, uuid, boolean)'::regprocedure,
       'vidgen.hand_back_task(uuid, uuid, integer)'::regprocedure,
       'vidgen.take_over_task(uuid, uuid, uuid, integer, boolean, text, boolean)'::regprocedure
     )
  loop
    execute regexp_replace(
      replace(
        ours.definition, '(to_cancel or l.run_after <= now())',
        '(to_cancel or l.run_after <= now() or exists ('
        'select from vidgen.resumes as r where r.task_id = l.id and r.resume_at <= now()))'
      ),
      E'\nbegin\n',
      E'\nbegin\n'
      '  if clock_timestamp() > statement_timestamp() + interval ''2 seconds'' then\n'
      '    return;\n'
      '  end if;\n'
    );
  end loop;
end
$$;

-- What a checkpoint names is signed for its task's owner and removed with its task, by whoever has the
-- service key: whoever may write checkpoints must not name an application's files.
create function vidgen.artifact_is_ours() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not vidgen.is_operator() and not exists (
    select
      from public.video_generation_tasks as t
     cross join vidgen.settings as s
     where t.id = new.task_id and new.bucket in (s.images_bucket, s.videos_bucket)
       and new.path ~ ('^(generated_images|video-files)/' || t.user_id::text || '/[-.0-9A-Za-z]{1,100}$')
  ) then
    raise exception 'task %: % in bucket % is no place of its files', new.task_id, new.path, new.bucket
      using errcode = 'insufficient_privilege';
  end if;
  return new;
end
$$;

create trigger artifact_is_ours
  before update of bucket, path on vidgen.checkpoints
  for each row
  when (
    new.path is not null
    and (new.path is distinct from old.path or new.bucket is distinct from old.bucket)
  )
  execute function vidgen.artifact_is_ours();

create trigger artifact_is_born_ours
  before insert on vidgen.checkpoints
  for each row
  when (new.path is not null)
  execute function vidgen.artifact_is_ours();

revoke all on function vidgen.artifact_is_ours() from public, anon, authenticated, service_role;
