-- Deliveries: named blocks, one statement each (see database/statements.py).

-- take_deliveries --
-- Take what is due, webhooks by turns; each row is leased to this worker (see the function). It is sent once:
-- what a lost answer has taken comes back after its lease.
select webhook_id, id, try, event, url, body, secrets, waited, at
  from vidgen.take_deliveries(%(worker_id)s, %(places)s, %(lease)s)

-- book_delivery --
-- What came of one try (see the function).
select vidgen.book_delivery(
         %(webhook_id)s, %(id)s, %(try_number)s::smallint, %(worker_id)s, %(arrived)s, %(status)s::smallint, %(error)s,
         %(pause)s, %(gone)s
       ) as follows

-- return_deliveries --
-- The leases of a worker that stops: another one may send at once.
select vidgen.return_deliveries(%(worker_id)s, %(ids)s::uuid[])

-- forget_deliveries --
-- One batch of deliveries that ended long ago.
select vidgen.forget_deliveries(%(batch)s) as deliveries
