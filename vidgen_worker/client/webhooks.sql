-- Webhooks for operators. The functions check the caller, and say what they refuse.

-- webhooks --
-- Every webhook, and how many deliveries each has on its way.
select w.id, w.user_id, w.url, w.events, w.enabled, w.disabled_reason, w.last_status, w.last_success_at,
       w.last_failure_at, w.created_at, waiting.deliveries as waiting, waiting.oldest_seconds
  from public.video_webhooks as w
 cross join lateral (
   select count(*) as deliveries,
          extract(epoch from now() - min(d.created_at))::float as oldest_seconds
     from vidgen.deliveries as d
    where d.webhook_id = w.id and d.delivered_at is null and d.gave_up_at is null
 ) as waiting
 order by w.created_at;

-- webhooks_between --
-- Webhooks whose id begins with some letters.
select w.id from public.video_webhooks as w where w.id between %(first)s and %(last)s limit 5;

-- add_webhook --
-- A new webhook; its secret is shown this once.
select public.create_video_webhook(%(url)s, %(events)s::text[]) as made;

-- test_webhook --
-- Send webhook.test: the webhook is enabled once it is answered.
select (public.test_video_webhook(%(webhook_id)s)).enabled as enabled;

-- rotate_webhook --
-- A new secret; the old one signs beside it for a day.
select public.rotate_video_webhook_secret(%(webhook_id)s) ->> 'secret' as secret;

-- resend_deliveries --
-- Send again what has ended since a time: at once, under the same ids.
select public.resend_video_deliveries(%(webhook_id)s, now() - %(since)s::interval) as deliveries;

-- delete_webhook --
-- Remove a webhook, and what is on its way to it.
select public.delete_video_webhook(%(webhook_id)s);

-- deliveries --
-- The newest deliveries, of all webhooks or of one.
select d.created_at, d.webhook_id, d.id, d.event, d.task_id, d.tries, d.last_status, d.last_error,
       d.delivered_at, d.gave_up_at,
       case
         when d.delivered_at is not null then 'delivered'
         when d.gave_up_at is not null then 'given up'
         when d.leased_until > now() then 'under way'
         when d.next_at >= '9999-01-01 00:00:00+00' then 'disabled'
         else 'waiting'
       end as state,
       case
         when d.delivered_at is null and d.gave_up_at is null and d.next_at < '9999-01-01 00:00:00+00'
           then greatest(extract(epoch from d.next_at - now()), 0)::float
       end as next_in,
       extract(epoch from d.delivered_at - d.created_at)::float as took
  from vidgen.deliveries as d
 where %(webhook_id)s::uuid is null or d.webhook_id = %(webhook_id)s
 order by d.created_at desc
 limit %(limit)s;
