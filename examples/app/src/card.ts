// One video: its still and clip, the bar, how it stands, and the one thing to do about it.
import { Clip } from './clip.ts'
import type { Task } from './database.ts'
import { announce, block, copyOf, inside, isBlocked } from './page.ts'
import { pixelsOf, ratioOf } from './size.ts'
import { cancel, hasEnded, retry } from './tasks.ts'
import { sentence, standing, timeLeft, when } from './words.ts'

type Action = { label: string; run: () => Promise<void> }

export class Card {
  readonly element = copyOf('card-template')
  task: Task | null = null
  #title = ''
  #action: Action | null = null
  readonly #clip: Clip
  readonly #progress = inside(this.element, 'progress', HTMLProgressElement)
  readonly #standing = inside(this.element, '.standing', HTMLElement)
  readonly #left = inside(this.element, '.left', HTMLElement)
  readonly #button = inside(this.element, '.action', HTMLButtonElement)
  readonly #still = inside(this.element, '.still', HTMLImageElement)
  readonly #video = inside(this.element, 'video', HTMLVideoElement)

  /** `changed` is called with a row that an action of the user's has answered. */
  constructor(readonly id: string, readonly changed: (task: Task) => void) {
    this.element.id = `video-${id}`
    this.#clip = new Clip(this.#video, (error) => {
      if (error) this.#say(sentence(error))
      else if (this.task) this.#say(standing(this.task))
    })
    this.#button.addEventListener('click', () => this.#act())
  }

  /**
   * What the video is of; null: as before. And its size, "width:height", which keeps the place of its
   * picture.
   */
  describe(what: string | null, resolution: string | null, createdAt: string): void {
    const title = what ?? this.#title
    this.#title = title
    this.element.style.setProperty('--ratio', String(ratioOf(resolution)))
    inside(this.element, 'h3', HTMLElement).textContent = title
    inside(this.element, '.meta', HTMLElement).textContent =
      [when(createdAt), resolution && pixelsOf(resolution)].filter(Boolean).join(' · ')
    this.element.setAttribute('aria-label', title)
    this.#progress.setAttribute('aria-label', `Progress of ${title}`)
  }

  /** A step of the order itself; `again`: it went wrong, and this sends it once more. */
  sending(step: string, again: (() => Promise<void>) | null = null): void {
    this.element.dataset.state = again ? 'failed' : 'pending'
    this.#say(step)
    this.#offer(again && { label: 'Send again', run: again })
  }

  /** Show a row. */
  show(task: Task): void {
    const isNews = task.updated_at !== this.task?.updated_at
    this.task = task
    this.element.dataset.state = task.status
    this.#progress.value = task.progress
    // The same row again: what an action of the user's has met stays to be read.
    if (isNews) this.#say(standing(task))
    this.tick()
    if (task.image_url && this.#still.getAttribute('src') !== task.image_url) {
      this.#still.src = task.image_url
      this.#video.poster = task.image_url
      this.#still.alt = `The still: ${this.#title}`
    }
    this.#still.hidden = !task.image_url || task.status === 'completed'
    this.#video.hidden = task.status !== 'completed'
    this.#video.setAttribute('aria-label', `The clip: ${this.#title}`)
    this.#clip.show(task)
    this.#offer(this.#actionOf(task))
  }

  /** The time that is left goes on between two changes of the row. */
  tick(): void {
    if (this.task) this.#left.textContent = timeLeft(this.task)
  }

  close(): void {
    this.#clip.close()
    this.element.remove()
  }

  #actionOf(task: Task): Action | null {
    if (!hasEnded(task)) {
      if (task.cancel_requested_at) return null
      return { label: 'Cancel', run: async () => this.changed(await cancel(task.id)) }
    }
    if (task.status === 'completed') return null
    return { label: 'Try again', run: async () => this.changed(await retry(task.id)) }
  }

  /** One button for every action keeps the focus where it is. */
  #offer(action: Action | null): void {
    this.#action = action
    const focused = document.activeElement === this.#button
    this.#button.classList.toggle('is-absent', !action)
    if (action) this.#button.textContent = action.label
    if (!action && focused) this.element.focus()
  }

  async #act(): Promise<void> {
    if (!this.#action || isBlocked(this.#button)) return
    block(this.#button, true)
    try {
      await this.#action.run()
    } catch (error) {
      this.#say(sentence(error))
    } finally {
      block(this.#button, false)
    }
  }

  /** Write how it stands; say it aloud where that is news. */
  #say(text: string): void {
    if (this.#standing.textContent === text) return
    const first = this.#standing.textContent === '' && this.task !== null && hasEnded(this.task)
    this.#standing.textContent = text
    if (!first) announce(`${this.#title}: ${text}`)
  }
}
