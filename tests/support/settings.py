"""The settings that a worker can't do without, as none of ours has them."""

MANDATORY = {
    "DATABASE_URL": "postgresql://postgres:hunter22@db.example.com:5432/postgres",
    "SUPABASE_URL": "https://example.supabase.co",
    "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_0123456789",
    "RUNWAYML_API_SECRET": "key_0123456789abcdef",
}
