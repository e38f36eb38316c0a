// Who is signed in.
import { supabase } from './supabase.ts'

export type User = { id: string; email: string }

/** Call back with the user, or null, now and at every change of it; not when a token is renewed. */
export function onUser(changed: (user: User | null) => void): void {
  let last: string | null | undefined
  supabase.auth.onAuthStateChange((_event, session) => {
    const id = session?.user.id ?? null
    if (id === last) return
    last = id
    // Not inside the callback: supabase-js holds its lock meanwhile, and a query would wait for it.
    setTimeout(() => changed(session && { id: session.user.id, email: session.user.email ?? '' }))
  })
}

/** Throws what supabase-js answers, for `sentence`. */
export async function signIn(email: string, password: string): Promise<void> {
  const { error } = await supabase.auth.signInWithPassword({ email, password })
  if (error) throw error
}

/** Whether the user is signed in now; false: the address must be confirmed first. */
export async function signUp(email: string, password: string): Promise<boolean> {
  const { data, error } = await supabase.auth.signUp({ email, password })
  if (error) throw error
  return data.session !== null
}

/** Sign out of this browser, offline too. */
export async function signOut(): Promise<void> {
  const { error } = await supabase.auth.signOut({ scope: 'local' })
  if (!error) return
  // Offline the session here is gone all the same: only the server was not told.
  const { data } = await supabase.auth.getSession()
  if (data.session) throw error
}
