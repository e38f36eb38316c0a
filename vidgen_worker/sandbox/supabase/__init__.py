"""Supabase's double: the objects that migrations expect, keys, and a project's four services.

Reading order: `bootstrap`, `keys`, `project`, then `rest/`, `realtime/`, `auth/`, `storage/`. It
never touches a hosted project.
"""
