-- Limits of a model at the provider: named blocks, one statement each (see database/statements.py).
-- Every statement may be sent twice: a lost acknowledgement changes nothing.

-- ask_limits --
-- Whether this worker is the one to read the account's limits now: one of the fleet does, every
-- minute, and sooner while nobody knows them. Of all models that this account was ever used with: tasks
-- that began with another one may still be under way. Those that another worker is asking about, and
-- nobody knows yet, come back as not `mine`: it may die before it says so.
with asked as (
  update vidgen.limits as l
     set asked_at = now()
   where l.provider = %(provider)s and l.account = %(account)s
     and (
       l.asked_at is null or l.asked_at > now()
       or l.asked_at < now() - case when l.read_at is null then interval '5 seconds' else %(every)s end
     )
  returning l.model
)
select asked.model, true as mine from asked
union all
select l.model, false
  from vidgen.limits as l
 where l.provider = %(provider)s and l.account = %(account)s
   and l.read_at is null and l.model not in (select asked.model from asked)

-- set_limit --
-- How many generations of a model may be in flight; null: any number.
select vidgen.set_limit(%(provider)s, %(account)s, %(model)s, %(max_generations)s, true)

-- expect_limit --
-- Until somebody has read the account: one at a time, which every tier allows.
select vidgen.set_limit(%(provider)s, %(account)s, m.model, 1, false)
  from unnest(%(models)s::text[]) as m (model)
 where not exists (
   select from vidgen.limits as l
    where l.provider = %(provider)s and l.account = %(account)s
      and l.model = m.model
 )
