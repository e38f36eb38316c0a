// The user's videos, newest first.
import { Card } from './card.ts'
import type { Task } from './database.ts'
import { byId } from './page.ts'
import { readTexts } from './scenes.ts'
import { hasEnded } from './tasks.ts'

const TICK_MS = 5000

export class Feed {
  readonly #list = byId('videos', HTMLElement)
  readonly #empty = byId('empty', HTMLElement)
  readonly #cards = new Map<string, Card>()
  #texts = new Map<string, string>()
  #isClosed = false
  readonly #timer = setInterval(() => this.#cards.forEach((card) => card.tick()), TICK_MS)

  /** `ended` is called when one has just ended: the credits have changed. */
  constructor(readonly ended: () => void) {}

  get size(): number {
    return this.#cards.size
  }

  /** A card for an order that is not sent yet. */
  begin(id: string, title: string, resolution: string): Card {
    const card = this.#card(id, new Date().toISOString())
    card.describe(title, resolution, new Date().toISOString())
    return card
  }

  /** Show rows; what they are of is read first. Throws what that read throws. */
  async show(tasks: Task[]): Promise<void> {
    const scenes = tasks.flatMap(({ scene_id: id }) => id && !this.#texts.has(id) ? [id] : [])
    const found = await readTexts([...new Set(scenes)])
    if (this.#isClosed) return
    this.#texts = new Map([...this.#texts, ...found])
    for (const task of tasks) this.#show(task)
    this.#empty.hidden = this.#cards.size > 0
  }

  close(): void {
    this.#isClosed = true
    clearInterval(this.#timer)
    this.#cards.forEach((card) => card.close())
    this.#empty.hidden = true
  }

  #show(task: Task): void {
    if (this.#isClosed) return
    const card = this.#card(task.id, task.created_at)
    const before = card.task
    // Events and reads may overtake each other: the row's clock decides.
    if (before && before.updated_at > task.updated_at) return
    const title = this.#texts.get(task.scene_id ?? '')
      ?? (card.element.dataset.state ? null : 'A scene that was deleted')
    if (!before || before.resolution !== task.resolution) {
      if (task.resolution || !card.element.dataset.state) {
        card.describe(title, task.resolution, task.created_at)
      }
    }
    card.show(task)
    if (before && !hasEnded(before) && hasEnded(task)) this.ended()
  }

  /** The card of a video, put where it belongs by its time. */
  #card(id: string, createdAt: string): Card {
    const known = this.#cards.get(id)
    if (known) return known
    const card = new Card(id, (task) => this.#show(task))
    this.#cards.set(id, card)
    card.element.dataset.created = new Date(createdAt).toISOString()
    const older = [...this.#list.children].find((other) =>
      other instanceof HTMLElement && (other.dataset.created ?? '') < (card.element.dataset.created ?? ''))
    this.#list.insertBefore(card.element, older ?? null)
    this.#empty.hidden = true
    return card
  }
}
