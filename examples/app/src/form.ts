// The form of a new video: picture, texts, size; what it costs and whether that can be paid.
import { block, byId, copyOf, inside, isBlocked } from './page.ts'
import { pixelsOf, ratioOf, shapeOf } from './size.ts'
import { sentence } from './words.ts'

export type Wanted = {
  picture: File
  still: string
  motion: string
  resolution: string
  scenarioId: string
}
type Price = { still: number; clip: number; total: number }

const TYPES = ['image/jpeg', 'image/png', 'image/webp'] // as the bucket of setup.sql takes them
const MOST_BYTES = 16 * 1024 * 1024

const form = byId('order', HTMLFormElement)
const button = byId('order-button', HTMLButtonElement)
const priceLine = byId('price', HTMLElement)
const sizes = byId('sizes', HTMLElement)
const picture = byId('picture', HTMLInputElement)
const preview = byId('preview', HTMLImageElement)
const hint = byId('picture-hint', HTMLElement)
const HINT = hint.textContent
let scenarios = new Map<string, string>()
let looked = Promise.resolve('') // what is wrong with the picture

/** Call back with each valid order. */
export function onOrder(order: (wanted: Wanted) => void): void {
  let isLooking = false
  picture.addEventListener('change', () => { looked = lookAtPicture() })
  // Who goes back to the page finds what was written, and the picture that was chosen.
  addEventListener('pageshow', () => { looked = lookAtPicture() })
  form.addEventListener('submit', async (event) => {
    event.preventDefault()
    const values = new FormData(form)
    const resolution = String(values.get('resolution'))
    const scenarioId = scenarios.get(resolution)
    const file = picture.files?.[0]
    if (isLooking || isBlocked(button) || !file || !scenarioId) return
    isLooking = true
    const problem = await looked
    isLooking = false
    if (problem) return picture.focus()
    order({
      picture: file, still: String(values.get('still')), motion: String(values.get('motion')),
      resolution, scenarioId,
    })
    forgetOrder()
  })
}

/** Empty the form. */
export function forgetOrder(): void {
  form.reset()
  looked = lookAtPicture()
}

/** Offer these resolutions, "width:height", each with its scenario. */
export function offer(offered: Map<string, string>): void {
  if ([...offered.keys()].join() === [...scenarios.keys()].join()) return
  scenarios = offered
  sizes.replaceChildren(...[...offered.keys()].map((resolution, index) => {
    const size = copyOf('size-template')
    const radio = inside(size, 'input', HTMLInputElement)
    radio.value = resolution
    radio.defaultChecked = index === 0 // also after form.reset()
    // By the object model, because a policy without 'unsafe-inline' forbids style attributes.
    inside(size, '.shape', HTMLElement).style.aspectRatio = String(ratioOf(resolution))
    inside(size, '.name', HTMLElement).textContent = shapeOf(resolution)
    inside(size, '.tile', HTMLElement).title = pixelsOf(resolution)
    return size
  }))
}

/** Say what a video costs; take no order that the credits don't cover. */
export function quote(price: Price, credits: number): void {
  const short = credits < price.total
  block(button, short || !scenarios.size)
  button.textContent = `Order for ${price.total} credits`
  priceLine.classList.toggle('is-short', short)
  priceLine.textContent = !scenarios.size ? 'There is no size to choose yet: run setup.sql.' : short
    ? `A video costs ${price.total} credits and you have ${credits}. Add credits, then order.`
    : `${price.still} credits for the still, ${price.clip} for the clip. `
      + 'You pay for what is made, not for what fails.'
}

/** Show the picture; say what is wrong with it, before it is uploaded, and return that. */
async function lookAtPicture(): Promise<string> {
  const file = picture.files?.[0]
  const problem = file ? await problemOf(file) : ''
  if (file !== picture.files?.[0]) return looked // another one was chosen meanwhile
  if (preview.src) URL.revokeObjectURL(preview.src)
  preview.hidden = !file || problem !== ''
  if (file && !problem) preview.src = URL.createObjectURL(file)
  else preview.removeAttribute('src')
  picture.setCustomValidity(problem)
  hint.textContent = problem || HINT
  hint.classList.toggle('is-short', problem !== '')
  return problem
}

/** Why a file can't be the picture; '' where it can. It is read: a name and a type prove nothing. */
async function problemOf(file: File): Promise<string> {
  if (!TYPES.includes(file.type)) return sentence({ statusCode: '415' })
  if (file.size > MOST_BYTES) return sentence({ statusCode: '413' })
  try {
    (await createImageBitmap(file)).close()
  } catch {
    return sentence({ code: 'picture_not_read' })
  }
  return ''
}
