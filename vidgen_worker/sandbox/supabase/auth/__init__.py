"""Auth's double: users with passwords, sessions and tokens, as supabase-js signs them in.

Reading order: `server`, `users`. It sends no mail: an address counts as confirmed when it signs up.
It knows no provider but the password.
"""
