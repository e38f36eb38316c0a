-- Credits: prices, balances, the ledger, holds and charges.
--
-- A hold reserves, a settle turns part of it into a charge, a release gives the rest back. They run
-- in the same statement as the thing they pay for. Lock order: task, user_credits, entries.

create table public.credit_prices (
  action text primary key,
  credits integer not null,
  constraint action_is_known check (action in ('generate_image', 'generate_scene')),
  constraint price_is_not_negative check (credits >= 0)
);

insert into public.credit_prices (action, credits) values
  ('generate_image', 5),
  ('generate_scene', 25);

create table public.user_credits (
  user_id uuid primary key,
  balance integer not null default 0,
  held integer not null default 0,
  updated_at timestamptz not null default now(),
  -- A balance less a sum of holds is an overdraft under concurrency; this column can't be one.
  constraint held_is_covered_by_the_balance check (0 <= held and held <= balance)
) with (fillfactor = 70);

create table public.credit_entries (
  id bigint generated always as identity primary key,
  user_id uuid not null,
  kind text not null,
  amount integer not null,
  task_id uuid,
  stage text,
  reference text,
  created_at timestamptz not null default now(),
  constraint kind_is_known check (kind in ('grant', 'charge')),
  constraint grants_add_and_charges_take check (
    (kind = 'grant' and amount > 0) or (kind = 'charge' and amount <= 0)
  ),
  constraint a_charge_names_its_task check (kind <> 'charge' or task_id is not null),
  constraint a_grant_has_a_reference check (kind <> 'grant' or reference is not null)
);

comment on table public.credit_entries is
  'The append-only ledger: a user''s entries add up to the balance.';

create unique index credit_entries_grant_once on public.credit_entries (reference) where kind = 'grant';
create index credit_entries_by_user on public.credit_entries (user_id, created_at desc);

create function vidgen.ledger_is_append_only() returns trigger
language plpgsql set search_path = ''
as $$
begin
  raise exception 'the ledger is append-only: correct entry % by a new one', old.id
    using errcode = 'check_violation';
end
$$;

create trigger ledger_is_append_only
  before update or delete on public.credit_entries
  for each row execute function vidgen.ledger_is_append_only();

alter table public.credit_prices enable row level security;
alter table public.user_credits enable row level security;
alter table public.credit_entries enable row level security;

create policy "signed-in users see prices" on public.credit_prices
  for select to authenticated using (true);
create policy "owners see their balance" on public.user_credits
  for select to authenticated using ((select auth.uid()) = user_id);
create policy "owners see their entries" on public.credit_entries
  for select to authenticated using ((select auth.uid()) = user_id);
create policy "the worker sees prices" on public.credit_prices
  for select to vidgen_worker using (true);
create policy "the worker sees balances" on public.user_credits
  for select to vidgen_worker using (true);
create policy "the worker sees entries" on public.credit_entries
  for select to vidgen_worker using (true);

revoke all on public.credit_prices, public.user_credits, public.credit_entries
  from public, anon, authenticated, service_role, vidgen_worker;
revoke all on sequence public.credit_entries_id_seq
  from public, anon, authenticated, service_role, vidgen_worker;
grant select on public.credit_prices, public.user_credits, public.credit_entries
  to authenticated, vidgen_worker;
grant select on public.user_credits, public.credit_entries to service_role;
grant select, insert, update, delete on public.credit_prices to service_role;

-- One open hold per task; prices are copied into it, so a settle never reads the price table.
create table vidgen.holds (
  id bigint generated always as identity primary key,
  task_id uuid not null,
  user_id uuid not null,
  image_price integer not null,
  video_price integer not null,
  amount integer not null,
  opened_at timestamptz not null default now(),
  closed_at timestamptz,
  constraint amount_is_not_negative check (amount >= 0 and image_price >= 0 and video_price >= 0),
  constraint closed_holds_nothing check (closed_at is null or amount = 0)
);

create unique index holds_one_open_per_task on vidgen.holds (task_id) where closed_at is null;

-- A stage is charged at most once per task because this primary key says so. It is ours whatever
-- an application replaces below, and it outlives the task.
create table vidgen.charges (
  task_id uuid not null,
  stage text not null,
  user_id uuid not null,
  charged_at timestamptz not null default now(),
  primary key (task_id, stage),
  constraint stage_is_known check (stage in ('image', 'video'))
);

grant select, insert on vidgen.charges to vidgen_worker;
grant select on vidgen.holds to vidgen_worker;

-- The three that an application with credits of its own replaces (create or replace function, same
-- signature). Later migrations leave them alone: they are made here, once.

create function vidgen.hold_credits(task_id uuid, user_id uuid, image integer, video integer)
returns boolean
language plpgsql security definer set search_path = ''
as $$
begin
  -- Idempotent: an open hold stands, with the prices it was opened with.
  perform from vidgen.holds as h where h.task_id = hold_credits.task_id and h.closed_at is null;
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

create function vidgen.settle_credits(task_id uuid, stage text) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  hold vidgen.holds;
  price integer;
begin
  select h.* into hold
    from vidgen.holds as h
   where h.task_id = settle_credits.task_id and h.closed_at is null
     for update;
  if not found then
    raise exception 'task %: no open hold to settle its % from', settle_credits.task_id, stage;
  end if;
  price := case stage when 'image' then hold.image_price else hold.video_price end;
  update public.user_credits as u
     set balance = u.balance - price, held = u.held - price, updated_at = now()
   where u.user_id = hold.user_id and price > 0;
  update vidgen.holds as h set amount = h.amount - price where h.id = hold.id;
  insert into public.credit_entries (user_id, kind, amount, task_id, stage)
  values (hold.user_id, 'charge', -price, settle_credits.task_id, settle_credits.stage);
end
$$;

create function vidgen.release_credits(task_id uuid) returns void
language plpgsql security definer set search_path = ''
as $$
declare
  hold vidgen.holds;
begin
  select h.* into hold
    from vidgen.holds as h
   where h.task_id = release_credits.task_id and h.closed_at is null
     for update;
  if not found then
    return;
  end if;
  update public.user_credits as u
     set held = u.held - hold.amount, updated_at = now()
   where u.user_id = hold.user_id and hold.amount > 0;
  update vidgen.holds as h set amount = 0, closed_at = now() where h.id = hold.id;
end
$$;

-- A task that is deleted before its end gives back what is held for it.
create function vidgen.task_goes() returns trigger
language plpgsql security definer set search_path = ''
as $$
begin
  perform vidgen.release_credits(old.id);
  return null;
end
$$;

create trigger task_goes
  after delete on public.video_generation_tasks
  for each row
  when (old.status in ('pending', 'processing'))
  execute function vidgen.task_goes();

revoke all on function vidgen.task_goes() from public, anon, authenticated, service_role;

-- Must be empty: balances, holds and ledger that don't agree, also where one of them is missing.
create view vidgen.credit_discrepancies with (security_invoker = true) as
select user_id, coalesce(u.balance, 0) as balance, coalesce(u.held, 0) as held,
       coalesce(e.total, 0) as entries_total, coalesce(h.total, 0) as holds_total
  from public.user_credits as u
  full join (
    select user_id, sum(amount) as total from public.credit_entries group by user_id
  ) as e using (user_id)
  full join (
    select user_id, sum(amount) as total from vidgen.holds where closed_at is null group by user_id
  ) as h using (user_id)
 where coalesce(u.balance, 0) <> coalesce(e.total, 0) or coalesce(u.held, 0) <> coalesce(h.total, 0);

grant select on vidgen.credit_discrepancies to vidgen_worker;

create function vidgen.grant_credits(user_id uuid, amount integer, reference text)
returns public.user_credits
language plpgsql security definer set search_path = ''
as $$
#variable_conflict use_column
declare
  credits public.user_credits;
  earlier public.credit_entries;
begin
  if user_id is null or coalesce(amount, 0) <= 0 or coalesce(btrim(reference), '') = ''
     or length(reference) > 500 then
    raise exception 'grant_video_credits needs a user_id, an amount above 0 and a reference of 1 to 500 characters'
      using errcode = 'PT400',
            hint = 'The reference makes the call idempotent: pass your payment''s id.';
  end if;
  insert into public.credit_entries as e (user_id, kind, amount, reference)
  values (grant_credits.user_id, 'grant', grant_credits.amount, grant_credits.reference)
      on conflict (reference) where kind = 'grant' do nothing;
  if found then
    insert into public.user_credits as u (user_id, balance)
    values (grant_credits.user_id, grant_credits.amount)
        on conflict on constraint user_credits_pkey do update
       set balance = u.balance + excluded.balance, updated_at = now();
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

revoke all on function vidgen.ledger_is_append_only() from public, anon, authenticated, service_role;
revoke all on function vidgen.hold_credits(uuid, uuid, integer, integer)
  from public, anon, authenticated, service_role;
revoke all on function vidgen.settle_credits(uuid, text) from public, anon, authenticated, service_role;
revoke all on function vidgen.release_credits(uuid) from public, anon, authenticated, service_role;
revoke all on function vidgen.grant_credits(uuid, integer, text)
  from public, anon, authenticated, service_role;
grant execute on function vidgen.hold_credits(uuid, uuid, integer, integer) to vidgen_worker;
grant execute on function vidgen.settle_credits(uuid, text) to vidgen_worker;
grant execute on function vidgen.release_credits(uuid) to vidgen_worker;
grant execute on function vidgen.grant_credits(uuid, integer, text) to service_role;
