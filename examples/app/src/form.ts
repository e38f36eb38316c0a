// The form of a new video: picture, texts, size; what it costs and whether that can be paid.
import { block, byId, copyOf, inside, isBlocked } from './page.ts'
import { pixelsOf, ratioOf, shapeOf } from './size.ts'

export type Wanted = {
  picture: File
  still: string
  motion: string
  resolution: string
  scenarioId: string
}
type Price = { still: number; clip: number; total: number }

const form = byId('order', HTMLFormElement)
const button = byId('order-button', HTMLButtonElement)
const priceLine = byId('price', HTMLElement)
const sizes = byId('sizes', HTMLElement)
const picture = byId('picture', HTMLInputElement)
const preview = byId('preview', HTMLImageElement)
let scenarios = new Map<string, string>()

/** Call back with each valid order. */
export function onOrder(order: (wanted: Wanted) => void): void {
  picture.addEventListener('change', showPreview)
  form.addEventListener('submit', (event) => {
    event.preventDefault()
    const values = new FormData(form)
    const resolution = String(values.get('resolution'))
    const scenarioId = scenarios.get(resolution)
    const file = picture.files?.[0]
    if (isBlocked(button) || !file || !scenarioId) return
    order({
      picture: file, still: String(values.get('still')), motion: String(values.get('motion')),
      resolution, scenarioId,
    })
    form.reset()
    showPreview()
  })
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
  block(button, short)
  button.textContent = `Order for ${price.total} credits`
  priceLine.classList.toggle('is-short', short)
  priceLine.textContent = short
    ? `A video costs ${price.total} credits and you have ${credits}. Add credits, then order.`
    : `${price.still} credits for the still, ${price.clip} for the clip. `
      + 'You pay for what is made, not for what fails.'
}

function showPreview(): void {
  if (preview.src) URL.revokeObjectURL(preview.src)
  const file = picture.files?.[0]
  preview.hidden = !file
  if (file) preview.src = URL.createObjectURL(file)
  else preview.removeAttribute('src')
}
