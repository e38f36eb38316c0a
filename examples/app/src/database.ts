// The part of the tables that this page reads and writes. The whole of it: docs/clients.md, "Types".

type Row<Columns, Insert = never> = {
  Row: Columns
  Insert: Insert
  Update: never
  Relationships: []
}

export type Task = {
  id: string
  user_id: string
  scene_id: string | null
  status: string // 'pending', 'processing', 'completed', 'failed' or 'cancelled'
  progress: number // percent of the whole, never goes down
  current_step: string
  error_code: string | null
  error_message: string | null // a sentence for the user
  resolution: string | null // null until the first worker has looked
  image_url: string | null // public, lasts
  video_path: string | null // what lasts of the clip
  video_url: string | null // signed for an hour
  video_url_expires_at: string | null
  cancel_requested_at: string | null
  expected_at: string | null // null while nobody can say; never a promise
  created_at: string
  updated_at: string
}

export type Scene = {
  id: string
  user_id: string
  scenario_id: string
  image_prompt: string | null
  visual_prompt: string | null
  product_reference_image_url: string | null
}

export type Gate = { model: string; message: string }

type TaskCall = { Args: { task_id: string }; Returns: Task }

export type Database = {
  public: {
    Tables: {
      video_generation_tasks: Row<Task, { id: string; scene_id: string }>
      video_scenes: Row<Scene, Scene>
      video_scenarios: Row<{ id: string; resolution: string }>
      video_generation_gates: Row<Gate>
      credit_prices: Row<{ action: string; credits: number }>
      user_credits: Row<{ user_id: string; balance: number; held: number }>
    }
    Views: { [none in never]: never }
    Functions: {
      cancel_video_generation_task: TaskCall
      retry_video_generation_task: TaskCall
    }
  }
}
