// The form for who is not signed in.
import { block, byId, isBlocked } from './page.ts'
import { signIn, signUp } from './session.ts'
import { sentence } from './words.ts'

export function openDoor(): void {
  const form = byId('door-form', HTMLFormElement)
  const note = byId('door-note', HTMLElement)
  form.addEventListener('submit', async (event) => {
    event.preventDefault()
    const button = event.submitter as HTMLButtonElement
    if (isBlocked(button)) return
    const email = byId('email', HTMLInputElement).value
    const password = byId('password', HTMLInputElement).value
    note.textContent = ''
    block(button, true)
    try {
      if (button.value === 'in') await signIn(email, password)
      else if (!await signUp(email, password)) {
        note.textContent = 'Open the link in the mail that was sent to you, then sign in.'
      }
      form.reset()
    } catch (error) {
      note.textContent = sentence(error)
    } finally {
      block(button, false)
    }
  })
}
