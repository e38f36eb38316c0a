-- Credits: prices, balances, the ledger, holds and charges.
--
-- A hold reserves, a settle turns part of it into a charge, a release gives the rest back. Each runs in the
-- statement that it belongs to. Lock order: task, user_credits, entries.

set local search_path = '';

create table public.credit_prices (
  action text primary key,
  credits integer not null,
  constraint action_is_known foreign key (action) references vidgen.stages (action),
  constraint price_is_not_negative check (credits >= 0)
);

alter table public.credit_prices enable row level security;

insert into public.credit_prices (action, credits) values
  ('generate_image', 5),
  ('generate_scene', 25);

create table public.user_credits (
  user_id uuid primary key,
  balance integer not null default 0,
  held integer not null default 0,
  updated_at timestamptz not null default now(),
  -- A balance minus a sum of holds can be overdrawn by concurrent statements; this column can't.
  constraint held_is_covered_by_the_balance check (0 <= held and held <= balance)
) with (fillfactor = 70);

alter table public.user_credits enable row level security;

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
  constraint a_grant_has_a_reference check (kind <> 'grant' or reference is not null),
  constraint texts_are_at_most_40000_bytes check (
    octet_length(reference) <= 40000 and octet_length(stage) <= 40000
  )
);

alter table public.credit_entries enable row level security;

comment on table public.credit_entries is
  'The append-only ledger: a user''s entries add up to the balance.';

create unique index credit_entries_grant_once on public.credit_entries (reference) where kind = 'grant';
create index credit_entries_by_user on public.credit_entries (user_id, created_at desc);
create index credit_entries_by_time on public.credit_entries using brin (created_at)
  with (pages_per_range = 16, autosummarize = on);

-- One open hold per task; prices are copied into it, so a settle never reads the price table.
create table vidgen.holds (
  id bigint generated always as identity primary key,
  task_id uuid not null,
  user_id uuid not null,
  prices jsonb not null,
  amount integer not null,
  opened_at timestamptz not null default now(),
  closed_at timestamptz,
  constraint amount_is_not_negative check (amount >= 0),
  constraint prices_are_an_object check (jsonb_typeof(prices) = 'object'),
  constraint closed_holds_nothing check (closed_at is null or amount = 0)
);

comment on column vidgen.holds.prices is
  'Credits by stage at the time of the hold (of a film by output). A stage that is not named costs nothing.';

create unique index holds_one_open_per_task on vidgen.holds (task_id) where closed_at is null;
create index holds_closed on vidgen.holds (closed_at) where closed_at is not null;

-- This primary key allows one charge per task and stage. The table stays ours even if an application replaces
-- the functions below, and it outlives the task.
create table vidgen.charges (
  task_id uuid not null,
  stage text not null,
  user_id uuid not null,
  charged_at timestamptz not null default now(),
  primary key (task_id, stage),
  -- When the charge was taken from its hold, which happens once.
  settled_at timestamptz
);

comment on column vidgen.charges.stage is
  'A stage, or ''render:'' and the name of a film''s output: charge_is_due admits no other.';

-- The charges of films, which have no submissions: forget_tasks finds them by their age.
create index charges_of_renders on vidgen.charges (charged_at) where starts_with(stage, 'render:');

comment on column vidgen.charges.settled_at is
  'The time when vidgen.settle_credits took the charge from the hold; an application''s own function leaves it null.';

-- The audit in parts. `credit_discrepancies` sums the whole ledger (a second at five million entries); the
-- audit adds each entry once, to its user's total.
create table vidgen.audited (
  only_row boolean primary key default true,
  through_id bigint not null default 0,
  discrepancies bigint,
  audited_at timestamptz,
  constraint there_is_one_row check (only_row)
);

comment on column vidgen.audited.through_id is
  'Entries up to this one are in the totals. Only entries an hour old: a transaction with a lower number has '
  'ended by then; a later one is found when its user is summed anew.';

insert into vidgen.audited default values;

create table vidgen.audited_totals (
  user_id uuid primary key,
  total bigint not null,
  summed_at timestamptz
) with (fillfactor = 70);

comment on column vidgen.audited_totals.summed_at is
  'The last time when all entries of this user were summed, because the total differed from the balance.';

create function vidgen.ledger_is_append_only() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  raise exception 'the ledger is append-only: correct entry % by a new one', old.id
    using errcode = 'check_violation';
end
$$;

create trigger ledger_is_append_only
  before update or delete on public.credit_entries
  for each row execute function vidgen.ledger_is_append_only();

-- What the outputs of a film cost at the most, by 'render:' and their names: those that are ordered, have a
-- price and are not charged yet.
create function vidgen.render_prices(of_film uuid) returns jsonb
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
  select coalesce(jsonb_object_agg('render:' || o.name, o.credits::integer * f.seconds), '{}')
    from vidgen.films as f
   cross join jsonb_each_text(f.second_credits) as o (name, credits)
   where f.film_id = render_prices.of_film
     and not exists (
       select from vidgen.charges as c where c.task_id = f.film_id and c.stage = 'render:' || o.name
     )
$$;

-- What the stages of a task cost that are not stored: credits by stage. `missing`: one of them has no price.
create function vidgen.due_prices(of_task uuid, out prices jsonb, out missing boolean)
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  select coalesce(jsonb_object_agg(st.name, p.credits), '{}'),
         coalesce(bool_or(p.credits is null), false)
    into prices, missing
    from vidgen.stages as st
    left join public.credit_prices as p on p.action = st.action
   where not exists (
     select from vidgen.checkpoints as c
      where c.task_id = of_task and c.stage = st.name and c.state = 'done'
   );
end
$$;

-- What a hold may be for: a running task, or a waiting one that a running film of the same user orders as
-- its part; and each of its stages that is not stored, at its price.
create function vidgen.check_hold(of_task uuid, of_user uuid, prices jsonb) returns void
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  due record;
begin
  if not exists (
    select
      from public.video_generation_tasks as t
      join vidgen.parts as p on p.task_id = t.id
      join public.video_generation_tasks as film on film.id = p.film_id
     where t.id = of_task and t.user_id = of_user and t.status = 'pending'
       and film.user_id = of_user and film.status = 'processing'
  ) then
    perform vidgen.check_running(of_task, of_user);
  end if;
  if exists (select from vidgen.films as f where f.film_id = of_task) then
    if prices is distinct from vidgen.render_prices(of_task) then
      raise exception 'film %: % is not what its outputs cost', of_task, coalesce(prices::text, 'null')
        using errcode = 'VG002', hint = 'See vidgen.films.';
    end if;
    return;
  end if;
  select d.prices, d.missing into due from vidgen.due_prices(of_task) as d;
  if due.missing or prices is distinct from due.prices then
    raise exception 'task %: % is not what its stages cost now', of_task, coalesce(prices::text, 'null')
      using errcode = 'VG002', hint = 'See public.credit_prices and vidgen.stages.';
  end if;
end
$$;

-- Settle the charge of a stage, once: it was written for this user's running task.
create function vidgen.take_charge(of_task uuid, of_stage text, of_user uuid) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  update vidgen.charges as c
     set settled_at = clock_timestamp()
   where c.task_id = of_task and c.stage = of_stage and c.user_id = of_user and c.settled_at is null
     and exists (
       select from public.video_generation_tasks as t
        where t.id = of_task and t.user_id = of_user and t.status = 'processing'
     );
  if not found then
    perform vidgen.check_running(of_task, of_user);
    raise exception 'task %: its % is not charged, or was settled before', of_task, of_stage
      using errcode = 'VG004';
  end if;
end
$$;

-- A hold is released when its task has ended, and not before.
create function vidgen.check_release(of_task uuid) returns void
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if exists (
    select from public.video_generation_tasks as t
     where t.id = of_task and t.status in ('pending', 'processing')
  ) then
    raise exception 'task %: it has not ended, so what is held for it is not released', of_task
      using errcode = 'VG005', hint = 'Cancel it with cancel_video_generation_task(id).';
  end if;
end
$$;

-- A charge is only for a generated stage of a running task of this user, or for an output of a film that is
-- recorded. This is checked when the charge is
-- written, even if an application replaces the functions.
create function vidgen.charge_is_due() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  if not exists (
    select
      from vidgen.checkpoints as c
      join public.video_generation_tasks as t on t.id = c.task_id
     where c.task_id = new.task_id and c.stage = new.stage and c.generation_id is not null
       and t.user_id = new.user_id and t.status = 'processing'
  ) and not exists (
    select
      from public.video_renditions as r
      join public.video_generation_tasks as t on t.id = r.film_id
     where r.film_id = new.task_id and 'render:' || r.name = new.stage
       and t.user_id = new.user_id and t.status = 'processing'
  ) then
    perform vidgen.check_running(new.task_id, new.user_id);
    raise exception 'task %: nothing was generated for its %, so it is not charged',
      new.task_id, new.stage
      using errcode = 'VG003';
  end if;
  return new;
end
$$;

create trigger charge_is_due
  before insert on vidgen.charges
  for each row execute function vidgen.charge_is_due();

-- A balance is the running total of a user's ledger. An application may delete its row, or create it again
-- without the held credits (by a cascade from its users, for example). Then a settle or a release finds too
-- little: the row is restored from the ledger and the open holds.
create function vidgen.restore_credits(owner_id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  insert into public.user_credits as u (user_id) values (owner_id)
      on conflict (user_id) do update set updated_at = now();
  -- The row is locked: another statement on this user's ledger either waits, and is not in the sum, or has
  -- committed, and this statement's snapshot sees it.
  update public.user_credits as u
     set balance = greatest(books.entries, 0),
         held = least(books.holds, greatest(books.entries, 0)),
         updated_at = now()
    from (
      select coalesce((
               select sum(e.amount) from public.credit_entries as e where e.user_id = owner_id
             ), 0) as entries,
             coalesce((
               select sum(h.amount)
                 from vidgen.holds as h
                where h.user_id = owner_id and h.closed_at is null
             ), 0) as holds
    ) as books
   where u.user_id = owner_id;
end
$$;

-- Where the application's own rule refuses the row (the user is deleted), the paid task goes on: the charge is
-- in the ledger, and the audit names this user.
create function vidgen.try_to_restore_credits(owner_id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform vidgen.restore_credits(owner_id);
exception
  when integrity_constraint_violation or raise_exception or insufficient_privilege then
    raise warning 'the balance of user % could not be restored: % %', owner_id, sqlstate, sqlerrm;
end
$$;

-- An application with credits of its own replaces these three functions (create or replace function, same
-- signature). Later migrations do not change them.
create function vidgen.hold_credits(task_id uuid, user_id uuid, prices jsonb) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
    #variable_conflict use_variable
    declare
      total integer;
    begin
      -- Idempotent: an open hold stands, with the prices it was opened with.
      perform from vidgen.holds as h
        where h.task_id = hold_credits.task_id and h.closed_at is null;
      if found then
        return true;
      end if;
      perform vidgen.check_hold(hold_credits.task_id, hold_credits.user_id, prices);
      select coalesce(sum(p.credits::integer), 0) into total
        from jsonb_each_text(prices) as p (stage, credits);
      if total > 0 then
        update public.user_credits as u
           set held = u.held + total, updated_at = now()
         where u.user_id = hold_credits.user_id and u.balance - u.held >= total;
        if not found then
          return false;
        end if;
      end if;
      insert into vidgen.holds (task_id, user_id, prices, amount)
      values (hold_credits.task_id, hold_credits.user_id, prices, total);
      return true;
    end
    $$;

create function vidgen.settle_credits(task_id uuid, stage text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
    #variable_conflict use_variable
    declare
      hold vidgen.holds;
      price integer;
      covered boolean := false;
    begin
      select h.* into hold
        from vidgen.holds as h
       where h.task_id = settle_credits.task_id and h.closed_at is null
         for update;
      if not found then
        raise exception 'task %: no open hold to settle its % from',
          settle_credits.task_id, settle_credits.stage
          using errcode = 'VG003';
      end if;
      perform vidgen.take_charge(settle_credits.task_id, settle_credits.stage, hold.user_id);
      -- A stage that was added after the hold was opened has no price in it: it costs nothing.
      price := coalesce((hold.prices ->> settle_credits.stage)::integer, 0);
      -- The balance changes before the hold and the ledger, because both restore a deleted balance.
      if price > 0 then
        update public.user_credits as u
           set balance = u.balance - price, held = u.held - price, updated_at = now()
         where u.user_id = hold.user_id and u.held >= price;
        covered := found;
      end if;
      update vidgen.holds as h set amount = h.amount - price where h.id = hold.id;
      insert into public.credit_entries (user_id, kind, amount, task_id, stage)
      values (hold.user_id, 'charge', -price, settle_credits.task_id, settle_credits.stage);
      if price > 0 and not covered then
        perform vidgen.try_to_restore_credits(hold.user_id);
      end if;
    end
    $$;

-- Settle the charge of a recorded output: its whole seconds, a begun one counts, at the price of its order and
-- never above what was held for it. The rest stays held until the film's end. Returns the credits.
create function vidgen.settle_render(of_film uuid, of_output text) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  of_stage text := 'render:' || of_output;
  price integer;
begin
  select (f.second_credits ->> of_output)::integer
         * least(greatest(ceil(coalesce(r.seconds, 0)), 1), f.seconds)::integer
    into price
    from vidgen.films as f
    join public.video_renditions as r on r.film_id = f.film_id and r.name = of_output
   where f.film_id = of_film;
  if price is null then
    raise exception 'film %: its output % is not recorded, or has no price', of_film, of_output
      using errcode = 'VG003';
  end if;
  update vidgen.holds as h
     set prices = h.prices
                  || jsonb_build_object(of_stage, least(price, (h.prices ->> of_stage)::integer))
   where h.task_id = of_film and h.closed_at is null and h.prices ? of_stage;
  perform vidgen.settle_credits(of_film, of_stage);
  return price;
end
$$;

create function vidgen.release_credits(task_id uuid) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
    #variable_conflict use_variable
    declare
      hold vidgen.holds;
      covered boolean := true;
    begin
      perform vidgen.check_release(release_credits.task_id);
      select h.* into hold
        from vidgen.holds as h
       where h.task_id = release_credits.task_id and h.closed_at is null
         for update;
      if not found then
        return;
      end if;
      if hold.amount > 0 then
        update public.user_credits as u
           set held = u.held - hold.amount, updated_at = now()
         where u.user_id = hold.user_id and u.held >= hold.amount;
        covered := found;
      end if;
      update vidgen.holds as h set amount = 0, closed_at = now() where h.id = hold.id;
      if not covered then
        perform vidgen.try_to_restore_credits(hold.user_id);
      end if;
    end
    $$;

-- Where the user's balance row is gone, a grant restores it from the whole ledger, not from this entry only:
-- else the row would look correct and hold too little for ever.
create function vidgen.grant_credits(user_id uuid, amount integer, reference text)
returns public.user_credits
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  credits public.user_credits;
  earlier public.credit_entries;
  entry_id bigint;
begin
  if user_id is null or coalesce(amount, 0) <= 0 or coalesce(btrim(reference), '') = ''
     or length(reference) > 500 then
    raise exception 'grant_video_credits needs a user_id, an amount above 0 and a reference of 1 to 500 characters'
      using errcode = 'PT400',
            hint = 'The reference makes the call idempotent: pass your payment''s id.';
  end if;
  -- Without a conflict target, whose column would be read as the variable. The ledger has no other conflict.
  insert into public.credit_entries (user_id, kind, amount, reference)
  values (user_id, 'grant', amount, reference)
      on conflict do nothing
  returning id into entry_id;
  if entry_id is not null then
    update public.user_credits as u
       set balance = u.balance + grant_credits.amount, updated_at = now()
     where u.user_id = grant_credits.user_id;
    if not found then
      perform vidgen.restore_credits(grant_credits.user_id);
    end if;
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

-- The deletion of a task before its end releases its hold.
create function vidgen.task_goes() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  perform vidgen.release_credits(old.id);
  perform vidgen.tell_films(old.id);
  return null;
end
$$;

create trigger task_goes
  after delete on public.video_generation_tasks
  for each row
  when (old.status in ('pending', 'processing'))
  execute function vidgen.task_goes();

-- Users whose balance, holds and ledger do not agree, or lack one of them. The view must be empty.
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

-- Add the next entries to the totals; return their number. The locked row allows one call at a time.
create function vidgen.audit_entries(batch integer) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  begins bigint;
  ends bigint;
  entries bigint;
begin
  select a.through_id into begins from vidgen.audited as a for update skip locked;
  if begins is null then
    return 0;
  end if;
  select max(next.id), count(*) into ends, entries
    from (
      select e.id, e.created_at
        from public.credit_entries as e
       where e.id > begins
       order by e.id
       limit batch
    ) as next
   where next.created_at < now() - interval '1 hour';
  if entries > 0 then
    insert into vidgen.audited_totals as t (user_id, total)
    select e.user_id, sum(e.amount)
      from public.credit_entries as e
     where e.id > begins and e.id <= ends
     group by e.user_id
     order by e.user_id
        on conflict on constraint audited_totals_pkey do update
       set total = t.total + excluded.total;
    update vidgen.audited as a set through_id = ends;
  end if;
  return entries;
end
$$;

-- Compare the next users, in the order of their ids: the total and later entries with the balance, the open
-- holds with the held credits. A user who disagrees is summed anew, once a day at the most, before the user
-- counts as a discrepancy. The next part begins at `through`; null: this was the last.
create function vidgen.audit_users(after uuid, batch integer)
returns table (discrepancies bigint, through uuid)
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
  return query
  with mark as materialized (
    select a.through_id from vidgen.audited as a
  ),
  part as materialized (
    select users.user_id
      from (
        (select c.user_id from public.user_credits as c
          where after is null or c.user_id > after order by c.user_id limit batch)
        union
        (select t.user_id from vidgen.audited_totals as t
          where after is null or t.user_id > after order by t.user_id limit batch)
        union
        (select h.user_id from vidgen.holds as h
          where h.closed_at is null and (after is null or h.user_id > after)
          order by h.user_id limit batch)
      ) as users
     order by users.user_id
     limit batch
  ),
  since as materialized (
    select e.user_id, sum(e.amount) as total
      from mark, public.credit_entries as e
     where e.id > mark.through_id
     group by e.user_id
  ),
  holds as materialized (
    select h.user_id, sum(h.amount) as total
      from vidgen.holds as h
     where h.closed_at is null
     group by h.user_id
  ),
  compared as materialized (
    select part.user_id, coalesce(c.balance, 0) as balance, coalesce(c.held, 0) as held,
           coalesce(since.total, 0) as since, coalesce(t.total, 0) as total,
           coalesce(holds.total, 0) as holds, t.summed_at
      from part
      left join public.user_credits as c on c.user_id = part.user_id
      left join vidgen.audited_totals as t on t.user_id = part.user_id
      left join since on since.user_id = part.user_id
      left join holds on holds.user_id = part.user_id
  ),
  summed as (
    insert into vidgen.audited_totals as t (user_id, total, summed_at)
    select wrong.user_id, coalesce(entries.total, 0), now()
      from compared as wrong, mark
     cross join lateral (
       select sum(e.amount) as total
         from public.credit_entries as e
        where e.user_id = wrong.user_id and e.id <= mark.through_id
     ) as entries
     where wrong.balance <> wrong.total + wrong.since
       and (wrong.summed_at is null or wrong.summed_at not between now() - interval '1 day' and now())
     order by wrong.user_id
        on conflict on constraint audited_totals_pkey do update
       set total = excluded.total, summed_at = excluded.summed_at
    returning t.user_id, t.total
  )
  select count(*) filter (
           where compared.balance <> coalesce(summed.total, compared.total) + compared.since
              or compared.held <> compared.holds
         ),
         case when count(*) >= batch
           then (array_agg(compared.user_id order by compared.user_id desc))[1]
         end
    from compared
    left join summed on summed.user_id = compared.user_id;
end
$$;

create function vidgen.note_audit(found_now bigint) returns void
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$ update vidgen.audited as a set discrepancies = note_audit.found_now, audited_at = now() $$;

-- Closed holds: their credits are in the ledger or were given back.
create function vidgen.forget_holds(older_than interval, batch integer) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
  before timestamptz := now() - greatest(older_than, interval '32 days');
  gone bigint;
begin
  with old as materialized (
    select h.id
      from vidgen.holds as h
     where h.closed_at < before
     order by h.closed_at
     limit batch
       for update skip locked
  )
  delete from vidgen.holds as h using old where h.id = old.id;
  get diagnostics gone = row_count;
  return gone;
end
$$;

-- Rights.

call vidgen.revoke_from_strangers();

revoke all on
  public.credit_prices, public.user_credits, public.credit_entries
  from public, anon, authenticated, service_role, vidgen_worker;

revoke all on function
  vidgen.ledger_is_append_only(), vidgen.due_prices(uuid), vidgen.check_hold(uuid, uuid, jsonb),
  vidgen.take_charge(uuid, text, uuid), vidgen.check_release(uuid), vidgen.charge_is_due(),
  vidgen.restore_credits(uuid), vidgen.try_to_restore_credits(uuid),
  vidgen.render_prices(uuid), vidgen.settle_render(uuid, text),
  vidgen.hold_credits(uuid, uuid, jsonb), vidgen.settle_credits(uuid, text),
  vidgen.release_credits(uuid), vidgen.grant_credits(uuid, integer, text), vidgen.task_goes(),
  vidgen.audit_entries(integer), vidgen.audit_users(uuid, integer), vidgen.note_audit(bigint),
  vidgen.forget_holds(interval, integer)
  from public, anon, authenticated, service_role;

revoke all on sequence public.credit_entries_id_seq
  from public, anon, authenticated, service_role;

grant select on public.credit_entries, public.credit_prices, public.user_credits to authenticated;
grant select, insert, update, delete on public.credit_prices to service_role;
grant select on public.credit_entries, public.user_credits to service_role;
grant select on
  public.credit_entries, public.credit_prices, public.user_credits, vidgen.audited,
  vidgen.audited_totals, vidgen.charges, vidgen.credit_discrepancies, vidgen.holds
  to vidgen_worker;
grant insert (task_id, stage, user_id) on vidgen.charges to vidgen_worker;
grant execute on function vidgen.grant_credits(uuid, integer, text) to service_role;
grant execute on function
  vidgen.settle_render(uuid, text), vidgen.due_prices(uuid),
  vidgen.hold_credits(uuid, uuid, jsonb), vidgen.settle_credits(uuid, text),
  vidgen.release_credits(uuid), vidgen.audit_entries(integer), vidgen.audit_users(uuid, integer),
  vidgen.note_audit(bigint), vidgen.forget_holds(interval, integer)
  to vidgen_worker;

create policy "signed-in users see prices" on public.credit_prices
  for select to authenticated using (true);
create policy "owners see their balance" on public.user_credits
  for select to authenticated using ((select vidgen.signed_in_user()) = user_id);
create policy "owners see their entries" on public.credit_entries
  for select to authenticated using ((select vidgen.signed_in_user()) = user_id);
create policy "the worker sees prices" on public.credit_prices
  for select to vidgen_worker using (true);
create policy "the worker sees balances" on public.user_credits
  for select to vidgen_worker using (true);
create policy "the worker sees entries" on public.credit_entries
  for select to vidgen_worker using (true);

update vidgen.settings set schema_version = '20261130100600', oldest_program = '20261130100600';
