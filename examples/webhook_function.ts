// A receiver of the worker's webhooks as a Supabase Edge Function.
//
//   supabase functions new video-webhook          # this file becomes its index.ts
//   supabase secrets set WEBHOOK_SECRET=whsec_…
//   supabase functions deploy video-webhook --no-verify-jwt
//   vidgen-worker webhooks add https://REF.supabase.co/functions/v1/video-webhook
//
// The signature takes the place of the JWT. The same event may come more than once, always under the same
// webhook-id, and in any order: the table below remembers what was handled.
//
//   create table public.handled_events (id uuid primary key, handled_at timestamptz default now());
//   alter table public.handled_events enable row level security;

import { createClient } from 'npm:@supabase/supabase-js@2'
import { Webhook } from 'npm:standardwebhooks@1'

type Event = {
  type: string
  timestamp: string
  data: {
    task_id: string
    user_id: string
    status: string
    reference: string | null
    error_code: string | null
    video_path: string | null
  }
}

const webhook = new Webhook(Deno.env.get('WEBHOOK_SECRET')!)
const supabase = createClient(
  Deno.env.get('SUPABASE_URL')!,
  Deno.env.get('SUPABASE_SERVICE_ROLE_KEY')!,
)

Deno.serve(async (request) => {
  const body = await request.text()
  const headers = Object.fromEntries(request.headers)
  let event: Event
  try {
    event = webhook.verify(body, headers) as Event
  } catch {
    return new Response(null, { status: 401 })
  }
  const id = headers['webhook-id']
  const handled = supabase.from('handled_events')
  const { data, error } = await handled.select('id').eq('id', id).maybeSingle()
  if (error) return new Response(null, { status: 503 }) // it is sent again later
  if (data) return new Response(null, { status: 204 }) // it was handled before
  const { reference, task_id, status, error_code } = event.data
  console.log(event.type, reference ?? task_id, status, error_code ?? '')
  // After the work: an event whose handling broke off comes again.
  await supabase.from('handled_events').insert({ id })
  return new Response(null, { status: 204 })
})
