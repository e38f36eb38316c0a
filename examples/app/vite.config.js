// Which settings the page is given, and what it may load. Everything else is Vite's default.
import { defineConfig, loadEnv } from 'vite'

// These two are public: whoever opens the page can read them. Nothing else of the file reaches it.
const SETTINGS = ['SUPABASE_URL', 'SUPABASE_ANON_KEY']

export default defineConfig(({ mode }) => {
  // `--mode sandbox` reads the file that `make sandbox` writes at the top of the repository. Your own
  // project's two settings stand in .env.local here, or in the environment.
  const envDir = mode === 'sandbox' ? '../..' : '.'
  const env = loadEnv(mode, envDir, SETTINGS)
  const missing = SETTINGS.filter((name) => !env[name])
  if (missing.length) {
    throw new Error(`Set ${missing.join(' and ')} in .env.local or in the environment (README.md).`)
  }
  return {
    envDir,
    envPrefix: SETTINGS,
    build: { assetsInlineLimit: 0 }, // no data: addresses, which the policy below forbids
    plugins: [{
      name: 'content-security-policy',
      transformIndexHtml: () => [{
        tag: 'meta',
        attrs: { 'http-equiv': 'Content-Security-Policy', content: policy(env.SUPABASE_URL) },
        injectTo: 'head-prepend',
      }],
    }],
  }
})

/** What the page may load and whom it may ask: itself and its Supabase project, nothing inline. */
function policy(project) {
  const { origin } = new URL(project)
  const socket = origin.replace(/^http/, 'ws') // Realtime
  return [
    `default-src 'none'`, `script-src 'self'`, `style-src 'self'`,
    `img-src 'self' blob: ${origin}`, `media-src ${origin}`,
    `connect-src 'self' ${origin} ${socket}`, `base-uri 'none'`, `form-action 'none'`,
  ].join('; ')
}
