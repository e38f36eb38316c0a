// Everything that a page does with supabase-js, in one go; prints what it got as one line of JSON.
// Runs in Node and, unchanged, in a browser (`run` is called by the page).
export async function run({ createClient, url, key, email, title, options = {} }) {
  const said = {}
  const supabase = createClient(url, key, options)
  const books = () => supabase.from('books')

  const weak = await supabase.auth.signUp({ email, password: 'abc' })
  said.weak = [weak.error.status, weak.error.code]
  const up = await supabase.auth.signUp({ email, password: 'secret-1', options: { data: { nick: 'n' } } })
  said.user = [up.data.user.email, up.data.user.user_metadata.nick, up.data.user.role]
  const twice = await supabase.auth.signUp({ email, password: 'secret-1' })
  said.twice = [twice.error.status, twice.error.code]
  const wrong = await supabase.auth.signInWithPassword({ email, password: 'secret-2' })
  said.wrong = [wrong.error.status, wrong.error.code, wrong.error.message]
  const signedIn = await supabase.auth.signInWithPassword({ email, password: 'secret-1' })
  const old = signedIn.data.session.refresh_token
  const renewed = await supabase.auth.refreshSession()
  said.rotated = renewed.data.session.refresh_token !== old
  const changed = await supabase.auth.updateUser({ data: { nick: 'm' } })
  said.changed = changed.data.user.user_metadata.nick
  said.me = (await supabase.auth.getUser()).data.user.email

  const inserted = await books().insert({ title, pages: 1 }).select().single()
  said.inserted = [inserted.status, inserted.data.pages, inserted.data.owner === up.data.user.id]
  said.none = (await books().select().eq('title', 'none').maybeSingle()).data
  said.single = (await books().select().eq('title', 'none').single()).error.code
  said.duplicate = (await books().insert({ title })).error.code
  said.upserted = (await books().upsert({ title, pages: 2 }, { onConflict: 'title' }).select('pages')).data
  said.counted = (await books().select('*', { count: 'exact', head: true })).count
  said.found = (await books().select('pages').or('pages.eq.2,pages.eq.9').order('pages')).data
  said.summed = (await supabase.rpc('add', { a: 1, b: 2 })).data
  said.shaped = (await supabase.rpc('longer_than', { minimum: 1 }).select('pages').maybeSingle()).data
  said.forbidden = (await supabase.from('shelves').insert({ id: 9, label: 'x' })).error.code

  const events = []
  let heard
  const next = () => new Promise((resolve) => { heard = resolve })
  const subscribed = new Promise((resolve) => {
    supabase.channel('books')
      .on('postgres_changes', { event: '*', schema: 'public', table: 'books', filter: `title=eq.${title}` },
        (change) => { events.push(change); heard?.() })
      // What is gone has its key alone, which no other filter finds.
      .on('postgres_changes', { event: 'DELETE', schema: 'public', table: 'books' },
        (change) => { events.push(change); heard?.() })
      .on('system', {}, (message) => { if (message.extension === 'postgres_changes') resolve(message) })
      .subscribe()
  })
  said.system = (await subscribed).message
  let event = next()
  await books().update({ pages: 3, tags: ['x', 'y,z'], extra: { a: [1] } }).eq('title', title)
  await event
  await books().insert({ title: `${title} other` })
  event = next()
  await books().delete().eq('title', title)
  await event
  said.events = events.map((change) => [change.eventType, change.new.pages, change.new.tags, change.new.extra, Object.keys(change.old)])

  const { error: refused } = await supabase.storage.from('shared').upload(`${up.data.user.id}.txt`, new Blob(['mine']), { contentType: 'text/plain' })
  said.upload = refused
  said.exists = (await supabase.storage.from('shared').exists('nothing.txt')).data
  const signed = await supabase.storage.from('shared').createSignedUrl(`${up.data.user.id}.txt`, 60)
  said.downloaded = await (await fetch(signed.data.signedUrl)).text()

  await supabase.removeAllChannels()
  said.out = (await supabase.auth.signOut()).error
  said.after = (await supabase.auth.getUser()).error.name
  said.ended = (await supabase.auth.refreshSession({ refresh_token: renewed.data.session.refresh_token })).error.code
  return said
}

if (typeof process !== 'undefined' && process.env.SUPABASE_URL) {
  const { createClient } = await import('@supabase/supabase-js')
  const { default: transport } = await import('ws')
  const { SUPABASE_URL: url, SUPABASE_KEY: key, EMAIL: email, TITLE: title } = process.env
  const options = { realtime: { transport }, auth: { persistSession: false } }
  console.log(JSON.stringify(await run({ createClient, url, key, email, title, options })))
  process.exit(0)
}
