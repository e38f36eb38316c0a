// The address of a clip. `video_path` lasts; an address is signed for an hour and then refused.
import type { Task } from './database.ts'
import { supabase } from './supabase.ts'

const CLIPS = 'video-files' // the worker's STORAGE_BUCKET_VIDEOS
const HOUR = 3600
const EARLY_MS = 5 * 60_000 // sign again so long before the end

/** Storage's answer where an operator has pruned the file. */
const isAbsent = (error: object) => 'statusCode' in error && error.statusCode === '404'

/**
 * Keeps a <video> playable. `show` with each state of the task, however often; `close` at the end.
 * `failed` is called with an error, and with null when there is an address to try again.
 */
export class Clip {
  #path: string | null = null
  #until = 0
  #signing = false
  #refused = false
  #timer = 0

  constructor(readonly video: HTMLVideoElement, readonly failed: (error: unknown) => void) {
    video.addEventListener('play', () => this.#renew()) // the laptop slept through the hour
    video.addEventListener('loadeddata', () => { this.#refused = false })
    video.addEventListener('error', () => {
      if (!this.#path) return
      if (this.#refused) return this.failed({ code: 'clip_not_loaded' })
      this.#refused = true // another address, once
      this.#sign()
    })
  }

  show(task: Task): void {
    if (task.status !== 'completed' || !task.video_path) return
    const until = Date.parse(task.video_url_expires_at ?? '') || 0
    if (task.video_path === this.#path && until <= this.#until) {
      if (this.#refused) this.#sign() // the network was away: it may be back
      return
    }
    this.#path = task.video_path
    if (task.video_url && until - Date.now() > EARLY_MS) this.#use(task.video_url, until)
    else this.#sign()
  }

  close(): void {
    clearTimeout(this.#timer)
    this.#path = null
    this.video.removeAttribute('src')
    this.video.load()
  }

  #renew(): void {
    if (this.#until - Date.now() <= EARLY_MS) this.#sign()
  }

  async #sign(): Promise<void> {
    if (this.#signing || !this.#path) return
    this.#signing = true
    const { data, error } = await supabase.storage.from(CLIPS).createSignedUrl(this.#path, HOUR)
    this.#signing = false
    if (error) return this.failed(isAbsent(error) ? { code: 'clip_gone' } : error)
    if (this.#refused) this.failed(null)
    if (this.#path) this.#use(data.signedUrl, Date.now() + HOUR * 1000)
  }

  /** Take a new address, at the same place of the clip. */
  #use(url: string, until: number): void {
    const { currentTime, paused } = this.video
    this.#until = until
    this.video.src = url
    if (currentTime) this.video.currentTime = currentTime
    // Whether it can be loaded is told by the event `error`; a pause or a newer address is none.
    if (!paused) this.video.play().catch(() => undefined)
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.#renew(), until - Date.now() - EARLY_MS)
  }
}
