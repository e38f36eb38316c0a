-- Webhooks: who is told of which events, and the deliveries on their way.
--
-- The outbox pattern: a delivery is a row of the transaction whose event it tells, so that no event is lost or
-- invented. Workers send the rows; a receiver is told at least once, always under the same id.

set local search_path = '';

-- The whole list. `video.*`, `film.*` and `gate.*` stand for all of theirs.
create function vidgen.are_webhook_events(events text[]) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp
as $$
  select cardinality(events) between 1 and 12
     and events <@ array[
       'video.*', 'video.completed', 'video.failed', 'video.cancelled',
       'film.*', 'film.completed', 'film.failed', 'film.cancelled',
       'gate.*', 'gate.closed', 'gate.opened'
     ]
$$;

create table public.video_webhooks (
  id uuid primary key default gen_random_uuid(),
  user_id uuid,
  url text not null,
  events text[] not null,
  enabled boolean not null default false,
  disabled_reason text,
  last_status smallint,
  last_success_at timestamptz,
  last_failure_at timestamptz,
  created_at timestamptz not null default now(),
  -- What a URL leads to is looked at by the worker, at each connection: a name can change its address.
  constraint url_is_https_without_a_user_or_another_port check (
    length(url) <= 2000 and url ~ '^[!-~]+$'
    and (
      url ~ '^https://[^/?#@:\\[]+(:443)?([/?#]|$)' or url ~ '^https://\[[0-9A-Fa-f:.]+\](:443)?([/?#]|$)'
      or url ~ '^http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?([/?#]|$)'
    )
  ),
  constraint events_are_known check (vidgen.are_webhook_events(events)),
  constraint gates_concern_the_operator_only check (
    user_id is null or not events && array['gate.*', 'gate.closed', 'gate.opened']
  ),
  constraint disabled_has_a_reason check (enabled = (disabled_reason is null))
);

comment on table public.video_webhooks is
  'Addresses that are told of events by signed requests. Written only by the functions below.';
comment on column public.video_webhooks.user_id is 'Whose tasks it is told of; null: everybody''s.';
comment on column public.video_webhooks.last_status is
  'The HTTP status of the last answer; null: none came.';

create index video_webhooks_of_user on public.video_webhooks (user_id);

alter table public.video_webhooks enable row level security;

create policy "owners see their webhooks" on public.video_webhooks
  for select to authenticated using ((select vidgen.signed_in_user()) = user_id);

-- More rows where a secret was changed less than a day ago: a request carries a signature of each.
create table vidgen.webhook_secrets (
  webhook_id uuid not null references public.video_webhooks (id) on delete cascade,
  secret bytea not null,
  since timestamptz not null default clock_timestamp(),
  until timestamptz,
  primary key (webhook_id, since),
  constraint secret_has_32_bytes check (length(secret) = 32)
);

comment on table vidgen.webhook_secrets is 'What requests are signed with. Shown once, when it is made.';

-- Whoever takes, books or changes deliveries of a webhook locks its turn first. Only the outbox does not: the
-- end of a task waits for nobody.
create table vidgen.webhook_turns (
  webhook_id uuid primary key references public.video_webhooks (id) on delete cascade,
  served_at timestamptz not null default clock_timestamp(),
  failing_since timestamptz
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_scale_factor = 0);

comment on table vidgen.webhook_turns is
  'When deliveries of each webhook were last taken, and since when none has arrived.';

-- No foreign key: its check would have the end of a task wait for whoever changes the webhook.
create table vidgen.deliveries (
  webhook_id uuid not null,
  id uuid not null,
  task_id uuid,
  event text not null,
  body jsonb not null,
  created_at timestamptz not null default clock_timestamp(),
  tries smallint not null default 0,
  next_at timestamptz not null default clock_timestamp(),
  leased_until timestamptz,
  worker_id uuid,
  delivered_at timestamptz,
  gave_up_at timestamptz,
  last_status smallint,
  last_error text,
  primary key (webhook_id, id),
  constraint it_has_arrived_or_was_given_up check (delivered_at is null or gave_up_at is null),
  constraint tries_are_not_negative check (tries >= 0)
) with (fillfactor = 70, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0.05);

comment on table vidgen.deliveries is
  'The outbox: an event on its way to a webhook. The id is the header webhook-id of each of its requests.';
comment on column vidgen.deliveries.next_at is
  'The next try; the end of the lease while one is under way, the year 9999 while the webhook is disabled.';

create index deliveries_due on vidgen.deliveries (webhook_id, next_at)
  where delivered_at is null and gave_up_at is null;
create index deliveries_by_age on vidgen.deliveries (created_at);

-- The id of a delivery: the same event told to the same webhook has the same id, so that a statement that is
-- sent twice inserts one row. A UUID of version 8 (RFC 9562), by SHA-256: version 5 needs SHA-1, which
-- PostgreSQL has only in an extension.
create function vidgen.delivery_id(of_webhook uuid, happened text) returns uuid
language sql immutable strict set search_path = pg_catalog, pg_temp
as $$
  select overlay(overlay(
           encode(substring(sha256(convert_to(of_webhook || ' ' || happened, 'UTF8')) for 16), 'hex')
           placing '8' from 13) placing 'a' from 17)::uuid
$$;

-- What a receiver reads of an event of this transaction.
create function vidgen.delivery_body(what text, said jsonb) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
           'type', what,
           'timestamp', to_char(now() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
           'data', said
         )
$$;

-- Write the deliveries of one event. Only a disabled webhook gets none: what has happened meanwhile is in
-- the tables.
create function vidgen.deliver(
  what text, owner uuid, of_task uuid, happened text, said jsonb
) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  insert into vidgen.deliveries (webhook_id, id, task_id, event, body)
  select w.id, vidgen.delivery_id(w.id, happened), of_task, what, vidgen.delivery_body(what, said)
    from public.video_webhooks as w
   where w.enabled
     and (
       w.user_id is null
       or w.user_id = owner and (select s.user_webhooks from vidgen.settings as s)
     )
     and w.events && array[what, split_part(what, '.', 1) || '.*']
      on conflict do nothing;
  if found then
    perform vidgen.wake('vidgen_tasks', 'webhook');
  end if;
end
$$;

-- A task has ended: its webhooks are told in the same transaction.
create function vidgen.tell_webhooks() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  kind constant text := case when new.cut is null then 'video' else 'film' end;
begin
  if new.status not in ('completed', 'failed', 'cancelled')
     or not exists (select from public.video_webhooks as w where w.enabled) then
    return null;
  end if;
  perform vidgen.deliver(
    kind || '.' || new.status, new.user_id, new.id,
    format('%s %s %s %s', new.id, new.attempt, new.status, new.completed_at),
    jsonb_build_object(
      'task_id', new.id, 'kind', kind, 'status', new.status, 'attempt', new.attempt,
      'scene_id', new.scene_id, 'film_id', new.film_id, 'user_id', new.user_id,
      'reference', new.reference, 'error_code', new.error_code, 'video_path', new.video_path,
      'image_path', new.image_path,
      'renditions', (
        select coalesce(jsonb_agg(jsonb_build_object(
                 'name', r.name, 'path', r.path, 'media_type', r.media_type, 'size', r.size
               ) order by r.position), '[]')
          from public.video_renditions as r
         where r.film_id = new.id
      ),
      'credits', (
        -- All charges of a task come after its first claim.
        select coalesce(-sum(e.amount), 0)
          from public.credit_entries as e
         where e.user_id = new.user_id and e.created_at >= new.started_at
           and e.task_id = new.id and e.kind = 'charge'
      ),
      'updated_at', new.updated_at
    )
  );
  return null;
end
$$;

create trigger tell_webhooks
  after update on public.video_generation_tasks
  for each row
  when (old.status <> new.status)
  execute function vidgen.tell_webhooks();

-- Operators are told what users are shown: a pause of a model begins or ends.
create function vidgen.tell_of_gates() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  gate public.video_generation_gates;
begin
  if tg_op = 'INSERT' then
    gate := new;
  else
    gate := old;
  end if;
  perform vidgen.deliver(
    case tg_op when 'INSERT' then 'gate.closed' else 'gate.opened' end, null, null,
    format('%s %s %s', tg_op, gate.model, clock_timestamp()),
    jsonb_build_object(
      'model', gate.model, 'reason', gate.reason, 'message', gate.message, 'until', gate.until
    )
  );
  return null;
end
$$;

create trigger tell_of_gates
  after insert or delete on public.video_generation_gates
  for each row execute function vidgen.tell_of_gates();

-- The work of the workers.

-- Take deliveries that are due: webhooks by turns, two under way of one webhook, each leased. The turn is
-- locked before the count, which a statement of its own then reads: two workers can't both find room. A
-- webhook whose turn another worker holds is passed over. What is taken counts as tried: a worker that dies
-- while it sends can't send for ever. `at` is the time of the request, in seconds: receivers refuse one that is
-- minutes away, and a worker's clock may be.
create function vidgen.take_deliveries(for_worker uuid, places integer, lease interval)
returns table (
  webhook_id uuid, id uuid, try smallint, event text, url text, body text, secrets bytea[],
  waited double precision, at bigint
)
language plpgsql security definer set search_path = pg_catalog, pg_temp
-- The plan is kept: it may be made while the table is empty.
set enable_seqscan = off
as $$
#variable_conflict use_variable
declare
  free integer := places;
  due uuid[];
  room integer;
  until timestamptz := clock_timestamp() + lease;
  hook public.video_webhooks;
begin
  due := array(
    -- One probe per webhook that has something on its way, however much that is.
    with recursive busy (hook) as (
      (
        select d.webhook_id
          from vidgen.deliveries as d
         where d.delivered_at is null and d.gave_up_at is null
         order by d.webhook_id
         limit 1
      )
      union all
      select (
        select d.webhook_id
          from vidgen.deliveries as d
         where d.delivered_at is null and d.gave_up_at is null and d.webhook_id > busy.hook
         order by d.webhook_id
         limit 1
      )
        from busy
       where busy.hook is not null
    )
    select busy.hook
      from busy
      join vidgen.webhook_turns as t on t.webhook_id = busy.hook
     where exists (
       select
         from vidgen.deliveries as d
        where d.webhook_id = busy.hook and d.delivered_at is null and d.gave_up_at is null
          and d.next_at <= clock_timestamp()
     )
     order by t.served_at
     limit 100
  );
  foreach webhook_id in array due loop
    exit when free <= 0;
    perform from vidgen.webhook_turns as t where t.webhook_id = webhook_id for no key update skip locked;
    continue when not found;
    select w.* into hook from public.video_webhooks as w where w.id = webhook_id;
    if not hook.enabled then
      -- An end that was written while somebody disabled it.
      perform vidgen.hold_deliveries(webhook_id);
    end if;
    select least(free, 2 - count(*)) into room
      from vidgen.deliveries as d
     where d.webhook_id = webhook_id and d.delivered_at is null and d.gave_up_at is null
       and d.leased_until > clock_timestamp();
    continue when room <= 0;
    for id, try, event, body, waited in
      with first as materialized (
        select d.id, d.next_at as was_due
          from vidgen.deliveries as d
         where d.webhook_id = webhook_id and d.delivered_at is null and d.gave_up_at is null
           and d.next_at <= clock_timestamp()
         order by d.next_at
         limit room
      )
      update vidgen.deliveries as d
         set tries = d.tries + 1, next_at = until, leased_until = until, worker_id = for_worker
        from first
       where d.webhook_id = webhook_id and d.id = first.id
      returning d.id, d.tries, d.event, d.body::text,
                extract(epoch from clock_timestamp() - first.was_due)
    loop
      url := hook.url;
      at := extract(epoch from clock_timestamp());
      secrets := array(
        select s.secret
          from vidgen.webhook_secrets as s
         where s.webhook_id = webhook_id and (s.until is null or s.until > clock_timestamp())
         order by s.since desc
      );
      free := free - 1;
      return next;
    end loop;
    update vidgen.webhook_turns as t set served_at = clock_timestamp() where t.webhook_id = webhook_id;
  end loop;
end
$$;

-- Leave the deliveries of a disabled webhook where they are, but for its test.
create function vidgen.hold_deliveries(of_webhook uuid) returns void
language sql set search_path = pg_catalog, pg_temp
as $$
  update vidgen.deliveries as d
     set next_at = '9999-01-01 00:00:00+00'
   where d.webhook_id = of_webhook and d.delivered_at is null and d.gave_up_at is null
     and d.event <> 'webhook.test' and d.next_at < '9999-01-01 00:00:00+00'
     and (d.leased_until is null or d.leased_until <= clock_timestamp())
$$;

-- Book what came of one try. `pause` is the time until the next one; null: there is none. `gone`: the receiver
-- wants no more. The fence is id, try and worker: a try that came back after its lease changes nothing.
-- Returns what follows: delivered, again, gave up, disabled, or lost.
create function vidgen.book_delivery(
  of_webhook uuid, of_delivery uuid, of_try smallint, of_worker uuid, arrived boolean,
  answered smallint, failed_with text, pause interval, gone boolean
) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  told text;
  hook public.video_webhooks;
  turn vidgen.webhook_turns;
  why text;
begin
  select t.* into turn
    from vidgen.webhook_turns as t where t.webhook_id = of_webhook
     for no key update;
  update vidgen.deliveries as d
     set leased_until = null, worker_id = null, last_status = answered, last_error = failed_with,
         delivered_at = case when arrived then clock_timestamp() end,
         gave_up_at = case when not arrived and pause is null then clock_timestamp() end,
         next_at = case when not arrived and pause is not null then clock_timestamp() + pause else d.next_at end
   where d.webhook_id = of_webhook and d.id = of_delivery and d.tries = of_try
     and d.worker_id = of_worker and d.delivered_at is null and d.gave_up_at is null
  returning d.event into told;
  if not found or turn.webhook_id is null then
    return 'lost';
  end if;
  select w.* into hook from public.video_webhooks as w where w.id = of_webhook;
  if arrived then
    update vidgen.webhook_turns as t
       set failing_since = null
     where t.webhook_id = of_webhook and t.failing_since is not null;
    update public.video_webhooks as w
       set last_status = answered, last_success_at = clock_timestamp(),
           enabled = w.enabled or told = 'webhook.test',
           disabled_reason = case when told <> 'webhook.test' then w.disabled_reason end
     where w.id = of_webhook;
    if told = 'webhook.test' and not hook.enabled then
      update vidgen.deliveries as d
         set next_at = clock_timestamp()
       where d.webhook_id = of_webhook and d.delivered_at is null and d.gave_up_at is null
         and d.next_at = '9999-01-01 00:00:00+00';
    end if;
    return 'delivered';
  end if;
  if turn.failing_since is null then
    update vidgen.webhook_turns as t
       set failing_since = clock_timestamp()
     where t.webhook_id = of_webhook;
  end if;
  why := case
    when gone then 'It answered 410: it wants no more. Test it to enable it again.'
    when turn.failing_since < clock_timestamp() - interval '5 days'
      then 'Nothing has arrived for five days. Test it to enable it again.'
    when not hook.enabled and told = 'webhook.test' then format(
      'The last test failed: %s. It is enabled once it answers webhook.test with a status of 200 to 299.',
      coalesce('status ' || answered, failed_with)
    )
  end;
  update public.video_webhooks as w
     set last_status = answered, last_failure_at = clock_timestamp(),
         enabled = w.enabled and why is null, disabled_reason = coalesce(why, w.disabled_reason)
   where w.id = of_webhook;
  if hook.enabled and why is not null then
    perform vidgen.hold_deliveries(of_webhook);
    return 'disabled';
  end if;
  return case when pause is null then 'gave up' else 'again' end;
end
$$;

-- Give leases back, when a worker stops: the requests may have arrived, and are sent again.
create function vidgen.return_deliveries(of_worker uuid, of_deliveries uuid[]) returns void
language sql security definer set search_path = pg_catalog, pg_temp
as $$
  update vidgen.deliveries as d
     set leased_until = null, worker_id = null, next_at = clock_timestamp()
   where d.worker_id = of_worker and d.id = any (of_deliveries)
     and d.delivered_at is null and d.gave_up_at is null
$$;

-- One batch of deliveries that ended long ago, or whose webhook is gone. Returns their number.
create function vidgen.forget_deliveries(batch integer) returns bigint
language sql security definer set search_path = pg_catalog, pg_temp
as $$
  with old as (
    select d.webhook_id, d.id
      from vidgen.deliveries as d
     where d.created_at < now() - (select s.keep_deliveries from vidgen.settings as s)
       and (
         d.delivered_at is not null or d.gave_up_at is not null
         or not exists (select from public.video_webhooks as w where w.id = d.webhook_id)
       )
     limit batch
       -- One that is sent again meanwhile is kept.
       for update skip locked
  ),
  gone as (
    delete from vidgen.deliveries as d
     using old
     where d.webhook_id = old.webhook_id and d.id = old.id
    returning d.id
  ),
  replaced as (
    delete from vidgen.webhook_secrets as s where s.until < now()
  )
  select count(*) from gone
$$;

-- What clients call.

-- Begin a test: the webhook is enabled once it is answered.
create function vidgen.begin_test(of_webhook uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  insert into vidgen.deliveries (webhook_id, id, event, body)
  values (
    of_webhook, gen_random_uuid(), 'webhook.test',
    vidgen.delivery_body('webhook.test', jsonb_build_object('webhook_id', of_webhook))
  );
  perform vidgen.wake('vidgen_tasks', 'webhook');
end
$$;

-- A secret, as Standard Webhooks writes one. gen_random_uuid has 122 random bits.
create function vidgen.new_webhook_secret(of_webhook uuid) returns text
language sql volatile set search_path = pg_catalog, pg_temp
as $$
  insert into vidgen.webhook_secrets (webhook_id, secret)
  values (of_webhook, sha256(
    uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())
  ))
  returning 'whsec_' || encode(secret, 'base64')
$$;

-- Lock a webhook of the caller's. Raises PT404 for anybody else's.
create function vidgen.lock_webhook(of_webhook uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not vidgen.acts_for_all() and not (select s.user_webhooks from vidgen.settings as s) then
    raise exception 'webhooks of users are not offered here' using errcode = 'PT403';
  end if;
  -- Whose it is never changes: a stranger's call doesn't wait for the lock, nor hold it.
  perform
     from public.video_webhooks as w
    where w.id = of_webhook
      and (vidgen.acts_for_all() or coalesce(vidgen.signed_in_user() = w.user_id, false));
  if found then
    perform from vidgen.webhook_turns as t where t.webhook_id = of_webhook for no key update;
  end if;
  if not found then
    raise exception 'there is no webhook % of yours', of_webhook using errcode = 'PT404';
  end if;
end
$$;

create function public.create_video_webhook(url text, events text[]) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  owner uuid := case when not vidgen.acts_for_all() then vidgen.signed_in_user() end;
  made uuid;
begin
  if not vidgen.acts_for_all() then
    if owner is null or not (select s.user_webhooks from vidgen.settings as s) then
      raise exception 'webhooks of users are not offered here'
        using errcode = 'PT403', hint = 'An operator can: update vidgen.settings set user_webhooks = true.';
    end if;
    perform vidgen.lock_user(owner);
    perform vidgen.count_user(owner, 0, 1);
    if (select count(*) from public.video_webhooks as w where w.user_id = owner) >= 5 then
      raise exception 'limit reached: 5 webhooks'
        using errcode = 'PT429', detail = 'USER_LIMIT', hint = 'Delete one first.';
    end if;
  end if;
  insert into public.video_webhooks (user_id, url, events, disabled_reason)
  values (
    owner, url, events,
    'Not tested yet. It is enabled once it answers webhook.test with a status of 200 to 299.'
  )
  returning id into made;
  insert into vidgen.webhook_turns (webhook_id) values (made);
  perform vidgen.begin_test(made);
  return jsonb_build_object('id', made, 'secret', vidgen.new_webhook_secret(made));
end
$$;

create function public.rotate_video_webhook_secret(webhook uuid) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform vidgen.lock_webhook(webhook);
  update vidgen.webhook_secrets as s
     set until = clock_timestamp() + interval '24 hours'
   where s.webhook_id = webhook and s.until is null;
  return jsonb_build_object('secret', vidgen.new_webhook_secret(webhook));
end
$$;

create function public.test_video_webhook(webhook uuid) returns public.video_webhooks
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  hook public.video_webhooks;
begin
  perform vidgen.lock_webhook(webhook);
  if not vidgen.acts_for_all() then
    perform vidgen.count_user(vidgen.signed_in_user(), 0, 1);
  end if;
  -- A test that is on its way is sent at once; there is one at a time.
  update vidgen.deliveries as d
     set next_at = clock_timestamp(), tries = 0
   where d.webhook_id = webhook and d.event = 'webhook.test'
     and d.delivered_at is null and d.gave_up_at is null and d.leased_until is null;
  if found then
    perform vidgen.wake('vidgen_tasks', 'webhook');
  else
    perform vidgen.begin_test(webhook);
  end if;
  select w.* into hook from public.video_webhooks as w where w.id = webhook;
  return hook;
end
$$;

create function public.resend_video_deliveries(webhook uuid, since timestamptz) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  again integer;
  due timestamptz;
begin
  perform vidgen.lock_webhook(webhook);
  if not vidgen.acts_for_all() then
    perform vidgen.count_user(vidgen.signed_in_user(), 0, 1);
  end if;
  select case when w.enabled then clock_timestamp() else '9999-01-01 00:00:00+00' end into due
    from public.video_webhooks as w where w.id = webhook;
  update vidgen.deliveries as d
     set delivered_at = null, gave_up_at = null, tries = 0, next_at = due
   where d.webhook_id = webhook and d.created_at >= since and d.event <> 'webhook.test'
     and (d.delivered_at is not null or d.gave_up_at is not null);
  get diagnostics again = row_count;
  perform vidgen.wake('vidgen_tasks', 'webhook');
  return again;
end
$$;

create function public.delete_video_webhook(webhook uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform vidgen.lock_webhook(webhook);
  delete from vidgen.deliveries as d where d.webhook_id = webhook;
  delete from public.video_webhooks as w where w.id = webhook;
end
$$;

-- Rights. Of the worker's role too: it takes and books deliveries by the functions only.

call vidgen.revoke_from_strangers();
-- squawk-ignore ban-drop-function
drop procedure vidgen.revoke_from_strangers();

revoke all on public.video_webhooks from public, anon, authenticated, service_role, vidgen_worker;

grant select on public.video_webhooks to authenticated, service_role;
grant select on public.video_webhooks, vidgen.deliveries to vidgen_worker;

create policy "the worker sees all webhooks" on public.video_webhooks
  for select to vidgen_worker using (true);

revoke all on function
  vidgen.are_webhook_events(text[]), vidgen.delivery_id(uuid, text),
  vidgen.delivery_body(text, jsonb),
  vidgen.deliver(text, uuid, uuid, text, jsonb), vidgen.tell_webhooks(), vidgen.tell_of_gates(),
  vidgen.take_deliveries(uuid, integer, interval), vidgen.hold_deliveries(uuid),
  vidgen.book_delivery(uuid, uuid, smallint, uuid, boolean, smallint, text, interval, boolean),
  vidgen.return_deliveries(uuid, uuid[]), vidgen.forget_deliveries(integer),
  vidgen.begin_test(uuid), vidgen.new_webhook_secret(uuid), vidgen.lock_webhook(uuid),
  public.create_video_webhook(text, text[]), public.rotate_video_webhook_secret(uuid),
  public.test_video_webhook(uuid), public.resend_video_deliveries(uuid, timestamptz),
  public.delete_video_webhook(uuid)
  from public, anon, authenticated, service_role;

grant execute on function
  public.create_video_webhook(text, text[]), public.rotate_video_webhook_secret(uuid),
  public.test_video_webhook(uuid), public.resend_video_deliveries(uuid, timestamptz),
  public.delete_video_webhook(uuid)
  to authenticated, service_role;
grant execute on function
  vidgen.take_deliveries(uuid, integer, interval),
  vidgen.book_delivery(uuid, uuid, smallint, uuid, boolean, smallint, text, interval, boolean),
  vidgen.return_deliveries(uuid, uuid[]), vidgen.forget_deliveries(integer)
  to vidgen_worker;

update vidgen.settings set schema_version = '20261130100900', oldest_program = '20261130100900';
