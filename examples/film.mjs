// Order a film of all your scenes of a scenario in three formats, and save its files: npm install, then
//   SUPABASE_URL=… SUPABASE_KEY=sb_publishable_… ACCESS_TOKEN=… node film.mjs SCENARIO_ID [MUSIC]
// MUSIC is a file, .mp3, .m4a or .wav. The same scenes are generated once, whatever the formats.
// In a browser the user's session takes the place of ACCESS_TOKEN, a file input that of MUSIC, and
// the address that is printed is what a <video> plays.
// The types are those that `supabase gen types` writes to database.types.ts (docs/clients.md).
// @ts-check
import { readFile, writeFile } from 'node:fs/promises'
import { basename, extname } from 'node:path'
import { createClient } from '@supabase/supabase-js'
import WebSocket from 'ws' // Node 22 and later have their own

const { SUPABASE_URL, SUPABASE_KEY, ACCESS_TOKEN } = process.env
const [scenario, music] = process.argv.slice(2)
if (!SUPABASE_URL || !SUPABASE_KEY || !ACCESS_TOKEN || !scenario) {
  console.error('usage: SUPABASE_URL=… SUPABASE_KEY=… ACCESS_TOKEN=… node film.mjs SCENARIO_ID [MUSIC]')
  process.exit(2)
}
const REFETCH_MS = Number(process.env.REFETCH_MS ?? 2000)
const TYPES = new Map([['.mp3', 'audio/mpeg'], ['.m4a', 'audio/mp4'], ['.wav', 'audio/wav']])

/** @typedef {import('./database.types.js').Database} Database */

/** @type {import('@supabase/supabase-js').SupabaseClient<Database>} */
const supabase = createClient(SUPABASE_URL, SUPABASE_KEY, {
  accessToken: async () => ACCESS_TOKEN,
  realtime: { transport: /** @type {any} */ (WebSocket) }, // the types of `ws` are its own
})

// An id of our own makes the insert safe to repeat: a second one changes nothing.
const id = crypto.randomUUID()
const cut = {
  scenario,
  ...(music ? { sound: { music: { asset: await uploaded(music), gain: -6 } } } : {}),
  outputs: ['web', 'vertical', 'square', 'poster'],
}
const ordered = await supabase
  .from('video_generation_tasks')
  .upsert({ id, cut }, { onConflict: 'id', ignoreDuplicates: true })
if (ordered.error) fail(ordered.error)

process.once('SIGINT', async () => {
  const { error } = await supabase.rpc('cancel_video_generation_task', { task_id: id })
  if (error) fail(error)
})

const film = await ended()
if (film.status !== 'completed') {
  // Of a cut that can't be made, `error.field` is the JSON pointer of what is wrong.
  console.log(film.status, film.error_code ?? '', film.error_message ?? '', film.error ?? '')
  process.exit(1)
}
const { data: files, error } = await supabase
  .from('video_renditions').select('*').eq('film_id', id).order('position')
if (error) fail(error)
for (const { name, bucket, path, width, height, seconds } of files) {
  const { data, error } = await supabase.storage.from(bucket).download(path)
  if (error) fail(error)
  const file = `film-${name}${extname(path)}`
  await writeFile(file, Buffer.from(await data.arrayBuffer()))
  console.log('saved', file, `${width} × ${height}`, seconds ? `${seconds.toFixed(1)} s` : '')
}
const [first] = files
const { data: signed, error: refused } = await supabase.storage
  .from(first.bucket).createSignedUrl(first.path, 3600)
if (refused) fail(refused)
console.log('video', signed.signedUrl)
process.exit(0)

/**
 * Bring a file into the user's own folder; the cut names it without that folder.
 * @param {string} file
 */
async function uploaded(file) {
  const claims = JSON.parse(Buffer.from(String(ACCESS_TOKEN).split('.')[1], 'base64url').toString())
  const asset = `music/${basename(file)}`
  const contentType = TYPES.get(extname(file))
  if (!contentType) return fail({ message: `${file}: name an .mp3, .m4a or .wav` })
  const { error } = await supabase.storage.from('film-assets')
    .upload(`${claims.sub}/${asset}`, await readFile(file), { contentType, upsert: true })
  return error ? fail(error) : asset
}

/** The film's row once it has ended. generate.mjs is told of changes by Realtime; this one asks. */
async function ended() {
  for (let last = ''; ;) {
    const { data: row, error } = await supabase
      .from('video_generation_tasks').select('*').eq('id', id).single()
    if (error) return fail(error)
    const said = `${row.progress.toFixed(0).padStart(3)} %  ${row.message ?? row.current_step}`
    if (said !== last) console.log(said)
    last = said
    if (['completed', 'failed', 'cancelled'].includes(row.status)) return row
    await new Promise((resolve) => setTimeout(resolve, REFETCH_MS))
  }
}

/**
 * @param {{ code?: string, message: string, hint?: string }} error
 * @returns {never}
 */
function fail({ code, message, hint }) {
  console.error(code ?? '', message, hint ?? '')
  process.exit(1)
}
