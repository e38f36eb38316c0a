// Wires the page: who is signed in, what he orders, what he sees of it.
import { readCredits, readPrice } from './credits.ts'
import { openDoor } from './door.ts'
import { Feed } from './feed.ts'
import { forgetOrder, offer, onOrder, quote, type Wanted } from './form.ts'
import { byId, show } from './page.ts'
import { readResolutions, saveScene, uploadPicture } from './scenes.ts'
import { onUser, signOut, type User } from './session.ts'
import { order, PAGE, readPause, readTasks, watch } from './tasks.ts'
import { sentence } from './words.ts'

const more = byId('more', HTMLButtonElement)

/** Everything that a signed-in user sees. `close` at his sign-out. */
class Studio {
  readonly #feed = new Feed(() => this.#refresh())
  #count = PAGE
  #isClosed = false
  #asked = 0 // how often everything was read, and which of these answers is shown
  #shown = 0
  #isLive = true
  #trouble = ''
  #pause = ''
  readonly #unwatch: () => void

  constructor(readonly user: User) {
    this.#unwatch = watch(user.id, {
      task: (task) => this.#try(() => this.#feed.show([task])),
      read: () => this.#refresh(),
      live: (isLive) => { this.#isLive = isLive; this.#tell() },
    })
    addEventListener('offline', this.#tell)
    this.#refresh()
  }

  close(): void {
    this.#isClosed = true // what is still under way shows nothing to the next user
    removeEventListener('offline', this.#tell)
    this.#unwatch()
    this.#feed.close()
    byId('credits', HTMLElement).textContent = '–'
  }

  /** Order a video. Its card is there at once, and says what becomes of the order. */
  order(wanted: Wanted): void {
    const id = crypto.randomUUID()
    const sceneId = crypto.randomUUID()
    const card = this.#feed.begin(id, wanted.still, wanted.resolution)
    card.element.scrollIntoView({ behavior: 'smooth', block: 'nearest' }) // below the form on a phone
    card.element.focus({ preventScroll: true })
    let picture = ''
    const send = async () => {
      try {
        card.sending('Uploading the picture')
        picture ||= await uploadPicture(this.user.id, wanted.picture)
        if (this.#isClosed) return
        card.sending('Ordering the video')
        await saveScene({
          id: sceneId, user_id: this.user.id, scenario_id: wanted.scenarioId,
          image_prompt: wanted.still, visual_prompt: wanted.motion,
          product_reference_image_url: picture,
        })
        await order(id, sceneId)
      } catch (error) {
        // Both ids stay the same, so sending it all again orders nothing twice.
        return card.sending(sentence(error), send)
      }
      this.#refresh()
    }
    send()
  }

  showMore(): void {
    this.#count += PAGE
    this.#refresh()
  }

  /** Read everything again. */
  #refresh(): void {
    if (this.#isClosed) return
    const turn = ++this.#asked
    this.#try(async () => {
      const [tasks, pause, price, credits, resolutions] = await Promise.all([
        readTasks(this.#count), readPause(), readPrice(), readCredits(), readResolutions(),
      ])
      if (this.#isClosed || turn < this.#shown) return // what was asked later is here already
      this.#shown = turn
      offer(resolutions)
      quote(price, credits)
      byId('credits', HTMLElement).textContent = String(credits)
      this.#pause = pause ?? ''
      await this.#feed.show(tasks)
      more.hidden = tasks.length < this.#count
    })
  }

  async #try(what: () => Promise<void>): Promise<void> {
    try {
      await what()
      this.#trouble = ''
    } catch (error) {
      this.#trouble = sentence(error)
    }
    this.#tell()
  }

  readonly #tell = () => {
    if (this.#isClosed) return
    if (!navigator.onLine) show('You are offline. Your videos go on; the page will catch up.')
    else show(this.#trouble || this.#pause || (this.#isLive ? '' : 'Reconnecting …'))
  }
}

let studio: Studio | null = null
let isLeaving = false
let last = '' // who was here before

openDoor()
onOrder((wanted) => studio?.order(wanted))
more.addEventListener('click', () => studio?.showMore())
byId('sign-out', HTMLButtonElement).addEventListener('click', () => {
  isLeaving = true
  signOut().then(forgetOrder, (error) => { isLeaving = false; show(sentence(error)) })
})
onUser((user) => {
  const note = studio && !user && !isLeaving ? 'Your session is over. Sign in again to go on.' : ''
  byId('door-note', HTMLElement).textContent = note
  isLeaving = false
  studio?.close()
  studio = user && new Studio(user)
  // What one user has begun to write waits for him, and is shown to nobody else.
  if (user && last && user.id !== last) forgetOrder()
  last = user?.id ?? last
  show('')
  byId('door', HTMLElement).hidden = user !== null
  byId('studio', HTMLElement).hidden = user === null
  byId('account', HTMLElement).hidden = user === null
})
