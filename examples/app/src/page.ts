// The parts of index.html that several modules use.

/** The element with this id. Throws where the page has none: index.html and code disagree. */
export function byId<Kind extends HTMLElement>(id: string, kind: new () => Kind): Kind {
  const found = document.getElementById(id)
  if (!(found instanceof kind)) throw new Error(`index.html has no ${kind.name} with id ${id}`)
  return found
}

/** A copy of the one element of a template. */
export function copyOf(template: string): HTMLElement {
  const { content } = byId(template, HTMLTemplateElement)
  return document.importNode(content, true).firstElementChild as HTMLElement
}

/** The first element inside `parent` that fits, of which there is one. */
export function inside<Kind extends Element>(
  parent: ParentNode, selector: string, kind: new () => Kind,
): Kind {
  const found = parent.querySelector(selector)
  if (!(found instanceof kind)) throw new Error(`index.html has no ${kind.name} at ${selector}`)
  return found
}

const banner = byId('banner', HTMLElement)
const live = byId('live', HTMLElement)

/** A sentence that stands at the bottom until it is over: '' takes it away. */
export function show(text: string): void {
  if (banner.textContent !== text) banner.textContent = text
}

/** Say to screen readers what has changed. */
export function announce(text: string): void {
  live.textContent = text
}

/** Mark a button as not to be pressed. It keeps the focus, unlike one that is `disabled`. */
export function block(button: HTMLButtonElement, blocked: boolean): void {
  button.setAttribute('aria-disabled', String(blocked))
}

export const isBlocked = (button: HTMLButtonElement) =>
  button.getAttribute('aria-disabled') === 'true'
