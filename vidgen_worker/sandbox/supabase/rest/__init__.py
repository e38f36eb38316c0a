"""The REST API's double: PostgREST's dialect, as supabase-js and supabase-py speak it.

Reading order: `parsing` (the query string), `statements` (the SQL), `answers`, `server`. It never
decides who may do what: the statements run as the caller's role, and the database decides.
"""
