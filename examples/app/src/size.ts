// Resolutions, as the tables write them: "width:height" in pixels.

const FALLBACK = '1280:720' // a row has none until a worker has looked at its scene

/** Width by height. */
export function ratioOf(resolution: string | null): number {
  const [width, height] = (resolution ?? FALLBACK).split(':').map(Number)
  return width && height ? width / height : 1
}

/** "Landscape", "Portrait" or "Square". */
export function shapeOf(resolution: string): string {
  const ratio = ratioOf(resolution)
  return ratio > 1 ? 'Landscape' : ratio < 1 ? 'Portrait' : 'Square'
}

/** "1280 × 720". */
export const pixelsOf = (resolution: string) => resolution.replace(':', ' × ')
