// What a video costs, and what the user has.
import { supabase } from './supabase.ts'

/** Credits of one video: of its still, and of its clip. */
export async function readPrice(): Promise<{ still: number; clip: number; total: number }> {
  const { data, error } = await supabase.from('credit_prices').select('action, credits')
  if (error) throw error
  const of = (action: string) => data.find((row) => row.action === action)?.credits ?? 0
  const still = of('generate_image')
  const clip = of('generate_scene')
  return { still, clip, total: still + clip }
}

/** Credits that are free to spend: those held for videos under way are not. */
export async function readCredits(): Promise<number> {
  const { data, error } = await supabase.from('user_credits').select('balance, held').maybeSingle()
  if (error) throw error
  return data ? data.balance - data.held : 0 // who never had a credit has no row
}
