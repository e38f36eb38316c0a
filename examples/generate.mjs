// Order a video with supabase-js and watch it being made: npm install, then
//   SUPABASE_URL=… SUPABASE_KEY=sb_publishable_… ACCESS_TOKEN=… node generate.mjs SCENE_ID
// In a browser the user's session takes the place of ACCESS_TOKEN, and `ws` is not needed.
// The types are those that `supabase gen types` writes to database.types.ts (docs/clients.md).
// @ts-check
import { createClient } from '@supabase/supabase-js'
import WebSocket from 'ws' // Node 22 and later have their own

const { SUPABASE_URL, SUPABASE_KEY, ACCESS_TOKEN, VIDEOS_BUCKET = 'video-files' } = process.env
const sceneId = process.argv[2]
if (!SUPABASE_URL || !SUPABASE_KEY || !ACCESS_TOKEN || !sceneId) {
  console.error('usage: SUPABASE_URL=… SUPABASE_KEY=… ACCESS_TOKEN=… node generate.mjs SCENE_ID')
  process.exit(2)
}

/** @typedef {import('./database.types.js').Database} Database */
/** @typedef {Database['public']['Tables']['video_generation_tasks']['Row']} Task */

/** @type {import('@supabase/supabase-js').SupabaseClient<Database>} */
const supabase = createClient(SUPABASE_URL, SUPABASE_KEY, {
  accessToken: async () => ACCESS_TOKEN,
  realtime: { transport: /** @type {any} */ (WebSocket) }, // the types of `ws` are its own
})
const ENDED = ['completed', 'failed', 'cancelled']

// An id of our own makes the insert safe to repeat: a second one changes nothing. Only with
// ignoreDuplicates: a plain upsert would be an UPDATE, which clients may not do.
const id = crypto.randomUUID()
const ordered = await supabase
  .from('video_generation_tasks')
  .upsert({ id, scene_id: sceneId }, { onConflict: 'id', ignoreDuplicates: true })
if (ordered.error) fail(ordered.error)

process.once('SIGINT', async () => {
  const { error } = await supabase.rpc('cancel_video_generation_task', { task_id: id })
  if (error) fail(error) // PT429: it runs at the provider already and will be charged
})

const task = await ended(id)
if (task.status !== 'completed') {
  console.log(task.status, task.error_code ?? '', task.error_message ?? '')
  process.exit(1)
}
console.log('still', task.image_url)
console.log('video', await sign(task))
process.exit(0)

/**
 * The row once it has ended. Realtime tells of changes; what it may have missed is read again.
 * @param {string} taskId
 * @returns {Promise<Task>}
 */
function ended(taskId) {
  return new Promise((resolve, reject) => {
    let last = ''
    const show = (/** @type {Task} */ row) => {
      // Events and reads may overtake each other: the row's clock decides.
      if (!(row.updated_at >= last)) return // also an event without its row
      last = row.updated_at
      console.log(`${row.progress.toFixed(0).padStart(3)} %  ${row.current_step}`)
      if (ENDED.includes(row.status)) {
        clearInterval(safetyNet)
        supabase.removeChannel(channel)
        resolve(row)
      }
    }
    const refetch = async () => {
      const { data, error } = await supabase
        .from('video_generation_tasks').select('*').eq('id', taskId).single()
      if (error) return reject(error)
      show(data)
    }
    const channel = supabase.channel(`task-${taskId}`)
    // Without this the channel may join before it has the token, as anon, and hear nothing.
    supabase.realtime.setAuth().then(() => channel
      .on('postgres_changes',
        { event: 'UPDATE', schema: 'public', table: 'video_generation_tasks', filter: `id=eq.${taskId}` },
        (change) => show(/** @type {Task} */ (change.new)))
      // Called again after every reconnect. What happened in between is never sent later.
      .subscribe((status) => { if (status === 'SUBSCRIBED') refetch().catch(reject) }))
    // For networks that let no WebSocket through, and for the seconds after SUBSCRIBED in which
    // changes don't flow yet.
    const safetyNet = setInterval(() => refetch().catch(reject), Number(process.env.REFETCH_MS ?? 15000))
  })
}

/**
 * A URL to the clip. The row's own is good for an hour from completion; the path lasts.
 * @param {Task} task
 */
async function sign({ video_path: path, video_url: url, video_url_expires_at: until }) {
  if (url && until && new Date(until).getTime() - Date.now() > 60_000) return url
  if (!path) return fail({ message: 'this task has no clip' })
  const { data, error } = await supabase.storage.from(VIDEOS_BUCKET).createSignedUrl(path, 3600)
  return error ? fail(error) : data.signedUrl
}

/**
 * @param {{ code?: string, message: string, hint?: string }} error
 * @returns {never}
 */
function fail({ code, message, hint }) {
  console.error(code ?? '', message, hint ?? '')
  process.exit(1)
}
