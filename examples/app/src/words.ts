// What is said to the user. Every error of the page goes through `sentence`.
import type { Task } from './database.ts'

const SENTENCES: Record<string, string> = {
  // Auth
  invalid_credentials: 'The address or the password is wrong.',
  user_already_exists: 'There is an account with this address already. Sign in instead.',
  email_exists: 'There is an account with this address already. Sign in instead.',
  email_address_invalid: 'This is not an e-mail address. Correct it, then try again.',
  email_not_confirmed: 'Open the link in the mail that was sent to you, then sign in.',
  weak_password: 'The password is too short or too easy to guess. Choose a longer one.',
  over_request_rate_limit: 'Too many attempts. Wait a minute, then try again.',
  // Tables and calls
  42501: 'This is not yours, or you are signed out. Sign in again, then try again.',
  23514: 'The text is too long. Shorten it, then try again.',
  PGRST301: 'Your session is over. Sign in again.',
  PGRST303: 'Your session is over. Sign in again.',
  PT404: 'This video is not there any more. Load the page again.',
  PT409: 'This video can’t be tried again as it is. Order a new one, with another text or picture.',
  PT429: 'A limit is reached. Try again later.',
  // Storage
  clip_gone: 'The clip is not there any more. Order the video again to have another one.',
  clip_not_loaded: 'The clip can’t be loaded now. Check your connection; the page tries again by itself.',
  413: 'The picture is too large: 16 MB at most. Choose a smaller one.',
  415: 'This is not a JPEG, PNG or WebP picture. Choose another one.',
  picture_not_read: 'This picture can’t be read. Choose another one.',
}
const OFFLINE = 'The service could not be reached. Check your connection, then try again.'
const AWAY = 'The service has a problem at the moment. Wait a minute, then try again.'
const UNKNOWN = 'That did not work. Try again; if it happens again, tell us what you did.'

type Answer = {
  name?: string; code?: string; statusCode?: string; status?: number; message?: string
  hint?: string | null
}

/** Whether nobody behind the address could answer: the database is away, or a gateway spoke for it. */
const isAway = ({ code, statusCode, status, name }: Answer) =>
  /^(PGRST00\d|08...|53...|57...)$/.test(code ?? '') || Number(statusCode ?? status) >= 500
  || (!name || name === 'PostgrestError') && !code

/** What happened and what now. The error itself goes to the console, for developers. */
export function sentence(error: unknown): string {
  const { code, statusCode, status, message, hint } = (error ?? {}) as Answer
  if (code === 'PT429' && hint) return hint // which limit, and until when: written for users
  const known = SENTENCES[code ?? ''] ?? SENTENCES[statusCode ?? '']
  if (known) return known
  if (!navigator.onLine || !status && /fetch|network/i.test(message ?? '')) return OFFLINE
  console.warn(error)
  if (isAway((error ?? {}) as Answer)) return AWAY
  return UNKNOWN
}

/** How a task stands, in one sentence. */
export function standing(task: Task): string {
  switch (task.status) {
    case 'completed': return 'Ready'
    case 'cancelled': return 'Cancelled'
    case 'failed': return task.error_message ?? 'This did not work.'
  }
  if (task.cancel_requested_at) return 'Cancelling …'
  return task.status === 'pending' ? 'Waiting for its turn' : task.current_step
}

/** "about 25 s left": in steps, so that it doesn't flicker. Empty while nobody can say, or late. */
export function timeLeft(task: Task): string {
  if (task.status !== 'processing' || !task.expected_at || task.cancel_requested_at) return ''
  const seconds = (Date.parse(task.expected_at) - Date.now()) / 1000
  if (seconds <= 0) return ''
  if (seconds < 90) return `about ${Math.ceil(seconds / 5) * 5} s left`
  return `about ${Math.round(seconds / 60)} min left`
}

/** "12:04" of today, else "30 Nov, 12:04", in the user's language. */
export function when(iso: string): string {
  const date = new Date(iso)
  const time = date.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' })
  if (date.toDateString() === new Date().toDateString()) return time
  return `${date.toLocaleDateString([], { day: 'numeric', month: 'short' })}, ${time}`
}
