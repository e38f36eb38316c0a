// What a video is made of: a picture of the product, two texts and a size.
import type { Scene } from './database.ts'
import { ratioOf } from './size.ts'
import { supabase } from './supabase.ts'

const PICTURES = 'product-pictures' // the bucket that setup.sql makes
const ENDINGS: Record<string, string> = {
  'image/jpeg': 'jpg', 'image/png': 'png', 'image/webp': 'webp',
}

/** Which resolutions can be chosen, "width:height", each with the scenario that says it. */
export async function readResolutions(): Promise<Map<string, string>> {
  const { data, error } = await supabase.from('video_scenarios').select('id, resolution').limit(100)
  if (error) throw error
  const widestFirst = data.sort((a, b) => ratioOf(b.resolution) - ratioOf(a.resolution))
  return new Map(widestFirst.map((row) => [row.resolution, row.id]))
}

/** Upload a picture into the user's own folder; its public address, which the provider will ask. */
export async function uploadPicture(userId: string, picture: File): Promise<string> {
  const path = `${userId}/${crypto.randomUUID()}.${ENDINGS[picture.type] ?? 'bin'}`
  const bucket = supabase.storage.from(PICTURES)
  const { error } = await bucket.upload(path, picture, { contentType: picture.type })
  if (error) throw error
  return bucket.getPublicUrl(path).data.publicUrl
}

/** Insert a scene. Its id is ours, so a second insert after a lost answer changes nothing. */
export async function saveScene(scene: Scene): Promise<void> {
  const { error } = await supabase
    .from('video_scenes').upsert(scene, { onConflict: 'id', ignoreDuplicates: true })
  if (error) throw error
}

/** The texts of scenes, by the scene's id. */
export async function readTexts(ids: string[]): Promise<Map<string, string>> {
  if (!ids.length) return new Map()
  const { data, error } = await supabase
    .from('video_scenes').select('id, image_prompt, visual_prompt').in('id', ids)
  if (error) throw error
  return new Map(data.map((row) => [row.id, row.image_prompt ?? row.visual_prompt ?? '']))
}
