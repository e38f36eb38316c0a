// Orders: insert, watch, cancel, retry.
import type { Gate, Task } from './database.ts'
import { supabase } from './supabase.ts'

export const PAGE = 20 // videos that are read at once
const REFETCH_MS = 15_000

export const hasEnded = (task: Task) => ['completed', 'failed', 'cancelled'].includes(task.status)

/** Order a video. The id is ours, so it may be sent again after a lost answer. */
export async function order(id: string, sceneId: string): Promise<void> {
  // Only with ignoreDuplicates: a plain upsert would be an UPDATE, which clients may not do.
  const { error } = await supabase.from('video_generation_tasks')
    .upsert({ id, scene_id: sceneId }, { onConflict: 'id', ignoreDuplicates: true })
  if (error) throw error
}

/** Cancel: at once where nothing runs at the provider, else within seconds (cancel_requested_at). */
export async function cancel(id: string): Promise<Task> {
  const { data, error } = await supabase.rpc('cancel_video_generation_task', { task_id: id })
  if (error) throw error
  return data
}

/** Try a failed or cancelled one again; what is finished is kept and not paid again. */
export async function retry(id: string): Promise<Task> {
  const { data, error } = await supabase.rpc('retry_video_generation_task', { task_id: id })
  if (error) throw error
  return data
}

/** The user's videos, newest first, `count` of them. */
export async function readTasks(count: number): Promise<Task[]> {
  const { data, error } = await supabase.from('video_generation_tasks').select('*')
    .order('created_at', { ascending: false }).limit(count)
  if (error) throw error
  return data
}

/** Why nothing new starts now, as a sentence; null where all is well. */
export async function readPause(): Promise<string | null> {
  const { data, error } = await supabase.from('video_generation_gates').select('model, message')
  if (error) throw error
  return data[0]?.message ?? null
}

type Watch = {
  task: (task: Task) => void // a row has changed
  read: () => void // read everything again: something may have been missed
  live: (isLive: boolean) => void // whether changes reach the page by themselves
}

/** Watch all videos of a user until the returned function is called. */
export function watch(userId: string, tell: Watch): () => void {
  const channel = supabase.channel(`videos-of-${userId}`)
  const change = { schema: 'public', table: 'video_generation_tasks', filter: `user_id=eq.${userId}` }
  channel
    .on<Task>('postgres_changes', { ...change, event: 'INSERT' }, ({ new: row }) => tell.task(row))
    .on<Task>('postgres_changes', { ...change, event: 'UPDATE' }, ({ new: row }) => tell.task(row))
    .on<Gate>(
      'postgres_changes', { schema: 'public', table: 'video_generation_gates', event: '*' }, tell.read,
    )
  let isOver = false
  const join = () => !isOver && channel.subscribe((status) => {
    // SUBSCRIBED comes again after every reconnect. What happened in between is never sent later.
    if (status === 'SUBSCRIBED') tell.read()
    tell.live(status === 'SUBSCRIBED')
  })
  // Without this the channel may join before it has the token, as anon, and hear nothing. Where the
  // token can't be renewed now, supabase-js does so when it can, and tells the channel.
  supabase.realtime.setAuth().then(join, join)

  // A page that was hidden or offline reads again when it is back; and now and then in any case, for
  // networks that let no WebSocket through.
  const wake = () => { if (!document.hidden && navigator.onLine) tell.read() }
  document.addEventListener('visibilitychange', wake)
  addEventListener('online', wake)
  const timer = setInterval(wake, REFETCH_MS)
  return () => {
    isOver = true
    document.removeEventListener('visibilitychange', wake)
    removeEventListener('online', wake)
    clearInterval(timer)
    supabase.removeChannel(channel)
  }
}
