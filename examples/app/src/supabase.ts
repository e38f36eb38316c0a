// The one client of the page. It keeps the session, renews its token and tells Realtime the new one.
import { createClient } from '@supabase/supabase-js'
import type { Database } from './database.ts'

// Vite puts the two settings here (vite.config.js). The anon key is public: row level security
// decides what a user may do. A secret key never belongs into a page.
const settings = (import.meta as unknown as { env: Record<string, string> }).env

export const supabase = createClient<Database>(
  settings.SUPABASE_URL ?? '', settings.SUPABASE_ANON_KEY ?? '',
)
